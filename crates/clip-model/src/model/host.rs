//! Using all processors of a host.
//!
//! Burn's host backend spreads matrix products over the processors and runs most of what lies between them on one. Images and texts do
//! not know of each other, so a batch is cut into one part a processor, and each goes through the whole tower alone. An accelerator
//! wants the opposite, and a tape must be built in one place.

use burn::tensor::{DType, Device, Tensor};
use rayon::prelude::*;

/// Whether tensors on `device` are computed by this process's own threads, and without a tape.
pub(super) fn is_host(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    {
        !device.is_autodiff() && *device == Device::flex()
    }
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// Whether a pointwise operation on `x` may be computed by the loops below.
pub(super) fn computes<const D: usize>(x: &Tensor<D>) -> bool {
    is_host(&x.device()) && x.dtype() == DType::F32
}

/// The features of the parts, one below the other.
pub(super) fn encode_parts<T: Send>(
    parts: Vec<T>,
    encode: impl Fn(T) -> Tensor<2> + Send + Sync,
) -> Tensor<2> {
    Tensor::cat(parts.into_par_iter().map(encode).collect(), 0)
}

/// Bounds that cut `count` items into parts of nearly the same size, one a processor.
pub(super) fn parts(count: usize) -> Vec<std::ops::Range<usize>> {
    let parts = rayon::current_num_threads().clamp(1, count.max(1));
    (0..parts)
        .map(|i| i * count / parts..(i + 1) * count / parts)
        .collect()
}

/// `f` on every row of `width` values of a contiguous tensor on the host, in place. Burn's own pointwise operations there compute one
/// exponential at a time; the loops below are written so that the compiler computes several at once.
pub(super) fn map_rows<const D: usize>(
    x: Tensor<D>,
    width: usize,
    f: impl Fn(&mut [f32]),
) -> Tensor<D> {
    let device = x.device();
    let mut data = x.into_data();
    match data.as_mut_slice::<f32>() {
        Ok(values) => values.chunks_exact_mut(width).for_each(f),
        Err(error) => unreachable!("only tensors of f32 come here: {error}"),
    }
    Tensor::from_data(data, &device)
}

/// `x · σ(a x + b x³)`: QuickGELU is `a = 1.702`, `b = 0`; GELU by its tanh approximation is `a = 2 √(2/π)`,
/// `b = 0.044715 a`, because `(1 + tanh u) / 2 = σ(2u)`.
pub(super) fn gated(values: &mut [f32], a: f32, b: f32) {
    for x in values {
        let u = *x * (a + b * *x * *x);
        *x /= 1.0 + exp(-u);
    }
}

/// The softmax of `scale · row`.
pub(super) fn softmax(row: &mut [f32], scale: f32) {
    let largest = lanes(row, f32::NEG_INFINITY, f32::max);
    for x in row.iter_mut() {
        *x = exp((*x - largest) * scale);
    }
    let sum = lanes(row, 0.0, |a, b| a + b);
    let factor = 1.0 / sum;
    for x in row {
        *x *= factor;
    }
}

/// Folds a row in eight lanes.
fn lanes(row: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; 8];
    let chunks = row.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, *x);
        }
    }
    let folded = lanes.into_iter().fold(start, &f);
    rest.iter().fold(folded, |a, x| f(a, *x))
}

/// The exponential, within 2 units in the last place where the result is a normal number: `2^k · 2^r` with `k` whole and
/// `|r| ≤ ½`, the second factor by its Taylor polynomial. Beyond that range it stays at the ends of it.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding this rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    let mut p = 1.0 / 5040.0;
    for c in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + c;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    p * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_that_of_the_library() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2.4e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn rows_sum_to_one() {
        let mut row: Vec<f32> = (0..197).map(|i| (i as f32 * 0.7).sin() * 30.0).collect();
        let want: Vec<f64> = {
            let e: Vec<f64> = row.iter().map(|x| (f64::from(*x) * 0.125).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(|x| x / sum).collect()
        };
        softmax(&mut row, 0.125);
        for (ours, want) in row.iter().zip(want) {
            assert!((f64::from(*ours) - want).abs() < 1e-6 * want.max(1e-3));
        }
    }

    #[test]
    fn parts_cover_everything_once() {
        for count in [1, 2, 3, 8, 17, 1000] {
            let parts = parts(count);
            assert_eq!(parts[0].start, 0);
            assert_eq!(parts[parts.len() - 1].end, count);
            assert!(parts.windows(2).all(|p| p[0].end == p[1].start));
            assert!(parts.iter().all(|p| !p.is_empty()));
        }
    }
}

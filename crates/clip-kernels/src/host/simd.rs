//! Loops compiled for the widest vector instructions of the processor.

use pulp::{Arch, Simd, WithSimd};

/// A loop that is compiled once for each instruction set.
///
/// `FMA` is `true` where [`mul_add`] is one instruction. Implementations, and all they call, must
/// be `#[inline(always)]`: only inlined code is compiled for the wider vectors.
pub(super) trait Kernel {
    type Output;
    fn run<const FMA: bool>(self) -> Self::Output;
}

struct Dispatched<K>(K);

impl<K: Kernel> WithSimd for Dispatched<K> {
    type Output = K::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> K::Output {
        if S::IS_SCALAR {
            self.0.run::<false>()
        } else {
            self.0.run::<true>()
        }
    }
}

/// Runs a kernel with the best instruction set of this processor.
#[inline(always)]
pub(super) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    Arch::new().dispatch(Dispatched(kernel))
}

/// Computes `a·b + c`, with a single rounding where the processor has a fused multiply-add.
#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Computes `e^x`, within 2 units in the last place where the result is a normal number.
///
/// `e^x = 2^k · e^r` with an integer `k` and `|r| ≤ ½ ln 2`; the second factor is a Taylor
/// polynomial. Inputs outside of `-87..=88` are clamped; NaN stays NaN.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let k = shifted - ROUND;
    let r = mul_add::<FMA>(-k, LN_2_LOW, mul_add::<FMA>(-k, LN_2_HIGH, x));
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
        p = mul_add::<FMA>(p, r, c);
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    p * power
}

/// Number of partial sums of a reduction: several vectors, whose additions can overlap.
const LANES: usize = 32;

/// Sums `f` over `0..len`, in `LANES` partial sums that are added in a fixed order.
#[inline(always)]
pub(super) fn sum(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let vectorised = len / LANES * LANES;
    let mut start = 0;
    while start < vectorised {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += f(start + lane);
        }
        start += LANES;
    }
    let mut total = reduce_lanes(lanes, |a, b| a + b);
    for i in vectorised..len {
        total += f(i);
    }
    total
}

/// Returns the largest value of a row, ignoring NaN, or `-∞` for an empty row.
#[inline(always)]
pub(super) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (largest, x) in lanes.iter_mut().zip(chunk) {
            *largest = if *x > *largest { *x } else { *largest };
        }
    }
    rest.iter()
        .copied()
        .fold(reduce_lanes(lanes, f32::max), f32::max)
}

#[inline(always)]
fn reduce_lanes(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Adds a row to a total, elementwise.
pub(super) struct AddTo<'a> {
    pub(super) total: &'a mut [f32],
    pub(super) row: &'a [f32],
}

impl Kernel for AddTo<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (total, x) in self.total.iter_mut().zip(self.row) {
            *total += x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_exp<const FMA: bool>() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            let error = (f64::from(exp::<FMA>(x)) - want).abs() / want;
            assert!(error < 2.4e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp::<FMA>(f32::NEG_INFINITY), exp::<FMA>(-87.0));
        assert!(exp::<FMA>(f32::NAN).is_nan());
    }

    #[test]
    fn exp_matches_the_standard_library() {
        check_exp::<false>();
        check_exp::<true>();
    }

    #[test]
    fn reductions_cover_every_length() {
        for len in 0..200 {
            let row: Vec<f32> = (0..len).map(|i| ((i * 37) % 101) as f32).collect();
            assert_eq!(sum(len, |i| row[i]), row.iter().sum::<f32>());
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&row), largest);
        }
    }
}

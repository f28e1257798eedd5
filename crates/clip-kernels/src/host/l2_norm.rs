//! Rows scaled to length one: `y = x / max(‖x‖, ε)`.

use rayon::prelude::*;

use super::simd::{Kernel, dispatch, mul_add, sum};

/// Rows below this many values are not worth a thread.
const FEWEST: usize = 1 << 14;

struct Forward<'a> {
    input: &'a [f32],
    output: &'a mut [f32],
    epsilon: f32,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let x = self.input;
        let scale = 1.0 / floor(sum(x.len(), |i| x[i] * x[i]).sqrt(), self.epsilon);
        for (y, x) in self.output.iter_mut().zip(x) {
            *y = x * scale;
        }
    }
}

/// `max(length, ε)`, NaN kept.
#[inline(always)]
fn floor(length: f32, epsilon: f32) -> f32 {
    if length < epsilon { epsilon } else { length }
}

struct Backward<'a> {
    input: &'a [f32],
    gradient: &'a [f32],
    output: &'a mut [f32],
    epsilon: f32,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let x = self.input;
        let g = &self.gradient[..x.len()];
        let length = sum(x.len(), |i| x[i] * x[i]).sqrt();
        let scale = 1.0 / floor(length, self.epsilon);
        // Below ε the row is divided by a constant.
        let along = if length < self.epsilon {
            0.0
        } else {
            sum(x.len(), |i| x[i] * g[i]) * scale * scale
        };
        for ((dx, x), g) in self.output.iter_mut().zip(x).zip(g) {
            *dx = mul_add::<FUSED>(-*x, along, *g) * scale;
        }
    }
}

/// Scales every row of `x`, `[rows, width]`, to length one; shorter than `epsilon` it is divided by `epsilon`.
///
/// # Panics
/// When `x` is not made of whole rows.
pub fn l2_normalise(x: &[f32], width: usize, epsilon: f32) -> Vec<f32> {
    assert!(width > 0 && x.len().is_multiple_of(width));
    let mut y = vec![0.0; x.len()];
    y.par_chunks_exact_mut(width)
        .zip(x.par_chunks_exact(width))
        .with_min_len(FEWEST.div_ceil(width))
        .for_each(|(output, input)| {
            dispatch(Forward {
                input,
                output,
                epsilon,
            })
        });
    y
}

/// The gradient of [`l2_normalise`] at `x`, given the gradient `dy` of its output.
///
/// # Panics
/// When the lengths do not fit.
pub fn l2_normalise_backward(x: &[f32], width: usize, epsilon: f32, dy: &[f32]) -> Vec<f32> {
    assert!(width > 0 && x.len().is_multiple_of(width));
    assert_eq!(x.len(), dy.len());
    let mut dx = vec![0.0; x.len()];
    dx.par_chunks_exact_mut(width)
        .zip(x.par_chunks_exact(width).zip(dy.par_chunks_exact(width)))
        .with_min_len(FEWEST.div_ceil(width))
        .for_each(|(output, (input, gradient))| {
            dispatch(Backward {
                input,
                gradient,
                output,
                epsilon,
            });
        });
    dx
}

#[cfg(test)]
mod tests {
    use super::super::reference::{Inputs, assert_close, assert_gradients, numbers, wide};
    use super::*;

    #[test]
    fn values_and_gradients_are_those_of_the_formula() {
        for (rows, width, epsilon) in [
            (1, 1, 1e-12),
            (3, 7, 1e-12),
            (40, 512, 1e-12),
            (3, 5, 100.0),
        ] {
            let x = numbers(rows * width, 4, 2.0);
            let dy = numbers(rows * width, 5, 1.0);
            let formula = |of: &Inputs<f64>| {
                let mut y = Vec::new();
                for row in of[0].chunks(width) {
                    let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                    y.extend(row.iter().map(|x| x / length.max(f64::from(epsilon))));
                }
                y
            };
            let mut of: Inputs<f32> = Default::default();
            of[0] = x.clone();
            let want = formula(&std::array::from_fn(|i| wide(&of[i])));
            assert_close(&l2_normalise(&x, width, epsilon), &want, 1e-6, "y");
            let dx = Some(l2_normalise_backward(&x, width, epsilon, &dy));
            let none = Some(Vec::new());
            let list = [&dx, &none, &none, &none, &none, &none, &none];
            assert_gradients(formula, &of, &dy, list, "gradient");
        }
    }

    #[test]
    fn a_row_of_zeros_stays_and_nan_too() {
        let y = l2_normalise(&[0.0, 0.0, f32::NAN, 1.0], 2, 1e-12);
        assert!(y[..2] == [0.0, 0.0] && y[2].is_nan() && y[3].is_nan());
    }
}

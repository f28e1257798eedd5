//! Layer norm `y = (x - mean) / √(variance + ε) · γ + β` over rows, with the biased variance, and
//! its gradients.

use super::{
    LayerNormParams,
    buffers::zeros,
    parts::{self, Parts},
    simd::{Kernel, dispatch, mul_add, sum},
};

/// The mean of a row, and the reciprocal of its standard deviation, with `ε` in the root.
#[derive(Clone, Copy)]
pub(super) struct Moments {
    mean: f32,
    rstd: f32,
}

#[inline(always)]
fn moments<const FMA: bool>(row: &[f32], epsilon: f32) -> Moments {
    let scale = 1.0 / row.len() as f32;
    let mean = sum(row.len(), |i| row[i]) * scale;
    let variance = sum(row.len(), |i| (row[i] - mean) * (row[i] - mean)) * scale;
    Moments {
        mean,
        rstd: 1.0 / (variance + epsilon).sqrt(),
    }
}

struct Forward<'a> {
    params: LayerNormParams<'a>,
    input: &'a [f32],
    output: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = Moments;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> Moments {
        let Self {
            params,
            input,
            output,
        } = self;
        let moments = moments::<FMA>(input, params.epsilon);
        let Moments { mean, rstd } = moments;
        let scale_shift = params.gamma.iter().zip(params.beta);
        for ((y, x), (gamma, beta)) in output.iter_mut().zip(input).zip(scale_shift) {
            *y = mul_add::<FMA>((x - mean) * rstd, *gamma, *beta);
        }
        moments
    }
}

/// Normalizes one row, and returns its moments.
pub(super) fn normalize_row(
    params: LayerNormParams<'_>,
    input: &[f32],
    output: &mut [f32],
) -> Moments {
    dispatch(Forward {
        params,
        input,
        output,
    })
}

struct Backward<'a> {
    gamma: &'a [f32],
    moments: Moments,
    input: &'a [f32],
    gradient: &'a [f32],
    output: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Moments { mean, rstd } = self.moments;
        let width = self.input.len();
        let (x, g) = (self.input, &self.gradient[..width]);
        let (gamma, output) = (&self.gamma[..width], &mut self.output[..width]);
        let scale = 1.0 / width as f32;
        // dx = rstd · (gγ - mean(gγ) - x̂ · mean(gγ · x̂)) with x̂ = (x - mean) · rstd.
        let mean_g = sum(width, |i| g[i] * gamma[i]) * scale;
        let mean_gx = sum(width, |i| g[i] * gamma[i] * ((x[i] - mean) * rstd)) * scale;
        for i in 0..width {
            let x_hat = (x[i] - mean) * rstd;
            let centered = mul_add::<FMA>(g[i], gamma[i], -mean_g);
            output[i] = mul_add::<FMA>(rstd, mul_add::<FMA>(-x_hat, mean_gx, centered), output[i]);
        }
    }
}

/// Adds the gradient of an input row to `output`, given the `gradient` of the output row.
pub(super) fn normalize_row_backward(
    gamma: &[f32],
    moments: Moments,
    input: &[f32],
    gradient: &[f32],
    output: &mut [f32],
) {
    dispatch(Backward {
        gamma,
        moments,
        input,
        gradient,
        output,
    });
}

struct ParamsBackward<'a> {
    moments: Moments,
    input: &'a [f32],
    gradient: &'a [f32],
    gamma: &'a mut [f32],
    beta: &'a mut [f32],
}

impl Kernel for ParamsBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Moments { mean, rstd } = self.moments;
        let totals = self.gamma.iter_mut().zip(self.beta);
        for ((gamma, beta), (x, g)) in totals.zip(self.input.iter().zip(self.gradient)) {
            *gamma = mul_add::<FMA>(*g, (x - mean) * rstd, *gamma);
            *beta += g;
        }
    }
}

/// Gradients of γ and β, summed over rows.
pub(super) struct ParamsGradient {
    pub(super) gamma: Vec<f32>,
    pub(super) beta: Vec<f32>,
}

impl ParamsGradient {
    pub(super) fn new(width: usize) -> Self {
        Self {
            gamma: vec![0.0; width],
            beta: vec![0.0; width],
        }
    }

    pub(super) fn add(&mut self, moments: Moments, input: &[f32], gradient: &[f32]) {
        let (gamma, beta) = (&mut self.gamma, &mut self.beta);
        dispatch(ParamsBackward {
            moments,
            input,
            gradient,
            gamma,
            beta,
        });
    }
}

/// Normalizes every row of `x`.
///
/// # Shapes
/// - `x`: `[rows, width]`
/// - output: `[rows, width]`
///
/// # Panics
/// If the lengths do not match.
pub fn layer_norm(x: &[f32], params: LayerNormParams<'_>) -> Vec<f32> {
    let width = check(x, params);
    let mut y = zeros(x.len());
    let parts = Parts::of_rows(x.len() / width, false);
    let tasks = parts
        .ranges
        .iter()
        .zip(parts.split(&mut y, width))
        .collect();
    parts::run(tasks, |(range, y)| {
        let x = &x[range.start * width..range.end * width];
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            normalize_row(params, x, y);
        }
    });
    y
}

struct RowMoments<'a> {
    input: &'a [f32],
    epsilon: f32,
}

impl Kernel for RowMoments<'_> {
    type Output = Moments;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> Moments {
        moments::<FMA>(self.input, self.epsilon)
    }
}

/// Returns the moments of one row.
pub(super) fn row_moments(params: LayerNormParams<'_>, input: &[f32]) -> Moments {
    dispatch(RowMoments {
        input,
        epsilon: params.epsilon,
    })
}

fn check(x: &[f32], params: LayerNormParams<'_>) -> usize {
    let width = params.gamma.len();
    assert!(width > 0, "a row must hold something");
    assert_eq!(params.beta.len(), width);
    assert!(x.len().is_multiple_of(width));
    width
}

#[cfg(test)]
mod tests {
    use super::super::reference::{
        self, Inputs, assert_close, assert_gradients, inputs, norm, numbers, wide,
    };
    use super::*;

    /// Gradients of the input, the scale and the shift, row after row as the branches compute them.
    fn backward(x: &[f32], params: LayerNormParams<'_>, dy: &[f32]) -> [Option<Vec<f32>>; 3] {
        let width = check(x, params);
        let mut dx = vec![0.0; x.len()];
        let mut sums = ParamsGradient::new(width);
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let moments = row_moments(params, x);
            normalize_row_backward(params.gamma, moments, x, dy, dx);
            sums.add(moments, x, dy);
        }
        [Some(dx), Some(sums.gamma), Some(sums.beta)]
    }

    #[test]
    fn values_and_gradients_match_the_formula() {
        for (rows, width) in [(1, 1), (1, 7), (5, 32), (40, 65), (3, 768)] {
            let values = inputs(rows, width, [0, 0], false, 7);
            let formula = |values: &Inputs<f64>| {
                reference::layer_norm(
                    &values[0],
                    &values[1],
                    &values[2],
                    f64::from(reference::EPSILON),
                )
            };
            let want = formula(&std::array::from_fn(|i| wide(&values[i])));
            let what = format!("{rows} x {width}");
            assert_close(&layer_norm(&values[0], norm(&values)), &want, 2e-6, &what);
            let dy = numbers(rows * width, 9, 1.0);
            let [input, gamma, beta] = backward(&values[0], norm(&values), &dy);
            let none = Some(Vec::new());
            let list = [&input, &gamma, &beta, &none, &none, &none, &none];
            assert_gradients(formula, &values, &dy, list, &what);
        }
    }
}

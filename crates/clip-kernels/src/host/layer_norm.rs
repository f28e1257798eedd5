//! Layer norm: `y = (x - mean) / √(variance + ε) · γ + β` over each row, the variance biased.

use super::{
    LayerNormParams,
    buffers::zeros,
    parts::{self, Parts},
    simd::{Kernel, dispatch, mul_add, sum},
};

/// The mean of a row, and the inverse of the root of its variance.
#[derive(Clone, Copy)]
pub(super) struct Moments {
    mean: f32,
    rstd: f32,
}

#[inline(always)]
fn moments<const FUSED: bool>(row: &[f32], epsilon: f32) -> Moments {
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
    fn run<const FUSED: bool>(self) -> Moments {
        let Self {
            params,
            input,
            output,
        } = self;
        let found = moments::<FUSED>(input, params.epsilon);
        let Moments { mean, rstd } = found;
        let affine = params.gamma.iter().zip(params.beta);
        for ((y, x), (gamma, beta)) in output.iter_mut().zip(input).zip(affine) {
            *y = mul_add::<FUSED>((x - mean) * rstd, *gamma, *beta);
        }
        found
    }
}

/// Normalises one row.
pub(super) fn row(params: LayerNormParams<'_>, input: &[f32], output: &mut [f32]) -> Moments {
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
    fn run<const FUSED: bool>(self) {
        let Moments { mean, rstd } = self.moments;
        let width = self.input.len();
        let (x, g) = (self.input, &self.gradient[..width]);
        let (gamma, output) = (&self.gamma[..width], &mut self.output[..width]);
        let scale = 1.0 / width as f32;
        let along_one = sum(width, |i| g[i] * gamma[i]) * scale;
        let along_x = sum(width, |i| g[i] * gamma[i] * ((x[i] - mean) * rstd)) * scale;
        for i in 0..width {
            let normal = (x[i] - mean) * rstd;
            let centred = mul_add::<FUSED>(g[i], gamma[i], -along_one);
            output[i] =
                mul_add::<FUSED>(rstd, mul_add::<FUSED>(-normal, along_x, centred), output[i]);
        }
    }
}

/// Adds to `output` the gradient of a row of the input, given the `gradient` of that row of the
/// output.
pub(super) fn row_backward(
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
    fn run<const FUSED: bool>(self) {
        let Moments { mean, rstd } = self.moments;
        let totals = self.gamma.iter_mut().zip(self.beta);
        for ((gamma, beta), (x, g)) in totals.zip(self.input.iter().zip(self.gradient)) {
            *gamma = mul_add::<FUSED>(*g, (x - mean) * rstd, *gamma);
            *beta += g;
        }
    }
}

/// The gradients of γ and β, summed over rows.
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

/// The layer norm of every row of `x`, `[rows, width]`.
///
/// # Panics
/// When the lengths do not fit.
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
            row(params, x, y);
        }
    });
    y
}

/// The gradients of [`layer_norm`].
#[derive(Clone, Debug)]
pub struct LayerNormGradients {
    /// `[rows, width]`, when wanted.
    pub input: Option<Vec<f32>>,
    /// `[width]`, when those of the parameters are wanted.
    pub gamma: Option<Vec<f32>>,
    /// `[width]`, when those of the parameters are wanted.
    pub beta: Option<Vec<f32>>,
}

/// The gradients of [`layer_norm`] at `x`, given the gradient `dy` of its output.
///
/// # Panics
/// When the lengths do not fit.
pub fn layer_norm_backward(
    x: &[f32],
    params: LayerNormParams<'_>,
    dy: &[f32],
    input: bool,
    parameters: bool,
) -> LayerNormGradients {
    let width = check(x, params);
    assert_eq!(x.len(), dy.len());
    let mut dx = zeros(if input { x.len() } else { 0 });
    let parts = Parts::of_rows(x.len() / width, parameters);
    let dx_width = if input { width } else { 0 };
    let tasks = parts
        .ranges
        .iter()
        .zip(parts.split(&mut dx, dx_width))
        .collect();
    let sums = parts::run(tasks, |(range, dx)| {
        let mut sums = ParamsGradient::new(width);
        for (i, r) in range.clone().enumerate() {
            let (x, dy) = (&x[r * width..][..width], &dy[r * width..][..width]);
            let moments = row_moments(params, x);
            if input {
                row_backward(params.gamma, moments, x, dy, &mut dx[i * width..][..width]);
            }
            if parameters {
                sums.add(moments, x, dy);
            }
        }
        sums
    });
    let (gamma, beta) = sums.into_iter().map(|sums| (sums.gamma, sums.beta)).unzip();
    LayerNormGradients {
        input: input.then_some(dx),
        gamma: parts::total(gamma).filter(|_| parameters),
        beta: parts::total(beta).filter(|_| parameters),
    }
}

struct FindMoments<'a> {
    input: &'a [f32],
    epsilon: f32,
}

impl Kernel for FindMoments<'_> {
    type Output = Moments;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> Moments {
        moments::<FUSED>(self.input, self.epsilon)
    }
}

/// The moments of one row.
pub(super) fn row_moments(params: LayerNormParams<'_>, input: &[f32]) -> Moments {
    dispatch(FindMoments {
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

    #[test]
    fn values_and_gradients_are_those_of_the_formula() {
        for (rows, width) in [(1, 1), (1, 7), (5, 32), (40, 65), (3, 768)] {
            let of = inputs(rows, width, [0, 0], false, 7);
            let formula = |of: &Inputs<f64>| {
                reference::layer_norm(&of[0], &of[1], &of[2], f64::from(reference::EPSILON))
            };
            let want = formula(&std::array::from_fn(|i| wide(&of[i])));
            let what = format!("{rows} x {width}");
            assert_close(&layer_norm(&of[0], norm(&of)), &want, 2e-6, &what);
            let dy = numbers(rows * width, 9, 1.0);
            let found = layer_norm_backward(&of[0], norm(&of), &dy, true, true);
            let none = Some(Vec::new());
            let list = [
                &found.input,
                &found.gamma,
                &found.beta,
                &none,
                &none,
                &none,
                &none,
            ];
            assert_gradients(formula, &of, &dy, list, &what);
            let some = layer_norm_backward(&of[0], norm(&of), &dy, true, false);
            assert!(some.input == found.input && some.gamma.is_none() && some.beta.is_none());
            let some = layer_norm_backward(&of[0], norm(&of), &dy, false, true);
            assert!(some.input.is_none() && some.gamma == found.gamma && some.beta == found.beta);
        }
    }
}

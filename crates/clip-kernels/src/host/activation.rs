//! Activations of an MLP: QuickGELU, GELU and its tanh approximation, with their derivatives.

use super::simd::{Kernel, dispatch, exp, mul_add};

/// The activation of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationFunction {
    /// `x σ(1.702 x)`, of OpenAI's CLIP.
    QuickGelu,
    /// GELU by its tanh approximation, `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// GELU, `x Φ(x)`.
    Gelu,
}

/// Factor of the tanh approximation as a sigmoid: since `(1 + tanh u) / 2 = σ(2u)`, it is
/// `x σ(a x + b x³)`.
const TANH_A: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;

/// The factor `b` of the same.
const TANH_B: f32 = TANH_A * 0.044_715;

/// Factor of QuickGELU.
const QUICK_A: f32 = 1.702;

/// Returns `σ(u)`, and `1 - σ(u)` without cancellation.
#[inline(always)]
fn sigmoid<const FMA: bool>(u: f32) -> (f32, f32) {
    let e = exp::<FMA>(-u);
    let s = 1.0 / (1.0 + e);
    (s, e * s)
}

/// Returns `Φ(x)` within 1.2e-7, and `e^(-x²/2)` (Abramowitz and Stegun, Handbook of Mathematical
/// Functions, 7.1.26).
#[inline(always)]
fn normal_cdf<const FMA: bool>(x: f32) -> (f32, f32) {
    let density = exp::<FMA>(-0.5 * x * x);
    let t = 1.0 / mul_add::<FMA>(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2, x.abs(), 1.0);
    let mut p = 1.061_405_4;
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = mul_add::<FMA>(p, t, c);
    }
    let tail = 0.5 * p * t * density;
    (if x < 0.0 { tail } else { 1.0 - tail }, density)
}

#[inline(always)]
fn value<const FMA: bool>(kind: ActivationFunction, x: f32) -> f32 {
    match kind {
        ActivationFunction::QuickGelu => x * sigmoid::<FMA>(QUICK_A * x).0,
        ActivationFunction::GeluTanh => {
            x * sigmoid::<FMA>(x * mul_add::<FMA>(TANH_B * x, x, TANH_A)).0
        }
        ActivationFunction::Gelu => x * normal_cdf::<FMA>(x).0,
    }
}

/// Returns the value and the derivative.
#[inline(always)]
fn value_and_derivative<const FMA: bool>(kind: ActivationFunction, x: f32) -> (f32, f32) {
    match kind {
        ActivationFunction::QuickGelu => {
            let (s, one_minus_s) = sigmoid::<FMA>(QUICK_A * x);
            let y = x * s;
            (y, mul_add::<FMA>(QUICK_A * y, one_minus_s, s))
        }
        ActivationFunction::GeluTanh => {
            let square = x * x;
            let (s, one_minus_s) = sigmoid::<FMA>(x * mul_add::<FMA>(TANH_B, square, TANH_A));
            let y = x * s;
            let inner_derivative = mul_add::<FMA>(3.0 * TANH_B, square, TANH_A);
            (y, mul_add::<FMA>(y * one_minus_s, inner_derivative, s))
        }
        ActivationFunction::Gelu => {
            let (s, density) = normal_cdf::<FMA>(x);
            const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
            (x * s, mul_add::<FMA>(x * FRAC_1_SQRT_2PI, density, s))
        }
    }
}

struct Forward<'a> {
    kind: ActivationFunction,
    input: &'a [f32],
    output: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self {
            kind,
            input,
            output,
        } = self;
        for (y, x) in output.iter_mut().zip(input) {
            *y = value::<FMA>(kind, *x);
        }
    }
}

struct Backward<'a> {
    kind: ActivationFunction,
    input: &'a [f32],
    output: &'a mut [f32],
    gradient: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self {
            kind,
            input,
            output,
            gradient,
        } = self;
        for ((y, g), x) in output.iter_mut().zip(gradient).zip(input) {
            let (value, derivative) = value_and_derivative::<FMA>(kind, *x);
            *y = value;
            *g *= derivative;
        }
    }
}

impl ActivationFunction {
    /// Applies the activation to `input`, elementwise.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn forward(self, input: &[f32], output: &mut [f32]) {
        assert_eq!(input.len(), output.len());
        dispatch(Forward {
            kind: self,
            input,
            output,
        });
    }

    /// Multiplies `gradient` by the derivative at `input`, and recomputes the activation into
    /// `output`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn backward(self, input: &[f32], output: &mut [f32], gradient: &mut [f32]) {
        assert_eq!(input.len(), output.len());
        assert_eq!(input.len(), gradient.len());
        dispatch(Backward {
            kind: self,
            input,
            output,
            gradient,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;

    #[test]
    fn values_and_derivatives_match_the_formulas() {
        let x: Vec<f32> = (-20_000..20_000).map(|i| i as f32 * 1e-3).collect();
        for kind in [
            ActivationFunction::QuickGelu,
            ActivationFunction::GeluTanh,
            ActivationFunction::Gelu,
        ] {
            let mut y = vec![0.0; x.len()];
            kind.forward(&x, &mut y);
            let mut recomputed = vec![0.0; x.len()];
            let mut derivative = vec![2.0; x.len()];
            kind.backward(&x, &mut recomputed, &mut derivative);
            for i in 0..x.len() {
                let (want, want_derivative) = reference::activation(kind, f64::from(x[i]));
                let size = f64::from(x[i]).abs().max(1.0);
                assert!(
                    (f64::from(y[i]) - want).abs() < 4e-7 * size,
                    "{kind:?}({})",
                    x[i]
                );
                assert!((f64::from(recomputed[i]) - want).abs() < 4e-7 * size);
                let error = (f64::from(derivative[i]) / 2.0 - want_derivative).abs();
                assert!(error < 1e-6, "{kind:?}'({}) is off by {error:e}", x[i]);
            }
        }
    }

    #[test]
    fn nan_propagates() {
        for kind in [
            ActivationFunction::QuickGelu,
            ActivationFunction::GeluTanh,
            ActivationFunction::Gelu,
        ] {
            let (mut y, mut g) = ([0.0; 3], [1.0; 3]);
            kind.forward(&[1.0, f32::NAN, 1.0], &mut y);
            assert!(y[0].is_finite() && y[1].is_nan());
            kind.backward(&[1.0, f32::NAN, 1.0], &mut y, &mut g);
            assert!(g[0].is_finite() && g[1].is_nan() && y[1].is_nan());
        }
    }
}

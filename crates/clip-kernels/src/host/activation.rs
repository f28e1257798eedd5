//! The activations between the two products of an MLP.

use super::simd::{Kernel, dispatch, exp, mul_add};

/// What an MLP applies between its two products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x σ(1.702 x)`, of OpenAI's CLIP.
    QuickGelu,
    /// GELU by its tanh approximation, `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// GELU, `x Φ(x)`.
    Gelu,
}

/// `(1 + tanh u) / 2 = σ(2u)`, so the approximation is `x σ(a x + b x³)` with these factors.
const TANH_A: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
const TANH_B: f32 = TANH_A * 0.044_715;
const QUICK_A: f32 = 1.702;

/// `σ(u)`, and `1 - σ(u)` without cancellation.
#[inline(always)]
fn sigmoid<const FUSED: bool>(u: f32) -> (f32, f32) {
    let e = exp::<FUSED>(-u);
    let s = 1.0 / (1.0 + e);
    (s, e * s)
}

/// `Φ(x)` within 1.2e-7, and `e^(-x²/2)`: Abramowitz and Stegun, Handbook of Mathematical
/// Functions, 7.1.26.
#[inline(always)]
fn normal<const FUSED: bool>(x: f32) -> (f32, f32) {
    let density = exp::<FUSED>(-0.5 * x * x);
    let t = 1.0 / mul_add::<FUSED>(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2, x.abs(), 1.0);
    let mut p = 1.061_405_4;
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = mul_add::<FUSED>(p, t, c);
    }
    let tail = 0.5 * p * t * density;
    (if x < 0.0 { tail } else { 1.0 - tail }, density)
}

#[inline(always)]
fn value<const FUSED: bool>(kind: Activation, x: f32) -> f32 {
    match kind {
        Activation::QuickGelu => x * sigmoid::<FUSED>(QUICK_A * x).0,
        Activation::GeluTanh => x * sigmoid::<FUSED>(x * mul_add::<FUSED>(TANH_B * x, x, TANH_A)).0,
        Activation::Gelu => x * normal::<FUSED>(x).0,
    }
}

/// The value and the derivative.
#[inline(always)]
fn both<const FUSED: bool>(kind: Activation, x: f32) -> (f32, f32) {
    match kind {
        Activation::QuickGelu => {
            let (s, rest) = sigmoid::<FUSED>(QUICK_A * x);
            let y = x * s;
            (y, mul_add::<FUSED>(QUICK_A * y, rest, s))
        }
        Activation::GeluTanh => {
            let square = x * x;
            let (s, rest) = sigmoid::<FUSED>(x * mul_add::<FUSED>(TANH_B, square, TANH_A));
            let y = x * s;
            let slope = mul_add::<FUSED>(3.0 * TANH_B, square, TANH_A);
            (y, mul_add::<FUSED>(y * rest, slope, s))
        }
        Activation::Gelu => {
            let (s, density) = normal::<FUSED>(x);
            const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
            (x * s, mul_add::<FUSED>(x * FRAC_1_SQRT_2PI, density, s))
        }
    }
}

struct Forward<'a> {
    kind: Activation,
    input: &'a [f32],
    output: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self {
            kind,
            input,
            output,
        } = self;
        for (y, x) in output.iter_mut().zip(input) {
            *y = value::<FUSED>(kind, *x);
        }
    }
}

struct Backward<'a> {
    kind: Activation,
    input: &'a [f32],
    output: &'a mut [f32],
    gradient: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self {
            kind,
            input,
            output,
            gradient,
        } = self;
        for ((y, g), x) in output.iter_mut().zip(gradient).zip(input) {
            let (value, slope) = both::<FUSED>(kind, *x);
            *y = value;
            *g *= slope;
        }
    }
}

impl Activation {
    /// The activation of `input`, elementwise.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn forward(self, input: &[f32], output: &mut [f32]) {
        assert_eq!(input.len(), output.len());
        dispatch(Forward {
            kind: self,
            input,
            output,
        });
    }

    /// Multiplies `gradient` by the slope at `input`, and gives the activation once more in
    /// `output`.
    ///
    /// # Panics
    /// When the lengths differ.
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
    fn values_and_slopes_are_those_of_the_formulas() {
        let x: Vec<f32> = (-20_000..20_000).map(|i| i as f32 * 1e-3).collect();
        for kind in [
            Activation::QuickGelu,
            Activation::GeluTanh,
            Activation::Gelu,
        ] {
            let mut y = vec![0.0; x.len()];
            kind.forward(&x, &mut y);
            let mut again = vec![0.0; x.len()];
            let mut slope = vec![2.0; x.len()];
            kind.backward(&x, &mut again, &mut slope);
            for i in 0..x.len() {
                let (want, want_slope) = reference::activation(kind, f64::from(x[i]));
                let size = f64::from(x[i]).abs().max(1.0);
                assert!(
                    (f64::from(y[i]) - want).abs() < 4e-7 * size,
                    "{kind:?}({})",
                    x[i]
                );
                assert!((f64::from(again[i]) - want).abs() < 4e-7 * size);
                let error = (f64::from(slope[i]) / 2.0 - want_slope).abs();
                assert!(error < 1e-6, "{kind:?}'({}) is off by {error:e}", x[i]);
            }
        }
    }

    #[test]
    fn nan_stays() {
        for kind in [
            Activation::QuickGelu,
            Activation::GeluTanh,
            Activation::Gelu,
        ] {
            let (mut y, mut g) = ([0.0; 3], [1.0; 3]);
            kind.forward(&[1.0, f32::NAN, 1.0], &mut y);
            assert!(y[0].is_finite() && y[1].is_nan());
            kind.backward(&[1.0, f32::NAN, 1.0], &mut y, &mut g);
            assert!(g[0].is_finite() && g[1].is_nan() && y[1].is_nan());
        }
    }
}

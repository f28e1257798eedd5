//! AdamW with decoupled weight decay, one pass over parameters, gradient and moments.

use rayon::prelude::*;

use super::simd::{Kernel, dispatch, mul_add};

/// Hyper-parameters of a step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
}

struct Step<'a> {
    parameter: &'a mut [f32],
    gradient: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    decay_factor: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    sqrt_bias_correction2: f32,
    epsilon: f32,
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let moments = self.first.iter_mut().zip(self.second);
        let values = self.parameter.iter_mut().zip(self.gradient);
        for ((p, g), (m, v)) in values.zip(moments) {
            *m = mul_add::<FMA>(self.one_minus_beta1, g - *m, *m);
            *v = mul_add::<FMA>(self.one_minus_beta2 * g, *g, *v * self.beta2);
            let denominator = v.sqrt() / self.sqrt_bias_correction2 + self.epsilon;
            *p = mul_add::<FMA>(-self.step_size, *m / denominator, *p * self.decay_factor);
        }
    }
}

impl AdamW {
    /// Updates a parameter and its moments in place. `step` counts from one.
    ///
    /// The formulas are those of PyTorch's `_single_tensor_adamw`. The weights decay first, by the
    /// factor `1 - learning rate · decay`; then
    /// `p -= learning rate / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)`.
    ///
    /// # Shapes
    /// - `parameter`, `gradient`, `first` and `second` (the moments): `[values]`
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn step(
        &self,
        step: u64,
        parameter: &mut [f32],
        gradient: &[f32],
        first: &mut [f32],
        second: &mut [f32],
    ) {
        let count = parameter.len();
        assert!(gradient.len() == count && first.len() == count && second.len() == count);
        let bias_correction1 = 1.0 - self.beta1.powf(step as f64);
        let bias_correction2 = 1.0 - self.beta2.powf(step as f64);
        const CHUNK: usize = 1 << 14;
        parameter
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(
                first
                    .par_chunks_mut(CHUNK)
                    .zip(second.par_chunks_mut(CHUNK)),
            )
            .for_each(|((parameter, gradient), (first, second))| {
                dispatch(Step {
                    parameter,
                    gradient,
                    first,
                    second,
                    decay_factor: (1.0 - self.learning_rate * self.weight_decay) as f32,
                    one_minus_beta1: (1.0 - self.beta1) as f32,
                    beta2: self.beta2 as f32,
                    one_minus_beta2: (1.0 - self.beta2) as f32,
                    step_size: (self.learning_rate / bias_correction1) as f32,
                    sqrt_bias_correction2: bias_correction2.sqrt() as f32,
                    epsilon: self.epsilon as f32,
                });
            });
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::{assert_close, numbers, wide};
    use super::*;

    #[test]
    fn steps_match_the_formulas() {
        let adamw = AdamW {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
        };
        let count = 40_001;
        let (mut p, mut m, mut v) = (numbers(count, 1, 1.0), vec![0.0; count], vec![0.0; count]);
        let (mut wide_p, mut wide_m, mut wide_v) = (wide(&p), wide(&m), wide(&v));
        for step in 1..=20 {
            let g = numbers(count, 1 + step, 0.3);
            adamw.step(step, &mut p, &g, &mut m, &mut v);
            for (i, g) in wide(&g).into_iter().enumerate() {
                wide_p[i] *= 1.0 - adamw.learning_rate * adamw.weight_decay;
                wide_m[i] = adamw.beta1 * wide_m[i] + (1.0 - adamw.beta1) * g;
                wide_v[i] = adamw.beta2 * wide_v[i] + (1.0 - adamw.beta2) * g * g;
                let m = wide_m[i] / (1.0 - adamw.beta1.powf(step as f64));
                let v = wide_v[i] / (1.0 - adamw.beta2.powf(step as f64));
                wide_p[i] -= adamw.learning_rate * m / (v.sqrt() + adamw.epsilon);
            }
            assert_close(&p, &wide_p, 2e-6, "parameter");
            assert_close(&m, &wide_m, 1e-6, "first moment");
            assert_close(&v, &wide_v, 1e-6, "second moment");
        }
    }
}

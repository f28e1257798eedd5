//! Random initialisation.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::params::ParamSource;
use crate::{config::ClipConfig, error::CheckpointError};

/// Initial values as in OpenAI CLIP (`clip/model.py`, `CLIP.initialize_parameters`). Each parameter
/// has a random stream of its own, so the values do not depend on the order of construction.
pub(super) struct SeededInit<'a> {
    config: &'a ClipConfig,
    seed: u64,
}

impl<'a> SeededInit<'a> {
    pub(super) fn new(config: &'a ClipConfig, seed: u64) -> Self {
        Self { config, seed }
    }

    /// Returns the initialisation of the parameter at `path`.
    fn rule(&self, path: &str, shape: &[usize]) -> Rule {
        let (width, layers) = if path.starts_with("visual.") {
            (
                self.config.vision.hidden_size,
                self.config.vision.num_hidden_layers,
            )
        } else {
            (
                self.config.text.hidden_size,
                self.config.text.num_hidden_layers,
            )
        };
        let width = (width as f64).powf(-0.5);
        let residual = width * (2.0 * layers as f64).powf(-0.5);
        match path {
            "logit_scale" => Rule::Constant(self.config.logit_scale_init),
            "logit_bias" => Rule::Constant(self.config.logit_bias_init.unwrap_or(0.0)),
            "text.token_embedding.weight" => Rule::Normal(0.02),
            "text.positional_embedding" => Rule::Normal(0.01),
            _ if path.ends_with(".gamma") || path.ends_with(".running_var") => Rule::Constant(1.0),
            _ if path.ends_with(".running_mean") => Rule::Constant(0.0),
            // Zero makes every block the identity at initialisation.
            _ if path.ends_with("bn3.weight") => Rule::Constant(0.0),
            _ if path.contains("bn") && path.ends_with(".weight") => Rule::Constant(1.0),
            _ if path.ends_with(".beta") || path.ends_with("bias") => Rule::Constant(0.0),
            // PyTorch's default for convolutions is uniform within 1/√fan-in; this is a normal
            // distribution of the same standard deviation.
            _ if shape.len() == 4 => {
                let fan_in: usize = shape[1..].iter().product();
                Rule::Normal((3.0 * fan_in as f64).powf(-0.5))
            }
            _ if path.ends_with("attn.out_proj.weight") || path.ends_with("c_proj.weight") => {
                Rule::Normal(residual)
            }
            _ if path.ends_with("c_fc.weight") => Rule::Normal(width * 0.5_f64.sqrt()),
            _ => Rule::Normal(width),
        }
    }
}

enum Rule {
    Constant(f64),
    /// Normal distribution with mean 0 and this standard deviation.
    Normal(f64),
}

impl ParamSource for SeededInit<'_> {
    fn values(&mut self, path: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let count = shape.iter().product();
        Ok(match self.rule(path, shape) {
            Rule::Constant(value) => vec![value as f32; count],
            Rule::Normal(std) => {
                let stream = path
                    .bytes()
                    .fold(0_u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
                let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
                rng.set_stream(stream);
                (0..count)
                    .map(|_| (normal(&mut rng) * std) as f32)
                    .collect()
            }
        })
    }
}

/// Draws a standard normal value by the Box–Muller transform.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let u: f64 = 1.0 - rng.random::<f64>();
    let v: f64 = rng.random();
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

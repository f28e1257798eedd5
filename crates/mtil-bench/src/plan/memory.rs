//! The memory of the device, counted.

use burn::module::{ParamGroup, ParamId};
use clip_model::{ClipConfig, VisionKind};
use mtil_data::suite::Suite;
use mtil_engine::method::Method;
use serde::Serialize;

/// Bytes of a number.
const F32: u64 = 4;
/// Share of the directions that is taken to be protected: what rho 0.15 gave on a random ViT-B/16
/// (BENCHMARKS.md).
const RANK_SHARE: f64 = 0.05;

/// An estimate of the memory of the device in bytes, in `f32` and without checkpointing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Parameters of the student and, where there is one, the teacher.
    pub weights: u64,
    /// Gradients of what trains.
    pub gradients: u64,
    /// Both moments of AdamW.
    pub moments: u64,
    /// What a backward pass keeps of the images of a step and, while it trains, of the texts. Of a
    /// block of width `d`, hidden width `m` and `h` heads on `n` tokens: `8·n·d + 2·n·m + h·n²`
    /// numbers (the input of both normalisations and their outputs, queries, keys, values,
    /// attention's output; the MLP before and after its activation; the attention weights). A
    /// kernel that computes attention again needs less.
    pub activations: u64,
    /// Projectors: a basis of `n·min(k, n − k)` numbers.
    pub projectors: u64,
    /// Sums of a Gram pass, and the largest product.
    pub gram: u64,
}

/// What of the towers trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trains {
    /// All of the image tower, or the linear maps of its MLPs and its projection.
    all_of_images: bool,
    texts: bool,
}

impl Memory {
    /// Of a method on a suite; none for image towers that are no vision transformers of CLIP.
    pub fn of(config: &ClipConfig, method: &Method, suite: &Suite) -> Option<Self> {
        if config.vision.kind != VisionKind::Clip {
            return None;
        }
        let parameters = config.parameters() as u64;
        let teaches = method.compares_with_teacher() || method.distill.is_some();
        let weights = F32 * parameters * (1 + u64::from(teaches));
        if !method.trains || method.analytic.is_some() {
            return Some(Self {
                weights,
                ..Self::default()
            });
        }
        // Adapters are counted as training everything, which is more than they take.
        let adapters = method.lora.is_some() || method.experts.is_some();
        let trains = |patterns: &[String]| match adapters {
            true => Trains {
                all_of_images: true,
                texts: true,
            },
            false => trains(patterns),
        };
        let stages = [
            trains(&method.trainable_first),
            trains(&method.trainable_later),
        ];
        let trainable = stages.iter().map(|t| values(config, *t)).max().unwrap_or(0);
        let activations = stages
            .iter()
            .map(|t| activations(config, method, suite, *t));
        let mut memory = Self {
            weights,
            gradients: F32 * trainable,
            moments: 2 * F32 * trainable,
            activations: F32 * activations.max().unwrap_or(0),
            ..Self::default()
        };
        if method.projection.is_some() {
            for n in projected(config) {
                let kept = (RANK_SHARE * n as f64).ceil() as u64;
                memory.projectors += F32 * n * kept;
                memory.gram += F32 * n * (n + 1) / 2;
            }
            let widest = projected(config).max().unwrap_or(0);
            memory.gram += F32 * widest * widest;
        }
        Some(memory)
    }

    /// The larger of a training step and the Gram pass.
    pub fn total(&self) -> u64 {
        let step = self.gradients + self.moments + self.activations + self.projectors;
        self.weights + step.max(self.gram)
    }
}

/// Input features of the weights that are projected.
fn projected(config: &ClipConfig) -> impl Iterator<Item = u64> {
    let v = &config.vision;
    let (width, hidden) = (v.hidden_size as u64, v.intermediate_size as u64);
    (0..v.num_hidden_layers)
        .flat_map(move |_| [width, hidden])
        .chain([width])
}

fn trains(patterns: &[String]) -> Trains {
    let selects = |path: &str| {
        patterns.iter().any(|pattern| {
            ParamGroup::from_regex(pattern).is_ok_and(|g| g.matches(&ParamId::from(0), Some(path)))
        })
    };
    Trains {
        all_of_images: selects("visual.blocks.0.attn.in_proj.weight")
            || selects("visual.conv1.weight"),
        texts: selects("text.blocks.0.mlp.c_fc.weight"),
    }
}

/// How many values train.
fn values(config: &ClipConfig, trains: Trains) -> u64 {
    let (v, t, e) = (&config.vision, &config.text, config.projection_dim as u64);
    let w = t.hidden_size as u64;
    let block = w * (4 * w + 2 * t.intermediate_size as u64);
    let texts = (t.vocab_size + t.max_position_embeddings) as u64 * w
        + t.num_hidden_layers as u64 * block
        + w * e;
    let images = match trains.all_of_images {
        true => config.parameters() as u64 - texts.min(config.parameters() as u64),
        false => {
            let d = v.hidden_size as u64;
            v.num_hidden_layers as u64 * 2 * d * v.intermediate_size as u64 + d * e
        }
    };
    images + if trains.texts { texts } else { 0 }
}

/// Numbers that the backward pass of an update keeps.
fn activations(config: &ClipConfig, method: &Method, suite: &Suite, trains: Trains) -> u64 {
    let block =
        |n: usize, d: usize, m: usize, heads: usize| (8 * n * d + 2 * n * m + heads * n * n) as u64;
    let (v, t) = (&config.vision, &config.text);
    let n = (v.image_size / v.patch_size.max(1)).pow(2) + 1;
    let one = block(n, v.hidden_size, v.intermediate_size, v.num_attention_heads);
    let pixels = 3 * v.image_size * v.image_size;
    let image = v.num_hidden_layers as u64 * one + (pixels + n * v.hidden_size) as u64;
    let others = method.uses_reference() || method.distill.is_some();
    let kept = method.rehearsal.as_ref().map_or(0, |r| r.batch);
    let images = method.batch + if others { method.reference_batch } else { 0 } + kept;
    let mut numbers = images as u64 * image;
    if trains.texts {
        let n = t.max_position_embeddings.min(24);
        let one = block(n, t.hidden_size, t.intermediate_size, t.num_attention_heads);
        let text = t.num_hidden_layers as u64 * one + (n * t.hidden_size) as u64;
        let classes = suite.tasks.iter().map(|t| t.class_names.len()).max();
        let captions = if method.uses_reference() {
            method.reference_batch
        } else {
            0
        };
        numbers += (classes.unwrap_or(0) + captions) as u64 * text;
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_told_apart_by_what_they_cost() {
        let gnsp = Method::load("gnsp", "mini", &[]).unwrap();
        let first = trains(&gnsp.trainable_first);
        assert!(first.all_of_images && first.texts);
        let later = trains(&gnsp.trainable_later);
        assert!(!later.all_of_images && !later.texts);
    }

    #[test]
    fn gnsp_on_vit_b_16_takes_the_projected_maps_and_their_moments() {
        let (_, config) = clip_model::architectures()
            .find(|(name, _)| *name == "ViT-B-16")
            .unwrap();
        let later = Trains {
            all_of_images: false,
            texts: false,
        };
        // Twelve MLPs of 768 · 3072 twice, and the projection to 512.
        assert_eq!(values(&config, later), 12 * 2 * 768 * 3072 + 768 * 512);
        assert_eq!(projected(&config).count(), 25);
        let all = Trains {
            all_of_images: true,
            texts: true,
        };
        let parameters = config.parameters() as u64;
        assert!(values(&config, all).abs_diff(parameters) < parameters / 100);
    }
}

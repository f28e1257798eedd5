//! Device memory of a method, counted from the architecture.

use burn::module::{ParamGroup, ParamId};
use clip_model::{ClipConfig, VisionKind};
use mtil_data::suite::{Suite, TaskKind};
use mtil_engine::method::Method;
use serde::Serialize;

/// Bytes of an `f32`.
const F32: u64 = 4;
/// Assumed share of protected directions: the result of rho 0.15 on a random ViT-B/16
/// (docs/contributing/performance.md).
const RANK_SHARE: f64 = 0.05;

/// Estimated device memory in bytes, in `f32` and without gradient checkpointing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// Parameters of the student and, if the method has one, the teacher.
    pub weights: u64,
    /// Gradients of the trainable parameters.
    pub gradients: u64,
    /// Both moments of AdamW.
    pub moments: u64,
    /// Activations kept for the backward pass, of the images of a step and, if the text tower
    /// trains, of the texts.
    ///
    /// A block of width `d`, hidden width `m` and `h` heads on `n` tokens keeps
    /// `8·n·d + 2·n·m + h·n²` numbers: the input of both normalizations and their outputs, queries,
    /// keys, values, the output of attention, the MLP before and after its activation, and the
    /// attention weights. A kernel that recomputes attention needs less.
    pub activations: u64,
    /// Projectors: a basis of `n·min(k, n − k)` numbers for each projected weight.
    pub projectors: u64,
    /// Gram matrices during accumulation, and the largest product.
    pub gram: u64,
    /// Further models of an evaluation.
    pub evaluation: u64,
}

/// The trainable parts of the towers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TrainableParts {
    /// The whole image tower, as opposed to the linear layers of its MLPs and its projection.
    image_tower: bool,
    /// The text tower.
    text_tower: bool,
}

impl MemoryEstimate {
    /// Estimates the memory of a method on a suite, `None` for image towers other than CLIP's
    /// vision transformers.
    pub fn of(config: &ClipConfig, method: &Method, suite: &Suite) -> Option<Self> {
        if config.vision.kind != VisionKind::Clip {
            return None;
        }
        let parameters = config.parameters() as u64;
        let has_teacher = method.compares_with_teacher() || method.distill.is_some();
        let weights = F32 * parameters * (1 + u64::from(has_teacher));
        if !method.trains || method.analytic.is_some() {
            return Some(Self {
                weights,
                ..Self::default()
            });
        }
        // An upper bound for adapters: they are counted as if everything trained.
        let adapters = method.lora.is_some() || method.experts.is_some();
        let in_texts = method.lada.is_some();
        let parts = |patterns: &[String]| match adapters || in_texts {
            true => TrainableParts {
                image_tower: adapters,
                text_tower: true,
            },
            false => trainable_parts(patterns),
        };
        let stages = [
            parts(&method.trainable_first),
            parts(&method.trainable_later),
        ];
        let trainable = stages.iter().map(|t| trainable_parameters(config, *t));
        let trainable = trainable.max().unwrap_or(0);
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
        if method.unify.is_some() {
            memory.evaluation = F32 * parameters * suite.tasks.len() as u64;
        }
        if method.projection.is_some() {
            for n in projected_inputs(config) {
                let kept = (RANK_SHARE * n as f64).ceil() as u64;
                memory.projectors += F32 * n * kept;
                memory.gram += F32 * n * (n + 1) / 2;
            }
            let widest = projected_inputs(config).max().unwrap_or(0);
            memory.gram += F32 * widest * widest;
        }
        Some(memory)
    }

    /// Returns the peak: the largest of a training step, Gram accumulation and evaluation.
    pub fn total(&self) -> u64 {
        let step = self.gradients + self.moments + self.activations + self.projectors;
        self.weights + step.max(self.gram).max(self.evaluation)
    }
}

/// Returns the input width of each projected weight.
fn projected_inputs(config: &ClipConfig) -> impl Iterator<Item = u64> {
    let v = &config.vision;
    let (width, hidden) = (v.hidden_size as u64, v.intermediate_size as u64);
    (0..v.num_hidden_layers)
        .flat_map(move |_| [width, hidden])
        .chain([width])
}

/// Returns the parts of the towers that regular expressions of parameter paths select.
fn trainable_parts(patterns: &[String]) -> TrainableParts {
    let selects = |path: &str| {
        patterns.iter().any(|pattern| {
            ParamGroup::from_regex(pattern).is_ok_and(|g| g.matches(&ParamId::from(0), Some(path)))
        })
    };
    TrainableParts {
        image_tower: selects("visual.blocks.0.attn.in_proj.weight")
            || selects("visual.conv1.weight"),
        text_tower: selects("text.blocks.0.mlp.c_fc.weight"),
    }
}

/// Counts the trainable parameters.
fn trainable_parameters(config: &ClipConfig, parts: TrainableParts) -> u64 {
    let (v, t, e) = (&config.vision, &config.text, config.projection_dim as u64);
    let w = t.hidden_size as u64;
    let block = w * (4 * w + 2 * t.intermediate_size as u64);
    let texts = (t.vocab_size + t.max_position_embeddings) as u64 * w
        + t.num_hidden_layers as u64 * block
        + w * e;
    let images = match parts.image_tower {
        true => config.parameters() as u64 - texts.min(config.parameters() as u64),
        false => {
            let d = v.hidden_size as u64;
            v.num_hidden_layers as u64 * 2 * d * v.intermediate_size as u64 + d * e
        }
    };
    images + if parts.text_tower { texts } else { 0 }
}

/// Counts the activations that a training step keeps for its backward pass.
fn activations(config: &ClipConfig, method: &Method, suite: &Suite, parts: TrainableParts) -> u64 {
    let block =
        |n: usize, d: usize, m: usize, heads: usize| (8 * n * d + 2 * n * m + heads * n * n) as u64;
    let (v, t) = (&config.vision, &config.text);
    let n = (v.image_size / v.patch_size.max(1)).pow(2) + 1;
    let one = block(n, v.hidden_size, v.intermediate_size, v.num_attention_heads);
    let pixels = 3 * v.image_size * v.image_size;
    let image = v.num_hidden_layers as u64 * one + (pixels + n * v.hidden_size) as u64;
    let rehearsed = method.rehearsal.as_ref().map_or(0, |r| r.batch);
    let images = match method.lada {
        // Images are encoded off the tape.
        Some(_) => 0,
        None => method.batch + method.reference_images() + rehearsed,
    };
    let mut numbers = images as u64 * image;
    if parts.text_tower {
        let n = t.max_position_embeddings.min(24);
        let one = block(n, t.hidden_size, t.intermediate_size, t.num_attention_heads);
        let text = t.num_hidden_layers as u64 * one + (n * t.hidden_size) as u64;
        // A task of image-caption pairs has a text for each image of the batch.
        let texts = suite.tasks.iter().map(|task| match &task.kind {
            TaskKind::Classification(classes) => classes.class_names.len(),
            TaskKind::Captions(_) => method.batch,
        });
        let captions = if method.uses_reference() {
            method.reference_batch
        } else {
            0
        };
        numbers += (texts.max().unwrap_or(0) + captions) as u64 * text;
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trainable_parts_of_gnsp() {
        let gnsp = Method::load("gnsp", "mini", &[]).unwrap();
        let first = trainable_parts(&gnsp.trainable_first);
        assert!(first.image_tower && first.text_tower);
        let later = trainable_parts(&gnsp.trainable_later);
        assert!(!later.image_tower && !later.text_tower);
    }

    #[test]
    fn gnsp_on_vit_b_16_trains_the_projected_weights() {
        let (_, config) = clip_model::architectures()
            .find(|(name, _)| *name == "ViT-B-16")
            .unwrap();
        let later = TrainableParts {
            image_tower: false,
            text_tower: false,
        };
        // Twelve MLPs of 768 · 3072 twice, and the projection to 512.
        assert_eq!(
            trainable_parameters(&config, later),
            12 * 2 * 768 * 3072 + 768 * 512
        );
        assert_eq!(projected_inputs(&config).count(), 25);
        let all = TrainableParts {
            image_tower: true,
            text_tower: true,
        };
        let parameters = config.parameters() as u64;
        assert!(trainable_parameters(&config, all).abs_diff(parameters) < parameters / 100);
    }
}

//! Penalties on the distance of the weights from earlier ones.

use burn::{
    module::Module,
    optim::GradientsParams,
    tensor::{Device, Int, Tensor, TensorData},
};
use clip_model::{ClipModel, normalize};

use super::{
    RunError,
    weights::{Weights, add_to_gradients, combine},
};
use crate::{batch::Images, eval::to_host};
use mtil_data::{seeds, suite::Task};

/// `factor · Σ F (θ − anchor)²`.
pub(super) struct Penalty {
    anchor: Weights,
    /// 1 everywhere when absent.
    importance: Option<Weights>,
    factor: f64,
}

impl Penalty {
    /// A penalty on the distance from `anchor`.
    pub fn new(anchor: &ClipModel, importance: Option<&ClipModel>, factor: f64) -> Self {
        Self {
            anchor: Weights::of(anchor),
            importance: importance.map(Weights::of),
            factor,
        }
    }

    /// Adds the penalty's gradient to `gradients`, and says what the penalty is.
    pub fn apply<M: Module>(&self, module: &M, gradients: &mut GradientsParams) -> f32 {
        let mut sum: Option<Tensor<1>> = None;
        add_to_gradients(module, gradients, &mut |id, value, _| {
            let distance = value - self.anchor.get(id)?.clone();
            let pull = match &self.importance {
                Some(importance) => distance.clone() * importance.get(id)?.clone(),
                None => distance.clone(),
            };
            let part = (distance * pull.clone()).sum();
            sum = Some(match sum.take() {
                Some(sum) => sum + part,
                None => part,
            });
            Some(pull.mul_scalar(2.0 * self.factor))
        });
        sum.map_or(0.0, |s| to_host(s)[0] * self.factor as f32)
    }
}

/// GIFT's adaptive weight consolidation: `factor · Σ F (θ − start)²`, where `F = g²/mean(g²)` of
/// each tensor for the gradient `g` of the losses on the reference pairs, and 1e-6 where there is
/// none. Adds the penalty's gradient to `gradients`, which hold `g`, and says what the penalty is
/// (Luo-Jiaming/GIFT_CL; GNSP `src/models/finetune_gift.py`).
pub(super) fn adaptive<M: Module>(
    module: &M,
    gradients: &mut GradientsParams,
    start: &Weights,
    factor: f64,
) -> f32 {
    const WITHOUT_GRADIENT: f64 = 1e-6;
    let mut sum: Option<Tensor<1>> = None;
    add_to_gradients(module, gradients, &mut |id, value, gradient| {
        let distance = value - start.get(id)?.clone();
        let pull = match gradient {
            Some(gradient) => {
                let square = gradient.square();
                // All zero where a gradient vanishes, and then so is the square.
                let mean = square.clone().mean().clamp_min(f32::MIN_POSITIVE);
                distance.clone() * square / mean
            }
            None => distance.clone().mul_scalar(WITHOUT_GRADIENT),
        };
        let part = (distance * pull.clone()).sum();
        sum = Some(match sum.take() {
            Some(sum) => sum + part,
            None => part,
        });
        Some(pull.mul_scalar(2.0 * factor))
    });
    sum.map_or(0.0, |s| to_host(s)[0] * factor as f32)
}

/// The diagonal of the empirical Fisher information of `model` (with autodiff, and its trainable
/// parameters set) on `count` training images of `task`, drawn by `seed`, as a model: the mean
/// square of the gradient of each image's log-likelihood of its class (Kirkpatrick et al. 2017; the
/// true classes, no smoothing). Images are prepared as for evaluation.
pub(super) fn fisher(
    model: &ClipModel,
    task: &Task,
    prompts: &clip_model::TokenBatch,
    count: usize,
    seed: u64,
    images: &Images,
    device: &Device,
) -> Result<ClipModel, RunError> {
    let mut sum = combine(model.valid(), &[], |x, _| x.zeros_like());
    // Files come sorted by class, so the first of them would be of few classes.
    let all = seeds::sample(task.train.labels.len(), count, seed);
    let mut seen = 0_usize;
    for index in &all {
        let (kept, pixels) = images.eval(task.train.images.as_ref(), &[*index], device)?;
        let (Some(pixels), [index]) = (pixels, kept.as_slice()) else {
            continue;
        };
        let label = task.train.labels[*index] as i64;
        let features = normalize(model.encode_image(pixels));
        let classes = normalize(model.encode_text(prompts));
        let logits = features.matmul(classes.transpose()) * model.scale().reshape([1, 1]);
        let label = Tensor::<1, Int>::from_data(TensorData::new(vec![label], [1]), device);
        let loss = losses::smoothed_cross_entropy(logits, label, 0.0);
        let mut gradients = GradientsParams::from_grads(loss.backward(), model);
        // The squares travel in the shape of the gradients, then of a model.
        let mut squares = std::collections::HashMap::new();
        add_to_gradients(model, &mut gradients, &mut |id, _, gradient| {
            if let Some(gradient) = gradient {
                squares.insert(id, gradient.square());
            }
            None
        });
        sum = add_squares(sum, squares);
        seen += 1;
    }
    let share = 1.0 / seen.max(1) as f64;
    Ok(combine(sum, &[], |x, _| x.mul_scalar(share)))
}

fn add_squares(
    model: ClipModel,
    squares: std::collections::HashMap<burn::module::ParamId, Tensor<1>>,
) -> ClipModel {
    use burn::module::{ModuleMapper, Param};
    struct Add(std::collections::HashMap<burn::module::ParamId, Tensor<1>>);
    impl ModuleMapper for Add {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match self.0.remove(&param.id) {
                Some(square) => param.map(|value| {
                    let shape = value.shape();
                    value + square.reshape(shape)
                }),
                None => param,
            }
        }
    }
    model.map(&mut Add(squares))
}

/// Joins a task's importance `new` at the weights `at` to what was there: the sum of two quadratic
/// penalties is, up to a constant, one with the summed importance around the weighted mean of the
/// anchors. Returns importance and anchor.
pub(super) fn join(
    old: Option<(ClipModel, ClipModel)>,
    new: ClipModel,
    at: ClipModel,
) -> (ClipModel, ClipModel) {
    let Some((importance, anchor)) = old else {
        return (new, at);
    };
    let joined = combine(at, &[&anchor, &importance, &new], |at, o| {
        let (anchor, old, new) = (o[0].clone(), o[1].clone(), o[2].clone());
        // Exactly one of the two where the other does not count: a weight beside its anchor by
        // rounding alone would be pulled, and Adam takes full steps of the slightest pull.
        let first = old.clone().equal_elem(0.0);
        let share = new.clone() / (old + new).mask_fill(first.clone(), 1.0);
        let alone = first.bool_or(share.clone().equal_elem(1.0));
        let mean = anchor.clone() + (at.clone() - anchor) * share;
        mean.mask_where(alone, at)
    });
    let sum = combine(importance, &[&new], |x, o| x + o[0].clone());
    (sum, joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(value: f32) -> ClipModel {
        let clip = mini_world::embedded::clip_mini(&Device::flex()).unwrap();
        combine(clip.model, &[], |x, _| x.zeros_like().add_scalar(value))
    }

    /// The first number of the first parameter.
    fn first(model: &ClipModel) -> f32 {
        to_host(model.logit_scale.val())[0]
    }

    #[test]
    fn a_joined_anchor_is_exactly_the_one_that_alone_counts() {
        let (before, after) = (0.013_456_7_f32, 0.012_345_6_f32);
        for (old, new, want) in [
            (0.0, 0.3, after),
            (0.3, 0.0, before),
            (1e-12, 0.7, after),
            (0.7, 1e-12, before),
            (0.0, 0.0, after),
        ] {
            let joined = join(Some((model(old), model(before))), model(new), model(after));
            assert_eq!(first(&joined.1), want, "{old} {new}");
            assert_eq!(first(&joined.0), old + new);
        }
        let joined = join(Some((model(1.0), model(2.0))), model(3.0), model(6.0));
        assert_eq!((first(&joined.0), first(&joined.1)), (4.0, 5.0));
        let alone = join(None, model(3.0), model(6.0));
        assert_eq!((first(&alone.0), first(&alone.1)), (3.0, 6.0));
    }
}

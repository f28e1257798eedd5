//! Quadratic penalties on the distance from earlier weights: L2, EWC, adaptive consolidation.

use std::path::Path;

use burn::{
    module::Module,
    optim::GradientsParams,
    tensor::{Device, Int, Tensor, TensorData},
};
use clip_model::{Clip, ClipModel, normalize};
use serde::{Deserialize, Serialize};

use super::{
    auxiliary_loss::{AuxiliaryLoss, tokenize_prompts},
    context::{
        MethodOutline, Phase, PhaseProgress, RequiredWeights, RunContext, TaskContext,
        at_least_one, in_range,
    },
    hooks::Mechanism,
    state::{MechanismState, RunState, load_plain, save_model},
    trainable::Trainable,
    weights::{Weights, add_to_gradients, combine},
};
use crate::{
    batch::{BatchError, Images},
    error::RunError,
    eval::to_host,
    metrics::Kept,
    tape::on_tape,
};
use mtil_data::{seeds, suite::Task};

/// Quadratic penalty on the distance from earlier weights. Its gradient is added in closed form,
/// without autodiff.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    /// The distance.
    pub kind: AnchorKind,
    /// Weight of the penalty.
    pub weight: f64,
    /// Number of training images that estimate the Fisher information of a task.
    #[serde(default = "default_fisher_images")]
    pub fisher_images: usize,
}

fn default_fisher_images() -> usize {
    1000
}

/// The distance of a penalty and the weights that it starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnchorKind {
    /// `weight · Σ (θ − θ⁰)²` with the weights `θ⁰` at the start of the task: weight consolidation
    /// (WC) of ZSCL (`mtil/src/models/finetune.py:34-37`, `helpers.py:47-51`).
    L2,
    /// `weight/2 · Σ_t Σ F_t (θ − θ_t)²` over the earlier tasks, with the diagonal `F_t` of the
    /// empirical Fisher information of each: elastic weight consolidation (EWC; Kirkpatrick et al.
    /// 2017, arXiv 1612.00796).
    Fisher,
    /// `weight · Σ F (θ − θ⁰)²` with the weights `θ⁰` at the start of the task and
    /// `F = g²/mean(g²)` of each parameter tensor, where `g` is the step's gradient of the losses
    /// on the reference pairs: adaptive weight consolidation of GIFT (Luo-Jiaming/GIFT_CL, arXiv
    /// 2503.04229).
    Adaptive,
}

/// The anchor mechanism: its settings and the trainable parameters.
pub(crate) struct AnchorMechanism {
    pub settings: Anchor,
    pub trainable: Trainable,
}

/// Importance of the parameters for earlier tasks, and the anchor weights; without autodiff.
pub(crate) struct Importance {
    importance: ClipModel,
    at: ClipModel,
}

const IMPORTANCE: &str = "importance.safetensors";
const ANCHOR: &str = "anchor.safetensors";

impl MechanismState for Importance {
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        Some(Box::new(Self {
            importance: self.importance.clone(),
            at: self.at.clone(),
        }))
    }

    fn save(&self, folder: &Path, checkpoint: &Clip) -> Result<(), RunError> {
        save_model(&self.importance, &folder.join(IMPORTANCE), checkpoint)?;
        save_model(&self.at, &folder.join(ANCHOR), checkpoint)
    }

    fn bytes(&self, _: &Clip) -> u64 {
        2 * 4 * self.at.num_parameters() as u64
    }

    fn kept(&self) -> Kept {
        Kept::Weights
    }
}

impl Mechanism for AnchorMechanism {
    fn key(&self) -> &'static str {
        "anchor"
    }

    fn check(&self, method: &MethodOutline) -> Result<(), String> {
        let a = &self.settings;
        in_range("anchor.weight", a.weight, 0.0, f64::MAX)?;
        at_least_one("anchor.fisher_images", a.fisher_images)?;
        if a.kind == AnchorKind::Adaptive && !method.uses_reference {
            return Err(concat!(
                "`anchor.kind = \"adaptive\"` weighs by the gradient of `cd`, `map` and ",
                "`hold_means`: one must be above 0"
            )
            .to_owned());
        }
        Ok(())
    }

    fn needs(&self) -> RequiredWeights {
        RequiredWeights {
            start: self.settings.kind != AnchorKind::Fisher,
            pretrained: false,
        }
    }

    fn load(
        &self,
        folder: &Path,
        run: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        if !folder.join(IMPORTANCE).exists() {
            return Ok(None);
        }
        let model = |name: &str| load_plain(&folder.join(name), run.checkpoint);
        Ok(Some(Box::new(Importance {
            importance: model(IMPORTANCE)?,
            at: model(ANCHOR)?,
        })))
    }

    fn auxiliary_loss(
        &self,
        _: &TaskContext<'_>,
        state: &RunState,
    ) -> Result<Option<Box<dyn AuxiliaryLoss>>, RunError> {
        let weight = self.settings.weight;
        let boxed = |penalty: Penalty| Box::new(penalty) as Box<dyn AuxiliaryLoss>;
        let start = state.start.as_ref();
        Ok(match self.settings.kind {
            AnchorKind::L2 => start.map(|s| boxed(Penalty::new(s, None, weight))),
            AnchorKind::Fisher => state
                .get::<Importance>()
                .map(|i| boxed(Penalty::new(&i.at, Some(&i.importance), weight / 2.0))),
            AnchorKind::Adaptive => start.map(|start| {
                Box::new(AdaptivePenalty {
                    start: Weights::of(start),
                    factor: weight,
                }) as Box<dyn AuxiliaryLoss>
            }),
        })
    }

    fn finish_task(
        &self,
        trained: &ClipModel,
        task: &TaskContext<'_>,
        state: &mut RunState,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<(), RunError> {
        if self.settings.kind != AnchorKind::Fisher {
            return Ok(());
        }
        let run = task.run;
        let model = on_tape(trained.clone(), run.device);
        let (model, _) = self.trainable.apply(model, task.index)?;
        let new = fisher_diagonal(
            &model,
            &run.suite.tasks[task.index],
            &tokenize_prompts(run.checkpoint, run.suite, task.index)?,
            self.settings.fisher_images,
            seeds::derive(run.seed, &[seeds::FISHER, task.index as u64]),
            run.images,
            run.device,
            progress,
        )?;
        let old = state.take::<Importance>().map(|i| (i.importance, i.at));
        let (importance, at) = merge_penalties(old, new, trained.clone());
        state.set(Importance { importance, at });
        Ok(())
    }
}

impl AuxiliaryLoss for Penalty {
    fn add_penalty_gradient(
        &self,
        model: &ClipModel,
        gradients: &mut GradientsParams,
    ) -> Option<(&'static str, f32)> {
        Some(("penalty", self.apply(model, gradients)))
    }
}

/// Adaptive weight consolidation of GIFT in one task.
struct AdaptivePenalty {
    start: Weights,
    factor: f64,
}

impl AuxiliaryLoss for AdaptivePenalty {
    fn weights_by_reference_gradient(&self) -> bool {
        true
    }

    fn add_penalty_gradient(
        &self,
        model: &ClipModel,
        gradients: &mut GradientsParams,
    ) -> Option<(&'static str, f32)> {
        let value = add_adaptive_penalty(model, gradients, &self.start, self.factor);
        Some(("penalty", value))
    }
}

/// The penalty `factor · Σ F (θ − anchor)²`.
struct Penalty {
    anchor: Weights,
    /// `F`; 1 everywhere when absent.
    importance: Option<Weights>,
    factor: f64,
}

impl Penalty {
    /// Creates a penalty on the distance from `anchor`.
    fn new(anchor: &ClipModel, importance: Option<&ClipModel>, factor: f64) -> Self {
        Self {
            anchor: Weights::of(anchor),
            importance: importance.map(Weights::of),
            factor,
        }
    }

    /// Adds the penalty's gradient to `gradients`. Returns the value of the penalty.
    fn apply<M: Module>(&self, module: &M, gradients: &mut GradientsParams) -> f32 {
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

/// Adaptive weight consolidation of GIFT: `factor · Σ F (θ − start)²`, where `F = g²/mean(g²)` of
/// each tensor for the gradient `g` of the losses on the reference pairs, and 1e-6 for tensors
/// without gradient. Adds the penalty's gradient to `gradients`, which hold `g`. Returns the value
/// of the penalty (Luo-Jiaming/GIFT_CL; GNSP `src/models/finetune_gift.py`).
fn add_adaptive_penalty<M: Module>(
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
                // A gradient of zeros has a mean of 0; the clamp makes `F` 0 there, not NaN.
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

/// Computes the diagonal of the empirical Fisher information of `model` (with autodiff, and its
/// trainable parameters set) on `count` training images of `task`, drawn with `seed`. This is the
/// mean square of the gradient of each image's log-likelihood of its true class, without smoothing
/// (Kirkpatrick et al. 2017). Images are preprocessed as for evaluation. The result is a model
/// whose weights are the diagonal.
#[allow(clippy::too_many_arguments)]
fn fisher_diagonal(
    model: &ClipModel,
    task: &Task,
    prompts: &clip_model::TokenBatch,
    count: usize,
    seed: u64,
    images: &Images,
    device: &Device,
    progress: &mut PhaseProgress<'_>,
) -> Result<ClipModel, RunError> {
    let mut sum = combine(model.valid(), &[], |x, _| x.zeros_like());
    // Datasets are sorted by class, so the first images would cover few classes.
    let all = seeds::sample(task.train.labels.len(), count, seed);
    let mut seen = 0_usize;
    for (done, index) in all.iter().enumerate() {
        progress(Phase::Fisher, done, all.len());
        let (kept, pixels) = images.eval(task.train.images.as_ref(), &[*index], device)?;
        let (Some(pixels), [index]) = (pixels, kept.as_slice()) else {
            continue;
        };
        let label = task.train.labels[*index] as i64;
        let features = normalize(model.encode_image(pixels));
        let classes = normalize(model.encode_text(prompts));
        let logits = features.matmul(classes.transpose()) * model.scale().reshape([1, 1]);
        let label = Tensor::<1, Int>::from_data(TensorData::new(vec![label], [1]), device);
        let loss = clip_losses::smoothed_cross_entropy(logits, label, 0.0);
        let mut gradients = GradientsParams::from_grads(loss.backward(), model);
        // The squares are collected by parameter id, then added to the model `sum`.
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
    if seen == 0 && !all.is_empty() {
        let what = format!(
            "the images of task `{}` for its Fisher information",
            task.name
        );
        return Err(BatchError::NothingReadable(what).into());
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

/// Merges the penalty of a task, with the importance `new` around the weights `at`, with that of
/// earlier tasks. The sum of two quadratic penalties is, up to a constant, one penalty with the
/// summed importance around the weighted mean of the anchors. Returns importance and anchor.
fn merge_penalties(
    old: Option<(ClipModel, ClipModel)>,
    new: ClipModel,
    at: ClipModel,
) -> (ClipModel, ClipModel) {
    let Some((importance, anchor)) = old else {
        return (new, at);
    };
    let joined = combine(at, &[&anchor, &importance, &new], |at, o| {
        let (anchor, old, new) = (o[0].clone(), o[1].clone(), o[2].clone());
        // Exactly one of the anchors where the other has no weight: a rounding difference between a
        // weight and its anchor would give a gradient, and Adam takes full steps for tiny
        // gradients.
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

    /// Returns the first value of the first parameter.
    fn first(model: &ClipModel) -> f32 {
        to_host(model.logit_scale.val())[0]
    }

    #[test]
    fn an_anchor_without_importance_does_not_move_the_other() {
        let (before, after) = (0.013_456_7_f32, 0.012_345_6_f32);
        for (old, new, want) in [
            (0.0, 0.3, after),
            (0.3, 0.0, before),
            (1e-12, 0.7, after),
            (0.7, 1e-12, before),
            (0.0, 0.0, after),
        ] {
            let joined =
                merge_penalties(Some((model(old), model(before))), model(new), model(after));
            assert_eq!(first(&joined.1), want, "{old} {new}");
            assert_eq!(first(&joined.0), old + new);
        }
        let joined = merge_penalties(Some((model(1.0), model(2.0))), model(3.0), model(6.0));
        assert_eq!((first(&joined.0), first(&joined.1)), (4.0, 5.0));
        let alone = merge_penalties(None, model(3.0), model(6.0));
        assert_eq!((first(&alone.0), first(&alone.1)), (3.0, 6.0));
    }
}

//! Quadratic penalties on the distance from earlier weights: L2, EWC, adaptive consolidation.

use std::path::Path;

use burn::{
    module::Module,
    optim::GradientsParams,
    tensor::{Int, Tensor, TensorData, activation::log_softmax},
};
use clip_model::{Clip, ClipModel, TokenBatch, normalize};
use serde::{Deserialize, Serialize};

use super::{
    auxiliary_loss::{AuxiliaryLoss, tokenize_prompts},
    context::{
        MethodOutline, Phase, PhaseProgress, RunContext, TaskContext, at_least_one, in_range,
    },
    earlier_weights::RequiredWeights,
    hooks::Mechanism,
    state::{MechanismState, RunState, load_plain, save_model},
    trainable::Trainable,
    training_images::{CaptionDraws, Target, TrainingImages},
    weights::{Weights, add_to_gradients, combine},
};
use crate::{error::RunError, tape::on_tape};
use mtil_data::{
    seeds,
    suite::{Classification, TaskKind},
};
use mtil_eval::{batch::BatchError, eval::to_host, metrics::Kept};

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
    /// Pairs per batch, each of which the others of the batch are negatives of.
    pub batch: usize,
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
        let new = self.fisher_diagonal(&model, task, progress)?;
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

impl AnchorMechanism {
    /// Computes the diagonal of the empirical Fisher information of `model` (with autodiff, and its
    /// trainable parameters set) on training images of a task. This is the mean square of the
    /// gradient of each image's log-likelihood of its true class, without smoothing (Kirkpatrick et
    /// al. 2017), or of each pair's own log-likelihood in both directions. Images are preprocessed
    /// as for evaluation. The result is a model whose weights are the diagonal.
    fn fisher_diagonal(
        &self,
        model: &ClipModel,
        of: &TaskContext<'_>,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<ClipModel, RunError> {
        let run = of.run;
        let task = &run.suite.tasks[of.index];
        let seed = seeds::derive(run.seed, &[seeds::FISHER, of.index as u64]);
        // Datasets are sorted by class, so the first images would cover few classes.
        let count = self.settings.fisher_images;
        let drawn = seeds::sample(task.training_images().len(), count, seed);
        let mut fisher = Fisher::new(model);
        match &task.kind {
            TaskKind::Classification(classes) => {
                fisher.add_classes(classes, of, &drawn, progress)?;
            }
            TaskKind::Captions(_) => {
                fisher.add_pairs(of, &drawn, self.batch, seed, progress)?;
            }
        }
        if fisher.images == 0 && !drawn.is_empty() {
            let what = format!(
                "the images of task `{}` for its Fisher information",
                task.name
            );
            return Err(BatchError::NothingReadable(what).into());
        }
        Ok(fisher.mean())
    }
}

/// Sum of the squared gradients of log-likelihoods.
struct Fisher<'a> {
    model: &'a ClipModel,
    /// Absent only while it is replaced.
    sum: Option<ClipModel>,
    images: usize,
}

impl<'a> Fisher<'a> {
    fn new(model: &'a ClipModel) -> Self {
        Self {
            model,
            sum: Some(combine(model.valid(), &[], |x, _| x.zeros_like())),
            images: 0,
        }
    }

    /// Adds the squared gradient of a loss of one image.
    fn add(&mut self, loss: Tensor<1>) {
        let mut gradients = GradientsParams::from_grads(loss.backward(), self.model);
        // The squares are collected by parameter id, then added to the model `sum`.
        let mut squares = std::collections::HashMap::new();
        add_to_gradients(self.model, &mut gradients, &mut |id, _, gradient| {
            if let Some(gradient) = gradient {
                squares.insert(id, gradient.square());
            }
            None
        });
        self.sum = self.sum.take().map(|sum| add_squares(sum, squares));
        self.images += 1;
    }

    /// Returns the mean over the images.
    fn mean(self) -> ClipModel {
        let share = 1.0 / self.images.max(1) as f64;
        let sum = self.sum.expect("it is replaced at once");
        combine(sum, &[], |x, _| x.mul_scalar(share))
    }

    fn add_classes(
        &mut self,
        classes: &Classification,
        of: &TaskContext<'_>,
        drawn: &[usize],
        progress: &mut PhaseProgress<'_>,
    ) -> Result<(), RunError> {
        let (run, model, train) = (of.run, self.model, &classes.train);
        let prompts = tokenize_prompts(run.checkpoint, run.suite, of.index)?;
        for (done, index) in drawn.iter().enumerate() {
            progress(Phase::Fisher, done, drawn.len());
            let images = train.images.as_ref();
            let (kept, pixels) = run.images.eval(images, &[*index], run.device)?;
            let (Some(pixels), [index]) = (pixels, kept.as_slice()) else {
                continue;
            };
            let label = train.labels[*index] as i64;
            let features = normalize(model.encode_image(pixels));
            let classes = normalize(model.encode_text(&prompts));
            let logits = features.matmul(classes.transpose()) * model.scale().reshape([1, 1]);
            let label = Tensor::<1, Int>::from_data(TensorData::new(vec![label], [1]), run.device);
            self.add(clip_losses::smoothed_cross_entropy(logits, label, 0.0));
        }
        Ok(())
    }

    /// Adds the pairs `drawn`, with one caption each, in batches of equal size and at most `batch`
    /// pairs. The log-likelihood of a pair is its own term of the contrastive loss of the batch, so
    /// each pair takes a forward and a backward pass of its batch.
    fn add_pairs(
        &mut self,
        of: &TaskContext<'_>,
        drawn: &[usize],
        batch: usize,
        seed: u64,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<(), RunError> {
        let (run, model) = (of.run, self.model);
        let items = drawn.iter().map(|image| (of.index, *image)).collect();
        let captions = CaptionDraws::new(run.checkpoint, seed);
        let items = TrainingImages::subset(run.suite, items, captions);
        let batches = drawn.len().div_ceil(batch).max(1);
        let all: Vec<usize> = (0..items.len()).collect();
        let mut done = 0;
        for chunk in all.chunks(drawn.len().div_ceil(batches).max(1)) {
            let source = items.source();
            let (kept, pixels) = run.images.eval(source.as_ref(), chunk, run.device)?;
            let ids = items
                .targets(&kept, 0)?
                .into_iter()
                .filter_map(|target| match target {
                    Target::Caption { ids, .. } => Some(ids),
                    Target::Class { .. } => None,
                });
            let tokens = TokenBatch { ids: ids.collect() };
            for row in 0..kept.len() {
                run.images.check_stop()?;
                progress(Phase::Fisher, done, drawn.len());
                done += 1;
                let Some(pixels) = pixels.clone() else {
                    continue;
                };
                let images = normalize(model.encode_image(pixels));
                let texts = normalize(model.encode_text(&tokens));
                let logits = images.matmul(texts.transpose()) * model.scale().reshape([1, 1]);
                let both = log_softmax(logits.clone(), 1) + log_softmax(logits, 0);
                let own = both.slice([row..row + 1, row..row + 1]).reshape([1]);
                self.add(own.mul_scalar(-0.5));
            }
        }
        Ok(())
    }
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
    use burn::tensor::Device;

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

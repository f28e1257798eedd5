//! The mechanisms a method is put together from, each an optional part of a method file.

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

use gnsp_optimizer::{BatchNorm, History, Policy, RankRule, Site, Solver, Strength, TaskNorm};

use super::Method;
use crate::run::Quota;

/// Whose features the distillation compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Teacher {
    /// The pretrained model, for all tasks.
    Pretrained,
    /// The model at the start of the task.
    Previous,
}

/// Settings of AdamW (Loshchilov and Hutter 2019).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// Null-space projection of the later tasks' updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Projection {
    /// What is projected: the gradient (as published) or the optimizer's update.
    pub site: Site,
    /// How many directions are protected.
    pub rank: RankRule,
    /// What each task adds to the share that `rank` names: 0.003 in GPM's code
    /// (`main_cifar100.py:190-193`). The share ends at 0.999.
    #[serde(skip_serializing_if = "is_zero")]
    pub rank_step: f64,
    /// How strongly they are protected: `"hard"`, or softer where the spectrum is weaker.
    pub strength: Strength,
    /// How the tasks are joined.
    pub history: History,
    /// What finds the directions.
    pub solver: Solver,
    /// Images per batch of the Gram pass.
    pub gram_batch: usize,
    /// Batches of the Gram pass; all of the training set when absent.
    pub gram_batches: Option<usize>,
    /// Whether each Gram batch is divided by its Frobenius norm
    /// (GNSP `src/models/get_data_matrix.py:86-92`).
    pub gram_batch_norm: bool,
    /// Whether a task's Gram is divided by its Frobenius norm (GNSP
    /// `src/models/get_data_matrix.py:95-97`).
    pub gram_task_norm: bool,
    /// Whether the projector is divided by its Frobenius norm, as Adam-NSCL's code does
    /// (ShipengWang/Adam-NSCL `optim/adam_svd.py`, `get_transforms`).
    pub normalize: bool,
    /// Images of the Gram pass are prepared as for training (the reference) or for evaluation.
    pub gram_train_transform: bool,
    /// The last block's Gram holds all tokens (the reference), or the class token only, which is
    /// all that reaches the output.
    pub gram_all_tokens: bool,
    /// Divide the history of `visual.proj` by its norm before adding a task (the reference,
    /// GNSP `src/models/get_data_matrix.py:98-108`).
    pub renormalize_proj: bool,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Projection {
    /// The choices of the optimizer crate, for what the task of this number remembers or is
    /// projected by.
    pub fn policy(&self, task: usize) -> Policy {
        let raised = |share: f64| match self.rank_step {
            0.0 => share,
            step => (share + step * task as f64).min(0.999),
        };
        let rank = match self.rank {
            RankRule::TailShare(share) => RankRule::TailShare(raised(share)),
            RankRule::ExplainedEnergy(share) => RankRule::ExplainedEnergy(raised(share)),
            rule => rule,
        };
        Policy {
            site: self.site,
            rank,
            strength: self.strength,
            history: self.history,
            batch_norm: if self.gram_batch_norm {
                BatchNorm::Frobenius
            } else {
                BatchNorm::None
            },
            task_norm: if self.gram_task_norm {
                TaskNorm::Frobenius
            } else {
                TaskNorm::None
            },
            normalize: self.normalize,
            solver: self.solver,
        }
    }
}

impl Default for Projection {
    fn default() -> Self {
        Self {
            site: Site::Gradient,
            rank: RankRule::TailShare(0.15),
            rank_step: 0.0,
            strength: Strength::Hard,
            history: History::Sum,
            solver: Solver::Auto,
            gram_batch: 16,
            gram_batches: None,
            gram_batch_norm: true,
            gram_task_norm: true,
            normalize: false,
            gram_train_transform: true,
            gram_all_tokens: true,
            renormalize_proj: true,
        }
    }
}

/// Which weights something starts from or is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Those at the start of the task.
    Previous,
    /// The pretrained ones.
    Pretrained,
}

/// Which optimizer makes the updates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// AdamW, with the settings of `[adamw]`.
    #[serde(rename = "adamw")]
    AdamW,
    /// Plain gradient descent.
    Sgd,
}

/// In what the towers compute while training. Weights, moments and losses are in `f32` in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    /// `"f32"`, as published.
    #[default]
    F32,
    /// `"bf16"`: half the memory of activations, and faster on devices that have it.
    Bf16,
}

impl Compute {
    /// Whether this is what is published.
    pub fn is_full(&self) -> bool {
        *self == Self::F32
    }

    /// Burn's name.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

/// Distillation of the similarity of images to fixed texts: with `Z = s·F(U)·G(V)ᵀ`, where the
/// texts' features `G` are the teacher's on both sides, the loss is `image · KD(Zᵗ, Zˢ) + text ·
/// KD(Zᵗᵀ, Zˢᵀ)` (ZSCL `mtil/src/models/finetune.py:248-300`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Distill {
    /// Weight of the distillation over the texts of each image.
    pub image: f64,
    /// Weight of the distillation over the images of each text.
    pub text: f64,
    /// The images U.
    pub images: DistillImages,
    /// The texts V.
    pub texts: DistillTexts,
    /// Whether reference images come in a fresh order each epoch (ZSCL) or always in the same.
    pub shuffle: bool,
    /// How many random texts [`DistillTexts::Random`] draws for a task.
    pub random_texts: usize,
    /// Whether to distil on the first task too.
    pub first_task: bool,
}

impl Default for Distill {
    fn default() -> Self {
        Self {
            image: 1.0,
            text: 1.0,
            images: DistillImages::Reference,
            texts: DistillTexts::Captions,
            shuffle: true,
            random_texts: 1000,
            first_task: true,
        }
    }
}

/// The images of a distillation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DistillImages {
    /// The reference images.
    Reference,
    /// The task's own training images, prepared as for evaluation (LwF).
    Task,
    /// The images kept of earlier tasks (iCaRL); none on the first.
    Memory,
}

/// The texts of a distillation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DistillTexts {
    /// The suite's texts without images; the different captions of the reference images where there
    /// are none.
    Captions,
    /// The different captions of the reference images.
    Reference,
    /// The prompts of the task's classes, first template (LwF).
    Prompts,
    /// The prompts of the classes of all tasks so far.
    AllPrompts,
    /// Rows of ten random tokens, drawn for each task (LwF-VR; ZSCL
    /// `mtil/src/models/helpers.py:54-62`).
    Random,
}

/// A penalty on the distance of the weights from earlier ones. Its gradient is added to that of the
/// losses; it needs no tape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    /// Which distance.
    pub kind: AnchorKind,
    /// Its weight.
    pub weight: f64,
    /// Images that estimate the Fisher information of a task: the first ones of the training set.
    #[serde(default = "default_fisher_images")]
    pub fisher_images: usize,
}

fn default_fisher_images() -> usize {
    1000
}

/// Which distance from which weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnchorKind {
    /// `weight · Σ (θ − θ⁰)²` with the weights at the start of the task: the WC of ZSCL
    /// (`mtil/src/models/finetune.py:34-37`, `helpers.py:47-51`).
    L2,
    /// `weight/2 · Σ_t Σ F_t (θ − θ_t)²` over the earlier tasks, with the diagonal of the empirical
    /// Fisher information of each: elastic weight consolidation (Kirkpatrick et al. 2017, arXiv
    /// 1612.00796).
    Fisher,
    /// `weight · Σ F (θ − θ⁰)²` with the weights at the start of the task and `F = g²/mean(g²)` of
    /// each parameter tensor, where `g` is the update's gradient of the losses on the reference
    /// pairs: GIFT's adaptive weight consolidation (Luo-Jiaming/GIFT_CL, arXiv 2503.04229).
    Adaptive,
}

/// An average of the weights along the way: after updates 0, `every`, 2·`every`, … `W ← alpha ·
/// (n·W + θ)/(n + 1) + (1 − alpha) · θ⁰`, from `W = θ⁰`, the weights at the start of the task, and
/// `n = 1`. A task ends with `W` (ZSCL `mtil/src/models/helpers.py:31-34`, `finetune.py:310-320`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Average {
    /// Updates from one snapshot to the next.
    pub every: usize,
    /// 1 is the plain mean; less holds it near the start.
    #[serde(default = "one")]
    pub alpha: f64,
}

fn one() -> f64 {
    1.0
}

/// After a task `θ ← alpha · θ + (1 − alpha) · θ'` (WiSE-FT, Wortsman et al. 2022; ZSCL
/// `mtil/src/models/finetune.py:332-340`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// Share of the trained weights.
    pub alpha: f64,
    /// The other weights.
    pub with: Start,
}

/// Images of earlier tasks that are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsal {
    /// Images in all.
    pub size: usize,
    /// How the room is shared when a task is added.
    #[serde(default = "fixed")]
    pub quota: Quota,
    /// Which images of a task are kept.
    pub choice: ExemplarChoice,
    /// Weight of the classification of kept images, each among the classes of its own task; 0
    /// leaves it out, and then the images serve a distillation.
    #[serde(default)]
    pub replay: f64,
    /// Kept images per update.
    #[serde(default = "default_replay_batch")]
    pub batch: usize,
    /// Whether images to classify come in a fresh order each time round, or always in the same. For
    /// a distillation it is always the same (ZSCL `mtil/src/models/icarl.py`).
    #[serde(default = "yes")]
    pub shuffle: bool,
}

fn yes() -> bool {
    true
}

fn fixed() -> Quota {
    Quota::Fixed
}

fn default_replay_batch() -> usize {
    64
}

/// Which images of a task are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExemplarChoice {
    /// Those whose mean feature follows the mean of all (iCaRL, Rebuffi et al. 2017); of the first
    /// task the first ones, as published.
    Herding,
    /// A random choice.
    Random,
    /// The same number of each class, at random.
    Balanced,
    /// The first ones.
    First,
}

/// Low-rank adapters `W + (alpha/rank)·A·B` on two-dimensional weights (Hu et al. 2021). The
/// weights themselves, and all others, are frozen; after a task the product is added to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Columns of A.
    pub rank: usize,
    /// The product counts `alpha / rank` times.
    pub alpha: f64,
    /// Regular expressions of the weights.
    pub weights: Vec<String>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 16.0,
            weights: vec![
                r"^(visual|text)\.blocks\.\d+\.(attn\.(in_proj|out_proj)|mlp\.(c_fc|c_proj))\.weight$".to_owned(),
            ],
        }
    }
}

/// A mixture of adapters beside the MLP of every block of both towers (MoE-Adapters, CVPR 2024,
/// arXiv 2403.11549; JiazuoYu/MoE-Adapters4CL `mtil/clip/{model,adapter}.py`). The CLIP is frozen.
/// For a task that was not learned the model answers without them; the published code finds the
/// task by autoencoders on AlexNet features, here it is given, as in the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experts {
    /// Adapters a block, shared by all tasks.
    pub experts: usize,
    /// How many of them see an image or a text.
    pub top: usize,
    /// Width of an adapter.
    pub bottleneck: usize,
    /// Factor on an adapter's output.
    pub scale: f64,
    /// Share of an adapter's hidden values that is dropped in training.
    pub dropout: f64,
    /// Whether the choice of adapters is noisy in training.
    pub noise: bool,
}

impl Default for Experts {
    fn default() -> Self {
        Self {
            experts: 22,
            top: 2,
            bottleneck: 64,
            scale: 0.1,
            dropout: 0.1,
            noise: true,
        }
    }
}

/// Ridge regression from the image features of the pretrained tower to the classes of all tasks so
/// far, joined with the zero-shot answer (RAIL, NeurIPS 2024, arXiv 2406.18868;
/// linghan1997/Regression-based-Analytic-Incremental-Learning). No weight of the CLIP changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Analytic {
    /// On a random hidden layer, or with a kernel.
    pub kind: AnalyticKind,
    /// Width of the random hidden layer.
    pub hidden: usize,
    /// Weight of the squared norm of the regression's weights.
    pub ridge: f64,
    /// Width of the kernel: `exp(−gamma‖x − y‖²)`.
    pub gamma: f64,
    /// Share of the regression in the joined answer.
    pub fusion: f64,
    /// Whether training images get a random crop, as published, or are prepared as for evaluation.
    pub augment: bool,
}

/// The two forms of the regression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnalyticKind {
    /// Features through a random layer and a ReLU.
    Primal,
    /// A radial basis function kernel on all training features, which are kept.
    Dual,
}

impl Default for Analytic {
    fn default() -> Self {
        Self {
            kind: AnalyticKind::Primal,
            hidden: 15_000,
            ridge: 0.1,
            gamma: 0.1,
            fusion: 0.8,
            augment: true,
        }
    }
}

impl Method {
    /// Whether the mechanisms are in range and fit each other.
    pub(super) fn check_mechanisms(&self) -> Result<(), String> {
        let within = |key: &str, value: f64, low: f64, high: f64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(format!(
                    "`{key}` must be from {low} to {high}, it is {value}"
                ))
            }
        };
        let some = |key: &str, value: usize| match value {
            0 => Err(format!("`{key}` must be at least 1")),
            _ => Ok(()),
        };
        let parts = [
            ("projection", self.projection.is_some()),
            ("distill", self.distill.is_some()),
            ("anchor", self.anchor.is_some()),
            ("average", self.average.is_some()),
            ("merge", self.merge.is_some()),
            ("rehearsal", self.rehearsal.is_some()),
            ("lora", self.lora.is_some()),
            ("experts", self.experts.is_some()),
            ("analytic", self.analytic.is_some()),
        ];
        let alone = |key: &str, but: &[&str]| {
            let other = parts
                .iter()
                .find(|(other, there)| *there && *other != key && !but.contains(other));
            match other {
                Some((other, _)) => Err(format!("`{key}` and `{other}` do not go together")),
                None => Ok(()),
            }
        };
        for (name, settings) in &self.task {
            let lr = settings.lr.unwrap_or(1.0);
            if !(lr.is_finite() && lr > 0.0) {
                return Err(format!("`task.{name}.lr` must be above 0, it is {lr}"));
            }
            some(&format!("task.{name}.steps"), settings.steps.unwrap_or(1))?;
        }
        some("schedule_steps", self.schedule_steps.unwrap_or(1))?;
        if let Some(d) = &self.distill {
            within("distill.image", d.image, 0.0, f64::MAX)?;
            within("distill.text", d.text, 0.0, f64::MAX)?;
            some("distill.random_texts", d.random_texts)?;
            if d.images == DistillImages::Memory && self.rehearsal.is_none() {
                return Err("`distill.images = \"memory\"` needs a `[rehearsal]`".to_owned());
            }
        }
        if let Some(a) = &self.anchor {
            within("anchor.weight", a.weight, 0.0, f64::MAX)?;
            some("anchor.fisher_images", a.fisher_images)?;
            if a.kind == AnchorKind::Adaptive && !self.uses_reference() {
                return Err("`anchor.kind = \"adaptive\"` weighs by the gradient of `cd`, `map` and `hold_means`: one must be above 0".to_owned());
            }
        }
        if let Some(a) = &self.average {
            some("average.every", a.every)?;
            within("average.alpha", a.alpha, 0.0, 1.0)?;
        }
        if let Some(m) = &self.merge {
            within("merge.alpha", m.alpha, 0.0, 1.0)?;
        }
        if let Some(r) = &self.rehearsal {
            some("rehearsal.size", r.size)?;
            some("rehearsal.batch", r.batch)?;
            within("rehearsal.replay", r.replay, 0.0, f64::MAX)?;
            let used = r.replay > 0.0
                || matches!(&self.distill, Some(d) if d.images == DistillImages::Memory);
            if !used {
                return Err("`rehearsal` keeps images that nothing uses: set `rehearsal.replay`, or `distill.images = \"memory\"`".to_owned());
            }
        }
        if let Some(l) = &self.lora {
            some("lora.rank", l.rank)?;
            within("lora.alpha", l.alpha, 0.0, f64::MAX)?;
            if l.weights.is_empty() {
                return Err("`lora.weights` names no weight".to_owned());
            }
            alone("lora", &["distill", "merge", "rehearsal"])?;
        }
        if let Some(e) = &self.experts {
            some("experts.experts", e.experts)?;
            some("experts.bottleneck", e.bottleneck)?;
            within("experts.top", e.top as f64, 1.0, e.experts as f64)?;
            within("experts.scale", e.scale, 0.0, f64::MAX)?;
            if !(0.0..1.0).contains(&e.dropout) {
                return Err(format!(
                    "`experts.dropout` must be at least 0 and below 1, it is {}",
                    e.dropout
                ));
            }
            alone("experts", &[])?;
        }
        if let Some(a) = &self.analytic {
            some("analytic.hidden", a.hidden)?;
            for (key, value) in [("ridge", a.ridge), ("gamma", a.gamma)] {
                if !(value.is_finite() && value > 0.0) {
                    return Err(format!("`analytic.{key}` must be above 0, it is {value}"));
                }
            }
            within("analytic.fusion", a.fusion, 0.0, 1.0)?;
            if self.uses_reference() || self.per_task {
                return Err("`analytic` trains no weight: `cd`, `map`, `hold_means` and `per_task` have no meaning with it".to_owned());
            }
            alone("analytic", &[])?;
        }
        if self.joint {
            alone("joint", &["lora"])?;
            if self.uses_reference() || self.per_task {
                return Err("`joint` trains all tasks at once: `cd`, `map`, `hold_means` and `per_task` have no meaning with it".to_owned());
            }
        }
        if self.per_task && self.experts.is_some() {
            return Err(
                "`experts` have a router for each task already; leave out `per_task`".to_owned(),
            );
        }
        for (key, beta) in [("beta_1", self.adamw.beta_1), ("beta_2", self.adamw.beta_2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(format!(
                    "`adamw.{key}` must be at least 0 and below 1, it is {beta}"
                ));
            }
        }
        if self.per_task && self.start != Start::Pretrained {
            return Err("`per_task` needs `start = \"pretrained\"`: the models of the tasks are independent".to_owned());
        }
        Ok(())
    }
}

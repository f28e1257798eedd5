//! Training on one task.

use std::collections::BTreeMap;

use burn::{
    optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer, SgdConfig},
    tensor::{Device, Int, Tensor, TensorData},
};
use clip_kernels::{AdamWSettings, FusedAdamW};
use clip_model::{Clip, ClipModel, TokenBatch, normalize};
use gnsp_optimizer::Memory;
use losses::{
    contrastive_distillation, mean_displacement, modality_alignment, smoothed_cross_entropy,
};
use serde::Serialize;

use super::{
    RunError,
    distill::Distillation,
    experts::Draw,
    parallel::Gathered,
    penalty::{Penalty, adaptive},
    reference::{Pairs, Reference},
    replay::{Items, Kept},
    student::{Student, Work},
    weights::Weights,
};
use crate::{
    batch::{Ahead, BatchError, Images},
    eval::{encode_texts, prompt},
    method::{Method, OptimizerKind},
};
use mtil_data::{data::BatchOrder, seeds, suite::Suite};

/// Everything that stays the same over the updates of one task.
pub(super) struct TaskTraining<'a> {
    method: &'a Method,
    suite: &'a Suite,
    index: usize,
    seed: u64,
    images: &'a Images,
    /// Where images are encoded, the model's own first.
    devices: &'a [Device],
    /// Until the first update, when it goes to the loader.
    order: Option<BatchOrder>,
    stream: Option<Ahead>,
    items: Items,
    extras: Extras,
    /// Prompts of the classes of each task under the first template, which training uses
    /// (GNSP `src/models/finetune_gnsp.py:84-90`).
    prompts: BTreeMap<usize, TokenBatch>,
    /// Their normalised features, when the text tower is frozen.
    class_features: Option<BTreeMap<usize, Tensor<2>>>,
}

/// Pixels, and which images they are of.
type Own = (Option<Tensor<4>>, Vec<usize>);

/// What a task is trained with besides its own images.
#[derive(Default)]
pub(super) struct Extras {
    pub reference: Option<Reference>,
    pub distillation: Option<Distillation>,
    pub replay: Option<Kept>,
    pub penalty: Option<Penalty>,
    /// The weights at the start of the task and the factor of adaptive weight consolidation.
    pub adaptive: Option<(Weights, f64)>,
}

/// The parts of a loss, weighted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LossParts {
    /// Classification of the task's images.
    pub task: f32,
    /// Contrastive distillation on the reference pairs.
    pub cd: f32,
    /// Alignment of the reference pairs.
    pub map: f32,
    /// Displacement of the mean features of the reference pairs.
    #[serde(skip_serializing_if = "is_zero")]
    pub means: f32,
    /// Distillation against fixed texts.
    #[serde(skip_serializing_if = "is_zero")]
    pub distill: f32,
    /// Classification of kept images.
    #[serde(skip_serializing_if = "is_zero")]
    pub replay: f32,
    /// Distance of the weights.
    #[serde(skip_serializing_if = "is_zero")]
    pub penalty: f32,
}

fn is_zero(value: &f32) -> bool {
    *value == 0.0
}

impl LossParts {
    fn total(&self) -> f32 {
        self.task + self.cd + self.map + self.means + self.distill + self.replay + self.penalty
    }
}

impl std::fmt::Display for LossParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "task {:.3}", self.task)?;
        for (name, value) in [
            ("cd", self.cd),
            ("map", self.map),
            ("means", self.means),
            ("distill", self.distill),
            ("replay", self.replay),
            ("penalty", self.penalty),
        ] {
            if value != 0.0 {
                write!(f, " {name} {value:.3}")?;
            }
        }
        Ok(())
    }
}

/// The losses of one update.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepLoss {
    pub total: f32,
    pub parts: LossParts,
    pub images: usize,
}

/// A fresh optimizer, with the updates of the remembered parameters projected; and the protected rank of
/// each.
pub(super) fn optimizer(
    method: &Method,
    model: &ClipModel,
    memory: &Memory,
) -> Result<(ModuleOptimizer, BTreeMap<String, [usize; 2]>), RunError> {
    let adamw = FusedAdamW::new(AdamWSettings {
        beta_1: method.adamw.beta_1,
        beta_2: method.adamw.beta_2,
        epsilon: method.adamw.epsilon,
        weight_decay: method.adamw.weight_decay,
    });
    let plain = match method.optimizer {
        OptimizerKind::AdamW => ModuleOptimizer::from(adamw.clone()),
        OptimizerKind::Sgd => ModuleOptimizer::from(SgdConfig::new().build()),
    };
    match &method.projection {
        Some(projection) if !memory.is_empty() => {
            let protection = memory.protection(model, &projection.policy())?;
            let ranks = protection
                .iter()
                .map(|(path, p)| {
                    let space = &p.null_space;
                    (path.to_owned(), [space.rank(), space.dimensions()])
                })
                .collect();
            let wrapped = match method.optimizer {
                OptimizerKind::AdamW => protection.wrap(plain, adamw),
                OptimizerKind::Sgd => protection.wrap(plain, SgdConfig::new().build()),
            };
            Ok((wrapped, ranks))
        }
        _ => Ok((plain, BTreeMap::new())),
    }
}

/// The prompts of the classes of a task under its first template.
pub(super) fn prompts(
    checkpoint: &Clip,
    suite: &Suite,
    task: usize,
) -> Result<TokenBatch, RunError> {
    let context = checkpoint.config.text.max_position_embeddings;
    Ok(checkpoint
        .tokenizer
        .encode(&prompt_texts(suite, task), context)?)
}

fn prompt_texts(suite: &Suite, task: usize) -> Vec<String> {
    let task = &suite.tasks[task];
    let template = &task.templates[0];
    task.class_names
        .iter()
        .map(|c| prompt(template, c))
        .collect()
}

impl<'a> TaskTraining<'a> {
    /// `student` is the model at the start of the task, on the plain device; `text_trains` says whether its texts will get
    /// other features.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        checkpoint: &Clip,
        method: &'a Method,
        suite: &'a Suite,
        index: usize,
        seed: u64,
        images: &'a Images,
        devices: &'a [Device],
        extras: Extras,
        student: &ClipModel,
        text_trains: bool,
    ) -> Result<Self, RunError> {
        let items = if method.joint {
            Items::all(suite)
        } else {
            Items::of_task(suite, index)
        };
        let kept = extras.replay.iter().flat_map(|r| r.items.tasks());
        let mut tasks: Vec<usize> = items.tasks().into_iter().chain(kept).collect();
        tasks.sort_unstable();
        tasks.dedup();
        let mut tokens = BTreeMap::new();
        let mut class_features = BTreeMap::new();
        for task in tasks {
            tokens.insert(task, prompts(checkpoint, suite, task)?);
            if !text_trains {
                let features = encode_texts(checkpoint, student, &prompt_texts(suite, task))?;
                class_features.insert(task, features);
            }
        }
        Ok(Self {
            method,
            suite,
            index,
            seed,
            images,
            devices,
            order: Some(BatchOrder::new(
                items.len(),
                method.batch,
                seeds::derive(seed, &[seeds::TRAIN_ORDER, index as u64]),
            )?),
            stream: None,
            items,
            extras,
            prompts: tokens,
            class_features: (!text_trains).then_some(class_features),
        })
    }

    /// The training images of update `step`: which they are, and their pixels; none when none can be read.
    fn own(&mut self, step: usize, steps: usize, device: &Device) -> Result<Own, RunError> {
        if let Some(order) = self.order.take() {
            let seed = seeds::derive(self.seed, &[seeds::TRAIN_CROP, self.index as u64]);
            let steps = step as u64..steps as u64;
            let source = self.items.source();
            self.stream = Some(self.images.train_ahead(source, order, steps, seed)?);
        }
        let batch = self.stream.as_mut().and_then(Iterator::next).transpose()?;
        match batch {
            Some(batch) => Ok((self.images.tensor(&batch.images, device)?, batch.kept)),
            None => Ok((None, Vec::new())),
        }
    }

    /// One update of `student` (on the autodiff device), number `step` of `steps`. Updates are made in their order, from any one on.
    pub fn step(
        &mut self,
        mut student: Student,
        optimizer: &mut ModuleOptimizer,
        step: usize,
        steps: usize,
        device: &Device,
    ) -> Result<(Student, StepLoss), RunError> {
        let (pixels, kept) = self.own(step, steps, device)?;
        let Some(pixels) = pixels else {
            let name = &self.suite.tasks[self.index].name;
            let what = format!("the images of one batch of task `{name}`");
            return Err(BatchError::NothingReadable(what).into());
        };
        student.begin(self.method.compute.dtype());
        let labels = self.items.labels(&kept);
        let scale = student.clip.scale().reshape([1, 1]);
        let taught = match &mut self.extras.distillation {
            Some(distillation) => distillation.at(step, steps, self.images, device)?,
            None => None,
        };
        let replayed = match &mut self.extras.replay {
            Some(replay) => replay.at(step, steps, self.images, device)?,
            None => None,
        };
        let pairs = self.extras.reference.as_ref().map(|r| r.at(step));
        let pairs = pairs.as_deref();
        let work = Work {
            task: self.index,
            experts: self.method.experts.as_ref(),
            draw: Some(Draw {
                seed: seeds::derive(self.seed, &[seeds::ADAPTER_DRAWS, self.index as u64]),
                step: step as u64,
            }),
            devices: self.devices,
        };

        // One pass through the image tower for all images: nothing in it mixes the images of a batch. Adaptive consolidation
        // needs the gradient of the reference pairs by itself, so they get a pass of their own there.
        let apart = self.extras.adaptive.is_some();
        let mut pass = Pass::default();
        let own = pass.add(pixels);
        let referred = pairs.filter(|_| !apart).map(|p| pass.add(p.pixels.clone()));
        let taught_at = taught.as_ref().map(|t| pass.add(t.pixels.clone()));
        let replayed_at = replayed.as_ref().map(|r| pass.add(r.pixels.clone()));
        let mut images = pass.images;
        let (features, gathered) = pass.encode(&mut student, &work);

        let mut wanted: Vec<usize> = labels.iter().map(|(task, _)| *task).collect();
        if let Some(replayed) = &replayed {
            wanted.extend(replayed.labels.iter().map(|(task, _)| *task));
        }
        let classes = self.classes(&mut student, &work, wanted);
        let smoothing = self.method.smoothing;
        let mut parts = LossParts::default();
        let mut losses: Vec<(Tensor<1>, Part)> = vec![(
            classify(
                features.at(&own),
                &labels,
                &classes,
                &scale,
                smoothing,
                device,
            ),
            |p| &mut p.task,
        )];
        if let (Some(pairs), Some(at)) = (pairs, &referred) {
            let features = features.at(at);
            losses.extend(self.reference_losses(&mut student, &work, pairs, features, &scale));
        }
        if let (Some(distillation), Some(taught), Some(at)) =
            (&self.extras.distillation, &taught, &taught_at)
        {
            let loss = distillation.loss(taught, features.at(at), scale.clone());
            losses.push((loss, |p| &mut p.distill));
        }
        if let (Some(replay), Some(replayed), Some(at)) =
            (&self.extras.replay, &replayed, &replayed_at)
        {
            let features = features.at(at);
            let loss = classify(
                features,
                &replayed.labels,
                &classes,
                &scale,
                smoothing,
                device,
            );
            losses.push((loss.mul_scalar(replay.weight), |p| &mut p.replay));
        }
        let loss = sum(&losses, &mut parts);
        let mut gradients = if parts.total().is_finite() {
            Some(student.gradients(loss, gathered))
        } else {
            None
        };

        if let (Some((start, factor)), Some(pairs)) = (&self.extras.adaptive, pairs) {
            let mut pass = Pass::default();
            let at = pass.add(pairs.pixels.clone());
            images += pass.images;
            let (features, gathered) = pass.encode(&mut student, &work);
            let features = features.at(&at);
            let losses = self.reference_losses(&mut student, &work, pairs, features, &scale);
            let loss = sum(&losses, &mut parts);
            if let (true, Some(own)) = (parts.total().is_finite(), gradients.take()) {
                let mut referred = student.gradients(loss, gathered);
                parts.penalty = adaptive(&student.clip, &mut referred, start, *factor);
                gradients = Some(added(&student.clip, own, referred));
            }
        }
        if let (Some(penalty), Some(gradients)) = (&self.extras.penalty, &mut gradients) {
            parts.penalty += penalty.apply(&student.clip, gradients);
        }
        let result = StepLoss {
            total: parts.total(),
            parts,
            images,
        };
        // The caller stops where the loss is not finite; the weights are left as they are.
        let student = match gradients.filter(|_| result.total.is_finite()) {
            Some(gradients) => {
                let name = &self.suite.tasks[self.index].name;
                student.updated(
                    optimizer,
                    self.method.lr_at(self.index, name, step),
                    gradients,
                )
            }
            None => student,
        };
        Ok((student, result))
    }

    /// Normalised features of the classes of `tasks`.
    fn classes(
        &self,
        student: &mut Student,
        work: &Work<'_>,
        mut tasks: Vec<usize>,
    ) -> BTreeMap<usize, Tensor<2>> {
        tasks.sort_unstable();
        tasks.dedup();
        let known = |task: &usize| self.class_features.as_ref()?.get(task).cloned();
        let of = |task: usize| {
            let features = known(&task)
                .unwrap_or_else(|| normalize(student.encode_text(&self.prompts[&task], work)));
            (task, features)
        };
        tasks.into_iter().map(of).collect()
    }

    /// Contrastive distillation and alignment of the student's features of reference pairs.
    fn reference_losses(
        &self,
        student: &mut Student,
        work: &Work<'_>,
        pairs: &Pairs,
        features: Tensor<2>,
        scale: &Tensor<2>,
    ) -> Vec<(Tensor<1>, Part)> {
        let text = match &pairs.student_text {
            Some(text) => text.clone(),
            None => normalize(student.encode_text(&pairs.tokens, work)),
        };
        let logits = features.clone().matmul(text.clone().transpose()) * scale.clone();
        let mut losses: Vec<(Tensor<1>, Part)> = Vec::new();
        if self.method.cd > 0.0 {
            let teacher = pairs
                .teacher_image
                .clone()
                .matmul(pairs.teacher_text.clone().transpose())
                * scale.clone().inner();
            let loss = contrastive_distillation(teacher, logits.clone(), self.method.temperature);
            losses.push((loss.mul_scalar(self.method.cd), |p| &mut p.cd));
        }
        if self.method.map > 0.0 {
            let smoothing = self.method.map_smoothing;
            let loss = modality_alignment(logits, pairs.targets(), smoothing);
            losses.push((loss.mul_scalar(self.method.map), |p| &mut p.map));
        }
        if self.method.hold_means > 0.0 {
            let loss = mean_displacement(features, pairs.teacher_image.clone())
                + mean_displacement(text, pairs.teacher_text.clone());
            losses.push((loss.mul_scalar(self.method.hold_means), |p| &mut p.means));
        }
        losses
    }
}

/// Where a loss is noted.
type Part = fn(&mut LossParts) -> &mut f32;

/// The sum of the losses, whose values go into `parts`.
fn sum(losses: &[(Tensor<1>, Part)], parts: &mut LossParts) -> Tensor<1> {
    for (loss, part) in losses {
        *part(parts) = crate::eval::to_host(loss.clone().inner())[0];
    }
    let mut all = losses.iter().map(|(loss, _)| loss.clone());
    let first = all.next().expect("there is at least the task's loss");
    all.fold(first, |sum, loss| sum + loss)
}

fn added(model: &ClipModel, a: GradientsParams, b: GradientsParams) -> GradientsParams {
    let mut both = GradientsAccumulator::new();
    both.accumulate(model, a);
    both.accumulate(model, b);
    both.grads()
}

/// Images of several kinds on their way through the image tower.
#[derive(Default)]
struct Pass {
    pixels: Vec<Tensor<4>>,
    images: usize,
}

impl Pass {
    /// Adds images, and says where their features will be.
    fn add(&mut self, pixels: Tensor<4>) -> std::ops::Range<usize> {
        let start = self.images;
        self.images += pixels.dims()[0];
        self.pixels.push(pixels);
        start..self.images
    }

    fn encode(mut self, student: &mut Student, work: &Work<'_>) -> (Passed, Option<Gathered>) {
        let pixels = if self.pixels.len() == 1 {
            self.pixels.remove(0)
        } else {
            Tensor::cat(self.pixels, 0)
        };
        let (features, gathered) = student.encode_image(pixels, work);
        (Passed(normalize(features)), gathered)
    }
}

/// Normalised features of a pass.
struct Passed(Tensor<2>);

impl Passed {
    fn at(&self, range: &std::ops::Range<usize>) -> Tensor<2> {
        let [_, e] = self.0.dims();
        self.0.clone().slice([range.clone(), 0..e])
    }
}

/// The mean over images of the smoothed cross-entropy of each among the classes of its own task. `labels` are tasks and classes.
fn classify(
    features: Tensor<2>,
    labels: &[(usize, usize)],
    classes: &BTreeMap<usize, Tensor<2>>,
    scale: &Tensor<2>,
    smoothing: f64,
    device: &Device,
) -> Tensor<1> {
    let int = |values: Vec<i64>| {
        let n = values.len();
        Tensor::<1, Int>::from_data(TensorData::new(values, [n]), device)
    };
    let loss = |features: Tensor<2>, task: usize, labels: Vec<i64>| {
        let logits = features.matmul(classes[&task].clone().transpose()) * scale.clone();
        smoothed_cross_entropy(logits, int(labels), smoothing)
    };
    let first = labels[0].0;
    if labels.iter().all(|(task, _)| *task == first) {
        let labels = labels.iter().map(|(_, label)| *label as i64).collect();
        return loss(features, first, labels);
    }
    let mut sum: Option<Tensor<1>> = None;
    for task in classes.keys() {
        let of_task = labels.iter().enumerate().filter(|(_, (t, _))| t == task);
        let (rows, own): (Vec<i64>, Vec<i64>) = of_task
            .map(|(row, (_, label))| (row as i64, *label as i64))
            .unzip();
        if rows.is_empty() {
            continue;
        }
        let share = rows.len() as f64 / labels.len() as f64;
        let part = loss(features.clone().select(0, int(rows)), *task, own).mul_scalar(share);
        sum = Some(match sum {
            Some(sum) => sum + part,
            None => part,
        });
    }
    sum.expect("a batch is not empty")
}

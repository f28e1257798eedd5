//! One update: the losses of its images, and their gradients.

use std::{borrow::Cow, collections::BTreeMap};

use burn::{
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Device, Int, Tensor, TensorData},
};
use clip_model::{ClipModel, TokenBatch, normalize};
use losses::{
    contrastive_distillation, mean_displacement, modality_alignment, smoothed_cross_entropy,
};
use serde::{Deserialize, Serialize};

use super::{
    Optimizations,
    distill::{Distillation, Taught},
    experts::Draw,
    parallel::Gathered,
    penalty::{Penalty, adaptive},
    reference::{Pairs, Reference},
    replay::{Kept, Replayed},
    student::{Student, Work},
    weights::Weights,
};
use crate::{eval::to_host, method::Method};
use mtil_data::seeds;

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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

    /// The parts and their names, the task's first.
    pub fn named(&self) -> [(&'static str, f32); 7] {
        [
            ("task", self.task),
            ("cd", self.cd),
            ("map", self.map),
            ("means", self.means),
            ("distill", self.distill),
            ("replay", self.replay),
            ("penalty", self.penalty),
        ]
    }
}

impl std::fmt::Display for LossParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [(_, task), others @ ..] = self.named();
        write!(f, "task {task:.3}")?;
        for (name, value) in others {
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

/// What stays the same over the updates of one task.
pub(super) struct TaskLosses {
    pub method: Method,
    pub index: usize,
    pub seed: u64,
    /// Where images are encoded, the model's own first; on the tape.
    pub devices: Vec<Device>,
    pub extras: Extras,
    /// Prompts of the classes of each task under the first template, which training uses
    /// (GNSP `src/models/finetune_gnsp.py:84-90`).
    pub prompts: BTreeMap<usize, TokenBatch>,
    /// Their normalised features, when the text tower is frozen.
    pub class_features: Option<BTreeMap<usize, Tensor<2>>>,
    pub optimizations: Optimizations,
}

/// The images of one update.
pub(super) struct UpdateImages<'a> {
    /// Those of the task, `[images, 3, side, side]` on the tape.
    pub pixels: Tensor<4>,
    /// Task and class of each.
    pub labels: Vec<(usize, usize)>,
    pub pairs: Option<Cow<'a, Pairs>>,
    pub taught: Option<Taught>,
    pub replayed: Option<Replayed>,
}

impl TaskLosses {
    /// The losses of update `step`, and the gradients of what trains; none where a loss is not
    /// finite.
    pub fn gradients(
        &self,
        student: &mut Student,
        batch: &UpdateImages<'_>,
        step: usize,
    ) -> (StepLoss, Option<GradientsParams>) {
        student.begin(self.method.compute.dtype());
        let scale = student.clip.scale().reshape([1, 1]);
        let UpdateImages {
            pixels,
            labels,
            pairs,
            taught,
            replayed,
        } = batch;
        let pairs = pairs.as_deref();
        let device = &self.devices[0];
        let work = Work {
            task: self.index,
            experts: self.method.experts.as_ref(),
            draw: Some(Draw {
                seed: seeds::derive(self.seed, &[seeds::ADAPTER_DRAWS, self.index as u64]),
                step: step as u64,
            }),
            devices: &self.devices,
            optimizations: self.optimizations,
        };

        // One pass through the image tower for all images: nothing in it mixes the images of a
        // batch. Adaptive consolidation needs the gradient of the reference pairs by itself, so
        // they get a pass of their own there.
        let apart = self.extras.adaptive.is_some();
        let mut pass = Pass::default();
        let own = pass.add(pixels.clone());
        let referred = pairs.filter(|_| !apart).map(|p| pass.add(p.pixels.clone()));
        let taught_at = taught.as_ref().map(|t| pass.add(t.pixels.clone()));
        let replayed_at = replayed.as_ref().map(|r| pass.add(r.pixels.clone()));
        let mut images = pass.images;
        let (features, gathered) = pass.encode(student, &work);

        let mut wanted: Vec<usize> = labels.iter().map(|(task, _)| *task).collect();
        if let Some(replayed) = replayed {
            wanted.extend(replayed.labels.iter().map(|(task, _)| *task));
        }
        let classes = self.classes(student, &work, wanted);
        let smoothing = self.method.smoothing;
        let mut parts = LossParts::default();
        let mut losses: Vec<(Tensor<1>, Part)> = vec![(
            classify(
                features.at(&own),
                labels,
                &classes,
                &scale,
                smoothing,
                device,
            ),
            |p| &mut p.task,
        )];
        if let (Some(pairs), Some(at)) = (pairs, &referred) {
            let features = features.at(at);
            losses.extend(self.reference_losses(student, &work, pairs, features, &scale));
        }
        if let (Some(distillation), Some(taught), Some(at)) =
            (&self.extras.distillation, taught, &taught_at)
        {
            let loss = distillation.loss(taught, features.at(at), scale.clone());
            losses.push((loss, |p| &mut p.distill));
        }
        if let (Some(replay), Some(replayed), Some(at)) =
            (&self.extras.replay, replayed, &replayed_at)
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
            let (features, gathered) = pass.encode(student, &work);
            let features = features.at(&at);
            let losses = self.reference_losses(student, &work, pairs, features, &scale);
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
        (result, gradients.filter(|_| result.total.is_finite()))
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
    // Read together: on an accelerator each reading waits for all work before it.
    let values = losses.iter().map(|(loss, _)| loss.clone().inner());
    for ((_, part), value) in losses.iter().zip(to_host(Tensor::cat(values.collect(), 0))) {
        *part(parts) = value;
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
        if !work.optimizations.one_pass && work.devices.len() < 2 {
            let parts = self.pixels.into_iter();
            let parts = parts.map(|pixels| student.encode_image(pixels, work).0);
            return (Passed(normalize(Tensor::cat(parts.collect(), 0))), None);
        }
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

/// The mean over images of the smoothed cross-entropy of each among the classes of its own task.
/// `labels` are tasks and classes.
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

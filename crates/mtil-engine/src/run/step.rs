//! One update: the losses of its images, and their gradients.

use std::collections::BTreeMap;

use burn::{
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Device, Tensor},
};
use clip_model::{ClipModel, TokenBatch, normalize};

use super::{
    Optimizations,
    parallel::Gathered,
    student::{Student, Work},
};
use crate::{
    eval::to_host,
    mechanism::{
        mixtures::Draw,
        task_part::{Loss, LossParts, TaskPart, Towers},
    },
    method::Method,
};
use mtil_data::seeds;

/// The losses of one update.
#[derive(Debug, Clone)]
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
    /// What the mechanisms of the method add.
    pub parts: Vec<Box<dyn TaskPart>>,
    /// Prompts of the classes of each task under the first template, which training uses
    /// (GNSP `src/models/finetune_gnsp.py:84-90`).
    pub prompts: BTreeMap<usize, TokenBatch>,
    /// Their normalised features, when the text tower is frozen.
    pub class_features: Option<BTreeMap<usize, Tensor<2>>>,
    pub optimizations: Optimizations,
}

/// The images of one update.
pub(super) struct UpdateImages {
    /// Those of the task, `[images, 3, side, side]` on the tape.
    pub pixels: Tensor<4>,
    /// Task and class of each.
    pub labels: Vec<(usize, usize)>,
    /// Those of each part.
    pub drawn: Vec<Option<Tensor<4>>>,
}

impl TaskLosses {
    /// The losses of an update, and the gradients of what trains; none where a loss is not finite.
    pub fn gradients(
        &self,
        student: &mut Student,
        batch: &UpdateImages,
        step: usize,
    ) -> (StepLoss, Option<GradientsParams>) {
        student.begin(self.method.compute.dtype());
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
        // Where something weighs by the gradient of the reference pairs, they get a pass of their
        // own.
        let apart = self.parts.iter().any(|part| part.weighs_by_reference());
        let mut parts = LossParts::default();
        let (loss, gathered, mut images) =
            self.own_losses(student, &work, batch, apart, &mut parts);
        let mut gradients = if parts.total().is_finite() {
            Some(student.gradients(loss, gathered))
        } else {
            None
        };
        if apart {
            images += self.weighed(student, &work, batch, &mut parts, &mut gradients);
        }
        for part in self.parts.iter().filter(|part| !part.weighs_by_reference()) {
            if let Some(gradients) = &mut gradients
                && let Some((name, value)) = part.penalise(&student.clip, gradients)
            {
                parts.add(name, value);
            }
        }
        let result = StepLoss {
            total: parts.total(),
            parts,
            images,
        };
        let finite = result.total.is_finite();
        (result, gradients.filter(|_| finite))
    }

    /// The sum of the losses of the task's images and of those of the parts, all in one pass
    /// through the image tower: nothing in it mixes the images of a batch.
    fn own_losses(
        &self,
        student: &mut Student,
        work: &Work<'_>,
        batch: &UpdateImages,
        apart: bool,
        parts: &mut LossParts,
    ) -> (Tensor<1>, Option<Gathered>, usize) {
        let mut pass = Pass::default();
        let own = pass.add(batch.pixels.clone());
        let drawn: Vec<_> = self
            .parts
            .iter()
            .zip(&batch.drawn)
            .filter(|(part, _)| !(apart && part.is_reference()))
            .filter_map(|(part, pixels)| Some((part, pass.add(pixels.clone()?))))
            .collect();
        let images = pass.images;
        let (features, gathered) = pass.encode(student, work);
        let mut wanted: Vec<usize> = batch.labels.iter().map(|(task, _)| *task).collect();
        wanted.extend(drawn.iter().flat_map(|(part, _)| part.tasks_drawn()));
        let classes = self.classes(student, work, wanted);
        let losses = self.with_towers(student, work, &classes, |towers| {
            let mut losses = vec![("task", towers.classify(features.at(&own), &batch.labels))];
            for (part, at) in &drawn {
                losses.extend(part.losses(features.at(at), towers));
            }
            losses
        });
        (sum(&losses, parts), gathered, images)
    }

    /// Adds the gradients of the reference pairs, weighed by those parts that do so. Returns how
    /// many images that took.
    fn weighed(
        &self,
        student: &mut Student,
        work: &Work<'_>,
        batch: &UpdateImages,
        parts: &mut LossParts,
        gradients: &mut Option<GradientsParams>,
    ) -> usize {
        let drawn = self.parts.iter().zip(&batch.drawn);
        let reference = drawn.filter(|(part, _)| part.is_reference());
        let found = reference
            .filter_map(|(part, pixels)| Some((part, pixels.clone()?)))
            .next();
        let Some((part, pixels)) = found else {
            return 0;
        };
        let mut pass = Pass::default();
        let at = pass.add(pixels);
        let images = pass.images;
        let (features, gathered) = pass.encode(student, work);
        let losses = self.with_towers(student, work, &BTreeMap::new(), |towers| {
            part.losses(features.at(&at), towers)
        });
        let loss = sum(&losses, parts);
        if let (true, Some(own)) = (parts.total().is_finite(), gradients.take()) {
            let mut referred = student.gradients(loss, gathered);
            for part in self.parts.iter().filter(|part| part.weighs_by_reference()) {
                if let Some((name, value)) = part.penalise(&student.clip, &mut referred) {
                    parts.add(name, value);
                }
            }
            *gradients = Some(added(&student.clip, own, referred));
        }
        images
    }

    fn with_towers<T>(
        &self,
        student: &mut Student,
        work: &Work<'_>,
        classes: &BTreeMap<usize, Tensor<2>>,
        losses: impl FnOnce(&mut Towers<'_>) -> T,
    ) -> T {
        let scale = student.clip.scale().reshape([1, 1]);
        let mut encode = |tokens: &TokenBatch| student.encode_text(tokens, work);
        losses(&mut Towers {
            encode_text: &mut encode,
            scale,
            classes,
            smoothing: self.method.smoothing,
            device: &self.devices[0],
        })
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
}

/// The sum of the losses, whose values go into `parts`.
fn sum(losses: &[Loss], parts: &mut LossParts) -> Tensor<1> {
    // Read together: on an accelerator each reading waits for all work before it.
    let values = losses.iter().map(|(_, loss)| loss.clone().inner());
    for ((name, _), value) in losses.iter().zip(to_host(Tensor::cat(values.collect(), 0))) {
        parts.add(*name, value);
    }
    let mut all = losses.iter().map(|(_, loss)| loss.clone());
    let first = all.next().expect("there is at least one loss");
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

//! Losses and gradients of one training step.

use std::collections::BTreeMap;

use burn::{
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Device, Tensor},
};
use clip_model::{ClipModel, TokenBatch, normalize};

use super::{
    Optimizations,
    parallel::GatheredFeatures,
    student::{StepContext, Student},
};
use mtil_data::seeds;
use mtil_eval::eval::to_host;
use mtil_methods::{
    mechanism::{
        auxiliary_loss::{AuxiliaryLoss, Loss, LossContext, LossParts},
        mixtures::NoiseSeed,
        training_images::{Target, tasks_of_classes},
    },
    method::Method,
};

/// Losses of one training step.
#[derive(Debug, Clone)]
pub(super) struct StepLoss {
    pub total: f32,
    pub parts: LossParts,
    pub images: usize,
}

/// Losses of one task: method, class prompts and auxiliary losses.
pub(super) struct TaskLosses {
    pub method: Method,
    pub index: usize,
    pub seed: u64,
    /// Devices that encode images, with autodiff; the model's own is the first.
    pub devices: Vec<Device>,
    /// Auxiliary losses of the method's mechanisms.
    pub auxiliary: Vec<Box<dyn AuxiliaryLoss>>,
    /// Class prompts of each classification task with the first template, which training uses
    /// (GNSP `src/models/finetune_gnsp.py:84-90`).
    pub prompts: BTreeMap<usize, TokenBatch>,
    /// Their normalised features `[classes, width]`, if the text tower is frozen.
    pub class_features: Option<BTreeMap<usize, Tensor<2>>>,
    /// Weight of the classification of the class prompts among the images of a batch.
    pub text_weight: f64,
    pub optimizations: Optimizations,
}

/// Images of one training step.
pub(super) struct StepImages {
    /// Images of the task `[images, 3, side, side]`, on the autodiff device.
    pub pixels: Tensor<4>,
    /// Target of each image of the task.
    pub targets: Vec<Target>,
    /// Images of each auxiliary loss.
    pub auxiliary: Vec<Option<Tensor<4>>>,
}

impl TaskLosses {
    /// Computes the losses of a training step, and the gradients of the trainable parameters; none
    /// if a loss is not finite.
    pub fn gradients(
        &self,
        student: &mut Student,
        batch: &StepImages,
        step: usize,
    ) -> (StepLoss, Option<GradientsParams>) {
        student.begin_step(self.method.compute.dtype());
        let work = StepContext {
            task: self.index,
            experts: self.method.experts.as_ref(),
            noise_seed: Some(NoiseSeed {
                seed: seeds::derive(self.seed, &[seeds::ADAPTER_DRAWS, self.index as u64]),
                step: step as u64,
            }),
            devices: &self.devices,
            optimizations: self.optimizations,
        };
        // A penalty weighted by the gradient of the reference pairs needs that gradient alone, so
        // they get a separate pass.
        let separate_reference = self
            .auxiliary
            .iter()
            .any(|loss| loss.weights_by_reference_gradient());
        let mut parts = LossParts::default();
        let (loss, gathered, mut images) =
            self.main_pass(student, &work, batch, separate_reference, &mut parts);
        let mut gradients = if parts.total().is_finite() {
            Some(student.gradients(loss, gathered))
        } else {
            None
        };
        if separate_reference {
            images += self.reference_pass(student, &work, batch, &mut parts, &mut gradients);
        }
        for loss in self
            .auxiliary
            .iter()
            .filter(|loss| !loss.weights_by_reference_gradient())
        {
            if let Some(gradients) = &mut gradients
                && let Some((name, value)) = loss.add_penalty_gradient(&student.clip, gradients)
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

    /// Computes the sum of the task's loss and the auxiliary losses. All images share one
    /// pass through the image tower, which does not mix the images of a batch.
    fn main_pass(
        &self,
        student: &mut Student,
        work: &StepContext<'_>,
        batch: &StepImages,
        separate_reference: bool,
        parts: &mut LossParts,
    ) -> (Tensor<1>, Option<GatheredFeatures>, usize) {
        let mut pass = ImagePass::default();
        let own = pass.add(batch.pixels.clone());
        let drawn: Vec<_> = self
            .auxiliary
            .iter()
            .zip(&batch.auxiliary)
            .filter(|(loss, _)| !(separate_reference && loss.uses_reference_pairs()))
            .filter_map(|(loss, pixels)| Some((loss, pass.add(pixels.clone()?))))
            .collect();
        let images = pass.images;
        let (features, gathered) = pass.encode(student, work);
        let mut wanted: Vec<usize> = tasks_of_classes(&batch.targets).collect();
        wanted.extend(drawn.iter().flat_map(|(loss, _)| loss.batch_tasks()));
        let classes = self.classes(student, work, wanted);
        let losses = self.with_loss_context(student, work, &classes, |towers| {
            let own = features.at(&own);
            let mut losses = vec![("task", towers.task_loss(own.clone(), &batch.targets))];
            // Image-caption pairs have no classes.
            let labels: Option<Vec<usize>> = batch.targets.iter().map(Target::class).collect();
            if let Some(labels) = labels.filter(|_| self.text_weight > 0.0) {
                let texts = towers.classify_texts(own, &labels, self.index);
                losses.push(("texts", texts.mul_scalar(self.text_weight)));
            }
            for (loss, at) in &drawn {
                losses.extend(loss.losses(features.at(at), towers));
            }
            losses
        });
        (sum(&losses, parts), gathered, images)
    }

    /// Adds the gradients of the losses on the reference pairs, and of the penalties weighted by
    /// them. Returns the number of reference images.
    fn reference_pass(
        &self,
        student: &mut Student,
        work: &StepContext<'_>,
        batch: &StepImages,
        parts: &mut LossParts,
        gradients: &mut Option<GradientsParams>,
    ) -> usize {
        let drawn = self.auxiliary.iter().zip(&batch.auxiliary);
        let reference = drawn.filter(|(loss, _)| loss.uses_reference_pairs());
        let found = reference
            .filter_map(|(loss, pixels)| Some((loss, pixels.clone()?)))
            .next();
        let Some((loss, pixels)) = found else {
            return 0;
        };
        let mut pass = ImagePass::default();
        let at = pass.add(pixels);
        let images = pass.images;
        let (features, gathered) = pass.encode(student, work);
        let losses = self.with_loss_context(student, work, &BTreeMap::new(), |towers| {
            loss.losses(features.at(&at), towers)
        });
        let loss = sum(&losses, parts);
        if let (true, Some(own)) = (parts.total().is_finite(), gradients.take()) {
            let mut reference = student.gradients(loss, gathered);
            for loss in self
                .auxiliary
                .iter()
                .filter(|loss| loss.weights_by_reference_gradient())
            {
                if let Some((name, value)) =
                    loss.add_penalty_gradient(&student.clip, &mut reference)
                {
                    parts.add(name, value);
                }
            }
            *gradients = Some(sum_gradients(&student.clip, own, reference));
        }
        images
    }

    fn with_loss_context<T>(
        &self,
        student: &mut Student,
        work: &StepContext<'_>,
        classes: &BTreeMap<usize, Tensor<2>>,
        losses: impl FnOnce(&mut LossContext<'_>) -> T,
    ) -> T {
        let scale = student.clip.scale().reshape([1, 1]);
        let mut encode = |tokens: &TokenBatch| student.encode_text(tokens, work);
        losses(&mut LossContext {
            encode_text: &mut encode,
            scale,
            classes,
            smoothing: self.method.smoothing,
            device: &self.devices[0],
        })
    }

    /// Returns the normalised features of the classes of `tasks`.
    fn classes(
        &self,
        student: &mut Student,
        work: &StepContext<'_>,
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

/// Returns the sum of the losses, and adds their values to `parts`.
fn sum(losses: &[Loss], parts: &mut LossParts) -> Tensor<1> {
    // One read for all: on an accelerator each read waits for all work before it.
    let values = losses.iter().map(|(_, loss)| loss.clone().inner());
    for ((name, _), value) in losses.iter().zip(to_host(Tensor::cat(values.collect(), 0))) {
        parts.add(*name, value);
    }
    let mut all = losses.iter().map(|(_, loss)| loss.clone());
    let first = all.next().expect("there is at least one loss");
    all.fold(first, |sum, loss| sum + loss)
}

fn sum_gradients(model: &ClipModel, a: GradientsParams, b: GradientsParams) -> GradientsParams {
    let mut both = GradientsAccumulator::new();
    both.accumulate(model, a);
    both.accumulate(model, b);
    both.grads()
}

/// Images of several losses for one pass through the image tower.
#[derive(Default)]
struct ImagePass {
    pixels: Vec<Tensor<4>>,
    images: usize,
}

impl ImagePass {
    /// Adds images. Returns the rows of their features.
    fn add(&mut self, pixels: Tensor<4>) -> std::ops::Range<usize> {
        let start = self.images;
        self.images += pixels.dims()[0];
        self.pixels.push(pixels);
        start..self.images
    }

    fn encode(
        mut self,
        student: &mut Student,
        work: &StepContext<'_>,
    ) -> (PassFeatures, Option<GatheredFeatures>) {
        if !work.optimizations.one_pass && work.devices.len() < 2 {
            let parts = self.pixels.into_iter();
            let parts = parts.map(|pixels| student.encode_image(pixels, work).0);
            return (
                PassFeatures(normalize(Tensor::cat(parts.collect(), 0))),
                None,
            );
        }
        let pixels = if self.pixels.len() == 1 {
            self.pixels.remove(0)
        } else {
            Tensor::cat(self.pixels, 0)
        };
        let (features, gathered) = student.encode_image(pixels, work);
        (PassFeatures(normalize(features)), gathered)
    }
}

/// Normalised features of a pass `[images, width]`.
struct PassFeatures(Tensor<2>);

impl PassFeatures {
    fn at(&self, range: &std::ops::Range<usize>) -> Tensor<2> {
        let [_, e] = self.0.dims();
        self.0.clone().slice([range.clone(), 0..e])
    }
}

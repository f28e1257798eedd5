//! Training on one task.

use std::collections::BTreeMap;

use burn::{
    optim::{AdamWConfig, GradientsParams, ModuleOptimizer, Optimizer, SgdConfig},
    tensor::{Device, Tensor},
};
use clip_kernels::FusedAdamW;
use clip_model::ClipModel;
use gnsp_optimizer::Protection;

use super::{
    Optimizations,
    step::{StepImages, StepLoss, TaskLosses},
    student::Student,
};
use mtil_data::{data::BatchOrder, seeds, suite::Suite};
use mtil_eval::{
    batch::{BatchError, Images, Prefetcher},
    eval::encode_texts_while,
};
use mtil_methods::{
    error::RunError,
    mechanism::{
        auxiliary_loss::{AuxiliaryLoss, prompt_texts, tokenize_prompts},
        context::TaskContext,
        training_images::{CaptionDraws, TrainingImages},
    },
    method::{Method, OptimizerKind},
};

/// Training on one task: its losses, images and batch order.
pub(super) struct TaskTraining<'a> {
    losses: TaskLosses,
    suite: &'a Suite,
    images: &'a Images,
    /// Batch order; taken by the prefetcher at the first training step.
    order: Option<BatchOrder>,
    stream: Option<Prefetcher>,
    items: TrainingImages,
    steps_per_epoch: u64,
    /// Training steps that a full epoch certainly lies in, wherever they begin.
    within_epochs: u64,
    /// Successive training steps without a readable image.
    without_images: u64,
}

/// Pixels `[images, 3, side, side]` and image indices of a batch.
type TaskBatch = (Option<Tensor<4>>, Vec<usize>);

/// Returns the numbers of protected and of all input directions of each projected parameter.
pub(super) fn protected_ranks(protection: &Protection) -> BTreeMap<String, [usize; 2]> {
    let ranks = protection.iter().map(|(path, p)| {
        let space = &p.null_space;
        (path.to_owned(), [space.rank(), space.dimensions()])
    });
    ranks.collect()
}

/// Creates the optimizer of the method. With `fused`, AdamW is that of `clip-kernels`, in one pass
/// over each tensor; otherwise Burn's.
pub(super) fn build_optimizer(
    method: &Method,
    protection: Option<&Protection>,
    fused: bool,
) -> ModuleOptimizer {
    let settings = &method.adamw;
    match (method.optimizer, fused) {
        (OptimizerKind::Sgd, _) => with_protection(SgdConfig::new().build(), protection),
        (OptimizerKind::AdamW, true) => {
            with_protection(FusedAdamW::new(settings.fused()), protection)
        }
        (OptimizerKind::AdamW, false) => {
            let adamw = AdamWConfig::new()
                .with_beta_1(settings.beta_1)
                .with_beta_2(settings.beta_2)
                .with_epsilon(settings.epsilon)
                .with_weight_decay(settings.weight_decay);
            with_protection(adamw.build(), protection)
        }
    }
}

fn with_protection<O: Optimizer + Clone>(
    optimizer: O,
    protection: Option<&Protection>,
) -> ModuleOptimizer {
    let plain = ModuleOptimizer::from(optimizer.clone());
    match protection {
        Some(protection) => protection.wrap_with(plain, optimizer),
        None => plain,
    }
}

impl<'a> TaskTraining<'a> {
    /// Prepares a task. `student` is the model at its start, without autodiff.
    pub fn new(
        method: &Method,
        task: &TaskContext<'a>,
        devices: Vec<Device>,
        auxiliary: Vec<Box<dyn AuxiliaryLoss>>,
        student: &ClipModel,
    ) -> Result<Self, RunError> {
        let (run, index, text_trains) = (task.run, task.index, task.frozen.is_none());
        let (checkpoint, suite, seed, images) = (run.checkpoint, run.suite, run.seed, run.images);
        let caption_seed = seeds::derive(seed, &[seeds::CAPTIONS, index as u64]);
        let captions = CaptionDraws::new(checkpoint, caption_seed);
        let items = if method.joint {
            TrainingImages::all(suite, captions)
        } else {
            TrainingImages::of_task(suite, index, captions)
        };
        let others = auxiliary.iter().flat_map(|loss| loss.tasks());
        let mut tasks: Vec<usize> = items.tasks_of_classes().into_iter().chain(others).collect();
        tasks.sort_unstable();
        tasks.dedup();
        let mut tokens = BTreeMap::new();
        let mut class_features = BTreeMap::new();
        for task in tasks {
            tokens.insert(task, tokenize_prompts(checkpoint, suite, task)?);
            if !text_trains {
                let (proceed, texts) = (|| images.check_stop(), prompt_texts(suite, task));
                let features = encode_texts_while(&proceed, checkpoint, student, None, &texts)?;
                class_features.insert(task, features);
            }
        }
        // The published loss is a mean over the classes of all tasks so far, of which those of
        // earlier tasks have no images.
        let classes = suite.tasks[..=index].iter().map(|t| t.class_count());
        let own = suite.tasks[index].class_count() as f64;
        let text_weight = method.classify_texts * own / classes.sum::<usize>() as f64;
        let order_seed = seeds::derive(seed, &[seeds::TRAIN_ORDER, index as u64]);
        let order = BatchOrder::new(items.len(), method.batch, order_seed)?;
        Ok(Self {
            suite,
            images,
            steps_per_epoch: order.steps_per_epoch(),
            within_epochs: 2 * order.steps_per_epoch() - 1,
            without_images: 0,
            order: Some(order),
            stream: None,
            items,
            losses: TaskLosses {
                method: method.clone(),
                index,
                seed,
                devices,
                auxiliary,
                prompts: tokens,
                class_features: (!text_trains).then_some(class_features),
                text_weight,
                optimizations: Optimizations::default(),
            },
        })
    }

    /// Returns the task's images of training step `step`; no pixels if none can be read.
    fn next_batch(
        &mut self,
        step: usize,
        steps: usize,
        device: &Device,
    ) -> Result<TaskBatch, RunError> {
        if let Some(order) = self.order.take() {
            let seed = seeds::derive(
                self.losses.seed,
                &[seeds::TRAIN_CROP, self.losses.index as u64],
            );
            let steps = step as u64..steps as u64;
            let source = self.items.source();
            self.stream = Some(self.images.prefetch_train(source, order, steps, seed)?);
        }
        let batch = self.stream.as_mut().and_then(Iterator::next).transpose()?;
        match batch {
            Some(batch) => Ok((self.images.tensor(&batch.images, device)?, batch.indices)),
            None => Ok((None, Vec::new())),
        }
    }

    /// Returns the images of training step `step` of `steps` on the autodiff device; none if no
    /// image of the task's batch can be read. Steps are in order, starting at any one.
    pub fn next_images(
        &mut self,
        step: usize,
        steps: usize,
        device: &Device,
    ) -> Result<Option<StepImages>, RunError> {
        let (pixels, indices) = self.next_batch(step, steps, device)?;
        // The streams of the auxiliary losses advance in every step.
        let auxiliary = self.losses.auxiliary.iter_mut();
        let auxiliary = auxiliary.map(|loss| loss.next_batch(step, steps, self.images, device));
        let auxiliary = auxiliary.collect::<Result<_, _>>()?;
        let Some(pixels) = pixels else {
            self.without_images += 1;
            if self.without_images >= self.within_epochs {
                let name = &self.suite.tasks[self.losses.index].name;
                let what = format!("the training images of task `{name}`");
                return Err(BatchError::NothingReadable(what).into());
            }
            return Ok(None);
        };
        self.without_images = 0;
        Ok(Some(StepImages {
            pixels,
            // Each epoch draws one caption of each image.
            targets: self
                .items
                .targets(&indices, step as u64 / self.steps_per_epoch)?,
            auxiliary,
        }))
    }

    /// Computes the losses of training step `step` on `images`, and the gradients of the trainable
    /// parameters; none if a loss is not finite.
    pub fn gradients(
        &self,
        student: &mut Student,
        images: &StepImages,
        step: usize,
    ) -> (StepLoss, Option<GradientsParams>) {
        self.losses.gradients(student, images, step)
    }
}

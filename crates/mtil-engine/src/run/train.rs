//! Training on one task.

use std::collections::BTreeMap;

use burn::{
    optim::{AdamWConfig, ModuleOptimizer, Optimizer, SgdConfig},
    tensor::{Device, Tensor},
};
use clip_kernels::{AdamWSettings, FusedAdamW};
use clip_model::ClipModel;
use gnsp_optimizer::Protection;

use super::{
    Optimizations,
    step::{StepLoss, TaskLosses, UpdateImages},
    student::Student,
};
use crate::{
    batch::{Ahead, BatchError, Images},
    error::RunError,
    eval::encode_texts,
    mechanism::{
        joined_images::Items,
        setting::TaskSetting,
        task_part::{TaskPart, prompt_texts, prompts},
    },
    method::{Method, OptimizerKind},
};
use mtil_data::{data::BatchOrder, seeds, suite::Suite};

/// Everything that stays the same over the updates of one task.
pub(super) struct TaskTraining<'a> {
    losses: TaskLosses,
    suite: &'a Suite,
    images: &'a Images,
    /// Until the first update, when it goes to the loader.
    order: Option<BatchOrder>,
    stream: Option<Ahead>,
    items: Items,
}

/// Pixels, and which images they are of.
type Own = (Option<Tensor<4>>, Vec<usize>);

/// The protected and all input directions of each projected parameter.
pub(super) fn ranks(protection: &Protection) -> BTreeMap<String, [usize; 2]> {
    let ranks = protection.iter().map(|(path, p)| {
        let space = &p.null_space;
        (path.to_owned(), [space.rank(), space.dimensions()])
    });
    ranks.collect()
}

/// A fresh optimizer of the method; the host's AdamW in one pass over each tensor, or Burn's.
pub(super) fn projected(
    method: &Method,
    protection: Option<&Protection>,
    fused: bool,
) -> ModuleOptimizer {
    let settings = &method.adamw;
    match (method.optimizer, fused) {
        (OptimizerKind::Sgd, _) => wrapped(SgdConfig::new().build(), protection),
        (OptimizerKind::AdamW, true) => {
            let adamw = FusedAdamW::new(AdamWSettings {
                beta_1: settings.beta_1,
                beta_2: settings.beta_2,
                epsilon: settings.epsilon,
                weight_decay: settings.weight_decay,
            });
            wrapped(adamw, protection)
        }
        (OptimizerKind::AdamW, false) => {
            let adamw = AdamWConfig::new()
                .with_beta_1(settings.beta_1)
                .with_beta_2(settings.beta_2)
                .with_epsilon(settings.epsilon)
                .with_weight_decay(settings.weight_decay);
            wrapped(adamw.build(), protection)
        }
    }
}

fn wrapped<O: Optimizer + Clone>(optimizer: O, protection: Option<&Protection>) -> ModuleOptimizer {
    let plain = ModuleOptimizer::from(optimizer.clone());
    match protection {
        Some(protection) => protection.wrap(plain, optimizer),
        None => plain,
    }
}

impl<'a> TaskTraining<'a> {
    /// `student` is the model at the start of the task, on the plain device.
    pub fn new(
        method: &Method,
        task: &TaskSetting<'a>,
        devices: Vec<Device>,
        parts: Vec<Box<dyn TaskPart>>,
        student: &ClipModel,
    ) -> Result<Self, RunError> {
        let (run, index, text_trains) = (task.run, task.index, task.frozen.is_none());
        let (checkpoint, suite, seed, images) = (run.checkpoint, run.suite, run.seed, run.images);
        let items = if method.joint {
            Items::all(suite)
        } else {
            Items::of_task(suite, index)
        };
        let others = parts.iter().flat_map(|part| part.tasks());
        let mut tasks: Vec<usize> = items.tasks().into_iter().chain(others).collect();
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
            suite,
            images,
            order: Some(BatchOrder::new(
                items.len(),
                method.batch,
                seeds::derive(seed, &[seeds::TRAIN_ORDER, index as u64]),
            )?),
            stream: None,
            items,
            losses: TaskLosses {
                method: method.clone(),
                index,
                seed,
                devices,
                parts,
                prompts: tokens,
                class_features: (!text_trains).then_some(class_features),
                optimizations: Optimizations::default(),
            },
        })
    }

    /// The training images of update `step`: which they are, and their pixels; none when none can
    /// be read.
    fn own(&mut self, step: usize, steps: usize, device: &Device) -> Result<Own, RunError> {
        if let Some(order) = self.order.take() {
            let seed = seeds::derive(
                self.losses.seed,
                &[seeds::TRAIN_CROP, self.losses.index as u64],
            );
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

    /// One update of `student` (on the autodiff device), number `step` of `steps`. Updates are made
    /// in their order, from any one on. Where a loss is not finite the caller stops, and the
    /// weights are left as they are.
    pub fn step(
        &mut self,
        mut student: Student,
        optimizer: &mut ModuleOptimizer,
        step: usize,
        steps: usize,
        device: &Device,
    ) -> Result<(Student, StepLoss), RunError> {
        let (pixels, kept) = self.own(step, steps, device)?;
        let name = &self.suite.tasks[self.losses.index].name;
        let Some(pixels) = pixels else {
            let what = format!("the images of one batch of task `{name}`");
            return Err(BatchError::NothingReadable(what).into());
        };
        let parts = self.losses.parts.iter_mut();
        let drawn = parts.map(|part| part.draw(step, steps, self.images, device));
        let batch = UpdateImages {
            pixels,
            labels: self.items.labels(&kept),
            drawn: drawn.collect::<Result<_, _>>()?,
        };
        let (loss, gradients) = self.losses.gradients(&mut student, &batch, step);
        let lr = self.losses.method.lr_at(self.losses.index, name, step);
        Ok(match gradients {
            Some(gradients) => (student.updated(optimizer, lr, gradients), loss),
            None => (student, loss),
        })
    }
}

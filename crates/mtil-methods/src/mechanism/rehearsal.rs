//! Rehearsal (experience replay): the losses of earlier tasks on stored images of theirs.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use clip_model::ClipModel;
use serde::{Deserialize, Serialize};

use super::{
    auxiliary_loss::{AuxiliaryLoss, Loss, LossContext},
    context::{
        MethodOutline, Phase, PhaseProgress, RunContext, TaskContext, at_least_one, in_range,
    },
    hooks::Mechanism,
    rehearsal_images::RehearsalState,
    rehearsal_memory::{
        Quota, REFERENCE_SCAN, RehearsalMemory, balanced, first, herding, herding_reference, random,
    },
    state::{MechanismState, RunState},
    training_images::{CaptionDraws, Target, TrainingImages, tasks_of_classes},
};
use crate::error::RunError;
use mtil_data::{data::BatchOrder, seeds, suite::TaskKind};
use mtil_eval::{
    batch::{Images, Prefetcher},
    eval::{IMAGE_BATCH, encode_images_with},
};

/// Rehearsal on stored images of earlier tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsal {
    /// Budget of the memory in images.
    pub size: usize,
    /// Quota of a new task.
    #[serde(default = "fixed")]
    pub quota: Quota,
    /// Selection of the images of a task.
    pub choice: RehearsalSelection,
    /// Weight of the loss of rehearsal images, each among the classes of its own task, or among the
    /// rehearsal pairs of its own task in the batch. With 0 there is no such loss, and the images
    /// serve a distillation only.
    #[serde(default, alias = "replay")] // The name in earlier run directories.
    pub weight: f64,
    /// Rehearsal images per training step.
    #[serde(default = "default_batch")]
    pub batch: usize,
    /// Reshuffles the images to classify in each epoch. For a distillation the order is always the
    /// same (ZSCL `mtil/src/models/icarl.py`).
    #[serde(default = "yes")]
    pub shuffle: bool,
}

fn yes() -> bool {
    true
}

fn fixed() -> Quota {
    Quota::Fixed
}

fn default_batch() -> usize {
    64
}

/// Selection of the rehearsal images of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RehearsalSelection {
    /// Herding: images whose mean feature approximates the mean of all (iCaRL, Rebuffi et al.
    /// 2017). For the first task the first images, as in the reference implementation.
    Herding,
    /// Random images.
    Random,
    /// Random images, the same number of each class; random ones of image-caption pairs.
    Balanced,
    /// The first images of the training set.
    First,
}

impl Mechanism for Rehearsal {
    fn key(&self) -> &'static str {
        "rehearsal"
    }

    fn check(&self, method: &MethodOutline) -> Result<(), String> {
        at_least_one("rehearsal.size", self.size)?;
        at_least_one("rehearsal.batch", self.batch)?;
        in_range("rehearsal.weight", self.weight, 0.0, f64::MAX)?;
        if self.weight > 0.0 || method.distils_rehearsal_images {
            return Ok(());
        }
        Err(concat!(
            "`rehearsal` keeps images that nothing uses: set `rehearsal.weight`, ",
            "or `distill.images = \"memory\"`"
        )
        .to_owned())
    }

    fn load(
        &self,
        folder: &Path,
        _: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        let loaded = RehearsalState::load(folder)?;
        Ok(loaded.map(|state| Box::new(state) as Box<dyn MechanismState>))
    }

    fn auxiliary_loss(
        &self,
        task: &TaskContext<'_>,
        state: &RunState,
    ) -> Result<Option<Box<dyn AuxiliaryLoss>>, RunError> {
        let memory = state.get::<RehearsalState>().map(RehearsalState::memory);
        let Some(memory) = memory.filter(|_| task.index > 0 && self.weight > 0.0) else {
            return Ok(None);
        };
        let run = task.run;
        let seed = seeds::derive(run.seed, &[seeds::REHEARSAL_CAPTIONS, task.index as u64]);
        let captions = CaptionDraws::new(run.checkpoint, seed);
        let items = TrainingImages::subset(run.suite, memory.items(), captions);
        let loss = RehearsalLoss::new(items, self, run.seed, task.index)?;
        Ok(Some(Box::new(loss)))
    }

    fn finish_task(
        &self,
        trained: &ClipModel,
        task: &TaskContext<'_>,
        state: &mut RunState,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<(), RunError> {
        let before = state.get::<RehearsalState>();
        let memory = match before {
            Some(before) => before.memory().clone(),
            None => RehearsalMemory::new(self.size, self.quota)?,
        };
        let memory = add_task_images(memory, self.choice, task, trained, progress)?;
        let images = RehearsalState::new(memory, task.run.suite, before)?;
        state.set(images);
        Ok(())
    }
}

/// Adds images of task `index` to `memory`. Herding uses features of the model that was just
/// trained, of images preprocessed as for evaluation. For the first task it selects the first
/// images (ZSCL `mtil/src/dynamic_dataset.py`, `mtil/src/models/icarl.py`).
fn add_task_images(
    mut memory: RehearsalMemory,
    choice: RehearsalSelection,
    of: &TaskContext<'_>,
    trained: &ClipModel,
    progress: &mut PhaseProgress<'_>,
) -> Result<RehearsalMemory, RunError> {
    let RunContext { images, seed, .. } = of.run;
    let (index, task) = (of.index, &of.run.suite.tasks[of.index]);
    let (all, capacity) = (task.training_images().len(), memory.capacity());
    let seed = seeds::derive(seed, &[seeds::REHEARSAL_SELECTION, index as u64]);
    let chosen = match choice {
        RehearsalSelection::First => first(all, capacity),
        RehearsalSelection::Random => random(all, capacity, seed),
        RehearsalSelection::Balanced => match &task.kind {
            TaskKind::Classification(classes) => balanced(&classes.train.labels, capacity, seed),
            TaskKind::Captions(_) => random(all, capacity, seed),
        },
        RehearsalSelection::Herding if index == 0 => first(all, capacity),
        RehearsalSelection::Herding => {
            let scanned: Vec<usize> = (0..all.min(REFERENCE_SCAN)).collect();
            let source = task.training_images();
            let (mut done, batches) = (0, scanned.len().div_ceil(IMAGE_BATCH));
            let encoded = &mut || {
                done += 1;
                progress(Phase::Rehearsal, done, batches);
            };
            let set = || format!("the training images of task `{}`", task.name);
            let features = encode_images_with(encoded, trained, None, source, &scanned, images)
                .map_err(|e| e.of_set(set))?;
            let (rows, width) = (features.indices.len(), features.width);
            let picks = match memory.quota() {
                Quota::Reference => herding_reference(&features.rows, rows, width, capacity)?,
                Quota::Fixed => herding(&features.rows, rows, width, capacity)?,
            };
            // Unreadable images have no row.
            picks.into_iter().map(|row| features.indices[row]).collect()
        }
    };
    memory.add_task(index, all, chosen)?;
    Ok(memory)
}

/// Loss of rehearsal images. Each epoch over the memory draws one caption of each image of
/// image-caption pairs.
struct RehearsalLoss {
    items: TrainingImages,
    weight: f64,
    /// Target of each current image.
    targets: Vec<Target>,
    steps_per_epoch: u64,
    /// Batch order; taken by the prefetcher at the first training step.
    order: Option<BatchOrder>,
    stream: Option<Prefetcher>,
    seed: u64,
}

impl RehearsalLoss {
    /// Prepares the loss of a task. Images are preprocessed as for training.
    fn new(
        items: TrainingImages,
        settings: &Rehearsal,
        seed: u64,
        index: usize,
    ) -> Result<Self, RunError> {
        let (task, batch, weight) = (index as u64, settings.batch, settings.weight);
        let order_seed = seeds::derive(seed, &[seeds::REHEARSAL_ORDER, task]);
        let order = match settings.shuffle {
            true => BatchOrder::new(items.len(), batch, order_seed)?,
            false => BatchOrder::sequential(items.len(), batch)?,
        };
        Ok(Self {
            steps_per_epoch: order.steps_per_epoch(),
            order: Some(order),
            stream: None,
            seed: seeds::derive(seed, &[seeds::REHEARSAL_CROP, task]),
            items,
            weight,
            targets: Vec::new(),
        })
    }
}

impl AuxiliaryLoss for RehearsalLoss {
    fn next_batch(
        &mut self,
        step: usize,
        steps: usize,
        images: &Images,
        device: &Device,
    ) -> Result<Option<Tensor<4>>, RunError> {
        if let Some(order) = self.order.take() {
            let (source, steps) = (self.items.source(), step as u64..steps as u64);
            self.stream = Some(images.prefetch_train(source, order, steps, self.seed)?);
        }
        self.targets.clear();
        let Some(batch) = self.stream.as_mut().and_then(Iterator::next) else {
            return Ok(None);
        };
        let batch = batch?;
        let epoch = step as u64 / self.steps_per_epoch;
        self.targets = self.items.targets(&batch.indices, epoch)?;
        Ok(images.tensor(&batch.images, device)?)
    }

    fn batch_tasks(&self) -> Vec<usize> {
        tasks_of_classes(&self.targets).collect()
    }

    fn tasks(&self) -> Vec<usize> {
        self.items.tasks_of_classes()
    }

    fn losses(&self, features: Tensor<2>, towers: &mut LossContext<'_>) -> Vec<Loss> {
        let loss = towers.task_loss(features, &self.targets);
        vec![("rehearsal", loss.mul_scalar(self.weight))]
    }
}

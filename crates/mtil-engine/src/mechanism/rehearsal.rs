//! Rehearsal (experience replay): classification of stored images of earlier tasks.

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
    training_images::TrainingImages,
};
use crate::{
    batch::{Images, Prefetcher},
    error::RunError,
    eval::{IMAGE_BATCH, encode_images_with},
};
use mtil_data::{data::BatchOrder, seeds};

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
    /// Weight of the classification loss of rehearsal images, each among the classes of its own
    /// task. With 0 there is no such loss, and the images serve a distillation only.
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
    /// Random images, the same number of each class.
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
        let items = TrainingImages::subset(task.run.suite, memory.items());
        let loss = RehearsalLoss::new(items, self, task.run.seed, task.index)?;
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
    let (all, capacity) = (task.train.labels.len(), memory.capacity());
    let seed = seeds::derive(seed, &[seeds::REHEARSAL_SELECTION, index as u64]);
    let chosen = match choice {
        RehearsalSelection::First => first(all, capacity),
        RehearsalSelection::Random => random(all, capacity, seed),
        RehearsalSelection::Balanced => balanced(&task.train.labels, capacity, seed),
        RehearsalSelection::Herding if index == 0 => first(all, capacity),
        RehearsalSelection::Herding => {
            let scanned: Vec<usize> = (0..all.min(REFERENCE_SCAN)).collect();
            let source = &task.train.images;
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

/// Classification loss of rehearsal images.
struct RehearsalLoss {
    items: TrainingImages,
    weight: f64,
    /// Task and class of each current image.
    labels: Vec<(usize, usize)>,
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
        Ok(Self {
            order: Some(if settings.shuffle {
                BatchOrder::new(items.len(), batch, order_seed)?
            } else {
                BatchOrder::sequential(items.len(), batch)?
            }),
            stream: None,
            seed: seeds::derive(seed, &[seeds::REHEARSAL_CROP, task]),
            items,
            weight,
            labels: Vec::new(),
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
        self.labels.clear();
        let Some(batch) = self.stream.as_mut().and_then(Iterator::next) else {
            return Ok(None);
        };
        let batch = batch?;
        self.labels = self.items.labels(&batch.indices);
        Ok(images.tensor(&batch.images, device)?)
    }

    fn batch_tasks(&self) -> Vec<usize> {
        self.labels.iter().map(|(task, _)| *task).collect()
    }

    fn tasks(&self) -> Vec<usize> {
        self.items.tasks()
    }

    fn losses(&self, features: Tensor<2>, towers: &mut LossContext<'_>) -> Vec<Loss> {
        let loss = towers.classify(features, &self.labels);
        vec![("rehearsal", loss.mul_scalar(self.weight))]
    }
}

//! Null-space projection of later updates, by what earlier tasks' inputs span.

use std::{path::Path, sync::atomic::Ordering};

use clip_model::{Clip, ClipModel};
use gnsp_optimizer::{
    BatchNorm, History, Memory, MemoryError, Policy, Protection, RankRule, Recorder, Site, Solver,
    Strength, TaskNorm,
};
use serde::{Deserialize, Serialize};

use super::{
    hooks::Mechanism,
    setting::{Outline, Setting, TaskSetting, Watch, Work, some},
    state::{Carried, State},
};
use crate::{error::RunError, recording::InputRecorder};
use mtil_data::{data::BatchOrder, seeds};

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

/// The mechanism: settings, and which parameters train on later tasks.
pub(crate) struct Projecting {
    pub settings: Projection,
    pub trainable_later: Vec<String>,
}

const FILE: &str = "memory.safetensors";

impl Carried for Memory {
    fn copy(&self) -> Option<Box<dyn Carried>> {
        Some(Box::new(self.clone()))
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        Ok(Memory::save(self, folder.join(FILE))?)
    }

    fn bytes(&self, _: &Clip) -> u64 {
        Memory::bytes(self) as u64
    }
}

impl Mechanism for Projecting {
    fn key(&self) -> &'static str {
        "projection"
    }

    fn check(&self, _: &Outline) -> Result<(), String> {
        some("projection.gram_batch", self.settings.gram_batch)?;
        let policy = self.settings.policy(0);
        policy.check().map_err(|e| format!("`projection`: {e}"))
    }

    fn fresh(&self, _: &Setting<'_>) -> Result<Option<Box<dyn Carried>>, RunError> {
        Ok(Some(Box::new(Memory::new())))
    }

    fn load(&self, folder: &Path, _: &Setting<'_>) -> Result<Option<Box<dyn Carried>>, RunError> {
        Ok(Some(Box::new(Memory::load(folder.join(FILE))?)))
    }

    fn protection(
        &self,
        index: usize,
        model: &ClipModel,
        state: &State,
    ) -> Result<Option<Protection>, RunError> {
        let memory = state.get::<Memory>().filter(|m| index > 0 && !m.is_empty());
        let protection = memory.map(|m| m.protection(model, &self.settings.policy(index)));
        Ok(protection.transpose()?)
    }

    fn keep(
        &self,
        trained: &ClipModel,
        task: &TaskSetting<'_>,
        state: &mut State,
        watch: &mut Watch<'_>,
    ) -> Result<bool, RunError> {
        if task.last {
            return Ok(true);
        }
        let mut memory = state.get::<Memory>().cloned().unwrap_or_default();
        if !remember(&mut memory, trained, self, task, watch)? {
            return Ok(false);
        }
        state.set(memory);
        Ok(true)
    }
}

/// The parameter whose history is renormalised in the reference.
const PROJ: &str = "visual.proj";

/// Adds the activations of `model` (on the plain device) on the training images of a task to
/// `memory` (GNSP `src/models/get_data_matrix.py:86-116`). Returns false when stopped half-way,
/// with the memory as it was.
fn remember(
    memory: &mut Memory,
    model: &ClipModel,
    projecting: &Projecting,
    of: &TaskSetting<'_>,
    watch: &mut Watch<'_>,
) -> Result<bool, RunError> {
    let projection = &projecting.settings;
    let Setting { images, seed, .. } = of.run;
    let (task, index) = (&of.run.suite.tasks[of.index], of.index);
    let device = model.device();
    let mut recorder = Recorder::new(&projection.policy(index));
    if projection.renormalize_proj && projection.history == History::Sum {
        recorder = recorder.with_history(PROJ, History::Renormalize);
    }
    let mut observer = InputRecorder::new(recorder)
        .with_all_tokens(projection.gram_all_tokens)
        .only(&projecting.trainable_later);
    let unusable = |source: MemoryError| RunError::Gram {
        task: task.name.clone(),
        source,
    };
    let order = BatchOrder::new(
        task.train.labels.len(),
        projection.gram_batch,
        seeds::derive(seed, &[seeds::GRAM_ORDER, index as u64]),
    )?;
    let batches = projection
        .gram_batches
        .unwrap_or(usize::MAX)
        .min(order.steps_per_epoch() as usize);
    let crop_seed = seeds::derive(seed, &[seeds::GRAM_CROP, index as u64]);
    let (source, all) = (task.train.images.clone(), 0..batches as u64);
    let stream = if projection.gram_train_transform {
        images.train_ahead(source, order, all, crop_seed)?
    } else {
        images.eval_steps_ahead(source, order, all)?
    };
    for (batch, prepared) in stream.enumerate() {
        if watch.stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        (watch.progress)(Work::Gram, batch, batches);
        let pixels = images.tensor(&prepared?.images, &device)?;
        if let Some(pixels) = pixels {
            model.encode_image_observed(pixels, &mut observer);
        }
        observer.check().map_err(|error| unusable(error.into()))?;
    }
    (watch.progress)(Work::Gram, batches, batches);
    let recorder = observer.finish().map_err(|error| unusable(error.into()))?;
    memory.absorb(recorder).map_err(unusable)?;
    Ok(true)
}

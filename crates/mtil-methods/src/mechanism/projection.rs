//! Null-space projection of training steps after the first task, from Gram matrices of the layer
//! inputs of earlier tasks.

use std::path::Path;

use clip_model::{Clip, ClipModel};
use gnsp_optimizer::{
    GnspError, GramNormalization, History, Memory, Policy, Protection, RankRule, Site, Solver,
    Strength,
};
use serde::{Deserialize, Serialize};

use super::{
    context::{MethodOutline, Phase, PhaseProgress, RunContext, TaskContext, at_least_one},
    hooks::Mechanism,
    state::{MechanismState, RunState},
};
use crate::{error::RunError, recording::InputRecorder};
use mtil_data::{data::BatchOrder, seeds};
use mtil_eval::metrics::Kept;

/// Null-space projection of the training steps after the first task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Projection {
    /// Site of the projection: the gradient (as published) or the optimizer's update.
    pub site: Site,
    /// Rule for the number of protected directions.
    pub rank: RankRule,
    /// Increment per task of the share in `rank`: 0.003 in GPM's code (`main_cifar100.py:190-193`).
    /// The share is at most 0.999.
    #[serde(skip_serializing_if = "is_zero")]
    pub rank_step: f64,
    /// Strength of the protection: `"hard"`, or softer in directions of weaker spectrum.
    pub strength: Strength,
    /// Combination of the tasks' Gram matrices.
    pub history: History,
    /// Solver of the null space.
    pub solver: Solver,
    /// Images per batch of the Gram accumulation.
    pub gram_batch: usize,
    /// Batches of the Gram accumulation; the whole training set when absent.
    pub gram_batches: Option<usize>,
    /// Divides the Gram matrix of each batch by its Frobenius norm
    /// (GNSP `src/models/get_data_matrix.py:86-92`).
    pub gram_batch_norm: bool,
    /// Divides the Gram matrix of a task by its Frobenius norm (GNSP
    /// `src/models/get_data_matrix.py:95-97`).
    pub gram_task_norm: bool,
    /// Divides the projector by its Frobenius norm, as Adam-NSCL's code does
    /// (ShipengWang/Adam-NSCL `optim/adam_svd.py`, `get_transforms`).
    pub normalize: bool,
    /// Preprocesses images of the Gram accumulation as for training (reference implementation), not
    /// as for evaluation.
    pub gram_train_transform: bool,
    /// Accumulates all tokens of the last block (reference implementation), not the class token
    /// only. Only the class token reaches the output.
    pub gram_all_tokens: bool,
    /// Divides the history of `visual.proj` by its norm before adding a task (reference
    /// implementation: GNSP `src/models/get_data_matrix.py:98-108`).
    pub renormalize_proj: bool,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Projection {
    /// Returns the optimizer's policy at task `task`.
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
        Policy::gnsp()
            .with_site(self.site)
            .with_rank(rank)
            .with_strength(self.strength)
            .with_history(self.history)
            .with_normalization(GramNormalization::of(
                self.gram_batch_norm,
                self.gram_task_norm,
            ))
            .with_normalize(self.normalize)
            .with_solver(self.solver)
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

/// The projection mechanism: its settings and the trainable parameters of later tasks.
pub(crate) struct ProjectionMechanism {
    pub settings: Projection,
    pub trainable_later: Vec<String>,
}

const FILE: &str = "memory.safetensors";

impl MechanismState for Memory {
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        Some(Box::new(self.clone()))
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        Ok(Memory::save(self, folder.join(FILE))?)
    }

    fn bytes(&self, _: &Clip) -> u64 {
        Memory::bytes(self) as u64
    }

    fn kept(&self) -> Kept {
        Kept::Statistics
    }
}

impl Mechanism for ProjectionMechanism {
    fn key(&self) -> &'static str {
        "projection"
    }

    fn check(&self, _: &MethodOutline) -> Result<(), String> {
        at_least_one("projection.gram_batch", self.settings.gram_batch)?;
        let policy = self.settings.policy(0);
        policy.check().map_err(|e| format!("`projection`: {e}"))
    }

    fn initial_state(
        &self,
        _: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        Ok(Some(Box::new(Memory::new(self.settings.policy(0)))))
    }

    fn load(
        &self,
        folder: &Path,
        _: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        let mut memory = Memory::load(folder.join(FILE))?;
        memory.set_policy(self.settings.policy(0))?;
        Ok(Some(Box::new(memory)))
    }

    fn protection(
        &self,
        index: usize,
        model: &ClipModel,
        state: &RunState,
    ) -> Result<Option<Protection>, RunError> {
        let memory = state.get::<Memory>().filter(|m| index > 0 && !m.is_empty());
        let Some(memory) = memory else {
            return Ok(None);
        };
        if self.settings.rank_step == 0.0 {
            return Ok(Some(memory.protection(model)?));
        }
        let mut memory = memory.clone();
        memory.set_policy(self.settings.policy(index))?;
        Ok(Some(memory.protection(model)?))
    }

    fn finish_task(
        &self,
        trained: &ClipModel,
        task: &TaskContext<'_>,
        state: &mut RunState,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<(), RunError> {
        let fresh = || Memory::new(self.settings.policy(0));
        let mut memory = state.get::<Memory>().cloned().unwrap_or_else(fresh);
        accumulate_grams(&mut memory, trained, self, task, progress)?;
        state.set(memory);
        Ok(())
    }
}

/// The parameter whose history is renormalised in the reference implementation.
const PROJ: &str = "visual.proj";

/// Accumulates the Gram matrices of the layer inputs of `model` (without autodiff) over the
/// training images of a task, and adds them to `memory` (GNSP
/// `src/models/get_data_matrix.py:86-116`).
fn accumulate_grams(
    memory: &mut Memory,
    model: &ClipModel,
    projecting: &ProjectionMechanism,
    of: &TaskContext<'_>,
    progress: &mut PhaseProgress<'_>,
) -> Result<(), RunError> {
    let projection = &projecting.settings;
    let RunContext { images, seed, .. } = of.run;
    let (task, index) = (&of.run.suite.tasks[of.index], of.index);
    let device = model.device();
    memory.set_policy(projection.policy(index))?;
    let mut recorder = memory.recorder(model);
    if projection.renormalize_proj && projection.history == History::Sum {
        recorder = recorder.with_history(PROJ, History::Renormalize);
    }
    let mut observer = InputRecorder::new(recorder)
        .with_all_tokens(projection.gram_all_tokens)
        .only(&projecting.trainable_later);
    let unusable = |source: GnspError| RunError::Gram {
        task: task.name.clone(),
        source,
    };
    let order = BatchOrder::new(
        task.training_images().len(),
        projection.gram_batch,
        seeds::derive(seed, &[seeds::GRAM_ORDER, index as u64]),
    )?;
    let batches = projection
        .gram_batches
        .unwrap_or(usize::MAX)
        .min(order.steps_per_epoch() as usize);
    let crop_seed = seeds::derive(seed, &[seeds::GRAM_CROP, index as u64]);
    let (source, all) = (task.training_images().clone(), 0..batches as u64);
    let stream = if projection.gram_train_transform {
        images.prefetch_train(source, order, all, crop_seed)?
    } else {
        images.prefetch_eval_steps(source, order, all)?
    };
    for (batch, prepared) in stream.enumerate() {
        // A stop ends the stream with an error.
        let prepared = prepared?;
        progress(Phase::Gram, batch, batches);
        let pixels = images.tensor(&prepared.images, &device)?;
        if let Some(pixels) = pixels {
            model.encode_image_observed(pixels, &mut observer);
        }
        observer.check().map_err(unusable)?;
    }
    progress(Phase::Gram, batches, batches);
    let recorder = observer.finish().map_err(unusable)?;
    memory.absorb(recorder).map_err(unusable)
}

//! The `Mechanism` trait: hooks of a method during a run.

use std::path::Path;

use clip_model::ClipModel;
use gnsp_optimizer::Protection;

use super::{
    auxiliary_loss::AuxiliaryLoss,
    context::{
        EvaluatedModels, FitProgress, MethodOutline, PhaseProgress, RunContext, TaskContext,
    },
    earlier_weights::RequiredWeights,
    manifest,
    state::{MODEL, MechanismState, RunState, state_error},
};
use crate::error::RunError;
use mtil_data::suite::{Suite, Task};
use mtil_eval::eval::{Encoder, Scorer};

/// A mechanism of a method. The engine calls the hooks in the order of the method's list and does
/// not depend on any particular mechanism.
pub trait Mechanism: Send + Sync {
    /// Key of the mechanism in a method file.
    fn key(&self) -> &'static str;

    /// Checks that the settings are in range and fit the rest of the method. The error is a
    /// sentence that names the key.
    fn check(&self, method: &MethodOutline) -> Result<(), String>;

    /// Returns the first task of a suite that the mechanism cannot learn, and why.
    fn unlearnable<'a>(&self, _: &'a Suite) -> Option<(&'a Task, &'static str)> {
        None
    }

    /// Earlier weights that the mechanism needs.
    fn needs(&self) -> RequiredWeights {
        RequiredWeights::default()
    }

    /// Returns whether adapters train in place of the weights. They need `f32`.
    fn trains_adapters(&self) -> bool {
        false
    }

    /// Returns whether several devices can share the images of a training step.
    fn supports_peers(&self) -> bool {
        true
    }

    /// Returns whether the weights of the towers change.
    fn trains_weights(&self) -> bool {
        true
    }

    /// Returns whether a prediction needs the task of the image.
    fn needs_task(&self) -> bool {
        false
    }

    /// Models that a test image and a prompt pass through in an evaluation after `learned` tasks:
    /// of a task that is learned and given, or of another one.
    fn evaluated_models(&self, _learned: usize, _is_known: bool) -> EvaluatedModels {
        EvaluatedModels::default()
    }

    /// Returns whether [`final_weights`](Self::final_weights) may change frozen weights, if only by
    /// rounding.
    fn averages_weights(&self) -> bool {
        false
    }

    /// State of the mechanism before the first task.
    fn initial_state(
        &self,
        _: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        Ok(None)
    }

    /// Loads the state of the mechanism from the folder of a run's state.
    fn load(
        &self,
        _: &Path,
        _: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        Ok(None)
    }

    /// Called at the start of a task.
    fn begin_task(&self, _: &mut RunState) {}

    /// Prepares the training of a task, before its first training step.
    fn prepare_task(
        &self,
        _: &TaskContext<'_>,
        _: &mut RunState,
        _: &mut PhaseProgress<'_>,
    ) -> Result<(), RunError> {
        Ok(())
    }

    /// Null-space projectors of a task's optimizer.
    fn protection(
        &self,
        _: usize,
        _: &ClipModel,
        _: &RunState,
    ) -> Result<Option<Protection>, RunError> {
        Ok(None)
    }

    /// Losses and gradients that the mechanism adds to the training steps of a task.
    fn auxiliary_loss(
        &self,
        _: &TaskContext<'_>,
        _: &RunState,
    ) -> Result<Option<Box<dyn AuxiliaryLoss>>, RunError> {
        Ok(None)
    }

    /// Changes the model in training after the update of step `_step`, from 0, of `_steps`, as a
    /// proximal step does.
    fn after_update(&self, model: ClipModel, _step: usize, _steps: usize) -> ClipModel {
        model
    }

    /// Called after each training step, counted from 0. The closure copies the weights, without
    /// autodiff.
    fn after_step(&self, _: usize, _: &dyn Fn() -> ClipModel, _: &mut RunState) {}

    /// Returns the final weights of a task, given those after its last training step.
    fn final_weights(&self, trained: ClipModel, _: &RunContext<'_>, _: &RunState) -> ClipModel {
        trained
    }

    /// Learns a task in place of the engine's training steps. Returns false if the mechanism does
    /// not do so. A run that is stopped meanwhile begins the task again.
    fn fit(
        &self,
        _: &TaskContext<'_>,
        _: &mut RunState,
        _: &mut dyn FitProgress,
    ) -> Result<bool, RunError> {
        Ok(false)
    }

    /// Takes the final weights of a task into the state, before its evaluation. Returns the weights
    /// that the run goes on with.
    fn take_weights(
        &self,
        trained: ClipModel,
        _: &TaskContext<'_>,
        _: &mut RunState,
        _: &mut PhaseProgress<'_>,
    ) -> Result<ClipModel, RunError> {
        Ok(trained)
    }

    /// Stores the data of a trained task that later tasks need.
    fn finish_task(
        &self,
        _: &ClipModel,
        _: &TaskContext<'_>,
        _: &mut RunState,
        _: &mut PhaseProgress<'_>,
    ) -> Result<(), RunError> {
        Ok(())
    }

    /// Called at the end of a task, to drop state of its training steps.
    fn end_task(&self, _: &mut RunState) {}

    /// Encoder that replaces the trained model in the evaluation after `learned` tasks.
    fn encoder<'a>(
        &'a self,
        _: &'a ClipModel,
        _: &'a RunState,
        _learned: usize,
    ) -> Option<Box<dyn Encoder + 'a>> {
        None
    }

    /// Classifier that replaces the logits.
    fn scorer<'a>(&'a self, _: &'a RunState, _: &'a Suite) -> Option<Box<dyn Scorer + 'a>> {
        None
    }

    /// Writes the files of a checkpoint besides the weights.
    fn save_checkpoint(&self, _: &Path, _: &RunState) -> Result<(), RunError> {
        Ok(())
    }

    /// Notes for the reader of the results.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Returns the first task of image-caption pairs of a suite.
pub(crate) fn first_pairs(suite: &Suite) -> Option<&Task> {
    suite.tasks.iter().find(|task| task.captions().is_some())
}

/// Returns the state of a run before the first task. `model` is the pretrained one, on the autodiff
/// device.
pub fn initial_run_state(
    model: ClipModel,
    mechanisms: &[Box<dyn Mechanism>],
    context: &RunContext<'_>,
) -> Result<RunState, RunError> {
    with_initial_states(RunState::new(model), mechanisms, context)
}

/// Loads the state of one of `runs` from a folder, after a comparison with its manifest.
///
/// # Errors
/// [`RunError::State`] naming the file that is missing, damaged or another one.
pub fn load_run_state(
    folder: &Path,
    runs: &[String],
    mechanisms: &[Box<dyn Mechanism>],
    context: &RunContext<'_>,
) -> Result<RunState, RunError> {
    manifest::verify(folder, runs)?;
    let weights = folder.join(MODEL);
    let state = RunState::load(folder, &weights, context.checkpoint, context.device);
    with_mechanisms(state, folder, mechanisms, context)
}

/// Loads the state that `checkpoint` keeps, with the weights of the checkpoint, as
/// [`load_run_state`].
pub fn load_kept_state(
    checkpoint: &Path,
    kept: &Path,
    runs: &[String],
    mechanisms: &[Box<dyn Mechanism>],
    context: &RunContext<'_>,
) -> Result<RunState, RunError> {
    manifest::verify(kept, runs)?;
    let weights = checkpoint.join(MODEL);
    let state = RunState::load(kept, &weights, context.checkpoint, context.device);
    with_mechanisms(state, kept, mechanisms, context)
}

/// Adds the states of the mechanisms in `folder` to that of the weights.
fn with_mechanisms(
    state: Result<RunState, RunError>,
    folder: &Path,
    mechanisms: &[Box<dyn Mechanism>],
    context: &RunContext<'_>,
) -> Result<RunState, RunError> {
    let damaged = |error| state_error(error, folder);
    let mut state = with_initial_states(state.map_err(damaged)?, mechanisms, context)?;
    for mechanism in mechanisms {
        if let Some(loaded) = mechanism.load(folder, context).map_err(damaged)? {
            state.set_boxed(loaded);
        }
    }
    Ok(state)
}

fn with_initial_states(
    mut state: RunState,
    mechanisms: &[Box<dyn Mechanism>],
    context: &RunContext<'_>,
) -> Result<RunState, RunError> {
    for mechanism in mechanisms {
        if let Some(initial) = mechanism.initial_state(context)? {
            state.set_boxed(initial);
        }
    }
    Ok(state)
}

//! What a mechanism is.

use std::path::Path;

use clip_model::ClipModel;
use gnsp_optimizer::Protection;

use super::{
    setting::{Needs, Outline, Setting, TaskSetting, Watch, Work},
    state::{Carried, State},
    task_part::TaskPart,
};
use crate::{
    error::RunError,
    eval::{Answer, Encoder},
};
use mtil_data::suite::Suite;

/// A mechanism of a method. The engine calls its hooks in the order of the method's list and knows
/// none by name.
pub(crate) trait Mechanism {
    /// Its key in a method file.
    fn key(&self) -> &'static str;

    /// Whether its settings are in range and fit the rest of the method; a sentence that names the
    /// key where they do not.
    fn check(&self, method: &Outline) -> Result<(), String>;

    /// Earlier weights that it needs.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Whether it trains something else than the weights, which one device does in `f32`.
    fn trains_adapters(&self) -> bool {
        false
    }

    /// Whether the weights of the towers change.
    fn trains_weights(&self) -> bool {
        true
    }

    /// Whether an answer needs the task of the image.
    fn needs_task(&self) -> bool {
        false
    }

    /// Whether [`finish`](Self::finish) may change weights that did not train, if only by rounding.
    fn mixes_weights(&self) -> bool {
        false
    }

    /// What it carries before the first task.
    fn fresh(&self, _: &Setting<'_>) -> Result<Option<Box<dyn Carried>>, RunError> {
        Ok(None)
    }

    /// What it carries, from the folder of a state.
    fn load(&self, _: &Path, _: &Setting<'_>) -> Result<Option<Box<dyn Carried>>, RunError> {
        Ok(None)
    }

    /// Called at the start of a task.
    fn begin(&self, _: &mut State) {}

    /// The projectors of a task's optimizer.
    fn protection(
        &self,
        _: usize,
        _: &ClipModel,
        _: &State,
    ) -> Result<Option<Protection>, RunError> {
        Ok(None)
    }

    /// What it adds to the updates of a task.
    fn part(&self, _: &TaskSetting<'_>, _: &State) -> Result<Option<Box<dyn TaskPart>>, RunError> {
        Ok(None)
    }

    /// Called after each update, counted from 0; `weights` makes a copy on the plain device.
    fn after_update(&self, _: usize, _: &dyn Fn() -> ClipModel, _: &mut State) {}

    /// The weights that a task ends with, from those of its last update.
    fn finish(&self, trained: ClipModel, _: &Setting<'_>, _: &State) -> ClipModel {
        trained
    }

    /// Learns a task in place of updates; false where it does not do that.
    fn learn(
        &self,
        _: &TaskSetting<'_>,
        _: &mut State,
        _: &mut dyn FnMut(Work, usize, usize),
    ) -> Result<bool, RunError> {
        Ok(false)
    }

    /// Keeps of a trained task what later ones need. False when stopped, with the state as it was.
    fn keep(
        &self,
        _: &ClipModel,
        _: &TaskSetting<'_>,
        _: &mut State,
        _: &mut Watch<'_>,
    ) -> Result<bool, RunError> {
        Ok(true)
    }

    /// Called when a task is over, to drop what was only for its updates.
    fn end(&self, _: &mut State) {}

    /// What encodes images and texts in place of the trained model, `learned` tasks being learned.
    fn encoder<'a>(
        &'a self,
        _: &'a ClipModel,
        _: &'a State,
        _learned: usize,
    ) -> Option<Box<dyn Encoder + 'a>> {
        None
    }

    /// What answers in place of the logits.
    fn answer<'a>(&'a self, _: &'a State, _: &'a Suite) -> Option<Box<dyn Answer + 'a>> {
        None
    }

    /// Writes what a checkpoint needs besides the weights.
    fn save_checkpoint(&self, _: &Path, _: &State) -> Result<(), RunError> {
        Ok(())
    }

    /// What a reader of the results must know.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The state of a run that has not begun: `model` is the pretrained one, on the autodiff device.
pub(crate) fn fresh_state(
    model: ClipModel,
    mechanisms: &[Box<dyn Mechanism>],
    setting: &Setting<'_>,
) -> Result<State, RunError> {
    with_fresh(State::new(model), mechanisms, setting)
}

/// The state in a folder.
pub(crate) fn load_state(
    folder: &Path,
    mechanisms: &[Box<dyn Mechanism>],
    setting: &Setting<'_>,
) -> Result<State, RunError> {
    let state = State::load(folder, setting.checkpoint, setting.device)?;
    let mut state = with_fresh(state, mechanisms, setting)?;
    for mechanism in mechanisms {
        if let Some(carried) = mechanism.load(folder, setting)? {
            state.set_boxed(carried);
        }
    }
    Ok(state)
}

fn with_fresh(
    mut state: State,
    mechanisms: &[Box<dyn Mechanism>],
    setting: &Setting<'_>,
) -> Result<State, RunError> {
    for mechanism in mechanisms {
        if let Some(carried) = mechanism.fresh(setting)? {
            state.set_boxed(carried);
        }
    }
    Ok(state)
}

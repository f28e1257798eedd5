//! The mechanisms that methods are put together from, a file each: settings, what is checked of
//! them, what they do over a run, what they carry from task to task.
//!
//! | file | mechanism |
//! |---|---|
//! | `projection` | null-space projection of later updates |
//! | `alignment` | contrastive distillation and alignment on reference pairs |
//! | `distillation` | distillation against fixed texts |
//! | `rehearsal`, `exemplars`, `joined_images` | images of earlier tasks: which are kept, and their use |
//! | `anchor` | penalties on the distance of the weights |
//! | `average`, `merge` | averages along a task, interpolation after it |
//! | `adapters` | low-rank adapters |
//! | `mixtures` | mixtures of adapters beside every block |
//! | `regression` | ridge regression in place of training |
//! | `task_part`, `earlier`, `trainable`, `weights`, `module_file` | what several of them use |
//! | `state` | what a run carries from update to update |

pub(crate) mod adapters;
pub(crate) mod alignment;
pub(crate) mod anchor;
pub(crate) mod average;
pub(crate) mod distillation;
pub(crate) mod earlier;
pub mod exemplars;
pub(crate) mod joined_images;
pub(crate) mod merge;
pub(crate) mod mixtures;
pub(crate) mod module_file;
pub(crate) mod projection;
pub(crate) mod regression;
pub(crate) mod rehearsal;
pub(crate) mod state;
pub(crate) mod task_part;
pub(crate) mod trainable;
pub(crate) mod weights;

use std::{path::Path, sync::atomic::AtomicBool};

use burn::tensor::Device;
use clip_model::{Clip, ClipModel};
use gnsp_optimizer::Protection;
use serde::{Deserialize, Serialize};

use crate::{
    batch::Images,
    error::RunError,
    eval::{Answer, Encoder},
};
use mtil_data::suite::Suite;
use state::{Carried, State};
use task_part::TaskPart;

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

/// What a run is made of.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    /// The pretrained model, on the plain device.
    pub checkpoint: &'a Clip,
    pub suite: &'a Suite,
    pub images: &'a Images,
    /// With autodiff.
    pub device: &'a Device,
    pub seed: u64,
}

/// The same at a task.
pub(crate) struct TaskSetting<'a> {
    pub run: Setting<'a>,
    pub index: usize,
    /// Whether no task follows.
    pub last: bool,
    /// The model at the start of the task, where its text tower does not train.
    pub frozen: Option<&'a ClipModel>,
}

/// How long work is watched over.
pub(crate) struct Watch<'a> {
    pub stop: &'a AtomicBool,
    /// Called with parts done, of all.
    pub progress: &'a mut dyn FnMut(Work, usize, usize),
}

/// Work between updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Evaluation, a task a part.
    Evaluation,
    /// Gram accumulation, a batch a part.
    Gram,
    /// Encoding of a task's training images, a batch a part.
    Encoding,
}

/// Earlier weights that a method needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The pretrained ones, after the first task has begun.
    pub pretrained: bool,
    /// Those at the start of a task, until its end.
    pub start: bool,
}

impl Needs {
    pub fn and(self, other: Self) -> Self {
        Self {
            pretrained: self.pretrained || other.pretrained,
            start: self.start || other.start,
        }
    }
}

/// What the checks of a mechanism know of the method it is part of.
pub(crate) struct Outline {
    /// The keys of all its mechanisms.
    pub keys: Vec<&'static str>,
    /// Whether there is a loss on reference pairs.
    pub uses_reference: bool,
    /// Whether each task has a model of its own.
    pub per_task: bool,
    /// Whether a distillation uses kept images.
    pub distils_kept_images: bool,
}

impl Outline {
    /// An error unless `key` is the only mechanism besides `but`.
    pub fn alone(&self, key: &str, but: &[&str]) -> Result<(), String> {
        let other = self
            .keys
            .iter()
            .find(|other| **other != key && **other != alignment::KEY && !but.contains(other));
        match other {
            Some(other) => Err(format!("`{key}` and `{other}` do not go together")),
            None => Ok(()),
        }
    }
}

/// An error unless `value` is from `low` to `high`.
pub(crate) fn within(key: &str, value: f64, low: f64, high: f64) -> Result<(), String> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(format!(
        "`{key}` must be from {low} to {high}, it is {value}"
    ))
}

/// An error unless `value` is at least 1.
pub(crate) fn some(key: &str, value: usize) -> Result<(), String> {
    match value {
        0 => Err(format!("`{key}` must be at least 1")),
        _ => Ok(()),
    }
}

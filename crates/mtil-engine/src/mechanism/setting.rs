//! What mechanisms are given: the run, the task, the rest of the method.

use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use clip_model::{Clip, ClipModel};
use serde::{Deserialize, Serialize};

use crate::batch::Images;
use mtil_data::suite::Suite;

/// The key of the mechanism that has no table of its own in a method file.
pub(crate) const ALIGNMENT: &str = "cd, map, hold_means";

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
            .find(|other| **other != key && **other != ALIGNMENT && !but.contains(other));
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

//! Arguments of a mechanism's hooks: the run, the task, the rest of the method.

use burn::tensor::Device;
use clip_model::{Clip, ClipModel};
use serde::{Deserialize, Serialize};

use super::{auxiliary_loss::LossParts, earlier_weights::Start};
use crate::{error::RunError, method::steps::TaskSteps};
use mtil_data::suite::Suite;
use mtil_eval::batch::Images;

/// The key of the mechanism that has no table of its own in a method file.
pub(crate) const ALIGNMENT: &str = "cd, map, hold_means";

/// Model, data and device of a run.
#[derive(Clone, Copy)]
pub struct RunContext<'a> {
    /// The pretrained model, without autodiff.
    pub checkpoint: &'a Clip,
    /// The tasks.
    pub suite: &'a Suite,
    /// Loader of the images.
    pub images: &'a Images,
    /// The autodiff device.
    pub device: &'a Device,
    /// Seed of all randomness.
    pub seed: u64,
}

/// A run at one of its tasks.
pub struct TaskContext<'a> {
    /// The run.
    pub run: RunContext<'a>,
    /// Index of the task, from 0.
    pub index: usize,
    /// The model at the start of the task, if its text tower is frozen.
    pub frozen: Option<&'a ClipModel>,
    /// Settings of the training steps.
    pub steps: TaskSteps,
}

/// Receiver of the progress of long work between training steps: the phase, the finished and the
/// total number of parts.
pub(crate) type PhaseProgress<'a> = dyn FnMut(Phase, usize, usize) + 'a;

/// Receiver of the progress of a mechanism that learns a task by itself.
pub trait FitProgress {
    /// Reports the progress of long work: the phase, the finished and the total number of parts.
    fn phase(&mut self, phase: Phase, done: usize, of: usize);

    /// Reports the number of values that train.
    fn trainable(&mut self, values: u64);

    /// Reports a training step.
    ///
    /// # Errors
    /// [`RunError::Diverged`] if its loss is not finite, and errors of recording it.
    fn step(&mut self, step: FitStep) -> Result<(), RunError>;
}

/// A training step of a mechanism that learns a task by itself.
#[derive(Debug, Clone)]
pub struct FitStep {
    /// Number of steps so far, with this one.
    pub done: usize,
    /// Number of all steps of the task.
    pub steps: usize,
    /// Learning rate of the step.
    pub lr: f64,
    /// The losses.
    pub parts: LossParts,
    /// Number of images of the batch.
    pub images: usize,
}

/// Phases of a run besides training steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Evaluation, one part per batch of images.
    Evaluation,
    /// Gram accumulation, one part per batch.
    Gram,
    /// Encoding of a task's training images, one part per batch.
    Encoding,
    /// Fisher information of the weights, one part per image.
    Fisher,
    /// Selection of rehearsal images, one part per batch of encoded images.
    Rehearsal,
}

/// Number of models that a test image and a prompt pass through in an evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EvaluatedModels {
    /// Models per image.
    pub images: f64,
    /// Models per prompt.
    pub prompts: f64,
}

impl Default for EvaluatedModels {
    fn default() -> Self {
        Self {
            images: 1.0,
            prompts: 1.0,
        }
    }
}

/// Summary of a method for the checks of its mechanisms.
pub struct MethodOutline {
    /// The keys of all mechanisms.
    pub keys: Vec<&'static str>,
    /// True if there is a loss on reference pairs.
    pub uses_reference: bool,
    /// Initial weights of a task.
    pub start: Start,
    /// True if all tasks are trained at once.
    pub joint: bool,
    /// True if each task has its own model.
    pub per_task: bool,
    /// True if class prompts are classified among the images of a batch.
    pub classifies_texts: bool,
    /// True if AdamW makes the training steps.
    pub trains_by_adamw: bool,
    /// True if a distillation uses rehearsal images.
    pub distils_rehearsal_images: bool,
}

impl MethodOutline {
    /// Returns an error unless `key` is the only mechanism besides those in `but`.
    pub fn exclusive(&self, key: &str, but: &[&str]) -> Result<(), String> {
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

/// Returns an error unless `value` is from `low` to `high`.
pub(crate) fn in_range(key: &str, value: f64, low: f64, high: f64) -> Result<(), String> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(format!(
        "`{key}` must be from {low} to {high}, it is {value}"
    ))
}

/// Returns an error unless `value` is at least 1.
pub(crate) fn at_least_one(key: &str, value: usize) -> Result<(), String> {
    match value {
        0 => Err(format!("`{key}` must be at least 1")),
        _ => Ok(()),
    }
}

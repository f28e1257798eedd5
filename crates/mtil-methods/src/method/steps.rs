//! Settings of training steps: number, batch, learning rate and AdamW on each task.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    optimizer::AdamW,
    schedule::{Schedule, one_cycle_momentum},
};

/// Overrides of a method's settings for one task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskSettings {
    /// Peak learning rate.
    pub lr: Option<f64>,
    /// Training steps.
    pub steps: Option<usize>,
}

/// A method's settings of training steps, for a mechanism that trains by itself.
pub(crate) struct StepSettings {
    pub batch: usize,
    pub smoothing: f64,
    pub adamw: AdamW,
    pub steps: usize,
    pub schedule_steps: Option<usize>,
    pub schedule: Schedule,
    pub warmup: usize,
    pub lr: f64,
    pub lr_later: Option<f64>,
    /// Settings of single tasks, by task name.
    pub task: BTreeMap<String, TaskSettings>,
}

impl StepSettings {
    /// Returns the number of training steps on the task called `name`.
    pub fn steps_of(&self, name: &str) -> usize {
        let own = self.task.get(name).and_then(|t| t.steps);
        own.unwrap_or(self.steps)
    }

    /// Returns the training steps of the learning-rate schedule on the task called `name`.
    pub fn scheduled_steps(&self, name: &str) -> usize {
        let steps = self.steps_of(name);
        self.schedule_steps.map_or(steps, |s| s.min(steps))
    }

    /// Returns the peak learning rate on task `index`, called `name`.
    pub fn peak_lr(&self, index: usize, name: &str) -> f64 {
        let own = self.task.get(name).and_then(|t| t.lr);
        own.unwrap_or(match self.lr_later {
            Some(later) if index > 0 => later,
            _ => self.lr,
        })
    }

    /// Returns the learning rate of training step `step` (from 0) on task `index`, called `name`.
    pub fn lr_at(&self, index: usize, name: &str, step: usize) -> f64 {
        let steps = self.scheduled_steps(name);
        self.peak_lr(index, name) * self.schedule.factor(step, steps, self.warmup)
    }

    /// Returns `beta_1` of AdamW at training step `step` (from 0) on the task called `name`, where
    /// the schedule cycles it.
    pub fn cycled_beta_1(&self, name: &str, step: usize) -> f32 {
        match self.schedule {
            Schedule::Cosine => self.adamw.beta_1,
            Schedule::OneCycle => one_cycle_momentum(step, self.scheduled_steps(name)) as f32,
        }
    }
}

//! Training steps of one task: number, batch, learning rates and AdamW.

use super::{
    optimizer::AdamW,
    schedule::{Schedule, one_cycle_momentum},
};

/// Settings of the training steps of one task.
#[derive(Debug, Clone)]
pub struct TaskSteps {
    /// Number of training steps.
    pub count: usize,
    /// Images per training step.
    pub batch: usize,
    /// Label smoothing.
    pub smoothing: f64,
    /// Hyper-parameters of AdamW.
    pub adamw: AdamW,
    pub(super) peak_lr: f64,
    pub(super) schedule: Schedule,
    /// Training steps of the schedule.
    pub(super) scheduled: usize,
    pub(super) warmup: usize,
}

impl TaskSteps {
    /// Returns the learning rate of training step `step` (from 0).
    pub fn lr_at(&self, step: usize) -> f64 {
        self.peak_lr * self.schedule.factor(step, self.scheduled, self.warmup)
    }

    /// Returns `beta_1` of AdamW at training step `step` (from 0), where the schedule cycles it.
    pub fn cycled_beta_1(&self, step: usize) -> f32 {
        match self.schedule {
            Schedule::Cosine => self.adamw.beta_1,
            Schedule::OneCycle => one_cycle_momentum(step, self.scheduled) as f32,
        }
    }
}

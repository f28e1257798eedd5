//! Earlier weights: initialisation of a task, reference of a penalty, teacher of a distillation.

use clip_model::{Clip, ClipModel};
use serde::{Deserialize, Serialize};

use super::state::RunState;

/// Earlier weights that a method needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequiredWeights {
    /// The pretrained weights, after the start of the first task.
    pub pretrained: bool,
    /// The weights at the start of a task, until its end.
    pub start: bool,
}

impl RequiredWeights {
    pub fn and(self, other: Self) -> Self {
        Self {
            pretrained: self.pretrained || other.pretrained,
            start: self.start || other.start,
        }
    }
}

/// Weights that a task starts from or that are interpolated with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The weights at the start of the task.
    Previous,
    /// The pretrained weights.
    Pretrained,
}

/// The teacher of a distillation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Teacher {
    /// The pretrained model, for all tasks.
    Pretrained,
    /// The model at the start of the task.
    Previous,
}

impl Teacher {
    /// Returns the earlier weights that the run must keep.
    pub fn needs(self) -> RequiredWeights {
        RequiredWeights {
            pretrained: self == Self::Pretrained,
            start: self == Self::Previous,
        }
    }

    /// Returns the teacher model.
    pub(crate) fn resolve<'a>(self, checkpoint: &'a Clip, state: &'a RunState) -> &'a ClipModel {
        match (self, &state.start) {
            (Self::Previous, Some(start)) => start,
            _ => &checkpoint.model,
        }
    }
}

impl Start {
    /// Returns the earlier weights that the run must keep.
    pub fn needs(self) -> RequiredWeights {
        RequiredWeights {
            pretrained: self == Self::Pretrained,
            start: self == Self::Previous,
        }
    }

    /// Returns the model with these weights.
    pub(crate) fn resolve<'a>(self, checkpoint: &'a Clip, state: &'a RunState) -> &'a ClipModel {
        match (self, &state.start) {
            (Self::Previous, Some(start)) => start,
            _ => &checkpoint.model,
        }
    }
}

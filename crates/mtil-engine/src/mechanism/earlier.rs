//! Earlier weights: what a task starts from, is compared with, or learns from.

use clip_model::{Clip, ClipModel};
use serde::{Deserialize, Serialize};

use super::{setting::Needs, state::State};

/// Which weights something starts from or is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Those at the start of the task.
    Previous,
    /// The pretrained ones.
    Pretrained,
}

/// Whose features the distillation compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Teacher {
    /// The pretrained model, for all tasks.
    Pretrained,
    /// The model at the start of the task.
    Previous,
}

impl Teacher {
    /// What it needs.
    pub(crate) fn needs(self) -> Needs {
        Needs {
            pretrained: self == Self::Pretrained,
            start: self == Self::Previous,
        }
    }

    /// The model.
    pub(crate) fn of<'a>(self, checkpoint: &'a Clip, state: &'a State) -> &'a ClipModel {
        match (self, &state.start) {
            (Self::Previous, Some(start)) => start,
            _ => &checkpoint.model,
        }
    }
}

impl Start {
    /// What it needs.
    pub(crate) fn needs(self) -> Needs {
        Needs {
            pretrained: self == Self::Pretrained,
            start: self == Self::Previous,
        }
    }

    /// The weights.
    pub(crate) fn of<'a>(self, checkpoint: &'a Clip, state: &'a State) -> &'a ClipModel {
        match (self, &state.start) {
            (Self::Previous, Some(start)) => start,
            _ => &checkpoint.model,
        }
    }
}

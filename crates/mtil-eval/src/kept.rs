//! What a method keeps from task to task.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Kind of data that a method keeps of learned tasks, besides the model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// Further weights: earlier ones, importances, adapters, a model for each task.
    Weights,
    /// Sums over images, such as Gram matrices, from which no single image can be told.
    Statistics,
    /// Features of each image.
    Features,
    /// Images themselves.
    Pictures,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weights => "weights",
            Self::Statistics => "statistics",
            Self::Features => "features of images",
            Self::Pictures => "pictures",
        })
    }
}

#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
// Test constants have all digits that the reference scripts print.
#![cfg_attr(test, allow(clippy::excessive_precision))]

// Gram matrices: accumulation over a task, and the memory across tasks.
mod accumulate;
mod basis;
mod gram;
mod layout;
mod memory;
mod moment;
mod patches;
mod paths;
mod recorded;
mod recorder;

// Null spaces: eigendecomposition and rank rules.
mod null_space;
mod policy;
mod rank;
mod solver;
mod strength;

// Projected training and its diagnostics.
mod config;
mod interference;
mod projected;
mod protection;

mod error;

#[doc = include_str!("../docs/mathematics.md")]
pub mod mathematics {}

pub use accumulate::GramAccumulator;
pub use basis::Basis;
pub use config::OptimizerConfig;
pub use error::GnspError;
pub use gram::{Gram, GramNormalization};
pub use interference::Interference;
pub use layout::Layout;
pub use memory::{History, Memory};
pub use null_space::NullSpace;
pub use patches::{Padding, Patches};
pub use policy::Policy;
pub use projected::{Projected, Site};
pub use protection::{Protected, Protection};
pub use rank::RankRule;
pub use recorded::Recorded;
pub use recorder::{Recorder, TaskGram};
pub use solver::Solver;
pub use strength::Strength;

#[cfg(test)]
mod test_utils;

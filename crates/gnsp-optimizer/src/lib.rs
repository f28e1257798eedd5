#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
// Constants are quoted digit for digit from the reference scripts.
#![cfg_attr(test, allow(clippy::excessive_precision))]

mod eigen;
mod gram;
mod group;
mod memory;
mod null_space;
mod projected;
mod rank;

pub use gram::{BatchNorm, Gram, GramAccumulator, GramError, TaskNorm};
pub use group::{PathError, check_paths, project_parameters};
pub use memory::{History, Memory, MemoryError};
pub use null_space::{NullSpace, NullSpaceError};
pub use projected::{Projected, Site};
pub use rank::{RankError, RankRule};

#[cfg(test)]
mod test_utils;

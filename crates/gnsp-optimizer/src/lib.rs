#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
// Constants are quoted digit for digit from the reference scripts.
#![cfg_attr(test, allow(clippy::excessive_precision))]

// What layers see, and what is kept of it.
mod accumulate;
mod gram;
mod layout;
mod memory;
mod moment;
mod patches;
mod recorder;
mod select;

// Which directions are protected.
mod null_space;
mod policy;
mod rank;
mod solver;
mod strength;

// Training, and looking back at it.
mod interference;
mod projected;
mod protection;

#[doc = include_str!("../docs/mathematics.md")]
pub mod mathematics {}

pub use accumulate::GramAccumulator;
pub use gram::{BatchNorm, Gram, GramError, TaskNorm};
pub use interference::{Interference, InterferenceError};
pub use layout::Layout;
pub use memory::{FileError, History, Memory, MemoryError};
pub use null_space::{NullSpace, NullSpaceError};
pub use patches::{Padding, Patches};
pub use policy::{Policy, PolicyError};
pub use projected::{Projected, Site};
pub use protection::{Protected, Protection, ProtectionError};
pub use rank::{RankError, RankRule};
pub use recorder::{RecordError, Recorded, Recorder};
pub use select::{SelectError, Selection, Selector};
pub use solver::Solver;
pub use strength::{Strength, StrengthError};

#[cfg(test)]
mod test_utils;

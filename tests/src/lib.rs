//! What the tests across crates share.
//!
//! - [`fixture`]: files that the Python scripts in `tests/reference` wrote into `tests/data`.
//! - [`three_tasks`]: three tasks of GNSP on a tiny CLIP, on any device.
#![warn(missing_docs)]

pub mod fixture;
pub mod three_tasks;

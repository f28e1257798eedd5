//! What the tests across crates share.
//!
//! - [`fixture`]: files that the Python scripts in `tests/reference` wrote into `tests/data`.
#![warn(missing_docs)]

pub mod fixture;

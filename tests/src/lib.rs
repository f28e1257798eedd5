//! Shared code of the tests across crates.
//!
//! - [`fixture`]: tensors in `tests/data`, written by the Python scripts in `tests/reference`.
#![warn(missing_docs)]

pub mod fixture;

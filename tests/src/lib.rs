//! Shared code of the tests across crates.
//!
//! - [`fixture`]: tensors in `tests/data`, written by the Python scripts in `tests/reference`.
//! - [`readers`]: readers of outside bytes, for the fuzz targets and the test of their seeds.
#![warn(missing_docs)]

pub mod fixture;
pub mod readers;

/// The programs of the guide to the optimizer are tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guides/optimizer.md")]
struct OptimizerGuide;

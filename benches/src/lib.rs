//! Shared code of the benchmarks.
//!
//! | module | contents |
//! |---|---|
//! | [`yardstick`] | matrix products as a baseline for all figures |
//! | [`fixtures`] | tensors and prompts |
//! | [`dead_leaves`] | synthetic images with the statistics of natural ones |
#![warn(missing_docs)]

pub mod dead_leaves;
pub mod fixtures;
pub mod yardstick;

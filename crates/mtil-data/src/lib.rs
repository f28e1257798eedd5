//! Suites of image classification tasks for continual learning, and their image data.
//!
//! | module | contents |
//! |---|---|
//! | [`suite`] | ordered tasks with reference pairs, loaded from a suite file or exported |
//! | [`data`] | image and caption folders, batch order, data loader, cache of preprocessed images |
//! | [`datasets`] | the datasets of the MTIL benchmark, read from folders or original archives |
//! | [`seeds`] | seeds derived from the run's seed and a purpose |
//! | [`files`], [`machine`] | atomic file writes; processors and memory of the host |
#![warn(missing_docs)]

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod data;
pub mod datasets;
pub mod files;
pub mod machine;
mod nearest;
pub mod seeds;
pub mod suite;

pub use nearest::{did_you_mean, nearest};

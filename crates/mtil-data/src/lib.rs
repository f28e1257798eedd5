//! Suites of image classification tasks, and the images they consist of.
//!
//! | module | contents |
//! |---|---|
//! | [`suite`] | a list of tasks with reference pairs, read from a suite file or exported |
//! | [`data`] | images and captions in folders, their loading and caching |
//! | [`datasets`] | the datasets of the MTIL benchmark, from folders or original archives |
//! | [`seeds`] | randomness as a function of a seed and a purpose |
//! | [`files`], [`machine`] | atomic writes; processors and memory |
#![warn(missing_docs)]

pub mod data;
pub mod datasets;
pub mod files;
pub mod machine;
mod nearest;
pub mod seeds;
pub mod suite;

pub use nearest::nearest;

//! Evaluation of a CLIP on a sequence of tasks.
//!
//! | module | contents |
//! |---|---|
//! | [`batch`] | image preprocessing and prefetching into pixel tensors |
//! | [`eval`] | evaluation after a task: encoders, classifiers, prompts |
//! | [`measures`] | measures of features and predictions |
//! | [`metrics`] | metrics of a run: transfer, average, last, forgetting |
//! | [`guard`] | threshold rules checked after each evaluation |
#![warn(missing_docs)]

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod batch;
pub mod eval;
pub mod guard;
mod kept;
pub mod measures;
pub mod metrics;

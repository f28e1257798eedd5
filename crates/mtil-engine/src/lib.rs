//! Continual learning of CLIP: training methods on a sequence of tasks, evaluation after each task,
//! and metrics of transfer and forgetting.
//!
//! | module | contents |
//! |---|---|
//! | [`method`] | methods as compositions of mechanisms, read from TOML |
//! | `mechanism` | the mechanisms of methods, one per file |
//! | [`run`] | resumable runs: a method on a suite, stored in a directory |
//! | [`analytic`] | analytic learning: ridge regression on features |
//! | [`eval`], [`measures`] | evaluation after a task; measures of features and predictions |
//! | [`metrics`], [`guard`] | metrics of a run; threshold rules checked after each evaluation |
//! | [`batch`] | image preprocessing and prefetching into pixel tensors |
//! | [`recording`] | recording of layer inputs for Gram matrices |
#![warn(missing_docs)]

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod analytic;
pub mod batch;
mod error;
pub mod eval;
pub mod guard;
mod kept;
pub mod measures;
mod mechanism;
pub mod method;
pub mod metrics;
mod precision;
pub mod recording;
pub mod run;
mod tape;

//! Continual learning of a CLIP: runs of a method on a sequence of tasks, with an evaluation after
//! each task.
//!
//! | module | contents |
//! |---|---|
//! | [`run`] | resumable runs: a method on a suite, stored in a directory |
//! | [`method`], [`analytic`], [`recording`] | methods and their mechanisms, from `mtil-methods` |
//! | [`eval`], [`measures`], [`metrics`], [`guard`], [`batch`] | evaluation, from `mtil-eval` |
#![warn(missing_docs)]

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod precision;
pub mod run;

pub use mtil_eval::{batch, eval, guard, measures, metrics};
pub use mtil_methods::{analytic, method, recording};

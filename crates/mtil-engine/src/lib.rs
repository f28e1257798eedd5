//! Continual learning of a CLIP: a method applied to a suite, and what it learned and forgot.
//!
//! | module | contents |
//! |---|---|
//! | [`method`] | methods as compositions of mechanisms, read from TOML |
//! | `mechanism` | what methods are composed of, a file each |
//! | [`run`] | a method on a suite in a directory, resumable |
//! | [`analytic`] | learning without gradients: ridge regression on features |
//! | [`eval`], [`measures`] | evaluation after a task, measures of features and predictions |
//! | [`metrics`], [`guard`] | the metrics of a run, rules that watch it |
//! | [`batch`] | images as pixel tensors |
//! | [`recording`] | a tower's activations as inputs of the optimizer's Gram matrices |
#![warn(missing_docs)]

pub mod analytic;
pub mod batch;
mod error;
pub mod eval;
pub mod guard;
pub mod measures;
mod mechanism;
pub mod method;
pub mod metrics;
mod precision;
pub mod recording;
pub mod run;
mod tape;

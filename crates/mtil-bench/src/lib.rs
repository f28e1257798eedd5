//! Continual learning for CLIP: suites, methods, runs, metrics, report.
//!
//! | module | what |
//! |---|---|
//! | [`suite`], [`data`], [`mini`] | tasks and where their images come from |
//! | [`method`] | what a method is |
//! | [`run`] | a method on a suite in a directory, resumable |
//! | [`eval`], [`metrics`] | what is measured |
//! | [`report`] | what is shown |
//! | [`embedded`], [`pretrain`] | the small CLIP of the mini world, and how it was made |
//! | [`device`], [`batch`], [`seeds`], [`files`] | devices, image batches, randomness, atomic writes |
//! | [`cli`] | the command line |
#![warn(missing_docs)]

pub mod batch;
pub mod cli;
pub mod data;
pub mod device;
pub mod embedded;
pub mod eval;
pub mod files;
pub mod method;
pub mod metrics;
pub mod mini;
pub mod pretrain;
pub mod report;
pub mod run;
pub mod seeds;
pub mod suite;

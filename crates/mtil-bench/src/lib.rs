//! Continual learning for CLIP: suites, methods, runs, metrics, report.
//!
//! | module | what |
//! |---|---|
//! | [`suite`], [`data`], [`datasets`], [`mini`] | tasks and where their images come from |
//! | [`method`] | what a method is |
//! | [`run`] | a method on a suite in a directory, resumable |
//! | [`analytic`] | learning without training: ridge regression on features |
//! | [`eval`], [`measures`], [`metrics`], [`guard`] | what is measured, and watched |
//! | [`report`], [`reproduce`], [`plan`] | what is shown: runs, published tables beside ours, what runs take |
//! | [`embedded`], [`pretrain`] | the small CLIP of the mini world, and how it was made |
//! | [`compare`], [`step`] | what the work costs on the devices there are; one training step, with its savings apart |
//! | [`sweep`] | many runs as a list for any scheduler |
//! | [`recording`] | what a tower shows, into what the optimizer remembers |
//! | [`device`], [`batch`], [`seeds`], [`files`], [`process`] | devices, image batches, randomness, atomic writes, the process and its memory |
//! | [`cli`] | the command line |
#![warn(missing_docs)]

pub mod analytic;
pub mod batch;
pub mod cli;
pub mod compare;
pub mod data;
pub mod datasets;
pub mod device;
pub mod embedded;
pub mod eval;
pub mod files;
pub mod guard;
pub mod measures;
pub mod method;
pub mod metrics;
pub mod mini;
pub mod plan;
mod precision;
pub mod pretrain;
pub mod process;
pub mod recording;
pub mod report;
pub mod reproduce;
pub mod run;
pub mod seeds;
pub mod step;
pub mod suite;
pub mod sweep;
mod tape;

//! Command line of `mtil-bench`, a benchmark of continual learning for CLIP.
//!
//! The libraries below it: `mtil-data` loads suites, `mini-world` draws the embedded suite,
//! `mtil-engine` runs methods, `mtil-report` writes pages and tables.
//!
//! | module | contents |
//! |---|---|
//! | [`cli`] | subcommands and their arguments |
//! | [`advice`] | the arguments that resolve errors of the libraries |
//! | [`device`] | device names and the backends of this build |
//! | [`process`] | environment variables and thread pool of the process |
//! | [`exit`] | exit codes |
//! | [`failure`] | errors and panics on standard error |
//! | [`plan`] | estimates of time, memory and disk before a run |
//! | [`compare`] | the same workloads timed on every device |
//! | [`sweep`] | grids of runs as a command list for any scheduler |
//! | [`pretrain`] | contrastive pretraining of the embedded CLIP |
#![warn(missing_docs)]

// Before the modules that use its macros.
#[macro_use]
mod print;

#[cfg(feature = "wgpu")]
mod opengl;

pub mod advice;
pub mod cli;
pub mod compare;
pub mod device;
pub mod exit;
pub mod failure;
pub mod plan;
pub mod pretrain;
pub mod process;
pub mod sweep;

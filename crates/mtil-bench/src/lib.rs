//! The program `mtil-bench`: continual learning for CLIP on the command line.
//!
//! The work is done by `mtil-data` (suites), `mini-world` (the embedded suite), `mtil-engine`
//! (methods and runs) and `mtil-report` (pages and tables).
//!
//! | module | contents |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`device`], [`process`] | the devices of this build; the start of the process |
//! | [`failure`] | errors and panics on standard error |
//! | [`plan`] | what runs take: time, memory, disk |
//! | [`compare`] | the same work timed on each device |
//! | [`sweep`] | many runs as a list for any scheduler |
//! | [`pretrain`] | pretraining of the embedded CLIP |
#![warn(missing_docs)]

pub mod cli;
pub mod compare;
pub mod device;
pub mod failure;
pub mod plan;
pub mod pretrain;
pub mod process;
pub mod sweep;

//! Reports of runs: pages, tables, and published numbers beside ours.
//!
//! | module | contents |
//! |---|---|
//! | [`report`] | the report of one or several runs |
//! | [`reproduce`] | published tables, and the runs that stand beside them |
#![warn(missing_docs)]

pub mod report;
pub mod reproduce;

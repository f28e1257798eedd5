//! Reports of runs: pages, tables, and published numbers beside ours.
//!
//! | module | contents |
//! |---|---|
//! | [`report`] | the report of one or several runs |
//! | [`page`], [`svg`], [`words`] | what every page shares: the frame, charts, numbers in words |
//! | [`reproduce`] | published tables, and the runs that stand beside them |
#![warn(missing_docs)]

pub mod page;
pub mod report;
pub mod reproduce;
pub mod svg;
pub mod words;

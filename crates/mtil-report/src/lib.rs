//! Reports of continual-learning runs: HTML pages, tables, comparison with published results.
//!
//! | module | contents |
//! |---|---|
//! | [`report`] | the report of one or several runs |
//! | [`page`], [`svg`], [`format`](mod@format) | shared by all pages: layout, charts, numbers |
//! | [`reproduce`] | published tables and their reproduction |
#![warn(missing_docs)]

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod format;
pub mod page;
pub mod report;
pub mod reproduce;
pub mod svg;

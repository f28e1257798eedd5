//! Methods of continual learning for a CLIP, as compositions of mechanisms.
//!
//! | module | contents |
//! |---|---|
//! | [`method`] | methods as data, read from TOML |
//! | [`mechanism`] | the mechanisms of methods, one per file |
//! | [`analytic`] | analytic learning: ridge regression on features |
//! | [`recording`] | recording of layer inputs for Gram matrices |
//! | [`tape`] | modules on and off the autodiff tape |
//! | [`error`] | errors of mechanisms and of runs |
#![warn(missing_docs)]

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod analytic;
pub mod error;
pub mod mechanism;
pub mod method;
pub mod recording;
pub mod tape;

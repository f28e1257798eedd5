//! The benchmark.
#![warn(missing_docs)]

pub mod data;
pub mod suite;

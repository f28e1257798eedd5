//! Crate.
#![warn(missing_docs)]

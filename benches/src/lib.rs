//! Inputs that the benches share.
#![warn(missing_docs)]

pub mod dead_leaves;

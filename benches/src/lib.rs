//! What the benches share.
//!
//! | module | what |
//! |---|---|
//! | [`yardstick`] | the product of matrices that figures are compared with |
//! | [`fixtures`] | tensors and prompts |
//! | [`dead_leaves`] | pictures with the statistics of natural ones |
#![warn(missing_docs)]

pub mod dead_leaves;
pub mod fixtures;
pub mod yardstick;

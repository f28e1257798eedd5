//! The two branches of a pre-norm transformer block, each as one operation with its own gradient on
//! Burn's host backend.
//!
//! Burn computes a block as some thirty operations, most of which it runs on one processor, and
//! keeps what each needs for its gradient. [`attention_branch`] and [`mlp_branch`] compute the same
//! in one pass per item of the batch on every processor, and keep only what cannot be had again
//! cheaply. Elsewhere (another backend, another precision,
//! [`Kernels::Plain`]) they are the plain Burn formulation, which is
//! also what the tests compare with.
//!
//! | module | what |
//! |---|---|
//! | `block`, `tree` | what they compute with; texts that begin alike |
//! | `branches` | the two operations on tensors, and which of the two ways they take |
//! | `adamw` | an optimizer of one pass |
//! | `plain` | in Burn's own operations |
//! | `extension` | the way from Burn's tensors and tape to the host's kernels and back |
//! | [`host`] | the kernels, on slices of `f32` |
#![warn(missing_docs)]

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod adamw;
mod block;
mod branches;
#[cfg(feature = "flex")]
mod extension;
#[cfg(feature = "flex")]
pub mod host;
mod plain;
mod tree;

pub use adamw::{AdamWSettings, FusedAdamW};
pub use block::{
    Activation, AttentionBranch, Kernels, LayerNorm, Linear, MlpBranch, ObservedMlp, Queries,
};
pub use branches::{activate, attention_branch, layer_norm, mlp_branch, observed_mlp_branch};
pub use tree::Tree;

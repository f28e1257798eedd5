//! Fused attention and MLP branches of a pre-norm transformer block, with hand-written gradients,
//! for Burn's host backend.
//!
//! Burn computes a block as some thirty operations. It runs most of them on one processor, and
//! keeps what each needs for its gradient. [`attention_branch`] and [`mlp_branch`] compute the same
//! on all processors, and keep only what is expensive to recompute.
//!
//! On another backend, in another precision, and with [`Kernels::Plain`], the same functions run
//! Burn's own operations. The tests compare the two implementations.
//!
//! | module | contents |
//! |---|---|
//! | `block`, `tree` | parameters of the branches; prefix trees of texts |
//! | `branches` | the operations on tensors, and the dispatch between the two implementations |
//! | `adamw` | AdamW in one pass |
//! | `plain` | the branches in Burn's own operations |
//! | `extension` | the backend extension that connects Burn's tensors and autodiff to the kernels |
//! | `host` | the kernels, on slices of `f32` |
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
mod host;
mod plain;
mod tree;

pub use adamw::{AdamWSettings, FusedAdamW};
pub use block::{
    ActivationFunction, AttentionBranch, AttentionBranchWithInputs, Kernels, LayerNormParams,
    LinearParams, MlpBranch, MlpBranchWithInputs, Queries,
};
pub use branches::{
    activate, attention_branch, attention_branch_with_inputs, layer_norm, mlp_branch,
    mlp_branch_with_inputs,
};
pub use tree::Tree;

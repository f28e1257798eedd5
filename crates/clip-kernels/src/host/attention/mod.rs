//! The attention branch of a pre-norm block: `y = x + W₂·attention(W₁·LN(x) + b₁) + b₂`, and its
//! gradients.
//!
//! The forward pass has three phases: the projection of rows to queries, keys and values; the
//! attention of each head of each item; the output projection of rows. It saves queries, keys,
//! values and two numbers of each softmax. The backward pass recomputes the probabilities from
//! them, as in FlashAttention (Dao et al., 2022). Rows that no query attends to are skipped.

mod backward;
mod forward;
mod heads;
mod shape;
#[cfg(test)]
mod tests;

pub use backward::attention_branch_backward;
pub use forward::attention_branch;
pub use shape::{
    AttentionActivations, AttentionGradients, AttentionNeedsGrad, AttentionParams, AttentionShape,
    Queries,
};

//! The attention branch of a pre-norm block: `y = x + W₂·attention(W₁·LN(x) + b₁) + b₂`, and its
//! gradients.
//!
//! Three phases: projections of rows, attention of each head of each item, projections of rows.
//! What the backward pass needs of the forward pass are queries, keys, values and two numbers of
//! each softmax; it computes the probabilities again, as in FlashAttention (Dao et al., 2022). Rows
//! that no query attends to are left out.

mod backward;
mod forward;
mod heads;
mod shape;
#[cfg(test)]
mod tests;

pub use backward::attention_branch_backward;
pub use forward::attention_branch;
pub use shape::{
    AttentionActivations, AttentionGradients, AttentionParams, AttentionShape, AttentionWanted,
    Normaliser, Queries,
};

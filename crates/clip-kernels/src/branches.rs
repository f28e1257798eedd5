//! The operations on tensors, and which of the two ways they take.

use burn::tensor::Tensor;

use crate::{
    Activation, AttentionBranch, Kernels, LayerNorm, MlpBranch, ObservedMlp, Queries, plain,
};

impl Kernels {
    /// Whether a computation on `x` goes to the host's kernels.
    #[cfg(feature = "flex")]
    fn on_host<const D: usize>(self, x: &Tensor<D>) -> bool {
        self == Self::Fused && on_host(x)
    }
}

/// Whether the host's kernels can compute on `x`.
#[cfg(feature = "flex")]
pub(crate) fn on_host<const D: usize>(x: &Tensor<D>) -> bool {
    use burn::tensor::{DType, Device};
    x.dtype() == DType::F32 && x.device().inner() == Device::flex() && x.shape().num_elements() > 0
}

/// `x + out_proj(attention(in_proj(layer_norm(x))))` (OpenAI CLIP `clip/model.py`, class
/// `ResidualAttentionBlock`), with scores divided by the root of the head's width.
///
/// # Shapes
/// - `x`: `[batch, n, d]`
/// - output: `[batch, n, d]`, or `[batch, 1, d]` for [`Queries::At`], which takes each item's row
///   of `x` too
///
/// # Panics
/// On parameters of another width, a number of heads that does not divide it, a position beyond the
/// row, or a parent behind its child.
pub fn attention_branch(x: Tensor<3>, branch: AttentionBranch, queries: &Queries) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if branch.kernels.on_host(&x) {
        return crate::extension::attention_branch(x, branch, queries);
    }
    plain::attention_branch(x, branch, queries)
}

/// `x + c_proj(activation(c_fc(layer_norm(x))))` (OpenAI CLIP `clip/model.py`, class
/// `ResidualAttentionBlock`).
///
/// # Shapes
/// - `x` and output: `[batch, n, d]`
///
/// # Panics
/// On parameters of another width.
pub fn mlp_branch(x: Tensor<3>, branch: MlpBranch) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if branch.kernels.on_host(&x) {
        return crate::extension::mlp_branch(x, branch);
    }
    plain::mlp_branch(x, branch)
}

/// [`mlp_branch`] for who looks on: with the inputs of its two maps, at every position, though only
/// the output at the positions `read` may be wanted.
///
/// # Shapes
/// - `x`: `[batch, n, d]`
/// - output: `[batch, n, d]`, or `[batch, 1, d]` for [`Queries::At`]
///
/// # Panics
/// On parameters of another width, or a position beyond the row.
pub fn observed_mlp_branch(x: Tensor<3>, branch: MlpBranch, read: &Queries) -> ObservedMlp {
    #[cfg(feature = "flex")]
    if branch.kernels.on_host(&x) && !x.device().is_autodiff() {
        return crate::extension::observed_mlp_branch(x, branch, read);
    }
    plain::observed_mlp_branch(x, branch, read)
}

/// A layer norm by itself: `[batch, n, d]` to the same.
///
/// # Panics
/// On parameters of another width.
pub fn layer_norm(x: Tensor<3>, norm: LayerNorm, kernels: Kernels) -> Tensor<3> {
    #[cfg(not(feature = "flex"))]
    let _ = kernels;
    #[cfg(feature = "flex")]
    if kernels.on_host(&x) && !x.device().is_autodiff() {
        return crate::extension::layer_norm(x, norm);
    }
    plain::layer_norm(x, norm)
}

/// An activation by itself.
pub fn activate(x: Tensor<3>, activation: Activation, kernels: Kernels) -> Tensor<3> {
    #[cfg(not(feature = "flex"))]
    let _ = kernels;
    #[cfg(feature = "flex")]
    if kernels.on_host(&x) && !x.device().is_autodiff() {
        return crate::extension::activate(x, activation);
    }
    plain::activate(x, activation)
}

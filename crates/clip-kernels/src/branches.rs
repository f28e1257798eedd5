//! Branches, layer norm and activation on tensors: dispatch between the fused kernels and Burn's
//! operations.

use burn::tensor::Tensor;

use crate::{
    ActivationFunction, AttentionBranch, AttentionBranchWithInputs, Kernels, LayerNormParams,
    MlpBranch, MlpBranchWithInputs, Queries, plain,
};

impl Kernels {
    /// Returns `true` if the fused kernels compute on `x`.
    #[cfg(feature = "flex")]
    fn on_host<const D: usize>(self, x: &Tensor<D>) -> bool {
        self == Self::Fused && on_host(x)
    }
}

/// Returns `true` if the fused kernels support `x`.
#[cfg(feature = "flex")]
pub(crate) fn on_host<const D: usize>(x: &Tensor<D>) -> bool {
    use burn::tensor::{DType, Device};
    x.dtype() == DType::F32 && x.device().inner() == Device::flex() && x.shape().num_elements() > 0
}

/// Computes `x + out_proj(attention(in_proj(layer_norm(x))))` (OpenAI CLIP `clip/model.py`, class
/// `ResidualAttentionBlock`), with scores divided by the root of the head's width.
///
/// # Shapes
/// - `x`: `[batch, tokens, width]`
/// - output: `[batch, tokens, width]`, or `[batch, 1, width]` for [`Queries::At`], whose residual
///   is the row of `x` at the position
///
/// # Panics
/// If a parameter has another width, the number of heads does not divide the width, a position is
/// out of range, or a parent stands after its child.
pub fn attention_branch(x: Tensor<3>, branch: AttentionBranch, queries: &Queries) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if branch.kernels.on_host(&x) {
        return crate::extension::attention_branch(x, branch, queries);
    }
    plain::attention_branch(x, branch, queries)
}

/// Like [`attention_branch`], in Burn's operations, and also returns the inputs of both projections.
///
/// # Shapes
/// - `x`: `[batch, tokens, width]`
/// - output and input of `out_proj`: `[batch, tokens, width]`, or `[batch, 1, width]` for
///   [`Queries::At`]
/// - input of `in_proj`: `[batch, tokens, width]`
///
/// # Panics
/// See [`attention_branch`].
pub fn attention_branch_with_inputs(
    x: Tensor<3>,
    branch: AttentionBranch,
    queries: &Queries,
) -> AttentionBranchWithInputs {
    plain::attention_branch_with_inputs(x, branch, queries)
}

/// Computes `x + c_proj(activation(c_fc(layer_norm(x))))` (OpenAI CLIP `clip/model.py`, class
/// `ResidualAttentionBlock`).
///
/// # Shapes
/// - `x`: `[batch, tokens, width]`
/// - output: `[batch, tokens, width]`
///
/// # Panics
/// If a parameter has another width.
pub fn mlp_branch(x: Tensor<3>, branch: MlpBranch) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if branch.kernels.on_host(&x) {
        return crate::extension::mlp_branch(x, branch);
    }
    plain::mlp_branch(x, branch)
}

/// Like [`mlp_branch`], and also returns the inputs of both linear layers.
///
/// The inputs are those of all tokens; `queries` restricts the output alone.
///
/// # Shapes
/// - `x`: `[batch, tokens, width]`
/// - output: `[batch, tokens, width]`, or `[batch, 1, width]` for [`Queries::At`]
/// - input of `c_fc`: `[batch, tokens, width]`
/// - input of `c_proj`: `[batch, tokens, hidden]`
///
/// # Panics
/// If a parameter has another width, or a position is out of range.
pub fn mlp_branch_with_inputs(
    x: Tensor<3>,
    branch: MlpBranch,
    queries: &Queries,
) -> MlpBranchWithInputs {
    #[cfg(feature = "flex")]
    if branch.kernels.on_host(&x) && !x.device().is_autodiff() {
        return crate::extension::mlp_branch_with_inputs(x, branch, queries);
    }
    plain::mlp_branch_with_inputs(x, branch, queries)
}

/// Normalizes the last axis.
///
/// # Shapes
/// - `x`: `[batch, tokens, width]`
/// - output: `[batch, tokens, width]`
///
/// # Panics
/// If a parameter has another width.
pub fn layer_norm(x: Tensor<3>, norm: LayerNormParams, kernels: Kernels) -> Tensor<3> {
    #[cfg(not(feature = "flex"))]
    let _ = kernels;
    #[cfg(feature = "flex")]
    if kernels.on_host(&x) && !x.device().is_autodiff() {
        return crate::extension::layer_norm(x, norm);
    }
    plain::layer_norm(x, norm)
}

/// Applies an activation elementwise.
///
/// # Shapes
/// - `x`: `[batch, tokens, width]`
/// - output: `[batch, tokens, width]`
pub fn activate(x: Tensor<3>, activation: ActivationFunction, kernels: Kernels) -> Tensor<3> {
    #[cfg(not(feature = "flex"))]
    let _ = kernels;
    #[cfg(feature = "flex")]
    if kernels.on_host(&x) && !x.device().is_autodiff() {
        return crate::extension::activate(x, activation);
    }
    plain::activate(x, activation)
}

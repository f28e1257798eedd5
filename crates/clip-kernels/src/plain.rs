//! Branches in Burn's own operations: the implementation on every backend, and the reference of
//! the fused kernels.

use burn::tensor::{
    FloatDType, Tensor, TensorData, activation, module, ops::AttentionModuleOptions,
};

use crate::{
    ActivationFunction, AttentionBranch, AttentionBranchWithInputs, LayerNormParams, LinearParams,
    MlpBranch, MlpBranchWithInputs, Queries, block::row_selector,
};

pub fn attention_branch(x: Tensor<3>, branch: AttentionBranch, queries: &Queries) -> Tensor<3> {
    attention_branch_with_inputs(x, branch, queries).output
}

pub fn attention_branch_with_inputs(
    x: Tensor<3>,
    branch: AttentionBranch,
    queries: &Queries,
) -> AttentionBranchWithInputs {
    let in_proj_input = layer_norm(x.clone(), branch.norm.clone());
    let normed = in_proj_input.clone();
    let (residual, context) = match queries {
        Queries::All => (x, attend(normed, &branch, None)),
        Queries::Tree(tree) => {
            let mask = tree.attention_mask(&x);
            (x, attend(normed, &branch, Some(mask)))
        }
        Queries::At(positions) => {
            let select = row_selector(&x, positions);
            let query = select(normed.clone());
            (select(x), attend_at(query, normed, &branch, positions))
        }
    };
    AttentionBranchWithInputs {
        output: residual + linear(context.clone(), branch.out_proj),
        in_proj_input,
        out_proj_input: context,
    }
}

pub fn mlp_branch(x: Tensor<3>, branch: MlpBranch) -> Tensor<3> {
    let y = linear(layer_norm(x.clone(), branch.norm), branch.c_fc);
    x + linear(activate(y, branch.activation), branch.c_proj)
}

pub fn mlp_branch_with_inputs(
    x: Tensor<3>,
    branch: MlpBranch,
    queries: &Queries,
) -> MlpBranchWithInputs {
    let c_fc_input = layer_norm(x.clone(), branch.norm);
    let c_proj_input = linear(c_fc_input.clone(), branch.c_fc);
    let c_proj_input = activate(c_proj_input, branch.activation);
    let hidden = queries.select(c_proj_input.clone());
    MlpBranchWithInputs {
        output: queries.select(x) + linear(hidden, branch.c_proj),
        c_fc_input,
        c_proj_input,
    }
}

/// Layer norm, computed in `f32` for `f16` and `bf16` inputs, whose sum of squares may overflow.
pub fn layer_norm(x: Tensor<3>, norm: LayerNormParams) -> Tensor<3> {
    let dtype: FloatDType = x.dtype().into();
    match dtype {
        FloatDType::F16 | FloatDType::BF16 => {
            let wide = FloatDType::F32;
            let (gamma, beta) = (norm.gamma.cast(wide), norm.beta.cast(wide));
            module::layer_norm(x.cast(wide), gamma, Some(beta), norm.epsilon).cast(dtype)
        }
        _ => module::layer_norm(x, norm.gamma, Some(norm.beta), norm.epsilon),
    }
}

pub fn activate(x: Tensor<3>, kind: ActivationFunction) -> Tensor<3> {
    match kind {
        ActivationFunction::QuickGelu => x.clone() * activation::sigmoid(x.mul_scalar(1.702)),
        ActivationFunction::Gelu => activation::gelu(x),
        ActivationFunction::GeluTanh => activation::gelu_approximate(x),
    }
}

fn linear(x: Tensor<3>, layer: LinearParams) -> Tensor<3> {
    module::linear(x, layer.weight, Some(layer.bias))
}

/// Attention of all tokens, before the output projection. `mask`, `[batch, 1, n, n]`, is added to
/// the scores and replaces the causal mask of the branch.
fn attend(x: Tensor<3>, branch: &AttentionBranch, mask: Option<Tensor<4>>) -> Tensor<3> {
    let [batch, n, d] = x.dims();
    let qkv = linear(x, branch.in_proj.clone());
    let part = |i: usize| {
        split_heads(
            qkv.clone().slice([0..batch, 0..n, i * d..(i + 1) * d]),
            branch.heads,
        )
    };
    let options = AttentionModuleOptions {
        is_causal: branch.causal && mask.is_none(),
        ..Default::default()
    };
    let mask = mask.map(|mask| mask.expand([batch, branch.heads, n, n]));
    let context = module::attention(part(0), part(1), part(2), None, mask, options);
    merge_heads(context)
}

/// Attention of one token per item, before the output projection: `query`, `[batch, 1, d]`, the
/// rows at `positions`, attends to `x`, `[batch, n, d]`.
fn attend_at(
    query: Tensor<3>,
    x: Tensor<3>,
    branch: &AttentionBranch,
    positions: &[usize],
) -> Tensor<3> {
    let [batch, n, d] = x.dims();
    // Queries need the first third of the projection, keys and values the rest.
    let project = |x: Tensor<3>, from: usize, to: usize| {
        let LinearParams { weight, bias } = branch.in_proj.clone();
        let bias = bias.narrow(0, from, to - from);
        module::linear(x, weight.slice([0..d, from..to]), Some(bias))
    };
    let q = split_heads(project(query, 0, d), branch.heads);
    let kv = project(x, d, 3 * d);
    let k = split_heads(kv.clone().slice([0..batch, 0..n, 0..d]), branch.heads);
    let v = split_heads(kv.slice([0..batch, 0..n, d..2 * d]), branch.heads);
    let mask = branch.causal.then(|| {
        let mask: Vec<f32> = positions
            .iter()
            .flat_map(|p| (0..n).map(move |i| if i <= *p { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        Tensor::<4>::from_data(TensorData::new(mask, [batch, 1, 1, n]), &k.device())
            .cast(k.dtype())
            .expand([batch, branch.heads, 1, n])
    });
    let context = module::attention(q, k, v, None, mask, AttentionModuleOptions::default());
    merge_heads(context)
}

/// `[batch, n, d]` to `[batch, heads, n, d / heads]`.
fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, n, d] = x.dims();
    x.reshape([batch, n, heads, d / heads]).swap_dims(1, 2)
}

/// `[batch, heads, n, h]` to `[batch, n, heads · h]`.
fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, n, h] = x.dims();
    x.swap_dims(1, 2).reshape([batch, n, heads * h])
}

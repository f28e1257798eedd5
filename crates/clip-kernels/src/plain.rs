//! The branches in Burn's own operations: what every backend has, and what the host's kernels are
//! compared with.

use burn::tensor::{
    FloatDType, Tensor, TensorData, activation, module, ops::AttentionModuleOptions,
};

use crate::{
    Activation, AttentionBranch, LayerNorm, Linear, MlpBranch, ObservedMlp, Queries, block::picker,
};

pub fn attention_branch(x: Tensor<3>, branch: AttentionBranch, queries: &Queries) -> Tensor<3> {
    let normed = layer_norm(x.clone(), branch.norm.clone());
    match queries {
        Queries::All => x + attend(normed, &branch, None),
        Queries::Tree(tree) => {
            let bias = tree.bias(&x);
            x + attend(normed, &branch, Some(bias))
        }
        Queries::At(positions) => {
            let pick = picker(&x, positions);
            let query = pick(normed.clone());
            pick(x) + attend_at(query, normed, &branch, positions)
        }
    }
}

pub fn mlp_branch(x: Tensor<3>, branch: MlpBranch) -> Tensor<3> {
    let y = linear(layer_norm(x.clone(), branch.norm), branch.c_fc);
    x + linear(activate(y, branch.activation), branch.c_proj)
}

pub fn observed_mlp_branch(x: Tensor<3>, branch: MlpBranch, read: &Queries) -> ObservedMlp {
    let normed = layer_norm(x.clone(), branch.norm);
    let inner = linear(normed.clone(), branch.c_fc);
    let inner = activate(inner, branch.activation);
    let output = read.pick(x) + linear(read.pick(inner.clone()), branch.c_proj);
    ObservedMlp {
        output,
        normed,
        inner,
    }
}

/// In `f32` where the numbers are shorter: their sum of squares would not fit.
pub fn layer_norm(x: Tensor<3>, norm: LayerNorm) -> Tensor<3> {
    let narrow: FloatDType = x.dtype().into();
    match narrow {
        FloatDType::F16 | FloatDType::BF16 => {
            let wide = FloatDType::F32;
            let (gamma, beta) = (norm.gamma.cast(wide), norm.beta.cast(wide));
            module::layer_norm(x.cast(wide), gamma, Some(beta), norm.epsilon).cast(narrow)
        }
        _ => module::layer_norm(x, norm.gamma, Some(norm.beta), norm.epsilon),
    }
}

pub fn activate(x: Tensor<3>, kind: Activation) -> Tensor<3> {
    match kind {
        Activation::QuickGelu => x.clone() * activation::sigmoid(x.mul_scalar(1.702)),
        Activation::Gelu => activation::gelu(x),
        Activation::GeluTanh => activation::gelu_approximate(x),
    }
}

fn linear(x: Tensor<3>, map: Linear) -> Tensor<3> {
    module::linear(x, map.weight, Some(map.bias))
}

/// Every position attends; `bias [batch, 1, n, n]` stands for the branch's mask.
fn attend(x: Tensor<3>, branch: &AttentionBranch, bias: Option<Tensor<4>>) -> Tensor<3> {
    let [batch, n, d] = x.dims();
    let qkv = linear(x, branch.in_proj.clone());
    let part = |i: usize| {
        split_heads(
            qkv.clone().slice([0..batch, 0..n, i * d..(i + 1) * d]),
            branch.heads,
        )
    };
    let options = AttentionModuleOptions {
        is_causal: branch.causal && bias.is_none(),
        ..Default::default()
    };
    let bias = bias.map(|bias| bias.expand([batch, branch.heads, n, n]));
    let context = module::attention(part(0), part(1), part(2), None, bias, options);
    linear(merge_heads(context), branch.out_proj.clone())
}

/// Only `query [batch, 1, d]`, taken from these positions, attends to `x [batch, n, d]`.
fn attend_at(
    query: Tensor<3>,
    x: Tensor<3>,
    branch: &AttentionBranch,
    positions: &[usize],
) -> Tensor<3> {
    let [batch, n, d] = x.dims();
    let map = |x: Tensor<3>, from: usize, to: usize| {
        let Linear { weight, bias } = branch.in_proj.clone();
        let bias = bias.narrow(0, from, to - from);
        module::linear(x, weight.slice([0..d, from..to]), Some(bias))
    };
    let q = split_heads(map(query, 0, d), branch.heads);
    let kv = map(x, d, 3 * d);
    let k = split_heads(kv.clone().slice([0..batch, 0..n, 0..d]), branch.heads);
    let v = split_heads(kv.slice([0..batch, 0..n, d..2 * d]), branch.heads);
    let bias = branch.causal.then(|| {
        let hidden: Vec<f32> = positions
            .iter()
            .flat_map(|p| (0..n).map(move |i| if i <= *p { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        Tensor::<4>::from_data(TensorData::new(hidden, [batch, 1, 1, n]), &k.device())
            .cast(k.dtype())
            .expand([batch, branch.heads, 1, n])
    });
    let context = module::attention(q, k, v, None, bias, AttentionModuleOptions::default());
    linear(merge_heads(context), branch.out_proj.clone())
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

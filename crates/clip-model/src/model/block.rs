//! Pre-norm transformer block of both towers.

use burn::{
    module::Module,
    nn::{LayerNorm, Linear},
    tensor::{Int, Tensor, module::attention, ops::AttentionModuleOptions},
};

use clip_kernels::{
    AttentionBranch, Kernels, MlpBranch, Queries, attention_branch, attention_branch_with_inputs,
    mlp_branch, mlp_branch_with_inputs,
};

use super::{Observer, params::Builder};
use crate::{config::Activation, error::CheckpointError};

/// Multi-head self-attention with one fused projection to queries, keys and values.
#[derive(Module, Debug)]
pub struct Attention {
    /// Input projection, `[d, 3d]`: columns 0..d give the queries, d..2d the keys, 2d..3d the
    /// values.
    pub in_proj: Linear,
    /// Output projection, `[d, d]`.
    pub out_proj: Linear,
    heads: usize,
    causal: bool,
}

impl Attention {
    pub(super) fn build(
        builder: &mut Builder<'_>,
        path: &str,
        shape: &BlockShape,
    ) -> Result<Self, CheckpointError> {
        let d = shape.width;
        Ok(Self {
            in_proj: builder.linear(&format!("{path}.in_proj"), d, 3 * d)?,
            out_proj: builder.linear(&format!("{path}.out_proj"), d, d)?,
            heads: shape.heads,
            causal: shape.causal,
        })
    }

    /// Cross-attention of `query` `[batch, 1, d]` to `x` `[batch, n, d]`; returns `[batch, 1, d]`.
    pub(super) fn pool(&self, query: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        let [batch, n, d] = x.dims();
        let weight = self.in_proj.weight.val();
        let bias = self.in_proj.bias.as_ref().map(|b| b.val());
        let map = |x: Tensor<3>, from: usize, to: usize| {
            let bias = bias.clone().map(|b| b.narrow(0, from, to - from));
            burn::tensor::module::linear(x, weight.clone().slice([0..d, from..to]), bias)
        };
        let q = split_heads(map(query, 0, d), self.heads);
        let kv = map(x, d, 3 * d);
        let k = split_heads(kv.clone().slice([0..batch, 0..n, 0..d]), self.heads);
        let v = split_heads(kv.slice([0..batch, 0..n, d..2 * d]), self.heads);
        let context = attention(q, k, v, None, None, AttentionModuleOptions::default());
        self.out_proj.forward(merge_heads(context))
    }
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

/// MLP: two linear layers with an activation between them.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[d, hidden]`.
    pub c_fc: Linear,
    /// `[hidden, d]`.
    pub c_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    pub(super) fn build(
        builder: &mut Builder<'_>,
        path: &str,
        shape: &BlockShape,
    ) -> Result<Self, CheckpointError> {
        Ok(Self {
            c_fc: builder.linear(&format!("{path}.c_fc"), shape.width, shape.hidden)?,
            c_proj: builder.linear(&format!("{path}.c_proj"), shape.hidden, shape.width)?,
            activation: shape.activation,
        })
    }

    pub(super) fn forward<O: Observer>(
        &self,
        x: Tensor<3>,
        path: &dyn Fn() -> String,
        observer: &mut O,
    ) -> Tensor<3> {
        if O::ACTIVE {
            observer.linear_input(
                &format!("{}.mlp.c_fc.weight", path()),
                flatten_tokens(x.clone()),
            );
        }
        let x = clip_kernels::activate(
            self.c_fc.forward(x),
            self.activation.into(),
            Kernels::default(),
        );
        if O::ACTIVE {
            observer.linear_input(
                &format!("{}.mlp.c_proj.weight", path()),
                flatten_tokens(x.clone()),
            );
        }
        self.c_proj.forward(x)
    }
}

/// `[batch, n, d]` to `[batch · n, d]`.
fn flatten_tokens(x: Tensor<3>) -> Tensor<2> {
    let [batch, n, d] = x.dims();
    x.reshape([batch * n, d])
}

/// A pre-norm residual block: `x ← x + attention(ln_1(x))`, then `x ← x + mlp(ln_2(x))` (OpenAI
/// CLIP `clip/model.py`, class `ResidualAttentionBlock`).
#[derive(Module, Debug)]
pub struct ResidualBlock {
    /// Before the attention.
    pub ln_1: LayerNorm,
    /// The attention.
    pub attn: Attention,
    /// Before the MLP.
    pub ln_2: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
    /// Epsilon of both layer norms, kept here because Burn's `LayerNorm` does not expose it.
    epsilon: f64,
    #[module(skip)]
    pub(super) kernels: Kernels,
}

/// Hyper-parameters of the blocks of one tower.
pub(super) struct BlockShape {
    pub width: usize,
    pub hidden: usize,
    pub heads: usize,
    pub activation: Activation,
    pub epsilon: f64,
    pub causal: bool,
}

impl ResidualBlock {
    pub(super) fn build(
        builder: &mut Builder<'_>,
        path: &str,
        shape: &BlockShape,
    ) -> Result<Self, CheckpointError> {
        let d = shape.width;
        Ok(Self {
            ln_1: builder.layer_norm(&format!("{path}.ln_1"), d, shape.epsilon)?,
            attn: Attention::build(builder, &format!("{path}.attn"), shape)?,
            ln_2: builder.layer_norm(&format!("{path}.ln_2"), d, shape.epsilon)?,
            mlp: Mlp::build(builder, &format!("{path}.mlp"), shape)?,
            epsilon: shape.epsilon,
            kernels: Kernels::default(),
        })
    }

    /// `[batch, n, d]` to `[batch, n, d]`, or to `[batch, 1, d]` for [`Queries::At`], which
    /// computes one position of each item. This is exact for the last block, whose other outputs
    /// are unused. An observer that wants all tokens still receives the inputs at all positions.
    pub(super) fn forward<O: Observer>(
        &self,
        x: Tensor<3>,
        read: &Queries,
        path: &dyn Fn() -> String,
        observer: &mut O,
    ) -> Tensor<3> {
        // `queries` are the positions that the attention computes, `read` those of them at which
        // the output of the MLP is needed.
        let (queries, read) = match (observer.wants_all_tokens(), read) {
            (true, Queries::At(_)) => (&Queries::All, read),
            _ => (read, &Queries::All),
        };
        if !O::ACTIVE {
            let x = attention_branch(x, self.attention(), queries);
            return read.select(mlp_branch(x, self.mlp()));
        }
        let x = if observer.wants_attention_inputs() {
            let seen = attention_branch_with_inputs(x, self.attention(), queries);
            let weight_of = |part| format!("{}.attn.{part}.weight", path());
            observer.linear_input(&weight_of("in_proj"), flatten_tokens(seen.in_proj_input));
            observer.linear_input(&weight_of("out_proj"), flatten_tokens(seen.out_proj_input));
            seen.output
        } else {
            attention_branch(x, self.attention(), queries)
        };
        let branch = observer.branch(&path(), &x);
        let seen = mlp_branch_with_inputs(x, self.mlp(), read);
        let weight_of = |part| format!("{}.mlp.{part}.weight", path());
        observer.linear_input(&weight_of("c_fc"), flatten_tokens(seen.c_fc_input));
        observer.linear_input(&weight_of("c_proj"), flatten_tokens(seen.c_proj_input));
        match branch {
            Some(branch) => seen.output + read.select(branch),
            None => seen.output,
        }
    }

    /// Prefix trees `[batch, n, d]` to the outputs at the nodes `read`, `[1, read, d]`. The indices
    /// in `read` are those of the flattened `[batch · n]` nodes.
    pub(super) fn forward_nodes(
        &self,
        x: Tensor<3>,
        trees: &Queries,
        read: Tensor<1, Int>,
    ) -> Tensor<3> {
        let x = attention_branch(x, self.attention(), trees);
        mlp_branch(flatten_tokens(x).select(0, read).unsqueeze(), self.mlp())
    }

    fn attention(&self) -> AttentionBranch {
        AttentionBranch {
            norm: kernel_norm(&self.ln_1, self.epsilon),
            in_proj: kernel_linear(&self.attn.in_proj),
            out_proj: kernel_linear(&self.attn.out_proj),
            heads: self.attn.heads,
            causal: self.attn.causal,
            kernels: self.kernels,
        }
    }

    fn mlp(&self) -> MlpBranch {
        MlpBranch {
            norm: kernel_norm(&self.ln_2, self.epsilon),
            c_fc: kernel_linear(&self.mlp.c_fc),
            activation: self.mlp.activation.into(),
            c_proj: kernel_linear(&self.mlp.c_proj),
            kernels: self.kernels,
        }
    }
}

fn kernel_linear(linear: &Linear) -> clip_kernels::LinearParams {
    // `Builder::linear` always creates a bias.
    let bias = linear.bias.as_ref().expect("built with a bias");
    clip_kernels::LinearParams {
        weight: linear.weight.val(),
        bias: bias.val(),
    }
}

fn kernel_norm(norm: &LayerNorm, epsilon: f64) -> clip_kernels::LayerNormParams {
    // `Builder::layer_norm` always creates a shift.
    let beta = norm.beta.as_ref().expect("built with a shift");
    clip_kernels::LayerNormParams {
        gamma: norm.gamma.val(),
        beta: beta.val(),
        epsilon,
    }
}

impl From<Activation> for clip_kernels::ActivationFunction {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::QuickGelu => Self::QuickGelu,
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
        }
    }
}

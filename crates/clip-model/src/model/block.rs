//! The pre-norm residual block that both towers are made of.

use burn::{
    module::Module,
    nn::{LayerNorm, Linear},
    tensor::{Tensor, activation, module::attention, ops::AttentionModuleOptions},
};

use super::{Observer, host, params::Builder};
use crate::{config::Activation, error::CheckpointError};

/// Multi-head self-attention with one fused projection to queries, keys and values.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[d, 3d]`: columns 0..d give the queries, d..2d the keys, 2d..3d the values.
    pub in_proj: Linear,
    /// `[d, d]`.
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

    /// Every token attends: `x [batch, n, d]` to `[batch, n, d]`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, n, d] = x.dims();
        let qkv = self.in_proj.forward(x);
        let part = |i: usize| {
            split_heads(
                qkv.clone().slice([0..batch, 0..n, i * d..(i + 1) * d]),
                self.heads,
            )
        };
        let options = AttentionModuleOptions {
            is_causal: self.causal,
            ..Default::default()
        };
        let context = if !self.causal && host::computes(&qkv) {
            attention_on_host(part(0), part(1), part(2))
        } else {
            attention(part(0), part(1), part(2), None, None, options)
        };
        self.out_proj.forward(merge_heads(context))
    }

    /// Only the token `query [batch, 1, d]` attends, to the whole of `x [batch, n, d]`, where
    /// `visible [batch, n]` is 0 for a position it may see and −∞ for one it may not.
    pub(super) fn forward_one(
        &self,
        query: Tensor<3>,
        x: Tensor<3>,
        visible: Option<Tensor<2>>,
    ) -> Tensor<3> {
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
        let bias = visible.map(|m| {
            m.reshape([batch, 1, 1, n])
                .expand([batch, self.heads, 1, n])
        });
        let context = attention(q, k, v, None, bias, AttentionModuleOptions::default());
        self.out_proj.forward(merge_heads(context))
    }
}

/// `softmax(q · kᵀ / √h) · v`.
fn attention_on_host(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let [_, _, n, h] = q.dims();
    let scores = q.matmul(k.swap_dims(2, 3));
    let scale = (h as f32).sqrt().recip();
    host::map_rows(scores, n, |row| host::softmax(row, scale)).matmul(v)
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

/// Two linear maps with a non-linearity between them.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[d, hidden]`.
    pub c_fc: Linear,
    /// `[hidden, d]`.
    pub c_proj: Linear,
    #[module(skip)]
    activation: Activation,
    width: usize,
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
            width: shape.hidden,
        })
    }

    pub(super) fn forward<O: Observer>(
        &self,
        x: Tensor<3>,
        path: &dyn Fn() -> String,
        observer: &mut O,
    ) -> Tensor<3> {
        if O::ACTIVE {
            observer.linear_input(&format!("{}.mlp.c_fc.weight", path()), rows(&x));
        }
        let x = self.c_fc.forward(x);
        let x = match self.activation {
            Activation::QuickGelu if host::computes(&x) => {
                host::map_rows(x, self.width, |row| host::gated(row, 1.702, 0.0))
            }
            Activation::GeluTanh if host::computes(&x) => {
                let a = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
                host::map_rows(x, self.width, |row| host::gated(row, a, 0.044715 * a))
            }
            // OpenAI CLIP `clip/model.py`, class `QuickGELU`.
            Activation::QuickGelu => x.clone() * activation::sigmoid(x.mul_scalar(1.702)),
            Activation::Gelu => activation::gelu(x),
            Activation::GeluTanh => activation::gelu_approximate(x),
        };
        if O::ACTIVE {
            observer.linear_input(&format!("{}.mlp.c_proj.weight", path()), rows(&x));
        }
        self.c_proj.forward(x)
    }
}

fn rows(x: &Tensor<3>) -> Tensor<2> {
    let [batch, n, d] = x.dims();
    x.clone().reshape([batch * n, d])
}

/// `x ← x + attention(ln_1(x))`, then `x ← x + mlp(ln_2(x))` (OpenAI CLIP `clip/model.py`, class
/// `ResidualAttentionBlock`).
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
}

/// The shape of the blocks of one tower.
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
        })
    }

    /// `[batch, n, d]` to `[batch, n, d]`.
    pub(super) fn forward<O: Observer>(
        &self,
        x: Tensor<3>,
        path: &dyn Fn() -> String,
        observer: &mut O,
    ) -> Tensor<3> {
        let x = x.clone() + self.attn.forward(self.ln_1.forward(x));
        self.mlp_and_branch(x, path, observer)
    }

    /// The block's output at one token only: an exact saving for the last block, whose other outputs
    /// nobody reads. `pick` takes that token `[batch, 1, d]` out of `[batch, n, d]`; `visible` is as in
    /// [`Attention::forward_one`].
    pub(super) fn forward_one<O: Observer>(
        &self,
        x: Tensor<3>,
        pick: &dyn Fn(Tensor<3>) -> Tensor<3>,
        visible: Option<Tensor<2>>,
        path: &dyn Fn() -> String,
        observer: &mut O,
    ) -> Tensor<3> {
        let normed = self.ln_1.forward(x.clone());
        let x = pick(x) + self.attn.forward_one(pick(normed.clone()), normed, visible);
        self.mlp_and_branch(x, path, observer)
    }

    /// The second half of the block, from the state after the attention.
    fn mlp_and_branch<O: Observer>(
        &self,
        x: Tensor<3>,
        path: &dyn Fn() -> String,
        observer: &mut O,
    ) -> Tensor<3> {
        let branch = if O::ACTIVE {
            observer.branch(&path(), &x)
        } else {
            None
        };
        let y = self
            .mlp
            .forward(self.ln_2.forward(x.clone()), path, observer);
        match branch {
            Some(branch) => x + y + branch,
            None => x + y,
        }
    }
}

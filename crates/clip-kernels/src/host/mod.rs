//! Host kernels on slices of `f32`: transformer branches, layer norm, activations and AdamW, with
//! hand-written gradients.
//!
//! | module | contents |
//! |---|---|
//! | [`attention`] | the attention branch of a block |
//! | [`mlp`] | the MLP branch of a block |
//! | [`activation`] | QuickGELU and both forms of GELU |
//! | [`layer_norm`] | layer norm over rows, and its gradients |
//! | [`adamw`] | AdamW in one pass |
//! | `product` | matrix products |
//! | `buffers` | allocation of results, and pooled scratch memory |
//! | `parts` | partition of the work over threads |
//! | `simd` | vectorised loops, the exponential |
//!
//! The work is partitioned by index over the threads of the current rayon pool. Reductions over rows
//! are partitioned by constants instead, so results do not depend on the number of threads. Shapes
//! are the caller's responsibility; assertions check them.

pub mod activation;
pub mod adamw;
pub mod attention;
mod buffers;
pub mod layer_norm;
pub mod mlp;
mod parts;
mod product;
#[cfg(test)]
mod reference;
mod simd;

/// Parameters of a layer norm over rows of `width` values.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormParams<'a> {
    /// The scale, `[width]`.
    pub gamma: &'a [f32],
    /// The shift, `[width]`.
    pub beta: &'a [f32],
    /// Added to the variance, inside the root.
    pub epsilon: f32,
}

/// Parameters of a linear layer `y = x·W + b`.
#[derive(Clone, Copy, Debug)]
pub struct LinearParams<'a> {
    /// `W`, row-major `[in, out]`.
    pub weight: &'a [f32],
    /// `b`, `[out]`.
    pub bias: Option<&'a [f32]>,
}

//! The kernels of the host: transformer branches, norms and an optimizer step on slices of `f32`,
//! with gradients written by hand.
//!
//! | module | holds |
//! |---|---|
//! | [`attention`] | the attention branch of a block |
//! | [`mlp`] | the MLP branch of a block |
//! | [`activation`] | QuickGELU and both forms of GELU |
//! | [`layer_norm`] | a layer norm, and what of it a branch needs |
//! | [`adamw`] | AdamW in one pass |
//! | `product` | matrix products |
//! | `buffers` | memory for results, scratch memory |
//! | `parts` | how work is cut over the threads |
//! | `simd` | vectorised loops, the exponential |
//!
//! Work is cut by index into one part a thread of the current rayon pool, so a result depends on
//! the number of threads and on nothing else about the schedule. Shapes are checked by assertions:
//! they are the caller's to get right.

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

/// A layer norm over rows of `width`.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormParams<'a> {
    /// The scale, `[width]`.
    pub gamma: &'a [f32],
    /// The shift, `[width]`.
    pub beta: &'a [f32],
    /// Added to the variance, inside the root.
    pub epsilon: f32,
}

/// An affine map `y = x·W + b`.
#[derive(Clone, Copy, Debug)]
pub struct LinearParams<'a> {
    /// `W`, row-major `[in, out]`.
    pub weight: &'a [f32],
    /// `b`, `[out]`.
    pub bias: Option<&'a [f32]>,
}

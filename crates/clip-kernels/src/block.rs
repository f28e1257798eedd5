//! What the branches compute with.

use burn::tensor::{Int, Tensor, TensorData};

use crate::Tree;

/// A layer norm over the last axis: biased variance, `epsilon` inside the root.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[d]`, the scale.
    pub gamma: Tensor<1>,
    /// `[d]`, the shift.
    pub beta: Tensor<1>,
    /// Added to the variance.
    pub epsilon: f64,
}

/// `x · weight + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[in, out]`.
    pub weight: Tensor<2>,
    /// `[out]`.
    pub bias: Tensor<1>,
}

/// The non-linearity of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(1.702 x)` (OpenAI CLIP `clip/model.py`, class `QuickGELU`).
    QuickGelu,
    /// `x · Φ(x)`.
    Gelu,
    /// GELU by its tanh approximation (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    GeluTanh,
}

/// What [`attention_branch`] computes with.
#[derive(Debug, Clone)]
pub struct AttentionBranch {
    /// Before the attention.
    pub norm: LayerNorm,
    /// `[d, 3d]`: queries, keys, values; the heads are contiguous slices of each.
    pub in_proj: Linear,
    /// `[d, d]`.
    pub out_proj: Linear,
    /// Number of heads; divides `d`.
    pub heads: usize,
    /// Whether a position sees no later one.
    pub causal: bool,
    /// What computes it.
    pub kernels: Kernels,
}

/// Whose attention [`attention_branch`] computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Queries {
    /// Every position's.
    All,
    /// One position's of each item: an exact saving where nobody reads the others.
    At(Vec<usize>),
    /// Every position's, to itself and to its ancestors in a tree, whatever the branch's mask:
    /// texts that begin alike are then one item, and what they share is computed once.
    Tree(Tree),
}

impl Queries {
    /// Their rows of `x` `[batch, n, d]`: `x` itself, or `[batch, 1, d]` for [`At`](Self::At).
    ///
    /// # Panics
    /// On a position beyond the row, or another number of items.
    pub fn pick(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::All | Self::Tree(_) => x,
            Self::At(positions) => picker(&x, positions)(x),
        }
    }
}

/// What [`mlp_branch`] computes with.
#[derive(Debug, Clone)]
pub struct MlpBranch {
    /// Before the MLP.
    pub norm: LayerNorm,
    /// `[d, hidden]`.
    pub c_fc: Linear,
    /// Between the two maps.
    pub activation: Activation,
    /// `[hidden, d]`.
    pub c_proj: Linear,
    /// What computes it.
    pub kernels: Kernels,
}

/// What [`observed_mlp_branch`] gives.
#[derive(Debug, Clone)]
pub struct ObservedMlp {
    /// The output of the branch.
    pub output: Tensor<3>,
    /// The input of its first map, `[batch, n, d]`.
    pub normed: Tensor<3>,
    /// The input of its second map, `[batch, n, hidden]`.
    pub inner: Tensor<3>,
}

/// What computes a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// The host's kernels where they apply (`f32` on `flex`), Burn's operations elsewhere.
    #[default]
    Fused,
    /// Burn's operations everywhere: the same up to rounding, for comparisons.
    Plain,
}

/// Takes one row of each item: `[batch, n, d]` to `[batch, 1, d]`.
pub fn picker(x: &Tensor<3>, positions: &[usize]) -> impl Fn(Tensor<3>) -> Tensor<3> + use<> {
    let [batch, n, d] = x.dims();
    assert!(
        positions.iter().all(|p| *p < n),
        "a position beyond the row of {n}"
    );
    let first = positions.iter().all(|p| *p == 0);
    let rows = positions
        .iter()
        .enumerate()
        .map(|(item, p)| (item * n + p) as i64);
    let rows = TensorData::new(rows.collect::<Vec<_>>(), [batch]);
    let rows = (!first).then(|| Tensor::<1, Int>::from_data(rows, &x.device()));
    move |x| match &rows {
        None => x.slice([0..batch, 0..1, 0..d]),
        Some(rows) => x
            .reshape([batch * n, d])
            .select(0, rows.clone())
            .reshape([batch, 1, d]),
    }
}

//! The operations on tensors, and which of the two ways they take.

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;

use crate::plain;

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

/// Which position of an item is whose parent. Clones are handles.
#[derive(Debug, Clone)]
pub struct Tree(Arc<TreeParts>);

#[derive(Debug)]
struct TreeParts {
    parents: Vec<usize>,
    /// What Burn's own attention adds to the scores; the same in every block.
    bias: OnceLock<Tensor<4>>,
}

impl Tree {
    /// A tree an item, one after the other: `[batch · n]`, the parent of each position within its
    /// item, which stands before it; a root is its own. They are checked where they are used.
    pub fn new(parents: Vec<usize>) -> Self {
        Self(Arc::new(TreeParts {
            parents,
            bias: OnceLock::new(),
        }))
    }

    /// `[batch · n]`
    pub fn parents(&self) -> &[usize] {
        &self.0.parents
    }

    /// `[batch, 1, n, n]` for `x` `[batch, n, d]`, on its device and in its format.
    pub(crate) fn bias(&self, x: &Tensor<3>) -> Tensor<4> {
        let kept = self
            .0
            .bias
            .get_or_init(|| plain::tree_bias(x, self.parents()));
        let [batch, n, _] = x.dims();
        let (on, of) = (x.device(), kept.device());
        // Devices are equal with a tape and without one.
        let same = on == of
            && on.is_autodiff() == of.is_autodiff()
            && kept.dtype() == x.dtype()
            && kept.dims() == [batch, 1, n, n];
        match same {
            true => kept.clone(),
            false => plain::tree_bias(x, self.parents()),
        }
    }
}

/// A position and its ancestors.
pub(crate) fn way_up(
    parents: &[usize],
    position: usize,
) -> impl Iterator<Item = usize> + Clone + '_ {
    std::iter::successors(Some(position), |position| {
        let parent = parents[*position];
        (parent != *position).then_some(parent)
    })
}

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        self.parents() == other.parents()
    }
}

impl Eq for Tree {}

impl Queries {
    /// Their rows of `x` `[batch, n, d]`: `x` itself, or `[batch, 1, d]` for [`At`](Self::At).
    ///
    /// # Panics
    /// On a position beyond the row, or another number of items.
    pub fn pick(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::All | Self::Tree(_) => x,
            Self::At(positions) => plain::picker(&x, positions)(x),
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

//! Parameters of the branches, and the selection of queries and kernels.

use burn::tensor::{Int, Tensor, TensorData};

use crate::Tree;

/// A layer norm over the last axis, with the biased variance and `epsilon` inside the root.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use clip_kernels::{Kernels, LayerNormParams, layer_norm};
///
/// let device = Device::default();
/// let norm = LayerNormParams {
///     gamma: Tensor::ones([8], &device),
///     beta: Tensor::zeros([8], &device),
///     epsilon: 1e-5,
/// };
/// let y = layer_norm(Tensor::<3>::ones([2, 5, 8], &device), norm, Kernels::Fused);
/// assert_eq!(y.dims(), [2, 5, 8]);
/// ```
#[derive(Debug, Clone)]
pub struct LayerNormParams {
    /// The scale, `[width]`.
    pub gamma: Tensor<1>,
    /// The shift, `[width]`.
    pub beta: Tensor<1>,
    /// Added to the variance.
    pub epsilon: f64,
}

/// A linear layer `x · weight + bias`. [`AttentionBranch`] has an example.
#[derive(Debug, Clone)]
pub struct LinearParams {
    /// `[inputs, outputs]`
    pub weight: Tensor<2>,
    /// `[outputs]`
    pub bias: Tensor<1>,
}

/// The activation of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationFunction {
    /// `x · σ(1.702 x)` (OpenAI CLIP `clip/model.py`, class `QuickGELU`).
    QuickGelu,
    /// `x · Φ(x)`.
    Gelu,
    /// GELU by its tanh approximation (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    GeluTanh,
}

/// Parameters and options of [`attention_branch`](crate::attention_branch).
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use clip_kernels::{AttentionBranch, Kernels, LayerNormParams, LinearParams, Queries, attention_branch};
///
/// let device = Device::default();
/// let linear = |inputs: usize, outputs: usize| LinearParams {
///     weight: Tensor::zeros([inputs, outputs], &device),
///     bias: Tensor::zeros([outputs], &device),
/// };
/// let branch = AttentionBranch {
///     norm: LayerNormParams {
///         gamma: Tensor::ones([8], &device),
///         beta: Tensor::zeros([8], &device),
///         epsilon: 1e-5,
///     },
///     in_proj: linear(8, 24),
///     out_proj: linear(8, 8),
///     heads: 2,
///     causal: true,
///     kernels: Kernels::Fused,
/// };
/// let x = Tensor::<3>::ones([2, 5, 8], &device);
/// let y = attention_branch(x.clone(), branch.clone(), &Queries::All);
/// assert_eq!(y.dims(), [2, 5, 8]);
/// // The last token of each item only.
/// let y = attention_branch(x, branch, &Queries::At(vec![4, 4]));
/// assert_eq!(y.dims(), [2, 1, 8]);
/// ```
#[derive(Debug, Clone)]
pub struct AttentionBranch {
    /// The layer norm before the attention.
    pub norm: LayerNormParams,
    /// The projection to queries, keys and values, `[width, 3 width]`. The heads are contiguous
    /// slices of each.
    pub in_proj: LinearParams,
    /// The output projection, `[width, width]`.
    pub out_proj: LinearParams,
    /// Number of heads; divides `width`.
    pub heads: usize,
    /// Applies the causal mask: a token attends to no later one.
    pub causal: bool,
    /// The implementation to use.
    pub kernels: Kernels,
}

/// The tokens whose attention [`attention_branch`](crate::attention_branch) computes.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use clip_kernels::Queries;
///
/// let x = Tensor::<3>::zeros([2, 5, 8], &Device::default());
/// let queries = Queries::At(vec![0, 3]); // one position for each of the two items
/// assert_eq!(queries.select(x.clone()).dims(), [2, 1, 8]);
/// assert_eq!(Queries::All.select(x).dims(), [2, 5, 8]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Queries {
    /// All tokens.
    All,
    /// One token of each item, by position. Exact, and cheaper if the other outputs are unused.
    At(Vec<usize>),
    /// All tokens, each attending to itself and its ancestors in a prefix tree, whatever the mask
    /// of the branch. Texts with shared prefixes form one item, so that each prefix is computed
    /// once.
    Tree(Tree),
}

impl Queries {
    /// Selects the rows of the queries.
    ///
    /// # Shapes
    /// - `x`: `[batch, tokens, width]`
    /// - output: `x` itself, or `[batch, 1, width]` for [`At`](Self::At)
    ///
    /// # Panics
    /// If a position is out of range, or their number differs from the batch size.
    pub fn select(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::All | Self::Tree(_) => x,
            Self::At(positions) => row_selector(&x, positions)(x),
        }
    }
}

/// Parameters and options of [`mlp_branch`](crate::mlp_branch).
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use clip_kernels::{ActivationFunction, Kernels, LayerNormParams, LinearParams, MlpBranch, mlp_branch};
///
/// let device = Device::default();
/// let linear = |inputs: usize, outputs: usize| LinearParams {
///     weight: Tensor::zeros([inputs, outputs], &device),
///     bias: Tensor::zeros([outputs], &device),
/// };
/// let branch = MlpBranch {
///     norm: LayerNormParams {
///         gamma: Tensor::ones([8], &device),
///         beta: Tensor::zeros([8], &device),
///         epsilon: 1e-5,
///     },
///     c_fc: linear(8, 32),
///     activation: ActivationFunction::QuickGelu,
///     c_proj: linear(32, 8),
///     kernels: Kernels::Fused,
/// };
/// let y = mlp_branch(Tensor::<3>::ones([2, 5, 8], &device), branch);
/// assert_eq!(y.dims(), [2, 5, 8]);
/// ```
#[derive(Debug, Clone)]
pub struct MlpBranch {
    /// The layer norm before the MLP.
    pub norm: LayerNormParams,
    /// The first linear layer, `[width, hidden]`.
    pub c_fc: LinearParams,
    /// The activation between the linear layers.
    pub activation: ActivationFunction,
    /// The second linear layer, `[hidden, width]`.
    pub c_proj: LinearParams,
    /// The implementation to use.
    pub kernels: Kernels,
}

/// Output of [`attention_branch_with_inputs`](crate::attention_branch_with_inputs).
#[derive(Debug, Clone)]
pub struct AttentionBranchWithInputs {
    /// The output of the branch, `[batch, tokens, width]` or `[batch, 1, width]`.
    pub output: Tensor<3>,
    /// The input of the projection to queries, keys and values, `[batch, tokens, width]`.
    pub in_proj_input: Tensor<3>,
    /// The input of the output projection, of the shape of the output.
    pub out_proj_input: Tensor<3>,
}

/// Output of [`mlp_branch_with_inputs`](crate::mlp_branch_with_inputs).
#[derive(Debug, Clone)]
pub struct MlpBranchWithInputs {
    /// The output of the branch, `[batch, tokens, width]` or `[batch, 1, width]`.
    pub output: Tensor<3>,
    /// The input of the first linear layer, `[batch, tokens, width]`.
    pub c_fc_input: Tensor<3>,
    /// The input of the second linear layer, `[batch, tokens, hidden]`.
    pub c_proj_input: Tensor<3>,
}

/// The implementation of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// The fused kernels where they apply (`f32` on `flex`), Burn's operations elsewhere.
    #[default]
    Fused,
    /// Burn's operations everywhere. Equal up to rounding; for comparisons.
    Plain,
}

/// Returns a function that selects one row of each item: `[batch, tokens, width]` to
/// `[batch, 1, width]`.
pub fn row_selector(x: &Tensor<3>, positions: &[usize]) -> impl Fn(Tensor<3>) -> Tensor<3> + use<> {
    let [batch, tokens, width] = x.dims();
    assert!(
        positions.iter().all(|p| *p < tokens),
        "a position beyond the row of {tokens}"
    );
    // A slice needs no index tensor: the class token of an image tower is the first.
    let all_first = positions.iter().all(|p| *p == 0);
    let rows = positions
        .iter()
        .enumerate()
        .map(|(item, p)| (item * tokens + p) as i64);
    let rows = TensorData::new(rows.collect::<Vec<_>>(), [batch]);
    let rows = (!all_first).then(|| Tensor::<1, Int>::from_data(rows, &x.device()));
    move |x| match &rows {
        None => x.slice([0..batch, 0..1, 0..width]),
        Some(rows) => x
            .reshape([batch * tokens, width])
            .select(0, rows.clone())
            .reshape([batch, 1, width]),
    }
}

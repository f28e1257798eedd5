//! Sizes, parameters and results of the attention branch, and the layout of its tokens.

use super::super::{LayerNormParams, LinearParams};

/// Sizes of an attention branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of items.
    pub batch: usize,
    /// Number of tokens of an item.
    pub tokens: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of heads; divides the width.
    pub heads: usize,
    /// Applies the causal mask: a token attends to itself and earlier ones only.
    pub causal: bool,
}

/// Parameters of an attention branch.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams<'a> {
    /// The layer norm before the projections.
    pub norm: LayerNormParams<'a>,
    /// The projection to queries, keys and values, `[width, 3 width]`.
    pub in_proj: LinearParams<'a>,
    /// The output projection, `[width, width]`.
    pub out_proj: LinearParams<'a>,
}

/// The tokens whose output is computed.
#[derive(Clone, Copy, Debug)]
pub enum Queries<'a> {
    /// All tokens.
    All,
    /// One token of each item, by position: `[batch]`.
    At(&'a [usize]),
    /// All tokens, each attending to itself and its ancestors only. Holds the parent of each token
    /// of each item, `[batch · tokens]`: an earlier token, or itself for a root.
    Tree(&'a [usize]),
}

/// Activations that the forward pass saves for the backward pass.
///
/// Keys and values are those of the tokens that a query attends to.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionActivations {
    /// Queries, `[queries, width]`.
    pub query: Vec<f32>,
    /// Keys and values, `[keys, 2 width]`, keys first.
    pub key_value: Vec<f32>,
    /// Statistics of each softmax, `[batch, heads, queries of an item]`.
    pub softmax_stats: Vec<SoftmaxStats>,
}

/// Statistics of a softmax: the probabilities are `exp(score − max) · inverse_sum`.
///
/// The log-sum-exp alone would be one number less, but adds a rounding of its own. With both
/// numbers the probabilities of the two passes are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SoftmaxStats {
    /// The largest score.
    pub max: f32,
    /// The reciprocal of the sum of the exponentials.
    pub inverse_sum: f32,
}

/// The gradients to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionNeedsGrad {
    /// Of the input of the branch.
    pub input: bool,
    /// Of both parameters of the layer norm.
    pub norm: bool,
    /// Of the weight of the projection to queries, keys and values.
    pub in_weight: bool,
    /// Of the bias of the projection to queries, keys and values.
    pub in_bias: bool,
    /// Of the weight of the output projection.
    pub out_weight: bool,
    /// Of the bias of the output projection.
    pub out_bias: bool,
}

/// Gradients of an attention branch; `None` unless requested.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionGradients {
    /// Of the input, `[batch, tokens, width]`.
    pub input: Option<Vec<f32>>,
    /// Of the scale of the layer norm, `[width]`.
    pub gamma: Option<Vec<f32>>,
    /// Of the shift of the layer norm, `[width]`.
    pub beta: Option<Vec<f32>>,
    /// Of the weight of the first projection, `[width, 3 width]`.
    pub in_weight: Option<Vec<f32>>,
    /// Of the bias of the first projection, `[3 width]`.
    pub in_bias: Option<Vec<f32>>,
    /// Of the weight of the output projection, `[width, width]`.
    pub out_weight: Option<Vec<f32>>,
    /// Of the bias of the output projection, `[width]`.
    pub out_bias: Option<Vec<f32>>,
}

impl AttentionNeedsGrad {
    /// Returns `true` if the gradient has to pass the output projection.
    pub(super) fn before_out_proj(&self) -> bool {
        self.in_weight || self.in_bias || self.before_in_proj()
    }

    /// Returns `true` if the gradient has to pass the first projection.
    pub(super) fn before_in_proj(&self) -> bool {
        self.input || self.norm
    }
}

/// The rows of the input that give queries, keys and values.
pub(super) struct TokenLayout<'a> {
    /// The sizes; causal under a tree too, whose parents stand before their children.
    pub(super) shape: AttentionShape,
    pub(super) positions: Option<&'a [usize]>,
    pub(super) parents: Option<&'a [usize]>,
    /// The first key of each item, and the end of the last item.
    pub(super) key_offsets: Vec<usize>,
    /// The input row of each key; `None` if keys and rows coincide.
    pub(super) key_rows: Option<Vec<usize>>,
}

impl<'a> TokenLayout<'a> {
    pub(super) fn new(mut shape: AttentionShape, queries: Queries<'a>) -> Self {
        let AttentionShape {
            batch,
            tokens,
            causal,
            ..
        } = shape;
        let mut parents = None;
        let positions = match queries {
            Queries::All => None,
            Queries::Tree(tree) => {
                assert_eq!(tree.len(), batch * tokens, "one parent for each token");
                let in_order = |(token, parent)| parent <= token % tokens;
                assert!(
                    tree.iter().copied().enumerate().all(in_order),
                    "a parent stands before its children"
                );
                // A tree has no edge to a later token, so blocks of queries can skip later keys.
                shape.causal = true;
                parents = Some(tree);
                None
            }
            Queries::At(positions) => {
                assert_eq!(positions.len(), batch, "one position for each item");
                assert!(
                    positions.iter().all(|p| *p < tokens),
                    "a position beyond the tokens"
                );
                Some(positions)
            }
        };
        // Under the causal mask no query attends to tokens behind the selected one.
        let attended = |item: usize| match positions {
            Some(positions) if causal => positions[item] + 1,
            _ => tokens,
        };
        let mut key_offsets = vec![0];
        let mut end = 0;
        for item in 0..batch {
            end += attended(item);
            key_offsets.push(end);
        }
        let key_rows = positions.map(|_| {
            (0..batch)
                .flat_map(|item| item * tokens..item * tokens + attended(item))
                .collect()
        });
        Self {
            shape,
            positions,
            parents,
            key_offsets,
            key_rows,
        }
    }

    /// Returns the number of keys of all items.
    pub(super) fn key_count(&self) -> usize {
        self.key_offsets[self.shape.batch]
    }

    /// Returns the number of queries of all items.
    pub(super) fn query_count(&self) -> usize {
        self.shape.batch * self.queries_per_item()
    }

    pub(super) fn queries_per_item(&self) -> usize {
        if self.positions.is_some() {
            1
        } else {
            self.shape.tokens
        }
    }

    pub(super) fn keys_of_item(&self, item: usize) -> usize {
        self.key_offsets[item + 1] - self.key_offsets[item]
    }

    /// Returns the input row of a key.
    pub(super) fn key_row(&self, key: usize) -> usize {
        self.key_rows.as_ref().map_or(key, |rows| rows[key])
    }

    /// Returns the input row of a query.
    pub(super) fn query_row(&self, query: usize) -> usize {
        self.positions.map_or(query, |positions| {
            query * self.shape.tokens + positions[query]
        })
    }

    /// Returns the length of each item's slice of a buffer with one row of `width` per key.
    pub(super) fn key_lengths(&self, width: usize) -> impl Iterator<Item = usize> {
        (0..self.shape.batch).map(move |item| self.keys_of_item(item) * width)
    }
}

impl AttentionParams<'_> {
    pub(super) fn check(&self, x: &[f32], shape: AttentionShape) {
        let AttentionShape {
            batch,
            tokens,
            width,
            heads,
            ..
        } = shape;
        assert!(
            width > 0 && heads > 0 && width.is_multiple_of(heads),
            "heads must share the width"
        );
        assert_eq!(x.len(), batch * tokens * width);
        assert_eq!(self.norm.gamma.len(), width);
        assert_eq!(self.norm.beta.len(), width);
        assert_eq!(self.in_proj.weight.len(), width * 3 * width);
        assert_eq!(self.out_proj.weight.len(), width * width);
        assert!(self.in_proj.bias.is_none_or(|bias| bias.len() == 3 * width));
        assert!(self.out_proj.bias.is_none_or(|bias| bias.len() == width));
    }
}

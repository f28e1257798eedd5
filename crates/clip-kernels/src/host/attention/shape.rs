//! Sizes, parameters, results, and which tokens are computed.

use super::super::{LayerNormParams, LinearParams};

/// The sizes of an attention branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// How many items.
    pub batch: usize,
    /// How many tokens an item has.
    pub tokens: usize,
    /// The width of the residual stream.
    pub width: usize,
    /// How many heads share the width.
    pub heads: usize,
    /// Whether a token attends only to itself and those before it.
    pub causal: bool,
}

/// The parameters of an attention branch.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams<'a> {
    /// The layer norm before the first product.
    pub norm: LayerNormParams<'a>,
    /// The projection to queries, keys and values, `[width, 3 width]`.
    pub in_proj: LinearParams<'a>,
    /// The projection of the heads, `[width, width]`.
    pub out_proj: LinearParams<'a>,
}

/// The tokens whose output is computed.
#[derive(Clone, Copy, Debug)]
pub enum Queries<'a> {
    /// All of them.
    All,
    /// One of each item.
    At(&'a [usize]),
    /// All of them, of which each attends to itself and to its ancestors alone: the parent of each
    /// token of each item, which stands before it, or is itself.
    Tree(&'a [usize]),
}

/// What the forward pass keeps for the backward pass.
///
/// Of the tokens, only those are kept that a query attends to.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionActivations {
    /// `[queries, width]`
    pub query: Vec<f32>,
    /// `[tokens kept, 2 width]`, keys before values.
    pub key_value: Vec<f32>,
    /// Of each softmax, `[batch, heads, queries of an item]`.
    pub normalisers: Vec<Normaliser>,
}

/// What makes a row of scores probabilities: `exp(score − largest) · scale`. The logarithm of the
/// sum of exponentials would be one number less, and worse by its own rounding: the probabilities
/// of both passes are the same this way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Normaliser {
    /// The largest score.
    pub largest: f32,
    /// One over the sum of the exponentials.
    pub scale: f32,
}

/// The gradients that are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionWanted {
    /// Of the input of the branch.
    pub input: bool,
    /// Of both parameters of the layer norm.
    pub norm: bool,
    /// Of the weight of the projection to queries, keys and values.
    pub in_weight: bool,
    /// Of the bias of the projection to queries, keys and values.
    pub in_bias: bool,
    /// Of the weight of the projection of the heads.
    pub out_weight: bool,
    /// Of the bias of the projection of the heads.
    pub out_bias: bool,
}

/// The gradients that were wanted, each in the shape of what it belongs to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionGradients {
    /// `[batch, tokens, width]`
    pub input: Option<Vec<f32>>,
    /// `[width]`
    pub gamma: Option<Vec<f32>>,
    /// `[width]`
    pub beta: Option<Vec<f32>>,
    /// `[width, 3 width]`
    pub in_weight: Option<Vec<f32>>,
    /// `[3 width]`
    pub in_bias: Option<Vec<f32>>,
    /// `[width, width]`
    pub out_weight: Option<Vec<f32>>,
    /// `[width]`
    pub out_bias: Option<Vec<f32>>,
}

impl AttentionWanted {
    /// Whether the gradient goes back beyond the projection of the heads.
    pub(super) fn beyond_out(&self) -> bool {
        self.in_weight || self.in_bias || self.beyond_in()
    }

    /// Whether the gradient goes back beyond the first projection.
    pub(super) fn beyond_in(&self) -> bool {
        self.input || self.norm
    }
}

/// The tokens that take part: which rows of the input give keys and values, and which give queries.
pub(super) struct Tokens<'a> {
    /// Causal under a tree too.
    pub(super) shape: AttentionShape,
    pub(super) positions: Option<&'a [usize]>,
    pub(super) parents: Option<&'a [usize]>,
    /// Where the keys of each item begin, and the end of the last.
    pub(super) starts: Vec<usize>,
    /// The row of the input of each key; none when they are the same.
    pub(super) sources: Option<Vec<usize>>,
}

impl<'a> Tokens<'a> {
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
        let seen = |item: usize| match positions {
            Some(positions) if causal => positions[item] + 1,
            _ => tokens,
        };
        let mut starts = vec![0];
        let mut end = 0;
        for item in 0..batch {
            end += seen(item);
            starts.push(end);
        }
        let sources = positions.map(|_| {
            (0..batch)
                .flat_map(|item| item * tokens..item * tokens + seen(item))
                .collect()
        });
        Self {
            shape,
            positions,
            parents,
            starts,
            sources,
        }
    }

    pub(super) fn keys(&self) -> usize {
        self.starts[self.shape.batch]
    }

    pub(super) fn queries(&self) -> usize {
        self.shape.batch * self.queries_per_item()
    }

    pub(super) fn queries_per_item(&self) -> usize {
        if self.positions.is_some() {
            1
        } else {
            self.shape.tokens
        }
    }

    pub(super) fn keys_of(&self, item: usize) -> usize {
        self.starts[item + 1] - self.starts[item]
    }

    /// The row of the input under a key.
    pub(super) fn key_source(&self, key: usize) -> usize {
        self.sources.as_ref().map_or(key, |sources| sources[key])
    }

    /// The row of the input under a query.
    pub(super) fn query_source(&self, query: usize) -> usize {
        self.positions.map_or(query, |positions| {
            query * self.shape.tokens + positions[query]
        })
    }

    /// The lengths of each head's views of a buffer with one row a key.
    pub(super) fn key_lengths(&self, width: usize) -> impl Iterator<Item = usize> {
        (0..self.shape.batch).map(move |item| self.keys_of(item) * width)
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

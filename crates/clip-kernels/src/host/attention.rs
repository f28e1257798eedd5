//! The attention branch of a pre-norm block: `y = x + W₂·attention(W₁·LN(x) + b₁) + b₂`, and its
//! gradients.
//!
//! Three phases: projections of rows, attention of each head of each item, projections of rows.
//! What the backward pass needs of the forward pass are queries, keys, values and two numbers of
//! each softmax; it computes the probabilities again, as in FlashAttention (Dao et al., 2022). Rows
//! that no query attends to are left out.

use faer::{
    Accum, MatMut, MatRef,
    prelude::{Reborrow, ReborrowMut},
};

use super::{
    LayerNormParams, LinearParams,
    buffers::{Rows, copy, zeros},
    layer_norm::{ParamsGradient, row, row_backward, row_moments},
    parts::{self, Parts, split},
    product::{affine, chunks, largest_chunk, matrix, matrix_mut, on, product},
    simd::{AddTo, Kernel, dispatch, exp, max, sum},
};
use crate::tree::ancestors;

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
    fn beyond_out(&self) -> bool {
        self.in_weight || self.in_bias || self.beyond_in()
    }

    /// Whether the gradient goes back beyond the first projection.
    fn beyond_in(&self) -> bool {
        self.input || self.norm
    }
}

/// The tokens that take part: which rows of the input give keys and values, and which give queries.
struct Tokens<'a> {
    /// Causal under a tree too.
    shape: AttentionShape,
    positions: Option<&'a [usize]>,
    parents: Option<&'a [usize]>,
    /// Where the keys of each item begin, and the end of the last.
    starts: Vec<usize>,
    /// The row of the input of each key; none when they are the same.
    sources: Option<Vec<usize>>,
}

impl<'a> Tokens<'a> {
    fn new(mut shape: AttentionShape, queries: Queries<'a>) -> Self {
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

    fn keys(&self) -> usize {
        self.starts[self.shape.batch]
    }

    fn queries(&self) -> usize {
        self.shape.batch * self.queries_per_item()
    }

    fn queries_per_item(&self) -> usize {
        if self.positions.is_some() {
            1
        } else {
            self.shape.tokens
        }
    }

    fn keys_of(&self, item: usize) -> usize {
        self.starts[item + 1] - self.starts[item]
    }

    /// The row of the input under a key.
    fn key_source(&self, key: usize) -> usize {
        self.sources.as_ref().map_or(key, |sources| sources[key])
    }

    /// The row of the input under a query.
    fn query_source(&self, query: usize) -> usize {
        self.positions.map_or(query, |positions| {
            query * self.shape.tokens + positions[query]
        })
    }

    /// The lengths of each head's views of a buffer with one row a key.
    fn key_lengths(&self, width: usize) -> impl Iterator<Item = usize> {
        (0..self.shape.batch).map(move |item| self.keys_of(item) * width)
    }
}

/// The columns of one head in a matrix of all of them.
fn head<'a>(all: MatRef<'a, f32>, index: usize, width: usize) -> MatRef<'a, f32> {
    all.subcols(index * width, width)
}

/// Cuts a matrix into its heads.
fn heads(all: MatMut<'_, f32>, width: usize) -> Vec<MatMut<'_, f32>> {
    let mut rest = all;
    let mut heads = Vec::with_capacity(rest.ncols() / width);
    while rest.ncols() > 0 {
        let (head, others) = rest.split_at_col_mut(width);
        heads.push(head);
        rest = others;
    }
    heads
}

/// Queries, keys and values.
fn project(x: &[f32], params: &AttentionParams<'_>, tokens: &Tokens<'_>) -> (Vec<f32>, Vec<f32>) {
    let width = tokens.shape.width;
    let weight = matrix(params.in_proj.weight, width, 3 * width);
    let (to_query, to_key_value) = weight.split_at_col(width);
    let bias = params.in_proj.bias.map(|bias| bias.split_at(width));
    let mut query = zeros(tokens.queries() * width);
    let mut key_value = zeros(tokens.keys() * 2 * width);
    let source = |index: usize| &x[index * width..][..width];

    let parts = Parts::of_rows(tokens.keys(), false);
    let all = tokens.positions.is_none();
    let tasks = parts
        .ranges
        .iter()
        .zip(parts.split(&mut key_value, 2 * width))
        .zip(parts.split(
            if all { &mut query } else { &mut [] },
            if all { width } else { 0 },
        ))
        .collect();
    parts::run(tasks, |((range, key_value), query)| {
        let par = on(parts.threads);
        let mut normal = Rows::new(largest_chunk(range.len()), width);
        for chunk in chunks(range.len()) {
            for (i, key) in chunk.clone().enumerate() {
                let x = source(tokens.key_source(range.start + key));
                row(params.norm, x, normal.row_mut(i));
            }
            let normal = normal.first(chunk.len());
            let key_value = &mut key_value[chunk.start * 2 * width..chunk.end * 2 * width];
            affine(
                key_value,
                normal,
                to_key_value,
                bias.map(|bias| bias.1),
                par,
            );
            if all {
                let query = &mut query[chunk.start * width..chunk.end * width];
                affine(query, normal, to_query, bias.map(|bias| bias.0), par);
            }
        }
    });
    if !all {
        let normal = query_normals(x, params, tokens);
        let par = on(parts::threads());
        affine(
            &mut query,
            normal.first(tokens.queries()),
            to_query,
            bias.map(|bias| bias.0),
            par,
        );
    }
    (query, key_value)
}

/// The layer norm of the rows that give queries, where those are few.
fn query_normals(x: &[f32], params: &AttentionParams<'_>, tokens: &Tokens<'_>) -> Rows {
    let width = tokens.shape.width;
    let mut normal = Rows::new(tokens.queries(), width);
    for query in 0..tokens.queries() {
        let x = &x[tokens.query_source(query) * width..][..width];
        row(params.norm, x, normal.row_mut(query));
    }
    normal
}

/// Turns a row of scores into probabilities, and gives what does so. What lies beyond the `visible`
/// ones becomes zero.
struct Softmax<'a> {
    row: &'a mut [f32],
    visible: usize,
}

impl Kernel for Softmax<'_> {
    type Output = Normaliser;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> Normaliser {
        let (row, hidden) = self.row.split_at_mut(self.visible);
        hidden.fill(0.0);
        let largest = max(row);
        for x in row.iter_mut() {
            *x = exp::<FUSED>(*x - largest);
        }
        let total = sum(row.len(), |i| row[i]);
        let scale = 1.0 / total;
        for x in row {
            *x *= scale;
        }
        Normaliser { largest, scale }
    }
}

/// Turns a row of scores into probabilities as the forward pass did, and a row of gradients of
/// probabilities into gradients of scores, times `scale`.
struct SoftmaxBackward<'a> {
    row: &'a mut [f32],
    gradient: &'a mut [f32],
    visible: usize,
    normaliser: Normaliser,
    scale: f32,
}

impl Kernel for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let (row, hidden) = self.row.split_at_mut(self.visible);
        hidden.fill(0.0);
        let (gradient, hidden) = self.gradient.split_at_mut(self.visible);
        hidden.fill(0.0);
        for x in row.iter_mut() {
            *x = exp::<FUSED>(*x - self.normaliser.largest) * self.normaliser.scale;
        }
        let mean = sum(row.len(), |i| row[i] * gradient[i]);
        for (g, p) in gradient.iter_mut().zip(row) {
            *g = (*g - mean) * (*p * self.scale);
        }
    }
}

/// Queries of this many rows go through a head at once; with a causal mask fewer, because all of
/// them see as many keys as the last.
const MOST_QUERIES: usize = 256;
const MOST_CAUSAL_QUERIES: usize = 32;

/// One head of one item.
struct Head<'a> {
    query: MatRef<'a, f32>,
    key: MatRef<'a, f32>,
    value: MatRef<'a, f32>,
    /// Whether query `i` sees only the keys up to `i`.
    causal: bool,
    /// Of those, it then sees only what lies on its way up.
    parents: Option<&'a [usize]>,
}

/// Takes what lies on a way out of a row.
fn gather(row: &[f32], way: impl Iterator<Item = usize>, to: &mut Vec<f32>) {
    to.clear();
    to.extend(way.map(|at| row[at]));
}

/// Puts it back; the rest of the row becomes zero.
fn scatter(row: &mut [f32], way: impl Iterator<Item = usize>, from: &[f32]) {
    row.fill(0.0);
    for (at, value) in way.zip(from) {
        row[at] = *value;
    }
}

impl Head<'_> {
    fn scale(&self) -> f32 {
        1.0 / (self.query.ncols() as f32).sqrt()
    }

    /// The rows of each block of queries, and how many keys they see at most.
    fn blocks(&self) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> + use<> {
        let (queries, keys, causal) = (self.query.nrows(), self.key.nrows(), self.causal);
        let most = if causal {
            MOST_CAUSAL_QUERIES
        } else {
            MOST_QUERIES
        };
        parts::even(queries, queries.div_ceil(most))
            .map(move |range| (range.clone(), if causal { range.end } else { keys }))
    }

    /// `factor · a·bᵀ` of a block.
    fn scores(rows: &mut Rows, seen: usize, a: MatRef<'_, f32>, b: MatRef<'_, f32>, factor: f32) {
        let rows = rows.first_mut(a.nrows()).subcols_mut(0, seen);
        product(
            rows,
            Accum::Replace,
            a,
            b.subrows(0, seen).transpose(),
            factor,
            on(1),
        );
    }

    fn visible(&self, query: usize, seen: usize) -> usize {
        if self.causal { query + 1 } else { seen }
    }

    /// Turns a query's scores into probabilities.
    fn softmax(&self, query: usize, row: &mut [f32], on_way: &mut Vec<f32>) -> Normaliser {
        let Some(parents) = self.parents else {
            let visible = self.visible(query, row.len());
            return dispatch(Softmax { row, visible });
        };
        let way = ancestors(parents, query);
        gather(row, way.clone(), on_way);
        let visible = on_way.len();
        let normaliser = dispatch(Softmax {
            row: on_way,
            visible,
        });
        scatter(row, way, on_way);
        normaliser
    }

    /// Turns a query's scores into probabilities, and the gradients of those into the gradients of
    /// the scores.
    fn softmax_backward(
        &self,
        query: usize,
        normaliser: Normaliser,
        [row, gradient]: [&mut [f32]; 2],
        [row_on_way, gradient_on_way]: [&mut Vec<f32>; 2],
    ) {
        let scale = self.scale();
        let Some(parents) = self.parents else {
            let visible = self.visible(query, row.len());
            return dispatch(SoftmaxBackward {
                row,
                gradient,
                visible,
                normaliser,
                scale,
            });
        };
        let way = ancestors(parents, query);
        gather(row, way.clone(), row_on_way);
        gather(gradient, way.clone(), gradient_on_way);
        let visible = row_on_way.len();
        dispatch(SoftmaxBackward {
            row: row_on_way,
            gradient: gradient_on_way,
            visible,
            normaliser,
            scale,
        });
        scatter(row, way.clone(), row_on_way);
        scatter(gradient, way, gradient_on_way);
    }

    fn forward(
        &self,
        scores: &mut Scores,
        mut output: MatMut<'_, f32>,
        normalisers: &mut [Normaliser],
    ) {
        let Scores { rows, on_way } = scores;
        for (range, seen) in self.blocks() {
            let query = self.query.subrows(range.start, range.len());
            Self::scores(rows, seen, query, self.key, self.scale());
            for (i, query) in range.clone().enumerate() {
                let row = &mut rows.row_mut(i)[..seen];
                normalisers[query] = self.softmax(query, row, on_way);
            }
            let probabilities = rows.first(range.len()).subcols(0, seen);
            let output = output.rb_mut().subrows_mut(range.start, range.len());
            product(
                output,
                Accum::Replace,
                probabilities,
                self.value.subrows(0, seen),
                1.0,
                on(1),
            );
        }
    }

    /// What makes scores probabilities, alone.
    fn normalisers(&self, scores: &mut Scores, normalisers: &mut [Normaliser]) {
        let Scores { rows, on_way } = scores;
        for (range, seen) in self.blocks() {
            let query = self.query.subrows(range.start, range.len());
            Self::scores(rows, seen, query, self.key, self.scale());
            for (i, query) in range.enumerate() {
                let row = &mut rows.row_mut(i)[..seen];
                normalisers[query] = self.softmax(query, row, on_way);
            }
        }
    }

    /// `gradient` is that of the output, and becomes that of the queries; `key` and `value` are
    /// added to. With `output` the output is computed once more.
    fn backward(&self, scratch: &mut Scratch, normalisers: &[Normaliser], to: HeadGradients<'_>) {
        let Scratch {
            scores:
                Scores {
                    rows: scores,
                    on_way: scores_on_way,
                },
            slopes:
                Scores {
                    rows: slopes,
                    on_way: slopes_on_way,
                },
        } = scratch;
        let HeadGradients {
            mut gradient,
            mut key,
            mut value,
            mut output,
        } = to;
        for (range, seen) in self.blocks() {
            let count = range.len();
            let query = self.query.subrows(range.start, count);
            let mut gradient = gradient.rb_mut().subrows_mut(range.start, count);
            Self::scores(scores, seen, query, self.key, self.scale());
            Self::scores(slopes, seen, gradient.rb(), self.value, 1.0);
            for (i, query) in range.clone().enumerate() {
                self.softmax_backward(
                    query,
                    normalisers[query],
                    [
                        &mut scores.row_mut(i)[..seen],
                        &mut slopes.row_mut(i)[..seen],
                    ],
                    [scores_on_way, slopes_on_way],
                );
            }
            let probabilities = scores.first(count).subcols(0, seen);
            let slopes = slopes.first(count).subcols(0, seen);
            if let Some(output) = &mut output {
                let output = output.rb_mut().subrows_mut(range.start, count);
                product(
                    output,
                    Accum::Replace,
                    probabilities,
                    self.value.subrows(0, seen),
                    1.0,
                    on(1),
                );
            }
            let value = value.rb_mut().subrows_mut(0, seen);
            product(
                value,
                Accum::Add,
                probabilities.transpose(),
                gradient.rb(),
                1.0,
                on(1),
            );
            let key = key.rb_mut().subrows_mut(0, seen);
            product(key, Accum::Add, slopes.transpose(), query, 1.0, on(1));
            product(
                gradient.rb_mut(),
                Accum::Replace,
                slopes,
                self.key.subrows(0, seen),
                1.0,
                on(1),
            );
        }
    }
}

/// Where the gradients of a head go.
struct HeadGradients<'a> {
    gradient: MatMut<'a, f32>,
    key: MatMut<'a, f32>,
    value: MatMut<'a, f32>,
    output: Option<MatMut<'a, f32>>,
}

/// A thread's scratch memory for a number of each query and key of a block.
struct Scores {
    rows: Rows,
    /// What of a row lies on the way up in a tree.
    on_way: Vec<f32>,
}

impl Scores {
    fn new(shape: AttentionShape) -> Self {
        let most = if shape.causal {
            MOST_CAUSAL_QUERIES
        } else {
            MOST_QUERIES
        };
        Self {
            rows: Rows::new(shape.tokens.min(most), shape.tokens),
            on_way: Vec::new(),
        }
    }
}

/// The scratch memory of a thread for the heads.
struct Scratch {
    scores: Scores,
    slopes: Scores,
}

impl Scratch {
    fn new(shape: AttentionShape) -> Self {
        Self {
            scores: Scores::new(shape),
            slopes: Scores::new(shape),
        }
    }
}

/// What a head reads.
fn head_of<'a>(
    tokens: &Tokens<'a>,
    query: &'a [f32],
    key_value: &'a [f32],
    item: usize,
    index: usize,
) -> Head<'a> {
    let AttentionShape {
        width,
        heads,
        causal,
        ..
    } = tokens.shape;
    let (rows, keys, size) = (
        tokens.queries_per_item(),
        tokens.keys_of(item),
        width / heads,
    );
    let query = matrix(&query[item * rows * width..][..rows * width], rows, width);
    let key_value = &key_value[tokens.starts[item] * 2 * width..][..keys * 2 * width];
    let key_value = matrix(key_value, keys, 2 * width);
    Head {
        query: head(query, index, size),
        key: head(key_value, index, size),
        value: head(key_value, heads + index, size),
        causal: causal && tokens.positions.is_none(),
        parents: tokens
            .parents
            .map(|parents| &parents[item * rows..][..rows]),
    }
}

/// Runs `f` on every task, with the scratch memory of its thread.
fn run_heads<T: Send, S>(
    tasks: Vec<T>,
    scratch: impl Fn() -> S + Sync + Send,
    f: impl Fn(&mut S, T) + Sync + Send,
) {
    let mut tasks: Vec<Option<T>> = tasks.into_iter().map(Some).collect();
    let sizes: Vec<usize> = parts::even(tasks.len(), parts::threads())
        .map(|r| r.len())
        .collect();
    parts::run(split(&mut tasks, sizes.into_iter()), |tasks| {
        let mut scratch = scratch();
        for task in tasks {
            if let Some(task) = task.take() {
                f(&mut scratch, task);
            }
        }
    });
}

/// The branch on `x`, `[batch, tokens, width]`; the activations too with `keep`.
///
/// With [`Queries::At`] the output is `[batch, 1, width]`: that of the tokens at these positions.
///
/// # Panics
/// When a length does not fit the shape, or a position lies beyond the tokens.
pub fn attention_branch(
    x: &[f32],
    params: &AttentionParams<'_>,
    shape: AttentionShape,
    queries: Queries<'_>,
    keep: bool,
) -> (Vec<f32>, Option<AttentionActivations>) {
    params.check(x, shape);
    let tokens = Tokens::new(shape, queries);
    let AttentionShape {
        width,
        heads: count,
        ..
    } = shape;
    let (query, key_value) = project(x, params, &tokens);
    let rows = tokens.queries_per_item();
    let mut normalisers = vec![Normaliser::default(); tokens.queries() * count];
    let mut y = zeros(tokens.queries() * width);

    let outputs = y
        .chunks_exact_mut((rows * width).max(1))
        .flat_map(|item| heads(matrix_mut(item, rows, width), width / count));
    let tasks = outputs
        .zip(normalisers.chunks_exact_mut(rows.max(1)))
        .enumerate()
        .collect();
    run_heads(
        tasks,
        || Scores::new(tokens.shape),
        |scores, (index, (output, normalisers))| {
            head_of(&tokens, &query, &key_value, index / count, index % count).forward(
                scores,
                output,
                normalisers,
            );
        },
    );

    let weight = matrix(params.out_proj.weight, width, width);
    let parts = Parts::of_rows(tokens.queries(), false);
    let tasks = parts
        .ranges
        .iter()
        .zip(parts.split(&mut y, width))
        .collect();
    parts::run(tasks, |(range, y)| {
        let mut inner = Rows::new(largest_chunk(range.len()), width);
        for chunk in chunks(range.len()) {
            let y = &mut y[chunk.start * width..chunk.end * width];
            for (i, y) in y.chunks_exact_mut(width).enumerate() {
                let source = tokens.query_source(range.start + chunk.start + i);
                inner.row_mut(i).copy_from_slice(y);
                y.copy_from_slice(&x[source * width..][..width]);
                if let Some(bias) = params.out_proj.bias {
                    dispatch(AddTo {
                        total: y,
                        row: bias,
                    });
                }
            }
            let y = matrix_mut(y, chunk.len(), width);
            product(
                y,
                Accum::Add,
                inner.first(chunk.len()),
                weight,
                1.0,
                on(parts.threads),
            );
        }
    });
    (
        y,
        keep.then_some(AttentionActivations {
            query,
            key_value,
            normalisers,
        }),
    )
}

/// The gradients at `x`, given the gradient `dy` of the output of [`attention_branch`]. Without
/// `kept` the activations are computed again; the result is the same.
///
/// # Panics
/// When a length does not fit the shape, or a position lies beyond the tokens.
pub fn attention_branch_backward(
    x: &[f32],
    params: &AttentionParams<'_>,
    shape: AttentionShape,
    queries: Queries<'_>,
    kept: Option<&AttentionActivations>,
    dy: &[f32],
    wanted: AttentionWanted,
) -> AttentionGradients {
    params.check(x, shape);
    let tokens = Tokens::new(shape, queries);
    let AttentionShape {
        width,
        heads: count,
        ..
    } = shape;
    assert_eq!(dy.len(), tokens.queries() * width);
    let mut gradients = AttentionGradients::default();
    if !wanted.beyond_out() && !wanted.out_weight {
        gradients.out_bias = wanted.out_bias.then(|| column_sums(dy, width));
        return gradients;
    }
    let again;
    let (query, key_value) = match kept {
        Some(kept) => (&kept.query, &kept.key_value),
        None => {
            again = project(x, params, &tokens);
            (&again.0, &again.1)
        }
    };
    assert_eq!(query.len(), tokens.queries() * width);
    assert_eq!(key_value.len(), tokens.keys() * 2 * width);

    // The projection of the heads: `gradient` becomes that of its input.
    let mut gradient = zeros(dy.len());
    let weight = matrix(params.out_proj.weight, width, width);
    let parts = Parts::of_rows(tokens.queries(), false);
    if wanted.beyond_out() {
        let tasks = parts
            .ranges
            .iter()
            .zip(parts.split(&mut gradient, width))
            .collect();
        parts::run(tasks, |(range, gradient)| {
            for chunk in chunks(range.len()) {
                let (from, to) = (chunk.start * width, chunk.end * width);
                let dy = &dy[range.start * width + from..range.start * width + to];
                let dy = matrix(dy, chunk.len(), width);
                let gradient = matrix_mut(&mut gradient[from..to], chunk.len(), width);
                product(
                    gradient,
                    Accum::Replace,
                    dy,
                    weight.transpose(),
                    1.0,
                    on(parts.threads),
                );
            }
        });
    }

    // The heads: `gradient` becomes that of the queries.
    let rows = tokens.queries_per_item();
    let mut key_value_gradient = zeros(key_value.len());
    let mut output = zeros(if wanted.out_weight { dy.len() } else { 0 });
    let item = (rows * width).max(1);
    let of_queries = gradient
        .chunks_exact_mut(item)
        .flat_map(|item| heads(matrix_mut(item, rows, width), width / count));
    let of_keys = split(&mut key_value_gradient, tokens.key_lengths(2 * width))
        .into_iter()
        .flat_map(|item| {
            let keys = item.len() / (2 * width);
            let (key, value) = matrix_mut(item, keys, 2 * width).split_at_col_mut(width);
            heads(key, width / count)
                .into_iter()
                .zip(heads(value, width / count))
        });
    let mut outputs = output
        .chunks_exact_mut(item)
        .flat_map(|item| heads(matrix_mut(item, rows, width), width / count));
    let tasks = of_queries
        .zip(of_keys)
        .enumerate()
        .map(|(index, (gradient, (key, value)))| {
            (
                index,
                HeadGradients {
                    gradient,
                    key,
                    value,
                    output: outputs.next(),
                },
            )
        })
        .collect();
    run_heads(
        tasks,
        || {
            (
                Scratch::new(tokens.shape),
                vec![Normaliser::default(); rows],
            )
        },
        |(scratch, found), (index, to)| {
            let head = head_of(&tokens, query, key_value, index / count, index % count);
            let normalisers = match kept {
                Some(kept) => &kept.normalisers[index * rows..][..rows],
                None => {
                    head.normalisers(&mut scratch.scores, found);
                    found
                }
            };
            head.backward(scratch, normalisers, to);
        },
    );

    if wanted.out_weight {
        let mut sum = vec![0.0; width * width];
        let rows = tokens.queries();
        let output = matrix(&output, rows, width);
        let par = on(parts::threads());
        let dy = matrix(dy, rows, width);
        product(
            matrix_mut(&mut sum, width, width),
            Accum::Replace,
            output.transpose(),
            dy,
            1.0,
            par,
        );
        gradients.out_weight = Some(sum);
    }
    gradients.out_bias = wanted.out_bias.then(|| column_sums(dy, width));
    drop(output);
    if wanted.beyond_out() {
        let back = InBackward {
            x,
            params,
            tokens: &tokens,
            wanted,
        };
        back.run(dy, &gradient, &key_value_gradient, &mut gradients);
    }
    gradients
}

/// The way back through the first projection and the layer norm.
struct InBackward<'a> {
    x: &'a [f32],
    params: &'a AttentionParams<'a>,
    tokens: &'a Tokens<'a>,
    wanted: AttentionWanted,
}

impl InBackward<'_> {
    fn run(self, dy: &[f32], query: &[f32], key_value: &[f32], to: &mut AttentionGradients) {
        let Self {
            x,
            params,
            tokens,
            wanted,
        } = self;
        let width = tokens.shape.width;
        let all = tokens.positions.is_none();
        let (to_query, to_key_value) =
            matrix(params.in_proj.weight, width, 3 * width).split_at_col(width);

        // Where queries are few, they go back by themselves.
        let mut few = Vec::new();
        let mut few_weight = Vec::new();
        if !all {
            let rows = tokens.queries();
            let par = on(parts::threads());
            let query = matrix(query, rows, width);
            if wanted.beyond_in() {
                few = vec![0.0; rows * width];
                product(
                    matrix_mut(&mut few, rows, width),
                    Accum::Replace,
                    query,
                    to_query.transpose(),
                    1.0,
                    par,
                );
            }
            if wanted.in_weight {
                few_weight = vec![0.0; width * width];
                let normal = query_normals(x, params, tokens);
                let sum = matrix_mut(&mut few_weight, width, width);
                product(
                    sum,
                    Accum::Replace,
                    normal.first(rows).transpose(),
                    query,
                    1.0,
                    par,
                );
            }
        }

        let mut dx = Vec::new();
        if wanted.input {
            if all {
                dx = copy(dy);
            } else {
                dx = zeros(x.len());
                for (i, dy) in dy.chunks_exact(width).enumerate() {
                    dx[tokens.query_source(i) * width..][..width].copy_from_slice(dy);
                }
            }
        }
        let mut parts = Parts::of_rows(tokens.keys(), wanted.in_weight || wanted.norm);
        if !all {
            parts = parts.at_bounds(&tokens.starts);
        }
        // The rows of the input under each part.
        let sources: Vec<std::ops::Range<usize>> = parts
            .ranges
            .iter()
            .map(|range| match range.is_empty() {
                true => 0..0,
                false => tokens.key_source(range.start)..tokens.key_source(range.end - 1) + 1,
            })
            .collect();
        let mut rest = &mut dx[..];
        let mut done = 0;
        let mut pieces = Vec::new();
        for source in &sources {
            let mut piece: &mut [f32] = &mut [];
            if wanted.input && !source.is_empty() {
                let _ = rest.split_off_mut(..(source.start - done) * width);
                piece = rest
                    .split_off_mut(..source.len() * width)
                    .unwrap_or_default();
                done = source.end;
            }
            pieces.push(piece);
        }
        let tasks = parts.ranges.iter().zip(&sources).zip(pieces).collect();
        let sums = parts::run(tasks, |((range, sources), dx)| {
            let par = on(parts.threads);
            let mut sums = InSums {
                norm: ParamsGradient::new(width),
                weight: vec![
                    0.0;
                    if wanted.in_weight {
                        3 * width * width
                    } else {
                        0
                    }
                ],
            };
            let mut normal = Rows::new(largest_chunk(range.len()), width);
            for chunk in chunks(range.len()) {
                let (count, first) = (chunk.len(), range.start + chunk.start);
                let source = |i: usize| tokens.key_source(first + i);
                let key_value = matrix(
                    &key_value[first * 2 * width..][..count * 2 * width],
                    count,
                    2 * width,
                );
                let query =
                    all.then(|| matrix(&query[first * width..][..count * width], count, width));
                if wanted.in_weight {
                    for i in 0..count {
                        row(
                            params.norm,
                            &x[source(i) * width..][..width],
                            normal.row_mut(i),
                        );
                    }
                    let sum = matrix_mut(&mut sums.weight, width, 3 * width);
                    let (of_query, of_key_value) = sum.split_at_col_mut(width);
                    let normal = normal.first(count).transpose();
                    product(of_key_value, Accum::Add, normal, key_value, 1.0, par);
                    if let Some(query) = query {
                        product(of_query, Accum::Add, normal, query, 1.0, par);
                    }
                }
                if !wanted.beyond_in() {
                    continue;
                }
                product(
                    normal.first_mut(count),
                    Accum::Replace,
                    key_value,
                    to_key_value.transpose(),
                    1.0,
                    par,
                );
                if let Some(query) = query {
                    product(
                        normal.first_mut(count),
                        Accum::Add,
                        query,
                        to_query.transpose(),
                        1.0,
                        par,
                    );
                }
                for i in 0..count {
                    let source = source(i);
                    let x = &x[source * width..][..width];
                    let item = source / tokens.shape.tokens;
                    if !all && tokens.query_source(item) == source {
                        let row = &few[item * width..][..width];
                        dispatch(AddTo {
                            total: normal.row_mut(i),
                            row,
                        });
                    }
                    let moments = row_moments(params.norm, x);
                    if wanted.input {
                        let dx = &mut dx[(source - sources.start) * width..][..width];
                        row_backward(params.norm.gamma, moments, x, normal.row(i), dx);
                    }
                    if wanted.norm {
                        sums.norm.add(moments, x, normal.row(i));
                    }
                }
            }
            sums
        });
        let (mut gamma, mut beta, mut weight) = (Vec::new(), Vec::new(), Vec::new());
        for sums in sums {
            gamma.push(sums.norm.gamma);
            beta.push(sums.norm.beta);
            weight.push(sums.weight);
        }
        if wanted.norm {
            to.gamma = parts::total(gamma);
            to.beta = parts::total(beta);
        }
        if wanted.in_weight {
            to.in_weight = parts::total(weight);
            if let (false, Some(weight)) = (all, &mut to.in_weight) {
                for (weight, few) in weight
                    .chunks_exact_mut(3 * width)
                    .zip(few_weight.chunks_exact(width))
                {
                    weight[..width].copy_from_slice(few);
                }
            }
        }
        to.in_bias = wanted.in_bias.then(|| {
            let mut sums = column_sums(query, width);
            sums.extend(column_sums(key_value, 2 * width));
            sums
        });
        to.input = wanted.input.then_some(dx);
    }
}

/// Gradients of parameters, summed over rows.
struct InSums {
    norm: ParamsGradient,
    weight: Vec<f32>,
}

/// The sum of all rows.
fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    let parts = Parts::of_rows(values.len() / width, true);
    let sums = parts::run(parts.ranges.clone(), |range| {
        let mut total = vec![0.0; width];
        for row in values[range.start * width..range.end * width].chunks_exact(width) {
            dispatch(AddTo {
                total: &mut total,
                row,
            });
        }
        total
    });
    parts::total(sums).unwrap_or_default()
}

impl AttentionParams<'_> {
    fn check(&self, x: &[f32], shape: AttentionShape) {
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

#[cfg(test)]
mod tests {
    use super::super::reference::{
        self, Inputs, assert_close, assert_gradients, inputs, numbers, wide,
    };
    use super::*;

    const ALL: AttentionWanted = AttentionWanted {
        input: true,
        norm: true,
        in_weight: true,
        in_bias: true,
        out_weight: true,
        out_bias: true,
    };

    fn params(of: &Inputs<f32>) -> AttentionParams<'_> {
        let (in_proj, out_proj) = (reference::product(of, 0), reference::product(of, 1));
        AttentionParams {
            norm: reference::norm(of),
            in_proj,
            out_proj,
        }
    }

    fn list(g: &AttentionGradients) -> [&Option<Vec<f32>>; 7] {
        [
            &g.input,
            &g.gamma,
            &g.beta,
            &g.in_weight,
            &g.in_bias,
            &g.out_weight,
            &g.out_bias,
        ]
    }

    fn random(shape: AttentionShape, bias: bool) -> Inputs<f32> {
        let AttentionShape {
            batch,
            tokens,
            width,
            ..
        } = shape;
        inputs(
            batch * tokens,
            width,
            [3 * width, width],
            bias,
            tokens as u64,
        )
    }

    fn positions(shape: AttentionShape) -> Vec<usize> {
        (0..shape.batch)
            .map(|i| (i * 5 + 3) % shape.tokens)
            .collect()
    }

    /// A tree an item, no two alike.
    fn tree(shape: AttentionShape) -> Vec<usize> {
        let parent = |item: usize, token: usize| (token * 7 + item * 3) % (token + 1);
        (0..shape.batch)
            .flat_map(|item| (0..shape.tokens).map(move |token| parent(item, token)))
            .collect()
    }

    fn check(shape: AttentionShape, queries: Queries<'_>, bias: bool) {
        let what = format!("{shape:?} {queries:?} bias {bias}");
        let of = random(shape, bias);
        let params = params(&of);
        let (y, kept) = attention_branch(&of[0], &params, shape, queries, true);
        let dy = numbers(y.len(), 99, 1.0);
        let formula = |of: &Inputs<f64>| reference::attention(shape, queries, of);
        assert_close(
            &y,
            &formula(&std::array::from_fn(|i| wide(&of[i]))),
            3e-6,
            &what,
        );
        let (bare, nothing) = attention_branch(&of[0], &params, shape, queries, false);
        assert!(bare == y && nothing.is_none(), "{what}");
        let back =
            |kept| attention_branch_backward(&of[0], &params, shape, queries, kept, &dy, ALL);
        let gradients = back(kept.as_ref());
        assert_eq!(gradients, back(None), "{what}");
        assert_eq!(gradients, back(kept.as_ref()), "{what}");
        assert_gradients(formula, &of, &dy, list(&gradients), &what);
    }

    #[test]
    fn the_room_between_rows_is_not_read() {
        // At multiples of 128 rows of scratch memory have room between them, and tests fill it with
        // NaN.
        let shape = AttentionShape {
            batch: 2,
            tokens: 128,
            width: 128,
            heads: 2,
            causal: false,
        };
        let of = random(shape, true);
        let params = params(&of);
        let tree = tree(shape);
        for queries in [Queries::All, Queries::Tree(&tree)] {
            let (y, kept) = attention_branch(&of[0], &params, shape, queries, true);
            let want = reference::attention(shape, queries, &std::array::from_fn(|i| wide(&of[i])));
            // Sums of 128 numbers round more than the short ones of the tests below.
            assert_close(&y, &want, 1e-5, "width 128");
            let dy = numbers(y.len(), 99, 1.0);
            let back =
                |kept| attention_branch_backward(&of[0], &params, shape, queries, kept, &dy, ALL);
            let gradients = back(kept.as_ref());
            assert_eq!(gradients, back(None));
            for gradient in list(&gradients) {
                assert!(gradient.as_ref().unwrap().iter().all(|g| g.is_finite()));
            }
        }
    }

    #[test]
    fn values_and_gradients_are_those_of_the_formula() {
        for batch in [1, 2, 3, 5] {
            for tokens in [1, 2, 7, 17] {
                for (heads, width) in [(1, 5), (3, 12)] {
                    for causal in [false, true] {
                        let shape = AttentionShape {
                            batch,
                            tokens,
                            width,
                            heads,
                            causal,
                        };
                        check(shape, Queries::All, batch != 2);
                        check(shape, Queries::At(&positions(shape)), batch != 3);
                        check(shape, Queries::Tree(&tree(shape)), batch != 3);
                    }
                }
            }
        }
    }

    #[test]
    fn many_tokens_go_through_in_blocks() {
        for causal in [false, true] {
            let shape = AttentionShape {
                batch: 1,
                tokens: 270,
                width: 4,
                heads: 2,
                causal,
            };
            let of = random(shape, true);
            let (y, _) = attention_branch(&of[0], &params(&of), shape, Queries::All, true);
            let want =
                reference::attention(shape, Queries::All, &std::array::from_fn(|i| wide(&of[i])));
            assert_close(&y, &want, 3e-6, "y");
            let shape = AttentionShape {
                tokens: 70,
                ..shape
            };
            check(shape, Queries::All, true);
            check(shape, Queries::Tree(&tree(shape)), true);
        }
    }

    #[test]
    fn a_chain_is_a_text() {
        let shape = AttentionShape {
            batch: 2,
            tokens: 40,
            width: 12,
            heads: 3,
            causal: true,
        };
        let of = random(shape, true);
        let chain: Vec<usize> = (0..80).map(|i| (i % 40usize).saturating_sub(1)).collect();
        let run = |queries| attention_branch(&of[0], &params(&of), shape, queries, false).0;
        assert_close(
            &run(Queries::Tree(&chain)),
            &wide(&run(Queries::All)),
            1e-6,
            "y",
        );
    }

    #[test]
    #[should_panic(expected = "a parent stands before its children")]
    fn a_child_before_its_parent_is_refused() {
        let shape = AttentionShape {
            batch: 1,
            tokens: 2,
            width: 4,
            heads: 1,
            causal: true,
        };
        let of = random(shape, true);
        attention_branch(&of[0], &params(&of), shape, Queries::Tree(&[1, 1]), false);
    }

    #[test]
    fn any_number_of_threads_gives_the_same_within_rounding() {
        let shape = AttentionShape {
            batch: 5,
            tokens: 9,
            width: 24,
            heads: 3,
            causal: true,
        };
        let of = random(shape, true);
        let params = params(&of);
        let (at, tree) = (positions(shape), tree(shape));
        for queries in [Queries::All, Queries::At(&at), Queries::Tree(&tree)] {
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                pool.install(|| {
                    let (y, kept) = attention_branch(&of[0], &params, shape, queries, true);
                    let back = attention_branch_backward(
                        &of[0],
                        &params,
                        shape,
                        queries,
                        kept.as_ref(),
                        &y,
                        ALL,
                    );
                    (y, back)
                })
            };
            let one = run(1);
            for threads in [2, 3, 12] {
                let many = run(threads);
                assert_close(&many.0, &wide(&one.0), 1e-6, "y");
                for (many, one) in list(&many.1).into_iter().zip(list(&one.1)) {
                    assert_close(
                        many.as_ref().unwrap(),
                        &wide(one.as_ref().unwrap()),
                        3e-6,
                        "gradient",
                    );
                }
            }
        }
    }

    #[test]
    fn items_do_not_know_of_each_other() {
        let shape = AttentionShape {
            batch: 3,
            tokens: 11,
            width: 12,
            heads: 3,
            causal: true,
        };
        let of = random(shape, true);
        let (y, _) = attention_branch(&of[0], &params(&of), shape, Queries::All, false);
        let single = AttentionShape { batch: 1, ..shape };
        for (x, y) in of[0].chunks(11 * 12).zip(y.chunks(11 * 12)) {
            let (alone, _) = attention_branch(x, &params(&of), single, Queries::All, false);
            assert_close(&alone, &wide(y), 1e-6, "y");
        }
    }

    #[test]
    fn a_query_alone_is_the_row_of_all() {
        for causal in [false, true] {
            let shape = AttentionShape {
                batch: 4,
                tokens: 6,
                width: 12,
                heads: 3,
                causal,
            };
            let of = random(shape, true);
            let (all, _) = attention_branch(&of[0], &params(&of), shape, Queries::All, false);
            let at = positions(shape);
            let (some, _) = attention_branch(&of[0], &params(&of), shape, Queries::At(&at), false);
            for (item, position) in at.into_iter().enumerate() {
                let all = &all[(item * 6 + position) * 12..][..12];
                assert_close(&some[item * 12..][..12], &wide(all), 1e-6, "y");
            }
        }
    }

    #[test]
    fn only_what_is_wanted_is_given() {
        let shape = AttentionShape {
            batch: 2,
            tokens: 5,
            width: 6,
            heads: 2,
            causal: true,
        };
        let of = random(shape, true);
        let params = params(&of);
        let at = positions(shape);
        for queries in [Queries::All, Queries::At(&at)] {
            let (y, kept) = attention_branch(&of[0], &params, shape, queries, true);
            let back = |wanted, kept| {
                attention_branch_backward(&of[0], &params, shape, queries, kept, &y, wanted)
            };
            let all = back(ALL, kept.as_ref());
            for bits in 0..64 {
                let bit = |i: u32| bits >> i & 1 == 1;
                let flags = [bit(0), bit(1), bit(1), bit(2), bit(3), bit(4), bit(5)];
                let [input, norm, _, in_weight, in_bias, out_weight, out_bias] = flags;
                let wanted = AttentionWanted {
                    input,
                    norm,
                    in_weight,
                    in_bias,
                    out_weight,
                    out_bias,
                };
                for kept in [kept.as_ref(), None] {
                    let some = back(wanted, kept);
                    for ((some, all), wanted) in list(&some).into_iter().zip(list(&all)).zip(flags)
                    {
                        assert_eq!(some.as_ref(), all.as_ref().filter(|_| wanted), "{bits:b}");
                    }
                }
            }
        }
    }

    #[test]
    fn scores_may_be_huge() {
        let shape = AttentionShape {
            batch: 2,
            tokens: 40,
            width: 8,
            heads: 2,
            causal: false,
        };
        let mut of = random(shape, true);
        of[3].iter_mut().for_each(|w| *w *= 60.0);
        let (y, kept) = attention_branch(&of[0], &params(&of), shape, Queries::All, true);
        let largest = kept
            .unwrap()
            .normalisers
            .iter()
            .fold(0.0, |m: f32, x| m.max(x.largest.abs()));
        assert!(largest > 1e4, "the scores reach only {largest}");
        assert!(y.iter().all(|y| y.is_finite()));
    }

    #[test]
    fn nan_stays_in_its_item() {
        let shape = AttentionShape {
            batch: 3,
            tokens: 20,
            width: 8,
            heads: 2,
            causal: false,
        };
        let mut of = random(shape, true);
        of[0][160 + 5] = f32::NAN;
        let (y, _) = attention_branch(&of[0], &params(&of), shape, Queries::All, false);
        for (i, item) in y.chunks(160).enumerate() {
            assert!(item.iter().all(|y| y.is_nan() == (i == 1)));
        }
    }
}

//! Attention of one head of one item: forward and backward pass.

use faer::{
    Accum, MatMut, MatRef,
    prelude::{Reborrow, ReborrowMut},
};

use super::{
    super::{
        buffers::ScratchRows,
        parts::{self, split},
        product::{matrix, parallelism, product},
        simd::{Kernel, dispatch, exp, max, sum},
    },
    shape::{AttentionShape, SoftmaxStats, TokenLayout},
};
use crate::tree::ancestors;

/// Returns the columns of one head in a matrix of all heads.
fn head<'a>(all: MatRef<'a, f32>, index: usize, width: usize) -> MatRef<'a, f32> {
    all.subcols(index * width, width)
}

/// Splits a matrix into the columns of its heads.
pub(super) fn heads(all: MatMut<'_, f32>, width: usize) -> Vec<MatMut<'_, f32>> {
    let mut rest = all;
    let mut heads = Vec::with_capacity(rest.ncols() / width);
    while rest.ncols() > 0 {
        let (head, others) = rest.split_at_col_mut(width);
        heads.push(head);
        rest = others;
    }
    heads
}

/// Softmax of the first `visible` scores of a row, in place. The rest of the row becomes zero.
struct Softmax<'a> {
    row: &'a mut [f32],
    visible: usize,
}

impl Kernel for Softmax<'_> {
    type Output = SoftmaxStats;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> SoftmaxStats {
        let (row, hidden) = self.row.split_at_mut(self.visible);
        hidden.fill(0.0);
        let max = max(row);
        for x in row.iter_mut() {
            *x = exp::<FMA>(*x - max);
        }
        let total = sum(row.len(), |i| row[i]);
        let inverse_sum = 1.0 / total;
        for x in row {
            *x *= inverse_sum;
        }
        SoftmaxStats { max, inverse_sum }
    }
}

/// Recomputes a row of probabilities from its scores, in place, and turns the gradients of the
/// probabilities into gradients of the scores, times `scale`.
struct SoftmaxBackward<'a> {
    row: &'a mut [f32],
    gradient: &'a mut [f32],
    visible: usize,
    stats: SoftmaxStats,
    scale: f32,
}

impl Kernel for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let (row, hidden) = self.row.split_at_mut(self.visible);
        hidden.fill(0.0);
        let (gradient, hidden) = self.gradient.split_at_mut(self.visible);
        hidden.fill(0.0);
        for x in row.iter_mut() {
            *x = exp::<FMA>(*x - self.stats.max) * self.stats.inverse_sum;
        }
        // ds_i = p_i · (dp_i − Σ_j p_j dp_j).
        let mean = sum(row.len(), |i| row[i] * gradient[i]);
        for (g, p) in gradient.iter_mut().zip(row) {
            *g = (*g - mean) * (*p * self.scale);
        }
    }
}

/// Largest block of queries that go through a head at once.
const MAX_QUERIES: usize = 256;

/// The same under a causal mask. Smaller, since scores of all queries of a block are computed up to
/// the last key that its last query attends to.
const MAX_CAUSAL_QUERIES: usize = 32;

/// One head of one item.
pub(super) struct Head<'a> {
    query: MatRef<'a, f32>,
    key: MatRef<'a, f32>,
    value: MatRef<'a, f32>,
    /// Query `i` attends to the keys up to `i` only.
    causal: bool,
    /// Of these keys, a query attends to its ancestors and itself only.
    parents: Option<&'a [usize]>,
}

/// Copies the values of a row at the indices of `path` to `to`.
fn gather(row: &[f32], path: impl Iterator<Item = usize>, to: &mut Vec<f32>) {
    to.clear();
    to.extend(path.map(|at| row[at]));
}

/// Copies `from` to the indices of `path` in a row. The rest of the row becomes zero.
fn scatter(row: &mut [f32], path: impl Iterator<Item = usize>, from: &[f32]) {
    row.fill(0.0);
    for (at, value) in path.zip(from) {
        row[at] = *value;
    }
}

impl Head<'_> {
    /// Returns `1 / √(width of a head)`.
    fn scale(&self) -> f32 {
        1.0 / (self.query.ncols() as f32).sqrt()
    }

    /// Iterates over blocks of queries, with the number of keys that a block attends to.
    fn blocks(&self) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> + use<> {
        let (queries, keys, causal) = (self.query.nrows(), self.key.nrows(), self.causal);
        let max = if causal {
            MAX_CAUSAL_QUERIES
        } else {
            MAX_QUERIES
        };
        parts::even_ranges(queries, queries.div_ceil(max))
            .map(move |range| (range.clone(), if causal { range.end } else { keys }))
    }

    /// Computes `factor · a·bᵀ` for a block, with the first `keys` rows of `b`.
    fn scores(
        rows: &mut ScratchRows,
        keys: usize,
        a: MatRef<'_, f32>,
        b: MatRef<'_, f32>,
        factor: f32,
    ) {
        let rows = rows.first_rows_mut(a.nrows()).subcols_mut(0, keys);
        product(
            rows,
            Accum::Replace,
            a,
            b.subrows(0, keys).transpose(),
            factor,
            parallelism(1),
        );
    }

    /// Returns the number of keys that a query attends to, without a tree.
    fn visible(&self, query: usize, keys: usize) -> usize {
        if self.causal { query + 1 } else { keys }
    }

    /// Turns a query's scores into probabilities, in place.
    fn softmax(&self, query: usize, row: &mut [f32], gathered: &mut Vec<f32>) -> SoftmaxStats {
        let Some(parents) = self.parents else {
            let visible = self.visible(query, row.len());
            return dispatch(Softmax { row, visible });
        };
        let path = ancestors(parents, query);
        gather(row, path.clone(), gathered);
        let visible = gathered.len();
        let stats = dispatch(Softmax {
            row: gathered,
            visible,
        });
        scatter(row, path, gathered);
        stats
    }

    /// Turns a query's scores into probabilities, and the gradients of its probabilities into those
    /// of its scores, in place.
    fn softmax_backward(
        &self,
        query: usize,
        stats: SoftmaxStats,
        [row, gradient]: [&mut [f32]; 2],
        [gathered_row, gathered_gradient]: [&mut Vec<f32>; 2],
    ) {
        let scale = self.scale();
        let Some(parents) = self.parents else {
            let visible = self.visible(query, row.len());
            return dispatch(SoftmaxBackward {
                row,
                gradient,
                visible,
                stats,
                scale,
            });
        };
        let path = ancestors(parents, query);
        gather(row, path.clone(), gathered_row);
        gather(gradient, path.clone(), gathered_gradient);
        let visible = gathered_row.len();
        dispatch(SoftmaxBackward {
            row: gathered_row,
            gradient: gathered_gradient,
            visible,
            stats,
            scale,
        });
        scatter(row, path.clone(), gathered_row);
        scatter(gradient, path, gathered_gradient);
    }

    /// Computes the output, `[queries, width of a head]`, and the softmax statistics.
    pub(super) fn forward(
        &self,
        scores: &mut Scores,
        mut output: MatMut<'_, f32>,
        softmax_stats: &mut [SoftmaxStats],
    ) {
        let Scores { rows, gathered } = scores;
        for (range, keys) in self.blocks() {
            let query = self.query.subrows(range.start, range.len());
            Self::scores(rows, keys, query, self.key, self.scale());
            for (i, query) in range.clone().enumerate() {
                let row = &mut rows.row_mut(i)[..keys];
                softmax_stats[query] = self.softmax(query, row, gathered);
            }
            let probabilities = rows.first_rows(range.len()).subcols(0, keys);
            let output = output.rb_mut().subrows_mut(range.start, range.len());
            product(
                output,
                Accum::Replace,
                probabilities,
                self.value.subrows(0, keys),
                1.0,
                parallelism(1),
            );
        }
    }

    /// Computes the softmax statistics alone.
    pub(super) fn softmax_stats(&self, scores: &mut Scores, softmax_stats: &mut [SoftmaxStats]) {
        let Scores { rows, gathered } = scores;
        for (range, keys) in self.blocks() {
            let query = self.query.subrows(range.start, range.len());
            Self::scores(rows, keys, query, self.key, self.scale());
            for (i, query) in range.enumerate() {
                let row = &mut rows.row_mut(i)[..keys];
                softmax_stats[query] = self.softmax(query, row, gathered);
            }
        }
    }

    /// Computes the gradients of queries, keys and values from that of the output, and, if
    /// requested, recomputes the output.
    pub(super) fn backward(
        &self,
        scratch: &mut BackwardScratch,
        softmax_stats: &[SoftmaxStats],
        to: HeadGradients<'_>,
    ) {
        let BackwardScratch {
            scores:
                Scores {
                    rows: scores,
                    gathered: gathered_scores,
                },
            score_gradients:
                Scores {
                    rows: score_gradients,
                    gathered: gathered_gradients,
                },
        } = scratch;
        let HeadGradients {
            mut gradient,
            mut key,
            mut value,
            mut output,
        } = to;
        for (range, keys) in self.blocks() {
            let count = range.len();
            let query = self.query.subrows(range.start, count);
            let mut gradient = gradient.rb_mut().subrows_mut(range.start, count);
            // Scores and gradients of the probabilities. Both become, row by row and in place,
            // probabilities and gradients of the scores.
            Self::scores(scores, keys, query, self.key, self.scale());
            Self::scores(score_gradients, keys, gradient.rb(), self.value, 1.0);
            for (i, query) in range.clone().enumerate() {
                self.softmax_backward(
                    query,
                    softmax_stats[query],
                    [
                        &mut scores.row_mut(i)[..keys],
                        &mut score_gradients.row_mut(i)[..keys],
                    ],
                    [gathered_scores, gathered_gradients],
                );
            }
            let probabilities = scores.first_rows(count).subcols(0, keys);
            let score_gradients = score_gradients.first_rows(count).subcols(0, keys);
            if let Some(output) = &mut output {
                let output = output.rb_mut().subrows_mut(range.start, count);
                product(
                    output,
                    Accum::Replace,
                    probabilities,
                    self.value.subrows(0, keys),
                    1.0,
                    parallelism(1),
                );
            }
            let value = value.rb_mut().subrows_mut(0, keys);
            product(
                value,
                Accum::Add,
                probabilities.transpose(),
                gradient.rb(),
                1.0,
                parallelism(1),
            );
            let key = key.rb_mut().subrows_mut(0, keys);
            product(
                key,
                Accum::Add,
                score_gradients.transpose(),
                query,
                1.0,
                parallelism(1),
            );
            // Last, since it overwrites the gradient of the output.
            product(
                gradient.rb_mut(),
                Accum::Replace,
                score_gradients,
                self.key.subrows(0, keys),
                1.0,
                parallelism(1),
            );
        }
    }
}

/// The buffers of a head's gradients.
pub(super) struct HeadGradients<'a> {
    /// Holds the gradient of the output, and receives that of the queries.
    pub(super) gradient: MatMut<'a, f32>,
    /// Accumulates the gradient of the keys.
    pub(super) key: MatMut<'a, f32>,
    /// Accumulates the gradient of the values.
    pub(super) value: MatMut<'a, f32>,
    /// Receives the recomputed output.
    pub(super) output: Option<MatMut<'a, f32>>,
}

/// Scratch memory of a thread for the scores of a block of queries.
pub(super) struct Scores {
    rows: ScratchRows,
    /// The scores of one query and its ancestors in a tree.
    gathered: Vec<f32>,
}

impl Scores {
    pub(super) fn new(shape: AttentionShape) -> Self {
        let max = if shape.causal {
            MAX_CAUSAL_QUERIES
        } else {
            MAX_QUERIES
        };
        Self {
            rows: ScratchRows::new(shape.tokens.min(max), shape.tokens),
            gathered: Vec::new(),
        }
    }
}

/// Scratch memory of a thread for the backward pass.
pub(super) struct BackwardScratch {
    pub(super) scores: Scores,
    pub(super) score_gradients: Scores,
}

impl BackwardScratch {
    pub(super) fn new(shape: AttentionShape) -> Self {
        Self {
            scores: Scores::new(shape),
            score_gradients: Scores::new(shape),
        }
    }
}

/// Returns the queries, keys and values of head `index` of an item.
pub(super) fn head_of<'a>(
    tokens: &TokenLayout<'a>,
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
        tokens.keys_of_item(item),
        width / heads,
    );
    let query = matrix(&query[item * rows * width..][..rows * width], rows, width);
    let key_value = &key_value[tokens.key_offsets[item] * 2 * width..][..keys * 2 * width];
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

/// Runs `f` on every task in parallel, with scratch memory that the tasks of one part share.
pub(super) fn run_heads<T: Send, S>(
    tasks: Vec<T>,
    scratch: impl Fn() -> S + Sync + Send,
    f: impl Fn(&mut S, T) + Sync + Send,
) {
    let mut tasks: Vec<Option<T>> = tasks.into_iter().map(Some).collect();
    let sizes: Vec<usize> = parts::even_ranges(tasks.len(), parts::threads())
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

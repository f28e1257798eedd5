//! One head of one item: softmax of scores, and the way back.

use faer::{
    Accum, MatMut, MatRef,
    prelude::{Reborrow, ReborrowMut},
};

use super::{
    super::{
        buffers::Rows,
        parts::{self, split},
        product::{matrix, on, product},
        simd::{Kernel, dispatch, exp, max, sum},
    },
    shape::{AttentionShape, Normaliser, Tokens},
};
use crate::tree::ancestors;

/// The columns of one head in a matrix of all of them.
fn head<'a>(all: MatRef<'a, f32>, index: usize, width: usize) -> MatRef<'a, f32> {
    all.subcols(index * width, width)
}

/// Cuts a matrix into its heads.
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
pub(super) struct Head<'a> {
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

    pub(super) fn forward(
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
    pub(super) fn normalisers(&self, scores: &mut Scores, normalisers: &mut [Normaliser]) {
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
    pub(super) fn backward(
        &self,
        scratch: &mut Scratch,
        normalisers: &[Normaliser],
        to: HeadGradients<'_>,
    ) {
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
pub(super) struct HeadGradients<'a> {
    pub(super) gradient: MatMut<'a, f32>,
    pub(super) key: MatMut<'a, f32>,
    pub(super) value: MatMut<'a, f32>,
    pub(super) output: Option<MatMut<'a, f32>>,
}

/// A thread's scratch memory for a number of each query and key of a block.
pub(super) struct Scores {
    rows: Rows,
    /// What of a row lies on the way up in a tree.
    on_way: Vec<f32>,
}

impl Scores {
    pub(super) fn new(shape: AttentionShape) -> Self {
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
pub(super) struct Scratch {
    pub(super) scores: Scores,
    pub(super) slopes: Scores,
}

impl Scratch {
    pub(super) fn new(shape: AttentionShape) -> Self {
        Self {
            scores: Scores::new(shape),
            slopes: Scores::new(shape),
        }
    }
}

/// What a head reads.
pub(super) fn head_of<'a>(
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
pub(super) fn run_heads<T: Send, S>(
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

//! The gradients of the branch.

use std::ops::Range;

use faer::Accum;

use super::{
    super::{
        buffers::{Rows, copy, zeros},
        layer_norm::{ParamsGradient, row, row_backward, row_moments},
        parts::{self, Parts, split},
        product::{chunks, largest_chunk, matrix, matrix_mut, on, product},
        simd::{AddTo, dispatch},
    },
    forward::{project, query_normals},
    heads::{HeadGradients, Scratch, head_of, heads, run_heads},
    shape::{
        AttentionActivations, AttentionGradients, AttentionParams, AttentionShape, AttentionWanted,
        Normaliser, Queries, Tokens,
    },
};

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
    let width = shape.width;
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

    let mut gradient = match wanted.beyond_out() {
        true => through_out(params, &tokens, dy),
        false => zeros(dy.len()),
    };
    let of_heads = OfHeads {
        tokens: &tokens,
        query,
        key_value,
        kept: kept.map(|kept| kept.normalisers.as_slice()),
    };
    let (key_value_gradient, output) = of_heads.backward(&mut gradient, wanted.out_weight);
    gradients.out_weight = wanted.out_weight.then(|| out_weight(&output, dy, width));
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

/// The gradient of the heads' output, through the projection of the heads.
fn through_out(params: &AttentionParams<'_>, tokens: &Tokens<'_>, dy: &[f32]) -> Vec<f32> {
    let width = tokens.shape.width;
    let mut gradient = zeros(dy.len());
    let weight = matrix(params.out_proj.weight, width, width);
    let parts = Parts::of_rows(tokens.queries(), false);
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
    gradient
}

/// What the heads are computed from again.
struct OfHeads<'a> {
    tokens: &'a Tokens<'a>,
    query: &'a [f32],
    key_value: &'a [f32],
    kept: Option<&'a [Normaliser]>,
}

impl OfHeads<'_> {
    /// Turns the gradient of the heads' output into that of the queries. Returns the gradient of
    /// keys and values, and the output itself if it is wanted.
    fn backward(&self, gradient: &mut [f32], wants_output: bool) -> (Vec<f32>, Vec<f32>) {
        let Self {
            tokens,
            query,
            key_value,
            kept,
        } = *self;
        let AttentionShape {
            width,
            heads: count,
            ..
        } = tokens.shape;
        let rows = tokens.queries_per_item();
        let mut key_value_gradient = zeros(key_value.len());
        let mut output = zeros(if wants_output { gradient.len() } else { 0 });
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
                let head = head_of(tokens, query, key_value, index / count, index % count);
                let normalisers = match kept {
                    Some(kept) => &kept[index * rows..][..rows],
                    None => {
                        head.normalisers(&mut scratch.scores, found);
                        found
                    }
                };
                head.backward(scratch, normalisers, to);
            },
        );
        (key_value_gradient, output)
    }
}

/// The gradient of the weight of the projection of the heads.
fn out_weight(output: &[f32], dy: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width * width];
    let rows = dy.len() / width;
    let output = matrix(output, rows, width);
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
    sum
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
        let (tokens, wanted) = (self.tokens, self.wanted);
        let width = tokens.shape.width;
        let all = tokens.positions.is_none();
        let few = match all {
            true => Few::default(),
            false => self.few(query),
        };
        let mut dx = self.residual(dy);
        let mut parts = Parts::of_rows(tokens.keys(), wanted.in_weight || wanted.norm);
        if !all {
            parts = parts.at_bounds(&tokens.starts);
        }
        // The rows of the input under each part.
        let sources: Vec<Range<usize>> = parts
            .ranges
            .iter()
            .map(|range| match range.is_empty() {
                true => 0..0,
                false => tokens.key_source(range.start)..tokens.key_source(range.end - 1) + 1,
            })
            .collect();
        let pieces = self.pieces(&mut dx, &sources);
        let tasks = parts.ranges.iter().zip(&sources).zip(pieces).collect();
        let sums = parts::run(tasks, |((range, sources), dx)| {
            let rows = InRows {
                range: range.clone(),
                first_source: sources.start,
                threads: parts.threads,
            };
            self.part(rows, query, key_value, &few.gradient, dx)
        });
        self.total(sums, &few.weight, to);
        to.in_bias = wanted.in_bias.then(|| {
            let mut sums = column_sums(query, width);
            sums.extend(column_sums(key_value, 2 * width));
            sums
        });
        to.input = wanted.input.then_some(dx);
    }

    /// Where queries are few, they go back by themselves.
    fn few(&self, query: &[f32]) -> Few {
        let (tokens, width) = (self.tokens, self.tokens.shape.width);
        let mut few = Few::default();
        let rows = tokens.queries();
        let par = on(parts::threads());
        let query = matrix(query, rows, width);
        if self.wanted.beyond_in() {
            let weight = matrix(self.params.in_proj.weight, width, 3 * width);
            let (to_query, _) = weight.split_at_col(width);
            few.gradient = vec![0.0; rows * width];
            product(
                matrix_mut(&mut few.gradient, rows, width),
                Accum::Replace,
                query,
                to_query.transpose(),
                1.0,
                par,
            );
        }
        if self.wanted.in_weight {
            few.weight = vec![0.0; width * width];
            let normal = query_normals(self.x, self.params, tokens);
            let sum = matrix_mut(&mut few.weight, width, width);
            let normal = normal.first(rows).transpose();
            product(sum, Accum::Replace, normal, query, 1.0, par);
        }
        few
    }

    /// What reaches the input past the branch; nothing where it is not wanted.
    fn residual(&self, dy: &[f32]) -> Vec<f32> {
        let (tokens, width) = (self.tokens, self.tokens.shape.width);
        if !self.wanted.input {
            return Vec::new();
        }
        if tokens.positions.is_none() {
            return copy(dy);
        }
        let mut dx = zeros(self.x.len());
        for (i, dy) in dy.chunks_exact(width).enumerate() {
            dx[tokens.query_source(i) * width..][..width].copy_from_slice(dy);
        }
        dx
    }

    /// The rows of `dx` under each part.
    fn pieces<'a>(&self, dx: &'a mut [f32], sources: &[Range<usize>]) -> Vec<&'a mut [f32]> {
        let width = self.tokens.shape.width;
        let mut rest = dx;
        let mut done = 0;
        let mut pieces = Vec::new();
        for source in sources {
            let mut piece: &mut [f32] = &mut [];
            if self.wanted.input && !source.is_empty() {
                let _ = rest.split_off_mut(..(source.start - done) * width);
                piece = rest
                    .split_off_mut(..source.len() * width)
                    .unwrap_or_default();
                done = source.end;
            }
            pieces.push(piece);
        }
        pieces
    }

    /// Adds to the rows `dx` under a part, and sums what belongs to the parameters.
    fn part(
        &self,
        rows: InRows,
        query: &[f32],
        key_value: &[f32],
        few: &[f32],
        dx: &mut [f32],
    ) -> InSums {
        let Self {
            x,
            params,
            tokens,
            wanted,
        } = *self;
        let width = tokens.shape.width;
        let all = tokens.positions.is_none();
        let weight = matrix(params.in_proj.weight, width, 3 * width);
        let (to_query, to_key_value) = weight.split_at_col(width);
        let InRows {
            range,
            first_source,
            threads,
        } = rows;
        let par = on(threads);
        let sum = if wanted.in_weight {
            3 * width * width
        } else {
            0
        };
        let mut sums = InSums {
            norm: ParamsGradient::new(width),
            weight: vec![0.0; sum],
        };
        let mut normal = Rows::new(largest_chunk(range.len()), width);
        for chunk in chunks(range.len()) {
            let (count, first) = (chunk.len(), range.start + chunk.start);
            let source = |i: usize| tokens.key_source(first + i);
            let of_keys = &key_value[first * 2 * width..][..count * 2 * width];
            let of_keys = matrix(of_keys, count, 2 * width);
            let of_queries =
                all.then(|| matrix(&query[first * width..][..count * width], count, width));
            if wanted.in_weight {
                for i in 0..count {
                    let x = &x[source(i) * width..][..width];
                    row(params.norm, x, normal.row_mut(i));
                }
                let sum = matrix_mut(&mut sums.weight, width, 3 * width);
                let (query_sum, key_value_sum) = sum.split_at_col_mut(width);
                let normal = normal.first(count).transpose();
                product(key_value_sum, Accum::Add, normal, of_keys, 1.0, par);
                if let Some(query) = of_queries {
                    product(query_sum, Accum::Add, normal, query, 1.0, par);
                }
            }
            if !wanted.beyond_in() {
                continue;
            }
            let (to, back) = (normal.first_mut(count), to_key_value.transpose());
            product(to, Accum::Replace, of_keys, back, 1.0, par);
            if let Some(query) = of_queries {
                let (to, back) = (normal.first_mut(count), to_query.transpose());
                product(to, Accum::Add, query, back, 1.0, par);
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
                    let dx = &mut dx[(source - first_source) * width..][..width];
                    row_backward(params.norm.gamma, moments, x, normal.row(i), dx);
                }
                if wanted.norm {
                    sums.norm.add(moments, x, normal.row(i));
                }
            }
        }
        sums
    }

    /// The gradients of the parameters from the sums of all parts.
    fn total(&self, sums: Vec<InSums>, few_weight: &[f32], to: &mut AttentionGradients) {
        let width = self.tokens.shape.width;
        let (mut gamma, mut beta, mut weight) = (Vec::new(), Vec::new(), Vec::new());
        for sums in sums {
            gamma.push(sums.norm.gamma);
            beta.push(sums.norm.beta);
            weight.push(sums.weight);
        }
        if self.wanted.norm {
            to.gamma = parts::total(gamma);
            to.beta = parts::total(beta);
        }
        if !self.wanted.in_weight {
            return;
        }
        to.in_weight = parts::total(weight);
        if let (true, Some(weight)) = (self.tokens.positions.is_some(), &mut to.in_weight) {
            let rows = weight.chunks_exact_mut(3 * width);
            for (weight, few) in rows.zip(few_weight.chunks_exact(width)) {
                weight[..width].copy_from_slice(few);
            }
        }
    }
}

/// What few queries give.
#[derive(Default)]
struct Few {
    /// Gradients of their normalised inputs.
    gradient: Vec<f32>,
    /// Of the weights that they are made with.
    weight: Vec<f32>,
}

/// The rows of a part.
struct InRows {
    /// Of keys.
    range: Range<usize>,
    /// The row of the input under the first one.
    first_source: usize,
    threads: usize,
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

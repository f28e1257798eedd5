//! Backward pass of the attention branch.

use std::ops::Range;

use faer::Accum;

use super::{
    super::{
        buffers::{ScratchRows, copy, zeros},
        layer_norm::{ParamsGradient, normalize_row, normalize_row_backward, row_moments},
        parts::{self, Parts, split},
        product::{chunks, largest_chunk, matrix, matrix_mut, parallelism, product},
        simd::{AddTo, dispatch},
    },
    forward::{normalize_query_rows, project},
    heads::{BackwardScratch, HeadGradients, head_of, heads, run_heads},
    shape::{
        AttentionActivations, AttentionGradients, AttentionNeedsGrad, AttentionParams,
        AttentionShape, Queries, SoftmaxStats, TokenLayout,
    },
};

/// Computes the gradients at `x`, given the gradient `dy` of the output of
/// [`attention_branch`](super::attention_branch).
///
/// Without `saved` the activations are recomputed; the result is the same.
///
/// # Shapes
/// - `x`: `[batch, tokens, width]`
/// - `dy`: `[batch, tokens, width]`, or `[batch, 1, width]` for [`Queries::At`]
///
/// # Panics
/// If a length does not match the shape, the heads do not divide the width, a position is out of
/// range, or a parent stands after its child.
pub fn attention_branch_backward(
    x: &[f32],
    params: &AttentionParams<'_>,
    shape: AttentionShape,
    queries: Queries<'_>,
    saved: Option<&AttentionActivations>,
    dy: &[f32],
    needs_grad: AttentionNeedsGrad,
) -> AttentionGradients {
    params.check(x, shape);
    let tokens = TokenLayout::new(shape, queries);
    let width = shape.width;
    assert_eq!(dy.len(), tokens.query_count() * width);
    let mut gradients = AttentionGradients::default();
    // The gradient of the output bias needs no activation.
    if !needs_grad.before_out_proj() && !needs_grad.out_weight {
        gradients.out_bias = needs_grad.out_bias.then(|| column_sums(dy, width));
        return gradients;
    }
    let recomputed;
    let (query, key_value) = match saved {
        Some(saved) => (&saved.query, &saved.key_value),
        None => {
            recomputed = project(x, params, &tokens);
            (&recomputed.0, &recomputed.1)
        }
    };
    assert_eq!(query.len(), tokens.query_count() * width);
    assert_eq!(key_value.len(), tokens.key_count() * 2 * width);

    // Holds the gradient of the context (the heads' output), then that of the queries. With zeros
    // the heads only recompute the context, for the gradient of the output weight.
    let mut gradient = match needs_grad.before_out_proj() {
        true => out_proj_input_gradient(params, &tokens, dy),
        false => zeros(dy.len()),
    };
    let heads_backward = HeadsBackward {
        tokens: &tokens,
        query,
        key_value,
        saved: saved.map(|saved| saved.softmax_stats.as_slice()),
    };
    let (key_value_gradient, context) = heads_backward.run(&mut gradient, needs_grad.out_weight);
    gradients.out_weight = needs_grad
        .out_weight
        .then(|| out_weight_gradient(&context, dy, width));
    gradients.out_bias = needs_grad.out_bias.then(|| column_sums(dy, width));
    // Freed early: it is as large as the output.
    drop(context);
    if needs_grad.before_out_proj() {
        let in_proj_backward = InProjBackward {
            x,
            params,
            tokens: &tokens,
            needs_grad,
        };
        in_proj_backward.run(dy, &gradient, &key_value_gradient, &mut gradients);
    }
    gradients
}

/// Returns the gradient of the input of the output projection, `dy · W₂ᵀ`.
fn out_proj_input_gradient(
    params: &AttentionParams<'_>,
    tokens: &TokenLayout<'_>,
    dy: &[f32],
) -> Vec<f32> {
    let width = tokens.shape.width;
    let mut gradient = zeros(dy.len());
    let weight = matrix(params.out_proj.weight, width, width);
    let parts = Parts::of_rows(tokens.query_count(), false);
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
                parallelism(parts.threads),
            );
        }
    });
    gradient
}

/// Backward pass of all heads.
struct HeadsBackward<'a> {
    tokens: &'a TokenLayout<'a>,
    query: &'a [f32],
    key_value: &'a [f32],
    saved: Option<&'a [SoftmaxStats]>,
}

impl HeadsBackward<'_> {
    /// Turns the gradient of the context into that of the queries, in place. Returns the gradient
    /// of keys and values, and the context itself if `needs_context` is set.
    fn run(&self, gradient: &mut [f32], needs_context: bool) -> (Vec<f32>, Vec<f32>) {
        let Self {
            tokens,
            query,
            key_value,
            saved,
        } = *self;
        let AttentionShape {
            width,
            heads: head_count,
            ..
        } = tokens.shape;
        let rows = tokens.queries_per_item();
        let mut key_value_gradient = zeros(key_value.len());
        let mut context = zeros(if needs_context { gradient.len() } else { 0 });
        let item_len = (rows * width).max(1);
        // One task per head, with its columns of each buffer.
        let query_heads = gradient
            .chunks_exact_mut(item_len)
            .flat_map(|item| heads(matrix_mut(item, rows, width), width / head_count));
        let key_value_heads = split(&mut key_value_gradient, tokens.key_lengths(2 * width))
            .into_iter()
            .flat_map(|item| {
                let keys = item.len() / (2 * width);
                let (key, value) = matrix_mut(item, keys, 2 * width).split_at_col_mut(width);
                heads(key, width / head_count)
                    .into_iter()
                    .zip(heads(value, width / head_count))
            });
        let mut contexts = context
            .chunks_exact_mut(item_len)
            .flat_map(|item| heads(matrix_mut(item, rows, width), width / head_count));
        let tasks = query_heads
            .zip(key_value_heads)
            .enumerate()
            .map(|(index, (gradient, (key, value)))| {
                (
                    index,
                    HeadGradients {
                        gradient,
                        key,
                        value,
                        output: contexts.next(),
                    },
                )
            })
            .collect();
        run_heads(
            tasks,
            || {
                (
                    BackwardScratch::new(tokens.shape),
                    vec![SoftmaxStats::default(); rows],
                )
            },
            |(scratch, recomputed), (index, to)| {
                let head = head_of(
                    tokens,
                    query,
                    key_value,
                    index / head_count,
                    index % head_count,
                );
                let softmax_stats = match saved {
                    Some(saved) => &saved[index * rows..][..rows],
                    None => {
                        head.softmax_stats(&mut scratch.scores, recomputed);
                        recomputed
                    }
                };
                head.backward(scratch, softmax_stats, to);
            },
        );
        (key_value_gradient, context)
    }
}

/// Returns the gradient of the weight of the output projection, `contextᵀ · dy`.
fn out_weight_gradient(context: &[f32], dy: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width * width];
    let rows = dy.len() / width;
    let context = matrix(context, rows, width);
    let par = parallelism(parts::threads());
    let dy = matrix(dy, rows, width);
    product(
        matrix_mut(&mut sum, width, width),
        Accum::Replace,
        context.transpose(),
        dy,
        1.0,
        par,
    );
    sum
}

/// Backward pass of the first projection and the layer norm.
struct InProjBackward<'a> {
    x: &'a [f32],
    params: &'a AttentionParams<'a>,
    tokens: &'a TokenLayout<'a>,
    needs_grad: AttentionNeedsGrad,
}

impl InProjBackward<'_> {
    /// Computes the gradients of the input, the layer norm and the first projection, given those of
    /// the output (`dy`), of the queries (`dq`) and of keys and values (`dkv`).
    fn run(self, dy: &[f32], dq: &[f32], dkv: &[f32], to: &mut AttentionGradients) {
        let (tokens, needs_grad) = (self.tokens, self.needs_grad);
        let width = tokens.shape.width;
        let all_queries = tokens.positions.is_none();
        // One query per item: its gradients are computed here, and added to the rows later. If all
        // tokens are queries, they go through with their keys and values.
        let selected = match all_queries {
            true => SelectedQueries::default(),
            false => self.selected_queries(dq),
        };
        let mut dx = self.residual(dy);
        let mut parts = Parts::of_rows(tokens.key_count(), needs_grad.in_weight || needs_grad.norm);
        if !all_queries {
            parts = parts.align_to(&tokens.key_offsets);
        }
        // The input rows of each part.
        let input_rows: Vec<Range<usize>> = parts
            .ranges
            .iter()
            .map(|range| match range.is_empty() {
                true => 0..0,
                false => tokens.key_row(range.start)..tokens.key_row(range.end - 1) + 1,
            })
            .collect();
        let slices = self.split_rows(&mut dx, &input_rows);
        let tasks = parts.ranges.iter().zip(&input_rows).zip(slices).collect();
        let sums = parts::run(tasks, |((range, input_rows), dx)| {
            let rows = PartRows {
                range: range.clone(),
                first_input_row: input_rows.start,
                threads: parts.threads,
            };
            self.rows_backward(rows, dq, dkv, &selected.input_gradient, dx)
        });
        self.sum_parts(sums, &selected.weight_gradient, to);
        to.in_bias = needs_grad.in_bias.then(|| {
            let mut sums = column_sums(dq, width);
            sums.extend(column_sums(dkv, 2 * width));
            sums
        });
        to.input = needs_grad.input.then_some(dx);
    }

    /// Computes the gradients of the query projection, for [`Queries::At`].
    fn selected_queries(&self, dq: &[f32]) -> SelectedQueries {
        let (tokens, width) = (self.tokens, self.tokens.shape.width);
        let mut selected = SelectedQueries::default();
        let rows = tokens.query_count();
        let par = parallelism(parts::threads());
        let dq = matrix(dq, rows, width);
        if self.needs_grad.before_in_proj() {
            let weight = matrix(self.params.in_proj.weight, width, 3 * width);
            let (to_query, _) = weight.split_at_col(width);
            selected.input_gradient = vec![0.0; rows * width];
            product(
                matrix_mut(&mut selected.input_gradient, rows, width),
                Accum::Replace,
                dq,
                to_query.transpose(),
                1.0,
                par,
            );
        }
        if self.needs_grad.in_weight {
            selected.weight_gradient = vec![0.0; width * width];
            let normed = normalize_query_rows(self.x, self.params, tokens);
            let sum = matrix_mut(&mut selected.weight_gradient, width, width);
            let normed = normed.first_rows(rows).transpose();
            product(sum, Accum::Replace, normed, dq, 1.0, par);
        }
        selected
    }

    /// Returns the gradient of the input through the residual connection, or nothing if the input
    /// needs no gradient.
    fn residual(&self, dy: &[f32]) -> Vec<f32> {
        let (tokens, width) = (self.tokens, self.tokens.shape.width);
        if !self.needs_grad.input {
            return Vec::new();
        }
        if tokens.positions.is_none() {
            return copy(dy);
        }
        let mut dx = zeros(self.x.len());
        for (i, dy) in dy.chunks_exact(width).enumerate() {
            dx[tokens.query_row(i) * width..][..width].copy_from_slice(dy);
        }
        dx
    }

    /// Splits `dx` into the input rows of each part.
    fn split_rows<'a>(&self, dx: &'a mut [f32], input_rows: &[Range<usize>]) -> Vec<&'a mut [f32]> {
        let width = self.tokens.shape.width;
        let mut rest = dx;
        let mut done = 0;
        let mut slices = Vec::new();
        for rows in input_rows {
            let mut slice: &mut [f32] = &mut [];
            if self.needs_grad.input && !rows.is_empty() {
                let _ = rest.split_off_mut(..(rows.start - done) * width);
                slice = rest.split_off_mut(..rows.len() * width).unwrap_or_default();
                done = rows.end;
            }
            slices.push(slice);
        }
        slices
    }

    /// Adds the gradient of the input rows of a part to `dx`, and returns those of the parameters,
    /// summed over the part.
    fn rows_backward(
        &self,
        rows: PartRows,
        dq: &[f32],
        dkv: &[f32],
        selected: &[f32],
        dx: &mut [f32],
    ) -> ParameterSums {
        let Self {
            x,
            params,
            tokens,
            needs_grad,
        } = *self;
        let width = tokens.shape.width;
        let all_queries = tokens.positions.is_none();
        let weight = matrix(params.in_proj.weight, width, 3 * width);
        let (to_query, to_key_value) = weight.split_at_col(width);
        let PartRows {
            range,
            first_input_row,
            threads,
        } = rows;
        let par = parallelism(threads);
        let sum = if needs_grad.in_weight {
            3 * width * width
        } else {
            0
        };
        let mut sums = ParameterSums {
            norm: ParamsGradient::new(width),
            weight: vec![0.0; sum],
        };
        let mut normed = ScratchRows::new(largest_chunk(range.len()), width);
        for chunk in chunks(range.len()) {
            let (count, first) = (chunk.len(), range.start + chunk.start);
            let input_row = |i: usize| tokens.key_row(first + i);
            let dkv = &dkv[first * 2 * width..][..count * 2 * width];
            let dkv = matrix(dkv, count, 2 * width);
            let dq =
                all_queries.then(|| matrix(&dq[first * width..][..count * width], count, width));
            if needs_grad.in_weight {
                for i in 0..count {
                    let x = &x[input_row(i) * width..][..width];
                    normalize_row(params.norm, x, normed.row_mut(i));
                }
                let sum = matrix_mut(&mut sums.weight, width, 3 * width);
                let (query_sum, key_value_sum) = sum.split_at_col_mut(width);
                let normed = normed.first_rows(count).transpose();
                product(key_value_sum, Accum::Add, normed, dkv, 1.0, par);
                if let Some(dq) = dq {
                    product(query_sum, Accum::Add, normed, dq, 1.0, par);
                }
            }
            if !needs_grad.before_in_proj() {
                continue;
            }
            // From here on `normed` holds the gradient of the normalized rows.
            let (to, transposed) = (normed.first_rows_mut(count), to_key_value.transpose());
            product(to, Accum::Replace, dkv, transposed, 1.0, par);
            if let Some(dq) = dq {
                let (to, transposed) = (normed.first_rows_mut(count), to_query.transpose());
                product(to, Accum::Add, dq, transposed, 1.0, par);
            }
            for i in 0..count {
                let input_row = input_row(i);
                let x = &x[input_row * width..][..width];
                let item = input_row / tokens.shape.tokens;
                // The selected query of the item adds its gradient to its own row.
                if !all_queries && tokens.query_row(item) == input_row {
                    let row = &selected[item * width..][..width];
                    dispatch(AddTo {
                        total: normed.row_mut(i),
                        row,
                    });
                }
                let moments = row_moments(params.norm, x);
                if needs_grad.input {
                    let dx = &mut dx[(input_row - first_input_row) * width..][..width];
                    normalize_row_backward(params.norm.gamma, moments, x, normed.row(i), dx);
                }
                if needs_grad.norm {
                    sums.norm.add(moments, x, normed.row(i));
                }
            }
        }
        sums
    }

    /// Sums the gradients of the parameters over all parts.
    fn sum_parts(
        &self,
        sums: Vec<ParameterSums>,
        query_weight: &[f32],
        to: &mut AttentionGradients,
    ) {
        let width = self.tokens.shape.width;
        let (mut gamma, mut beta, mut weight) = (Vec::new(), Vec::new(), Vec::new());
        for sums in sums {
            gamma.push(sums.norm.gamma);
            beta.push(sums.norm.beta);
            weight.push(sums.weight);
        }
        if self.needs_grad.norm {
            to.gamma = parts::sum(gamma);
            to.beta = parts::sum(beta);
        }
        if !self.needs_grad.in_weight {
            return;
        }
        to.in_weight = parts::sum(weight);
        // The parts leave the columns of the query projection zero for selected queries.
        if let (true, Some(weight)) = (self.tokens.positions.is_some(), &mut to.in_weight) {
            let rows = weight.chunks_exact_mut(3 * width);
            for (weight, columns) in rows.zip(query_weight.chunks_exact(width)) {
                weight[..width].copy_from_slice(columns);
            }
        }
    }
}

/// Gradients of the query projection for [`Queries::At`].
#[derive(Default)]
struct SelectedQueries {
    /// Of the normalized input rows, `[batch, width]`.
    input_gradient: Vec<f32>,
    /// Of the weight, `[width, width]`.
    weight_gradient: Vec<f32>,
}

/// The rows of one part.
struct PartRows {
    /// The keys.
    range: Range<usize>,
    /// The input row of the first key.
    first_input_row: usize,
    /// Number of threads the part may use.
    threads: usize,
}

/// Gradients of parameters, summed over rows.
struct ParameterSums {
    norm: ParamsGradient,
    weight: Vec<f32>,
}

/// Sums all rows, `[rows, width]` to `[width]`.
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
    parts::sum(sums).unwrap_or_default()
}

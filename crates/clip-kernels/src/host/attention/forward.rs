//! Forward pass of the attention branch.

use super::{
    super::{
        buffers::{ScratchRows, zeros},
        layer_norm::normalize_row,
        parts::{self, Parts},
        product::{chunks, largest_chunk, linear, matrix, matrix_mut, parallelism, product},
        simd::{AddTo, dispatch},
    },
    heads::{Scores, head_of, heads, run_heads},
    shape::{
        AttentionActivations, AttentionParams, AttentionShape, Queries, SoftmaxStats, TokenLayout,
    },
};
use faer::Accum;

/// Computes queries, `[queries, width]`, and keys and values, `[keys, 2 width]`.
pub(super) fn project(
    x: &[f32],
    params: &AttentionParams<'_>,
    tokens: &TokenLayout<'_>,
) -> (Vec<f32>, Vec<f32>) {
    let width = tokens.shape.width;
    let weight = matrix(params.in_proj.weight, width, 3 * width);
    let (to_query, to_key_value) = weight.split_at_col(width);
    let bias = params.in_proj.bias.map(|bias| bias.split_at(width));
    let mut query = zeros(tokens.query_count() * width);
    let mut key_value = zeros(tokens.key_count() * 2 * width);
    let input_row = |index: usize| &x[index * width..][..width];

    let parts = Parts::of_rows(tokens.key_count(), false);
    let all_queries = tokens.positions.is_none();
    // If every token is a query, a row is normalized once for all three projections.
    let tasks = parts
        .ranges
        .iter()
        .zip(parts.split(&mut key_value, 2 * width))
        .zip(parts.split(
            if all_queries { &mut query } else { &mut [] },
            if all_queries { width } else { 0 },
        ))
        .collect();
    parts::run(tasks, |((range, key_value), query)| {
        let par = parallelism(parts.threads);
        let mut normed = ScratchRows::new(largest_chunk(range.len()), width);
        for chunk in chunks(range.len()) {
            for (i, key) in chunk.clone().enumerate() {
                let x = input_row(tokens.key_row(range.start + key));
                normalize_row(params.norm, x, normed.row_mut(i));
            }
            let normed = normed.first_rows(chunk.len());
            let key_value = &mut key_value[chunk.start * 2 * width..chunk.end * 2 * width];
            linear(
                key_value,
                normed,
                to_key_value,
                bias.map(|bias| bias.1),
                par,
            );
            if all_queries {
                let query = &mut query[chunk.start * width..chunk.end * width];
                linear(query, normed, to_query, bias.map(|bias| bias.0), par);
            }
        }
    });
    if !all_queries {
        let normed = normalize_query_rows(x, params, tokens);
        let par = parallelism(parts::threads());
        linear(
            &mut query,
            normed.first_rows(tokens.query_count()),
            to_query,
            bias.map(|bias| bias.0),
            par,
        );
    }
    (query, key_value)
}

/// Normalizes the input rows of the queries, for [`Queries::At`].
pub(super) fn normalize_query_rows(
    x: &[f32],
    params: &AttentionParams<'_>,
    tokens: &TokenLayout<'_>,
) -> ScratchRows {
    let width = tokens.shape.width;
    let mut normed = ScratchRows::new(tokens.query_count(), width);
    for query in 0..tokens.query_count() {
        let x = &x[tokens.query_row(query) * width..][..width];
        normalize_row(params.norm, x, normed.row_mut(query));
    }
    normed
}

/// Computes the branch, and returns its activations too if `save` is set.
///
/// # Shapes
/// - `x`: `[batch, tokens, width]`
/// - output: `[batch, tokens, width]`, or `[batch, 1, width]` for [`Queries::At`]
///
/// # Panics
/// If a length does not match the shape, the heads do not divide the width, a position is out of
/// range, or a parent stands after its child.
pub fn attention_branch(
    x: &[f32],
    params: &AttentionParams<'_>,
    shape: AttentionShape,
    queries: Queries<'_>,
    save: bool,
) -> (Vec<f32>, Option<AttentionActivations>) {
    params.check(x, shape);
    let tokens = TokenLayout::new(shape, queries);
    let AttentionShape {
        width,
        heads: head_count,
        ..
    } = shape;
    // First phase: projections of the input rows.
    let (query, key_value) = project(x, params, &tokens);
    let rows = tokens.queries_per_item();
    let mut softmax_stats = vec![SoftmaxStats::default(); tokens.query_count() * head_count];
    let mut y = zeros(tokens.query_count() * width);

    // Second phase, one task per head. The columns of `y` hold the heads' output (the context) for
    // now, so that it needs no buffer of its own.
    let outputs = y
        .chunks_exact_mut((rows * width).max(1))
        .flat_map(|item| heads(matrix_mut(item, rows, width), width / head_count));
    let tasks = outputs
        .zip(softmax_stats.chunks_exact_mut(rows.max(1)))
        .enumerate()
        .collect();
    run_heads(
        tasks,
        || Scores::new(tokens.shape),
        |scores, (index, (output, softmax_stats))| {
            head_of(
                &tokens,
                &query,
                &key_value,
                index / head_count,
                index % head_count,
            )
            .forward(scores, output, softmax_stats);
        },
    );

    // Third phase: replaces the context in `y` by residual, bias and output projection.
    let weight = matrix(params.out_proj.weight, width, width);
    let parts = Parts::of_rows(tokens.query_count(), false);
    let tasks = parts
        .ranges
        .iter()
        .zip(parts.split(&mut y, width))
        .collect();
    parts::run(tasks, |(range, y)| {
        let mut context = ScratchRows::new(largest_chunk(range.len()), width);
        for chunk in chunks(range.len()) {
            let y = &mut y[chunk.start * width..chunk.end * width];
            for (i, y) in y.chunks_exact_mut(width).enumerate() {
                let input_row = tokens.query_row(range.start + chunk.start + i);
                context.row_mut(i).copy_from_slice(y);
                y.copy_from_slice(&x[input_row * width..][..width]);
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
                context.first_rows(chunk.len()),
                weight,
                1.0,
                parallelism(parts.threads),
            );
        }
    });
    (
        y,
        save.then_some(AttentionActivations {
            query,
            key_value,
            softmax_stats,
        }),
    )
}

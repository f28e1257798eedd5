//! The branch itself.

use super::{
    super::{
        buffers::{Rows, zeros},
        layer_norm::row,
        parts::{self, Parts},
        product::{affine, chunks, largest_chunk, matrix, matrix_mut, on, product},
        simd::{AddTo, dispatch},
    },
    heads::{Scores, head_of, heads, run_heads},
    shape::{AttentionActivations, AttentionParams, AttentionShape, Normaliser, Queries, Tokens},
};
use faer::Accum;

/// Queries, keys and values.
pub(super) fn project(
    x: &[f32],
    params: &AttentionParams<'_>,
    tokens: &Tokens<'_>,
) -> (Vec<f32>, Vec<f32>) {
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
pub(super) fn query_normals(x: &[f32], params: &AttentionParams<'_>, tokens: &Tokens<'_>) -> Rows {
    let width = tokens.shape.width;
    let mut normal = Rows::new(tokens.queries(), width);
    for query in 0..tokens.queries() {
        let x = &x[tokens.query_source(query) * width..][..width];
        row(params.norm, x, normal.row_mut(query));
    }
    normal
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

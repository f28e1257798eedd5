//! Matrix products, and the chunks of rows that go through a chain of them.

use std::{num::NonZeroUsize, ops::Range};

use faer::{Accum, MatMut, MatRef, Par};
pub(super) use host_gemm::product;

/// Largest number of rows that go through a chain of products at once: enough to amortise reading
/// the weights, few enough to keep the intermediate results small.
const MAX_ROWS: usize = 400;

/// Products are fastest on multiples of this many rows.
const ROW_MULTIPLE: usize = 4;

/// Divides `rows` into chunks of nearly the same size.
pub(super) fn chunks(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let size = largest_chunk(rows);
    (0..rows)
        .step_by(size.max(1))
        .map(move |start| start..rows.min(start + size))
}

/// Returns the number of rows of the largest chunk of `rows`.
pub(super) fn largest_chunk(rows: usize) -> usize {
    let even = rows.div_ceil(rows.div_ceil(MAX_ROWS).max(1));
    even.next_multiple_of(ROW_MULTIPLE).min(rows)
}

/// Returns the parallelism of a product on `threads` threads.
pub(super) fn parallelism(threads: usize) -> Par {
    match NonZeroUsize::new(threads) {
        Some(threads) if threads.get() > 1 => Par::Rayon(threads),
        _ => Par::Seq,
    }
}

/// Views `values` as a row-major matrix `[rows, width]`.
pub(super) fn matrix(values: &[f32], rows: usize, width: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(values, rows, width)
}

/// Views `values` as a mutable row-major matrix `[rows, width]`.
pub(super) fn matrix_mut(values: &mut [f32], rows: usize, width: usize) -> MatMut<'_, f32> {
    MatMut::from_row_major_slice_mut(values, rows, width)
}

/// Computes the linear layer `output = x·W + b`.
pub(super) fn linear(
    output: &mut [f32],
    x: MatRef<'_, f32>,
    weight: MatRef<'_, f32>,
    bias: Option<&[f32]>,
    par: Par,
) {
    let (rows, width) = (x.nrows(), weight.ncols());
    // The product accumulates on rows that hold the bias, which saves a pass over the output.
    let accum = match bias {
        Some(bias) => {
            for row in output.chunks_exact_mut(width) {
                row.copy_from_slice(bias);
            }
            Accum::Add
        }
        None => Accum::Replace,
    };
    product(matrix_mut(output, rows, width), accum, x, weight, 1.0, par);
}

//! Matrix products.

use std::{num::NonZeroUsize, ops::Range};

use faer::{Accum, MatMut, MatRef, Par};
pub(super) use host_gemm::product;

/// At most this many rows go through a chain of products at once: enough to spread the cost of
/// reading the weights, few enough that what lies between the products is small.
const MOST_ROWS: usize = 400;

/// Products are fastest on multiples of this many rows.
const GRANULE: usize = 4;

/// Cuts `rows` into chunks of nearly the same size.
pub(super) fn chunks(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let size = largest_chunk(rows);
    (0..rows)
        .step_by(size.max(1))
        .map(move |start| start..rows.min(start + size))
}

/// The largest chunk of `rows`.
pub(super) fn largest_chunk(rows: usize) -> usize {
    let even = rows.div_ceil(rows.div_ceil(MOST_ROWS).max(1));
    even.next_multiple_of(GRANULE).min(rows)
}

/// How a product uses `threads` threads.
pub(super) fn on(threads: usize) -> Par {
    match NonZeroUsize::new(threads) {
        Some(threads) if threads.get() > 1 => Par::Rayon(threads),
        _ => Par::Seq,
    }
}

/// A row-major matrix `[rows, width]`.
pub(super) fn matrix(values: &[f32], rows: usize, width: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(values, rows, width)
}

/// A row-major matrix `[rows, width]`.
pub(super) fn matrix_mut(values: &mut [f32], rows: usize, width: usize) -> MatMut<'_, f32> {
    MatMut::from_row_major_slice_mut(values, rows, width)
}

/// `output = x·W + b`.
pub(super) fn affine(
    output: &mut [f32],
    x: MatRef<'_, f32>,
    weight: MatRef<'_, f32>,
    bias: Option<&[f32]>,
    par: Par,
) {
    let (rows, width) = (x.nrows(), weight.ncols());
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

//! Products by the system's BLAS, in parallel on Rayon's threads.
//!
//! A BLAS call computes on the thread that makes it. A product is partitioned by its shape and not
//! by the number of threads, so its bits do not depend on them.

use arrays::linalg::general_mat_mul;
use faer::{Accum, MatMut, MatRef, Par};
use faer_ext::IntoNdarray;
use rayon::prelude::*;

/// Columns of a part of a product.
const PART_COLUMNS: usize = 256;

/// Columns of a part of a triangle. Narrow, since a part computes the whole square on the diagonal.
const TRIANGLE_PART_COLUMNS: usize = 128;

pub(crate) fn product(
    output: MatMut<'_, f32>,
    accum: Accum,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    factor: f32,
    par: Par,
) {
    // A product with few columns is partitioned by rows: its transpose by columns.
    if output.nrows() > output.ncols() {
        let (output, a, b) = (output.transpose_mut(), b.transpose(), a.transpose());
        product_by_columns(output, accum, a, b, factor, par);
    } else {
        product_by_columns(output, accum, a, b, factor, par);
    }
}

fn product_by_columns(
    output: MatMut<'_, f32>,
    accum: Accum,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    factor: f32,
    par: Par,
) {
    if par.degree() < 2 {
        return gemm(output, accum, a, b, factor);
    }
    let parts = parts(output, PART_COLUMNS).into_par_iter().with_max_len(1);
    parts.for_each(|(start, output)| {
        let b = b.subcols(start, output.ncols());
        gemm(output, accum, a, b, factor);
    });
}

pub(crate) fn gram_lower(output: MatMut<'_, f32>, x: MatRef<'_, f32>, par: Par) {
    let part = |(start, output): (usize, MatMut<'_, f32>)| {
        let rows = output.nrows() - start;
        let a = x.transpose().subrows(start, rows);
        let b = x.subcols(start, output.ncols());
        gemm(output.subrows_mut(start, rows), Accum::Replace, a, b, 1.0);
    };
    let parts = parts(output, TRIANGLE_PART_COLUMNS);
    match par.degree() {
        0 | 1 => parts.into_iter().for_each(part),
        _ => parts.into_par_iter().with_max_len(1).for_each(part),
    }
}

/// Splits `output` into parts of `width` columns, each with the index of its first column.
fn parts(mut output: MatMut<'_, f32>, width: usize) -> Vec<(usize, MatMut<'_, f32>)> {
    let columns = output.ncols();
    let mut parts = Vec::with_capacity(columns.div_ceil(width));
    for start in (0..columns).step_by(width) {
        let (part, rest) = output.split_at_col_mut(width.min(columns - start));
        parts.push((start, part));
        output = rest;
    }
    parts
}

/// Calls the BLAS for a whole product.
fn gemm(
    output: MatMut<'_, f32>,
    accum: Accum,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    factor: f32,
) {
    let beta = match accum {
        Accum::Replace => 0.0,
        Accum::Add => 1.0,
    };
    let (a, b, mut output) = (a.into_ndarray(), b.into_ndarray(), output.into_ndarray());
    general_mat_mul(factor, &a, &b, beta, &mut output);
}

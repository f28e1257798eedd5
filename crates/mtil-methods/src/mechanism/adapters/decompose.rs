//! Singular value decompositions of weights and gradients, on the host in `f64`.

use faer::{
    Mat, MatRef, Par,
    diag::DiagMut,
    dyn_stack::{MemBuffer, MemStack},
    linalg::svd::{ComputeSvdVectors, svd, svd_scratch},
};

use super::parts::AdaptedWeight;
use crate::error::RunError;
use gnsp_optimizer::Basis;

/// The singular value decomposition `U·diag(s)·Vᵀ` of a part of a weight, values descending.
pub(super) struct Decomposed {
    /// Left vectors: directions of the inputs, `[inputs, min]`.
    pub u: Mat<f64>,
    pub s: Vec<f64>,
    /// Right vectors: directions of the outputs, `[outputs, min]`.
    pub v: Mat<f64>,
}

/// Decomposes `matrix`, which belongs to part `part` of a weight.
///
/// # Errors
/// [`RunError::Decomposition`] if it is not finite, or the solver finds no finite decomposition of
/// it and of its transpose.
pub(super) fn decompose(
    matrix: &Mat<f64>,
    weight: &AdaptedWeight,
    part: usize,
) -> Result<Decomposed, RunError> {
    let failed = || RunError::Decomposition {
        weight: weight.part_name(part),
    };
    if !matrix.is_all_finite() {
        return Err(failed());
    }
    solve_either(matrix.as_ref(), solve).ok_or_else(failed)
}

/// Decomposes a matrix or, if `solve` finds nothing, its transpose: faer returned NaN for a finite
/// gradient of rank 423 in 512 rows, and the transpose takes other steps.
fn solve_either(
    matrix: MatRef<'_, f64>,
    solve: impl Fn(MatRef<'_, f64>) -> Option<Decomposed>,
) -> Option<Decomposed> {
    solve(matrix).or_else(|| {
        let Decomposed { u, s, v } = solve(matrix.transpose())?;
        Some(Decomposed { u: v, s, v: u })
    })
}

/// Returns the decomposition that faer finds, if it is finite.
fn solve(matrix: MatRef<'_, f64>) -> Option<Decomposed> {
    // On one thread: faer cuts some sums by the number of threads.
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let rank = rows.min(columns);
    let (mut u, mut v) = (Mat::zeros(rows, rank), Mat::zeros(columns, rank));
    let mut s = vec![0.0; rank];
    let (thin, par) = (ComputeSvdVectors::Thin, Par::Seq);
    let scratch = svd_scratch::<f64>(rows, columns, thin, thin, par, Default::default());
    svd(
        matrix,
        DiagMut::from_slice_mut(&mut s),
        Some(u.as_mut()),
        Some(v.as_mut()),
        par,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    let finite = u.is_all_finite() && v.is_all_finite() && s.iter().all(|x| x.is_finite());
    finite.then_some(Decomposed { u, s, v })
}

/// Returns a part of row-major values `[inputs, outputs]`.
pub(super) fn part_of(values: &[f32], weight: &AdaptedWeight, part: usize) -> Mat<f64> {
    let columns = &weight.parts[part];
    Mat::from_fn(weight.inputs, columns.len(), |row, column| {
        f64::from(values[row * weight.outputs + columns.start + column])
    })
}

/// Returns `(I − MMᵀ)·matrix` for the directions `M` of a basis.
pub(super) fn outside(basis: &Basis, matrix: Mat<f64>) -> Mat<f64> {
    let (k, n) = (basis.rank(), basis.features());
    let rows = basis.rows();
    let m = Mat::from_fn(n, k, |i, j| f64::from(rows[j * n + i]));
    // The directions are orthonormal in `f32` only. A second pass removes what that leaves of a
    // matrix that lies mostly inside.
    let mut matrix = matrix;
    for _ in 0..2 {
        let inside = m.transpose() * &matrix;
        matrix -= &m * inside;
    }
    matrix
}

/// Returns the columns `range` of a matrix as row-major values `[rows, columns]`.
pub(super) fn columns(matrix: &Mat<f64>, range: std::ops::Range<usize>) -> Vec<f32> {
    let rows = 0..matrix.nrows();
    rows.flat_map(|i| range.clone().map(move |j| matrix[(i, j)] as f32))
        .collect()
}

/// Returns the columns `range` of a matrix as rows: row-major values `[columns, rows]`.
pub(super) fn columns_as_rows(matrix: &Mat<f64>, range: std::ops::Range<usize>) -> Vec<f32> {
    range
        .flat_map(|j| (0..matrix.nrows()).map(move |i| matrix[(i, j)] as f32))
        .collect()
}

/// Returns the number of leading singular values whose cumulative share of the squares is below
/// `share`.
pub(super) fn below_share(s: &[f64], share: f64) -> usize {
    let total: f64 = s.iter().rev().map(|x| x * x).sum();
    let mut sum = 0.0;
    let below = s.iter().take_while(|x| {
        sum += *x * *x;
        sum < share * total
    });
    below.count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mechanism::adapters::settings::Lora;

    #[test]
    fn parts_are_decomposed_and_taken_off_a_basis() {
        let weight = AdaptedWeight::new(&Lora::default(), "visual.proj", [3, 2]);
        let values = [0.0, 3.0, 4.0, 0.0, 0.0, 0.0];
        let matrix = part_of(&values, &weight, 0);
        let svd = decompose(&matrix, &weight, 0).unwrap();
        assert!((svd.s[0] - 4.0).abs() < 1e-12 && (svd.s[1] - 3.0).abs() < 1e-12);
        assert_eq!(
            columns(&svd.u, 0..1).iter().map(|x| x.abs()).sum::<f32>(),
            1.0
        );
        let basis = Basis::from_rows(3, columns_as_rows(&svd.u, 0..1)).unwrap();
        let left = outside(&basis, matrix);
        assert!(left[(1, 0)].abs() < 1e-12 && (left[(0, 1)] - 3.0).abs() < 1e-12);
        let broken = decompose(&Mat::from_fn(1, 1, |_, _| f64::NAN), &weight, 0);
        assert!(
            matches!(broken, Err(RunError::Decomposition { weight }) if weight == "visual.proj")
        );
    }

    #[test]
    fn the_transpose_is_decomposed_where_the_matrix_is_not() {
        let matrix = Mat::from_fn(3, 2, |i, j| ((i * 2 + j) as f64).sin());
        let fails_on_tall = |m: MatRef<'_, f64>| match m.nrows() > m.ncols() {
            true => None,
            false => solve(m),
        };
        let Decomposed { u, s, v } = solve_either(matrix.as_ref(), fails_on_tall).unwrap();
        assert_eq!((u.nrows(), v.nrows()), (3, 2));
        let back = &u * Mat::from_fn(2, 2, |i, j| s[i] * v[(j, i)]);
        assert!((back - &matrix).norm_l2() < 1e-12);
        assert!(solve_either(matrix.as_ref(), |_| None).is_none());
    }

    #[test]
    fn shares_are_of_the_squares() {
        let s = [2.0, 1.0, 1.0, 0.0];
        for (share, below) in [(0.5, 0), (0.7, 1), (0.9, 2), (0.999, 2)] {
            assert_eq!(below_share(&s, share), below, "{share}");
        }
        assert_eq!(below_share(&[0.0; 3], 0.5), 0);
    }
}

//! Matrix products and eigendecompositions with the same bits for any number of threads.
//!
//! faer partitions an operation by the number of threads, and with it the order of sums. Here each
//! call of faer is on one thread, and a product is cut into parts of constant size.

use faer::{
    Accum, Mat, MatMut, MatRef, Par,
    diag::DiagMut,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{
        evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch},
        matmul::matmul,
    },
};
use rayon::prelude::*;

/// Rows or columns of a product per part.
const PART: usize = 256;

/// Computes `a·b`, in parallel over parts of the longer side of the result.
pub(super) fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let (rows, columns) = (a.nrows(), b.ncols());
    let mut result = Mat::zeros(rows, columns);
    let part = |out: MatMut<'_, f64>, a, b| matmul(out, Accum::Replace, a, b, 1.0, Par::Seq);
    if columns > rows {
        let parts = columns.div_ceil(PART).max(1);
        let out = result.par_col_partition_mut(parts);
        let b = b.par_col_partition(parts);
        out.zip(b).for_each(|(out, b)| part(out, a, b));
    } else {
        let parts = rows.div_ceil(PART).max(1);
        let out = result.par_row_partition_mut(parts);
        let a = a.par_row_partition(parts);
        out.zip(a).for_each(|(out, a)| part(out, a, b));
    }
    result
}

/// Eigenvalues of a symmetric matrix in ascending order, and eigenvectors as columns.
pub(super) struct Eigenpairs {
    pub values: Vec<f64>,
    pub vectors: Mat<f64>,
}

/// Computes all eigenpairs of the symmetric matrix whose lower triangle is given. Returns `None` if
/// the solver does not converge.
pub(super) fn eigenpairs(lower: MatRef<'_, f64>) -> Option<Eigenpairs> {
    let n = lower.nrows();
    let mut vectors = Mat::zeros(n, n);
    let mut values = vec![0.0; n];
    let par = Par::Seq;
    let scratch =
        self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, par, Default::default());
    self_adjoint_evd(
        lower,
        DiagMut::from_slice_mut(&mut values),
        Some(vectors.as_mut()),
        par,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    Some(Eigenpairs { values, vectors })
}

#[cfg(test)]
mod tests {
    use super::super::host::normal;
    use super::*;

    #[test]
    fn bits_are_independent_of_threads() {
        let random = |rows: usize, columns: usize, seed| {
            let values = normal(rows * columns, seed);
            Mat::from_fn(rows, columns, |i, j| values[j * rows + i])
        };
        for n in [5, 96, 300, 700] {
            let (wide, tall) = (random(n, 2 * n + 40, 1), random(n, 24, 2));
            let gram = product(wide.as_ref(), wide.transpose());
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.unwrap().install(|| {
                    let gram = product(wide.as_ref(), wide.transpose());
                    let image = product(gram.as_ref(), tall.as_ref());
                    let found = eigenpairs(gram.as_ref()).unwrap();
                    (image, found.values, found.vectors)
                })
            };
            let (image, values, vectors) = with(1);
            for threads in [2, 3, 8] {
                let other = with(threads);
                assert!(other.0 == image, "product of {n}, {threads} threads");
                assert!(other.1 == values, "values of {n}, {threads} threads");
                assert!(other.2 == vectors, "vectors of {n}, {threads} threads");
            }
            // They are right, too.
            let back = product(gram.as_ref(), vectors.as_ref());
            for (column, value) in values.iter().enumerate() {
                for row in 0..n {
                    let error = back[(row, column)] - value * vectors[(row, column)];
                    assert!(error.abs() < 1e-9 * values[n - 1], "{error}");
                }
            }
            let sum: f64 = (0..wide.ncols()).map(|k| wide[(2, k)] * wide[(1, k)]).sum();
            assert!((gram[(2, 1)] - sum).abs() < 1e-9 * n as f64);
        }
    }
}

//! The eigendecomposition of a Gram matrix.

use faer::{Mat, Side};

use crate::{Gram, NullSpaceError};

/// Eigenvalues and orthonormal eigenvectors of a symmetric matrix, computed in `f64`.
pub(crate) struct Eigen {
    /// In descending order; never negative.
    pub values: Vec<f64>,
    /// Column `j` belongs to the `j`-th *smallest* value, as `faer` orders them.
    ascending: Mat<f64>,
}

impl Eigen {
    /// Decomposes a Gram matrix.
    ///
    /// A symmetric solver and not a singular value decomposition: the matrix is symmetric and
    /// positive semi-definite, so both give the same subspaces, and this one costs a fraction.
    pub fn new(gram: &Gram) -> Result<Self, NullSpaceError> {
        let n = gram.features();
        let matrix = Mat::from_fn(n, n, |row, column| {
            f64::from(gram.matrix()[row * n + column])
        });
        let solved = matrix
            .self_adjoint_eigen(Side::Lower)
            .map_err(|_| NullSpaceError::NoConvergence { features: n })?;
        let diagonal = solved.S().column_vector();
        let values: Vec<f64> = (0..n).rev().map(|i| diagonal[i].max(0.0)).collect();
        if !values.iter().all(|value| value.is_finite()) {
            return Err(NullSpaceError::NoConvergence { features: n });
        }
        Ok(Self {
            values,
            ascending: solved.U().to_owned(),
        })
    }

    /// The eigenvectors `from..to`, counted from the largest value, as the columns of a row-major
    /// `[n, to − from]` matrix.
    pub fn vectors(&self, from: usize, to: usize) -> Vec<f32> {
        let n = self.values.len();
        let mut columns = Vec::with_capacity(n * (to - from));
        for row in 0..n {
            columns.extend((from..to).map(|j| self.ascending[(row, n - 1 - j)] as f32));
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::assert_close;

    #[test]
    fn values_descend_and_vectors_belong_to_them() {
        let matrix = vec![2.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 3.0];
        let eigen = Eigen::new(&Gram::from_matrix(3, matrix).unwrap()).unwrap();
        for (value, expected) in eigen.values.iter().zip([5.0, 3.0, 2.0]) {
            assert!((value - expected).abs() < 1e-12, "{value}");
        }
        let first: Vec<f32> = eigen.vectors(0, 1).iter().map(|x| x.abs()).collect();
        assert_close(&first, &[0.0, 1.0, 0.0], 1e-6);
        let rest: Vec<f32> = eigen.vectors(1, 3).iter().map(|x| x.abs()).collect();
        assert_close(&rest, &[0.0, 1.0, 0.0, 0.0, 1.0, 0.0], 1e-6);
    }
}

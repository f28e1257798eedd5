//! Full eigendecomposition and Krylov vector space on the host, in `f64`.

use faer::{Mat, MatRef};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    LeadingEigenpairs,
    krylov::VectorSpace,
    products::{eigenpairs, product},
};
use crate::{GnspError, Gram, RankRule};

/// Computes all eigenpairs of a group.
///
/// The matrix is symmetric and positive semi-definite, so a symmetric eigensolver finds the same
/// subspaces as a singular value decomposition, at a fraction of the cost.
pub(crate) fn full(
    gram: &Gram,
    group: usize,
    rule: RankRule,
) -> Result<LeadingEigenpairs, GnspError> {
    let n = gram.features();
    let none = GnspError::NoConvergence { features: n };
    let solved = eigenpairs(lower(gram, group).as_ref()).ok_or(none)?;
    let values: Vec<f64> = solved.values.iter().rev().map(|v| v.max(0.0)).collect();
    if !values.iter().all(|value| value.is_finite()) {
        return Err(GnspError::NoConvergence { features: n });
    }
    let rank = rule.rank(&values)?;
    // Eigenvectors as row-major columns, in descending order of their eigenvalues.
    let columns = |from: usize, to: usize| {
        let mut columns = Vec::with_capacity(n * (to - from));
        for row in 0..n {
            columns.extend((from..to).map(|j| solved.vectors[(row, n - 1 - j)] as f32));
        }
        columns
    };
    Ok(LeadingEigenpairs {
        protected: columns(0, rank),
        free: Some(columns(rank, n)),
        values,
        rank,
    })
}

/// Returns the lower triangle of a group, with zeros above it.
fn lower(gram: &Gram, group: usize) -> Mat<f64> {
    let n = gram.features();
    let mut matrix = Mat::zeros(n, n);
    gram.for_upper(group, |row, column, value| {
        matrix[(column, row)] = f64::from(value);
    });
    matrix
}

/// Draws standard normal numbers from a seed (Box and Muller).
pub(super) fn normal(count: usize, seed: u64) -> Vec<f64> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    // 53 random bits, never zero: the logarithm must be finite.
    let mut uniform = || ((generator.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    (0..count)
        .map(|_| (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos())
        .collect()
}

/// A group as a dense matrix in `f64`, whose vectors are on the host.
pub(super) struct HostSpace {
    matrix: Mat<f64>,
}

impl HostSpace {
    pub(super) fn new(gram: &Gram, group: usize) -> Self {
        /// Width of a strip of rows, whose cache lines stay in the L1 cache while it is mirrored.
        const STRIP: usize = 64;
        let mut matrix = lower(gram, group);
        let n = matrix.ncols();
        // Mirrors the triangle strip by strip, because one side is read with a large stride.
        for strip in (0..n).step_by(STRIP) {
            for column in strip + 1..n {
                for row in strip..column.min(strip + STRIP) {
                    matrix[(row, column)] = matrix[(column, row)];
                }
            }
        }
        Self { matrix }
    }
}

impl VectorSpace for HostSpace {
    type Block = Mat<f64>;

    fn features(&self) -> usize {
        self.matrix.nrows()
    }

    fn precision(&self) -> f64 {
        f64::EPSILON
    }

    fn random(&self, columns: usize, seed: u64) -> Mat<f64> {
        let n = self.features();
        let numbers = normal(n * columns, seed);
        Mat::from_fn(n, columns, |i, j| numbers[j * n + i])
    }

    fn apply(&self, x: &Mat<f64>) -> Mat<f64> {
        // Computed as (xᵀ·G)ᵀ, since G is symmetric: 1.5 to 2 times as fast as G·x for few columns,
        // measured at n = 3072.
        let x = x.transpose().to_owned();
        product(x.as_ref(), self.matrix.as_ref())
            .transpose()
            .to_owned()
    }

    fn dot(&self, a: &Mat<f64>, b: &Mat<f64>) -> Result<Mat<f64>, GnspError> {
        Ok(product(a.transpose(), b.as_ref()))
    }

    fn minus(&self, x: &Mat<f64>, a: &Mat<f64>, s: MatRef<'_, f64>) -> Mat<f64> {
        x - product(a.as_ref(), s)
    }

    fn times(&self, a: &Mat<f64>, s: MatRef<'_, f64>) -> Mat<f64> {
        product(a.as_ref(), s)
    }

    fn append(&self, a: Option<Mat<f64>>, b: Mat<f64>) -> Mat<f64> {
        let Some(mut a) = a else {
            return b;
        };
        let (n, from) = (a.nrows(), a.ncols());
        a.resize_with(n, from + b.ncols(), |i, j| b[(i, j - from)]);
        a
    }

    fn read(&self, x: &Mat<f64>) -> Result<Vec<f32>, GnspError> {
        let mut rows = Vec::with_capacity(x.nrows() * x.ncols());
        for i in 0..x.nrows() {
            rows.extend((0..x.ncols()).map(|j| x[(i, j)] as f32));
        }
        Ok(rows)
    }
}

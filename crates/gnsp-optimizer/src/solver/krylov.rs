//! Block Krylov method for the leading eigenpairs, generic over precision and device.
//!
//! Starting from a random block `V`, the method extends an orthonormal basis of the Krylov space
//! `V, G·V, G²·V, …` block by block, and orthogonalises each block against all earlier ones (block
//! Lanczos with full orthogonalisation; Golub and Underwood 1977). The eigenvectors of large
//! eigenvalues, which a rank rule protects, converge first, long before the basis spans the whole
//! space. The trace of `G` gives the sum of the eigenvalues that are still missing, so the rank is
//! known once enough of the spectrum is found.

use faer::{Mat, MatRef};

use super::{
    LeadingEigenpairs,
    products::{eigenpairs, product},
};
use crate::{GnspError, RankRule};

/// Vector space of the method, on the host in `f64` or on a device in `f32`.
///
/// It performs all operations on vectors of `n` features. Problems of the size of the basis are
/// solved on the host in this module.
pub(super) trait VectorSpace {
    /// A block of vectors, as columns of `n` numbers.
    type Block: Clone;

    /// Returns the number `n` of features.
    fn features(&self) -> usize;
    /// Returns the machine epsilon of the arithmetic.
    fn precision(&self) -> f64;
    /// Returns the divisor of the matrix, which prevents an overflow of squared entries.
    fn scale(&self) -> f64 {
        1.0
    }
    /// Draws a block of random vectors from a seed.
    fn random(&self, columns: usize, seed: u64) -> Self::Block;
    /// Computes `G·x`.
    fn apply(&self, x: &Self::Block) -> Self::Block;
    /// Computes `aᵀ·b`.
    fn dot(&self, a: &Self::Block, b: &Self::Block) -> Result<Mat<f64>, GnspError>;
    /// Computes `x − a·s`.
    fn minus(&self, x: &Self::Block, a: &Self::Block, s: MatRef<'_, f64>) -> Self::Block;
    /// Computes `a·s`.
    fn times(&self, a: &Self::Block, s: MatRef<'_, f64>) -> Self::Block;
    /// Concatenates the columns of two blocks.
    fn append(&self, a: Option<Self::Block>, b: Self::Block) -> Self::Block;
    /// Reads a block back, row-major.
    fn read(&self, x: &Self::Block) -> Result<Vec<f32>, GnspError>;
}

/// Largest accepted error of the projector, in the Frobenius norm relative to `√n`.
const TOLERANCE: f64 = 1e-6;

/// Number of random vectors that search for directions missed by the basis.
const PROBES: usize = 8;

/// Computes the leading eigenpairs that the rule protects.
///
/// Returns `None` if a basis of a third of the dimensions does not contain them, or if the result
/// does not pass its checks. `total` is the trace of the matrix, `squares` its squared Frobenius
/// norm.
pub(super) fn leading_eigenpairs<S: VectorSpace>(
    space: &S,
    rule: RankRule,
    total: f64,
    squares: f64,
) -> Result<Option<LeadingEigenpairs>, GnspError> {
    let n = space.features();
    let eps = space.precision();
    let divisor = space.scale();
    let (total, squares) = (total / divisor, squares / divisor / divisor);
    // Multiples of 12 suit the matrix product kernels of the host.
    let block = if n < 1024 { 12 } else { 24 };
    let scale = squares.sqrt();
    let mut basis: Option<S::Block> = None;
    let mut projected = Mat::<f64>::zeros(0, 0);
    let mut seed = 0;
    let mut schedule = CheckSchedule::default();
    let Some(mut next) = orthonormal(space, None, space.random(block, seed), 0.0, false)? else {
        return Ok(None);
    };
    loop {
        let start = projected.nrows();
        let added = next.1;
        let size = start + added;
        if size > n / 3 + block {
            return Ok(None);
        }
        let image = space.apply(&next.0);
        let joint = space.append(basis.take(), next.0);
        // The new columns of QᵀGQ for the basis Q, and the part of G·V outside the basis, which
        // spans the next block.
        let inside = space.dot(&joint, &image)?;
        let outside = space.minus(&image, &joint, inside.as_ref());
        projected = append_columns(&projected, &inside);

        let fresh = orthonormal(
            space,
            Some(&joint),
            outside.clone(),
            4.0 * eps * scale,
            true,
        )?;
        let coupling = match &fresh {
            Some((block, _)) => space.dot(block, &outside)?,
            None => Mat::zeros(0, added),
        };
        let seen: f64 = (0..size).map(|i| projected[(i, i)]).sum();
        // The eigenproblem of the basis is solved only if its result may decide the rank.
        if rule.may_be_decided(seen, size, total)
            && schedule.is_due()
            && let Some(found) =
                converged(&projected, &coupling, rule, total, n, eps, &mut schedule)?
        {
            if found.rank > 0 && misses_direction(space, &joint, &found, seed + 1)? {
                return Ok(None);
            }
            let vectors = space.times(&joint, found.vectors.subcols(0, found.rank));
            return Ok(Some(LeadingEigenpairs {
                protected: space.read(&vectors)?,
                values: found.values[..found.rank]
                    .iter()
                    .map(|x| divisor * x)
                    .collect(),
                rank: found.rank,
                free: None,
            }));
        }
        next = match fresh {
            Some(fresh) => fresh,
            None => {
                // The basis spans an invariant subspace of G. Further directions of a multiple
                // eigenvalue may lie outside it, so restart with a random block.
                seed += 1;
                let random = space.random(block, seed);
                match orthonormal(space, Some(&joint), random, 0.0, false)? {
                    Some(fresh) => fresh,
                    None => return Ok(None),
                }
            }
        };
        basis = Some(joint);
    }
}

/// Ritz pairs: approximate eigenpairs from the basis, in descending order.
struct RitzPairs {
    values: Vec<f64>,
    /// Coefficients in the basis, as columns.
    vectors: Mat<f64>,
    /// The number of protected directions.
    rank: usize,
}

/// Schedule of the convergence checks.
///
/// Solving the eigenproblem of the basis after every block is too expensive. The error falls by
/// about the same factor with each block, so the next check is extrapolated from the last two.
#[derive(Default)]
struct CheckSchedule {
    /// Blocks since the last check.
    waited: usize,
    /// Blocks to skip before the next check.
    wait: usize,
    /// Rank and error at the last check.
    last: Option<(usize, f64)>,
}

impl CheckSchedule {
    /// Counts a block, and returns whether to check now.
    fn is_due(&mut self) -> bool {
        self.waited += 1;
        self.waited > self.wait
    }

    /// Records the error of a check and computes when to check again.
    fn record(&mut self, rank: usize, error: f64, allowed: f64) {
        let steps = self.waited as f64;
        self.wait = match self.last {
            Some((before, earlier)) if before == rank && error < earlier && error > 0.0 => {
                let factor = (error / earlier).powf(1.0 / steps);
                // One block less, because the convergence accelerates.
                let needed = (allowed / error).ln() / factor.ln() - 1.0;
                (needed as usize).min(4)
            }
            _ => 0,
        };
        self.waited = 0;
        self.last = Some((rank, error));
    }
}

/// Returns the Ritz pairs if they decide the rule and the protected ones have converged.
///
/// `projected` is `QᵀGQ` for the basis `Q`, `coupling` the product of the next block with the image
/// of the last one.
fn converged(
    projected: &Mat<f64>,
    coupling: &Mat<f64>,
    rule: RankRule,
    total: f64,
    features: usize,
    eps: f64,
    schedule: &mut CheckSchedule,
) -> Result<Option<RitzPairs>, GnspError> {
    let size = projected.nrows();
    let solved = eigenpairs(projected.as_ref()).ok_or(GnspError::NoConvergence { features })?;
    let values: Vec<f64> = solved.values.iter().rev().copied().collect();
    let vectors = solved.vectors.as_ref().reverse_cols().to_owned();
    let Some(rank) = rule.rank_of_leading(&values, total, features)? else {
        return Ok(None);
    };
    let found = RitzPairs {
        values,
        vectors,
        rank,
    };
    if rank == 0 {
        return Ok(Some(found));
    }
    if rank >= size {
        return Ok(None); // The gap after the last protected eigenvalue is unknown.
    }
    // The residual ‖G·u − θ·u‖ comes from the coefficients of the last block alone: G maps all
    // earlier blocks into the basis.
    let last = size - coupling.ncols();
    let tails = found.vectors.submatrix(last, 0, size - last, rank);
    let residuals = product(coupling.as_ref(), tails);
    let next = found.values[rank];
    let mut error = 0.0;
    for i in 0..rank {
        let residual = residuals.col(i).norm_l2();
        // Smaller residuals are rounding errors of G.
        if residual > 8.0 * eps * found.values[0] {
            error += (residual / (found.values[i] - next)).powi(2);
        }
    }
    // Principal angles θ between subspaces give a distance √2·‖sin θ‖ of their projectors.
    let allowed = TOLERANCE * (features as f64).sqrt();
    let error = (2.0 * error).sqrt();
    schedule.record(rank, error, allowed);
    Ok((error <= allowed).then_some(found))
}

/// Returns whether block power iteration outside the basis finds an eigenvalue above the smallest
/// protected one.
fn misses_direction<S: VectorSpace>(
    space: &S,
    basis: &S::Block,
    found: &RitzPairs,
    seed: u64,
) -> Result<bool, GnspError> {
    let mut probe = space.random(PROBES, seed);
    let smallest = found.values[found.rank - 1];
    for _ in 0..3 {
        let Some((block, columns)) = orthonormal(space, Some(basis), probe, 0.0, false)? else {
            return Ok(false);
        };
        probe = space.apply(&block);
        let inside = space.dot(&block, &probe)?;
        let solved = eigenpairs(inside.as_ref()).ok_or(GnspError::NoConvergence {
            features: space.features(),
        })?;
        let largest = solved.values[columns - 1];
        if largest > smallest + 1e3 * space.precision() * found.values[0] {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Orthonormalises the columns that are longer than `floor`, also against `basis`.
///
/// Returns the block and its number of columns, or `None` if no column is left. It uses the
/// eigenvectors of the columns' Gram matrix, scaled to a unit diagonal (SVQB; Stathopoulos and Wu
/// 2002), in two passes: the second one removes the rounding error of the first. Set
/// `preorthogonalized` for columns that are orthogonal to the basis up to rounding.
fn orthonormal<S: VectorSpace>(
    space: &S,
    basis: Option<&S::Block>,
    mut block: S::Block,
    floor: f64,
    preorthogonalized: bool,
) -> Result<Option<(S::Block, usize)>, GnspError> {
    let mut columns = 0;
    for pass in 0..2 {
        // Rounding errors of orthogonal columns grow when the first pass scales the columns up.
        if let Some(basis) = basis
            && !(pass == 0 && preorthogonalized)
        {
            let inside = space.dot(basis, &block)?;
            block = space.minus(&block, basis, inside.as_ref());
        }
        let gram = space.dot(&block, &block)?;
        let floor = if pass == 0 { floor * floor } else { 0.0 };
        let long: Vec<usize> = (0..gram.ncols())
            .filter(|i| gram[(*i, *i)] > floor)
            .collect();
        if long.is_empty() {
            return Ok(None);
        }
        let scale = |i: usize| 1.0 / gram[(i, i)].sqrt();
        let unit = Mat::from_fn(long.len(), long.len(), |i, j| {
            gram[(long[i], long[j])] * scale(long[i]) * scale(long[j])
        });
        let solved = eigenpairs(unit.as_ref()).ok_or(GnspError::NoConvergence {
            features: space.features(),
        })?;
        let values = &solved.values;
        // Smaller eigenvalues are rounding errors of the products. The threshold leaves a margin
        // that the second pass needs.
        let smallest = space.precision().powf(0.75) * long.len() as f64;
        let kept: Vec<usize> = (0..long.len()).filter(|j| values[*j] > smallest).collect();
        if kept.is_empty() {
            return Ok(None);
        }
        let mut mix = Mat::zeros(gram.ncols(), kept.len());
        for (to, j) in kept.iter().enumerate() {
            for (i, column) in long.iter().enumerate() {
                mix[(*column, to)] = solved.vectors[(i, *j)] * scale(*column) / values[*j].sqrt();
            }
        }
        columns = kept.len();
        block = space.times(&block, mix.as_ref());
    }
    Ok(Some((block, columns)))
}

/// Extends a symmetric matrix by columns, and by the rows that mirror them.
fn append_columns(matrix: &Mat<f64>, columns: &Mat<f64>) -> Mat<f64> {
    let (old, size) = (matrix.nrows(), columns.nrows());
    Mat::from_fn(size, size, |i, j| match (i >= old, j >= old) {
        (false, false) => matrix[(i, j)],
        (_, true) if i < j => columns[(i, j - old)],
        (true, true) => (columns[(i, j - old)] + columns[(j, i - old)]) / 2.0,
        (true, false) => columns[(j, i - old)],
        (false, true) => columns[(i, j - old)],
    })
}

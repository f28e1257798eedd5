//! A block Krylov method for the leading eigenpairs, in any precision and on any device.
//!
//! From a random block `V`, the space of `V, G·V, G²·V, …` is spanned step by step by an
//! orthonormal basis, each step made orthogonal to all before (block Lanczos with full
//! orthogonalisation; Golub and Underwood 1977). The leading eigenvectors of `G` appear in it long
//! before it is the whole space: large eigenvalues first, which are the ones a rank rule protects.
//! The trace of `G` says how much of the spectrum is still missing, so the cut is known as soon as
//! enough of it is found.

use faer::{Mat, MatRef, Side};

use super::Leading;
use crate::{GnspError, RankRule};

/// The space of the vectors: on the host in `f64`, or on a device in `f32`. Everything as long as the
/// features happens in a space; what is as small as the basis is solved here.
pub(super) trait Space {
    /// Columns of `n` numbers.
    type Panel: Clone;

    /// The number `n` of features.
    fn features(&self) -> usize;
    /// The rounding of one operation.
    fn precision(&self) -> f64;
    /// The divisor of the matrix, which keeps its squares within the range of the numbers.
    fn unit(&self) -> f64 {
        1.0
    }
    /// Columns of random numbers, the same for the same seed.
    fn random(&self, columns: usize, seed: u64) -> Self::Panel;
    /// `G·x`.
    fn apply(&self, x: &Self::Panel) -> Self::Panel;
    /// `aᵀ·b`.
    fn dot(&self, a: &Self::Panel, b: &Self::Panel) -> Result<Mat<f64>, GnspError>;
    /// `x − a·s`.
    fn minus(&self, x: &Self::Panel, a: &Self::Panel, s: MatRef<'_, f64>) -> Self::Panel;
    /// `a·s`.
    fn times(&self, a: &Self::Panel, s: MatRef<'_, f64>) -> Self::Panel;
    /// The columns of both, one after the other.
    fn append(&self, a: Option<Self::Panel>, b: Self::Panel) -> Self::Panel;
    /// The columns, row-major.
    fn read(&self, x: &Self::Panel) -> Result<Vec<f32>, GnspError>;
}

/// The largest distance of the found projector from the true one, relative in the Frobenius norm.
const TOLERANCE: f64 = 1e-6;

/// Columns that look for directions which the basis has missed.
const PROBES: usize = 8;

/// The leading eigenpairs that the rule protects, or nothing when they are not found in a third of
/// the space or the result does not pass its checks.
pub(super) fn leading<S: Space>(
    space: &S,
    rule: RankRule,
    total: f64,
    squares: f64,
) -> Result<Option<Leading>, GnspError> {
    let n = space.features();
    let eps = space.precision();
    let unit = space.unit();
    let (total, squares) = (total / unit, squares / unit / unit);
    // Multiples of 12 suit the kernels of the products on the host.
    let block = if n < 1024 { 12 } else { 24 };
    let scale = squares.sqrt();
    let mut basis: Option<S::Panel> = None;
    let mut projected = Mat::<f64>::zeros(0, 0);
    let mut seed = 0;
    let mut pace = Pace::default();
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
        let whole = space.append(basis.take(), next.0);
        // G in the basis so far; what the new block adds to it, and what sticks out.
        let inside = space.dot(&whole, &image)?;
        let outside = space.minus(&image, &whole, inside.as_ref());
        projected = grown(&projected, &inside);

        let fresh = orthonormal(
            space,
            Some(&whole),
            outside.clone(),
            4.0 * eps * scale,
            true,
        )?;
        let coupling = match &fresh {
            Some((panel, _)) => space.dot(panel, &outside)?,
            None => Mat::zeros(0, added),
        };
        let seen: f64 = (0..size).map(|i| projected[(i, i)]).sum();
        if rule.possible(seen, size, total)
            && pace.is_due()
            && let Some(found) = decide(&projected, &coupling, rule, total, n, eps, &mut pace)?
        {
            if found.rank > 0 && missed(space, &whole, &found, seed + 1)? {
                return Ok(None);
            }
            let vectors = space.times(&whole, found.vectors.subcols(0, found.rank));
            return Ok(Some(Leading {
                protected: space.read(&vectors)?,
                values: found.values[..found.rank]
                    .iter()
                    .map(|x| unit * x)
                    .collect(),
                rank: found.rank,
                free: None,
            }));
        }
        next = match fresh {
            Some(fresh) => fresh,
            None => {
                // The space is closed under G. Equal eigenvalues may still hide outside it.
                seed += 1;
                let random = space.random(block, seed);
                match orthonormal(space, Some(&whole), random, 0.0, false)? {
                    Some(fresh) => fresh,
                    None => return Ok(None),
                }
            }
        };
        basis = Some(whole);
    }
}

/// The part of the spectrum that the basis decides.
struct Ritz {
    values: Vec<f64>,
    /// Descending, as columns in the basis.
    vectors: Mat<f64>,
    rank: usize,
}

/// When to look again: the small eigenproblem of the whole basis is not worth solving at every
/// step, and its error falls by about the same factor from one to the next.
#[derive(Default)]
struct Pace {
    /// Steps since the last look, and how many to let pass.
    waited: usize,
    wait: usize,
    last: Option<(usize, f64)>,
}

impl Pace {
    fn is_due(&mut self) -> bool {
        self.waited += 1;
        self.waited > self.wait
    }

    /// Takes note of an error and of what is allowed.
    fn note(&mut self, rank: usize, error: f64, allowed: f64) {
        let steps = self.waited as f64;
        self.wait = match self.last {
            Some((before, earlier)) if before == rank && error < earlier && error > 0.0 => {
                let factor = (error / earlier).powf(1.0 / steps);
                // One step less: the error falls faster and faster.
                let needed = (allowed / error).ln() / factor.ln() - 1.0;
                (needed as usize).min(4)
            }
            _ => 0,
        };
        self.waited = 0;
        self.last = Some((rank, error));
    }
}

/// The rank and the eigenpairs, once the rule is decided and the pairs have converged.
fn decide(
    projected: &Mat<f64>,
    coupling: &Mat<f64>,
    rule: RankRule,
    total: f64,
    features: usize,
    eps: f64,
    pace: &mut Pace,
) -> Result<Option<Ritz>, GnspError> {
    let size = projected.nrows();
    let solved = projected
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| GnspError::NoConvergence { features })?;
    let ascending = solved.S().column_vector();
    let values: Vec<f64> = (0..size).rev().map(|i| ascending[i]).collect();
    let vectors = solved.U().reverse_cols().to_owned();
    let Some(rank) = rule.rank_of_leading(&values, total, features)? else {
        return Ok(None);
    };
    let found = Ritz {
        values,
        vectors,
        rank,
    };
    if rank == 0 {
        return Ok(Some(found));
    }
    if rank >= size {
        return Ok(None); // The gap behind the last one is not known.
    }
    // ‖G·u − θ·u‖ of a pair is what its last block sends outside the basis.
    let last = size - coupling.ncols();
    let tails = found.vectors.submatrix(last, 0, size - last, rank);
    let residuals = coupling * tails;
    let behind = found.values[rank];
    let mut error = 0.0;
    for i in 0..rank {
        let residual = residuals.col(i).norm_l2();
        // At the rounding of G itself no more can be had.
        if residual > 8.0 * eps * found.values[0] {
            error += (residual / (found.values[i] - behind)).powi(2);
        }
    }
    // A subspace that is off by the angles θ has a projector that is off by √2·‖sin θ‖.
    let allowed = TOLERANCE * (features as f64).sqrt();
    let error = (2.0 * error).sqrt();
    pace.note(rank, error, allowed);
    Ok((error <= allowed).then_some(found))
}

/// Returns whether a direction outside the basis has a larger eigenvalue than one of the found.
fn missed<S: Space>(
    space: &S,
    basis: &S::Panel,
    found: &Ritz,
    seed: u64,
) -> Result<bool, GnspError> {
    let mut probe = space.random(PROBES, seed);
    let smallest = found.values[found.rank - 1];
    for _ in 0..3 {
        let Some((panel, columns)) = orthonormal(space, Some(basis), probe, 0.0, false)? else {
            return Ok(false);
        };
        probe = space.apply(&panel);
        let inside = space.dot(&panel, &probe)?;
        let solved =
            inside
                .self_adjoint_eigen(Side::Lower)
                .map_err(|_| GnspError::NoConvergence {
                    features: space.features(),
                })?;
        let largest = solved.S().column_vector()[columns - 1];
        if largest > smallest + 1e3 * space.precision() * found.values[0] {
            return Ok(true);
        }
    }
    Ok(false)
}

/// An orthonormal basis, orthogonal to `basis` too, of the columns longer than `floor`, and how
/// many columns it has; nothing when none is left.
///
/// From the eigenvectors of the columns' small Gram matrix, scaled to a unit diagonal (SVQB;
/// Stathopoulos and Wu 2002), twice: the second pass removes what the first one leaves by rounding.
/// `prepared` columns are orthogonal to the basis already, up to rounding.
fn orthonormal<S: Space>(
    space: &S,
    basis: Option<&S::Panel>,
    mut panel: S::Panel,
    floor: f64,
    prepared: bool,
) -> Result<Option<(S::Panel, usize)>, GnspError> {
    let mut columns = 0;
    for pass in 0..2 {
        // Columns that were made orthogonal before are not quite so once they are scaled up.
        if let Some(basis) = basis
            && !(pass == 0 && prepared)
        {
            let inside = space.dot(basis, &panel)?;
            panel = space.minus(&panel, basis, inside.as_ref());
        }
        let gram = space.dot(&panel, &panel)?;
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
        let solved =
            unit.self_adjoint_eigen(Side::Lower)
                .map_err(|_| GnspError::NoConvergence {
                    features: space.features(),
                })?;
        let values = solved.S().column_vector();
        // Smaller ones are the rounding of the products; the second pass needs them well above.
        let smallest = space.precision().powf(0.75) * long.len() as f64;
        let kept: Vec<usize> = (0..long.len()).filter(|j| values[*j] > smallest).collect();
        if kept.is_empty() {
            return Ok(None);
        }
        let mut mix = Mat::zeros(gram.ncols(), kept.len());
        for (to, j) in kept.iter().enumerate() {
            for (i, column) in long.iter().enumerate() {
                mix[(*column, to)] = solved.U()[(i, *j)] * scale(*column) / values[*j].sqrt();
            }
        }
        columns = kept.len();
        panel = space.times(&panel, mix.as_ref());
    }
    Ok(Some((panel, columns)))
}

/// The symmetric matrix with these last columns.
fn grown(matrix: &Mat<f64>, columns: &Mat<f64>) -> Mat<f64> {
    let (old, size) = (matrix.nrows(), columns.nrows());
    Mat::from_fn(size, size, |i, j| match (i >= old, j >= old) {
        (false, false) => matrix[(i, j)],
        (_, true) if i < j => columns[(i, j - old)],
        (true, true) => (columns[(i, j - old)] + columns[(j, i - old)]) / 2.0,
        (true, false) => columns[(j, i - old)],
        (false, true) => columns[(i, j - old)],
    })
}

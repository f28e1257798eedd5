//! Eigenvalue solvers for the leading eigenvectors of a Gram matrix.

mod device;
mod host;
mod krylov;
mod products;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::{GnspError, Gram, RankRule};

pub(crate) use host::full;

/// Smallest number of features for which a partial decomposition is worthwhile.
const SMALLEST_PARTIAL: usize = 96;

/// Eigenvalue solver.
///
/// All solvers compute the same subspace up to rounding error, unless eigenvalues at the rank cut
/// are equal. The choice among their directions is then arbitrary.
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use gnsp_optimizer::{Gram, NullSpace, Policy, RankRule, Solver};
///
/// let gram = Gram::from_matrix(2, vec![4.0, 0.0, 0.0, 1.0])?;
/// let policy = Policy::gnsp_update()
///     .with_rank(RankRule::FixedRank(1))
///     .with_solver(Solver::Full);
/// let space = NullSpace::from_policy(&gram, &policy, &Device::default())?;
/// assert_eq!(space.spectrum(0), [4.0, 1.0]);
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// `"auto"`: [`Partial`](Self::Partial) if the rank rule may be decided from few directions,
    /// otherwise [`Full`](Self::Full).
    #[default]
    Auto,
    /// `"full"`: a symmetric eigensolver for all directions, on the host in `f64`, with about
    /// `10·n³` operations.
    Full,
    /// `"partial"`: a block Krylov method for the directions that the rule needs, on the host in
    /// `f64`. It takes about `2·n²` operations for each basis vector, and needs two to four times
    /// as many basis vectors as protected directions. Falls back to [`Full`](Self::Full) if the
    /// result does not pass its checks, or if more than a quarter of the directions are needed.
    Partial,
    /// `"device"`: like [`Partial`](Self::Partial), with all large products in `f32` on the device
    /// of the null space; meant for GPUs. Its error is about `1e-6` of the largest eigenvalue
    /// divided by the spectral gap at the rank cut. Falls back to [`Full`](Self::Full) like
    /// [`Partial`](Self::Partial).
    Device,
}

/// LeadingEigenpairs eigenpairs of a Gram matrix, up to the rank of a rule.
pub(crate) struct LeadingEigenpairs {
    /// The known eigenvalues in descending order: all of them, or the protected ones.
    pub values: Vec<f64>,
    /// The number of directions that the rule protects.
    pub rank: usize,
    /// The first `rank` eigenvectors as columns, row-major `[n, rank]`.
    pub protected: Vec<f32>,
    /// The other eigenvectors, row-major `[n, n − rank]`, after a full decomposition.
    pub free: Option<Vec<f32>>,
}

/// Computes the eigenpairs of a group that the rule protects.
///
/// Only [`Solver::Device`] uses the device. Without one it runs on the host.
pub(crate) fn solve(
    gram: &Gram,
    group: usize,
    rule: RankRule,
    solver: Solver,
    device: Option<&Device>,
) -> Result<LeadingEigenpairs, GnspError> {
    let features = gram.features();
    rule.check(features)?;
    let (total, squares) = (gram.trace(group), gram.squares(group));
    // Above a quarter of the directions a full decomposition is as fast, and it also returns the
    // free directions.
    let low_rank = rule.min_rank(total, squares) <= features as f64 / 4.0 && total > 0.0;
    let partial = match solver {
        Solver::Auto | Solver::Partial => low_rank && features >= SMALLEST_PARTIAL,
        Solver::Device => low_rank,
        Solver::Full => false,
    };
    if partial {
        let eigenpairs = match device {
            Some(device) if solver == Solver::Device => {
                let space = device::DeviceSpace::new(gram, group, device);
                krylov::leading_eigenpairs(&space, rule, total, squares)?
            }
            _ => krylov::leading_eigenpairs(
                &host::HostSpace::new(gram, group),
                rule,
                total,
                squares,
            )?,
        };
        if let Some(eigenpairs) = eigenpairs {
            return Ok(eigenpairs);
        }
    }
    full(gram, group, rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;

    /// The Gram matrix of random rows whose features have these standard deviations, times a random
    /// mixing matrix.
    fn gram_with_spectrum(deviations: &[f64], rows: usize, seed: u64) -> Gram {
        let n = deviations.len();
        let scale = burn::tensor::Tensor::<1>::from_floats(
            deviations
                .iter()
                .map(|x| *x as f32)
                .collect::<Vec<_>>()
                .as_slice(),
            &device(),
        );
        let x = random(rows, n, 1.0, seed) * scale.unsqueeze();
        let mix = random(n, n, 1.0, seed + 1) * (1.0 / (n as f64).sqrt());
        gram_of(x.matmul(mix))
    }

    /// Distance of the projectors onto the protected directions, relative to `√n`.
    fn difference(a: &LeadingEigenpairs, b: &LeadingEigenpairs) -> f64 {
        assert_eq!(a.rank, b.rank);
        if a.rank == 0 {
            return 0.0;
        }
        let n = a.protected.len() / a.rank;
        let (u, v) = (&a.protected, &b.protected);
        let k = a.rank;
        let mut difference = 0.0;
        for i in 0..n {
            for j in 0..n {
                let entry = |u: &[f32]| -> f64 {
                    (0..k)
                        .map(|c| f64::from(u[i * k + c]) * f64::from(u[j * k + c]))
                        .sum()
                };
                difference += (entry(u) - entry(v)).powi(2);
            }
        }
        difference.sqrt() / (n as f64).sqrt()
    }

    fn power_law(n: usize, exponent: f64) -> Vec<f64> {
        (1..=n).map(|j| (j as f64).powf(-exponent)).collect()
    }

    #[test]
    fn partial_and_device_solvers_match_the_full_one() {
        let rules = [
            RankRule::TailShare(0.5),
            RankRule::TailShare(0.15),
            RankRule::ExplainedEnergy(0.9),
            RankRule::FixedRank(7),
            RankRule::FixedRank(0),
        ];
        for (n, exponent) in [(120, 2.0), (160, 1.0), (200, 0.7)] {
            let gram = gram_with_spectrum(&power_law(n, exponent), 2 * n, n as u64);
            for rule in rules {
                let full = full(&gram, 0, rule).unwrap();
                let name = format!("{n}, {exponent}, {rule:?}, rank {}", full.rank);
                // In f32 the rounding error of the largest eigenvalue matters relative to the gap.
                let gap = (full.rank > 0).then(|| {
                    (full.values[full.rank - 1] - full.values[full.rank]) / full.values[0]
                });
                for (solver, precision) in [(Solver::Partial, 1e-13), (Solver::Device, 1e-6)] {
                    let found = solve(&gram, 0, rule, solver, Some(&device())).unwrap();
                    let error = difference(&found, &full);
                    let allowed = 1e-6 + gap.map_or(0.0, |gap| precision / gap);
                    assert!(
                        error < allowed,
                        "{name}, {solver:?}: {error:e} of {allowed:e}"
                    );
                    for (a, b) in found.values.iter().zip(&full.values).take(full.rank) {
                        // The error of a value is of second order in that of its direction.
                        let allowed = (1e-9 + precision) * full.values[0];
                        assert!((a - b).abs() < allowed, "{name}, {solver:?}: {a} {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn low_rank_matrices_end_the_search_early() {
        // The rank is 5, so the first block spans the whole range.
        let gram = random_gram(5, 300, 4);
        for solver in [Solver::Partial, Solver::Device] {
            let found =
                solve(&gram, 0, RankRule::TailShare(1e-4), solver, Some(&device())).unwrap();
            assert_eq!(found.rank, 5, "{solver:?}");
            assert!(found.free.is_none(), "{solver:?} fell back");
        }
    }

    #[test]
    fn equal_eigenvalues_are_all_found() {
        // 100 eigenvalues 1, then 1/100: more equal values than a block has columns.
        let n = 400;
        let mut matrix = vec![0.0; n * n];
        for i in 0..n {
            matrix[i * n + i] = if i < 100 { 1.0 } else { 0.01 };
        }
        let gram = Gram::from_matrix(n, matrix).unwrap();
        for solver in [Solver::Partial, Solver::Device] {
            let found = solve(
                &gram,
                0,
                RankRule::TailShare(0.031),
                solver,
                Some(&device()),
            )
            .unwrap();
            assert_eq!(found.rank, 100, "{solver:?}");
            let outside: f32 = found.protected[100 * found.rank..]
                .iter()
                .fold(0.0, |most, x| most.max(x.abs()));
            assert!(outside < 1e-5, "{solver:?}: {outside}");
        }
    }

    #[test]
    fn wide_spectra_and_small_matrices_fall_back() {
        let flat = gram_of(random(2000, 128, 1.0, 3));
        for (gram, rule) in [
            (&flat, RankRule::TailShare(0.15)),
            (&flat, RankRule::RatioToSmallest(1.5)),
            (&random_gram(40, 30, 1), RankRule::TailShare(0.15)),
        ] {
            let found = solve(gram, 0, rule, Solver::Auto, None).unwrap();
            assert!(found.free.is_some(), "{rule:?}");
        }
        let zero = Gram::from_matrix(128, vec![0.0; 128 * 128]).unwrap();
        let found = solve(&zero, 0, RankRule::TailShare(0.1), Solver::Auto, None).unwrap();
        assert_eq!(found.rank, 0);
    }
}

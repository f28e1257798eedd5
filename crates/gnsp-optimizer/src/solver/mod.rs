//! Solvers for the leading eigenvectors of a Gram matrix, as many as the rank rule asks for.

mod device;
mod host;
mod krylov;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::{GnspError, Gram, RankRule};

pub(crate) use host::full;

/// Below this many features the whole decomposition takes no time worth saving.
const SMALLEST_PARTIAL: usize = 96;

/// The eigenvalue solver.
///
/// All give the same subspace up to rounding, except where eigenvalues at the cut are equal: then
/// no choice between their directions is better than another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// `"auto"`: `Partial` where the rank rule can be decided from few directions, otherwise
    /// `Full`.
    #[default]
    Auto,
    /// `"full"`: a symmetric eigensolver for all directions, on the host in `f64`; about `10·n³`
    /// operations.
    Full,
    /// `"partial"`: only the directions that the rule needs, by a block Krylov method on the host
    /// in `f64`; about `2·n²` operations for each of two to four times as many directions as are
    /// protected. Falls back to `Full` where the result does not pass its own checks, or where
    /// more than a quarter of the directions would be needed.
    Partial,
    /// `"device"`: as `Partial`, with all large products on the device of the null space, in `f32`;
    /// for GPUs. It is as exact as `f32` allows, which is about `1e-6` of the largest eigenvalue
    /// divided by the gap at the cut, and falls back as `Partial` does.
    Device,
}

/// The leading eigenpairs that a rule asked for.
pub(crate) struct Leading {
    /// The known eigenvalues in descending order: all, or the protected ones.
    pub values: Vec<f64>,
    /// The number of directions that the rule protects.
    pub rank: usize,
    /// The orthonormal columns, row-major `[n, columns]`: the first `rank` directions, or where all
    /// are known and asked for, the free ones.
    pub protected: Vec<f32>,
    /// The `n − rank` free directions, row-major, where all are known.
    pub free: Option<Vec<f32>>,
}

/// Finds the directions of a group that the rule protects. Only [`Solver::Device`] uses the device;
/// without one it works on the host.
pub(crate) fn solve(
    gram: &Gram,
    group: usize,
    rule: RankRule,
    solver: Solver,
    device: Option<&Device>,
) -> Result<Leading, GnspError> {
    let features = gram.features();
    rule.check(features)?;
    let (total, squares) = (gram.trace(group), gram.squares(group));
    // More than a quarter: the whole decomposition is as fast, and gives the free directions.
    let few = rule.least(total, squares) <= features as f64 / 4.0 && total > 0.0;
    let partial = match solver {
        Solver::Auto | Solver::Partial => few && features >= SMALLEST_PARTIAL,
        Solver::Device => few,
        Solver::Full => false,
    };
    if partial {
        let found = match device {
            Some(device) if solver == Solver::Device => {
                let space = device::DeviceSpace::new(gram, group, device);
                krylov::leading(&space, rule, total, squares)?
            }
            _ => krylov::leading(&host::HostSpace::new(gram, group), rule, total, squares)?,
        };
        if let Some(found) = found {
            return Ok(found);
        }
    }
    full(gram, group, rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;

    /// The Gram matrix of random rows whose features have these standard deviations, mixed by a
    /// rotation of random planes.
    fn shaped(deviations: &[f64], rows: usize, seed: u64) -> Gram {
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

    fn difference(a: &Leading, b: &Leading) -> f64 {
        assert_eq!(a.rank, b.rank);
        if a.rank == 0 {
            return 0.0;
        }
        let n = a.protected.len() / a.rank;
        // ‖UUᵀ − VVᵀ‖² = 2k − 2‖UᵀV‖², up to rounding.
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
    fn the_partial_solver_finds_what_the_full_one_finds() {
        let rules = [
            RankRule::TailShare(0.5),
            RankRule::TailShare(0.15),
            RankRule::ExplainedEnergy(0.9),
            RankRule::FixedRank(7),
            RankRule::FixedRank(0),
        ];
        for (n, exponent) in [(120, 2.0), (160, 1.0), (200, 0.7)] {
            let gram = shaped(&power_law(n, exponent), 2 * n, n as u64);
            for rule in rules {
                let full = full(&gram, 0, rule).unwrap();
                let name = format!("{n}, {exponent}, {rule:?}, rank {}", full.rank);
                // In f32 the rounding of the largest eigenvalue is not small beside a gap.
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
    fn few_rows_end_the_search_early() {
        // Of rank 5: the Krylov space is exhausted at once.
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
        // A hundred times 1 and then 1/100: more equal values than a block has columns.
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

//! Rank rules: the number of protected directions of a spectrum.

use serde::{Deserialize, Serialize};

use crate::GnspError;

/// Rule that chooses the number `k` of protected directions from a spectrum.
///
/// `S_j` are the eigenvalues of the Gram matrix in descending order: the squares of the singular
/// values of the inputs. An all-zero spectrum (no inputs) gives `k = 0` for every rule except
/// [`FixedRank`](Self::FixedRank). In a configuration file a rule is `{ tail-share = 0.01 }`,
/// `{ fixed-rank = 64 }`, …
///
/// # Example
///
/// ```
/// use gnsp_optimizer::RankRule;
///
/// let spectrum = [4.0, 2.0, 1.0, 1.0];
/// assert_eq!(RankRule::TailShare(0.3).rank(&spectrum)?, 2);
/// assert_eq!(RankRule::ExplainedEnergy(0.9).rank(&spectrum)?, 4);
/// assert_eq!(RankRule::RatioToSmallest(2.0).rank(&spectrum)?, 1);
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RankRule {
    /// The smallest `k` whose *unprotected* eigenvalues sum to less than the share `ρ` of the
    /// total: `Σ_{j≥k} S_j / Σ_j S_j < ρ`, strictly, with `0 < ρ < 1`
    /// (GNSP `src/models/finetune_gnsp.py:134-147`). A smaller `ρ` protects more. For an all-zero
    /// spectrum the reference code protects all directions but one.
    TailShare(f64),
    /// The smallest `k` that explains the share `ε` of the energy of the inputs:
    /// `Σ_{j<k} S_j ≥ ε·Σ_j S_j`, with `0 < ε < 1` (Saha, Garg and Roy 2021, *Gradient Projection
    /// Memory*, arXiv 2103.09762, eq. 5). On the first task the published code takes one direction
    /// fewer: those whose cumulative sum is still below `ε` (GPM `main_pmnist.py`, `update_GPM`).
    ExplainedEnergy(f64),
    /// The directions with `S_j > a·S_n`; those at most `a ≥ 1` times the smallest are free
    /// (Wang et al. 2021, *Training Networks in Null Space of Feature Covariance for Continual
    /// Learning*, CVPR; Adam-NSCL `optim/adam_svd.py`, `get_transforms`). A larger `a` protects
    /// less. The rule needs the full spectrum, with a smallest eigenvalue above rounding error: if
    /// fewer rows than features were recorded, exactly the directions without inputs are free.
    RatioToSmallest(f64),
    /// This `k` for every spectrum. If `k` exceeds the rank of the Gram matrix, the remaining
    /// directions are chosen arbitrarily among those with eigenvalue zero.
    FixedRank(usize),
}

/// Share of the largest eigenvalue below which the smallest one counts as zero: it is rounding
/// error of a Gram matrix stored in `f32`.
const ROUNDING: f64 = 1e-7;

impl RankRule {
    /// Returns the number of protected directions, from all eigenvalues in descending order.
    ///
    /// Negative eigenvalues are rounding errors and count as zero.
    ///
    /// # Errors
    ///
    /// Returns an error if the parameter of the rule is out of range, or if a fixed rank exceeds
    /// the number of eigenvalues.
    pub fn rank(&self, spectrum: &[f64]) -> Result<usize, GnspError> {
        // Summed in ascending order to limit rounding error.
        let total = spectrum.iter().rev().map(|x| x.max(0.0)).sum();
        let rank = self.rank_of_leading(spectrum, total, spectrum.len())?;
        Ok(rank.unwrap_or(spectrum.len()))
    }

    /// Checks the range of the parameter, and a fixed rank against the number of features.
    pub(crate) fn check(&self, features: usize) -> Result<(), GnspError> {
        let share = |x: f64| x > 0.0 && x < 1.0;
        match *self {
            Self::TailShare(x) if !share(x) => Err(GnspError::TailShare(x)),
            Self::ExplainedEnergy(x) if !share(x) => Err(GnspError::ExplainedEnergy(x)),
            Self::RatioToSmallest(x) if !(x >= 1.0 && x.is_finite()) => {
                Err(GnspError::RatioToSmallest(x))
            }
            Self::FixedRank(rank) if rank > features => {
                Err(GnspError::RankTooLarge { rank, features })
            }
            _ => Ok(()),
        }
    }

    /// Returns the number of protected directions from the leading eigenvalues and the sum of all
    /// of them (the trace), or `None` if these do not determine it.
    ///
    /// # Errors
    ///
    /// See [`rank`](Self::rank).
    pub(crate) fn rank_of_leading(
        &self,
        leading: &[f64],
        total: f64,
        features: usize,
    ) -> Result<Option<usize>, GnspError> {
        self.check(features)?;
        let complete = leading.len() == features;
        if let Self::FixedRank(rank) = *self {
            return Ok((rank <= leading.len()).then_some(rank));
        }
        if total <= 0.0 {
            return Ok(Some(0));
        }
        // tails[k] is the sum of all eigenvalues but the first k. A complete spectrum is summed in
        // ascending order: subtracting from the trace would drown a small tail in rounding error.
        let mut tails = vec![0.0; leading.len() + 1];
        tails[leading.len()] = if complete {
            0.0
        } else {
            let known: f64 = leading.iter().map(|x| x.max(0.0)).sum();
            (total - known).max(0.0)
        };
        for (k, value) in leading.iter().enumerate().rev() {
            tails[k] = tails[k + 1] + value.max(0.0);
        }
        Ok(match *self {
            Self::TailShare(share) => tails.iter().position(|tail| tail / total < share),
            Self::ExplainedEnergy(share) => tails
                .iter()
                .position(|tail| 1.0 - tail / total >= share)
                .or(complete.then_some(features)),
            Self::RatioToSmallest(ratio) => complete.then(|| {
                let floor = ROUNDING * leading[0].max(0.0);
                let smallest = leading[features - 1];
                let smallest = if smallest > floor { smallest } else { 0.0 };
                let limit = (ratio * smallest).max(floor);
                leading.iter().filter(|value| **value > limit).count()
            }),
            Self::FixedRank(_) => unreachable!("returned above"),
        })
    }

    /// Returns `false` if the `known` largest eigenvalues, whose sum is `seen`, cannot determine
    /// the rank.
    pub(crate) fn may_be_decided(&self, seen: f64, known: usize, total: f64) -> bool {
        match *self {
            Self::TailShare(share) => seen > (1.0 - share) * total,
            Self::ExplainedEnergy(share) => seen >= share * total,
            Self::FixedRank(rank) => known > rank,
            Self::RatioToSmallest(_) => false,
        }
    }

    /// Returns a lower bound on the rank, from the trace and the squared Frobenius norm.
    ///
    /// By Cauchy–Schwarz `Σ_{j<k} S_j ≤ √k·‖G‖_F`, so protecting a share `s` of the trace needs
    /// `k ≥ (s·tr G)² / ‖G‖_F²` directions.
    pub(crate) fn min_rank(&self, total: f64, squares: f64) -> f64 {
        let share = match *self {
            Self::TailShare(share) => 1.0 - share,
            Self::ExplainedEnergy(share) => share,
            Self::FixedRank(rank) => return rank as f64,
            Self::RatioToSmallest(_) => return f64::INFINITY,
        };
        if squares <= 0.0 {
            return 0.0;
        }
        (share * total).powi(2) / squares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_must_be_strictly_below_the_share() {
        let spectrum = [4.0, 2.0, 1.0, 1.0]; // tails 1, 1/2, 1/4, 1/8, 0
        for (share, expected) in [
            (0.99, 1),
            (0.5, 2),
            (0.500001, 1),
            (0.25, 3),
            (0.125, 4),
            (0.126, 3),
            (1e-9, 4),
        ] {
            let rank = RankRule::TailShare(share).rank(&spectrum);
            assert_eq!(rank.unwrap(), expected, "share {share}");
        }
    }

    #[test]
    fn zero_and_negative_eigenvalues_need_no_protection() {
        let rule = RankRule::TailShare(0.01);
        assert_eq!(rule.rank(&[0.0; 5]).unwrap(), 0);
        assert_eq!(rule.rank(&[-1e-20; 5]).unwrap(), 0);
        assert_eq!(rule.rank(&[3.0, 0.0, 0.0]).unwrap(), 1);
        assert_eq!(rule.rank(&[3.0, -1e-9, -2.0]).unwrap(), 1);
        assert_eq!(rule.rank(&[]).unwrap(), 0);
    }

    #[test]
    fn the_explained_energy_reaches_the_share() {
        let spectrum = [4.0, 2.0, 1.0, 1.0];
        for (share, expected) in [(0.5, 1), (0.500001, 2), (0.75, 2), (0.9, 4), (0.99, 4)] {
            let rank = RankRule::ExplainedEnergy(share).rank(&spectrum);
            assert_eq!(rank.unwrap(), expected, "share {share}");
        }
        assert_eq!(RankRule::ExplainedEnergy(0.9).rank(&[0.0; 3]).unwrap(), 0);
    }

    #[test]
    fn directions_near_the_smallest_are_free() {
        let spectrum = [100.0, 30.0, 10.0, 2.0, 1.0];
        for (ratio, expected) in [(1.0, 4), (2.0, 3), (10.0, 2), (29.0, 2), (100.0, 0)] {
            let rank = RankRule::RatioToSmallest(ratio).rank(&spectrum);
            assert_eq!(rank.unwrap(), expected, "ratio {ratio}");
        }
        // If some directions have no inputs, exactly those are free.
        let rule = RankRule::RatioToSmallest(10.0);
        assert_eq!(rule.rank(&[1.0, 1e-3, 0.0, 0.0]).unwrap(), 2);
        assert_eq!(rule.rank(&[1.0, 1e-3, 1e-12, -1e-13]).unwrap(), 2);
        assert_eq!(rule.rank(&[0.0; 3]).unwrap(), 0);
    }

    #[test]
    fn leading_eigenvalues_decide_as_soon_as_possible() {
        let spectrum = [4.0, 2.0, 1.0, 1.0];
        let of = |rule: RankRule, known| rule.rank_of_leading(&spectrum[..known], 8.0, 4).unwrap();
        for rule in [
            RankRule::TailShare(0.3),
            RankRule::ExplainedEnergy(0.75),
            RankRule::FixedRank(2),
        ] {
            assert_eq!(of(rule, 1), None, "{rule:?}");
            assert_eq!(of(rule, 2), Some(2), "{rule:?}");
            assert_eq!(of(rule, 4), Some(2), "{rule:?}");
            assert!(rule.min_rank(8.0, 22.0) <= 2.0, "{rule:?}");
        }
        assert_eq!(of(RankRule::RatioToSmallest(1.0), 3), None);
        assert_eq!(of(RankRule::RatioToSmallest(1.0), 4), Some(2));
        // Of a flat spectrum the share itself must be protected.
        assert!((RankRule::TailShare(0.25).min_rank(8.0, 8.0) - 4.5).abs() < 1e-12);
    }

    #[test]
    fn rules_out_of_range_are_refused() {
        for share in [0.0, 1.0, -0.1, 1.5, f64::NAN, f64::INFINITY] {
            assert!(RankRule::TailShare(share).rank(&[1.0]).is_err(), "{share}");
            let energy = RankRule::ExplainedEnergy(share);
            assert!(energy.rank(&[1.0]).is_err(), "{share}");
        }
        for ratio in [0.0, 0.99, f64::NAN, f64::INFINITY] {
            let rule = RankRule::RatioToSmallest(ratio);
            assert!(rule.rank(&[1.0]).is_err(), "{ratio}");
        }
        assert_eq!(RankRule::FixedRank(2).rank(&[1.0, 0.0]).unwrap(), 2);
        assert!(matches!(
            RankRule::FixedRank(3).rank(&[1.0, 0.0]),
            Err(GnspError::RankTooLarge {
                rank: 3,
                features: 2
            })
        ));
    }

    #[test]
    fn names_in_configuration_files() {
        for (rule, text) in [
            (RankRule::TailShare(0.01), r#"{"tail-share":0.01}"#),
            (RankRule::FixedRank(64), r#"{"fixed-rank":64}"#),
            (
                RankRule::ExplainedEnergy(0.97),
                r#"{"explained-energy":0.97}"#,
            ),
            (
                RankRule::RatioToSmallest(10.0),
                r#"{"ratio-to-smallest":10.0}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&rule).unwrap(), text);
            assert_eq!(serde_json::from_str::<RankRule>(text).unwrap(), rule);
        }
    }
}

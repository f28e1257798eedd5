//! How many directions of a spectrum are protected.

use serde::{Deserialize, Serialize};

/// What is wrong with a rank rule.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RankError {
    /// The tail share is not between zero and one.
    #[error("the tail share must be above 0 and below 1, got {0}")]
    TailShare(f64),
    /// More directions asked for than there are.
    #[error("cannot protect {rank} of {features} directions")]
    TooLarge {
        /// The directions asked for.
        rank: usize,
        /// The directions there are.
        features: usize,
    },
}

/// The rule that chooses the number `k` of protected directions from a spectrum.
///
/// In a configuration file it is `{ tail-share = 0.01 }` or `{ fixed-rank = 64 }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RankRule {
    /// The smallest `k` for which the eigenvalues that are *not* protected sum to less than the
    /// share `ρ` of all: `Σ_{j≥k} S_j / Σ_j S_j < ρ`, strictly, with `0 < ρ < 1`
    /// (GNSP `src/models/finetune_gnsp.py:134-147`). A smaller `ρ` protects more.
    ///
    /// The `S_j` are eigenvalues of the Gram matrix, that is squares of the singular values of the
    /// inputs. An all-zero spectrum gives `k = 0`, nothing protected, since nothing was seen; the
    /// reference code protects all directions but one there.
    TailShare(f64),
    /// This `k` whatever the spectrum. Directions in which the spectrum is zero are chosen
    /// arbitrarily when `k` exceeds its rank.
    FixedRank(usize),
}

impl RankRule {
    /// The number of protected directions for eigenvalues in descending order.
    ///
    /// Negative eigenvalues, which only rounding makes, count as zero.
    ///
    /// # Errors
    ///
    /// A tail share outside `(0, 1)`, or a fixed rank above the number of eigenvalues.
    pub fn rank(&self, spectrum: &[f64]) -> Result<usize, RankError> {
        match *self {
            RankRule::TailShare(share) => {
                if !(share > 0.0 && share < 1.0) {
                    return Err(RankError::TailShare(share));
                }
                // From the smallest up, so that small values are not lost beside large ones.
                let mut tails = vec![0.0; spectrum.len() + 1];
                for (index, value) in spectrum.iter().enumerate().rev() {
                    tails[index] = tails[index + 1] + value.max(0.0);
                }
                let total = tails[0];
                if total == 0.0 {
                    return Ok(0);
                }
                let kept = tails.iter().position(|tail| tail / total < share);
                Ok(kept.unwrap_or(spectrum.len()))
            }
            RankRule::FixedRank(rank) if rank > spectrum.len() => Err(RankError::TooLarge {
                rank,
                features: spectrum.len(),
            }),
            RankRule::FixedRank(rank) => Ok(rank),
        }
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
            assert_eq!(rank, Ok(expected), "share {share}");
        }
    }

    #[test]
    fn zero_and_negative_eigenvalues_need_no_protection() {
        let rule = RankRule::TailShare(0.01);
        assert_eq!(rule.rank(&[0.0; 5]), Ok(0));
        assert_eq!(rule.rank(&[-1e-20; 5]), Ok(0));
        assert_eq!(rule.rank(&[3.0, 0.0, 0.0]), Ok(1));
        assert_eq!(rule.rank(&[3.0, -1e-9, -2.0]), Ok(1));
        assert_eq!(rule.rank(&[]), Ok(0));
    }

    #[test]
    fn rules_out_of_range_are_refused() {
        for share in [0.0, 1.0, -0.1, 1.5, f64::NAN, f64::INFINITY] {
            assert!(RankRule::TailShare(share).rank(&[1.0]).is_err(), "{share}");
        }
        assert_eq!(RankRule::FixedRank(2).rank(&[1.0, 0.0]), Ok(2));
        assert_eq!(
            RankRule::FixedRank(3).rank(&[1.0, 0.0]),
            Err(RankError::TooLarge {
                rank: 3,
                features: 2
            })
        );
    }

    #[test]
    fn names_in_configuration_files() {
        for (rule, text) in [
            (RankRule::TailShare(0.01), r#"{"tail-share":0.01}"#),
            (RankRule::FixedRank(64), r#"{"fixed-rank":64}"#),
        ] {
            assert_eq!(serde_json::to_string(&rule).unwrap(), text);
            assert_eq!(serde_json::from_str::<RankRule>(text).unwrap(), rule);
        }
    }
}

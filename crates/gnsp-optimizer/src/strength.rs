//! Projection strength per direction: hard, or scaled by the spectrum (SGP).

use serde::{Deserialize, Serialize};

use crate::GnspError;

/// Share of an update that the projection removes in each protected direction.
///
/// In a configuration file it is `"hard"` or `{ scaled = 10.0 }`.
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use gnsp_optimizer::{Gram, NullSpace, Policy, RankRule, Strength};
///
/// let gram = Gram::from_matrix(2, vec![4.0, 0.0, 0.0, 1.0])?;
/// let policy = Policy::default().with_rank(RankRule::FixedRank(2));
///
/// let hard = NullSpace::from_policy(&gram, &policy, &Device::default())?;
/// assert_eq!(hard.dense(), [0.0; 4]);
///
/// // The weaker direction keeps 1 − (1 + 1)·1 / (1·1 + 2) = 1/3 of an update.
/// let policy = policy.with_strength(Strength::Scaled(1.0));
/// let scaled = NullSpace::from_policy(&gram, &policy, &Device::default())?;
/// assert!((scaled.dense()[3] - 1.0 / 3.0).abs() < 1e-6);
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strength {
    /// `"hard"`: the whole component is removed.
    #[default]
    Hard,
    /// `{ scaled = α }`: the share `λ = (α + 1)·σ / (α·σ + σ_max)` is removed.
    ///
    /// `σ` is the singular value of the inputs in that direction (the square root of the Gram
    /// matrix's eigenvalue), and `σ_max` the largest one. The strongest direction is fully
    /// protected. Weaker directions are protected less, and a smaller `α ≥ 0` protects them still
    /// less (Saha and Roy 2023, *Continual Learning with Scaled Gradient Projection*,
    /// arXiv 2302.01386, eq. 2; `α` is `scale_coff` in SGP
    /// `ImageClassification/main_sgp_cifar100.py`). SGP adds the importances of the tasks and
    /// clips the sum at 1. Here they follow from the joint spectrum of all tasks.
    Scaled(f64),
}

impl Strength {
    /// Checks that `α` is finite and not negative.
    pub(crate) fn check(&self) -> Result<(), GnspError> {
        match *self {
            Self::Scaled(alpha) if !(alpha >= 0.0 && alpha.is_finite()) => {
                Err(GnspError::Softness(alpha))
            }
            _ => Ok(()),
        }
    }

    /// Returns the removed share in `0..=1` for each eigenvalue of a Gram matrix, given in
    /// descending order, or `None` for hard protection, whatever the eigenvalues are.
    pub(crate) fn shares(&self, eigenvalues: &[f64]) -> Option<Vec<f64>> {
        let Self::Scaled(alpha) = *self else {
            return None;
        };
        let largest = eigenvalues
            .first()
            .map_or(0.0, |value| value.max(0.0).sqrt());
        let share = |value: &f64| {
            let sigma = value.max(0.0).sqrt();
            // A direction without any input is not protected.
            let denominator = alpha * sigma + largest;
            if denominator > 0.0 {
                ((alpha + 1.0) * sigma / denominator).min(1.0)
            } else {
                0.0
            }
        };
        Some(eigenvalues.iter().map(share).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_published_formula() {
        // σ = 4, 2, 1; α = 10: 44/44, 22/24, 11/14.
        let shares = Strength::Scaled(10.0)
            .shares(&[16.0, 4.0, 1.0, 0.0])
            .unwrap();
        for (share, expected) in shares.iter().zip([1.0, 22.0 / 24.0, 11.0 / 14.0, 0.0]) {
            assert!((share - expected).abs() < 1e-12, "{share}");
        }
        assert_eq!(Strength::Hard.shares(&[1.0]), None);
        assert_eq!(Strength::Scaled(1.0).shares(&[]), Some(Vec::new()));
        assert_eq!(Strength::Scaled(1.0).shares(&[0.0]), Some(vec![0.0]));
    }

    #[test]
    fn strengths_out_of_range_are_refused() {
        for bad in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(Strength::Scaled(bad).check().is_err(), "{bad}");
        }
        assert!(Strength::Scaled(0.0).check().is_ok());
    }
}

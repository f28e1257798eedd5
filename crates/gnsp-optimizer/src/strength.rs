//! The strength of the protection, by direction.

use serde::{Deserialize, Serialize};

use crate::GnspError;

/// The share of an update that is taken out in a protected direction.
///
/// In a configuration file it is `"hard"` or `{ scaled = 10.0 }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strength {
    /// `"hard"`: all of it.
    #[default]
    Hard,
    /// `{ scaled = α }`: `λ = (α + 1)·σ / (α·σ + σ_max)` of it, from the singular value `σ` of the
    /// inputs in that direction (the root of the eigenvalue of the Gram matrix) and the largest
    /// one. The strongest direction is protected wholly, a weaker one less, and less so for a
    /// smaller `α ≥ 0` (Saha and Roy 2023, *Continual Learning with Scaled Gradient Projection*,
    /// arXiv 2302.01386, eq. 2; `α` is `scale_coff` in SGP
    /// `ImageClassification/main_sgp_cifar100.py`). There the importances of the tasks are added
    /// and cut at 1; here they follow from the spectrum of all tasks together.
    Scaled(f64),
}

impl Strength {
    /// Checks the parameter.
    pub(crate) fn check(&self) -> Result<(), GnspError> {
        match *self {
            Self::Scaled(alpha) if !(alpha >= 0.0 && alpha.is_finite()) => {
                Err(GnspError::Softness(alpha))
            }
            _ => Ok(()),
        }
    }

    /// The shares for eigenvalues of a Gram matrix in descending order, in `0..=1`; nothing where
    /// all are 1.
    pub(crate) fn shares(&self, eigenvalues: &[f64]) -> Option<Vec<f64>> {
        let Self::Scaled(alpha) = *self else {
            return None;
        };
        let largest = eigenvalues.first()?.max(0.0).sqrt();
        let share = |value: &f64| {
            let sigma = value.max(0.0).sqrt();
            // A direction in which nothing was seen is not protected.
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

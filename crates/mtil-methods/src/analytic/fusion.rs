//! Fusion of regression scores with zero-shot probabilities.

use serde::{Deserialize, Serialize};

use super::{AnalyticError, matrix::to_finite_f64};

/// RAIL's fusion of two classifiers.
///
/// Let `p = softmax(z)` be the zero-shot probabilities over all classes, learnt and unlearnt, with
/// CLIP's logits `z = 100·cos`. Let `s` be the scores of the regression for the learnt classes, 0
/// for all others. Then the final scores are
///
/// ```text
/// (1 − weight)·p + weight·s    where argmax p is a learnt class
/// p                            elsewhere
/// ```
///
/// An image that CLIP assigns to an unlearnt class is thus classified exactly as by the pretrained
/// model (published code: `primal_RAIL.py` and `dual_RAIL.py`, the evaluation loop). The published
/// code has no other test for the domain of an image.
///
/// The published code does not cover test images whose task is known. For those, pass the columns
/// of that task's classes only, and either all or none of them as learnt.
///
/// # Example
/// ```
/// use mtil_methods::analytic::Fusion;
///
/// // One image, two classes; the regression knows the first class only.
/// let decisions = Fusion::default().decide(&[1.0, 0.0], 2, &[0.9], 1)?;
/// assert_eq!(decisions[0].class, 0);
/// assert!(decisions[0].adapted);
/// # Ok::<(), mtil_methods::analytic::AnalyticError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fusion {
    /// Weight of the regression, from 0 to 1. Default 0.8, `fusion_weight` of the published
    /// `configs/analytic_clip.yaml` at commit c76eb37; at a0ecaef it is 0.9. It was not verified
    /// which of the two the paper's tables use.
    pub weight: f64,
}

impl Default for Fusion {
    fn default() -> Self {
        Self { weight: 0.8 }
    }
}

/// Classification of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Class with the largest final score; the first one on a tie.
    pub class: usize,
    /// True if the regression contributed, that is, if the zero-shot class is a learnt one.
    pub adapted: bool,
}

impl Fusion {
    /// Returns the final scores of `n` images, row-major.
    ///
    /// # Shapes
    /// - `zero_shot`: logits `[n, classes]`, the learnt classes first, already scaled by CLIP's
    ///   temperature
    /// - `adapter`: scores of the regression `[n, learnt]`
    /// - output: `[n, classes]`
    ///
    /// # Errors
    /// [`AnalyticError`] for a weight outside 0 to 1, inputs of the wrong size, and values that are
    /// not finite.
    pub fn scores<T: Copy + Into<f64>>(
        &self,
        zero_shot: &[T],
        classes: usize,
        adapter: &[f64],
        learnt: usize,
    ) -> Result<Vec<f64>, AnalyticError> {
        let (scores, _) = self.fuse(zero_shot, classes, adapter, learnt)?;
        Ok(scores)
    }

    /// Returns the class of each of `n` images.
    ///
    /// # Shapes
    /// - `zero_shot`: logits `[n, classes]`, the learnt classes first, already scaled by CLIP's
    ///   temperature
    /// - `adapter`: scores of the regression `[n, learnt]`
    ///
    /// # Errors
    /// As [`scores`](Self::scores).
    pub fn decide<T: Copy + Into<f64>>(
        &self,
        zero_shot: &[T],
        classes: usize,
        adapter: &[f64],
        learnt: usize,
    ) -> Result<Vec<Decision>, AnalyticError> {
        let (scores, adapted) = self.fuse(zero_shot, classes, adapter, learnt)?;
        Ok(scores
            .chunks_exact(classes)
            .zip(adapted)
            .map(|(row, adapted)| Decision {
                class: argmax(row),
                adapted,
            })
            .collect())
    }

    /// Returns the final scores and, for each image, whether the regression contributed.
    fn fuse<T: Copy + Into<f64>>(
        &self,
        zero_shot: &[T],
        classes: usize,
        adapter: &[f64],
        learnt: usize,
    ) -> Result<(Vec<f64>, Vec<bool>), AnalyticError> {
        if !(0.0..=1.0).contains(&self.weight) {
            return Err(AnalyticError::Setting {
                name: "fusion weight",
                value: self.weight.to_string(),
                must: "from 0 to 1",
            });
        }
        if learnt > classes {
            return Err(AnalyticError::FewerClasses {
                from: learnt,
                to: classes,
            });
        }
        let rows = zero_shot.len().checked_div(classes).unwrap_or(0);
        for (what, values, columns) in [
            ("zero-shot logits", zero_shot.len(), classes),
            ("scores of the regression", adapter.len(), learnt),
        ] {
            if rows.checked_mul(columns) != Some(values) {
                return Err(AnalyticError::Shape {
                    what,
                    values,
                    rows,
                    columns,
                });
            }
        }
        let mut scores = to_finite_f64("zero-shot logits", zero_shot, classes)?;
        to_finite_f64("scores of the regression", adapter, learnt)?;
        let mut adapted = Vec::with_capacity(rows);
        for row in 0..rows {
            let p = &mut scores[row * classes..][..classes];
            softmax(p);
            let is_learnt = argmax(p) < learnt;
            if is_learnt {
                p.iter_mut().for_each(|x| *x *= 1.0 - self.weight);
                for (x, s) in p.iter_mut().zip(&adapter[row * learnt..][..learnt]) {
                    *x += self.weight * s;
                }
            }
            adapted.push(is_learnt);
        }
        Ok((scores, adapted))
    }
}

fn softmax(row: &mut [f64]) {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - largest).exp();
        sum += *x;
    }
    row.iter_mut().for_each(|x| *x /= sum);
}

/// Returns the index of the largest value, the first one on a tie.
fn argmax(row: &[f64]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_an_unlearnt_class_keeps_its_zero_shot_scores() {
        let fusion = Fusion { weight: 0.5 };
        let zero_shot = [0.0, 2f64.ln(), 0.0, 5f64.ln()];
        // Two classes, one learnt: row 0 says class 1 (unlearnt), row 1 too; then with both learnt.
        let scores = fusion.scores(&zero_shot, 2, &[9.0, 9.0], 1).unwrap();
        assert_eq!(
            fusion.decide(&zero_shot, 2, &[9.0, 9.0], 1).unwrap(),
            [Decision {
                class: 1,
                adapted: false
            }; 2]
        );
        for (score, expected) in scores
            .iter()
            .zip([1.0 / 3.0, 2.0 / 3.0, 1.0 / 6.0, 5.0 / 6.0])
        {
            assert!((score - expected).abs() < 1e-15);
        }
        let both = fusion
            .scores(&zero_shot, 2, &[1.0, 0.0, 0.0, 0.0], 2)
            .unwrap();
        assert!((both[0] - (1.0 / 6.0 + 0.5)).abs() < 1e-15, "{both:?}");
        assert!((both[3] - 5.0 / 12.0).abs() < 1e-15);
    }

    #[test]
    fn large_logits_do_not_overflow_and_equal_scores_give_the_first_class() {
        let scores = Fusion { weight: 0.0 }.decide(&[1e300, 1e300, -1e300], 3, &[0.0; 3], 3);
        assert_eq!(
            scores.unwrap(),
            [Decision {
                class: 0,
                adapted: true
            }]
        );
    }

    #[test]
    fn bad_input_is_refused_by_name() {
        let fusion = Fusion::default();
        let message = |r: Result<Vec<f64>, AnalyticError>| r.unwrap_err().to_string();
        let wrong = message(fusion.scores(&[0.0; 5], 2, &[0.0; 2], 1));
        assert!(
            wrong.contains("zero-shot logits: 5 values are not 2 rows of 2"),
            "{wrong}"
        );
        let wrong = message(fusion.scores(&[0.0; 4], 2, &[0.0; 3], 1));
        assert!(
            wrong.contains("scores of the regression: 3 values"),
            "{wrong}"
        );
        let wrong = message(fusion.scores(&[0.0, f64::NAN], 2, &[0.0], 1));
        assert!(wrong.contains("row 0, column 1 is not finite"), "{wrong}");
        let wrong = message(fusion.scores(&[0.0; 2], 1, &[0.0; 4], 2));
        assert!(wrong.contains("1 classes after 2"), "{wrong}");
        for weight in [-0.1, 1.1, f64::NAN] {
            let wrong = message(Fusion { weight }.scores(&[0.0; 2], 2, &[0.0], 1));
            assert!(wrong.contains("fusion weight"), "{wrong}");
        }
        assert!(fusion.scores::<f64>(&[], 0, &[], 0).unwrap().is_empty());
    }

    #[test]
    fn unknown_keys_are_refused_and_defaults_filled_in() {
        assert_eq!(toml::from_str::<Fusion>("").unwrap(), Fusion::default());
        assert!(toml::from_str::<Fusion>("alpha = 0.5").is_err());
    }
}

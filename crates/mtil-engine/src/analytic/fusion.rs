//! Which images the regression may decide, and how its scores meet those of the zero-shot
//! classifier.

use serde::{Deserialize, Serialize};

use super::{AnalyticError, matrix::finite};

/// RAIL's fusion. Let `p = softmax(z)` be the zero-shot probabilities over all classes, learnt and
/// not, with CLIP's logits `z = 100·cos`, and `s` the scores of the regression for the learnt
/// classes, 0 for all others. Then the final scores are
///
/// ```text
/// (1 − weight)·p + weight·s    where argmax p is a learnt class
/// p                            elsewhere
/// ```
///
/// so an image that CLIP takes for an unlearnt class is classified exactly as by the pretrained
/// model (published code: `primal_RAIL.py` and `dual_RAIL.py`, the evaluation loop; there is no
/// other test for the domain).
///
/// Where the task of a test image is known, which the published code does not cover, give the
/// columns of that task's classes only, and either all or none of them as learnt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fusion {
    /// The weight of the regression, from 0 to 1. Default 0.8, `fusion_weight` of the published
    /// `configs/analytic_clip.yaml` at commit c76eb37; at a0ecaef it is 0.9. Which one the paper's
    /// tables were made with was not verified.
    pub weight: f64,
}

impl Default for Fusion {
    fn default() -> Self {
        Self { weight: 0.8 }
    }
}

/// What became of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The class with the largest final score; of equal ones the first.
    pub class: usize,
    /// Whether the regression had a say: the zero-shot class is a learnt one.
    pub adapted: bool,
}

impl Fusion {
    /// The final scores of images, row-major, one column a class.
    ///
    /// # Shapes
    /// - `zero_shot`: logits `[n, classes]`, the learnt classes first, times CLIP's temperature
    ///   already
    /// - `adapter`: the regression's scores `[n, learnt]`
    /// - output: `[n, classes]`
    ///
    /// # Errors
    /// For a weight outside 0 to 1, sizes that do not fit, and values that are not finite.
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

    /// The class of each image. Arguments and errors as for [`scores`](Self::scores).
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
        let mut scores = finite("zero-shot logits", zero_shot, classes)?;
        finite("scores of the regression", adapter, learnt)?;
        let mut adapted = Vec::with_capacity(rows);
        for row in 0..rows {
            let p = &mut scores[row * classes..][..classes];
            softmax(p);
            let by_regression = argmax(p) < learnt;
            if by_regression {
                p.iter_mut().for_each(|x| *x *= 1.0 - self.weight);
                for (x, s) in p.iter_mut().zip(&adapter[row * learnt..][..learnt]) {
                    *x += self.weight * s;
                }
            }
            adapted.push(by_regression);
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

/// The first of the largest.
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

//! Calibration of a classifier: calibration error, negative log-likelihood, Brier score.
//!
//! The class probabilities of an image are the softmax of its logits times a scale, in `f64`. Its
//! confidence is the largest of them.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Matrix, MeasureError, check_labels, check_positive};

/// Usual number of bins of the expected calibration error in the literature (Guo et al., "On
/// Calibration of Modern Neural Networks", ICML 2017, table 1).
pub const BINS: usize = 15;
/// Maximum number of bins. More bins would be empty for any realistic number of images.
const MAX_BINS: usize = 10_000;

/// Bin of a reliability diagram: the images whose confidence lies in one interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Lower end of the interval, excluded.
    pub above: f64,
    /// Upper end of the interval, included.
    pub up_to: f64,
    /// Number of images in the bin.
    pub images: usize,
    /// Mean confidence, from 0 to 1; 0 without an image.
    pub confidence: f64,
    /// Share of images classified correctly, from 0 to 1; 0 without an image.
    pub accuracy: f64,
}

/// Calibration of a classifier on a set of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Expected calibration error, from 0 to 1: the mean of |accuracy - confidence| over
    /// equal-width bins, weighted by images (Guo et al. 2017, equation 3).
    pub ece: f64,
    /// Maximum calibration error: the largest |accuracy - confidence| of a bin (Guo et al. 2017,
    /// equation 5).
    pub mce: f64,
    /// Expected calibration error over bins of equal mass (ECE_EM in Roelofs et al., "Mitigating
    /// Bias in Calibration Error Estimation", AISTATS 2022). Image `r` of the images sorted by
    /// confidence is in bin `m` when `m n / bins <= r < (m + 1) n / bins`, rounded down. The sort
    /// is stable.
    pub adaptive_ece: f64,
    /// Mean negative log-likelihood of the labels, in nats.
    pub nll: f64,
    /// Brier score: the mean squared distance between the probabilities and the one-hot label, from
    /// 0 to 2 (Brier 1950).
    pub brier: f64,
    /// Share of images classified correctly, from 0 to 1.
    pub accuracy: f64,
    /// Mean confidence, from 0 to 1.
    pub confidence: f64,
    /// Equal-width bins of `ece`, for a reliability diagram.
    pub bins: Vec<Bin>,
}

/// Scores of the prediction for one image.
struct Prediction {
    confidence: f64,
    correct: bool,
    nll: f64,
    brier: f64,
}

/// Computes the calibration of logits against labels.
///
/// # Shapes
/// - `logits`: `[images, classes]`
/// - `labels`: `[images]`
///
/// # Arguments
/// * `scale` - factor on the logits before the softmax: 100 for CLIP's cosine similarities, 1 for
///   logits that are already scaled
/// * `bins` - number of bins, usually [`BINS`]
///
/// # Errors
/// [`MeasureError`] when there is not one label per image, a label is out of range, `scale` is not
/// a finite number above 0, or `bins` is not from 1 to 10000.
///
/// # Example
/// ```
/// use mtil_eval::measures::{Matrix, calibration::{BINS, calibration}};
///
/// // Both predictions are certain, one of them is wrong.
/// let logits = Matrix::new("logits", &[1.0, 0.0, 1.0, 0.0], 2, 2)?;
/// let result = calibration(logits, &[0, 1], 1e6, BINS)?;
/// assert_eq!(result.ece, 0.5);
/// # Ok::<(), mtil_eval::measures::MeasureError>(())
/// ```
pub fn calibration(
    logits: Matrix<'_>,
    labels: &[usize],
    scale: f64,
    bins: usize,
) -> Result<Calibration, MeasureError> {
    check_labels(labels, logits.rows(), logits.columns())?;
    check_positive("the scale of the logits", scale)?;
    if !(1..=MAX_BINS).contains(&bins) {
        return Err(MeasureError::Setting {
            name: "the number of bins",
            value: bins.to_string(),
            need: "from 1 to 10000",
        });
    }
    let predictions: Vec<Prediction> = (0..logits.rows())
        .into_par_iter()
        .map(|i| predict(logits.row(i), labels[i], scale))
        .collect();
    let images = predictions.len();
    let mean = |of: fn(&Prediction) -> f64| predictions.iter().map(of).sum::<f64>() / images as f64;
    let equal_width = equal_width(&predictions, bins);
    Ok(Calibration {
        ece: expected_error(&equal_width, images),
        mce: equal_width.iter().map(error).fold(0.0, f64::max),
        adaptive_ece: expected_error(&equal_mass(&predictions, bins), images),
        nll: mean(|p| p.nll),
        brier: mean(|p| p.brier),
        accuracy: mean(|p| f64::from(u8::from(p.correct))),
        confidence: mean(|p| p.confidence),
        bins: equal_width,
    })
}

/// Returns the class probabilities `softmax(scale * logits)` of a row of logits.
pub fn softmax(logits: &[f32], scale: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut values: Vec<f64> = logits
        .iter()
        .map(|x| (scale * (f64::from(*x) - f64::from(max))).exp())
        .collect();
    let sum: f64 = values.iter().sum();
    values.iter_mut().for_each(|v| *v /= sum);
    values
}

/// Scores the prediction of a row of logits.
fn predict(logits: &[f32], label: usize, scale: f64) -> Prediction {
    let best = (1..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
    // Relative to the largest logit, no exponential overflows and the sum is at least 1.
    let relative = |x: f32| scale * (f64::from(x) - f64::from(logits[best]));
    let sum: f64 = logits.iter().map(|x| relative(*x).exp()).sum();
    let brier = logits
        .iter()
        .enumerate()
        .map(|(class, x)| {
            let target = f64::from(u8::from(class == label));
            (relative(*x).exp() / sum - target).powi(2)
        })
        .sum();
    Prediction {
        confidence: 1.0 / sum,
        correct: best == label,
        nll: sum.ln() - relative(logits[label]),
        brier,
    }
}

/// Assigns predictions to bins of equal width.
fn equal_width(predictions: &[Prediction], bins: usize) -> Vec<Bin> {
    let edge = |m: usize| m as f64 / bins as f64;
    let mut members = vec![Vec::new(); bins];
    for (i, prediction) in predictions.iter().enumerate() {
        // The product may round across an edge, so the guess is corrected by the edges themselves.
        let mut m = ((prediction.confidence * bins as f64) as usize).min(bins - 1);
        while m > 0 && prediction.confidence <= edge(m) {
            m -= 1;
        }
        while m + 1 < bins && prediction.confidence > edge(m + 1) {
            m += 1;
        }
        members[m].push(i);
    }
    members
        .iter()
        .enumerate()
        .map(|(m, members)| bin(predictions, members, edge(m), edge(m + 1)))
        .collect()
}

/// Assigns predictions, sorted by confidence, to bins of equal mass.
fn equal_mass(predictions: &[Prediction], bins: usize) -> Vec<Bin> {
    let mut order: Vec<usize> = (0..predictions.len()).collect();
    let confidence = |i: &usize| predictions[*i].confidence;
    order.sort_by(|a, b| confidence(a).total_cmp(&confidence(b)));
    let cut = |m: usize| (m as u128 * predictions.len() as u128 / bins as u128) as usize;
    let mut above = 0.0;
    (0..bins)
        .map(|m| {
            let members = &order[cut(m)..cut(m + 1)];
            let up_to = members.last().map_or(above, confidence);
            let bin = bin(predictions, members, above, up_to);
            above = up_to;
            bin
        })
        .collect()
}

fn bin(predictions: &[Prediction], members: &[usize], above: f64, up_to: f64) -> Bin {
    let n = members.len().max(1) as f64;
    let confidence: f64 = members.iter().map(|i| predictions[*i].confidence).sum();
    let correct = members.iter().filter(|i| predictions[**i].correct).count();
    Bin {
        above,
        up_to,
        images: members.len(),
        confidence: confidence / n,
        accuracy: correct as f64 / n,
    }
}

/// Returns the calibration error of a bin.
fn error(bin: &Bin) -> f64 {
    (bin.accuracy - bin.confidence).abs()
}

/// Returns the mean calibration error of the bins, weighted by images.
fn expected_error(bins: &[Bin], images: usize) -> f64 {
    bins.iter().map(|b| b.images as f64 * error(b)).sum::<f64>() / images as f64
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Stored, assert_close, section};
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        scale: f64,
        bins: usize,
        ece: f64,
        mce: f64,
        adaptive_ece: f64,
        nll: f64,
        brier: f64,
        counts: Vec<usize>,
    }

    #[derive(Deserialize)]
    struct Reference {
        logits: Stored,
        labels: Vec<usize>,
        calibration: Vec<Case>,
    }

    #[test]
    fn agrees_with_scikit_learn_and_numpy() {
        let r: Reference = section("classification");
        assert!(r.calibration.len() >= 3);
        r.logits.with(|logits| {
            for case in &r.calibration {
                let c = calibration(logits, &r.labels, case.scale, case.bins).unwrap();
                assert_close("ece", c.ece, case.ece, 1e-12);
                assert_close("mce", c.mce, case.mce, 1e-12);
                assert_close("adaptive", c.adaptive_ece, case.adaptive_ece, 1e-12);
                assert_close("nll", c.nll, case.nll, 1e-12 * (1.0 + case.nll));
                assert_close("brier", c.brier, case.brier, 1e-12);
                let counts: Vec<usize> = c.bins.iter().map(|b| b.images).collect();
                assert_eq!(counts, case.counts);
            }
        });
    }

    #[test]
    fn certain_predictions_at_half_accuracy_have_an_error_of_one_half() {
        let logits = [1.0, 0.0, 1.0, 0.0];
        let m = Matrix::new("logits", &logits, 2, 2).unwrap();
        let c = calibration(m, &[0, 1], 1e6, BINS).unwrap();
        assert_eq!((c.ece, c.mce, c.adaptive_ece), (0.5, 0.5, 0.5));
        assert_eq!((c.accuracy, c.confidence, c.brier), (0.5, 1.0, 1.0));
        // The loss of the wrong image is the scaled difference of its logits.
        assert_eq!(c.nll, 5e5);
        assert_eq!(c.bins[BINS - 1].images, 2);
    }

    #[test]
    fn uniform_logits_have_a_loss_of_log_classes() {
        for classes in [2_usize, 3, 10, 1000] {
            let logits = vec![3.5; classes];
            let m = Matrix::new("logits", &logits, 1, classes).unwrap();
            let c = calibration(m, &[classes - 1], 100.0, BINS).unwrap();
            let k = classes as f64;
            assert_close("nll", c.nll, k.ln(), 1e-12);
            assert_close("brier", c.brier, 1.0 - 1.0 / k, 1e-12);
            assert_close("confidence", c.confidence, 1.0 / k, 1e-15);
        }
    }

    #[test]
    fn a_confidence_on_an_edge_is_in_the_bin_below() {
        // Four equal logits: confidence exactly 1/4, the edge between the second and third of 8
        // bins.
        let logits = [0.0; 4];
        let m = Matrix::new("logits", &logits, 1, 4).unwrap();
        let c = calibration(m, &[0], 1.0, 8).unwrap();
        let filled = c.bins.iter().position(|b| b.images == 1).unwrap();
        assert_eq!((c.bins[filled].above, c.bins[filled].up_to), (0.125, 0.25));
    }

    #[test]
    fn huge_logits_stay_finite_and_probabilities_sum_to_one() {
        let logits = [f32::MAX, f32::MIN, 0.0, 1e30];
        let p = softmax(&logits, 100.0);
        assert_eq!(p, [1.0, 0.0, 0.0, 0.0]);
        let m = Matrix::new("logits", &logits, 1, 4).unwrap();
        let c = calibration(m, &[0], 100.0, BINS).unwrap();
        assert_eq!((c.nll, c.brier, c.ece), (0.0, 0.0, 0.0));
        let p = softmax(&[0.3, -0.2, 0.29], 100.0);
        assert_close("sum", p.iter().sum(), 1.0, 1e-15);
    }

    #[test]
    fn more_bins_than_images_are_accepted() {
        let logits = [1.0, 0.0];
        let m = Matrix::new("logits", &logits, 1, 2).unwrap();
        let c = calibration(m, &[0], 1.0, 100).unwrap();
        assert_close("adaptive", c.adaptive_ece, c.ece, 1e-15);
        assert_close("both", c.ece, 1.0 - c.confidence, 1e-15);
    }

    #[test]
    fn invalid_settings_are_refused() {
        let logits = [1.0, 0.0];
        let m = Matrix::new("logits", &logits, 1, 2).unwrap();
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let e = calibration(m, &[0], scale, BINS).unwrap_err().to_string();
            assert!(e.starts_with("the scale of the logits is"), "{e}");
        }
        for bins in [0, usize::MAX] {
            let e = calibration(m, &[0], 1.0, bins).unwrap_err().to_string();
            assert!(e.ends_with("it must be from 1 to 10000"), "{e}");
        }
        assert!(calibration(m, &[2], 1.0, 3).is_err());
        assert!(calibration(m, &[0, 0], 1.0, 3).is_err());
    }
}

//! Linear probe: multinomial logistic regression on frozen features.
//!
//! The objective is that of scikit-learn's `LogisticRegression` with the penalty `l2` and an
//! intercept, as in CLIP's own example (`openai/CLIP` `README.md`, "Linear-probe evaluation"). With
//! the mean cross-entropy `H` over `n` images it is `H + ‖W‖² / (2 C n)`; the bias is not
//! penalised. For two classes scikit-learn fits a single weight vector, which equals this at half
//! the `C`.
//!
//! The optimizer is L-BFGS in `f64`, implemented here for three reasons: the method is short, a
//! solver crate would add a second linear algebra library, and the result must not depend on the
//! number of threads.

use std::collections::VecDeque;

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Matrix, MeasureError, check_labels, check_positive, confusion::predictions};

/// Images per partial sum of the loss. A constant, so that sums do not depend on the threads.
const BLOCK: usize = 1024;
/// Number of correction pairs of L-BFGS, as in scikit-learn.
const HISTORY: usize = 10;

/// Settings of a fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeOptions {
    /// scikit-learn's `C`, the inverse of the regularisation strength. Default: 0.316, as in CLIP's
    /// example.
    pub c: f64,
    /// Maximum number of iterations. Default: 1000.
    pub max_iterations: usize,
    /// Largest absolute component of the gradient at convergence. Default: 1e-4, as in
    /// scikit-learn.
    pub tolerance: f64,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self {
            c: 0.316,
            max_iterations: 1000,
            tolerance: 1e-4,
        }
    }
}

/// Report of a fit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Final objective: mean cross-entropy in nats plus the penalty.
    pub objective: f64,
    /// Number of iterations.
    pub iterations: usize,
    /// True if the gradient fell below the tolerance, or the objective stopped decreasing at the
    /// precision of `f64`.
    pub converged: bool,
}

/// Fitted linear classifier.
///
/// # Example
/// ```
/// use mtil_eval::measures::{Matrix, probe::{Probe, ProbeOptions}};
///
/// let features = Matrix::new("features", &[-2.0, -1.0, 1.0, 2.0], 4, 1)?;
/// let probe = Probe::fit(features, &[0, 0, 1, 1], 2, &ProbeOptions::default())?;
/// assert_eq!(probe.predict(features)?, [0, 0, 1, 1]);
/// # Ok::<(), mtil_eval::measures::MeasureError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    classes: usize,
    columns: usize,
    /// Weights `[classes, columns]`, row-major, then biases.
    parameters: Vec<f64>,
    c: f64,
    fit: FitReport,
}

impl Probe {
    /// Fits a probe on features. It does not normalise or standardise them.
    ///
    /// # Shapes
    /// - `features`: `[images, width]`
    ///
    /// # Errors
    /// [`MeasureError`] when there is not one label per image, a label is not below `classes`, a
    /// class has no image, there are fewer than two classes, or an option is out of range.
    pub fn fit(
        features: Matrix<'_>,
        labels: &[usize],
        classes: usize,
        options: &ProbeOptions,
    ) -> Result<Self, MeasureError> {
        check_labels(labels, features.rows(), classes)?;
        if classes < 2 {
            return Err(MeasureError::Setting {
                name: "the number of classes",
                value: classes.to_string(),
                need: "at least 2",
            });
        }
        let mut images = vec![0_usize; classes];
        labels.iter().for_each(|label| images[*label] += 1);
        if let Some(class) = images.iter().position(|n| *n == 0) {
            return Err(MeasureError::EmptyClass { class });
        }
        if !(options.tolerance.is_finite() && options.tolerance >= 0.0) {
            return Err(MeasureError::Setting {
                name: "the tolerance",
                value: options.tolerance.to_string(),
                need: "a finite number, 0 or above",
            });
        }
        check_positive("C", options.c)?;
        let all: Vec<usize> = (0..labels.len()).collect();
        let objective = Objective::new(features, labels, classes, &all, options.c);
        let mut parameters = vec![0.0; objective.parameters()];
        let fit = objective.minimise(&mut parameters, options);
        Ok(Self {
            classes,
            columns: features.columns(),
            parameters,
            c: options.c,
            fit,
        })
    }

    /// Weights `[classes, width]`, row-major.
    pub fn weights(&self) -> &[f64] {
        &self.parameters[..self.classes * self.columns]
    }

    /// Bias `[classes]`.
    pub fn bias(&self) -> &[f64] {
        &self.parameters[self.classes * self.columns..]
    }

    /// The `C` of the fit.
    pub fn c(&self) -> f64 {
        self.c
    }

    /// Report of the fit.
    pub fn report(&self) -> FitReport {
        self.fit
    }

    /// Returns the logits of features, row-major.
    ///
    /// # Shapes
    /// - `features`: `[images, width]`
    /// - output: `[images, classes]`
    ///
    /// # Errors
    /// [`MeasureError::Width`] when the width differs from that of the fit.
    pub fn logits(&self, features: Matrix<'_>) -> Result<Vec<f32>, MeasureError> {
        if features.columns() != self.columns {
            return Err(MeasureError::Width {
                left: features.what().to_owned(),
                left_columns: features.columns(),
                right: "the features of the fit".to_owned(),
                right_columns: self.columns,
            });
        }
        let all: Vec<usize> = (0..features.rows()).collect();
        let blocks: Vec<Vec<f64>> = all
            .par_chunks(BLOCK)
            .map(|rows| {
                let x = gather(features, rows);
                logits(&x, rows.len(), &self.parameters, self.classes)
            })
            .collect();
        Ok(blocks.iter().flatten().map(|x| *x as f32).collect())
    }

    /// Returns the predicted class of each row, the first one on a tie.
    ///
    /// # Shapes
    /// - `features`: `[images, width]`
    /// - output: `[images]`
    ///
    /// # Errors
    /// As [`logits`](Self::logits); [`MeasureError::NotFinite`] when a logit leaves the range of
    /// `f32`.
    pub fn predict(&self, features: Matrix<'_>) -> Result<Vec<usize>, MeasureError> {
        let logits = self.logits(features)?;
        let logits = Matrix::new(
            "logits of the probe",
            &logits,
            features.rows(),
            self.classes,
        )?;
        Ok(predictions(logits))
    }

    /// Returns the accuracy on features in %.
    ///
    /// # Shapes
    /// - `features`: `[images, width]`
    ///
    /// # Errors
    /// As [`predict`](Self::predict), and when there is not one label per image or a label is out
    /// of range.
    pub fn accuracy(&self, features: Matrix<'_>, labels: &[usize]) -> Result<f64, MeasureError> {
        check_labels(labels, features.rows(), self.classes)?;
        let predicted = self.predict(features)?;
        let correct = predicted.iter().zip(labels).filter(|(p, l)| p == l).count();
        Ok(100.0 * correct as f64 / labels.len() as f64)
    }
}

/// Gathers the rows `rows` of `features` in `f64`, row-major.
fn gather(features: Matrix<'_>, rows: &[usize]) -> Vec<f64> {
    let values = rows.iter().flat_map(|i| features.row(*i));
    values.map(|x| f64::from(*x)).collect()
}

/// Returns the logits `x Wᵀ + b`, `[rows, classes]`. `parameters` holds the weights, then the
/// biases.
fn logits(x: &[f64], rows: usize, parameters: &[f64], classes: usize) -> Vec<f64> {
    let (weights, bias) = parameters.split_at(parameters.len() - classes);
    let columns = weights.len() / classes;
    let mut out: Vec<f64> = bias.iter().copied().cycle().take(rows * classes).collect();
    matmul(
        MatMut::from_row_major_slice_mut(&mut out, rows, classes),
        Accum::Add,
        MatRef::from_row_major_slice(x, rows, columns),
        MatRef::from_row_major_slice(weights, classes, columns).transpose(),
        1.0,
        Par::Seq,
    );
    out
}

/// Regularised cross-entropy on a subset of the images.
struct Objective<'a> {
    features: Matrix<'a>,
    labels: &'a [usize],
    classes: usize,
    images: &'a [usize],
    /// The penalty is half of this factor times the squared weights.
    penalty: f64,
}

impl<'a> Objective<'a> {
    fn new(
        features: Matrix<'a>,
        labels: &'a [usize],
        classes: usize,
        images: &'a [usize],
        c: f64,
    ) -> Self {
        Self {
            features,
            labels,
            classes,
            images,
            penalty: 1.0 / (c * images.len() as f64),
        }
    }

    fn parameters(&self) -> usize {
        self.classes * (self.features.columns() + 1)
    }

    fn minimise(&self, parameters: &mut Vec<f64>, options: &ProbeOptions) -> FitReport {
        lbfgs(
            |x, gradient| self.evaluate(x, gradient),
            parameters,
            options.max_iterations,
            options.tolerance,
        )
    }

    /// Returns the value at `x` and writes its gradient.
    fn evaluate(&self, x: &[f64], gradient: &mut [f64]) -> f64 {
        let blocks: Vec<(f64, Vec<f64>)> = self
            .images
            .par_chunks(BLOCK)
            .map(|images| self.block(images, x))
            .collect();
        gradient.fill(0.0);
        let mut value = 0.0;
        for (loss, partial) in &blocks {
            value += loss;
            gradient.iter_mut().zip(partial).for_each(|(g, p)| *g += p);
        }
        let n = self.images.len() as f64;
        value /= n;
        gradient.iter_mut().for_each(|g| *g /= n);
        let weights = x.len() - self.classes;
        for (g, w) in gradient[..weights].iter_mut().zip(x) {
            *g += self.penalty * w;
            value += 0.5 * self.penalty * w * w;
        }
        value
    }

    /// Returns the summed cross-entropy of `images` and its gradient.
    fn block(&self, images: &[usize], parameters: &[f64]) -> (f64, Vec<f64>) {
        let (n, columns) = (images.len(), self.features.columns());
        let x = gather(self.features, images);
        let mut residuals = logits(&x, n, parameters, self.classes);
        let mut gradient = vec![0.0; parameters.len()];
        let (weights, bias) = gradient.split_at_mut(self.classes * columns);
        let mut loss = 0.0;
        for (i, row) in images.iter().zip(residuals.chunks_exact_mut(self.classes)) {
            let label = self.labels[*i];
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let own = row[label] - max;
            row.iter_mut().for_each(|v| *v = (*v - max).exp());
            let sum: f64 = row.iter().sum();
            loss += sum.ln() - own;
            // The gradient of the cross-entropy with respect to the logits: softmax minus one-hot.
            row.iter_mut().for_each(|v| *v /= sum);
            row[label] -= 1.0;
            bias.iter_mut().zip(&*row).for_each(|(b, r)| *b += r);
        }
        matmul(
            MatMut::from_row_major_slice_mut(weights, self.classes, columns),
            Accum::Replace,
            MatRef::from_row_major_slice(&residuals, n, self.classes).transpose(),
            MatRef::from_row_major_slice(&x, n, columns),
            1.0,
            Par::Seq,
        );
        (loss, gradient)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Correction pair of L-BFGS: a step and the change of the gradient along it.
struct CorrectionPair {
    /// `s`, the step.
    step: Vec<f64>,
    /// `y`, the change of the gradient.
    change: Vec<f64>,
    /// `1 / (s · y)`.
    rho: f64,
}

/// Minimises `f`, which returns its value and writes its gradient, starting from `x`.
///
/// The method is L-BFGS (Nocedal & Wright, "Numerical Optimization", algorithms 7.4 and 7.5) with
/// the bisection line search for the weak Wolfe conditions of Lewis & Overton ("Nonsmooth
/// optimization via quasi-Newton methods", 2013, algorithm 2.6).
fn lbfgs(
    f: impl Fn(&[f64], &mut [f64]) -> f64,
    x: &mut Vec<f64>,
    max_iterations: usize,
    tolerance: f64,
) -> FitReport {
    const SUFFICIENT_DECREASE: f64 = 1e-4;
    const CURVATURE: f64 = 0.9;
    const LINE_SEARCH_STEPS: usize = 60;
    // Relative decrease of the objective below which rounding dominates, as in scikit-learn.
    let precision = 64.0 * f64::EPSILON;

    let mut gradient = vec![0.0; x.len()];
    let mut value = f(x, &mut gradient);
    let mut history: VecDeque<CorrectionPair> = VecDeque::new();
    let (mut next, mut next_gradient) = (x.clone(), gradient.clone());
    let mut iterations = 0;
    let converged = loop {
        if gradient.iter().all(|g| g.abs() <= tolerance) {
            break true;
        }
        if iterations == max_iterations {
            break false;
        }
        let mut direction = two_loop_recursion(&gradient, &history);
        let mut slope = dot(&direction, &gradient);
        if slope >= 0.0 {
            // Rounding errors in the history: restart from steepest descent.
            history.clear();
            direction = gradient.iter().map(|g| -g).collect();
            slope = -dot(&gradient, &gradient);
        }
        // Without curvature information the first trial step has at most unit length.
        let mut t = if history.is_empty() {
            1.0 / slope.abs().sqrt().max(1.0)
        } else {
            1.0
        };
        // Bisect the step length: too long violates sufficient decrease, too short curvature.
        let (mut low, mut high) = (0.0, f64::INFINITY);
        let mut found = None;
        for _ in 0..LINE_SEARCH_STEPS {
            for ((next, x), d) in next.iter_mut().zip(&*x).zip(&direction) {
                *next = x + t * d;
            }
            let next_value = f(&next, &mut next_gradient);
            if next_value > value + SUFFICIENT_DECREASE * t * slope || next_value.is_nan() {
                high = t;
            } else if dot(&next_gradient, &direction) < CURVATURE * slope {
                low = t;
            } else {
                found = Some(next_value);
                break;
            }
            t = if high.is_finite() {
                (low + high) / 2.0
            } else {
                2.0 * low
            };
        }
        let Some(next_value) = found else {
            // On a smooth convex objective the line search fails only at rounding level.
            let scale = value.abs().max(1.0);
            break slope.abs() * high.min(1.0) <= precision.sqrt() * scale;
        };
        iterations += 1;
        let step: Vec<f64> = next.iter().zip(&*x).map(|(n, x)| n - x).collect();
        let change: Vec<f64> = next_gradient
            .iter()
            .zip(&gradient)
            .map(|(n, g)| n - g)
            .collect();
        // A pair without positive curvature would make the Hessian approximation indefinite.
        let curvature = dot(&step, &change);
        if curvature > f64::EPSILON * dot(&change, &change) {
            if history.len() == HISTORY {
                history.pop_front();
            }
            history.push_back(CorrectionPair {
                step,
                change,
                rho: 1.0 / curvature,
            });
        }
        let decrease = (value - next_value) / value.abs().max(next_value.abs()).max(1.0);
        std::mem::swap(x, &mut next);
        std::mem::swap(&mut gradient, &mut next_gradient);
        value = next_value;
        if decrease <= precision {
            break true;
        }
    };
    FitReport {
        objective: value,
        iterations,
        converged,
    }
}

/// Returns the search direction, minus the approximate inverse Hessian times `gradient`.
fn two_loop_recursion(gradient: &[f64], history: &VecDeque<CorrectionPair>) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(history.len());
    for pair in history.iter().rev() {
        let alpha = pair.rho * dot(&pair.step, &q);
        q.iter_mut()
            .zip(&pair.change)
            .for_each(|(q, y)| *q -= alpha * y);
        alphas.push(alpha);
    }
    if let Some(last) = history.back() {
        let gamma = 1.0 / (last.rho * dot(&last.change, &last.change));
        q.iter_mut().for_each(|q| *q *= gamma);
    }
    for (pair, alpha) in history.iter().zip(alphas.into_iter().rev()) {
        let beta = pair.rho * dot(&pair.change, &q);
        q.iter_mut()
            .zip(&pair.step)
            .for_each(|(q, s)| *q += (alpha - beta) * s);
    }
    q
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Stored, assert_close, section};
    use super::*;

    #[derive(Deserialize)]
    struct Fitted {
        c: f64,
        objective: f64,
        weights: Vec<f64>,
        bias: Vec<f64>,
        train_accuracy: f64,
        test_accuracy: f64,
        test_predictions: Vec<usize>,
    }

    #[derive(Deserialize)]
    struct Reference {
        classes: usize,
        train: Stored,
        train_labels: Vec<usize>,
        test: Stored,
        test_labels: Vec<usize>,
        fits: Vec<Fitted>,
    }

    fn options(c: f64) -> ProbeOptions {
        ProbeOptions {
            c,
            max_iterations: 5000,
            tolerance: 1e-9,
        }
    }

    fn fit(r: &Reference, options: &ProbeOptions) -> Probe {
        r.train
            .with(|x| Probe::fit(x, &r.train_labels, r.classes, options))
            .unwrap()
    }

    #[test]
    fn agrees_with_scikit_learn() {
        let r: Reference = section("probe");
        assert!(r.fits.len() >= 3);
        for theirs in &r.fits {
            let p = fit(&r, &options(theirs.c));
            assert!(p.report().converged, "C {}: {:?}", theirs.c, p.report());
            assert_close("objective", p.report().objective, theirs.objective, 1e-9);
            for (ours, theirs) in p.weights().iter().zip(&theirs.weights) {
                assert_close("weight", *ours, *theirs, 1e-4);
            }
            for (ours, theirs) in p.bias().iter().zip(&theirs.bias) {
                assert_close("bias", *ours, *theirs, 1e-4);
            }
            assert_eq!(p.weights().len(), theirs.weights.len());
            assert_eq!(p.bias().len(), theirs.bias.len());
            r.train.with(|x| {
                let accuracy = p.accuracy(x, &r.train_labels).unwrap();
                assert_close("train", accuracy, theirs.train_accuracy, 1e-9);
            });
            r.test.with(|x| {
                let accuracy = p.accuracy(x, &r.test_labels).unwrap();
                assert_close("test", accuracy, theirs.test_accuracy, 1e-9);
                assert_eq!(p.predict(x).unwrap(), theirs.test_predictions);
            });
        }
    }

    #[test]
    fn the_gradient_matches_finite_differences() {
        let r: Reference = section("probe");
        r.train.with(|x| {
            let subset: Vec<usize> = (0..x.rows()).step_by(3).collect();
            let objective = Objective::new(x, &r.train_labels, r.classes, &subset, 0.5);
            let n = objective.parameters();
            let at: Vec<f64> = (0..n).map(|i| (i as f64 * 0.7).sin() * 0.3).collect();
            let (mut gradient, mut unused) = (vec![0.0; n], vec![0.0; n]);
            objective.evaluate(&at, &mut gradient);
            for i in 0..n {
                let mut value = |h: f64| {
                    let mut moved = at.clone();
                    moved[i] += h;
                    objective.evaluate(&moved, &mut unused)
                };
                let slope = (value(1e-5) - value(-1e-5)) / 2e-5;
                assert_close("slope", gradient[i], slope, 1e-8);
            }
        });
    }

    #[test]
    fn l_bfgs_minimises_rosenbrocks_function() {
        // Rosenbrock's function, minimum 0 at (1, ..., 1).
        let rosenbrock = |x: &[f64], g: &mut [f64]| {
            g.fill(0.0);
            let mut value = 0.0;
            for i in 0..x.len() - 1 {
                let (a, b) = (x[i + 1] - x[i] * x[i], 1.0 - x[i]);
                value += 100.0 * a * a + b * b;
                g[i] += -400.0 * x[i] * a - 2.0 * b;
                g[i + 1] += 200.0 * a;
            }
            value
        };
        let mut x = vec![-1.2, 1.0, -1.2, 1.0, 0.5];
        let fit = lbfgs(rosenbrock, &mut x, 500, 1e-9);
        assert!(fit.converged && fit.objective < 1e-15, "{fit:?}");
        assert!(x.iter().all(|x| (x - 1.0).abs() < 1e-7), "{x:?}");
        let mut x = vec![-1.2, 1.0];
        let stopped = lbfgs(rosenbrock, &mut x, 2, 1e-9);
        assert_eq!((stopped.iterations, stopped.converged), (2, false));
    }

    #[test]
    fn the_fit_does_not_depend_on_the_number_of_threads() {
        let n = 2 * BLOCK + 17;
        let data: Vec<f32> = (0..n * 3).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
        let labels: Vec<usize> = (0..n).map(|i| usize::from(data[3 * i] > 0.2)).collect();
        let x = Matrix::new("features", &data, n, 3).unwrap();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| Probe::fit(x, &labels, 2, &ProbeOptions::default()).unwrap())
        };
        let one = run(1);
        assert_eq!(one, run(3));
        assert!(one.accuracy(x, &labels).unwrap() > 95.0);
    }

    #[test]
    fn invalid_input_is_refused() {
        let data = [0.0, 1.0, 2.0, 3.0];
        let x = Matrix::new("features", &data, 4, 1).unwrap();
        let fit = |labels: &[usize], classes, c| {
            let options = ProbeOptions {
                c,
                ..ProbeOptions::default()
            };
            Probe::fit(x, labels, classes, &options)
                .unwrap_err()
                .to_string()
        };
        assert!(fit(&[0, 1, 3, 1], 3, 1.0).starts_with("label of image 2 is 3"));
        assert!(fit(&[0, 1], 2, 1.0).starts_with("labels: 2 given, 4 needed"));
        assert!(fit(&[0, 0, 2, 2], 3, 1.0).starts_with("class 1 has no training image"));
        assert!(fit(&[0; 4], 1, 1.0).contains("at least 2"));
        for c in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(fit(&[0, 1, 0, 1], 2, c).starts_with("C is"));
        }
        let nan = [0.0, f32::NAN];
        assert!(Matrix::new("features", &nan, 2, 1).is_err());
        let probe = Probe::fit(x, &[0, 1, 0, 1], 2, &ProbeOptions::default()).unwrap();
        let wide = Matrix::new("test features", &data, 2, 2).unwrap();
        assert!(
            probe
                .predict(wide)
                .unwrap_err()
                .to_string()
                .starts_with("test features have 2")
        );
        assert!(probe.accuracy(x, &[0, 1, 0, 2]).is_err());
    }
}

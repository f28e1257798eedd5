//! Dual form of RAIL: kernel ridge regression over the features of all tasks so far.

use std::path::Path;

use faer::{Mat, MatRef, Side};
use serde::{Deserialize, Serialize};

use super::{
    AnalyticError,
    file::{self, StateFile, TensorData},
    matrix::{
        check_at_least_one, check_positive, check_queries, check_training_batch, one_hot,
        pack_lower, packed_len, row_major, size_in_bytes, unpack_lower,
    },
};

/// Rows scored at a time; bounds the memory of the kernel matrix.
const SCORE_BATCH: usize = 256;
const KIND: &str = "dual";
/// Maximum number of classes in a file. The tensors of a regression without images do not bound it.
const MAX_CLASSES: usize = 1 << 24;

/// Settings of [`DualRail`]. Defaults are those of the published code (ViT-B/16, 16 images per
/// class).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DualConfig {
    /// Factor `γ` of the Gaussian kernel. Default 0.1 (`gamma` in `configs/analytic_clip.yaml`).
    pub gamma: f64,
    /// Ridge regularisation `λ`. Default 0.001 (a constant in `dual_RAIL.py`; the published code
    /// does not use the `regularization` of the configuration here).
    pub lambda: f64,
}

impl Default for DualConfig {
    fn default() -> Self {
        Self {
            gamma: 0.1,
            lambda: 0.001,
        }
    }
}

impl DualConfig {
    fn check(&self, width: usize) -> Result<(), AnalyticError> {
        check_at_least_one("feature width", width)?;
        check_positive("gamma", self.gamma)?;
        check_positive("lambda", self.lambda)
    }
}

/// Kernel ridge regression of one-hot labels (published code: `utils.py`,
/// `kernel_ridge_regression`, and `dual_RAIL.py`):
///
/// ```text
/// K(x, y) = exp(−γ‖x − y‖²)        α = (K + λI)⁻¹ Y        scores of x: K(x, X)·α
/// ```
///
/// over the features `X` of all tasks so far. The published code inverts `K + λI` from scratch
/// after each task. This implementation appends a block of rows to its Cholesky factor instead
/// (the paper's Theorem 2 extends the inverse):
///
/// ```text
/// L₂₁ = K₂₁ L₁₁⁻ᵀ        L₂₂ L₂₂ᵀ = K₂₂ + λI − L₂₁ L₂₁ᵀ
/// ```
///
/// The state grows with the square of the number of images: `8·n²` bytes in memory, half of that in
/// a file. 16 images of each of 1,100 classes take 2.5 GB, so full training sets are infeasible.
///
/// # Example
/// ```
/// use mtil_methods::analytic::{DualConfig, DualRail};
///
/// let mut rail = DualRail::new(DualConfig::default(), 2)?;
/// // Two unit features of width 2, with the labels 0 and 1.
/// rail.update(&[1.0, 0.0, 0.0, 1.0], &[0, 1], 2)?;
/// rail.finish();
/// let scores = rail.scores(&[1.0, 0.0])?;
/// assert!(scores[0] > scores[1]);
/// # Ok::<(), mtil_methods::analytic::AnalyticError>(())
/// ```
#[derive(Debug, Clone)]
pub struct DualRail {
    config: DualConfig,
    width: usize,
    classes: usize,
    /// Row-major `[n, width]`.
    features: Vec<f64>,
    labels: Vec<usize>,
    /// `L`, lower triangular.
    factor: Mat<f64>,
    /// `α`, of shape `[n, classes]`.
    weights: Mat<f64>,
    finished: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    config: DualConfig,
    width: usize,
    classes: usize,
    images: usize,
    finished: bool,
}

impl DualRail {
    /// Creates a regression without data for features of width `width`.
    ///
    /// # Errors
    /// [`AnalyticError::Setting`] for a width, `γ` or `λ` out of range.
    pub fn new(config: DualConfig, width: usize) -> Result<Self, AnalyticError> {
        config.check(width)?;
        Ok(Self {
            config,
            width,
            classes: 0,
            features: Vec::new(),
            labels: Vec::new(),
            factor: Mat::zeros(0, 0),
            weights: Mat::zeros(0, 0),
            finished: true,
        })
    }

    /// The settings.
    pub fn config(&self) -> &DualConfig {
        &self.config
    }

    /// Width of the features.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of classes so far.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Number of images so far. The regression stores the features of all of them.
    pub fn images(&self) -> usize {
        self.labels.len()
    }

    /// Memory of the state in bytes: features, labels, the Cholesky factor and the coefficients.
    pub fn bytes_kept(&self) -> u64 {
        (size_of_val(&self.features[..]) + size_of_val(&self.labels[..])) as u64
            + size_in_bytes(&self.factor)
            + size_in_bytes(&self.weights)
    }

    /// Returns the dual coefficients `α`, row-major.
    ///
    /// # Shapes
    /// - output: `[images, classes]`
    ///
    /// # Errors
    /// [`AnalyticError::Unfinished`] between an update and [`finish`](Self::finish).
    pub fn weights(&self) -> Result<Vec<f64>, AnalyticError> {
        match self.finished {
            true => Ok(row_major(self.weights.as_ref())),
            false => Err(AnalyticError::Unfinished),
        }
    }

    /// Adds labelled images: a whole task or a batch of it. `classes` is the number of classes of
    /// all tasks up to this one. Call [`finish`](Self::finish) after the last batch.
    ///
    /// # Shapes
    /// - `features`: `[labels.len(), width]`, row-major
    ///
    /// # Errors
    /// [`AnalyticError`] for no images, inputs of the wrong size, values that are not finite,
    /// labels that are not below `classes`, fewer classes than before, and a kernel matrix that is
    /// not positive definite to rounding. The regression is unchanged after an error.
    pub fn update<T: Copy + Into<f64>>(
        &mut self,
        features: &[T],
        labels: &[usize],
        classes: usize,
    ) -> Result<(), AnalyticError> {
        let new = check_training_batch(features, labels, self.width, self.classes, classes)?;
        let (n, m) = (self.images(), labels.len());
        // The off-diagonal block: K₁₂ = K₂₁ᵀ, and L₂₁ᵀ after the solve.
        let mut off_diagonal = self.kernel(&self.features, &new);
        self.factor
            .solve_lower_triangular_in_place(off_diagonal.as_mut());
        let mut diagonal = self.kernel(&new, &new);
        for i in 0..m {
            // k(x, x) = 1, but the computed distance of a row to itself may not be exactly 0.
            diagonal[(i, i)] = 1.0 + self.config.lambda;
        }
        // The Schur complement, whose Cholesky factor is L₂₂.
        diagonal -= off_diagonal.transpose() * &off_diagonal;
        let diagonal =
            diagonal
                .llt(Side::Lower)
                .map_err(|_| AnalyticError::NotPositiveDefinite {
                    matrix: "K + λI",
                    lambda: self.config.lambda,
                })?;
        let diagonal = diagonal.L();
        self.factor
            .resize_with(n + m, n + m, |i, j| match (i < n, j < n) {
                (false, true) => off_diagonal[(j, i - n)],
                (false, false) => diagonal[(i - n, j - n)],
                _ => 0.0,
            });
        self.features.extend(new);
        self.labels.extend(labels);
        self.classes = classes;
        self.weights = Mat::zeros(0, 0);
        self.finished = false;
        Ok(())
    }

    /// Solves for the dual coefficients `α`. Does nothing if they are up to date.
    pub fn finish(&mut self) {
        if self.finished {
            return;
        }
        let mut weights = one_hot(&self.labels, self.classes);
        self.factor
            .solve_lower_triangular_in_place(weights.as_mut());
        self.factor
            .transpose()
            .solve_upper_triangular_in_place(weights.as_mut());
        self.weights = weights;
        self.finished = true;
    }

    /// Returns the scores of images, row-major.
    ///
    /// # Shapes
    /// - `features`: `[n, width]`, row-major
    /// - output: `[n, classes]`
    ///
    /// # Errors
    /// [`AnalyticError`] for features of another width or with a value that is not finite, before
    /// the first update, and between an update and [`finish`](Self::finish).
    pub fn scores<T: Copy + Into<f64>>(&self, features: &[T]) -> Result<Vec<f64>, AnalyticError> {
        if self.labels.is_empty() {
            return Err(AnalyticError::NoData);
        }
        if !self.finished {
            return Err(AnalyticError::Unfinished);
        }
        let features = check_queries(features, self.width)?;
        let mut scores = Vec::with_capacity(features.len() / self.width * self.classes);
        for features in features.chunks(SCORE_BATCH * self.width) {
            let kernel = self.kernel(features, &self.features);
            scores.extend(row_major((kernel * &self.weights).as_ref()));
        }
        Ok(scores)
    }

    /// Returns the kernel matrix `K(a, b)` of all pairs of rows. The squared distance is
    /// `‖a‖² + ‖b‖² − 2a·b`, exact to about `1e-16` for features of unit length.
    fn kernel(&self, a: &[f64], b: &[f64]) -> Mat<f64> {
        let squared_norms = |rows: &[f64]| -> Vec<f64> {
            rows.chunks_exact(self.width)
                .map(|row| row.iter().map(|x| x * x).sum())
                .collect()
        };
        let (a_norms, b_norms) = (squared_norms(a), squared_norms(b));
        let mut kernel = MatRef::from_row_major_slice(a, a_norms.len(), self.width)
            * MatRef::from_column_major_slice(b, self.width, b_norms.len());
        for (j, b) in b_norms.iter().enumerate() {
            for (x, a) in kernel.col_mut(j).iter_mut().zip(&a_norms) {
                let distance = (a + b - 2.0 * *x).max(0.0);
                *x = (-self.config.gamma * distance).exp();
            }
        }
        kernel
    }

    /// Writes the state to a safetensors file, atomically.
    ///
    /// The tensors are `features` `[n, e]`, `factor` (the lower triangle row by row) and, after
    /// [`finish`](Self::finish), `weights` `[n, classes]`, all `f64`; and `labels` `[n]` as `u64`.
    ///
    /// # Errors
    /// [`AnalyticError::Io`] when the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), AnalyticError> {
        let n = self.images();
        let factor = pack_lower(self.factor.as_ref());
        let mut tensors = vec![
            (
                "features",
                TensorData::f64(&[n, self.width], &self.features),
            ),
            ("labels", TensorData::u64(&self.labels)),
            ("factor", TensorData::f64(&[factor.len()], &factor)),
        ];
        if self.finished {
            let weights = row_major(self.weights.as_ref());
            tensors.push(("weights", TensorData::f64(&[n, self.classes], &weights)));
        }
        let state = State {
            config: self.config,
            width: self.width,
            classes: self.classes,
            images: n,
            finished: self.finished,
        };
        file::write(path.as_ref(), KIND, state, &tensors)
    }

    /// Reads a file written by [`save`](Self::save). Updates after a load give the same bits as
    /// without saving and loading.
    ///
    /// # Errors
    /// [`AnalyticError`] unless the file is complete, of the current version, and its metadata and
    /// tensors agree. The error names the file and the tensor.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, AnalyticError> {
        let stored = StateFile::read(path.as_ref())?;
        let (state, mut tensors) = stored.parse::<State>(KIND)?;
        let (width, classes, n) = (state.width, state.classes, state.images);
        if classes > MAX_CLASSES {
            return Err(
                stored.corrupt(format!("{classes} classes, at most {MAX_CLASSES} are read"))
            );
        }
        let mut rail = Self::new(state.config, width).map_err(|e| stored.corrupt(e.to_string()))?;
        rail.features = tensors.f64("features", Some(vec![n, width]))?;
        rail.labels = tensors.u64("labels", n, classes)?;
        let factor = tensors.f64("factor", packed_len(n).map(|len| vec![len]))?;
        rail.factor = unpack_lower(&factor, n);
        if !(0..n).all(|i| rail.factor[(i, i)] > 0.0) {
            return Err(stored.corrupt("tensor `factor` is not a Cholesky factor"));
        }
        if state.finished {
            let weights = tensors.f64("weights", Some(vec![n, classes]))?;
            rail.weights = MatRef::from_row_major_slice(&weights, n, classes).to_owned();
        }
        tensors.finish()?;
        rail.classes = classes;
        rail.finished = state.finished;
        Ok(rail)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Reference, assert_close, features, reference};
    use super::*;

    fn published(reference: &Reference) -> DualRail {
        let config = DualConfig {
            gamma: reference.gamma,
            lambda: reference.lambda_dual,
        };
        DualRail::new(config, reference.width).unwrap()
    }

    #[test]
    fn coefficients_and_scores_of_three_tasks_match_scikit_learn() {
        let reference = reference();
        let mut rail = published(&reference);
        for task in &reference.tasks {
            rail.update(&task.features, &task.labels, task.classes)
                .unwrap();
            rail.finish();
            assert_close(&rail.weights().unwrap(), &task.dual_weights, 1e-8);
            assert_close(
                &rail.scores(&reference.tests).unwrap(),
                &task.dual_scores,
                1e-8,
            );
        }
        assert_eq!(rail.images(), 31);
        assert_eq!(rail.bytes_kept(), 8 * (31 * 6 + 31 + 31 * 31 + 31 * 8));
    }

    #[test]
    fn batches_give_the_joint_solution() {
        let (width, n, classes) = (5, 90, 4);
        let x = features(n, width, 11);
        let y: Vec<usize> = (0..n).map(|i| i * i % classes).collect();
        let rail = |batch: usize| {
            let mut rail = DualRail::new(DualConfig::default(), width).unwrap();
            for (x, y) in x.chunks(batch * width).zip(y.chunks(batch)) {
                rail.update(x, y, classes).unwrap();
            }
            rail.finish();
            rail
        };
        let joint = rail(n);
        // (K + λI)·α = Y, computed without the factor.
        let kernel = joint.kernel(&x, &x);
        let product = &kernel * &joint.weights + faer::Scale(0.001) * &joint.weights;
        assert_close(
            &row_major(product.as_ref()),
            &row_major(one_hot(&y, classes).as_ref()),
            1e-10,
        );
        for batch in [1, 7, 64] {
            assert_close(
                &rail(batch).weights().unwrap(),
                &joint.weights().unwrap(),
                1e-8,
            );
        }
    }

    #[test]
    fn the_kernel_is_the_gaussian_of_the_distance() {
        let rail = DualRail::new(
            DualConfig {
                gamma: 0.5,
                lambda: 1.0,
            },
            2,
        )
        .unwrap();
        let kernel = rail.kernel(&[0.0, 0.0, 3.0, 0.0], &[0.0, 4.0]);
        assert!((kernel[(0, 0)] - (-8f64).exp()).abs() < 1e-18);
        assert!((kernel[(1, 0)] - (-12.5f64).exp()).abs() < 1e-18);
    }

    #[test]
    fn updates_after_a_load_give_the_same_bits() {
        let reference = reference();
        let folder = tempfile::tempdir().unwrap();
        let (path, again) = (folder.path().join("a"), folder.path().join("b"));
        for finish_first in [false, true] {
            let mut rail = published(&reference);
            for task in &reference.tasks[..2] {
                rail.update(&task.features, &task.labels, task.classes)
                    .unwrap();
            }
            if finish_first {
                rail.finish();
            }
            rail.save(&path).unwrap();
            let mut loaded = DualRail::load(&path).unwrap();
            loaded.save(&again).unwrap();
            assert_eq!(
                std::fs::read(&path).unwrap(),
                std::fs::read(&again).unwrap()
            );
            assert_eq!(loaded.weights().is_ok(), finish_first);
            let task = &reference.tasks[2];
            for rail in [&mut rail, &mut loaded] {
                rail.update(&task.features, &task.labels, task.classes)
                    .unwrap();
                rail.finish();
            }
            assert_eq!(rail.weights().unwrap(), loaded.weights().unwrap());
        }
    }

    #[test]
    fn classes_without_images_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("regression.safetensors");
        for (classes, is_read) in [(MAX_CLASSES, true), (1 << 60, false)] {
            let state = State {
                config: DualConfig::default(),
                width: 2,
                classes,
                images: 0,
                finished: true,
            };
            let tensors = [
                ("features", TensorData::f64(&[0, 2], &[])),
                ("labels", TensorData::u64(&[])),
                ("factor", TensorData::f64(&[0], &[])),
                ("weights", TensorData::f64(&[0, classes], &[])),
            ];
            file::write(&path, KIND, state, &tensors).unwrap();
            let read = DualRail::load(&path);
            assert_eq!(read.is_ok(), is_read, "{:?}", read.err());
        }
    }

    #[test]
    fn invalid_input_leaves_the_regression_unchanged() {
        let mut rail = DualRail::new(DualConfig::default(), 2).unwrap();
        assert!(matches!(
            rail.scores(&[1.0, 0.0]),
            Err(AnalyticError::NoData)
        ));
        rail.update(&[1.0f32, 0.0, 0.0, 1.0], &[0, 1], 2).unwrap();
        assert!(matches!(
            rail.scores(&[1.0, 0.0]),
            Err(AnalyticError::Unfinished)
        ));
        rail.finish();
        let before = rail.weights().unwrap();
        let mut refused = |features: &[f32], labels: &[usize], classes, why: &str| {
            let message = rail
                .update(features, labels, classes)
                .unwrap_err()
                .to_string();
            assert!(message.contains(why), "{message}");
        };
        refused(&[], &[], 2, "at least one row");
        refused(&[1.0, 0.0, 2.0], &[0], 2, "3 values are not 1 rows of 2");
        refused(&[1.0, 0.0], &[5], 3, "the label of row 0 is 5");
        refused(&[1.0, 0.0], &[0], 1, "1 classes after 2");
        refused(
            &[f32::INFINITY, 0.0],
            &[0],
            2,
            "row 0, column 0 is not finite",
        );
        assert_eq!(rail.weights().unwrap(), before);
        // A repeated feature and a regularisation below rounding: K is singular.
        let config = DualConfig {
            lambda: 1e-30,
            ..Default::default()
        };
        let mut rail = DualRail::new(config, 1).unwrap();
        rail.update(&[1.0], &[0], 1).unwrap();
        let error = rail.update(&[1.0], &[0], 1).unwrap_err();
        assert!(
            matches!(error, AnalyticError::NotPositiveDefinite { .. }),
            "{error}"
        );
        assert_eq!(rail.images(), 1);
        for (gamma, lambda) in [(0.0, 1.0), (f64::NAN, 1.0), (1.0, -1.0)] {
            assert!(DualRail::new(DualConfig { gamma, lambda }, 2).is_err());
        }
    }
}

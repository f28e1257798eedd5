//! The dual regression: kernel ridge regression over all features so far.

use std::path::Path;

use faer::{Mat, MatRef, Side};
use serde::{Deserialize, Serialize};

use super::{
    AnalyticError,
    file::{self, Numbers, Stored},
    matrix::{
        at_least_one, bytes, images, one_hot, pack, packed_len, positive, queries, row_major,
        unpack,
    },
};

/// Rows of which scores are computed at once.
const STEP: usize = 256;
const KIND: &str = "dual";

/// Settings of [`DualRail`]. Defaults are those of the published code (ViT-B/16, 16 images a
/// class).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DualConfig {
    /// The `γ` of the kernel. Default 0.1 (`gamma` in `configs/analytic_clip.yaml`).
    pub gamma: f64,
    /// The regularisation `λ`. Default 0.001 (a constant in `dual_RAIL.py`; the `regularization` of
    /// the configuration is not used there).
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
        at_least_one("feature width", width)?;
        positive("gamma", self.gamma)?;
        positive("lambda", self.lambda)
    }
}

/// Kernel ridge regression of one-hot labels (published code: `utils.py`,
/// `kernel_ridge_regression`, and `dual_RAIL.py`):
///
/// ```text
/// K(x, y) = exp(−γ‖x − y‖²)        α = (K + λI)⁻¹ Y        scores of x: K(x, X)·α
/// ```
///
/// over the features `X` of all tasks so far. The published code inverts `K + λI` anew after each
/// task; here its Cholesky factor grows by a block of rows (the paper's Theorem 2 grows the
/// inverse):
///
/// ```text
/// L₂₁ = K₂₁ L₁₁⁻ᵀ        L₂₂ L₂₂ᵀ = K₂₂ + λI − L₂₁ L₂₁ᵀ
/// ```
///
/// The state grows with the square of the number of images: `8·n²` bytes in memory, half of that in
/// a file. 16 images of each of 1,100 classes are 2.5 GB; whole datasets are out of reach.
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
    /// An empty regression for features of `width` numbers.
    ///
    /// # Errors
    /// For a width, `γ` or `λ` out of range.
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

    /// Numbers of a feature.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Classes so far.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Images so far; the features of all of them are kept.
    pub fn images(&self) -> usize {
        self.labels.len()
    }

    /// Bytes of the numbers in memory: features, labels, the factor and the coefficients.
    pub fn bytes_kept(&self) -> u64 {
        (size_of_val(&self.features[..]) + size_of_val(&self.labels[..])) as u64
            + bytes(&self.factor)
            + bytes(&self.weights)
    }

    /// The coefficients `α`, row-major `[images, classes]`.
    ///
    /// # Errors
    /// Between an update and [`finish`](Self::finish).
    pub fn weights(&self) -> Result<Vec<f64>, AnalyticError> {
        match self.finished {
            true => Ok(row_major(self.weights.as_ref())),
            false => Err(AnalyticError::Unfinished),
        }
    }

    /// Takes in images: a whole task, or a batch of it. `features` is row-major `[labels.len(),
    /// width]`, `classes` the number of classes of all tasks up to this one. Call
    /// [`finish`](Self::finish) after the last batch.
    ///
    /// # Errors
    /// For no images, sizes that do not fit, values that are not finite, labels that are not below
    /// `classes`, fewer classes than before, and a kernel that is not positive definite to
    /// rounding; the regression is then unchanged.
    pub fn update<T: Copy + Into<f64>>(
        &mut self,
        features: &[T],
        labels: &[usize],
        classes: usize,
    ) -> Result<(), AnalyticError> {
        let new = images(features, labels, self.width, self.classes, classes)?;
        let (n, m) = (self.images(), labels.len());
        // Becomes L₂₁ᵀ.
        let mut across = self.kernel(&self.features, &new);
        self.factor.solve_lower_triangular_in_place(across.as_mut());
        let mut corner = self.kernel(&new, &new);
        for i in 0..m {
            // Exactly, which rounding of the distance does not promise.
            corner[(i, i)] = 1.0 + self.config.lambda;
        }
        corner -= across.transpose() * &across;
        let corner = corner
            .llt(Side::Lower)
            .map_err(|_| AnalyticError::NotPositiveDefinite {
                matrix: "K + λI",
                lambda: self.config.lambda,
            })?;
        let corner = corner.L();
        self.factor
            .resize_with(n + m, n + m, |i, j| match (i < n, j < n) {
                (false, true) => across[(j, i - n)],
                (false, false) => corner[(i - n, j - n)],
                _ => 0.0,
            });
        self.features.extend(new);
        self.labels.extend(labels);
        self.classes = classes;
        self.weights = Mat::zeros(0, 0);
        self.finished = false;
        Ok(())
    }

    /// Solves for the coefficients.
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

    /// The scores of images, row-major `[n, classes]`; `features` is row-major `[n, width]`.
    ///
    /// # Errors
    /// For features of another width or with a value that is not finite, before the first update,
    /// and between an update and [`finish`](Self::finish).
    pub fn scores<T: Copy + Into<f64>>(&self, features: &[T]) -> Result<Vec<f64>, AnalyticError> {
        if self.labels.is_empty() {
            return Err(AnalyticError::NoData);
        }
        if !self.finished {
            return Err(AnalyticError::Unfinished);
        }
        let features = queries(features, self.width)?;
        let mut scores = Vec::with_capacity(features.len() / self.width * self.classes);
        for features in features.chunks(STEP * self.width) {
            let kernel = self.kernel(features, &self.features);
            scores.extend(row_major((kernel * &self.weights).as_ref()));
        }
        Ok(scores)
    }

    /// `K(a, b)` of all pairs of rows. The squared distance is `‖a‖² + ‖b‖² − 2a·b`, exact to about
    /// `1e-16` for features of length 1.
    fn kernel(&self, a: &[f64], b: &[f64]) -> Mat<f64> {
        let squares = |rows: &[f64]| -> Vec<f64> {
            rows.chunks_exact(self.width)
                .map(|row| row.iter().map(|x| x * x).sum())
                .collect()
        };
        let (of_a, of_b) = (squares(a), squares(b));
        let mut kernel = MatRef::from_row_major_slice(a, of_a.len(), self.width)
            * MatRef::from_column_major_slice(b, self.width, of_b.len());
        for (j, b) in of_b.iter().enumerate() {
            for (x, a) in kernel.col_mut(j).iter_mut().zip(&of_a) {
                let distance = (a + b - 2.0 * *x).max(0.0);
                *x = (-self.config.gamma * distance).exp();
            }
        }
        kernel
    }

    /// Writes the whole state to a safetensors file, whole or not at all: `features` `[n, e]`,
    /// `factor`, the lower triangle row by row, and after [`finish`](Self::finish) `weights` `[n,
    /// classes]`, all `f64`; `labels` `[n]` as `u64`.
    ///
    /// # Errors
    /// Whatever writing the file meets.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), AnalyticError> {
        let n = self.images();
        let factor = pack(self.factor.as_ref());
        let mut tensors = vec![
            ("features", Numbers::f64(&[n, self.width], &self.features)),
            ("labels", Numbers::u64(&self.labels)),
            ("factor", Numbers::f64(&[factor.len()], &factor)),
        ];
        if self.finished {
            let weights = row_major(self.weights.as_ref());
            tensors.push(("weights", Numbers::f64(&[n, self.classes], &weights)));
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

    /// Reads what [`save`](Self::save) wrote. Going on from it gives the same numbers as never
    /// having stopped.
    ///
    /// # Errors
    /// Anything but a whole file of the known version whose metadata and tensors agree. The error
    /// names the file and the tensor.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, AnalyticError> {
        let stored = Stored::read(path.as_ref())?;
        let (state, mut tensors) = stored.open::<State>(KIND)?;
        let (width, classes, n) = (state.width, state.classes, state.images);
        let mut rail = Self::new(state.config, width).map_err(|e| stored.corrupt(e.to_string()))?;
        rail.features = tensors.f64("features", Some(vec![n, width]))?;
        rail.labels = tensors.u64("labels", n, classes)?;
        let factor = tensors.f64("factor", packed_len(n).map(|len| vec![len]))?;
        rail.factor = unpack(&factor, n);
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
    use super::super::tests::{Reference, close, features, reference};
    use super::*;

    fn published(reference: &Reference) -> DualRail {
        let config = DualConfig {
            gamma: reference.gamma,
            lambda: reference.lambda_dual,
        };
        DualRail::new(config, reference.width).unwrap()
    }

    #[test]
    fn three_tasks_give_scikit_learns_coefficients_and_scores() {
        let reference = reference();
        let mut rail = published(&reference);
        for task in &reference.tasks {
            rail.update(&task.features, &task.labels, task.classes)
                .unwrap();
            rail.finish();
            close(&rail.weights().unwrap(), &task.dual_weights, 1e-8);
            close(
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
        close(
            &row_major(product.as_ref()),
            &row_major(one_hot(&y, classes).as_ref()),
            1e-10,
        );
        for batch in [1, 7, 64] {
            close(
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
    fn a_saved_regression_goes_on_to_the_same_bits() {
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
    fn bad_input_leaves_the_regression_as_it_was() {
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

//! Primal form of RAIL: recursive ridge regression on a random hidden layer.

use std::path::Path;

use faer::{
    Accum, Mat, MatRef, Side, get_global_parallelism,
    linalg::{
        matmul::triangular::{BlockStructure, matmul},
        solvers::Solve,
    },
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use super::{
    AnalyticError,
    file::{self, StateFile, TensorData},
    matrix::{
        check_at_least_one, check_positive, check_queries, check_training_batch, one_hot,
        pack_lower, packed_len, pad_columns, row_major, size_in_bytes, symmetrize, to_finite_f64,
        unpack_lower,
    },
};

/// Maximum width of the hidden layer. The state holds the square of the width: 34 GB here.
const MAX_HIDDEN: usize = 65_536;
/// Images per matrix product; bounds the memory of the hidden activations.
const BATCH: usize = 1024;
const KIND: &str = "primal";

/// Update rule of the recursive ridge regression. All rules give the same result to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recursion {
    /// Updates the inverse `R = (ΣΦᵀΦ + λI)⁻¹` with every batch (Woodbury's identity; the paper's
    /// Theorem 1). Takes about `1.5·n·h²` multiplications for `n` images. The weights are up to
    /// date after every batch.
    #[default]
    Woodbury,
    /// Accumulates the normal equations `ΣΦᵀΦ + λI` and `ΣΦᵀY` and solves them once per task. Takes
    /// about `n·h²/2 + h³/6 + c·h²` multiplications for `c` classes. The error does not grow as `λ`
    /// shrinks. Solving temporarily needs a second copy of the matrix.
    Normal,
}

impl Recursion {
    /// Returns the rule with fewer multiplications for tasks of `images` images each and `classes`
    /// classes in total.
    pub fn cheaper(hidden: usize, images: usize, classes: usize) -> Self {
        match images > hidden / 6 + classes {
            true => Self::Normal,
            false => Self::Woodbury,
        }
    }
}

/// Settings of [`PrimalRail`]. Defaults with a name in parentheses are those of the published
/// `configs/analytic_clip.yaml` (ViT-B/16, 16 images per class).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrimalConfig {
    /// Width `h` of the hidden layer. Default 15,000 (`hidden_dim`).
    pub hidden: usize,
    /// Ridge regularisation `λ`. Default 0.1 (`regularization`).
    pub lambda: f64,
    /// Seed of the hidden layer. Default 42 (`seed`).
    pub seed: u64,
    /// Update rule.
    pub recursion: Recursion,
}

impl Default for PrimalConfig {
    fn default() -> Self {
        Self {
            hidden: 15_000,
            lambda: 0.1,
            seed: 42,
            recursion: Recursion::default(),
        }
    }
}

impl PrimalConfig {
    fn check(&self, width: usize) -> Result<(), AnalyticError> {
        check_at_least_one("feature width", width)?;
        check_positive("lambda", self.lambda)?;
        check_at_least_one("hidden", self.hidden)?;
        if self.hidden > MAX_HIDDEN {
            return Err(AnalyticError::Setting {
                name: "hidden",
                value: self.hidden.to_string(),
                must: "at most 65536: the state holds its square",
            });
        }
        Ok(())
    }
}

/// Sufficient statistics of the data, by update rule.
#[derive(Debug, Clone)]
enum Statistics {
    /// The inverse `R`, both triangles.
    Inverse(Mat<f64>),
    /// The lower triangle of the Gram matrix `ΣΦᵀΦ + λI`, and `ΣΦᵀY`.
    Sums { gram: Mat<f64>, targets: Mat<f64> },
}

/// Ridge regression of one-hot labels on `Φ = ReLU(X·H)`, `H` random and fixed:
///
/// ```text
/// W = (ΣΦᵀΦ + λI)⁻¹ ΣΦᵀY            over all images of all tasks
/// ```
///
/// updated task by task from `R = (ΣΦᵀΦ + λI)⁻¹` and `W` alone (published code: `primal_RAIL.py`,
/// `analytic_adaption`):
///
/// ```text
/// R ← R − RΦᵀ (I + ΦRΦᵀ)⁻¹ ΦR        W ← W + RΦᵀ (Y − ΦW)
/// ```
///
/// Columns of new classes start at zero, which is exact: no earlier image has their label. The
/// result equals the joint solution over all images, for any order and size of the batches.
///
/// With the published width of 15,000 the state takes 1.8 GB in memory (`8·h²` bytes) and 0.9 GB
/// in a file.
///
/// # Example
/// ```
/// use mtil_methods::analytic::{PrimalConfig, PrimalRail};
///
/// let config = PrimalConfig { hidden: 64, ..Default::default() };
/// let mut rail = PrimalRail::new(config, 2)?;
/// // Two unit features of width 2, with the labels 0 and 1.
/// rail.update(&[1.0, 0.0, 0.0, 1.0], &[0, 1], 2)?;
/// rail.finish()?;
/// assert_eq!(rail.scores(&[1.0, 0.0])?.len(), 2);
/// # Ok::<(), mtil_methods::analytic::AnalyticError>(())
/// ```
#[derive(Debug, Clone)]
pub struct PrimalRail {
    config: PrimalConfig,
    width: usize,
    /// `Hᵀ`, of shape `[h, e]`.
    hidden: Mat<f64>,
    statistics: Statistics,
    /// `W`, of shape `[h, classes]`.
    weights: Mat<f64>,
    images: u64,
    finished: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    config: PrimalConfig,
    width: usize,
    classes: usize,
    images: u64,
    finished: bool,
}

impl PrimalRail {
    /// Creates a regression without data for features of width `width`.
    ///
    /// The hidden layer is drawn from the seed, uniform in `±1/√e` for `e` features, as in the
    /// published code (the default of `torch.nn.Linear` without bias). The random generator is not
    /// PyTorch's, so the values differ.
    ///
    /// # Errors
    /// [`AnalyticError::Setting`] for a width, `λ` or hidden width out of range.
    pub fn new(config: PrimalConfig, width: usize) -> Result<Self, AnalyticError> {
        config.check(width)?;
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        // 53 random bits, strictly between 0 and 1.
        let mut uniform = || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let bound = 1.0 / (width as f64).sqrt();
        // Drawn in row-major order of H, so that the values do not depend on its memory layout.
        let values: Vec<f64> = (0..width * config.hidden)
            .map(|_| bound * (2.0 * uniform() - 1.0))
            .collect();
        let hidden = MatRef::from_column_major_slice(&values, config.hidden, width).to_owned();
        Ok(Self::empty(config, width, hidden))
    }

    /// Creates a regression without data with the given hidden layer `H`.
    ///
    /// # Shapes
    /// - `hidden`: `[width, config.hidden]`, row-major
    ///
    /// # Errors
    /// As [`new`](Self::new), and for a layer of another size or with a value that is not finite.
    pub fn with_hidden<T: Copy + Into<f64>>(
        config: PrimalConfig,
        width: usize,
        hidden: &[T],
    ) -> Result<Self, AnalyticError> {
        config.check(width)?;
        if width.checked_mul(config.hidden) != Some(hidden.len()) {
            return Err(AnalyticError::Shape {
                what: "hidden layer",
                values: hidden.len(),
                rows: width,
                columns: config.hidden,
            });
        }
        let values = to_finite_f64("hidden layer", hidden, config.hidden)?;
        let hidden = MatRef::from_column_major_slice(&values, config.hidden, width).to_owned();
        Ok(Self::empty(config, width, hidden))
    }

    fn empty(config: PrimalConfig, width: usize, hidden: Mat<f64>) -> Self {
        let h = config.hidden;
        let scaled_identity = |x: f64| Mat::from_fn(h, h, |i, j| if i == j { x } else { 0.0 });
        Self {
            config,
            width,
            hidden,
            statistics: match config.recursion {
                Recursion::Woodbury => Statistics::Inverse(scaled_identity(1.0 / config.lambda)),
                Recursion::Normal => Statistics::Sums {
                    gram: scaled_identity(config.lambda),
                    targets: Mat::zeros(h, 0),
                },
            },
            weights: Mat::zeros(h, 0),
            images: 0,
            finished: true,
        }
    }

    /// The settings.
    pub fn config(&self) -> &PrimalConfig {
        &self.config
    }

    /// Width of the features.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of classes so far.
    pub fn classes(&self) -> usize {
        self.weights.ncols()
    }

    /// Number of images so far.
    pub fn images(&self) -> u64 {
        self.images
    }

    /// Memory of the state in bytes: the hidden layer, the statistics of the data and the weights.
    pub fn bytes_kept(&self) -> u64 {
        let statistics = match &self.statistics {
            Statistics::Inverse(inverse) => size_in_bytes(inverse),
            Statistics::Sums { gram, targets } => size_in_bytes(gram) + size_in_bytes(targets),
        };
        size_in_bytes(&self.hidden) + statistics + size_in_bytes(&self.weights)
    }

    /// Returns the weights `W`, row-major.
    ///
    /// # Shapes
    /// - output: `[hidden, classes]`
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
    /// labels that are not below `classes`, and fewer classes than before. The regression is
    /// unchanged after these errors, but unusable after [`AnalyticError::NotPositiveDefinite`].
    pub fn update<T: Copy + Into<f64>>(
        &mut self,
        features: &[T],
        labels: &[usize],
        classes: usize,
    ) -> Result<(), AnalyticError> {
        let features = check_training_batch(features, labels, self.width, self.classes(), classes)?;
        pad_columns(&mut self.weights, classes);
        if let Statistics::Sums { targets, .. } = &mut self.statistics {
            pad_columns(targets, classes);
            self.finished = false;
        }
        // Woodbury's identity solves a system of the size of the batch, which should not exceed
        // that of the regression.
        let batch = BATCH.min(self.weights.nrows());
        for (features, labels) in features
            .chunks(batch * self.width)
            .zip(labels.chunks(batch))
        {
            let inputs = self.hidden_activations(features);
            self.update_batch(&inputs, labels)?;
        }
        self.images += labels.len() as u64;
        Ok(())
    }

    /// Solves the normal equations for the weights. Does nothing with [`Recursion::Woodbury`].
    ///
    /// # Errors
    /// [`AnalyticError::NotPositiveDefinite`] when the Cholesky factorisation fails.
    pub fn finish(&mut self) -> Result<(), AnalyticError> {
        if let (Statistics::Sums { gram, targets }, false) = (&self.statistics, self.finished) {
            let factor = gram
                .llt(Side::Lower)
                .map_err(|_| self.not_positive_definite("ΣΦᵀΦ + λI"))?;
            self.weights = factor.solve(targets);
            self.finished = true;
        }
        Ok(())
    }

    /// Returns the scores `Φ·W` of images, row-major.
    ///
    /// # Shapes
    /// - `features`: `[n, width]`, row-major
    /// - output: `[n, classes]`
    ///
    /// # Errors
    /// [`AnalyticError`] for features of another width or with a value that is not finite, before
    /// the first update, and between an update and [`finish`](Self::finish).
    pub fn scores<T: Copy + Into<f64>>(&self, features: &[T]) -> Result<Vec<f64>, AnalyticError> {
        if self.images == 0 {
            return Err(AnalyticError::NoData);
        }
        if !self.finished {
            return Err(AnalyticError::Unfinished);
        }
        let features = check_queries(features, self.width)?;
        let mut scores = Vec::with_capacity(features.len() / self.width * self.classes());
        for features in features.chunks(BATCH * self.width) {
            let inputs = self.hidden_activations(features);
            scores.extend(row_major((inputs.transpose() * &self.weights).as_ref()));
        }
        Ok(scores)
    }

    /// Returns the hidden activations `Φᵀ`, one column per image.
    fn hidden_activations(&self, features: &[f64]) -> Mat<f64> {
        let rows = features.len() / self.width;
        let features = MatRef::from_column_major_slice(features, self.width, rows);
        let mut inputs = &self.hidden * features;
        for image in 0..rows {
            inputs
                .col_mut(image)
                .iter_mut()
                .for_each(|x| *x = x.max(0.0));
        }
        inputs
    }

    /// Updates the statistics, and with Woodbury's identity the weights, by one batch.
    fn update_batch(&mut self, inputs: &Mat<f64>, labels: &[usize]) -> Result<(), AnalyticError> {
        let par = get_global_parallelism();
        let not_positive_definite = self.not_positive_definite("I + ΦRΦᵀ");
        match &mut self.statistics {
            Statistics::Sums { gram, targets } => {
                // Only the lower triangle is computed, which is all that the solver reads.
                matmul(
                    gram.as_mut(),
                    BlockStructure::TriangularLower,
                    Accum::Add,
                    inputs,
                    BlockStructure::Rectangular,
                    inputs.transpose(),
                    BlockStructure::Rectangular,
                    1.0,
                    par,
                );
                // ΦᵀY for one-hot Y adds each image's activations to the column of its label.
                for (image, label) in labels.iter().enumerate() {
                    let mut sum = targets.col_mut(*label);
                    sum += inputs.col(image);
                }
            }
            Statistics::Inverse(inverse) => {
                // Let U = RΦᵀ and LLᵀ = I + ΦU. Then R ← R − VVᵀ with V = UL⁻ᵀ, which stays
                // symmetric. The new RΦᵀ is U(LLᵀ)⁻¹, which the update of W uses.
                let mut u = &*inverse * inputs;
                let mut inner = inputs.transpose() * &u;
                for i in 0..labels.len() {
                    inner[(i, i)] += 1.0;
                }
                let factor = inner.llt(Side::Lower).map_err(|_| not_positive_definite)?;
                let mut residual = one_hot(labels, self.weights.ncols());
                residual -= inputs.transpose() * &self.weights;
                factor.solve_in_place(residual.as_mut());
                self.weights += &u * &residual;
                factor
                    .L()
                    .solve_lower_triangular_in_place(u.transpose_mut());
                matmul(
                    inverse.as_mut(),
                    BlockStructure::TriangularLower,
                    Accum::Add,
                    &u,
                    BlockStructure::Rectangular,
                    u.transpose(),
                    BlockStructure::Rectangular,
                    -1.0,
                    par,
                );
                symmetrize(inverse.as_mut());
            }
        }
        Ok(())
    }

    fn not_positive_definite(&self, matrix: &'static str) -> AnalyticError {
        AnalyticError::NotPositiveDefinite {
            matrix,
            lambda: self.config.lambda,
        }
    }

    /// Writes the state to a safetensors file, atomically.
    ///
    /// The tensors, all `f64`, are `hidden` `[e, h]`, `weights` `[h, classes]`, and either
    /// `inverse` or `gram` and `targets` `[h, classes]`. Symmetric matrices are stored as lower
    /// triangles row by row.
    ///
    /// # Errors
    /// [`AnalyticError::Io`] when the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), AnalyticError> {
        let (h, classes) = (self.weights.nrows(), self.classes());
        let weights = row_major(self.weights.as_ref());
        let hidden = row_major(self.hidden.transpose());
        let mut tensors = vec![
            ("weights", TensorData::f64(&[h, classes], &weights)),
            ("hidden", TensorData::f64(&[self.width, h], &hidden)),
        ];
        let triangle = |matrix: &Mat<f64>| {
            let packed = pack_lower(matrix.as_ref());
            TensorData::f64(&[packed.len()], &packed)
        };
        match &self.statistics {
            Statistics::Inverse(inverse) => tensors.push(("inverse", triangle(inverse))),
            Statistics::Sums { gram, targets } => {
                tensors.push(("gram", triangle(gram)));
                let targets = row_major(targets.as_ref());
                tensors.push(("targets", TensorData::f64(&[h, classes], &targets)));
            }
        }
        let state = State {
            config: self.config,
            width: self.width,
            classes,
            images: self.images,
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
        let (config, width, classes) = (state.config, state.width, state.classes);
        config
            .check(width)
            .map_err(|e| stored.corrupt(e.to_string()))?;
        let h = config.hidden;
        let weights = tensors.f64("weights", Some(vec![h, classes]))?;
        let hidden = tensors.f64("hidden", Some(vec![width, h]))?;
        let hidden = MatRef::from_column_major_slice(&hidden, h, width).to_owned();
        let mut triangle = |name| {
            let packed = tensors.f64(name, packed_len(h).map(|n| vec![n]))?;
            let matrix = unpack_lower(&packed, h);
            // A necessary condition only: a full test would cost a factorisation.
            match (0..h).all(|i| matrix[(i, i)] > 0.0) {
                true => Ok(matrix),
                false => Err(stored.corrupt(format!("tensor `{name}` is not positive definite"))),
            }
        };
        let statistics = match config.recursion {
            Recursion::Woodbury => {
                let mut inverse = triangle("inverse")?;
                symmetrize(inverse.as_mut());
                Statistics::Inverse(inverse)
            }
            Recursion::Normal => {
                let gram = triangle("gram")?;
                let targets = tensors.f64("targets", Some(vec![h, classes]))?;
                let targets = MatRef::from_row_major_slice(&targets, h, classes).to_owned();
                Statistics::Sums { gram, targets }
            }
        };
        tensors.finish()?;
        if config.recursion == Recursion::Woodbury && !state.finished {
            return Err(
                stored.corrupt("`finished` is false, which a recursion by Woodbury never is")
            );
        }
        Ok(Self {
            config,
            width,
            hidden,
            statistics,
            weights: MatRef::from_row_major_slice(&weights, h, classes).to_owned(),
            images: state.images,
            finished: state.finished,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Reference, assert_close, features, reference};
    use super::*;

    fn published(reference: &Reference, recursion: Recursion) -> PrimalRail {
        let config = PrimalConfig {
            hidden: reference.hidden_width,
            lambda: reference.lambda_primal,
            recursion,
            ..Default::default()
        };
        PrimalRail::with_hidden(config, reference.width, &reference.hidden).unwrap()
    }

    #[test]
    fn weights_and_scores_of_three_tasks_match_scikit_learn() {
        let reference = reference();
        for recursion in [Recursion::Woodbury, Recursion::Normal] {
            let mut rail = published(&reference, recursion);
            for task in &reference.tasks {
                rail.update(&task.features, &task.labels, task.classes)
                    .unwrap();
                rail.finish().unwrap();
                assert_close(&rail.weights().unwrap(), &task.primal_weights, 1e-8);
                assert_close(
                    &rail.scores(&reference.tests).unwrap(),
                    &task.primal_scores,
                    1e-8,
                );
            }
            assert_eq!(rail.images(), 31);
            assert_eq!(rail.classes(), 8);
        }
    }

    /// More images than hidden units, so that an update takes several batches.
    #[test]
    fn the_result_does_not_depend_on_the_batches_or_the_update_rule() {
        let (width, n, classes) = (7, 260, 5);
        let x = features(n, width, 3);
        let y: Vec<usize> = (0..n).map(|i| (i * 7 + i / 3) % classes).collect();
        let config = |recursion| PrimalConfig {
            hidden: 40,
            lambda: 0.01,
            recursion,
            ..Default::default()
        };
        let mut joint = PrimalRail::new(config(Recursion::Normal), width).unwrap();
        joint.update(&x, &y, classes).unwrap();
        joint.finish().unwrap();
        let expected = joint.weights().unwrap();
        for recursion in [Recursion::Woodbury, Recursion::Normal] {
            for (batch, backwards) in [(n, false), (1, false), (13, true), (64, true)] {
                let mut rail = PrimalRail::new(config(recursion), width).unwrap();
                let mut starts: Vec<usize> = (0..n).step_by(batch).collect();
                if backwards {
                    starts.reverse();
                }
                for start in starts {
                    let end = (start + batch).min(n);
                    rail.update(&x[start * width..end * width], &y[start..end], classes)
                        .unwrap();
                }
                rail.finish().unwrap();
                assert_close(&rail.weights().unwrap(), &expected, 1e-8);
            }
        }
    }

    #[test]
    fn the_inverse_stays_symmetric_and_accurate() {
        let (width, n) = (9, 300);
        let config = PrimalConfig {
            hidden: width,
            lambda: 1e-3,
            ..Default::default()
        };
        // The identity: positive features pass the ReLU unchanged.
        let identity: Vec<f64> = (0..width * width)
            .map(|i| f64::from(u8::from(i % (width + 1) == 0)))
            .collect();
        let x: Vec<f64> = features(n, width, 5).iter().map(|x| x.abs()).collect();
        let mut rail = PrimalRail::with_hidden(config, width, &identity).unwrap();
        for row in 0..n {
            rail.update(&x[row * width..][..width], &[row % 2], 2)
                .unwrap();
        }
        let Statistics::Inverse(inverse) = &rail.statistics else {
            panic!("Woodbury keeps an inverse")
        };
        let x = MatRef::from_row_major_slice(&x, n, width);
        let mut gram = x.transpose() * x;
        for i in 0..width {
            gram[(i, i)] += 1e-3;
        }
        let product = inverse * &gram;
        for i in 0..width {
            for j in 0..width {
                assert_eq!(inverse[(i, j)], inverse[(j, i)]);
                let expected = f64::from(u8::from(i == j));
                assert!((product[(i, j)] - expected).abs() < 1e-8, "{i} {j}");
            }
        }
    }

    #[test]
    fn hidden_layers_are_uniform_and_depend_on_the_seed() {
        let layer = |seed| {
            let config = PrimalConfig {
                hidden: 500,
                seed,
                ..Default::default()
            };
            row_major(PrimalRail::new(config, 64).unwrap().hidden.as_ref())
        };
        let values = layer(1);
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|x| x * x).sum::<f64>() / n;
        // Five standard errors: 0.072/√32000, and at most √2·σ²/√32000.
        assert!(mean.abs() < 2.1e-3, "{mean}");
        assert!((variance * 192.0 - 1.0).abs() < 0.04, "{variance}");
        assert!(values.iter().all(|x| x.abs() <= 0.125));
        assert_eq!(values, layer(1));
        assert_ne!(values, layer(2));
    }

    #[test]
    fn updates_after_a_load_give_the_same_bits() {
        let reference = reference();
        let folder = tempfile::tempdir().unwrap();
        for (name, recursion) in [("w", Recursion::Woodbury), ("n", Recursion::Normal)] {
            let (path, again) = (folder.path().join(name), folder.path().join("again"));
            let mut rail = published(&reference, recursion);
            let [first, second, _] = &reference.tasks[..] else {
                panic!("three tasks")
            };
            rail.update(&first.features, &first.labels, first.classes)
                .unwrap();
            rail.save(&path).unwrap();
            let mut loaded = PrimalRail::load(&path).unwrap();
            loaded.save(&again).unwrap();
            assert_eq!(
                std::fs::read(&path).unwrap(),
                std::fs::read(&again).unwrap()
            );
            for rail in [&mut rail, &mut loaded] {
                rail.update(&second.features, &second.labels, second.classes)
                    .unwrap();
                rail.finish().unwrap();
            }
            assert_eq!(rail.weights().unwrap(), loaded.weights().unwrap());
            assert_eq!(
                rail.scores(&reference.tests).unwrap(),
                loaded.scores(&reference.tests).unwrap()
            );
            assert_eq!(rail.images(), loaded.images());
        }
    }

    #[test]
    fn invalid_input_leaves_the_regression_unchanged() {
        let config = PrimalConfig {
            hidden: 8,
            recursion: Recursion::Normal,
            ..Default::default()
        };
        let mut rail = PrimalRail::new(config, 2).unwrap();
        assert!(matches!(
            rail.scores(&[1.0, 0.0]),
            Err(AnalyticError::NoData)
        ));
        rail.update(&[1.0f32, 0.0, 0.0, 1.0], &[0, 1], 2).unwrap();
        assert!(matches!(
            rail.scores(&[1.0, 0.0]),
            Err(AnalyticError::Unfinished)
        ));
        assert!(matches!(rail.weights(), Err(AnalyticError::Unfinished)));
        rail.finish().unwrap();
        let before = rail.weights().unwrap();
        let mut refused = |features: &[f32], labels: &[usize], classes, why: &str| {
            let message = rail
                .update(features, labels, classes)
                .unwrap_err()
                .to_string();
            assert!(message.contains(why), "{message}");
        };
        refused(&[], &[], 2, "at least one row");
        refused(&[1.0], &[0], 2, "1 values are not 1 rows of 2");
        refused(
            &[1.0, 0.0],
            &[2],
            2,
            "the label of row 0 is 2: there are 2 classes",
        );
        refused(&[1.0, 0.0], &[0], 1, "1 classes after 2");
        refused(&[1.0, f32::NAN], &[0], 2, "row 0, column 1 is not finite");
        assert_eq!(rail.weights().unwrap(), before);
        assert!(
            rail.scores(&[1.0, 0.0, 1.0])
                .unwrap_err()
                .to_string()
                .contains("rows of 2")
        );
        assert_eq!(rail.bytes_kept(), 8 * (2 * 8 + 8 * 8 + 2 * 8 * 2));
    }

    #[test]
    fn invalid_settings_are_refused() {
        let with = |config: PrimalConfig, width, why: &str| {
            let message = PrimalRail::new(config, width).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        };
        let default = PrimalConfig::default;
        for lambda in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            with(
                PrimalConfig {
                    lambda,
                    ..default()
                },
                4,
                "lambda",
            );
        }
        with(
            PrimalConfig {
                hidden: 0,
                ..default()
            },
            4,
            "hidden is 0",
        );
        with(
            PrimalConfig {
                hidden: 65_537,
                ..default()
            },
            4,
            "at most 65536",
        );
        with(default(), 0, "feature width is 0");
        let config = PrimalConfig {
            hidden: 3,
            ..default()
        };
        assert!(PrimalRail::with_hidden(config, 2, &[0.0f32; 5]).is_err());
        assert!(PrimalRail::with_hidden(config, 2, &[f64::NAN; 6]).is_err());
        assert!(toml::from_str::<PrimalConfig>("lamda = 0.1").is_err());
        let read: PrimalConfig = toml::from_str("recursion = \"normal\"").unwrap();
        assert_eq!(
            read,
            PrimalConfig {
                recursion: Recursion::Normal,
                ..default()
            }
        );
    }

    #[test]
    fn the_cheaper_recursion_depends_on_the_number_of_images() {
        // 16 images of each of 110 classes, and SUN397 whole.
        assert_eq!(
            Recursion::cheaper(15_000, 1_760, 1_100),
            Recursion::Woodbury
        );
        assert_eq!(Recursion::cheaper(15_000, 15_880, 1_100), Recursion::Normal);
    }
}

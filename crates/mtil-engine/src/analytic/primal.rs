//! The primal regression: a random hidden layer and a recursive ridge regression.

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
    file::{self, Numbers, Stored},
    matrix::{
        at_least_one, bytes, finite, images, mirror, one_hot, pack, packed_len, positive, queries,
        row_major, unpack, widen,
    },
};

/// The widest hidden layer. The state holds the square of the width: 34 GB here.
const WIDEST: usize = 65_536;
/// Images of one step of an update: bounds the memory of the hidden layer's outputs.
const STEP: usize = 1024;
const KIND: &str = "primal";

/// How the data of a task enters the regression. The result is the same to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recursion {
    /// Keeps `R = (ΣΦᵀΦ + λI)⁻¹` and changes it with every batch (Woodbury's identity; the paper's
    /// Theorem 1). About `1.5·n·h²` multiplications for `n` images; weights are up to date after
    /// every batch.
    #[default]
    Woodbury,
    /// Keeps `ΣΦᵀΦ + λI` and `ΣΦᵀY` and solves once a task. About `n·h²/2 + h³/6 + c·h²`
    /// multiplications for `c` classes, and the same error however small `λ` is. Solving needs a
    /// second copy of the matrix for a moment.
    Normal,
}

impl Recursion {
    /// The one with fewer multiplications for tasks of `images` images and `classes` classes in
    /// all.
    pub fn cheaper(hidden: usize, images: usize, classes: usize) -> Self {
        match images > hidden / 6 + classes {
            true => Self::Normal,
            false => Self::Woodbury,
        }
    }
}

/// Settings of [`PrimalRail`]. Defaults are those of the published `configs/analytic_clip.yaml`
/// (ViT-B/16, 16 images a class), where one is named.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrimalConfig {
    /// Width `h` of the hidden layer. Default 15,000 (`hidden_dim`).
    pub hidden: usize,
    /// The regularisation `λ`. Default 0.1 (`regularization`).
    pub lambda: f64,
    /// Seed of the hidden layer. Default 42 (`seed`).
    pub seed: u64,
    /// How data enters.
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
        at_least_one("feature width", width)?;
        positive("lambda", self.lambda)?;
        at_least_one("hidden", self.hidden)?;
        if self.hidden > WIDEST {
            return Err(AnalyticError::Setting {
                name: "hidden",
                value: self.hidden.to_string(),
                must: "at most 65536: the state holds its square",
            });
        }
        Ok(())
    }
}

/// What is kept of the data.
#[derive(Debug, Clone)]
enum Kept {
    /// `R`, whole.
    Inverse(Mat<f64>),
    /// The lower triangle of `ΣΦᵀΦ + λI`, and `ΣΦᵀY`.
    Sums { gram: Mat<f64>, targets: Mat<f64> },
}

/// Ridge regression of one-hot labels on `Φ = ReLU(X·H)`, `H` random and fixed:
///
/// ```text
/// W = (ΣΦᵀΦ + λI)⁻¹ ΣΦᵀY            over all images of all tasks
/// ```
///
/// computed task by task from `R = (ΣΦᵀΦ + λI)⁻¹` and `W` alone (published code: `primal_RAIL.py`,
/// `analytic_adaption`):
///
/// ```text
/// R ← R − RΦᵀ (I + ΦRΦᵀ)⁻¹ ΦR        W ← W + RΦᵀ (Y − ΦW)
/// ```
///
/// Columns of new classes start as zeros, which is exact: no earlier image has their label. The
/// result is that of all images at once, whatever the order and the size of the batches.
///
/// With the published width of 15,000 the state is 1.8 GB in memory (`8·h²` bytes) and 0.9 GB in a
/// file.
#[derive(Debug, Clone)]
pub struct PrimalRail {
    config: PrimalConfig,
    width: usize,
    /// `Hᵀ`, of shape `[h, e]`.
    hidden: Mat<f64>,
    kept: Kept,
    /// `[h, classes]`.
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
    /// An empty regression for features of `width` numbers, its hidden layer drawn from the seed:
    /// uniform in `±1/√e` for `e` features, as the published code has it (the default of
    /// `torch.nn.Linear` without bias). The generator differs, so the numbers do.
    ///
    /// # Errors
    /// For a width or `λ` out of range.
    pub fn new(config: PrimalConfig, width: usize) -> Result<Self, AnalyticError> {
        config.check(width)?;
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        // 53 bits, above zero and below one.
        let mut uniform = || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let bound = 1.0 / (width as f64).sqrt();
        // In the order of the rows of H, so that it does not depend on how H is stored.
        let values: Vec<f64> = (0..width * config.hidden)
            .map(|_| bound * (2.0 * uniform() - 1.0))
            .collect();
        let hidden = MatRef::from_column_major_slice(&values, config.hidden, width).to_owned();
        Ok(Self::empty(config, width, hidden))
    }

    /// The same with a given hidden layer `H`, row-major `[width, config.hidden]`.
    ///
    /// # Errors
    /// As for [`new`](Self::new), and for a layer of another size or with a value that is not finite.
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
        let values = finite("hidden layer", hidden, config.hidden)?;
        let hidden = MatRef::from_column_major_slice(&values, config.hidden, width).to_owned();
        Ok(Self::empty(config, width, hidden))
    }

    fn empty(config: PrimalConfig, width: usize, hidden: Mat<f64>) -> Self {
        let h = config.hidden;
        let scaled = |x: f64| Mat::from_fn(h, h, |i, j| if i == j { x } else { 0.0 });
        Self {
            config,
            width,
            hidden,
            kept: match config.recursion {
                Recursion::Woodbury => Kept::Inverse(scaled(1.0 / config.lambda)),
                Recursion::Normal => Kept::Sums {
                    gram: scaled(config.lambda),
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

    /// Numbers of a feature.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Classes so far.
    pub fn classes(&self) -> usize {
        self.weights.ncols()
    }

    /// Images so far.
    pub fn images(&self) -> u64 {
        self.images
    }

    /// Bytes of the numbers in memory: the hidden layer, what is kept of the data, and the weights.
    pub fn bytes_kept(&self) -> u64 {
        let kept = match &self.kept {
            Kept::Inverse(inverse) => bytes(inverse),
            Kept::Sums { gram, targets } => bytes(gram) + bytes(targets),
        };
        bytes(&self.hidden) + kept + bytes(&self.weights)
    }

    /// The weights `W`, row-major `[h, classes]`.
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
    /// `classes`, and fewer classes than before; the regression is then unchanged. With
    /// [`AnalyticError::NotPositiveDefinite`] it is spoilt.
    pub fn update<T: Copy + Into<f64>>(
        &mut self,
        features: &[T],
        labels: &[usize],
        classes: usize,
    ) -> Result<(), AnalyticError> {
        let features = images(features, labels, self.width, self.classes(), classes)?;
        widen(&mut self.weights, classes);
        if let Kept::Sums { targets, .. } = &mut self.kept {
            widen(targets, classes);
            self.finished = false;
        }
        // A step of more images than inputs would solve a system larger than the regression itself.
        let step = STEP.min(self.weights.nrows());
        for (features, labels) in features.chunks(step * self.width).zip(labels.chunks(step)) {
            let inputs = self.project(features);
            self.take_in(&inputs, labels)?;
        }
        self.images += labels.len() as u64;
        Ok(())
    }

    /// Solves for the weights where that has to be done once a task; no effect otherwise.
    ///
    /// # Errors
    /// When the matrix is not positive definite to rounding.
    pub fn finish(&mut self) -> Result<(), AnalyticError> {
        if let (Kept::Sums { gram, targets }, false) = (&self.kept, self.finished) {
            let factor = gram
                .llt(Side::Lower)
                .map_err(|_| self.indefinite("ΣΦᵀΦ + λI"))?;
            self.weights = factor.solve(targets);
            self.finished = true;
        }
        Ok(())
    }

    /// The scores `Φ·W` of images, row-major `[n, classes]`; `features` is row-major `[n, width]`.
    ///
    /// # Errors
    /// For features of another width or with a value that is not finite, before the first update,
    /// and between an update and [`finish`](Self::finish).
    pub fn scores<T: Copy + Into<f64>>(&self, features: &[T]) -> Result<Vec<f64>, AnalyticError> {
        if self.images == 0 {
            return Err(AnalyticError::NoData);
        }
        if !self.finished {
            return Err(AnalyticError::Unfinished);
        }
        let features = queries(features, self.width)?;
        let mut scores = Vec::with_capacity(features.len() / self.width * self.classes());
        for features in features.chunks(STEP * self.width) {
            let inputs = self.project(features);
            scores.extend(row_major((inputs.transpose() * &self.weights).as_ref()));
        }
        Ok(scores)
    }

    /// `Φᵀ`, a column for each image.
    fn project(&self, features: &[f64]) -> Mat<f64> {
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

    fn take_in(&mut self, inputs: &Mat<f64>, labels: &[usize]) -> Result<(), AnalyticError> {
        let par = get_global_parallelism();
        let indefinite = self.indefinite("I + ΦRΦᵀ");
        match &mut self.kept {
            Kept::Sums { gram, targets } => {
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
                for (image, label) in labels.iter().enumerate() {
                    let mut sum = targets.col_mut(*label);
                    sum += inputs.col(image);
                }
            }
            Kept::Inverse(inverse) => {
                // With U = RΦᵀ and LLᵀ = I + ΦU: R ← R − VVᵀ, V = UL⁻ᵀ, which stays symmetric; and
                // the new RΦᵀ is U(LLᵀ)⁻¹.
                let mut u = &*inverse * inputs;
                let mut inner = inputs.transpose() * &u;
                for i in 0..labels.len() {
                    inner[(i, i)] += 1.0;
                }
                let factor = inner.llt(Side::Lower).map_err(|_| indefinite)?;
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
                mirror(inverse.as_mut());
            }
        }
        Ok(())
    }

    fn indefinite(&self, matrix: &'static str) -> AnalyticError {
        AnalyticError::NotPositiveDefinite {
            matrix,
            lambda: self.config.lambda,
        }
    }

    /// Writes the whole state to a safetensors file, whole or not at all: `hidden` `[e, h]`,
    /// `weights` `[h, classes]`, and `inverse`, or `gram` and `targets`; symmetric matrices as
    /// lower triangles row by row. All `f64`.
    ///
    /// # Errors
    /// Whatever writing the file meets.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), AnalyticError> {
        let (h, classes) = (self.weights.nrows(), self.classes());
        let weights = row_major(self.weights.as_ref());
        let hidden = row_major(self.hidden.transpose());
        let mut tensors = vec![
            ("weights", Numbers::f64(&[h, classes], &weights)),
            ("hidden", Numbers::f64(&[self.width, h], &hidden)),
        ];
        let triangle = |matrix: &Mat<f64>| {
            let packed = pack(matrix.as_ref());
            Numbers::f64(&[packed.len()], &packed)
        };
        match &self.kept {
            Kept::Inverse(inverse) => tensors.push(("inverse", triangle(inverse))),
            Kept::Sums { gram, targets } => {
                tensors.push(("gram", triangle(gram)));
                let targets = row_major(targets.as_ref());
                tensors.push(("targets", Numbers::f64(&[h, classes], &targets)));
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

    /// Reads what [`save`](Self::save) wrote. Going on from it gives the same numbers as never
    /// having stopped.
    ///
    /// # Errors
    /// Anything but a whole file of the known version whose metadata and tensors agree. The error
    /// names the file and the tensor.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, AnalyticError> {
        let stored = Stored::read(path.as_ref())?;
        let (state, mut tensors) = stored.open::<State>(KIND)?;
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
            let matrix = unpack(&packed, h);
            match (0..h).all(|i| matrix[(i, i)] > 0.0) {
                true => Ok(matrix),
                false => Err(stored.corrupt(format!("tensor `{name}` is not positive definite"))),
            }
        };
        let kept = match config.recursion {
            Recursion::Woodbury => {
                let mut inverse = triangle("inverse")?;
                mirror(inverse.as_mut());
                Kept::Inverse(inverse)
            }
            Recursion::Normal => {
                let gram = triangle("gram")?;
                let targets = tensors.f64("targets", Some(vec![h, classes]))?;
                let targets = MatRef::from_row_major_slice(&targets, h, classes).to_owned();
                Kept::Sums { gram, targets }
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
            kept,
            weights: MatRef::from_row_major_slice(&weights, h, classes).to_owned(),
            images: state.images,
            finished: state.finished,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Reference, close, features, reference};
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
    fn three_tasks_give_scikit_learns_weights_and_scores() {
        let reference = reference();
        for recursion in [Recursion::Woodbury, Recursion::Normal] {
            let mut rail = published(&reference, recursion);
            for task in &reference.tasks {
                rail.update(&task.features, &task.labels, task.classes)
                    .unwrap();
                rail.finish().unwrap();
                close(&rail.weights().unwrap(), &task.primal_weights, 1e-8);
                close(
                    &rail.scores(&reference.tests).unwrap(),
                    &task.primal_scores,
                    1e-8,
                );
            }
            assert_eq!(rail.images(), 31);
            assert_eq!(rail.classes(), 8);
        }
    }

    /// Many images in a wide layer, so that there are several steps: batches in another order, of
    /// other sizes.
    #[test]
    fn order_and_size_of_batches_and_the_recursion_do_not_matter() {
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
                close(&rail.weights().unwrap(), &expected, 1e-8);
            }
        }
    }

    #[test]
    fn the_inverse_stays_symmetric_and_an_inverse() {
        let (width, n) = (9, 300);
        let config = PrimalConfig {
            hidden: width,
            lambda: 1e-3,
            ..Default::default()
        };
        // A hidden layer that lets positive features through.
        let identity: Vec<f64> = (0..width * width)
            .map(|i| f64::from(u8::from(i % (width + 1) == 0)))
            .collect();
        let x: Vec<f64> = features(n, width, 5).iter().map(|x| x.abs()).collect();
        let mut rail = PrimalRail::with_hidden(config, width, &identity).unwrap();
        for row in 0..n {
            rail.update(&x[row * width..][..width], &[row % 2], 2)
                .unwrap();
        }
        let Kept::Inverse(inverse) = &rail.kept else {
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
    fn hidden_layers_have_the_stated_distribution_and_follow_the_seed() {
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
    fn a_saved_regression_goes_on_to_the_same_bits() {
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
    fn bad_input_leaves_the_regression_as_it_was() {
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
    fn impossible_settings_are_refused() {
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

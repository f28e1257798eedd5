//! Analytic learning (RAIL): recursive ridge regression on features of the pretrained image tower.

use std::path::Path;

use clip_model::Clip;
use serde::{Deserialize, Serialize};

use super::{
    context::{FitProgress, MethodOutline, Phase, RunContext, TaskContext, at_least_one, in_range},
    hooks::{Mechanism, first_pairs},
    state::{MechanismState, RunState},
};
use crate::{
    analytic::{AnalyticError, DualConfig, DualRail, Fusion, PrimalConfig, PrimalRail, Recursion},
    error::RunError,
};
use mtil_data::{
    seeds,
    suite::{Classification, Suite, Task},
};
use mtil_eval::{
    batch::BatchError,
    eval::{LabelSpace, Scorer, to_host},
    metrics::Kept,
};

/// Ridge regression from image features of the pretrained tower to the classes of all tasks so far,
/// fused with the zero-shot scores (RAIL, NeurIPS 2024, arXiv 2406.18868;
/// linghan1997/Regression-based-Analytic-Incremental-Learning). The CLIP is frozen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Analytic {
    /// Primal form with a random hidden layer, or dual form with a kernel.
    pub kind: AnalyticKind,
    /// Width of the random hidden layer.
    pub hidden: usize,
    /// Ridge penalty: weight of the squared norm of the regression's weights.
    pub ridge: f64,
    /// Scale of the kernel `exp(−gamma‖x − y‖²)`.
    pub gamma: f64,
    /// Share of the regression in the fused scores.
    pub fusion: f64,
    /// Applies a random crop to training images (reference implementation), in place of the
    /// preprocessing of evaluation.
    pub augment: bool,
}

/// The two forms of the regression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnalyticKind {
    /// Ridge regression on a random layer with ReLU.
    Primal,
    /// Kernel ridge regression with a radial basis function on all training features, which are
    /// stored.
    Dual,
}

impl Default for Analytic {
    fn default() -> Self {
        Self {
            kind: AnalyticKind::Primal,
            hidden: 15_000,
            ridge: 0.1,
            gamma: 0.1,
            fusion: 0.8,
            augment: true,
        }
    }
}

const FILE: &str = "regression.safetensors";

impl MechanismState for Regression {
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        None
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        if self.classes() == 0 {
            return Ok(());
        }
        Ok(self.write(&folder.join(FILE))?)
    }

    fn bytes(&self, _: &Clip) -> u64 {
        match self.classes() {
            0 => 0,
            _ => self.bytes_kept(),
        }
    }

    fn kept(&self) -> Kept {
        match self {
            Self::Primal(_) => Kept::Statistics,
            // Those of every training image.
            Self::Dual(_) => Kept::Features,
        }
    }
}

impl Mechanism for Analytic {
    fn key(&self) -> &'static str {
        "analytic"
    }

    fn check(&self, method: &MethodOutline) -> Result<(), String> {
        at_least_one("analytic.hidden", self.hidden)?;
        for (key, value) in [("ridge", self.ridge), ("gamma", self.gamma)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("`analytic.{key}` must be above 0, it is {value}"));
            }
        }
        in_range("analytic.fusion", self.fusion, 0.0, 1.0)?;
        if method.uses_reference || method.per_task {
            return Err(concat!(
                "`analytic` trains no weight: `cd`, `map`, `hold_means` and `per_task` ",
                "have no meaning with it"
            )
            .to_owned());
        }
        method.exclusive("analytic", &[])
    }

    fn trains_weights(&self) -> bool {
        false
    }

    fn initial_state(
        &self,
        run: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        let width = run.checkpoint.config.projection_dim;
        let regression = Regression::new(self, run.suite, width, run.seed)?;
        Ok(Some(Box::new(regression)))
    }

    fn load(
        &self,
        folder: &Path,
        _: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(Box::new(Regression::load(self, &path)?)))
    }

    fn unlearnable<'a>(&self, suite: &'a Suite) -> Option<(&'a Task, &'static str)> {
        first_pairs(suite).map(|task| (task, NEEDS_CLASSES))
    }

    fn fit(
        &self,
        task: &TaskContext<'_>,
        state: &mut RunState,
        progress: &mut dyn FitProgress,
    ) -> Result<bool, RunError> {
        let Some(mut regression) = state.take::<Regression>() else {
            return Ok(false);
        };
        regression.fit(self, task, progress)?;
        state.set(regression);
        Ok(true)
    }

    fn scorer<'a>(&'a self, state: &'a RunState, suite: &'a Suite) -> Option<Box<dyn Scorer + 'a>> {
        Some(Box::new(FusedAnswer {
            regression: state.get::<Regression>()?,
            suite,
            fusion: self.fusion,
        }))
    }
}

/// Why image-caption pairs cannot be learned.
const NEEDS_CLASSES: &str = "a ridge regression predicts classes";

/// Images per batch (`batch_size` of the published `configs/analytic_clip.yaml`).
const BATCH: usize = 128;

/// Largest number of training images of a kernel: 13 GB.
const MAX_KERNEL_IMAGES: usize = 40_000;

/// The regression on the tasks so far.
pub(crate) enum Regression {
    Primal(Box<PrimalRail>),
    Dual(Box<DualRail>),
}

impl Regression {
    /// Creates an untrained regression on features of `width` values.
    fn new(settings: &Analytic, suite: &Suite, width: usize, seed: u64) -> Result<Self, RunError> {
        let images = suite.tasks.iter().map(|t| t.training_images().len()).max();
        let classes = suite.tasks.iter().map(Task::class_count).sum();
        Ok(match settings.kind {
            AnalyticKind::Primal => {
                let config = PrimalConfig {
                    hidden: settings.hidden,
                    lambda: settings.ridge,
                    recursion: Recursion::cheaper(settings.hidden, images.unwrap_or(0), classes),
                    seed: seeds::derive(seed, &[seeds::HIDDEN_LAYER]),
                };
                Self::Primal(Box::new(PrimalRail::new(config, width)?))
            }
            AnalyticKind::Dual => {
                let all = suite.tasks.iter().map(|t| t.training_images().len());
                let all: usize = all.sum();
                if all > MAX_KERNEL_IMAGES {
                    return Err(RunError::TooManyToKeep {
                        images: all,
                        gigabytes: 8.0 * (all as f64).powi(2) / 1e9,
                    });
                }
                let config = DualConfig {
                    gamma: settings.gamma,
                    lambda: settings.ridge,
                };
                Self::Dual(Box::new(DualRail::new(config, width)?))
            }
        })
    }

    /// Loads a regression from a file.
    fn load(settings: &Analytic, path: &Path) -> Result<Self, AnalyticError> {
        Ok(match settings.kind {
            AnalyticKind::Primal => Self::Primal(Box::new(PrimalRail::load(path)?)),
            AnalyticKind::Dual => Self::Dual(Box::new(DualRail::load(path)?)),
        })
    }

    /// Writes the file read by [`load`](Self::load).
    fn write(&self, path: &Path) -> Result<(), AnalyticError> {
        match self {
            Self::Primal(primal) => primal.save(path),
            Self::Dual(dual) => dual.save(path),
        }
    }

    /// Returns the bytes carried from task to task.
    fn bytes_kept(&self) -> u64 {
        match self {
            Self::Primal(primal) => primal.bytes_kept(),
            Self::Dual(dual) => dual.bytes_kept(),
        }
    }

    fn scores(&self, features: &[f32]) -> Result<Vec<f64>, AnalyticError> {
        match self {
            Self::Primal(primal) => primal.scores(features),
            Self::Dual(dual) => dual.scores(features),
        }
    }

    fn classes(&self) -> usize {
        match self {
            Self::Primal(primal) => primal.classes(),
            Self::Dual(dual) => dual.classes(),
        }
    }

    /// Fits the training set of a task in one pass, in dataset order. Images are preprocessed as
    /// for training if [`augment`](Analytic::augment) is set, and as for evaluation otherwise.
    fn fit(
        &mut self,
        settings: &Analytic,
        task: &TaskContext<'_>,
        progress: &mut dyn FitProgress,
    ) -> Result<(), RunError> {
        let RunContext {
            checkpoint,
            suite,
            images,
            seed,
            ..
        } = task.run;
        let (index, model) = (task.index, &checkpoint.model);
        let Some(Classification { train, .. }) = suite.tasks[index].classification() else {
            return Err(RunError::Unlearnable {
                method: settings.key().to_owned(),
                task: suite.tasks[index].name.clone(),
                reason: NEEDS_CLASSES,
            });
        };
        let classes = suite.tasks[..=index].iter().map(Task::class_count).sum();
        let offset: usize = suite.tasks[..index].iter().map(Task::class_count).sum();
        let seed = seeds::derive(seed, &[seeds::TRAIN_CROP, index as u64]);
        let all: Vec<usize> = (0..train.labels.len()).collect();
        let device = model.device();
        let of = all.len().div_ceil(BATCH);
        let mut seen = 0;
        for (batch, indices) in all.chunks(BATCH).enumerate() {
            progress.phase(Phase::Encoding, batch, of);
            let source = train.images.as_ref();
            let (kept, pixels) = if settings.augment {
                images.train(source, indices, &device, seed, batch as u64)?
            } else {
                images.eval(source, indices, &device)?
            };
            let Some(pixels) = pixels else { continue };
            let features = to_host(clip_model::normalize(model.encode_image(pixels)));
            seen += kept.len();
            let labels: Vec<usize> = kept.iter().map(|i| offset + train.labels[*i]).collect();
            match self {
                Self::Primal(primal) => primal.update(&features, &labels, classes)?,
                Self::Dual(dual) => dual.update(&features, &labels, classes)?,
            }
        }
        if seen == 0 {
            let what = format!("the training images of task `{}`", suite.tasks[index].name);
            return Err(BatchError::NothingReadable(what).into());
        }
        match self {
            Self::Primal(primal) => primal.finish()?,
            Self::Dual(dual) => dual.finish(),
        }
        progress.phase(Phase::Encoding, of, of);
        Ok(())
    }
}

/// Classifier that fuses the regression with the zero-shot scores.
struct FusedAnswer<'a> {
    regression: &'a Regression,
    suite: &'a Suite,
    fusion: f64,
}

impl Scorer for FusedAnswer<'_> {
    /// Returns scores over all classes, as in the reference implementation, or over the classes of
    /// a given task: fused scores for a trained task, zero-shot scores for another. The reference
    /// implementation has no protocol with given tasks; this one is ours.
    fn scores(
        &self,
        features: &[f32],
        logits: Vec<f32>,
        space: LabelSpace,
    ) -> Result<Vec<f32>, String> {
        let sizes: Vec<usize> = self.suite.tasks.iter().map(Task::class_count).collect();
        let learned = self.regression.classes();
        let (classes, from, regressed) = match space {
            LabelSpace::All => (sizes.iter().sum(), 0, learned),
            LabelSpace::Task(task) => {
                let from: usize = sizes[..task].iter().sum();
                if from >= learned {
                    return Ok(logits);
                }
                (sizes[task], from, sizes[task])
            }
        };
        let all = self
            .regression
            .scores(features)
            .map_err(|e| e.to_string())?;
        let own: Vec<f64> = all
            .chunks(learned)
            .flat_map(|row| row[from..from + regressed].iter().copied())
            .collect();
        let fusion = Fusion {
            weight: self.fusion,
        };
        let scores = fusion
            .scores(&logits, classes, &own, regressed)
            .map_err(|e| e.to_string())?;
        Ok(scores.into_iter().map(|s| s as f32).collect())
    }
}

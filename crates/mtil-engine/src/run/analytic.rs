//! RAIL: ridge regression on the features of the pretrained image tower, task by task.

use std::path::Path;

use clip_model::ClipModel;

use super::{Event, Progress, RunError, Work};
use crate::{
    analytic::{AnalyticError, DualConfig, DualRail, Fusion, PrimalConfig, PrimalRail, Recursion},
    batch::Images,
    eval::{Answer, LabelSpace, to_host},
    method::{Analytic, AnalyticKind},
};
use mtil_data::{seeds, suite::Suite};

/// Images encoded at a time (`batch_size` of the published `configs/analytic_clip.yaml`).
const BATCH: usize = 128;

/// Training images that a kernel is made of at most: 13 GB.
const MOST_KEPT: usize = 40_000;

/// The regression over the tasks learned so far.
pub(super) enum Regression {
    Primal(Box<PrimalRail>),
    Dual(Box<DualRail>),
}

impl Regression {
    /// A regression that has seen nothing, from features of `width` numbers.
    pub fn new(
        settings: &Analytic,
        suite: &Suite,
        width: usize,
        seed: u64,
    ) -> Result<Self, RunError> {
        let images = suite.tasks.iter().map(|t| t.train.labels.len()).max();
        let classes = suite.tasks.iter().map(|t| t.class_names.len()).sum();
        Ok(match settings.kind {
            AnalyticKind::Primal => {
                let config = PrimalConfig {
                    hidden: settings.hidden,
                    lambda: settings.ridge,
                    recursion: Recursion::cheaper(settings.hidden, images.unwrap_or(0), classes),
                    seed: seeds::derive(seed, &[seeds::HIDDEN_LAYER]),
                    ..PrimalConfig::default()
                };
                Self::Primal(Box::new(PrimalRail::new(config, width)?))
            }
            AnalyticKind::Dual => {
                let all: usize = suite.tasks.iter().map(|t| t.train.labels.len()).sum();
                if all > MOST_KEPT {
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

    /// The regression in a file.
    pub fn load(settings: &Analytic, path: &Path) -> Result<Self, AnalyticError> {
        Ok(match settings.kind {
            AnalyticKind::Primal => Self::Primal(Box::new(PrimalRail::load(path)?)),
            AnalyticKind::Dual => Self::Dual(Box::new(DualRail::load(path)?)),
        })
    }

    /// Writes the file that [`load`](Self::load) reads.
    pub fn save(&self, path: &Path) -> Result<(), AnalyticError> {
        match self {
            Self::Primal(primal) => primal.save(path),
            Self::Dual(dual) => dual.save(path),
        }
    }

    /// Bytes that are kept between tasks.
    pub fn bytes_kept(&self) -> u64 {
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

    /// Takes in the training set of task `index`: one pass, in its order, prepared as for training
    /// where the settings say so.
    #[allow(clippy::too_many_arguments)]
    pub fn learn(
        &mut self,
        suite: &Suite,
        index: usize,
        settings: &Analytic,
        model: &ClipModel,
        images: &Images,
        seed: u64,
        progress: &mut dyn Progress,
    ) -> Result<(), RunError> {
        let train = &suite.tasks[index].train;
        let classes = suite.tasks[..=index]
            .iter()
            .map(|t| t.class_names.len())
            .sum();
        let offset: usize = suite.tasks[..index]
            .iter()
            .map(|t| t.class_names.len())
            .sum();
        let seed = seeds::derive(seed, &[seeds::TRAIN_CROP, index as u64]);
        let all: Vec<usize> = (0..train.labels.len()).collect();
        let device = model.device();
        let of = all.len().div_ceil(BATCH);
        for (batch, indices) in all.chunks(BATCH).enumerate() {
            progress.event(&Event::Working {
                on: Work::Encoding,
                done: batch,
                of,
            });
            let source = train.images.as_ref();
            let (kept, pixels) = if settings.augment {
                images.train(source, indices, &device, seed, batch as u64)?
            } else {
                images.eval(source, indices, &device)?
            };
            let Some(pixels) = pixels else { continue };
            let features = to_host(clip_model::normalize(model.encode_image(pixels)));
            let labels: Vec<usize> = kept.iter().map(|i| offset + train.labels[*i]).collect();
            match self {
                Self::Primal(primal) => primal.update(&features, &labels, classes)?,
                Self::Dual(dual) => dual.update(&features, &labels, classes)?,
            }
        }
        match self {
            Self::Primal(primal) => primal.finish()?,
            Self::Dual(dual) => dual.finish(),
        }
        Ok(())
    }
}

/// A regression with the zero-shot answer, over the tasks of a suite.
pub(super) struct Joined<'a> {
    pub regression: &'a Regression,
    pub suite: &'a Suite,
    pub fusion: f64,
}

impl Answer for Joined<'_> {
    /// Over all classes as published. Where the task is given, over its classes only: those of a
    /// learned task are joined, those of another are left to zero-shot; the published code has no
    /// such protocol, so this reading of it is ours.
    fn scores(
        &self,
        features: &[f32],
        logits: Vec<f32>,
        space: LabelSpace,
    ) -> Result<Vec<f32>, String> {
        let sizes: Vec<usize> = self
            .suite
            .tasks
            .iter()
            .map(|t| t.class_names.len())
            .collect();
        let learned = self.regression.classes();
        let (classes, from, adapter) = match space {
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
            .flat_map(|row| row[from..from + adapter].iter().copied())
            .collect();
        let fusion = Fusion {
            weight: self.fusion,
        };
        let scores = fusion
            .scores(&logits, classes, &own, adapter)
            .map_err(|e| e.to_string())?;
        Ok(scores.into_iter().map(|s| s as f32).collect())
    }
}

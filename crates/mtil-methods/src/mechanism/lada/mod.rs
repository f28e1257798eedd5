//! Adapters of the text tower and class vectors, with the image tower frozen (LADA, ICML 2025,
//! arXiv 2505.23271; a public copy of its code: tri2911/LADA 28fd950).
//!
//! Let `f` be the normalised feature of an image under the frozen image tower, `t_c` the normalised
//! text feature of class `c`, `w_cl` its class vectors and `s = exp(logit_scale)`. The logit of the
//! class is
//!
//! ```text
//! s · f·t_c + alpha · Σ_l exp(−beta · (1 − f·w_cl))
//! ```
//!
//! On a task its class vectors and an adapter in each block of the text tower train. With the
//! residual stream `u` of a block after its attention, the block's output is
//! `u + mlp(ln_2(u)) + scale · σ · (ReLU(LN(u)·D + d)·U + e)`, where the layer norm and the scale
//! `σ` train too. The vectors begin as the centres of k-means on the features of a class. The loss is a
//! cross-entropy among the classes of all tasks so far, of the batch and of a sample of each
//! component of the Gaussian mixtures of earlier classes. After a task its text features, its
//! vectors and the mixtures of its classes are stored; the adapters are dropped.
//!
//! | file | contents |
//! |---|---|
//! | `train` | adapters, scores and training steps |
//! | `train_images` | features of the training images |
//! | `clusters` | k-means and Gaussian mixtures |
//! | `score` | scores of an evaluation |
//! | `file` | the file in `state/` |
//!
//! Deviations from the published code: `docs/reference/results.md`, "Choices".

mod clusters;
mod file;
mod score;
mod train;
mod train_images;

use std::path::Path;

use clip_model::Clip;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    context::{FitProgress, MethodOutline, RunContext, TaskContext, at_least_one, in_range},
    hooks::{Mechanism, first_pairs},
    state::{MechanismState, RunState},
};
use crate::error::RunError;
use clusters::Rows;
use mtil_data::{
    seeds,
    suite::{Suite, Task},
};
use mtil_eval::{
    eval::{Scorer, to_host},
    metrics::Kept,
};
use score::LadaScorer;
use train::TaskTraining;
use train_images::{TaskFeatures, TrainingFeatures};

/// Adapters of the text tower and trained vectors of each class, beside a frozen CLIP (LADA, ICML
/// 2025, arXiv 2505.23271). Steps, batch, learning rates and AdamW are those of the method. With
/// `schedule = "one-cycle"` the schedule also cycles `beta_1`, as published.
///
/// A run that is stopped within a task begins it again, because nothing but the finished task is
/// stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lada {
    /// Vectors of a class; fewer where it has fewer different images.
    pub vectors: usize,
    /// Components of the Gaussian mixture of a class; fewer where it has fewer different images.
    pub components: usize,
    /// Weight of the scores of the class vectors beside the logits of the texts.
    pub alpha: f64,
    /// Sharpness of the scores: a vector adds `exp(−beta · (1 − cos))`.
    pub beta: f64,
    /// Bottleneck width of an adapter.
    pub bottleneck: usize,
    /// Scale of an adapter's output.
    pub scale: f64,
    /// Weight of a sample of an earlier class in the loss, times the weight of its component. An
    /// image has 1.
    pub sample_weight: f64,
    /// Encodes a random crop of each training image in each step, as published. Otherwise the
    /// images are encoded once, preprocessed as for evaluation, which takes a small part of the
    /// time.
    pub augment: bool,
    /// Names of tasks that are trained as without `augment`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unaugmented: Vec<String>,
}

impl Default for Lada {
    fn default() -> Self {
        Self {
            vectors: 16,
            components: 4,
            alpha: 1.0,
            beta: 1.0,
            bottleneck: 16,
            scale: 0.1,
            sample_weight: 64.0,
            augment: true,
            unaugmented: Vec::new(),
        }
    }
}

const FILE: &str = "lada.safetensors";

/// Why image-caption pairs cannot be learned.
const NEEDS_CLASSES: &str = "`lada` learns vectors of a task's classes";

/// Text features, vectors and mixtures of the tasks so far.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct LadaState {
    tasks: Vec<LearnedClasses>,
}

/// Text features, vectors and mixtures of the classes of a task.
#[derive(Debug, Clone, PartialEq)]
struct LearnedClasses {
    width: usize,
    /// Normalised text features under the task's adapters `[classes, width]`.
    texts: Vec<f32>,
    vectors: ClassRows,
    /// Means of the components of the mixtures of features that are not normalised.
    means: ClassRows,
    /// Variance of each component.
    variances: Vec<f32>,
    /// Weight of each component; those of a class sum to 1.
    weights: Vec<f32>,
}

/// Vectors of several classes, one class after the other.
#[derive(Debug, Clone, Default, PartialEq)]
struct ClassRows {
    /// Number of vectors of each class.
    counts: Vec<usize>,
    /// `[vectors, width]`.
    rows: Vec<f32>,
}

impl ClassRows {
    fn push(&mut self, rows: &Rows) {
        self.counts.push(rows.count());
        self.rows.extend(rows.values.iter().map(|v| *v as f32));
    }
}

impl LearnedClasses {
    fn classes(&self) -> usize {
        self.vectors.counts.len()
    }
}

impl MechanismState for LadaState {
    /// A task is not trained with several settings.
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        None
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        match self.tasks.is_empty() {
            true => Ok(()),
            false => file::save(self, &folder.join(FILE)),
        }
    }

    fn bytes(&self, checkpoint: &Clip) -> u64 {
        let kinds = self.kept_bytes(checkpoint);
        kinds.into_iter().map(|(_, bytes)| bytes).sum()
    }

    fn kept(&self) -> Kept {
        Kept::Weights
    }

    fn kept_bytes(&self, _: &Clip) -> Vec<(Kept, u64)> {
        let sum = |values: &dyn Fn(&LearnedClasses) -> usize| {
            4 * self.tasks.iter().map(values).sum::<usize>() as u64
        };
        if self.tasks.is_empty() {
            return Vec::new();
        }
        vec![
            (
                Kept::Weights,
                sum(&|of| of.texts.len() + of.vectors.rows.len()),
            ),
            (
                Kept::Statistics,
                sum(&|of| of.means.rows.len() + of.variances.len() + of.weights.len()),
            ),
        ]
    }
}

impl Mechanism for Lada {
    fn key(&self) -> &'static str {
        "lada"
    }

    fn check(&self, method: &MethodOutline) -> Result<(), String> {
        for (key, value) in [
            ("vectors", self.vectors),
            ("components", self.components),
            ("bottleneck", self.bottleneck),
        ] {
            at_least_one(&format!("lada.{key}"), value)?;
        }
        for (key, value) in [
            ("alpha", self.alpha),
            ("beta", self.beta),
            ("scale", self.scale),
            ("sample_weight", self.sample_weight),
        ] {
            in_range(&format!("lada.{key}"), value, 0.0, f64::MAX)?;
        }
        if method.uses_reference || method.per_task || method.classifies_texts {
            return Err(concat!(
                "`lada` trains no weight of the towers: `cd`, `map`, `hold_means`, ",
                "`classify_texts` and `per_task` have no meaning with it"
            )
            .to_owned());
        }
        if !method.trains_by_adamw {
            return Err("`lada` needs `optimizer = \"adamw\"`".to_owned());
        }
        method.exclusive("lada", &[])
    }

    fn unlearnable<'a>(&self, suite: &'a Suite) -> Option<(&'a Task, &'static str)> {
        first_pairs(suite).map(|task| (task, NEEDS_CLASSES))
    }

    fn trains_adapters(&self) -> bool {
        true
    }

    fn supports_peers(&self) -> bool {
        false
    }

    fn trains_weights(&self) -> bool {
        false
    }

    fn initial_state(
        &self,
        _: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        Ok(Some(Box::new(LadaState::default())))
    }

    fn load(
        &self,
        folder: &Path,
        run: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let state = file::load(&path, run.checkpoint.config.projection_dim)?;
        Ok(Some(Box::new(state)))
    }

    fn fit(
        &self,
        task: &TaskContext<'_>,
        state: &mut RunState,
        progress: &mut dyn FitProgress,
    ) -> Result<bool, RunError> {
        let earlier = state.get::<LadaState>().map_or(&[][..], |own| &own.tasks);
        let earlier = &earlier[..task.index.min(earlier.len())];
        let learned = self.learn(task, earlier, progress)?;
        let mut own = state.take::<LadaState>().unwrap_or_default();
        own.tasks.truncate(task.index);
        own.tasks.push(learned);
        state.set(own);
        Ok(true)
    }

    fn scorer<'a>(&'a self, state: &'a RunState, suite: &'a Suite) -> Option<Box<dyn Scorer + 'a>> {
        let own = state.get::<LadaState>()?;
        if own.tasks.is_empty() {
            return None;
        }
        let scale = state.model.scale().inner();
        Some(Box::new(LadaScorer::new(&own.tasks, suite, self, &scale)))
    }

    fn notes(&self) -> Vec<String> {
        vec!["gap and retrieval are the pretrained model's".to_owned()]
    }
}

impl Lada {
    /// Learns a task. `earlier` are the classes of the tasks before it.
    fn learn(
        &self,
        task: &TaskContext<'_>,
        earlier: &[LearnedClasses],
        progress: &mut dyn FitProgress,
    ) -> Result<LearnedClasses, RunError> {
        let of = &task.run.suite.tasks[task.index];
        let Some(classes) = of.classification() else {
            return Err(RunError::Unlearnable {
                method: self.key().to_owned(),
                task: of.name.clone(),
                reason: NEEDS_CLASSES,
            });
        };
        let encoded = TaskFeatures::encode(task, classes, progress)?;
        let normalised = encoded.normalised(&task.run);
        let count = classes.class_names.len();
        let by_class = ClassFeatures::new(task, &encoded, count);
        let rows = to_host(normalised.clone());
        let mut initial = ClassRows::default();
        for centres in by_class.map(&rows, |rows, seed| {
            clusters::k_means(rows, self.vectors, seed).centres
        })? {
            initial.push(&centres);
        }
        let augment = self.augment && !self.unaugmented.contains(&of.name);
        let sizes = [task.steps.batch, task.steps.count];
        let images = TrainingFeatures::new(task, classes, &encoded, normalised, augment, sizes)?;
        let training = TaskTraining::new(self, task, earlier, &initial)?;
        let [texts, vectors] = training.run(&initial, images, progress)?;
        let mut learned = LearnedClasses {
            width: encoded.width,
            texts,
            vectors: ClassRows {
                counts: initial.counts,
                rows: vectors,
            },
            means: ClassRows::default(),
            variances: Vec::new(),
            weights: Vec::new(),
        };
        for mixture in by_class.map(&encoded.rows, |rows, seed| {
            clusters::fit_mixture(rows, self.components, seed)
        })? {
            learned.means.push(&mixture.means);
            let as_f32 = |values: Vec<f64>| values.into_iter().map(|v| v as f32);
            learned.variances.extend(as_f32(mixture.variances));
            learned.weights.extend(as_f32(mixture.weights));
        }
        Ok(learned)
    }
}

/// Places of the features of each class among those of a task.
struct ClassFeatures<'a> {
    task: &'a TaskContext<'a>,
    width: usize,
    of_class: Vec<Vec<usize>>,
}

impl<'a> ClassFeatures<'a> {
    fn new(task: &'a TaskContext<'a>, features: &TaskFeatures, classes: usize) -> Self {
        let mut of_class = vec![Vec::new(); classes];
        for (row, label) in features.labels.iter().enumerate() {
            of_class[*label].push(row);
        }
        Self {
            task,
            width: features.width,
            of_class,
        }
    }

    /// Returns the results of `compute` on the rows of each class and a seed of its own.
    ///
    /// # Errors
    /// An interruption.
    fn map<T: Send>(
        &self,
        rows: &[f32],
        compute: impl Fn(&Rows, u64) -> T + Sync,
    ) -> Result<Vec<T>, RunError> {
        let (run, index) = (self.task.run, self.task.index as u64);
        let images = run.images;
        let of_class = |(class, places): (usize, &Vec<usize>)| {
            images.check_stop()?;
            let rows = places
                .iter()
                .flat_map(|row| &rows[row * self.width..][..self.width]);
            let rows = Rows {
                values: rows.map(|v| f64::from(*v)).collect(),
                width: self.width,
            };
            let seed = seeds::derive(run.seed, &[seeds::CLUSTERS, index, class as u64]);
            Ok(compute(&rows, seed))
        };
        let classes = self.of_class.par_iter().enumerate();
        classes.map(of_class).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::method::Method;

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        let with = |name: &str, set: &[&str]| {
            let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
            Method::load(name, "mini", &set)
        };
        for (name, set, words) in [
            ("lada", &["lada.vectors=0"][..], "`lada.vectors` must be at"),
            ("lada", &["lada.components=0"], "`lada.components` must be"),
            ("lada", &["lada.bottleneck=0"], "`lada.bottleneck` must be"),
            ("lada", &["lada.alpha=-1"], "`lada.alpha` must be from 0"),
            ("lada", &["lada.beta=nan"], "`lada.beta` must be from 0"),
            ("lada", &["lada.shots=1"], "shots"),
            ("lada", &["cd=1"], "`lada` trains no weight"),
            ("lada", &["per_task=true", "start=pretrained"], "`per_task`"),
            ("lada", &["classify_texts=1"], "`classify_texts`"),
            ("lada", &["optimizer=sgd"], "`optimizer = \"adamw\"`"),
            (
                "lada",
                &["unify.vote=2", "start=pretrained"],
                "not go together",
            ),
            ("lada", &["joint=true"], "do not go together"),
            ("lada", &["schedule=linear"], "one-cycle"),
            ("rail-dual", &["lada.vectors=3"], "do not go together"),
        ] {
            let error = with(name, set).unwrap_err().to_string();
            assert!(error.contains(words), "{name} {set:?}: {error}");
        }
        let method = with("lada", &["lada.augment=false", "schedule=cosine"]).unwrap();
        assert!(!method.lada.unwrap().augment);
    }

    #[test]
    fn the_published_steps_are_those_of_the_epochs() {
        let steps = |suite: &str, task: &str| {
            let method = Method::load("lada", suite, &[]).unwrap();
            method.steps_of(task)
        };
        for suite in ["xtail-order-1", "xtail-order-2"] {
            // Epochs times batches of 64 of 16 images of each class.
            assert_eq!(steps(suite, "Aircraft"), 40 * (100 * 16_usize).div_ceil(64));
            assert_eq!(steps(suite, "SUN397"), 10 * (397 * 16_usize).div_ceil(64));
            assert_eq!(steps(suite, "MNIST"), 200 * (10 * 16_usize).div_ceil(64));
        }
    }
}

//! Continual-learning methods as data: compositions of mechanisms, read from TOML.
//!
//! A method selects the trainable parameters, the losses, the teacher of the distillation and the
//! projection of the updates. One engine runs all methods.

pub mod error;
mod optimizer;
mod schedule;
pub(crate) mod steps;
mod tuned;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use tuned::{Candidate, Tuned, TunedMethod};

pub use error::MethodError;
pub use optimizer::{AdamW, Compute, OptimizerKind};
pub use schedule::{Schedule, one_cycle, schedule};
pub use steps::TaskSteps;

pub use crate::mechanism::{
    adapters::{
        AdapterBasis, AdapterStart, AdapterTrain, AttentionPart, Gate, InputStatistic, Lora,
        Protect, ProtectInputs, ProtectWeights, Side,
    },
    anchor::{Anchor, AnchorKind},
    average::Average,
    context::EvaluatedModels,
    distillation::{Distill, DistillImages, DistillTexts},
    earlier_weights::{Start, Teacher},
    lada::Lada,
    merge::Merge,
    mixtures::Experts,
    projection::Projection,
    regression::{Analytic, AnalyticKind},
    rehearsal::{Rehearsal, RehearsalSelection},
    task_inference::{Autoencoder, ExpertTask},
    unify::{Unify, UnifyTask},
};
use crate::mechanism::{
    adapters::{LoraMechanism, ProtectedMechanism},
    alignment::Alignment,
    anchor::AnchorMechanism,
    context::{MethodOutline, at_least_one},
    distillation::DistillMechanism,
    earlier_weights::RequiredWeights,
    hooks::Mechanism,
    projection::ProjectionMechanism,
    task_inference::TaskInference,
    trainable::Trainable,
};
use mtil_eval::eval::{PromptRule, TaskIdentity};

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../methods/", $name, ".toml")))),*]
    };
}

/// Built-in methods: name and TOML.
const BUILT_IN: &[(&str, &str)] = built_in![
    "zero-shot",
    "finetune",
    "finetune-per-task",
    "joint",
    "wc",
    "ewc",
    "we",
    "we-wise",
    "wise-ft",
    "lwf",
    "lwf-vr",
    "icarl",
    "er",
    "zscl",
    "zscl-star",
    "zscl-minus",
    "zscl-minus-wc",
    "zscl-wise",
    "zscl-wc-wise",
    "gift",
    "gnsp",
    "gnsp-update",
    "gnsp-anchored",
    "cd",
    "map",
    "cd-map",
    "null-space",
    "gpm",
    "adam-nscl",
    "lora",
    "lora-per-task",
    "keeplora",
    "keeplora-input",
    "nusa-cl",
    "inflora",
    "osf",
    "osf-update",
    "codyra",
    "codyra-soft",
    "condu",
    "condu-lora",
    "moe-adapters",
    "rail-primal",
    "rail-dual",
    "lada",
];

/// Settings of a method. The defaults are GNSP's published values
/// (GNSP `configs/mtil_order_I.json`, `src/args.py`).
///
/// # Example
/// ```
/// use mtil_methods::method::Method;
///
/// let method = Method::load("gnsp", "my-suite", &["lr=2e-5".to_owned()])?;
/// assert_eq!(method.lr, 2e-5);
/// # Ok::<(), mtil_methods::method::MethodError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Method {
    /// Name shown in tables.
    pub name: String,
    /// Description in one sentence.
    pub about: String,
    /// Prompt rule of the paper's evaluation on MTIL; ZSCL's (`"ensemble"`) by default. A run has
    /// its own rule, so this key is not stored.
    #[serde(skip_serializing)]
    pub published_prompts: PromptRule,
    /// Trains the model; `false` only evaluates it.
    pub trains: bool,
    /// Initial weights of a task: those after the previous task, or the pretrained ones.
    pub start: Start,
    /// Trains an independent model for each task. The evaluation selects the model by the task,
    /// which must be given: the columns of earlier tasks keep their accuracies, those of later
    /// tasks are the pretrained model's.
    pub per_task: bool,
    /// Trains all tasks jointly, each image among the classes or pairs of its own task: the upper
    /// bound of multi-task learning. A run has one stage, whose accuracies fill every row.
    pub joint: bool,
    /// Training steps per task.
    pub steps: usize,
    /// Training steps of the learning-rate schedule, if fewer than `steps`. ZSCL takes one training
    /// step more than its schedule has (ZSCL `mtil/src/models/finetune.py`: 1000 iterations, 1001
    /// updates).
    pub schedule_steps: Option<usize>,
    /// Images per training step.
    pub batch: usize,
    /// Peak learning rate on the first task.
    pub lr: f64,
    /// Peak learning rate on later tasks; the first task's when absent.
    pub lr_later: Option<f64>,
    /// Training steps of linear warm-up, before a cosine decay to zero.
    pub warmup: usize,
    /// Shape of the learning rate over the training steps of a task.
    #[serde(skip_serializing_if = "Schedule::is_cosine")]
    pub schedule: Schedule,
    /// Regular expressions of the parameters that train on the first task.
    pub trainable_first: Vec<String>,
    /// Regular expressions of the parameters that train on later tasks.
    pub trainable_later: Vec<String>,
    /// Label smoothing of classification. The contrastive loss of image-caption pairs has none.
    pub smoothing: f64,
    /// Weight of the classification of the class prompts among the images of a batch, whose targets
    /// are the images of the class, not normalised, and which is averaged over the classes of all
    /// tasks so far (CoDyRA `models/codyra.py`, `train_model`); 0 leaves it out.
    #[serde(skip_serializing_if = "is_zero")]
    pub classify_texts: f64,
    /// Weight of the contrastive distillation; 0 leaves it out.
    pub cd: f64,
    /// Weight of the modality-alignment loss; 0 leaves it out.
    pub map: f64,
    /// Label smoothing of the modality-alignment loss. With `ε` above 0 its optimum is a margin of
    /// `ln((1 - ε) R / ε + 1)` logits between positive and negative pairs of a batch of `R`. The
    /// loss pulls a larger margin down to it.
    pub map_smoothing: f64,
    /// Weight of the squared displacement of the mean image and the mean text feature of the
    /// reference pairs from the teacher's; 0 leaves it out. This term is not in GNSP, whose loss
    /// has no other term that preserves the modality gap.
    pub hold_means: f64,
    /// Temperature of the distillation.
    pub temperature: f64,
    /// Teacher of the distillation.
    pub teacher: Teacher,
    /// Reference pairs per training step.
    pub reference_batch: usize,
    /// Reference pairs per task, drawn anew for each task; all when larger than the set.
    pub reference_pairs: usize,
    /// Shuffles the reference pairs in every epoch, which changes the negatives of a pair. GNSP
    /// uses a fixed order (`src/models/finetune_gnsp.py:196-198`), GIFT shuffles (GIFT_CL
    /// `src/datasets/synthetic.py:75-81`).
    #[serde(skip_serializing_if = "is_false")]
    pub reference_shuffle: bool,
    /// Hyper-parameters of AdamW.
    pub adamw: AdamW,
    /// Optimizer of the training steps.
    pub optimizer: OptimizerKind,
    /// Floating-point format of the towers in training.
    #[serde(skip_serializing_if = "Compute::is_full")]
    pub compute: Compute,
    /// Random resized crop of training images: smallest share of the area.
    pub crop_scale: f64,
    /// Null-space projection of gradients or updates.
    pub projection: Option<Projection>,
    /// Distillation over fixed texts, as in ZSCL and LwF.
    pub distill: Option<Distill>,
    /// Penalty on the distance of the weights from earlier ones.
    pub anchor: Option<Anchor>,
    /// Average of the weights over the training steps, which becomes the result of the task.
    pub average: Option<Average>,
    /// Interpolation with the weights before the task, after its training.
    pub merge: Option<Merge>,
    /// Rehearsal of stored images of earlier tasks.
    pub rehearsal: Option<Rehearsal>,
    /// One delta for the models of all tasks, which each task's model is reconstructed from.
    pub unify: Option<Unify>,
    /// Training of low-rank adapters instead of the weights.
    pub lora: Option<Lora>,
    /// Mixtures of adapters parallel to every block.
    pub experts: Option<Experts>,
    /// Ridge regression on the features of the frozen pretrained towers.
    pub analytic: Option<Analytic>,
    /// Adapters of the text tower and class vectors, with the image tower frozen.
    pub lada: Option<Lada>,
    /// Settings of single tasks, by task name.
    pub task: BTreeMap<String, TaskSettings>,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Overrides of a method's settings for one task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskSettings {
    /// Peak learning rate.
    pub lr: Option<f64>,
    /// Training steps.
    pub steps: Option<usize>,
}

impl Default for Method {
    fn default() -> Self {
        Self {
            name: String::new(),
            about: String::new(),
            published_prompts: PromptRule::Ensemble,
            trains: true,
            start: Start::Previous,
            per_task: false,
            joint: false,
            steps: 1000,
            schedule_steps: None,
            batch: 64,
            lr: 1e-5,
            lr_later: None,
            warmup: 100,
            schedule: Schedule::Cosine,
            trainable_first: vec![r"^visual\.".to_owned(), r"^text\.".to_owned()],
            trainable_later: vec![r"^visual\.".to_owned(), r"^text\.".to_owned()],
            smoothing: 0.2,
            classify_texts: 0.0,
            cd: 0.0,
            map: 0.0,
            map_smoothing: 0.2,
            hold_means: 0.0,
            temperature: 2.0,
            teacher: Teacher::Pretrained,
            reference_batch: 64,
            reference_pairs: 1000,
            reference_shuffle: false,
            adamw: AdamW::default(),
            optimizer: OptimizerKind::AdamW,
            compute: Compute::F32,
            crop_scale: 0.9,
            projection: None,
            distill: None,
            anchor: None,
            average: None,
            merge: None,
            rehearsal: None,
            unify: None,
            lora: None,
            experts: None,
            analytic: None,
            lada: None,
            task: BTreeMap::new(),
        }
    }
}

/// Returns the names of the built-in methods.
pub fn names() -> Vec<&'static str> {
    BUILT_IN.iter().map(|(name, _)| *name).collect()
}

/// Reads the TOML of a method, a built-in one or a file on disk.
fn read_table(name: &str) -> Result<toml::Table, MethodError> {
    let built_in = BUILT_IN.iter().find(|(n, _)| *n == name);
    let text = match built_in {
        Some((_, text)) => (*text).to_owned(),
        None if name.ends_with(".toml") => {
            std::fs::read_to_string(name).map_err(|source| MethodError::Io {
                path: name.to_owned(),
                source,
            })?
        }
        None => {
            return Err(MethodError::Unknown {
                name: name.to_owned(),
                near: mtil_data::nearest(name, names()),
                known: names(),
            });
        }
    };
    toml::from_str(&text).map_err(|e| MethodError::Invalid {
        name: name.to_owned(),
        reason: e.to_string(),
    })
}

/// Applies an override of the form `key=value`.
fn apply_override(table: &mut toml::Table, text: &str) -> Result<(), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is not of the form key=value"))?;
    // An override for all tasks also replaces the settings of single tasks.
    let task_key = match key.trim() {
        "steps" => Some("steps"),
        "lr" | "lr_later" => Some("lr"),
        _ => None,
    };
    if let (Some(task_key), Some(toml::Value::Table(tasks))) = (task_key, table.get_mut("task")) {
        for (_, settings) in tasks.iter_mut() {
            if let toml::Value::Table(settings) = settings {
                settings.remove(task_key);
            }
        }
    }
    // A value that is not valid TOML is taken as a string, so that words need no quotes.
    let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .or_else(|_| toml::from_str(&format!("value = {value:?}")))
        .map_err(|e| format!("`{text}`: {e}"))?;
    // Each of these is one of several alternatives, which another one replaces.
    let mut parts = key.trim().split('.');
    if let (Some("projection"), Some(one @ ("rank" | "history" | "strength"))) =
        (parts.next(), parts.next())
        && let Some(toml::Value::Table(projection)) = table.get_mut("projection")
    {
        projection.remove(one);
    }
    let mut nested = value["value"].clone();
    for part in key.trim().rsplit('.') {
        nested = toml::Value::Table([(part.to_owned(), nested)].into_iter().collect());
    }
    if let toml::Value::Table(values) = nested {
        merge(table, values);
    }
    Ok(())
}

impl Method {
    /// Suffix of a method's name that selects its published settings instead of those tuned for the
    /// suite.
    pub const PUBLISHED: &'static str = "@published";

    /// Returns the tuning grid of a method besides its learning rate, from the table `[tune]` of
    /// its file: each key with the values to try beside its own. A value like `3x` is a multiple of
    /// the learning rate.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn tuning_grid(name: &str) -> Result<Vec<(String, Vec<String>)>, MethodError> {
        let invalid = |reason: &str| MethodError::Invalid {
            name: name.to_owned(),
            reason: reason.to_owned(),
        };
        let Some(settings) = read_table(name)?.remove("tune") else {
            return Ok(Vec::new());
        };
        let malformed = || invalid("`tune` is a table of lists, as in `smoothing = [0.0, 0.1]`");
        let toml::Value::Table(settings) = settings else {
            return Err(malformed());
        };
        let text = |value: &toml::Value| match value {
            toml::Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        let settings = settings.iter().map(|(key, values)| {
            let values = values.as_array().ok_or_else(malformed)?;
            Ok((key.clone(), values.iter().map(text).collect()))
        });
        settings.collect()
    }

    /// Reads a built-in method or a TOML file.
    ///
    /// Then applies, in this order, its values for `suite` (its table `[on.<suite>]`), the values
    /// tuned for the suite ([`Tuned`]), and `overrides` (`key=value`; dots separate nested keys).
    ///
    /// # Errors
    /// [`MethodError`] naming the method and the invalid key.
    pub fn load(name: &str, suite: &str, overrides: &[String]) -> Result<Self, MethodError> {
        Self::load_tuned(name, suite, Tuned::of(suite), overrides)
    }

    /// Like [`load`](Self::load), with the given tuning results instead of the embedded ones.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_tuned(
        name: &str,
        suite: &str,
        tuned: Option<&Tuned>,
        overrides: &[String],
    ) -> Result<Self, MethodError> {
        let requested = name;
        let name = requested.strip_suffix(Self::PUBLISHED).unwrap_or(requested);
        let is_published = requested != name;
        let invalid = |reason: String| MethodError::Invalid {
            name: name.to_owned(),
            reason,
        };
        let mut table = read_table(name)?;
        table.remove("tune");
        if is_published {
            let own = table.get("name").and_then(toml::Value::as_str);
            let own = format!("{}{}", own.unwrap_or(name), Self::PUBLISHED);
            table.insert("name".to_owned(), toml::Value::String(own));
        }
        let tuned = tuned.filter(|_| !is_published);
        let tuned = tuned.and_then(|tuned| tuned.methods.get(name));
        let tuned = tuned.map(|method| method.candidates[method.chosen].set.as_slice());
        // The values for the suite come first, so that tuned values and overrides replace them.
        if let Some(toml::Value::Table(mut on)) = table.remove("on")
            && let Some(toml::Value::Table(values)) = on.remove(suite)
        {
            merge(&mut table, values);
        }
        for text in tuned.unwrap_or_default().iter().chain(overrides) {
            apply_override(&mut table, text).map_err(invalid)?;
        }
        Self::from_table(table).map_err(invalid)
    }

    /// Returns a copy with one setting changed, as `key=value`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn with(&self, change: &str) -> Result<Self, MethodError> {
        let invalid = |reason: String| MethodError::Invalid {
            name: self.name.clone(),
            reason,
        };
        let text = toml::to_string(self).map_err(|e| invalid(e.to_string()))?;
        let mut table: toml::Table = toml::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        apply_override(&mut table, change).map_err(invalid)?;
        Self::from_table(table).map_err(invalid)
    }

    /// Deserializes and validates a method.
    fn from_table(table: toml::Table) -> Result<Self, String> {
        let method: Self = toml::Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| e.to_string())?;
        method.check()?;
        Ok(method)
    }

    /// Validates all settings, and that the mechanisms can be combined.
    fn check(&self) -> Result<(), String> {
        let positive = |key: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(format!("`{key}` must be above 0, it is {value}"))
            }
        };
        if self.name.is_empty() {
            return Err("`name` is missing".to_owned());
        }
        positive("lr", self.lr)?;
        positive("lr_later", self.lr_later.unwrap_or(1.0))?;
        positive("temperature", self.temperature)?;
        for (key, value) in [
            ("steps", self.steps),
            ("batch", self.batch),
            ("reference_batch", self.reference_batch),
            ("reference_pairs", self.reference_pairs),
        ] {
            positive(key, value as f64)?;
        }
        for (key, value, limit) in [
            ("smoothing", self.smoothing, 1.0),
            ("crop_scale", self.crop_scale, 1.0),
            ("classify_texts", self.classify_texts, f64::MAX),
        ] {
            if !(0.0..=limit).contains(&value) {
                return Err(format!("`{key}` is out of range: {value}"));
            }
        }
        self.check_tasks()?;
        let mechanisms = self.mechanisms();
        let outline = MethodOutline {
            keys: mechanisms.iter().map(|m| m.key()).collect(),
            uses_reference: self.uses_reference(),
            start: self.start,
            joint: self.joint,
            per_task: self.per_task,
            classifies_texts: self.classify_texts > 0.0,
            trains_by_adamw: self.optimizer == OptimizerKind::AdamW,
            distils_rehearsal_images: self
                .distill
                .as_ref()
                .is_some_and(|d| d.images == DistillImages::Memory),
        };
        // The settings of the alignment always exist, so they are checked even if it is not used.
        self.alignment().check(&outline)?;
        for mechanism in &mechanisms {
            mechanism.check(&outline)?;
        }
        if self.joint {
            outline.exclusive("joint", &["lora"])?;
            if self.uses_reference() || self.per_task || self.classify_texts > 0.0 {
                return Err(
                    "`joint` trains all tasks at once: `cd`, `map`, `hold_means`, \
                     `classify_texts` and `per_task` have no meaning with it"
                        .to_owned(),
                );
            }
        }
        if self.per_task && self.start != Start::Pretrained {
            return Err(
                "`per_task` needs `start = \"pretrained\"`: the models of the tasks are \
                 independent"
                    .to_owned(),
            );
        }
        self.adamw.check()?;
        for pattern in self.trainable_first.iter().chain(&self.trainable_later) {
            burn::module::ParamGroup::from_regex(pattern)
                .map_err(|e| format!("`{pattern}` is not a regular expression: {e:?}"))?;
        }
        Ok(())
    }

    fn check_tasks(&self) -> Result<(), String> {
        for (name, settings) in &self.task {
            let lr = settings.lr.unwrap_or(1.0);
            if !(lr.is_finite() && lr > 0.0) {
                return Err(format!("`task.{name}.lr` must be above 0, it is {lr}"));
            }
            at_least_one(&format!("task.{name}.steps"), settings.steps.unwrap_or(1))?;
        }
        at_least_one("schedule_steps", self.schedule_steps.unwrap_or(1))
    }

    /// Returns whether the model of the method depends on the task of an image, which must be
    /// given.
    pub fn needs_task(&self) -> bool {
        self.per_task || self.mechanisms().iter().any(|m| m.needs_task())
    }

    /// Returns the mechanisms of the method, in the order of their hooks.
    pub fn mechanisms(&self) -> Vec<Box<dyn Mechanism>> {
        let mut all: Vec<Box<dyn Mechanism>> = Vec::new();
        if let Some(settings) = &self.projection {
            all.push(Box::new(ProjectionMechanism {
                settings: settings.clone(),
                trainable_later: self.trainable_later.clone(),
            }));
        }
        if self.uses_reference() {
            all.push(Box::new(self.alignment()));
        }
        if let Some(settings) = &self.distill {
            all.push(Box::new(DistillMechanism {
                settings: settings.clone(),
                temperature: self.temperature,
                teacher: self.teacher,
                batch: self.reference_batch,
                rehearsal_batch: self.rehearsal.as_ref().map(|r| r.batch),
            }));
        }
        if let Some(rehearsal) = &self.rehearsal {
            all.push(Box::new(rehearsal.clone()));
        }
        if let Some(settings) = &self.anchor {
            all.push(Box::new(AnchorMechanism {
                settings: settings.clone(),
                trainable: self.trainable(),
                batch: self.batch,
            }));
        }
        if let Some(average) = &self.average {
            all.push(Box::new(average.clone()));
        }
        if let Some(merge) = &self.merge {
            all.push(Box::new(merge.clone()));
        }
        if let Some(settings) = &self.lora {
            let adapters = LoraMechanism {
                settings: settings.clone(),
                trainable: self.trainable(),
                smoothing: self.smoothing,
            };
            if settings.is_residual() {
                all.push(Box::new(ProtectedMechanism(adapters.clone())));
            }
            all.push(Box::new(adapters));
        }
        if let Some(unify) = &self.unify {
            all.push(Box::new(unify.clone()));
        }
        if let Some(experts) = &self.experts {
            if experts.task != ExpertTask::Given {
                all.push(Box::new(TaskInference {
                    settings: experts.autoencoder.clone(),
                }));
            }
            all.push(Box::new(experts.clone()));
        }
        if let Some(analytic) = &self.analytic {
            all.push(Box::new(analytic.clone()));
        }
        if let Some(lada) = &self.lada {
            all.push(Box::new(lada.clone()));
        }
        all
    }

    /// Returns the settings of the losses on reference pairs.
    pub fn alignment(&self) -> Alignment {
        Alignment {
            cd: self.cd,
            temperature: self.temperature,
            map: self.map,
            map_smoothing: self.map_smoothing,
            hold_means: self.hold_means,
            teacher: self.teacher,
            batch: self.reference_batch,
            pairs: self.reference_pairs,
            shuffle: self.reference_shuffle,
        }
    }

    /// Returns the patterns of the trainable parameters.
    pub fn trainable(&self) -> Trainable {
        Trainable {
            method: self.name.clone(),
            first: self.trainable_first.clone(),
            later: self.trainable_later.clone(),
        }
    }

    /// Returns the settings of the training steps on task `index`, called `name`.
    pub fn task_steps(&self, index: usize, name: &str) -> TaskSteps {
        TaskSteps {
            count: self.steps_of(name),
            batch: self.batch,
            smoothing: self.smoothing,
            adamw: self.adamw.clone(),
            peak_lr: self.peak_lr(index, name),
            schedule: self.schedule,
            scheduled: self.scheduled_steps(name),
            warmup: self.warmup,
        }
    }

    /// Returns the peak learning rate on task `index`, called `name`.
    pub fn peak_lr(&self, index: usize, name: &str) -> f64 {
        let own = self.task.get(name).and_then(|t| t.lr);
        own.unwrap_or(match self.lr_later {
            Some(later) if index > 0 => later,
            _ => self.lr,
        })
    }

    /// Returns the number of training steps on the task called `name`.
    pub fn steps_of(&self, name: &str) -> usize {
        let own = self.task.get(name).and_then(|t| t.steps);
        own.unwrap_or(self.steps)
    }

    /// Returns the training steps of the learning-rate schedule on the task called `name`.
    fn scheduled_steps(&self, name: &str) -> usize {
        let steps = self.steps_of(name);
        self.schedule_steps.map_or(steps, |s| s.min(steps))
    }

    /// Returns the training steps of the schedule on the task called `name` if they end within the
    /// warm-up, so that the learning rate never reaches its peak.
    ///
    /// ```
    /// use mtil_methods::method::Method;
    ///
    /// let set = ["steps=80".to_owned(), "warmup=100".to_owned()];
    /// let method = Method::load("finetune", "mini", &set)?;
    /// assert_eq!(method.steps_within_warmup("shapes"), Some(80));
    /// # Ok::<(), mtil_methods::method::MethodError>(())
    /// ```
    pub fn steps_within_warmup(&self, name: &str) -> Option<usize> {
        let trains_steps = self.trains && self.analytic.is_none() && self.schedule.is_cosine();
        let steps = self.scheduled_steps(name);
        (trains_steps && steps < self.warmup).then_some(steps)
    }

    /// Returns the learning rate of training step `step` (from 0) on task `index`, called `name`.
    pub fn lr_at(&self, index: usize, name: &str, step: usize) -> f64 {
        self.task_steps(index, name).lr_at(step)
    }

    /// Returns whether the method has a loss on the reference pairs.
    pub fn uses_reference(&self) -> bool {
        self.compares_with_teacher() || self.map > 0.0
    }

    /// Returns the number of images that a training step has besides the batch of the task and
    /// rehearsal: those of the reference pairs, or those that a teacher labels.
    pub fn reference_images(&self) -> usize {
        match self.uses_reference() || self.distill.is_some() {
            true => self.reference_batch,
            false => 0,
        }
    }

    /// Returns whether the method distils on reference images.
    pub fn distils_reference_images(&self) -> bool {
        let distill = self.distill.as_ref();
        distill.is_some_and(|distill| distill.images == DistillImages::Reference)
    }

    /// Returns whether a loss compares the features of the reference pairs with a teacher's.
    pub fn compares_with_teacher(&self) -> bool {
        self.cd > 0.0 || self.hold_means > 0.0
    }

    /// Returns the mean number of models that a test image and a prompt pass through in the
    /// evaluation after `learned` of `tasks` tasks.
    ///
    /// ```
    /// use mtil_eval::eval::TaskIdentity;
    /// use mtil_methods::method::Method;
    ///
    /// let condu = Method::load("condu", "", &[])?;
    /// // The learned task has its own model; the others are voted on by it and the pretrained one.
    /// let models = condu.evaluated_models(1, 4, TaskIdentity::Given);
    /// assert_eq!(models.images, (1.0 + 3.0 * 2.0) / 4.0);
    /// # Ok::<(), mtil_methods::method::MethodError>(())
    /// ```
    pub fn evaluated_models(
        &self,
        learned: usize,
        tasks: usize,
        identity: TaskIdentity,
    ) -> EvaluatedModels {
        let mechanisms = self.mechanisms();
        let of = |is_known| {
            let each = mechanisms
                .iter()
                .map(|m| m.evaluated_models(learned, is_known));
            each.fold(EvaluatedModels::default(), |most, of| EvaluatedModels {
                images: most.images.max(of.images),
                prompts: most.prompts.max(of.prompts),
            })
        };
        let (known, other) = (of(true), of(false));
        let share = learned.min(tasks) as f64 / tasks.max(1) as f64;
        // Without the task the images are classified once more, unless nothing depends on it.
        let again = f64::from(u8::from(identity != TaskIdentity::Given && known != other));
        let mean = |known: f64, other: f64| share * known + (1.0 - share + again) * other;
        EvaluatedModels {
            images: mean(known.images, other.images),
            prompts: mean(known.prompts, other.prompts),
        }
    }

    /// Returns the earlier weights that the method requires.
    pub fn needs(&self) -> RequiredWeights {
        let own = RequiredWeights {
            // With `[unify]` the weights of the run are the pretrained ones between tasks.
            pretrained: self.start == Start::Pretrained && self.unify.is_none(),
            start: false,
        };
        let mechanisms = self.mechanisms();
        mechanisms.iter().fold(own, |needs, m| needs.and(m.needs()))
    }
}

/// Merges the values of `from` into `into`, recursively for nested tables.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gnsp_optimizer::{RankRule, Site};

    use super::*;

    #[test]
    fn every_built_in_method_loads_under_its_own_name() {
        for name in names() {
            let method = Method::load(name, "mini", &[]).unwrap();
            assert_eq!(method.name, name);
            assert!(!method.about.is_empty());
            assert_ne!(Method::load(name, "other", &[]).unwrap().steps, 0);
        }
    }

    #[test]
    fn gnsp_has_the_published_values() {
        let method = Method::load("gnsp", "some suite", &[]).unwrap();
        assert_eq!(
            (method.cd, method.map, method.temperature, method.smoothing),
            (1.0, 0.75, 2.0, 0.2)
        );
        let projection = method.projection.unwrap();
        assert_eq!(projection.rank, RankRule::TailShare(0.15));
        assert_eq!(projection.site, Site::Gradient);
        assert_eq!(
            (method.batch, method.reference_batch, projection.gram_batch),
            (64, 64, 16)
        );
    }

    #[test]
    fn overrides_reach_nested_keys_and_unknown_ones_are_refused() {
        let set = |text: &str| Method::load("gnsp", "mini", &[text.to_owned()]);
        assert_eq!(
            set("projection.gram_batch=7")
                .unwrap()
                .projection
                .unwrap()
                .gram_batch,
            7
        );
        assert_eq!(set("lr=0.5").unwrap().lr, 0.5);
        // One alternative replaces another.
        for text in [
            "projection.rank.explained-energy=0.9",
            "projection.rank={explained-energy=0.9}",
        ] {
            let projection = set(text).unwrap().projection.unwrap();
            assert_eq!(projection.rank, RankRule::ExplainedEnergy(0.9), "{text}");
        }
        // An override for all tasks replaces the settings of single tasks, but an override for a
        // single task stays.
        let order = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
            Method::load("gnsp", "mtil-order-1", &sets).unwrap()
        };
        assert_eq!(order(&[]).steps_of("Aircraft"), 100);
        assert_eq!(order(&[]).peak_lr(3, "DTD"), 5e-5);
        assert_eq!(order(&["steps=8"]).steps_of("Aircraft"), 8);
        assert_eq!(order(&["lr=0.1"]).peak_lr(3, "DTD"), 0.1);
        let one = order(&["steps=8", "task.DTD.steps=9"]);
        assert_eq!((one.steps_of("DTD"), one.steps_of("Food")), (9, 8));
        for (text, word) in [
            ("lrate=1", "lrate"),
            ("lr=-1", "lr"),
            ("steps=0", "steps"),
            ("smoothing=2", "smoothing"),
            ("map_smoothing=1", "below 1, it is 1"),
            ("map_smoothing=-0.1", "map_smoothing"),
            ("hold_means=-1", "hold_means"),
            ("projection.rank={tail-share=1.5}", "tail share"),
            ("projection.history={decay=0.0}", "forgetting factor"),
            ("x", "key=value"),
        ] {
            let message = set(text).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        let message = Method::load("gsnp", "mini", &[]).unwrap_err().to_string();
        assert!(message.contains("gnsp-update"), "{message}");
    }

    #[test]
    fn schedules_that_end_within_the_warm_up_are_found() {
        let within = |name: &str, set: &[&str]| {
            let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
            let method = Method::load(name, "mini", &set).unwrap();
            method.steps_within_warmup("shapes")
        };
        assert_eq!(within("gnsp", &["steps=80", "warmup=100"]), Some(80));
        // The last step has the peak rate.
        assert_eq!(within("gnsp", &["steps=100", "warmup=100"]), None);
        let own = ["steps=900", "warmup=100", "task.shapes.steps=99"];
        assert_eq!(within("gnsp", &own), Some(99));
        let schedule = ["steps=900", "warmup=100", "schedule_steps=50"];
        assert_eq!(within("gnsp", &schedule), Some(50));
        let one_cycle = ["steps=80", "warmup=100", "schedule=one-cycle"];
        assert_eq!(within("gnsp", &one_cycle), None);
        for name in ["zero-shot", "rail-primal", "lada"] {
            assert_eq!(within(name, &["steps=1", "warmup=100"]), None, "{name}");
        }
    }
}

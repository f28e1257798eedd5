//! Extrapolation of a run's time and disk space from a trial run.

use serde::Serialize;

use super::{
    MemoryEstimate,
    trial::{DataSizes, TASKS, Trial, evaluated_images},
};
use mtil_data::suite::{Suite, Task};
use mtil_engine::{method::Method, run::Request};

/// Estimated cost of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Name of the method.
    pub method: String,
    /// Name of the suite.
    pub suite: String,
    /// Training steps.
    pub updates: usize,
    /// Seconds of training, with or without gradient steps.
    pub training: f64,
    /// Seconds of evaluation.
    pub evaluation: f64,
    /// Seconds between tasks: preparation, Gram accumulation, saving.
    pub between: f64,
    /// Bytes on disk at the end.
    pub disk: u64,
    /// Device memory, `None` where it cannot be counted.
    pub memory: Option<MemoryEstimate>,
}

impl Estimate {
    /// Returns the total time in seconds.
    pub fn seconds(&self) -> f64 {
        self.training + self.evaluation + self.between
    }
}

/// Estimates the cost of the run of `request` on `suite` from its trial.
///
/// `checkpoints` adds the space of a checkpoint after each task.
pub fn estimate(
    request: &Request,
    suite: &Suite,
    trial: &Trial,
    checkpoints: bool,
    memory: Option<MemoryEstimate>,
) -> Estimate {
    let method = &request.method;
    let (full, tried) = (DataSizes::of(method, suite), &trial.sizes);
    let tasks = match method.joint {
        true => 1,
        false => suite.tasks.len(),
    };
    let steps: Vec<usize> = match method.trains && trial.learn == 0.0 {
        true => suite.tasks[..tasks]
            .iter()
            .map(|task| method.steps_of(&task.name))
            .collect(),
        false => Vec::new(),
    };
    // `--select` trains each task once per value, and once more with the best one.
    let repeats = request.select.as_ref().map_or(1, |s| s.values.len() + 1);
    let batch_ratio = ratio(full.batch, tried.batch);
    let updates = |from: usize, to: usize| -> usize {
        repeats
            * steps
                .get(from..to.min(steps.len()))
                .map_or(0, |s| s.iter().sum())
    };
    let (first, later) = (updates(0, 1), updates(1, tasks));
    let learned = tasks as f64 * trial.learn * ratio(full.train, tried.train);
    let training =
        batch_ratio * (first as f64 * trial.update[0] + later as f64 * trial.update[1]) + learned;

    let stages = match method.trains {
        true => tasks,
        false => 0,
    };
    // An evaluation passes images and prompts through several models where a method votes.
    let models = |learned: usize| {
        let identity = request.evaluation.identity;
        let models = method.evaluated_models(learned, suite.tasks.len(), identity);
        [
            models.images / trial.models.images,
            models.prompts / trial.models.prompts,
        ]
    };
    let classifiers = |stage: usize| trial.classifiers[stage.min(1)] * models(stage)[1];
    let images = |stage: usize| {
        models(stage)[0] * evaluated_images(request, suite, stage.checked_sub(1), stages)
    };
    let evaluation = (0..=stages).map(classifiers).sum::<f64>()
        * ratio(full.prompts, tried.prompts)
        + trial.evaluation * ratio((0..=stages).map(images).sum(), trial.evaluated);

    let trained = &suite.tasks[..stages];
    let between = between_tasks(method, trained, trial, &full, repeats as f64);
    // The last checkpoint keeps no state. The state before the last task is kept for `undo`.
    let stages = stages as u64;
    let states = 1 + u64::from(stages > 0);
    let kept = match checkpoints {
        true => stages * trial.checkpoint + stages.saturating_sub(1) * trial.kept,
        false => 0,
    };
    let moments = memory.as_ref().map_or(0, |m| m.moments);
    Estimate {
        method: method.name.clone(),
        suite: request.suite.clone(),
        updates: first + later,
        training,
        evaluation,
        between,
        disk: kept + states * trial.state + if stages > 0 { moments } else { 0 },
        memory,
    }
}

/// Returns the factor from a size of the trial to that of the run.
fn ratio(full: f64, tried: f64) -> f64 {
    if tried > 0.0 { full / tried } else { 1.0 }
}

/// Returns the seconds between the training of tasks: preparation, Gram accumulation and other
/// passes, saving. `repeats` is how often each task is trained.
fn between_tasks(
    method: &Method,
    trained: &[Task],
    trial: &Trial,
    full: &DataSizes,
    repeats: f64,
) -> f64 {
    if trained.is_empty() {
        return 0.0;
    }
    let (tasks, tried) = (trained.len() as f64, &trial.sizes);
    let (train_ratio, batch_ratio) = (
        ratio(full.train, tried.train),
        ratio(full.batch, tried.batch),
    );
    let setup = trial.setup[0] + (tasks - 1.0) * trial.setup[1];
    let setup_ratio = match method.lada {
        // All images of the task are encoded first.
        Some(_) => train_ratio,
        None => ratio(full.reference, tried.reference),
    };
    let gram = method.projection.as_ref().map_or(0.0, |p| {
        let batches = (full.train / p.gram_batch as f64).ceil();
        let limited = p.gram_batches.map_or(batches, |b| batches.min(b as f64));
        limited * trial.gram_batch * batch_ratio
    });
    let adapters = method.lora.as_ref().filter(|lora| lora.is_residual());
    let [basis, inputs] = adapters.map_or([0.0; 2], |lora| {
        let batches = (full.train / lora.pass_batch as f64).max(1.0);
        let limited = lora.pass_batches.map_or(batches, |b| batches.min(b as f64));
        [trial.basis_batch, trial.gram_batch].map(|seconds| limited * seconds * batch_ratio)
    });
    let fisher = method.anchor.as_ref().map_or(0.0, |anchor| {
        let of = |task: &Task| task.training_images().len().min(anchor.fisher_images);
        trained.iter().map(of).sum::<usize>() as f64 * trial.fisher_image
    });
    // The choice of exemplars reads the training set.
    let finish_ratio = match method.rehearsal {
        Some(_) => train_ratio,
        None => 1.0,
    };
    // Earlier tasks are taken in again: as many on average as half of all.
    let [pass, rest] = trial.taken;
    let earlier = (1.0 + tasks) / 2.0 / TASKS as f64;
    let taken = pass * train_ratio + rest * earlier;
    fisher
        + setup * setup_ratio * repeats
        + tasks * taken
        + tasks * basis * repeats
        + tasks * (gram + inputs + trial.finish * finish_ratio)
}

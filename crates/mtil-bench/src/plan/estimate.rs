//! A whole run from its trial.

use serde::Serialize;

use super::{
    Memory,
    trial::{Amounts, Trial},
};
use mtil_data::suite::Suite;
use mtil_engine::{eval::EvalOptions, run::Request};

/// What a run will take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Name of the method.
    pub method: String,
    /// Name of the suite.
    pub suite: String,
    /// Updates.
    pub updates: usize,
    /// Seconds of updates, and of learning without them.
    pub training: f64,
    /// Seconds of evaluation.
    pub evaluation: f64,
    /// Seconds between: what is prepared for a task and kept of it, Gram passes, saving.
    pub between: f64,
    /// Bytes on disk at the end.
    pub disk: u64,
    /// Memory of the device, where it can be counted.
    pub memory: Option<Memory>,
}

impl Estimate {
    /// Seconds of all of it.
    pub fn seconds(&self) -> f64 {
        self.training + self.evaluation + self.between
    }
}

/// What the run of `request` on `suite` will take, from its trial. `checkpoints` says whether a
/// model is written after each task.
pub fn estimate(
    request: &Request,
    suite: &Suite,
    trial: &Trial,
    checkpoints: bool,
    memory: Option<Memory>,
) -> Estimate {
    let method = &request.method;
    let (all, had) = (Amounts::of(method, suite), &trial.had);
    let times = |all: f64, had: f64| if had > 0.0 { all / had } else { 1.0 };
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
    // Every value is trained with, and then the best.
    let repeats = request.select.as_ref().map_or(1, |s| s.values.len() + 1);
    let batches = times(all.batch, had.batch);
    let updates = |from: usize, to: usize| -> usize {
        repeats
            * steps
                .get(from..to.min(steps.len()))
                .map_or(0, |s| s.iter().sum())
    };
    let (first, later) = (updates(0, 1), updates(1, tasks));
    let learned = tasks as f64 * trial.learn * times(all.train, had.train);
    let training =
        batches * (first as f64 * trial.update[0] + later as f64 * trial.update[1]) + learned;

    let stages = match method.trains {
        true => tasks,
        false => 0,
    };
    let evaluations = 1.0 + stages as f64;
    let thinned = thinned(&request.evaluation, suite, stages);
    let evaluation = evaluations
        * (trial.heads * times(all.prompts, had.prompts)
            + trial.evaluation * times(all.evaluated, had.evaluated) * thinned);

    let between = match stages {
        0 => 0.0,
        _ => {
            let later = (stages - 1) as f64;
            let setup = trial.setup[0] + later * trial.setup[1];
            let gram = method.projection.as_ref().map_or(0.0, |p| {
                let batches = (all.train / p.gram_batch as f64).ceil();
                let wanted = p.gram_batches.map_or(batches, |b| batches.min(b as f64));
                wanted * trial.gram_batch * times(all.batch, had.batch)
            });
            // Importances and choices of images look at the training set.
            let looks = method.anchor.is_some() || method.rehearsal.is_some();
            let kept = match looks {
                true => times(all.train.min(1000.0), had.train),
                false => 1.0,
            };
            setup * times(all.reference, had.reference) * repeats as f64
                + later * (gram + trial.keep * kept)
        }
    };
    let models = if checkpoints { stages as u64 } else { 0 };
    let moments = memory.as_ref().map_or(0, |m| m.moments);
    Estimate {
        method: method.name.clone(),
        suite: request.suite.clone(),
        updates: first + later,
        training,
        evaluation,
        between,
        disk: models * trial.checkpoint + trial.state + if stages > 0 { moments } else { 0 },
        memory,
    }
}

/// The share of the test images that evaluations look at.
fn thinned(options: &EvalOptions, suite: &Suite, stages: usize) -> f64 {
    let at = |stage: Option<usize>| -> f64 {
        let limit = options.images_at(stage, stages).unwrap_or(usize::MAX);
        let images = suite.tasks.iter().map(|t| t.test.labels.len().min(limit));
        images.sum::<usize>() as f64
    };
    let all = suite.tasks.iter().map(|t| t.test.labels.len());
    let all = all.sum::<usize>().max(1) as f64 * (1 + stages) as f64;
    let looked = at(None) + (0..stages).map(|stage| at(Some(stage))).sum::<f64>();
    looked / all
}

//! Weight averaging during a task.

use std::path::Path;

use burn::module::Module;
use clip_model::{Clip, ClipModel};
use serde::{Deserialize, Serialize};

use super::{
    context::{MethodOutline, RunContext, at_least_one, in_range},
    earlier_weights::RequiredWeights,
    hooks::Mechanism,
    json_file::{read_json, write_json},
    state::{MechanismState, RunState, load_plain, save_model},
    weights::combine,
};
use crate::error::RunError;
use mtil_eval::metrics::Kept;

/// Running average `W` of the weights over a task: after training steps 0, `every`, 2·`every`, …
/// `W ← alpha · (n·W + θ)/(n + 1) + (1 − alpha) · θ⁰`. It starts with `n = 1` and `W = θ⁰`, the
/// weights at the start of the task. `W` replaces the weights at the end of the task (ZSCL
/// `mtil/src/models/helpers.py:31-34`, `finetune.py:310-320`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Average {
    /// Training steps between snapshots.
    pub every: usize,
    /// Weight of the mean; below 1, the average stays near the start.
    #[serde(default = "one")]
    pub alpha: f64,
}

fn one() -> f64 {
    1.0
}

/// The average so far, without autodiff.
pub(crate) struct RunningAverage {
    weights: ClipModel,
    /// Number of snapshots besides the start.
    snapshots: usize,
}

const WEIGHTS: &str = "average.safetensors";
const SNAPSHOTS: &str = "average.json";

impl MechanismState for RunningAverage {
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        Some(Box::new(Self {
            weights: self.weights.clone(),
            snapshots: self.snapshots,
        }))
    }

    fn save(&self, folder: &Path, checkpoint: &Clip) -> Result<(), RunError> {
        save_model(&self.weights, &folder.join(WEIGHTS), checkpoint)?;
        write_json(&self.snapshots, &folder.join(SNAPSHOTS))
    }

    /// 0, since the average is dropped at the end of a task.
    fn bytes(&self, _: &Clip) -> u64 {
        0
    }

    fn kept(&self) -> Kept {
        Kept::Weights
    }
}

impl Mechanism for Average {
    fn key(&self) -> &'static str {
        "average"
    }

    fn check(&self, _: &MethodOutline) -> Result<(), String> {
        at_least_one("average.every", self.every)?;
        in_range("average.alpha", self.alpha, 0.0, 1.0)
    }

    fn needs(&self) -> RequiredWeights {
        RequiredWeights {
            start: self.alpha < 1.0,
            pretrained: false,
        }
    }

    fn averages_weights(&self) -> bool {
        true
    }

    fn load(
        &self,
        folder: &Path,
        run: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        if !folder.join(WEIGHTS).exists() {
            return Ok(None);
        }
        Ok(Some(Box::new(RunningAverage {
            weights: load_plain(&folder.join(WEIGHTS), run.checkpoint)?,
            snapshots: read_json(&folder.join(SNAPSHOTS))?,
        })))
    }

    fn begin_task(&self, state: &mut RunState) {
        let weights = state.model.valid();
        state.set(RunningAverage {
            weights,
            snapshots: 0,
        });
    }

    /// `W ← α·(n·W + θ)/(n + 1) + (1 − α)·θ⁰`, n counted from 1.
    fn after_step(&self, step: usize, weights: &dyn Fn() -> ClipModel, state: &mut RunState) {
        if !step.is_multiple_of(self.every) {
            return;
        }
        let Some(RunningAverage {
            weights: average,
            snapshots,
        }) = state.take()
        else {
            return;
        };
        let (snapshots, alpha, now) = (snapshots + 1, self.alpha, weights());
        let n = snapshots as f64;
        let next = match state.start.as_ref().filter(|_| alpha < 1.0) {
            Some(start) => combine(average, &[&now, start], |w, o| {
                let mean = (w.mul_scalar(n) + o[0].clone()).div_scalar(n + 1.0);
                mean.mul_scalar(alpha) + o[1].clone().mul_scalar(1.0 - alpha)
            }),
            None => combine(average, &[&now], |w, o| {
                (w.mul_scalar(n) + o[0].clone()).div_scalar(n + 1.0)
            }),
        };
        state.set(RunningAverage {
            weights: next,
            snapshots,
        });
    }

    fn final_weights(&self, trained: ClipModel, _: &RunContext<'_>, state: &RunState) -> ClipModel {
        match state.get::<RunningAverage>() {
            Some(average) if average.snapshots > 0 => average.weights.clone(),
            _ => trained,
        }
    }

    fn end_task(&self, state: &mut RunState) {
        state.take::<RunningAverage>();
    }
}

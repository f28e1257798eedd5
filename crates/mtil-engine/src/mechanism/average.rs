//! An average of the weights along a task.

use std::path::Path;

use burn::module::Module;
use clip_model::{Clip, ClipModel};
use serde::{Deserialize, Serialize};

use super::{
    hooks::Mechanism,
    setting::{Needs, Outline, Setting, some, within},
    state::{Carried, State, load_plain, read_json, save_model, write_json},
    weights::combine,
};
use crate::error::RunError;

/// An average of the weights along the way: after updates 0, `every`, 2·`every`, … `W ← alpha ·
/// (n·W + θ)/(n + 1) + (1 − alpha) · θ⁰`, from `W = θ⁰`, the weights at the start of the task, and
/// `n = 1`. A task ends with `W` (ZSCL `mtil/src/models/helpers.py:31-34`, `finetune.py:310-320`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Average {
    /// Updates from one snapshot to the next.
    pub every: usize,
    /// 1 is the plain mean; less holds it near the start.
    #[serde(default = "one")]
    pub alpha: f64,
}

fn one() -> f64 {
    1.0
}

/// The average so far, on the plain device.
pub(crate) struct Averaged {
    weights: ClipModel,
    /// Snapshots in it besides the start.
    snapshots: usize,
}

const WEIGHTS: &str = "average.safetensors";
const SNAPSHOTS: &str = "average.json";

impl Carried for Averaged {
    fn copy(&self) -> Option<Box<dyn Carried>> {
        Some(Box::new(Self {
            weights: self.weights.clone(),
            snapshots: self.snapshots,
        }))
    }

    fn save(&self, folder: &Path, checkpoint: &Clip) -> Result<(), RunError> {
        save_model(&self.weights, &folder.join(WEIGHTS), checkpoint)?;
        write_json(&self.snapshots, &folder.join(SNAPSHOTS))
    }

    /// It is dropped at the end of a task.
    fn bytes(&self, _: &Clip) -> u64 {
        0
    }
}

impl Mechanism for Average {
    fn key(&self) -> &'static str {
        "average"
    }

    fn check(&self, _: &Outline) -> Result<(), String> {
        some("average.every", self.every)?;
        within("average.alpha", self.alpha, 0.0, 1.0)
    }

    fn needs(&self) -> Needs {
        Needs {
            start: self.alpha < 1.0,
            pretrained: false,
        }
    }

    fn mixes_weights(&self) -> bool {
        true
    }

    fn load(&self, folder: &Path, run: &Setting<'_>) -> Result<Option<Box<dyn Carried>>, RunError> {
        if !folder.join(WEIGHTS).exists() {
            return Ok(None);
        }
        Ok(Some(Box::new(Averaged {
            weights: load_plain(&folder.join(WEIGHTS), run.checkpoint)?,
            snapshots: read_json(&folder.join(SNAPSHOTS))?,
        })))
    }

    fn begin(&self, state: &mut State) {
        let weights = state.model.valid();
        state.set(Averaged {
            weights,
            snapshots: 0,
        });
    }

    /// `W ← α·(n·W + θ)/(n + 1) + (1 − α)·θ⁰`, n counted from 1.
    fn after_update(&self, step: usize, weights: &dyn Fn() -> ClipModel, state: &mut State) {
        if !step.is_multiple_of(self.every) {
            return;
        }
        let Some(Averaged {
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
        state.set(Averaged {
            weights: next,
            snapshots,
        });
    }

    fn finish(&self, trained: ClipModel, _: &Setting<'_>, state: &State) -> ClipModel {
        match state.get::<Averaged>() {
            Some(average) if average.snapshots > 0 => average.weights.clone(),
            _ => trained,
        }
    }

    fn end(&self, state: &mut State) {
        state.take::<Averaged>();
    }
}

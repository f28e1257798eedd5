//! Interpolation with earlier weights once a task is trained.

use clip_model::ClipModel;
use serde::{Deserialize, Serialize};

use super::{
    earlier::Start,
    hooks::Mechanism,
    setting::{Needs, Outline, Setting, within},
    state::State,
    weights::interpolate,
};

/// After a task `θ ← alpha · θ + (1 − alpha) · θ'` (WiSE-FT, Wortsman et al. 2022; ZSCL
/// `mtil/src/models/finetune.py:332-340`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// Share of the trained weights.
    pub alpha: f64,
    /// The other weights.
    pub with: Start,
}

impl Mechanism for Merge {
    fn key(&self) -> &'static str {
        "merge"
    }

    fn check(&self, _: &Outline) -> Result<(), String> {
        within("merge.alpha", self.alpha, 0.0, 1.0)
    }

    fn needs(&self) -> Needs {
        self.with.needs()
    }

    fn mixes_weights(&self) -> bool {
        true
    }

    fn finish(&self, trained: ClipModel, run: &Setting<'_>, state: &State) -> ClipModel {
        interpolate(trained, self.with.of(run.checkpoint, state), self.alpha)
    }
}

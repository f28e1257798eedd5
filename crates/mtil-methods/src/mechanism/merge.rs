//! Weight interpolation with earlier weights after a task (WiSE-FT).

use clip_model::ClipModel;
use serde::{Deserialize, Serialize};

use super::{
    context::{MethodOutline, RunContext, in_range},
    earlier_weights::{RequiredWeights, Start},
    hooks::Mechanism,
    state::RunState,
    weights::interpolate,
};

/// Weight interpolation after a task: `θ ← alpha · θ + (1 − alpha) · θ'` (WiSE-FT, Wortsman et al.
/// 2022; ZSCL `mtil/src/models/finetune.py:332-340`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// Share of the trained weights.
    pub alpha: f64,
    /// The earlier weights `θ'`.
    pub with: Start,
}

impl Mechanism for Merge {
    fn key(&self) -> &'static str {
        "merge"
    }

    fn check(&self, _: &MethodOutline) -> Result<(), String> {
        in_range("merge.alpha", self.alpha, 0.0, 1.0)
    }

    fn needs(&self) -> RequiredWeights {
        self.with.needs()
    }

    fn averages_weights(&self) -> bool {
        true
    }

    fn final_weights(
        &self,
        trained: ClipModel,
        run: &RunContext<'_>,
        state: &RunState,
    ) -> ClipModel {
        interpolate(
            trained,
            self.with.resolve(run.checkpoint, state),
            self.alpha,
        )
    }
}

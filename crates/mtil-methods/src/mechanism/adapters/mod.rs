//! Low-rank adapters with a chosen basis: one mechanism of several methods.
//!
//! | basis | train | protects | method |
//! |---|---|---|---|
//! | `free` | `both` | – | `lora` |
//! | `free`, with gates | `both` | – | `codyra` |
//! | `residual-gradient` | `out` | weights and inputs | `keeplora` |
//! | `residual-input` | `out` | inputs | `inflora` |
//! | `weight-tail` | `core` | weights | `nusa-cl` |
//! | `weight-tail` | `both` | weights | `osf` |
//!
//! | file | contents |
//! |---|---|
//! | `settings` | the settings and their checks |
//! | `parts` | the adapted weights, and parts of fused ones |
//! | `free` | random adapters that train as a whole, as Burn's `LoraAdapter` |
//! | `factors` | all other adapters: factors of each part |
//! | `basis`, `decompose` | initial factors, from singular value decompositions |
//! | `passes` | gradients and inputs of a task's images |
//! | `protected` | the bases kept from task to task, a mechanism beside the adapters |
//! | `gate` | the proximal step of gates |

mod basis;
mod decompose;
mod factors;
mod free;
mod gate;
mod parts;
mod passes;
mod protected;
mod settings;

use std::path::Path;

use burn::module::{Module, ParamGroup};
use clip_model::{Clip, ClipModel};
use gnsp_optimizer::{Basis, Layout, Protection};

use super::{
    context::{MethodOutline, PhaseProgress, RunContext, TaskContext},
    hooks::{Mechanism, first_pairs},
    module_file::{self, NamedTensors, named_values},
    state::{MechanismState, RunState},
    trainable::Trainable,
};
use crate::error::RunError;
use basis::{HELD, Source};
use factors::PARTS;
use mtil_data::{
    seeds,
    suite::{Suite, Task},
};
use mtil_eval::metrics::Kept;
use parts::{ADAPTER, WeightValues, adapted_weights, factor_name};
use protected::ProtectedBases;

pub(crate) use free::normal_values;
pub(crate) use protected::ProtectedMechanism;
pub use settings::{
    AdapterBasis, AdapterStart, AdapterTrain, AttentionPart, Gate, InputStatistic, Lora, Protect,
    ProtectInputs, ProtectWeights, Side,
};

/// The adapters mechanism: its settings and what it needs of the method.
#[derive(Clone)]
pub(crate) struct LoraMechanism {
    pub settings: Lora,
    pub trainable: Trainable,
    /// Label smoothing of the task's loss.
    pub smoothing: f64,
}

/// Adapter values of the current task: the current factors, those it started from, and directions
/// that its steps may not change.
pub struct LoraState(NamedTensors);

const FILE: &str = "adapters.safetensors";

impl LoraState {
    /// Returns the state with the current values of the adapters of `model`.
    pub fn updated(earlier: Option<Self>, model: &ClipModel) -> Self {
        let mut values = earlier.map_or_else(NamedTensors::new, |state| state.0);
        values.extend(named_values(model, &|path| path.contains(ADAPTER)));
        Self(values)
    }
}

impl MechanismState for LoraState {
    /// A training with other hyper-parameters initialises its own adapters.
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        None
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        module_file::save(&self.0, &folder.join(FILE))
    }

    /// 0, since adapters are merged into the weights at the end of a task.
    fn bytes(&self, _: &Clip) -> u64 {
        0
    }

    fn kept(&self) -> Kept {
        Kept::Weights
    }
}

/// Adds adapters to the weights `groups` of `model` and freezes all other parameters. Their values
/// are those of the state, or for plain adapters drawn from the seed if there are none.
///
/// # Errors
/// [`RunError::NoAdapter`] if a factor is missing from the state.
pub fn attach(
    model: ClipModel,
    settings: &Lora,
    groups: &[ParamGroup],
    seed: u64,
    state: Option<&LoraState>,
) -> Result<ClipModel, RunError> {
    let values = state.map(|state| &state.0);
    if settings.is_plain() {
        return Ok(free::attach(model, settings, groups, seed, values));
    }
    let none = NamedTensors::new();
    factors::attach(model, settings, groups, values.unwrap_or(&none))
        .map_err(|factor| RunError::NoAdapter { factor })
}

impl LoraMechanism {
    /// Returns the pattern groups of the adapted weights, and the weights of `model`.
    fn weights(&self, model: &ClipModel) -> Result<(Vec<ParamGroup>, Vec<WeightValues>), RunError> {
        let (groups, _) = self.trainable.select(model, &self.settings.weights)?;
        let weights = adapted_weights(model, &self.settings, &groups);
        Ok((groups, weights))
    }

    /// Returns the initial factors of a task.
    fn initial_factors(
        &self,
        task: &TaskContext<'_>,
        state: &RunState,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<NamedTensors, RunError> {
        let settings = &self.settings;
        let model = state.model.valid();
        let (groups, weights) = self.weights(&model)?;
        let nothing = ProtectedBases::default();
        let bases = state.get::<ProtectedBases>().unwrap_or(&nothing);
        let found = |source: &Source<'_>| basis::initial_factors(settings, &weights, source);
        let protect = &settings.protect;
        match (settings.basis, &protect.weights, &protect.inputs) {
            (AdapterBasis::ResidualGradient, ..) => {
                let gradients = passes::mean_gradients(
                    &model,
                    &weights,
                    &groups,
                    settings,
                    self.smoothing,
                    task,
                    progress,
                )?;
                found(&Source::Gradients(&gradients, bases))
            }
            (AdapterBasis::ResidualInput, _, Some(inputs)) => {
                let statistic = inputs.statistic;
                let inputs =
                    passes::input_matrices(&model, &weights, statistic, settings, task, progress)?;
                found(&Source::Inputs(&inputs, bases))
            }
            (AdapterBasis::WeightTail, Some(protect), _) => found(&Source::Tail(protect)),
            _ => {
                let purpose = [seeds::ADAPTERS, task.index as u64];
                found(&Source::Free(seeds::derive(task.run.seed, &purpose)))
            }
        }
    }
}

impl Mechanism for LoraMechanism {
    fn key(&self) -> &'static str {
        "lora"
    }

    fn check(&self, method: &MethodOutline) -> Result<(), String> {
        self.settings.check(method)
    }

    fn unlearnable<'a>(&self, suite: &'a Suite) -> Option<(&'a Task, &'static str)> {
        let task = first_pairs(suite).filter(|_| self.settings.is_residual())?;
        Some((
            task,
            "`lora` takes its bases from the prompts of a task's classes",
        ))
    }

    fn trains_adapters(&self) -> bool {
        true
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
        Ok(Some(Box::new(LoraState(module_file::load(&path)?))))
    }

    fn begin_task(&self, state: &mut RunState) {
        state.take::<LoraState>();
    }

    fn prepare_task(
        &self,
        task: &TaskContext<'_>,
        state: &mut RunState,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<(), RunError> {
        if !self.settings.is_plain() {
            let factors = self.initial_factors(task, state, progress)?;
            state.set(LoraState(factors));
        }
        Ok(())
    }

    fn protection(
        &self,
        _: usize,
        model: &ClipModel,
        state: &RunState,
    ) -> Result<Option<Protection>, RunError> {
        let settings = &self.settings;
        let (AdapterBasis::WeightTail, AdapterTrain::Both, Some(protect), Some(LoraState(values))) = (
            settings.basis,
            settings.train,
            &settings.protect.weights,
            state.get::<LoraState>(),
        ) else {
            return Ok(None);
        };
        let (_, weights) = self.weights(&state.model.valid())?;
        let mut bases = Vec::new();
        for (weight, _) in &weights {
            let parts = 0..weight.parts.len();
            for (part, factor) in parts.flat_map(|part| [(part, "a"), (part, "b")]) {
                let held = weight.name(HELD, part, factor);
                let (shape, rows) = values
                    .get(&held)
                    .ok_or(RunError::NoAdapter { factor: held })?;
                let basis = Basis::from_rows(shape[1], rows.clone())?;
                // A has the input directions in its columns, B the output directions in its rows.
                let layout = match factor {
                    "a" => Layout::InputsFirst,
                    _ => Layout::InputsLast { groups: 1 },
                };
                bases.push((
                    factor_name(&weight.path, PARTS, part, factor),
                    layout,
                    basis,
                ));
            }
        }
        Ok(Some(Protection::of_bases(model, protect.site, bases)?))
    }

    fn after_update(&self, model: ClipModel, step: usize, steps: usize) -> ClipModel {
        let gate = self.settings.gate.as_ref();
        match gate.and_then(|gate| Some((gate, gate.threshold(step, steps)?))) {
            Some((gate, threshold)) => gate.shrink(model, threshold),
            None => model,
        }
    }

    fn end_task(&self, state: &mut RunState) {
        state.take::<LoraState>();
    }
}

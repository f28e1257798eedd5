//! What resuming needs.
//!
//! `state/` is replaced as a whole: the new one is written beside it and renamed, so a crash at any
//! moment leaves the old or the new one.

use std::{collections::BTreeMap, fs, path::Path};

use burn::{optim::ModuleOptimizer, tensor::Device};
use clip_model::{Clip, ClipModel, Dtype, load_weights, save_weights};
use gnsp_optimizer::Memory;
use serde::{Deserialize, Serialize};

use super::{
    Exemplars, RunError, RunFiles,
    analytic::Regression,
    directory::write_atomically,
    experts::{Mixtures, Usage},
    module_file::{self, Named, values},
    student,
};
use crate::{eval::Evaluation, guard::Breach, method::Method};
use mtil_data::suite::Suite;

/// Where a run is, and its results so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// The task in work.
    pub task: usize,
    /// Updates made on it.
    pub step: usize,
    /// Evaluations so far: the pretrained model, then one a task.
    pub evaluations: Vec<Evaluation>,
    /// Seconds of work so far, over all processes.
    pub seconds: f64,
    /// Snapshots in the average of the weights.
    #[serde(default)]
    pub snapshots: usize,
    /// Values that trained on the task before, or in work.
    #[serde(default)]
    pub trainable: u64,
    /// Thresholds of the drift guard that were crossed.
    #[serde(default)]
    pub breaches: Vec<Breach>,
    /// Largest resident memory so far, in MiB.
    #[serde(default)]
    pub peak_mb: Option<f64>,
    /// Whether the drift guard ended the run.
    #[serde(default)]
    pub stopped_by_guard: bool,
}

/// The models that a state may hold besides the one in training, all on the plain device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The model at the start of the task.
    Start,
    /// The average of the weights along the way.
    Average,
    /// The importance of the parameters for earlier tasks.
    Importance,
    /// The weights that they are held at.
    Anchor,
}

impl Part {
    const ALL: [Self; 4] = [Self::Start, Self::Average, Self::Importance, Self::Anchor];

    fn file(self) -> &'static str {
        match self {
            Self::Start => "start.safetensors",
            Self::Average => "average.safetensors",
            Self::Importance => "importance.safetensors",
            Self::Anchor => "anchor.safetensors",
        }
    }
}

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.bpk";
const MEMORY: &str = "memory.safetensors";
const ADAPTERS: &str = "adapters.safetensors";
const EXPERTS: &str = "experts.safetensors";
const USAGE: &str = "experts.json";
const EXEMPLARS: &str = "exemplars.json";
const REGRESSION: &str = "regression.safetensors";

/// A resumable run.
pub(super) struct State {
    pub position: Position,
    /// On the autodiff device, without adapters.
    pub model: ClipModel,
    /// The optimizer's state as bytes; empty between tasks.
    pub optimizer: Vec<u8>,
    pub memory: Memory,
    pub parts: BTreeMap<Part, ClipModel>,
    /// Low-rank adapters of the task in work.
    pub adapters: Option<Named>,
    /// Mixtures of adapters.
    pub mixtures: Option<(Mixtures, Usage)>,
    pub exemplars: Option<Exemplars>,
    pub regression: Option<Regression>,
}

impl State {
    /// The same at the start of a task, to be trained another way.
    pub fn branch(&self) -> Self {
        Self {
            position: self.position.clone(),
            model: self.model.clone(),
            optimizer: Vec::new(),
            memory: self.memory.clone(),
            parts: self.parts.clone(),
            adapters: None,
            mixtures: None,
            exemplars: self.exemplars.clone(),
            regression: None,
        }
    }

    /// A run that has not begun: `model` is the pretrained one, on the autodiff device.
    pub fn fresh(
        model: ClipModel,
        method: &Method,
        checkpoint: &Clip,
        suite: &Suite,
        seed: u64,
        device: &Device,
    ) -> Result<Self, RunError> {
        let mixtures = match &method.experts {
            Some(experts) => {
                let tasks = suite.tasks.len();
                let fresh = student::mixtures(experts, checkpoint, tasks, seed, None, device)?;
                Some((fresh, Usage::default()))
            }
            None => None,
        };
        let regression = match &method.analytic {
            Some(settings) => {
                let width = checkpoint.config.projection_dim;
                Some(Regression::new(settings, suite, width, seed)?)
            }
            None => None,
        };
        Ok(Self {
            position: Position::default(),
            model,
            optimizer: Vec::new(),
            memory: Memory::new(),
            parts: BTreeMap::new(),
            adapters: None,
            mixtures,
            exemplars: None,
            regression,
        })
    }

    /// Writes the state, and that of the optimizer if a task is in work.
    pub fn save(
        &self,
        files: &RunFiles,
        checkpoint: &Clip,
        optimizer: Option<&ModuleOptimizer>,
    ) -> Result<(), RunError> {
        let [state, new, old] = files.states();
        let remove = |path: &Path| match fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(RunError::io(path, e)),
            _ => Ok(()),
        };
        remove(&new)?;
        fs::create_dir_all(&new).map_err(|e| RunError::io(&new, e))?;
        let weights = |model: &ClipModel, name: &str| {
            save_weights(model, &checkpoint.config, &new.join(name), Dtype::F32)
        };
        weights(&self.model, MODEL)?;
        for (part, model) in &self.parts {
            weights(model, part.file())?;
        }
        if let Some(optimizer) = optimizer {
            let path = new.join(OPTIMIZER);
            let bytes = optimizer.into_bytes().map_err(|e| RunError::Corrupt {
                path: path.clone(),
                reason: format!("the optimizer's state cannot be stored: {e:?}"),
            })?;
            write_atomically(&path, &bytes)?;
        }
        self.memory.save(new.join(MEMORY))?;
        if let Some(adapters) = &self.adapters {
            module_file::save(adapters, &new.join(ADAPTERS))?;
        }
        if let Some((mixtures, usage)) = &self.mixtures {
            module_file::save(&values(mixtures, &|_| true), &new.join(EXPERTS))?;
            write_json(usage, &new.join(USAGE))?;
        }
        if let Some(exemplars) = &self.exemplars {
            write_json(exemplars, &new.join(EXEMPLARS))?;
        }
        if let Some(regression) = &self.regression
            && self.position.task > 0
        {
            regression.save(&new.join(REGRESSION))?;
        }
        write_json(&self.position, &RunFiles::position_in(&new))?;
        if state.exists() {
            remove(&old)?;
            fs::rename(&state, &old).map_err(|e| RunError::io(&state, e))?;
        }
        fs::rename(&new, &state).map_err(|e| RunError::io(&new, e))?;
        remove(&old)
    }

    /// The state of a run, if there is one.
    pub fn load(
        files: &RunFiles,
        method: &Method,
        checkpoint: &Clip,
        suite: &Suite,
        seed: u64,
        device: &Device,
    ) -> Result<Option<Self>, RunError> {
        let Some(state) = files.state() else {
            return Ok(None);
        };
        let there = |name: &str| {
            let path = state.join(name);
            path.exists().then_some(path)
        };
        let weights = |name: &str, device: &Device| {
            load_weights(&checkpoint.config, &state.join(name), device)
        };
        let model = weights(MODEL, device)?;
        let mut loaded = Self::fresh(model, method, checkpoint, suite, seed, device)?;
        loaded.position = read_json(&RunFiles::position_in(&state))?;
        if let Some(path) = there(OPTIMIZER) {
            loaded.optimizer = fs::read(&path).map_err(|e| RunError::io(&path, e))?;
        }
        loaded.memory = Memory::load(state.join(MEMORY))?;
        for part in Part::ALL {
            if there(part.file()).is_some() {
                let plain = checkpoint.model.device();
                loaded.parts.insert(part, weights(part.file(), &plain)?);
            }
        }
        if let Some(path) = there(ADAPTERS) {
            loaded.adapters = Some(module_file::load(&path)?);
        }
        if let (Some(path), Some(experts)) = (there(EXPERTS), &method.experts) {
            let stored = Some((module_file::load(&path)?, path.as_path()));
            let tasks = suite.tasks.len();
            let mixtures = student::mixtures(experts, checkpoint, tasks, seed, stored, device)?;
            loaded.mixtures = Some((mixtures, read_json(&state.join(USAGE))?));
        }
        if let Some(path) = there(EXEMPLARS) {
            loaded.exemplars = Some(read_json(&path)?);
        }
        if let (Some(path), Some(settings)) = (there(REGRESSION), &method.analytic) {
            loaded.regression = Some(Regression::load(settings, &path)?);
        }
        Ok(Some(loaded))
    }
}

fn write_json<T: Serialize>(value: &T, path: &Path) -> Result<(), RunError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| RunError::Corrupt {
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    write_atomically(path, text.as_bytes())
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, RunError> {
    let bytes = fs::read(path).map_err(|e| RunError::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| RunError::Corrupt {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

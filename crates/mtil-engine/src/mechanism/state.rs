//! What a run carries from update to update, and what resuming needs.
//!
//! `state/` is replaced as a whole: the new one is written beside it and renamed, so a crash at any
//! moment leaves the old or the new one.

use std::{any::Any, fs, path::Path};

use burn::{optim::ModuleOptimizer, tensor::Device};
use clip_model::{Clip, ClipModel, Dtype, load_weights, save_weights};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{error::RunError, eval::Evaluation, guard::Breach};
use mtil_data::files::write_atomically;

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

/// What a mechanism carries.
pub(crate) trait Carried: Any {
    /// A copy for another way of training the same task; none where there is no other way.
    fn copy(&self) -> Option<Box<dyn Carried>>;

    /// Writes its files into the folder of a state.
    fn save(&self, folder: &Path, checkpoint: &Clip) -> Result<(), RunError>;

    /// Bytes that it carries from task to task.
    fn bytes(&self, checkpoint: &Clip) -> u64;
}

const MODEL: &str = "model.safetensors";
const START: &str = "start.safetensors";
const OPTIMIZER: &str = "optimizer.bpk";
const POSITION: &str = "position.json";

/// A resumable run.
pub(crate) struct State {
    pub position: Position,
    /// On the autodiff device, without adapters.
    pub model: ClipModel,
    /// The weights at the start of the task, where something needs them; on the plain device.
    pub start: Option<ClipModel>,
    /// The optimizer's state as bytes; empty between tasks.
    pub optimizer: Vec<u8>,
    carried: Vec<Box<dyn Carried>>,
}

impl State {
    /// A run that has not begun and carries nothing yet: `model` is the pretrained one, on the
    /// autodiff device.
    pub fn new(model: ClipModel) -> Self {
        Self {
            position: Position::default(),
            model,
            start: None,
            optimizer: Vec::new(),
            carried: Vec::new(),
        }
    }

    /// The same at the start of a task, to be trained another way.
    pub fn branch(&self) -> Self {
        Self {
            position: self.position.clone(),
            model: self.model.clone(),
            start: self.start.clone(),
            optimizer: Vec::new(),
            carried: self.carried.iter().filter_map(|c| c.copy()).collect(),
        }
    }

    /// What a mechanism carries, by its type.
    pub fn get<T: Carried>(&self) -> Option<&T> {
        let mut all = self.carried.iter();
        all.find_map(|carried| (carried.as_ref() as &dyn Any).downcast_ref())
    }

    /// The same, to be changed.
    pub fn get_mut<T: Carried>(&mut self) -> Option<&mut T> {
        let mut all = self.carried.iter_mut();
        all.find_map(|carried| (carried.as_mut() as &mut dyn Any).downcast_mut())
    }

    /// Takes it out.
    pub fn take<T: Carried>(&mut self) -> Option<T> {
        let mut all = self.carried.iter();
        let at = all.position(|carried| (carried.as_ref() as &dyn Any).is::<T>())?;
        let carried: Box<dyn Any> = self.carried.remove(at);
        carried.downcast().ok().map(|carried| *carried)
    }

    /// Puts it in, in place of another of its type.
    pub fn set<T: Carried>(&mut self, carried: T) {
        self.set_boxed(Box::new(carried));
    }

    /// The same of what a mechanism gave.
    pub fn set_boxed(&mut self, carried: Box<dyn Carried>) {
        let id = (carried.as_ref() as &dyn Any).type_id();
        self.carried
            .retain(|other| (other.as_ref() as &dyn Any).type_id() != id);
        self.carried.push(carried);
    }

    /// Bytes that all mechanisms carry from task to task.
    pub fn bytes_carried(&self, checkpoint: &Clip) -> u64 {
        self.carried.iter().map(|c| c.bytes(checkpoint)).sum()
    }

    /// Writes the state, and that of the optimizer if a task is in work. `folders` are the state as
    /// it is, as it is while it is written, and the one before it.
    pub fn save(
        &self,
        folders: &[std::path::PathBuf; 3],
        checkpoint: &Clip,
        optimizer: Option<&ModuleOptimizer>,
    ) -> Result<(), RunError> {
        let [state, new, old] = folders;
        let remove = |path: &Path| match fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(RunError::io(path, e)),
            _ => Ok(()),
        };
        remove(new)?;
        fs::create_dir_all(new).map_err(|e| RunError::io(new, e))?;
        save_model(&self.model, &new.join(MODEL), checkpoint)?;
        if let Some(start) = &self.start {
            save_model(start, &new.join(START), checkpoint)?;
        }
        if let Some(optimizer) = optimizer {
            let path = new.join(OPTIMIZER);
            let bytes = optimizer.into_bytes().map_err(|e| RunError::Corrupt {
                path: path.clone(),
                reason: format!("the optimizer's state cannot be stored: {e:?}"),
            })?;
            write_atomically(&path, &bytes).map_err(|e| RunError::io(&path, e))?;
        }
        for carried in &self.carried {
            carried.save(new, checkpoint)?;
        }
        write_json(&self.position, &new.join(POSITION))?;
        if state.exists() {
            remove(old)?;
            fs::rename(state, old).map_err(|e| RunError::io(state, e))?;
        }
        fs::rename(new, state).map_err(|e| RunError::io(new, e))?;
        remove(old)
    }

    /// The state in `folder` without what mechanisms carry; the model on `device`.
    pub fn load(folder: &Path, checkpoint: &Clip, device: &Device) -> Result<Self, RunError> {
        let mut state = Self::new(load_model(&folder.join(MODEL), checkpoint, device)?);
        state.position = read_json(&folder.join(POSITION))?;
        let path = folder.join(START);
        if path.exists() {
            state.start = Some(load_plain(&path, checkpoint)?);
        }
        let path = folder.join(OPTIMIZER);
        if path.exists() {
            state.optimizer = fs::read(&path).map_err(|e| RunError::io(&path, e))?;
        }
        Ok(state)
    }
}

/// Writes the weights of a CLIP of the checkpoint's shape.
pub(crate) fn save_model(
    model: &ClipModel,
    path: &Path,
    checkpoint: &Clip,
) -> Result<(), RunError> {
    Ok(save_weights(model, &checkpoint.config, path, Dtype::F32)?)
}

fn load_model(path: &Path, checkpoint: &Clip, device: &Device) -> Result<ClipModel, RunError> {
    Ok(load_weights(&checkpoint.config, path, device)?)
}

/// Reads them onto the checkpoint's device.
pub(crate) fn load_plain(path: &Path, checkpoint: &Clip) -> Result<ClipModel, RunError> {
    load_model(path, checkpoint, &checkpoint.model.device())
}

pub(crate) fn write_json<T: Serialize>(value: &T, path: &Path) -> Result<(), RunError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| RunError::Corrupt {
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    write_atomically(path, text.as_bytes()).map_err(|e| RunError::io(path, e))
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, RunError> {
    let bytes = fs::read(path).map_err(|e| RunError::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| RunError::Corrupt {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

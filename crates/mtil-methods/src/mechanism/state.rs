//! Resumable state of a run: position, weights, optimizer, and the state of mechanisms.
//!
//! `state/` is replaced atomically: the new state is written beside it and renamed, so a crash at
//! any moment leaves the old or the new one. Its `manifest` tells whether it is complete.

use std::{
    any::Any,
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use burn::{optim::ModuleOptimizer, tensor::Device};
use clip_model::{
    CheckpointError, Clip, ClipModel, Dtype, load_weights, save_weights, weights::WeightError,
};
use gnsp_optimizer::GnspError;
use serde::{Deserialize, Serialize};

use super::{
    json_file::{read_json, write_json},
    manifest,
};
use crate::error::{RunError, StateFault};
use mtil_data::files::write_atomically;
use mtil_eval::{eval::Evaluation, guard::Breach, metrics::Kept};

/// Position of a run, and its results so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Index of the current task.
    pub task: usize,
    /// Finished training steps of the current task.
    pub step: usize,
    /// Evaluations so far: the pretrained model, then one per task.
    pub evaluations: Vec<Evaluation>,
    /// Digest of each task that the evaluations have a cell for. Empty in earlier versions.
    #[serde(default)]
    pub columns: Vec<String>,
    /// Number of tasks from which what later tasks need is stored. Earlier versions did not store it
    /// from the last task.
    #[serde(default)]
    pub stored: usize,
    /// Run time so far in seconds, over all processes.
    pub seconds: f64,
    /// Trainable values of the current task, or of the last one.
    #[serde(default)]
    pub trainable: u64,
    /// Bytes carried from the learned tasks besides the model, by what they are. Earlier versions did
    /// not store it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<BTreeMap<Kept, u64>>,
    /// Broken rules of the drift guard.
    #[serde(default)]
    pub breaches: Vec<Breach>,
    /// Largest resident memory so far, in MiB.
    #[serde(default)]
    pub peak_mb: Option<f64>,
    /// True if the drift guard ended the run.
    #[serde(default)]
    pub stopped_by_guard: bool,
    /// Index of the task that the run was made to go back to, until it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewound_to: Option<usize>,
}

/// State that a mechanism carries through a run.
pub trait MechanismState: Any + Send {
    /// Returns a copy for training the same task with other hyper-parameters; none if the state is
    /// not shared between such trainings.
    fn copy(&self) -> Option<Box<dyn MechanismState>>;

    /// Writes the files of the state into a folder.
    fn save(&self, folder: &Path, checkpoint: &Clip) -> Result<(), RunError>;

    /// Returns the bytes that are carried from task to task.
    fn bytes(&self, checkpoint: &Clip) -> u64;

    /// Returns what these bytes are.
    fn kept(&self) -> Kept;

    /// Returns these bytes by what they are, where they are of several kinds.
    fn kept_bytes(&self, checkpoint: &Clip) -> Vec<(Kept, u64)> {
        vec![(self.kept(), self.bytes(checkpoint))]
    }
}

/// File of the weights.
pub const MODEL: &str = "model.safetensors";
const START: &str = "start.safetensors";
/// File of the optimizer.
pub const OPTIMIZER: &str = "optimizer.bpk";
/// File of the position.
pub const POSITION: &str = "position.json";

/// The resumable state of a run.
pub struct RunState {
    /// Position of the run.
    pub position: Position,
    /// On the autodiff device, without adapters.
    pub model: ClipModel,
    /// The weights at the start of the task, if they are needed; without autodiff.
    pub start: Option<ClipModel>,
    /// The serialised optimizer; empty between tasks.
    pub optimizer: Vec<u8>,
    mechanisms: Vec<Box<dyn MechanismState>>,
}

impl RunState {
    /// Creates the state of a run before the first task, without mechanism states. `model` is the
    /// pretrained one, on the autodiff device.
    pub fn new(model: ClipModel) -> Self {
        Self {
            position: Position::default(),
            model,
            start: None,
            optimizer: Vec::new(),
            mechanisms: Vec::new(),
        }
    }

    /// Returns a copy at the start of a task, for training with other hyper-parameters.
    pub fn branch(&self) -> Self {
        Self {
            position: self.position.clone(),
            model: self.model.clone(),
            start: self.start.clone(),
            optimizer: Vec::new(),
            mechanisms: self.mechanisms.iter().filter_map(|c| c.copy()).collect(),
        }
    }

    /// Returns the mechanism state of type `T`.
    pub fn get<T: MechanismState>(&self) -> Option<&T> {
        let mut all = self.mechanisms.iter();
        all.find_map(|state| (state.as_ref() as &dyn Any).downcast_ref())
    }

    /// Returns the mutable mechanism state of type `T`.
    pub fn get_mut<T: MechanismState>(&mut self) -> Option<&mut T> {
        let mut all = self.mechanisms.iter_mut();
        all.find_map(|state| (state.as_mut() as &mut dyn Any).downcast_mut())
    }

    /// Removes the mechanism state of type `T`.
    pub fn take<T: MechanismState>(&mut self) -> Option<T> {
        let mut all = self.mechanisms.iter();
        let at = all.position(|state| (state.as_ref() as &dyn Any).is::<T>())?;
        let state: Box<dyn Any> = self.mechanisms.remove(at);
        state.downcast().ok().map(|state| *state)
    }

    /// Sets the mechanism state of type `T`.
    pub fn set<T: MechanismState>(&mut self, state: T) {
        self.set_boxed(Box::new(state));
    }

    /// Sets a boxed mechanism state, which replaces one of the same type.
    pub fn set_boxed(&mut self, state: Box<dyn MechanismState>) {
        let id = (state.as_ref() as &dyn Any).type_id();
        self.mechanisms
            .retain(|other| (other.as_ref() as &dyn Any).type_id() != id);
        self.mechanisms.push(state);
    }

    /// Returns the bytes that the mechanisms carry from task to task, by what they are.
    pub fn kept(&self, checkpoint: &Clip) -> BTreeMap<Kept, u64> {
        let mut kept = BTreeMap::new();
        for state in &self.mechanisms {
            for (kind, bytes) in state.kept_bytes(checkpoint) {
                *kept.entry(kind).or_default() += bytes;
            }
        }
        kept
    }

    /// Writes the state, and that of the optimizer within a task. `folders` are those of the
    /// current state, of the state being written, and of the previous state. `run` identifies the
    /// run.
    pub fn save(
        &self,
        folders: &[PathBuf; 3],
        run: &str,
        checkpoint: &Clip,
        optimizer: Option<&ModuleOptimizer>,
    ) -> Result<(), RunError> {
        let new = &folders[1];
        remove_folder(new)?;
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
        for mechanism in &self.mechanisms {
            mechanism.save(new, checkpoint)?;
        }
        write_json(&self.position, &new.join(POSITION))?;
        manifest::write(new, run, &[])?;
        replace_state(folders)
    }

    /// Loads the state from `folder` and its model from `weights`, without mechanism states. The
    /// model is on `device`.
    pub fn load(
        folder: &Path,
        weights: &Path,
        checkpoint: &Clip,
        device: &Device,
    ) -> Result<Self, RunError> {
        let mut state = Self::new(load_model(weights, checkpoint, device)?);
        state.position = read_json(&folder.join(POSITION))?;
        let path = folder.join(START);
        if path.exists() {
            state.start = Some(load_plain(&path, checkpoint)?);
        }
        let path = folder.join(OPTIMIZER);
        if path.exists() {
            state.optimizer = fs::read(&path).map_err(|e| RunError::io(&path, e))?;
        } else if state.position.step > 0 {
            let fault = StateFault::Missing;
            return Err(RunError::State { path, fault });
        }
        Ok(state)
    }
}

/// Returns an error of loading the state in `folder` as one of the state. The errors of weight
/// files suggest to fetch the file again, which does not apply here.
pub fn state_error(error: RunError, folder: &Path) -> RunError {
    let fault = |path, fault| RunError::State { path, fault };
    let unreadable = |path, reason| fault(path, StateFault::Unreadable(reason));
    let io = |path: PathBuf, source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => fault(path, StateFault::Missing),
        _ => RunError::Io { path, source },
    };
    match error {
        RunError::Corrupt { path, reason } => unreadable(path, reason),
        RunError::Io { path, source } => io(path, source),
        RunError::Memory(GnspError::Io { file, source }) => io(file, source),
        RunError::Checkpoint(CheckpointError::Weights(error)) => match error {
            WeightError::Io { path, source } => io(path, source),
            WeightError::Truncated {
                path,
                part,
                needed,
                left,
            } => unreadable(
                path,
                format!("{part} needs {needed} bytes, {left} are left"),
            ),
            WeightError::Header { path, reason } => {
                unreadable(path, format!("invalid header: {reason}"))
            }
            error => unreadable(folder.to_owned(), error.to_string()),
        },
        RunError::Checkpoint(error) => unreadable(folder.to_owned(), error.to_string()),
        RunError::Memory(error) => unreadable(folder.to_owned(), error.to_string()),
        RunError::Analytic(error) => unreadable(folder.to_owned(), error.to_string()),
        other => other,
    }
}

/// Replaces the current state by the new one. A crash leaves one of them, or the previous one.
pub fn replace_state([state, new, old]: &[PathBuf; 3]) -> Result<(), RunError> {
    if state.exists() {
        remove_folder(old)?;
        fs::rename(state, old).map_err(|e| RunError::io(state, e))?;
    }
    fs::rename(new, state).map_err(|e| RunError::io(new, e))?;
    remove_folder(old)
}

/// Makes `to` a folder with the files of the state in `from`. They share their bytes where the file
/// system allows, because no file of a state is ever changed.
pub fn link_files(from: &Path, to: &Path) -> Result<(), RunError> {
    remove_folder(to)?;
    fs::create_dir_all(to).map_err(|e| RunError::io(to, e))?;
    for name in manifest::all_files(from)? {
        link_file(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

/// Makes `to` a file with the bytes of `from`, as [`link_files`].
pub fn link_file(from: &Path, to: &Path) -> Result<(), RunError> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map_err(|e| RunError::io(to, e))?;
    Ok(())
}

/// Removes a folder, if it exists.
pub fn remove_folder(path: &Path) -> Result<(), RunError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(RunError::io(path, e)),
        _ => Ok(()),
    }
}

/// Writes the weights of a CLIP with the checkpoint's architecture.
pub fn save_model(model: &ClipModel, path: &Path, checkpoint: &Clip) -> Result<(), RunError> {
    Ok(save_weights(model, &checkpoint.config, path, Dtype::F32)?)
}

fn load_model(path: &Path, checkpoint: &Clip, device: &Device) -> Result<ClipModel, RunError> {
    Ok(load_weights(&checkpoint.config, path, device)?)
}

/// Loads such weights onto the checkpoint's device, without autodiff.
pub(crate) fn load_plain(path: &Path, checkpoint: &Clip) -> Result<ClipModel, RunError> {
    load_model(path, checkpoint, &checkpoint.model.device())
}

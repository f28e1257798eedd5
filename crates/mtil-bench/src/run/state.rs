//! What resuming needs.
//!
//! `state/` is replaced as a whole: the new one is written beside it and renamed, so a crash at any
//! moment leaves the old or the new one.

use std::{fs, path::Path};

use burn::{optim::ModuleOptimizer, tensor::Device};
use clip_model::{Clip, ClipModel, Dtype, load_weights, save_weights};
use gnsp_optimizer::Memory;
use serde::{Deserialize, Serialize};

use super::{RunError, directory::write_atomically};
use crate::eval::Evaluation;

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
}

/// A resumable run.
pub(super) struct State {
    pub position: Position,
    pub model: ClipModel,
    /// The optimizer's state as bytes; empty between tasks.
    pub optimizer: Vec<u8>,
    pub memory: Memory,
    /// The model at the start of the task, when the method needs it.
    pub previous: Option<ClipModel>,
}

impl State {
    pub fn save(
        folder: &Path,
        checkpoint: &Clip,
        position: &Position,
        model: &ClipModel,
        optimizer: Option<&ModuleOptimizer>,
        memory: &Memory,
        previous: Option<&ClipModel>,
    ) -> Result<(), RunError> {
        let (new, old, state) = (
            folder.join("state.new"),
            folder.join("state.old"),
            folder.join("state"),
        );
        let remove = |path: &Path| match fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(RunError::io(path, e)),
            _ => Ok(()),
        };
        remove(&new)?;
        fs::create_dir_all(&new).map_err(|e| RunError::io(&new, e))?;
        save_weights(
            model,
            &checkpoint.config,
            &new.join("model.safetensors"),
            Dtype::F32,
        )?;
        if let Some(previous) = previous {
            save_weights(
                previous,
                &checkpoint.config,
                &new.join("previous.safetensors"),
                Dtype::F32,
            )?;
        }
        if let Some(optimizer) = optimizer {
            let path = new.join("optimizer.bpk");
            let bytes = optimizer.into_bytes().map_err(|e| RunError::Corrupt {
                path: path.clone(),
                reason: format!("the optimizer's state cannot be stored: {e:?}"),
            })?;
            write_atomically(&path, &bytes)?;
        }
        memory.save(new.join("memory.safetensors"))?;
        let text = serde_json::to_string_pretty(position).map_err(|e| RunError::Corrupt {
            path: new.join("position.json"),
            reason: e.to_string(),
        })?;
        write_atomically(&new.join("position.json"), text.as_bytes())?;
        if state.exists() {
            remove(&old)?;
            fs::rename(&state, &old).map_err(|e| RunError::io(&state, e))?;
        }
        fs::rename(&new, &state).map_err(|e| RunError::io(&new, e))?;
        remove(&old)
    }

    /// The state in `folder`, if there is one.
    pub fn load(
        folder: &Path,
        checkpoint: &Clip,
        device: &Device,
    ) -> Result<Option<Self>, RunError> {
        // A crash between the two renames of `save` leaves only the old state.
        let Some(state) = [folder.join("state"), folder.join("state.old")]
            .into_iter()
            .find(|p| p.exists())
        else {
            return Ok(None);
        };
        let read = |name: &str| {
            let path = state.join(name);
            fs::read(&path).map_err(|e| RunError::io(&path, e))
        };
        let weights = |name: &str| -> Result<ClipModel, RunError> {
            Ok(load_weights(&checkpoint.config, &state.join(name), device)?)
        };
        let position =
            serde_json::from_slice(&read("position.json")?).map_err(|e| RunError::Corrupt {
                path: state.join("position.json"),
                reason: e.to_string(),
            })?;
        let optional = |name: &str| state.join(name).exists();
        Ok(Some(Self {
            position,
            model: weights("model.safetensors")?,
            optimizer: if optional("optimizer.bpk") {
                read("optimizer.bpk")?
            } else {
                Vec::new()
            },
            memory: Memory::load(state.join("memory.safetensors"))?,
            previous: if optional("previous.safetensors") {
                Some(weights("previous.safetensors")?)
            } else {
                None
            },
        }))
    }
}

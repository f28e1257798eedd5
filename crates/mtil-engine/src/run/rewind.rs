//! Return of a run to the checkpoint of an earlier task.
//!
//! The checkpoint after a task has a folder `state` with what the run carried into the next task,
//! except the weights, which are those of the checkpoint: `position.json`, the files of the
//! mechanisms, and a manifest of them and of the weights.

use std::{fs, path::Path};

use clip_model::Clip;

use super::RunFiles;
use mtil_methods::{
    error::{RunError, StateFault},
    mechanism::{
        json_file::{read_json, write_json},
        manifest,
        state::{MODEL, POSITION, Position, link_file, remove_folder, replace_state, save_model},
    },
};

/// The weights of a checkpoint, from the folder of the state that it keeps.
const WEIGHTS: &str = "../model.safetensors";

/// Keeps the state after `done` tasks beside the checkpoint of the last of them, if there is such a
/// checkpoint. `ids` are the [identities](super::lineage::Lineage::state_ids) of the run's states.
///
/// # Errors
/// [`RunError::Io`].
pub(super) fn keep_state(files: &RunFiles, done: usize, ids: &[String]) -> Result<(), RunError> {
    let Some(checkpoint) = done.checked_sub(1).map(|index| files.checkpoint(index)) else {
        return Ok(());
    };
    let kept = RunFiles::kept_state(&checkpoint);
    if kept.exists() || !checkpoint.join(MODEL).exists() {
        return Ok(());
    }
    let Some(state) = files.state() else {
        return Ok(());
    };
    let new = checkpoint.join("state.new");
    copy_files(&state, &new)?;
    manifest::write(&new, &ids[done], &[WEIGHTS])?;
    fs::rename(&new, &kept).map_err(|e| RunError::io(&kept, e))
}

/// Returns whether the state is whole and has gone back to the task `index` already, so
/// that the command that made it go back resumes it.
pub(super) fn is_rewound(files: &RunFiles, index: usize, ids: &[String]) -> bool {
    let rewound = |position: Position| position.rewound_to == Some(index);
    let whole = |state| manifest::verify(state, ids).is_ok();
    files.position().ok().flatten().is_some_and(rewound)
        && files.state().as_deref().is_some_and(whole)
}

/// Replaces the state by that before the task `index`, counted from 0. Later tasks are
/// then trained again. Before the first task there is no state.
///
/// # Errors
/// [`RunError::State`] if the state was not kept, or is damaged or another one;
/// [`RunError::Checkpoint`]; [`RunError::Io`].
pub(super) fn rewind(
    files: &RunFiles,
    index: usize,
    ids: &[String],
    pretrained: &Clip,
) -> Result<(), RunError> {
    match index.checked_sub(1).map(|last| files.checkpoint(last)) {
        None => files.states().iter().try_for_each(|f| remove_folder(f))?,
        Some(checkpoint) => restore(files, &checkpoint, index, ids, pretrained)?,
    }
    // The states of later tasks are written again.
    (index..)
        .map(|later| files.checkpoint(later))
        .take_while(|checkpoint| checkpoint.exists())
        .try_for_each(|checkpoint| remove_folder(&RunFiles::kept_state(&checkpoint)))
}

/// Makes the state that `checkpoint` keeps the current one.
fn restore(
    files: &RunFiles,
    checkpoint: &Path,
    index: usize,
    ids: &[String],
    pretrained: &Clip,
) -> Result<(), RunError> {
    let kept = RunFiles::kept_state(checkpoint);
    let path = kept.join(POSITION);
    let fault = |fault| RunError::State {
        path: path.clone(),
        fault,
    };
    if !path.exists() {
        return Err(fault(StateFault::Missing));
    }
    manifest::verify(&kept, ids)?;
    let mut position: Position = read_json(&path)?;
    if (position.task, position.step) != (index, 0) {
        let found = format!("it is at task {}", position.task + 1);
        return Err(fault(StateFault::Unreadable(found)));
    }
    position.rewound_to = Some(index);
    let weights = Clip::load(checkpoint, &pretrained.model.device())?;
    let folders = files.states();
    let new = &folders[1];
    copy_files(&kept, new)?;
    write_json(&position, &new.join(POSITION))?;
    save_model(&weights.model, &new.join(MODEL), pretrained)?;
    manifest::write(new, &ids[index], &[])?;
    replace_state(&folders)
}

/// Copies the files of the state in `from` to the new folder `to`, except the weights and the
/// manifest.
fn copy_files(from: &Path, to: &Path) -> Result<(), RunError> {
    remove_folder(to)?;
    fs::create_dir_all(to).map_err(|e| RunError::io(to, e))?;
    for name in manifest::state_files(from)? {
        if name != MODEL {
            link_file(&from.join(&name), &to.join(&name))?;
        }
    }
    Ok(())
}

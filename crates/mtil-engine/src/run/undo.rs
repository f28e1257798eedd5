//! Taking the last task of a run back.
//!
//! The folder `undo` of a run directory keeps the state before its last task, until the next task
//! is learned.

use std::{fs, path::Path};

use super::{Event, RunDirectory, RunFiles, event::now};
use mtil_eval::metrics::{MatrixFile, MetricsFile};
use mtil_methods::{
    error::RunError,
    mechanism::{
        json_file::read_json,
        manifest,
        state::{POSITION, Position, link_files, remove_folder, replace_state},
    },
};

/// A task that was taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undone {
    /// Name of the task.
    pub task: String,
    /// Number of tasks that are still learned.
    pub learned: usize,
}

/// Keeps the current state as the one before the task that begins.
///
/// # Errors
/// [`RunError::Io`].
pub(super) fn keep_previous(files: &RunFiles) -> Result<(), RunError> {
    let Some(state) = files.state() else {
        return Ok(());
    };
    let (kept, new) = (files.undo(), files.undo_new());
    link_files(&state, &new)?;
    remove_folder(&kept)?;
    fs::rename(&new, &kept).map_err(|e| RunError::io(&kept, e))
}

/// Takes the last task of the run in `folder` back: its state is then the one before that task, and
/// the run has one task less. A task in training is taken back too. Tasks that were added and are
/// not begun are taken back alone.
///
/// ```no_run
/// use std::path::Path;
/// use mtil_engine::run::{RunError, undo};
///
/// let undone = undo(Path::new("runs/shop/gnsp-update"))?;
/// println!("{} is forgotten, {} tasks are left", undone.task, undone.learned);
/// # Ok::<(), RunError>(())
/// ```
///
/// # Errors
/// [`RunError::NothingToUndo`] if the state before the task is not there; [`RunError::State`] if it
/// is damaged; [`RunError::Locked`]; [`RunError::Io`].
pub fn undo(folder: &Path) -> Result<Undone, RunError> {
    let mut directory = RunDirectory::of_run(folder)?;
    let ids = directory.state_ids()?;
    take_back(&mut directory, &ids, None)
}

/// Takes the last task back, for a reason if a rule of the drift guard asks for it. `ids` are the
/// [identities](super::lineage::Lineage::state_ids) of the run's states.
pub(super) fn take_back(
    directory: &mut RunDirectory,
    ids: &[String],
    reason: Option<String>,
) -> Result<Undone, RunError> {
    let files = directory.files().clone();
    let tasks = &directory.lineage().suite.tasks;
    let nothing = || RunError::NothingToUndo {
        path: files.folder().to_owned(),
    };
    let current = files.position()?.ok_or_else(nothing)?;
    let is_pending = current.step == 0 && current.task < tasks.len();
    let before = files.undo();
    let position = if is_pending {
        current
    } else {
        if !before.join(POSITION).exists() {
            return Err(nothing());
        }
        manifest::verify(&before, ids)?;
        read_json::<Position>(&before.join(POSITION))?
    };
    let learned = position.task;
    let task = tasks.get(learned).ok_or_else(nothing)?.name.clone();
    for index in learned..tasks.len() {
        remove_folder(&files.checkpoint(index))?;
        remove_folder(&files.select(index))?;
        files.remove_details(index + 1)?;
    }
    remove_results(&files, &position)?;
    directory.record(&Event::Undone {
        task: learned,
        name: task.clone(),
        reason,
        at: now(),
    })?;
    if !is_pending {
        let [state, _, old] = files.states();
        replace_state(&[state, before, old])?;
    }
    // Last: until then the same call does what is left to do.
    directory.forget_tasks(learned)?;
    Ok(Undone { task, learned })
}

/// Removes the results of the tasks after `position` from the result files.
fn remove_results(files: &RunFiles, position: &Position) -> Result<(), RunError> {
    let learned = position.task;
    let folder = files.folder();
    let names = [MatrixFile::NAME, MatrixFile::WITHOUT_IDENTITY];
    let mut figures: Option<MetricsFile> = None;
    for path in names.map(|name| folder.join(name)) {
        if learned == 0 || !path.exists() {
            remove_file(&path)?;
            continue;
        }
        let mut file = MatrixFile::load(&path)?;
        file.order.truncate(learned);
        file.zero_shot.truncate(learned);
        file.learned.truncate(learned);
        file.matrix.truncate(learned);
        file.matrix.iter_mut().for_each(|row| row.truncate(learned));
        file.save(&path)?;
        figures.get_or_insert(MetricsFile::from_matrix(&file.accuracy()?));
    }
    let path = folder.join(MetricsFile::NAME);
    let Some(figures) = figures.filter(|_| path.exists()) else {
        return remove_file(&path);
    };
    let mut metrics = MetricsFile::load(&path)?;
    metrics.modality_gap.truncate(learned + 1);
    metrics.retrieval.truncate(learned + 1);
    let metrics = MetricsFile {
        transfer: figures.transfer,
        average: figures.average,
        last: figures.last,
        bwt: figures.bwt,
        forgetting: figures.forgetting,
        diagonal: figures.diagonal,
        bytes_kept: position.kept.as_ref().map(|kept| kept.values().sum()),
        kept: position.kept.clone().unwrap_or_default(),
        complete: true,
        ..metrics
    };
    Ok(metrics.save(&path)?)
}

fn remove_file(path: &Path) -> Result<(), RunError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(RunError::io(path, e)),
        _ => Ok(()),
    }
}

//! Files of a run directory: names and readers.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use fs4::fs_std::FileExt;

use super::{Event, Request, directory};
use mtil_data::suite::SuiteRecord;
use mtil_eval::metrics::{FileError, MatrixFile, MetricsFile};
use mtil_methods::{error::RunError, mechanism::state::Position};

/// The resolved request.
const CONFIG: &str = "config.toml";
/// The tasks of the run.
const TASKS: &str = "tasks.json";
const EVENTS: &str = "events.jsonl";
/// Locked by the process of the run.
const LOCK: &str = ".lock";
const CHECKPOINTS: &str = "checkpoints";
const DETAILS: &str = "details";
const SELECT: &str = "select";
const STATE: &str = "state";
/// The state before the last task.
const UNDO: &str = "undo";
/// In the folder of the state.
const POSITION: &str = "position.json";

/// Bytes at the end of `events.jsonl` that [`RunFiles::latest_events`] reads.
const TAIL: u64 = 256 * 1024;

/// Read access to a run directory, with or without a process that holds its lock.
///
/// ```no_run
/// use mtil_engine::run::RunFiles;
/// let run = RunFiles::new("runs/mini/gnsp");
/// if let Some(metrics) = run.metrics()? {
///     println!("Last {:?}", metrics.last);
/// }
/// # Ok::<(), mtil_engine::metrics::FileError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFiles {
    folder: PathBuf,
}

/// The readable events of `events.jsonl`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventLog {
    /// Events in order of time.
    pub events: Vec<Event>,
    /// Number of complete lines that are not readable: damaged, or of a later version.
    pub unreadable: usize,
}

impl RunFiles {
    /// Refers to the run directory `folder`, without reading it.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// Returns the run directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns whether the directory contains a run.
    pub fn exist(&self) -> bool {
        [LOCK, CONFIG, EVENTS, MatrixFile::NAME]
            .iter()
            .any(|name| self.folder.join(name).is_file())
    }

    /// Returns whether `name` is a subfolder of a run, which contains no other runs.
    pub fn is_part(name: &str) -> bool {
        [CHECKPOINTS, DETAILS, SELECT, STATE, UNDO].contains(&name)
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.folder.join(LOCK)
    }

    pub(super) fn config(&self) -> PathBuf {
        self.folder.join(CONFIG)
    }

    pub(super) fn tasks_file(&self) -> PathBuf {
        self.folder.join(TASKS)
    }

    pub(super) fn log(&self) -> PathBuf {
        self.folder.join(EVENTS)
    }

    pub(super) fn details(&self) -> PathBuf {
        self.folder.join(DETAILS)
    }

    /// The folder of the candidates of task `index`.
    pub(super) fn select(&self, index: usize) -> PathBuf {
        self.folder.join(SELECT).join(format!("{:02}", index + 1))
    }

    /// Folders of the current state, of the state being written, and of the previous state.
    pub(super) fn states(&self) -> [PathBuf; 3] {
        [STATE, "state.new", "state.old"].map(|name| self.folder.join(name))
    }

    /// Folder of the state before the last task.
    pub(super) fn undo(&self) -> PathBuf {
        self.folder.join(UNDO)
    }

    /// Folder in which it is written.
    pub(super) fn undo_new(&self) -> PathBuf {
        self.folder.join("undo.new")
    }

    /// Removes the details of an evaluation: 0 is that of the pretrained model.
    pub(super) fn remove_details(&self, stage: usize) -> Result<(), RunError> {
        let folder = self.details();
        let Ok(entries) = fs::read_dir(&folder) else {
            return Ok(());
        };
        let prefix = format!("stage-{stage:02}");
        for entry in entries {
            let path = entry.map_err(|e| RunError::io(&folder, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name
                .strip_prefix(&prefix)
                .is_some_and(|rest| rest.starts_with(['.', '-']))
            {
                fs::remove_file(&path).map_err(|e| RunError::io(&path, e))?;
            }
        }
        Ok(())
    }

    /// Folder of the state to resume from. A crash between the two renames that replace a state
    /// leaves only the previous one.
    pub(super) fn state(&self) -> Option<PathBuf> {
        let [now, _, before] = self.states();
        [now, before].into_iter().find(|path| path.exists())
    }

    /// Returns the folder of the checkpoint after task `index`.
    pub fn checkpoint(&self, index: usize) -> PathBuf {
        let name = format!("task-{:02}", index + 1);
        self.folder.join(CHECKPOINTS).join(name)
    }

    /// The folder of the state that is kept beside a checkpoint.
    pub(super) fn kept_state(checkpoint: &Path) -> PathBuf {
        checkpoint.join(STATE)
    }

    /// Returns the text of `config.toml`; none before the run has begun.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn config_text(&self) -> Result<Option<String>, FileError> {
        text(&self.config())
    }

    /// Returns the request of the run; none before it has begun. Values that earlier versions did
    /// not write are filled in.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn request(&self) -> Result<Option<Request>, FileError> {
        let Some(text) = self.config_text()? else {
            return Ok(None);
        };
        let request = directory::read_request(&text);
        request.map(Some).map_err(|reason| FileError::Value {
            path: self.config(),
            reason,
        })
    }

    /// Returns what the tasks of the run are learned from; none before it has begun, and in a run of
    /// an earlier version.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn suite_record(&self) -> Result<Option<SuiteRecord>, FileError> {
        let path = self.tasks_file();
        let Some(text) = text(&path)? else {
            return Ok(None);
        };
        let record = serde_json::from_str(&text);
        record
            .map(Some)
            .map_err(|source| FileError::Json { path, source })
    }

    /// Returns the position of the run; none before the pretrained model is evaluated.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn position(&self) -> Result<Option<Position>, FileError> {
        let Some(state) = self.state() else {
            return Ok(None);
        };
        let path = state.join(POSITION);
        let Some(text) = text(&path)? else {
            return Ok(None);
        };
        let position = serde_json::from_str(&text);
        position
            .map(Some)
            .map_err(|source| FileError::Json { path, source })
    }

    /// Returns `matrix.json`; none before the pretrained model is evaluated.
    ///
    /// # Errors
    /// As [`MatrixFile::load`].
    pub fn matrix(&self) -> Result<Option<MatrixFile>, FileError> {
        let path = self.folder.join(MatrixFile::NAME);
        path.is_file().then(|| MatrixFile::load(&path)).transpose()
    }

    /// Returns the accuracy matrix without task identity; none if it was not requested.
    ///
    /// # Errors
    /// As [`MatrixFile::load`].
    pub fn matrix_without_identity(&self) -> Result<Option<MatrixFile>, FileError> {
        let path = self.folder.join(MatrixFile::WITHOUT_IDENTITY);
        path.is_file().then(|| MatrixFile::load(&path)).transpose()
    }

    /// Returns `metrics.json`; none before the pretrained model is evaluated.
    ///
    /// # Errors
    /// As [`MetricsFile::load`].
    pub fn metrics(&self) -> Result<Option<MetricsFile>, FileError> {
        let path = self.folder.join(MetricsFile::NAME);
        path.is_file().then(|| MetricsFile::load(&path)).transpose()
    }

    /// Returns all events. An incomplete last line is ignored.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn events(&self) -> Result<EventLog, FileError> {
        let text = text(&self.log())?.unwrap_or_default();
        Ok(EventLog::read(&text))
    }

    /// Returns the events in the last 256 KiB; none if the file cannot be read.
    pub fn latest_events(&self) -> EventLog {
        let text = tail(&self.log()).unwrap_or_default();
        EventLog::read(&text)
    }

    /// Returns whether a process holds the lock of the run. The check takes a shared lock for a
    /// moment. On file systems without locks across machines it sees local processes only.
    pub fn is_locked(&self) -> bool {
        let Ok(file) = File::open(self.lock()) else {
            return false;
        };
        let free = FileExt::try_lock_shared(&file);
        // Closing the file is not enough: a process that is being started at this moment inherits
        // the file and with it the lock.
        let _ = FileExt::unlock(&file);
        matches!(free, Ok(false))
    }
}

impl EventLog {
    fn read(text: &str) -> Self {
        let mut log = Self::default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines().filter(|line| !line.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(event) => log.events.push(event),
                Err(_) => log.unreadable += 1,
            }
        }
        log
    }
}

fn text(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Reads the last [`TAIL`] bytes of a file, from the start of a line.
fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let start = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if start == 0 {
        return Some(text);
    }
    text.split_once('\n').map(|(_, rest)| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_lines_are_counted_and_an_incomplete_one_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFiles::new(folder.path());
        assert_eq!(run.events().unwrap(), EventLog::default());
        assert!(!run.exist());
        let note = r#"{"event":"note","text":"a"}"#;
        let lines =
            format!("{note}\n{{broken\n\n{{\"event\":\"later\"}}\n{note}\n{{\"event\":\"no");
        fs::write(run.log(), lines).unwrap();
        let log = run.events().unwrap();
        assert_eq!((log.events.len(), log.unreadable), (2, 2));
        assert!(run.exist());
    }

    #[test]
    fn only_the_end_of_a_long_log_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFiles::new(folder.path());
        let step = |task: usize| format!("{{\"event\":\"task_start\",\"task\":{task}}}\n");
        fs::write(run.log(), step(0).repeat(20_000) + &step(3)).unwrap();
        let log = run.latest_events();
        assert!(log.events.len() < 20_000, "{}", log.events.len());
        assert_eq!(log.unreadable, 0);
        let last = Event::TaskStart {
            data: None,
            task: 3,
            name: String::new(),
        };
        assert_eq!(log.events.last(), Some(&last));
    }
}

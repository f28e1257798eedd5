//! The files of a run directory: their names, and readers for whoever looks at a run.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use fs4::fs_std::FileExt;

use super::{Event, Request, directory};
use crate::{
    mechanism::state::Position,
    metrics::{FileError, MatrixFile, MetricsFile},
};

/// The request, resolved.
const CONFIG: &str = "config.toml";
const EVENTS: &str = "events.jsonl";
/// Held by the process that works on the run.
const LOCK: &str = ".lock";
const CHECKPOINTS: &str = "checkpoints";
const DETAILS: &str = "details";
const SELECT: &str = "select";
const STATE: &str = "state";
/// In the folder of the state.
const POSITION: &str = "position.json";

/// Bytes at the end of `events.jsonl` that are read to see how far a run is.
const TAIL: u64 = 256 * 1024;

/// A run directory to look at, whether a process works on it or not.
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

/// What could be read of `events.jsonl`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventLog {
    /// In the order in which they happened.
    pub events: Vec<Event>,
    /// Whole lines that are no event: damaged, or of a later version.
    pub unreadable: usize,
}

impl RunFiles {
    /// The files of `folder`. Nothing is read yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// The run directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a run was begun here.
    pub fn exist(&self) -> bool {
        [LOCK, CONFIG, EVENTS, MatrixFile::NAME]
            .iter()
            .any(|name| self.folder.join(name).is_file())
    }

    /// Whether `name` is a folder of a run, which holds no runs of its own.
    pub fn is_part(name: &str) -> bool {
        [CHECKPOINTS, DETAILS, SELECT, STATE].contains(&name)
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.folder.join(LOCK)
    }

    pub(super) fn config(&self) -> PathBuf {
        self.folder.join(CONFIG)
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

    /// The state: as it is, as it is while it is written, and the one before it.
    pub(super) fn states(&self) -> [PathBuf; 3] {
        [STATE, "state.new", "state.old"].map(|name| self.folder.join(name))
    }

    /// The folder of the state to resume from. A crash between the two renames that replace a state
    /// leaves only the one before.
    pub(super) fn state(&self) -> Option<PathBuf> {
        let [now, _, before] = self.states();
        [now, before].into_iter().find(|path| path.exists())
    }

    /// The folder of the model after task `index`.
    pub fn checkpoint(&self, index: usize) -> PathBuf {
        let name = format!("task-{:02}", index + 1);
        self.folder.join(CHECKPOINTS).join(name)
    }

    /// `config.toml` as text; none before the run has begun.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn config_text(&self) -> Result<Option<String>, FileError> {
        text(&self.config())
    }

    /// The request of the run; none before it has begun. Values that earlier versions did not write
    /// are those they had.
    ///
    /// # Errors
    /// When the file cannot be read, or is no request.
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

    /// Where the run resumes; none before the pretrained model is evaluated.
    ///
    /// # Errors
    /// When the file cannot be read, or is no position.
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

    /// `matrix.json`; none before the pretrained model is evaluated.
    ///
    /// # Errors
    /// As [`MatrixFile::load`].
    pub fn matrix(&self) -> Result<Option<MatrixFile>, FileError> {
        let path = self.folder.join(MatrixFile::NAME);
        path.is_file().then(|| MatrixFile::load(&path)).transpose()
    }

    /// The same where the task of an image is not given; none where that was not asked for.
    ///
    /// # Errors
    /// As [`MatrixFile::load`].
    pub fn matrix_without_identity(&self) -> Result<Option<MatrixFile>, FileError> {
        let path = self.folder.join(MatrixFile::WITHOUT_IDENTITY);
        path.is_file().then(|| MatrixFile::load(&path)).transpose()
    }

    /// `metrics.json`; none before the pretrained model is evaluated.
    ///
    /// # Errors
    /// As [`MetricsFile::load`].
    pub fn metrics(&self) -> Result<Option<MetricsFile>, FileError> {
        let path = self.folder.join(MetricsFile::NAME);
        path.is_file().then(|| MetricsFile::load(&path)).transpose()
    }

    /// All events. A last line that is not written to its end is none.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn events(&self) -> Result<EventLog, FileError> {
        let text = text(&self.log())?.unwrap_or_default();
        Ok(EventLog::read(&text))
    }

    /// The latest events: those of the last 256 KiB. Nothing where the file cannot be read.
    pub fn latest_events(&self) -> EventLog {
        let text = tail(&self.log()).unwrap_or_default();
        EventLog::read(&text)
    }

    /// Whether a process works on the run. The lock is asked for as one of several readers, for no
    /// longer than the question takes. Where locks do not reach other machines, neither does this.
    pub fn is_locked(&self) -> bool {
        let Ok(file) = File::open(self.lock()) else {
            return false;
        };
        let free = FileExt::try_lock_shared(&file);
        // Closing the file is not enough: a process that is being started at this moment has it
        // too.
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

/// The end of a file, from the beginning of a line.
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
    fn damaged_lines_are_counted_and_an_unfinished_one_is_none() {
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
            task: 3,
            name: String::new(),
        };
        assert_eq!(log.events.last(), Some(&last));
    }
}

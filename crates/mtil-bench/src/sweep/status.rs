//! How far the runs of a sweep are, from their folders alone.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use fs4::fs_std::FileExt;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::Value;

use super::{Files, Run, Sweep};
use mtil_engine::metrics::{MatrixFile, MetricsFile};

/// Accuracies of a run that is over, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Mean over the tasks after the last one.
    pub last: Option<f64>,
    /// Mean on tasks not learned yet.
    pub transfer: Option<f64>,
    /// Mean over all stages.
    pub average: Option<f64>,
}

/// A place in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Position {
    /// Tasks that are learned and evaluated.
    pub done: usize,
    /// All tasks, where that is known.
    pub tasks: Option<usize>,
    /// Updates on the task after them.
    pub update: usize,
    /// All updates of that task, where that is known.
    pub updates: Option<usize>,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// Nothing of it is there.
    NotStarted,
    /// A process works on it.
    InWork {
        /// The latest update that was written down.
        position: Position,
    },
    /// No process works on it; its command goes on with it.
    Stopped {
        /// Where it goes on.
        position: Position,
    },
    /// The latest attempt ended with an error.
    Failed {
        /// What it said.
        message: String,
        /// Where it would go on.
        position: Position,
    },
    /// A rule of the drift guard ended it: it goes no further.
    Guarded {
        /// Which.
        message: String,
    },
    /// A file of it is damaged.
    Unreadable {
        /// Which, and how.
        message: String,
    },
    /// All tasks are learned and evaluated.
    Complete(Figures),
}

/// One run of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunStatus {
    /// Its line of the list, from 1.
    pub line: usize,
    /// What it is.
    #[serde(flatten)]
    pub run: Run,
    /// Its directory, once there is one.
    pub folder: Option<PathBuf>,
    /// What its latest attempt printed.
    pub log: PathBuf,
    /// How far it is.
    #[serde(flatten)]
    pub state: State,
}

/// How many runs are how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Totals {
    /// All runs.
    pub runs: usize,
    /// See [`State::Complete`].
    pub complete: usize,
    /// See [`State::InWork`].
    pub in_work: usize,
    /// See [`State::Stopped`].
    pub stopped: usize,
    /// See [`State::Failed`].
    pub failed: usize,
    /// See [`State::Guarded`].
    pub guarded: usize,
    /// See [`State::Unreadable`].
    pub unreadable: usize,
    /// See [`State::NotStarted`].
    pub not_started: usize,
}

impl Totals {
    /// Whether nothing is left to do.
    pub fn all_complete(&self) -> bool {
        self.complete == self.runs
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.runs == 1 { "" } else { "s" };
        write!(f, "{} run{plural}: {} complete", self.runs, self.complete)?;
        for (count, word) in [
            (self.in_work, "in work"),
            (self.stopped, "stopped"),
            (self.failed, "failed"),
            (self.guarded, "ended by the drift guard"),
            (self.unreadable, "unreadable"),
            (self.not_started, "not started"),
        ] {
            if count > 0 {
                write!(f, ", {count} {word}")?;
            }
        }
        Ok(())
    }
}

fn of(part: usize, whole: Option<usize>) -> String {
    whole.map_or(part.to_string(), |whole| format!("{part} of {whole}"))
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted => write!(f, "not started"),
            Self::InWork { position: p } => {
                let task = p.tasks.map_or(p.done + 1, |tasks| tasks.min(p.done + 1));
                let (task, update) = (of(task, p.tasks), of(p.update, p.updates));
                write!(f, "in work: task {task}, update {update}")
            }
            Self::Stopped { position: p } => {
                let (task, update) = (of(p.done, p.tasks), of(p.update, p.updates));
                write!(f, "stopped after task {task} at update {update}")
            }
            Self::Failed { message, .. } => write!(f, "failed: {message}"),
            Self::Guarded { message } => write!(f, "ended by the drift guard: {message}"),
            Self::Unreadable { message } => write!(f, "unreadable: {message}"),
            Self::Complete(_) => write!(f, "complete"),
        }
    }
}

/// The runs of a sweep in the order of its list. The runs themselves are not disturbed, and may be
/// anywhere.
///
/// Whether a process works on a run is seen by the lock of its directory. On a file system whose
/// locks do not reach other machines, a run on another machine is taken for stopped.
pub fn status(files: &Files, sweep: &Sweep) -> Vec<RunStatus> {
    let runs = sweep.runs.iter().zip(1..);
    runs.map(|(run, line)| {
        let folder = run_directory(&files.out(run));
        let log = files.log(run);
        RunStatus {
            line,
            run: run.clone(),
            state: state(folder.as_deref(), &log),
            folder,
            log,
        }
    })
    .collect()
}

/// Counts `runs`.
pub fn totals(runs: &[RunStatus]) -> Totals {
    let mut totals = Totals {
        runs: runs.len(),
        ..Totals::default()
    };
    for run in runs {
        *match run.state {
            State::NotStarted => &mut totals.not_started,
            State::InWork { .. } => &mut totals.in_work,
            State::Stopped { .. } => &mut totals.stopped,
            State::Failed { .. } => &mut totals.failed,
            State::Guarded { .. } => &mut totals.guarded,
            State::Unreadable { .. } => &mut totals.unreadable,
            State::Complete(_) => &mut totals.complete,
        } += 1;
    }
    totals
}

const LOCK: &str = ".lock";
const CONFIG: &str = "config.toml";

/// The run in `out`: its folder has the name that the method has in its file, and begins with its
/// lock.
fn run_directory(out: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(out)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join(LOCK).is_file() || path.join(CONFIG).is_file())
        .collect();
    found.sort();
    found.into_iter().next()
}

fn state(folder: Option<&Path>, log: &Path) -> State {
    let Some(folder) = folder else {
        return match failure(log, None) {
            Some(message) => State::Failed {
                message,
                position: Position::default(),
            },
            None => State::NotStarted,
        };
    };
    // Before the files: a run that ends meanwhile is then seen as it ended.
    let held = is_locked(&folder.join(LOCK));
    let read = Contents::read(folder);
    let (files, problem) = match read {
        Ok(files) => (files, None),
        Err(message) => (Contents::default(), Some(message)),
    };
    if let Some(figures) = files.figures {
        return State::Complete(figures);
    }
    let events = Events::read(&folder.join("events.jsonl"));
    if held {
        let position = files.position(events.step);
        return State::InWork { position };
    }
    if let Some(message) = problem {
        return State::Unreadable { message };
    }
    if let Some(message) = files.guarded {
        return State::Guarded { message };
    }
    let position = files.position(None);
    match failure(log, Some(folder)).or(events.failure) {
        Some(message) => State::Failed { message, position },
        None => State::Stopped { position },
    }
}

/// Whether a process holds the lock. It is asked for as one of several readers, for no longer than
/// the question takes.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let free = FileExt::try_lock_shared(&file);
    // Closing the file is not enough: a process that is being started at this moment has it too.
    let _ = FileExt::unlock(&file);
    matches!(free, Ok(false))
}

/// What a run directory says about how far the run is.
#[derive(Default)]
struct Contents {
    figures: Option<Figures>,
    done: usize,
    update: usize,
    guarded: Option<String>,
    order: Vec<String>,
    settings: Settings,
}

/// What is needed of `config.toml`.
#[derive(Default, Deserialize)]
struct Config {
    method: Settings,
}

#[derive(Default, Deserialize)]
struct Settings {
    #[serde(default)]
    joint: bool,
    steps: Option<usize>,
    #[serde(default)]
    analytic: Option<IgnoredAny>,
    #[serde(default)]
    task: BTreeMap<String, TaskSettings>,
}

#[derive(Default, Deserialize)]
struct TaskSettings {
    steps: Option<usize>,
}

/// What is needed of `state/position.json`.
#[derive(Deserialize)]
struct Stored {
    task: usize,
    step: usize,
    #[serde(default)]
    stopped_by_guard: bool,
    #[serde(default)]
    breaches: Vec<Breach>,
}

#[derive(Deserialize)]
struct Breach {
    action: String,
    message: String,
}

impl Contents {
    fn read(folder: &Path) -> Result<Self, String> {
        let mut files = Self::default();
        let path = folder.join(MetricsFile::NAME);
        if path.exists() {
            let metrics = MetricsFile::load(&path).map_err(|e| e.to_string())?;
            files.figures = metrics.complete.then_some(Figures {
                last: metrics.last,
                transfer: metrics.transfer,
                average: metrics.average,
            });
        }
        let path = folder.join(MatrixFile::NAME);
        if path.exists() {
            files.order = MatrixFile::load(&path).map_err(|e| e.to_string())?.order;
        }
        let path = folder.join(CONFIG);
        if path.exists() {
            let malformed = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
            let text = fs::read_to_string(&path).map_err(|e| malformed(&e))?;
            let config: Config = toml::from_str(&text).map_err(|e| malformed(&e))?;
            files.settings = config.method;
        }
        // A state is replaced by renaming, and between the two renames only the old one is there.
        let states = ["state", "state.old"].map(|s| folder.join(s).join("position.json"));
        if let Some(path) = states.iter().find(|p| p.exists()) {
            let malformed = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
            let text = fs::read_to_string(path).map_err(|e| malformed(&e))?;
            let stored: Stored = serde_json::from_str(&text).map_err(|e| malformed(&e))?;
            (files.done, files.update) = (stored.task, stored.step);
            if stored.stopped_by_guard {
                let stop = stored.breaches.into_iter().find(|b| b.action == "stop");
                files.guarded = Some(stop.map_or(String::new(), |b| b.message));
            }
        }
        Ok(files)
    }

    /// The stored position, or `latest`, task and update, if that is further.
    fn position(&self, latest: Option<(usize, usize)>) -> Position {
        let stored = (self.done, self.update);
        let (done, update) = latest.map_or(stored, |latest| latest.max(stored));
        let tasks = match self.settings.joint {
            true => Some(1),
            false => Some(self.order.len()).filter(|n| *n > 0),
        };
        let name = self.order.get(done);
        let own = name.and_then(|n| self.settings.task.get(n)?.steps);
        let trains = tasks.is_none_or(|n| done < n) && self.settings.analytic.is_none();
        Position {
            done,
            tasks,
            update,
            updates: own.or(self.settings.steps).filter(|_| trains),
        }
    }
}

/// The end of `events.jsonl`.
#[derive(Default)]
struct Events {
    /// Task and update of the latest step.
    step: Option<(usize, usize)>,
    /// Why the latest attempt failed.
    failure: Option<String>,
}

impl Events {
    fn read(path: &Path) -> Self {
        let mut events = Self::default();
        let text = tail(path).unwrap_or_default();
        // The first line may be cut, and the last one not written yet.
        let lines = text.lines().filter_map(|l| serde_json::from_str(l).ok());
        for event in lines.collect::<Vec<Value>>() {
            let number = |key: &str| usize::try_from(event[key].as_u64()?).ok();
            match event["event"].as_str() {
                Some("start" | "resume") => events.failure = None,
                Some("step") => {
                    if let (Some(task), Some(step)) = (number("task"), number("step")) {
                        events.step = Some((task, step));
                    }
                }
                Some("diverged") => {
                    let task = number("task").map_or(0, |t| t + 1);
                    let step = number("step").unwrap_or(0);
                    events.failure = Some(format!(
                        "the loss of task {task} became infinite or not a number at update {step}"
                    ));
                }
                Some("failed") => {
                    events.failure = event["message"].as_str().map(str::to_owned);
                }
                _ => {}
            }
        }
        events
    }
}

/// The last part of a file, from a line's begin if it is cut.
fn tail(path: &Path) -> Option<String> {
    const LENGTH: u64 = 256 * 1024;
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LENGTH)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(LENGTH).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The error at the end of a log, without the path of the run's own folder.
fn failure(log: &Path, folder: Option<&Path>) -> Option<String> {
    last_error(&tail(log)?, folder)
}

/// The error at the end of what a process of ours wrote, without the path of a run's own folder.
pub(crate) fn last_error(text: &str, folder: Option<&Path>) -> Option<String> {
    let text = plain(text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let begins = |l: &&str| {
        ["Error:", "error:", "The application panicked"]
            .iter()
            .any(|w| l.starts_with(w))
    };
    let Some(first) = lines.iter().rposition(begins) else {
        // What a shell says when it cannot begin.
        let last = lines.iter().rfind(|l| !l.is_empty())?;
        let shell = [
            "No such file or directory",
            "not found",
            "Permission denied",
            "cannot execute binary file",
        ];
        return shell
            .iter()
            .any(|end| last.ends_with(end))
            .then(|| (*last).to_owned());
    };
    if lines[first].starts_with("The application") {
        let message = lines[first..]
            .iter()
            .find_map(|l| l.strip_prefix("Message:"));
        return Some(format!("panicked: {}", message.unwrap_or("").trim()));
    }
    // Causes are numbered, one of several lines is indented, and an empty line ends them.
    let mut causes: Vec<String> = Vec::new();
    let head = lines[first].split_once(':').map_or("", |(_, rest)| rest);
    if !head.trim().is_empty() {
        causes.push(head.trim().to_owned());
    }
    for line in lines[first + 1..].iter().take_while(|l| !l.is_empty()) {
        let text = line.trim_start();
        let numbered = text
            .split_once(": ")
            .filter(|(number, _)| !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()));
        match (numbered, causes.last_mut()) {
            (Some((_, cause)), _) => causes.push(cause.to_owned()),
            (None, Some(cause)) => {
                cause.push(' ');
                cause.push_str(text);
            }
            (None, None) => causes.push(text.to_owned()),
        }
    }
    let own = folder.map(|f| f.display().to_string());
    causes.retain(|cause| own.as_ref() != Some(cause));
    let message = causes.join(": ");
    // A run that was stopped says so in the same form.
    (!message.starts_with("stopped;")).then_some(message)
}

/// `text` without escape sequences for colours.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.next() == Some('[') {
                    let _ = chars.find(|c| c.is_ascii_alphabetic());
                }
            }
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Slurm, plan::tests::request, write},
        *,
    };

    struct World {
        _folder: tempfile::TempDir,
        files: Files,
        sweep: Sweep,
    }

    impl World {
        /// A sweep of one run.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let files = Files::new(&folder.path().join("a sweep")).unwrap();
            let asked = request(&["finetune"], &["mini"], &[42], &[]);
            let sweep = write(&files, asked, "/b", &Slurm::default(), false).unwrap();
            Self {
                _folder: folder,
                files,
                sweep,
            }
        }

        fn folder(&self) -> PathBuf {
            self.files.out(&self.sweep.runs[0]).join("finetune")
        }

        /// Writes a file of the run.
        fn put(&self, name: &str, text: &str) {
            let path = self.folder().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn log(&self, text: &str) {
            fs::write(self.files.log(&self.sweep.runs[0]), text).unwrap();
        }

        fn state(&self) -> State {
            let runs = status(&self.files, &self.sweep);
            assert_eq!(runs.len(), 1);
            runs[0].state.clone()
        }

        /// A run of three tasks that was stopped in the second.
        fn begun() -> Self {
            let world = Self::new();
            world.put(LOCK, "");
            world.put(
                CONFIG,
                "seed = 42\n[method]\njoint = false\nsteps = 100\n[method.task.digits]\nsteps = 50\n",
            );
            world.put(
                "matrix.json",
                r#"{"suite":"mini","method":"finetune","seed":42,"order":["shapes","digits","faces"],
                "zero_shot":[1,2,3],"matrix":[[50,2,3]]}"#,
            );
            world.put("metrics.json", r#"{"complete": false}"#);
            world.put(
                "state/position.json",
                r#"{"task":1,"step":20,"evaluations":[],"seconds":1.0}"#,
            );
            world.put(
                "events.jsonl",
                concat!(
                    "{\"event\":\"start\",\"task\":null,\"step\":null}\n",
                    "{\"event\":\"step\",\"task\":0,\"step\":100,\"steps\":100}\n",
                    "{\"event\":\"step\",\"task\":1,\"step\":30,\"steps\":50}\n",
                    "{\"event\":\"step\",\"task\":1,\"st"
                ),
            );
            // A folder of the report, beside the run.
            fs::create_dir_all(world.files.out(&world.sweep.runs[0]).join("samples")).unwrap();
            world
        }
    }

    const STOPPED: &str = "finetune: 3 tasks\nError: \n   0: \u{1b}[91mstopped; the same command goes on from here\u{1b}[0m\n\nLocation:\n   x\n";

    fn at(done: usize, update: usize, updates: usize) -> Position {
        Position {
            done,
            tasks: Some(3),
            update,
            updates: Some(updates),
        }
    }

    #[test]
    fn a_run_is_not_started_until_there_is_something_of_it() {
        let world = World::new();
        assert_eq!(world.state(), State::NotStarted);
        world.log("note: the embedded model only knows the mini world\n");
        assert_eq!(world.state(), State::NotStarted);
        fs::create_dir_all(world.files.out(&world.sweep.runs[0]).join("samples")).unwrap();
        assert_eq!(world.state(), State::NotStarted);
        world.put(LOCK, "");
        let position = Position::default();
        assert_eq!(world.state(), State::Stopped { position });
    }

    #[test]
    fn a_stopped_run_is_where_it_goes_on() {
        let world = World::begun();
        let stopped = State::Stopped {
            position: at(1, 20, 50),
        };
        assert_eq!(world.state(), stopped);
        assert_eq!(
            stopped.to_string(),
            "stopped after task 1 of 3 at update 20 of 50"
        );
        world.log(STOPPED);
        assert_eq!(world.state(), stopped);
        // As a crash between two renames leaves it.
        let folder = world.folder();
        fs::rename(folder.join("state"), folder.join("state.old")).unwrap();
        assert_eq!(world.state(), stopped);
    }

    #[test]
    fn a_locked_run_is_in_work_at_its_latest_update() {
        let world = World::begun();
        world.log("Error: \n   0: of an earlier attempt\n");
        let lock = File::options()
            .write(true)
            .open(world.folder().join(LOCK))
            .unwrap();
        assert!(FileExt::try_lock_exclusive(&lock).unwrap());
        let in_work = State::InWork {
            position: at(1, 30, 50),
        };
        assert_eq!(world.state(), in_work);
        assert_eq!(in_work.to_string(), "in work: task 2 of 3, update 30 of 50");
        // A file that is broken now is written anew by the process.
        world.put("metrics.json", "{");
        assert!(matches!(world.state(), State::InWork { .. }));
        world.put("metrics.json", r#"{"complete": false}"#);
        // Between tasks the state is further than the latest update.
        world.put("state/position.json", r#"{"task":2,"step":0}"#);
        assert_eq!(
            world.state(),
            State::InWork {
                position: at(2, 0, 100)
            }
        );
        // Closing it is not enough: a process that another test is starting has it too.
        FileExt::unlock(&lock).unwrap();
        assert!(matches!(world.state(), State::Failed { .. }));
        // The question itself leaves no lock.
        let lock = File::options()
            .write(true)
            .open(world.folder().join(LOCK))
            .unwrap();
        assert!(FileExt::try_lock_exclusive(&lock).unwrap());
    }

    #[test]
    fn a_failed_run_has_the_message_of_its_latest_attempt() {
        let world = World::begun();
        let message = |world: &World| match world.state() {
            State::Failed { message, position } => {
                assert_eq!(position, at(1, 20, 50));
                message
            }
            other => panic!("{other}"),
        };
        let own = world.folder();
        for (log, expected) in [
            (
                format!(
                    "finetune: 3 tasks\nError: \n   0: \u{1b}[91m{}\u{1b}[0m\n   1: \u{1b}[91mthe loss became NaN: too bad\u{1b}[0m\n\nLocation:\n   y\n",
                    own.display()
                ),
                "the loss became NaN: too bad",
            ),
            (
                "Error: \n   0: /x holds a run of another request:\n  seed: 1 in the directory, 2 now\n\nLocation:\n".to_owned(),
                "/x holds a run of another request: seed: 1 in the directory, 2 now",
            ),
            (
                "error: unexpected argument '--dat' found\n\n  tip: a similar argument exists\n".to_owned(),
                "unexpected argument '--dat' found",
            ),
            (
                "The application panicked (crashed).\nMessage:  index out of bounds\nLocation: x.rs:1\n".to_owned(),
                "panicked: index out of bounds",
            ),
            (
                "bash: line 1: /opt/mtil-bench: No such file or directory\n".to_owned(),
                "bash: line 1: /opt/mtil-bench: No such file or directory",
            ),
        ] {
            world.log(&log);
            assert_eq!(message(&world), expected);
        }
        // Without a log the events tell, until the run has begun again.
        world.log("");
        let path = world.folder().join("events.jsonl");
        let mut events = fs::read_to_string(&path).unwrap() + "\n";
        events += "{\"event\":\"diverged\",\"task\":1,\"step\":31}\n";
        fs::write(&path, &events).unwrap();
        assert!(message(&world).contains("task 2 became infinite or not a number at update 31"));
        events += "{\"event\":\"failed\",\"message\":\"disk full\"}\n";
        fs::write(&path, &events).unwrap();
        assert_eq!(message(&world), "disk full");
        events += "{\"event\":\"resume\",\"task\":1,\"step\":20}\n";
        fs::write(&path, &events).unwrap();
        assert!(matches!(world.state(), State::Stopped { .. }));
        // One that fails before it has a directory.
        fs::remove_dir_all(world.files.out(&world.sweep.runs[0])).unwrap();
        world.log("Error: \n   0: `mtil-order-1` needs --data DIR\n\n");
        let failed = world.state();
        assert_eq!(
            failed.to_string(),
            "failed: `mtil-order-1` needs --data DIR"
        );
    }

    #[test]
    fn a_complete_run_has_its_figures() {
        let world = World::begun();
        world.put(
            "metrics.json",
            r#"{"complete": true, "last": 70.5, "transfer": 60.25, "average": 65.0}"#,
        );
        // Whatever an attempt after its end said.
        world.log("Error: \n   0: something\n\n");
        assert_eq!(
            world.state(),
            State::Complete(Figures {
                last: Some(70.5),
                transfer: Some(60.25),
                average: Some(65.0)
            })
        );
        let runs = status(&world.files, &world.sweep);
        assert!(totals(&runs).all_complete());
        let json = serde_json::to_value(&runs[0]).unwrap();
        assert_eq!(json["state"], "complete");
        assert_eq!(json["last"], 70.5);
        assert_eq!(json["method"], "finetune");
        assert_eq!(json["line"], 1);
    }

    #[test]
    fn a_run_that_the_guard_ended_goes_no_further() {
        let world = World::begun();
        world.put(
            "state/position.json",
            r#"{"task":1,"step":0,"stopped_by_guard":true,"breaches":[
            {"action":"warn","message":"a"},{"action":"stop","message":"gap-drift is 0.3"}]}"#,
        );
        let state = world.state();
        assert_eq!(
            state.to_string(),
            "ended by the drift guard: gap-drift is 0.3"
        );
    }

    #[test]
    fn damaged_files_are_named() {
        for (name, text) in [
            ("metrics.json", "{\"complete\": tr"),
            ("metrics.json", "{\"complete\": true, \"last\": \"high\"}"),
            ("matrix.json", "[]"),
            ("config.toml", "method = 1"),
            ("state/position.json", ""),
        ] {
            let world = World::begun();
            world.put(name, text);
            let State::Unreadable { message } = world.state() else {
                panic!("{name}: {}", world.state());
            };
            assert!(message.contains(name), "{message}");
            let totals = totals(&status(&world.files, &world.sweep));
            assert!(!totals.all_complete());
            assert_eq!(totals.to_string(), "1 run: 0 complete, 1 unreadable");
        }
    }

    #[test]
    fn methods_without_updates_or_with_one_stage_are_placed_too() {
        let world = World::begun();
        world.put(CONFIG, "[method]\njoint = true\nsteps = 100\n");
        world.put("state/position.json", r#"{"task":0,"step":7}"#);
        assert_eq!(
            world.state().to_string(),
            "stopped after task 0 of 1 at update 7 of 100"
        );
        world.put(
            CONFIG,
            "[method]\nsteps = 100\n[method.analytic]\nridge = 1.0\n",
        );
        world.put("state/position.json", r#"{"task":2,"step":0}"#);
        assert_eq!(
            world.state().to_string(),
            "stopped after task 2 of 3 at update 0"
        );
    }

    #[test]
    fn only_the_end_of_a_long_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let line = "{\"event\":\"step\",\"task\":0,\"step\":1,\"steps\":9}\n";
        let last = "{\"event\":\"step\",\"task\":3,\"step\":5,\"steps\":9}\n";
        fs::write(&path, line.repeat(20_000) + last).unwrap();
        assert_eq!(Events::read(&path).step, Some((3, 5)));
    }
}

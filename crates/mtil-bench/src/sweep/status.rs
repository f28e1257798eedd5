//! Status of the runs of a sweep, read from their directories.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{Files, Run, Sweep};
use mtil_engine::{
    guard::Action,
    metrics::FileError,
    run::{Event, EventLog, Request, RunFiles},
};

/// Metrics of a complete run in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Last: mean accuracy over the tasks after the last task.
    pub last: Option<f64>,
    /// Transfer: mean accuracy on tasks that are not learned yet.
    pub transfer: Option<f64>,
    /// Average: mean accuracy over all stages.
    pub average: Option<f64>,
}

/// Progress of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Position {
    /// Tasks that are learned and evaluated.
    pub done: usize,
    /// Number of tasks, if known.
    pub tasks: Option<usize>,
    /// Training steps on the current task.
    pub update: usize,
    /// Number of training steps of the current task, if known.
    pub updates: Option<usize>,
}

/// State of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// The run has no directory and no error in its log.
    NotStarted,
    /// A process holds the lock of the run directory.
    #[serde(rename = "in-work")]
    Running {
        /// The latest logged training step.
        position: Position,
    },
    /// No process holds the lock; rerun the command to resume.
    Stopped {
        /// The position to resume from.
        position: Position,
    },
    /// The latest attempt ended with an error.
    Failed {
        /// The error.
        message: String,
        /// The position to resume from.
        position: Position,
    },
    /// A rule of the drift guard ended the run. It cannot be resumed.
    Guarded {
        /// The broken rule.
        message: String,
    },
    /// A file of the run is damaged.
    Unreadable {
        /// The file and the problem.
        message: String,
    },
    /// All tasks are learned and evaluated.
    Complete(Figures),
}

/// Status of a run of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunStatus {
    /// Line number in the list, from 1.
    pub line: usize,
    /// The run.
    #[serde(flatten)]
    pub run: Run,
    /// The run directory, if it exists.
    pub folder: Option<PathBuf>,
    /// Log file of the latest attempt.
    pub log: PathBuf,
    /// The state.
    #[serde(flatten)]
    pub state: State,
}

/// Number of runs in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Totals {
    /// All runs.
    pub runs: usize,
    /// See [`State::Complete`].
    pub complete: usize,
    /// See [`State::Running`].
    #[serde(rename = "in_work")]
    pub running: usize,
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
    /// Returns whether all runs are complete.
    pub fn all_complete(&self) -> bool {
        self.complete == self.runs
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.runs == 1 { "" } else { "s" };
        write!(f, "{} run{plural}: {} complete", self.runs, self.complete)?;
        for (count, word) in [
            (self.running, "running"),
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

/// Formats `2 of 3`, or `2` if the whole is not known.
fn fraction(part: usize, whole: Option<usize>) -> String {
    whole.map_or(part.to_string(), |whole| format!("{part} of {whole}"))
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted => write!(f, "not started"),
            Self::Running { position: p } => {
                let task = p.tasks.map_or(p.done + 1, |tasks| tasks.min(p.done + 1));
                let task = fraction(task, p.tasks);
                let step = fraction(p.update, p.updates);
                write!(f, "running: task {task}, step {step}")
            }
            Self::Stopped { position: p } => {
                let task = fraction(p.done, p.tasks);
                let step = fraction(p.update, p.updates);
                write!(f, "stopped after task {task} at step {step}")
            }
            Self::Failed { message, .. } => write!(f, "failed: {message}"),
            Self::Guarded { message } => write!(f, "ended by the drift guard: {message}"),
            Self::Unreadable { message } => write!(f, "unreadable: {message}"),
            Self::Complete(_) => write!(f, "complete"),
        }
    }
}

/// Returns the status of every run of a sweep, in the order of its list.
///
/// A run counts as running if the lock of its directory is held. On a file system whose locks do
/// not reach other machines, a run on another machine counts as stopped.
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

/// Counts the runs in each state.
pub fn totals(runs: &[RunStatus]) -> Totals {
    let mut totals = Totals {
        runs: runs.len(),
        ..Totals::default()
    };
    for run in runs {
        *match run.state {
            State::NotStarted => &mut totals.not_started,
            State::Running { .. } => &mut totals.running,
            State::Stopped { .. } => &mut totals.stopped,
            State::Failed { .. } => &mut totals.failed,
            State::Guarded { .. } => &mut totals.guarded,
            State::Unreadable { .. } => &mut totals.unreadable,
            State::Complete(_) => &mut totals.complete,
        } += 1;
    }
    totals
}

/// Finds the run directory in `out`. Its name is that of the method, which may differ from the
/// requested one.
fn run_directory(out: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(out)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| RunFiles::new(path).exist())
        .collect();
    found.sort();
    found.into_iter().next()
}

fn state(folder: Option<&Path>, log: &Path) -> State {
    let Some(folder) = folder else {
        return match last_error(&fs::read_to_string(log).unwrap_or_default()) {
            Some(message) => State::Failed {
                message,
                position: Position::default(),
            },
            None => State::NotStarted,
        };
    };
    let files = RunFiles::new(folder);
    // Read the lock before the files, so that a run that ends in between is reported as ended.
    let locked = files.is_locked();
    let (snapshot, problem) = match RunSnapshot::read(&files) {
        Ok(snapshot) => (snapshot, None),
        Err(error) => (RunSnapshot::default(), Some(error.to_string())),
    };
    if let Some(figures) = snapshot.figures {
        return State::Complete(figures);
    }
    let latest = LatestEvents::of(&files.latest_events());
    if locked {
        let position = snapshot.position(latest.step);
        return State::Running { position };
    }
    if let Some(message) = problem {
        return State::Unreadable { message };
    }
    if let Some(message) = snapshot.guarded {
        return State::Guarded { message };
    }
    let position = snapshot.position(None);
    match latest.failure {
        Some(message) => State::Failed { message, position },
        None => State::Stopped { position },
    }
}

/// Progress stored in the files of a run directory.
#[derive(Default)]
struct RunSnapshot {
    figures: Option<Figures>,
    done: usize,
    update: usize,
    guarded: Option<String>,
    order: Vec<String>,
    request: Option<Request>,
}

impl RunSnapshot {
    fn read(files: &RunFiles) -> Result<Self, FileError> {
        let mut snapshot = Self::default();
        if let Some(metrics) = files.metrics()? {
            snapshot.figures = metrics.complete.then_some(Figures {
                last: metrics.last,
                transfer: metrics.transfer,
                average: metrics.average,
            });
        }
        snapshot.order = files.matrix()?.map(|file| file.order).unwrap_or_default();
        snapshot.request = files.request()?;
        if let Some(position) = files.position()? {
            (snapshot.done, snapshot.update) = (position.task, position.step);
            if position.stopped_by_guard {
                let mut breaches = position.breaches.into_iter();
                let stop = breaches.find(|b| b.action == Action::Stop);
                snapshot.guarded = Some(stop.map_or(String::new(), |b| b.message));
            }
        }
        Ok(snapshot)
    }

    /// Returns the stored position, or `latest` (task and step) if that is further.
    fn position(&self, latest: Option<(usize, usize)>) -> Position {
        let stored = (self.done, self.update);
        let (done, update) = latest.map_or(stored, |latest| latest.max(stored));
        let method = self.request.as_ref().map(|request| &request.method);
        let tasks = match method.is_some_and(|method| method.joint) {
            true => Some(1),
            false => Some(self.order.len()).filter(|n| *n > 0),
        };
        let trains = tasks.is_none_or(|n| done < n);
        let method = method.filter(|method| trains && method.analytic.is_none());
        // There is no name after the last task, nor before the pretrained model is evaluated.
        let name = self.order.get(done).map_or("", String::as_str);
        Position {
            done,
            tasks,
            update,
            updates: method.map(|method| method.steps_of(name)),
        }
    }
}

/// Progress and error in the latest events of a run.
#[derive(Default)]
struct LatestEvents {
    /// Task and training step of the latest step event.
    step: Option<(usize, usize)>,
    /// Error of the latest attempt.
    failure: Option<String>,
}

impl LatestEvents {
    fn of(log: &EventLog) -> Self {
        let mut latest = Self::default();
        for event in &log.events {
            match event {
                Event::Start { .. } | Event::Resume { .. } => latest.failure = None,
                Event::Step(update) => latest.step = Some((update.task, update.step)),
                Event::Failed { message, .. } => latest.failure = Some(message.clone()),
                _ => {}
            }
        }
        latest
    }
}

/// Finds the last error of this program in a log, or the error of a shell that could not start it.
pub(crate) fn last_error(text: &str) -> Option<String> {
    let last = text.lines().rfind(|line| !line.trim().is_empty())?;
    let error = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: "));
    let shell = [
        "No such file or directory",
        "not found",
        "Permission denied",
        "cannot execute binary file",
    ];
    let not_started = shell.iter().any(|end| last.ends_with(end));
    error.or(not_started.then_some(last)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{plan::tests::request, write},
        *,
    };
    use std::fs::File;

    use fs4::fs_std::FileExt;
    use mtil_engine::{eval::EvalOptions, method::Method};

    /// A temporary sweep with one run.
    struct TestSweep {
        _folder: tempfile::TempDir,
        files: Files,
        sweep: Sweep,
    }

    impl TestSweep {
        /// Writes a sweep with one run.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let files = Files::new(&folder.path().join("a sweep")).unwrap();
            let asked = request(&["finetune"], &["mini"], &[42], &[]);
            let sweep = write(&files, asked, "/b", false).unwrap();
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

        /// Writes the settings of the run.
        fn request(&self, method: &str, set: &[&str]) {
            let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
            let request = Request {
                suite: "mini".to_owned(),
                suite_fingerprint: "00".to_owned(),
                model: "embedded".to_owned(),
                model_sha256: "11".to_owned(),
                seed: 42,
                device: "flex".to_owned(),
                peers: Vec::new(),
                products: "faer".to_owned(),
                evaluation: EvalOptions::default(),
                guard: Vec::new(),
                skip_bad_images: false,
                max_pixels: None,
                select: None,
                version: "0".to_owned(),
                method: Method::load(method, "mini", &set).unwrap(),
            };
            self.put(CONFIG, &toml::to_string(&request).unwrap());
        }

        fn event(&self, event: &Event) {
            let path = self.folder().join("events.jsonl");
            let events = fs::read_to_string(&path).unwrap_or_default();
            let whole = events.rfind('\n').map_or("", |end| &events[..=end]);
            let line = serde_json::to_string(event).unwrap();
            fs::write(&path, format!("{whole}{line}\n")).unwrap();
        }

        fn state(&self) -> State {
            let runs = status(&self.files, &self.sweep);
            assert_eq!(runs.len(), 1);
            runs[0].state.clone()
        }

        /// Returns a sweep whose run of three tasks was stopped in the second task.
        fn stopped() -> Self {
            let world = Self::new();
            world.put(LOCK, "");
            world.request("finetune", &["steps=100", "task.digits.steps=50"]);
            world.put(
                "matrix.json",
                r#"{"suite":"mini","method":"finetune","seed":42,
                "order":["shapes","digits","faces"],"zero_shot":[1,2,3],"matrix":[[50,2,3]]}"#,
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
                    "{\"event\":\"step\",\"task\":0,\"step\":100,\"steps\":100,\"loss\":1.0}\n",
                    "{\"event\":\"step\",\"task\":1,\"step\":30,\"steps\":50,\"loss\":1.0}\n",
                    "{\"event\":\"step\",\"task\":1,\"st"
                ),
            );
            // The report puts sample images next to the run.
            fs::create_dir_all(world.files.out(&world.sweep.runs[0]).join("samples")).unwrap();
            world
        }
    }

    const LOCK: &str = ".lock";
    const CONFIG: &str = "config.toml";

    fn at(done: usize, update: usize, updates: usize) -> Position {
        Position {
            done,
            tasks: Some(3),
            update,
            updates: Some(updates),
        }
    }

    #[test]
    fn a_run_without_a_run_directory_is_not_started() {
        let world = TestSweep::new();
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
    fn a_stopped_run_has_the_position_to_resume_from() {
        let world = TestSweep::stopped();
        let stopped = State::Stopped {
            position: at(1, 20, 50),
        };
        assert_eq!(world.state(), stopped);
        assert_eq!(
            stopped.to_string(),
            "stopped after task 1 of 3 at step 20 of 50"
        );
        // The state of a crash between two renames.
        let folder = world.folder();
        fs::rename(folder.join("state"), folder.join("state.old")).unwrap();
        assert_eq!(world.state(), stopped);
    }

    #[test]
    fn a_locked_run_is_running_at_its_latest_step() {
        let world = TestSweep::stopped();
        world.event(&Event::Failed {
            message: "of an earlier attempt".to_owned(),
            causes: Vec::new(),
        });
        let lock = File::options()
            .write(true)
            .open(world.folder().join(LOCK))
            .unwrap();
        assert!(FileExt::try_lock_exclusive(&lock).unwrap());
        let running = State::Running {
            position: at(1, 30, 50),
        };
        assert_eq!(world.state(), running);
        assert_eq!(running.to_string(), "running: task 2 of 3, step 30 of 50");
        assert_eq!(serde_json::to_value(&running).unwrap()["state"], "in-work");
        // The running process will rewrite a damaged file.
        world.put("metrics.json", "{");
        assert!(matches!(world.state(), State::Running { .. }));
        world.put("metrics.json", r#"{"complete": false}"#);
        // Between tasks the stored position is further than the latest step.
        world.put(
            "state/position.json",
            r#"{"task":2,"step":0,"evaluations":[],"seconds":1.0}"#,
        );
        assert_eq!(
            world.state(),
            State::Running {
                position: at(2, 0, 100)
            }
        );
        // Unlock explicitly: a process that another test starts may inherit the open file.
        FileExt::unlock(&lock).unwrap();
        assert!(matches!(world.state(), State::Failed { .. }));
        // Reading the status leaves no lock behind.
        let lock = File::options()
            .write(true)
            .open(world.folder().join(LOCK))
            .unwrap();
        assert!(FileExt::try_lock_exclusive(&lock).unwrap());
    }

    #[test]
    fn a_failed_run_has_the_message_of_its_latest_attempt() {
        let world = TestSweep::stopped();
        let message = |world: &TestSweep| match world.state() {
            State::Failed { message, position } => {
                assert_eq!(position, at(1, 20, 50));
                message
            }
            other => panic!("{other}"),
        };
        let failed = |text: &str| Event::Failed {
            message: text.to_owned(),
            causes: Vec::new(),
        };
        world.event(&failed("the loss became NaN"));
        assert_eq!(message(&world), "the loss became NaN");
        world.event(&failed("disk full"));
        assert_eq!(message(&world), "disk full");
        world.event(&Event::Resume {
            method: "finetune".to_owned(),
            stages: 3,
            task: 1,
            step: 20,
        });
        assert!(matches!(world.state(), State::Stopped { .. }));
        // A run that fails before it has a directory.
        fs::remove_dir_all(world.files.out(&world.sweep.runs[0])).unwrap();
        for (log, expected) in [
            (
                "note: hello\nerror: `mtil-order-1` needs --data DIR\n",
                "`mtil-order-1` needs --data DIR",
            ),
            (
                "error: unexpected argument '--dat' found\n\n  tip: a similar argument exists\n",
                "unexpected argument '--dat' found",
            ),
            (
                "error: panicked at x.rs:1: index out of bounds\n",
                "panicked at x.rs:1: index out of bounds",
            ),
            (
                "bash: line 1: /opt/mtil-bench: No such file or directory\n",
                "bash: line 1: /opt/mtil-bench: No such file or directory",
            ),
        ] {
            world.log(log);
            assert_eq!(world.state().to_string(), format!("failed: {expected}"));
        }
    }

    #[test]
    fn a_complete_run_has_its_metrics() {
        let world = TestSweep::stopped();
        world.put(
            "metrics.json",
            r#"{"complete": true, "last": 70.5, "transfer": 60.25, "average": 65.0}"#,
        );
        // The log of a later attempt does not matter.
        world.log("error: something\n");
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
    fn a_run_ended_by_the_guard_is_reported_with_its_rule() {
        let world = TestSweep::stopped();
        world.put(
            "state/position.json",
            r#"{"task":1,"step":0,"evaluations":[],"seconds":1.0,"stopped_by_guard":true,
            "breaches":[
            {"rule":"gap-drift>0.1","value":0.2,"limit":0.1,"action":"warn","message":"a"},
            {"rule":"gap-drift>0.2","value":0.3,"limit":0.2,"action":"stop",
            "message":"gap-drift is 0.3"}]}"#,
        );
        let state = world.state();
        assert_eq!(
            state.to_string(),
            "ended by the drift guard: gap-drift is 0.3"
        );
    }

    #[test]
    fn damaged_files_are_reported_by_name() {
        for (name, text) in [
            ("metrics.json", "{\"complete\": tr"),
            ("metrics.json", "{\"complete\": true, \"last\": \"high\"}"),
            ("matrix.json", "[]"),
            ("config.toml", "method = 1"),
            ("state/position.json", ""),
        ] {
            let world = TestSweep::stopped();
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
    fn positions_of_methods_without_steps_or_with_one_stage() {
        let world = TestSweep::stopped();
        world.request("joint", &["steps=100"]);
        world.put(
            "state/position.json",
            r#"{"task":0,"step":7,"evaluations":[],"seconds":1.0}"#,
        );
        assert_eq!(
            world.state().to_string(),
            "stopped after task 0 of 1 at step 7 of 100"
        );
        world.request("rail-primal", &[]);
        world.put(
            "state/position.json",
            r#"{"task":2,"step":0,"evaluations":[],"seconds":1.0}"#,
        );
        assert_eq!(
            world.state().to_string(),
            "stopped after task 2 of 3 at step 0"
        );
    }
}

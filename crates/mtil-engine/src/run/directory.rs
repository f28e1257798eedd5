//! Open run directories: lock, request and event log.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
};

use fs4::fs_std::FileExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Event, RunFiles, Select, lineage::Lineage};
use mtil_data::{
    files::{remove_temporary_files, write_atomically},
    suite::Suite,
};
use mtil_eval::eval::EvalOptions;
use mtil_methods::{error::RunError, method::Method};

/// Everything that the result of a run depends on. Equal requests on the same device give the same
/// result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Name of the suite.
    pub suite: String,
    /// Digest of the suite's tasks, classes, templates, labels and image names.
    pub suite_fingerprint: String,
    /// The model directory, or `embedded`.
    pub model: String,
    /// SHA-256 of the model's weights.
    pub model_sha256: String,
    /// Seed of all randomness.
    pub seed: u64,
    /// The device, as given on the command line.
    pub device: String,
    /// Further devices that share the images of a training step. They change the rounding of
    /// results.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    /// Library of matrix products on the host, `faer` or `blas`; it changes the rounding of
    /// results. Runs of earlier versions used faer.
    #[serde(default = "faer")]
    pub products: String,
    /// Options of the evaluation.
    pub evaluation: EvalOptions,
    /// Rules of the drift guard.
    #[serde(default)]
    pub guard: Vec<String>,
    /// Leaves out unreadable images.
    pub skip_bad_images: bool,
    /// Maximum number of pixels of an image, if larger ones are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u64>,
    /// Hyper-parameter that is selected for each task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Select>,
    /// Version of this program.
    pub version: String,
    /// The method with all its values.
    pub method: Method,
}

fn faer() -> String {
    host_gemm::Library::Faer.to_string()
}

/// The directory of a run, locked for this process.
pub struct RunDirectory {
    files: RunFiles,
    lineage: Lineage,
    /// Names of the tasks that the directory did not have before it was opened.
    added: Vec<String>,
    _lock: File,
}

impl RunDirectory {
    /// Opens or creates `path` for `request` on `suite`. If the directory holds the run on the first
    /// tasks of the suite, that run goes on with the others.
    ///
    /// # Errors
    /// When the directory cannot be written, is in use by another process, holds a run of another
    /// request, or one that cannot learn further tasks.
    pub fn open(path: &Path, request: &Request, suite: &Suite) -> Result<Self, RunError> {
        fs::create_dir_all(path).map_err(|e| RunError::io(path, e))?;
        let files = RunFiles::new(path);
        let (state, lock) = lock(&files)?;
        let (lineage, added) = check_request(&files, request, suite)?;
        let directory = Self {
            files,
            lineage,
            added,
            _lock: lock,
        };
        directory.clean(state)?;
        Ok(directory)
    }

    /// Opens the directory of a run that has begun, whatever its request and suite.
    ///
    /// # Errors
    /// When it holds no run, is in use by another process, or cannot be read or written.
    pub fn of_run(path: &Path) -> Result<Self, RunError> {
        let files = RunFiles::new(path);
        if !files.config().exists() {
            return Err(RunError::NoRun {
                path: path.to_owned(),
            });
        }
        let (state, lock) = lock(&files)?;
        let lineage = Lineage::read(&files.tasks_file())?.ok_or_else(|| RunError::NoTasks {
            path: files.tasks_file(),
        })?;
        let directory = Self {
            files,
            lineage,
            added: Vec::new(),
            _lock: lock,
        };
        directory.clean(state)?;
        Ok(directory)
    }

    /// The identities of the states that the run may have saved, by its stored request.
    pub(super) fn state_ids(&self) -> Result<Vec<String>, RunError> {
        let request = self.files.request()?.ok_or_else(|| RunError::NoRun {
            path: self.path().to_owned(),
        })?;
        Ok(self.lineage.state_ids(&request))
    }

    /// Forgets the tasks from `learned` on.
    pub(super) fn forget_tasks(&mut self, learned: usize) -> Result<(), RunError> {
        self.lineage.suite.tasks.truncate(learned);
        self.lineage.write(&self.files.tasks_file())
    }

    /// Removes what killed processes left.
    fn clean(&self, lock: Lock) -> Result<(), RunError> {
        // Without a lock, another process may be writing them.
        if lock == Lock::Held {
            self.remove_leftovers();
        }
        self.truncate_incomplete_event()
    }

    /// Removes what killed processes left: temporary files, and states that were being replaced.
    /// Errors are ignored, because nothing reads these files.
    fn remove_leftovers(&self) {
        let [state, new, old] = self.files.states();
        let _ = fs::remove_dir_all(new);
        let _ = fs::remove_dir_all(self.files.undo_new());
        // Without a current state, the previous one is what the run resumes from.
        if state.exists() {
            let _ = fs::remove_dir_all(old);
        }
        remove_temporary_files(self.path());
    }

    /// Returns a second handle of the directory, under the same lock.
    pub(super) fn share(&self) -> Result<Self, RunError> {
        let lock = self._lock.try_clone();
        Ok(Self {
            files: self.files.clone(),
            lineage: self.lineage.clone(),
            added: Vec::new(),
            _lock: lock.map_err(|e| RunError::io(self.path(), e))?,
        })
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        self.files.folder()
    }

    /// Returns the files of the directory.
    pub fn files(&self) -> &RunFiles {
        &self.files
    }

    /// The tasks of the run.
    pub(super) fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Names of the tasks that the directory did not have before it was opened.
    pub(super) fn added(&self) -> &[String] {
        &self.added
    }

    /// Appends an event to `events.jsonl`, if [`Event::is_recorded`].
    pub(super) fn record(&self, event: &Event) -> Result<(), RunError> {
        if !event.is_recorded() {
            return Ok(());
        }
        let path = self.files.log();
        let mut line = serde_json::to_vec(event).map_err(|e| RunError::Corrupt {
            path: path.clone(),
            reason: e.to_string(),
        })?;
        line.push(b'\n');
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(&line))
            .map_err(|e| RunError::io(&path, e))
    }

    /// Truncates an incomplete last line, left by a killed process, so that the next event starts a
    /// line.
    fn truncate_incomplete_event(&self) -> Result<(), RunError> {
        let path = self.files.log();
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            read => read.map_err(|e| RunError::io(&path, e))?,
        };
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        if whole == bytes.len() {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(&path);
        file.and_then(|file| file.set_len(whole as u64))
            .map_err(|e| RunError::io(&path, e))
    }
}

/// Locks a directory for this process.
fn lock(files: &RunFiles) -> Result<(Lock, File), RunError> {
    let path = files.lock();
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| RunError::io(&path, e))?;
    // The operating system releases the lock of an open file when the process ends, even after a
    // crash.
    let try_lock = || Lock::of(FileExt::try_lock_exclusive(&file), &path);
    let mut state = try_lock()?;
    if state == Lock::Taken {
        // `RunFiles::is_locked` of another process may hold the lock for a moment.
        std::thread::sleep(std::time::Duration::from_millis(50));
        state = try_lock()?;
    }
    if state == Lock::Taken {
        return Err(RunError::Locked {
            path: files.folder().to_owned(),
        });
    }
    Ok((state, file))
}

/// Keys of a request that `tasks.json` replaces in the comparison of two requests: they change when
/// tasks are added.
const OF_THE_SUITE: [&str; 2] = ["suite", "suite_fingerprint"];

/// Checks that a directory holds no other run than that of `request` on the first tasks of `suite`,
/// and writes the request and the tasks. Returns the tasks, and the names of those that are new in
/// a directory with a run.
fn check_request(
    files: &RunFiles,
    request: &Request,
    suite: &Suite,
) -> Result<(Lineage, Vec<String>), RunError> {
    let (path, tasks) = (files.config(), files.tasks_file());
    let corrupt = |reason: String| RunError::Corrupt {
        path: path.clone(),
        reason,
    };
    let now = Lineage::of(suite);
    if !path.exists() {
        now.write(&tasks)?;
        write_request(&path, request)?;
        return Ok((now, Vec::new()));
    }
    let text = fs::read_to_string(&path).map_err(|e| RunError::io(&path, e))?;
    let mut old = parse_config(&text).map_err(corrupt)?;
    let new = toml::to_string(request).map_err(|e| corrupt(e.to_string()))?;
    let mut new = parse_config(&new).map_err(corrupt)?;
    let [old_suite, new_suite] = [&mut old, &mut new].map(|request| {
        OF_THE_SUITE.map(|key| {
            let removed = request.as_object_mut().and_then(|all| all.remove(key));
            removed.unwrap_or_default()
        })
    });
    let lineage = match Lineage::read(&tasks)? {
        Some(lineage) => Some(lineage),
        None => {
            let fingerprint = old_suite[1].as_str().unwrap_or_default();
            Lineage::of_earlier_version(fingerprint, suite)
        }
    };
    // Rules of the drift guard change no weights, and may name the new tasks, or those that are gone.
    let gone = !suite.extras.gone.is_empty();
    let grows = |lineage: &Lineage| gone || lineage.suite.tasks.len() < now.suite.tasks.len();
    let mut differences = Vec::new();
    let guards = [&mut old, &mut new].map(|request| {
        let removable = lineage.as_ref().is_some_and(grows);
        let request = request.as_object_mut().filter(|_| removable);
        request.and_then(|all| all.remove("guard"))
    });
    compare("", &old, &new, &mut differences);
    match &lineage {
        Some(lineage) => {
            let changed = lineage.suite.differences(&now.suite);
            differences.extend(changed.iter().map(|change| format!("  {change}")));
        }
        None => {
            let changed = OF_THE_SUITE.iter().zip(old_suite.iter().zip(&new_suite));
            for (key, (old, new)) in changed {
                compare(key, old, new, &mut differences);
            }
        }
    }
    let Some(mut lineage) = lineage.filter(|_| differences.is_empty()) else {
        return Err(RunError::OtherRequest {
            path: files.folder().to_owned(),
            differences,
        });
    };
    let added: Vec<String> = lineage.suite.added(&now.suite).map(str::to_owned).collect();
    if !added.is_empty() && request.method.joint {
        return Err(RunError::LearnsAtOnce {
            path: files.folder().to_owned(),
            tasks: added,
        });
    }
    lineage.suite = now.suite;
    lineage.write(&tasks)?;
    if old_suite != new_suite || guards[0] != guards[1] {
        write_request(&path, request)?;
    }
    Ok((lineage, added))
}

fn write_request(path: &Path, request: &Request) -> Result<(), RunError> {
    let text = toml::to_string_pretty(request).map_err(|e| RunError::Corrupt {
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    let text = format!(
        "# The resolved request of this run. It cannot be changed, but for tasks behind the \
         others: a run is reproduced from it.\n{text}"
    );
    write_atomically(path, text.as_bytes()).map_err(|e| RunError::io(path, e))
}

/// State of the lock of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    /// Held by this process.
    Held,
    /// Held by another process.
    Taken,
    /// The file system has no locks, like NFS without its lock service. A run works without one.
    Unsupported,
}

impl Lock {
    /// Interprets the result of an attempt to lock the file `path`.
    fn of(result: io::Result<bool>, path: &Path) -> Result<Self, RunError> {
        /// `ENOLCK`, which has no [`io::ErrorKind`], on Linux and on BSD and macOS.
        const NO_LOCKS: i32 = if cfg!(target_os = "linux") { 37 } else { 77 };
        let unsupported = |e: &io::Error| {
            e.kind() == io::ErrorKind::Unsupported
                || cfg!(unix) && e.raw_os_error() == Some(NO_LOCKS)
        };
        match result {
            Ok(true) => Ok(Self::Held),
            Ok(false) => Ok(Self::Taken),
            Err(e) if unsupported(&e) => {
                let path = path.display();
                tracing::warn!(%path, "no locks here: a second process would not be noticed");
                Ok(Self::Unsupported)
            }
            Err(e) => Err(RunError::io(path, e)),
        }
    }
}

/// Parses a `config.toml` and adds the values that earlier versions did not write.
fn parse_config(text: &str) -> Result<Value, String> {
    let mut value: Value = toml::from_str(text).map_err(|e| e.to_string())?;
    add_missing_values(&mut value);
    Ok(value)
}

/// Parses the request in a `config.toml`.
pub(super) fn read_request(text: &str) -> Result<Request, String> {
    serde_json::from_value(parse_config(text)?).map_err(|e| e.to_string())
}

/// Maximum number of pixels of an image in earlier versions.
const EARLIER_MAX_PIXELS: u64 = 89_478_485;

/// Adds the values that earlier versions used but did not write.
fn add_missing_values(old: &mut Value) {
    let Some(old) = old.as_object_mut() else {
        return;
    };
    old.entry("products").or_insert_with(|| faer().into());
    if old.get("skip_bad_images") == Some(&Value::Bool(true)) {
        old.entry("max_pixels").or_insert(EARLIER_MAX_PIXELS.into());
    }
    if let Some(method) = old.get_mut("method").and_then(Value::as_object_mut) {
        // Earlier versions had one smoothing for both losses.
        let smoothing = method.get("smoothing").cloned().unwrap_or_default();
        method.entry("map_smoothing").or_insert(smoothing);
        method.entry("hold_means").or_insert_with(|| 0.0.into());
    }
}

/// Appends a line to `differences` for each value that differs. The description of a method is no
/// part of what a run computes.
fn compare(key: &str, old: &Value, new: &Value, differences: &mut Vec<String>) {
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for k in keys {
            let path = if key.is_empty() {
                k.clone()
            } else {
                format!("{key}.{k}")
            };
            compare(
                &path,
                old.get(k).unwrap_or(&Value::Null),
                new.get(k).unwrap_or(&Value::Null),
                differences,
            );
        }
    } else if old != new && key != "method.about" {
        let show = |v: &Value| {
            if v.is_null() {
                "not set".to_owned()
            } else {
                v.to_string()
            }
        };
        differences.push(format!(
            "  {key}: {} in the directory, {} now",
            show(old),
            show(new)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            suite: "mini".to_owned(),
            suite_fingerprint: suite().fingerprint(),
            model: "embedded".to_owned(),
            model_sha256: "11".to_owned(),
            seed: 1,
            device: "flex".to_owned(),
            peers: Vec::new(),
            products: faer(),
            evaluation: EvalOptions::default(),
            guard: Vec::new(),
            skip_bad_images: false,
            max_pixels: None,
            select: None,
            version: "0".to_owned(),
            method: Method::load("gnsp", "mini", &[]).unwrap(),
        }
    }

    fn suite() -> Suite {
        let sizes = mini_world::MiniSizes {
            train_per_task: 4,
            test_per_task: 4,
            reference: 4,
            held_out: 4,
        };
        mini_world::suite(1, sizes)
    }

    fn open(path: &Path, request: &Request) -> Result<RunDirectory, RunError> {
        RunDirectory::open(path, request, &suite())
    }

    #[test]
    fn another_request_is_refused_with_the_differences() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        drop(open(&path, &request()).unwrap());
        let mut other = request();
        other.method.about = "Described in other words.".to_owned();
        drop(open(&path, &other).unwrap());
        other.seed = 2;
        other.peers = vec!["cuda:1".to_owned()];
        other.method.projection = None;
        let message = open(&path, &other).err().unwrap().to_string();
        assert!(
            message.contains("seed: 1 in the directory, 2 now"),
            "{message}"
        );
        assert!(message.contains("method.projection"), "{message}");
        assert!(!message.contains("about"), "{message}");
        assert!(
            message.contains("peers: not set in the directory, [\"cuda:1\"] now"),
            "{message}"
        );
    }

    #[test]
    fn a_config_of_an_earlier_version_gets_its_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        drop(open(&path, &request()).unwrap());
        let files = RunFiles::new(&path);
        let config = files.config();
        let text = fs::read_to_string(&config).unwrap();
        let earlier: Vec<&str> = text
            .lines()
            .filter(|line| {
                let new = ["products", "map_smoothing", "hold_means"];
                !new.iter().any(|key| line.starts_with(key))
            })
            .collect();
        assert_eq!(earlier.len(), text.lines().count() - 3);
        fs::write(&config, earlier.join("\n")).unwrap();
        let read = files.request().unwrap().unwrap();
        assert_eq!((read.products, read.method.map_smoothing), (faer(), 0.2));
        drop(open(&path, &request()).unwrap());
        let mut other = request();
        other.products = "blas".to_owned();
        other.method.map_smoothing = 0.0;
        let message = open(&path, &other).err().unwrap().to_string();
        for difference in [
            "products: \"faer\" in the directory, \"blas\" now",
            "method.map_smoothing: 0.2 in the directory, 0.0 now",
        ] {
            assert!(message.contains(difference), "{message}");
        }
    }

    #[test]
    fn a_run_takes_tasks_behind_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let of = |tasks: usize, method: &str| {
            let mut suite = suite();
            suite.tasks.truncate(tasks);
            let request = Request {
                suite: format!("mini (tasks {tasks})"),
                suite_fingerprint: suite.fingerprint(),
                method: Method::load(method, "mini", &[]).unwrap(),
                ..request()
            };
            (request, suite)
        };
        let open = |path: &Path, (request, suite): (Request, Suite)| {
            RunDirectory::open(path, &request, &suite)
        };
        let two = open(&path, of(2, "gnsp")).unwrap();
        assert_eq!(two.added(), [""; 0]);
        let ids = two.lineage().state_ids(&request());
        drop(two);
        let three = open(&path, of(3, "gnsp")).unwrap();
        let third = &suite().tasks[2].name;
        assert_eq!(three.added(), std::slice::from_ref(third));
        // A state of the first tasks is recognised.
        assert_eq!(three.lineage().state_ids(&request())[..3], ids);
        let (stored, given) = (three.files().request().unwrap().unwrap(), of(3, "gnsp").0);
        let suite_of = |request: Request| (request.suite, request.suite_fingerprint);
        assert_eq!(suite_of(stored), suite_of(given));
        drop(three);
        assert_eq!(open(&path, of(3, "gnsp")).unwrap().added(), [""; 0]);

        let mut renamed = of(4, "gnsp");
        let classes = renamed.1.tasks[0].classification_mut().unwrap();
        classes.class_names[1] = "ring".to_owned();
        for (wrong, difference) in [
            (of(2, "gnsp"), "task 3: `"),
            (of(4, "gnsp-update"), "method.name"),
            (renamed, "class 2: `"),
        ] {
            let message = open(&path, wrong).err().unwrap().to_string();
            assert!(message.contains(difference), "{message}");
        }

        let joint = folder.path().join("joint");
        drop(open(&joint, of(2, "joint")).unwrap());
        let refused = open(&joint, of(3, "joint")).err().unwrap();
        assert!(
            matches!(refused, RunError::LearnsAtOnce { .. }),
            "{refused}"
        );
        drop(open(&joint, of(2, "joint")).unwrap());
    }

    #[test]
    fn a_run_of_an_earlier_version_takes_tasks_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let mut begun = suite();
        begun.tasks.truncate(2);
        let earlier = Request {
            suite_fingerprint: begun.fingerprint(),
            ..request()
        };
        drop(RunDirectory::open(&path, &earlier, &begun).unwrap());
        fs::remove_file(RunFiles::new(&path).tasks_file()).unwrap();
        let directory = open(&path, &request()).unwrap();
        assert_eq!(directory.added().len(), suite().tasks.len() - 2);
        let ids = directory.lineage().state_ids(&request());
        let saved_before = ids.last().unwrap();
        assert!(
            saved_before.contains(&begun.fingerprint()),
            "{saved_before}"
        );
        drop(directory);
        fs::remove_file(RunFiles::new(&path).tasks_file()).unwrap();
        let mut other = suite();
        other.tasks.swap(0, 1);
        let changed = Request {
            suite_fingerprint: other.fingerprint(),
            ..request()
        };
        let message = RunDirectory::open(&path, &changed, &other).err().unwrap();
        assert!(message.to_string().contains("suite_fingerprint: "));
    }

    #[test]
    fn the_limit_on_pixels_is_part_of_a_request_that_leaves_images_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let limited = |max_pixels| Request {
            skip_bad_images: true,
            max_pixels,
            ..request()
        };
        // Earlier versions did not write their limit.
        drop(open(&path, &limited(None)).unwrap());
        let config = RunFiles::new(&path).config();
        assert!(!fs::read_to_string(&config).unwrap().contains("max_pixels"));
        drop(open(&path, &limited(Some(89_478_485))).unwrap());
        let other = open(&path, &limited(Some(178_956_970)));
        let message = other.err().unwrap().to_string();
        let difference = "max_pixels: 89478485 in the directory, 178956970 now";
        assert!(message.contains(difference), "{message}");

        fs::remove_file(&config).unwrap();
        drop(open(&path, &limited(Some(100))).unwrap());
        drop(open(&path, &limited(Some(100))).unwrap());
        assert!(open(&path, &limited(Some(101))).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_run_works_on_a_file_system_without_locks() {
        let attempt = |result| Lock::of(result, "run".as_ref());
        let (enolck, enosys, eopnotsupp, eio) = (37, 38, 95, 5);
        for code in [enolck, enosys, eopnotsupp] {
            let lock = attempt(Err(io::Error::from_raw_os_error(code)));
            assert_eq!(lock.unwrap(), Lock::Unsupported, "{code}");
        }
        let failed = attempt(Err(io::Error::from_raw_os_error(eio)));
        assert!(matches!(failed, Err(RunError::Io { .. })));
        assert_eq!(attempt(Ok(true)).unwrap(), Lock::Held);
        assert_eq!(attempt(Ok(false)).unwrap(), Lock::Taken);

        // Another process may be writing there, so only a lock allows to clean.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let directory = open(&path, &request()).unwrap();
        let written = path.join("state.new/model.safetensors");
        fs::create_dir_all(path.join("state.new")).unwrap();
        fs::write(&written, "half").unwrap();
        directory.clean(Lock::Unsupported).unwrap();
        assert!(written.exists());
        directory.clean(Lock::Held).unwrap();
        assert!(!written.exists());
    }

    #[test]
    fn an_incomplete_event_is_truncated_before_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let note = |text: &str| Event::Note {
            text: text.to_owned(),
        };
        let directory = open(&path, &request()).unwrap();
        directory.record(&note("first")).unwrap();
        directory.record(&Event::Done).unwrap();
        let log = directory.files().log();
        drop(directory);
        let whole = fs::read_to_string(&log).unwrap();
        fs::write(&log, format!("{whole}{{\"event\":\"no")).unwrap();
        let directory = open(&path, &request()).unwrap();
        directory.record(&note("second")).unwrap();
        let read = directory.files().events().unwrap();
        assert_eq!(read.events, [note("first"), note("second")]);
        assert_eq!(read.unreadable, 0);
    }

    #[test]
    fn leftovers_of_killed_processes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        drop(open(&path, &request()).unwrap());
        let write = |name: &str| {
            let file = path.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "x").unwrap();
        };
        let kept = [
            "state/position.json",
            "checkpoints/task-01/model.safetensors",
            "checkpoints/.tmpfile",
            "notes.tmp",
        ];
        let removed = [
            ".tmpAbC123",
            "checkpoints/task-01/.tmpzzzzzz",
            "select/01/1e-3/state/.tmp000000",
            "state.new/model.safetensors",
            "state.old/model.safetensors",
        ];
        kept.iter().chain(&removed).for_each(|name| write(name));
        drop(open(&path, &request()).unwrap());
        for (names, there) in [(&kept[..], true), (&removed[..], false)] {
            for name in names {
                assert_eq!(path.join(name).exists(), there, "{name}");
            }
        }
        // A crash between the renames of a save leaves the previous state only.
        fs::remove_dir_all(path.join("state")).unwrap();
        write("state.old/position.json");
        let directory = open(&path, &request()).unwrap();
        assert_eq!(directory.files().state(), Some(path.join("state.old")));
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let _held = open(&path, &request()).unwrap();
        let message = open(&path, &request()).err().unwrap().to_string();
        assert!(message.contains("another process"), "{message}");
    }
}

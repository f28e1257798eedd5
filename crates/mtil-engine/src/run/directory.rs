//! A run directory in work: its lock, the request it is for, its log of events.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
};

use fs4::fs_std::FileExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Event, RunFiles, Select};
use crate::{error::RunError, eval::EvalOptions, method::Method};
use mtil_data::files;

/// All that a result depends on. Two runs of equal requests on the same device give the same
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
    /// The device word.
    pub device: String,
    /// The words for further devices that share the images of an update: they change how results
    /// are rounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    /// The library of matrix products on the host, which changes how results are rounded: `faer` or
    /// `blas`. Runs of earlier versions are of faer.
    #[serde(default = "faer")]
    pub products: String,
    /// What is evaluated.
    pub evaluation: EvalOptions,
    /// Rules of the drift guard.
    #[serde(default)]
    pub guard: Vec<String>,
    /// Whether unreadable images are left out.
    pub skip_bad_images: bool,
    /// A setting whose value is chosen for each task.
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
    _lock: File,
}

impl RunDirectory {
    /// Opens or creates `path` for `request`.
    ///
    /// # Errors
    /// When the directory cannot be written, is in use by another process, or holds a run of
    /// another request.
    pub fn open(path: &Path, request: &Request) -> Result<Self, RunError> {
        fs::create_dir_all(path).map_err(|e| RunError::io(path, e))?;
        let files = RunFiles::new(path);
        let lock_path = files.lock();
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|e| RunError::io(&lock_path, e))?;
        // The lock belongs to the open file, so it goes with the process however that ends.
        let locked = || FileExt::try_lock_exclusive(&lock).map_err(|e| RunError::io(&lock_path, e));
        if !locked()? {
            // Who asks how far a sweep is holds the lock for a moment.
            std::thread::sleep(std::time::Duration::from_millis(50));
            if !locked()? {
                return Err(RunError::Locked {
                    path: path.to_owned(),
                });
            }
        }
        let directory = Self { files, _lock: lock };
        directory.check_request(request)?;
        directory.cut_unfinished_event()?;
        Ok(directory)
    }

    fn check_request(&self, request: &Request) -> Result<(), RunError> {
        let path = self.files.config();
        let corrupt = |reason: String| RunError::Corrupt {
            path: path.clone(),
            reason,
        };
        if path.exists() {
            let text = fs::read_to_string(&path).map_err(|e| RunError::io(&path, e))?;
            let old = completed(&text).map_err(corrupt)?;
            let new = toml::to_string(request).map_err(|e| corrupt(e.to_string()))?;
            let new: Value = toml::from_str(&new).map_err(|e| corrupt(e.to_string()))?;
            let mut differences = Vec::new();
            compare("", &old, &new, &mut differences);
            if !differences.is_empty() {
                return Err(RunError::OtherRequest {
                    path: self.path().to_owned(),
                    differences,
                });
            }
        } else {
            let text = toml::to_string_pretty(request).map_err(|e| corrupt(e.to_string()))?;
            let text = format!(
                "# The resolved request of this run. It cannot be changed: a run is reproduced from it.\n{text}"
            );
            write_atomically(&path, text.as_bytes())?;
        }
        Ok(())
    }

    /// The same directory under the same lock.
    pub(super) fn share(&self) -> Result<Self, RunError> {
        let lock = self._lock.try_clone();
        Ok(Self {
            files: self.files.clone(),
            _lock: lock.map_err(|e| RunError::io(self.path(), e))?,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.files.folder()
    }

    /// Its files.
    pub fn files(&self) -> &RunFiles {
        &self.files
    }

    /// Appends an event to `events.jsonl`, if it is one of those that are recorded.
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

    /// Cuts off a last event that a killed process did not write to its end, so that the next one
    /// begins a line.
    fn cut_unfinished_event(&self) -> Result<(), RunError> {
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

/// A `config.toml` with what earlier versions did not write.
fn completed(text: &str) -> Result<Value, String> {
    let mut value: Value = toml::from_str(text).map_err(|e| e.to_string())?;
    complete(&mut value);
    Ok(value)
}

/// The request of a `config.toml`.
pub(super) fn read_request(text: &str) -> Result<Request, String> {
    serde_json::from_value(completed(text)?).map_err(|e| e.to_string())
}

/// Gives what earlier versions did not write the value that they had.
fn complete(old: &mut Value) {
    let Some(old) = old.as_object_mut() else {
        return;
    };
    old.entry("products").or_insert_with(|| faer().into());
    if let Some(method) = old.get_mut("method").and_then(Value::as_object_mut) {
        // One smoothing was for both losses.
        let smoothing = method.get("smoothing").cloned().unwrap_or_default();
        method.entry("map_smoothing").or_insert(smoothing);
        method.entry("hold_means").or_insert_with(|| 0.0.into());
    }
}

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
    } else if old != new {
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

/// Writes `bytes` beside `path`, then renames.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    files::write_atomically(path, bytes).map_err(|e| RunError::io(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            suite: "mini".to_owned(),
            suite_fingerprint: "00".to_owned(),
            model: "embedded".to_owned(),
            model_sha256: "11".to_owned(),
            seed: 1,
            device: "flex".to_owned(),
            peers: Vec::new(),
            products: faer(),
            evaluation: EvalOptions::default(),
            guard: Vec::new(),
            skip_bad_images: false,
            select: None,
            version: "0".to_owned(),
            method: Method::load("gnsp", "mini", &[]).unwrap(),
        }
    }

    #[test]
    fn the_same_request_opens_an_old_directory_and_another_is_refused_with_the_difference() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        drop(RunDirectory::open(&path, &request()).unwrap());
        drop(RunDirectory::open(&path, &request()).unwrap());
        let mut other = request();
        other.seed = 2;
        other.peers = vec!["cuda:1".to_owned()];
        other.method.projection = None;
        let message = RunDirectory::open(&path, &other).err().unwrap().to_string();
        assert!(
            message.contains("seed: 1 in the directory, 2 now"),
            "{message}"
        );
        assert!(message.contains("method.projection"), "{message}");
        assert!(
            message.contains("peers: not set in the directory, [\"cuda:1\"] now"),
            "{message}"
        );
    }

    #[test]
    fn a_directory_of_an_earlier_version_is_one_of_faer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        drop(RunDirectory::open(&path, &request()).unwrap());
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
        drop(RunDirectory::open(&path, &request()).unwrap());
        let mut other = request();
        other.products = "blas".to_owned();
        other.method.map_smoothing = 0.0;
        let message = RunDirectory::open(&path, &other).err().unwrap().to_string();
        for difference in [
            "products: \"faer\" in the directory, \"blas\" now",
            "method.map_smoothing: 0.2 in the directory, 0.0 now",
        ] {
            assert!(message.contains(difference), "{message}");
        }
    }

    #[test]
    fn an_unfinished_event_is_cut_off_before_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let note = |text: &str| Event::Note {
            text: text.to_owned(),
        };
        let directory = RunDirectory::open(&path, &request()).unwrap();
        directory.record(&note("first")).unwrap();
        directory.record(&Event::Done).unwrap();
        let log = directory.files().log();
        drop(directory);
        let whole = fs::read_to_string(&log).unwrap();
        fs::write(&log, format!("{whole}{{\"event\":\"no")).unwrap();
        let directory = RunDirectory::open(&path, &request()).unwrap();
        directory.record(&note("second")).unwrap();
        let read = directory.files().events().unwrap();
        assert_eq!(read.events, [note("first"), note("second")]);
        assert_eq!(read.unreadable, 0);
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let _held = RunDirectory::open(&path, &request()).unwrap();
        let message = RunDirectory::open(&path, &request())
            .err()
            .unwrap()
            .to_string();
        assert!(message.contains("another process"), "{message}");
    }
}

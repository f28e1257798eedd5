//! Files of a sweep: `sweep.toml`, the command list and the SLURM script.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{PlanError, Request, Run, line, list::display, plan, slurm};
use mtil_data::files::write_atomically;

/// An error in reading or writing the files of a sweep.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file could not be accessed.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The folder has no `sweep.toml`.
    #[error(
        "{} holds no sweep: it has no sweep.toml, which `mtil-bench sweep plan` writes",
        path.display()
    )]
    NoSweep {
        /// The folder.
        path: PathBuf,
    },
    /// `sweep.toml` is malformed.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// The folder holds another sweep.
    #[error(
        "{} holds another sweep; choose another folder, repeat its request, or add --force to \
         replace its list (line N becomes another run, so cancel queued jobs first; runs of the \
         same name resume):\n{}",
        path.display(),
        differences.join("\n")
    )]
    OtherRequest {
        /// The folder.
        path: PathBuf,
        /// One line for each difference.
        differences: Vec<String>,
    },
    /// A word contains a line break or is not UTF-8.
    #[error("{word:?} cannot be used in a sweep: each run is one line of text in UTF-8")]
    NotALine {
        /// The word or path.
        word: String,
    },
    /// The request is invalid.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Paths of the files of a sweep.
///
/// ```
/// use mtil_bench::sweep::Files;
///
/// let files = Files::new(std::path::Path::new("/data/lr"))?;
/// assert!(files.list().ends_with("lr/runs.sh"));
/// # Ok::<(), mtil_bench::sweep::FolderError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Returns the paths in `folder`, which need not exist.
    ///
    /// # Errors
    /// [`FolderError::NotALine`] if the path contains a line break or is not UTF-8.
    /// [`FolderError::Io`] if it cannot be made absolute.
    pub fn new(folder: &Path) -> Result<Self, FolderError> {
        let root = std::path::absolute(folder).map_err(|source| FolderError::Io {
            path: folder.to_owned(),
            source,
        })?;
        match root.to_str() {
            Some(text) => one_line(text)?,
            None => {
                return Err(FolderError::NotALine {
                    word: display(&root),
                });
            }
        }
        Ok(Self { root })
    }

    /// Returns the folder of the sweep.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of `sweep.toml`: the request and the runs.
    pub fn sweep(&self) -> PathBuf {
        self.root.join("sweep.toml")
    }

    /// Returns the path of `runs.sh`: the commands, one per line.
    pub fn list(&self) -> PathBuf {
        self.root.join("runs.sh")
    }

    /// Returns the path of `sweep.sbatch`: the SLURM job array.
    pub fn script(&self) -> PathBuf {
        self.root.join("sweep.sbatch")
    }

    /// Returns the `--out` argument of a run.
    pub fn out(&self, run: &Run) -> PathBuf {
        self.root.join("runs").join(&run.name)
    }

    /// Returns the folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Returns the log file of a run.
    pub fn log(&self, run: &Run) -> PathBuf {
        // Not `with_extension`: the numbers in a name contain dots.
        self.logs().join(format!("{}.log", run.name))
    }
}

/// A sweep as stored in `sweep.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// The program of the command list.
    pub binary: String,
    /// The request.
    pub request: Request,
    /// The runs, in the order of the list.
    pub runs: Vec<Run>,
}

impl Sweep {
    /// Reads `sweep.toml`.
    ///
    /// # Errors
    /// [`FolderError`] if the file does not exist or is malformed.
    pub fn load(files: &Files) -> Result<Self, FolderError> {
        let path = files.sweep();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(FolderError::NoSweep {
                    path: files.root.clone(),
                });
            }
            Err(source) => return Err(FolderError::Io { path, source }),
        };
        toml::from_str(&text).map_err(|e| FolderError::Corrupt {
            path,
            reason: e.to_string(),
        })
    }
}

/// Plans the runs of `request` and writes the list, the SLURM script and `sweep.toml`.
///
/// Repeating a request updates the program of the list and the SLURM script only. Existing run
/// directories are not changed.
///
/// # Arguments
/// * `binary` - the program of the command list
/// * `force` - replace the list of another request
///
/// # Errors
/// [`FolderError`] if the request is invalid, the folder holds another request, or a file cannot be
/// written.
pub fn write(
    files: &Files,
    request: Request,
    binary: &str,
    force: bool,
) -> Result<Sweep, FolderError> {
    let words = [
        &request.methods,
        &request.suites,
        &request.set,
        &request.shared,
    ];
    for word in words.into_iter().flatten() {
        one_line(word)?;
    }
    one_line(&request.directory)?;
    one_line(binary)?;
    let runs = plan(&request)?;
    let script = slurm::script(files, runs.len(), &request.version);
    if !force {
        match Sweep::load(files) {
            Ok(old) => {
                let differences = differences(&old.request, &request);
                if !differences.is_empty() {
                    return Err(FolderError::OtherRequest {
                        path: files.root.clone(),
                        differences,
                    });
                }
            }
            Err(FolderError::NoSweep { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    let mut list = String::new();
    for run in &runs {
        list += &line(files, run, binary, &request.directory, &request.shared);
        list.push('\n');
        if let Some(folder) = files.log(run).parent() {
            fs::create_dir_all(folder).map_err(|source| FolderError::Io {
                path: folder.to_owned(),
                source,
            })?;
        }
    }
    let sweep = Sweep {
        binary: binary.to_owned(),
        request,
        runs,
    };
    let path = files.sweep();
    let text = toml::to_string_pretty(&sweep).map_err(|e| FolderError::Corrupt {
        path: path.clone(),
        reason: e.to_string(),
    })?;
    let text = format!(
        "# A sweep, written by `mtil-bench sweep plan` and read by `mtil-bench sweep status`.\n\
         {text}"
    );
    // `sweep.toml` comes last: its presence means that the other files are complete.
    for (path, text) in [(files.list(), list), (files.script(), script), (path, text)] {
        write_atomically(&path, text.as_bytes())
            .map_err(|source| FolderError::Io { path, source })?;
    }
    Ok(sweep)
}

fn one_line(word: &str) -> Result<(), FolderError> {
    if word.contains(['\n', '\r', '\0']) {
        return Err(FolderError::NotALine {
            word: word.to_owned(),
        });
    }
    Ok(())
}

/// Returns one line for each field in which two requests differ.
fn differences(old: &Request, new: &Request) -> Vec<String> {
    let seeds = |request: &Request| request.seeds.iter().map(u64::to_string).collect();
    let of = |request: &Request| -> [(&'static str, Vec<String>); 7] {
        [
            ("version", vec![request.version.clone()]),
            ("directory", vec![request.directory.clone()]),
            ("methods", request.methods.clone()),
            ("suites", request.suites.clone()),
            ("seeds", seeds(request)),
            ("set", request.set.clone()),
            ("shared arguments", request.shared.clone()),
        ]
    };
    let show = |words: &[String]| match words {
        [] => "nothing".to_owned(),
        words => words.join(" "),
    };
    of(old)
        .into_iter()
        .zip(of(new))
        .filter(|((_, old), (_, new))| old != new)
        .map(|((name, old), (_, new))| {
            format!("  {name}: {} in sweep.toml, {} now", show(&old), show(&new))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::plan::tests::request, *};

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_repeated_request_is_accepted_and_another_is_refused_with_the_difference() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(&folder.path().join("a sweep")).unwrap();
        let asked = request(&["finetune"], &["mini"], &[42, 43], &["lr=1e-5,2e-5"]);
        let first = write(&files, asked.clone(), "/b", false).unwrap();
        let before = [files.sweep(), files.list(), files.script()].map(|p| read(&p));
        let again = write(&files, asked.clone(), "/b", false).unwrap();
        assert_eq!(first, again);
        assert_eq!(
            before,
            [files.sweep(), files.list(), files.script()].map(|p| read(&p))
        );
        assert_eq!(Sweep::load(&files).unwrap(), first);
        assert_eq!(before[1].lines().count(), 4);
        assert!(files.log(&first.runs[0]).parent().unwrap().is_dir());

        // The program may change.
        write(&files, asked.clone(), "/c", false).unwrap();
        assert!(read(&files.list()).contains("/c run"));

        let mut other = asked;
        other.seeds.push(44);
        other.version = "9".to_owned();
        other.shared.clear();
        let kept = read(&files.list());
        let message = write(&files, other.clone(), "/c", false)
            .unwrap_err()
            .to_string();
        for line in [
            "  seeds: 42 43 in sweep.toml, 42 43 44 now",
            "  version: 0.1.0 in sweep.toml, 9 now",
            "  shared arguments: --quick in sweep.toml, nothing now",
            "--force",
        ] {
            assert!(message.contains(line), "{message}");
        }
        assert!(!message.contains("methods:"), "{message}");
        assert_eq!(read(&files.list()), kept);
        let forced = write(&files, other, "/c", true).unwrap();
        assert_eq!(forced.runs.len(), 6);
        assert_eq!(read(&files.list()).lines().count(), 6);
    }

    #[test]
    fn an_invalid_request_writes_no_files() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("new");
        let files = Files::new(&root).unwrap();
        let message = Sweep::load(&files).unwrap_err().to_string();
        assert!(message.contains("holds no sweep"), "{message}");
        let good = request(&["finetune"], &["mini"], &[1], &[]);
        let mut two_lines = good.clone();
        two_lines.shared.push("a\nb".to_owned());
        let unknown = request(&["fine-tune"], &["mini"], &[1], &[]);
        for (request, binary, word) in [
            (&two_lines, "/b", "one line"),
            (&unknown, "/b", "fine-tune"),
            (&good, "/b\n", "one line"),
        ] {
            let message = write(&files, request.clone(), binary, true)
                .unwrap_err()
                .to_string();
            assert!(message.contains(word), "{message}");
            assert!(!root.exists());
        }
        assert!(Files::new(Path::new("a\nb")).is_err());
    }

    #[test]
    fn a_malformed_file_is_an_error_not_a_missing_sweep() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path()).unwrap();
        fs::write(files.sweep(), "request = 1").unwrap();
        let asked = request(&["finetune"], &["mini"], &[1], &[]);
        let message = write(&files, asked.clone(), "/b", false)
            .unwrap_err()
            .to_string();
        assert!(message.contains("sweep.toml"), "{message}");
        write(&files, asked, "/b", true).unwrap();
        Sweep::load(&files).unwrap();
    }
}

//! The files of a sweep.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{PlanError, Request, Run, line, list::display, plan, slurm};
use mtil_data::files::write_atomically;

/// Why the files of a sweep could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file could not be accessed.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is no sweep.
    #[error("{} holds no sweep: it has no sweep.toml, which `mtil-bench sweep plan` writes", path.display())]
    NoSweep {
        /// The folder.
        path: PathBuf,
    },
    /// `sweep.toml` is not what was written.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The folder holds another sweep.
    #[error(
        "{} holds another sweep; choose another folder, ask for the same, or add --force to replace its list (line N becomes another run, so cancel what waits in a queue first; runs of the same name go on):\n{}",
        path.display(),
        differences.join("\n")
    )]
    OtherRequest {
        /// The folder.
        path: PathBuf,
        /// One line a difference.
        differences: Vec<String>,
    },
    /// A word cannot stand on a line.
    #[error("{word:?} cannot be used in a sweep: each run is one line of text in UTF-8")]
    NotALine {
        /// The word or path.
        word: String,
    },
    /// The request makes no sweep.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Where the files of a sweep are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Those in `folder`, which need not be there.
    ///
    /// # Errors
    /// [`FolderError::NotALine`] when its path cannot stand on a line of text.
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

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What was asked for, and the runs: `sweep.toml`.
    pub fn sweep(&self) -> PathBuf {
        self.root.join("sweep.toml")
    }

    /// The commands, one a line: `runs.sh`.
    pub fn list(&self) -> PathBuf {
        self.root.join("runs.sh")
    }

    /// The script of a SLURM job array: `sweep.sbatch`.
    pub fn script(&self) -> PathBuf {
        self.root.join("sweep.sbatch")
    }

    /// What is given to `run` as its `--out`.
    pub fn out(&self, run: &Run) -> PathBuf {
        self.root.join("runs").join(&run.name)
    }

    /// The folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// What a run prints.
    pub fn log(&self, run: &Run) -> PathBuf {
        // A name has dots in its numbers, so its end is no extension.
        self.logs().join(format!("{}.log", run.name))
    }
}

/// A sweep, as its `sweep.toml` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// The program of the list.
    pub binary: String,
    /// What was asked for.
    pub request: Request,
    /// The runs, in the order of the list.
    pub runs: Vec<Run>,
}

impl Sweep {
    /// Reads `sweep.toml`.
    ///
    /// # Errors
    /// [`FolderError`] when there is none, or it is malformed.
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

/// Plans the runs of `request` and writes the list, the SLURM script and `sweep.toml`. Doing so
/// again with the same request is harmless: only the program and the options of SLURM may have
/// changed. Runs that were begun are not touched.
///
/// # Arguments
/// * `binary` - the program of the list
/// * `force` - replace the list of another request
///
/// # Errors
/// [`FolderError`] when the request is wrong, another one was made in the folder, or a file cannot
/// be written.
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
        "# A sweep, written by `mtil-bench sweep plan` and read by `mtil-bench sweep status`.\n{text}"
    );
    // What says that the others are there comes last.
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

/// One line for each thing that two requests do not share.
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
    fn the_same_request_is_harmless_and_another_is_refused_with_the_difference() {
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

        // What does the runs may change.
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
    fn what_is_wrong_leaves_no_files() {
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
    fn a_broken_file_is_not_taken_for_no_sweep() {
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

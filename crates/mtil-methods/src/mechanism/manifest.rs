//! Manifest of a saved state: the size and the digest of each of its files.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::json_file::write_json;
use crate::error::{RunError, StateFault};

const NAME: &str = "manifest.json";

/// Extensions of the files of a state. A file manager may leave others in its folder.
const EXTENSIONS: [&str; 3] = ["json", "safetensors", "bpk"];

/// Read buffer in bytes.
const BUFFER: usize = 1 << 20;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    /// Identity of the run.
    run: String,
    /// The other files of the state, by their path from the folder.
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    /// In lower-case hexadecimal.
    sha256: String,
}

/// Writes the manifest of the state in `folder`, which is complete but for it. `run` identifies the
/// run, and `elsewhere` names further files of the state by their path from `folder`.
///
/// # Errors
/// [`RunError::Io`].
pub fn write(folder: &Path, run: &str, elsewhere: &[&str]) -> Result<(), RunError> {
    let mut names = state_files(folder)?;
    names.extend(elsewhere.iter().map(|name| (*name).to_owned()));
    let entry = |name: &String| {
        let path = folder.join(name);
        let entry = digest(&path).map_err(|e| RunError::io(&path, e))?;
        Ok((name.clone(), entry))
    };
    let manifest = Manifest {
        run: run.to_owned(),
        files: names
            .par_iter()
            .map(entry)
            .collect::<Result<_, RunError>>()?,
    };
    write_json(&manifest, &folder.join(NAME))
}

/// Compares the state in `folder` with its manifest, whose run must be one of `runs`. A state that
/// an earlier version saved has none, and passes.
///
/// # Errors
/// [`RunError::State`] naming the first file that is missing, foreign or another one;
/// [`RunError::Io`].
pub fn verify(folder: &Path, runs: &[String]) -> Result<(), RunError> {
    let path = folder.join(NAME);
    let text = match fs::read(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|e| RunError::io(&path, e))?,
    };
    let fault = |path: PathBuf, fault| Err(RunError::State { path, fault });
    let manifest: Manifest = match serde_json::from_slice(&text) {
        Ok(manifest) => manifest,
        Err(error) => return fault(path, StateFault::Unreadable(error.to_string())),
    };
    if !runs.contains(&manifest.run) {
        return fault(path, StateFault::OtherRun(manifest.run));
    }
    // Names and sizes first, because digests take long.
    for (name, saved) in &manifest.files {
        let path = folder.join(name);
        match fs::metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return fault(path, StateFault::Missing),
            Err(e) => return Err(RunError::io(&path, e)),
            Ok(found) if found.len() != saved.bytes => {
                let (expected, found) = (saved.bytes, found.len());
                return fault(path, StateFault::Size { expected, found });
            }
            Ok(_) => {}
        }
    }
    let foreign = |name: &String| !manifest.files.contains_key(name);
    if let Some(name) = state_files(folder)?.into_iter().find(foreign) {
        return fault(folder.join(name), StateFault::Foreign);
    }
    let check = |(name, saved): (&String, &Entry)| {
        let path = folder.join(name);
        match digest(&path) {
            Err(e) => Err(RunError::io(&path, e)),
            Ok(found) if found != *saved => fault(path, StateFault::Content),
            Ok(_) => Ok(()),
        }
    };
    let checks: Vec<Result<(), RunError>> = manifest.files.par_iter().map(check).collect();
    checks.into_iter().collect()
}

/// Returns the names of the files of the state in `folder`, with the manifest if there is one.
pub(crate) fn all_files(folder: &Path) -> Result<Vec<String>, RunError> {
    let mut names = state_files(folder)?;
    if folder.join(NAME).exists() {
        names.push(NAME.to_owned());
    }
    Ok(names)
}

/// Returns the names of the files of the state in `folder` except the manifest, in order.
pub fn state_files(folder: &Path) -> Result<Vec<String>, RunError> {
    let io = |e| RunError::io(folder, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let Ok(name) = entry.map_err(io)?.file_name().into_string() else {
            continue;
        };
        let extension = Path::new(&name).extension().and_then(|e| e.to_str());
        let known = extension.is_some_and(|e| EXTENSIONS.contains(&e));
        if known && !name.starts_with('.') && name != NAME {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn digest(path: &Path) -> std::io::Result<Entry> {
    let mut file = File::open(path)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
    let sha256 = format!("{:x}", hash.finalize());
    Ok(Entry { bytes, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "suite 1 seed 2";
    /// Computed with `printf weights | sha256sum`.
    const WEIGHTS: &str = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c";

    fn state() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("position.json"), "{}").unwrap();
        fs::write(folder.path().join("model.safetensors"), "weights").unwrap();
        write(folder.path(), RUN, &[]).unwrap();
        folder
    }

    fn runs() -> [String; 2] {
        ["suite 1".to_owned(), RUN.to_owned()]
    }

    /// Returns the file and the fault after `change`.
    fn fault(change: impl FnOnce(&Path)) -> (String, StateFault) {
        let folder = state();
        change(folder.path());
        match verify(folder.path(), &runs()).unwrap_err() {
            RunError::State { path, fault } => {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, fault)
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_manifest_holds_sizes_and_digests() {
        let folder = state();
        let text = fs::read(folder.path().join(NAME)).unwrap();
        let manifest: Manifest = serde_json::from_slice(&text).unwrap();
        let weights = Entry {
            bytes: 7,
            sha256: WEIGHTS.to_owned(),
        };
        assert_eq!(manifest.files["model.safetensors"], weights);
        assert_eq!(manifest.files.len(), 2);
        assert!(verify(folder.path(), &runs()).is_ok());
    }

    #[test]
    fn each_kind_of_other_file_is_named() {
        let model = |bytes: &'static str| {
            move |folder: &Path| fs::write(folder.join("model.safetensors"), bytes).unwrap()
        };
        let named = |name: &str, fault| (name.to_owned(), fault);
        let size = StateFault::Size {
            expected: 7,
            found: 3,
        };
        assert_eq!(fault(model("wei")), named("model.safetensors", size));
        let changed = fault(model("WEIGHTS"));
        assert_eq!(changed, named("model.safetensors", StateFault::Content));
        let missing = fault(|folder| fs::remove_file(folder.join("position.json")).unwrap());
        assert_eq!(missing, named("position.json", StateFault::Missing));
        let foreign = fault(|folder| fs::write(folder.join("adapters.safetensors"), "").unwrap());
        assert_eq!(foreign, named("adapters.safetensors", StateFault::Foreign));
        let (name, cut) = fault(|folder| fs::write(folder.join(NAME), "{").unwrap());
        assert!(matches!(cut, StateFault::Unreadable(_)) && name == NAME);

        let folder = state();
        let other = verify(folder.path(), &["suite 1 seed 3".to_owned()]).unwrap_err();
        assert!(other.to_string().contains(RUN), "{other}");
    }

    #[test]
    fn files_elsewhere_belong_to_the_state() {
        let folder = state();
        let kept = folder.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("position.json"), "{}").unwrap();
        write(&kept, RUN, &["../model.safetensors"]).unwrap();
        verify(&kept, &runs()).unwrap();
        fs::write(folder.path().join("model.safetensors"), "WEIGHTS").unwrap();
        let error = verify(&kept, &runs()).unwrap_err();
        assert!(matches!(
            error,
            RunError::State {
                fault: StateFault::Content,
                ..
            }
        ));
    }

    #[test]
    fn states_without_a_manifest_and_files_of_others_pass() {
        let folder = state();
        fs::write(folder.path().join(".DS_Store"), "").unwrap();
        fs::write(folder.path().join("notes.txt"), "").unwrap();
        assert!(verify(folder.path(), &runs()).is_ok());
        fs::remove_file(folder.path().join(NAME)).unwrap();
        fs::write(folder.path().join("position.json"), "{").unwrap();
        assert!(verify(folder.path(), &runs()).is_ok());
    }
}

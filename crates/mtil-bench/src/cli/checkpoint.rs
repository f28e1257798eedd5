//! `--model`: resolution and loading of a CLIP.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use clip_model::{
    CheckpointError, Clip, ClipConfig, LoadOptions, architecture, architectures,
    zoo::{Entry, Layout, Registry, Role, ZooError},
};
use eyre::{Report, Result, bail, eyre};
use sha2::{Digest, Sha256};

use super::{args::Hints, download::fetch};
use mini_world::embedded;
use mtil_data::nearest;
use mtil_engine::run::RunFiles;

/// Name of the model that is part of the program.
pub const EMBEDDED: &str = "embedded";

/// Source of a model.
pub enum ModelSource {
    /// The model that is part of the program.
    Embedded,
    /// A folder or a file.
    Path(PathBuf),
    /// An entry of the zoo.
    Zoo(Box<Entry>),
}

/// A CLIP, and the name and hash that identify it in a run.
pub struct LoadedModel {
    /// The CLIP.
    pub clip: Clip,
    /// Canonical name: the full name if the zoo has several.
    pub name: String,
    /// SHA-256 of the weights.
    pub sha256: String,
}

impl ModelSource {
    /// Finds a model. An existing path takes precedence over a name of the zoo.
    pub fn find(word: &str) -> Result<Self> {
        if word == EMBEDDED {
            return Ok(Self::Embedded);
        }
        let path = Path::new(word);
        if path.exists() {
            return match run_instead_of_model(path) {
                Some(error) => Err(error),
                None => Ok(Self::Path(path.to_owned())),
            };
        }
        match Registry::embedded()?.get(word) {
            Ok(entry) => Ok(Self::Zoo(Box::new(entry.clone()))),
            Err(ZooError::Unknown { near, .. }) => {
                let what = "neither a file or folder nor the name of a model";
                Err(unknown_model(word, what, &near))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// Returns the error for a run, or a folder of runs, in place of a model. It names a checkpoint.
fn run_instead_of_model(path: &Path) -> Option<Report> {
    let runs = runs_at(path);
    let what = match runs.as_slice() {
        [] => return None,
        [_] => "a run",
        _ => "a folder of runs",
    };
    if is_model(path) {
        return None;
    }
    let path = path.display();
    Some(match runs.iter().find_map(last_checkpoint) {
        Some(checkpoint) => eyre!(
            "{path} is {what}, not a model; give the checkpoint after a task, such as {}",
            checkpoint.display()
        ),
        None => eyre!(
            "{path} is {what}, not a model, and has no checkpoint; a run writes one after each \
             task, unless --no-checkpoints is given"
        ),
    })
}

/// Returns whether `path` has the weights of a model, which may lie beside the files of a run.
pub fn is_model(path: &Path) -> bool {
    let described = Clip::describe(path, &LoadOptions::default());
    !matches!(described, Err(CheckpointError::NoWeights { .. }))
}

/// Returns the run at `path`, the run that the folder is a part of, or the runs in the folder.
pub fn runs_at(path: &Path) -> Vec<RunFiles> {
    let own = RunFiles::new(path);
    if own.exist() {
        return vec![own];
    }
    let name = path.file_name().and_then(|name| name.to_str());
    if let (Some(name), Some(parent)) = (name, path.parent())
        && RunFiles::is_part(name)
        && RunFiles::new(parent).exist()
    {
        return vec![RunFiles::new(parent)];
    }
    let runs = folders(path).into_iter().map(RunFiles::new);
    runs.filter(RunFiles::exist).collect()
}

/// Returns the checkpoint after the last task of a run.
pub fn last_checkpoint(run: &RunFiles) -> Option<PathBuf> {
    folders(run.checkpoint(0).parent()?).pop()
}

/// Returns the folders in a folder, in the order of their names.
fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    folders
}

/// Returns the error for an unknown model, with suggestions.
pub fn unknown_model(word: &str, what: &str, near: &[String]) -> Report {
    let near: Vec<_> = near.iter().map(|n| format!("`{n}`")).collect();
    let guess = match near.as_slice() {
        [] => ";".to_owned(),
        near => format!("; did you mean {}?", near.join(" or ")),
    };
    eyre!("`{word}` is {what}{guess} `mtil-bench model list` shows the names")
}

impl Hints {
    /// Returns the options of the library.
    pub fn options(&self) -> Result<LoadOptions> {
        let shape = |name: &String| -> Result<ClipConfig> {
            let mut config = architecture(name).ok_or_else(|| {
                let near = nearest(name, architectures().map(|(name, _)| name));
                eyre!(
                    "there is no architecture `{name}`{} `mtil-bench model list --architectures` \
                     shows all of them",
                    near.map_or(";".to_owned(), |n| format!("; did you mean `{n}`?"))
                )
            })?;
            // With an architecture, the library takes the activation from its configuration.
            if let Some(activation) = self.activation {
                config.vision.hidden_act = activation.into();
                config.text.hidden_act = activation.into();
            }
            Ok(config)
        };
        Ok(LoadOptions {
            architecture: self.architecture.as_ref().map(shape).transpose()?,
            activation: self.activation.map(Into::into),
            ..LoadOptions::default()
        })
    }

    /// Returns the hints as a suffix of the model's name, because a run depends on them.
    fn suffix(&self) -> String {
        let architecture = self.architecture.as_ref().map(|a| format!(" as {a}"));
        let activation = self.activation.map(|a| format!(" with {}", a.name()));
        architecture.unwrap_or_default() + &activation.unwrap_or_default()
    }

    /// Returns whether no hint is given.
    pub fn is_empty(&self) -> bool {
        self.architecture.is_none() && self.activation.is_none()
    }
}

/// Loads the model of `--model`, and downloads it if needed.
pub fn load_model(word: &str, hints: &Hints, device: &Device) -> Result<LoadedModel> {
    load_with(word, hints, &hints.options()?, device)
}

/// Like [`load_model`], with options that include the hints.
pub fn load_with(
    word: &str,
    hints: &Hints,
    options: &LoadOptions,
    device: &Device,
) -> Result<LoadedModel> {
    let (clip, name, sha256) = match ModelSource::find(word)? {
        ModelSource::Embedded if !hints.is_empty() => bail!(
            "the embedded model has a configuration; --architecture and --activation are for \
             weights files"
        ),
        ModelSource::Embedded => (
            embedded::clip_mini(device)?,
            word.to_owned(),
            format!("{:x}", Sha256::digest(embedded::CLIP_MINI.weights)),
        ),
        ModelSource::Path(path) => {
            let sha256 = Clip::describe(&path, options)?.sha256()?;
            let clip = Clip::load_with(&path, options, device)?;
            (clip, word.to_owned(), sha256)
        }
        ModelSource::Zoo(entry) => {
            let fetched = fetch(&entry, false, None)?;
            let sha256 = fetched.files.iter().find(|f| f.role == Role::Weights);
            let sha256 = sha256.map(|f| f.sha256.clone()).unwrap_or_default();
            let clip = Clip::load_fetched(&entry, &fetched, options, device)?;
            (clip, entry.name.clone(), sha256)
        }
    };
    Ok(LoadedModel {
        clip,
        name: name + &hints.suffix(),
        sha256,
    })
}

/// Adds the architecture to the options of an archive of OpenAI, which has no configuration.
pub fn options_for(entry: &Entry, layout: Layout, mut options: LoadOptions) -> LoadOptions {
    if layout == Layout::OpenaiArchive && options.architecture.is_none() {
        options.architecture = architecture(&entry.architecture);
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_in_place_of_a_model_is_refused_with_its_last_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("gnsp");
        fs::create_dir_all(run.join("checkpoints")).unwrap();
        fs::write(run.join("events.jsonl"), "{}\n{}\n").unwrap();
        fs::write(run.join("config.toml"), "").unwrap();
        let message = |path: &Path| {
            let found = ModelSource::find(path.to_str().unwrap());
            found.err().map(|error| error.to_string())
        };
        let text = message(&run).unwrap();
        assert!(text.contains("is a run, not a model"), "{text}");
        assert!(text.contains("has no checkpoint"), "{text}");
        for task in ["task-01", "task-02"] {
            fs::create_dir(run.join("checkpoints").join(task)).unwrap();
        }
        let last = run.join("checkpoints").join("task-02");
        let checkpoints = run.join("checkpoints");
        for path in [run.as_path(), checkpoints.as_path(), folder.path()] {
            let text = message(path).unwrap();
            assert!(text.ends_with(&last.display().to_string()), "{text}");
        }
        // A checkpoint, and a folder with weights and the log of a run, are models.
        assert_eq!(message(&last), None);
        let weights = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/data/zoo/openai_vit/torchscript.pt");
        fs::copy(weights, run.join("torchscript.pt")).unwrap();
        assert_eq!(message(&run), None);
    }
}

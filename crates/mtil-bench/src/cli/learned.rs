//! `--model RUN`: the model that a run has learned.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use clap::ValueEnum as _;
use clip_model::Clip;
use eyre::{Result, WrapErr, bail, eyre};
use serde::{Deserialize, Serialize};

use super::{
    args::{ActivationName, Hints},
    checkpoint::{is_model, last_checkpoint, load_model, runs_at},
};
use mtil_engine::{
    eval::TaskLabels,
    run::{LearnedModel, Request, RunError, RunFiles},
};

/// Name of the file of a model folder with the classes that it has learned.
const LABELS: &str = "labels.json";

/// The classes that the model of a folder has learned: `labels.json`.
#[derive(Debug, Serialize, Deserialize)]
struct LabelsFile {
    /// The tasks in training order.
    tasks: Vec<TaskLabels>,
}

/// Returns the directory of the run that `--model` names; none if it names a model.
pub fn run_at(word: &str) -> Result<Option<PathBuf>> {
    let path = Path::new(word);
    if !path.is_dir() || is_model(path) {
        return Ok(None);
    }
    let runs = runs_at(path);
    match runs.as_slice() {
        [] => Ok(None),
        [run] if run.folder() == path || run.folder().parent() == Some(path) => {
            Ok(Some(run.folder().to_owned()))
        }
        [run] => bail!(
            "{} is a part of the run {}: give the run, or the checkpoint after a task",
            path.display(),
            run.folder().display()
        ),
        runs => {
            let names: Vec<_> = runs
                .iter()
                .map(|run| run.folder().display().to_string())
                .collect();
            bail!(
                "{} holds several runs: give one of {}",
                path.display(),
                names.join(", ")
            )
        }
    }
}

/// Opens the model that a run has learned. `task` is that of the images, where it is known.
pub fn open(
    run: &Path,
    task: Option<&str>,
    hints: &Hints,
    device: &Device,
) -> Result<LearnedModel> {
    if !hints.is_empty() {
        bail!("the model of a run has a configuration; leave out --architecture and --activation");
    }
    let files = RunFiles::new(run);
    let request = files.request()?.ok_or_else(|| RunError::NoRun {
        path: run.to_owned(),
    })?;
    let base = load_base(&files, &request, device)?;
    let learned = LearnedModel::open(run, base, task)?;
    if let (Some(task), Some(last)) = (learned.in_training(), learned.tasks().last()) {
        eprintln!(
            "note: {} is within task `{task}`; its model is that after task `{}`",
            run.display(),
            last.name
        );
    }
    Ok(learned)
}

/// Loads the pretrained model of a run, or else a checkpoint of the run, which has the same
/// configuration, tokenizer and image settings.
fn load_base(files: &RunFiles, request: &Request, device: &Device) -> Result<Clip> {
    let (word, hints) = words_of(&request.model);
    let problem = match load_model(word, &hints, device) {
        Ok(base) if base.sha256 == request.model_sha256 => return Ok(base.clip),
        Ok(_) => eyre!("its weights are not those that the run began with"),
        Err(error) => error,
    };
    let what = || format!("the pretrained model of {}", files.folder().display());
    match last_checkpoint(files) {
        Some(checkpoint) => {
            eprintln!(
                "note: {} cannot be used ({problem:#}); tokenizer and image settings are those of \
                 {}",
                what(),
                checkpoint.display()
            );
            Clip::load(&checkpoint, device)
                .wrap_err_with(|| format!("cannot load {}", checkpoint.display()))
        }
        None => Err(problem.wrap_err(what())),
    }
}

/// Splits the model of a request into the word of `--model` and the hints.
pub fn words_of(model: &str) -> (&str, Hints) {
    let mut hints = Hints::default();
    let mut word = model;
    if Path::new(word).exists() {
        return (word, hints);
    }
    if let Some((before, name)) = word.rsplit_once(" with ")
        && let Ok(activation) = ActivationName::from_str(name, false)
    {
        hints.activation = Some(activation);
        word = before;
    }
    if let Some((before, name)) = word.rsplit_once(" as ")
        && clip_model::architecture(name).is_some()
    {
        hints.architecture = Some(name.to_owned());
        word = before;
    }
    (word, hints)
}

/// Reads the classes that the model in `folder` has learned; none if it has no such file.
///
/// # Errors
/// If the file cannot be read, or names no classes or invalid templates.
pub fn read_labels(folder: &Path) -> Result<Option<Vec<TaskLabels>>> {
    let path = folder.join(LABELS);
    let bytes = match fs::read(&path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        read => read.wrap_err_with(|| format!("cannot read {}", path.display()))?,
    };
    let file: LabelsFile = serde_json::from_slice(&bytes)
        .wrap_err_with(|| format!("{} is malformed", path.display()))?;
    if file.tasks.is_empty() {
        bail!("{}: `tasks` is empty", path.display());
    }
    for task in &file.tasks {
        let problem = if task.classes.is_empty() {
            "has no `classes`"
        } else if task.templates.is_empty() {
            "has no `templates`"
        } else if task.templates.iter().any(|t| !t.contains("{}")) {
            "has a template without {} for the class"
        } else {
            continue;
        };
        bail!("{}: task `{}` {problem}", path.display(), task.name);
    }
    Ok(Some(file.tasks))
}

/// Writes the file that [`read_labels`] reads.
pub fn write_labels(folder: &Path, tasks: &[TaskLabels]) -> Result<()> {
    let path = folder.join(LABELS);
    let tasks = tasks.to_vec();
    let text = serde_json::to_string_pretty(&LabelsFile { tasks })?;
    mtil_data::files::write_atomically(&path, text.as_bytes())
        .wrap_err_with(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_a_request_is_split_into_its_arguments() {
        let split = |model| {
            let (word, hints) = words_of(model);
            (word.to_owned(), hints.architecture, hints.activation)
        };
        let quick = Some(ActivationName::QuickGelu);
        assert_eq!(
            split("a with b/epoch.pt as ViT-B-16 with quick_gelu"),
            (
                "a with b/epoch.pt".to_owned(),
                Some("ViT-B-16".to_owned()),
                quick
            )
        );
        assert_eq!(
            split("epoch.pt with quick_gelu"),
            ("epoch.pt".to_owned(), None, quick)
        );
        for word in ["openai/ViT-B-16", "same as before", "one with two"] {
            assert_eq!(split(word), (word.to_owned(), None, None));
        }
    }

    #[test]
    fn labels_of_a_folder_are_read_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_labels(folder.path()).unwrap().is_none());
        let task = |classes: &[&str], template: &str| TaskLabels {
            name: "pets".to_owned(),
            classes: classes.iter().map(|class| (*class).to_owned()).collect(),
            templates: vec![template.to_owned()],
        };
        let good = vec![task(&["cat", "dog"], "a {}.")];
        write_labels(folder.path(), &good).unwrap();
        assert_eq!(read_labels(folder.path()).unwrap(), Some(good));
        for (tasks, words) in [
            (vec![], "`tasks` is empty"),
            (vec![task(&[], "a {}.")], "task `pets` has no `classes`"),
            (vec![task(&["cat"], "a cat.")], "a template without {}"),
        ] {
            write_labels(folder.path(), &tasks).unwrap();
            let error = read_labels(folder.path()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert!(error.contains("labels.json"), "{error}");
        }
        fs::write(folder.path().join(LABELS), "{").unwrap();
        let error = read_labels(folder.path()).unwrap_err().to_string();
        assert!(error.contains("labels.json is malformed"), "{error}");
    }
}

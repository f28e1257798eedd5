//! Errors of suites.

use std::path::PathBuf;

use super::config::SUITE_FILE;
use crate::data::DataError;

/// Error while reading, checking or exporting a suite.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// The suite file could not be read.
    #[error("cannot read the suite file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The suite file is not TOML, or has an unknown or a missing key.
    #[error("suite file {}: {message}{}", path.display(), suggestion(help.as_deref()))]
    Parse {
        /// The file.
        path: PathBuf,
        /// The defect, with line and column.
        message: String,
        /// The most similar known key.
        help: Option<String>,
    },
    /// The suite file has no reference set.
    #[error(
        "suite file {} has no `[reference]`: the modality gap and retrieval are measured on \
         image-text pairs",
        path.display()
    )]
    NoReference {
        /// The file.
        path: PathBuf,
    },
    /// The images of a task are gone, and no run has learned it.
    #[error(
        "task `{task}`: no run has learned it in the output folder, so its images are needed: \
         remove `images = \"gone\"`, or the task"
    )]
    Unlearned {
        /// The task.
        task: String,
    },
    /// Settings of the suite file contradict each other.
    #[error("suite file {}: {message}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The defect and its remedy.
        message: String,
    },
    /// The path is neither a suite file nor a folder with one.
    #[error("{} is neither a suite file nor a folder with a {}", path.display(), SUITE_FILE)]
    Missing {
        /// The path asked for.
        path: PathBuf,
    },
    /// The data of a task is invalid.
    #[error("task `{task}`: {source}")]
    Task {
        /// The task.
        task: String,
        /// Error of its data.
        source: DataError,
    },
    /// The reference data is invalid.
    #[error("reference set: {source}")]
    Reference {
        /// Error of its data.
        source: DataError,
    },
    /// The suite has no task.
    #[error("the suite `{suite}` has no task: add a [[task]]")]
    NoTask {
        /// The suite.
        suite: String,
    },
    /// Two tasks share a name.
    #[error("two tasks are named `{task}`: names are the rows of the tables and must differ")]
    DuplicateTask {
        /// The name.
        task: String,
    },
    /// A name is empty.
    #[error("the name of {what} is empty")]
    EmptyName {
        /// The item without a name.
        what: String,
    },
    /// A task has no prompt template.
    #[error("task `{task}` has no template: give at least one, such as \"a photo of a {{}}.\"")]
    NoTemplate {
        /// The task.
        task: String,
    },
    /// A template does not have exactly one placeholder.
    #[error(
        "task `{task}`: the template \"{template}\" must contain `{{}}` exactly once, \
         where the class name goes"
    )]
    Template {
        /// The task.
        task: String,
        /// The template.
        template: String,
    },
    /// A task has fewer than two classes.
    #[error(
        "task `{task}` has {classes} class: a classification needs at least 2, and image-caption \
         pairs need their table in `captions`"
    )]
    TooFewClasses {
        /// The task.
        task: String,
        /// Number of classes.
        classes: usize,
    },
    /// A split of a task has no images.
    #[error("task `{task}` has no image in its {split} split")]
    EmptyHalf {
        /// The task.
        task: String,
        /// `train` or `test`.
        split: &'static str,
    },
    /// Labels do not match the images or the classes.
    #[error("task `{task}`, {split} split: {message}")]
    Labels {
        /// The task.
        task: String,
        /// `train` or `test`.
        split: &'static str,
        /// The mismatch.
        message: String,
    },
    /// A reference set has no pairs.
    #[error("the {set} is empty: it needs at least one image with a caption")]
    EmptyReference {
        /// The reference set.
        set: String,
    },
    /// A reference set has an empty caption, or not one caption per image.
    #[error("{set}: {message}")]
    Captions {
        /// The reference set.
        set: String,
        /// The defect.
        message: String,
    },
    /// The target of an export is not an empty folder.
    #[error("{} is not an empty folder: export into a new one", path.display())]
    NotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// A file could not be written.
    #[error("cannot write {}: {message}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// The caller ended an export.
    #[error("stopped on request")]
    Interrupted,
}

fn suggestion(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!("\ndid you mean `{near}`?"))
}

//! What can be wrong with a suite.

use std::path::PathBuf;

use super::config::SUITE_FILE;
use crate::data::DataError;

/// What can go wrong while a suite is read, checked or written.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// The suite file could not be read.
    #[error("cannot read the suite file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The suite file is no TOML, or has an unknown or a missing key.
    #[error("suite file {}: {message}{}", path.display(), help.as_deref().map_or_else(String::new, |h| format!("\ndid you mean `{h}`?")))]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        message: String,
        /// The most similar known key.
        help: Option<String>,
    },
    /// Settings of the suite file that contradict each other.
    #[error("suite file {}: {message}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// What is wrong and how to cure it.
        message: String,
    },
    /// Neither a suite file nor a folder that holds one.
    #[error("{} is neither a suite file nor a folder with a {}", path.display(), SUITE_FILE)]
    Missing {
        /// The path asked for.
        path: PathBuf,
    },
    /// The data of a task is wrong.
    #[error("task `{task}`: {source}")]
    Task {
        /// The task.
        task: String,
        /// What is wrong with its folder.
        source: DataError,
    },
    /// The reference data is wrong.
    #[error("reference set: {source}")]
    Reference {
        /// What is wrong with its folder.
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
        /// What has no name.
        what: String,
    },
    /// A task without prompt templates.
    #[error("task `{task}` has no template: give at least one, such as \"a photo of a {{}}.\"")]
    NoTemplate {
        /// The task.
        task: String,
    },
    /// A template without exactly one placeholder.
    #[error(
        "task `{task}`: the template \"{template}\" must contain `{{}}` exactly once, where the class name goes"
    )]
    Template {
        /// The task.
        task: String,
        /// The template.
        template: String,
    },
    /// A task with fewer than two classes.
    #[error("task `{task}` has {classes} class: a classification needs at least 2")]
    TooFewClasses {
        /// The task.
        task: String,
        /// Number of classes.
        classes: usize,
    },
    /// A half of a task without images.
    #[error("task `{task}` has no image in its {half} half")]
    EmptyHalf {
        /// The task.
        task: String,
        /// `train` or `test`.
        half: &'static str,
    },
    /// Labels that do not belong to the images or the classes.
    #[error("task `{task}`, {half} half: {message}")]
    Labels {
        /// The task.
        task: String,
        /// `train` or `test`.
        half: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A reference set without pairs.
    #[error("the {set} is empty: it needs at least one image with a caption")]
    EmptyReference {
        /// Which one.
        set: String,
    },
    /// A reference set whose captions are not one an image, or are empty.
    #[error("{set}: {message}")]
    Captions {
        /// Which one.
        set: String,
        /// What is wrong.
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
        /// What went wrong.
        message: String,
    },
}

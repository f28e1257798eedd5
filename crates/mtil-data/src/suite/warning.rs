//! Warnings about suites that a run accepts.

use crate::data::FolderWarning;

/// A property of a suite that a run accepts, but that may be a mistake.
///
/// Its text states the task or the set, and the fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SuiteWarning {
    /// Content of a folder is not read, or may be meant otherwise.
    Folder {
        /// The task, or `None` for the reference set.
        task: Option<String>,
        /// The content.
        warning: FolderWarning,
    },
    /// Every class of a task is a class of an earlier task.
    KnownClasses {
        /// The task.
        task: String,
        /// The earlier task.
        earlier: String,
    },
    /// Test images of a task are also training images.
    SharedImages {
        /// The task.
        task: String,
        /// Number of such test images.
        images: usize,
        /// Name of the first.
        first: String,
    },
}

impl SuiteWarning {
    /// Returns the task that the warning is about, if it is about one.
    pub fn task(&self) -> Option<&str> {
        match self {
            Self::Folder { task, .. } => task.as_deref(),
            Self::KnownClasses { task, .. } | Self::SharedImages { task, .. } => Some(task),
        }
    }
}

impl std::fmt::Display for SuiteWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.task() {
            Some(task) => write!(f, "task `{task}`: ")?,
            None => write!(f, "reference set: ")?,
        }
        match self {
            Self::Folder { warning, .. } => write!(f, "{warning}"),
            Self::KnownClasses { earlier, .. } => write!(
                f,
                "all its classes are classes of task `{earlier}` too, so that the two tasks cannot be \
                 told apart without the task of an image; further images of known classes belong to \
                 the earlier task, in a new run"
            ),
            Self::SharedImages { images, first, .. } => write!(
                f,
                "test images that are also training images, so that their accuracy is not that on \
                 new images: {images}, the first is {first}"
            ),
        }
    }
}

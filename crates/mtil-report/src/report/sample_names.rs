//! Names of the task and the classes of sample images.
//!
//! The names of their files lack some characters and may be shortened. A hidden file in their
//! folder has the whole names.

use std::path::Path;

use mtil_data::files::write_atomically;
use serde::{Deserialize, Serialize};

/// Names of a task and of the classes of its sample images, in the order of their numbers.
///
/// ```
/// use mtil_report::report::SampleNames;
///
/// # let folder = tempfile::tempdir()?;
/// let names = SampleNames {
///     task: "pets/2".into(),
///     classes: vec!["red panda".into()],
/// };
/// names.write(folder.path())?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleNames {
    /// The task.
    pub task: String,
    /// The class of each image.
    pub classes: Vec<String>,
}

impl SampleNames {
    const FILE: &str = ".names.json";

    /// Writes the names into the folder of the images.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        write_atomically(&folder.join(Self::FILE), &serde_json::to_vec(self)?)
    }

    /// Reads the names. Returns none if the file is absent, as in folders of earlier versions, or
    /// not readable.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let bytes = std::fs::read(folder.join(Self::FILE)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

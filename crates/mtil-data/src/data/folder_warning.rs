//! Warnings about the content of a dataset's folder.

use std::path::PathBuf;

use super::OtherFiles;

/// Content of a dataset's folder that is not read, or that may be meant otherwise than it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FolderWarning {
    /// Files in class folders are not images.
    OtherFiles {
        /// Folder of the class folders.
        path: PathBuf,
        /// The files by suffix.
        files: OtherFiles,
    },
    /// Images lie beside the class folders.
    LooseImages {
        /// Folder of the class folders.
        path: PathBuf,
        /// Number of images.
        images: usize,
    },
    /// Class folders hold folders and no images of their own.
    OnlyFolders {
        /// Folder of the class folders.
        path: PathBuf,
        /// Names of such class folders.
        classes: Vec<String>,
        /// Number of all class folders.
        of: usize,
    },
    /// Folders lie beside those of the two splits.
    UnreadFolders {
        /// Folder of the dataset.
        path: PathBuf,
        /// Names of the folders of both splits.
        splits: [String; 2],
        /// Names of the other folders.
        folders: Vec<String>,
    },
}

impl std::fmt::Display for FolderWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OtherFiles { path, files } => {
                write!(
                    f,
                    "files in the class folders of {} that are no images by name or content, and \
                     are not read: {files}",
                    path.display()
                )?;
                match &files.example {
                    Some(example) => write!(f, "; the first is {}", example.display()),
                    None => Ok(()),
                }
            }
            Self::LooseImages { path, images } => write!(
                f,
                "images beside the class folders of {}, which are not read: {images}",
                path.display()
            ),
            Self::OnlyFolders { path, classes, of } => write!(
                f,
                "{} of {of} class folders in {} hold folders and no images of their own, so that \
                 all images below one are of one class: {}",
                classes.len(),
                path.display(),
                shortened(classes)
            ),
            Self::UnreadFolders {
                path,
                splits: [train, test],
                folders,
            } => write!(
                f,
                "folders beside {train}/ and {test}/ in {}, which are not read: {}",
                path.display(),
                shortened(folders)
            ),
        }
    }
}

/// Names the first few of `names`.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        rest => format!("{shown} and {rest} more"),
    }
}

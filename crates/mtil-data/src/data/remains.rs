//! Remains of an image folder whose training images were deleted.

use std::path::Path;
use std::sync::Arc;

use super::folder::{classes_in, flatten, label_order, split_folders, test_folder};
use super::image_files::{Entries, ImageFiles, images_in};
use super::{DataError, FolderOptions};

/// Remains of an image folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Remains {
    /// Images that may be training images.
    Training,
    /// Only the images in the test folder of this name.
    Test(String),
    /// No image, or no folder.
    Nothing,
}

impl Remains {
    /// Returns what is left in `path`.
    ///
    /// # Errors
    /// [`DataError::Io`] if the folder or one below it cannot be read.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        let Entries { folders, images } = match Entries::read(path) {
            Err(DataError::MissingFolder { .. }) => return Ok(Self::Nothing),
            entries => entries?,
        };
        // Those of a table of captions need no folders.
        if images > 0 {
            return Ok(Self::Training);
        }
        let mut filled = Vec::new();
        for folder in &folders {
            if !images_in(path, Path::new(folder))?.0.is_empty() {
                filled.push(folder.clone());
            }
        }
        Ok(match (filled.as_slice(), test_folder(&folders)) {
            ([], _) => Self::Nothing,
            ([one], Some(test)) if one == test => Self::Test(one.clone()),
            _ => Self::Training,
        })
    }

    /// Returns what is left in `path` when training images do not count.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn without_training(path: &Path) -> Result<Self, DataError> {
        Ok(match Self::of(path)? {
            Self::Training => {
                let split = split_folders(path, &Entries::read(path)?.folders)?;
                split.map_or(Self::Nothing, |[_, test]| Self::Test(test))
            }
            left => left,
        })
    }
}

/// Reads the images of the test folder `test` in `path`. `classes` are the names of all classes in
/// label order. Returns the images and their labels.
///
/// # Errors
/// As [`ImageFolder::open`](super::ImageFolder::open).
pub(crate) fn test_images(
    path: &Path,
    test: &str,
    classes: &[String],
    options: &FolderOptions,
) -> Result<(Arc<ImageFiles>, Vec<usize>), DataError> {
    let options = FolderOptions {
        classes: Some(classes.to_vec()),
        ..options.clone()
    };
    let mut folders = classes_in(path, Some(test), &options, &mut Vec::new())?;
    let order = label_order(path, &folders, &options)?;
    let (files, labels) = flatten(&mut folders, &order);
    let files = ImageFiles::new(path, files).with_decode_options(options.decode);
    Ok((Arc::new(files), labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ImageSource as _;
    use crate::data::folder::tests::write_png;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            write_png(&dir.path().join(file), 1);
        }
        dir
    }

    #[test]
    fn what_is_left() {
        let test = Remains::Test("test".to_owned());
        for (files, left, without_training) in [
            (
                &["cat/1.png", "dog/1.png"][..],
                Remains::Training,
                Remains::Nothing,
            ),
            (
                &["train/cat/1.png", "test/cat/1.png"],
                Remains::Training,
                test.clone(),
            ),
            (
                &["test/cat/1.png", "test/dog/1.png"],
                test.clone(),
                test.clone(),
            ),
            (&[], Remains::Nothing, Remains::Nothing),
        ] {
            let dir = folder(files);
            assert_eq!(Remains::of(dir.path()).unwrap(), left, "{files:?}");
            let found = Remains::without_training(dir.path()).unwrap();
            assert_eq!(found, without_training, "{files:?}");
        }
        assert_eq!(
            Remains::of(Path::new("/no/such")).unwrap(),
            Remains::Nothing
        );
    }

    #[test]
    fn empty_folders_hold_nothing() {
        let dir = folder(&["test/cat/1.png"]);
        std::fs::create_dir_all(dir.path().join("train/cat")).unwrap();
        let left = Remains::of(dir.path()).unwrap();
        assert_eq!(left, Remains::Test("test".to_owned()));
        std::fs::remove_file(dir.path().join("test/cat/1.png")).unwrap();
        assert_eq!(Remains::of(dir.path()).unwrap(), Remains::Nothing);
    }

    #[test]
    fn test_images_have_the_labels_of_the_classes() {
        let dir = folder(&["test/cat/1.png", "test/red_fox/1.png"]);
        let classes = ["red fox".to_owned(), "cat".to_owned()];
        let options = FolderOptions::default();
        let (images, labels) = test_images(dir.path(), "test", &classes, &options).unwrap();
        assert_eq!(labels, [0, 1]);
        assert!(images.name(0).contains("red_fox"));
        let missing = test_images(dir.path(), "test", &classes[..1], &options);
        assert!(matches!(missing, Err(DataError::UnknownClassFolder { .. })));
    }
}

//! Image sources: the interface of every dataset format.

use std::{fmt::Display, path::PathBuf, time::SystemTime};

use super::OtherFiles;
use crate::did_you_mean;

/// Error while reading images or captions.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// An image is corrupt or in an unsupported format.
    #[error("cannot decode image {name}: {reason}")]
    Image {
        /// The image's name in its source, usually a path.
        name: String,
        /// Error of the decoder.
        reason: String,
    },
    /// An image has more pixels than [`DecodeOptions::max_pixels`] allows.
    ///
    /// [`DecodeOptions::max_pixels`]: clip_model::preprocess::DecodeOptions::max_pixels
    #[error("image {name} has {width} x {height} pixels, more than the maximum of {maximum}")]
    TooManyPixels {
        /// The image's name in its source, usually a path.
        name: String,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The maximum number of pixels.
        maximum: u64,
    },
    /// Images, folders or settings are inconsistent.
    #[error("{0}")]
    Layout(String),
    /// The folder of a dataset does not exist.
    #[error(
        "there is no folder {}: correct the path \
         (it is relative to the folder of the suite file)",
        path.display()
    )]
    MissingFolder {
        /// The path asked for.
        path: PathBuf,
    },
    /// A dataset folder contains no class folder.
    #[error(
        "{} has no class folder: \
         put the images of each class into a folder of their own, such as {}",
        path.display(),
        path.join("cat").join("1.jpg").display()
    )]
    NoClassFolder {
        /// The dataset folder.
        path: PathBuf,
    },
    /// A class folder contains no image.
    #[error(
        "class `{class}` is empty: {} holds no image{}",
        path.display(),
        but_others(others)
    )]
    EmptyClass {
        /// The class.
        class: String,
        /// Its folder.
        path: PathBuf,
        /// Its files, which are not images.
        others: OtherFiles,
    },
    /// A class has too few images for a split into train and test.
    #[error(
        "class `{class}` has {images} image in {}: a split into train and test needs at least 2; \
         add images, remove the folder, or make `train/` and `test/` yourself",
        path.display()
    )]
    TooFewImages {
        /// The class.
        class: String,
        /// Number of images found.
        images: usize,
        /// Its folder.
        path: PathBuf,
    },
    /// A class folder exists in one split only.
    #[error(
        "class `{class}` is in {} but not in {}: both must hold the same class folders",
        present.display(),
        absent.display()
    )]
    OneSidedClass {
        /// The class folder.
        class: String,
        /// Folder of the split that contains it.
        present: PathBuf,
        /// Folder of the split that lacks it.
        absent: PathBuf,
    },
    /// A folder `train` exists without a `test`, or the reverse.
    #[error(
        "{} holds class folders but {} has no `{missing}` folder: \
         add it, or move the class folders up to have them split by `test_fraction`",
        present.display(),
        present.parent().unwrap_or(present).display()
    )]
    MissingHalf {
        /// Folder of the split that exists.
        present: PathBuf,
        /// Name of the missing split.
        missing: &'static str,
    },
    /// Train and test contain the same file through a symbolic link.
    #[error(
        "train and test share an image: {} and {} are the same file; remove one of them",
        train.display(),
        test.display()
    )]
    Overlap {
        /// Path in the train split.
        train: PathBuf,
        /// Path in the test split.
        test: PathBuf,
    },
    /// A class folder is not in the class list.
    #[error(
        "folder {} (class `{class}`) is not in the list `classes`{}: \
         add it there, or name it in `class_names`",
        path.display(),
        did_you_mean(near.as_deref())
    )]
    UnknownClassFolder {
        /// The folder.
        path: PathBuf,
        /// Its class name.
        class: String,
        /// The most similar entry of the list.
        near: Option<String>,
    },
    /// An entry of the class list has no folder.
    #[error(
        "class `{class}` of the list `classes` has no folder in {}{}: \
         add the folder, or remove the entry",
        path.display(),
        did_you_mean(near.as_deref())
    )]
    MissingClassFolder {
        /// The entry.
        class: String,
        /// The dataset folder.
        path: PathBuf,
        /// The most similar class in it.
        near: Option<String>,
    },
    /// A key of `class_names` does not name a folder.
    #[error(
        "`class_names` names the folder `{folder}`, which is not in {}{}",
        path.display(),
        did_you_mean(near.as_deref())
    )]
    UnknownClassName {
        /// The key.
        folder: String,
        /// The dataset folder.
        path: PathBuf,
        /// The most similar folder name.
        near: Option<String>,
    },
    /// Two class names are the same text for the tokenizer.
    #[error(
        "duplicate class name: `{first}` and `{second}` {}are the same text \
         once `_` reads as a space, letters are lower-cased and Unicode is normalised; \
         rename one, or give it another name in `class_names`",
        within(path.as_deref())
    )]
    DuplicateClass {
        /// The first of the two.
        first: String,
        /// The second of the two.
        second: String,
        /// The dataset folder, if the classes are folders.
        path: Option<PathBuf>,
    },
    /// A caption table is malformed.
    #[error("{}, line {line}: {reason}", path.display())]
    Captions {
        /// The table.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// The defect and its remedy.
        reason: String,
    },
    /// A setting is out of range.
    #[error("{name} is {value}: it must be {must}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// The allowed values.
        must: &'static str,
    },
}

impl DataError {
    /// Returns whether one image is at fault, which can be left out.
    pub fn is_of_an_image(&self) -> bool {
        matches!(
            self,
            Self::Io { .. } | Self::Image { .. } | Self::TooManyPixels { .. }
        )
    }
}

/// Returns the end of a message that names other files, if there are any.
pub(crate) fn but_others(others: &impl Display) -> String {
    match others.to_string().as_str() {
        "" => String::new(),
        others => format!(", but {others}"),
    }
}

fn within(path: Option<&std::path::Path>) -> String {
    path.map_or_else(String::new, |path| format!("in {} ", path.display()))
}

/// A map-style image dataset: images by index.
///
/// Implementations are cheap to share between threads. Decoding happens in [`load`](Self::load),
/// so several workers decode in parallel.
///
/// ```
/// use image::DynamicImage;
/// use mtil_data::data::{DataError, ImageSource};
///
/// struct Black(usize);
///
/// impl ImageSource for Black {
///     fn len(&self) -> usize {
///         self.0
///     }
///     fn name(&self, index: usize) -> String {
///         format!("black {index}")
///     }
///     fn load(&self, _index: usize) -> Result<DynamicImage, DataError> {
///         Ok(DynamicImage::new_rgb8(32, 32))
///     }
/// }
///
/// let images = Black(10);
/// assert_eq!(images.identity(3), "black 3");
/// assert_eq!(images.load(3)?.width(), 32);
/// # Ok::<(), DataError>(())
/// ```
pub trait ImageSource: Send + Sync {
    /// Returns the number of images.
    fn len(&self) -> usize;

    /// Returns true if there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a human-readable name of image `index`, usually its path.
    fn name(&self, index: usize) -> String;

    /// Returns an identifier of image `index` that is available without decoding it.
    ///
    /// [`Suite::fingerprint`](crate::suite::Suite::fingerprint) and
    /// [`PixelCache`](super::PixelCache) hash it. It must not depend on the location of the dataset
    /// on disk. Defaults to the name.
    fn identity(&self, index: usize) -> String {
        self.name(index)
    }

    /// Returns the time of the last change of the file that holds image `index`, if there is one.
    ///
    /// [`PixelCache`](super::PixelCache) compares it, so that the pixels of a replaced file are not
    /// used. A source that wraps another one passes it on. Defaults to `None`.
    fn modified(&self, _index: usize) -> Option<SystemTime> {
        None
    }

    /// Returns the bytes of the file of image `index`, from which [`load`](Self::load) decodes it.
    /// Defaults to none, for an image without a file of its own.
    ///
    /// # Errors
    /// [`DataError`] with the name of the image if it cannot be read.
    ///
    /// # Panics
    /// If `index` is out of range.
    fn encoded(&self, _index: usize) -> Result<Option<Vec<u8>>, DataError> {
        Ok(None)
    }

    /// Decodes image `index`.
    ///
    /// # Errors
    /// [`DataError`] with the name of the image if it cannot be read or decoded.
    ///
    /// # Panics
    /// If `index` is out of range.
    fn load(&self, index: usize) -> Result<image::DynamicImage, DataError>;
}

/// A source without images, of data that is gone or was never there.
///
/// ```
/// use mtil_data::data::{ImageSource, NoImages};
///
/// assert!(NoImages.is_empty());
/// assert!(NoImages.load(0).is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoImages;

impl ImageSource for NoImages {
    fn len(&self) -> usize {
        0
    }

    fn name(&self, index: usize) -> String {
        format!("image {index} of none")
    }

    fn load(&self, index: usize) -> Result<image::DynamicImage, DataError> {
        Err(DataError::Image {
            name: self.name(index),
            reason: "there are no images".to_owned(),
        })
    }
}

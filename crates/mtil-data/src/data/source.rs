//! The one interface every dataset format offers: images by index.

use std::path::PathBuf;

/// What can go wrong while reading a dataset.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// An image is corrupt or of an unsupported kind.
    #[error("cannot decode image {name}: {reason}")]
    Image {
        /// The image's name in its source, usually a path.
        name: String,
        /// What the decoder said.
        reason: String,
    },
    /// A dataset does not have the shape it must have.
    #[error("{0}")]
    Layout(String),
    /// The folder of a dataset does not exist.
    #[error(
        "there is no folder {}: correct the path (it is relative to the folder of the suite file)",
        path.display()
    )]
    MissingFolder {
        /// The path asked for.
        path: PathBuf,
    },
    /// A dataset folder holds no class folder.
    #[error(
        "{} has no class folder: put the images of each class into a folder of their own, such as {}",
        path.display(),
        path.join("cat").join("1.jpg").display()
    )]
    NoClassFolder {
        /// The dataset folder.
        path: PathBuf,
    },
    /// A class folder holds no image.
    #[error(
        "class `{class}` is empty: {} holds no jpg, jpeg, png or webp file; add images or remove the folder",
        path.display()
    )]
    EmptyClass {
        /// The class.
        class: String,
        /// Its folder.
        path: PathBuf,
    },
    /// A class has too few images to give some to train and some to test.
    #[error(
        "class `{class}` has {images} image in {}: a split into train and test needs at least 2; add images, remove the folder, or make `train/` and `test/` yourself",
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
    /// A class has images in one half of the split only.
    #[error(
        "class `{class}` is in {} but not in {}: both must hold the same class folders",
        present.display(),
        absent.display()
    )]
    OneSidedClass {
        /// The class folder.
        class: String,
        /// The half that holds it.
        present: PathBuf,
        /// The half that lacks it.
        absent: PathBuf,
    },
    /// A folder `train` without a `test`, or the reverse.
    #[error(
        "{} holds class folders but {} has no `{missing}` folder: add it, or move the class folders up to have them split by `test_fraction`",
        present.display(),
        present.parent().unwrap_or(present).display()
    )]
    MissingHalf {
        /// The half that exists.
        present: PathBuf,
        /// Name of the half that does not.
        missing: &'static str,
    },
    /// One file is in both halves, reached through a link.
    #[error(
        "train and test share an image: {} and {} are the same file; remove one of them",
        train.display(),
        test.display()
    )]
    Overlap {
        /// Path in the train half.
        train: PathBuf,
        /// Path in the test half.
        test: PathBuf,
    },
    /// A class folder whose name is not in the class list.
    #[error(
        "folder {} (class `{class}`) is not in the list `classes`{}: add it there, or name it in `class_names`",
        path.display(),
        did_you_mean(near.as_deref())
    )]
    UnknownClassFolder {
        /// The folder.
        path: PathBuf,
        /// The class name it stands for.
        class: String,
        /// The most similar entry of the list.
        near: Option<String>,
    },
    /// An entry of the class list without a folder.
    #[error(
        "class `{class}` of the list `classes` has no folder in {}{}: add the folder, or remove the entry",
        path.display(),
        did_you_mean(near.as_deref())
    )]
    MissingClassFolder {
        /// The entry.
        class: String,
        /// Where its folder should be.
        path: PathBuf,
        /// The most similar class found there.
        near: Option<String>,
    },
    /// A key of `class_names` that is no folder.
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
    /// Two classes whose names are the same text for the model.
    #[error(
        "duplicate class name: `{first}` and `{second}` {}are the same text once `_` reads as a space and letters are lower-cased; rename one, or give it another name in `class_names`",
        within(path.as_deref())
    )]
    DuplicateClass {
        /// The first of the two.
        first: String,
        /// The second of the two.
        second: String,
        /// The dataset folder, where there is one.
        path: Option<PathBuf>,
    },
    /// A table of captions is wrong.
    #[error("{}, line {line}: {reason}", path.display())]
    Captions {
        /// The table.
        path: PathBuf,
        /// Line, counted from 1.
        line: u64,
        /// What is wrong and how to cure it.
        reason: String,
    },
    /// A setting out of its range.
    #[error("{name} is {value}: it must be {must}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        must: &'static str,
    },
}

fn did_you_mean(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"))
}

fn within(path: Option<&std::path::Path>) -> String {
    path.map_or_else(String::new, |path| format!("in {} ", path.display()))
}

/// Images by index. Implementations are cheap to share between threads; decoding happens in
/// [`load`](Self::load), so that a pool of workers can decode in parallel.
pub trait ImageSource: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there is no image.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A name for image `index` that a person can find again, usually its path.
    fn name(&self, index: usize) -> String;

    /// What tells image `index` from another without reading it, for
    /// [`Suite::fingerprint`](crate::suite::Suite::fingerprint). Must not depend on where the
    /// dataset lies on this machine. The default is the name.
    fn identity(&self, index: usize) -> String {
        self.name(index)
    }

    /// Decodes image `index`.
    ///
    /// # Errors
    /// [`DataError`] naming the image when it cannot be read or decoded.
    ///
    /// # Panics
    /// If `index` is out of range.
    fn load(&self, index: usize) -> Result<image::DynamicImage, DataError>;
}

//! Errors of datasets on disk.

use std::path::PathBuf;

use crate::{data::but_others, did_you_mean};

/// Error while reading a dataset.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A dataset is not in the data root.
    #[error(
        "{dataset} is not in {}: looked for {}; get it from {get}",
        root.display(),
        looked_for.join(", ")
    )]
    NotFound {
        /// Name of the dataset.
        dataset: String,
        /// The data root.
        root: PathBuf,
        /// Files, folders and archives that were looked for, relative to the root.
        looked_for: Vec<String>,
        /// Its download location.
        get: String,
    },
    /// Files of a dataset are in the data root, but not the file that it is found by.
    #[error(
        "{dataset}: there is {}, but no {}; get it from {get}",
        present.join(" and "),
        missing.join(" or ")
    )]
    PartlyThere {
        /// Name of the dataset.
        dataset: String,
        /// Its archives and folders that are there.
        present: Vec<String>,
        /// Paths searched for the missing file.
        missing: Vec<String>,
        /// Its download location.
        get: String,
    },
    /// A dataset or one of its splits has no image.
    #[error(
        "{dataset}: {place} has none of its images{}; get it from {get}",
        but_others(others)
    )]
    NoImages {
        /// Name of the dataset.
        dataset: String,
        /// The folder or the split.
        place: String,
        /// The files that are there instead, as text; empty for none.
        others: String,
        /// Its download location.
        get: String,
    },
    /// A file is neither in a folder nor in an archive.
    #[error("there is no {path}: looked in {}; put it there", places.join(", "))]
    NoFile {
        /// Path relative to the data root.
        path: String,
        /// The folder and the archives that were searched.
        places: Vec<String>,
    },
    /// A path leads out of the data root.
    #[error(
        "the path `{path}` leads out of the data root: the file that names it is not to be trusted"
    )]
    Outside {
        /// The path.
        path: String,
    },
    /// A file exceeds the size limit.
    #[error("{name} has {size} bytes: the longest file that is read has {limit}")]
    TooLarge {
        /// The file.
        name: String,
        /// Its length in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// An archive is corrupt, incomplete or of an unsupported format.
    #[error("archive {}{}: {reason}", path.display(), of_member(member.as_deref()))]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The archive member with the defect.
        member: Option<String>,
        /// The defect and its remedy.
        reason: String,
    },
    /// A pickle is corrupt or contains unsupported objects.
    #[error("pickle {path}: {reason}")]
    Pickle {
        /// The file.
        path: String,
        /// The defect.
        reason: String,
    },
    /// An IDX file is corrupt.
    #[error("IDX file {path}: {reason}")]
    Idx {
        /// The file.
        path: String,
        /// The defect.
        reason: String,
    },
    /// A MATLAB file is corrupt or of an unsupported version.
    #[error("MATLAB file {path}: {reason}")]
    Matlab {
        /// The file.
        path: String,
        /// The defect and its remedy.
        reason: String,
    },
    /// The size of raw pixel data is not a multiple of the size of an image.
    #[error(
        "{name} holds {bytes} bytes of pixels, not a multiple of the {image} bytes of an image"
    )]
    RawPixels {
        /// The file.
        name: String,
        /// Size of the pixel data in bytes.
        bytes: usize,
        /// Size of an image in bytes.
        image: usize,
    },
    /// A key does not name a dataset.
    #[error(
        "there is no dataset `{key}`{}; the datasets are {}",
        did_you_mean(near.as_deref()),
        known.join(", ")
    )]
    UnknownDataset {
        /// The key.
        key: String,
        /// The most similar key.
        near: Option<String>,
        /// All keys.
        known: Vec<String>,
    },
    /// A caption dataset was opened as a task.
    #[error(
        "`{key}` is a set of captions without classes: \
         it can be a reference or retrieval set, not a task"
    )]
    NoTask {
        /// The key of the dataset.
        key: String,
    },
    /// A file of a dataset does not follow its format.
    #[error("{file}, {at}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// The line or entry.
        at: String,
        /// The defect and its remedy.
        reason: String,
    },
    /// A number of images or classes differs from the published release.
    #[error(
        "{dataset}: {list} has {found} {what}, the published release has {expected}: \
         it is incomplete or another release; get it from {get}"
    )]
    WrongCount {
        /// The dataset.
        dataset: String,
        /// The list or folder.
        list: String,
        /// The counted items.
        what: &'static str,
        /// Number in the published release.
        expected: usize,
        /// Number found.
        found: usize,
        /// Download location of the published release.
        get: String,
    },
    /// A class differs from the published release.
    #[error(
        "{dataset}: class {label} is `{found}` in {file}, \
         but `{expected}` in the published release: \
         labels would mean something else; get the published release"
    )]
    WrongClass {
        /// The dataset.
        dataset: String,
        /// The file that names the class.
        file: String,
        /// Label of the class, from 0.
        label: usize,
        /// Name in the published release.
        expected: String,
        /// Name found.
        found: String,
    },
    /// A folder or list entry has an unknown class.
    #[error(
        "{dataset}: {place} is of the class `{class}`, which the dataset does not have{}: \
         remove it or correct its name",
        did_you_mean(near.as_deref())
    )]
    UnknownClass {
        /// The dataset.
        dataset: String,
        /// The folder or the entry.
        place: String,
        /// The class.
        class: String,
        /// The most similar class.
        near: Option<String>,
    },
    /// A label is out of range.
    #[error(
        "{file}, {at}: the label is {label}, but the labels of {dataset} are {first} to {last}"
    )]
    LabelRange {
        /// The dataset.
        dataset: String,
        /// The file.
        file: String,
        /// The line or entry.
        at: String,
        /// The label in the file.
        label: i64,
        /// The smallest valid label.
        first: i64,
        /// The largest valid label.
        last: i64,
    },
    /// Images in a list are missing.
    #[error(
        "{dataset}: {missing} of the {of} images that {list} names are missing, \
         the first is {first}: {}",
        missing_because(elsewhere.as_deref())
    )]
    MissingImages {
        /// The dataset.
        dataset: String,
        /// The list.
        list: String,
        /// Number of missing images.
        missing: usize,
        /// Number of images in the list.
        of: usize,
        /// The first missing image.
        first: String,
        /// A file of its name in another folder.
        elsewhere: Option<String>,
    },
    /// An image is listed twice, in one split or in both.
    #[error("{dataset}: {path} is named in {first} and again in {second}: remove one of them")]
    NamedTwice {
        /// The dataset.
        dataset: String,
        /// The image.
        path: String,
        /// The list that names it first.
        first: String,
        /// The list that names it again.
        second: String,
    },
    /// A class has no training image.
    #[error(
        "{dataset}: the class `{class}` has no image in {place}: \
         the dataset is incomplete; get it from {get}"
    )]
    ClassWithoutImages {
        /// The dataset.
        dataset: String,
        /// The class.
        class: String,
        /// The list or folder.
        place: String,
        /// Download location of the dataset.
        get: String,
    },
    /// The data root contains no reference pairs.
    #[error(
        "{} holds no reference pairs: put ImageNet into {}, or Conceptual Captions into {}, \
         or name another reference set",
        root.display(),
        imagenet,
        captions
    )]
    NoReference {
        /// The data root.
        root: PathBuf,
        /// Folder of ImageNet.
        imagenet: String,
        /// Folder of Conceptual Captions.
        captions: String,
    },
    /// The data root contains no held-out pairs.
    #[error(
        "{} holds no pairs to measure the modality gap and retrieval on: \
         put MS COCO into coco/, Flickr30k into flickr30k/, \
         or ImageNet's validation images beside its training images",
        root.display()
    )]
    NoHeldOut {
        /// The data root.
        root: PathBuf,
    },
    /// A suite does not have a task of this name.
    #[error(
        "the suite `{suite}` has no task `{task}`{}; its tasks are {}",
        did_you_mean(near.as_deref()),
        known.join(", ")
    )]
    UnknownTask {
        /// The suite.
        suite: String,
        /// The unknown name.
        task: String,
        /// The most similar task.
        near: Option<String>,
        /// All tasks of the suite.
        known: Vec<String>,
    },
    /// A selection of tasks that is empty or names a task twice.
    #[error("{0}")]
    Selection(String),
    /// A class has no training image for a few-shot subset.
    #[error(
        "task `{task}`: the class `{class}` has no training image, so no shot can be drawn from it"
    )]
    NoShot {
        /// The task.
        task: String,
        /// The class.
        class: String,
    },
}

fn of_member(member: Option<&str>) -> String {
    member.map_or_else(String::new, |member| format!(", member {member}"))
}

fn missing_because(elsewhere: Option<&str>) -> String {
    match elsewhere {
        Some(path) => format!("there is {path}; move its folder to where it is looked for"),
        None => "the archive was not unpacked completely; \
                 unpack it again, or leave it as it is in the data root"
            .to_owned(),
    }
}

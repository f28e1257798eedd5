//! What can be wrong with a dataset on disk.

use std::path::PathBuf;

/// What can go wrong while a dataset is read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A dataset is not there.
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
        /// Files, folders and archives that were looked for, below the root.
        looked_for: Vec<String>,
        /// Where to get it.
        get: String,
    },
    /// A file is in no folder and in no archive.
    #[error("there is no {path}: looked in {}; put it there", places.join(", "))]
    NoFile {
        /// Path below the data root.
        path: String,
        /// The folder and the archives it could have been in.
        places: Vec<String>,
    },
    /// A path that leads out of the data root.
    #[error(
        "the path `{path}` leads out of the data root: the file that names it is not to be trusted"
    )]
    Outside {
        /// The path.
        path: String,
    },
    /// A file or an archive member is longer than any file of a dataset.
    #[error("{name} has {size} bytes: the longest file that is read has {limit}")]
    TooLarge {
        /// The file.
        name: String,
        /// Its length in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// An archive is broken, incomplete or of an unsupported kind.
    #[error("archive {}{}: {reason}", path.display(), member.as_deref().map_or_else(String::new, |m| format!(", member {m}")))]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The member at fault.
        member: Option<String>,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A pickle is broken or holds what no dataset holds.
    #[error("pickle {path}: {reason}")]
    Pickle {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// An IDX file is broken.
    #[error("IDX file {path}: {reason}")]
    Idx {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A MATLAB file is broken or of an unsupported version.
    #[error("MATLAB file {path}: {reason}")]
    Matlab {
        /// The file.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Raw pixels that make no whole number of images.
    #[error(
        "{name} holds {bytes} bytes of pixels, which is no whole number of images of {image} bytes"
    )]
    RawPixels {
        /// The file.
        name: String,
        /// Bytes of pixels.
        bytes: usize,
        /// Bytes of an image.
        image: usize,
    },
    /// A key that is no dataset.
    #[error("there is no dataset `{key}`{}; the datasets are {}", did_you_mean(near.as_deref()), known.join(", "))]
    UnknownDataset {
        /// What was asked for.
        key: String,
        /// The most similar key.
        near: Option<String>,
        /// All keys.
        known: Vec<String>,
    },
    /// A set of captions was asked for as a task.
    #[error(
        "`{key}` is a set of captions without classes: it can be a reference or retrieval set, not a task"
    )]
    NoTask {
        /// What was asked for.
        key: String,
    },
    /// A file of a dataset is not as its format requires.
    #[error("{file}, {at}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// The line or entry.
        at: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A list or folder has another number of images than the published release.
    #[error(
        "{dataset}: {list} has {found} {what}, the published release has {expected}: it is incomplete or another release; get it from {get}"
    )]
    WrongCount {
        /// The dataset.
        dataset: String,
        /// The list or folder.
        list: String,
        /// What was counted.
        what: &'static str,
        /// Number of the published release.
        expected: usize,
        /// Number found.
        found: usize,
        /// Where to get the published release.
        get: String,
    },
    /// The classes of a release are not those of the published one.
    #[error(
        "{dataset}: class {label} is `{found}` in {file}, but `{expected}` in the published release: labels would mean something else; get the published release"
    )]
    WrongClass {
        /// The dataset.
        dataset: String,
        /// The file that names it.
        file: String,
        /// Its number, from 0.
        label: usize,
        /// Name in the published release.
        expected: String,
        /// Name found.
        found: String,
    },
    /// A folder or a list entry of a class that the dataset does not have.
    #[error(
        "{dataset}: {place} is of the class `{class}`, which the dataset does not have{}: remove it or correct its name",
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
    /// A label beyond the last class.
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
        /// The label as the file has it.
        label: i64,
        /// The first label there is.
        first: i64,
        /// The last label there is.
        last: i64,
    },
    /// Files that a list names are not there.
    #[error(
        "{dataset}: {missing} of the {of} images that {list} names are missing, the first is {first}: the archive was not unpacked completely; unpack it again, or leave it as it is in the data root"
    )]
    MissingImages {
        /// The dataset.
        dataset: String,
        /// The list.
        list: String,
        /// How many are missing.
        missing: usize,
        /// How many it names.
        of: usize,
        /// The first missing one.
        first: String,
    },
    /// A file is named twice, in one half or in both.
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
    /// A class without an image to train on.
    #[error(
        "{dataset}: the class `{class}` has no image in {place}: the dataset is incomplete; get it from {get}"
    )]
    ClassWithoutImages {
        /// The dataset.
        dataset: String,
        /// The class.
        class: String,
        /// The list or folder.
        place: String,
        /// Where to get the dataset.
        get: String,
    },
    /// No reference pairs in the data root.
    #[error(
        "{} holds no reference pairs: put ImageNet into {}, or Conceptual Captions into {}, or name another reference set",
        root.display(),
        imagenet,
        captions
    )]
    NoReference {
        /// The data root.
        root: PathBuf,
        /// Where ImageNet is looked for.
        imagenet: String,
        /// Where Conceptual Captions is looked for.
        captions: String,
    },
    /// No held-out pairs in the data root.
    #[error(
        "{} holds no pairs to measure the modality gap and retrieval on: put MS COCO into coco/, Flickr30k into flickr30k/, or ImageNet's validation images beside its training images",
        root.display()
    )]
    NoHeldOut {
        /// The data root.
        root: PathBuf,
    },
    /// A task that the suite does not have.
    #[error("the suite `{suite}` has no task `{task}`{}; its tasks are {}", did_you_mean(near.as_deref()), known.join(", "))]
    UnknownTask {
        /// The suite.
        suite: String,
        /// What was asked for.
        task: String,
        /// The most similar task.
        near: Option<String>,
        /// All its tasks.
        known: Vec<String>,
    },
    /// A selection of tasks that is empty or names a task twice.
    #[error("{0}")]
    Selection(String),
    /// Fewer images of a class than are to be drawn.
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

fn did_you_mean(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"))
}

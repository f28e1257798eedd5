//! What can be chosen when a dataset is opened.

use std::{collections::BTreeMap, path::PathBuf};

/// Whose splits and class names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// ZSCL's and GNSP's: torchvision's splits, 80/20 with seed 42 where it has none, and the class
    /// names written for MTIL.
    #[default]
    Zscl,
    /// CoOp's `split_zhou_*.json`, with the labels and class names of that file (`_` reads as a
    /// space). The templates stay those of MTIL; the `val` list is not used. Aircraft, CIFAR10,
    /// CIFAR100, ImageNet and MNIST have no such file and are opened as for [`Zscl`](Self::Zscl);
    /// CoOp's lists of Aircraft are the same.
    CoOp,
}

/// Whether a dataset must have the size of the published release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Counts {
    /// It must, and every class must have images to train on.
    #[default]
    Exact,
    /// It need not: parts of datasets, miniatures for tests.
    Any,
}

/// In which order the images of SUN397 are numbered before they are split 80/20.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Sun397Order {
    /// By the bytes of their paths. This is our choice: torchvision takes them in the order of
    /// the file system (`sun397.py`, `rglob` without sorting), so the published split is not known.
    #[default]
    Sorted,
    /// As the lines of a text file have them: either paths below the folder `SUN397`, or numbers
    /// of the sorted order. Every image once. With the order of another machine this gives the
    /// split of that machine.
    IndexList(PathBuf),
}

/// The two halves of a split as text files with a number a line: positions, from 0, in the order of
/// the dataset before it is split. An image need not be in either, and must not be in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexLists {
    /// The images to train on.
    pub train: PathBuf,
    /// The images to evaluate on.
    pub test: PathBuf,
}

/// Where the reference pairs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReferenceSource {
    /// ImageNet if it is there, else Conceptual Captions.
    #[default]
    Found,
    /// ImageNet with "a photo of a NAME" (GNSP).
    ImageNet,
    /// Conceptual Captions (ZSCL).
    ConceptualCaptions,
    /// None: the caller gives them.
    None,
}

/// What can be chosen when a dataset or a suite is opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DatasetOptions {
    /// Whose splits and class names.
    pub protocol: Protocol,
    /// Whether sizes must be those of the published releases.
    pub counts: Counts,
    /// Order of SUN397 before it is split.
    pub sun397_order: Sun397Order,
    /// Splits to use instead of the random ones of Caltech101, EuroSAT and SUN397, by key.
    pub index_lists: BTreeMap<String, IndexLists>,
    /// Where a suite's reference pairs come from.
    pub reference: ReferenceSource,
}

//! Dataset options: protocol, size checks, splits, orders and reference pairs.

use std::{collections::BTreeMap, path::PathBuf};

use clip_model::preprocess::DecodeOptions;

/// Evaluation protocol: splits and class names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// The protocol of ZSCL and GNSP: torchvision's splits, an 80/20 split with seed 42 for
    /// datasets without one, and MTIL's class names.
    #[default]
    Zscl,
    /// CoOp's `split_zhou_*.json`, with the labels and class names of that file (`_` becomes a
    /// space). Templates remain those of MTIL, and the `val` list is not used. Aircraft, CIFAR10,
    /// CIFAR100, ImageNet and MNIST have no such file and are opened as under
    /// [`Zscl`](Self::Zscl); CoOp's lists of Aircraft are the same.
    CoOp,
}

/// Check of a dataset's size against the published release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SizeCheck {
    /// The sizes must be those of the published release, and every class must have training images.
    #[default]
    Exact,
    /// Any size is accepted, for subsets and for miniatures in tests.
    Any,
}

/// Order of the images of SUN397 before the 80/20 split.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Sun397Order {
    /// Sorted by the bytes of their paths. This is a choice of this crate: torchvision uses the
    /// order of the file system (`sun397.py`, `rglob` without sorting), so the published split is
    /// not known.
    #[default]
    Sorted,
    /// The order of the lines of a text file, which lists every image once: either as a path
    /// relative to the folder `SUN397`, or as an index into the sorted order. The file-system order
    /// of another machine reproduces the split of that machine.
    IndexList(PathBuf),
}

/// A train/test split as two text files with one image index per line.
///
/// Indices start at 0 and refer to the order of the dataset before it is split. An image may be in
/// one of the files or in none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexLists {
    /// File with the indices of the training images.
    pub train: PathBuf,
    /// File with the indices of the test images.
    pub test: PathBuf,
}

/// Source of the reference pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReferenceSource {
    /// ImageNet if it is in the data root, else Conceptual Captions.
    #[default]
    Auto,
    /// ImageNet with captions "a photo of a NAME" (GNSP).
    ImageNet,
    /// Conceptual Captions (ZSCL).
    ConceptualCaptions,
    /// No reference pairs. The caller provides them.
    None,
}

/// Options for opening a dataset or a suite.
///
/// ```
/// use mtil_data::datasets::{DatasetOptions, Protocol};
///
/// let options = DatasetOptions { protocol: Protocol::CoOp, ..DatasetOptions::default() };
/// assert!(options.index_lists.is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DatasetOptions {
    /// Evaluation protocol.
    pub protocol: Protocol,
    /// Check of sizes against the published releases.
    pub size_check: SizeCheck,
    /// Order of SUN397 before it is split.
    pub sun397_order: Sun397Order,
    /// Splits by dataset key, in place of the random ones of Caltech101, EuroSAT and SUN397.
    pub index_lists: BTreeMap<String, IndexLists>,
    /// Source of a suite's reference pairs.
    pub reference: ReferenceSource,
    /// Decoding of the images.
    pub decode: DecodeOptions,
}

#[cfg(test)]
mod tests {
    use super::super::{
        captions::conceptual_captions,
        check::{DatasetState, check},
        mtil, open,
        tests::{any, packed, put, unpack},
    };
    use super::*;
    use crate::data::{DataError, ImageSource};

    /// Requires that the first image is refused, unless it is stored as raw pixels.
    fn assert_refused(images: &dyn ImageSource) {
        if images.identity(0).contains('#') {
            return;
        }
        let error = images.load(0).unwrap_err();
        assert!(
            matches!(error, DataError::TooManyPixels { maximum: 1, .. }),
            "{error}"
        );
    }

    #[test]
    fn decode_options_hold_for_every_image_file() {
        let options = DatasetOptions {
            decode: DecodeOptions { max_pixels: 1 },
            ..any()
        };
        let found = mtil::suite("mtil-order-1", &packed(), &options).unwrap();
        let coop = DatasetOptions {
            protocol: Protocol::CoOp,
            ..options.clone()
        };
        for task in &found.suite.tasks {
            assert_refused(task.training_images().as_ref());
            assert_refused(task.test_images().as_ref());
        }
        for task in [
            open("ImageNet", &packed(), &options).unwrap(),
            open("Caltech101", &packed(), &coop).unwrap(),
        ] {
            assert_refused(task.train.images.as_ref());
            assert_refused(task.test.images.as_ref());
        }
        assert_eq!(found.retrieval.len(), 2);
        for set in &found.retrieval {
            assert_refused(set.images.as_ref());
        }
        assert_refused(found.suite.reference.images.as_ref());
        assert_refused(found.suite.held_out.images.as_ref());
    }

    #[test]
    fn decode_options_hold_for_caption_tables_and_checks() {
        let root = unpack(|path| path.starts_with("eurosat/2750"));
        let image = image::RgbImage::new(2, 1);
        std::fs::create_dir(root.path().join("cc")).unwrap();
        image.save(root.path().join("cc/1.png")).unwrap();
        put(
            root.path(),
            "cc/val.tsv",
            b"title\tfilepath\na fish\t1.png\n",
        );
        let options = DatasetOptions {
            decode: DecodeOptions { max_pixels: 1 },
            ..any()
        };
        let table = conceptual_captions(root.path(), &options).unwrap();
        assert_refused(table.pairs.images.as_ref());
        let keys = ["EuroSAT", "ConceptualCaptions"];
        for report in check(root.path(), &keys, true, &options, &|_| {}) {
            let DatasetState::Complete {
                parts, unreadable, ..
            } = &report.state
            else {
                panic!("{report:?}");
            };
            let images: usize = parts.iter().map(|part| part.images).sum();
            assert_eq!(unreadable.len(), images, "{report:?}");
        }
    }
}

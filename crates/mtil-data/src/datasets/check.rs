//! Verification of a data root: a report for each dataset.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;

use super::{
    captions::{self, CaptionSplit},
    error::DatasetError,
    imagenet,
    mtil::ok_if_found,
    open,
    options::DatasetOptions,
    source::Source,
    spec::Spec,
};
use crate::{
    data::ImageSource,
    suite::{Classification, RetrievalSet},
};

/// Number of decoded images between two progress events.
const PROGRESS_INTERVAL: usize = 256;

/// Progress event of [`check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckEvent {
    /// The check of a dataset started.
    Started {
        /// Key of the dataset.
        key: String,
    },
    /// Images of a dataset were decoded.
    Decoded {
        /// Key of the dataset.
        key: String,
        /// Number of images decoded so far.
        done: usize,
        /// Number of images of the dataset.
        of: usize,
    },
    /// The check of a dataset finished.
    Finished {
        /// Key of the dataset.
        key: String,
    },
}

/// Report on a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetReport {
    /// Key of the dataset.
    pub key: String,
    /// Full name of the dataset.
    pub title: String,
    /// State of the dataset.
    pub state: DatasetState,
}

/// State of a dataset in a data root.
#[derive(Debug, Clone, PartialEq)]
pub enum DatasetState {
    /// The dataset is not in the data root.
    NotFound {
        /// Folders, files and archives that were looked for in the data root. One is enough.
        looked_for: Vec<String>,
        /// Description of its files in such a folder.
        layout: String,
        /// Download locations.
        get: Vec<String>,
        /// Terms of use.
        terms: String,
    },
    /// The dataset is complete, and passes the checks of the [`DatasetOptions`].
    Complete {
        /// Splits of the dataset.
        parts: Vec<PartReport>,
        /// Uncompressed size of the files in its folder, in bytes.
        bytes: u64,
        /// Name and error of each image that cannot be decoded. Empty if no image was decoded.
        unreadable: Vec<(String, String)>,
    },
    /// The dataset cannot be used, for this reason.
    Wrong(String),
}

impl DatasetReport {
    /// Returns true if the dataset is complete and no unreadable image was found.
    pub fn is_usable(&self) -> bool {
        matches!(&self.state, DatasetState::Complete { unreadable, .. } if unreadable.is_empty())
    }
}

/// Report on a split of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartReport {
    /// `train`, `test`, `reference`, or the name of the retrieval set or caption table.
    pub name: String,
    /// Number of images.
    pub images: usize,
    /// Number of captions. `None` for splits of a task.
    pub captions: Option<usize>,
    /// The smallest and the largest class with their numbers of images. `None` for captions.
    pub classes: Option<[(String, usize); 2]>,
    /// Number of rows of a caption table whose image is missing.
    pub left_out: usize,
}

/// Checks the datasets `keys` in `root`, in parallel, and returns their reports in the same order.
///
/// With `deep`, every image is decoded. `progress` is called from several threads.
///
/// ```
/// use mtil_data::datasets::{
///     DatasetOptions,
///     check::{DatasetState, check},
/// };
///
/// # let root = tempfile::tempdir()?;
/// let reports = check(root.path(), &["Food"], false, &DatasetOptions::default(), &|_| {});
/// assert!(matches!(reports[0].state, DatasetState::NotFound { .. }));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn check(
    root: &Path,
    keys: &[&str],
    deep: bool,
    options: &DatasetOptions,
    progress: &(dyn Fn(CheckEvent) + Sync),
) -> Vec<DatasetReport> {
    let one = |key: &&str| {
        progress(CheckEvent::Started {
            key: (*key).to_owned(),
        });
        let report = check_dataset(root, key, deep, options, progress);
        progress(CheckEvent::Finished {
            key: (*key).to_owned(),
        });
        report
    };
    keys.par_iter().map(one).collect()
}

/// The report on a split, and its images.
type Part = (PartReport, std::sync::Arc<dyn ImageSource>);

fn check_dataset(
    root: &Path,
    key: &str,
    deep: bool,
    options: &DatasetOptions,
    progress: &(dyn Fn(CheckEvent) + Sync),
) -> DatasetReport {
    let spec = Spec::find(key);
    let title = spec.as_ref().map_or(String::new(), |s| s.title.clone());
    // The report on a missing dataset includes its specification, so that users can add it.
    let state = match spec.and_then(|spec| Ok((spec, splits_of(root, key, options)?))) {
        Ok((spec, parts)) => DatasetState::Complete {
            bytes: total_bytes(spec, root, options),
            unreadable: if deep {
                find_unreadable(key, &parts, progress)
            } else {
                Vec::new()
            },
            parts: parts.into_iter().map(|(part, _)| part).collect(),
        },
        Err(DatasetError::NotFound {
            looked_for, get, ..
        }) => {
            let spec = Spec::find(key).ok();
            DatasetState::NotFound {
                looked_for,
                layout: spec.map_or(String::new(), |s| s.layout.clone()),
                get: spec.map_or(vec![get], |s| s.get.clone()),
                terms: spec.map_or(String::new(), |s| s.terms.clone()),
            }
        }
        Err(error) => DatasetState::Wrong(error.to_string()),
    };
    DatasetReport {
        key: key.to_owned(),
        title,
        state,
    }
}

fn splits_of(root: &Path, key: &str, options: &DatasetOptions) -> Result<Vec<Part>, DatasetError> {
    let retrieval = |set: RetrievalSet| {
        let part = PartReport {
            name: set.name,
            images: set.images.len(),
            captions: Some(set.captions.len()),
            classes: None,
            left_out: 0,
        };
        vec![(part, set.images)]
    };
    match key {
        "COCO" => captions::coco(root, CaptionSplit::Auto, options).map(retrieval),
        "Flickr30k" => captions::flickr30k(root, CaptionSplit::Auto, options).map(retrieval),
        "ConceptualCaptions" => {
            let table = captions::conceptual_captions(root, options)?;
            let part = PartReport {
                name: table.table,
                images: table.pairs.images.len(),
                captions: Some(table.pairs.captions.len()),
                classes: None,
                left_out: table.missing,
            };
            Ok(vec![(part, table.pairs.images)])
        }
        "ImageNet" => match ok_if_found(open(key, root, options))? {
            Some(task) => Ok(task_splits(task)),
            // The training images alone suffice as reference pairs.
            None => {
                let pairs = imagenet::reference(root, options)?;
                let part = PartReport {
                    name: "reference".into(),
                    images: pairs.images.len(),
                    captions: Some(pairs.captions.len()),
                    classes: None,
                    left_out: 0,
                };
                Ok(vec![(part, pairs.images)])
            }
        },
        _ => open(key, root, options).map(task_splits),
    }
}

fn task_splits(task: Classification) -> Vec<Part> {
    let names = task.class_names;
    [("train", task.train), ("test", task.test)]
        .into_iter()
        .map(|(name, split)| {
            let mut counts = vec![0; names.len()];
            split.labels.iter().for_each(|&label| counts[label] += 1);
            let class = |i: Option<usize>| i.map(|i| (names[i].clone(), counts[i]));
            let least = class((0..counts.len()).min_by_key(|&i| counts[i]));
            let most = class((0..counts.len()).rev().max_by_key(|&i| counts[i]));
            let part = PartReport {
                name: name.to_owned(),
                images: split.images.len(),
                captions: None,
                classes: least.zip(most).map(|(least, most)| [least, most]),
                left_out: 0,
            };
            (part, split.images)
        })
        .collect()
}

/// Returns the uncompressed size of the files in the dataset's folder.
fn total_bytes(spec: &'static Spec, root: &Path, options: &DatasetOptions) -> u64 {
    if spec.key == "ImageNet" {
        return imagenet::image_bytes(root, options);
    }
    let Ok(source) = Source::find(spec, root, options) else {
        return 0;
    };
    let files = source.store.files(&source.base).unwrap_or_default();
    files
        .par_iter()
        .filter_map(|path| source.store.size(path))
        .sum()
}

/// Decodes every image and returns the names and errors of those that fail.
fn find_unreadable(
    key: &str,
    parts: &[Part],
    progress: &(dyn Fn(CheckEvent) + Sync),
) -> Vec<(String, String)> {
    let of = parts.iter().map(|(_, images)| images.len()).sum();
    let done = AtomicUsize::new(0);
    let look = |(images, i): (&dyn ImageSource, usize)| {
        let failed = images
            .load(i)
            .err()
            .map(|error| (images.name(i), error.to_string()));
        let done = 1 + done.fetch_add(1, Ordering::Relaxed);
        if done.is_multiple_of(PROGRESS_INTERVAL) || done == of {
            progress(CheckEvent::Decoded {
                key: key.to_owned(),
                done,
                of,
            });
        }
        failed
    };
    let of_part = |(_, images): &Part| -> Vec<(String, String)> {
        let images = images.as_ref();
        (0..images.len())
            .into_par_iter()
            .filter_map(|i| look((images, i)))
            .collect()
    };
    parts.iter().flat_map(of_part).collect()
}

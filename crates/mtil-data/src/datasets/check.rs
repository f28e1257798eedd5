//! What a data root holds: for each dataset whether it is complete, missing or wrong.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;

use super::{
    captions::{self, CaptionSplit},
    error::DatasetError,
    imagenet,
    mtil::if_there,
    open,
    options::DatasetOptions,
    source::Source,
    spec::Spec,
};
use crate::{
    data::ImageSource,
    suite::{RetrievalSet, Task},
};

/// Progress is told once for so many images.
const STEP: usize = 256;

/// What is going on, told from several threads at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckEvent {
    /// A dataset is looked at.
    Started {
        /// Its key.
        key: String,
    },
    /// Images of it were decoded.
    Decoded {
        /// Its key.
        key: String,
        /// How many so far.
        done: usize,
        /// How many it has.
        of: usize,
    },
    /// It has been looked at.
    Finished {
        /// Its key.
        key: String,
    },
}

/// What there is of a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetReport {
    /// Its key.
    pub key: String,
    /// Its full name.
    pub title: String,
    /// Whether it can be used.
    pub state: State,
}

/// Whether a dataset can be used.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// It is not there.
    NotFound {
        /// Folders, files and archives that were looked for below the data root; one is enough.
        looked_for: Vec<String>,
        /// Its files and their arrangement below such a folder.
        layout: String,
        /// Where to get it.
        get: Vec<String>,
        /// Its terms of use.
        terms: String,
    },
    /// It is there and as it was published.
    Complete {
        /// Its parts.
        parts: Vec<PartReport>,
        /// Bytes of the files in its folder, as they are unpacked.
        bytes: u64,
        /// Images that cannot be decoded, with the reason. Empty if none was looked at.
        unreadable: Vec<(String, String)>,
    },
    /// It is there and cannot be used.
    Wrong(String),
}

impl DatasetReport {
    /// Whether the dataset can be used as it is: complete, and no image found unreadable.
    pub fn is_usable(&self) -> bool {
        matches!(&self.state, State::Complete { unreadable, .. } if unreadable.is_empty())
    }
}

/// A part of a dataset: a half, or all its pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartReport {
    /// `train`, `test`, `reference` or the name of the split.
    pub name: String,
    /// Number of images.
    pub images: usize,
    /// Number of captions, of caption sets.
    pub captions: Option<usize>,
    /// The class with the fewest images and the one with the most, of tasks.
    pub classes: Option<[(String, usize); 2]>,
    /// Number of rows left out of a table because their images are not there.
    pub left_out: usize,
}

/// Looks at the datasets `keys` below `root`, all at once; at every image too if `deep`. `progress`
/// is called from several threads. The reports come in the order of `keys`.
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
        let report = report(root, key, deep, options, progress);
        progress(CheckEvent::Finished {
            key: (*key).to_owned(),
        });
        report
    };
    keys.par_iter().map(one).collect()
}

/// A part and its images.
type Part = (PartReport, std::sync::Arc<dyn ImageSource>);

fn report(
    root: &Path,
    key: &str,
    deep: bool,
    options: &DatasetOptions,
    progress: &(dyn Fn(CheckEvent) + Sync),
) -> DatasetReport {
    let spec = Spec::find(key);
    let title = spec.as_ref().map_or(String::new(), |s| s.title.clone());
    let state = match spec.and_then(|spec| Ok((spec, parts(root, key, options)?))) {
        Ok((spec, parts)) => State::Complete {
            bytes: bytes(spec, root, options),
            unreadable: if deep {
                unreadable(key, &parts, progress)
            } else {
                Vec::new()
            },
            parts: parts.into_iter().map(|(part, _)| part).collect(),
        },
        Err(DatasetError::NotFound {
            looked_for, get, ..
        }) => {
            let spec = Spec::find(key).ok();
            State::NotFound {
                looked_for,
                layout: spec.map_or(String::new(), |s| s.layout.clone()),
                get: spec.map_or(vec![get], |s| s.get.clone()),
                terms: spec.map_or(String::new(), |s| s.terms.clone()),
            }
        }
        Err(error) => State::Wrong(error.to_string()),
    };
    DatasetReport {
        key: key.to_owned(),
        title,
        state,
    }
}

fn parts(root: &Path, key: &str, options: &DatasetOptions) -> Result<Vec<Part>, DatasetError> {
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
        "COCO" => captions::coco(root, CaptionSplit::Found).map(retrieval),
        "Flickr30k" => captions::flickr30k(root, CaptionSplit::Found).map(retrieval),
        "ConceptualCaptions" => {
            let table = captions::conceptual_captions(root)?;
            let part = PartReport {
                name: table.table,
                images: table.pairs.images.len(),
                captions: Some(table.pairs.captions.len()),
                classes: None,
                left_out: table.missing,
            };
            Ok(vec![(part, table.pairs.images)])
        }
        "ImageNet" => match if_there(open(key, root, options))? {
            Some(task) => Ok(halves(task)),
            // Its training images alone are enough to be the reference.
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
        _ => open(key, root, options).map(halves),
    }
}

fn halves(task: Task) -> Vec<Part> {
    let names = task.class_names;
    [("train", task.train), ("test", task.test)]
        .into_iter()
        .map(|(name, half)| {
            let mut counts = vec![0; names.len()];
            half.labels.iter().for_each(|&label| counts[label] += 1);
            let class = |i: Option<usize>| i.map(|i| (names[i].clone(), counts[i]));
            let least = class((0..counts.len()).min_by_key(|&i| counts[i]));
            let most = class((0..counts.len()).rev().max_by_key(|&i| counts[i]));
            let part = PartReport {
                name: name.to_owned(),
                images: half.images.len(),
                captions: None,
                classes: least.zip(most).map(|(least, most)| [least, most]),
                left_out: 0,
            };
            (part, half.images)
        })
        .collect()
}

/// Bytes of the files in the dataset's folder.
fn bytes(spec: &'static Spec, root: &Path, options: &DatasetOptions) -> u64 {
    if spec.key == "ImageNet" {
        return imagenet::bytes(root);
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

/// Decodes every image.
fn unreadable(
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
        if done.is_multiple_of(STEP) || done == of {
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

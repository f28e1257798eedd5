//! ImageNet-1k as reference pairs for GNSP, and as a classification task.
//!
//! The training images are in one folder per synset, or in the original
//! `ILSVRC2012_img_train.tar`, a tar of tars. The validation images are in such folders, or in a
//! single folder or `ILSVRC2012_img_val.tar` with Kaggle's `LOC_val_solution.csv` as labels.
//!
//! Images are sorted by synset and name. The published code uses the order of the file system
//! (`src/datasets/imagenet1k.py:37-41`). So the indices that it draws are known
//! ([`numpy_reference_draw`]), but not the images.

use std::{collections::HashMap, path::Path, sync::Arc};

use rayon::prelude::*;

use super::{
    error::DatasetError,
    mersenne,
    options::{DatasetOptions, SizeCheck},
    source::{LabelledPaths, check_count, check_splits, open_store, unknown_class},
    spec::{Spec, join},
    store::{Archive, Store, StoreImages},
};
use crate::{
    data::{Article, is_image_with_suffix, with_class_name},
    suite::{CaptionedImages, Classification, LabelledImages},
};

/// Caption template of reference images: "an" before a vowel, no full stop (`imagenet1k.py:60-61`).
const TEMPLATE: &str = "a photo of a {}";
/// Files with one synset and its names per line, of the published code and of Kaggle.
const NAMES: [&str; 2] = ["labels.txt", "LOC_synset_mapping.txt"];
/// Suffixes of the published images. Files of other kinds would change the draws.
const SUFFIXES: [&str; 2] = ["jpg", "jpeg"];
/// Kaggle's labels of the validation images.
const VAL_LABELS: &str = "LOC_val_solution.csv";
/// Candidate folders of the original archives.
const ARCHIVE_FOLDERS: [&str; 3] = ["ImageNet1K/", "imagenet/", ""];

/// Draws `count` of `n` images as GNSP draws its reference images for one task:
/// `numpy.random.RandomState(seed).choice(n, count, replace=False)` (`helpers.py:130-143`).
///
/// # Panics
/// As [`mersenne::numpy_permutation`].
///
/// # Examples
/// ```
/// use mtil_data::datasets::imagenet::numpy_reference_draw;
///
/// assert_eq!(numpy_reference_draw(100, 10, 42).len(), 10);
/// ```
pub fn numpy_reference_draw(n: usize, count: usize, seed: u32) -> Vec<usize> {
    mersenne::numpy_choice(n, count, seed)
}

/// Returns all training images with the caption "a photo of a NAME".
///
/// NAME is the first name of the synset in `labels.txt` or `LOC_synset_mapping.txt` in a parent
/// folder of the images, or else the first WordNet lemma, which is the same. Two synsets are called
/// "crane" and two "maillot", so their captions are equal.
///
/// # Errors
/// [`DatasetError::NotFound`], an unknown class folder, or a size that differs from the published
/// one.
pub fn reference(root: &Path, options: &DatasetOptions) -> Result<CaptionedImages, DatasetError> {
    let train = SplitFolder::find(root, SplitKind::Train, options)?;
    let samples = train.samples()?;
    if options.size_check == SizeCheck::Exact {
        let spec = train.spec;
        check_count(
            spec,
            &samples.list,
            "images",
            spec.train,
            samples.paths.len(),
        )?;
    }
    train.captioned(samples)
}

/// Returns the validation images with captions as in [`reference()`].
///
/// # Errors
/// As [`reference()`].
pub fn validation(root: &Path, options: &DatasetOptions) -> Result<CaptionedImages, DatasetError> {
    let val = SplitFolder::find(root, SplitKind::Val, options)?;
    let samples = val.samples()?;
    if options.size_check == SizeCheck::Exact {
        check_count(
            val.spec,
            &samples.list,
            "images",
            val.spec.test,
            samples.paths.len(),
        )?;
    }
    val.captioned(samples)
}

/// Opens ImageNet as a task with OpenAI's 1000 class names and 80 templates.
///
/// The validation images are the test split. Two of OpenAI's names, "missile" and "sunglasses",
/// denote two classes each.
pub(super) fn open(root: &Path, options: &DatasetOptions) -> Result<Classification, DatasetError> {
    let train = SplitFolder::find(root, SplitKind::Train, options)?;
    let val = SplitFolder::find(root, SplitKind::Val, options)?;
    let (of_train, of_val) = (train.samples()?, val.samples()?);
    let spec = train.spec;
    let sizes = Some((spec.train, spec.test));
    check_splits(spec, options, &spec.classes, sizes, &of_train, &of_val)?;
    Ok(Classification {
        class_names: spec.classes.clone(),
        templates: spec.templates.clone(),
        train: train.labelled(of_train),
        test: val.labelled(of_val),
    })
}

/// Returns the uncompressed size of the images of both splits in bytes.
pub(super) fn image_bytes(root: &Path, options: &DatasetOptions) -> u64 {
    let of = |split| {
        let found = SplitFolder::find(root, split, options).ok()?;
        let sizes = found
            .files
            .par_iter()
            .filter_map(|path| found.store.size(path));
        Some(sizes.sum::<u64>())
    };
    [SplitKind::Train, SplitKind::Val]
        .into_iter()
        .filter_map(of)
        .sum()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SplitKind {
    Train,
    Val,
}

/// A split of ImageNet in a data root.
struct SplitFolder {
    spec: &'static Spec,
    store: Store,
    base: String,
    files: Vec<String>,
    synsets: HashMap<&'static str, usize>,
    /// Synset by file name without extension, for images that are not in class folders.
    val_labels: Option<HashMap<String, String>>,
}

impl SplitFolder {
    fn find(root: &Path, split: SplitKind, options: &DatasetOptions) -> Result<Self, DatasetError> {
        let spec = Spec::find("ImageNet")?;
        let store = open_store(spec, root, &archives(root, split)?, options)?;
        let synsets: HashMap<&str, usize> = spec
            .raw_classes()
            .iter()
            .enumerate()
            .map(|(i, s)| (s.as_str(), i))
            .collect();
        let mut looked_for = Vec::new();
        for base in &spec.bases {
            let base = match split {
                SplitKind::Train => base.clone(),
                SplitKind::Val => format!("{}val", base.strip_suffix("train").unwrap_or(base)),
            };
            let files: Vec<String> = store
                .files(&base)?
                .into_iter()
                .filter(|f| is_image_with_suffix(f.as_ref(), &SUFFIXES))
                .collect();
            looked_for.push(format!("{base}/SYNSET/"));
            let of_synset = |path: &String| {
                let name = &path[base.len() + 1..];
                name.split_once('/')
                    .is_some_and(|(folder, _)| synsets.contains_key(folder))
            };
            let val_labels = match files.first() {
                None => continue,
                Some(_) if files.iter().any(of_synset) => None,
                Some(_) if split == SplitKind::Val => {
                    match find_in_parents(&base, &[VAL_LABELS], &store) {
                        Some(file) => Some(read_val_labels(&store, &file)?),
                        None => {
                            looked_for.push(format!("{VAL_LABELS} for the images in {base}"));
                            continue;
                        }
                    }
                }
                // The `train` folder of another dataset.
                Some(_) => continue,
            };
            return Ok(Self {
                spec,
                store,
                base,
                files,
                synsets,
                val_labels,
            });
        }
        let archive = match split {
            SplitKind::Train => "ILSVRC2012_img_train.tar",
            SplitKind::Val => "ILSVRC2012_img_val.tar with LOC_val_solution.csv",
        };
        looked_for.push(archive.into());
        Err(DatasetError::NotFound {
            dataset: match split {
                SplitKind::Train => spec.key.clone(),
                SplitKind::Val => format!("the validation split of {}", spec.key),
            },
            root: root.to_owned(),
            looked_for,
            get: spec.download_location(),
        })
    }

    /// Returns the images sorted by synset and name.
    fn samples(&self) -> Result<LabelledPaths, DatasetError> {
        let mut samples = LabelledPaths {
            list: self.store.describe(&self.base),
            paths: Vec::with_capacity(self.files.len()),
            labels: Vec::with_capacity(self.files.len()),
        };
        for path in &self.files {
            let name = &path[self.base.len() + 1..];
            let synset = match &self.val_labels {
                None => name.split_once('/').map_or(name, |(folder, _)| folder),
                Some(labels) => {
                    let stem = name.rsplit('/').next().and_then(|n| n.split('.').next());
                    let known = stem.and_then(|stem| labels.get(stem));
                    known.ok_or_else(|| DatasetError::Malformed {
                        file: VAL_LABELS.into(),
                        at: name.to_owned(),
                        reason: "it does not have this image".into(),
                    })?
                }
            };
            let label = self.synsets.get(synset);
            let label = *label
                .ok_or_else(|| unknown_class(self.spec, synset, self.store.describe(path)))?;
            samples.paths.push(path.clone());
            samples.labels.push(label);
        }
        // Files in a single folder are sorted by name only. The stable sort adds the synset.
        if self.val_labels.is_some() {
            let mut order: Vec<usize> = (0..samples.paths.len()).collect();
            order.sort_by_key(|&i| samples.labels[i]);
            samples.paths = order.iter().map(|&i| samples.paths[i].clone()).collect();
            samples.labels = order.iter().map(|&i| samples.labels[i]).collect();
        }
        Ok(samples)
    }

    fn labelled(&self, samples: LabelledPaths) -> LabelledImages {
        LabelledImages {
            images: Arc::new(StoreImages::new(self.store.clone(), samples.paths)),
            labels: samples.labels,
        }
    }

    fn captioned(&self, samples: LabelledPaths) -> Result<CaptionedImages, DatasetError> {
        let mut names = self.spec.lemmas.clone();
        if let Some(file) = find_in_parents(&self.base, &NAMES, &self.store) {
            for line in self.store.text(&file)?.lines() {
                // "n01440764 TAB tench, Tinca tinca", or the same with a space.
                let (synset, rest) = line
                    .trim()
                    .split_once(char::is_whitespace)
                    .unwrap_or_default();
                let name = rest.split(',').next().unwrap_or_default().replace('_', " ");
                if let (Some(&label), false) = (self.synsets.get(synset), name.trim().is_empty()) {
                    names[label] = name.trim().to_owned();
                }
            }
        }
        let captions: Vec<String> = names
            .iter()
            .map(|name| with_class_name(TEMPLATE, Article::Auto, name))
            .collect();
        Ok(CaptionedImages {
            captions: samples
                .labels
                .iter()
                .map(|&l| captions[l].clone())
                .collect(),
            images: Arc::new(StoreImages::new(self.store.clone(), samples.paths)),
        })
    }
}

/// Returns the original archives that exist.
fn archives(root: &Path, split: SplitKind) -> Result<Vec<Archive>, DatasetError> {
    let name = match split {
        SplitKind::Train => "ILSVRC2012_img_train",
        SplitKind::Val => "ILSVRC2012_img_val",
    };
    let mut all = Vec::new();
    for folder in ARCHIVE_FOLDERS {
        let file = format!("{folder}{name}.tar");
        if !root.join(&file).is_file() {
            continue;
        }
        let mount = format!("{folder}{name}");
        let flat = |mount: &str| Archive {
            file: file.clone(),
            mount: mount.to_owned(),
            ..Archive::default()
        };
        match split {
            SplitKind::Val => all.push(flat(&mount)),
            SplitKind::Train => {
                // The inner archives are listed at the archive's own path, where no folder can be.
                for inner in Store::open(root, &[flat(&file)])?.files(&file)? {
                    let inner = &inner[file.len() + 1..];
                    if let Some(synset) = inner.strip_suffix(".tar") {
                        all.push(Archive {
                            file: file.clone(),
                            mount: join(&mount, synset),
                            inner: Some(inner.to_owned()),
                        });
                    }
                }
            }
        }
    }
    Ok(all)
}

/// Finds one of the files `names` in the parent folders of `base`, starting at the nearest.
fn find_in_parents(base: &str, names: &[&str], store: &Store) -> Option<String> {
    let mut folder = base;
    loop {
        folder = folder.rsplit_once('/').map_or("", |(parent, _)| parent);
        let found = names
            .iter()
            .map(|name| join(folder, name))
            .find(|p| store.exists(p));
        if found.is_some() || folder.is_empty() {
            return found;
        }
    }
}

/// Reads Kaggle's table "ImageId,PredictionString". The first word of the string is the synset.
fn read_val_labels(store: &Store, file: &str) -> Result<HashMap<String, String>, DatasetError> {
    let row = |line: &str| {
        let (image, rest) = line.split_once(',')?;
        // Some programs write the table with all values in quotation marks.
        let rest = rest.trim().trim_matches('"');
        let image = image.trim().trim_matches('"').to_owned();
        Some((image, rest.split_whitespace().next()?.to_owned()))
    };
    Ok(store.text(file)?.lines().skip(1).filter_map(row).collect())
}

/// Returns the archives of both splits, to unpack them in tests.
#[cfg(test)]
pub(super) fn archives_of_both_splits(root: &Path) -> Result<Vec<Archive>, DatasetError> {
    let mut all = archives(root, SplitKind::Train)?;
    all.extend(archives(root, SplitKind::Val)?);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_table_of_validation_labels_may_be_quoted() {
        let root = tempfile::tempdir().unwrap();
        let table = "ImageId,PredictionString\nval_1,n01440764 1 2 3 4\n\"val_2\",\"n02 1 2\"\n";
        std::fs::write(root.path().join(VAL_LABELS), table).unwrap();
        let store = Store::open(root.path(), &[]).unwrap();
        let labels = read_val_labels(&store, VAL_LABELS).unwrap();
        assert_eq!(labels["val_1"], "n01440764");
        assert_eq!(labels["val_2"], "n02");
    }

    #[test]
    fn captions_of_all_synsets_are_the_published_ones() {
        let spec = Spec::find("ImageNet").unwrap();
        let captions: Vec<String> = spec
            .lemmas
            .iter()
            .map(|name| with_class_name(TEMPLATE, Article::Auto, name))
            .collect();
        let golden = super::super::mersenne::tests::golden();
        let want = &golden["tokenizer"]["imagenet1k_reference_prompts"];
        assert_eq!(captions.len() as u64, want["n"]);
        assert_eq!(
            captions.iter().collect::<HashSet<_>>().len() as u64,
            want["n_unique_prompts"]
        );
        for twice in want["duplicate_prompts"].as_array().unwrap() {
            assert_eq!(captions.iter().filter(|c| *c == twice).count(), 2);
        }
        assert!(captions.contains(&"a photo of an African elephant".to_owned()));
    }
}

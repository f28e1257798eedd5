//! ImageNet-1k: GNSP's reference pairs, and the dataset itself as a task.
//!
//! The training images lie in a folder for each synset, or in the original
//! `ILSVRC2012_img_train.tar`, a tar of tars. The validation images lie in such folders too, or all
//! in one folder or in `ILSVRC2012_img_val.tar`; then Kaggle's `LOC_val_solution.csv` says which
//! synset each is of.
//!
//! Files are numbered by synset and name. The published code numbers them as the file system lists
//! them (`src/datasets/imagenet1k.py:37-41`), so the images that its draws hit are not known; only
//! the numbers drawn are ([`numpy_reference_draw`]).

use std::{collections::HashMap, path::Path, sync::Arc};

use rayon::prelude::*;

use super::{
    error::DatasetError,
    mersenne,
    options::{Counts, DatasetOptions},
    source::{Half, check_halves, count, open_store, unknown_class},
    spec::{Spec, join},
    store::{Archive, Store, StoreImages},
};
use crate::{
    data::{Article, with_class_name},
    suite::{CaptionedImages, LabelledImages, Task},
};

/// Caption of a reference image; "an" before a vowel, no full stop (`imagenet1k.py:60-61`).
const TEMPLATE: &str = "a photo of a {}";
/// Files with the names of the synsets, a line each: the published code's and Kaggle's.
const NAMES: [&str; 2] = ["labels.txt", "LOC_synset_mapping.txt"];
/// Kaggle's labels of the validation images.
const VAL_LABELS: &str = "LOC_val_solution.csv";
/// Folders that the original archives may stand for.
const ARCHIVE_FOLDERS: [&str; 3] = ["ImageNet1K/", "imagenet/", ""];

/// `count` of `n` images as GNSP draws its reference images for one task:
/// `numpy.random.RandomState(seed).choice(n, count, replace=False)` (`helpers.py:130-143`).
///
/// # Panics
/// As [`mersenne::numpy_permutation`].
pub fn numpy_reference_draw(n: usize, count: usize, seed: u32) -> Vec<usize> {
    mersenne::numpy_choice(n, count, seed)
}

/// All training images, each with "a photo of a NAME" as its caption. NAME is the first name of its
/// synset in `labels.txt` or `LOC_synset_mapping.txt`, in a folder above the images, or else the
/// first WordNet lemma, which is the same. Two synsets are called "crane" and two "maillot"; their
/// captions are the same.
///
/// # Errors
/// [`DatasetError::NotFound`]; an unknown folder; sizes that are not the published ones.
pub fn reference(root: &Path, options: &DatasetOptions) -> Result<CaptionedImages, DatasetError> {
    let train = Folder::find(root, Part::Train)?;
    let samples = train.samples()?;
    if options.counts == Counts::Exact {
        let spec = train.spec;
        count(
            spec,
            &samples.list,
            "images",
            spec.train,
            samples.paths.len(),
        )?;
    }
    train.captioned(samples)
}

/// The validation images with captions as those of [`reference()`].
///
/// # Errors
/// As [`reference()`].
pub fn validation(root: &Path, options: &DatasetOptions) -> Result<CaptionedImages, DatasetError> {
    let val = Folder::find(root, Part::Val)?;
    let samples = val.samples()?;
    if options.counts == Counts::Exact {
        count(
            val.spec,
            &samples.list,
            "images",
            val.spec.test,
            samples.paths.len(),
        )?;
    }
    val.captioned(samples)
}

/// The classification of ImageNet with OpenAI's 1000 class names and 80 templates: training images
/// to train on, validation images to evaluate on. Two of OpenAI's names stand for two classes each,
/// "missile" and "sunglasses".
pub(super) fn open(root: &Path, options: &DatasetOptions) -> Result<Task, DatasetError> {
    let train = Folder::find(root, Part::Train)?;
    let val = Folder::find(root, Part::Val)?;
    let (of_train, of_val) = (train.samples()?, val.samples()?);
    let spec = train.spec;
    let sizes = Some((spec.train, spec.test));
    check_halves(spec, options, &spec.classes, sizes, &of_train, &of_val)?;
    Ok(Task {
        name: spec.key.clone(),
        class_names: spec.classes.clone(),
        templates: spec.templates.clone(),
        train: train.labelled(of_train),
        test: val.labelled(of_val),
    })
}

/// Bytes of the images of both halves, as they are unpacked.
pub(super) fn bytes(root: &Path) -> u64 {
    let of = |part| {
        let found = Folder::find(root, part).ok()?;
        let sizes = found
            .files
            .par_iter()
            .filter_map(|path| found.store.size(path));
        Some(sizes.sum::<u64>())
    };
    [Part::Train, Part::Val].into_iter().filter_map(of).sum()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Train,
    Val,
}

/// One part of ImageNet, found.
struct Folder {
    spec: &'static Spec,
    store: Store,
    base: String,
    files: Vec<String>,
    synsets: HashMap<&'static str, usize>,
    /// Synset of each image by file name, where folders do not say it.
    flat: Option<HashMap<String, String>>,
}

impl Folder {
    fn find(root: &Path, part: Part) -> Result<Self, DatasetError> {
        let spec = Spec::find("ImageNet")?;
        let store = open_store(spec, root, &archives(root, part)?)?;
        let synsets: HashMap<&str, usize> = spec
            .raw_classes()
            .iter()
            .enumerate()
            .map(|(i, s)| (s.as_str(), i))
            .collect();
        let mut looked_for = Vec::new();
        for base in &spec.bases {
            let base = match part {
                Part::Train => base.clone(),
                Part::Val => format!("{}val", base.strip_suffix("train").unwrap_or(base)),
            };
            let files: Vec<String> = store
                .files(&base)?
                .into_iter()
                .filter(|f| is_image(f))
                .collect();
            looked_for.push(format!("{base}/SYNSET/"));
            let of_synset = |path: &String| {
                let name = &path[base.len() + 1..];
                name.split_once('/')
                    .is_some_and(|(folder, _)| synsets.contains_key(folder))
            };
            let flat = match files.first() {
                None => continue,
                Some(_) if files.iter().any(of_synset) => None,
                Some(_) if part == Part::Val => match above(&base, &[VAL_LABELS], &store) {
                    Some(file) => Some(solution(&store, &file)?),
                    None => {
                        looked_for.push(format!("{VAL_LABELS} for the images in {base}"));
                        continue;
                    }
                },
                // Some other dataset's `train`.
                Some(_) => continue,
            };
            return Ok(Self {
                spec,
                store,
                base,
                files,
                synsets,
                flat,
            });
        }
        let archive = match part {
            Part::Train => "ILSVRC2012_img_train.tar",
            Part::Val => "ILSVRC2012_img_val.tar with LOC_val_solution.csv",
        };
        looked_for.push(archive.into());
        Err(DatasetError::NotFound {
            dataset: match part {
                Part::Train => spec.key.clone(),
                Part::Val => format!("the validation half of {}", spec.key),
            },
            root: root.to_owned(),
            looked_for,
            get: spec.where_from(),
        })
    }

    /// The images in the order of synset and name.
    fn samples(&self) -> Result<Half, DatasetError> {
        let mut half = Half {
            list: self.store.describe(&self.base),
            paths: Vec::with_capacity(self.files.len()),
            labels: Vec::with_capacity(self.files.len()),
        };
        for path in &self.files {
            let name = &path[self.base.len() + 1..];
            let synset = match &self.flat {
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
            half.paths.push(path.clone());
            half.labels.push(label);
        }
        if self.flat.is_some() {
            let mut order: Vec<usize> = (0..half.paths.len()).collect();
            order.sort_by_key(|&i| half.labels[i]);
            half.paths = order.iter().map(|&i| half.paths[i].clone()).collect();
            half.labels = order.iter().map(|&i| half.labels[i]).collect();
        }
        Ok(half)
    }

    fn labelled(&self, samples: Half) -> LabelledImages {
        LabelledImages {
            images: Arc::new(StoreImages::new(self.store.clone(), samples.paths)),
            labels: samples.labels,
        }
    }

    fn captioned(&self, samples: Half) -> Result<CaptionedImages, DatasetError> {
        let mut names = self.spec.lemmas.clone();
        if let Some(file) = above(&self.base, &NAMES, &self.store) {
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

/// The original archives that are there.
fn archives(root: &Path, part: Part) -> Result<Vec<Archive>, DatasetError> {
    let name = match part {
        Part::Train => "ILSVRC2012_img_train",
        Part::Val => "ILSVRC2012_img_val",
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
        match part {
            Part::Val => all.push(flat(&mount)),
            Part::Train => {
                // Its members under a path that cannot be a folder, since it is the file's.
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

fn is_image(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    lower.ends_with(".jpeg") || lower.ends_with(".jpg")
}

/// The first of the files `names` in a folder above `base`, the nearest first.
fn above(base: &str, names: &[&str], store: &Store) -> Option<String> {
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

/// Kaggle's table "ImageId,PredictionString", of which the first word is the synset.
fn solution(store: &Store, file: &str) -> Result<HashMap<String, String>, DatasetError> {
    let row = |line: &str| {
        let (image, rest) = line.split_once(',')?;
        Some((image.to_owned(), rest.split_whitespace().next()?.to_owned()))
    };
    Ok(store.text(file)?.lines().skip(1).filter_map(row).collect())
}

/// The archives of both halves, for unpacking them in tests.
#[cfg(test)]
pub(super) fn archives_of_both(root: &Path) -> Result<Vec<Archive>, DatasetError> {
    let mut all = archives(root, Part::Train)?;
    all.extend(archives(root, Part::Val)?);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

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

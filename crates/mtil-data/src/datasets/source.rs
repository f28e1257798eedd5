//! A dataset in a data root, and the consistency checks shared by all datasets.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use super::{
    error::DatasetError,
    options::{DatasetOptions, SizeCheck},
    spec::{Spec, join},
    splits::Split,
    store::{Archive, Store, StoreImages},
};
use crate::{
    data::{ImageSource, is_image_name},
    nearest,
    suite::{Classification, LabelledImages},
};

/// A dataset and the folder that contains its files.
pub(super) struct Source<'a> {
    pub(super) spec: &'static Spec,
    pub(super) options: &'a DatasetOptions,
    pub(super) store: Store,
    /// Folder, relative to the data root.
    pub(super) base: String,
}

/// Paths and labels of the images of a list or folder, usually one split.
pub(super) struct LabelledPaths {
    /// Human-readable name of the list or folder.
    pub(super) list: String,
    /// Paths relative to the data root.
    pub(super) paths: Vec<String>,
    /// Label of each.
    pub(super) labels: Vec<usize>,
}

/// Opens the data root. Errors name the dataset, since a wrong root is the most likely mistake.
pub(super) fn open_store(
    spec: &Spec,
    root: &Path,
    archives: &[Archive],
    options: &DatasetOptions,
) -> Result<Store, DatasetError> {
    if !root.is_dir() {
        return Err(spec.not_found(root));
    }
    Ok(Store::open(root, archives)?.with_decode_options(options.decode))
}

impl<'a> Source<'a> {
    /// Finds the dataset in `root`.
    ///
    /// # Errors
    /// [`DatasetError::NotFound`].
    pub(super) fn find(
        spec: &'static Spec,
        root: &Path,
        options: &'a DatasetOptions,
    ) -> Result<Self, DatasetError> {
        let store = open_store(spec, root, &spec.archives(), options)?;
        for base in &spec.bases {
            let found = match &spec.marker {
                Some(marker) => store.exists(&join(base, marker)),
                None => !store.files(base)?.is_empty(),
            };
            if found {
                return Ok(Self {
                    spec,
                    options,
                    store,
                    base: base.clone(),
                });
            }
        }
        Err(not_found(spec, root))
    }

    /// Returns the folder of images `name`, or the folder of that name in it if this one holds more
    /// images, as in archives whose only folder is packed again.
    pub(super) fn image_folder(&self, name: &str) -> Result<String, DatasetError> {
        let nested = join(name, name);
        let files = self.store.files(&self.path(name))?;
        let images = |folder: &str| {
            let folder = self.path(folder);
            let is_in = |file: &&String| {
                let parent = file.rsplit_once('/').map(|(parent, _)| parent);
                parent == Some(&*folder) && is_image_name(file)
            };
            files.iter().filter(is_in).count()
        };
        let is_nested = images(&nested) > images(name);
        Ok(if is_nested { nested } else { name.to_owned() })
    }

    /// Returns the path of a file of the dataset, relative to the data root.
    pub(super) fn path(&self, name: &str) -> String {
        join(&self.base, name)
    }

    /// Returns a human-readable location of a file of the dataset.
    pub(super) fn describe(&self, name: &str) -> String {
        self.store.describe(&self.path(name))
    }

    /// Returns the non-empty lines of a text file, trimmed, with their line numbers.
    pub(super) fn lines(&self, name: &str) -> Result<Vec<(usize, String)>, DatasetError> {
        let text = self.store.text(&self.path(name))?;
        let lines = text
            .lines()
            .enumerate()
            .map(|(i, l)| (i + 1, l.trim().to_owned()));
        Ok(lines.filter(|(_, l)| !l.is_empty()).collect())
    }

    pub(super) fn malformed(
        &self,
        name: &str,
        at: String,
        reason: impl Into<String>,
    ) -> DatasetError {
        DatasetError::Malformed {
            file: self.describe(name),
            at,
            reason: reason.into(),
        }
    }

    /// Returns the labels by class name in the dataset's files.
    pub(super) fn labels(&self) -> HashMap<&'static str, usize> {
        let names = self.spec.raw_classes().iter().map(String::as_str);
        names
            .enumerate()
            .map(|(label, name)| (name, label))
            .collect()
    }

    pub(super) fn unknown_class(&self, class: &str, place: String) -> DatasetError {
        unknown_class(self.spec, class, place)
    }

    /// Converts a 1-based label to a 0-based label.
    pub(super) fn zero_based_label(
        &self,
        label: i64,
        file: &str,
        at: impl FnOnce() -> String,
    ) -> Result<usize, DatasetError> {
        let last = self.spec.classes.len() as i64;
        if (1..=last).contains(&label) {
            return Ok(label as usize - 1);
        }
        Err(DatasetError::LabelRange {
            dataset: self.spec.key.clone(),
            file: self.describe(file),
            at: at(),
            label,
            first: 1,
            last,
        })
    }

    /// Requires that a file lists the classes of the published release in its order.
    pub(super) fn check_classes<'n>(
        &self,
        file: &str,
        found: impl IntoIterator<Item = &'n str>,
    ) -> Result<(), DatasetError> {
        let found: Vec<&str> = found.into_iter().collect();
        let want = self.spec.raw_classes();
        for (label, (want, found)) in want.iter().zip(&found).enumerate() {
            if want != found {
                return Err(DatasetError::WrongClass {
                    dataset: self.spec.key.clone(),
                    file: self.describe(file),
                    label,
                    expected: want.clone(),
                    found: (*found).to_owned(),
                });
            }
        }
        check_count(
            self.spec,
            &self.describe(file),
            "classes",
            want.len(),
            found.len(),
        )
    }

    /// Requires the published number of samples of a dataset without an official split, unless the
    /// options provide the split.
    pub(super) fn check_total(&self, all: &LabelledPaths) -> Result<(), DatasetError> {
        let own_split = self.options.index_lists.contains_key(&self.spec.key);
        if self.options.size_check == SizeCheck::Any || own_split {
            return Ok(());
        }
        let whole = self.spec.train + self.spec.test;
        check_count(self.spec, &all.list, "images", whole, all.paths.len())
    }

    /// Splits the samples of a dataset without an official split: by the options, or else 80/20.
    pub(super) fn split(
        &self,
        all: LabelledPaths,
    ) -> Result<(LabelledPaths, LabelledPaths), DatasetError> {
        let n = all.paths.len();
        let split = match self.options.index_lists.get(&self.spec.key) {
            Some(lists) => Split::from_lists(&self.spec.key, lists, n)?,
            None => Split::random(n),
        };
        let select = |numbers: &[usize]| LabelledPaths {
            list: all.list.clone(),
            paths: numbers.iter().map(|&i| all.paths[i].clone()).collect(),
            labels: numbers.iter().map(|&i| all.labels[i]).collect(),
        };
        Ok((select(&split.train), select(&split.test)))
    }

    /// Returns the task of two splits whose files were found by listing folders.
    pub(super) fn task_from_folders(
        &self,
        train: LabelledPaths,
        test: LabelledPaths,
    ) -> Result<Classification, DatasetError> {
        let own_split = self.options.index_lists.contains_key(&self.spec.key);
        let sizes = (!own_split).then_some((self.spec.train, self.spec.test));
        let names = self.spec.classes.clone();
        check_splits(self.spec, self.options, &names, sizes, &train, &test)?;
        Ok(store_task(self.spec, names, &self.store, train, test))
    }

    /// Returns the task of two splits given by lists. Every image must be in one of `folders`.
    pub(super) fn task_from_lists(
        &self,
        folders: &[String],
        train: LabelledPaths,
        test: LabelledPaths,
    ) -> Result<Classification, DatasetError> {
        let names = self.spec.classes.clone();
        let sizes = Some((self.spec.train, self.spec.test));
        check_splits(self.spec, self.options, &names, sizes, &train, &test)?;
        check_images_exist(self.spec, &self.store, folders, &[&train, &test])?;
        Ok(store_task(self.spec, names, &self.store, train, test))
    }

    /// Returns the task of two splits in memory: name of the file, images and labels.
    pub(super) fn task_from_arrays(
        &self,
        train: (String, Arc<dyn ImageSource>, Vec<usize>),
        test: (String, Arc<dyn ImageSource>, Vec<usize>),
    ) -> Result<Classification, DatasetError> {
        for ((list, images, labels), want) in [(&train, self.spec.train), (&test, self.spec.test)] {
            if labels.len() != images.len() {
                return Err(DatasetError::Malformed {
                    file: list.clone(),
                    at: "labels".into(),
                    reason: format!("{} images but {} labels", images.len(), labels.len()),
                });
            }
            if self.options.size_check == SizeCheck::Exact {
                check_count(self.spec, list, "images", want, images.len())?;
            }
        }
        if self.options.size_check == SizeCheck::Exact {
            check_every_class(self.spec, &self.spec.classes, &train.0, &train.2)?;
        }
        let labelled = |(_, images, labels)| LabelledImages { images, labels };
        Ok(Classification {
            class_names: self.spec.classes.clone(),
            templates: self.spec.templates.clone(),
            train: labelled(train),
            test: labelled(test),
        })
    }
}

/// Returns the error for a dataset that is not in `root`, or not completely.
fn not_found(spec: &Spec, root: &Path) -> DatasetError {
    let Some(marker) = &spec.marker else {
        return spec.not_found(root);
    };
    let mut present = Vec::new();
    for archive in spec.archives() {
        let files = [archive.file.clone(), join(&archive.mount, &archive.file)];
        present.extend(files.into_iter().filter(|file| root.join(file).is_file()));
    }
    let holds_files = |folder: &&String| {
        let mut entries = std::fs::read_dir(root.join(folder)).into_iter().flatten();
        entries.next().is_some()
    };
    let folders = spec.bases.iter().filter(holds_files);
    present.extend(folders.map(|folder| format!("{folder}/")));
    present.sort();
    present.dedup();
    if present.is_empty() {
        return spec.not_found(root);
    }
    DatasetError::PartlyThere {
        dataset: spec.key.clone(),
        present,
        missing: spec.bases.iter().map(|base| join(base, marker)).collect(),
        get: spec.download_location(),
    }
}

pub(super) fn unknown_class(spec: &Spec, class: &str, place: String) -> DatasetError {
    DatasetError::UnknownClass {
        dataset: spec.key.clone(),
        place,
        class: class.to_owned(),
        near: nearest(class, spec.raw_classes().iter().map(String::as_str)),
    }
}

/// Requires the number of items of the published release.
pub(super) fn check_count(
    spec: &Spec,
    list: &str,
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), DatasetError> {
    if expected == found {
        return Ok(());
    }
    Err(DatasetError::WrongCount {
        dataset: spec.key.clone(),
        list: list.to_owned(),
        what,
        expected,
        found,
        get: spec.download_location(),
    })
}

/// Requires that every class has an image.
fn check_every_class(
    spec: &Spec,
    names: &[String],
    place: &str,
    labels: &[usize],
) -> Result<(), DatasetError> {
    let mut seen = vec![false; names.len()];
    labels.iter().for_each(|&l| seen[l] = true);
    match seen.iter().position(|&s| !s) {
        None => Ok(()),
        Some(class) => Err(DatasetError::ClassWithoutImages {
            dataset: spec.key.clone(),
            class: names[class].clone(),
            place: place.to_owned(),
            get: spec.download_location(),
        }),
    }
}

/// Requires that no image is listed twice. Under [`SizeCheck::Exact`] also requires the published
/// `sizes` and a training image of every class.
pub(super) fn check_splits(
    spec: &Spec,
    options: &DatasetOptions,
    names: &[String],
    sizes: Option<(usize, usize)>,
    train: &LabelledPaths,
    test: &LabelledPaths,
) -> Result<(), DatasetError> {
    if options.size_check == SizeCheck::Exact {
        if let Some((of_train, of_test)) = sizes {
            check_count(
                spec,
                &train.list,
                "images to train on",
                of_train,
                train.paths.len(),
            )?;
            check_count(
                spec,
                &test.list,
                "images to evaluate on",
                of_test,
                test.paths.len(),
            )?;
        }
        check_every_class(spec, names, &train.list, &train.labels)?;
    }
    let mut seen: HashMap<&str, &str> = HashMap::new();
    for samples in [train, test] {
        for path in &samples.paths {
            if let Some(first) = seen.insert(path, &samples.list) {
                return Err(DatasetError::NamedTwice {
                    dataset: spec.key.clone(),
                    path: path.clone(),
                    first: first.to_owned(),
                    second: samples.list.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Requires that all listed images are in `folders`.
pub(super) fn check_images_exist(
    spec: &Spec,
    store: &Store,
    folders: &[String],
    splits: &[&LabelledPaths],
) -> Result<(), DatasetError> {
    let mut there = HashSet::new();
    for folder in folders {
        there.extend(store.files(folder)?);
    }
    for samples in splits {
        let mut missing = samples.paths.iter().filter(|p| !there.contains(*p));
        if let Some(first) = missing.next() {
            return Err(DatasetError::MissingImages {
                dataset: spec.key.clone(),
                list: samples.list.clone(),
                missing: 1 + missing.count(),
                of: samples.paths.len(),
                first: first.clone(),
                elsewhere: same_name(&there, first),
            });
        }
    }
    Ok(())
}

/// Returns the first path with the file name of `path` and that of its folder.
fn same_name(paths: &HashSet<String>, path: &str) -> Option<String> {
    let end = |path: &str| {
        let mut names = path.rsplit('/').map(str::to_owned);
        [names.next(), names.next()]
    };
    let wanted = end(path);
    paths.iter().filter(|p| end(p) == wanted).min().cloned()
}

/// Returns the task of two splits in a store.
pub(super) fn store_task(
    spec: &Spec,
    class_names: Vec<String>,
    store: &Store,
    train: LabelledPaths,
    test: LabelledPaths,
) -> Classification {
    let labelled = |samples: LabelledPaths| LabelledImages {
        images: Arc::new(StoreImages::new(store.clone(), samples.paths)),
        labels: samples.labels,
    };
    Classification {
        class_names,
        templates: spec.templates.clone(),
        train: labelled(train),
        test: labelled(test),
    }
}

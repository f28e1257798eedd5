//! A dataset found in a data root, and the checks that all datasets share.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use super::{
    error::DatasetError,
    options::{Counts, DatasetOptions},
    spec::{Spec, join},
    splits::Split,
    store::{Archive, Store, StoreImages},
};
use crate::{
    data::ImageSource,
    nearest,
    suite::{LabelledImages, Task},
};

/// A dataset and the folder in which its files lie.
pub(super) struct Source<'a> {
    pub(super) spec: &'static Spec,
    pub(super) options: &'a DatasetOptions,
    pub(super) store: Store,
    /// Folder below the data root.
    pub(super) base: String,
}

/// Images of one half by path, as a list or a folder names them.
pub(super) struct Half {
    /// The list or folder, for people.
    pub(super) list: String,
    /// Paths below the data root.
    pub(super) paths: Vec<String>,
    /// Label of each.
    pub(super) labels: Vec<usize>,
}

/// Opens the data root; errors name the dataset, since a wrong root is the first thing to go wrong.
pub(super) fn open_store(
    spec: &Spec,
    root: &Path,
    archives: &[Archive],
) -> Result<Store, DatasetError> {
    if !root.is_dir() {
        return Err(spec.not_found(root));
    }
    Store::open(root, archives)
}

impl<'a> Source<'a> {
    /// Finds the dataset below `root`.
    ///
    /// # Errors
    /// [`DatasetError::NotFound`].
    pub(super) fn find(
        spec: &'static Spec,
        root: &Path,
        options: &'a DatasetOptions,
    ) -> Result<Self, DatasetError> {
        let store = open_store(spec, root, &spec.archives())?;
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
        Err(spec.not_found(root))
    }

    /// Path below the data root of a file of the dataset.
    pub(super) fn path(&self, name: &str) -> String {
        join(&self.base, name)
    }

    /// A file of the dataset, for people.
    pub(super) fn describe(&self, name: &str) -> String {
        self.store.describe(&self.path(name))
    }

    /// The lines of a text file of the dataset that are not empty, trimmed, with their numbers.
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

    /// The label of the class that the dataset's files call `class`.
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

    /// Turns a label counted from 1 into one counted from 0.
    pub(super) fn counted_from_one(
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

    /// Requires that the classes a file lists are those of the published release, in its order.
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
        count(
            self.spec,
            &self.describe(file),
            "classes",
            want.len(),
            found.len(),
        )
    }

    /// Requires the size of the published release of samples that have no official split, unless
    /// the options bring a split.
    pub(super) fn check_whole(&self, all: &Half) -> Result<(), DatasetError> {
        let own_split = self.options.index_lists.contains_key(&self.spec.key);
        if self.options.counts == Counts::Any || own_split {
            return Ok(());
        }
        let whole = self.spec.train + self.spec.test;
        count(self.spec, &all.list, "images", whole, all.paths.len())
    }

    /// Splits samples that have no official split: 80/20, or as the options say.
    pub(super) fn split(&self, all: Half) -> Result<(Half, Half), DatasetError> {
        let n = all.paths.len();
        let split = match self.options.index_lists.get(&self.spec.key) {
            Some(lists) => Split::from_lists(&self.spec.key, lists, n)?,
            None => Split::random(n),
        };
        let half = |numbers: &[usize]| Half {
            list: all.list.clone(),
            paths: numbers.iter().map(|&i| all.paths[i].clone()).collect(),
            labels: numbers.iter().map(|&i| all.labels[i]).collect(),
        };
        Ok((half(&split.train), half(&split.test)))
    }

    /// The task of two halves whose files were found by listing folders.
    pub(super) fn task_of_found(&self, train: Half, test: Half) -> Result<Task, DatasetError> {
        let own_split = self.options.index_lists.contains_key(&self.spec.key);
        let sizes = (!own_split).then_some((self.spec.train, self.spec.test));
        let names = self.spec.classes.clone();
        check_halves(self.spec, self.options, &names, sizes, &train, &test)?;
        Ok(task(self.spec, names, &self.store, train, test))
    }

    /// The task of two halves that lists name; every image must be in one of `folders`.
    pub(super) fn task_of_listed(
        &self,
        folders: &[String],
        train: Half,
        test: Half,
    ) -> Result<Task, DatasetError> {
        let names = self.spec.classes.clone();
        let sizes = Some((self.spec.train, self.spec.test));
        check_halves(self.spec, self.options, &names, sizes, &train, &test)?;
        check_listed(self.spec, &self.store, folders, &[&train, &test])?;
        Ok(task(self.spec, names, &self.store, train, test))
    }

    /// The task of two halves that lie in memory.
    pub(super) fn task_of_raw(
        &self,
        train: (String, Arc<dyn ImageSource>, Vec<usize>),
        test: (String, Arc<dyn ImageSource>, Vec<usize>),
    ) -> Result<Task, DatasetError> {
        for ((list, images, labels), want) in [(&train, self.spec.train), (&test, self.spec.test)] {
            if labels.len() != images.len() {
                return Err(DatasetError::Malformed {
                    file: list.clone(),
                    at: "labels".into(),
                    reason: format!("{} images but {} labels", images.len(), labels.len()),
                });
            }
            if self.options.counts == Counts::Exact {
                count(self.spec, list, "images", want, images.len())?;
            }
        }
        if self.options.counts == Counts::Exact {
            every_class(self.spec, &self.spec.classes, &train.0, &train.2)?;
        }
        let half = |(_, images, labels)| LabelledImages { images, labels };
        Ok(Task {
            name: self.spec.key.clone(),
            class_names: self.spec.classes.clone(),
            templates: self.spec.templates.clone(),
            train: half(train),
            test: half(test),
        })
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

/// Requires a number of the published release.
pub(super) fn count(
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
        get: spec.where_from(),
    })
}

fn every_class(
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
            get: spec.where_from(),
        }),
    }
}

/// Sizes and classes of the published release, where they must be; no image twice, in any case.
pub(super) fn check_halves(
    spec: &Spec,
    options: &DatasetOptions,
    names: &[String],
    sizes: Option<(usize, usize)>,
    train: &Half,
    test: &Half,
) -> Result<(), DatasetError> {
    if options.counts == Counts::Exact {
        if let Some((of_train, of_test)) = sizes {
            count(
                spec,
                &train.list,
                "images to train on",
                of_train,
                train.paths.len(),
            )?;
            count(
                spec,
                &test.list,
                "images to evaluate on",
                of_test,
                test.paths.len(),
            )?;
        }
        every_class(spec, names, &train.list, &train.labels)?;
    }
    let mut seen: HashMap<&str, &str> = HashMap::new();
    for half in [train, test] {
        for path in &half.paths {
            if let Some(first) = seen.insert(path, &half.list) {
                return Err(DatasetError::NamedTwice {
                    dataset: spec.key.clone(),
                    path: path.clone(),
                    first: first.to_owned(),
                    second: half.list.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Requires that all images that lists name are in `folders`.
pub(super) fn check_listed(
    spec: &Spec,
    store: &Store,
    folders: &[String],
    halves: &[&Half],
) -> Result<(), DatasetError> {
    let mut there = HashSet::new();
    for folder in folders {
        there.extend(store.files(folder)?);
    }
    for half in halves {
        let mut missing = half.paths.iter().filter(|p| !there.contains(*p));
        if let Some(first) = missing.next() {
            return Err(DatasetError::MissingImages {
                dataset: spec.key.clone(),
                list: half.list.clone(),
                missing: 1 + missing.count(),
                of: half.paths.len(),
                first: first.clone(),
            });
        }
    }
    Ok(())
}

pub(super) fn task(
    spec: &Spec,
    class_names: Vec<String>,
    store: &Store,
    train: Half,
    test: Half,
) -> Task {
    let half = |half: Half| LabelledImages {
        images: Arc::new(StoreImages::new(store.clone(), half.paths)),
        labels: half.labels,
    };
    Task {
        name: spec.key.clone(),
        class_names,
        templates: spec.templates.clone(),
        train: half(train),
        test: half(test),
    }
}

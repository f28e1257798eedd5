//! Record of what the tasks of a suite are learned from, kept while the suite grows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    CaptionedImages, GoneTask, ImageCaptions, Suite, Task, TaskKind,
    check::{hash_captions, hash_images, hash_number, hash_text},
};

/// Record of the data of a suite's tasks: names, classes and templates in full, images and labels
/// as digests.
///
/// ```no_run
/// use mtil_data::suite::{Suite, SuiteRecord};
///
/// let before = SuiteRecord::of(&Suite::load("autumn/suite.toml".as_ref())?);
/// let now = SuiteRecord::of(&Suite::load("spring/suite.toml".as_ref())?);
/// // Empty if tasks were only added behind the earlier ones.
/// assert!(before.differences(&now).is_empty());
/// # Ok::<(), mtil_data::suite::SuiteError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuiteRecord {
    /// Name of the suite.
    pub suite: String,
    /// SHA-256 of what the tasks share: reference and held-out pairs, texts, retrieval sets.
    pub shared: String,
    /// The tasks in training order.
    pub tasks: Vec<TaskRecord>,
}

/// Record of a task's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Name of the task.
    pub name: String,
    /// Class names in label order; empty for image-caption pairs.
    pub classes: Vec<String>,
    /// Prompt templates; empty for image-caption pairs.
    pub templates: Vec<String>,
    /// The labelled or captioned images of each split, and the reference pairs if the task has its
    /// own.
    pub images: BTreeMap<ImageSet, ImageSetRecord>,
}

/// A set of images of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSet {
    /// Training images.
    Training,
    /// Test images.
    Test,
    /// Reference pairs of the task.
    Reference,
}

/// Number and digest of images with labels or captions. The digest covers the
/// [identity](crate::data::ImageSource::identity) of an image, not its pixels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSetRecord {
    /// Number of images.
    pub count: usize,
    /// Number of captions of the images of a task of image-caption pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<usize>,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

impl SuiteRecord {
    /// Returns the record of `suite`.
    pub fn of(suite: &Suite) -> Self {
        let extras = &suite.extras;
        let mut shared = Sha256::new();
        for pairs in [&suite.reference, &suite.held_out] {
            hash_pairs(&mut shared, pairs);
        }
        hash_texts(&mut shared, &extras.texts);
        hash_number(&mut shared, extras.retrieval.len());
        for set in &extras.retrieval {
            hash_text(&mut shared, &set.name);
            hash_images(&mut shared, set.images.as_ref());
            hash_texts(&mut shared, &set.captions);
            set.image_of
                .iter()
                .for_each(|&i| hash_number(&mut shared, i));
        }
        hash_number(&mut shared, usize::from(extras.published_draws));
        let tasks = suite.tasks.iter();
        Self {
            suite: suite.name.clone(),
            shared: hexadecimal(shared),
            tasks: tasks
                .map(|task| {
                    let record = TaskRecord::of(task, extras.references.get(&task.name));
                    match extras.gone.get(&task.name) {
                        Some(gone) => record.with_gone_images(gone),
                        None => record,
                    }
                })
                .collect(),
        }
    }

    /// Compares with the same suite later, which may have further tasks behind these. Returns a
    /// line for each thing that has changed.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.suite != later.suite {
            found.push(change("suite", &self.suite, &later.suite));
        }
        if self.shared != later.shared {
            found.push(
                "reference pairs, texts or retrieval sets: others in the directory".to_owned(),
            );
        }
        for (index, task) in self.tasks.iter().enumerate() {
            let what = format!("task {}", index + 1);
            match later.tasks.get(index) {
                None => found.push(format!(
                    "{what}: `{}` in the directory, none now",
                    task.name
                )),
                Some(now) if now.name != task.name => {
                    found.push(change(&what, &task.name, &now.name));
                }
                Some(now) => task.add_differences(now, &mut found),
            }
        }
        found
    }

    /// Returns the names of the tasks that a later record has behind these.
    pub fn added<'a>(&self, later: &'a Self) -> impl Iterator<Item = &'a str> {
        let added = later.tasks.iter().skip(self.tasks.len());
        added.map(|task| task.name.as_str())
    }
}

impl TaskRecord {
    /// Returns the number of training images.
    pub fn training_images(&self) -> usize {
        let images = self.images.get(&ImageSet::Training);
        images.map_or(0, |images| images.count)
    }

    fn of(task: &Task, reference: Option<&CaptionedImages>) -> Self {
        let (mut classes, mut templates) = (Vec::new(), Vec::new());
        let [train, test] = match &task.kind {
            TaskKind::Classification(of) => {
                classes.clone_from(&of.class_names);
                templates.clone_from(&of.templates);
                [&of.train, &of.test].map(|split| {
                    let mut hash = Sha256::new();
                    hash_images(&mut hash, split.images.as_ref());
                    split.labels.iter().for_each(|&l| hash_number(&mut hash, l));
                    ImageSetRecord::new(split.images.len(), hash)
                })
            }
            TaskKind::Captions(pairs) => {
                [&pairs.train, &pairs.test].map(ImageSetRecord::of_captions)
            }
        };
        let splits = [(ImageSet::Training, train), (ImageSet::Test, test)];
        let reference = reference.map(|pairs| {
            let mut hash = Sha256::new();
            hash_pairs(&mut hash, pairs);
            let record = ImageSetRecord::new(pairs.images.len(), hash);
            (ImageSet::Reference, record)
        });
        Self {
            name: task.name.clone(),
            classes,
            templates,
            images: splits.into_iter().chain(reference).collect(),
        }
    }

    /// Returns the record with the images that are gone.
    fn with_gone_images(mut self, gone: &GoneTask) -> Self {
        let test = (!gone.has_test_images).then_some(ImageSet::Test);
        for set in [ImageSet::Training].into_iter().chain(test) {
            if let Some(images) = gone.record.images.get(&set) {
                self.images.insert(set, images.clone());
            }
        }
        self
    }

    /// Adds a line for each thing that has changed in the task of this name.
    fn add_differences(&self, now: &Self, found: &mut Vec<String>) {
        let texts = [
            ("class", "classes", &self.classes, &now.classes),
            ("template", "templates", &self.templates, &now.templates),
        ];
        for (one, all, before, now) in texts {
            let what = format!("task `{}`, ", self.name);
            if before.len() != now.len() {
                let (before, now) = (before.len().to_string(), now.len().to_string());
                found.push(change(&format!("{what}number of {all}"), &before, &now));
                continue;
            }
            let pairs = before.iter().zip(now).enumerate();
            for (index, (before, now)) in pairs.filter(|(_, (before, now))| before != now) {
                found.push(change(&format!("{what}{one} {}", index + 1), before, now));
            }
        }
        for set in [ImageSet::Training, ImageSet::Test, ImageSet::Reference] {
            let what = format!("task `{}`, {set}", self.name);
            match (self.images.get(&set), now.images.get(&set)) {
                (before, now) if before == now => {}
                (Some(before), Some(now)) if before.count == now.count => {
                    found.push(format!("{what}: others in the directory"));
                }
                (before, now) => {
                    let count = |record: Option<&ImageSetRecord>| {
                        record.map_or(0, |record| record.count).to_string()
                    };
                    found.push(change(&what, &count(before), &count(now)));
                }
            }
        }
    }
}

impl ImageSetRecord {
    fn new(count: usize, hash: Sha256) -> Self {
        Self {
            count,
            captions: None,
            sha256: hexadecimal(hash),
        }
    }

    fn of_captions(pairs: &ImageCaptions) -> Self {
        let mut hash = Sha256::new();
        hash_captions(&mut hash, pairs);
        Self {
            captions: Some(pairs.count()),
            ..Self::new(pairs.images.len(), hash)
        }
    }
}

impl std::fmt::Display for ImageSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Training => "training images",
            Self::Test => "test images",
            Self::Reference => "reference pairs",
        })
    }
}

fn change(what: &str, before: &str, now: &str) -> String {
    format!("{what}: `{before}` in the directory, `{now}` now")
}

fn hash_texts(hash: &mut Sha256, texts: &[String]) {
    hash_number(hash, texts.len());
    texts.iter().for_each(|text| hash_text(hash, text));
}

fn hash_pairs(hash: &mut Sha256, pairs: &CaptionedImages) {
    hash_images(hash, pairs.images.as_ref());
    hash_texts(hash, &pairs.captions);
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::check::tests::{captions, classes, drawn, small};

    fn record(change: impl FnOnce(&mut Suite)) -> SuiteRecord {
        let mut suite = small();
        change(&mut suite);
        SuiteRecord::of(&suite)
    }

    #[test]
    fn tasks_may_be_added_behind_the_earlier_ones() {
        let before = record(|_| ());
        let now = record(|suite| {
            let mut task = suite.tasks[0].clone();
            task.name = "shapes".to_owned();
            suite.tasks.push(task);
        });
        assert_eq!(before.differences(&before), [""; 0]);
        assert_eq!(before.differences(&now), [""; 0]);
        assert_eq!(before.added(&now).collect::<Vec<_>>(), ["shapes"]);
        assert_eq!(
            now.differences(&before),
            ["task 2: `shapes` in the directory, none now"]
        );
        let text = serde_json::to_string(&now).unwrap();
        assert_eq!(serde_json::from_str::<SuiteRecord>(&text).unwrap(), now);
    }

    #[test]
    fn each_change_of_an_earlier_task_is_named() {
        type Change = fn(&mut Suite);
        let changes: [(Change, &str); 9] = [
            (|s| s.name.push('x'), "suite: `small` in"),
            (
                |s| s.reference.captions[0].push('x'),
                "reference pairs, texts or retrieval sets: others in the directory",
            ),
            (
                |s| s.extras.texts.push("a text".into()),
                "reference pairs, texts or retrieval sets: others in the directory",
            ),
            (|s| s.tasks[0].name.push('x'), "task 1: `colours` in"),
            (
                |s| classes(s).class_names[1] = "blue".into(),
                "task `colours`, class 2: `dark green` in the directory, `blue` now",
            ),
            (
                |s| classes(s).templates.push("{}".into()),
                "task `colours`, number of templates: ",
            ),
            (
                |s| classes(s).train.labels[0] = 1,
                "task `colours`, training images: others in the directory",
            ),
            (
                |s| classes(s).test.images = drawn(3, 2),
                "task `colours`, test images: `2` in the directory, `3` now",
            ),
            (
                |s| {
                    let own = s.reference.clone();
                    s.extras.references.insert("colours".to_owned(), own);
                },
                "task `colours`, reference pairs: `0` in the directory, ",
            ),
        ];
        let before = record(|_| ());
        for (change, line) in changes {
            let found = before.differences(&record(change));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(line), "{found:?}");
        }
    }

    #[test]
    fn a_change_of_a_caption_is_a_change_of_its_split() {
        let of = |change: fn(&mut ImageCaptions)| {
            record(|suite| {
                let mut task = captions();
                if let TaskKind::Captions(pairs) = &mut task.kind {
                    change(&mut pairs.test);
                }
                suite.tasks.push(task);
            })
        };
        let before = of(|_| ());
        let test = &before.tasks[1].images[&ImageSet::Test];
        assert_eq!((test.count, test.captions), (2, Some(3)));
        assert!(before.tasks[1].classes.is_empty());
        let line = "task `scenes`, test images: others in the directory";
        let changed = of(|test| test.captions[0][1].push('x'));
        assert_eq!(before.differences(&changed), [line]);
        let fewer = of(|test| test.captions[0].truncate(1));
        assert_eq!(before.differences(&fewer), [line]);
        // The record of a classification is that of earlier versions.
        let text = serde_json::to_string(&before.tasks[0]).unwrap();
        assert!(!text.contains("captions"), "{text}");
    }
}

//! Validation of suites, and the fingerprint that a resumed run compares.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::{
    CaptionPairs, CaptionedImages, Classification, ImageCaptions, LabelledImages, Suite,
    SuiteError, SuiteWarning, Task, TaskKind,
};
use crate::data::{DataError, ImageSource, duplicate_name};

impl Suite {
    /// Checks the requirements of a run:
    ///
    /// - at least one task, and unique task names,
    /// - templates with exactly one `{}`,
    /// - at least two classes per classification task, whose names differ for the tokenizer (which
    ///   lower-cases),
    /// - images in both splits that are not [gone](super::Extras::gone), each with a label in range
    ///   or with captions; a task of image-caption pairs has at least two training images, the
    ///   negatives of each other,
    /// - reference and held-out pairs.
    ///
    /// # Errors
    /// The first [`SuiteError`] found.
    pub fn check(&self) -> Result<(), SuiteError> {
        if self.tasks.is_empty() {
            return Err(SuiteError::NoTask {
                suite: self.name.clone(),
            });
        }
        let mut names = HashSet::new();
        for task in &self.tasks {
            if task.name.trim().is_empty() {
                return Err(SuiteError::EmptyName {
                    what: "a task".into(),
                });
            }
            // On a case-insensitive file system, the files of such tasks would collide.
            if !names.insert(task.name.to_lowercase()) {
                return Err(SuiteError::DuplicateTask {
                    task: task.name.clone(),
                });
            }
            let gone = self.extras.gone.get(&task.name);
            let splits = [gone.is_none(), gone.is_none_or(|gone| gone.has_test_images)];
            check_task(task, splits)?;
        }
        check_pairs("reference set", &self.reference)?;
        for (task, pairs) in &self.extras.references {
            check_pairs(&format!("reference set of task `{task}`"), pairs)?;
        }
        check_pairs("held-out part of the reference set", &self.held_out)
    }

    /// Returns the warnings of the loader about these tasks and the reference set, and one for each
    /// task with a test image that is also a training image, by [identity](ImageSource::identity).
    ///
    /// It asks for the identity of every image, which may take a while.
    pub fn warnings(&self) -> Vec<SuiteWarning> {
        let loader = self.extras.warnings.iter().filter(|warning| {
            let mut tasks = self.tasks.iter();
            warning
                .task()
                .is_none_or(|name| tasks.any(|task| task.name == name))
        });
        let shared = self.tasks.iter().filter_map(shared_images);
        loader.cloned().chain(shared).collect()
    }

    /// Returns the SHA-256 of the suite's content in hexadecimal, which a resumed run compares.
    ///
    /// The hash covers names, class names, templates, labels, captions, and the
    /// [identity](ImageSource::identity) of each image. For files, the identity is the path
    /// relative to the dataset's folder and the size. Pixels are not read, so a change that keeps
    /// path and size is not detected. Moving the suite does not change the fingerprint.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash_text(&mut hash, &self.name);
        hash_number(&mut hash, self.tasks.len());
        for task in &self.tasks {
            hash_text(&mut hash, &task.name);
            match &task.kind {
                TaskKind::Classification(classes) => hash_classes(&mut hash, classes),
                TaskKind::Captions(pairs) => {
                    // A classification has classes, so it never begins like this.
                    hash_number(&mut hash, 0);
                    for split in [&pairs.train, &pairs.test] {
                        hash_captions(&mut hash, split);
                    }
                }
            }
        }
        for pairs in [&self.reference, &self.held_out] {
            hash_images(&mut hash, pairs.images.as_ref());
            pairs
                .captions
                .iter()
                .for_each(|text| hash_text(&mut hash, text));
        }
        // Absent extras are not hashed, so suites without them keep their fingerprint.
        let extras = &self.extras;
        if !extras.texts.is_empty() || !extras.retrieval.is_empty() || extras.published_draws {
            hash_number(&mut hash, extras.texts.len());
            extras
                .texts
                .iter()
                .for_each(|text| hash_text(&mut hash, text));
            for set in &extras.retrieval {
                hash_text(&mut hash, &set.name);
                hash_images(&mut hash, set.images.as_ref());
                set.captions
                    .iter()
                    .for_each(|text| hash_text(&mut hash, text));
                set.image_of.iter().for_each(|&i| hash_number(&mut hash, i));
            }
            hash_number(&mut hash, usize::from(extras.published_draws));
        }
        for (task, pairs) in &extras.references {
            hash_text(&mut hash, task);
            hash_images(&mut hash, pairs.images.as_ref());
            pairs
                .captions
                .iter()
                .for_each(|text| hash_text(&mut hash, text));
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

pub(super) fn hash_number(hash: &mut Sha256, n: usize) {
    hash.update((n as u64).to_le_bytes());
}

/// Hashes the length as well, so that different lists of texts have different hashes.
pub(super) fn hash_text(hash: &mut Sha256, text: &str) {
    hash_number(hash, text.len());
    hash.update(text.as_bytes());
}

pub(super) fn hash_images(hash: &mut Sha256, images: &dyn ImageSource) {
    hash_number(hash, images.len());
    (0..images.len()).for_each(|i| hash_text(hash, &images.identity(i)));
}

fn hash_classes(hash: &mut Sha256, classes: &Classification) {
    for list in [&classes.class_names, &classes.templates] {
        hash_number(hash, list.len());
        list.iter().for_each(|text| hash_text(hash, text));
    }
    for split in [&classes.train, &classes.test] {
        hash_images(hash, split.images.as_ref());
        split.labels.iter().for_each(|&l| hash_number(hash, l));
    }
}

/// Hashes images and all their captions.
pub(super) fn hash_captions(hash: &mut Sha256, pairs: &ImageCaptions) {
    hash_images(hash, pairs.images.as_ref());
    for captions in &pairs.captions {
        hash_number(hash, captions.len());
        captions.iter().for_each(|text| hash_text(hash, text));
    }
}

/// Returns a warning if test images of a task are also training images.
fn shared_images(task: &Task) -> Option<SuiteWarning> {
    let [train, test] = [task.training_images(), task.test_images()];
    let trained: HashSet<String> = (0..train.len()).map(|i| train.identity(i)).collect();
    let mut shared = (0..test.len()).filter(|&i| trained.contains(&test.identity(i)));
    let first = shared.next()?;
    Some(SuiteWarning::SharedImages {
        task: task.name.clone(),
        images: 1 + shared.count(),
        first: test.name(first),
    })
}

/// Checks a task. `splits` tells whether it has training and test images.
fn check_task(task: &Task, splits: [bool; 2]) -> Result<(), SuiteError> {
    match &task.kind {
        TaskKind::Classification(classes) => check_classes(task, classes, splits),
        TaskKind::Captions(pairs) => check_captions(task, pairs, splits),
    }
}

fn check_captions(task: &Task, pairs: &CaptionPairs, splits: [bool; 2]) -> Result<(), SuiteError> {
    let all = [("train", &pairs.train, 2), ("test", &pairs.test, 1)];
    let all = all.into_iter().zip(splits).filter(|(_, exists)| *exists);
    for ((split, pairs, least), _) in all {
        let wrong = |message| {
            Err(SuiteError::Labels {
                task: task.name.clone(),
                split,
                message,
            })
        };
        let n = pairs.images.len();
        if n < least {
            return wrong(format!("{n} images: it needs at least {least}"));
        }
        if pairs.captions.len() != n {
            return wrong(format!(
                "{n} images but captions of {}",
                pairs.captions.len()
            ));
        }
        let empty = |texts: &Vec<String>| {
            texts.is_empty() || texts.iter().any(|text| text.trim().is_empty())
        };
        if let Some(image) = pairs.captions.iter().position(empty) {
            return wrong(format!(
                "image {} has no caption, or an empty one",
                pairs.images.name(image)
            ));
        }
    }
    Ok(())
}

fn check_classes(
    task: &Task,
    classes: &Classification,
    splits: [bool; 2],
) -> Result<(), SuiteError> {
    let name = || task.name.clone();
    if classes.templates.is_empty() {
        return Err(SuiteError::NoTemplate { task: name() });
    }
    if let Some(template) = classes
        .templates
        .iter()
        .find(|t| t.matches("{}").count() != 1)
    {
        return Err(SuiteError::Template {
            task: name(),
            template: template.clone(),
        });
    }
    if classes.class_names.len() < 2 {
        return Err(SuiteError::TooFewClasses {
            task: name(),
            classes: classes.class_names.len(),
        });
    }
    if classes.class_names.iter().any(|c| c.trim().is_empty()) {
        return Err(SuiteError::EmptyName {
            what: format!("a class of task `{}`", task.name),
        });
    }
    if let Some((first, second)) = duplicate_name(classes.class_names.iter().map(String::as_str)) {
        return Err(SuiteError::Task {
            task: name(),
            source: DataError::DuplicateClass {
                first,
                second,
                path: None,
            },
        });
    }
    let count = classes.class_names.len();
    let all = [("train", &classes.train), ("test", &classes.test)];
    let mut all = all.into_iter().zip(splits).filter(|(_, exists)| *exists);
    all.try_for_each(|((split, images), _)| check_split(task, count, split, images))
}

fn check_split(
    task: &Task,
    classes: usize,
    split: &'static str,
    images: &LabelledImages,
) -> Result<(), SuiteError> {
    let name = || task.name.clone();
    let wrong = |message| {
        Err(SuiteError::Labels {
            task: name(),
            split,
            message,
        })
    };
    let (n, labels) = (images.images.len(), &images.labels);
    if n == 0 {
        return Err(SuiteError::EmptyHalf {
            task: name(),
            split,
        });
    }
    if labels.len() != n {
        return wrong(format!("{n} images but {} labels", labels.len()));
    }
    match labels.iter().position(|&l| l >= classes) {
        Some(i) => wrong(format!(
            "image {} has label {}, but there are {classes} classes",
            images.images.name(i),
            labels[i]
        )),
        None => Ok(()),
    }
}

fn check_pairs(set: &str, pairs: &CaptionedImages) -> Result<(), SuiteError> {
    let n = pairs.images.len();
    if n == 0 {
        return Err(SuiteError::EmptyReference {
            set: set.to_owned(),
        });
    }
    let set = || set.to_owned();
    if pairs.captions.len() != n {
        let message = format!("{n} images but {} captions", pairs.captions.len());
        return Err(SuiteError::Captions {
            set: set(),
            message,
        });
    }
    match pairs.captions.iter().position(|c| c.trim().is_empty()) {
        Some(i) => Err(SuiteError::Captions {
            set: set(),
            message: format!("the caption of image {} is empty", pairs.images.name(i)),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use image::DynamicImage;

    use super::*;
    use crate::datasets::store::{PixelLayout, RawImages};

    /// Images held in memory.
    pub(in super::super) struct Drawn(pub(in super::super) Vec<DynamicImage>);

    impl ImageSource for Drawn {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn name(&self, index: usize) -> String {
            format!("drawn {index}")
        }
        fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
            Ok(self.0[index].clone())
        }
    }

    pub(in super::super) fn drawn(n: usize, first: u8) -> Arc<dyn ImageSource> {
        let one = |i| image::RgbImage::from_pixel(3, 2, image::Rgb([first, i, 7])).into();
        Arc::new(Drawn((0..n as u8).map(one).collect()))
    }

    /// A valid suite with one task.
    pub(in super::super) fn small() -> Suite {
        let split = |first, labels: Vec<usize>| LabelledImages {
            images: drawn(labels.len(), first),
            labels,
        };
        let pairs = |first, captions: &[&str]| CaptionedImages {
            images: drawn(captions.len(), first),
            captions: captions.iter().map(|c| c.to_string()).collect(),
        };
        Suite {
            name: "small".into(),
            tasks: vec![Task {
                name: "colours".into(),
                kind: TaskKind::Classification(Classification {
                    class_names: vec!["red".into(), "dark green".into()],
                    templates: vec!["a {} thing.".into()],
                    train: split(1, vec![0, 1, 0]),
                    test: split(2, vec![1, 0]),
                }),
            }],
            reference: pairs(3, &["one", "two, \"quoted\"", "three"]),
            held_out: pairs(4, &["four"]),
            extras: Default::default(),
        }
    }

    /// The classes of the first task.
    pub(in super::super) fn classes(suite: &mut Suite) -> &mut Classification {
        suite.tasks[0].classification_mut().unwrap()
    }

    /// A valid task of image-caption pairs; the first image has two captions.
    pub(in super::super) fn captions() -> Task {
        let pairs = |first, captions: &[&[&str]]| ImageCaptions {
            images: drawn(captions.len(), first),
            captions: captions
                .iter()
                .map(|all| all.iter().map(|text| text.to_string()).collect())
                .collect(),
        };
        Task {
            name: "scenes".into(),
            kind: TaskKind::Captions(CaptionPairs {
                train: pairs(
                    5,
                    &[
                        &["a lake", "still, \"blue\" water"],
                        &["a hill"],
                        &["a dune"],
                    ],
                ),
                test: pairs(6, &[&["a river", "a stream"], &["a plain"]]),
            }),
        }
    }

    /// The pairs of the last task.
    fn pairs(suite: &mut Suite) -> &mut CaptionPairs {
        match &mut suite.tasks.last_mut().unwrap().kind {
            TaskKind::Captions(pairs) => pairs,
            TaskKind::Classification(_) => panic!("a task of pairs"),
        }
    }

    fn broken(change: impl FnOnce(&mut Suite)) -> String {
        let mut suite = small();
        change(&mut suite);
        suite.check().unwrap_err().to_string()
    }

    #[test]
    fn each_requirement_is_checked() {
        small().check().unwrap();
        assert!(broken(|s| s.tasks.clear()).contains("no task"));
        assert!(broken(|s| s.tasks.push(s.tasks[0].clone())).contains("named `colours`"));
        assert!(broken(|s| s.tasks[0].name = " ".into()).contains("empty"));
        assert!(broken(|s| classes(s).templates.clear()).contains("no template"));
        assert!(broken(|s| classes(s).templates[0] = "x".into()).contains("exactly once"));
        assert!(broken(|s| classes(s).class_names.truncate(1)).contains("at least 2"));
        assert!(broken(|s| classes(s).class_names[1] = "".into()).contains("empty"));
        assert!(broken(|s| classes(s).class_names[1] = "Red".into()).contains("duplicate"));
        // One accent is a character of its own, and lower-casing comes first.
        let accents = |s: &mut Suite| {
            classes(s).class_names = ["caf\u{e9}", "Cafe\u{301}"].map(str::to_owned).to_vec();
        };
        assert!(broken(accents).contains("`caf\u{e9}` and `Cafe\u{301}`"));
        let accents = |s: &mut Suite| {
            classes(s).class_names = ["caf\u{e9}", "cafe\u{301}"].map(str::to_owned).to_vec();
        };
        assert!(broken(accents).contains("`caf\u{e9}` and `cafe\\u{301}`"));
        assert!(broken(|s| classes(s).test.images = drawn(0, 0)).contains("no image in its test"));
        assert!(broken(|s| classes(s).train.labels.truncate(1)).contains("3 images but 1 labels"));
        assert!(broken(|s| classes(s).train.labels[2] = 2).contains("drawn 2 has label 2"));
        assert!(broken(|s| s.reference.images = drawn(0, 0)).contains("reference set is empty"));
        assert!(broken(|s| s.held_out.images = drawn(0, 0)).contains("held-out"));
        assert!(broken(|s| s.reference.captions.truncate(1)).contains("1 captions"));
        assert!(broken(|s| s.reference.captions[1] = "".into()).contains("drawn 1 is empty"));
    }

    #[test]
    fn each_requirement_of_image_caption_pairs_is_checked() {
        let broken = |change: fn(&mut CaptionPairs)| {
            broken(|suite| {
                suite.tasks.push(captions());
                change(pairs(suite));
            })
        };
        let mut suite = small();
        suite.tasks.push(captions());
        suite.check().unwrap();
        assert!(broken(|p| p.train = p.train.subset(vec![0])).contains("at least 2"));
        assert!(broken(|p| p.test = p.test.subset(vec![])).contains("`scenes`, test split: 0"));
        assert!(broken(|p| p.train.captions.truncate(1)).contains("3 images but captions of 1"));
        assert!(broken(|p| p.test.captions[1].clear()).contains("drawn 1 has no caption"));
        assert!(broken(|p| p.test.captions[0][1] = " ".into()).contains("drawn 0 has no"));
    }

    #[test]
    fn captions_are_part_of_the_fingerprint() {
        let of = |change: fn(&mut CaptionPairs)| {
            let mut suite = small();
            suite.tasks.push(captions());
            change(pairs(&mut suite));
            suite.fingerprint()
        };
        let changes: [fn(&mut CaptionPairs); 5] = [
            |_| (),
            |p| p.train.captions[0][1].push('x'),
            |p| p.train.captions[0].truncate(1),
            |p| p.test.captions.swap(0, 1),
            |p| p.test.images = drawn(3, 6),
        ];
        let all: HashSet<String> = changes.map(of).into();
        assert_eq!(all.len(), changes.len());
    }

    #[test]
    fn a_test_image_that_is_also_a_training_image_is_a_warning() {
        let images = |pixels| {
            let images = RawImages::new("set", pixels, 1, 1, PixelLayout::Grey);
            images.unwrap()
        };
        let all = images(vec![0_u8; 5]);
        let mut suite = small();
        classes(&mut suite).train.images = Arc::new(all.slice(0..3));
        classes(&mut suite).test.images = Arc::new(all.slice(3..5));
        assert_eq!(suite.warnings(), []);
        classes(&mut suite).test.images = Arc::new(all.slice(2..4));
        let warning = SuiteWarning::SharedImages {
            task: "colours".into(),
            images: 1,
            first: "set #2".into(),
        };
        let text = warning.to_string();
        assert!(
            text.starts_with("task `colours`: ") && text.ends_with("1, the first is set #2"),
            "{text}"
        );
        assert_eq!(suite.warnings(), [warning]);
        suite.check().unwrap();
    }

    #[test]
    fn different_suites_have_different_fingerprints() {
        let original = small().fingerprint();
        assert_eq!(original.len(), 64);
        assert_eq!(original, small().fingerprint());
        let changes: [fn(&mut Suite); 8] = [
            |s| s.extras.texts.push("a text".into()),
            |s| s.extras.published_draws = true,
            |s| s.name.push('x'),
            |s| classes(s).class_names.swap(0, 1),
            |s| classes(s).templates.push("{}".into()),
            |s| classes(s).train.labels[0] = 1,
            |s| classes(s).test.images = drawn(3, 2),
            |s| s.reference.captions[0].push('x'),
        ];
        for change in changes {
            let mut suite = small();
            change(&mut suite);
            assert_ne!(suite.fingerprint(), original);
        }
    }
}

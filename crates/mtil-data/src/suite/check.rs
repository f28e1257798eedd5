//! Validation of suites, and the fingerprint that a resumed run compares.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::{CaptionedImages, LabelledImages, Suite, SuiteError, SuiteWarning, Task};
use crate::data::{DataError, ImageSource, duplicate_name};

impl Suite {
    /// Checks the requirements of a run:
    ///
    /// - at least one task, and unique task names,
    /// - templates with exactly one `{}`,
    /// - at least two classes per task, whose names differ for the tokenizer (which lower-cases),
    /// - images in both splits that are not [gone](super::Extras::gone), each with a label in range,
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
            check_task(task)?;
            if gone.is_none() {
                check_split(task, "train", &task.train)?;
            }
            if gone.is_none_or(|gone| gone.has_test_images) {
                check_split(task, "test", &task.test)?;
            }
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
            for list in [&task.class_names, &task.templates] {
                hash_number(&mut hash, list.len());
                list.iter().for_each(|text| hash_text(&mut hash, text));
            }
            for split in [&task.train, &task.test] {
                hash_images(&mut hash, split.images.as_ref());
                split.labels.iter().for_each(|&l| hash_number(&mut hash, l));
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

/// Returns a warning if test images of a task are also training images.
fn shared_images(task: &Task) -> Option<SuiteWarning> {
    let [train, test] = [&task.train.images, &task.test.images];
    let trained: HashSet<String> = (0..train.len()).map(|i| train.identity(i)).collect();
    let mut shared = (0..test.len()).filter(|&i| trained.contains(&test.identity(i)));
    let first = shared.next()?;
    Some(SuiteWarning::SharedImages {
        task: task.name.clone(),
        images: 1 + shared.count(),
        first: test.name(first),
    })
}

fn check_task(task: &Task) -> Result<(), SuiteError> {
    let name = || task.name.clone();
    if task.templates.is_empty() {
        return Err(SuiteError::NoTemplate { task: name() });
    }
    if let Some(template) = task.templates.iter().find(|t| t.matches("{}").count() != 1) {
        return Err(SuiteError::Template {
            task: name(),
            template: template.clone(),
        });
    }
    if task.class_names.len() < 2 {
        return Err(SuiteError::TooFewClasses {
            task: name(),
            classes: task.class_names.len(),
        });
    }
    if task.class_names.iter().any(|c| c.trim().is_empty()) {
        return Err(SuiteError::EmptyName {
            what: format!("a class of task `{}`", task.name),
        });
    }
    if let Some((first, second)) = duplicate_name(task.class_names.iter().map(String::as_str)) {
        return Err(SuiteError::Task {
            task: name(),
            source: DataError::DuplicateClass {
                first,
                second,
                path: None,
            },
        });
    }
    Ok(())
}

fn check_split(
    task: &Task,
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
    let (n, labels, classes) = (images.images.len(), &images.labels, task.class_names.len());
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
                class_names: vec!["red".into(), "dark green".into()],
                templates: vec!["a {} thing.".into()],
                train: split(1, vec![0, 1, 0]),
                test: split(2, vec![1, 0]),
            }],
            reference: pairs(3, &["one", "two, \"quoted\"", "three"]),
            held_out: pairs(4, &["four"]),
            extras: Default::default(),
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
        assert!(broken(|s| s.tasks[0].templates.clear()).contains("no template"));
        assert!(broken(|s| s.tasks[0].templates[0] = "x".into()).contains("exactly once"));
        assert!(broken(|s| s.tasks[0].class_names.truncate(1)).contains("at least 2"));
        assert!(broken(|s| s.tasks[0].class_names[1] = "".into()).contains("empty"));
        assert!(broken(|s| s.tasks[0].class_names[1] = "Red".into()).contains("duplicate"));
        // One accent is a character of its own, and lower-casing comes first.
        let accents = |s: &mut Suite| {
            s.tasks[0].class_names = ["caf\u{e9}", "Cafe\u{301}"].map(str::to_owned).to_vec();
        };
        assert!(broken(accents).contains("`caf\u{e9}` and `Cafe\u{301}`"));
        let accents = |s: &mut Suite| {
            s.tasks[0].class_names = ["caf\u{e9}", "cafe\u{301}"].map(str::to_owned).to_vec();
        };
        assert!(broken(accents).contains("`caf\u{e9}` and `cafe\\u{301}`"));
        assert!(broken(|s| s.tasks[0].test.images = drawn(0, 0)).contains("no image in its test"));
        assert!(broken(|s| s.tasks[0].train.labels.truncate(1)).contains("3 images but 1 labels"));
        assert!(broken(|s| s.tasks[0].train.labels[2] = 2).contains("drawn 2 has label 2"));
        assert!(broken(|s| s.reference.images = drawn(0, 0)).contains("reference set is empty"));
        assert!(broken(|s| s.held_out.images = drawn(0, 0)).contains("held-out"));
        assert!(broken(|s| s.reference.captions.truncate(1)).contains("1 captions"));
        assert!(broken(|s| s.reference.captions[1] = "".into()).contains("drawn 1 is empty"));
    }

    #[test]
    fn a_test_image_that_is_also_a_training_image_is_a_warning() {
        let images = |pixels| {
            let images = RawImages::new("set", pixels, 1, 1, PixelLayout::Grey);
            images.unwrap()
        };
        let all = images(vec![0_u8; 5]);
        let mut suite = small();
        suite.tasks[0].train.images = Arc::new(all.slice(0..3));
        suite.tasks[0].test.images = Arc::new(all.slice(3..5));
        assert_eq!(suite.warnings(), []);
        suite.tasks[0].test.images = Arc::new(all.slice(2..4));
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
            |s| s.tasks[0].class_names.swap(0, 1),
            |s| s.tasks[0].templates.push("{}".into()),
            |s| s.tasks[0].train.labels[0] = 1,
            |s| s.tasks[0].test.images = drawn(3, 2),
            |s| s.reference.captions[0].push('x'),
        ];
        for change in changes {
            let mut suite = small();
            change(&mut suite);
            assert_ne!(suite.fingerprint(), original);
        }
    }
}

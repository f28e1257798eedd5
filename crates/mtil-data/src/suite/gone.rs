//! Tasks whose training images are gone: what they were learned from is known from a record.

use std::{path::Path, sync::Arc};

use super::{
    CaptionPairs, Classification, ImageCaptions, LabelledImages, Suite, SuiteRecord, TaskKind,
    TaskRecord,
};
use crate::data::{DataError, FolderOptions, NoImages, Remains, test_images};

/// A task that was learned from images that are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoneTask {
    /// Record of its data.
    pub record: TaskRecord,
    /// True if its test images are left.
    pub has_test_images: bool,
}

impl Suite {
    /// Returns the names of the tasks whose training images are gone, in order.
    pub fn gone_tasks(&self) -> impl Iterator<Item = &str> {
        let names = self.tasks.iter().map(|task| task.name.as_str());
        names.filter(|name| self.extras.gone.contains_key(*name))
    }
}

/// Returns the record of the task `name` in the first of `learned` that is of the suite and has it.
pub(super) fn record_of<'a>(
    learned: &'a [SuiteRecord],
    suite: &str,
    name: &str,
) -> Option<&'a TaskRecord> {
    let records = learned.iter().filter(|record| record.suite == suite);
    records
        .flat_map(|record| &record.tasks)
        .find(|task| task.name == name)
}

/// Returns a classification with the classes of `record`, unless `options` has some, and with the
/// test images that are left in `path`.
///
/// # Errors
/// [`DataError`] of test images that do not fit the classes.
pub(super) fn classes(
    path: Option<&Path>,
    options: &FolderOptions,
    templates: Vec<String>,
    record: &TaskRecord,
) -> Result<(TaskKind, GoneTask), DataError> {
    let classes = options.classes.as_ref().unwrap_or(&record.classes);
    let left = path.map_or(Ok(Remains::Nothing), Remains::without_training)?;
    let test = match (path, left) {
        (Some(path), Remains::Test(test)) => {
            let (images, labels) = test_images(path, &test, classes, options)?;
            LabelledImages { images, labels }
        }
        _ => no_images(),
    };
    let gone = GoneTask {
        record: record.clone(),
        has_test_images: !test.labels.is_empty(),
    };
    let kind = TaskKind::Classification(Classification {
        class_names: classes.clone(),
        templates,
        train: no_images(),
        test,
    });
    Ok((kind, gone))
}

/// Returns image-caption pairs of which only those for the evaluation may be left.
pub(super) fn captions(test: Option<ImageCaptions>, record: &TaskRecord) -> (TaskKind, GoneTask) {
    let nothing = || ImageCaptions {
        images: Arc::new(NoImages),
        captions: Vec::new(),
    };
    let gone = GoneTask {
        record: record.clone(),
        has_test_images: test.is_some(),
    };
    let kind = TaskKind::Captions(CaptionPairs {
        train: nothing(),
        test: test.unwrap_or_else(nothing),
    });
    (kind, gone)
}

fn no_images() -> LabelledImages {
    LabelledImages {
        images: Arc::new(NoImages),
        labels: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::{REFERENCE, suite_folder, task};
    use super::super::{LoadOptions, SuiteError};
    use super::*;

    fn load(folder: &Path, learned: &[SuiteRecord]) -> Result<Suite, SuiteError> {
        let options = LoadOptions {
            learned: &|_| learned.to_vec(),
            ..LoadOptions::default()
        };
        Suite::load_from(&folder.join("my.toml"), &options)
    }

    fn error(folder: &Path, learned: &[SuiteRecord]) -> String {
        let error = load(folder, learned).err().expect("the images are needed");
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    }

    #[test]
    fn a_learned_task_needs_no_images() {
        let dir = suite_folder(&format!("name = 'x'\n{}{REFERENCE}", task("")));
        let whole = load(dir.path(), &[]).unwrap();
        let record = SuiteRecord::of(&whole);
        assert_eq!(whole.gone_tasks().count(), 0);
        std::fs::remove_dir_all(dir.path().join("shoes")).unwrap();
        assert!(error(dir.path(), &[]).contains("no folder"));
        let suite = load(dir.path(), std::slice::from_ref(&record)).unwrap();
        assert_eq!(suite.gone_tasks().collect::<Vec<_>>(), ["shoes"]);
        let classes = suite.tasks[0].classification().unwrap();
        assert_eq!(classes.class_names, ["flip flop", "sneaker"]);
        assert!(classes.test.labels.is_empty());
        suite.check().unwrap();
        assert_eq!(SuiteRecord::of(&suite), record);
        // A record of another suite, or of other tasks, does not help.
        let mut other = record.clone();
        other.suite = "y".into();
        assert!(error(dir.path(), &[other]).contains("no folder"));
        let mut other = record;
        other.tasks[0].name = "boots".into();
        assert!(error(dir.path(), &[other]).contains("no folder"));
    }

    #[test]
    fn images_may_be_given_up_by_name() {
        let dir = suite_folder(&format!("name = 'x'\n{}{REFERENCE}", task("")));
        let record = SuiteRecord::of(&load(dir.path(), &[]).unwrap());
        let without_path = "[[task]]\nname = 'shoes'\nimages = 'gone'\n";
        for gone in [task("images = 'gone'"), without_path.to_owned()] {
            let toml = format!("name = 'x'\n{gone}{REFERENCE}");
            std::fs::write(dir.path().join("my.toml"), toml).unwrap();
            let suite = load(dir.path(), std::slice::from_ref(&record)).unwrap();
            assert_eq!(suite.gone_tasks().count(), 1);
            assert_eq!(SuiteRecord::of(&suite), record);
            let message = error(dir.path(), &[]);
            assert!(message.contains("no run has learned"), "{message}");
        }
        let toml = format!("name = 'x'\n[[task]]\nname = 'shoes'\n{REFERENCE}");
        std::fs::write(dir.path().join("my.toml"), toml).unwrap();
        let message = error(dir.path(), &[]);
        assert!(
            message.contains("task `shoes`") && message.contains("path"),
            "{message}"
        );
    }

    #[test]
    fn changes_of_a_task_without_images_are_found() {
        let dir = suite_folder(&format!("name = 'x'\n{}{REFERENCE}", task("")));
        let record = SuiteRecord::of(&load(dir.path(), &[]).unwrap());
        std::fs::remove_dir_all(dir.path().join("shoes")).unwrap();
        for (keys, change) in [
            ("classes = ['flip flop', 'trainer']", "class 2"),
            ("templates = ['{}']", "template 1"),
        ] {
            let toml = format!("name = 'x'\n{}{REFERENCE}", task(keys));
            std::fs::write(dir.path().join("my.toml"), toml).unwrap();
            let suite = load(dir.path(), std::slice::from_ref(&record)).unwrap();
            let differences = record.differences(&SuiteRecord::of(&suite));
            assert!(differences[0].contains(change), "{differences:?}");
        }
    }

    #[test]
    fn test_images_that_are_left_are_used() {
        let dir = suite_folder(&format!("name = 'x'\n{}{REFERENCE}", task("")));
        let shoes = dir.path().join("shoes");
        for split in ["train", "test"] {
            for class in ["sneaker", "flip_flop"] {
                let folder = shoes.join(split).join(class);
                std::fs::create_dir_all(&folder).unwrap();
                let from = shoes
                    .join(class)
                    .join(if split == "train" { "0.png" } else { "1.png" });
                std::fs::copy(from, folder.join("a.png")).unwrap();
            }
        }
        for class in ["sneaker", "flip_flop"] {
            std::fs::remove_dir_all(shoes.join(class)).unwrap();
        }
        let whole = load(dir.path(), &[]).unwrap();
        let record = SuiteRecord::of(&whole);
        std::fs::remove_dir_all(shoes.join("train")).unwrap();
        let suite = load(dir.path(), std::slice::from_ref(&record)).unwrap();
        let gone = &suite.extras.gone["shoes"];
        assert!(gone.has_test_images);
        let labels = |suite: &Suite| suite.tasks[0].classification().unwrap().test.labels.clone();
        assert_eq!(labels(&suite), labels(&whole));
        assert_eq!(SuiteRecord::of(&suite), record);
        // Other test images are a change.
        std::fs::remove_file(shoes.join("test/sneaker/a.png")).unwrap();
        std::fs::write(shoes.join("test/sneaker/b.png"), b"another").unwrap();
        let suite = load(dir.path(), std::slice::from_ref(&record)).unwrap();
        let differences = record.differences(&SuiteRecord::of(&suite));
        assert!(differences[0].contains("test images"), "{differences:?}");
    }
}

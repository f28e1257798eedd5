//! What each dataset is, from the files in `datasets/mtil`, which are part of the binary.

use std::sync::LazyLock;

use serde::Deserialize;

use super::{error::DatasetError, store::Archive};
use crate::nearest;

macro_rules! specs {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../../datasets/mtil/", $name, ".toml")))),*]
    };
}

/// The files, in the order in which datasets are listed.
const FILES: [(&str, &str); 16] = specs![
    "aircraft",
    "caltech101",
    "cifar100",
    "dtd",
    "eurosat",
    "flowers",
    "food",
    "mnist",
    "oxfordpet",
    "stanfordcars",
    "sun397",
    "cifar10",
    "imagenet",
    "coco",
    "flickr30k",
    "conceptualcaptions",
];

/// A dataset: where it lies, what it must hold, and how its classes are put into words.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The name of its task.
    pub key: String,
    /// Its full name.
    pub title: String,
    /// Terms of use as published.
    pub terms: String,
    /// Its files, below one of `bases`.
    pub layout: String,
    /// Which images are trained and which evaluated on.
    pub split: String,
    /// Where to get it.
    pub get: Vec<String>,
    /// Folders below the data root that its files may be in: torchvision's first, then others that
    /// are in use. The first that holds it is taken.
    pub bases: Vec<String>,
    /// A file that a base must hold; any file will do where there is none.
    pub marker: Option<String>,
    /// Images to train on in the published release.
    #[serde(default)]
    pub train: usize,
    /// Images to evaluate on in the published release.
    #[serde(default)]
    pub test: usize,
    /// Prompt templates with a `{}` for the class name, in the published order.
    #[serde(default)]
    pub templates: Vec<String>,
    /// Class names in label order, as they stand in prompts.
    #[serde(default)]
    pub classes: Vec<String>,
    /// Class names in label order as the dataset's files or folders have them, where they differ.
    #[serde(default)]
    raw: Vec<String>,
    /// ImageNet: the first WordNet lemma of each class, which GNSP's captions use.
    #[serde(default)]
    pub lemmas: Vec<String>,
    #[serde(default)]
    archive: Vec<ArchiveSpec>,
    /// CoOp's split.
    pub coop: Option<CoopSpec>,
}

/// CoOp's split of a dataset.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoopSpec {
    /// Where its file may lie below the data root.
    pub files: Vec<String>,
    /// Folders below the data root that its paths may be relative to.
    pub images: Vec<String>,
    /// Number of training images.
    pub train: usize,
    /// Number of validation images, which are not used.
    pub val: usize,
    /// Number of test images.
    pub test: usize,
    /// Number of classes.
    pub classes: usize,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArchiveSpec {
    file: String,
    mount: String,
    inner: Option<String>,
}

static SPECS: LazyLock<Vec<Spec>> = LazyLock::new(|| {
    let parse = |(name, text): &(&str, &str)| {
        toml::from_str(text).unwrap_or_else(|error| panic!("embedded {name}.toml: {error}"))
    };
    FILES.iter().map(parse).collect()
});

impl Spec {
    /// All datasets: the eleven of MTIL in alphabetical order, then CIFAR10 and ImageNet, then the
    /// caption sets.
    pub fn all() -> &'static [Spec] {
        &SPECS
    }

    /// The dataset `key`.
    ///
    /// # Errors
    /// [`DatasetError::UnknownDataset`], with the most similar key.
    pub fn find(key: &str) -> Result<&'static Spec, DatasetError> {
        let keys = || Self::all().iter().map(|s| s.key.as_str());
        Self::all()
            .iter()
            .find(|s| s.key == key)
            .ok_or_else(|| DatasetError::UnknownDataset {
                key: key.to_owned(),
                near: nearest(key, keys()),
                known: keys().map(str::to_owned).collect(),
            })
    }

    /// Class names in label order as the dataset's own files or folders have them.
    pub fn raw_classes(&self) -> &[String] {
        if self.raw.is_empty() {
            &self.classes
        } else {
            &self.raw
        }
    }

    /// Whether it is a classification task, not a set of captions.
    pub fn is_task(&self) -> bool {
        !self.classes.is_empty()
    }

    /// The archives that may stand in place of its folders.
    pub fn archives(&self) -> Vec<Archive> {
        let archive = |a: &ArchiveSpec| Archive {
            file: a.file.clone(),
            mount: a.mount.clone(),
            inner: a.inner.clone(),
        };
        self.archive.iter().map(archive).collect()
    }

    /// What is looked for below the data root: folders, then archives.
    pub fn looked_for(&self) -> Vec<String> {
        let base = |b: &String| match &self.marker {
            Some(marker) => join(b, marker),
            None => format!("{b}/"),
        };
        let mut all: Vec<String> = self.bases.iter().map(base).collect();
        for archive in &self.archive {
            if !all.contains(&archive.file) {
                all.push(archive.file.clone());
            }
        }
        all
    }

    /// The error that says that it is not below `root`.
    pub(super) fn not_found(&self, root: &std::path::Path) -> DatasetError {
        DatasetError::NotFound {
            dataset: self.key.clone(),
            root: root.to_owned(),
            looked_for: self.looked_for(),
            get: self.where_from(),
        }
    }

    pub(super) fn where_from(&self) -> String {
        self.get.join(" and ")
    }
}

/// `folder/name`, or `name` for the empty folder.
pub(super) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::data::duplicate_name;

    #[test]
    fn every_file_is_whole() {
        let keys: HashSet<_> = Spec::all().iter().map(|s| s.key.to_lowercase()).collect();
        assert_eq!(keys.len(), FILES.len());
        for (spec, (name, _)) in Spec::all().iter().zip(FILES) {
            assert_eq!(spec.key.to_lowercase(), name);
            assert!(!spec.bases.is_empty() && !spec.get.is_empty(), "{name}");
            assert_eq!(spec.raw_classes().len(), spec.classes.len(), "{name}");
            if spec.is_task() {
                assert!(spec.train > 0 && spec.test > 0, "{name}");
                let placeholders = |t: &String| t.matches("{}").count();
                assert!(
                    spec.templates.iter().all(|t| placeholders(t) == 1),
                    "{name}"
                );
                let raw: HashSet<_> = spec.raw_classes().iter().collect();
                assert_eq!(raw.len(), spec.classes.len(), "{name}");
            }
        }
    }

    #[test]
    fn mtil_has_its_published_size() {
        let mtil = &Spec::all()[..11];
        let sum = |of: fn(&Spec) -> usize| mtil.iter().map(of).sum::<usize>();
        assert_eq!(sum(|s| s.classes.len()), 1201);
        assert_eq!(sum(|s| s.test), 97_209);
        assert_eq!(sum(|s| s.classes.len() * s.templates.len()), 8648);
        for spec in mtil {
            assert_eq!(
                duplicate_name(spec.classes.iter().map(String::as_str)),
                None
            );
        }
    }

    #[test]
    fn a_misspelt_key_gets_a_proposal() {
        assert_eq!(Spec::find("Food").unwrap().classes.len(), 101);
        let message = Spec::find("Foods").unwrap_err().to_string();
        assert!(message.contains("did you mean `Food`?"), "{message}");
    }
}

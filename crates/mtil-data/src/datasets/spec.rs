//! Dataset specifications, embedded from the files in `datasets/`.

use std::sync::LazyLock;

use serde::Deserialize;

use super::{error::DatasetError, store::Archive};
use crate::nearest;

macro_rules! specs {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../datasets/", $name, ".toml")))),*]
    };
}

/// Names and content of the embedded files, in the order of [`Spec::all`].
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

/// Specification of a dataset: location, sizes, class names and prompt templates.
///
/// ```
/// use mtil_data::datasets::Spec;
///
/// let food = Spec::find("Food")?;
/// assert!(food.is_task());
/// assert_eq!(food.classes.len(), 101);
/// # Ok::<(), mtil_data::datasets::DatasetError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Key of the dataset, and name of its task.
    pub key: String,
    /// Full name.
    pub title: String,
    /// Terms of use as published.
    pub terms: String,
    /// Description of its files, relative to one of `bases`.
    pub layout: String,
    /// Description of the train/test split.
    pub split: String,
    /// Download locations.
    pub get: Vec<String>,
    /// Candidate folders in the data root: torchvision's first, then others in common use. The
    /// first that contains the dataset is taken.
    pub bases: Vec<String>,
    /// A file that the folder must contain. If `None`, any file suffices.
    pub marker: Option<String>,
    /// Number of training images in the published release.
    #[serde(default)]
    pub train: usize,
    /// Number of test images in the published release.
    #[serde(default)]
    pub test: usize,
    /// Prompt templates with a `{}` for the class name, in the published order.
    #[serde(default)]
    pub templates: Vec<String>,
    /// Class names for prompts, in label order.
    #[serde(default)]
    pub classes: Vec<String>,
    /// Class names in the dataset's files or folders, in label order, if they differ from
    /// `classes`.
    #[serde(default)]
    raw: Vec<String>,
    /// The first WordNet lemma of each ImageNet class, used in GNSP's captions.
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
    /// Candidate paths of its file, relative to the data root.
    pub files: Vec<String>,
    /// Candidate folders in the data root that its image paths are relative to.
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
    /// Returns all datasets: the eleven of MTIL in alphabetical order, CIFAR10, ImageNet, and the
    /// caption datasets.
    pub fn all() -> &'static [Spec] {
        &SPECS
    }

    /// Returns the dataset `key`.
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

    /// Returns the class names in the dataset's own files or folders, in label order.
    pub fn raw_classes(&self) -> &[String] {
        if self.raw.is_empty() {
            &self.classes
        } else {
            &self.raw
        }
    }

    /// Returns true for a classification dataset, false for a caption dataset.
    pub fn is_task(&self) -> bool {
        !self.classes.is_empty()
    }

    /// Returns the archives that can replace its folders.
    pub fn archives(&self) -> Vec<Archive> {
        let archive = |a: &ArchiveSpec| Archive {
            file: a.file.clone(),
            mount: a.mount.clone(),
            inner: a.inner.clone(),
        };
        self.archive.iter().map(archive).collect()
    }

    /// Returns the paths that are looked for in the data root: folders, then archives.
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

    /// Returns the error for a dataset that is not in `root`.
    pub(super) fn not_found(&self, root: &std::path::Path) -> DatasetError {
        DatasetError::NotFound {
            dataset: self.key.clone(),
            root: root.to_owned(),
            looked_for: self.looked_for(),
            get: self.download_location(),
        }
    }

    pub(super) fn download_location(&self) -> String {
        self.get.join(" and ")
    }
}

/// Joins `folder` and `name` by `/`. Returns `name` if the folder is empty.
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

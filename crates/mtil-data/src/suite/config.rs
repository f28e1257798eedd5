//! Suite files: user-defined tasks as TOML, next to folders of images.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clip_model::preprocess::DecodeOptions;
use serde::{Deserialize, Serialize};

use super::{
    CaptionPairs, CaptionedImages, Classification, Extras, ImageCaptions, LabelledImages, Suite,
    SuiteError, SuiteRecord, SuiteWarning, Task, TaskKind, TaskRecord,
    gone::{self, GoneTask},
};
use crate::{
    data::{Article, CaptionFolder, DataError, FolderOptions, FolderWarning, ImageFolder, Remains},
    nearest,
};

/// Name of the suite file in the folder of a suite.
pub(super) const SUITE_FILE: &str = "suite.toml";

/// An example suite file, whose comments explain every key.
pub const EXAMPLE: &str = include_str!("../../example-suite.toml");

/// A suite file. [`EXAMPLE`] explains every key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SuiteConfig {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) split_seed: u64,
    #[serde(default)]
    pub(super) task: Vec<TaskConfig>,
    /// Absence has an error of its own, unless there are other pairs.
    pub(super) reference: Option<ReferenceConfig>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskConfig {
    pub(super) name: String,
    /// Required unless the images are gone; absence has an error of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) images: Option<ImagesConfig>,
    /// The table of image-caption pairs in `path`, in place of class folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) captions: Option<String>,
    /// The table of the pairs for the evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) test_captions: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) templates: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) classes: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) test_fraction: Option<f64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) class_names: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ImagesConfig {
    /// The training images are not there any more, or not to be used.
    Gone,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReferenceConfig {
    pub(super) path: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) captions: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) template: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) article: Option<ArticleConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) held_out: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) held_out_fraction: Option<f64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) class_names: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ArticleConfig {
    /// The article of the template.
    Template,
    /// "a" or "an", by the class name.
    Auto,
}

/// Options of [`Suite::load_from`].
pub struct LoadOptions<'a> {
    /// Decoding of the images.
    pub decode: DecodeOptions,
    /// Returns the records of runs on the suite of a name. A task in one of them does not need its
    /// images.
    pub learned: &'a dyn Fn(&str) -> Vec<SuiteRecord>,
    /// Returns reference and held-out pairs for a suite file without `[reference]`.
    pub reference: &'a dyn Fn() -> Option<[CaptionedImages; 2]>,
}

impl Default for LoadOptions<'_> {
    fn default() -> Self {
        Self {
            decode: DecodeOptions::default(),
            learned: &|_| Vec::new(),
            reference: &|| None,
        }
    }
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn default_templates() -> Vec<String> {
    vec!["a photo of a {}.".into()]
}

/// Default fraction of the images of a task of image-caption pairs that is held out.
const DEFAULT_TEST_FRACTION: f64 = 0.1;

/// Default fraction of the reference images that is held out.
const DEFAULT_HELD_OUT_FRACTION: f64 = 0.2;

impl Suite {
    /// Reads and [checks](Self::check) a suite file.
    ///
    /// Its paths are relative to the file's folder. Only names and sizes of images are read here;
    /// images are decoded when they are used.
    ///
    /// # Errors
    /// [`SuiteError`] with the file, the key or the task, and the remedy.
    pub fn from_toml(path: &Path) -> Result<Self, SuiteError> {
        Self::from_toml_with(path, &LoadOptions::default())
    }

    fn from_toml_with(path: &Path, options: &LoadOptions<'_>) -> Result<Self, SuiteError> {
        let text = std::fs::read_to_string(path).map_err(|source| SuiteError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config: SuiteConfig = toml::from_str(&text).map_err(|error| SuiteError::Parse {
            path: path.to_owned(),
            help: suggest_key(error.message()),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        let suite = config.open(base, path, options)?;
        suite.check()?;
        Ok(suite)
    }

    /// Loads a suite from a suite file, or from a folder with a `suite.toml`.
    ///
    /// # Errors
    /// As [`from_toml`](Self::from_toml), and [`SuiteError::Missing`] if there is no such file.
    pub fn load(path: &Path) -> Result<Self, SuiteError> {
        Self::load_with(path, DecodeOptions::default())
    }

    /// Loads a suite as [`load`](Self::load) does. Its images are decoded with the options
    /// `decode`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(path: &Path, decode: DecodeOptions) -> Result<Self, SuiteError> {
        let options = LoadOptions {
            decode,
            ..LoadOptions::default()
        };
        Self::load_from(path, &options)
    }

    /// Loads a suite as [`load`](Self::load) does, with options. If the training images of a
    /// learned task are gone, or its key `images` says so, it is in [`Extras::gone`], without
    /// training images, and with the test images that are left.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_from(path: &Path, options: &LoadOptions<'_>) -> Result<Self, SuiteError> {
        let inside = path.join(SUITE_FILE);
        if inside.is_file() {
            Self::from_toml_with(&inside, options)
        } else if path.is_file() {
            Self::from_toml_with(path, options)
        } else {
            Err(SuiteError::Missing {
                path: path.to_owned(),
            })
        }
    }
}

impl SuiteConfig {
    fn open(self, base: &Path, file: &Path, load: &LoadOptions<'_>) -> Result<Suite, SuiteError> {
        let decode = load.decode;
        let mut warnings = Vec::new();
        let mut tasks = Vec::with_capacity(self.task.len());
        let (mut gone, learned) = (BTreeMap::new(), (load.learned)(&self.name));
        for task in &self.task {
            let name = task.name.clone();
            let record = gone::record_of(&learned, &self.name, &name);
            let kind = match task.open(base, file, self.split_seed, decode, record)? {
                Some((kind, found)) => {
                    warnings.extend(found.into_iter().map(|warning| SuiteWarning::Folder {
                        task: Some(name.clone()),
                        warning,
                    }));
                    kind
                }
                None => {
                    let record =
                        record.ok_or_else(|| SuiteError::Unlearned { task: name.clone() })?;
                    let (kind, entry) = task.open_gone(base, decode, record)?;
                    gone.insert(name.clone(), entry);
                    kind
                }
            };
            tasks.push(Task { name, kind });
        }
        warnings.extend(known_classes(&tasks));
        let mut warn = |found: &[FolderWarning]| {
            warnings.extend(found.iter().map(|warning| SuiteWarning::Folder {
                task: None,
                warning: warning.clone(),
            }));
        };
        let [reference, held_out] = match &self.reference {
            None => (load.reference)().ok_or_else(|| SuiteError::NoReference {
                path: file.to_owned(),
            })?,
            Some(config) => {
                let (reference, held_out) = config.open(base, file, self.split_seed)?;
                for pairs in [&reference, &held_out] {
                    warn(pairs.warnings());
                }
                [reference, held_out].map(|folder| {
                    let (images, captions) = folder.with_decode_options(decode).into_parts();
                    CaptionedImages { images, captions }
                })
            }
        };
        Ok(Suite {
            name: self.name,
            tasks,
            reference,
            held_out,
            extras: Extras {
                gone,
                warnings,
                ..Extras::default()
            },
        })
    }
}

impl TaskConfig {
    /// Opens the task; none if its training images are gone. `record` is that of the task, if it is
    /// learned.
    fn open(
        &self,
        base: &Path,
        file: &Path,
        seed: u64,
        decode: DecodeOptions,
        record: Option<&TaskRecord>,
    ) -> Result<Option<(TaskKind, Vec<FolderWarning>)>, SuiteError> {
        if self.images == Some(ImagesConfig::Gone) {
            return Ok(None);
        }
        let path = self.path.as_ref().ok_or_else(|| {
            self.conflict(file, "needs `path = \"folder\"`, the folder of its images")
        })?;
        let root = base.join(path);
        let opened = match &self.captions {
            Some(table) => self.open_captions(table, &root, file, seed, decode),
            None => self.open_classes(&root, file, seed, decode),
        };
        let gone = || Remains::of(&root).is_ok_and(|left| left != Remains::Training);
        match opened {
            Err(_) if record.is_some() && gone() => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Opens what is left of a task whose training images are gone: its test images.
    fn open_gone(
        &self,
        base: &Path,
        decode: DecodeOptions,
        record: &TaskRecord,
    ) -> Result<(TaskKind, GoneTask), SuiteError> {
        let root = self.path.as_ref().map(|path| base.join(path));
        if self.captions.is_some() {
            let table = root.as_deref().zip(self.test_captions.as_deref());
            let test = table.map(|(root, table)| CaptionFolder::from_table(root, table));
            let test = test.and_then(Result::ok).map(|test| grouped(test, decode));
            return Ok(gone::captions(test, record));
        }
        let templates = self.templates.clone().unwrap_or_else(default_templates);
        let options = self.folder_options(0, decode);
        gone::classes(root.as_deref(), &options, templates, record)
            .map_err(|source| self.wrong(source))
    }

    fn folder_options(&self, seed: u64, decode: DecodeOptions) -> FolderOptions {
        FolderOptions {
            classes: self.classes.clone(),
            class_names: self.class_names.clone(),
            test_fraction: self.test_fraction,
            seed,
            decode,
        }
    }

    fn conflict(&self, file: &Path, message: &str) -> SuiteError {
        SuiteError::Setting {
            path: file.to_owned(),
            message: format!("task `{}` {message}", self.name),
        }
    }

    fn wrong(&self, source: DataError) -> SuiteError {
        SuiteError::Task {
            task: self.name.clone(),
            source,
        }
    }

    /// Opens class folders.
    fn open_classes(
        &self,
        root: &Path,
        file: &Path,
        seed: u64,
        decode: DecodeOptions,
    ) -> Result<(TaskKind, Vec<FolderWarning>), SuiteError> {
        if self.test_captions.is_some() {
            let message = "has `test_captions` without `captions`: add the training pairs";
            return Err(self.conflict(file, message));
        }
        let options = self.folder_options(seed, decode);
        let folder = ImageFolder::open(root, &options).map_err(|source| match source {
            DataError::NoClassFolder { .. } => {
                let message = format!(
                    "has neither class folders nor `captions`: {source}; a table of image-caption \
                     pairs there is named by `captions = \"TABLE\"`"
                );
                self.conflict(file, &message)
            }
            source => self.wrong(source),
        })?;
        let labelled = |images, labels| LabelledImages { images, labels };
        let kind = TaskKind::Classification(Classification {
            class_names: folder.class_names,
            templates: self.templates.clone().unwrap_or_else(default_templates),
            train: labelled(folder.train, folder.train_labels),
            test: labelled(folder.test, folder.test_labels),
        });
        Ok((kind, folder.warnings))
    }

    /// Opens image-caption pairs. Without a table of test pairs, a share of the images is held out
    /// with all their captions.
    fn open_captions(
        &self,
        table: &str,
        root: &Path,
        file: &Path,
        seed: u64,
        decode: DecodeOptions,
    ) -> Result<(TaskKind, Vec<FolderWarning>), SuiteError> {
        let of_classes = [
            ("templates", self.templates.is_some()),
            ("classes", self.classes.is_some()),
            ("class_names", !self.class_names.is_empty()),
        ];
        if let Some((key, _)) = of_classes.iter().find(|(_, given)| *given) {
            let message = format!(
                "has both `captions` and `{key}`, which belongs to class folders: keep one of them"
            );
            return Err(self.conflict(file, &message));
        }
        if self.test_captions.is_some() && self.test_fraction.is_some() {
            let message = "has both `test_captions` and `test_fraction`: keep one of them";
            return Err(self.conflict(file, message));
        }
        let read = |table: &str| {
            let folder = CaptionFolder::from_table(root, table);
            folder.map_err(|source| self.wrong(source))
        };
        let all = read(table)?;
        let (train, test) = match &self.test_captions {
            Some(table) => (all, read(table)?),
            None => all
                .split_test(self.test_fraction.unwrap_or(DEFAULT_TEST_FRACTION), seed)
                .map_err(|source| self.wrong(source))?,
        };
        let warnings = [train.warnings(), test.warnings()].concat();
        let kind = TaskKind::Captions(CaptionPairs {
            train: grouped(train, decode),
            test: grouped(test, decode),
        });
        Ok((kind, warnings))
    }
}

fn grouped(folder: CaptionFolder, decode: DecodeOptions) -> ImageCaptions {
    let (images, captions) = folder.with_decode_options(decode).into_groups();
    ImageCaptions { images, captions }
}

impl ReferenceConfig {
    fn open(
        &self,
        base: &Path,
        file: &Path,
        seed: u64,
    ) -> Result<(CaptionFolder, CaptionFolder), SuiteError> {
        let conflict = |message: &str| SuiteError::Setting {
            path: file.to_owned(),
            message: message.to_owned(),
        };
        // Exactly one of `captions` and `template`, each with only its own settings.
        match (&self.captions, &self.template) {
            (Some(_), Some(_)) => {
                return Err(conflict(
                    "[reference] has both `captions` and `template`: keep one of them",
                ));
            }
            (None, None) => {
                return Err(conflict(
                    "[reference] needs `captions = \"captions.csv\"` \
                     or `template = \"a photo of a {}.\"`",
                ));
            }
            (Some(_), None) if self.article.is_some() || !self.class_names.is_empty() => {
                return Err(conflict(
                    "[reference] has `captions`, so `article` and `class_names`, \
                     which belong to `template`, have no use: remove them",
                ));
            }
            _ => {}
        }
        if self.held_out.is_some() && self.held_out_fraction.is_some() {
            return Err(conflict(
                "[reference] has both `held_out` and `held_out_fraction`: keep one of them",
            ));
        }
        let wrong = |source: DataError| SuiteError::Reference { source };
        let reference = self.read(&base.join(&self.path)).map_err(wrong)?;
        if let Some(held_out) = &self.held_out {
            let held_out = self.read(&base.join(held_out)).map_err(wrong)?;
            reference.check_disjoint(&held_out).map_err(wrong)?;
            return Ok((reference, held_out));
        }
        let fraction = self.held_out_fraction.unwrap_or(DEFAULT_HELD_OUT_FRACTION);
        reference.split(fraction, seed).map_err(wrong)
    }

    fn read(&self, root: &Path) -> Result<CaptionFolder, DataError> {
        match (&self.captions, &self.template) {
            (Some(table), _) => CaptionFolder::from_table(root, table),
            (None, template) => {
                let article = match self.article {
                    Some(ArticleConfig::Auto) => Article::Auto,
                    Some(ArticleConfig::Template) | None => Article::Template,
                };
                let template = template.as_deref().unwrap_or_default();
                CaptionFolder::from_template(root, template, article, &self.class_names)
            }
        }
    }
}

/// Returns a warning for each task whose classes are all those of an earlier one. The tokenizer does
/// not distinguish upper and lower case.
fn known_classes(tasks: &[Task]) -> Vec<SuiteWarning> {
    let classes = |task: &Task| -> BTreeSet<String> {
        let classes = task.classification().map_or(&[][..], |of| &of.class_names);
        classes.iter().map(|class| class.to_lowercase()).collect()
    };
    let all: Vec<BTreeSet<String>> = tasks.iter().map(classes).collect();
    let warning = |(index, task): (usize, &Task)| {
        let known =
            |earlier: &usize| !all[index].is_empty() && all[index].is_subset(&all[*earlier]);
        let earlier = (0..index).find(known)?;
        Some(SuiteWarning::KnownClasses {
            task: task.name.clone(),
            earlier: tasks[earlier].name.clone(),
        })
    };
    tasks.iter().enumerate().filter_map(warning).collect()
}

/// Returns the known key nearest to the unknown one in serde's message
/// "unknown field `x`, expected one of `a`, `b`".
fn suggest_key(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown ")?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let word = quoted.next()?;
    nearest(word, quoted)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn write_png(path: &Path, colour: u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(2, 2, image::Rgb([colour; 3]))
            .save(path)
            .unwrap();
    }

    pub(in super::super) const REFERENCE: &str =
        "[reference]\npath = 'reference'\ncaptions = 'captions.csv'\n";

    pub(in super::super) fn task(extra: &str) -> String {
        format!("[[task]]\nname = 'shoes'\npath = 'shoes'\n{extra}\n")
    }

    /// A folder with the suite file `my.toml`, images of two classes and five reference images.
    pub(in super::super) fn suite_folder(toml: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for class in ["sneaker", "flip_flop"] {
            for i in 0..5 {
                write_png(&dir.path().join(format!("shoes/{class}/{i}.png")), i);
            }
        }
        let mut table = "file,caption\n".to_owned();
        for i in 0..5 {
            write_png(&dir.path().join(format!("reference/{i}.png")), 100 + i);
            table += &format!("{i}.png,caption {i}\n");
        }
        std::fs::write(dir.path().join("reference/captions.csv"), table).unwrap();
        std::fs::write(dir.path().join("my.toml"), toml).unwrap();
        dir
    }

    fn load(toml: &str) -> Result<Suite, SuiteError> {
        Suite::from_toml(&suite_folder(toml).path().join("my.toml"))
    }

    fn error(toml: &str) -> String {
        let error = load(toml).err().expect("the file is wrong");
        // The error as the user sees it, with its sources.
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            text += &format!(": {inner}");
            source = inner.source();
        }
        text
    }

    #[test]
    fn a_small_file_is_enough() {
        let suite = load(&format!("name = 'my shop'\n{}{REFERENCE}", task(""))).unwrap();
        assert_eq!(suite.name, "my shop");
        let task = suite.tasks[0].classification().unwrap();
        assert_eq!(task.class_names, ["flip flop", "sneaker"]);
        assert_eq!(task.templates, ["a photo of a {}."]);
        assert_eq!((task.train.labels.len(), task.test.labels.len()), (8, 2));
        assert_eq!(
            (
                suite.reference.captions.len(),
                suite.held_out.captions.len()
            ),
            (4, 1)
        );
    }

    #[test]
    fn every_key_is_read() {
        let extra = "templates = ['a {}, a kind of shoe.', '{}']\n\
            classes = ['trainer', 'flip flop']\n\
            class_names = { sneaker = 'trainer' }\ntest_fraction = 0.4";
        let reference = "[reference]\npath = 'shoes'\ntemplate = 'a {}'\narticle = 'auto'\n\
            class_names = { sneaker = 'easy shoe' }\nheld_out_fraction = 0.5\n";
        let suite = load(&format!(
            "name = 'x'\nsplit_seed = 4\n{}{reference}",
            task(extra)
        ))
        .unwrap();
        let task = suite.tasks[0].classification().unwrap();
        assert_eq!(task.class_names, ["trainer", "flip flop"]);
        assert_eq!(task.templates.len(), 2);
        assert_eq!(task.test.labels, [0, 0, 1, 1]);
        assert!(task.test.images.name(0).contains("sneaker"));
        assert_eq!(suite.reference.captions.len(), 5);
        let mut all = [suite.reference.captions, suite.held_out.captions].concat();
        all.sort();
        all.dedup();
        assert_eq!(all, ["a flip flop", "an easy shoe"]);
    }

    #[test]
    fn held_out_folder() {
        let toml = format!(
            "name = 'x'\n{}[reference]\npath = 'shoes'\ntemplate = 'a {{}}'\nheld_out = 'more'\n",
            task("")
        );
        let dir = suite_folder(&toml);
        write_png(&dir.path().join("more/hat/1.png"), 1);
        let suite = Suite::from_toml(&dir.path().join("my.toml")).unwrap();
        assert_eq!(
            (
                suite.reference.captions.len(),
                suite.held_out.captions.len()
            ),
            (10, 1)
        );
        let overlap = error(&toml.replace("'more'", "'shoes'"));
        assert!(overlap.contains("share the image"), "{overlap}");
    }

    #[test]
    fn unknown_keys_are_named_with_a_near_miss() {
        let message = error(&format!(
            "name = 'x'\n{}{REFERENCE}",
            task("templats = ['{}']")
        ));
        assert!(
            message.contains("my.toml") && message.contains("`templats`"),
            "{message}"
        );
        assert!(message.contains("did you mean `templates`?"), "{message}");
        assert!(message.contains("line 5"), "{message}");
        let message = error(&format!("nme = 'x'\n{}{REFERENCE}", task("")));
        assert!(message.contains("did you mean `name`?"), "{message}");
        let message = error(&format!("name = 'x'\n{}{REFERENCE}heldout = 'x'", task("")));
        assert!(message.contains("did you mean `held_out`?"), "{message}");
        let message = error(&format!(
            "name = 'x'\n{}{REFERENCE}article = 'autom'",
            task("")
        ));
        assert!(message.contains("did you mean `auto`?"), "{message}");
    }

    #[test]
    fn missing_keys_and_broken_toml() {
        let message = error(&format!("{}{REFERENCE}", task("")));
        assert!(message.contains("missing field `name`"), "{message}");
        let message = error(&format!("name = 'x'\n{}", task("")));
        for words in ["my.toml", "no `[reference]`", "image-text pairs"] {
            assert!(message.contains(words), "{message}");
        }
        assert!(error("name = ").contains("my.toml"));
        assert!(error(&format!("name = 3\n{REFERENCE}")).contains("string"));
    }

    #[test]
    fn reference_settings_that_contradict() {
        let with = |reference: &str| {
            error(&format!(
                "name = 'x'\n{}[reference]\npath = 'reference'\n{reference}\n",
                task("")
            ))
        };
        assert!(
            with("captions = 'captions.csv'\ntemplate = '{}'")
                .contains("both `captions` and `template`")
        );
        assert!(with("").contains("needs `captions"));
        assert!(with("captions = 'captions.csv'\narticle = 'auto'").contains("no use"));
        assert!(
            with("captions = 'captions.csv'\nheld_out = 'a'\nheld_out_fraction = 0.1")
                .contains("both `held_out`")
        );
        assert!(
            with("captions = 'captions.csv'\nheld_out_fraction = 2.0")
                .contains("held_out_fraction is 2")
        );
        assert!(with("captions = 'nope.csv'").contains("nope.csv"));
    }

    /// A task whose pairs are the reference pairs, one of which has two captions.
    fn pairs(extra: &str) -> String {
        format!(
            "name = 'x'\n[[task]]\nname = 'scenes'\npath = 'reference'\n\
             captions = 'captions.csv'\n{extra}\n{REFERENCE}"
        )
    }

    #[test]
    fn a_tenth_of_the_pairs_of_a_task_is_held_out_with_all_captions() {
        let dir = suite_folder(&pairs(""));
        let table = dir.path().join("reference/captions.csv");
        let rows = std::fs::read_to_string(&table).unwrap();
        let second = (0..5).map(|i| format!("{i}.png,another {i}\n"));
        std::fs::write(&table, rows + &second.collect::<String>()).unwrap();
        let load = || Suite::from_toml(&dir.path().join("my.toml")).unwrap();
        let suite = load();
        let task = suite.tasks[0].captions().unwrap();
        assert_eq!((task.train.images.len(), task.test.images.len()), (4, 1));
        assert_eq!((task.train.count(), task.test.count()), (8, 2));
        let held = &task.test.captions[0];
        assert_eq!(held[0].split_once(' ').unwrap().0, "caption");
        assert_eq!(held[1], held[0].replace("caption", "another"));
        assert_eq!(load().fingerprint(), suite.fingerprint());
        assert_eq!(suite.warnings(), []);
    }

    #[test]
    fn test_pairs_of_a_task_may_have_a_table() {
        let dir = suite_folder(&pairs("test_captions = 'test.csv'"));
        write_png(&dir.path().join("reference/more.png"), 7);
        let table = "file,caption\nmore.png,one\nmore.png,two\n";
        std::fs::write(dir.path().join("reference/test.csv"), table).unwrap();
        let load = || Suite::from_toml(&dir.path().join("my.toml")).unwrap();
        let suite = load();
        let task = suite.tasks[0].captions().unwrap();
        assert_eq!(task.train.images.len(), 5);
        assert_eq!(task.test.captions, [["one", "two"]]);
        // A shared image is a warning, as in class folders.
        std::fs::write(
            dir.path().join("reference/test.csv"),
            "file,caption\n1.png,x\n",
        )
        .unwrap();
        assert_eq!(load().warnings().len(), 1);
    }

    #[test]
    fn pairs_of_a_task_that_contradict_are_errors_with_task_and_keys() {
        for (extra, words) in [
            ("templates = ['a {}']", "both `captions` and `templates`"),
            ("classes = ['a', 'b']", "both `captions` and `classes`"),
            (
                "class_names = { a = 'b' }",
                "both `captions` and `class_names`",
            ),
            (
                "test_captions = 't.csv'\ntest_fraction = 0.1",
                "both `test_captions` and `test_fraction`",
            ),
            ("test_captions = 'nope.csv'", "nope.csv"),
            ("test_fraction = 2.0", "test_fraction is 2"),
        ] {
            let message = error(&pairs(extra));
            assert!(
                message.contains("task `scenes`") && message.contains(words),
                "{message}"
            );
        }
        let neither = pairs("").replace("captions = 'captions.csv'\n\n", "");
        let message = error(&neither);
        for words in ["task `scenes`", "neither class folders nor `captions`"] {
            assert!(message.contains(words), "{message}");
        }
        let message = error(&format!(
            "name = 'x'\n{}{REFERENCE}",
            task("test_captions = 'test.csv'")
        ));
        for words in ["task `shoes`", "`test_captions` without `captions`"] {
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn errors_name_the_task() {
        let message = error(&format!(
            "name = 'x'\n[[task]]\nname = 'hats'\npath = 'hats'\n{REFERENCE}"
        ));
        assert!(
            message.contains("task `hats`") && message.contains("no folder"),
            "{message}"
        );
    }

    #[test]
    fn contents_are_checked() {
        let message = error(&format!("name = 'x'\n{REFERENCE}"));
        assert!(message.contains("no task"), "{message}");
        let message = error(&format!("name = 'x'\n{}{}{REFERENCE}", task(""), task("")));
        assert!(message.contains("two tasks are named `shoes`"), "{message}");
        for templates in ["['no place']", "['{} {}']", "[]"] {
            let message = error(&format!(
                "name = 'x'\n{}{REFERENCE}",
                task(&format!("templates = {templates}"))
            ));
            assert!(
                message.contains("template") && message.contains("shoes"),
                "{message}"
            );
        }
    }

    #[test]
    fn one_class_is_too_few() {
        let dir = suite_folder(&format!("name = 'x'\n{}{REFERENCE}", task("")));
        std::fs::remove_dir_all(dir.path().join("shoes/sneaker")).unwrap();
        let error = Suite::from_toml(&dir.path().join("my.toml")).err().unwrap();
        assert!(error.to_string().contains("at least 2"), "{error}");
    }

    #[test]
    fn load_takes_files_and_folders() {
        let dir = suite_folder(&format!("name = 'x'\n{}{REFERENCE}", task("")));
        let file = dir.path().join("my.toml");
        assert!(Suite::load(&file).is_ok());
        std::fs::rename(&file, dir.path().join("suite.toml")).unwrap();
        assert!(Suite::load(dir.path()).is_ok());
        let error = Suite::load(Path::new("mni")).err().unwrap();
        assert!(matches!(error, SuiteError::Missing { .. }), "{error}");
        assert!(error.to_string().starts_with("mni is neither"), "{error}");
        let error = Suite::from_toml(Path::new("/no/such.toml")).err().unwrap();
        assert!(error.to_string().contains("such.toml"));
    }

    #[test]
    fn files_that_are_not_read_are_warnings_of_their_task_or_the_reference_set() {
        let reference = "[reference]\npath = 'shoes'\ntemplate = 'a {}'\n";
        let dir = suite_folder(&format!("name = 'x'\n{}{reference}", task("")));
        let suite = Suite::load(&dir.path().join("my.toml")).unwrap();
        assert_eq!(suite.warnings(), []);
        std::fs::write(dir.path().join("shoes/sneaker/9.heic"), b"x").unwrap();
        let mut suite = Suite::load(&dir.path().join("my.toml")).unwrap();
        let texts = |suite: &Suite| -> Vec<String> {
            let warnings = suite.warnings();
            warnings.iter().map(ToString::to_string).collect()
        };
        let all = texts(&suite);
        assert_eq!(all.len(), 2);
        assert!(
            all[0].starts_with("task `shoes`: ") && all[0].contains("1 .heic"),
            "{all:?}"
        );
        assert!(
            all[1].starts_with("reference set: ") && all[1].contains("1 .heic"),
            "{all:?}"
        );
        // A task that is not part of the suite has no warning.
        suite.tasks[0].name = "boots".into();
        assert_eq!(texts(&suite).len(), 1);
    }

    #[test]
    fn a_task_of_known_classes_is_a_warning() {
        let again = "[[task]]\nname = 'more shoes'\npath = 'shoes'\n\
            class_names = { sneaker = 'Sneaker' }\n";
        let other = again
            .replace("'Sneaker'", "'boot'")
            .replace("more", "other");
        let suite = load(&format!(
            "name = 'x'\n{}{again}{other}{REFERENCE}",
            task("")
        ))
        .unwrap();
        let known = |warning: &SuiteWarning| matches!(warning, SuiteWarning::KnownClasses { .. });
        let found: Vec<_> = suite.warnings().into_iter().filter(known).collect();
        let expected = SuiteWarning::KnownClasses {
            task: "more shoes".into(),
            earlier: "shoes".into(),
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn the_example_parses() {
        let config: SuiteConfig = toml::from_str(EXAMPLE).unwrap();
        assert!(config.task.len() >= 2);
    }

    #[test]
    fn decode_options_hold_for_every_image_of_a_suite() {
        let file = format!("name = 'x'\n{}{REFERENCE}", task(""));
        let by_template = "[reference]\npath = 'shoes'\ntemplate = 'a {}'\n";
        for file in [file.clone(), file.replace(REFERENCE, by_template)] {
            let dir = suite_folder(&file);
            std::fs::rename(dir.path().join("my.toml"), dir.path().join(SUITE_FILE)).unwrap();
            for path in [dir.path().to_owned(), dir.path().join(SUITE_FILE)] {
                // The images have 2 x 2 pixels.
                for max_pixels in [3, 4] {
                    let suite = Suite::load_with(&path, DecodeOptions { max_pixels }).unwrap();
                    for images in [
                        suite.tasks[0].training_images(),
                        suite.tasks[0].test_images(),
                        &suite.reference.images,
                        &suite.held_out.images,
                    ] {
                        match images.load(0) {
                            Ok(_) => assert_eq!(max_pixels, 4, "{}", images.name(0)),
                            Err(error) => assert!(
                                matches!(error, DataError::TooManyPixels { maximum: 3, .. }),
                                "{error}"
                            ),
                        }
                    }
                }
            }
        }
    }
}

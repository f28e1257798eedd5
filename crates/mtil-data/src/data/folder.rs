//! Image folders in the ImageNet layout: one folder per class, with or without `train/` and
//! `test/` folders around them.
//!
//! Class folders are searched recursively, by the rules of `image_files`. What is not read, or may
//! be meant otherwise, is a [`FolderWarning`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clip_model::{
    preprocess::DecodeOptions,
    tokenizer::{distinct_from, nfc},
};

use super::image_files::{Entries, ImageFile, ImageFiles, OtherFiles, images_in};
use super::order::{permutation, rng_for};
use super::{DataError, FolderWarning};
use crate::nearest;

/// Folder names of the training split. The first that exists is taken.
const TRAIN_NAMES: [&str; 2] = ["train", "training"];
/// Folder names of the test split. The first that exists is taken.
const TEST_NAMES: [&str; 5] = ["test", "val", "valid", "validation", "testing"];
/// Folder names of a validation split.
const VALIDATION_NAMES: [&str; 3] = ["val", "valid", "validation"];
/// Folder names of a split that are also words for a class.
const AMBIGUOUS_NAMES: [&str; 2] = ["training", "testing"];

/// Options of [`ImageFolder::open`].
#[derive(Debug, Clone, Default)]
pub struct FolderOptions {
    /// Class names, or folder names, in label order. Defaults to the sorted class folders.
    pub classes: Option<Vec<String>>,
    /// Class names by folder name. Defaults to the folder's name with `_` replaced by a space.
    pub class_names: BTreeMap<String, String>,
    /// Fraction of each class's images in the test split, if `train/` and `test/` do not exist.
    /// At least one image goes to each split. Defaults to 0.2. Must be `None` if `train/` and
    /// `test/` exist.
    pub test_fraction: Option<f64>,
    /// Seed of the random split.
    pub seed: u64,
    /// Decoding of the images.
    pub decode: DecodeOptions,
}

/// Default of [`FolderOptions::test_fraction`].
pub(crate) const DEFAULT_TEST_FRACTION: f64 = 0.2;

/// Layout of an [`ImageFolder`].
#[derive(Debug, Clone, PartialEq)]
pub enum Layout {
    /// A train and a test folder with class folders in each.
    TrainTest {
        /// Name of the train folder: `train`, or else `training`.
        train: String,
        /// Name of the test folder: `test`, or else `val`, `valid`, `validation` or `testing`.
        test: String,
    },
    /// Class folders, split at random by the seed and the class folder's name.
    Split {
        /// Fraction of each class in the test split.
        test_fraction: f64,
        /// Seed of the split.
        seed: u64,
    },
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TrainTest { train, test } => write!(f, "train from {train}/, test from {test}/"),
            Self::Split {
                test_fraction,
                seed,
            } => write!(
                f,
                "class folders split with seed {seed}, {:.0} % of each class for test",
                test_fraction * 100.0
            ),
        }
    }
}

/// An image classification dataset read from class folders, with a train and a test split.
///
/// The images of a split are sorted by label, then by path.
///
/// ```
/// use mtil_data::data::{FolderOptions, ImageFolder, ImageSource as _};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path();
/// for class in ["cat", "red_fox"] {
///     std::fs::create_dir(path.join(class))?;
///     for i in 0..5 {
///         image::RgbImage::new(8, 8).save(path.join(class).join(format!("{i}.png")))?;
///     }
/// }
/// let folder = ImageFolder::open(path, &FolderOptions::default())?;
/// assert_eq!(folder.class_names, ["cat", "red fox"]);
/// assert_eq!((folder.train.len(), folder.test.len()), (8, 2));
/// assert_eq!(folder.test_labels, [0, 1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ImageFolder {
    /// Class names in label order.
    pub class_names: Vec<String>,
    /// Training images.
    pub train: Arc<ImageFiles>,
    /// Label of each image of `train`.
    pub train_labels: Vec<usize>,
    /// Test images.
    pub test: Arc<ImageFiles>,
    /// Label of each image of `test`.
    pub test_labels: Vec<usize>,
    /// Layout of the folder.
    pub layout: Layout,
    /// Content that is not read, or may be meant otherwise.
    pub warnings: Vec<FolderWarning>,
}

/// A class folder with its images.
pub(super) struct ClassFolder {
    pub(super) folder: String,
    pub(super) name: String,
    pub(super) files: Vec<ImageFile>,
}

impl ImageFolder {
    /// Reads the folder `path`.
    ///
    /// It contains `train/` (or `training/`) and `test/` (or `val/`, `valid/`, `validation/`,
    /// `testing/`) with the same class folders in both, or class folders that are split at random.
    /// Folders named `training` and `testing` that hold images, or are beside other class folders,
    /// are classes. Images are listed, not decoded.
    ///
    /// # Errors
    /// [`DataError`] with the path and a remedy: a missing folder, no class folder, an empty class,
    /// a class in one split only, a class folder that is not in the class list, a list entry
    /// without a folder, duplicate class names, a file in both splits.
    pub fn open(path: &Path, options: &FolderOptions) -> Result<Self, DataError> {
        let fraction = options.test_fraction.unwrap_or(DEFAULT_TEST_FRACTION);
        check_fraction("test_fraction", fraction)?;
        let folders = Entries::read(path)?.folders;
        let mut warnings = Vec::new();
        let (mut splits, layout) = match split_folders(path, &folders)? {
            Some([train, test]) => {
                if options.test_fraction.is_some() {
                    return Err(DataError::Layout(format!(
                        "`test_fraction` is given, but {} is already split into `{train}` \
                         and `{test}`: remove the setting",
                        path.display()
                    )));
                }
                let splits = [
                    classes_in(path, Some(&train), options, &mut warnings)?,
                    classes_in(path, Some(&test), options, &mut warnings)?,
                ];
                check_same_classes(path, [&train, &test], &splits)?;
                let unread = other_folders(&folders, [&train, &test]);
                if !unread.is_empty() {
                    warnings.push(FolderWarning::UnreadFolders {
                        path: path.to_owned(),
                        splits: [train.clone(), test.clone()],
                        folders: unread,
                    });
                }
                (splits, Layout::TrainTest { train, test })
            }
            None => {
                let all = classes_in(path, None, options, &mut warnings)?;
                let splits = random_split(path, all, fraction, options.seed)?;
                let layout = Layout::Split {
                    test_fraction: fraction,
                    seed: options.seed,
                };
                (splits, layout)
            }
        };
        // Both splits have the same class folders in the same order.
        let order = label_order(path, &splits[0], options)?;
        let class_names = order.iter().map(|&i| splits[0][i].name.clone()).collect();
        let [(train, train_labels), (test, test_labels)] =
            [0, 1].map(|i| flatten(&mut splits[i], &order));
        check_no_overlap(path, &train, &test)?;
        let images = |files| {
            let files = ImageFiles::new(path, files);
            Arc::new(files.with_decode_options(options.decode))
        };
        Ok(Self {
            class_names,
            train: images(train),
            train_labels,
            test: images(test),
            test_labels,
            layout,
            warnings,
        })
    }
}

/// Returns the names of the train and the test folder among `folders`, if both exist.
pub(super) fn split_folders(
    path: &Path,
    folders: &[String],
) -> Result<Option<[String; 2]>, DataError> {
    let is = |folder: &str, names: &[&str]| names.iter().any(|n| folder.eq_ignore_ascii_case(n));
    let halves = [named(folders, &TRAIN_NAMES), test_folder(folders)];
    let holds_classes = |folder: &String| holds_only_folders(&path.join(folder));
    if let [Some(train), Some(test)] = halves {
        let ambiguous = [train, test].iter().any(|f| is(f, &AMBIGUOUS_NAMES));
        let alone = other_folders(folders, [train, test]).is_empty();
        if !ambiguous || (alone && holds_classes(train)? && holds_classes(test)?) {
            return Ok(Some([train.clone(), test.clone()]));
        }
    }
    // A class may be called "train". Only a folder of folders is a split.
    for (half, missing) in halves.into_iter().zip(["test", "train"]) {
        if let Some(half) = half
            && !is(half, &AMBIGUOUS_NAMES)
            && holds_classes(half)?
        {
            return Err(DataError::MissingHalf {
                present: path.join(half),
                missing,
            });
        }
    }
    Ok(None)
}

/// Returns the name of the test folder among `folders`.
pub(super) fn test_folder(folders: &[String]) -> Option<&String> {
    named(folders, &TEST_NAMES)
}

/// Returns the first of `names` that `folders` has.
fn named<'a>(folders: &'a [String], names: &[&str]) -> Option<&'a String> {
    let mut names = names.iter();
    names.find_map(|name| folders.iter().find(|f| f.eq_ignore_ascii_case(name)))
}

/// Returns the folders beside those of the splits. A validation split is none of them: beside a
/// test split it is common.
fn other_folders(folders: &[String], splits: [&String; 2]) -> Vec<String> {
    let is_split = |folder: &String| {
        let mut validation = VALIDATION_NAMES.iter();
        splits.contains(&folder) || validation.any(|name| folder.eq_ignore_ascii_case(name))
    };
    folders.iter().filter(|f| !is_split(f)).cloned().collect()
}

/// Requires a fraction strictly between 0 and 1.
pub(super) fn check_fraction(name: &'static str, value: f64) -> Result<(), DataError> {
    if value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(DataError::Setting {
        name,
        value: value.to_string(),
        must: "above 0 and below 1",
    })
}

/// Lists the class folders of `root/split` in the order of their names.
pub(super) fn classes_in(
    root: &Path,
    split: Option<&str>,
    options: &FolderOptions,
    warnings: &mut Vec<FolderWarning>,
) -> Result<Vec<ClassFolder>, DataError> {
    let base = split.map_or_else(|| root.to_owned(), |split| root.join(split));
    let Entries { folders, images } = Entries::read(&base)?;
    if folders.is_empty() {
        return Err(DataError::NoClassFolder { path: base });
    }
    for key in options.class_names.keys() {
        if !folders.contains(key) {
            return Err(DataError::UnknownClassName {
                folder: key.clone(),
                near: nearest(key, folders.iter().map(String::as_str)),
                path: base,
            });
        }
    }
    let mut classes = Vec::with_capacity(folders.len());
    let (mut others, mut nested) = (OtherFiles::default(), Vec::new());
    for folder in folders {
        let name = options
            .class_names
            .get(&folder)
            .cloned()
            .unwrap_or_else(|| folder.replace('_', " "));
        let below = split.map_or_else(|| PathBuf::from(&folder), |h| Path::new(h).join(&folder));
        let (files, not_images) = images_in(root, &below)?;
        if files.is_empty() {
            return Err(DataError::EmptyClass {
                class: name,
                path: root.join(below),
                others: not_images,
            });
        }
        others.append(not_images);
        if files.iter().all(|f| f.relative.parent() != Some(&below)) {
            nested.push(folder.clone());
        }
        classes.push(ClassFolder {
            folder,
            name,
            files,
        });
    }
    if others.count() > 0 {
        warnings.push(FolderWarning::OtherFiles {
            path: base.clone(),
            files: others,
        });
    }
    if images > 0 {
        warnings.push(FolderWarning::LooseImages {
            path: base.clone(),
            images,
        });
    }
    if !nested.is_empty() {
        warnings.push(FolderWarning::OnlyFolders {
            path: base,
            classes: nested,
            of: classes.len(),
        });
    }
    Ok(classes)
}

/// Requires the same class folders in both splits.
fn check_same_classes(
    path: &Path,
    names: [&String; 2],
    splits: &[Vec<ClassFolder>; 2],
) -> Result<(), DataError> {
    for (here, there) in [(0, 1), (1, 0)] {
        let other: HashSet<_> = splits[there].iter().map(|c| &c.folder).collect();
        if let Some(class) = splits[here].iter().find(|c| !other.contains(&c.folder)) {
            return Err(DataError::OneSidedClass {
                class: class.folder.clone(),
                present: path.join(names[here]),
                absent: path.join(names[there]),
            });
        }
    }
    Ok(())
}

/// Splits each class by its own permutation, so a new class or image does not change the split of
/// other classes.
fn random_split(
    path: &Path,
    classes: Vec<ClassFolder>,
    fraction: f64,
    seed: u64,
) -> Result<[Vec<ClassFolder>; 2], DataError> {
    let mut splits = [Vec::new(), Vec::new()];
    for class in classes {
        let n = class.files.len();
        if n < 2 {
            return Err(DataError::TooFewImages {
                path: path.join(&class.folder),
                class: class.name,
                images: n,
            });
        }
        let tested = random_mask(
            n,
            fraction,
            "train-test split",
            seed,
            class.folder.as_bytes(),
        );
        let mut files = [Vec::new(), Vec::new()];
        for (file, test) in class.files.into_iter().zip(tested) {
            files[usize::from(test)].push(file);
        }
        for (split, files) in splits.iter_mut().zip(files) {
            split.push(ClassFolder {
                folder: class.folder.clone(),
                name: class.name.clone(),
                files,
            });
        }
    }
    Ok(splits)
}

/// Returns a random mask with about `fraction * n` of `n >= 2` items selected: at least one, but
/// not all.
pub(super) fn random_mask(
    n: usize,
    fraction: f64,
    purpose: &str,
    seed: u64,
    what: &[u8],
) -> Vec<bool> {
    let count = ((n as f64 * fraction).round() as usize).clamp(1, n - 1);
    let mut chosen = vec![false; n];
    for &i in &permutation(n, &mut rng_for(purpose, seed, what))[..count] {
        chosen[i] = true;
    }
    chosen
}

/// Returns the position in `classes` of each label.
pub(super) fn label_order(
    path: &Path,
    classes: &[ClassFolder],
    options: &FolderOptions,
) -> Result<Vec<usize>, DataError> {
    let names = || classes.iter().map(|c| c.name.as_str());
    let duplicate = |found: Option<(String, String)>| match found {
        Some((first, second)) => Err(DataError::DuplicateClass {
            first,
            second,
            path: Some(path.to_owned()),
        }),
        None => Ok(()),
    };
    duplicate(duplicate_name(names()))?;
    let Some(list) = &options.classes else {
        return Ok((0..classes.len()).collect());
    };
    duplicate(duplicate_name(list.iter().map(String::as_str)))?;
    // An entry is a class name or a folder name.
    let position = |entry: &str| {
        classes
            .iter()
            .position(|c| c.name == entry)
            .or_else(|| classes.iter().position(|c| c.folder == entry))
    };
    let found: Vec<_> = list.iter().map(|entry| position(entry)).collect();
    // Folders are checked before entries, so the error for a misspelt entry names its folder.
    if let Some(i) = (0..classes.len()).find(|i| !found.contains(&Some(*i))) {
        return Err(DataError::UnknownClassFolder {
            path: path.join(&classes[i].folder),
            class: classes[i].name.clone(),
            near: nearest(&classes[i].name, list.iter().map(String::as_str)),
        });
    }
    list.iter()
        .zip(found)
        .map(|(entry, i)| {
            i.ok_or_else(|| DataError::MissingClassFolder {
                class: entry.clone(),
                path: path.to_owned(),
                near: nearest(entry, names()),
            })
        })
        .collect()
}

/// Returns two names that CLIP's tokenizer, which lower-cases, collapses spaces and normalises
/// Unicode, maps to the same tokens. The second one has escapes if it looks like the first.
pub(crate) fn duplicate_name<'a>(
    names: impl IntoIterator<Item = &'a str>,
) -> Option<(String, String)> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    for name in names {
        let spaced = name.replace('_', " ").to_lowercase();
        let key = nfc(&spaced.split_whitespace().collect::<Vec<_>>().join(" "));
        if let Some(first) = seen.insert(key, name) {
            return Some((first.to_owned(), distinct_from(first, name)));
        }
    }
    None
}

/// Concatenates the files of the classes in label order, with a label for each file.
pub(super) fn flatten(
    classes: &mut [ClassFolder],
    order: &[usize],
) -> (Vec<ImageFile>, Vec<usize>) {
    let (mut files, mut labels) = (Vec::new(), Vec::new());
    for (label, &i) in order.iter().enumerate() {
        let of_class = std::mem::take(&mut classes[i].files);
        labels.extend(std::iter::repeat_n(label, of_class.len()));
        files.extend(of_class);
    }
    (files, labels)
}

/// Requires that no file is in both splits.
fn check_no_overlap(path: &Path, train: &[ImageFile], test: &[ImageFile]) -> Result<(), DataError> {
    let trained: HashMap<_, _> = train.iter().map(|f| (&f.canonical, f)).collect();
    match test
        .iter()
        .find_map(|f| Some((trained.get(&f.canonical)?, f)))
    {
        Some((a, b)) => Err(DataError::Overlap {
            train: path.join(&a.relative),
            test: path.join(&b.relative),
        }),
        None => Ok(()),
    }
}

fn holds_only_folders(path: &Path) -> Result<bool, DataError> {
    let found = Entries::read(path)?;
    Ok(found.images == 0 && !found.folders.is_empty())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::ImageSource as _;

    /// Writes a 2x2 PNG of one colour, folders included.
    pub(crate) fn write_png(path: &Path, colour: u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(2, 2, image::Rgb([colour; 3]))
            .save_with_format(path, image::ImageFormat::Png)
            .unwrap();
    }

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (i, file) in files.iter().enumerate() {
            write_png(&dir.path().join(file), i as u8);
        }
        dir
    }

    fn open(dir: &tempfile::TempDir) -> Result<ImageFolder, DataError> {
        ImageFolder::open(dir.path(), &FolderOptions::default())
    }

    fn error(dir: &tempfile::TempDir, options: &FolderOptions) -> String {
        ImageFolder::open(dir.path(), options)
            .unwrap_err()
            .to_string()
    }

    /// Names of the files relative to the dataset's folder.
    fn names(files: &ImageFiles) -> Vec<String> {
        (0..files.len())
            .map(|i| files.identity(i).rsplit_once(' ').unwrap().0.to_owned())
            .collect()
    }

    #[test]
    fn reads_train_and_test_sorted_by_bytes() {
        let dir = tree(&[
            "train/b_b/2.PNG",
            "train/b_b/10.JPEG",
            "train/a/x.webp",
            "train/a/.hidden.png",
            "train/a/notes.txt",
            "train/.cache/1.png",
            "test/a/1.jpg",
            "test/b_b/deep/1.png",
            "val/zzz/1.png",
        ]);
        let folder = open(&dir).unwrap();
        assert_eq!(folder.class_names, ["a", "b b"]);
        assert_eq!(
            names(&folder.train),
            ["train/a/x.webp", "train/b_b/10.JPEG", "train/b_b/2.PNG"]
        );
        assert_eq!(folder.train_labels, [0, 1, 1]);
        assert_eq!(names(&folder.test), ["test/a/1.jpg", "test/b_b/deep/1.png"]);
        assert_eq!(
            folder.layout.to_string(),
            "train from train/, test from test/"
        );
        // The format is detected from content, not from the extension.
        assert_eq!(
            folder.train.load(0).unwrap().to_rgb8().get_pixel(0, 0).0,
            [2; 3]
        );
    }

    #[test]
    fn val_stands_in_for_a_missing_test() {
        for name in ["val", "valid", "validation", "Val"] {
            let dir = tree(&[
                "train/a/1.png",
                "train/b/1.png",
                &format!("{name}/a/1.png"),
                &format!("{name}/b/1.png"),
            ]);
            let folder = open(&dir).unwrap();
            assert_eq!(
                folder.layout,
                Layout::TrainTest {
                    train: "train".into(),
                    test: name.into()
                }
            );
        }
    }

    #[test]
    fn split_is_deterministic_disjoint_and_per_class() {
        let files: Vec<_> = (0..10)
            .flat_map(|i| [format!("a/{i}.png"), format!("b/{i}.png")])
            .collect();
        let dir = tree(&files.iter().map(String::as_str).collect::<Vec<_>>());
        let folder = open(&dir).unwrap();
        let again = open(&dir).unwrap();
        assert_eq!(names(&folder.train), names(&again.train));
        assert_eq!((folder.train.len(), folder.test.len()), (16, 4));
        assert_eq!(folder.test_labels, [0, 0, 1, 1]);
        let mut all = [names(&folder.train), names(&folder.test)].concat();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 20);
        let other = FolderOptions {
            seed: 1,
            ..Default::default()
        };
        let other = ImageFolder::open(dir.path(), &other).unwrap();
        assert_ne!(names(&folder.test), names(&other.test));
        // A new class does not change the split of the others.
        write_png(&dir.path().join("aa/1.png"), 0);
        write_png(&dir.path().join("aa/2.png"), 1);
        let grown = open(&dir).unwrap();
        let old: Vec<_> = names(&grown.test)
            .into_iter()
            .filter(|n| !n.starts_with("aa"))
            .collect();
        assert_eq!(old, names(&folder.test));
    }

    #[test]
    fn split_leaves_at_least_one_image_on_each_side() {
        let dir = tree(&["a/1.png", "a/2.png", "b/1.png", "b/2.png"]);
        for fraction in [0.01, 0.99] {
            let options = FolderOptions {
                test_fraction: Some(fraction),
                ..Default::default()
            };
            let folder = ImageFolder::open(dir.path(), &options).unwrap();
            assert_eq!(
                (folder.train_labels, folder.test_labels),
                (vec![0, 1], vec![0, 1])
            );
        }
    }

    #[test]
    fn class_list_gives_the_label_order() {
        let dir = tree(&[
            "n02/1.png",
            "n02/2.png",
            "ice_cream/1.png",
            "ice_cream/2.png",
        ]);
        let options = FolderOptions {
            classes: Some(vec!["tench".into(), "ice cream".into()]),
            class_names: BTreeMap::from([("n02".into(), "tench".into())]),
            ..Default::default()
        };
        let folder = ImageFolder::open(dir.path(), &options).unwrap();
        assert_eq!(folder.class_names, ["tench", "ice cream"]);
        assert!(names(&folder.train)[0].starts_with("n02"));
    }

    #[test]
    fn a_class_may_be_called_train() {
        let dir = tree(&["train/1.png", "train/2.png", "bus/1.png", "bus/2.png"]);
        assert_eq!(open(&dir).unwrap().class_names, ["bus", "train"]);
        let dir = tree(&["training/1.png", "training/2.png", "testing/1", "testing/2"]);
        assert_eq!(open(&dir).unwrap().class_names, ["testing", "training"]);
    }

    #[test]
    fn training_and_testing_folders_are_splits() {
        for [train, test] in [
            ["training", "testing"],
            ["Training", "val"],
            ["train", "testing"],
            ["training", "test"],
        ] {
            let dir = tree(&[
                &format!("{train}/a/1.png"),
                &format!("{train}/b/1.png"),
                &format!("{test}/a/1.png"),
                &format!("{test}/b/1.png"),
            ]);
            let folder = open(&dir).unwrap();
            assert_eq!(folder.class_names, ["a", "b"]);
            let layout = Layout::TrainTest {
                train: train.into(),
                test: test.into(),
            };
            assert_eq!(folder.layout, layout);
            assert_eq!(folder.warnings, []);
        }
        // Beside other classes they are classes, which hold only folders.
        let dir = tree(&[
            "training/x/1.png",
            "training/x/2.png",
            "testing/x/1.png",
            "testing/x/2.png",
            "exam/1.png",
            "exam/2.png",
        ]);
        let folder = open(&dir).unwrap();
        assert_eq!(folder.class_names, ["exam", "testing", "training"]);
        let text = folder.warnings[0].to_string();
        assert!(text.starts_with("2 of 3 class folders"), "{text}");
        // A single folder of that name is a class.
        let dir = tree(&["training/x/1.png", "training/x/2.png", "b/1.png", "b/2.png"]);
        assert_eq!(open(&dir).unwrap().class_names, ["b", "training"]);
    }

    #[test]
    fn what_is_not_read_is_counted() {
        let dir = tree(&["a/1.png", "a/2.png", "b/1.png", "b/2.png", "loose.png"]);
        for name in ["a/3.heic", "b/4.heic", "b/notes.txt", "a/._5.png"] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        let warnings = open(&dir).unwrap().warnings;
        let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2);
        assert!(texts[0].contains("not read: 2 .heic, 1 .txt"), "{texts:?}");
        assert!(texts[0].ends_with("3.heic"), "{texts:?}");
        assert!(texts[1].ends_with("not read: 1"), "{texts:?}");
    }

    #[test]
    fn class_folders_that_hold_only_folders_have_a_warning() {
        let dir = tree(&["x/train/1.png", "x/test/1.png", "y/z/1.png", "y/z/2.png"]);
        let text = open(&dir).unwrap().warnings[0].to_string();
        assert!(text.starts_with("2 of 2 class folders in"), "{text}");
        assert!(text.ends_with("of one class: x, y"), "{text}");
        // Images beside the inner folder: the folder is surely a class.
        write_png(&dir.path().join("x/1.png"), 7);
        let text = open(&dir).unwrap().warnings[0].to_string();
        assert!(text.starts_with("1 of 2"), "{text}");
    }

    #[test]
    fn folders_beside_the_splits_have_a_warning_unless_they_are_a_validation_split() {
        let dir = tree(&["train/a/1.png", "test/a/1.png", "val/a/1.png"]);
        assert_eq!(open(&dir).unwrap().warnings, []);
        write_png(&dir.path().join("more/a/1.png"), 9);
        let text = open(&dir).unwrap().warnings[0].to_string();
        assert!(
            text.starts_with("folders beside train/ and test/"),
            "{text}"
        );
        assert!(text.ends_with("not read: more"), "{text}");
    }

    #[test]
    fn folders_of_systems_are_no_classes() {
        let dir = tree(&["a/1.png", "a/2.png", "a/@eaDir/1.png", "@eaDir/1.png"]);
        let folder = open(&dir).unwrap();
        assert_eq!(folder.class_names, ["a"]);
        assert_eq!(folder.train.len() + folder.test.len(), 2);
    }

    #[test]
    fn missing_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nowhere");
        let error = ImageFolder::open(&path, &FolderOptions::default()).unwrap_err();
        assert!(matches!(error, DataError::MissingFolder { .. }));
        assert!(error.to_string().contains("nowhere"), "{error}");
    }

    #[test]
    fn no_class_folder() {
        let dir = tree(&["1.png"]);
        assert!(matches!(
            open(&dir).unwrap_err(),
            DataError::NoClassFolder { .. }
        ));
    }

    #[test]
    fn empty_class() {
        let dir = tree(&["a/1.png", "a/2.png"]);
        std::fs::create_dir(dir.path().join("b")).unwrap();
        let message = error(&dir, &FolderOptions::default());
        assert!(message.contains("class `b` is empty"), "{message}");
        assert!(
            message.contains(&dir.path().join("b").display().to_string()),
            "{message}"
        );
        std::fs::write(dir.path().join("b/1.heic"), b"x").unwrap();
        let message = error(&dir, &FolderOptions::default());
        assert!(message.contains("no image, but 1 .heic"), "{message}");
    }

    #[test]
    fn one_image_cannot_be_split() {
        let dir = tree(&["a/1.png", "b/1.png", "b/2.png"]);
        assert!(matches!(
            open(&dir).unwrap_err(),
            DataError::TooFewImages { images: 1, .. }
        ));
    }

    #[test]
    fn a_class_in_one_split_only() {
        let dir = tree(&["train/a/1.png", "test/a/1.png", "test/b/1.png"]);
        let message = error(&dir, &FolderOptions::default());
        assert!(
            message.contains("class `b` is in") && message.contains("but not in"),
            "{message}"
        );
        let dir = tree(&["train/a/1.png", "train/c/1.png", "test/a/1.png"]);
        assert!(error(&dir, &FolderOptions::default()).contains("class `c`"));
    }

    #[test]
    fn a_missing_split() {
        for (split, missing) in [("train", "`test`"), ("val", "`train`")] {
            let dir = tree(&[&format!("{split}/a/1.png"), &format!("{split}/b/1.png")]);
            let message = error(&dir, &FolderOptions::default());
            assert!(message.contains(missing), "{message}");
        }
    }

    #[test]
    fn class_list_and_folders_must_agree() {
        let dir = tree(&[
            "sneaker/1.png",
            "sneaker/2.png",
            "sandal/1.png",
            "sandal/2.png",
        ]);
        let with = |classes: &[&str]| FolderOptions {
            classes: Some(classes.iter().map(|c| c.to_string()).collect()),
            ..Default::default()
        };
        let message = error(&dir, &with(&["sneakers", "sandal"]));
        assert!(message.contains("did you mean `sneakers`?"), "{message}");
        let message = error(&dir, &with(&["sneaker", "sandal", "boot"]));
        assert!(
            message.contains("class `boot`") && message.contains("no folder"),
            "{message}"
        );
        let message = error(&dir, &with(&["sneaker", "sandal", "Sandal"]));
        assert!(message.contains("duplicate"), "{message}");
        let options = FolderOptions {
            class_names: BTreeMap::from([("sneeker".into(), "x".into())]),
            ..Default::default()
        };
        let message = error(&dir, &options);
        assert!(message.contains("did you mean `sneaker`?"), "{message}");
    }

    #[test]
    fn duplicate_class_names() {
        let dir = tree(&[
            "ice_cream/1.png",
            "ice_cream/2.png",
            "ice cream/1.png",
            "ice cream/2.png",
        ]);
        assert!(matches!(
            open(&dir).unwrap_err(),
            DataError::DuplicateClass { .. }
        ));
        let dir = tree(&["one/1.png", "one/2.png", "two/1.png", "two/2.png"]);
        let options = FolderOptions {
            class_names: BTreeMap::from([("two".into(), "One".into())]),
            ..Default::default()
        };
        assert!(error(&dir, &options).contains("`one` and `One`"));
    }

    #[test]
    fn fraction_out_of_range_or_out_of_place() {
        let dir = tree(&["train/a/1.png", "test/a/1.png"]);
        for (fraction, part) in [
            (0.0, "above 0"),
            (1.0, "below 1"),
            (f64::NAN, "NaN"),
            (0.3, "already split"),
        ] {
            let options = FolderOptions {
                test_fraction: Some(fraction),
                ..Default::default()
            };
            let message = error(&dir, &options);
            assert!(message.contains(part), "{message}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_once_and_never_join_the_splits() {
        use std::os::unix::fs::symlink;
        let dir = tree(&["a/1.png", "a/2.png", "b/1.png", "b/2.png"]);
        symlink(dir.path().join("a"), dir.path().join("a/loop")).unwrap();
        symlink(dir.path().join("a/1.png"), dir.path().join("a/3.png")).unwrap();
        let folder = open(&dir).unwrap();
        assert_eq!(folder.train.len() + folder.test.len(), 4);

        let dir = tree(&["train/a/1.png", "test/a/2.png"]);
        symlink(
            dir.path().join("train/a/1.png"),
            dir.path().join("test/a/1.png"),
        )
        .unwrap();
        assert!(matches!(open(&dir).unwrap_err(), DataError::Overlap { .. }));

        let dir = tree(&["a/1.png", "a/2.png"]);
        symlink(dir.path().join("gone.png"), dir.path().join("a/3.png")).unwrap();
        let folder = open(&dir).unwrap();
        assert_eq!(folder.train.len() + folder.test.len(), 3);
        let images = [&folder.train, &folder.test].map(|images| {
            let index = (0..images.len()).find(|&i| images.name(i).ends_with("3.png"))?;
            images.load(index).err()
        });
        let error = images.into_iter().flatten().next().unwrap();
        assert!(error.is_of_an_image(), "{error}");
    }
}

//! Image folders in the ImageNet layout: one folder per class, with or without `train/` and
//! `test/` folders around them.
//!
//! Files and folders are sorted by the bytes of their names, so the order is the same on every
//! file system. Hidden entries (`.name`) and `__MACOSX` are ignored. Class folders are searched
//! recursively. Symbolic links are followed, but within a class each folder and each file counts
//! once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::DynamicImage;

use super::order::{permutation, rng_for};
use super::{DataError, ImageSource, decode};
use crate::nearest;

const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Folder names of the test split. The first that exists is taken.
const TEST_NAMES: [&str; 4] = ["test", "val", "valid", "validation"];

/// One image file.
#[derive(Debug, Clone)]
pub(super) struct ImageFile {
    /// Path relative to the dataset's folder.
    pub(super) relative: PathBuf,
    /// Size in bytes.
    size: u64,
    /// Canonical path, with links resolved.
    pub(super) canonical: PathBuf,
}

/// A list of image files as an [`ImageSource`]. A part of an [`ImageFolder`] or [`CaptionFolder`].
///
/// [`CaptionFolder`]: super::CaptionFolder
#[derive(Debug, Clone)]
pub struct ImageFiles {
    root: PathBuf,
    files: Vec<ImageFile>,
}

impl ImageFiles {
    pub(super) fn new(root: &Path, files: Vec<ImageFile>) -> Self {
        Self {
            root: root.to_owned(),
            files,
        }
    }

    /// Returns the path of image `index`.
    ///
    /// # Panics
    /// If `index` is out of range.
    pub fn path(&self, index: usize) -> PathBuf {
        self.root.join(&self.files[index].relative)
    }
}

impl ImageSource for ImageFiles {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn name(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    /// Returns the path relative to the dataset's folder, and the size of the file.
    fn identity(&self, index: usize) -> String {
        let file = &self.files[index];
        let parts: Vec<_> = file.relative.iter().map(|p| p.to_string_lossy()).collect();
        format!("{} {}", parts.join("/"), file.size)
    }

    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        let path = self.path(index);
        let bytes = std::fs::read(&path).map_err(|source| DataError::Io {
            path: path.clone(),
            source,
        })?;
        decode(&bytes, &path.display().to_string())
    }
}

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
}

/// Default of [`FolderOptions::test_fraction`].
pub(crate) const DEFAULT_TEST_FRACTION: f64 = 0.2;

/// Layout of an [`ImageFolder`].
#[derive(Debug, Clone, PartialEq)]
pub enum Layout {
    /// A train and a test folder with class folders in each.
    TrainTest {
        /// Name of the train folder.
        train: String,
        /// Name of the test folder: `test`, or else `val`, `valid` or `validation`.
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
    /// It contains `train/` and `test/` (or `val/`, `valid/`, `validation/`) with the same class
    /// folders in both, or class folders that are split at random. Images are listed, not decoded.
    ///
    /// # Errors
    /// [`DataError`] with the path and a remedy: a missing folder, no class folder, an empty class,
    /// a class in one split only, a class folder that is not in the class list, a list entry
    /// without a folder, duplicate class names, a file in both splits.
    pub fn open(path: &Path, options: &FolderOptions) -> Result<Self, DataError> {
        let fraction = options.test_fraction.unwrap_or(DEFAULT_TEST_FRACTION);
        check_fraction("test_fraction", fraction)?;
        let folders = subfolders(path)?;
        let find = |wanted: &str| folders.iter().find(|f| f.eq_ignore_ascii_case(wanted));
        let (train, test) = (find("train"), TEST_NAMES.iter().find_map(|n| find(n)));
        let (mut splits, layout) = match (train, test) {
            (Some(train), Some(test)) => {
                if options.test_fraction.is_some() {
                    return Err(DataError::Layout(format!(
                        "`test_fraction` is given, but {} is already split into `{train}` \
                         and `{test}`: remove the setting",
                        path.display()
                    )));
                }
                let splits = [
                    classes_in(path, Some(train), options)?,
                    classes_in(path, Some(test), options)?,
                ];
                check_same_classes(path, [train, test], &splits)?;
                let layout = Layout::TrainTest {
                    train: train.clone(),
                    test: test.clone(),
                };
                (splits, layout)
            }
            _ => {
                // A class may be called "train". Only a folder of folders is a split.
                for (split, missing) in [(train, "test"), (test, "train")] {
                    if let Some(split) = split
                        && holds_only_folders(&path.join(split))?
                    {
                        return Err(DataError::MissingHalf {
                            present: path.join(split),
                            missing,
                        });
                    }
                }
                let all = classes_in(path, None, options)?;
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
        Ok(Self {
            class_names,
            train: Arc::new(ImageFiles::new(path, train)),
            train_labels,
            test: Arc::new(ImageFiles::new(path, test)),
            test_labels,
            layout,
        })
    }
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
) -> Result<Vec<ClassFolder>, DataError> {
    let base = split.map_or_else(|| root.to_owned(), |split| root.join(split));
    let folders = subfolders(&base)?;
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
    for folder in folders {
        let name = options
            .class_names
            .get(&folder)
            .cloned()
            .unwrap_or_else(|| folder.replace('_', " "));
        let below = split.map_or_else(|| PathBuf::from(&folder), |h| Path::new(h).join(&folder));
        let files = images_in(root, &below)?;
        if files.is_empty() {
            return Err(DataError::EmptyClass {
                class: name,
                path: root.join(below),
            });
        }
        classes.push(ClassFolder {
            folder,
            name,
            files,
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
fn label_order(
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

/// Returns two names that CLIP's tokenizer, which lower-cases and collapses spaces, maps to the
/// same tokens.
pub(crate) fn duplicate_name<'a>(
    names: impl IntoIterator<Item = &'a str>,
) -> Option<(String, String)> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    for name in names {
        let spaced = name.replace('_', " ").to_lowercase();
        let key = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some(first) = seen.insert(key, name) {
            return Some((first.to_owned(), name.to_owned()));
        }
    }
    None
}

/// Concatenates the files of the classes in label order, with a label for each file.
fn flatten(classes: &mut [ClassFolder], order: &[usize]) -> (Vec<ImageFile>, Vec<usize>) {
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

fn hidden(name: &str) -> bool {
    name.starts_with('.') || name == "__MACOSX"
}

/// Returns the names of the folders in `path`, sorted.
fn subfolders(path: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for (name, entry) in entries(path)? {
        // Class names are text, so the folder's name must be valid UTF-8.
        if metadata(&entry)?.is_dir() {
            names.push(name.into_string().map_err(|_| {
                DataError::Layout(format!(
                    "the name of folder {} is not UTF-8",
                    entry.display()
                ))
            })?);
        }
    }
    Ok(names)
}

fn holds_only_folders(path: &Path) -> Result<bool, DataError> {
    let mut folders = false;
    for (_, entry) in entries(path)? {
        if metadata(&entry)?.is_dir() {
            folders = true;
        } else if is_image(&entry) {
            return Ok(false);
        }
    }
    Ok(folders)
}

/// Lists the entries of a folder that are not hidden, sorted by the bytes of their names.
fn entries(path: &Path) -> Result<Vec<(std::ffi::OsString, PathBuf)>, DataError> {
    let io = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            DataError::MissingFolder {
                path: path.to_owned(),
            }
        }
        _ => DataError::Io {
            path: path.to_owned(),
            source,
        },
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        if !hidden(&entry.file_name().to_string_lossy()) {
            found.push((entry.file_name(), entry.path()));
        }
    }
    found.sort_by(|a, b| a.0.as_encoded_bytes().cmp(b.0.as_encoded_bytes()));
    Ok(found)
}

/// Returns the metadata of the file that `path` resolves to.
fn metadata(path: &Path) -> Result<std::fs::Metadata, DataError> {
    std::fs::metadata(path).map_err(|source| DataError::Io {
        path: path.to_owned(),
        source,
    })
}

fn is_image(path: &Path) -> bool {
    path.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// Lists all images below `root/below`, sorted by path.
pub(super) fn images_in(root: &Path, below: &Path) -> Result<Vec<ImageFile>, DataError> {
    let (mut files, mut visited, mut seen) = (Vec::new(), HashSet::new(), HashSet::new());
    walk(root, below, &mut files, &mut visited)?;
    files.retain(|f| seen.insert(f.canonical.clone()));
    Ok(files)
}

fn walk(
    root: &Path,
    below: &Path,
    files: &mut Vec<ImageFile>,
    visited: &mut HashSet<PathBuf>,
) -> Result<(), DataError> {
    let folder = root.join(below);
    let canonical = canonicalize(&folder)?;
    // A link to a parent folder would otherwise recurse forever.
    if !visited.insert(canonical.clone()) {
        return Ok(());
    }
    for (name, path) in entries(&folder)? {
        let relative = below.join(&name);
        let metadata = metadata(&path)?;
        if metadata.is_dir() {
            walk(root, &relative, files, visited)?;
        } else if is_image(&path) {
            files.push(ImageFile {
                relative,
                size: metadata.len(),
                canonical: if path.is_symlink() {
                    canonicalize(&path)?
                } else {
                    canonical.join(&name)
                },
            });
        }
    }
    Ok(())
}

/// Returns the image file `root/relative`, for datasets with a table of files.
pub(super) fn single_file(root: &Path, relative: &str) -> Result<ImageFile, DataError> {
    let path = root.join(relative);
    let size = metadata(&path)?.len();
    Ok(ImageFile {
        relative: relative.into(),
        size,
        canonical: canonicalize(&path)?,
    })
}

fn canonicalize(path: &Path) -> Result<PathBuf, DataError> {
    std::fs::canonicalize(path).map_err(|source| DataError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

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

    fn names(files: &ImageFiles) -> Vec<String> {
        files
            .files
            .iter()
            .map(|f| f.relative.display().to_string())
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
        let error = error(&dir, &FolderOptions::default());
        assert!(error.contains("class `b` is empty"), "{error}");
        assert!(
            error.contains(&dir.path().join("b").display().to_string()),
            "{error}"
        );
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
        assert!(error(&dir, &FolderOptions::default()).contains("3.png"));
    }
}

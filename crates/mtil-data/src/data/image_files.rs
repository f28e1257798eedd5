//! Image files below a folder: the rule that tells them from other files, and their list.
//!
//! Entries are sorted by the bytes of their names, so the order is the same on every file system.
//! Hidden entries (`.name`) and those that operating systems, network drives and archivers add
//! (`__MACOSX`, `@eaDir`) are ignored. Symbolic links are followed, but below a folder each folder
//! and each file counts once. A link to nothing with the name of an image is an image that cannot
//! be read.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clip_model::preprocess::DecodeOptions;
use image::{DynamicImage, ImageFormat};

use super::{DataError, ImageSource, decode_with};

/// Suffixes of image files, in lower case.
const SUFFIXES: [&str; 10] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff",
];

/// Names of entries that are no content of a dataset, whatever the case of their letters.
const SYSTEM_NAMES: [&str; 13] = [
    "__MACOSX",
    "__pycache__",
    "@eaDir",
    "@Recycle",
    "@Recently-Snapshot",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
];

/// Number of suffixes that a text names.
const SHOWN_SUFFIXES: usize = 5;

/// Returns true if the last component of `path` is hidden or the name of a system's folder or file.
///
/// ```
/// use mtil_data::data::is_ignored_name;
///
/// assert!(is_ignored_name("cats/@eaDir") && is_ignored_name("._1.jpg"));
/// assert!(!is_ignored_name("cats"));
/// ```
pub fn is_ignored_name(path: impl AsRef<Path>) -> bool {
    let name = path.as_ref().file_name().map(OsStr::to_string_lossy);
    name.is_some_and(|name| {
        let is_system = || {
            SYSTEM_NAMES
                .iter()
                .any(|system| name.eq_ignore_ascii_case(system))
        };
        name.starts_with('.') || is_system()
    })
}

/// Returns true if `path` has the suffix of an image and is not [ignored](is_ignored_name).
///
/// ```
/// use mtil_data::data::is_image_name;
///
/// assert!(is_image_name("cats/1.JPG") && is_image_name("1.tiff"));
/// assert!(!is_image_name("cats/._1.jpg") && !is_image_name("cats/1.txt"));
/// ```
pub fn is_image_name(path: impl AsRef<Path>) -> bool {
    is_image_with_suffix(path.as_ref(), &SUFFIXES)
}

/// Returns true if `path` has one of the suffixes and is not [ignored](is_ignored_name).
pub(crate) fn is_image_with_suffix(path: &Path, suffixes: &[&str]) -> bool {
    let suffix = path.extension().and_then(OsStr::to_str);
    !is_ignored_name(path)
        && suffix.is_some_and(|s| suffixes.iter().any(|known| s.eq_ignore_ascii_case(known)))
}

/// Returns true for the name of an image, and for a file without a suffix that begins like one.
fn is_image(path: &Path, metadata: Option<&Metadata>) -> bool {
    if path.extension().is_some() || !metadata.is_some_and(Metadata::is_file) {
        return is_image_name(path);
    }
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(32).read_to_end(&mut start));
    read.is_ok() && begins_like_an_image(&start)
}

fn begins_like_an_image(start: &[u8]) -> bool {
    match image::guess_format(start) {
        // Two letters alone could be a text: the size of the header follows the file's header.
        Ok(ImageFormat::Bmp) => [12, 40, 52, 56, 64, 108, 124]
            .iter()
            .any(|size: &u32| start.get(14..18) == Some(&size.to_le_bytes()[..])),
        Ok(format) => [
            ImageFormat::Jpeg,
            ImageFormat::Png,
            ImageFormat::WebP,
            ImageFormat::Gif,
            ImageFormat::Tiff,
        ]
        .contains(&format),
        Err(_) => false,
    }
}

/// Number of files that are not images, by suffix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtherFiles {
    /// Number of files of each suffix in lower case, with its dot; empty for none.
    pub suffixes: BTreeMap<String, usize>,
    /// One of the files.
    pub example: Option<PathBuf>,
}

impl OtherFiles {
    /// Returns the number of files.
    pub fn count(&self) -> usize {
        self.suffixes.values().sum()
    }

    pub(crate) fn add(&mut self, path: &Path) {
        let suffix = path.extension().map(OsStr::to_string_lossy);
        let suffix = suffix.map_or_else(String::new, |s| format!(".{}", s.to_lowercase()));
        *self.suffixes.entry(suffix).or_default() += 1;
        self.example.get_or_insert_with(|| path.to_owned());
    }

    pub(super) fn append(&mut self, other: Self) {
        for (suffix, count) in other.suffixes {
            *self.suffixes.entry(suffix).or_default() += count;
        }
        self.example = self.example.take().or(other.example);
    }
}

/// The most frequent suffixes with their numbers: `12 .heic, 3 without a suffix`.
impl std::fmt::Display for OtherFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut all: Vec<(&str, usize)> = self
            .suffixes
            .iter()
            .map(|(suffix, &count)| (suffix.as_str(), count))
            .collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let rest: usize = all
            .iter()
            .skip(SHOWN_SUFFIXES)
            .map(|(_, count)| count)
            .sum();
        let mut texts: Vec<String> = all
            .iter()
            .take(SHOWN_SUFFIXES)
            .map(|(suffix, count)| match *suffix {
                "" => format!("{count} without a suffix"),
                suffix => format!("{count} {suffix}"),
            })
            .collect();
        if rest > 0 {
            texts.push(format!("{rest} others"));
        }
        f.write_str(&texts.join(", "))
    }
}

/// One image file.
#[derive(Debug, Clone)]
pub(super) struct ImageFile {
    /// Path relative to the dataset's folder.
    pub(super) relative: PathBuf,
    /// Size in bytes.
    size: u64,
    /// Time of the last change, if the file system has it.
    modified: Option<SystemTime>,
    /// Canonical path, with links resolved.
    pub(super) canonical: PathBuf,
}

/// A list of image files as an [`ImageSource`]. A part of an [`ImageFolder`] or [`CaptionFolder`].
///
/// [`ImageFolder`]: super::ImageFolder
/// [`CaptionFolder`]: super::CaptionFolder
#[derive(Debug, Clone)]
pub struct ImageFiles {
    root: PathBuf,
    files: Vec<ImageFile>,
    decode: DecodeOptions,
}

impl ImageFiles {
    pub(super) fn new(root: &Path, files: Vec<ImageFile>) -> Self {
        Self {
            root: root.to_owned(),
            files,
            decode: DecodeOptions::default(),
        }
    }

    /// Decodes the images with these options.
    #[must_use]
    pub fn with_decode_options(mut self, options: DecodeOptions) -> Self {
        self.decode = options;
        self
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

    fn modified(&self, index: usize) -> Option<SystemTime> {
        self.files[index].modified
    }

    fn encoded(&self, index: usize) -> Result<Option<Vec<u8>>, DataError> {
        let path = self.path(index);
        let read = std::fs::read(&path);
        read.map(Some)
            .map_err(|source| DataError::Io { path, source })
    }

    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        let bytes = self.encoded(index)?.unwrap_or_default();
        decode_with(&bytes, &self.name(index), self.decode)
    }
}

/// The folders and images directly in a folder.
pub(super) struct Entries {
    /// Names of the folders, sorted.
    pub(super) folders: Vec<String>,
    /// Number of images.
    pub(super) images: usize,
}

impl Entries {
    pub(super) fn read(path: &Path) -> Result<Self, DataError> {
        let mut found = Self {
            folders: Vec::new(),
            images: 0,
        };
        for (name, entry) in entries(path)? {
            let metadata = metadata_of_target(&entry)?;
            if metadata.as_ref().is_some_and(Metadata::is_dir) {
                // Class names are text, so the folder's name must be valid UTF-8.
                found.folders.push(name.into_string().map_err(|_| {
                    DataError::Layout(format!(
                        "the name of folder {} is not UTF-8",
                        entry.display()
                    ))
                })?);
            } else if is_image(&entry, metadata.as_ref()) {
                found.images += 1;
            } else if metadata.is_none() {
                // The link may have led to a class.
                return Err(DataError::Io {
                    path: entry,
                    source: ErrorKind::NotFound.into(),
                });
            }
        }
        Ok(found)
    }
}

/// Lists the entries of a folder that are not ignored, sorted by the bytes of their names.
fn entries(path: &Path) -> Result<Vec<(OsString, PathBuf)>, DataError> {
    let io = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => DataError::MissingFolder {
            path: path.to_owned(),
        },
        _ => DataError::Io {
            path: path.to_owned(),
            source,
        },
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        if !is_ignored_name(entry.file_name()) {
            found.push((entry.file_name(), entry.path()));
        }
    }
    found.sort_by(|a, b| a.0.as_encoded_bytes().cmp(b.0.as_encoded_bytes()));
    Ok(found)
}

/// Returns the metadata of the file that `path` resolves to.
fn metadata(path: &Path) -> Result<Metadata, DataError> {
    std::fs::metadata(path).map_err(|source| DataError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Returns the metadata of the file that `path` resolves to, or `None` for a link to nothing.
fn metadata_of_target(path: &Path) -> Result<Option<Metadata>, DataError> {
    match metadata(path) {
        Err(DataError::Io { source, .. })
            if source.kind() == ErrorKind::NotFound && path.is_symlink() =>
        {
            Ok(None)
        }
        found => found.map(Some),
    }
}

/// Lists all images below `root/below`, sorted by path, and counts the other files.
pub(super) fn images_in(
    root: &Path,
    below: &Path,
) -> Result<(Vec<ImageFile>, OtherFiles), DataError> {
    let mut walk = Walk {
        root,
        files: Vec::new(),
        others: OtherFiles::default(),
        visited: HashSet::new(),
    };
    walk.folder(below)?;
    let mut seen = HashSet::new();
    walk.files.retain(|f| seen.insert(f.canonical.clone()));
    Ok((walk.files, walk.others))
}

/// Lists images: files that are named, and all images below folders that are named, sorted by
/// path.
///
/// A named file counts as an image whatever its name is.
///
/// ```
/// use mtil_data::data::{ImageSource as _, find_images};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path();
/// for name in ["b.png", "a.jpg", "._a.jpg", "notes.txt"] {
///     std::fs::write(path.join(name), b"")?;
/// }
/// let images = find_images(&[path.to_owned()])?;
/// assert_eq!(images.len(), 2);
/// assert_eq!(images.path(0), path.join("a.jpg"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`DataError::Io`] if a file or a folder cannot be read.
pub fn find_images(paths: &[PathBuf]) -> Result<ImageFiles, DataError> {
    let mut files = Vec::new();
    for path in paths {
        let metadata = metadata(path)?;
        if metadata.is_dir() {
            let (found, _) = images_in(path, Path::new(""))?;
            files.extend(found.into_iter().map(|file| ImageFile {
                relative: path.join(&file.relative),
                ..file
            }));
        } else {
            files.push(ImageFile {
                relative: path.clone(),
                size: metadata.len(),
                modified: metadata.modified().ok(),
                canonical: canonicalize(path)?,
            });
        }
    }
    Ok(ImageFiles::new(Path::new(""), files))
}

/// Recursive listing of a folder.
struct Walk<'a> {
    root: &'a Path,
    files: Vec<ImageFile>,
    others: OtherFiles,
    visited: HashSet<PathBuf>,
}

impl Walk<'_> {
    fn folder(&mut self, below: &Path) -> Result<(), DataError> {
        let folder = self.root.join(below);
        let canonical = canonicalize(&folder)?;
        // A link to a parent folder would otherwise recurse forever.
        if !self.visited.insert(canonical.clone()) {
            return Ok(());
        }
        for (name, path) in entries(&folder)? {
            let relative = below.join(&name);
            let metadata = metadata_of_target(&path)?;
            if metadata.as_ref().is_some_and(Metadata::is_dir) {
                self.folder(&relative)?;
            } else if is_image(&path, metadata.as_ref()) {
                // A link to nothing is an image that cannot be read, which `load` reports.
                self.files.push(ImageFile {
                    relative,
                    size: metadata.as_ref().map_or(0, Metadata::len),
                    modified: metadata.as_ref().and_then(|data| data.modified().ok()),
                    canonical: if metadata.is_some() && path.is_symlink() {
                        canonicalize(&path)?
                    } else {
                        canonical.join(&name)
                    },
                });
            } else {
                self.others.add(&path);
            }
        }
        Ok(())
    }
}

/// Returns the image file `root/relative`, for datasets with a table of files.
pub(super) fn single_file(root: &Path, relative: &str) -> Result<ImageFile, DataError> {
    let path = root.join(relative);
    let metadata = metadata(&path)?;
    Ok(ImageFile {
        relative: relative.into(),
        size: metadata.len(),
        modified: metadata.modified().ok(),
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
mod tests {
    use super::*;

    fn put(dir: &tempfile::TempDir, path: &str, bytes: &[u8]) {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn every_suffix_of_an_image_counts_and_other_files_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let images = [
            "1.jpg", "2.JPEG", "3.jpe", "4.jfif", "5.png", "6.webp", "7.bmp", "8.gif", "9.Tif",
            "A.tiff",
        ];
        for name in images {
            put(&dir, &format!("a/{name}"), b"x");
        }
        for name in ["b.heic", "c.HEIC", "d.txt", "e", "._f.jpg", "Thumbs.db"] {
            put(&dir, &format!("a/{name}"), b"x");
        }
        let (files, others) = images_in(dir.path(), Path::new("a")).unwrap();
        let names: Vec<_> = files
            .iter()
            .map(|f| f.relative.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, images);
        assert_eq!(others.count(), 4);
        assert_eq!(others.to_string(), "2 .heic, 1 without a suffix, 1 .txt");
        assert_eq!(others.example, Some(dir.path().join("a/b.heic")));
    }

    #[test]
    fn many_suffixes_are_shown_in_part() {
        let mut others = OtherFiles::default();
        for i in 0..9 {
            others.add(Path::new(&format!("image.{i:03}")));
        }
        assert_eq!(
            others.to_string(),
            "1 .000, 1 .001, 1 .002, 1 .003, 1 .004, 4 others"
        );
    }

    #[test]
    fn a_file_without_a_suffix_is_an_image_if_it_begins_like_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(2, 2)
            .write_to(&mut png, ImageFormat::Png)
            .unwrap();
        put(&dir, "a/1", png.get_ref());
        put(&dir, "a/2", b"\xff\xd8\xff\xe0");
        put(&dir, "a/3", b"GIF89a");
        let mut bmp = b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0".to_vec();
        bmp.extend([40, 0, 0, 0, 2, 0, 0, 0]);
        put(&dir, "a/4", &bmp);
        put(&dir, "a/README", b"BM is not only the start of a bitmap");
        put(&dir, "a/empty", b"");
        let (files, others) = images_in(dir.path(), Path::new("a")).unwrap();
        let names: Vec<_> = files.iter().map(|f| f.relative.clone()).collect();
        assert_eq!(names, ["a/1", "a/2", "a/3", "a/4"].map(PathBuf::from));
        assert_eq!(others.to_string(), "2 without a suffix");
    }

    #[test]
    fn folders_of_systems_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [
            "a/@eaDir",
            "a/#recycle",
            "a/$recycle.bin",
            "a/.ipynb_checkpoints",
        ] {
            put(&dir, &format!("{folder}/1.png"), b"x");
        }
        put(&dir, "@eaDir/1.png", b"x");
        put(&dir, "lost+found/1.png", b"x");
        put(&dir, "a/1.png", b"x");
        put(&dir, "1.png", b"x");
        assert_eq!(
            images_in(dir.path(), Path::new("a")).unwrap().0.len(),
            1,
            "a/1.png"
        );
        let found = Entries::read(dir.path()).unwrap();
        assert_eq!((found.folders, found.images), (vec!["a".to_owned()], 1));
    }

    #[test]
    fn images_are_found_in_folders_and_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "a/2.jpg",
            "a/10.jpg",
            "a/._2.jpg",
            "a/.ipynb_checkpoints/2.jpg",
            "a/b/1.tif",
            "a/b/notes.txt",
            "picture.data",
        ] {
            put(&dir, name, b"x");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("a/b/up")).unwrap();
            std::os::unix::fs::symlink("2.jpg", dir.path().join("a/3.jpg")).unwrap();
        }
        let named = ["picture.data", "a"].map(|name| dir.path().join(name));
        let images = find_images(&named).unwrap();
        let found: Vec<_> = (0..images.len()).map(|i| images.path(i)).collect();
        let expected = ["picture.data", "a/10.jpg", "a/2.jpg", "a/b/1.tif"];
        assert_eq!(found, expected.map(|name| dir.path().join(name)));
        let error = find_images(&[dir.path().join("gone")]).unwrap_err();
        assert!(matches!(error, DataError::Io { .. }), "{error}");
        assert!(find_images(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_file_knows_when_it_was_changed() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir, "a/1.png", b"x");
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let file = File::options()
            .write(true)
            .open(dir.path().join("a/1.png"))
            .unwrap();
        file.set_modified(time).unwrap();
        let (files, _) = images_in(dir.path(), Path::new("a")).unwrap();
        let images = ImageFiles::new(dir.path(), files);
        assert_eq!(images.modified(0), Some(time));
        assert_eq!(images.identity(0), "a/1.png 1");
        let one = ImageFiles::new(
            dir.path(),
            vec![single_file(dir.path(), "a/1.png").unwrap()],
        );
        assert_eq!(one.modified(0), Some(time));
    }

    #[test]
    fn images_with_more_pixels_than_the_options_allow_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.png");
        image::RgbImage::new(4, 3).save(&path).unwrap();
        let limited = |max_pixels| {
            let images = find_images(std::slice::from_ref(&path)).unwrap();
            images.with_decode_options(DecodeOptions { max_pixels })
        };
        assert!(limited(12).load(0).is_ok());
        let error = limited(11).load(0).unwrap_err();
        assert!(
            matches!(
                error,
                DataError::TooManyPixels {
                    width: 4,
                    height: 3,
                    maximum: 11,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_is_an_unreadable_image_or_another_file() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        put(&dir, "a/1.jpg", b"x");
        for name in ["a/2.jpg", "a/notes"] {
            symlink("/nowhere/at/all", dir.path().join(name)).unwrap();
        }
        let (files, others) = images_in(dir.path(), Path::new("a")).unwrap();
        assert_eq!(others.to_string(), "1 without a suffix");
        let images = ImageFiles::new(dir.path(), files);
        let found = [0, 1].map(|i| images.identity(i));
        assert_eq!(found, ["a/1.jpg 1", "a/2.jpg 0"]);
        let error = images.load(1).unwrap_err();
        assert!(error.is_of_an_image() && error.to_string().contains("2.jpg"));
        let images = find_images(&[dir.path().join("a")]).unwrap();
        assert_eq!(images.len(), 2);
        // Beside class folders a link to nothing may have been a class.
        symlink("/nowhere/at/all", dir.path().join("b")).unwrap();
        let error = Entries::read(dir.path()).err().unwrap();
        assert!(
            matches!(&error, DataError::Io { path, .. } if path.ends_with("b")),
            "{error}"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn names_that_are_not_utf8_are_refused_for_classes_and_kept_for_images() {
        use std::os::unix::ffi::OsStrExt as _;
        let dir = tempfile::tempdir().unwrap();
        let odd = OsStr::from_bytes(b"caf\xe9");
        let folder = dir.path().join(odd);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(OsStr::from_bytes(b"\xff.jpg")), b"x").unwrap();
        let error = Entries::read(dir.path()).err().unwrap().to_string();
        let want = format!("the name of folder {} is not UTF-8", folder.display());
        assert_eq!(error, want);
        let images = find_images(std::slice::from_ref(&folder)).unwrap();
        assert_eq!(images.path(0).file_name().unwrap().as_bytes(), b"\xff.jpg");
        assert!(
            images.name(0).ends_with("\u{fffd}.jpg"),
            "{}",
            images.name(0)
        );
    }
}

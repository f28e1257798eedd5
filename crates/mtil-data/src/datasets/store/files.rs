//! Files of a data root by path, in folders and archives.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use clip_model::preprocess::DecodeOptions;

use super::{
    archive::{ArchiveIndex, normalize},
    error::{ArchiveError, MAX_FILE},
    folder,
};
use crate::{data::is_ignored_name, datasets::error::DatasetError};

/// An archive in place of the files it contains: tar, tar.gz or zip, detected from content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archive {
    /// Path of the archive relative to the data root or to `mount`, such as `102flowers.tgz`.
    pub file: String,
    /// Folder in the data root in which its members appear, such as `flowers-102`. Empty for the
    /// root itself.
    pub mount: String,
    /// Path of a nested archive with the members. Caltech's zip contains
    /// `caltech-101/101_ObjectCategories.tar.gz`.
    pub inner: Option<String>,
}

/// The files of a dataset by path relative to the data root, in folders and archives.
///
/// Paths are separated by `/` on every system. A file in a folder takes precedence over one in an
/// archive, and an earlier archive over a later one. Cheap to clone, and shared by threads.
///
/// ```
/// use mtil_data::datasets::store::Store;
///
/// # let root = tempfile::tempdir()?;
/// std::fs::create_dir(root.path().join("meta"))?;
/// std::fs::write(root.path().join("meta/classes.txt"), "apple\n")?;
/// let store = Store::open(root.path(), &[])?;
/// assert_eq!(store.files("meta")?, ["meta/classes.txt"]);
/// assert_eq!(store.text("meta/classes.txt")?, "apple\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    decode: DecodeOptions,
}

struct Shared {
    root: PathBuf,
    archives: Vec<MountedArchive>,
}

/// An archive that exists on disk.
struct MountedArchive {
    archive: Archive,
    path: PathBuf,
    /// Index of the archive, built on first use.
    index: OnceLock<Result<ArchiveIndex, ArchiveError>>,
}

impl MountedArchive {
    fn index(&self) -> Result<&ArchiveIndex, DatasetError> {
        self.index
            .get_or_init(|| ArchiveIndex::open(&self.path, self.archive.inner.as_deref()))
            .as_ref()
            .map_err(|fault| self.error(fault.clone()))
    }

    fn error(&self, fault: ArchiveError) -> DatasetError {
        DatasetError::Archive {
            path: self.path.clone(),
            member: fault.member,
            reason: fault.reason,
        }
    }

    /// Returns `path` relative to the mount, or `None` if it is outside.
    fn relative_to_mount<'a>(&self, path: &'a str) -> Option<&'a str> {
        match self.archive.mount.as_str() {
            "" => Some(path),
            mount => path.strip_prefix(mount)?.strip_prefix('/'),
        }
    }
}

/// Location of a file.
enum Location<'a> {
    Disk(PathBuf, u64),
    Member(&'a MountedArchive, &'a ArchiveIndex, &'a str),
}

impl Store {
    /// Opens the data root `root`.
    ///
    /// Archives are looked for at `root/<file>` and `root/<mount>/<file>`. Missing ones are
    /// ignored. None is read yet.
    ///
    /// # Errors
    /// [`DatasetError::Io`] if `root` is not a readable folder.
    pub fn open(root: &Path, archives: &[Archive]) -> Result<Self, DatasetError> {
        std::fs::read_dir(root).map_err(|source| DatasetError::Io {
            path: root.to_owned(),
            source,
        })?;
        let archives = archives
            .iter()
            .filter_map(|archive| {
                let path = [
                    root.join(&archive.file),
                    root.join(&archive.mount).join(&archive.file),
                ]
                .into_iter()
                .find(|path| path.is_file())?;
                let mut archive = archive.clone();
                archive.mount = archive.mount.trim_matches('/').to_owned();
                Some(MountedArchive {
                    archive,
                    path,
                    index: OnceLock::new(),
                })
            })
            .collect();
        Ok(Self {
            shared: Arc::new(Shared {
                root: root.to_owned(),
                archives,
            }),
            decode: DecodeOptions::default(),
        })
    }

    /// Decodes the images of a [`StoreImages`](super::StoreImages) of this store with these
    /// options.
    #[must_use]
    pub fn with_decode_options(mut self, options: DecodeOptions) -> Self {
        self.decode = options;
        self
    }

    pub(super) fn decode_options(&self) -> DecodeOptions {
        self.decode
    }

    /// Returns the data root.
    pub fn root(&self) -> &Path {
        &self.shared.root
    }

    /// Finds a file by its normalized path. An archive that cannot be read is an error only if no
    /// later archive contains the file.
    fn find<'a>(&'a self, path: &'a str) -> Result<Option<Location<'a>>, DatasetError> {
        let on_disk = self.shared.root.join(path);
        if let Ok(meta) = std::fs::metadata(&on_disk)
            && meta.is_file()
        {
            return Ok(Some(Location::Disk(on_disk, meta.len())));
        }
        let mut fault = None;
        for mounted in &self.shared.archives {
            let Some(below) = mounted.relative_to_mount(path) else {
                continue;
            };
            match mounted.index() {
                Ok(index) if index.contains(below) => {
                    return Ok(Some(Location::Member(mounted, index, below)));
                }
                Ok(_) => {}
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        fault.map_or(Ok(None), Err)
    }

    /// Returns true if there is a file `path`.
    ///
    /// Also returns true if an archive that may contain it cannot be read. Reading the file then
    /// returns the error of the archive.
    pub fn exists(&self, path: &str) -> bool {
        match normalized(path) {
            Ok(path) => !matches!(self.find(&path), Ok(None)),
            Err(_) => false,
        }
    }

    /// Returns the content of a file.
    ///
    /// # Errors
    /// [`DatasetError::NoFile`], [`DatasetError::Io`], [`DatasetError::Archive`],
    /// [`DatasetError::TooLarge`] above 1 GiB, or [`DatasetError::Outside`].
    pub fn read(&self, path: &str) -> Result<Vec<u8>, DatasetError> {
        let path = normalized(path)?;
        match self.find(&path)? {
            Some(Location::Disk(path, size)) => {
                if size > MAX_FILE {
                    return Err(DatasetError::TooLarge {
                        name: path.display().to_string(),
                        size,
                        limit: MAX_FILE,
                    });
                }
                std::fs::read(&path).map_err(|source| DatasetError::Io { path, source })
            }
            Some(Location::Member(mounted, index, below)) => {
                index.read(below).map_err(|fault| mounted.error(fault))
            }
            None => Err(self.no_file(path)),
        }
    }

    fn no_file(&self, path: String) -> DatasetError {
        let archives = self.shared.archives.iter();
        let places = std::iter::once(self.shared.root.display().to_string())
            .chain(
                archives
                    .filter(|mounted| mounted.relative_to_mount(&path).is_some())
                    .map(|mounted| mounted.path.display().to_string()),
            )
            .collect();
        DatasetError::NoFile { path, places }
    }

    /// Returns the content of a text file.
    ///
    /// The encoding is UTF-8, or Latin-1 if it is not valid UTF-8. A byte order mark is removed;
    /// line endings are kept.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn text(&self, path: &str) -> Result<String, DatasetError> {
        let mut bytes = self.read(path)?;
        if bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| {
            // Latin-1 is the first 256 code points.
            error.as_bytes().iter().copied().map(char::from).collect()
        }))
    }

    /// Lists every regular file below `folder`, recursively.
    ///
    /// Returns paths relative to the data root, sorted by bytes, or an empty list if there is no
    /// such folder. Folders with an [ignored name](crate::data::is_ignored_name) are left out: they
    /// hold copies of images. Links to folders are followed, except to a parent folder. Archives
    /// that may contain such files are indexed even if they were unpacked. For an archive of 37 GB
    /// this takes minutes the first time.
    ///
    /// # Errors
    /// [`DatasetError::Io`], [`DatasetError::Archive`] or [`DatasetError::Outside`].
    pub fn files(&self, folder: &str) -> Result<Vec<String>, DatasetError> {
        let folder = normalized(folder)?;
        let mut found = folder::files(&self.shared.root, &folder)?;
        let prefix = match folder.as_str() {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        for mounted in &self.shared.archives {
            let mount = match mounted.archive.mount.as_str() {
                "" => String::new(),
                mount => format!("{mount}/"),
            };
            let below = if let Some(below) = prefix.strip_prefix(&mount) {
                below
            } else if mount.starts_with(&prefix) {
                ""
            } else {
                continue;
            };
            let index = mounted.index()?;
            found.extend(
                index
                    .with_prefix(below)
                    .map(|path| format!("{mount}{path}")),
            );
        }
        let in_ignored_folder = |path: &String| {
            let folders = path[prefix.len()..].rsplit_once('/');
            folders.is_some_and(|(folders, _)| folders.split('/').any(is_ignored_name))
        };
        found.retain(|path| !in_ignored_folder(path));
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Returns the size of a file in bytes.
    pub fn size(&self, path: &str) -> Option<u64> {
        let path = normalized(path).ok()?;
        match self.find(&path).ok()?? {
            Location::Disk(_, size) => Some(size),
            Location::Member(_, index, below) => index.size(below),
        }
    }

    /// Returns the time of the last change of a file, or of the archive that contains it.
    pub fn modified(&self, path: &str) -> Option<SystemTime> {
        let path = normalized(path).ok()?;
        let on_disk = match self.find(&path).ok()?? {
            Location::Disk(path, _) => path,
            Location::Member(mounted, _, _) => mounted.path.clone(),
        };
        std::fs::metadata(on_disk).ok()?.modified().ok()
    }

    /// Returns the human-readable location of a file, such as `/data/food-101/meta/train.json` or
    /// `/data/food-101.tar.gz: food-101/meta/train.json`.
    pub fn describe(&self, path: &str) -> String {
        if let Ok(path) = normalized(path)
            && let Ok(Some(Location::Member(mounted, index, below))) = self.find(&path)
        {
            return format!("{}: {}", mounted.path.display(), index.describe(below));
        }
        self.shared.root.join(path).display().to_string()
    }
}

fn normalized(path: &str) -> Result<String, DatasetError> {
    normalize("", path).ok_or_else(|| DatasetError::Outside { path: path.into() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const ARCHIVES: [&str; 9] = [
        "ustar.tar",
        "gnu.tar",
        "pax.tar",
        "one.tgz",
        "two.tgz",
        "big.tgz",
        "some.zip",
        "nested-stored.zip",
        "nested-deflated.zip",
    ];

    fn fixture(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/datasets/testdata");
        std::fs::read(folder.join(name)).unwrap()
    }

    /// The archive `name`, mounted at `m`.
    fn archive(name: &str) -> Archive {
        Archive {
            file: name.into(),
            mount: "m".into(),
            inner: name
                .starts_with("nested")
                .then(|| "outer/inner.tar.gz".into()),
        }
    }

    /// A store whose only file is an archive of this name and content.
    fn store_of(name: &str, bytes: &[u8]) -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(name), bytes).unwrap();
        let store = Store::open(root.path(), &[archive(name)]).unwrap();
        (root, store)
    }

    fn crc(bytes: &[u8]) -> u64 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum().into()
    }

    /// Path, size and checksum of each member, as read by Python.
    fn manifest(name: &str) -> BTreeMap<String, [u64; 2]> {
        let text = fixture("archives.json");
        let mut all: BTreeMap<String, BTreeMap<String, [u64; 2]>> =
            serde_json::from_slice(&text).unwrap();
        let members = all.remove(name).unwrap().into_iter();
        members
            .map(|(path, expected)| (path.replacen("set/", "m/set/", 1), expected))
            .collect()
    }

    #[test]
    fn every_archive_reads_as_python_reads_it() {
        for name in ARCHIVES {
            let (_root, store) = store_of(name, &fixture(name));
            let expected = manifest(name);
            let paths: Vec<&String> = expected.keys().collect();
            assert_eq!(
                store.files("m").unwrap().iter().collect::<Vec<_>>(),
                paths,
                "{name}"
            );
            assert_eq!(store.files("").unwrap().len(), expected.len() + 1, "{name}");
            let below: Vec<_> = paths
                .iter()
                .filter(|p| p.starts_with("m/set/images/"))
                .collect();
            assert_eq!(
                store.files("m/set/images").unwrap().len(),
                below.len(),
                "{name}"
            );
            for (path, [size, checksum]) in &expected {
                let bytes = store.read(path).unwrap();
                assert_eq!(
                    (bytes.len() as u64, crc(&bytes)),
                    (*size, *checksum),
                    "{name}: {path}"
                );
                assert_eq!(store.size(path), Some(*size), "{name}: {path}");
                assert!(store.exists(path), "{name}: {path}");
                let place = store.describe(path);
                let inside = path.replacen("m/", "", 1);
                assert!(place.contains(name) && place.ends_with(&inside), "{place}");
            }
            for absent in [
                "m",
                "m/set/images",
                "m/none",
                "set/meta/train.txt",
                "images/a/1.jpg",
                "mm/set/images/a/1.jpg",
            ] {
                assert!(!store.exists(absent), "{name}: {absent}");
                let error = store.read(absent).unwrap_err();
                assert!(matches!(error, DatasetError::NoFile { .. }), "{error}");
            }
        }
    }

    #[test]
    fn many_threads_read_at_once() {
        for name in ARCHIVES {
            let (_root, store) = store_of(name, &fixture(name));
            let expected = manifest(name);
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (store, expected) = (store.clone(), &expected);
                    scope.spawn(move || {
                        let members = expected.iter().cycle().skip(thread * 3).take(60);
                        for (path, [_, checksum]) in members {
                            let bytes = store.read(path).unwrap();
                            assert_eq!(crc(&bytes), *checksum, "{name}: {path}");
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn folders_win_and_archives_serve_the_rest() {
        let (root, store) = store_of("one.tgz", &fixture("one.tgz"));
        std::fs::create_dir_all(root.path().join("m/set/images/a")).unwrap();
        std::fs::write(root.path().join("m/set/images/a/1.jpg"), b"own").unwrap();
        std::fs::write(root.path().join("m/set/images/a/more.jpg"), b"more").unwrap();
        assert_eq!(store.read("m/set/images/a/1.jpg").unwrap(), b"own");
        assert_eq!(store.size("m/set/images/a/1.jpg"), Some(3));
        let place = root
            .path()
            .join("m/set/images/a/1.jpg")
            .display()
            .to_string();
        assert_eq!(store.describe("m/set/images/a/1.jpg"), place);
        assert_eq!(store.read("m/set/images/a/2.jpg").unwrap().len(), 512);
        let files = store.files("m/set/images/a").unwrap();
        let names = ["1.jpg", "10.jpg", "2.jpg", "more.jpg"].map(|n| format!("m/set/images/a/{n}"));
        assert_eq!(files, names);
    }

    #[test]
    fn an_archive_may_lie_in_its_mount_and_an_earlier_one_wins() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("m")).unwrap();
        std::fs::write(root.path().join("m/one.tgz"), fixture("one.tgz")).unwrap();
        std::fs::write(root.path().join("gnu.tar"), fixture("gnu.tar")).unwrap();
        let archives = ["none.tar", "gnu.tar", "one.tgz"].map(archive);
        let store = Store::open(root.path(), &archives).unwrap();
        assert!(store.describe("m/set/meta/train.txt").contains("gnu.tar: "));
        assert!(
            store
                .describe("m/set/images/soft.jpg")
                .contains("one.tgz: ")
        );
        assert!(Store::open(&root.path().join("none"), &archives).is_err());
    }

    #[test]
    fn an_archive_is_not_read_before_it_is_needed() {
        let (root, store) = store_of("one.tgz", b"\x1f\x8b no gzip header");
        std::fs::create_dir_all(root.path().join("m")).unwrap();
        std::fs::write(root.path().join("m/a.jpg"), b"a").unwrap();
        assert_eq!(store.read("m/a.jpg").unwrap(), b"a");
        assert!(!store.exists("elsewhere/b.jpg"), "not below its mount");
        // The archive may contain it, and reading returns the error of the archive.
        assert!(store.exists("m/b.jpg"));
        for error in [
            store.read("m/b.jpg").unwrap_err(),
            store.files("m").unwrap_err(),
        ] {
            let message = error.to_string();
            assert!(
                message.contains("one.tgz") && message.contains("gzip header"),
                "{message}"
            );
        }
        assert_eq!(store.size("m/b.jpg"), None);
    }

    #[test]
    fn half_an_archive_is_an_error_that_names_it() {
        for name in ARCHIVES {
            let whole = fixture(name);
            // tar archives end with an end mark of 1024 bytes.
            for end in [600, whole.len() / 2, whole.len() - 1025] {
                let (_root, store) = store_of(name, &whole[..end]);
                let message = store.read("m/set/meta/train.txt").unwrap_err().to_string();
                assert!(message.contains(name), "{message}");
                assert!(message.contains("half downloaded?"), "{message}");
            }
        }
    }

    #[test]
    fn links_that_lead_nowhere_are_refused_when_read() {
        let (_root, store) = store_of("one.tgz", &fixture("one.tgz"));
        for (path, reason) in [
            ("m/set/images/out.jpg", "out of the archive"),
            ("m/set/images/absolute.jpg", "out of the archive"),
            ("m/set/images/dangling.jpg", "which is not in the archive"),
            ("m/set/images/loop.jpg", "link to itself"),
        ] {
            assert!(store.exists(path));
            assert_eq!(store.size(path), None);
            let message = store.read(path).unwrap_err().to_string();
            assert!(
                message.contains(reason) && message.contains("set/images/"),
                "{message}"
            );
        }
        for device in ["m/set/images/null", "m/set/images/pipe"] {
            assert!(!store.exists(device));
        }
    }

    #[test]
    fn members_that_lead_out_of_the_archive_are_refused() {
        for name in ["../evil.jpg", "set/../../evil.jpg", "/etc/evil.jpg"] {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(0);
            header.set_cksum();
            let bytes = [header.as_bytes().as_slice(), &[0; 1024]].concat();
            let (_root, store) = store_of("evil.tar", &bytes);
            let message = store.read("m/evil.jpg").unwrap_err().to_string();
            assert!(
                message.contains(name) && message.contains("not to be trusted"),
                "{message}"
            );
        }
    }

    #[test]
    fn paths_that_lead_out_of_the_root_are_refused() {
        let (_root, store) = store_of("one.tgz", &fixture("one.tgz"));
        for path in ["../secret", "/etc/passwd", "m/../../secret"] {
            assert!(!store.exists(path));
            assert_eq!(store.size(path), None);
            for error in [
                store.read(path).unwrap_err(),
                store.files(path).unwrap_err(),
            ] {
                assert!(matches!(error, DatasetError::Outside { .. }), "{error}");
            }
        }
        assert_eq!(store.read("./m//set/images/a/2.jpg").unwrap().len(), 512);
    }

    #[test]
    fn what_is_no_archive_is_refused_by_name() {
        let gzipped_text =
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xcbH\xcd\xc9\xc9\x07\0\x86\xa6\x106\x05\0\0\0";
        for (bytes, expected) in [
            (&b""[..], "empty"),
            (b"<!DOCTYPE html>", "web page"),
            (b"BZh91AY", "bzip2"),
            (b"\xfd7zXZ\0", "xz"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"some text", "neither tar, tar.gz nor zip"),
            (gzipped_text, "tar archive ends early"),
        ] {
            let (_root, store) = store_of("a.tar.gz", bytes);
            let message = store.read("m/x").unwrap_err().to_string();
            assert!(
                message.contains(expected) && message.contains("a.tar.gz"),
                "{message}"
            );
        }
        let (_root, store) = store_of("nested.zip", &fixture("some.zip"));
        let message = store.read("m/x").unwrap_err().to_string();
        assert!(message.contains("holds no outer/inner.tar.gz"), "{message}");
    }

    #[test]
    fn folders_of_systems_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "set/a/1.jpg",
            "set/a/@eaDir/1.jpg",
            "set/.ipynb_checkpoints/1.jpg",
            "@eaDir/set/1.jpg",
        ] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"x").unwrap();
        }
        let store = Store::open(root.path(), &[]).unwrap();
        assert_eq!(store.files("").unwrap(), ["set/a/1.jpg"]);
        assert_eq!(store.files("set/a").unwrap(), ["set/a/1.jpg"]);
        assert_eq!(store.files("@eaDir").unwrap(), ["@eaDir/set/1.jpg"]);
    }

    #[test]
    fn a_file_has_the_time_of_its_change_and_a_member_that_of_its_archive() {
        let (root, store) = store_of("one.tgz", &fixture("one.tgz"));
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let path = root.path().join("one.tgz");
        let archive = std::fs::File::options().write(true).open(path).unwrap();
        archive.set_modified(time).unwrap();
        assert_eq!(store.modified("one.tgz"), Some(time));
        assert_eq!(store.modified("m/set/images/a/1.jpg"), Some(time));
        assert_eq!(store.modified("m/none"), None);
    }

    #[test]
    fn texts_are_utf_8_or_latin_1() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path(), &[]).unwrap();
        for (bytes, expected) in [
            (&b"\xef\xbb\xbfa\r\nb"[..], "a\r\nb"),
            ("Grüße".as_bytes(), "Grüße"),
            (b"Gr\xfc\xdfe", "Grüße"),
            (b"", ""),
        ] {
            std::fs::write(root.path().join("a.txt"), bytes).unwrap();
            assert_eq!(store.text("a.txt").unwrap(), expected);
        }
    }

    #[test]
    fn very_long_files_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(root.path().join("long")).unwrap();
        file.set_len(MAX_FILE + 1).unwrap();
        let error = Store::open(root.path(), &[])
            .unwrap()
            .read("long")
            .unwrap_err();
        assert!(matches!(error, DatasetError::TooLarge { .. }), "{error}");
    }
}

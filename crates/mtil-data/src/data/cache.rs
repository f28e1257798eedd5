//! On-disk cache of preprocessed images, so that repeated evaluations decode each image once.
//!
//! It stores the 8-bit crops of the evaluation transform, which is deterministic. The random crops
//! of training are never cached: they are resized from the original pixels, and no smaller image
//! gives them exactly.
//!
//! # File format
//!
//! Each dataset and transform has one file. All numbers are little-endian.
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `MTILPIX` and a zero |
//! | 4 | version of the format, [`VERSION`] |
//! | 4 | length of the key |
//! | 8 | number of images |
//! | 4 | side of the crops in pixels |
//! | 4 | CRC-32 of the preceding bytes and of the key |
//! | length of the key | UTF-8: the dataset's fingerprint, the side and the transform |
//! | padding to a multiple of 4096 | zeros |
//! | 4 per image | table of checksums, 0 for an absent image |
//! | padding to a multiple of 4096 | zeros |
//! | side · side · 3 per image | slots: the pixels of each image, row by row |
//!
//! A checksum is the CRC-32 of the image's index (8 bytes), the time of the last change of its file
//! (nanoseconds since 1970, 8 bytes; absent for images that are in no file), and its pixels, with 1
//! in place of 0. Earlier versions left out the time. Their slots are used for files that have not
//! changed since the cache was created.
//!
//! # Consistency
//!
//! The file has its full length from the start, and is sparse if the file system supports that. A
//! slot is written before its checksum, and every read verifies the checksum. A crash, or two
//! processes that write the same slot, may cost a decoding but never yield wrong pixels. A file
//! that is corrupt, truncated, or of another version or key is replaced by an empty one. The
//! folder may be deleted at any time: processes that have the file open continue with the deleted
//! file.
//!
//! A dataset is identified by the [`ImageSource::identity`] of its images, names and sizes for
//! files. A slot is that of one image, as it was at the time of its last change
//! ([`ImageSource::modified`]): a replaced image is decoded again, even if it has the same name and
//! size.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use clip_model::files::temporary_file_beside;
use image::RgbImage;
use sha2::{Digest, Sha256};

use super::ImageSource;

/// Version of the file format.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"MTILPIX\0";
const HEADER: usize = 32;
const PAGE: u64 = 4096;

/// Error while opening or writing a cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The folder or the file cannot be created or read.
    #[error(
        "cannot use the image cache {}: {source}",
        path.display()
    )]
    Open {
        /// The folder or file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// An image cannot be written, for example because the disk is full.
    #[error(
        "cannot write to the image cache {}: {source}; no more images are added to it",
        path.display()
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The crops have no pixels, or the file would exceed the largest file size.
    #[error("{count} images of {side} x {side} pixels cannot be cached in one file")]
    Size {
        /// Number of images.
        count: usize,
        /// Side of the crops in pixels.
        side: u32,
    },
}

/// Counters of a cache since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Images found.
    pub hits: u64,
    /// Images not found.
    pub misses: u64,
    /// Images that were corrupt or could not be read. They do not count as misses. A corrupt image
    /// of a file with a time of change counts as a miss: it could be of the file before a change.
    pub damaged: u64,
    /// Images written.
    pub stored: u64,
}

impl CacheStats {
    /// Adds the counters of another cache.
    pub fn add(&mut self, other: &Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.damaged += other.damaged;
        self.stored += other.stored;
    }
}

/// An on-disk cache of the preprocessed images of one dataset, shared by threads and processes.
///
/// ```
/// use mtil_data::data::{ImageSource as _, PixelCache};
/// use mtil_data::datasets::store::{PixelLayout, RawImages};
///
/// # let dir = tempfile::tempdir()?;
/// let images = RawImages::new("digits", vec![7_u8; 2 * 8 * 8], 8, 8, PixelLayout::Grey)?;
/// let cache = PixelCache::open(dir.path(), &images, "identity", 8)?;
/// assert!(cache.get(0).is_none());
/// cache.put(0, &images.load(0)?.to_rgb8());
/// assert!(cache.get(0).is_some());
/// assert_eq!(cache.stats().hits, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PixelCache {
    path: PathBuf,
    file: PositionalFile,
    layout: FileLayout,
    /// Time of the last change of each image.
    modified: Vec<Option<SystemTime>>,
    /// Time of the creation of the file, if the file system has it.
    created: Option<SystemTime>,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    stored: AtomicU64,
    disabled: AtomicBool,
    error: Mutex<Option<CacheError>>,
}

impl PixelCache {
    /// Opens the cache of `source` in `folder`, and creates both if absent.
    ///
    /// `transform` identifies the preprocessing. Transforms that give different pixels need
    /// different texts, since equal texts share a file. `side` is the side of the crops in pixels.
    ///
    /// # Errors
    /// [`CacheError`] if the folder or the file cannot be created or read. A corrupt file is not an
    /// error: it is replaced.
    pub fn open(
        folder: &Path,
        source: &dyn ImageSource,
        transform: &str,
        side: u32,
    ) -> Result<Self, CacheError> {
        let key = format!(
            "images {}\nside {side}\ntransform {transform}",
            fingerprint(source)
        );
        let layout = FileLayout::new(key, source.len(), side)?;
        let path = folder.join(format!(
            "{}.pixels",
            &hex(&Sha256::digest(&layout.key))[..24]
        ));
        let file = layout.open(folder, &path)?;
        Ok(Self {
            path,
            created: file.metadata().and_then(|m| m.created()).ok(),
            modified: (0..source.len()).map(|i| source.modified(i)).collect(),
            file: PositionalFile::new(file),
            layout,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            disabled: AtomicBool::new(false),
            error: Mutex::new(None),
        })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the pixels of image `index` if they are stored and intact.
    pub fn get(&self, index: usize) -> Option<RgbImage> {
        if index >= self.layout.count {
            return None;
        }
        let mut entry = [0; 4];
        let mut pixels = Vec::new();
        let read = self
            .file
            .read(&mut entry, self.layout.entry_offset(index))
            .and_then(|()| {
                if entry != [0; 4] {
                    pixels.resize(self.layout.slot_bytes(), 0);
                    self.file
                        .read(&mut pixels, self.layout.slot_offset(index))?;
                }
                Ok(())
            });
        if read.is_ok() && entry == [0; 4] {
            self.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let entry = u32::from_le_bytes(entry);
        if read.is_err() || !self.is_current(index, entry, &pixels) {
            // The pixels of a file before it was changed are whole, but of no use.
            let counter = match read {
                Ok(()) if self.modified[index].is_some() => &self.misses,
                _ => &self.damaged,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.hits.fetch_add(1, Ordering::Relaxed);
        RgbImage::from_raw(self.layout.side, self.layout.side, pixels)
    }

    /// Stores the pixels of image `index`.
    ///
    /// Does nothing if the index is out of range, if the image has another size than the cache, or
    /// after a failed write. [`take_error`](Self::take_error) returns the failure.
    pub fn put(&self, index: usize, image: &RgbImage) {
        let side = self.layout.side;
        if index >= self.layout.count
            || image.dimensions() != (side, side)
            || self.disabled.load(Ordering::Relaxed)
        {
            return;
        }
        let entry = checksum(index, self.modified[index], image.as_raw()).to_le_bytes();
        let written = self
            .file
            .write(image.as_raw(), self.layout.slot_offset(index))
            .and_then(|()| self.file.write(&entry, self.layout.entry_offset(index)));
        match written {
            Ok(()) => {
                self.stored.fetch_add(1, Ordering::Relaxed);
            }
            Err(source) => self.disable(source),
        }
    }

    /// Returns the failed write that stopped the caching. Returns it once, and `None` otherwise.
    pub fn take_error(&self) -> Option<CacheError> {
        self.error.lock().unwrap_or_else(|e| e.into_inner()).take()
    }

    /// Returns the counters since the cache was opened.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
            stored: self.stored.load(Ordering::Relaxed),
        }
    }

    /// Returns whether `entry` is the checksum of `pixels`, and these are of the file as it is.
    fn is_current(&self, index: usize, entry: u32, pixels: &[u8]) -> bool {
        let modified = self.modified[index];
        let unchanged = modified
            .zip(self.created)
            .is_some_and(|(modified, created)| modified < created);
        entry == checksum(index, modified, pixels)
            || unchanged && entry == checksum(index, None, pixels)
    }

    fn disable(&self, source: io::Error) {
        if !self.disabled.swap(true, Ordering::Relaxed) {
            let path = self.path.clone();
            *self.error.lock().unwrap_or_else(|e| e.into_inner()) =
                Some(CacheError::Write { path, source });
        }
    }
}

/// Header, offsets and length of a cache file.
#[derive(Debug)]
struct FileLayout {
    key: String,
    count: usize,
    side: u32,
    table_offset: u64,
    slots_offset: u64,
    length: u64,
}

impl FileLayout {
    fn new(key: String, count: usize, side: u32) -> Result<Self, CacheError> {
        let sizes = || {
            let table = (HEADER as u64 + key.len() as u64).next_multiple_of(PAGE);
            let entries = (count as u64).checked_mul(4)?;
            let slots = table.checked_add(entries)?.checked_next_multiple_of(PAGE)?;
            let slot = u64::from(side).pow(2).checked_mul(3)?;
            let length = slots.checked_add(slot.checked_mul(count as u64)?)?;
            (side > 0 && i64::try_from(length).is_ok() && usize::try_from(slot).is_ok())
                .then_some((table, slots, length))
        };
        let (table, slots, length) = sizes().ok_or(CacheError::Size { count, side })?;
        Ok(Self {
            key,
            count,
            side,
            table_offset: table,
            slots_offset: slots,
            length,
        })
    }

    fn slot_bytes(&self) -> usize {
        self.side as usize * self.side as usize * 3
    }

    fn entry_offset(&self, index: usize) -> u64 {
        self.table_offset + index as u64 * 4
    }

    fn slot_offset(&self, index: usize) -> u64 {
        self.slots_offset + index as u64 * self.slot_bytes() as u64
    }

    /// Returns the bytes before the padding and the table.
    fn header(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER + self.key.len());
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((self.key.len() as u32).to_le_bytes());
        header.extend((self.count as u64).to_le_bytes());
        header.extend(self.side.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header);
        crc.update(self.key.as_bytes());
        header.extend(crc.finalize().to_le_bytes());
        header.extend(self.key.as_bytes());
        header
    }

    fn open(&self, folder: &Path, path: &Path) -> Result<File, CacheError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| CacheError::Open { path, source }
        };
        if let Some(file) = self.existing(path).map_err(failed(path))? {
            return Ok(file);
        }
        fs::create_dir_all(folder).map_err(failed(folder))?;
        // Without the lock, two processes that start together would each create and fill a file,
        // and one of the two files would be lost.
        let lock = folder.join("lock");
        let held = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock)
            .map_err(failed(&lock))?;
        held.lock().map_err(failed(&lock))?;
        match self.existing(path).map_err(failed(path))? {
            Some(file) => Ok(file),
            None => self.create(path).map_err(failed(path)),
        }
    }

    /// Opens the file if it exists and has the expected header and length.
    fn existing(&self, path: &Path) -> io::Result<Option<File>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let expected = self.header();
        let mut header = vec![0; expected.len()];
        let whole = file.metadata()?.len() == self.length
            && io::Read::read_exact(&mut &file, &mut header).is_ok()
            && header == expected;
        Ok(whole.then_some(file))
    }

    /// Creates the file under a temporary name and renames it, so no process sees an incomplete
    /// file.
    fn create(&self, path: &Path) -> io::Result<File> {
        let file = temporary_file_beside(path)?;
        io::Write::write_all(&mut file.as_file(), &self.header())?;
        file.as_file().set_len(self.length)?;
        file.persist(path).map_err(|e| e.error)
    }
}

/// A file with positional reads and writes from several threads.
#[derive(Debug)]
struct PositionalFile {
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: Mutex<File>,
}

#[cfg(unix)]
impl PositionalFile {
    fn new(file: File) -> Self {
        Self { file }
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, at)
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, at)
    }
}

#[cfg(not(unix))]
impl PositionalFile {
    fn new(file: File) -> Self {
        Self {
            file: Mutex::new(file),
        }
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        io::Seek::seek(&mut *file, io::SeekFrom::Start(at))?;
        io::Read::read_exact(&mut *file, bytes)
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        io::Seek::seek(&mut *file, io::SeekFrom::Start(at))?;
        io::Write::write_all(&mut *file, bytes)
    }
}

/// Returns the number of images and the SHA-256 of their identities.
fn fingerprint(source: &dyn ImageSource) -> String {
    let mut hash = Sha256::new();
    for index in 0..source.len() {
        let identity = source.identity(index);
        hash.update((identity.len() as u64).to_le_bytes());
        hash.update(identity.as_bytes());
    }
    format!("{} {}", source.len(), hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Returns the checksum of image `index`, whose file was changed at `modified`. It is never 0,
/// which marks an absent image.
fn checksum(index: usize, modified: Option<SystemTime>, pixels: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&(index as u64).to_le_bytes());
    if let Some(time) = modified {
        let nanoseconds = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as u64,
            Err(before) => (before.duration().as_nanos() as u64).wrapping_neg(),
        };
        crc.update(&nanoseconds.to_le_bytes());
    }
    crc.update(pixels);
    crc.finalize().max(1)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use image::{DynamicImage, Rgb};

    use super::*;
    use crate::data::DataError;

    const SIDE: u32 = 8;
    const COUNT: usize = 40;

    struct Numbered(&'static str);

    impl ImageSource for Numbered {
        fn len(&self) -> usize {
            COUNT
        }

        fn name(&self, index: usize) -> String {
            format!("{}/{index}", self.0)
        }

        fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
            Ok(DynamicImage::ImageRgb8(crop(index)))
        }
    }

    fn crop(index: usize) -> RgbImage {
        RgbImage::from_fn(SIDE, SIDE, |x, y| {
            Rgb([index as u8, (x * 17 + index as u32) as u8, (y * 31) as u8])
        })
    }

    fn open(folder: &Path) -> PixelCache {
        PixelCache::open(folder, &Numbered("a"), "test", SIDE).unwrap()
    }

    fn filled(folder: &Path) -> PixelCache {
        let cache = open(folder);
        for index in 0..COUNT {
            cache.put(index, &crop(index));
        }
        cache
    }

    fn assert_empty(cache: &PixelCache) {
        assert!((0..COUNT).all(|i| cache.get(i).is_none()));
        let stats = cache.stats();
        assert_eq!((stats.misses, stats.damaged), (COUNT as u64, 0));
    }

    #[test]
    fn stored_images_are_found_and_others_are_absent() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("made/by/open");
        let cache = open(&folder);
        for index in (0..COUNT).step_by(3) {
            assert_eq!(cache.get(index), None);
            cache.put(index, &crop(index));
        }
        drop(cache);
        let cache = open(&folder);
        for index in 0..COUNT {
            assert_eq!(cache.get(index), (index % 3 == 0).then(|| crop(index)));
        }
        let expected = CacheStats {
            hits: 14,
            misses: 26,
            ..CacheStats::default()
        };
        assert_eq!(cache.stats(), expected);
    }

    /// Images of files that were changed at the given number of seconds after 1970.
    struct Changed(u64);

    impl ImageSource for Changed {
        fn len(&self) -> usize {
            COUNT
        }

        fn name(&self, index: usize) -> String {
            Numbered("a").name(index)
        }

        fn modified(&self, index: usize) -> Option<SystemTime> {
            // All but the first files are old.
            let seconds = if index == 0 { self.0 } else { 1000 };
            Some(UNIX_EPOCH + std::time::Duration::from_secs(seconds))
        }

        fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
            Numbered("a").load(index)
        }
    }

    fn open_changed(folder: &Path, seconds: u64) -> PixelCache {
        PixelCache::open(folder, &Changed(seconds), "test", SIDE).unwrap()
    }

    #[test]
    fn the_pixels_of_a_changed_file_are_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open_changed(dir.path(), 1000);
        cache.put(0, &crop(0));
        cache.put(1, &crop(1));
        assert_eq!(cache.get(0), Some(crop(0)));
        for seconds in [999, 1001] {
            let cache = open_changed(dir.path(), seconds);
            assert_eq!(cache.get(0), None);
            assert_eq!(cache.get(1), Some(crop(1)));
            let stats = cache.stats();
            assert_eq!((stats.hits, stats.misses, stats.damaged), (1, 1, 0));
        }
        // The same file with the new pixels.
        let cache = open_changed(dir.path(), 2000);
        cache.put(0, &crop(7));
        assert_eq!(cache.get(0), Some(crop(7)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "and the lock");
    }

    #[test]
    fn slots_of_earlier_versions_are_used_for_files_that_are_older_than_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        // Without times, checksums are those of earlier versions.
        let cache = filled(dir.path());
        let knows_creation = cache.created.is_some();
        let later = UNIX_EPOCH.elapsed().unwrap().as_secs() + 1000;
        let cache = open_changed(dir.path(), later);
        assert_eq!(cache.get(0), None);
        assert_eq!(cache.get(1), knows_creation.then(|| crop(1)));
    }

    #[test]
    fn each_dataset_transform_and_side_has_its_own_file() {
        let dir = tempfile::tempdir().unwrap();
        let paths: std::collections::BTreeSet<_> =
            [("a", "t", 8), ("b", "t", 8), ("a", "u", 8), ("a", "t", 9)]
                .map(|(source, transform, side)| {
                    let source = Numbered(source);
                    let cache = PixelCache::open(dir.path(), &source, transform, side).unwrap();
                    cache.path().to_owned()
                })
                .into();
        assert_eq!(paths.len(), 4);
    }

    #[test]
    fn images_of_another_size_or_number_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        cache.put(0, &RgbImage::new(SIDE, SIDE + 1));
        cache.put(COUNT, &crop(0));
        assert_eq!(cache.get(COUNT), None);
        assert_empty(&cache);
        assert!(matches!(
            PixelCache::open(dir.path(), &Numbered("a"), "test", 0),
            Err(CacheError::Size { .. })
        ));
    }

    #[test]
    fn a_truncated_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = filled(dir.path()).path().to_owned();
        let length = fs::metadata(&path).unwrap().len();
        for cut in [0, 10, 5000, length - 1, length + 1] {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(cut).unwrap();
            assert_empty(&open(dir.path()));
            filled(dir.path());
            assert_eq!(open(dir.path()).get(7), Some(crop(7)));
        }
    }

    #[test]
    fn a_file_of_another_version_or_with_a_damaged_header_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        for at in [0, 8, 12, 16, 24, 28, 40] {
            let cache = filled(dir.path());
            cache.file.write(&[99], at).unwrap();
            assert_empty(&open(dir.path()));
        }
    }

    #[test]
    fn corrupt_pixels_and_checksums_are_detected_and_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let cache = filled(dir.path());
        // A flipped bit, a wrong checksum, and two exchanged slots.
        let flipped = crop(3).as_raw()[50] ^ 1;
        cache
            .file
            .write(&[flipped], cache.layout.slot_offset(3) + 50)
            .unwrap();
        cache
            .file
            .write(&[1, 2, 3, 4], cache.layout.entry_offset(5))
            .unwrap();
        let (mut entries, mut slots) = ([0; 8], vec![0; 2 * cache.layout.slot_bytes()]);
        cache
            .file
            .read(&mut entries, cache.layout.entry_offset(10))
            .unwrap();
        cache
            .file
            .read(&mut slots, cache.layout.slot_offset(10))
            .unwrap();
        entries.rotate_left(4);
        slots.rotate_left(cache.layout.slot_bytes());
        cache
            .file
            .write(&entries, cache.layout.entry_offset(10))
            .unwrap();
        cache
            .file
            .write(&slots, cache.layout.slot_offset(10))
            .unwrap();
        for index in [3, 5, 10, 11] {
            assert_eq!(cache.get(index), None, "{index}");
            cache.put(index, &crop(index));
            assert_eq!(cache.get(index), Some(crop(index)));
        }
        assert_eq!(cache.stats().damaged, 4);
        assert_eq!(cache.get(4), Some(crop(4)));
    }

    #[test]
    fn a_file_truncated_while_open_costs_decodings_only() {
        let dir = tempfile::tempdir().unwrap();
        let cache = filled(dir.path());
        let file = OpenOptions::new().write(true).open(cache.path()).unwrap();
        file.set_len(cache.layout.slot_offset(20)).unwrap();
        assert_eq!(cache.get(19), Some(crop(19)));
        assert_eq!(cache.get(20), None);
        file.set_len(100).unwrap();
        assert_eq!(cache.get(0), None);
        assert_eq!(cache.stats().damaged, 2);
        cache.put(0, &crop(0));
        assert_eq!(cache.get(0), Some(crop(0)));
    }

    #[cfg(unix)]
    #[test]
    fn the_folder_may_be_deleted_while_open() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        let cache = filled(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(cache.get(1), Some(crop(1)));
        cache.put(2, &crop(2));
        assert!(cache.take_error().is_none());
        assert_empty(&open(&folder));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_stops_the_caching_and_is_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = filled(dir.path());
        // Writes to this device fail as on a full disk.
        let full = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/full")
            .unwrap();
        let cache = PixelCache {
            file: PositionalFile::new(full),
            ..cache
        };
        let stored = cache.stats().stored;
        for index in 0..COUNT {
            cache.put(index, &crop(index));
        }
        assert_eq!(cache.stats().stored, stored);
        let error = cache.take_error().unwrap().to_string();
        assert!(error.contains("No space left"), "{error}");
        assert!(
            error.contains(&cache.path().display().to_string()),
            "{error}"
        );
        assert!(cache.take_error().is_none());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        fs::write(&taken, b"").unwrap();
        let error = PixelCache::open(&taken, &Numbered("a"), "test", SIDE).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
    }

    /// Body of the child processes of `processes_fill_one_cache_together`; a no-op otherwise.
    #[test]
    fn fill_for_another_test() {
        let Ok(folder) = std::env::var("MTIL_TEST_CACHE") else {
            return;
        };
        let cache = open(Path::new(&folder));
        for index in (0..50).flat_map(|_| 0..COUNT) {
            if let Some(found) = cache.get(index) {
                assert_eq!(found, crop(index));
            }
            cache.put(index, &crop(index));
        }
        assert_eq!(cache.stats().damaged, 0);
    }

    #[test]
    fn processes_fill_one_cache_together() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        let children: Vec<_> = (0..3)
            .map(|_| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["fill_for_another_test", "--test-threads=1"])
                    .env("MTIL_TEST_CACHE", &folder)
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        let files = fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name());
        let pixels = files.filter(|name| name.to_string_lossy().ends_with(".pixels"));
        assert_eq!(pixels.count(), 1);
        let cache = open(&folder);
        assert!((0..COUNT).all(|i| cache.get(i) == Some(crop(i))));
    }

    #[test]
    fn threads_with_handles_of_their_own_see_each_other_s_images() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for start in 0..4 {
                let folder = dir.path();
                scope.spawn(move || {
                    let cache = open(folder);
                    for index in (start..COUNT).step_by(4) {
                        cache.put(index, &crop(index));
                    }
                });
            }
        });
        let cache = open(dir.path());
        assert!((0..COUNT).all(|i| cache.get(i) == Some(crop(i))));
    }
}

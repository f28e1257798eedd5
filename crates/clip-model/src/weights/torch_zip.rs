//! Reader of the zip archives of `torch.save` and `torch.jit.save`.
//!
//! | entry | content |
//! |---|---|
//! | `<root>/data.pkl` | the pickled object |
//! | `<root>/data/<key>` | the bytes of a storage |
//! | `<root>/byteorder` | `little`, or absent in old files |
//! | `<root>/constants.pkl`, `<root>/code/` | only in TorchScript; not read |
//!
//! The entries are stored uncompressed, so tensors are read in place and nothing is unpacked.

use std::{collections::BTreeMap, ops::Range, path::Path};

use zip::{
    CompressionMethod, ZipArchive,
    read::{ArchiveOffset, Config},
    result::ZipError,
};

use super::{
    Container, WeightError,
    error::sanitize,
    pickle::{Section, read_pickle},
    source::{Cursor, Source},
    state_dict::{Contents, collect_tensors},
};

/// Entry of an archive.
struct Entry {
    /// Byte range in the file.
    bytes: Range<u64>,
    /// Reason why the entry cannot be read, if any.
    unreadable: Option<&'static str>,
}

/// Reads the names and locations of the tensors in a zip archive.
///
/// # Errors
/// [`WeightError::Archive`] and [`WeightError::ArchiveEntry`] for damaged and unsafe archives, and
/// the errors of [`read_pickle`] and [`collect_tensors`].
pub(super) fn read(source: &Source<'_>, path: &Path) -> Result<(Container, Contents), WeightError> {
    let entries = read_directory(source, path)?;
    let mut roots = entries.keys().filter_map(|name| {
        let root = name.strip_suffix("/data.pkl")?;
        (!root.contains('/')).then_some(root)
    });
    let root = roots.next().ok_or_else(|| {
        WeightError::entry(
            path,
            "<root>/data.pkl",
            "is missing: this is not an archive of torch.save or torch.jit.save",
        )
    })?;
    if roots.next().is_some() {
        return Err(WeightError::entry(
            path,
            "data.pkl",
            "is there under two roots; fetch the file again",
        ));
    }
    let code = format!("{root}/code/");
    let is_script = entries.contains_key(&format!("{root}/constants.pkl"))
        && entries.keys().any(|name| name.starts_with(&code));

    let entry = |name: &str| match entries.get(name) {
        None => Err(WeightError::entry(
            path,
            &sanitize(name),
            "is missing; fetch the file again",
        )),
        Some(entry) => match entry.unreadable {
            Some(reason) => Err(WeightError::entry(path, &sanitize(name), reason)),
            None => Ok(entry.bytes.clone()),
        },
    };
    let byte_order = format!("{root}/byteorder");
    if entries.contains_key(&byte_order) {
        let bytes = entry(&byte_order)?;
        let shown = sanitize(&byte_order);
        let len = (bytes.end - bytes.start).min(16);
        if source.read_vec(path, &shown, bytes.start, len)? != b"little" {
            return Err(WeightError::entry(
                path,
                &shown,
                "is not `little`: save the file again on a little-endian machine",
            ));
        }
    }
    let pickle_name = format!("{root}/data.pkl");
    let bytes = entry(&pickle_name)?;
    let section = Section {
        path,
        name: &sanitize(&pickle_name),
        start: bytes.start,
        end: bytes.end,
        torch_script: is_script,
    };
    let pickle = read_pickle(source, section)?;
    let contents = collect_tensors(&pickle, section, &mut |key| {
        entry(&format!("{root}/data/{key}"))
    })?;
    let container = if is_script {
        Container::TorchScript
    } else {
        Container::TorchZip
    };
    Ok((container, contents))
}

/// Returns the entries of an archive, after checking that none overlap.
fn read_directory(
    source: &Source<'_>,
    path: &Path,
) -> Result<BTreeMap<String, Entry>, WeightError> {
    let archive_error = |reason: String| WeightError::Archive {
        path: path.to_owned(),
        reason,
    };
    let zip_error = |error: ZipError| archive_error(sanitize(&error.to_string()));
    // An offset could hide an archive behind the content of another file.
    let config = Config {
        archive_offset: ArchiveOffset::Known(0),
    };
    let mut archive = ZipArchive::with_config(config, Cursor::new(source)).map_err(zip_error)?;
    if archive.has_duplicate_names() {
        return Err(archive_error("two entries have the same name".to_owned()));
    }
    let directory_start = archive.central_directory_start();
    let mut entries = BTreeMap::new();
    let mut ranges = Vec::new();
    for index in 0..archive.len() {
        let file = archive.by_index_raw(index).map_err(zip_error)?;
        let name = str::from_utf8(file.name_raw())
            .map_err(|_| archive_error("the name of an entry is not UTF-8".to_owned()))?;
        let entry_error = |reason: &str| WeightError::entry(path, &sanitize(name), reason);
        let unsafe_part = |part: &str| part == ".." || part.contains(['\\', '\0', ':']);
        if name.starts_with('/') || name.split('/').any(unsafe_part) {
            return Err(entry_error(
                "leads out of the archive: do not use this file",
            ));
        }
        let end = file
            .data_start()
            .and_then(|start| Some((start, start.checked_add(file.compressed_size())?)))
            .filter(|(_, end)| *end <= directory_start && *end <= source.len());
        let Some((start, end)) = end else {
            return Err(entry_error(
                "lies outside the archive; fetch the file again",
            ));
        };
        let unreadable = if file.encrypted() {
            Some("is encrypted; decrypt the archive first")
        } else if file.compression() != CompressionMethod::Stored {
            Some("is compressed, which torch.save does not do; save the file again with torch.save")
        } else if file.size() != file.compressed_size() {
            Some("has two different sizes; fetch the file again")
        } else {
            None
        };
        let entry = Entry {
            bytes: start..end,
            unreadable,
        };
        ranges.push((file.header_start(), end, sanitize(name)));
        entries.insert(name.to_owned(), entry);
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let ((_, end, first), (start, _, second)) = (&pair[0], &pair[1]);
        if end > start {
            let reason = format!("overlaps `{first}`; fetch the file again");
            return Err(WeightError::entry(path, second, reason));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::super::{
        WeightFile,
        test_files::{ZipEntry, assert_rejected, floats, torch_entries, valid_pickle, zip_file},
    };
    use super::*;

    fn entries() -> Vec<ZipEntry> {
        torch_entries(&valid_pickle(), &floats(6))
    }

    /// Returns the archive with one entry (0 pickle, 1 byte order, 2 storage) modified.
    fn with_modified(index: usize, change: impl FnOnce(&mut ZipEntry)) -> Vec<u8> {
        let mut entries = entries();
        change(&mut entries[index]);
        zip_file(&entries)
    }

    #[test]
    fn archive_is_read_under_any_root_and_without_byteorder() {
        let mut entries = entries();
        entries.remove(1);
        for entry in &mut entries {
            entry.name = entry.name.replace("archive", "ViT-B-16");
        }
        let file = WeightFile::from_bytes(zip_file(&entries), Path::new("w.pt")).unwrap();
        assert_eq!(file.container(), Container::TorchZip);
        assert_eq!(file.read_f32("w").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn encrypted_and_compressed_entries_are_rejected() {
        assert_rejected(
            &with_modified(2, |e| e.flags = 1),
            "zip entry `archive/data/0` is encrypted",
        );
        assert_rejected(
            &with_modified(0, |e| e.flags = 1),
            "zip entry `archive/data.pkl` is encrypted",
        );
        assert_rejected(
            &with_modified(2, |e| e.method = 8),
            "zip entry `archive/data/0` is compressed",
        );
        assert_rejected(
            &with_modified(0, |e| e.method = 8),
            "zip entry `archive/data.pkl` is compressed",
        );
        assert_rejected(
            &with_modified(1, |e| e.method = 93),
            "zip entry `archive/byteorder` is compressed",
        );
    }

    #[test]
    fn zip_bombs_are_rejected() {
        // A declared size beyond the file, compressed or uncompressed.
        assert_rejected(
            &with_modified(2, |e| (e.size, e.compressed) = (1 << 30, 1 << 30)),
            "`archive/data/0` lies outside the archive",
        );
        assert_rejected(
            &with_modified(0, |e| (e.size, e.compressed) = (1 << 30, 1 << 30)),
            "`archive/data.pkl` lies outside the archive",
        );
        assert_rejected(
            &with_modified(2, |e| e.size = 1 << 30),
            "`archive/data/0` has two different sizes",
        );
        assert_rejected(
            &with_modified(2, |e| (e.size, e.method) = (1 << 30, 8)),
            "`archive/data/0` is compressed",
        );
        // Two entries with overlapping bytes.
        assert_rejected(
            &with_modified(2, |e| e.offset = Some(0)),
            "overlaps `archive/d",
        );
        assert_rejected(
            &with_modified(2, |e| e.compressed += 40),
            "overlaps `archive/data/0`",
        );
    }

    #[test]
    fn error_names_missing_and_duplicate_entries() {
        let without = |index: usize| {
            let mut entries = entries();
            entries.remove(index);
            zip_file(&entries)
        };
        assert_rejected(
            &without(0),
            "zip entry `<root>/data.pkl` is missing: this is not an archive of torch.save",
        );
        assert_rejected(&without(2), "zip entry `archive/data/0` is missing");
        assert_rejected(
            &with_modified(3, |e| e.name = "archive/data/0".to_owned()),
            "two entries have the same name",
        );
        assert_rejected(
            &with_modified(3, |e| e.name = "other/data.pkl".to_owned()),
            "is there under two roots",
        );
        assert_rejected(&zip_file(&[]), "`<root>/data.pkl` is missing");
    }

    #[test]
    fn path_traversal_is_rejected() {
        for name in [
            "../evil",
            "/etc/passwd",
            "archive/../../evil",
            "archive\\..\\evil",
            "C:/evil",
        ] {
            assert_rejected(
                &with_modified(3, |e| e.name = name.to_owned()),
                "leads out of the archive: do not use this file",
            );
        }
    }

    #[test]
    fn big_endian_archives_are_rejected() {
        assert_rejected(
            &with_modified(1, |e| e.data = b"bigbig".to_vec()),
            "zip entry `archive/byteorder` is not `little`",
        );
    }

    #[test]
    fn archive_after_other_bytes_is_rejected() {
        let hidden = [b"PK\x03\x04".as_slice(), &[7; 400], &zip_file(&entries())].concat();
        assert_rejected(&hidden, "invalid zip archive");
    }
}

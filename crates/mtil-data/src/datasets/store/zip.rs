//! Members of zip archives.

use std::{
    io::{self, Read},
    sync::Arc,
};

use zip::{CompressionMethod, ZipArchive, result::ZipError};

use super::{
    error::{ArchiveError, MAX_FILE},
    inflate::{Container, Indexer, Spacing},
    read_at::{Cursor, Part, ReadAt},
};

/// Maximum length of a link's target.
const MAX_LINK: u64 = 4096;

/// A zip archive with its central directory.
pub(super) struct Zip {
    source: Arc<dyn ReadAt>,
    archive: ZipArchive<Cursor>,
}

/// A file or link in a zip archive.
pub(super) struct Member {
    /// Path in the archive, not normalized.
    pub(super) name: String,
    pub(super) index: usize,
    pub(super) size: u64,
    /// Target of a link, relative to the member's folder.
    pub(super) link: Option<String>,
}

fn reason(error: ZipError) -> String {
    match error {
        ZipError::Io(error) => error.to_string(),
        other => format!("{other}: half downloaded? Download it again"),
    }
}

impl Zip {
    pub(super) fn open(source: Arc<dyn ReadAt>) -> Result<Self, ArchiveError> {
        let archive = ZipArchive::new(Cursor::new(Arc::clone(&source)))
            .map_err(|error| ArchiveError::of_archive(reason(error)))?;
        Ok(Self { source, archive })
    }

    /// Lists the members, without folders.
    pub(super) fn members(&self) -> Result<Vec<Member>, ArchiveError> {
        let mut archive = self.archive.clone();
        let mut members = Vec::with_capacity(archive.len());
        for index in 0..archive.len() {
            let file = archive
                .by_index_raw(index)
                .map_err(|error| ArchiveError::of_archive(reason(error)))?;
            // No dataset has a name that is not Unicode.
            let Ok(name) = file.name().map(|name| name.into_owned()) else {
                continue;
            };
            if file.is_dir() {
                continue;
            }
            let (size, is_link) = (file.size(), file.is_symlink());
            drop(file);
            let link = if is_link {
                let target = self
                    .read_at_most(index, MAX_LINK)
                    .map_err(|r| ArchiveError::of_member(&name, r))?;
                String::from_utf8(target).ok()
            } else {
                None
            };
            members.push(Member {
                name,
                index,
                size,
                link,
            });
        }
        Ok(members)
    }

    /// Returns the content of member `index`.
    pub(super) fn read(&self, index: usize) -> Result<Vec<u8>, String> {
        self.read_at_most(index, MAX_FILE)
    }

    fn read_at_most(&self, index: usize, limit: u64) -> Result<Vec<u8>, String> {
        let mut archive = self.archive.clone();
        let file = archive.by_index(index).map_err(reason)?;
        let size = file.size();
        if size > limit {
            return Err(format!(
                "it has {size} bytes: the longest that is read has {limit}"
            ));
        }
        // The declared size is not trusted: deflate expands by a factor of at most 1032.
        let likely = size
            .min(file.compressed_size().saturating_mul(1032))
            .min(16 << 20);
        let mut content = Vec::with_capacity(likely as usize);
        // One byte more than declared, so that the reader reaches the end and checks the CRC.
        file.take(size + 1)
            .read_to_end(&mut content)
            .map_err(|error| format!("{error}: it is damaged, download the archive again"))?;
        if content.len() as u64 != size {
            return Err(format!(
                "it has {} bytes, not the {size} that the archive declares: \
                 it is damaged, download the archive again",
                if content.len() as u64 > size {
                    "more".to_owned()
                } else {
                    content.len().to_string()
                }
            ));
        }
        Ok(content)
    }

    /// Returns member `index`, a nested archive, for positional reads.
    pub(super) fn open_nested(&self, index: usize) -> Result<Arc<dyn ReadAt>, String> {
        let mut archive = self.archive.clone();
        let file = archive.by_index_raw(index).map_err(reason)?;
        if file.encrypted() {
            return Err("it is encrypted: unpack the archive".into());
        }
        let start = file.data_start().ok_or("its place is unknown")?;
        let failed = |error: io::Error| error.to_string();
        let part =
            Part::new(Arc::clone(&self.source), start, file.compressed_size()).map_err(failed)?;
        match file.compression() {
            CompressionMethod::Stored => Ok(Arc::new(part)),
            CompressionMethod::Deflated => {
                let container = Container::Zip { crc: file.crc32() };
                let indexer = Indexer::new(Arc::new(part), container, Spacing::default());
                Ok(Arc::new(indexer.finish().map_err(failed)?))
            }
            other => Err(format!("it is compressed by {other}: unpack the archive")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::read_at::tests::Memory, *};

    const SOME: &[u8] = include_bytes!("../testdata/some.zip");

    fn open(bytes: &[u8]) -> Result<Zip, ArchiveError> {
        Zip::open(Arc::new(Memory(bytes.to_vec())))
    }

    fn member(zip: &Zip, name: &str) -> usize {
        let members = zip.members().unwrap();
        members.iter().find(|m| m.name == name).unwrap().index
    }

    /// Returns `some.zip` with a field of a member replaced in both headers. `local` and `central`
    /// are the offsets of the field in each.
    fn patched(name: &str, local: usize, central: usize, value: &[u8]) -> Vec<u8> {
        let mut bytes = SOME.to_vec();
        for (magic, at, name_at) in [(b"PK\x03\x04", local, 30), (b"PK\x01\x02", central, 46)] {
            let start = (0..bytes.len()).find(|&i| {
                bytes[i..].starts_with(magic)
                    && bytes
                        .get(i + name_at..)
                        .is_some_and(|b| b.starts_with(name.as_bytes()))
            });
            bytes[start.unwrap() + at..][..value.len()].copy_from_slice(value);
        }
        bytes
    }

    #[test]
    fn a_member_that_would_be_too_long_is_refused() {
        let zip = open(&patched(
            "set/images/a/2.jpg",
            22,
            24,
            &(MAX_FILE as u32 + 1).to_le_bytes(),
        ))
        .unwrap();
        let error = zip.read(member(&zip, "set/images/a/2.jpg")).unwrap_err();
        assert!(error.contains("1073741825 bytes"), "{error}");
    }

    #[test]
    fn a_member_that_is_longer_or_shorter_than_declared_is_refused() {
        for size in [511_u32, 513, 1 << 29] {
            let zip = open(&patched("set/images/a/2.jpg", 22, 24, &size.to_le_bytes())).unwrap();
            let error = zip.read(member(&zip, "set/images/a/2.jpg")).unwrap_err();
            assert!(
                error.contains("download the archive again"),
                "{size}: {error}"
            );
        }
    }

    #[test]
    fn damage_and_encryption_are_refused() {
        let zip = open(&patched("set/images/a/2.jpg", 14, 16, &[1, 2, 3, 4])).unwrap();
        let error = zip.read(member(&zip, "set/images/a/2.jpg")).unwrap_err();
        assert!(error.contains("download the archive again"), "{error}");
        let zip = open(&patched("set/images/a/2.jpg", 6, 8, &[1, 0])).unwrap();
        let index = member(&zip, "set/images/a/2.jpg");
        assert!(zip.read(index).is_err());
        assert!(zip.open_nested(index).err().unwrap().contains("encrypted"));
    }

    #[test]
    fn damaged_archives_do_not_panic() {
        for at in (0..SOME.len()).step_by(3) {
            let mut damaged = SOME.to_vec();
            damaged[at] ^= 0x91;
            if let Ok(zip) = open(&damaged)
                && let Ok(members) = zip.members()
            {
                for member in members {
                    let _ = zip.read(member.index);
                }
            }
        }
        for end in (0..SOME.len()).step_by(101) {
            let error = open(&SOME[..end]).err().unwrap();
            assert!(
                error.reason.contains("half downloaded?"),
                "{}",
                error.reason
            );
        }
    }
}

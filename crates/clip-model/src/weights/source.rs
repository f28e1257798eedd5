//! Positional reads through a shared reference.

use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use super::WeightError;

/// Content of a file, on disk or in memory.
pub(super) enum Source<'a> {
    /// Open file, with its length at the time of opening.
    File(SharedFile, u64),
    /// Content in memory.
    Bytes(Cow<'a, [u8]>),
}

impl Source<'_> {
    pub(super) fn open(path: &Path) -> Result<Self, WeightError> {
        let open = || -> io::Result<Self> {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(io::Error::other("not a regular file"));
            }
            Ok(Self::File(SharedFile::new(file), metadata.len()))
        };
        open().map_err(|e| WeightError::io(path, e))
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::File(_, len) => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `buffer` from byte `offset` on.
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.read_exact_at(buffer, offset),
            Self::Bytes(bytes) => {
                let part = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get(start..start.checked_add(buffer.len())?))
                    .ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(part);
                Ok(())
            }
        }
    }

    /// Reads `len` bytes at `offset`. The length of the file is checked before the allocation.
    /// `part` names the bytes in errors.
    pub(super) fn read_vec(
        &self,
        path: &Path,
        part: &str,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, WeightError> {
        let left = self.len().saturating_sub(offset);
        if len > left {
            return Err(WeightError::Truncated {
                path: path.to_owned(),
                part: part.to_owned(),
                needed: len,
                left,
            });
        }
        let len = usize::try_from(len)
            .map_err(|_| WeightError::io(path, io::ErrorKind::OutOfMemory.into()))?;
        let mut bytes = vec![0; len];
        self.read_exact_at(&mut bytes, offset)
            .map_err(|e| WeightError::io(path, e))?;
        Ok(bytes)
    }
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::File(..) => "File",
            Self::Bytes(_) => "Bytes",
        };
        write!(f, "{kind}({} bytes)", self.len())
    }
}

/// File with positional reads.
#[cfg(unix)]
pub(super) struct SharedFile(File);

#[cfg(unix)]
impl SharedFile {
    fn new(file: File) -> Self {
        Self(file)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buffer, offset)
    }
}

/// File with positional reads, emulated by a lock around seek and read.
#[cfg(not(unix))]
pub(super) struct SharedFile(std::sync::Mutex<File>);

#[cfg(not(unix))]
impl SharedFile {
    fn new(file: File) -> Self {
        Self(std::sync::Mutex::new(file))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(|e| e.into_inner());
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}

/// `Read` and `Seek` over a source.
pub(super) struct Cursor<'s, 'a> {
    source: &'s Source<'a>,
    position: u64,
}

impl<'s, 'a> Cursor<'s, 'a> {
    pub(super) fn new(source: &'s Source<'a>) -> Self {
        Self {
            source,
            position: 0,
        }
    }
}

impl Read for Cursor<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.source.len().saturating_sub(self.position);
        let count = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        if count == 0 {
            return Ok(0);
        }
        self.source
            .read_exact_at(&mut buffer[..count], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Cursor<'_, '_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.source.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_past_the_end_are_errors_in_memory_and_on_disk() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, b"hello").unwrap();
        let on_disk = Source::open(file.path()).unwrap();
        let in_memory = Source::Bytes(Cow::Borrowed(b"hello"));
        for source in [on_disk, in_memory] {
            assert_eq!(source.len(), 5);
            let mut two = [0; 2];
            source.read_exact_at(&mut two, 3).unwrap();
            assert_eq!(&two, b"lo");
            assert!(source.read_exact_at(&mut two, 4).is_err());
            assert!(source.read_exact_at(&mut two, u64::MAX).is_err());
            let error = source
                .read_vec(Path::new("w"), "the header", 1, 1 << 40)
                .unwrap_err();
            assert_eq!(
                error.to_string(),
                "w ends early: the header needs 1099511627776 bytes, 4 are left; \
                 fetch the file again"
            );
        }
    }

    #[test]
    fn cursor_seeks_and_stops_at_the_end() {
        let source = Source::Bytes(Cow::Borrowed(b"hello"));
        let mut cursor = Cursor::new(&source);
        cursor.seek(SeekFrom::End(-2)).unwrap();
        let mut rest = Vec::new();
        cursor.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"lo");
        assert!(cursor.seek(SeekFrom::Current(-9)).is_err());
        cursor.seek(SeekFrom::Start(99)).unwrap();
        assert_eq!(cursor.read(&mut [0; 4]).unwrap(), 0);
    }

    #[test]
    fn opening_a_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            Source::open(folder.path()),
            Err(WeightError::Io { .. })
        ));
    }
}

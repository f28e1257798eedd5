//! Positional reads from several threads.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    sync::Arc,
};

/// A byte sequence of known length with positional reads.
pub(super) trait ReadAt: Send + Sync {
    /// Returns the number of bytes.
    fn len(&self) -> u64;

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if there are fewer bytes, or an error of the source.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// Requires that `count` bytes at `offset` are within `len`.
pub(super) fn check_range(offset: u64, count: usize, len: u64) -> io::Result<()> {
    match offset.checked_add(count as u64) {
        Some(end) if end <= len => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("it ends at byte {len}, bytes {offset} to {offset}+{count} are asked for"),
        )),
    }
}

/// A file of the operating system.
pub(super) struct DiskFile {
    file: File,
    len: u64,
}

impl DiskFile {
    pub(super) fn open(path: &std::path::Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }
}

impl ReadAt for DiskFile {
    fn len(&self) -> u64 {
        self.len
    }

    #[cfg(unix)]
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        check_range(offset, buf.len(), self.len)?;
        self.file.read_exact_at(buf, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        use std::os::windows::fs::FileExt as _;
        check_range(offset, buf.len(), self.len)?;
        while !buf.is_empty() {
            match self.file.seek_read(buf, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buf = &mut buf[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A contiguous part of another source.
pub(super) struct Part {
    source: Arc<dyn ReadAt>,
    start: u64,
    len: u64,
}

impl Part {
    /// Returns an error unless the part is within the source.
    pub(super) fn new(source: Arc<dyn ReadAt>, start: u64, len: u64) -> io::Result<Self> {
        match start.checked_add(len) {
            Some(end) if end <= source.len() => Ok(Self { source, start, len }),
            _ => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "it ends at byte {}, a member reaches from byte {start} over {len} bytes",
                    source.len()
                ),
            )),
        }
    }
}

impl ReadAt for Part {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(offset, buf.len(), self.len)?;
        self.source.read_at(self.start + offset, buf)
    }
}

/// Buffer size of a [`Cursor`].
const CHUNK: usize = 8 << 10;

/// A buffered sequential reader of a source.
pub(super) struct Cursor {
    source: Arc<dyn ReadAt>,
    position: u64,
    /// Bytes of the source at `start`.
    buffer: Vec<u8>,
    start: u64,
}

impl Cursor {
    pub(super) fn new(source: Arc<dyn ReadAt>) -> Self {
        Self {
            source,
            position: 0,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// Skips `count` bytes. Returns `UnexpectedEof` if there are fewer.
    pub(super) fn skip(&mut self, count: u64) -> io::Result<()> {
        match self.position.checked_add(count) {
            Some(end) if end <= self.source.len() => {
                self.position = end;
                Ok(())
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A clone has the same source and position, and its own buffer.
impl Clone for Cursor {
    fn clone(&self) -> Self {
        Self {
            position: self.position,
            ..Self::new(Arc::clone(&self.source))
        }
    }
}

impl Read for Cursor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.source.len().saturating_sub(self.position);
        let count = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let buffered = self.start..self.start + self.buffer.len() as u64;
        if count == 0 {
            return Ok(0);
        } else if count >= CHUNK {
            self.source.read_at(self.position, &mut buf[..count])?;
            self.position += count as u64;
            return Ok(count);
        } else if !buffered.contains(&self.position) {
            self.buffer.resize(left.min(CHUNK as u64) as usize, 0);
            self.source.read_at(self.position, &mut self.buffer)?;
            self.start = self.position;
        }
        let ready = &self.buffer[(self.position - self.start) as usize..];
        let count = count.min(ready.len());
        buf[..count].copy_from_slice(&ready[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.source.len().checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = position.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "a position before the beginning",
            )
        })?;
        Ok(self.position)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bytes in memory.
    pub(in super::super) struct Memory(pub(in super::super) Vec<u8>);

    impl ReadAt for Memory {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            check_range(offset, buf.len(), self.len())?;
            buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
            Ok(())
        }
    }

    #[test]
    fn a_cursor_reads_and_seeks_like_a_slice() {
        let bytes: Vec<u8> = (0..50_000_u32).map(|i| ((i * i) >> 7) as u8).collect();
        let mut cursor = Cursor::new(Arc::new(Memory(bytes.clone())));
        let mut slice = io::Cursor::new(&bytes);
        for (seek, count) in [
            (SeekFrom::Start(10), 20),
            (SeekFrom::Current(100), 9000),
            (SeekFrom::End(-30), 100),
            (SeekFrom::Start(9), 4000),
            (SeekFrom::Current(-3000), 6000),
            (SeekFrom::Start(60_000), 5),
        ] {
            assert_eq!(cursor.seek(seek).unwrap(), slice.seek(seek).unwrap());
            let (mut a, mut b) = (Vec::new(), Vec::new());
            cursor.by_ref().take(count).read_to_end(&mut a).unwrap();
            slice.by_ref().take(count).read_to_end(&mut b).unwrap();
            assert_eq!(a, b);
        }
        assert!(cursor.seek(SeekFrom::End(-50_001)).is_err());
        assert!(cursor.skip(u64::MAX).is_err());
    }

    #[test]
    fn a_part_stays_within_its_source() {
        let source: Arc<dyn ReadAt> = Arc::new(Memory(b"abcdef".to_vec()));
        let part = Part::new(Arc::clone(&source), 2, 3).unwrap();
        let mut buf = [0; 2];
        part.read_at(1, &mut buf).unwrap();
        assert_eq!(&buf, b"de");
        assert!(part.read_at(2, &mut buf).is_err());
        assert!(part.read_at(u64::MAX, &mut buf).is_err());
        assert!(Part::new(Arc::clone(&source), 2, 5).is_err());
        assert!(Part::new(source, u64::MAX, 2).is_err());
    }
}

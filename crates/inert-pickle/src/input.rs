//! Buffered reading of a pickle's source.

use std::{io, ops::Range};

use super::PickleError;

/// Longest line of a text opcode, in bytes.
const MAX_LINE: usize = 1 << 16;

/// Bytes read at a time.
const WINDOW: u64 = 1 << 16;

/// A source that can be read at any offset.
pub trait ReadAt {
    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// If the source ends before the buffer is full, or cannot be read.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(part);
        Ok(())
    }
}

/// Limits on the size of a pickle. The default suits pickles of some megabytes.
///
/// # Example
/// ```
/// use inert_pickle::Limits;
///
/// let limits = Limits {
///     bytes: 1 << 20,
///     ..Limits::default()
/// };
/// assert_eq!(limits.objects, 2 << 20);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest length in bytes.
    pub bytes: u64,
    /// Largest number of objects, and largest height of the stack.
    pub objects: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            objects: 2 << 20,
        }
    }
}

/// The bytes of a pickle, read through a window.
pub(crate) struct Input<'s, S: ?Sized> {
    source: &'s S,
    section: Range<u64>,
    pub(crate) limits: Limits,
    pub(crate) position: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl<'s, S: ReadAt + ?Sized> Input<'s, S> {
    pub(crate) fn new(source: &'s S, section: Range<u64>, limits: Limits) -> Self {
        Self {
            source,
            limits,
            position: section.start,
            window: Vec::new(),
            window_start: section.start,
            section,
        }
    }

    /// Checks that `count` more bytes exist and stay within the limit.
    pub(crate) fn require(&self, count: u64) -> Result<(), PickleError> {
        let left = self.section.end.saturating_sub(self.position);
        if count > left {
            return Err(PickleError::Truncated {
                needed: count,
                left,
            });
        }
        let limit = self.limits.bytes;
        if self.position + count - self.section.start > limit {
            return Err(self.malformed(format!("it is longer than {} MiB", limit >> 20)));
        }
        Ok(())
    }

    /// Skips `count` bytes and returns their range in the source.
    pub(crate) fn skip(&mut self, count: u64) -> Result<Range<u64>, PickleError> {
        self.require(count)?;
        let start = self.position;
        self.position += count;
        Ok(start..self.position)
    }

    /// Returns the next `count` bytes. Allocates only after the check that they exist.
    pub(crate) fn take(&mut self, count: u64) -> Result<&[u8], PickleError> {
        let at = self.skip(count)?.start;
        let loaded_end = self.window_start + self.window.len() as u64;
        if at < self.window_start || at + count > loaded_end {
            let size = count.max(WINDOW.min(self.section.end - at)) as usize;
            self.window.resize(size, 0);
            self.window_start = at;
            self.source.read_exact_at(&mut self.window, at)?;
        }
        let from = (at - self.window_start) as usize;
        Ok(&self.window[from..from + count as usize])
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    /// Returns an unsigned little-endian integer of `N` bytes.
    pub(crate) fn unsigned<const N: usize>(&mut self) -> Result<u64, PickleError> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.array::<N>()?);
        Ok(u64::from_le_bytes(wide))
    }

    /// Returns the bytes up to the next line feed, which is consumed.
    pub(crate) fn line(&mut self) -> Result<Vec<u8>, PickleError> {
        let mut line = Vec::new();
        loop {
            match self.array()? {
                [b'\n'] => break,
                [byte] => line.push(byte),
            }
            if line.len() > MAX_LINE {
                return Err(self.malformed("a line of text is too long"));
            }
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(line)
    }

    pub(crate) fn text_line(&mut self) -> Result<String, PickleError> {
        let line = self.line()?;
        String::from_utf8(line).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    pub(crate) fn text(&mut self, len: u64) -> Result<Box<str>, PickleError> {
        let text = std::str::from_utf8(self.take(len)?).map(Box::from);
        text.map_err(|_| self.malformed("a text is not UTF-8"))
    }

    /// Returns the number of bytes read so far.
    pub(crate) fn offset(&self) -> u64 {
        self.position - self.section.start
    }

    pub(crate) fn malformed(&self, reason: impl Into<String>) -> PickleError {
        PickleError::Malformed {
            position: self.offset(),
            reason: reason.into(),
        }
    }
}

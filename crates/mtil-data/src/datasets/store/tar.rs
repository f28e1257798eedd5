//! Members of tar archives: ustar, GNU and pax.

use std::io::{self, Read};

use tar::{EntryType, Header, PaxExtensions};

use super::{inflate::Indexer, read_at::Cursor};

const BLOCK: usize = 512;
/// Maximum size of an extended header, which contains a path or two.
const MAX_EXTENSION: u64 = 1 << 20;

/// A file or link in a tar archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Path in the archive, not normalized.
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// Kind of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file with its location in the archive.
    File { offset: u64, size: u64 },
    /// A link to the path of another member.
    HardLink(String),
    /// A link to a path relative to the member's folder.
    SymLink(String),
    /// A file that cannot be read, for this reason.
    Refused(&'static str),
}

/// Reader of a tar archive.
pub(super) trait Stream: Read {
    /// Skips `count` bytes. Returns `UnexpectedEof` if there are fewer.
    fn skip(&mut self, count: u64) -> io::Result<()>;
}

impl Stream for Cursor {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        Cursor::skip(self, count)
    }
}

impl Stream for Indexer {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        Indexer::skip(self, count)
    }
}

/// Returns true if `block` starts with a tar header that has a valid checksum.
pub(super) fn is_tar(block: &[u8]) -> bool {
    block
        .get(..BLOCK)
        .is_some_and(|block| block.iter().any(|b| *b != 0) && has_valid_checksum(block))
}

/// Verifies the checksum of a header: the sum of its bytes, with spaces in the checksum field.
fn has_valid_checksum(block: &[u8]) -> bool {
    let sum: u32 = block[..148]
        .iter()
        .chain(&block[156..])
        .map(|b| u32::from(*b))
        .sum();
    Header::from_byte_slice(block)
        .cksum()
        .is_ok_and(|own| own == sum + 8 * 32)
}

/// Attributes of the next member from extended headers.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Extension {
    /// Applies the records of a pax header.
    fn pax(&mut self, records: &[u8]) -> Result<(), String> {
        for record in PaxExtensions::new(records) {
            let record = record.map_err(|_| "a pax header is malformed".to_owned())?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
                    self.size = Some(size.ok_or("the size in a pax header is not a number")?);
                }
                key => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Ok(())
    }
}

/// Lists the members of an archive, except folders, devices, pipes and members whose name is not
/// Unicode, which no dataset has.
///
/// # Errors
/// If the archive is corrupt, or ends before its end mark.
pub(super) fn members(stream: &mut impl Stream) -> io::Result<Vec<Member>> {
    let mut members = Vec::new();
    let mut position = 0;
    let mut extension = Extension::default();
    loop {
        let mut block = [0; BLOCK];
        read_exact(stream, &mut block, position)?;
        if block.iter().all(|b| *b == 0) {
            return Ok(members);
        }
        let at = position;
        let broken = |what: &str| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it is not a valid tar archive: at byte {at} {what}"),
            )
        };
        if !has_valid_checksum(&block) {
            return Err(broken("the checksum of a header is wrong"));
        }
        position += BLOCK as u64;
        let header = Header::from_byte_slice(&block);
        let kind = header.entry_type();
        let declared = header
            .entry_size()
            .map_err(|_| broken("a size is not a number"))?;

        // Extended headers describe the member that follows them.
        if matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader
        ) {
            if declared > MAX_EXTENSION {
                return Err(broken(&format!("an extended header has {declared} bytes")));
            }
            let mut data = vec![0; declared as usize];
            read_exact(stream, &mut data, position)?;
            position += declared;
            position += skip_padding(stream, declared, position)?;
            match kind {
                EntryType::XHeader => extension.pax(&data).map_err(|what| broken(&what))?,
                _ => {
                    data.truncate(data.iter().position(|b| *b == 0).unwrap_or(data.len()));
                    match kind {
                        EntryType::GNULongName => extension.name = Some(data),
                        _ => extension.link = Some(data),
                    }
                }
            }
            continue;
        }

        let Extension {
            name,
            link,
            size,
            sparse,
        } = std::mem::take(&mut extension);
        let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let size = size.unwrap_or(declared);
        // These kinds have no content, whatever size their header declares.
        let stored = match kind {
            EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo => 0,
            _ => size,
        };
        let link = link
            .and_then(|link| String::from_utf8(link).ok())
            .unwrap_or_default();
        let kind = match kind {
            // Archives older than POSIX mark a folder by a trailing slash.
            EntryType::Regular if name.ends_with(b"/") => None,
            EntryType::Regular | EntryType::Continuous if sparse => {
                Some(Kind::Refused("it is sparse: unpack the archive"))
            }
            EntryType::GNUSparse => Some(Kind::Refused("it is sparse: unpack the archive")),
            EntryType::Regular | EntryType::Continuous => Some(Kind::File {
                offset: position,
                size,
            }),
            EntryType::Link => Some(Kind::HardLink(link)),
            EntryType::Symlink => Some(Kind::SymLink(link)),
            _ => None,
        };
        if let (Some(kind), Ok(name)) = (kind, String::from_utf8(name)) {
            members.push(Member { name, kind });
        }
        skip(stream, stored, position)?;
        position = position
            .checked_add(stored)
            .ok_or_else(|| broken("a size is too large"))?;
        position += skip_padding(stream, stored, position)?;
    }
}

/// Skips the padding after `size` bytes and returns its length.
fn skip_padding(stream: &mut impl Stream, size: u64, position: u64) -> io::Result<u64> {
    let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    skip(stream, padding, position)?;
    Ok(padding)
}

fn skip(stream: &mut impl Stream, count: u64, position: u64) -> io::Result<()> {
    stream.skip(count).map_err(|error| match error.kind() {
        // An error with a message is that of a truncated compressed stream.
        io::ErrorKind::UnexpectedEof if error.get_ref().is_none() => truncated(position),
        _ => error,
    })
}

fn read_exact(stream: &mut impl Stream, mut buf: &mut [u8], position: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match stream.read(buf)? {
            0 => return Err(truncated(position)),
            count => buf = &mut buf[count..],
        }
    }
    Ok(())
}

/// Returns the error for an incomplete header or member that starts at `position`.
fn truncated(position: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!(
            "the tar archive ends early, in what begins at byte {position}: \
             half downloaded? Download it again"
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::datasets::store::read_at::tests::Memory;

    fn listed(bytes: &[u8]) -> io::Result<Vec<Member>> {
        members(&mut Cursor::new(Arc::new(Memory(bytes.to_vec()))))
    }

    fn header(name: &str, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header
    }

    fn fault(bytes: &[u8]) -> String {
        listed(bytes).unwrap_err().to_string()
    }

    const USTAR: &[u8] = include_bytes!("../testdata/ustar.tar");

    #[test]
    fn an_archive_that_ends_before_its_end_mark_is_refused() {
        let end = USTAR.len() - 1024;
        for end in (0..end).step_by(100).chain([512, 1024, end]) {
            assert!(fault(&USTAR[..end]).contains("half downloaded?"), "{end}");
        }
        assert!(listed(&USTAR[..end + 512]).is_ok());
    }

    #[test]
    fn a_changed_header_is_refused() {
        let mut damaged = USTAR.to_vec();
        damaged[3] ^= 1;
        assert!(fault(&damaged).contains("at byte 0 the checksum"));
        assert!(!is_tar(&damaged));
        assert!(is_tar(USTAR));
        assert!(!is_tar(&[0; 512]));
        assert!(!is_tar(&USTAR[..511]));
    }

    #[test]
    fn lying_lengths_are_refused_before_anything_is_allocated() {
        let file = header("a", EntryType::Regular, u64::MAX / 2);
        assert!(fault(file.as_bytes()).contains("half downloaded?"));
        for kind in [
            EntryType::GNULongName,
            EntryType::GNULongLink,
            EntryType::XHeader,
        ] {
            let long = header("a", kind, 1 << 40);
            assert!(fault(long.as_bytes()).contains("extended header"));
        }
        // A pax header with the largest possible size.
        let record = b"29 size=18446744073709551615\n";
        let mut bytes = header("a", EntryType::XHeader, record.len() as u64)
            .as_bytes()
            .to_vec();
        bytes.extend(record);
        bytes.resize(1024, 0);
        bytes.extend(header("a", EntryType::Regular, 1).as_bytes());
        bytes.resize(4096, 0);
        assert!(
            fault(&bytes).contains("half downloaded?"),
            "{}",
            fault(&bytes)
        );
    }

    #[test]
    fn a_size_in_a_pax_header_counts() {
        let record = b"9 size=3\n";
        let mut bytes = header("a", EntryType::XHeader, 9).as_bytes().to_vec();
        bytes.extend(record);
        bytes.resize(1024, 0);
        bytes.extend(header("a", EntryType::Regular, 0).as_bytes());
        bytes.extend(b"abc");
        bytes.resize(4096, 0);
        let file = Kind::File {
            offset: 1536,
            size: 3,
        };
        assert_eq!(listed(&bytes).unwrap()[0].kind, file);
    }

    #[test]
    fn damaged_archives_do_not_panic() {
        let pax = include_bytes!("../testdata/pax.tar");
        for bytes in [USTAR, pax] {
            for at in (0..bytes.len()).step_by(7) {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= 0x90;
                let _ = listed(&damaged);
            }
        }
    }
}

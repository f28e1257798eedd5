//! Archives of any supported format, possibly nested, as files by path.

use std::{collections::BTreeMap, io::Read as _, path::Path, sync::Arc, time::Instant};

use super::{
    error::{ArchiveError, MAX_FILE},
    inflate::{Container, Indexer, Spacing},
    read_at::{Cursor, DiskFile, Part, ReadAt},
    tar::{self, Kind},
    zip::Zip,
};

/// Maximum length of a chain of links.
const MAX_LINKS: usize = 16;

/// Location of a member.
#[derive(Debug, Clone)]
enum Location {
    /// In a tar archive.
    Part { offset: u64, size: u64 },
    /// In a zip archive.
    Zip { index: usize, size: u64 },
    /// The member cannot be read, for this reason.
    Refused(String),
}

/// Content of an archive.
enum Content {
    Tar(Arc<dyn ReadAt>),
    Zip(Zip),
}

/// An indexed archive.
pub(super) struct ArchiveIndex {
    content: Content,
    /// Members by path within the archive.
    entries: BTreeMap<String, Location>,
    /// Path of this archive within the outer archive, if it is nested.
    inner: Option<String>,
}

impl ArchiveIndex {
    /// Indexes the archive at `path`, or the archive `inner` within it.
    pub(super) fn open(path: &Path, inner: Option<&str>) -> Result<Self, ArchiveError> {
        tracing::info!(archive = %path.display(), "indexing an archive");
        let started = Instant::now();
        let index = Self::open_unlogged(path, inner)?;
        tracing::info!(
            archive = %path.display(),
            members = index.entries.len(),
            seconds = started.elapsed().as_secs_f64(),
            "indexed an archive"
        );
        Ok(index)
    }

    fn open_unlogged(path: &Path, inner: Option<&str>) -> Result<Self, ArchiveError> {
        let file: Arc<dyn ReadAt> = Arc::new(DiskFile::open(path)?);
        let Some(inner) = inner else {
            return Self::index(file);
        };
        let outer = Self::index(file)?;
        let location = outer.entries.get(inner).ok_or_else(|| {
            ArchiveError::of_archive(format!("it holds no {inner}: is it another archive?"))
        })?;
        let within = |reason: String| ArchiveError::of_member(inner, reason);
        let source: Arc<dyn ReadAt> = match (location, &outer.content) {
            (Location::Refused(reason), _) => return Err(within(reason.clone())),
            (Location::Part { offset, size }, Content::Tar(data)) => Arc::new(
                Part::new(Arc::clone(data), *offset, *size).map_err(|e| within(e.to_string()))?,
            ),
            (Location::Zip { index, .. }, Content::Zip(zip)) => {
                zip.open_nested(*index).map_err(within)?
            }
            _ => unreachable!("the places of an archive are of its kind"),
        };
        let mut index = Self::index(source).map_err(|fault| ArchiveError {
            member: Some(match fault.member {
                Some(member) => format!("{inner}: {member}"),
                None => inner.to_owned(),
            }),
            ..fault
        })?;
        index.inner = Some(inner.to_owned());
        Ok(index)
    }

    fn index(source: Arc<dyn ReadAt>) -> Result<Self, ArchiveError> {
        // The format is detected from the first block; a tar header has 512 bytes.
        let mut head = Vec::with_capacity(512);
        Cursor::new(Arc::clone(&source))
            .take(512)
            .read_to_end(&mut head)?;
        let (content, listed) = if head.starts_with(&[0x1f, 0x8b]) {
            let mut indexer = Indexer::new(source, Container::Gzip, Spacing::default());
            let members = tar::members(&mut indexer)?;
            let content: Arc<dyn ReadAt> = Arc::new(indexer.finish()?);
            (Content::Tar(content), tar_entries(members)?)
        } else if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
            let zip = Zip::open(source)?;
            let listed = zip_entries(&zip)?;
            (Content::Zip(zip), listed)
        } else if tar::is_tar(&head) {
            let members = tar::members(&mut Cursor::new(Arc::clone(&source)))?;
            (Content::Tar(source), tar_entries(members)?)
        } else {
            return Err(ArchiveError::of_archive(describe_unsupported(&head)));
        };
        Ok(Self {
            content,
            entries: resolve(listed),
            inner: None,
        })
    }

    /// Returns true if there is a member `path`, readable or not.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// Returns the size of a member in bytes.
    pub(super) fn size(&self, path: &str) -> Option<u64> {
        match self.entries.get(path)? {
            Location::Part { size, .. } | Location::Zip { size, .. } => Some(*size),
            Location::Refused(_) => None,
        }
    }

    /// Returns the path of a member within the archive, for error messages.
    pub(super) fn describe(&self, path: &str) -> String {
        match &self.inner {
            Some(inner) => format!("{inner}: {path}"),
            None => path.to_owned(),
        }
    }

    /// Returns the readable members whose path starts with `prefix`, sorted by bytes.
    pub(super) fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.entries
            .range::<str, _>((
                std::ops::Bound::Included(prefix),
                std::ops::Bound::Unbounded,
            ))
            .take_while(move |(path, _)| path.starts_with(prefix))
            .filter(|(_, location)| !matches!(location, Location::Refused(_)))
            .map(|(path, _)| path.as_str())
    }

    /// Returns the content of a member.
    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>, ArchiveError> {
        let fault = |reason| ArchiveError::of_member(&self.describe(path), reason);
        let location = self
            .entries
            .get(path)
            .ok_or_else(|| fault("it is not there".to_owned()))?;
        match (location, &self.content) {
            (Location::Refused(reason), _) => Err(fault(reason.clone())),
            (Location::Zip { index, .. }, Content::Zip(zip)) => zip.read(*index).map_err(fault),
            (Location::Part { offset, size }, Content::Tar(data)) => {
                if *size > MAX_FILE {
                    return Err(fault(format!(
                        "it has {size} bytes: the longest that is read has {MAX_FILE}"
                    )));
                }
                // The indexing pass read all these bytes, so the size is real.
                let mut content = vec![0; *size as usize];
                data.read_at(*offset, &mut content)
                    .map_err(|error| fault(error.to_string()))?;
                Ok(content)
            }
            _ => unreachable!("the places of an archive are of its kind"),
        }
    }
}

/// Describes a file that is not a supported archive.
fn describe_unsupported(head: &[u8]) -> String {
    let kind = match head {
        [] => return "it is empty: download it again".into(),
        [b'B', b'Z', b'h', ..] => "bzip2",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [b'R', b'a', b'r', b'!', ..] => "rar",
        [b'7', b'z', 0xbc, 0xaf, ..] => "7z",
        [b'<', ..] => return "it is a web page, not an archive: download it again".into(),
        _ => return "it is neither tar, tar.gz nor zip: download it again".into(),
    };
    format!("it is compressed by {kind}, which is not supported: unpack it")
}

/// A member before links are resolved.
enum Target {
    Location(Location),
    /// A path in the archive, or `None` if it leads out of the archive.
    Link(Option<String>),
}

fn tar_entries(members: Vec<tar::Member>) -> Result<Vec<(String, Target)>, ArchiveError> {
    let mut listed = Vec::with_capacity(members.len());
    for member in members {
        let Some(name) = normalize("", &member.name) else {
            return Err(escapes_archive(&member.name));
        };
        let target = match member.kind {
            Kind::File { offset, size } => Target::Location(Location::Part { offset, size }),
            Kind::HardLink(target) => Target::Link(normalize("", &target)),
            Kind::SymLink(target) => Target::Link(normalize(parent_folder(&name), &target)),
            Kind::Refused(reason) => Target::Location(Location::Refused(reason.to_owned())),
        };
        listed.push((name, target));
    }
    Ok(listed)
}

fn zip_entries(zip: &Zip) -> Result<Vec<(String, Target)>, ArchiveError> {
    let mut listed = Vec::new();
    for member in zip.members()? {
        let Some(name) = normalize("", &member.name) else {
            return Err(escapes_archive(&member.name));
        };
        let target = match member.link {
            Some(target) => Target::Link(normalize(parent_folder(&name), &target)),
            None => Target::Location(Location::Zip {
                index: member.index,
                size: member.size,
            }),
        };
        listed.push((name, target));
    }
    Ok(listed)
}

fn escapes_archive(name: &str) -> ArchiveError {
    ArchiveError::of_member(
        name,
        "its path leads out of the archive: it is not to be trusted",
    )
}

fn parent_folder(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Resolves `path` relative to `folder` and removes `.`, `..` and doubled `/`.
///
/// `None` if the path is absolute or leads out of the root.
pub(super) fn normalize(folder: &str, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Resolves the links. Of several members with the same path the last wins, as when an archive is
/// unpacked.
fn resolve(listed: Vec<(String, Target)>) -> BTreeMap<String, Location> {
    let all: BTreeMap<String, Target> = listed.into_iter().collect();
    let follow = |name: &str| {
        let mut at = name;
        for _ in 0..=MAX_LINKS {
            match all.get(at) {
                Some(Target::Location(location)) => return location.clone(),
                Some(Target::Link(Some(next))) => at = next,
                Some(Target::Link(None)) => {
                    return Location::Refused("it is a link out of the archive".into());
                }
                None => {
                    return Location::Refused(format!(
                        "it is a link to {at}, which is not in the archive: unpack the archive"
                    ));
                }
            }
        }
        Location::Refused("it is a link to itself".into())
    };
    all.keys()
        .filter(|name| !name.is_empty())
        .map(|name| (name.clone(), follow(name)))
        .collect()
}

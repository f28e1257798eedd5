//! An archive of any kind, or within another, as files by path.

use std::{collections::BTreeMap, io::Read as _, path::Path, sync::Arc};

use super::{
    fault::{Fault, MAX_FILE},
    inflate::{Indexer, Spacing, Wrapping},
    random::{Cursor, DiskFile, Part, RandomRead},
    tar::{self, Kind},
    zip::Zip,
};

/// Most links from one to the next.
const MAX_LINKS: usize = 16;

/// Where a member is.
#[derive(Debug, Clone)]
enum Place {
    /// In a tar archive.
    Part { offset: u64, size: u64 },
    /// In a zip archive.
    Zip { index: usize, size: u64 },
    /// Nowhere, because.
    Refused(String),
}

/// The bytes that the members lie in.
enum Body {
    Tar(Arc<dyn RandomRead>),
    Zip(Zip),
}

/// An archive whose members are known.
pub(super) struct Opened {
    body: Body,
    /// By path within the archive.
    entries: BTreeMap<String, Place>,
    /// The archive within the archive that this is, where it is one.
    inner: Option<String>,
}

impl Opened {
    /// Reads the index of the archive at `path`, or of the one at `inner` in it.
    pub(super) fn open(path: &Path, inner: Option<&str>) -> Result<Self, Fault> {
        let file: Arc<dyn RandomRead> = Arc::new(DiskFile::open(path)?);
        let Some(inner) = inner else {
            return Self::index(file);
        };
        let outer = Self::index(file)?;
        let place = outer.entries.get(inner).ok_or_else(|| {
            Fault::of_archive(format!("it holds no {inner}: is it another archive?"))
        })?;
        let within = |reason: String| Fault::of_member(inner, reason);
        let source: Arc<dyn RandomRead> = match (place, &outer.body) {
            (Place::Refused(reason), _) => return Err(within(reason.clone())),
            (Place::Part { offset, size }, Body::Tar(data)) => Arc::new(
                Part::new(Arc::clone(data), *offset, *size).map_err(|e| within(e.to_string()))?,
            ),
            (Place::Zip { index, .. }, Body::Zip(zip)) => zip.random(*index).map_err(within)?,
            _ => unreachable!("the places of an archive are of its kind"),
        };
        let mut opened = Self::index(source).map_err(|fault| Fault {
            member: Some(match fault.member {
                Some(member) => format!("{inner}: {member}"),
                None => inner.to_owned(),
            }),
            ..fault
        })?;
        opened.inner = Some(inner.to_owned());
        Ok(opened)
    }

    fn index(source: Arc<dyn RandomRead>) -> Result<Self, Fault> {
        let mut head = Vec::with_capacity(512);
        Cursor::new(Arc::clone(&source))
            .take(512)
            .read_to_end(&mut head)?;
        let (body, listed) = if head.starts_with(&[0x1f, 0x8b]) {
            let mut indexer = Indexer::new(source, Wrapping::Gzip, Spacing::default());
            let members = tar::members(&mut indexer)?;
            let content: Arc<dyn RandomRead> = Arc::new(indexer.finish()?);
            (Body::Tar(content), of_tar(members)?)
        } else if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
            let zip = Zip::open(source)?;
            let listed = of_zip(&zip)?;
            (Body::Zip(zip), listed)
        } else if tar::is_tar(&head) {
            let members = tar::members(&mut Cursor::new(Arc::clone(&source)))?;
            (Body::Tar(source), of_tar(members)?)
        } else {
            return Err(Fault::of_archive(unknown(&head)));
        };
        Ok(Self {
            body,
            entries: resolve(listed),
            inner: None,
        })
    }

    /// Whether there is a member `path`, readable or not.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// Length of a member in bytes.
    pub(super) fn size(&self, path: &str) -> Option<u64> {
        match self.entries.get(path)? {
            Place::Part { size, .. } | Place::Zip { size, .. } => Some(*size),
            Place::Refused(_) => None,
        }
    }

    /// A member's path within the archive, for people.
    pub(super) fn describe(&self, path: &str) -> String {
        match &self.inner {
            Some(inner) => format!("{inner}: {path}"),
            None => path.to_owned(),
        }
    }

    /// The readable members whose path begins with `prefix`, in the order of their bytes.
    pub(super) fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.entries
            .range::<str, _>((
                std::ops::Bound::Included(prefix),
                std::ops::Bound::Unbounded,
            ))
            .take_while(move |(path, _)| path.starts_with(prefix))
            .filter(|(_, place)| !matches!(place, Place::Refused(_)))
            .map(|(path, _)| path.as_str())
    }

    /// The content of a member.
    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>, Fault> {
        let fault = |reason| Fault::of_member(&self.describe(path), reason);
        let place = self
            .entries
            .get(path)
            .ok_or_else(|| fault("it is not there".to_owned()))?;
        match (place, &self.body) {
            (Place::Refused(reason), _) => Err(fault(reason.clone())),
            (Place::Zip { index, .. }, Body::Zip(zip)) => zip.read(*index).map_err(fault),
            (Place::Part { offset, size }, Body::Tar(data)) => {
                if *size > MAX_FILE {
                    return Err(fault(format!(
                        "it has {size} bytes: the longest that is read has {MAX_FILE}"
                    )));
                }
                // The index has seen all these bytes.
                let mut content = vec![0; *size as usize];
                data.read_at(*offset, &mut content)
                    .map_err(|error| fault(error.to_string()))?;
                Ok(content)
            }
            _ => unreachable!("the places of an archive are of its kind"),
        }
    }
}

/// Says what a file is that is no archive.
fn unknown(head: &[u8]) -> String {
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

/// A member before links are followed.
enum Target {
    Place(Place),
    /// A path in the archive, or none if it leads out of it.
    Link(Option<String>),
}

fn of_tar(members: Vec<tar::Member>) -> Result<Vec<(String, Target)>, Fault> {
    let mut listed = Vec::with_capacity(members.len());
    for member in members {
        let Some(name) = clean("", &member.name) else {
            return Err(leads_out(&member.name));
        };
        let target = match member.kind {
            Kind::File { offset, size } => Target::Place(Place::Part { offset, size }),
            Kind::HardLink(target) => Target::Link(clean("", &target)),
            Kind::SymLink(target) => Target::Link(clean(folder_of(&name), &target)),
            Kind::Refused(reason) => Target::Place(Place::Refused(reason.to_owned())),
        };
        listed.push((name, target));
    }
    Ok(listed)
}

fn of_zip(zip: &Zip) -> Result<Vec<(String, Target)>, Fault> {
    let mut listed = Vec::new();
    for member in zip.members()? {
        let Some(name) = clean("", &member.name) else {
            return Err(leads_out(&member.name));
        };
        let target = match member.link {
            Some(target) => Target::Link(clean(folder_of(&name), &target)),
            None => Target::Place(Place::Zip {
                index: member.index,
                size: member.size,
            }),
        };
        listed.push((name, target));
    }
    Ok(listed)
}

fn leads_out(name: &str) -> Fault {
    Fault::of_member(
        name,
        "its path leads out of the archive: it is not to be trusted",
    )
}

fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The path `path` taken from `folder`, without `.`, `..` and doubled `/`. None when it is absolute
/// or leads out.
pub(super) fn clean(folder: &str, path: &str) -> Option<String> {
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

/// Follows the links. The later of two members with one name wins, as
/// it does when an archive is unpacked, and then the later name of two with one path.
fn resolve(listed: Vec<(String, Target)>) -> BTreeMap<String, Place> {
    let all: BTreeMap<String, Target> = listed.into_iter().collect();
    let follow = |name: &str| {
        let mut at = name;
        for _ in 0..=MAX_LINKS {
            match all.get(at) {
                Some(Target::Place(place)) => return place.clone(),
                Some(Target::Link(Some(next))) => at = next,
                Some(Target::Link(None)) => {
                    return Place::Refused("it is a link out of the archive".into());
                }
                None => {
                    return Place::Refused(format!(
                        "it is a link to {at}, which is no file of the archive: unpack the archive"
                    ));
                }
            }
        }
        Place::Refused("it is a link to itself".into())
    };
    all.keys()
        .filter(|name| !name.is_empty())
        .map(|name| (name.clone(), follow(name)))
        .collect()
}

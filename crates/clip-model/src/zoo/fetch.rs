//! Filling the cache from the network.
//!
//! A file is written to `<final name>.incomplete`, hashed, and renamed; whoever reads the final
//! name reads a whole and checked file. While one process writes, others wait for its lock and then
//! use what it wrote; the lock of a Hub file is the one that Python's package takes.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use ureq::http::Uri;

use super::{
    Archive, Cache, Check, Entry, Fetched, FetchedFile, FileSpec, HubFiles, Layout, Role, Source,
    ZooError,
    cache::{checked, hf_home},
    digest::{is_commit, is_sha256},
    http::{Client, Download, Manners, Progress, Token, host, shown},
    registry::is_safe_part,
};

/// The Hub that is asked where `HF_ENDPOINT` names no other.
const ENDPOINT: &str = "https://huggingface.co";

/// How [`fetch`] goes about it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FetchOptions {
    /// Where files are looked for and put.
    pub cache: Cache,
    /// Use what is in the cache, and nothing else.
    pub offline: bool,
    /// The Hub, without a slash at the end.
    pub endpoint: String,
    /// Who asks. It is sent to [`endpoint`](Self::endpoint) only, and over plain http only on this
    /// machine.
    pub token: Option<Token>,
    /// Further attempts after a connection that broke off, an error of the server or a limited rate
    /// (default 5).
    pub retries: u32,
    /// Wait before the first of them, doubled each time (default 0.5 s); a server that names a time
    /// is obeyed up to 2 minutes.
    pub backoff: Duration,
    /// Use sources of this layout only.
    pub layout: Option<Layout>,
}

impl FetchOptions {
    /// Options for `cache` that depend on nothing else.
    #[must_use]
    pub fn new(cache: Cache) -> Self {
        Self {
            cache,
            offline: false,
            endpoint: ENDPOINT.to_owned(),
            token: None,
            retries: 5,
            backoff: Duration::from_millis(500),
            layout: None,
        }
    }

    /// What Python's package would use: [`Cache::from_env`], `HF_ENDPOINT`, `HF_HUB_OFFLINE`, and
    /// as a token `HF_TOKEN`, else the file at `HF_TOKEN_PATH` or `HF_HOME/token` (none with
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`).
    ///
    /// # Errors
    /// [`ZooError::NoHome`] when no folder for the cache is known.
    pub fn from_env() -> Result<Self, ZooError> {
        Self::from_vars(&|name| env::var_os(name), env::home_dir())
    }

    pub(super) fn from_vars(
        var: &dyn Fn(&str) -> Option<OsString>,
        home: Option<PathBuf>,
    ) -> Result<Self, ZooError> {
        let text = |name| Some(var(name)?.to_str()?.trim().to_owned()).filter(|t| !t.is_empty());
        let yes = |name| {
            let value: Option<String> = text(name);
            value.is_some_and(|v| matches!(&*v.to_ascii_lowercase(), "1" | "true" | "yes" | "on"))
        };
        let token = || {
            let file = text("HF_TOKEN_PATH")
                .map(PathBuf::from)
                .or_else(|| Some(hf_home(var, home.as_deref())?.join("token")));
            text("HF_TOKEN").or_else(|| fs::read_to_string(file?).ok())
        };
        let mut options = Self::new(Cache::from_vars(var, home.clone())?);
        if let Some(endpoint) = text("HF_ENDPOINT") {
            endpoint
                .trim_end_matches('/')
                .clone_into(&mut options.endpoint);
        }
        options.offline = yes("HF_HUB_OFFLINE");
        if !yes("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            options.token = token().as_deref().and_then(Token::new);
        }
        Ok(options)
    }
}

/// Brings the files of `entry` to this machine, unless they are there, and hashes them.
///
/// Sources are tried in order: first whether the cache holds one, without asking the network, then
/// whether one can be fetched. A file in the cache with another hash than it should have is renamed
/// to `<name>.corrupt` and fetched again. `progress` is called often, also for files that an
/// earlier call left incomplete.
///
/// # Errors
/// [`ZooError::NotCached`] offline; [`ZooError::Checksum`] for a file of another hash, which is
/// deleted if it was downloaded; [`ZooError::NotFound`], [`ZooError::Denied`],
/// [`ZooError::RateLimited`], [`ZooError::Status`], [`ZooError::Connection`], [`ZooError::Length`]
/// or [`ZooError::Answer`] for what a server did, or [`ZooError::Sources`] when there were several;
/// [`ZooError::Io`] for what the disk did; [`ZooError::NoLayout`] when the options ask for a layout
/// the model does not have.
pub fn fetch(
    entry: &Entry,
    options: &FetchOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Fetched, ZooError> {
    fetch_with(entry, options, progress, &mut thread::sleep)
}

/// [`fetch`] with a clock of the caller's.
pub(super) fn fetch_with(
    entry: &Entry,
    options: &FetchOptions,
    progress: &mut dyn FnMut(Progress<'_>),
    sleep: &mut dyn FnMut(Duration),
) -> Result<Fetched, ZooError> {
    match options.cache.lookup(entry, options.layout) {
        Err(ZooError::NotCached { .. } | ZooError::Checksum { .. }) if !options.offline => (),
        done => return done,
    }
    let mut failures = Vec::new();
    for source in entry.sources_in(options.layout)? {
        let result = match source {
            Source::Hub(hub) => fetch_hub(hub, options, progress, sleep),
            Source::Archive(archive) => {
                fetch_archive(archive, options, progress, sleep).map(|file| vec![file])
            }
        };
        match result {
            Ok(files) => return Ok(Fetched::new(entry, source.layout(), files)),
            // Another source would hide a full disk, or that someone changed the weights.
            Err(e @ (ZooError::Io { .. } | ZooError::Checksum { .. })) => return Err(e),
            Err(e) => failures.push(e),
        }
    }
    match failures.pop() {
        Some(only) if failures.is_empty() => Err(only),
        last => Err(ZooError::Sources {
            name: entry.name.clone(),
            failures: failures.into_iter().chain(last).collect(),
        }),
    }
}

fn fetch_archive(
    archive: &Archive,
    options: &FetchOptions,
    progress: &mut dyn FnMut(Progress<'_>),
    sleep: &mut dyn FnMut(Duration),
) -> Result<FetchedFile, ZooError> {
    let url = parsed(&archive.url)?;
    let path = options.cache.archive_paths(archive).swap_remove(0);
    let _lock = lock(&with_suffix(&path, ".lock"))?;
    let manners = Manners {
        token: None,
        retries: options.retries,
        backoff: options.backoff,
    };
    let mut client = Client::new(url.clone(), manners, sleep);
    let wanted = Wanted {
        url: &url,
        name: &archive.file,
        role: Role::Weights,
        path: &path,
        bytes: None,
        sha256: Some((&archive.sha256, Check::Registry)),
    };
    obtain(&wanted, &mut client, progress)
}

fn fetch_hub(
    hub: &HubFiles,
    options: &FetchOptions,
    progress: &mut dyn FnMut(Progress<'_>),
    sleep: &mut dyn FnMut(Duration),
) -> Result<Vec<FetchedFile>, ZooError> {
    let manners = Manners {
        token: options.token.as_ref(),
        retries: options.retries,
        backoff: options.backoff,
    };
    let mut session = Session {
        options,
        client: Client::new(parsed(&options.endpoint)?, manners, sleep),
        commits: BTreeMap::new(),
    };
    let mut files = Vec::new();
    for spec in &hub.files {
        files.push(session.file(hub, spec, progress)?);
    }
    // Last, so that the name leads to the former files until all of the new ones are there.
    for ((repo, revision), commit) in &session.commits {
        if revision != commit {
            let path = options.cache.repo(repo).join("refs").join(revision);
            write_reference(&path, commit)?;
        }
    }
    Ok(files)
}

/// The download of one source.
struct Session<'a> {
    options: &'a FetchOptions,
    client: Client<'a>,
    /// What each repository and revision was when its first file was asked for: all files are of
    /// one commit.
    commits: BTreeMap<(String, String), String>,
}

impl Session<'_> {
    /// The first of the names that the repository has.
    fn file(
        &mut self,
        hub: &HubFiles,
        spec: &FileSpec,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<FetchedFile, ZooError> {
        let (repo, revision) = hub.origin(spec);
        let mut missing = None;
        for name in &spec.names {
            match self.named(repo, revision, spec, name, progress) {
                Err(e @ ZooError::NotFound { .. }) => missing = Some(e),
                other => return other,
            }
        }
        let mut error = missing.unwrap_or_else(|| self.not_found(repo, revision, ""));
        if let ZooError::NotFound { file, .. } = &mut error {
            *file = spec.names.join(" or ");
        }
        Err(error)
    }

    fn named(
        &mut self,
        repo: &str,
        revision: &str,
        spec: &FileSpec,
        name: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<FetchedFile, ZooError> {
        let key = (repo.to_owned(), revision.to_owned());
        let at = self.commits.get(&key).map_or(revision, |c| c).to_owned();
        // A revision such as `refs/pr/1` is one segment of the path.
        let segment = at.replace('/', "%2F");
        let url = format!("{}/{repo}/resolve/{segment}/{name}", self.options.endpoint);
        let url = parsed(&url)?;
        let stated = self.client.stated(&url);
        let stated = stated.map_err(|e| self.explained(e, repo, revision, name))?;

        let commit = stated.commit.or_else(|| is_commit(&at).then_some(at));
        let commit = part_of_path(&url, "X-Repo-Commit", commit)?;
        let etag = part_of_path(&url, "ETag", stated.etag)?;
        let registry = spec.sha256.as_deref().map(|hash| (hash, Check::Registry));
        let sha256 = registry.or_else(|| is_sha256(&etag).then_some((&*etag, Check::Hub)));

        if let (Some(expected), true) = (&spec.sha256, is_sha256(&etag))
            && *expected != etag
        {
            return Err(ZooError::Checksum {
                path: PathBuf::from(shown(&url)),
                expected: expected.clone(),
                found: etag,
                outcome: "the repository has changed, nothing was downloaded",
            });
        }

        let cache = &self.options.cache;
        let blob = cache.blob(repo, &etag);
        let locks = cache.locks(repo);
        let file = {
            let _lock = lock(&locks.join(format!("{etag}.lock")))?;
            let wanted = Wanted {
                url: &url,
                name,
                role: spec.role,
                path: &blob,
                bytes: stated.bytes,
                sha256,
            };
            let file = obtain(&wanted, &mut self.client, progress);
            let file = file.map_err(|e| self.explained(e, repo, revision, name))?;
            FetchedFile {
                path: point(&cache.snapshot(repo, &commit), name, &blob)?,
                ..file
            }
        };
        self.commits.insert(key, commit);
        Ok(file)
    }

    /// A status of the Hub with what it means.
    fn explained(&self, error: ZooError, repo: &str, revision: &str, file: &str) -> ZooError {
        let ZooError::Status { url, status, .. } = &error else {
            return error;
        };
        if !self.client.is_home(url) {
            return error;
        }
        match *status {
            404 => self.not_found(repo, revision, file),
            status @ (401 | 403) => ZooError::Denied {
                host: self.host(),
                repo: repo.to_owned(),
                file: file.to_owned(),
                status,
            },
            _ => error,
        }
    }

    fn not_found(&self, repo: &str, revision: &str, file: &str) -> ZooError {
        ZooError::NotFound {
            host: self.host(),
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.to_owned(),
        }
    }

    fn host(&self) -> String {
        parsed(&self.options.endpoint).map_or_else(|_| String::new(), |url| host(&url))
    }
}

/// A file to have.
struct Wanted<'a> {
    url: &'a Uri,
    name: &'a str,
    role: Role,
    /// Where it is when it is whole.
    path: &'a Path,
    bytes: Option<u64>,
    sha256: Option<(&'a str, Check)>,
}

/// Uses the file that is there or downloads it. The caller holds the lock.
fn obtain(
    wanted: &Wanted<'_>,
    client: &mut Client<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<FetchedFile, ZooError> {
    let check = |path: &Path| checked(wanted.role, path.to_owned(), wanted.sha256);
    if wanted.path.is_file() {
        match check(wanted.path) {
            Ok(file) if wanted.bytes.is_none_or(|bytes| bytes == file.bytes) => return Ok(file),
            Ok(_) | Err(ZooError::Checksum { .. }) => {
                rename(wanted.path, &with_suffix(wanted.path, ".corrupt"))?;
            }
            Err(e) => return Err(e),
        }
    }
    create_parent(wanted.path)?;
    let partial = with_suffix(wanted.path, ".incomplete");
    let job = Download {
        url: wanted.url,
        name: wanted.name,
        partial: &partial,
        bytes: wanted.bytes,
    };
    loop {
        // What an earlier call left may be of another version of the file, or damaged: then it is
        // fetched once more as a whole.
        let resumed = partial.metadata().is_ok_and(|m| m.len() > 0);
        client.download(&job, progress)?;
        match check(&partial) {
            Ok(file) => {
                rename(&partial, wanted.path)?;
                return Ok(FetchedFile {
                    path: wanted.path.to_owned(),
                    ..file
                });
            }
            Err(ZooError::Checksum {
                expected, found, ..
            }) => {
                fs::remove_file(&partial).map_err(|e| ZooError::io(&partial, e))?;
                if !resumed {
                    return Err(ZooError::Checksum {
                        path: PathBuf::from(shown(wanted.url)),
                        expected,
                        found,
                        outcome: "the download was deleted",
                    });
                }
            }
            Err(e) => return Err(e),
        }
    }
}

/// Makes the blob appear under its name in the snapshot.
fn point(snapshot: &Path, name: &str, blob: &Path) -> Result<PathBuf, ZooError> {
    let pointer = snapshot.join(name);
    create_parent(&pointer)?;
    let same = |path: &Path| {
        let (Ok(a), Ok(b)) = (path.canonicalize(), blob.canonicalize()) else {
            return false;
        };
        a == b
    };
    if same(&pointer) {
        return Ok(pointer);
    }
    match fs::remove_file(&pointer) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(ZooError::io(&pointer, e)),
        _ => (),
    }
    link(blob, &pointer, name).map_err(|e| ZooError::io(&pointer, e))?;
    Ok(pointer)
}

/// A relative link, so that the cache can be moved: out of the folders of the name, the commit and
/// `snapshots`.
#[cfg(unix)]
fn link(blob: &Path, pointer: &Path, name: &str) -> std::io::Result<()> {
    let mut target: PathBuf = std::iter::repeat_n("..", name.split('/').count() + 1).collect();
    target.push("blobs");
    target.extend(blob.file_name());
    std::os::unix::fs::symlink(target, pointer)
}

/// Windows lets few users make symbolic links; what a second name of the file would be elsewhere is
/// one here.
#[cfg(not(unix))]
fn link(blob: &Path, pointer: &Path, _name: &str) -> std::io::Result<()> {
    fs::hard_link(blob, pointer)
}

fn write_reference(path: &Path, commit: &str) -> Result<(), ZooError> {
    let error = |e| ZooError::io(path, e);
    create_parent(path)?;
    if fs::read_to_string(path).is_ok_and(|old| old.trim() == commit) {
        return Ok(());
    }
    let mut builder = tempfile::Builder::new();
    // Other users of a shared cache read it; the umask still applies.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = builder.tempfile_in(folder).map_err(error)?;
    std::io::Write::write_all(&mut file, commit.as_bytes()).map_err(error)?;
    file.persist(path).map_err(|e| error(e.error))?;
    Ok(())
}

/// Waits until no other process or thread writes the same file. Dropping the result lets the next
/// one go on.
fn lock(path: &Path) -> Result<File, ZooError> {
    let error = |e| ZooError::io(path, e);
    create_parent(path)?;
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(error)?;
    // The same call (`flock`) as Python's `filelock`.
    file.lock().map_err(error)?;
    Ok(file)
}

fn create_parent(path: &Path) -> Result<(), ZooError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| ZooError::io(folder, e))
}

fn rename(from: &Path, to: &Path) -> Result<(), ZooError> {
    fs::rename(from, to).map_err(|e| ZooError::io(from, e))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What a server says, as a name in a folder.
fn part_of_path(url: &Uri, header: &str, value: Option<String>) -> Result<String, ZooError> {
    let answer = |reason| ZooError::Answer {
        url: shown(url),
        reason,
    };
    match value {
        Some(value) if is_safe_part(&value) => Ok(value),
        Some(_) => Err(answer(format!("the header {header} is not a plain name"))),
        None => Err(answer(format!(
            "the header {header} is missing: is HF_ENDPOINT a Hugging Face Hub?"
        ))),
    }
}

fn parsed(url: &str) -> Result<Uri, ZooError> {
    let web =
        |url: &Uri| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some();
    url.parse()
        .ok()
        .filter(web)
        .ok_or_else(|| ZooError::Answer {
            // Not the text: it may hold a password.
            url: "HF_ENDPOINT".to_owned(),
            reason: "is not an http or https URL".to_owned(),
        })
}

//! Download of pretrained weights into the cache.
//!
//! A file is written to `<final name>.incomplete`, hashed, and renamed. The final name therefore
//! always refers to a complete and verified file. While one process downloads a file, others wait
//! for its lock and then use the downloaded file. The lock of a Hub file is that of Python's
//! `huggingface_hub`.

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
    cache::{hf_home, verify_file},
    digest::{is_commit, is_sha256},
    http::{Client, Download, Progress, RetryPolicy, Token, host, redacted},
    registry::is_safe_part,
};
use crate::files::write_atomically;

/// Default of `HF_ENDPOINT`.
const ENDPOINT: &str = "https://huggingface.co";

/// Options of [`fetch`].
///
/// ```
/// use clip_model::zoo::{Cache, FetchOptions, Registry, fetch};
///
/// let mut options = FetchOptions::new(Cache::at("/tmp/an-empty-cache".as_ref()));
/// options.offline = true;
/// let registry = Registry::embedded()?;
/// let entry = registry.get("openai/ViT-B-16")?;
/// // Offline, a model that is not cached is an error.
/// assert!(fetch(entry, &options, &mut |_| {}).is_err());
/// # Ok::<(), clip_model::zoo::ZooError>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FetchOptions {
    /// Cache that is searched and filled.
    pub cache: Cache,
    /// Use cached files only, without network access.
    pub offline: bool,
    /// Base URL of the Hub, without a trailing slash.
    pub endpoint: String,
    /// Access token. It is sent to [`endpoint`](Self::endpoint) only, and over plain http only to a
    /// server on this machine.
    pub token: Option<Token>,
    /// Maximum number of retries after a broken connection, a server error or a rate limit
    /// (default 5).
    pub retries: u32,
    /// Wait before the first retry, doubled for each further one (default 0.5 s). A `Retry-After`
    /// of the server takes precedence, up to 2 minutes.
    pub backoff: Duration,
    /// Restricts the sources to this layout.
    pub layout: Option<Layout>,
}

impl FetchOptions {
    /// Returns the default options for `cache`, independent of the environment.
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

    /// Returns the options in the environment variables of Python's `huggingface_hub`:
    /// [`Cache::from_env`], `HF_ENDPOINT`, `HF_HUB_OFFLINE`, and as a token `HF_TOKEN`, else the
    /// file at `HF_TOKEN_PATH` or `HF_HOME/token` (none with `HF_HUB_DISABLE_IMPLICIT_TOKEN`).
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
        let is_enabled = |name| {
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
        options.offline = is_enabled("HF_HUB_OFFLINE");
        if !is_enabled("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            options.token = token().as_deref().and_then(Token::new);
        }
        Ok(options)
    }
}

/// Downloads the files of `entry` into the cache, unless they are cached, and verifies their
/// hashes.
///
/// A complete source in the cache is used without network access. Otherwise the sources are tried
/// in order. A cached file with a wrong hash is renamed to `<name>.corrupt` and downloaded again.
/// `progress` is called for each buffer of a transfer. Its byte count includes a partial file of
/// an earlier call.
///
/// # Errors
/// - [`ZooError::NotCached`] for a model that is not cached, when offline;
/// - [`ZooError::Checksum`] for a file with a wrong hash, which is deleted if it was downloaded;
/// - [`ZooError::NotFound`], [`ZooError::Denied`], [`ZooError::RateLimited`],
///   [`ZooError::Status`], [`ZooError::Connection`], [`ZooError::Length`] or [`ZooError::Answer`]
///   for an error of a server, or [`ZooError::Sources`] when several sources failed;
/// - [`ZooError::Io`] for a file that cannot be read or written;
/// - [`ZooError::NoLayout`] when the model has no source of the requested layout.
pub fn fetch(
    entry: &Entry,
    options: &FetchOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Fetched, ZooError> {
    fetch_with(entry, options, progress, &mut thread::sleep)
}

/// Like [`fetch`], with a custom `sleep` for the waits between attempts.
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
            // Falling back to another source would hide a full disk or modified weights.
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
    let url = parse_url(&archive.url)?;
    let path = options.cache.archive_paths(archive).swap_remove(0);
    let _lock = lock(&with_suffix(&path, ".lock"))?;
    let policy = RetryPolicy {
        retries: options.retries,
        backoff: options.backoff,
    };
    let mut client = Client::new(url.clone(), None, policy, sleep);
    let target = Target {
        url: &url,
        name: &archive.file,
        role: Role::Weights,
        path: &path,
        bytes: None,
        sha256: Some((&archive.sha256, Check::Registry)),
    };
    ensure_file(&target, &mut client, progress)
}

fn fetch_hub(
    hub: &HubFiles,
    options: &FetchOptions,
    progress: &mut dyn FnMut(Progress<'_>),
    sleep: &mut dyn FnMut(Duration),
) -> Result<Vec<FetchedFile>, ZooError> {
    let policy = RetryPolicy {
        retries: options.retries,
        backoff: options.backoff,
    };
    let token = options.token.as_ref();
    let mut session = Session {
        options,
        client: Client::new(parse_url(&options.endpoint)?, token, policy, sleep),
        commits: BTreeMap::new(),
    };
    let mut files = Vec::new();
    for spec in &hub.files {
        files.push(session.fetch_file(hub, spec, progress)?);
    }
    // Written last: a ref points to the old commit until all new files are complete.
    for ((repo, revision), commit) in &session.commits {
        if revision != commit {
            let path = options.cache.repo(repo).join("refs").join(revision);
            write_ref(&path, commit)?;
        }
    }
    Ok(files)
}

/// Download of one Hub source.
struct Session<'a> {
    options: &'a FetchOptions,
    client: Client<'a>,
    /// Commit of each repository and revision, pinned by its first file, so that all files are of
    /// the same commit.
    commits: BTreeMap<(String, String), String>,
}

impl Session<'_> {
    /// Fetches the first existing one of a file's alternative names.
    fn fetch_file(
        &mut self,
        hub: &HubFiles,
        spec: &FileSpec,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<FetchedFile, ZooError> {
        let (repo, revision) = hub.origin(spec);
        let mut missing = None;
        for name in &spec.names {
            match self.fetch_named(repo, revision, spec, name, progress) {
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

    /// Fetches a file by name: metadata, blob under its lock, link in the snapshot.
    fn fetch_named(
        &mut self,
        repo: &str,
        revision: &str,
        spec: &FileSpec,
        name: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<FetchedFile, ZooError> {
        let key = (repo.to_owned(), revision.to_owned());
        let pinned = self.commits.get(&key).map_or(revision, |c| c).to_owned();
        // A revision such as `refs/pr/1` is a single path segment of the URL.
        let segment = pinned.replace('/', "%2F");
        let url = format!("{}/{repo}/resolve/{segment}/{name}", self.options.endpoint);
        let url = parse_url(&url)?;
        let metadata = self.client.metadata(&url);
        let metadata = metadata.map_err(|e| self.explain_status(e, repo, revision, name))?;

        let commit = metadata
            .commit
            .or_else(|| is_commit(&pinned).then_some(pinned));
        let commit = safe_header(&url, "X-Repo-Commit", commit)?;
        let etag = safe_header(&url, "ETag", metadata.etag)?;
        let registry = spec.sha256.as_deref().map(|hash| (hash, Check::Registry));
        let sha256 = registry.or_else(|| is_sha256(&etag).then_some((&*etag, Check::Hub)));

        // Compare the hashes before downloading gigabytes of modified weights.
        if let (Some(expected), true) = (&spec.sha256, is_sha256(&etag))
            && *expected != etag
        {
            return Err(ZooError::Checksum {
                path: PathBuf::from(redacted(&url)),
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
            let target = Target {
                url: &url,
                name,
                role: spec.role,
                path: &blob,
                bytes: metadata.bytes,
                sha256,
            };
            let file = ensure_file(&target, &mut self.client, progress);
            let file = file.map_err(|e| self.explain_status(e, repo, revision, name))?;
            FetchedFile {
                path: link_snapshot(&cache.snapshot(repo, &commit), name, &blob)?,
                ..file
            }
        };
        self.commits.insert(key, commit);
        Ok(file)
    }

    /// Converts an error status of the Hub into the error it stands for.
    fn explain_status(&self, error: ZooError, repo: &str, revision: &str, file: &str) -> ZooError {
        let ZooError::Status { url, status, .. } = &error else {
            return error;
        };
        if !self.client.is_endpoint(url) {
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
        parse_url(&self.options.endpoint).map_or_else(|_| String::new(), |url| host(&url))
    }
}

/// Target file of a download.
struct Target<'a> {
    url: &'a Uri,
    name: &'a str,
    role: Role,
    /// Final path of the complete file.
    path: &'a Path,
    bytes: Option<u64>,
    sha256: Option<(&'a str, Check)>,
}

/// Returns the existing file if it is intact, else downloads it. The caller holds the lock.
fn ensure_file(
    target: &Target<'_>,
    client: &mut Client<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<FetchedFile, ZooError> {
    let check = |path: &Path| verify_file(target.role, path.to_owned(), target.sha256);
    if target.path.is_file() {
        match check(target.path) {
            Ok(file) if target.bytes.is_none_or(|bytes| bytes == file.bytes) => return Ok(file),
            Ok(_) | Err(ZooError::Checksum { .. }) => {
                rename(target.path, &with_suffix(target.path, ".corrupt"))?;
            }
            Err(e) => return Err(e),
        }
    }
    create_parent(target.path)?;
    let partial = with_suffix(target.path, ".incomplete");
    let job = Download {
        url: target.url,
        name: target.name,
        partial: &partial,
        bytes: target.bytes,
    };
    loop {
        // A partial file of an earlier call may be damaged or of another version. A wrong hash
        // after a resumed transfer therefore leads to one complete download.
        let resumed = partial.metadata().is_ok_and(|m| m.len() > 0);
        client.download(&job, progress)?;
        match check(&partial) {
            Ok(file) => {
                rename(&partial, target.path)?;
                return Ok(FetchedFile {
                    path: target.path.to_owned(),
                    ..file
                });
            }
            Err(ZooError::Checksum {
                expected, found, ..
            }) => {
                fs::remove_file(&partial).map_err(|e| ZooError::io(&partial, e))?;
                if !resumed {
                    return Err(ZooError::Checksum {
                        path: PathBuf::from(redacted(target.url)),
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

/// Links the name in the snapshot to the blob.
fn link_snapshot(snapshot: &Path, name: &str, blob: &Path) -> Result<PathBuf, ZooError> {
    let link = snapshot.join(name);
    create_parent(&link)?;
    let same = |path: &Path| {
        let (Ok(a), Ok(b)) = (path.canonicalize(), blob.canonicalize()) else {
            return false;
        };
        a == b
    };
    if same(&link) {
        return Ok(link);
    }
    match fs::remove_file(&link) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(ZooError::io(&link, e)),
        _ => (),
    }
    create_link(blob, &link, name).map_err(|e| ZooError::io(&link, e))?;
    Ok(link)
}

/// Creates a relative link, so that the cache can be moved. It leads up from the folders of the
/// name, the commit and `snapshots`.
#[cfg(unix)]
fn create_link(blob: &Path, link: &Path, name: &str) -> std::io::Result<()> {
    let mut target: PathBuf = std::iter::repeat_n("..", name.split('/').count() + 1).collect();
    target.push("blobs");
    target.extend(blob.file_name());
    std::os::unix::fs::symlink(target, link)
}

/// Creates a hard link: symbolic links need a privilege on Windows.
#[cfg(not(unix))]
fn create_link(blob: &Path, link: &Path, _name: &str) -> std::io::Result<()> {
    fs::hard_link(blob, link)
}

fn write_ref(path: &Path, commit: &str) -> Result<(), ZooError> {
    create_parent(path)?;
    if fs::read_to_string(path).is_ok_and(|old| old.trim() == commit) {
        return Ok(());
    }
    write_atomically(path, commit.as_bytes()).map_err(|e| ZooError::io(path, e))
}

/// Acquires the exclusive lock of a file, waiting for other processes and threads. Dropping the
/// result releases it.
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

/// Returns the value of a response header, if it is safe as a name in a folder.
fn safe_header(url: &Uri, header: &str, value: Option<String>) -> Result<String, ZooError> {
    let answer = |reason| ZooError::Answer {
        url: redacted(url),
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

fn parse_url(url: &str) -> Result<Uri, ZooError> {
    let is_http =
        |url: &Uri| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some();
    url.parse()
        .ok()
        .filter(is_http)
        .ok_or_else(|| ZooError::Answer {
            // The text is not shown: it may contain a password.
            url: "HF_ENDPOINT".to_owned(),
            reason: "is not an http or https URL".to_owned(),
        })
}

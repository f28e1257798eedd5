//! Local cache of pretrained weights.
//!
//! | files | location |
//! |---|---|
//! | Hub files | `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub` |
//! | archives | `HF_HOME/clip-model/<sha256>/<file>`: archives of the same name do not collide |
//! | archives, read only | `~/.cache/clip/<file>`: the folder of OpenAI's `clip` and open_clip |
//!
//! Hub files are stored in the cache of Python's `huggingface_hub` and in its layout, so that each
//! side finds the downloads of the other. As in Python, `XDG_CACHE_HOME` replaces `~/.cache` if
//! `HF_HOME` is not set. The layout of a Hub cache:
//!
//! ```text
//! models--owner--name/refs/main                   the commit
//! models--owner--name/snapshots/<commit>/<file>   link to the blob
//! models--owner--name/blobs/<etag>                content; a large file's ETag is its SHA-256
//! .locks/models--owner--name/<etag>.lock          held while the blob is written
//! ```

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::{
    Archive, Entry, FileSpec, HubFiles, Layout, Role, Source, ZooError,
    digest::{is_commit, is_sha256, sha256_file},
    registry::is_safe_part,
};

/// Folders of the local weight cache.
///
/// ```
/// use clip_model::zoo::{Cache, Registry, ZooError};
///
/// let registry = Registry::embedded()?;
/// let cache = Cache::at("/tmp/an-empty-cache".as_ref());
/// let found = cache.lookup(registry.get("openai/ViT-B-16")?, None);
/// assert!(matches!(found, Err(ZooError::NotCached { .. })));
/// # Ok::<(), ZooError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    hub: PathBuf,
    archives: PathBuf,
    openai: Option<PathBuf>,
}

/// Files of a model in the local cache, with their verified hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fetched {
    /// The model.
    pub name: String,
    /// Tensor naming convention of the files.
    pub layout: Layout,
    /// Common parent folder of all files; `None` when they are in different folders.
    pub directory: Option<PathBuf>,
    /// The files in the order of the registry.
    pub files: Vec<FetchedFile>,
}

/// Files of a model in the local cache, not hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CachedFiles {
    /// Tensor naming convention of the files.
    pub layout: Layout,
    /// Role and path of each file, in the order of the registry.
    pub files: Vec<(Role, PathBuf)>,
}

impl CachedFiles {
    /// Returns the file with `role`, if the model has one.
    #[must_use]
    pub fn path(&self, role: Role) -> Option<&Path> {
        let file = self.files.iter().find(|(r, _)| *r == role)?;
        Some(&file.1)
    }
}

/// One file in the local cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FetchedFile {
    /// Role of the file.
    pub role: Role,
    /// Path of the file.
    pub path: PathBuf,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// Reference that the hash was compared with.
    pub check: Check,
}

/// Reference that the hash of a file was compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// The hash in the registry.
    Registry,
    /// The hash that the Hub stated at the time of the download.
    Hub,
    /// None: small files on the Hub have a git hash only. Their length was compared at the time of
    /// the download.
    LengthOnly,
}

impl Fetched {
    /// Returns the file with `role`, if the model has one.
    #[must_use]
    pub fn path(&self, role: Role) -> Option<&Path> {
        let file = self.files.iter().find(|f| f.role == role)?;
        Some(&file.path)
    }

    /// Returns the total length of all files in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
}

impl Cache {
    /// Returns the cache in the folders set by the environment: `HF_HUB_CACHE`, `HF_HOME` and
    /// `XDG_CACHE_HOME`, with Python's defaults.
    ///
    /// # Errors
    /// [`ZooError::NoHome`] when neither the environment nor the operating system names a folder.
    pub fn from_env() -> Result<Self, ZooError> {
        Self::from_vars(&|name| env::var_os(name), env::home_dir())
    }

    /// Returns a separate cache under `root`, in the folders `hub` and `clip-model`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            hub: root.join("hub"),
            archives: root.join("clip-model"),
            openai: None,
        }
    }

    /// Adds `dir` as a read-only folder of archives.
    #[must_use]
    pub fn with_openai(mut self, dir: &Path) -> Self {
        self.openai = Some(dir.to_owned());
        self
    }

    /// Returns the folder of the Hugging Face cache.
    #[must_use]
    pub fn hub(&self) -> &Path {
        &self.hub
    }

    pub(super) fn from_vars(
        var: &dyn Fn(&str) -> Option<OsString>,
        home: Option<PathBuf>,
    ) -> Result<Self, ZooError> {
        let set = |name| folder_from_env(var, name, home.as_deref());
        let hf_home = hf_home(var, home.as_deref());
        let hub = set("HF_HUB_CACHE").or_else(|| Some(hf_home.as_ref()?.join("hub")));
        // Without a home directory, HF_HUB_CACHE may be the only known folder.
        let archives = hf_home
            .or_else(|| hub.clone())
            .map(|root| root.join("clip-model"));
        Ok(Self {
            hub: hub.ok_or(ZooError::NoHome)?,
            archives: archives.ok_or(ZooError::NoHome)?,
            // OpenAI's code reads no environment variable: `clip.py:94`,
            // `os.path.expanduser("~/.cache/clip")`.
            openai: home.map(|h| h.join(".cache/clip")),
        })
    }

    /// Returns the cached files of the first complete source of `entry`, restricted to `layout` if
    /// one is given. Each file is hashed, which takes about a second per gigabyte on a processor
    /// with SHA instructions.
    ///
    /// # Errors
    /// [`ZooError::NotCached`] when no source is complete, [`ZooError::Checksum`] when a hash
    /// differs from the expected one, [`ZooError::Io`] when a file cannot be read,
    /// [`ZooError::NoLayout`] when the model has no source of the layout.
    pub fn lookup(&self, entry: &Entry, layout: Option<Layout>) -> Result<Fetched, ZooError> {
        let mut corrupt = None;
        for source in entry.sources_in(layout)? {
            match self.find_source(entry, source) {
                Ok(Some(fetched)) => return Ok(fetched),
                Ok(None) => (),
                Err(e @ ZooError::Checksum { .. }) => corrupt = corrupt.or(Some(e)),
                Err(e) => return Err(e),
            }
        }
        Err(corrupt.unwrap_or_else(|| self.not_cached(entry)))
    }

    /// Returns the files of the first source of `entry` that is complete, without hashing
    /// gigabytes.
    #[must_use]
    pub fn find(&self, entry: &Entry) -> Option<CachedFiles> {
        entry.sources.iter().find_map(|source| {
            let files = match source {
                Source::Hub(hub) => {
                    let file = |spec: &FileSpec| Some((spec.role, self.find_hub_file(hub, spec)?));
                    hub.files.iter().map(file).collect::<Option<Vec<_>>>()?
                }
                Source::Archive(archive) => {
                    let mut paths = self.archive_paths(archive).into_iter();
                    vec![(Role::Weights, paths.find(|path| path.is_file())?)]
                }
            };
            let layout = source.layout();
            Some(CachedFiles { layout, files })
        })
    }

    pub(super) fn not_cached(&self, entry: &Entry) -> ZooError {
        let folders = entry.sources.iter().flat_map(|source| match source {
            Source::Hub(hub) => vec![self.repo(&hub.repo)],
            Source::Archive(archive) => self.archive_paths(archive),
        });
        ZooError::NotCached {
            name: entry.name.clone(),
            looked: deduplicated(folders),
        }
    }

    /// Returns the verified files of one source, if all of them are cached.
    fn find_source(&self, entry: &Entry, source: &Source) -> Result<Option<Fetched>, ZooError> {
        let mut files = Vec::new();
        match source {
            Source::Hub(hub) => {
                // Locate all files before hashing the first: an incomplete source costs nothing.
                let mut paths = Vec::new();
                for spec in &hub.files {
                    let Some(path) = self.find_hub_file(hub, spec) else {
                        return Ok(None);
                    };
                    paths.push((spec, path));
                }
                for (spec, path) in paths {
                    files.push(verify_hub_file(spec, path)?);
                }
            }
            Source::Archive(archive) => match self.find_archive(archive)? {
                Some(file) => files.push(file),
                None => return Ok(None),
            },
        }
        Ok(Some(Fetched::new(entry, source.layout(), files)))
    }

    pub(super) fn find_hub_file(&self, hub: &HubFiles, spec: &FileSpec) -> Option<PathBuf> {
        let (repo, revision) = hub.origin(spec);
        let snapshot = self.snapshot(repo, &self.commit(repo, revision)?);
        let paths = spec.names.iter().map(|name| snapshot.join(name));
        paths.into_iter().find(|path| path.is_file())
    }

    /// Returns the first archive with the expected hash. A mismatch is reported only if no archive
    /// has it.
    fn find_archive(&self, archive: &Archive) -> Result<Option<FetchedFile>, ZooError> {
        let mut corrupt = None;
        for path in self.archive_paths(archive) {
            if !path.is_file() {
                continue;
            }
            match verify_file(
                Role::Weights,
                path,
                Some((&archive.sha256, Check::Registry)),
            ) {
                Err(e @ ZooError::Checksum { .. }) => corrupt = corrupt.or(Some(e)),
                other => return other.map(Some),
            }
        }
        corrupt.map_or(Ok(None), Err)
    }

    /// Returns the candidate paths of an archive. Downloads are written to the first.
    pub(super) fn archive_paths(&self, archive: &Archive) -> Vec<PathBuf> {
        let ours = self.archives.join(&archive.sha256).join(&archive.file);
        let openai = self.openai.iter().map(|dir| dir.join(&archive.file));
        std::iter::once(ours).chain(openai).collect()
    }

    /// Returns the folder of a repository.
    pub(super) fn repo(&self, repo: &str) -> PathBuf {
        self.hub.join(folder_name(repo))
    }

    /// Returns the path of a repository's blob.
    #[cfg(feature = "fetch")]
    pub(super) fn blob(&self, repo: &str, etag: &str) -> PathBuf {
        self.repo(repo).join("blobs").join(etag)
    }

    /// Returns the folder of a repository's lock files.
    #[cfg(feature = "fetch")]
    pub(super) fn locks(&self, repo: &str) -> PathBuf {
        self.hub.join(".locks").join(folder_name(repo))
    }

    pub(super) fn snapshot(&self, repo: &str, commit: &str) -> PathBuf {
        self.repo(repo).join("snapshots").join(commit)
    }

    /// Returns the commit of `revision`, as of the last download.
    fn commit(&self, repo: &str, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.repo(repo).join("refs").join(revision)).ok()?;
        let commit = text.trim();
        is_safe_part(commit).then(|| commit.to_owned())
    }
}

/// `o/n` → `models--o--n`.
fn folder_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

impl Fetched {
    pub(super) fn new(entry: &Entry, layout: Layout, files: Vec<FetchedFile>) -> Self {
        let mut parents = files.iter().map(|f| f.path.parent());
        let first = parents.next().flatten();
        let directory = first
            .filter(|first| parents.all(|p| p == Some(*first)))
            .map(Path::to_owned);
        Self {
            name: entry.name.clone(),
            layout,
            directory,
            files,
        }
    }
}

/// Returns `HF_HOME`, by the rules of Python's `huggingface_hub`.
pub(super) fn hf_home(
    var: &dyn Fn(&str) -> Option<OsString>,
    home: Option<&Path>,
) -> Option<PathBuf> {
    folder_from_env(var, "HF_HOME", home).or_else(|| {
        let caches = folder_from_env(var, "XDG_CACHE_HOME", home);
        Some(
            caches
                .or_else(|| Some(home?.join(".cache")))?
                .join("huggingface"),
        )
    })
}

/// Returns the folder in an environment variable, with `~` expanded. Empty counts as unset.
fn folder_from_env(
    var: &dyn Fn(&str) -> Option<OsString>,
    name: &str,
    home: Option<&Path>,
) -> Option<PathBuf> {
    let path = PathBuf::from(var(name).filter(|v| !v.is_empty())?);
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(path),
    }
}

fn deduplicated(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut list = Vec::new();
    for path in paths {
        if !list.contains(&path) {
            list.push(path);
        }
    }
    list
}

/// Returns the expected hash of a file in a Hub cache: the registry's, else the name of its blob if
/// that is a SHA-256.
pub(super) fn expected_hash(spec: &FileSpec, path: &Path) -> Option<(String, Check)> {
    if let Some(hash) = &spec.sha256 {
        return Some((hash.clone(), Check::Registry));
    }
    let blob = path.canonicalize().ok()?;
    let name = blob.file_name()?.to_str()?;
    is_sha256(name).then(|| (name.to_owned(), Check::Hub))
}

pub(super) fn verify_hub_file(spec: &FileSpec, path: PathBuf) -> Result<FetchedFile, ZooError> {
    let expected = expected_hash(spec, &path);
    let expected = expected.as_ref().map(|(hash, check)| (&**hash, *check));
    verify_file(spec.role, path, expected)
}

/// Hashes a file and compares it with the expected hash.
pub(super) fn verify_file(
    role: Role,
    path: PathBuf,
    expected: Option<(&str, Check)>,
) -> Result<FetchedFile, ZooError> {
    let (sha256, bytes) = sha256_file(&path)?;
    match expected {
        Some((expected, _)) if expected != sha256 => Err(ZooError::Checksum {
            path,
            expected: expected.to_owned(),
            found: sha256,
            outcome: "delete it and fetch it again",
        }),
        _ => Ok(FetchedFile {
            role,
            path,
            bytes,
            sha256,
            check: expected.map_or(Check::LengthOnly, |(_, check)| check),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Registry, *};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    /// SHA-256 of `abc`, FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn cache_from(vars: &[(&str, &str)], home: Option<&str>) -> Result<Cache, ZooError> {
        let var = |name: &str| {
            let found = vars.iter().find(|(n, _)| *n == name);
            found.map(|(_, v)| OsString::from(v))
        };
        Cache::from_vars(&var, home.map(PathBuf::from))
    }

    /// Returns a model with a Hub repository and a second source, an archive of the content `abc`.
    fn entry() -> Entry {
        let text = format!(
            "[[model]]\nname = 'a/b'\narchitecture = 'ViT-B-16'\n\
             preprocess = {{ size = 224, mean = [0, 0, 0], std = [1, 1, 1], \
             interpolation = 'bicubic', resize_mode = 'squash' }}\n\
             [[model.source]]\nlayout = 'open-clip'\nrepo = 'o/n'\nrevision = 'main'\n\
             files = [{{ role = 'weights', names = ['m.safetensors', 'm.bin'] }}, \
             {{ role = 'config', names = ['c.json'] }}]\n\
             [[model.source]]\nlayout = 'openai-archive'\nurl = 'https://example.org/x.pt'\n\
             sha256 = '{ABC}'\n"
        );
        let registry = Registry::parse(&text, Path::new("my.toml")).unwrap();
        registry.iter().next().unwrap().clone()
    }

    /// Writes a file into a Hub cache in Python's layout.
    fn write_blob(cache: &Cache, file: &str, etag: &str, content: &str) {
        let repo = cache.repo("o/n");
        for folder in ["refs", "blobs", &format!("snapshots/{COMMIT}")] {
            fs::create_dir_all(repo.join(folder)).unwrap();
        }
        fs::write(repo.join("refs/main"), COMMIT).unwrap();
        let blob = repo.join("blobs").join(etag);
        fs::write(&blob, content).unwrap();
        let pointer = cache.snapshot("o/n", COMMIT).join(file);
        #[cfg(unix)]
        std::os::unix::fs::symlink(format!("../../blobs/{etag}"), pointer).unwrap();
        #[cfg(not(unix))]
        fs::copy(blob, pointer).map(drop).unwrap();
    }

    #[test]
    fn folders_match_huggingface_hub() {
        let hub = |vars: &[_]| cache_from(vars, Some("/me")).unwrap().hub;
        assert_eq!(hub(&[]), Path::new("/me/.cache/huggingface/hub"));
        let xdg = ("XDG_CACHE_HOME", "/x");
        assert_eq!(hub(&[xdg]), Path::new("/x/huggingface/hub"));
        assert_eq!(hub(&[("HF_HOME", "/h"), xdg]), Path::new("/h/hub"));
        let both = [("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")];
        assert_eq!(hub(&both), Path::new("/c"));
        let tilde = [("HF_HOME", "~/h"), ("HF_HUB_CACHE", "")];
        assert_eq!(hub(&tilde), Path::new("/me/h/hub"));
    }

    #[test]
    fn archive_folders_follow_the_environment() {
        let both = [("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")];
        let cache = cache_from(&both, Some("/me")).unwrap();
        assert_eq!(cache.archives, Path::new("/h/clip-model"));
        assert_eq!(cache.openai.as_deref(), Some(Path::new("/me/.cache/clip")));
        let cache = cache_from(&[("HF_HUB_CACHE", "/c")], None).unwrap();
        assert_eq!(cache.archives, Path::new("/c/clip-model"));
        assert!(matches!(cache_from(&[], None), Err(ZooError::NoHome)));
    }

    #[cfg(unix)]
    #[test]
    fn python_downloads_are_found_and_verified() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        // The second alternative name, as in an older download.
        write_blob(&cache, "m.bin", ABC, "abc");
        assert!(matches!(
            cache.lookup(&entry(), None),
            Err(ZooError::NotCached { .. })
        ));
        write_blob(&cache, "c.json", "a".repeat(40).as_str(), "{}");
        let fetched = cache.lookup(&entry(), None).unwrap();
        assert_eq!(fetched.directory, Some(cache.snapshot("o/n", COMMIT)));
        assert_eq!(fetched.layout, Layout::OpenClip);
        assert_eq!(fetched.bytes(), 5);
        let checks: Vec<_> = fetched.files.iter().map(|f| f.check).collect();
        assert_eq!(checks, [Check::Hub, Check::LengthOnly]);
        assert!(fetched.path(Role::Weights).unwrap().ends_with("m.bin"));
        assert_eq!(fetched.path(Role::Tokenizer), None);
        let archive = cache.lookup(&entry(), Some(Layout::OpenaiArchive));
        assert!(matches!(archive, Err(ZooError::NotCached { .. })));
        let none = cache.lookup(&entry(), Some(Layout::Transformers));
        assert!(matches!(none, Err(ZooError::NoLayout { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn blob_with_wrong_hash_is_a_checksum_error() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let zeros = "0".repeat(64);
        write_blob(&cache, "m.bin", &zeros, "abc");
        write_blob(&cache, "c.json", "a".repeat(40).as_str(), "{}");
        let error = cache.lookup(&entry(), None).unwrap_err().to_string();
        assert!(error.contains(&zeros) && error.contains(ABC), "{error}");
    }

    #[test]
    fn ref_outside_its_folder_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        write_blob(&cache, "m.bin", ABC, "abc");
        write_blob(&cache, "c.json", "a".repeat(40).as_str(), "{}");
        fs::write(cache.repo("o/n").join("refs/main"), "../snapshots").unwrap();
        assert!(matches!(
            cache.lookup(&entry(), None),
            Err(ZooError::NotCached { .. })
        ));
    }

    #[test]
    fn intact_openai_download_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let openai = dir.path().join("clip");
        fs::create_dir(&openai).unwrap();
        let cache = Cache::at(dir.path()).with_openai(&openai);
        let path = openai.join("x.pt");
        fs::write(&path, "ab").unwrap();
        assert!(matches!(
            cache.lookup(&entry(), None),
            Err(ZooError::Checksum { .. })
        ));
        fs::write(&path, "abc").unwrap();
        let fetched = cache.lookup(&entry(), None).unwrap();
        assert_eq!(fetched.files[0].path, path);
        assert_eq!(fetched.files[0].check, Check::Registry);
    }

    #[test]
    fn not_cached_error_lists_searched_folders() {
        let dir = tempfile::tempdir().unwrap();
        let error = Cache::at(dir.path()).lookup(&entry(), None).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("models--o--n") && text.contains("x.pt"),
            "{text}"
        );
    }

    #[test]
    fn an_archive_is_found_in_our_cache_and_in_the_cache_of_openai() {
        let root = tempfile::tempdir().unwrap();
        let openai = root.path().join("openai");
        let cache = Cache::at(root.path()).with_openai(&openai);
        let registry = Registry::embedded().unwrap();
        let entry = registry.get("openai/ViT-B-16").unwrap();
        assert!(cache.find(entry).is_none());
        let Some(Source::Archive(archive)) = entry.sources.first() else {
            panic!("the first source is no archive");
        };
        let ours = root.path().join("clip-model").join(&archive.sha256);
        for folder in [ours, openai] {
            fs::create_dir_all(&folder).unwrap();
            let path = folder.join("ViT-B-16.pt");
            fs::write(&path, "x").unwrap();
            let found = cache.find(entry).unwrap();
            assert_eq!(found.path(Role::Weights), Some(&*path));
            // The library looks at the same path: it finds the file and rejects its hash.
            assert!(matches!(
                cache.lookup(entry, Some(Layout::OpenaiArchive)),
                Err(ZooError::Checksum { path: p, .. }) if p == path
            ));
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn files_of_a_repository_are_found_through_the_reference() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path());
        let registry = Registry::embedded().unwrap();
        let entry = registry.get("openai/ViT-B-16").unwrap();
        let repo = cache.hub().join("models--openai--clip-vit-base-patch16");
        let snapshot = repo.join("snapshots/0123456789abcdef0123456789abcdef01234567");
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        fs::write(
            repo.join("refs/main"),
            "0123456789abcdef0123456789abcdef01234567\n",
        )
        .unwrap();
        for name in ["pytorch_model.bin", "config.json", "tokenizer.json"] {
            fs::write(snapshot.join(name), "x").unwrap();
        }
        assert!(cache.find(entry).is_none(), "a file is missing");
        fs::write(snapshot.join("preprocessor_config.json"), "x").unwrap();
        let found = cache.find(entry).unwrap();
        assert_eq!(found.layout, Layout::Transformers);
        assert_eq!(found.files.len(), 4);
        assert!(cache.lookup(entry, None).is_ok());
    }
}

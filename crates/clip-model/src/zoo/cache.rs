//! Where the files of the zoo lie, and what is there already.
//!
//! | what | where |
//! |---|---|
//! | Hub files | `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`: the cache of Python's `huggingface_hub`, in its layout, so that either side finds what the other fetched |
//! | archives | `HF_HOME/clip-model/<sha256>/<file>`: two archives of one name cannot meet there |
//! | archives, read only | `~/.cache/clip/<file>`: where OpenAI's `clip` and open_clip put them |
//!
//! As in Python, `XDG_CACHE_HOME` stands for `~/.cache` where `HF_HOME` is not set. A Hub cache
//! looks like this:
//!
//! ```text
//! models--owner--name/refs/main                    the commit
//! models--owner--name/snapshots/<commit>/<file>    a link to
//! models--owner--name/blobs/<etag>                 the content; the ETag of a large file is its SHA-256
//! .locks/models--owner--name/<etag>.lock           held while the blob is written
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

/// The folders that weights lie in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    hub: PathBuf,
    archives: PathBuf,
    openai: Option<PathBuf>,
}

/// A model's files on this machine, hashed a moment ago.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fetched {
    /// The model.
    pub name: String,
    /// What the files look like inside.
    pub layout: Layout,
    /// The folder that holds all of them under the names of their repository, when there is one.
    pub directory: Option<PathBuf>,
    /// The files in the order of the registry.
    pub files: Vec<FetchedFile>,
}

/// One file on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FetchedFile {
    /// What it is for.
    pub role: Role,
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// What the hash was compared with.
    pub check: Check,
}

/// What the hash of a file was compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// The hash in the registry.
    Registry,
    /// The hash that the Hub stated when the file was fetched.
    Hub,
    /// Nothing: small files on the Hub have a git hash only. Their length was compared when they
    /// were fetched.
    LengthOnly,
}

impl Fetched {
    /// The file for `role`, if the model has one.
    #[must_use]
    pub fn path(&self, role: Role) -> Option<&Path> {
        let file = self.files.iter().find(|f| f.role == role)?;
        Some(&file.path)
    }

    /// Length of all files in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
}

impl Cache {
    /// The folders that the environment names; see the table above.
    ///
    /// # Errors
    /// [`ZooError::NoHome`] when neither the environment nor the operating system names one.
    pub fn from_env() -> Result<Self, ZooError> {
        Self::from_vars(&|name| env::var_os(name), env::home_dir())
    }

    /// A cache of its own under `root`, in the folders `hub` and `clip-model`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            hub: root.join("hub"),
            archives: root.join("clip-model"),
            openai: None,
        }
    }

    /// Also looks for archives in `dir`, without writing there.
    #[must_use]
    pub fn with_openai(mut self, dir: &Path) -> Self {
        self.openai = Some(dir.to_owned());
        self
    }

    /// The folder of the Hugging Face cache.
    #[must_use]
    pub fn hub(&self) -> &Path {
        &self.hub
    }

    pub(super) fn from_vars(
        var: &dyn Fn(&str) -> Option<OsString>,
        home: Option<PathBuf>,
    ) -> Result<Self, ZooError> {
        let set = |name| folder(var, name, home.as_deref());
        let hf_home = hf_home(var, home.as_deref());
        let hub = set("HF_HUB_CACHE").or_else(|| Some(hf_home.as_ref()?.join("hub")));
        // Without a home directory, HF_HUB_CACHE is the only folder there is.
        let archives = hf_home
            .or_else(|| hub.clone())
            .map(|root| root.join("clip-model"));
        Ok(Self {
            hub: hub.ok_or(ZooError::NoHome)?,
            archives: archives.ok_or(ZooError::NoHome)?,
            // OpenAI's code knows no variable: `clip.py:94`, `os.path.expanduser("~/.cache/clip")`.
            openai: home.map(|h| h.join(".cache/clip")),
        })
    }

    /// The files of `entry` that are on this machine, from its first source that is complete, of
    /// `layout` if one is given. Each file is hashed, which takes about a second per gigabyte where
    /// the processor has SHA instructions.
    ///
    /// # Errors
    /// [`ZooError::NotCached`] when no source is complete, [`ZooError::Checksum`] when a file is
    /// not what it should be, [`ZooError::Io`] when one cannot be read, [`ZooError::NoLayout`] when
    /// the model has no source of the layout.
    pub fn lookup(&self, entry: &Entry, layout: Option<Layout>) -> Result<Fetched, ZooError> {
        let mut corrupt = None;
        for source in entry.sources_in(layout)? {
            match self.find(entry, source) {
                Ok(Some(fetched)) => return Ok(fetched),
                Ok(None) => (),
                Err(e @ ZooError::Checksum { .. }) => corrupt = corrupt.or(Some(e)),
                Err(e) => return Err(e),
            }
        }
        Err(corrupt.unwrap_or_else(|| self.not_cached(entry)))
    }

    pub(super) fn not_cached(&self, entry: &Entry) -> ZooError {
        let folders = entry.sources.iter().flat_map(|source| match source {
            Source::Hub(hub) => vec![self.repo(&hub.repo)],
            Source::Archive(archive) => self.archive_paths(archive),
        });
        ZooError::NotCached {
            name: entry.name.clone(),
            looked: distinct(folders),
        }
    }

    /// The files of one source, if all are there.
    fn find(&self, entry: &Entry, source: &Source) -> Result<Option<Fetched>, ZooError> {
        let mut files = Vec::new();
        match source {
            Source::Hub(hub) => {
                // All of them before the first is hashed: an incomplete source costs nothing.
                let mut paths = Vec::new();
                for spec in &hub.files {
                    let Some(path) = self.find_hub_file(hub, spec) else {
                        return Ok(None);
                    };
                    paths.push((spec, path));
                }
                for (spec, path) in paths {
                    files.push(check_hub_file(spec, path)?);
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

    /// The first archive that has the right hash. One that has another is reported only if there is
    /// no right one.
    fn find_archive(&self, archive: &Archive) -> Result<Option<FetchedFile>, ZooError> {
        let mut corrupt = None;
        for path in self.archive_paths(archive) {
            if !path.is_file() {
                continue;
            }
            match checked(
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

    /// Where an archive may be; the first is where it is written.
    pub(super) fn archive_paths(&self, archive: &Archive) -> Vec<PathBuf> {
        let ours = self.archives.join(&archive.sha256).join(&archive.file);
        let openai = self.openai.iter().map(|dir| dir.join(&archive.file));
        std::iter::once(ours).chain(openai).collect()
    }

    /// The folder of a repository.
    pub(super) fn repo(&self, repo: &str) -> PathBuf {
        self.hub.join(folder_name(repo))
    }

    /// The content of a file of a repository.
    #[cfg(feature = "fetch")]
    pub(super) fn blob(&self, repo: &str, etag: &str) -> PathBuf {
        self.repo(repo).join("blobs").join(etag)
    }

    /// The lock files of a repository.
    #[cfg(feature = "fetch")]
    pub(super) fn locks(&self, repo: &str) -> PathBuf {
        self.hub.join(".locks").join(folder_name(repo))
    }

    pub(super) fn snapshot(&self, repo: &str, commit: &str) -> PathBuf {
        self.repo(repo).join("snapshots").join(commit)
    }

    /// The commit that `revision` stood for when it was last asked about.
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

/// `HF_HOME`, by the rules of Python's package.
pub(super) fn hf_home(
    var: &dyn Fn(&str) -> Option<OsString>,
    home: Option<&Path>,
) -> Option<PathBuf> {
    folder(var, "HF_HOME", home).or_else(|| {
        let caches = folder(var, "XDG_CACHE_HOME", home);
        Some(
            caches
                .or_else(|| Some(home?.join(".cache")))?
                .join("huggingface"),
        )
    })
}

/// A variable that names a folder, in which `~` is the home directory; empty is unset.
fn folder(
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

fn distinct(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut list = Vec::new();
    for path in paths {
        if !list.contains(&path) {
            list.push(path);
        }
    }
    list
}

/// The hash that a file of a Hub cache should have: the registry's, else the name of its blob when
/// that is one.
pub(super) fn expected_of_hub_file(spec: &FileSpec, path: &Path) -> Option<(String, Check)> {
    if let Some(hash) = &spec.sha256 {
        return Some((hash.clone(), Check::Registry));
    }
    let blob = path.canonicalize().ok()?;
    let name = blob.file_name()?.to_str()?;
    is_sha256(name).then(|| (name.to_owned(), Check::Hub))
}

pub(super) fn check_hub_file(spec: &FileSpec, path: PathBuf) -> Result<FetchedFile, ZooError> {
    let expected = expected_of_hub_file(spec, &path);
    let expected = expected.as_ref().map(|(hash, check)| (&**hash, *check));
    checked(spec.role, path, expected)
}

/// Hashes a file and compares.
pub(super) fn checked(
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

    /// A model with a Hub repository and, second, an archive of the content `abc`.
    fn entry() -> Entry {
        let text = format!(
            "[[model]]\nname = 'a/b'\narchitecture = 'ViT-B-16'\n\
             preprocess = {{ size = 224, mean = [0, 0, 0], std = [1, 1, 1], interpolation = 'bicubic', resize_mode = 'squash' }}\n\
             [[model.source]]\nlayout = 'open-clip'\nrepo = 'o/n'\nrevision = 'main'\n\
             files = [{{ role = 'weights', names = ['m.safetensors', 'm.bin'] }}, {{ role = 'config', names = ['c.json'] }}]\n\
             [[model.source]]\nlayout = 'openai-archive'\nurl = 'https://example.org/x.pt'\nsha256 = '{ABC}'\n"
        );
        let registry = Registry::parse(&text, Path::new("my.toml")).unwrap();
        registry.iter().next().unwrap().clone()
    }

    /// Puts a file into a Hub cache as Python does.
    fn put(cache: &Cache, file: &str, etag: &str, content: &str) {
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
    fn the_folders_are_those_of_python() {
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
    fn archives_lie_beside_the_hub_or_where_openai_puts_them() {
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
    fn what_python_fetched_is_found_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        // The second of the two names: an older download.
        put(&cache, "m.bin", ABC, "abc");
        assert!(matches!(
            cache.lookup(&entry(), None),
            Err(ZooError::NotCached { .. })
        ));
        put(&cache, "c.json", "a".repeat(40).as_str(), "{}");
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
    fn a_blob_that_is_not_its_name_is_an_error_with_both_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let zeros = "0".repeat(64);
        put(&cache, "m.bin", &zeros, "abc");
        put(&cache, "c.json", "a".repeat(40).as_str(), "{}");
        let error = cache.lookup(&entry(), None).unwrap_err().to_string();
        assert!(error.contains(&zeros) && error.contains(ABC), "{error}");
    }

    #[test]
    fn a_reference_that_leaves_its_folder_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        put(&cache, "m.bin", ABC, "abc");
        put(&cache, "c.json", "a".repeat(40).as_str(), "{}");
        fs::write(cache.repo("o/n").join("refs/main"), "../snapshots").unwrap();
        assert!(matches!(
            cache.lookup(&entry(), None),
            Err(ZooError::NotCached { .. })
        ));
    }

    #[test]
    fn openais_own_download_is_used_when_it_is_intact() {
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
    fn an_empty_cache_says_where_it_looked() {
        let dir = tempfile::tempdir().unwrap();
        let error = Cache::at(dir.path()).lookup(&entry(), None).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("models--o--n") && text.contains("x.pt"),
            "{text}"
        );
    }
}

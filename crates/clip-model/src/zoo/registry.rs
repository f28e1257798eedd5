//! Registry of named pretrained weights.

use std::{collections::HashMap, path::Path};

use serde::Deserialize;
use strsim::levenshtein;

use super::{ZooError, digest};

/// Text of the registry in the library.
const EMBEDDED: &str = include_str!("zoo.toml");
/// Maximum number of similar names in an error.
const SUGGESTIONS: usize = 3;

/// List of named pretrained weights.
///
/// ```
/// use clip_model::zoo::Registry;
///
/// let registry = Registry::embedded()?;
/// let entry = registry.get("ViT-B/16")?;
/// assert_eq!(entry.name, "openai/ViT-B-16");
/// assert_eq!(entry.preprocess.size, 224);
/// # Ok::<(), clip_model::zoo::ZooError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Registry {
    entries: Vec<Entry>,
}

/// One named set of weights.
///
/// Only [`Registry::parse`] creates entries. It checks that each file and repository name is safe
/// to use as a path.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Entry {
    /// Origin (author or training data) and model: `openai/ViT-B-16`.
    pub name: String,
    /// Name of the model configuration in open_clip: `ViT-B-16-quickgelu`.
    pub architecture: String,
    /// Download sources, the preferred one first.
    pub sources: Vec<Source>,
    /// Image preprocessing.
    pub preprocess: ImageSettings,
    /// Licence of the weights, if known.
    pub licence: Option<String>,
    /// Zero-shot top-1 accuracy on ImageNet in percent.
    pub zero_shot: Option<f64>,
    /// Source of the figure [`zero_shot`](Self::zero_shot).
    pub zero_shot_source: Option<String>,
}

/// Download source of weights.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Files of repositories on the Hugging Face Hub.
    Hub(HubFiles),
    /// One file at a URL.
    Archive(Archive),
}

/// Files on the Hugging Face Hub.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HubFiles {
    /// Tensor naming convention of the files.
    pub layout: Layout,
    /// Repository: `owner/name`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// The files.
    pub files: Vec<FileSpec>,
}

/// One file of a [`HubFiles`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileSpec {
    /// Role of the file.
    pub role: Role,
    /// Alternative names in the repository. The first existing one is used.
    pub names: Vec<String>,
    /// Repository of the file, if it differs from that of the source.
    pub repo: Option<String>,
    /// Revision of [`repo`](Self::repo).
    pub revision: Option<String>,
    /// SHA-256 in lower-case hexadecimal, if known.
    pub sha256: Option<String>,
}

/// One file at a URL.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Archive {
    /// Tensor naming convention of the file.
    pub layout: Layout,
    /// URL with the scheme `https`, or `http` for a server on this machine.
    pub url: String,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// File name: the last segment of the URL.
    pub file: String,
}

/// Role of a file in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Parameters of the model.
    Weights,
    /// Model configuration.
    Config,
    /// Tokenizer.
    Tokenizer,
    /// Image preprocessing.
    Preprocessor,
}

/// Naming and shape convention of the stored tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// TorchScript archives of OpenAI's `clip` package.
    OpenaiArchive,
    /// State dictionaries of open_clip.
    OpenClip,
    /// `CLIPModel` of `transformers`.
    Transformers,
}

impl Layout {
    /// Returns the name of the layout in the registry.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenaiArchive => "openai-archive",
            Self::OpenClip => "open-clip",
            Self::Transformers => "transformers",
        }
    }
}

/// Image preprocessing of a model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ImageSettings {
    /// Image size: side length in pixels.
    pub size: u32,
    /// Mean per channel (red, green, blue), for pixel values in `[0, 1]`.
    pub mean: [f32; 3],
    /// Standard deviation per channel.
    pub std: [f32; 3],
    /// Resampling filter.
    pub interpolation: Interpolation,
    /// Treatment of the aspect ratio.
    pub resize_mode: ResizeMode,
}

/// Resampling filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// Cubic.
    Bicubic,
    /// Linear.
    Bilinear,
}

/// Treatment of the aspect ratio; open_clip's `resize_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResizeMode {
    /// Resizes the shorter side to the image size, then takes a centre crop.
    Shortest,
    /// Resizes both sides to the image size.
    Squash,
}

impl Registry {
    /// Returns the registry embedded in the library.
    ///
    /// # Errors
    /// [`ZooError::Registry`]; never in a released version, because the tests parse the same text.
    pub fn embedded() -> Result<Self, ZooError> {
        Self::parse(EMBEDDED, Path::new("zoo.toml"))
    }

    /// Parses a registry in TOML. Errors contain `path`.
    ///
    /// # Errors
    /// [`ZooError::Registry`] for a key that is unknown, missing or of another type, a duplicate
    /// name, a file or repository name that could leave its folder, a URL that is not `https`, an
    /// invalid hash, and an accuracy without source.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ZooError> {
        let invalid = |reason: String| ZooError::Registry {
            path: path.to_owned(),
            reason,
        };
        let raw: RawRegistry = toml::from_str(text).map_err(|e| invalid(e.to_string()))?;
        let mut entries = Vec::with_capacity(raw.model.len());
        let mut seen = HashMap::new();
        for model in raw.model {
            let name = model.name.clone();
            let entry = model
                .validate()
                .map_err(|reason| invalid(format!("model `{name}`: {reason}")))?;
            if let Some(first) = seen.insert(normalized(&name), name.clone()) {
                let reason = format!("model `{name}`: the name is taken by `{first}`");
                return Err(invalid(reason));
            }
            entries.push(entry);
        }
        Ok(Self { entries })
    }

    /// Returns the entries in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Returns the entry called `name`. Case is ignored, and the separators `/`, `@`, `_` and `-`
    /// are equivalent: `ViT-L/14@336px` is `openai/ViT-L-14-336`. The origin before the first slash
    /// may be omitted if OpenAI has a model of that name, or exactly one other origin has.
    ///
    /// # Errors
    /// [`ZooError::Unknown`] with the most similar names.
    pub fn get(&self, name: &str) -> Result<&Entry, ZooError> {
        let wanted = normalized(name);
        let by_full = |full: &str| self.entries.iter().find(|e| normalized(&e.name) == full);
        if let Some(entry) = by_full(&wanted).or_else(|| by_full(&format!("openai-{wanted}"))) {
            return Ok(entry);
        }
        let mut by_model = self
            .entries
            .iter()
            .filter(|e| normalized(without_origin(&e.name)) == wanted);
        if let (Some(entry), None) = (by_model.next(), by_model.next()) {
            return Ok(entry);
        }
        Err(ZooError::Unknown {
            name: name.to_owned(),
            near: self.similar_names(&wanted),
        })
    }

    /// Returns the names with the smallest edit distance to a normalized one, of at most half of
    /// its length.
    fn similar_names(&self, wanted: &str) -> Vec<String> {
        let mut scored: Vec<_> = self
            .entries
            .iter()
            .map(|e| {
                let full = levenshtein(wanted, &normalized(&e.name));
                (
                    full.min(levenshtein(wanted, &normalized(without_origin(&e.name)))),
                    &e.name,
                )
            })
            .filter(|(d, _)| *d <= wanted.len() / 2)
            .collect();
        scored.sort_by_key(|(d, _)| *d);
        scored.truncate(SUGGESTIONS);
        scored.into_iter().map(|(_, n)| n.clone()).collect()
    }
}

impl Entry {
    /// Returns the sources of `layout`, or all sources for `None`.
    ///
    /// # Errors
    /// [`ZooError::NoLayout`] when no source has the layout.
    pub fn sources_in(&self, layout: Option<Layout>) -> Result<Vec<&Source>, ZooError> {
        let wanted = |source: &&Source| layout.is_none_or(|l| source.layout() == l);
        let sources: Vec<_> = self.sources.iter().filter(wanted).collect();
        match layout {
            Some(layout) if sources.is_empty() => Err(ZooError::NoLayout {
                name: self.name.clone(),
                layout: layout.name(),
            }),
            _ => Ok(sources),
        }
    }
}

impl HubFiles {
    /// Returns the repository and revision of `file`.
    #[must_use]
    pub fn origin<'a>(&'a self, file: &'a FileSpec) -> (&'a str, &'a str) {
        match &file.repo {
            Some(repo) => (repo, file.revision.as_deref().unwrap_or("main")),
            None => (&self.repo, &self.revision),
        }
    }
}

impl Source {
    /// Returns the tensor naming convention of the files.
    #[must_use]
    pub fn layout(&self) -> Layout {
        match self {
            Self::Hub(hub) => hub.layout,
            Self::Archive(archive) => archive.layout,
        }
    }
}

/// Registry before validation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegistry {
    #[serde(default)]
    model: Vec<RawEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    name: String,
    architecture: String,
    source: Vec<RawSource>,
    preprocess: ImageSettings,
    licence: Option<String>,
    zero_shot: Option<f64>,
    zero_shot_source: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSource {
    layout: Layout,
    repo: Option<String>,
    revision: Option<String>,
    files: Option<Vec<FileSpec>>,
    url: Option<String>,
    sha256: Option<String>,
}

impl RawEntry {
    fn validate(self) -> Result<Entry, String> {
        check_path("name", &self.name)?;
        if !self.name.contains('/') {
            return Err("the name has no `/`".into());
        }
        check_part("architecture", &self.architecture)?;
        if self.source.is_empty() {
            return Err("there is no source".into());
        }
        self.preprocess.validate()?;
        match (self.zero_shot, &self.zero_shot_source) {
            (None, None) => (),
            (Some(percent), Some(_)) if percent > 0.0 && percent <= 100.0 => (),
            (Some(_), Some(_)) => return Err("`zero_shot` is not a percentage".into()),
            _ => return Err("`zero_shot` and `zero_shot_source` go together".into()),
        }
        Ok(Entry {
            name: self.name,
            architecture: self.architecture,
            sources: self
                .source
                .into_iter()
                .map(RawSource::validate)
                .collect::<Result<_, _>>()?,
            preprocess: self.preprocess,
            licence: self.licence,
            zero_shot: self.zero_shot,
            zero_shot_source: self.zero_shot_source,
        })
    }
}

impl RawSource {
    fn validate(self) -> Result<Source, String> {
        let layout = self.layout;
        match (self.repo, self.revision, self.files, self.url, self.sha256) {
            (Some(repo), Some(revision), Some(files), None, None) => {
                check_repo(&repo)?;
                check_path("revision", &revision)?;
                files.iter().try_for_each(FileSpec::validate)?;
                if !files.iter().any(|f| f.role == Role::Weights) {
                    return Err("no file has the role `weights`".into());
                }
                Ok(Source::Hub(HubFiles {
                    layout,
                    repo,
                    revision,
                    files,
                }))
            }
            (None, None, None, Some(url), Some(sha256)) => {
                check_hash(&sha256)?;
                let file = check_url(&url)?.to_owned();
                Ok(Source::Archive(Archive {
                    layout,
                    url,
                    sha256,
                    file,
                }))
            }
            _ => Err("a source has `repo`, `revision` and `files`, or `url` and `sha256`".into()),
        }
    }
}

impl FileSpec {
    fn validate(&self) -> Result<(), String> {
        if self.names.is_empty() {
            return Err("a file has no names".into());
        }
        for name in &self.names {
            check_path("file", name)?;
        }
        match (&self.repo, &self.revision) {
            (Some(repo), revision) => {
                check_repo(repo)?;
                check_path("revision", revision.as_deref().unwrap_or("main"))?;
            }
            (None, Some(_)) => return Err("a file has a `revision` but no `repo`".into()),
            (None, None) => (),
        }
        self.sha256.as_deref().map_or(Ok(()), check_hash)
    }
}

impl ImageSettings {
    fn validate(&self) -> Result<(), String> {
        if self.size == 0 {
            return Err("`size` is 0".into());
        }
        if !self.mean.iter().all(|m| m.is_finite()) {
            return Err("`mean` is not finite".into());
        }
        if !self.std.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err("`std` is not positive".into());
        }
        Ok(())
    }
}

/// Returns `true` if `part` has no special meaning to a file system or in a URL. Names from a
/// registry or from a server become parts of paths.
pub(super) fn is_safe_part(part: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !part.is_empty() && !part.starts_with('.') && !part.ends_with('.') && part.bytes().all(is_plain)
}

fn check_part(what: &str, part: &str) -> Result<(), String> {
    if is_safe_part(part) {
        return Ok(());
    }
    Err(format!(
        "{what} `{}` is not a plain name",
        part.escape_debug()
    ))
}

fn check_path(what: &str, path: &str) -> Result<(), String> {
    if path.split('/').all(is_safe_part) {
        return Ok(());
    }
    Err(format!(
        "{what} `{}` is not a plain relative path",
        path.escape_debug()
    ))
}

fn check_repo(repo: &str) -> Result<(), String> {
    check_path("repo", repo)?;
    if repo.split('/').count() == 2 {
        return Ok(());
    }
    Err(format!("repo `{repo}` is not `owner/name`"))
}

fn check_hash(hash: &str) -> Result<(), String> {
    if digest::is_sha256(hash) {
        return Ok(());
    }
    Err(format!(
        "sha256 `{}` is not 64 lower-case hexadecimal digits",
        hash.escape_debug()
    ))
}

/// Returns the file name at the end of a URL, if the URL is safe to request and to show in
/// messages.
fn check_url(url: &str) -> Result<&str, String> {
    let invalid = |why: &str| Err(format!("url `{}` {why}", url.escape_debug()));
    let loopback = || {
        let rest = url.strip_prefix("http://")?;
        let host = rest.split(['/', ':']).next()?;
        matches!(host, "127.0.0.1" | "localhost").then_some(rest)
    };
    let Some(rest) = url.strip_prefix("https://").or_else(loopback) else {
        return invalid("is not https");
    };
    if rest.contains(['@', '?', '#', '%']) {
        return invalid("has a user, a query, a fragment or an escape");
    }
    let mut parts = rest.split('/');
    if parts.next().is_none_or(str::is_empty) || !parts.clone().all(is_safe_part) {
        return invalid("is not a plain path to a file");
    }
    match parts.next_back() {
        Some(file) => Ok(file),
        None => invalid("names no file"),
    }
}

/// Returns a name in lower case with `-` as the only separator and without the suffix `px`.
fn normalized(name: &str) -> String {
    let lower = name.trim().to_ascii_lowercase();
    let joined = lower.replace(['/', '@', '_', ' ', ':'], "-");
    joined.strip_suffix("px").unwrap_or(&joined).to_owned()
}

/// Returns the part of a name after the first slash.
fn without_origin(name: &str) -> &str {
    name.split_once('/').map_or(name, |(_, tail)| tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Model configurations of open_clip 3.3.0 in the registry
    /// (`open_clip/model_configs/*.json`).
    const ARCHITECTURES: &str = "
        RN50-quickgelu RN101-quickgelu RN50x4-quickgelu RN50x16-quickgelu RN50x64-quickgelu
        ViT-B-32 ViT-B-32-quickgelu ViT-B-32-256 ViT-B-16 ViT-B-16-quickgelu
        ViT-L-14 ViT-L-14-quickgelu ViT-L-14-336-quickgelu
        ViT-H-14 ViT-H-14-quickgelu ViT-H-14-378-quickgelu ViT-g-14 ViT-bigG-14
        ViT-B-16-SigLIP ViT-B-16-SigLIP-256 ViT-B-16-SigLIP-384 ViT-B-16-SigLIP-512
        ViT-B-16-SigLIP-i18n-256
        ViT-L-16-SigLIP-256 ViT-L-16-SigLIP-384
        ViT-SO400M-14-SigLIP ViT-SO400M-14-SigLIP-384
        ViT-B-32-SigLIP2-256 ViT-B-16-SigLIP2 ViT-B-16-SigLIP2-256 ViT-B-16-SigLIP2-384
        ViT-B-16-SigLIP2-512
        ViT-L-16-SigLIP2-256 ViT-L-16-SigLIP2-384 ViT-L-16-SigLIP2-512
        ViT-SO400M-14-SigLIP2 ViT-SO400M-14-SigLIP2-378
        ViT-SO400M-16-SigLIP2-256 ViT-SO400M-16-SigLIP2-384 ViT-SO400M-16-SigLIP2-512
        ViT-gopt-16-SigLIP2-256 ViT-gopt-16-SigLIP2-384";

    fn embedded() -> Registry {
        Registry::embedded().unwrap()
    }

    /// Parses a registry of one model with the given source and further keys.
    fn parse(source: &str, more: &str) -> Result<Registry, ZooError> {
        let text = format!(
            "[[model]]\nname = 'a/b'\narchitecture = 'ViT-B-16'\n{more}\n\
             preprocess = {{ size = 224, mean = [0, 0, 0], std = [1, 1, 1], \
             interpolation = 'bicubic', resize_mode = 'squash' }}\n\
             [[model.source]]\nlayout = 'open-clip'\n{source}"
        );
        Registry::parse(&text, Path::new("my.toml"))
    }

    fn hub(repo: &str, revision: &str, file: &str) -> Result<Registry, ZooError> {
        parse(
            &format!(
                "repo = '{repo}'\nrevision = '{revision}'\n\
                 files = [{{ role = 'weights', names = ['{file}'] }}]"
            ),
            "",
        )
    }

    fn archive(url: &str, sha256: &str) -> Result<Registry, ZooError> {
        parse(&format!("url = '{url}'\nsha256 = '{sha256}'"), "")
    }

    #[track_caller]
    fn assert_rejected(result: Result<Registry, ZooError>, why: &str) {
        let text = result.expect_err("accepted").to_string();
        assert!(text.starts_with("my.toml: "), "{text}");
        assert!(text.contains(why), "{text}");
    }

    #[test]
    fn embedded_entries_are_valid() {
        let architectures: Vec<_> = ARCHITECTURES.split_whitespace().collect();
        let mut used = Vec::new();
        for entry in embedded().iter() {
            let name = &entry.name;
            assert!(architectures.contains(&&*entry.architecture), "{name}");
            used.push(entry.architecture.clone());
            // open_clip names a configuration after the model, with the activation as a suffix.
            let model = entry.architecture.trim_end_matches("-quickgelu");
            assert_eq!(without_origin(name), model, "{name}");
            let size = model.rsplit('-').next().and_then(|s| s.parse().ok());
            if let Some(size @ 100..) = size {
                assert_eq!(entry.preprocess.size, size, "{name}");
            }
            for source in &entry.sources {
                match source {
                    Source::Hub(hub) => {
                        let siglip = name.contains("SigLIP");
                        let has = |role| hub.files.iter().any(|f| f.role == role);
                        assert!(has(Role::Config), "{name}");
                        assert_eq!(
                            has(Role::Tokenizer),
                            siglip || hub.layout == Layout::Transformers,
                            "{name}"
                        );
                    }
                    Source::Archive(archive) => {
                        // The URLs of OpenAI's archives contain the hash (`clip.py:48`).
                        assert!(archive.url.contains(&archive.sha256), "{name}");
                        assert_eq!(archive.layout, Layout::OpenaiArchive);
                    }
                }
            }
        }
        let unused: Vec<_> = architectures
            .iter()
            .filter(|a| !used.iter().any(|u| u == *a))
            .collect();
        assert!(unused.is_empty(), "{unused:?}");
    }

    #[test]
    fn openai_hashes_match_the_urls() {
        // openai/CLIP `clip/clip.py`, the URLs of the archives.
        for (name, sha256) in [
            (
                "ViT-B/32",
                "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
            ),
            (
                "ViT-B/16",
                "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
            ),
            (
                "ViT-L/14",
                "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
            ),
            (
                "ViT-L/14@336px",
                "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
            ),
        ] {
            let registry = embedded();
            let Source::Archive(archive) = &registry.get(name).unwrap().sources[0] else {
                panic!("{name} has no archive");
            };
            assert_eq!(archive.sha256, sha256, "{name}");
        }
    }

    #[test]
    fn deviating_settings_are_parsed() {
        let registry = embedded();
        let get = |name: &str| registry.get(name).unwrap();
        assert_eq!(get("laion2b/ViT-L-14").preprocess.mean, [0.5; 3]);
        assert_eq!(get("laion2b/ViT-H-14").preprocess.mean[0], 0.481_454_66);
        assert_eq!(
            get("dfn/ViT-H-14").preprocess.resize_mode,
            ResizeMode::Squash
        );
        assert_eq!(
            get("dfn/ViT-L-14").preprocess.resize_mode,
            ResizeMode::Shortest
        );
        assert_eq!(get("openai/RN50x4").preprocess.size, 288);
        assert_eq!(get("laion400m/ViT-B-32").architecture, "ViT-B-32-quickgelu");
    }

    #[test]
    fn names_are_normalized() {
        let registry = embedded();
        for (written, name) in [
            ("openai/ViT-B-16", "openai/ViT-B-16"),
            ("ViT-B/16", "openai/ViT-B-16"),
            ("openai/ViT-B/16", "openai/ViT-B-16"),
            ("vit-b-16", "openai/ViT-B-16"),
            (" OPENAI/VIT_B_16 ", "openai/ViT-B-16"),
            ("ViT-L/14@336px", "openai/ViT-L-14-336"),
            ("RN50x4", "openai/RN50x4"),
            ("laion2b/ViT-bigG/14", "laion2b/ViT-bigG-14"),
            ("ViT-bigG-14", "laion2b/ViT-bigG-14"),
            ("vit-b-16-siglip-256", "webli/ViT-B-16-SigLIP-256"),
        ] {
            assert_eq!(registry.get(written).unwrap().name, name, "{written}");
        }
    }

    #[test]
    fn unknown_name_suggests_similar_ones() {
        let registry = embedded();
        let error = |name: &str| registry.get(name).unwrap_err().to_string();
        assert!(error("openai/ViT-B-61").contains("`openai/ViT-B-16`"));
        // Two origins have this model and OpenAI does not: the name is ambiguous.
        assert!(error("ViT-H-14").contains("`laion2b/ViT-H-14`"));
        assert_eq!(error("llama"), "no model is called `llama`");
        assert_eq!(error(""), "no model is called ``");
    }

    #[test]
    fn unsafe_file_names_are_rejected() {
        for file in [
            "../x",
            "a/../b",
            "/etc/passwd",
            "a//b",
            "",
            ".",
            "..",
            "C:x",
            "a\\b",
            ".hidden",
            "a b",
            "a%2fb",
            "a?b",
        ] {
            assert_rejected(hub("o/n", "main", file), "is not a plain relative path");
        }
        hub("o/n", "refs/pr/15", "sub/model.safetensors").unwrap();
    }

    #[test]
    fn unsafe_repositories_and_revisions_are_rejected() {
        for repo in ["n", "a/b/c", "../n", "o/..", "o/n?x", "http://x/y"] {
            assert_rejected(hub(repo, "main", "f"), "repo `");
        }
        assert_rejected(hub("o/n", "../main", "f"), "revision `../main`");
        assert_rejected(hub("o/n", "", "f"), "revision ``");
    }

    #[test]
    fn urls_and_hashes_are_validated() {
        let hash = "0".repeat(64);
        for url in [
            "http://example.org/x.pt",
            "http://127.0.0.1.example.org/x.pt",
            "ftp://example.org/x.pt",
            "https://example.org/",
            "https://example.org",
            "https:///x.pt",
            "https://user:secret@example.org/x.pt",
            "https://example.org/x.pt?key=1",
            "https://example.org/../x.pt",
        ] {
            assert_rejected(archive(url, &hash), "url `");
        }
        for bad in ["", "abc", &"G".repeat(64), &"A".repeat(64)] {
            assert_rejected(archive("https://example.org/x.pt", bad), "sha256 `");
        }
        archive("https://example.org/a/x.pt", &hash).unwrap();
        archive("http://127.0.0.1:80/x.pt", &hash).unwrap();
    }

    #[test]
    fn source_is_hub_or_archive() {
        let why = "a source has `repo`, `revision` and `files`, or `url` and `sha256`";
        assert_rejected(parse("", ""), why);
        assert_rejected(parse("repo = 'o/n'", ""), why);
        assert_rejected(
            parse(
                &format!(
                    "repo = 'o/n'\nurl = 'https://e.org/x'\nsha256 = '{}'",
                    "0".repeat(64)
                ),
                "",
            ),
            why,
        );
        assert_rejected(
            parse("repo = 'o/n'\nrevision = 'main'\nfiles = []", ""),
            "role `weights`",
        );
    }

    #[test]
    fn unknown_keys_are_rejected() {
        assert_rejected(parse("colour = 'red'", ""), "colour");
        assert_rejected(parse("", "colour = 'red'"), "colour");
        let file = "repo = 'o/n'\nrevision = 'main'\n\
                    files = [{ role = 'weights', names = ['f'], size = 1 }]";
        assert_rejected(parse(file, ""), "size");
    }

    #[test]
    fn accuracy_needs_source_and_percentage() {
        let source =
            "repo = 'o/n'\nrevision = 'main'\nfiles = [{ role = 'weights', names = ['f'] }]";
        assert_rejected(parse(source, "zero_shot = 70.0"), "go together");
        assert_rejected(parse(source, "zero_shot_source = 'x'"), "go together");
        for percent in ["0.0", "-1.0", "101.0", "nan"] {
            let more = format!("zero_shot = {percent}\nzero_shot_source = 'x'");
            assert_rejected(parse(source, &more), "not a percentage");
        }
    }

    #[test]
    fn equivalent_names_are_duplicates() {
        let one = "[[model]]\nname = 'a/B-1'\narchitecture = 'x'\n\
             preprocess = { size = 1, mean = [0, 0, 0], std = [1, 1, 1], \
             interpolation = 'bicubic', resize_mode = 'squash' }\n\
             [[model.source]]\nlayout = 'open-clip'\nrepo = 'o/n'\nrevision = 'main'\n\
             files = [{ role = 'weights', names = ['f'] }]\n";
        let text = format!("{one}{}", one.replace("a/B-1", "A/b_1"));
        assert_rejected(
            Registry::parse(&text, Path::new("my.toml")),
            "the name is taken by `a/B-1`",
        );
    }
}

//! Format-independent reader of weight files.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use super::{
    ElementType, TensorInfo, WeightError,
    error::sanitize,
    index, safetensors,
    source::Source,
    state_dict::Contents,
    tensor::{read_floats, read_integers},
    torch_legacy, torch_zip,
};

/// Format of a weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Container {
    /// The safetensors format.
    Safetensors,
    /// Zip archive of `torch.save`, since PyTorch 1.6.
    TorchZip,
    /// TorchScript archive of `torch.jit.save`.
    TorchScript,
    /// Pickle file of `torch.save`, before PyTorch 1.6.
    TorchLegacy,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "PyTorch",
            Self::TorchScript => "TorchScript",
            Self::TorchLegacy => "legacy PyTorch",
        })
    }
}

/// Reader of the tensors in a file, in a byte buffer, or in the shards of an index.
///
/// Opening reads headers and pickles only. Each tensor is read on demand. The format is detected
/// from the content.
///
/// ```
/// use clip_model::weights::{ElementType, SafetensorsWriter, WeightFile};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.safetensors");
/// let tensors = [("fc.weight", ElementType::F32, [2, 3].as_slice())];
/// let mut writer = SafetensorsWriter::create(&path, tensors)?;
/// writer.push("fc.weight", &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])?;
/// writer.finish()?;
///
/// let file = WeightFile::open(&path)?;
/// assert_eq!(file.info("fc.weight").unwrap().shape, [2, 3]);
/// assert_eq!(file.read_f32("fc.weight")?[4], 4.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct WeightFile<'a> {
    path: PathBuf,
    container: Container,
    /// The file or the shards of a set, with their paths.
    sources: Vec<(PathBuf, Source<'a>)>,
    contents: Contents,
}

impl WeightFile<'static> {
    /// Opens a weight file, or the shards listed in a JSON index (`model.safetensors.index.json`).
    ///
    /// # Errors
    /// [`WeightError`] with the file and its defective part. A pickle that refers to anything but
    /// tensors and plain containers is rejected. Nothing in a file is executed.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let source = Source::open(path)?;
        if detect_format(&source, path)? != Format::Index {
            return Self::from_source(source, path);
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut set: Option<Self> = None;
        for (shard, tensors) in index::read(&source, path)? {
            let shard_path = folder.join(&shard);
            let shard_source = Source::open(&shard_path)?;
            if detect_format(&shard_source, &shard_path)? == Format::Index {
                return Err(WeightError::Index {
                    path: path.to_owned(),
                    reason: format!("`{shard}` is an index itself"),
                });
            }
            let part = Self::from_source(shard_source, &shard_path)?;
            let set = set.get_or_insert_with(|| Self {
                path: path.to_owned(),
                container: part.container,
                sources: Vec::new(),
                contents: Contents::default(),
            });
            set.add_shard(part, tensors)?;
        }
        set.ok_or_else(|| WeightError::Index {
            path: path.to_owned(),
            reason: "it names no files".to_owned(),
        })
    }

    /// Adds the tensors of a shard, which must be exactly those that the index lists for it.
    fn add_shard(&mut self, part: Self, tensors: Vec<String>) -> Result<(), WeightError> {
        let mut found = part.contents;
        for name in tensors {
            let Some(mut info) = found.tensors.remove(&name) else {
                let (path, name) = (part.path, sanitize(&name));
                let count = found.tensors.len();
                return Err(WeightError::Missing { path, name, count });
            };
            info.location.shard = self.sources.len();
            self.contents.tensors.insert(name, info);
        }
        if let Some(name) = found.tensors.into_keys().next() {
            return Err(WeightError::Index {
                path: self.path.clone(),
                reason: format!(
                    "`{}` holds tensor `{}`, which the index does not name",
                    part.path.display(),
                    sanitize(&name)
                ),
            });
        }
        self.contents.scalars.append(&mut found.scalars);
        self.sources.extend(part.sources);
        Ok(())
    }
}

impl<'a> WeightFile<'a> {
    /// Like [`open`](WeightFile::open), for the content of a file. Borrowed bytes are not copied.
    /// `name` is the path in errors.
    ///
    /// # Errors
    /// See [`open`](WeightFile::open). A JSON index is an error too, because it refers to files.
    pub fn from_bytes(bytes: impl Into<Cow<'a, [u8]>>, name: &Path) -> Result<Self, WeightError> {
        let source = Source::Bytes(bytes.into());
        if detect_format(&source, name)? == Format::Index {
            index::read(&source, name)?;
            return Err(WeightError::Index {
                path: name.to_owned(),
                reason: "it names other files; open it by its path".to_owned(),
            });
        }
        Self::from_source(source, name)
    }

    fn from_source(source: Source<'a>, path: &Path) -> Result<Self, WeightError> {
        let (container, contents) = match detect_format(&source, path)? {
            Format::Safetensors => (Container::Safetensors, safetensors::read(&source, path)?),
            Format::Zip => torch_zip::read(&source, path)?,
            Format::Pickle => match torch_legacy::read(&source, path)? {
                Some(contents) => (Container::TorchLegacy, contents),
                None => return Err(unknown_format(&source, path)),
            },
            Format::Index => return Err(unknown_format(&source, path)),
        };
        Ok(Self {
            path: path.to_owned(),
            container,
            sources: vec![(path.to_owned(), source)],
            contents,
        })
    }

    /// Removes the prefixes that wrappers of a model (`DataParallel`, `torch.compile`, Lightning)
    /// add to the names of all tensors.
    pub(crate) fn without_wrappers(mut self) -> Self {
        self.contents.strip_wrappers();
        self
    }

    /// Returns the path of the opened file; for a sharded set, of the index.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the format of the file, or of the first shard.
    #[must_use]
    pub fn container(&self) -> Container {
        self.container
    }

    /// Returns the path of the file, or of each shard in the order of their names.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|(path, _)| path.as_path())
    }

    /// Returns the size of the file or of all shards in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.sources.iter().map(|(_, source)| source.len()).sum()
    }

    /// Returns the names of the tensors in sorted order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.contents.tensors.keys().map(String::as_str)
    }

    /// Returns data type and shape of a tensor, if the file has it.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.contents.tensors.get(name)
    }

    /// Returns the plain integers beside the tensors, such as `input_resolution` in OpenAI's
    /// archives. A number stored as a tensor is among [`names`](Self::names) instead.
    /// [`integer`](Self::integer) finds both.
    #[must_use]
    pub fn scalars(&self) -> &BTreeMap<String, i64> {
        &self.contents.scalars
    }

    /// Returns the integer called `name`, stored plainly or as a tensor of one element, or `None`
    /// if there is neither.
    ///
    /// # Errors
    /// See [`read_i64`](Self::read_i64).
    pub fn integer(&self, name: &str) -> Result<Option<i64>, WeightError> {
        match (self.scalars().get(name), self.info(name)) {
            (Some(value), _) => Ok(Some(*value)),
            (None, Some(info)) if info.len() == 1 => Ok(self.read_i64(name)?.first().copied()),
            _ => Ok(None),
        }
    }

    /// Reads a float tensor as 32-bit floats, in row-major order for any strides in the file.
    ///
    /// Uses a buffer of at most 1 MiB besides the result.
    ///
    /// # Errors
    /// [`WeightError::Missing`], [`WeightError::WrongType`] for integers,
    /// [`WeightError::NotFinite`] for NaN, infinities and 64-bit floats beyond 32 bits,
    /// [`WeightError::Io`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let (path, source, info) = self.locate(name)?;
        if !info.dtype.is_float() {
            return Err(wrong_type(path, name, info.dtype, "floats"));
        }
        let values = read_floats(source, info).map_err(|e| WeightError::io(path, e))?;
        // No early exit within a chunk, so that the loop is vectorized.
        let all_finite = |part: &[f32]| part.iter().fold(true, |ok, x| ok & x.is_finite());
        if !values.chunks(4096).all(all_finite) {
            return Err(WeightError::NotFinite {
                path: path.to_owned(),
                name: name.to_owned(),
                dtype: ElementType::F32,
            });
        }
        Ok(values)
    }

    /// Reads an integer or boolean tensor in row-major order.
    ///
    /// # Errors
    /// [`WeightError::Missing`], [`WeightError::WrongType`] for floats, [`WeightError::Io`].
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, WeightError> {
        let (path, source, info) = self.locate(name)?;
        if info.dtype.is_float() {
            return Err(wrong_type(path, name, info.dtype, "integers"));
        }
        read_integers(source, info).map_err(|e| WeightError::io(path, e))
    }

    fn locate(&self, name: &str) -> Result<(&Path, &Source<'a>, &TensorInfo), WeightError> {
        let Some(info) = self.info(name) else {
            return Err(WeightError::Missing {
                path: self.path.clone(),
                name: name.to_owned(),
                count: self.contents.tensors.len(),
            });
        };
        let (path, source) = &self.sources[info.location.shard];
        Ok((path, source, info))
    }
}

fn wrong_type(path: &Path, name: &str, dtype: ElementType, expected: &'static str) -> WeightError {
    WeightError::WrongType {
        path: path.to_owned(),
        name: name.to_owned(),
        dtype,
        expected,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Zip,
    Index,
    Safetensors,
    /// Any other content, which is tried as a pickle.
    Pickle,
}

/// Returns the first bytes, which identify a known format.
fn first_bytes(source: &Source<'_>, path: &Path) -> Result<Vec<u8>, WeightError> {
    source.read_vec(path, "the beginning", 0, source.len().min(32))
}

fn detect_format(source: &Source<'_>, path: &Path) -> Result<Format, WeightError> {
    let start = first_bytes(source, path)?;
    let is_text = !start
        .iter()
        .any(|b| b.is_ascii_control() && !b.is_ascii_whitespace());
    let first = start.iter().find(|b| !b.is_ascii_whitespace());
    Ok(
        if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
            Format::Zip
        } else if is_text && first == Some(&b'{') {
            Format::Index
        } else if start.get(8) == Some(&b'{') {
            Format::Safetensors
        } else {
            Format::Pickle
        },
    )
}

fn unknown_format(source: &Source<'_>, path: &Path) -> WeightError {
    let hint = match first_bytes(source, path) {
        Err(error) => return error,
        Ok(start) if start.is_empty() => "it is empty",
        Ok(start) if start.starts_with(b"version https://git-lfs") => {
            "it is a Git LFS pointer (run `git lfs pull`)"
        }
        Ok(start) if start.trim_ascii_start().starts_with(b"<") => {
            "it looks like a web page, so the download failed"
        }
        Ok(_) => "its content is of no known format, or cut off",
    };
    WeightError::UnknownFormat {
        path: path.to_owned(),
        hint,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ::safetensors::{Dtype, tensor::TensorView};
    use serde_json::Value;

    use super::*;

    /// Files written by `make_fixtures.py` with torch and safetensors.
    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/weights");

    fn assert_file_matches(file: &WeightFile<'_>, expected: &Value) {
        let path = file.path().display();
        assert_eq!(
            file.container().to_string(),
            expected["container"],
            "{path}"
        );
        let tensors = expected["tensors"].as_object().unwrap();
        let mut names: Vec<_> = tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(file.names().collect::<Vec<_>>(), names, "{path}");
        for (name, tensor) in tensors {
            let info = file.info(name).unwrap();
            assert_eq!(info.dtype.to_string(), tensor["dtype"], "{path} {name}");
            let shape: Vec<usize> = serde_json::from_value(tensor["shape"].clone()).unwrap();
            assert_eq!(info.shape, shape, "{path} {name}");
            if info.dtype.is_float() {
                let values: Vec<f32> = serde_json::from_value(tensor["values"].clone()).unwrap();
                assert_eq!(file.read_f32(name).unwrap(), values, "{path} {name}");
                let error = file.read_i64(name).unwrap_err().to_string();
                assert!(error.contains("expected integers"), "{error}");
            } else {
                let values: Vec<i64> = serde_json::from_value(tensor["values"].clone()).unwrap();
                assert_eq!(file.read_i64(name).unwrap(), values, "{path} {name}");
                let error = file.read_f32(name).unwrap_err().to_string();
                assert!(
                    error.ends_with(&format!(
                        "`{name}` has type {}, expected floats",
                        info.dtype
                    )),
                    "{error}"
                );
            }
        }
        let scalars: BTreeMap<String, i64> =
            serde_json::from_value(expected["scalars"].clone()).unwrap();
        assert_eq!(*file.scalars(), scalars, "{path}");
    }

    #[test]
    fn files_of_torch_and_safetensors_are_read() {
        let folder = Path::new(FIXTURES);
        let expected = fs::read_to_string(folder.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        let files = expected.as_object().unwrap();
        assert!(files.len() >= 15);
        for (name, expected) in files {
            let path = folder.join(name);
            let file = WeightFile::open(&path).unwrap();
            assert_file_matches(&file, expected);
            if name.ends_with(".json") {
                let error = WeightFile::from_bytes(fs::read(&path).unwrap(), &path).unwrap_err();
                assert!(error.to_string().contains("open it by its path"), "{error}");
            } else {
                let bytes = fs::read(&path).unwrap();
                assert_file_matches(&WeightFile::from_bytes(&bytes, &path).unwrap(), expected);
                assert_eq!(file.len_bytes(), bytes.len() as u64);
            }
        }
    }

    #[test]
    fn format_is_detected_from_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::copy(Path::new(FIXTURES).join("legacy.pt"), &path).unwrap();
        assert_eq!(
            WeightFile::open(&path).unwrap().container(),
            Container::TorchLegacy
        );
    }

    #[test]
    fn openai_integers_are_found_plain_and_as_tensors() {
        let open = |name: &str| WeightFile::open(&Path::new(FIXTURES).join(name)).unwrap();
        for name in ["script.pt", "trace.pt"] {
            let file = open(name);
            assert_eq!(
                file.integer("input_resolution").unwrap(),
                Some(224),
                "{name}"
            );
            assert_eq!(file.integer("vocab_size").unwrap(), Some(49408), "{name}");
            assert_eq!(file.integer("nothing").unwrap(), None);
        }
    }

    #[test]
    fn prefixes_of_wrappers_are_removed_from_all_names_or_none() {
        let names = |tensors: &[&str]| {
            let views = tensors.iter().map(|name| {
                let view = TensorView::new(Dtype::U8, vec![1], &[7]).unwrap();
                (*name, view)
            });
            let bytes = ::safetensors::serialize(views, None).unwrap();
            let file = WeightFile::from_bytes(bytes, Path::new("w")).unwrap();
            let file = file.without_wrappers();
            let names: Vec<_> = file.names().map(str::to_owned).collect();
            for name in &names {
                assert_eq!(file.read_i64(name).unwrap(), [7]);
            }
            names
        };
        for prefix in [
            "",
            "module.",
            "_orig_mod.",
            "model.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "model._orig_mod.",
        ] {
            let [a, b] = ["a.weight", "b"].map(|name| format!("{prefix}{name}"));
            assert_eq!(names(&[&a, &b]), ["a.weight", "b"], "{prefix}");
        }
        assert_eq!(names(&["model.a", "b"]), ["b", "model.a"]);
        assert_eq!(names(&["model.", "model.a"]), ["model.", "model.a"]);
        assert_eq!(names(&["models.a"]), ["models.a"]);
    }

    #[test]
    fn file_is_read_from_many_threads() {
        let file = WeightFile::open(&Path::new(FIXTURES).join("nested.pt")).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for name in file
                        .names()
                        .filter(|n| file.info(n).unwrap().dtype.is_float())
                    {
                        file.read_f32(name).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn other_files_are_rejected_with_a_hint() {
        let message = |bytes: &'static [u8]| {
            WeightFile::from_bytes(bytes, Path::new("w.pt"))
                .unwrap_err()
                .to_string()
        };
        assert!(message(b"").starts_with("w.pt is not a weights file: it is empty; expected"));
        assert!(message(b"<!DOCTYPE html><html>").contains("web page"));
        assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
        assert!(message(b"GGUF\x03\0\0\0\0\0\0").contains("no known format"));
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("no.pt");
        assert!(
            WeightFile::open(&missing)
                .unwrap_err()
                .to_string()
                .contains("no.pt")
        );
    }

    #[test]
    fn error_names_the_missing_tensor() {
        let file = WeightFile::open(&Path::new(FIXTURES).join("plain.safetensors")).unwrap();
        let error = file.read_f32("nothing").unwrap_err().to_string();
        assert!(
            error.contains("plain.safetensors: tensor `nothing` is missing"),
            "{error}"
        );
    }
}

//! One way to read weights, whatever the file is.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use super::{
    ElementType, TensorInfo, WeightError,
    error::quoted,
    index, safetensors,
    source::Source,
    state_dict::Contents,
    tensor::{read_floats, read_integers},
    torch_legacy, torch_zip,
};

/// What wrote a weights file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Container {
    /// safetensors.
    Safetensors,
    /// `torch.save` since PyTorch 1.6.
    TorchZip,
    /// `torch.jit.save`.
    TorchScript,
    /// `torch.save` before PyTorch 1.6.
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

/// The tensors of a file, of bytes in memory, or of the files that an index names.
///
/// Opening reads headers and pickles; each tensor is read when it is asked for. The format is found
/// by content.
#[derive(Debug)]
pub struct WeightFile<'a> {
    path: PathBuf,
    container: Container,
    /// One, or the shards of a set, with their paths.
    sources: Vec<(PathBuf, Source<'a>)>,
    contents: Contents,
}

impl WeightFile<'static> {
    /// Opens a weights file, or the files that an index JSON (`model.safetensors.index.json`)
    /// names.
    ///
    /// # Errors
    /// [`WeightError`] naming the file and the part that is at fault. A pickle that asks for
    /// anything else than tensors and plain containers is refused; nothing in a file is executed.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let source = Source::open(path)?;
        if detect(&source, path)? != Format::Index {
            return Self::single(source, path);
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut set: Option<Self> = None;
        for (shard, tensors) in index::read(&source, path)? {
            let shard_path = folder.join(&shard);
            let shard_source = Source::open(&shard_path)?;
            if detect(&shard_source, &shard_path)? == Format::Index {
                return Err(WeightError::Index {
                    path: path.to_owned(),
                    reason: format!("`{shard}` is an index itself"),
                });
            }
            let part = Self::single(shard_source, &shard_path)?;
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

    /// Takes the tensors of a shard, which have to be the ones the index says it holds.
    fn add_shard(&mut self, part: Self, tensors: Vec<String>) -> Result<(), WeightError> {
        let mut found = part.contents;
        for name in tensors {
            let Some(mut info) = found.tensors.remove(&name) else {
                let (path, name) = (part.path, quoted(&name));
                let count = found.tensors.len();
                return Err(WeightError::Missing { path, name, count });
            };
            info.place.shard = self.sources.len();
            self.contents.tensors.insert(name, info);
        }
        if let Some(name) = found.tensors.into_keys().next() {
            return Err(WeightError::Index {
                path: self.path.clone(),
                reason: format!(
                    "`{}` holds tensor `{}`, which the index does not name",
                    part.path.display(),
                    quoted(&name)
                ),
            });
        }
        self.contents.scalars.append(&mut found.scalars);
        self.sources.extend(part.sources);
        Ok(())
    }
}

impl<'a> WeightFile<'a> {
    /// Like [`open`](WeightFile::open), from the contents of a file; borrowed bytes are not copied.
    /// `name` stands for the file in errors.
    ///
    /// # Errors
    /// See [`open`](WeightFile::open). An index JSON is one too: it names files.
    pub fn from_bytes(bytes: impl Into<Cow<'a, [u8]>>, name: &Path) -> Result<Self, WeightError> {
        let source = Source::Bytes(bytes.into());
        if detect(&source, name)? == Format::Index {
            index::read(&source, name)?;
            return Err(WeightError::Index {
                path: name.to_owned(),
                reason: "it names other files; open it by its path".to_owned(),
            });
        }
        Self::single(source, name)
    }

    fn single(source: Source<'a>, path: &Path) -> Result<Self, WeightError> {
        let (container, contents) = match detect(&source, path)? {
            Format::Safetensors => (Container::Safetensors, safetensors::read(&source, path)?),
            Format::Zip => torch_zip::read(&source, path)?,
            Format::Pickle => match torch_legacy::read(&source, path)? {
                Some(contents) => (Container::TorchLegacy, contents),
                None => return Err(unknown(&source, path)),
            },
            Format::Index => return Err(unknown(&source, path)),
        };
        Ok(Self {
            path: path.to_owned(),
            container,
            sources: vec![(path.to_owned(), source)],
            contents,
        })
    }

    /// The file that was opened: the index of a sharded set.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What wrote the file, or the first shard.
    #[must_use]
    pub fn container(&self) -> Container {
        self.container
    }

    /// Size of the file in bytes, or of all shards together.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.sources.iter().map(|(_, source)| source.len()).sum()
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.contents.tensors.keys().map(String::as_str)
    }

    /// Type and shape of a tensor.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.contents.tensors.get(name)
    }

    /// Plain integers beside the tensors, such as `input_resolution` in OpenAI's archives. Where
    /// such a number is stored as a tensor it is one of [`names`](Self::names);
    /// [`integer`](Self::integer) finds both.
    #[must_use]
    pub fn scalars(&self) -> &BTreeMap<String, i64> {
        &self.contents.scalars
    }

    /// The integer called `name`, stored plainly or as a tensor of one element; none if there is
    /// neither.
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

    /// The values of a float tensor as 32-bit floats, in row-major order whatever the strides in
    /// the file.
    ///
    /// Holds the result and at most 1 MiB besides.
    ///
    /// # Errors
    /// [`WeightError::Missing`], [`WeightError::WrongType`] for integers,
    /// [`WeightError::NotFinite`] for NaN, infinities and 64-bit floats beyond 32 bits,
    /// [`WeightError::Io`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let (path, source, info) = self.find(name)?;
        if !info.dtype.is_float() {
            return Err(wrong_type(path, name, info.dtype, "floats"));
        }
        let values = read_floats(source, info).map_err(|e| WeightError::io(path, e))?;
        // Without a branch per value, which lets the loop be vectorized.
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

    /// The values of an integer or boolean tensor, in row-major order.
    ///
    /// # Errors
    /// [`WeightError::Missing`], [`WeightError::WrongType`] for floats, [`WeightError::Io`].
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, WeightError> {
        let (path, source, info) = self.find(name)?;
        if info.dtype.is_float() {
            return Err(wrong_type(path, name, info.dtype, "integers"));
        }
        read_integers(source, info).map_err(|e| WeightError::io(path, e))
    }

    fn find(&self, name: &str) -> Result<(&Path, &Source<'a>, &TensorInfo), WeightError> {
        let Some(info) = self.info(name) else {
            return Err(WeightError::Missing {
                path: self.path.clone(),
                name: name.to_owned(),
                count: self.contents.tensors.len(),
            });
        };
        let (path, source) = &self.sources[info.place.shard];
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
    /// Anything else, which is tried as a pickle.
    Pickle,
}

/// The first bytes, of which a known format can be told.
fn beginning(source: &Source<'_>, path: &Path) -> Result<Vec<u8>, WeightError> {
    source.read_vec(path, "the beginning", 0, source.len().min(32))
}

fn detect(source: &Source<'_>, path: &Path) -> Result<Format, WeightError> {
    let start = beginning(source, path)?;
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

fn unknown(source: &Source<'_>, path: &Path) -> WeightError {
    let hint = match beginning(source, path) {
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

    use serde_json::Value;

    use super::*;

    /// Written by `make_fixtures.py` with torch and safetensors.
    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/weights");

    fn check(file: &WeightFile<'_>, expected: &Value) {
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
    fn files_of_the_original_tools_have_the_same_names_shapes_and_values() {
        let folder = Path::new(FIXTURES);
        let expected = fs::read_to_string(folder.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        let files = expected.as_object().unwrap();
        assert!(files.len() >= 15);
        for (name, expected) in files {
            let path = folder.join(name);
            let file = WeightFile::open(&path).unwrap();
            check(&file, expected);
            if name.ends_with(".json") {
                let error = WeightFile::from_bytes(fs::read(&path).unwrap(), &path).unwrap_err();
                assert!(error.to_string().contains("open it by its path"), "{error}");
            } else {
                let bytes = fs::read(&path).unwrap();
                check(&WeightFile::from_bytes(&bytes, &path).unwrap(), expected);
                assert_eq!(file.len_bytes(), bytes.len() as u64);
            }
        }
    }

    #[test]
    fn the_format_is_found_by_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::copy(Path::new(FIXTURES).join("legacy.pt"), &path).unwrap();
        assert_eq!(
            WeightFile::open(&path).unwrap().container(),
            Container::TorchLegacy
        );
    }

    #[test]
    fn openais_integers_are_found_plain_and_as_tensors() {
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
    fn one_file_is_read_from_many_threads() {
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
    fn what_is_no_weights_file_is_told_apart() {
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
    fn a_missing_tensor_is_named() {
        let file = WeightFile::open(&Path::new(FIXTURES).join("plain.safetensors")).unwrap();
        let error = file.read_f32("nothing").unwrap_err().to_string();
        assert!(
            error.contains("plain.safetensors: tensor `nothing` is missing"),
            "{error}"
        );
    }
}

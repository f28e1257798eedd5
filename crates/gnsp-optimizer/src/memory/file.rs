//! A memory as a safetensors file.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, View};
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

use super::{Content, Directions, Entry, History, Memory};
use crate::gram::packed_len;
use crate::{Gram, GramError, Layout};

/// The key of the metadata of a memory file.
const METADATA_KEY: &str = "gnsp_memory";
/// The version of the layout that is written, and the only one that is read.
const FORMAT_VERSION: u32 = 2;

/// Why a memory could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A file could not be read or written.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is not a whole safetensors file, or could not be written as one.
    #[error("{}: not a whole safetensors file: {source}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: SafeTensorError,
    },
    /// A safetensors file that no memory was saved to.
    #[error("{}: no metadata `{METADATA_KEY}`: this is not a saved memory", file.display())]
    MissingMetadata {
        /// The file.
        file: PathBuf,
    },
    /// The metadata cannot be understood.
    #[error("{}: metadata `{METADATA_KEY}`: {source}", file.display())]
    Metadata {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A layout this version does not know.
    #[error("{}: memory format version {found} is not {FORMAT_VERSION}", file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// The version found.
        found: u32,
    },
    /// The metadata names a parameter that has no tensor, or the other way round.
    #[error("{}: parameter `{key}` is in the {present} only", file.display())]
    Unmatched {
        /// The file.
        file: PathBuf,
        /// The parameter.
        key: String,
        /// `"metadata"` or `"tensors"`.
        present: &'static str,
    },
    /// A tensor of another type or size than the metadata says.
    #[error("{}: parameter `{key}`: expected {expected}, found {found}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The parameter.
        key: String,
        /// Type and shape that the metadata asks for.
        expected: String,
        /// Type and shape of the tensor.
        found: String,
    },
    /// The numbers of a tensor are no Gram matrix, or no directions.
    #[error("{}: parameter `{key}`: {source}", file.display())]
    Values {
        /// The file.
        file: PathBuf,
        /// The parameter.
        key: String,
        /// What is wrong.
        source: GramError,
    },
}

/// The metadata of a memory file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    version: u32,
    parameters: BTreeMap<String, ParameterMetadata>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ParameterMetadata {
    layout: Layout,
    content: ContentMetadata,
    features: usize,
    history: History,
    tasks: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ContentMetadata {
    /// Upper triangles, row by row, one after the other for every group.
    Gram { groups: usize },
    /// A diagonal.
    Diagonal,
    /// Rows of unit length: so many for each group.
    Directions { ranks: Vec<usize> },
}

impl ContentMetadata {
    /// The shape of the tensor, or nothing where a number overflows.
    fn shape(&self, features: usize) -> Option<Vec<usize>> {
        Some(match self {
            Self::Gram { groups } => vec![packed_len(features)?.checked_mul(*groups)?],
            Self::Diagonal => vec![features],
            Self::Directions { ranks } => {
                let rows = ranks
                    .iter()
                    .try_fold(0usize, |sum, k| sum.checked_add(*k))?;
                vec![rows, features]
            }
        })
    }
}

/// Numbers that are written without a copy where the machine is little-endian.
struct Numbers<'a> {
    shape: Vec<usize>,
    parts: &'a [Vec<f32>],
    one: Option<&'a [f32]>,
}

impl View for Numbers<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.one {
            Some(values) if cfg!(target_endian = "little") => {
                Cow::Borrowed(bytemuck::cast_slice(values))
            }
            Some(values) => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            None => {
                let values = self.parts.iter().flatten();
                values.flat_map(|x| x.to_le_bytes()).collect()
            }
        }
    }

    fn data_len(&self) -> usize {
        size_of::<f32>() * self.shape.iter().product::<usize>()
    }
}

impl Memory {
    /// Writes the memory to a safetensors file, with one `f32` tensor for each parameter under its
    /// path: the upper triangles of its Gram matrices (`groups · n(n+1)/2` numbers), the diagonal
    /// of a diagonal one, or its directions (`[k, n]`).
    ///
    /// The file appears whole or not at all: it is written under another name in the same folder
    /// and then renamed. The same memory always gives the same bytes.
    ///
    /// # Errors
    ///
    /// Whatever writing the file meets.
    pub fn save(&self, file: impl AsRef<Path>) -> Result<(), FileError> {
        let file = file.as_ref();
        let io = |source| FileError::Io {
            file: file.to_path_buf(),
            source,
        };
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let scratch = tempfile::Builder::new().tempfile_in(folder).map_err(io)?;
        // One key only: a map of several would be written in any order.
        let metadata = HashMap::from([(
            METADATA_KEY.to_string(),
            serde_json::to_string(&self.metadata()).expect("strings and numbers are valid JSON"),
        )]);
        let tensors = self.entries.iter().map(|(path, entry)| {
            let described = entry.describe();
            let shape = described
                .content
                .shape(described.features)
                .expect("what is in memory does not overflow");
            let (parts, one) = match &entry.content {
                Content::Gram(gram) => (&[][..], Some(gram.packed())),
                Content::Directions(directions) => (directions.groups.as_slice(), None),
            };
            (path, Numbers { shape, parts, one })
        });
        safetensors::serialize_to_file(tensors, Some(metadata), scratch.path()).map_err(
            |source| match source {
                SafeTensorError::IoError(source) => io(source),
                source => FileError::Format {
                    file: file.to_path_buf(),
                    source,
                },
            },
        )?;
        // The function above puts a file of its own, private and perhaps not on the disk yet, in
        // the place of the scratch file. Ours are results meant to be read by others.
        let written = std::fs::File::open(scratch.path()).map_err(io)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let readable = std::fs::Permissions::from_mode(0o644);
            written.set_permissions(readable).map_err(io)?;
        }
        written.sync_all().map_err(io)?;
        scratch.persist(file).map_err(|error| io(error.error))?;
        Ok(())
    }

    fn metadata(&self) -> Metadata {
        let parameters = self.entries.iter();
        Metadata {
            version: FORMAT_VERSION,
            parameters: parameters
                .map(|(path, entry)| (path.clone(), entry.describe()))
                .collect(),
        }
    }

    /// Reads a memory that [`save`](Self::save) wrote.
    ///
    /// Whether it fits a model is checked where it is used, by
    /// [`protection`](Self::protection).
    ///
    /// # Errors
    ///
    /// Anything but a whole file of the known version whose metadata and tensors agree and whose
    /// numbers are what they are said to be. The error names the file and, where there is one, the
    /// parameter.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, FileError> {
        let file = file.as_ref();
        let name = || file.to_path_buf();
        let bytes = std::fs::read(file).map_err(|source| FileError::Io {
            file: name(),
            source,
        })?;
        let format = |source| FileError::Format {
            file: name(),
            source,
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(format)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(format)?;
        let text = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(METADATA_KEY))
            .ok_or_else(|| FileError::MissingMetadata { file: name() })?;
        let json = |source| FileError::Metadata {
            file: name(),
            source,
        };
        // The version alone first: another version may have other fields.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_str(text).map_err(json)?;
        if version != FORMAT_VERSION {
            return Err(FileError::Version {
                file: name(),
                found: version,
            });
        }
        let metadata: Metadata = serde_json::from_str(text).map_err(json)?;
        for key in tensors.names() {
            if !metadata.parameters.contains_key(key) {
                return Err(FileError::Unmatched {
                    file: name(),
                    key: key.to_string(),
                    present: "tensors",
                });
            }
        }
        let mut entries = BTreeMap::new();
        for (key, parameter) in metadata.parameters {
            let Ok(tensor) = tensors.tensor(&key) else {
                return Err(FileError::Unmatched {
                    file: name(),
                    key,
                    present: "metadata",
                });
            };
            let shape = parameter.content.shape(parameter.features);
            if tensor.dtype() != Dtype::F32 || shape.as_deref() != Some(tensor.shape()) {
                return Err(FileError::Tensor {
                    file: name(),
                    key,
                    expected: format!("{:?} {shape:?}", Dtype::F32),
                    found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
                });
            }
            match parameter.read(tensor.data()) {
                Ok(entry) => entries.insert(key, entry),
                Err(source) => {
                    return Err(FileError::Values {
                        file: name(),
                        key,
                        source,
                    });
                }
            };
        }
        Ok(Self { entries })
    }
}

impl Entry {
    fn describe(&self) -> ParameterMetadata {
        let (content, features) = match &self.content {
            Content::Gram(gram) if gram.is_diagonal() => {
                (ContentMetadata::Diagonal, gram.features())
            }
            Content::Gram(gram) => {
                let groups = gram.groups();
                (ContentMetadata::Gram { groups }, gram.features())
            }
            Content::Directions(directions) => {
                let groups = 0..directions.groups.len();
                let ranks = groups.map(|group| directions.rank(group)).collect();
                (ContentMetadata::Directions { ranks }, directions.features)
            }
        };
        ParameterMetadata {
            layout: self.layout,
            content,
            features,
            history: self.history,
            tasks: self.tasks,
        }
    }
}

impl ParameterMetadata {
    /// The entry of the right number of little-endian `f32`.
    fn read(self, bytes: &[u8]) -> Result<Entry, GramError> {
        let values: Vec<f32> = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        let n = self.features;
        let content = match self.content {
            ContentMetadata::Gram { groups } => {
                Content::Gram(Gram::from_packed(groups, n, values)?)
            }
            ContentMetadata::Diagonal => Content::Gram(Gram::from_diagonal(values)?),
            ContentMetadata::Directions { ranks } => {
                if n == 0 || ranks.is_empty() {
                    return Err(GramError::NoFeatures);
                }
                if !values.iter().all(|x| x.is_finite()) {
                    return Err(GramError::NotFinite);
                }
                let mut rest = values.as_slice();
                let mut groups = Vec::with_capacity(ranks.len());
                for rank in ranks {
                    let (own, after) = rest.split_at(rank * n);
                    groups.push(own.to_vec());
                    rest = after;
                }
                Content::Directions(Directions {
                    features: n,
                    groups,
                })
            }
        };
        Ok(Entry {
            layout: self.layout,
            content,
            history: self.history,
            tasks: self.tasks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use crate::{RankRule, Recorded};
    use safetensors::tensor::TensorView;

    /// One parameter of every kind.
    fn every_kind() -> Memory {
        let mut memory = Memory::new();
        let pairs: Vec<f32> = (0..2).flat_map(|i| random_gram(9, 3, i).dense()).collect();
        for (path, layout, gram, history) in [
            (
                "linear",
                Layout::InputsFirst,
                random_gram(9, 7, 1),
                History::Sum,
            ),
            (
                "renormalised",
                Layout::InputsFirst,
                random_gram(9, 4, 2),
                History::Renormalize,
            ),
            (
                "grouped",
                Layout::InputsLast { groups: 2 },
                Gram::from_groups(2, 3, &pairs).unwrap(),
                History::Decay(0.5),
            ),
            (
                "embedding",
                Layout::Embedding,
                Gram::from_diagonal(vec![0.0, 2.0, 1.0]).unwrap(),
                History::Sum,
            ),
            (
                "basis",
                Layout::InputsFirst,
                random_gram(9, 5, 3),
                History::Basis,
            ),
        ] {
            let recorded = Recorded {
                layout,
                gram,
                history,
            };
            let rule = RankRule::ExplainedEnergy(0.9);
            memory.absorb_recorded(path, recorded, rule).unwrap();
        }
        memory
    }

    #[test]
    fn a_saved_memory_loads_bit_equal() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.safetensors");
        let memory = every_kind();
        memory.save(&file).unwrap();
        let first = std::fs::read(&file).unwrap();
        let loaded = Memory::load(&file).unwrap();
        assert_eq!(loaded, memory);
        loaded.save(&file).unwrap(); // over the old file
        assert_eq!(std::fs::read(&file).unwrap(), first);
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "no scratch file is left");
        Memory::new().save(&file).unwrap();
        assert_eq!(Memory::load(&file).unwrap(), Memory::new());
    }

    #[test]
    fn a_file_holds_half_of_the_matrices() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.safetensors");
        let mut memory = Memory::new();
        let recorded = Recorded {
            layout: Layout::InputsFirst,
            gram: random_gram(9, 300, 1),
            history: History::Sum,
        };
        memory
            .absorb_recorded("w", recorded, RankRule::FixedRank(1))
            .unwrap();
        memory.save(&file).unwrap();
        let size = std::fs::metadata(&file).unwrap().len() as usize;
        assert_eq!(memory.bytes(), 300 * 301 / 2 * 4);
        assert!(size < memory.bytes() + 512, "{size}");
    }

    #[test]
    fn a_memory_is_not_saved_to_a_missing_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("missing").join("memory.safetensors");
        let error = every_kind().save(&file).unwrap_err();
        assert!(matches!(error, FileError::Io { .. }));
        assert!(matches!(Memory::load(&file), Err(FileError::Io { .. })));
    }

    /// Writes a file with these metadata and one tensor, and loads it.
    fn load_made(
        metadata: Option<&str>,
        name: &str,
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: &[u8],
    ) -> FileError {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("made.safetensors");
        let tensor = TensorView::new(dtype, shape, bytes).unwrap();
        let metadata =
            metadata.map(|text| HashMap::from([(METADATA_KEY.to_string(), text.to_string())]));
        let made = safetensors::serialize([(name, tensor)], metadata).unwrap();
        std::fs::write(&file, made).unwrap();
        let error = Memory::load(&file).unwrap_err();
        assert!(error.to_string().contains("made.safetensors"), "{error}");
        error
    }

    fn parameter(content: &str, features: usize) -> String {
        format!(
            r#"{{"layout":"inputs-first","content":{content},"features":{features},"history":"sum","tasks":1}}"#
        )
    }

    fn metadata(features: usize) -> String {
        let one = parameter(r#"{"gram":{"groups":1}}"#, features);
        format!(r#"{{"version":2,"parameters":{{"w":{one}}}}}"#)
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn foreign_metadata_is_refused() {
        let good = floats(&[1.0, 0.5, 1.0]);
        let load = |text: Option<&str>| load_made(text, "w", Dtype::F32, vec![3], &good);
        assert!(matches!(load(None), FileError::MissingMetadata { .. }));
        assert!(matches!(load(Some("{")), FileError::Metadata { .. }));
        for version in [1, 3] {
            let other = format!(r#"{{"version":{version},"new":true}}"#);
            let error = load(Some(&other));
            assert!(matches!(error, FileError::Version { found, .. } if found == version));
        }
        let unknown = metadata(2).replace("\"tasks\"", "\"extra\":1,\"tasks\"");
        assert!(matches!(load(Some(&unknown)), FileError::Metadata { .. }));
    }

    #[test]
    fn tensors_that_disagree_with_the_metadata_are_refused() {
        let good = floats(&[1.0, 0.5, 1.0]);
        let text = metadata(2);
        let load =
            |name, dtype, shape, bytes: &[u8]| load_made(Some(&text), name, dtype, shape, bytes);
        let error = load("other", Dtype::F32, vec![3], &good);
        assert!(matches!(&error, FileError::Unmatched { key, .. } if key == "other"));
        for (dtype, shape) in [(Dtype::I32, vec![3]), (Dtype::F32, vec![3, 1])] {
            let error = load("w", dtype, shape, &good);
            assert!(matches!(&error, FileError::Tensor { key, .. } if key == "w"));
        }
        for features in [3, 0, usize::MAX, 1 << 32] {
            let error = load_made(Some(&metadata(features)), "w", Dtype::F32, vec![3], &good);
            assert!(matches!(error, FileError::Tensor { .. }), "{features}");
        }
        let error = load_made(Some(&metadata(0)), "w", Dtype::F32, vec![0], &[]);
        assert!(matches!(error, FileError::Values { .. }));
        let huge = parameter(
            &format!(r#"{{"directions":{{"ranks":[1,{}]}}}}"#, usize::MAX),
            3,
        );
        let text = format!(r#"{{"version":2,"parameters":{{"w":{huge}}}}}"#);
        let error = load_made(Some(&text), "w", Dtype::F32, vec![3], &good);
        assert!(matches!(error, FileError::Tensor { .. }));
    }

    #[test]
    fn a_parameter_without_a_tensor_is_refused() {
        let one = parameter(r#"{"gram":{"groups":1}}"#, 2);
        let text = format!(r#"{{"version":2,"parameters":{{"v":{one},"w":{one}}}}}"#);
        let good = floats(&[1.0, 0.5, 1.0]);
        let error = load_made(Some(&text), "w", Dtype::F32, vec![3], &good);
        assert!(matches!(
            &error,
            FileError::Unmatched { key, present: "metadata", .. } if key == "v"
        ));
    }

    #[test]
    fn numbers_that_are_no_gram_matrix_are_refused() {
        for bad in [
            [1.0, f32::NAN, 1.0],
            [f32::INFINITY, 0.0, 1.0],
            [-1.0, 0.0, 1.0],
        ] {
            let error = load_made(Some(&metadata(2)), "w", Dtype::F32, vec![3], &floats(&bad));
            assert!(matches!(&error, FileError::Values { key, .. } if key == "w"));
        }
        let directions = parameter(r#"{"directions":{"ranks":[1]}}"#, 3);
        let text = format!(r#"{{"version":2,"parameters":{{"w":{directions}}}}}"#);
        let bad = floats(&[1.0, f32::NAN, 1.0]);
        let error = load_made(Some(&text), "w", Dtype::F32, vec![1, 3], &bad);
        assert!(matches!(error, FileError::Values { .. }));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.safetensors");
        every_kind().save(&file).unwrap();
        let whole = std::fs::read(&file).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&file, &whole[..length]).unwrap();
            assert!(
                matches!(Memory::load(&file), Err(FileError::Format { .. })),
                "{length} of {} bytes",
                whole.len()
            );
        }
    }

    #[test]
    fn no_changed_byte_panics() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.safetensors");
        every_kind().save(&file).unwrap();
        let whole = std::fs::read(&file).unwrap();
        for at in 0..whole.len() {
            for flip in [0x01, 0x80] {
                let mut changed = whole.clone();
                changed[at] ^= flip;
                std::fs::write(&file, changed).unwrap();
                let _ = Memory::load(&file); // a value or an error, never a panic
            }
        }
    }
}

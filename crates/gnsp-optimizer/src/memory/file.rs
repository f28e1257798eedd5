//! Memory files in the safetensors format.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, View};
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

use super::{Content, Directions, Entry, History, Memory};
use crate::gram::packed_len;
use crate::{GnspError, Gram, Layout, Policy};

/// Metadata key of a memory file.
const METADATA_KEY: &str = "gnsp_memory";
/// Version of the format that is written.
const FORMAT_VERSION: u32 = 3;
/// Earlier version, without the policy.
const VERSION_WITHOUT_POLICY: u32 = 2;

/// Metadata of a memory file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    version: u32,
    #[serde(default)]
    policy: Option<Policy>,
    parameters: BTreeMap<String, ParameterMetadata>,
}

/// Metadata of one parameter.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ParameterMetadata {
    layout: Layout,
    content: ContentMetadata,
    features: usize,
    history: History,
    tasks: usize,
}

/// Kind of the stored tensor.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ContentMetadata {
    /// Concatenated row-major upper triangles of all groups.
    Gram { groups: usize },
    /// A diagonal Gram matrix.
    Diagonal,
    /// Orthonormal directions as rows, `ranks[g]` of them for group `g`.
    Directions { ranks: Vec<usize> },
}

impl ContentMetadata {
    /// Returns the shape of the tensor, or `None` on overflow.
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

/// Tensor to write. A contiguous one is not copied on little-endian machines.
struct TensorView<'a> {
    shape: Vec<usize>,
    /// The values, if they are contiguous.
    contiguous: Option<&'a [f32]>,
    /// The values in several parts otherwise.
    parts: &'a [Vec<f32>],
}

impl View for TensorView<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.contiguous {
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
    /// Writes the memory to a safetensors file.
    ///
    /// Each parameter is one `f32` tensor, named by its path: the upper triangles of its Gram
    /// matrices (`groups · n(n+1)/2` numbers), the diagonal of a diagonal one, or its directions
    /// (`[k, n]`).
    ///
    /// The file is replaced atomically: it is written under another name in the same folder and
    /// then renamed. The same memory always gives the same bytes.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be written.
    pub fn save(&self, file: impl AsRef<Path>) -> Result<(), GnspError> {
        let file = file.as_ref();
        let io = |source| GnspError::Io {
            file: file.to_path_buf(),
            source,
        };
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // The names of the temporary files of `clip-model` and `mtil-data`, which remove those of
        // killed processes. `safetensors` names its own.
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix(".mtil-").suffix(".tmp");
        let scratch = builder.tempfile_in(folder).map_err(io)?;
        // A single key, because a `HashMap` with several is written in random order.
        let metadata = HashMap::from([(
            METADATA_KEY.to_string(),
            serde_json::to_string(&self.metadata()).expect("strings and numbers are valid JSON"),
        )]);
        let tensors = self.entries.iter().map(|(path, entry)| {
            let metadata = entry.metadata();
            let shape = metadata
                .content
                .shape(metadata.features)
                .expect("sizes in memory do not overflow");
            let (parts, contiguous) = match &entry.content {
                Content::Gram(gram) => (&[][..], Some(gram.packed())),
                Content::Directions(directions) => (directions.groups.as_slice(), None),
            };
            let tensor = TensorView {
                shape,
                contiguous,
                parts,
            };
            (path, tensor)
        });
        safetensors::serialize_to_file(tensors, Some(metadata), scratch.path()).map_err(
            |source| match source {
                SafeTensorError::IoError(source) => io(source),
                source => GnspError::Format {
                    file: file.to_path_buf(),
                    source,
                },
            },
        )?;
        // `serialize_to_file` replaces the scratch file by one that is private and perhaps not
        // synced. Memory files are results that other users may read.
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

    /// Returns the metadata of the file.
    fn metadata(&self) -> Metadata {
        let parameters = self.entries.iter();
        Metadata {
            version: FORMAT_VERSION,
            policy: Some(self.policy.clone()),
            parameters: parameters
                .map(|(path, entry)| (path.clone(), entry.metadata()))
                .collect(),
        }
    }

    /// Reads a memory written by [`save`](Self::save).
    ///
    /// Files of version 2, from earlier versions of this crate, have no policy. The memory then has
    /// the default policy with the history rule of its first parameter. Set the policy that it was
    /// recorded with by [`set_policy`](Self::set_policy).
    ///
    /// [`protection`](Self::protection) checks whether the memory fits a model.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be read, is incomplete or has an unsupported version, if
    /// its metadata and tensors disagree, or if a tensor is not valid. The error names the file and
    /// the parameter, if there is one.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, GnspError> {
        let file = file.as_ref();
        let name = || file.to_path_buf();
        let bytes = std::fs::read(file).map_err(|source| GnspError::Io {
            file: name(),
            source,
        })?;
        let format = |source| GnspError::Format {
            file: name(),
            source,
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(format)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(format)?;
        let text = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(METADATA_KEY))
            .ok_or_else(|| GnspError::MissingMetadata { file: name() })?;
        let json = |source| GnspError::Metadata {
            file: name(),
            source,
        };
        // Only the version is parsed first, because other versions may have other fields.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_str(text).map_err(json)?;
        if version != FORMAT_VERSION && version != VERSION_WITHOUT_POLICY {
            return Err(GnspError::Version {
                file: name(),
                found: version,
            });
        }
        let metadata: Metadata = serde_json::from_str(text).map_err(json)?;
        // The metadata and the tensors must have the same parameters.
        for key in tensors.names() {
            if !metadata.parameters.contains_key(key) {
                return Err(GnspError::Unmatched {
                    file: name(),
                    key: key.to_string(),
                    present: "tensors",
                });
            }
        }
        let mut entries = BTreeMap::new();
        for (key, parameter) in metadata.parameters {
            let Ok(tensor) = tensors.tensor(&key) else {
                return Err(GnspError::Unmatched {
                    file: name(),
                    key,
                    present: "metadata",
                });
            };
            let shape = parameter.content.shape(parameter.features);
            if tensor.dtype() != Dtype::F32 || shape.as_deref() != Some(tensor.shape()) {
                return Err(GnspError::Tensor {
                    file: name(),
                    key,
                    expected: format!("{:?} {shape:?}", Dtype::F32),
                    found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
                });
            }
            match parameter.read(tensor.data()) {
                Ok(entry) => entries.insert(key, entry),
                Err(source) => {
                    return Err(GnspError::Values {
                        file: name(),
                        key,
                        source: Box::new(source),
                    });
                }
            };
        }
        let recorded = metadata.policy.as_ref().map(|policy| policy.normalization);
        // Of a policy, version 2 stores only the history rules, by parameter.
        let histories = || entries.values().next().map(|entry: &Entry| entry.history);
        let policy = metadata.policy.unwrap_or_else(|| Policy {
            history: histories().unwrap_or_default(),
            ..Policy::default()
        });
        Ok(Self {
            policy,
            recorded: recorded.filter(|_| !entries.is_empty()),
            entries,
        })
    }
}

impl Entry {
    /// Returns the metadata of the entry.
    fn metadata(&self) -> ParameterMetadata {
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
    /// Decodes an entry from little-endian `f32` values, whose number matches the metadata.
    fn read(self, bytes: &[u8]) -> Result<Entry, GnspError> {
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
                    return Err(GnspError::NoFeatures);
                }
                if !values.iter().all(|x| x.is_finite()) {
                    return Err(GnspError::NotFinite);
                }
                let mut rest = values.as_slice();
                let mut groups = Vec::with_capacity(ranks.len());
                for rank in ranks {
                    let (group, remaining) = rest.split_at(rank * n);
                    groups.push(group.to_vec());
                    rest = remaining;
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
    use crate::{GramNormalization, RankRule, TaskGram};
    use safetensors::tensor;

    fn empty() -> Memory {
        Memory::new(Policy::gpm().with_rank(RankRule::ExplainedEnergy(0.9)))
    }

    /// A memory with one parameter of every kind.
    fn every_kind() -> Memory {
        let mut memory = empty();
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
            let recorded = TaskGram {
                layout,
                gram,
                history,
            };
            memory.absorb_gram(path, recorded).unwrap();
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
        loaded.save(&file).unwrap(); // Replaces the file.
        assert_eq!(std::fs::read(&file).unwrap(), first);
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "no scratch file is left");
        empty().save(&file).unwrap();
        assert_eq!(Memory::load(&file).unwrap(), empty());
    }

    #[test]
    fn a_file_holds_half_of_the_matrices() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.safetensors");
        let mut memory = empty();
        let recorded = TaskGram {
            layout: Layout::InputsFirst,
            gram: random_gram(9, 300, 1),
            history: History::Sum,
        };
        memory.absorb_gram("w", recorded).unwrap();
        memory.save(&file).unwrap();
        let size = std::fs::metadata(&file).unwrap().len() as usize;
        assert_eq!(memory.bytes(), 300 * 301 / 2 * 4);
        assert!(size < memory.bytes() + 1024, "{size}");
    }

    #[test]
    fn a_memory_is_not_saved_to_a_missing_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("missing").join("memory.safetensors");
        let error = every_kind().save(&file).unwrap_err();
        assert!(matches!(error, GnspError::Io { .. }));
        assert!(matches!(Memory::load(&file), Err(GnspError::Io { .. })));
    }

    /// Writes a file with this metadata and one tensor, and loads it.
    fn try_load_with(
        metadata: Option<&str>,
        name: &str,
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: &[u8],
    ) -> Result<Memory, GnspError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("made.safetensors");
        let tensor = tensor::TensorView::new(dtype, shape, bytes).unwrap();
        let metadata =
            metadata.map(|text| HashMap::from([(METADATA_KEY.to_string(), text.to_string())]));
        let made = safetensors::serialize([(name, tensor)], metadata).unwrap();
        std::fs::write(&file, made).unwrap();
        Memory::load(&file)
    }

    /// The error of loading a file with this metadata and one tensor.
    fn load_error_of(
        metadata: Option<&str>,
        name: &str,
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: &[u8],
    ) -> GnspError {
        let error = try_load_with(metadata, name, dtype, shape, bytes).unwrap_err();
        assert!(error.to_string().contains("made.safetensors"), "{error}");
        error
    }

    fn parameter(content: &str, features: usize) -> String {
        format!(
            concat!(
                r#"{{"layout":"inputs-first","content":{content},"features":{features},"#,
                r#""history":"sum","tasks":1}}"#,
            ),
            content = content,
            features = features,
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
    fn the_policy_of_a_version_2_file_can_be_set() {
        let good = floats(&[1.0, 0.5, 1.0]);
        let memory = try_load_with(Some(&metadata(2)), "w", Dtype::F32, vec![3], &good);
        let mut memory = memory.unwrap();
        assert_eq!(memory.gram("w").unwrap().packed(), [1.0, 0.5, 1.0]);
        assert_eq!(memory.policy(), &Policy::default());
        let other = Policy::gnsp().with_normalization(GramNormalization::None);
        memory.set_policy(other).unwrap();
        assert!(
            memory.set_policy(Policy::gpm()).is_err(),
            "the history rule differs"
        );
    }

    #[test]
    fn foreign_metadata_is_refused() {
        let good = floats(&[1.0, 0.5, 1.0]);
        let load = |text: Option<&str>| load_error_of(text, "w", Dtype::F32, vec![3], &good);
        assert!(matches!(load(None), GnspError::MissingMetadata { .. }));
        assert!(matches!(load(Some("{")), GnspError::Metadata { .. }));
        for version in [1, 4] {
            let other = format!(r#"{{"version":{version},"new":true}}"#);
            let error = load(Some(&other));
            assert!(matches!(error, GnspError::Version { found, .. } if found == version));
        }
        let unknown = metadata(2).replace("\"tasks\"", "\"extra\":1,\"tasks\"");
        assert!(matches!(load(Some(&unknown)), GnspError::Metadata { .. }));
    }

    #[test]
    fn tensors_that_disagree_with_the_metadata_are_refused() {
        let good = floats(&[1.0, 0.5, 1.0]);
        let text = metadata(2);
        let load = |name, dtype, shape, bytes: &[u8]| {
            load_error_of(Some(&text), name, dtype, shape, bytes)
        };
        let error = load("other", Dtype::F32, vec![3], &good);
        assert!(matches!(&error, GnspError::Unmatched { key, .. } if key == "other"));
        for (dtype, shape) in [(Dtype::I32, vec![3]), (Dtype::F32, vec![3, 1])] {
            let error = load("w", dtype, shape, &good);
            assert!(matches!(&error, GnspError::Tensor { key, .. } if key == "w"));
        }
        for features in [3, 0, usize::MAX, 1 << 32] {
            let error = load_error_of(Some(&metadata(features)), "w", Dtype::F32, vec![3], &good);
            assert!(matches!(error, GnspError::Tensor { .. }), "{features}");
        }
        let error = load_error_of(Some(&metadata(0)), "w", Dtype::F32, vec![0], &[]);
        assert!(matches!(error, GnspError::Values { .. }));
        let huge = parameter(
            &format!(r#"{{"directions":{{"ranks":[1,{}]}}}}"#, usize::MAX),
            3,
        );
        let text = format!(r#"{{"version":2,"parameters":{{"w":{huge}}}}}"#);
        let error = load_error_of(Some(&text), "w", Dtype::F32, vec![3], &good);
        assert!(matches!(error, GnspError::Tensor { .. }));
    }

    #[test]
    fn a_parameter_without_a_tensor_is_refused() {
        let one = parameter(r#"{"gram":{"groups":1}}"#, 2);
        let text = format!(r#"{{"version":2,"parameters":{{"v":{one},"w":{one}}}}}"#);
        let good = floats(&[1.0, 0.5, 1.0]);
        let error = load_error_of(Some(&text), "w", Dtype::F32, vec![3], &good);
        assert!(matches!(
            &error,
            GnspError::Unmatched { key, present: "metadata", .. } if key == "v"
        ));
    }

    #[test]
    fn numbers_that_are_no_gram_matrix_are_refused() {
        for bad in [
            [1.0, f32::NAN, 1.0],
            [f32::INFINITY, 0.0, 1.0],
            [-1.0, 0.0, 1.0],
        ] {
            let error = load_error_of(Some(&metadata(2)), "w", Dtype::F32, vec![3], &floats(&bad));
            assert!(matches!(&error, GnspError::Values { key, .. } if key == "w"));
        }
        let directions = parameter(r#"{"directions":{"ranks":[1]}}"#, 3);
        let text = format!(r#"{{"version":2,"parameters":{{"w":{directions}}}}}"#);
        let bad = floats(&[1.0, f32::NAN, 1.0]);
        let error = load_error_of(Some(&text), "w", Dtype::F32, vec![1, 3], &bad);
        assert!(matches!(error, GnspError::Values { .. }));
    }

    #[test]
    fn a_truncated_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.safetensors");
        every_kind().save(&file).unwrap();
        let whole = std::fs::read(&file).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&file, &whole[..length]).unwrap();
            assert!(
                matches!(Memory::load(&file), Err(GnspError::Format { .. })),
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
                let _ = Memory::load(&file); // A memory or an error, never a panic.
            }
        }
    }
}

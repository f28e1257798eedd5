//! What all tasks so far have fed to each projected parameter.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::{Gram, GramError, NullSpace, NullSpaceError, RankRule};

/// The key of the metadata of a memory file.
const METADATA_KEY: &str = "gnsp_memory";
/// The version of the layout that is written, and the only one that is read.
const FORMAT_VERSION: u32 = 1;

/// How the Gram matrix of a new task is joined to the history of a parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum History {
    /// `"sum"`: `M ← M + G`; all tasks have equal weight. The published GNSP code does this for
    /// the weights of the MLPs (GNSP `src/models/get_data_matrix.py:98-108`).
    #[default]
    Sum,
    /// `"renormalize"`: `M ← M/‖M‖_F + G`; the weight of a task shrinks with every later one. The
    /// published GNSP code does this for the output projection of the image tower
    /// (GNSP `src/models/get_data_matrix.py:109-116`).
    Renormalize,
}

/// Why a memory could not be extended, used, saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The Gram matrix of a parameter does not fit its history, or overflows with it.
    #[error("parameter `{path}`: {source}")]
    Gram {
        /// Path of the parameter.
        path: String,
        /// What is wrong.
        source: GramError,
    },
    /// A parameter was absorbed with another rule than before.
    #[error("parameter `{path}`: its history is kept by {kept:?}, not by {asked:?}")]
    History {
        /// Path of the parameter.
        path: String,
        /// The rule of its earlier tasks.
        kept: History,
        /// The rule that was asked for.
        asked: History,
    },
    /// No null space could be computed for a parameter.
    #[error("parameter `{path}`: {source}")]
    NullSpace {
        /// Path of the parameter.
        path: String,
        /// What is wrong.
        source: NullSpaceError,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is not a whole safetensors file.
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
    /// The numbers of a tensor are no Gram matrix.
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

/// The history of one parameter.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    gram: Gram,
    history: History,
    tasks: usize,
}

/// The accumulated Gram matrices of all projected parameters, by the path of the parameter.
///
/// Absorb the Gram matrices of a task when its training is over; at the start of the next task
/// [`null_spaces`](Self::null_spaces) says which directions its updates must keep to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    entries: BTreeMap<String, Entry>,
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
    features: usize,
    history: History,
    tasks: usize,
}

impl Memory {
    /// A memory of no task.
    pub fn new() -> Self {
        Self::default()
    }

    /// Joins the Gram matrix of a task to the history of the parameter at `path`. The first one
    /// is taken as it is.
    ///
    /// # Errors
    ///
    /// Another number of features or another rule than before, or a sum that overflows. The
    /// memory is then what it was before.
    pub fn absorb(
        &mut self,
        path: impl Into<String>,
        gram: Gram,
        history: History,
    ) -> Result<(), MemoryError> {
        let path = path.into();
        let Some(entry) = self.entries.get_mut(&path) else {
            let tasks = 1;
            self.entries.insert(
                path,
                Entry {
                    gram,
                    history,
                    tasks,
                },
            );
            return Ok(());
        };
        if entry.history != history {
            return Err(MemoryError::History {
                path,
                kept: entry.history,
                asked: history,
            });
        }
        let past = entry.gram.clone();
        let past = match history {
            History::Sum => past,
            History::Renormalize => past.normalized(),
        };
        entry.gram = past
            .plus(&gram)
            .map_err(|source| MemoryError::Gram { path, source })?;
        entry.tasks += 1;
        Ok(())
    }

    /// The accumulated Gram matrix of a parameter.
    pub fn get(&self, path: &str) -> Option<&Gram> {
        self.entries.get(path).map(|entry| &entry.gram)
    }

    /// The paths of the parameters, in alphabetical order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The number of parameters.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no parameter has a history.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of tasks absorbed; where parameters differ, the largest number.
    pub fn tasks(&self) -> usize {
        self.entries.values().map(|e| e.tasks).max().unwrap_or(0)
    }

    /// The null space of every parameter, ready for
    /// [`project_parameters`](crate::project_parameters).
    ///
    /// Parameters are decomposed in parallel, each with a few `f64` copies of its matrix.
    ///
    /// # Errors
    ///
    /// A rule that does not fit, or eigenvalues that did not converge; the error names the
    /// parameter.
    pub fn null_spaces(
        &self,
        rule: RankRule,
    ) -> Result<BTreeMap<String, Arc<NullSpace>>, MemoryError> {
        self.entries
            .par_iter()
            .map(
                |(path, entry)| match NullSpace::from_gram(&entry.gram, rule) {
                    Ok(space) => Ok((path.clone(), Arc::new(space))),
                    Err(source) => Err(MemoryError::NullSpace {
                        path: path.clone(),
                        source,
                    }),
                },
            )
            .collect()
    }

    /// Writes the memory to a safetensors file: the upper triangle of every matrix, row by row,
    /// as a vector of `n(n+1)/2` `f32` under the path of the parameter.
    ///
    /// The file appears whole or not at all: it is written under another name in the same folder
    /// and then renamed. The same memory always gives the same bytes.
    ///
    /// # Errors
    ///
    /// Whatever writing the file meets.
    pub fn save(&self, file: impl AsRef<Path>) -> Result<(), MemoryError> {
        let file = file.as_ref();
        let io = |source| MemoryError::Io {
            file: file.to_path_buf(),
            source,
        };
        let bytes = self.to_bytes().map_err(|source| MemoryError::Format {
            file: file.to_path_buf(),
            source,
        })?;
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        // Temporary files are private by default; these are results meant to be read by others.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(std::fs::Permissions::from_mode(0o644));
        }
        let mut scratch = builder.tempfile_in(folder).map_err(io)?;
        scratch.write_all(&bytes).map_err(io)?;
        scratch.as_file().sync_all().map_err(io)?;
        scratch.persist(file).map_err(|error| io(error.error))?;
        Ok(())
    }

    fn to_bytes(&self) -> Result<Vec<u8>, SafeTensorError> {
        let metadata = Metadata {
            version: FORMAT_VERSION,
            parameters: self
                .entries
                .iter()
                .map(|(path, entry)| {
                    let parameter = ParameterMetadata {
                        features: entry.gram.features(),
                        history: entry.history,
                        tasks: entry.tasks,
                    };
                    (path.clone(), parameter)
                })
                .collect(),
        };
        // One key only: a map of several would be written in any order.
        let metadata = HashMap::from([(
            METADATA_KEY.to_string(),
            serde_json::to_string(&metadata).expect("a map of strings and numbers is valid JSON"),
        )]);
        let packed: Vec<(&String, Vec<u8>)> = self
            .entries
            .iter()
            .map(|(path, entry)| (path, pack(&entry.gram)))
            .collect();
        let tensors = packed
            .iter()
            .map(|(path, bytes)| {
                Ok((
                    *path,
                    TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?,
                ))
            })
            .collect::<Result<Vec<_>, SafeTensorError>>()?;
        safetensors::serialize(tensors, Some(metadata))
    }

    /// Reads a memory that [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// Anything but a whole file of the known version whose metadata and tensors agree and whose
    /// numbers are Gram matrices. The error names the file and, where there is one, the parameter.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, MemoryError> {
        let file = file.as_ref();
        let name = || file.to_path_buf();
        let bytes = std::fs::read(file).map_err(|source| MemoryError::Io {
            file: name(),
            source,
        })?;
        let format = |source| MemoryError::Format {
            file: name(),
            source,
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(format)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(format)?;
        let text = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(METADATA_KEY))
            .ok_or_else(|| MemoryError::MissingMetadata { file: name() })?;
        let json = |source| MemoryError::Metadata {
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
            return Err(MemoryError::Version {
                file: name(),
                found: version,
            });
        }
        let metadata: Metadata = serde_json::from_str(text).map_err(json)?;
        for key in tensors.names() {
            if !metadata.parameters.contains_key(key) {
                return Err(MemoryError::Unmatched {
                    file: name(),
                    key: key.to_string(),
                    present: "tensors",
                });
            }
        }
        let mut entries = BTreeMap::new();
        for (key, parameter) in metadata.parameters {
            let Ok(tensor) = tensors.tensor(&key) else {
                return Err(MemoryError::Unmatched {
                    file: name(),
                    key,
                    present: "metadata",
                });
            };
            let size = packed_len(parameter.features);
            if tensor.dtype() != Dtype::F32 || size.is_none_or(|size| tensor.shape() != [size]) {
                return Err(MemoryError::Tensor {
                    file: name(),
                    key,
                    expected: format!("{:?} {:?}", Dtype::F32, size.map(|size| [size])),
                    found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
                });
            }
            let gram = Gram::from_matrix(
                parameter.features,
                unpack(parameter.features, tensor.data()),
            );
            let gram = match gram {
                Ok(gram) => gram,
                Err(source) => {
                    return Err(MemoryError::Values {
                        file: name(),
                        key,
                        source,
                    });
                }
            };
            let entry = Entry {
                gram,
                history: parameter.history,
                tasks: parameter.tasks,
            };
            entries.insert(key, entry);
        }
        Ok(Self { entries })
    }
}

/// The entries of the upper triangle, or nothing where the number overflows.
fn packed_len(features: usize) -> Option<usize> {
    Some(features.checked_mul(features.checked_add(1)?)? / 2)
}

/// The upper triangle, row by row, as little-endian bytes.
fn pack(gram: &Gram) -> Vec<u8> {
    let n = gram.features();
    let mut bytes = Vec::with_capacity(n * (n + 1) * 2);
    for (row, entries) in gram.matrix().chunks_exact(n).enumerate() {
        bytes.extend(entries[row..].iter().flat_map(|x| x.to_le_bytes()));
    }
    bytes
}

/// The whole matrix of a [`pack`]ed triangle of the right length.
fn unpack(features: usize, bytes: &[u8]) -> Vec<f32> {
    let mut matrix = vec![0.0; features * features];
    let mut entries = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b));
    for row in 0..features {
        for (column, entry) in (row..features).zip(&mut entries) {
            matrix[row * features + column] = entry;
            matrix[column * features + row] = entry;
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use crate::{BatchNorm, GramAccumulator, TaskNorm};

    /// The two tasks of `tests/reference/projector.py`.
    fn tasks() -> (Gram, Gram) {
        let mut first = GramAccumulator::new(3, BatchNorm::Frobenius);
        first.add(grid(4, 3, 1.0, 0.7)).unwrap();
        first.add(grid(2, 3, 30.0, 1.1)).unwrap();
        let mut second = GramAccumulator::new(3, BatchNorm::Frobenius);
        second.add(grid(5, 3, 2.0, 2.9)).unwrap();
        (
            first.finish(TaskNorm::Frobenius).unwrap(),
            second.finish(TaskNorm::Frobenius).unwrap(),
        )
    }

    fn two_parameters() -> Memory {
        let (first, second) = tasks();
        let mut memory = Memory::new();
        memory
            .absorb("b.weight", first.clone(), History::Sum)
            .unwrap();
        memory.absorb("b.weight", second, History::Sum).unwrap();
        memory
            .absorb("a.weight", random_gram(9, 7, 1), History::Renormalize)
            .unwrap();
        memory
    }

    #[test]
    fn histories_match_numpy() {
        let (first, second) = tasks();
        let mut memory = Memory::new();
        for gram in [&first, &second] {
            memory.absorb("sum", gram.clone(), History::Sum).unwrap();
        }
        assert_close(
            memory.get("sum").unwrap().matrix(),
            &[
                0.855744183,
                0.121486801,
                0.30105834,
                0.121486801,
                0.818765466,
                -0.207154544,
                0.30105834,
                -0.207154544,
                0.619402909,
            ],
            1e-6,
        );
        // The first task has norm one, so two tasks are the same in both histories.
        for gram in [&first, &second, &second] {
            memory
                .absorb("renormalized", gram.clone(), History::Renormalize)
                .unwrap();
        }
        assert_close(
            memory.get("renormalized").unwrap().matrix(),
            &[
                0.926925296,
                -0.243202415,
                0.510346456,
                -0.243202415,
                0.913305955,
                -0.488051796,
                0.510346456,
                -0.488051796,
                0.796450942,
            ],
            1e-6,
        );
        assert_eq!((memory.tasks(), memory.len()), (3, 2));
    }

    #[test]
    fn a_gram_that_does_not_fit_changes_nothing() {
        let mut memory = two_parameters();
        let error = memory.absorb("b.weight", random_gram(3, 4, 0), History::Sum);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("b.weight") && error.contains("4 features"),
            "{error}"
        );
        let other = memory.absorb("b.weight", tasks().0, History::Renormalize);
        assert!(matches!(other, Err(MemoryError::History { .. })));
        let huge = Gram::from_matrix(3, vec![f32::MAX; 9]).unwrap();
        memory.absorb("huge", huge.clone(), History::Sum).unwrap();
        let overflow = memory.absorb("huge", huge, History::Sum);
        assert!(matches!(overflow, Err(MemoryError::Gram { .. })));
        memory.entries.remove("huge");
        assert_eq!(memory, two_parameters());
    }

    #[test]
    fn null_spaces_carry_the_paths() {
        let memory = two_parameters();
        let spaces = memory.null_spaces(RankRule::FixedRank(2)).unwrap();
        let sizes: Vec<_> = spaces
            .iter()
            .map(|(path, space)| (path.as_str(), space.rank(), space.features()))
            .collect();
        assert_eq!(sizes, [("a.weight", 2, 7), ("b.weight", 2, 3)]);
        let error = memory.null_spaces(RankRule::FixedRank(5)).unwrap_err();
        assert!(error.to_string().contains("b.weight"), "{error}");
    }

    #[test]
    fn a_saved_memory_loads_bit_equal() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.safetensors");
        let memory = two_parameters();
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
    fn a_memory_is_not_saved_to_a_missing_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("missing").join("memory.safetensors");
        let error = two_parameters().save(&file).unwrap_err();
        assert!(matches!(error, MemoryError::Io { .. }));
        assert!(matches!(Memory::load(&file), Err(MemoryError::Io { .. })));
    }

    /// Writes a file with these metadata and one tensor, and loads it.
    fn load_made(
        metadata: Option<&str>,
        name: &str,
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: &[u8],
    ) -> MemoryError {
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

    fn metadata(features: usize) -> String {
        format!(
            r#"{{"version":1,"parameters":{{"w":{{"features":{features},"history":"sum","tasks":1}}}}}}"#
        )
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn foreign_metadata_is_refused() {
        let good = floats(&[1.0, 0.5, 1.0]);
        let load = |text: Option<&str>| load_made(text, "w", Dtype::F32, vec![3], &good);
        assert!(matches!(load(None), MemoryError::MissingMetadata { .. }));
        assert!(matches!(load(Some("{")), MemoryError::Metadata { .. }));
        let later = r#"{"version":2,"new":true}"#;
        assert!(matches!(
            load(Some(later)),
            MemoryError::Version { found: 2, .. }
        ));
        let unknown = metadata(2).replace("\"tasks\"", "\"extra\":1,\"tasks\"");
        assert!(matches!(load(Some(&unknown)), MemoryError::Metadata { .. }));
    }

    #[test]
    fn tensors_that_disagree_with_the_metadata_are_refused() {
        let good = floats(&[1.0, 0.5, 1.0]);
        let text = metadata(2);
        let load =
            |name, dtype, shape, bytes: &[u8]| load_made(Some(&text), name, dtype, shape, bytes);
        let error = load("other", Dtype::F32, vec![3], &good);
        assert!(matches!(&error, MemoryError::Unmatched { key, .. } if key == "other"));
        for (dtype, shape) in [(Dtype::I32, vec![3]), (Dtype::F32, vec![3, 1])] {
            let error = load("w", dtype, shape, &good);
            assert!(matches!(&error, MemoryError::Tensor { key, .. } if key == "w"));
        }
        for features in [3, 0, usize::MAX, 1 << 32] {
            let error = load_made(Some(&metadata(features)), "w", Dtype::F32, vec![3], &good);
            assert!(matches!(error, MemoryError::Tensor { .. }), "{features}");
        }
        let error = load_made(Some(&metadata(0)), "w", Dtype::F32, vec![0], &[]);
        assert!(matches!(error, MemoryError::Values { .. }));
    }

    #[test]
    fn a_parameter_without_a_tensor_is_refused() {
        let text =
            metadata(2).replace("}}}", r#"},"v":{"features":2,"history":"sum","tasks":1}}}"#);
        let good = floats(&[1.0, 0.5, 1.0]);
        let error = load_made(Some(&text), "w", Dtype::F32, vec![3], &good);
        assert!(matches!(
            &error,
            MemoryError::Unmatched { key, present: "metadata", .. } if key == "v"
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
            assert!(matches!(&error, MemoryError::Values { key, .. } if key == "w"));
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.safetensors");
        two_parameters().save(&file).unwrap();
        let whole = std::fs::read(&file).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&file, &whole[..length]).unwrap();
            assert!(
                matches!(Memory::load(&file), Err(MemoryError::Format { .. })),
                "{length} of {} bytes",
                whole.len()
            );
        }
    }

    #[test]
    fn no_changed_byte_of_the_header_panics() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.safetensors");
        let mut memory = Memory::new();
        memory.absorb("w", tasks().0, History::Sum).unwrap();
        memory.save(&file).unwrap();
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

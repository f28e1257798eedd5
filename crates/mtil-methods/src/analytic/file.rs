//! The state of a regression as a safetensors file.

use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Path, PathBuf},
};

use safetensors::{
    SafeTensors,
    tensor::{Dtype, View},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::AnalyticError;
use mtil_data::files::write_atomically;

/// Key of the entry in the safetensors metadata.
const METADATA_KEY: &str = "mtil_analytic";
/// Version of the file layout. Files of any other version are refused.
const FORMAT_VERSION: u32 = 1;

/// JSON value of the metadata entry.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata<T> {
    version: u32,
    kind: String,
    state: T,
}

/// Tensor to be written, with its own data.
pub(super) struct TensorData {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl TensorData {
    pub fn f64(shape: &[usize], values: &[f64]) -> Self {
        Self {
            dtype: Dtype::F64,
            shape: shape.to_vec(),
            bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    pub fn u64(values: &[usize]) -> Self {
        Self {
            dtype: Dtype::U64,
            shape: vec![values.len()],
            bytes: values
                .iter()
                .flat_map(|x| (*x as u64).to_le_bytes())
                .collect(),
        }
    }
}

impl View for &TensorData {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes the tensors and the metadata atomically. Equal states give equal bytes.
pub(super) fn write(
    path: &Path,
    kind: &str,
    state: impl Serialize,
    tensors: &[(&str, TensorData)],
) -> Result<(), AnalyticError> {
    let corrupt = |reason: String| AnalyticError::Corrupt {
        path: path.to_owned(),
        reason,
    };
    let text = serde_json::to_string(&Metadata {
        version: FORMAT_VERSION,
        kind: kind.to_owned(),
        state,
    })
    .map_err(|e| corrupt(format!("the metadata cannot be written: {e}")))?;
    // One key only: a hash map with several keys has no fixed order.
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), text)]);
    let views = tensors.iter().map(|(name, tensor)| (*name, tensor));
    let bytes =
        safetensors::serialize(views, Some(metadata)).map_err(|source| AnalyticError::Format {
            path: path.to_owned(),
            source,
        })?;
    write_atomically(path, &bytes).map_err(|source| AnalyticError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Bytes of a state file, not yet validated.
pub(super) struct StateFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl StateFile {
    pub fn read(path: &Path) -> Result<Self, AnalyticError> {
        let bytes = std::fs::read(path).map_err(|source| AnalyticError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            bytes,
        })
    }

    pub fn corrupt(&self, reason: impl Into<String>) -> AnalyticError {
        AnalyticError::Corrupt {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }

    /// Parses the file into the state of its metadata and its tensors.
    ///
    /// [`Tensors::finish`] refuses a file with tensors that neither [`Tensors::f64`] nor
    /// [`Tensors::u64`] has read.
    pub fn parse<T: DeserializeOwned>(
        &self,
        kind: &str,
    ) -> Result<(T, Tensors<'_>), AnalyticError> {
        let format = |source| AnalyticError::Format {
            path: self.path.clone(),
            source,
        };
        let (_, header) = SafeTensors::read_metadata(&self.bytes).map_err(format)?;
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(format)?;
        let text = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(METADATA_KEY))
            .ok_or_else(|| {
                self.corrupt(format!(
                    "no metadata `{METADATA_KEY}`: this is not a saved regression"
                ))
            })?;
        let json = |e: serde_json::Error| self.corrupt(format!("metadata `{METADATA_KEY}`: {e}"));
        // Version and kind are parsed first: a file of another version or kind has other fields,
        // and its error should name the version or the kind.
        #[derive(Deserialize)]
        struct Header {
            version: u32,
            kind: String,
        }
        let header: Header = serde_json::from_str(text).map_err(json)?;
        if header.version != FORMAT_VERSION {
            return Err(self.corrupt(format!(
                "format version {} is not {FORMAT_VERSION}",
                header.version
            )));
        }
        if header.kind != kind {
            return Err(self.corrupt(format!("this is a saved `{}`, not a `{kind}`", header.kind)));
        }
        let metadata: Metadata<T> = serde_json::from_str(text).map_err(json)?;
        let tensors = Tensors {
            file: self,
            tensors,
            read: Vec::new(),
        };
        Ok((metadata.state, tensors))
    }
}

/// Tensors of a state file. Remembers which of them were read.
pub(super) struct Tensors<'a> {
    file: &'a StateFile,
    tensors: SafeTensors<'a>,
    read: Vec<&'static str>,
}

impl Tensors<'_> {
    /// Returns the data of a tensor after a check of its data type and shape.
    fn data(
        &mut self,
        name: &'static str,
        dtype: Dtype,
        shape: Option<Vec<usize>>,
    ) -> Result<&[u8], AnalyticError> {
        let Ok(tensor) = self.tensors.tensor(name) else {
            return Err(self.file.corrupt(format!("tensor `{name}` is missing")));
        };
        if tensor.dtype() != dtype || shape.as_deref() != Some(tensor.shape()) {
            return Err(self.file.corrupt(format!(
                "tensor `{name}`: expected {dtype:?} {}, found {:?} {:?}",
                shape.map_or_else(|| "of an impossible size".into(), |s| format!("{s:?}")),
                tensor.dtype(),
                tensor.shape()
            )));
        }
        self.read.push(name);
        Ok(tensor.data())
    }

    /// Returns a tensor of finite `f64` of exactly this shape. `shape` is `None` when its size
    /// overflows, which no tensor matches.
    pub fn f64(
        &mut self,
        name: &'static str,
        shape: Option<Vec<usize>>,
    ) -> Result<Vec<f64>, AnalyticError> {
        let data = self.data(name, Dtype::F64, shape)?;
        let values: Vec<f64> = data
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| f64::from_le_bytes(*b))
            .collect();
        match values.iter().all(|x| x.is_finite()) {
            true => Ok(values),
            false => Err(self
                .file
                .corrupt(format!("tensor `{name}` holds a value that is not finite"))),
        }
    }

    /// Returns a tensor of `count` integers below `limit`.
    pub fn u64(
        &mut self,
        name: &'static str,
        count: usize,
        limit: usize,
    ) -> Result<Vec<usize>, AnalyticError> {
        let data = self.data(name, Dtype::U64, Some(vec![count]))?;
        let values: Option<Vec<usize>> = data
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| usize::try_from(u64::from_le_bytes(*b)).ok())
            .map(|x| x.filter(|x| *x < limit))
            .collect();
        values.ok_or_else(|| {
            self.file.corrupt(format!(
                "tensor `{name}` holds a number that is not below {limit}"
            ))
        })
    }

    /// Refuses a file with a tensor that was not read.
    pub fn finish(self) -> Result<(), AnalyticError> {
        let mut names = self.tensors.names();
        names.sort_unstable();
        match names.into_iter().find(|name| !self.read.contains(name)) {
            Some(name) => Err(self.file.corrupt(format!("unknown tensor `{name}`"))),
            None => Ok(()),
        }
    }
}

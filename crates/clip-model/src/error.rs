//! What can go wrong with a checkpoint directory.

use std::path::{Path, PathBuf};

use crate::{preprocess::PreprocessError, tokenizer::TokenizerError};

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The folder is not there, or is not one.
    #[error("{} is not a checkpoint directory: expected a folder with config.json, model.safetensors, tokenizer.json and preprocessor_config.json", path.display())]
    NotADirectory {
        /// The path that was given.
        path: PathBuf,
    },
    /// `config.json` does not describe a supported model.
    #[error("{}: {}{reason}", path.display(), if key.is_empty() { String::new() } else { format!("key `{key}`: ") })]
    Config {
        /// The file.
        path: PathBuf,
        /// The key at fault, empty when the whole file is.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights file is truncated or not a safetensors file.
    #[error("{} is not a complete safetensors file ({reason}); fetch or write it again", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// A tensor the configuration asks for is not in the file.
    #[error("{}: tensor `{name}` is missing{}", path.display(), did_you_mean(near))]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The most similar unused name in the file.
        near: Option<String>,
    },
    /// Tensors in the file that the configuration has no place for.
    #[error("{}: {} tensor(s) that config.json has no place for, the first is `{}`", path.display(), names.len(), names.first().map_or("", |n| n))]
    Unused {
        /// The file.
        path: PathBuf,
        /// The tensors.
        names: Vec<String>,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{}: tensor `{name}` has shape {found:?}, config.json asks for {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape the configuration asks for.
        expected: Vec<usize>,
    },
    /// A tensor of a type that weights do not have.
    #[error("{}: tensor `{name}` has type {dtype}, expected F32, F16 or BF16", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A weight is NaN or infinite.
    #[error("{}: tensor `{name}` holds NaN or infinite values", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The tokenizer is unusable or belongs to another model.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The preprocessing settings are unusable.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// The preprocessing settings make images of another size than the model takes.
    #[error("{}: images are prepared at {prepared} pixels, the model in config.json takes {model}", path.display())]
    ImageSize {
        /// The directory.
        path: PathBuf,
        /// Side after preprocessing.
        prepared: usize,
        /// Side the model takes.
        model: usize,
    },
}

impl CheckpointError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

fn did_you_mean(near: &Option<String>) -> String {
    near.as_ref()
        .map_or(String::new(), |n| format!(" (the file has `{n}`)"))
}

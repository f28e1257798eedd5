//! Errors of checkpoints.

use std::path::{Path, PathBuf};

use crate::{
    preprocess::PreprocessError, tokenizer::TokenizerError, weights::WeightError, zoo::ZooError,
};

/// Error of reading, writing or downloading a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The path does not exist.
    #[error(
        "{}: no such file or folder; a checkpoint is a folder in the layout of Hugging Face or \
         open_clip, or a weights file",
        path.display()
    )]
    NotFound {
        /// The path that was given.
        path: PathBuf,
    },
    /// The folder has no weights file.
    #[error(
        "{}: the folder holds no weights file (model.safetensors, or the output of torch.save)",
        path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has more than one weights file.
    #[error(
        "{} holds {} weights files ({}); give the path of one of them",
        path.display(), files.len(), file_names(files)
    )]
    SeveralWeights {
        /// The folder.
        path: PathBuf,
        /// The files.
        files: Vec<PathBuf>,
    },
    /// The tensor names are not those of a CLIP.
    #[error(
        "{}: the tensor names are not those of a CLIP (the first is `{first}`); expected those of \
         transformers' CLIPModel or SiglipModel, of OpenAI's CLIP, or of open_clip's CLIP",
        path.display()
    )]
    NotClip {
        /// The file.
        path: PathBuf,
        /// The first tensor in it.
        first: String,
    },
    /// The configuration of the model cannot be inferred from the weights.
    #[error(
        "{}: the configuration of the model cannot be inferred from its weights; put config.json \
         or open_clip_config.json beside them, or specify the architecture",
        path.display()
    )]
    NeedsConfig {
        /// The file.
        path: PathBuf,
    },
    /// The activation function cannot be inferred from the weights.
    #[error(
        "{}: the activation function cannot be inferred from the weights, and there is no \
         config.json or open_clip_config.json beside them; specify the architecture, or the \
         activation: quick_gelu (OpenAI's models and models fine-tuned from them) or gelu (most of \
         open_clip's)",
        path.display()
    )]
    ActivationUnknown {
        /// The file.
        path: PathBuf,
    },
    /// The model has adapters, which no checkpoint format of this crate can store.
    #[error(
        "the model has adapters ({parameter}); merge them into the weights with \
         `Module::materialize` before saving"
    )]
    Adapters {
        /// A parameter of an adapter.
        parameter: String,
    },
    /// The format cannot represent the model.
    #[error("{what} has no {format} format; use {instead} instead")]
    NoSuchFormat {
        /// The model.
        what: String,
        /// The requested format.
        format: &'static str,
        /// A format that can represent it.
        instead: &'static str,
    },
    /// A configuration file does not describe a supported model.
    #[error("{}: {}{reason}", path.display(), key_prefix(key))]
    Config {
        /// The file.
        path: PathBuf,
        /// The offending key; empty if the error concerns the whole file.
        key: String,
        /// The reason.
        reason: String,
    },
    /// The weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A tensor that the configuration requires is not in the file.
    #[error("{}: tensor `{name}` is missing{}", path.display(), did_you_mean(near))]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The most similar unused name in the file.
        near: Option<String>,
    },
    /// The file has tensors that are not part of the model.
    #[error(
        "{}: {} unexpected tensor(s) that are not part of the model, the first is `{}`",
        path.display(), names.len(), names.first().map_or("", |n| n)
    )]
    Unused {
        /// The file.
        path: PathBuf,
        /// The tensors.
        names: Vec<String>,
    },
    /// The shape of a tensor does not match the configuration.
    #[error(
        "{}: tensor `{name}` has shape {found:?}, the configuration requires {expected:?}",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration requires.
        expected: Vec<usize>,
    },
    /// The tokenizer is unusable or belongs to another model.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The name is not in the zoo, or its files are unavailable.
    #[error(transparent)]
    Zoo(#[from] ZooError),
    /// The preprocessing settings are unusable.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// The image size of the preprocessing settings is not that of the model.
    #[error(
        "{}: preprocessing makes images of {prepared} pixels, the model takes {model}",
        path.display()
    )]
    ImageSize {
        /// The directory.
        path: PathBuf,
        /// Image size after preprocessing.
        prepared: usize,
        /// Image size of the model.
        model: usize,
    },
}

impl CheckpointError {
    pub(crate) fn config(path: &Path, key: &str, reason: impl Into<String>) -> Self {
        Self::Config {
            path: path.to_owned(),
            key: key.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

fn key_prefix(key: &str) -> String {
    if key.is_empty() {
        String::new()
    } else {
        format!("key `{key}`: ")
    }
}

fn did_you_mean(near: &Option<String>) -> String {
    near.as_ref()
        .map_or(String::new(), |n| format!(" (the file has `{n}`)"))
}

fn file_names(files: &[PathBuf]) -> String {
    let names: Vec<_> = files
        .iter()
        .filter_map(|f| f.file_name())
        .map(|n| n.to_string_lossy())
        .collect();
    names.join(", ")
}

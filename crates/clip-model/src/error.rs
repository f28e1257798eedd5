//! What can go wrong with a checkpoint.

use std::path::{Path, PathBuf};

use crate::{
    preprocess::PreprocessError, tokenizer::TokenizerError, weights::WeightError, zoo::ZooError,
};

/// Why a checkpoint could not be read, written or fetched.
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
    /// There is nothing at the path.
    #[error("{}: there is no such file or folder; a checkpoint is a folder in Hugging Face's or open_clip's layout, or a weights file", path.display())]
    NotFound {
        /// The path that was given.
        path: PathBuf,
    },
    /// A folder without weights.
    #[error("{}: no file in this folder is a weights file (model.safetensors or its like, or what torch.save writes)", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A folder with more than one weights file.
    #[error("{} holds {} weights files ({}); give the path of one of them", path.display(), files.len(), file_names(files))]
    SeveralWeights {
        /// The folder.
        path: PathBuf,
        /// The files.
        files: Vec<PathBuf>,
    },
    /// The weights are no CLIP's.
    #[error("{}: these are not the weights of a CLIP (the first tensor is `{first}`); expected the names of transformers' CLIPModel or SiglipModel, of OpenAI's, or of open_clip's CLIP", path.display())]
    NotClip {
        /// The file.
        path: PathBuf,
        /// A tensor in it.
        first: String,
    },
    /// The shape of the model cannot be told from the weights alone.
    #[error("{}: the shape of this model cannot be told from its weights alone; put config.json or open_clip_config.json beside them, or name the architecture", path.display())]
    NeedsConfig {
        /// The file.
        path: PathBuf,
    },
    /// The activation cannot be told from the weights.
    #[error("{}: there is no config.json or open_clip_config.json beside it, and the activation is not in the weights; say quick_gelu (all of OpenAI's models and what was fine-tuned from them) or gelu (most of open_clip's), or name the architecture", path.display())]
    ActivationUnknown {
        /// The file.
        path: PathBuf,
    },
    /// The model has adapters, which no checkpoint format here holds.
    #[error(
        "the model has adapters ({parameter}): fold them into the weights with `Module::materialize` before saving"
    )]
    Adapters {
        /// A parameter of one.
        parameter: String,
    },
    /// The model has no form in the format.
    #[error("{what} has no {format} form; use {instead} instead")]
    NoSuchFormat {
        /// The model.
        what: String,
        /// The format asked for.
        format: &'static str,
        /// One that can hold it.
        instead: &'static str,
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
    /// The weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightError),
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
    #[error("{}: {} tensor(s) that the configuration has no place for, the first is `{}`", path.display(), names.len(), names.first().map_or("", |n| n))]
    Unused {
        /// The file.
        path: PathBuf,
        /// The tensors.
        names: Vec<String>,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{}: tensor `{name}` has shape {found:?}, the configuration asks for {expected:?}", path.display())]
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
    /// The tokenizer is unusable or belongs to another model.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The name is not in the zoo, or its files are not to be had.
    #[error(transparent)]
    Zoo(#[from] ZooError),
    /// There is nothing to encode.
    #[error("there are no texts to encode: give at least one label and one template")]
    NoTexts,
    /// A template has no place for the label.
    #[error("the template {template:?} has no {{}} for the name of the class")]
    Template {
        /// The template.
        template: String,
    },
    /// The preprocessing settings are unusable.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// The preprocessing settings make images of another size than the model takes.
    #[error("{}: images are prepared at {prepared} pixels, the model takes {model}", path.display())]
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

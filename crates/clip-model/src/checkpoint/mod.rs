//! Checkpoints: a model with its tokenizer and its image settings, from and to the files people
//! have.
//!
//! | file | what |
//! |---|---|
//! | `detect` | which files a path holds and what they say |
//! | `names` | what parameters are called in files |
//! | `read`, `write` | weights into models and back |
//! | `pretrained` | checkpoints by name |
//! | `interpolate` | position embeddings for another image size |

mod detect;
mod interpolate;
mod names;
mod pretrained;
mod read;
mod write;

use std::path::{Path, PathBuf};

use burn::tensor::Device;

use crate::{
    config::{Activation, ClipConfig},
    error::CheckpointError,
    model::ClipModel,
    preprocess::Preprocess,
    tokenizer::Tokenizer,
    weights::{Container, WeightFile},
};

pub use names::KeyLayout;
pub use read::load_weights;
pub use write::{Dtype, save_weights, write_weights};

use detect::Files;

/// A CLIP: a model with all that belongs to it.
#[derive(Debug, Clone)]
pub struct Clip {
    /// The model.
    pub model: ClipModel,
    /// Its shape.
    pub config: ClipConfig,
    /// Texts to token ids.
    pub tokenizer: Tokenizer,
    /// Images to pixels.
    pub preprocess: Preprocess,
}

/// What the files of a checkpoint leave open, or shall not decide.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The shape of the model, instead of what the files say. See
    /// [`architecture`](crate::architecture).
    pub architecture: Option<ClipConfig>,
    /// The activation of both towers. A bare weights file does not hold it, unless it is one of
    /// OpenAI's archives.
    pub activation: Option<Activation>,
    /// Side of the images, in pixels, if it shall be another than the model was trained with; its
    /// position embeddings are then resized (bicubic, as open_clip does).
    pub image_size: Option<usize>,
    /// A `tokenizer.json`, or OpenAI's merges (`bpe_simple_vocab_16e6.txt.gz`), instead of the one
    /// beside the weights.
    pub tokenizer: Option<PathBuf>,
}

/// What a checkpoint is, for people.
#[derive(Debug, Clone)]
pub struct Description {
    /// The weights file, or the index of its shards.
    pub weights: PathBuf,
    /// How it is packed.
    pub container: Container,
    /// Whose names it uses.
    pub layout: KeyLayout,
    /// Size of the weights in bytes.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// The shape of the model.
    pub config: ClipConfig,
}

impl Clip {
    /// Loads a checkpoint: a directory of Hugging Face's or open_clip's layout, or a weights file
    /// (OpenAI's archives, GNSP's and ZSCL's `{"state_dict": …}`, …). What it is, is told from its
    /// content.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file, and the tensor or key, that is at fault.
    pub fn load(path: &Path, device: &Device) -> Result<Self, CheckpointError> {
        Self::load_with(path, &LoadOptions::default(), device)
    }

    /// As [`load`](Self::load), with what the files leave open.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(
        path: &Path,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let opened = Opened::new(path, options)?;
        let config = opened.config_for(options)?;
        let preprocess = match opened.files.preprocess()? {
            Some(preprocess) => preprocess,
            None => opened
                .preprocess
                .clone()
                .unwrap_or_else(|| opened.config.default_preprocess()),
        };
        let preprocess = match options.image_size {
            Some(size) => preprocess.with_image_size(size as u32),
            None => preprocess,
        };
        let file = options
            .tokenizer
            .as_ref()
            .or(opened.files.tokenizer.as_ref());
        let tokenizer = match file {
            Some(file) => Tokenizer::from_file(file, config.text.kind)?,
            None => Tokenizer::default_for(&config.text, path)?,
        };
        let parts = Parts {
            tokenizer,
            preprocess,
        };
        parts.check(path, &config)?;
        let model = opened.read(&config, device)?;
        Ok(Self {
            model,
            config,
            tokenizer: parts.tokenizer,
            preprocess: parts.preprocess,
        })
    }

    /// Like [`load`](Self::load), from the contents of the four files of a Hugging Face directory;
    /// `name` stands for the directory in errors.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn from_bytes(
        files: &CheckpointBytes<'_>,
        name: &str,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let dir = Path::new(name);
        let utf8 = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let config = ClipConfig::from_json(&utf8(files.config), &dir.join("config.json"))?;
        let parts = Parts {
            tokenizer: Tokenizer::from_bytes(files.tokenizer, name, config.text.kind)?,
            preprocess: Preprocess::from_json(
                &utf8(files.preprocess),
                &dir.join("preprocessor_config.json"),
            )?,
        };
        parts.check(dir, &config)?;
        let weights = WeightFile::from_bytes(files.weights, &dir.join("model.safetensors"))?;
        let layout = read::layout_of(&weights)?;
        Ok(Self {
            model: read::read(&weights, layout, &config, &config, device)?,
            config,
            tokenizer: parts.tokenizer,
            preprocess: parts.preprocess,
        })
    }

    /// What is at `path`, without loading the weights.
    ///
    /// # Errors
    /// As [`load`](Self::load), of what is read.
    pub fn describe(path: &Path, options: &LoadOptions) -> Result<Description, CheckpointError> {
        let opened = Opened::new(path, options)?;
        Ok(Description {
            weights: opened.weights.path().to_owned(),
            container: opened.weights.container(),
            layout: opened.layout,
            bytes: opened.weights.len_bytes(),
            tensors: opened.weights.names().count(),
            config: opened.config,
        })
    }
}

impl ClipModel {
    /// Loads only the model of a checkpoint, and its shape: for those who bring ids and pixels
    /// themselves.
    ///
    /// # Errors
    /// As [`Clip::load`].
    pub fn load(
        path: &Path,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<(Self, ClipConfig), CheckpointError> {
        let opened = Opened::new(path, options)?;
        let config = opened.config_for(options)?;
        Ok((opened.read(&config, device)?, config))
    }
}

/// A checkpoint whose weights have not been read yet.
struct Opened {
    files: Files,
    weights: WeightFile<'static>,
    layout: KeyLayout,
    config: ClipConfig,
    preprocess: Option<Preprocess>,
}

impl Opened {
    fn new(path: &Path, options: &LoadOptions) -> Result<Self, CheckpointError> {
        let files = Files::find(path)?;
        let weights = files
            .weights
            .as_ref()
            .ok_or_else(|| CheckpointError::NoWeights {
                path: path.to_owned(),
            })?;
        let weights = WeightFile::open(weights)?;
        let layout = read::layout_of(&weights)?;
        let (config, preprocess) = files.config(&weights, layout, options)?;
        Ok(Self {
            files,
            weights,
            layout,
            config,
            preprocess,
        })
    }

    /// The shape the model shall have.
    fn config_for(&self, options: &LoadOptions) -> Result<ClipConfig, CheckpointError> {
        let mut config = self.config.clone();
        if let Some(size) = options.image_size {
            config.vision.image_size = size;
            config.check().map_err(|(key, reason)| {
                CheckpointError::config(self.weights.path(), key, reason)
            })?;
        }
        Ok(config)
    }

    fn read(&self, config: &ClipConfig, device: &Device) -> Result<ClipModel, CheckpointError> {
        read::read(&self.weights, self.layout, &self.config, config, device)
    }
}

/// What comes with a model.
struct Parts {
    tokenizer: Tokenizer,
    preprocess: Preprocess,
}

impl Parts {
    /// Whether they belong to a model of this shape.
    fn check(&self, path: &Path, config: &ClipConfig) -> Result<(), CheckpointError> {
        self.tokenizer.check_vocabulary(config.text.vocab_size)?;
        if self.preprocess.image_size() != config.vision.image_size {
            return Err(CheckpointError::ImageSize {
                path: path.to_owned(),
                prepared: self.preprocess.image_size(),
                model: config.vision.image_size,
            });
        }
        Ok(())
    }
}

/// The contents of the files of a checkpoint directory.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointBytes<'a> {
    /// `config.json`.
    pub config: &'a [u8],
    /// `model.safetensors`.
    pub weights: &'a [u8],
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `preprocessor_config.json`.
    pub preprocess: &'a [u8],
}

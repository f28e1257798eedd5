//! Checkpoints: loading and saving of a model with its tokenizer and image settings.
//!
//! | file | contents |
//! |---|---|
//! | `detect` | detection of a checkpoint's files, layout and configuration |
//! | `names` | mapping of parameter paths to tensor names and shapes in files |
//! | `read`, `write` | weights of files into models and back |
//! | `pretrained` | checkpoints by name |
//! | `interpolate` | interpolation of position embeddings for another image size |

mod detect;
mod interpolate;
mod names;
mod pretrained;
mod read;
mod write;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use sha2::{Digest, Sha256};

use crate::{
    config::{Activation, ClipConfig},
    error::CheckpointError,
    model::ClipModel,
    preprocess::{Preprocess, PreprocessError},
    tokenizer::Tokenizer,
    weights::{Container, WeightFile},
};

pub use names::KeyLayout;
pub use read::load_weights;
pub use write::{Dtype, save_weights, write_weights};

use detect::{Files, ImageSettings, ReadConfig};

/// A CLIP: model, configuration, tokenizer and preprocessing.
///
/// ```
/// use burn::tensor::Device;
/// use clip_model::Clip;
///
/// let clip = Clip::load("../mini-world/clip-mini".as_ref(), &Device::default())?;
/// let features = clip.encode_text(&["a red circle", "a blue square"])?;
/// assert_eq!(features.dims(), [2, clip.config.projection_dim]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Clip {
    /// The model.
    pub model: ClipModel,
    /// Configuration of the model.
    pub config: ClipConfig,
    /// Converts texts to token ids.
    pub tokenizer: Tokenizer,
    /// Converts images to pixel tensors.
    pub preprocess: Preprocess,
}

/// Overrides for values that a checkpoint's files do not state.
///
/// ```
/// use burn::tensor::Device;
/// use clip_model::{Clip, LoadOptions};
///
/// let options = LoadOptions {
///     image_size: Some(48),
///     ..LoadOptions::default()
/// };
/// let path = "../mini-world/clip-mini".as_ref();
/// let clip = Clip::load_with(path, &options, &Device::default())?;
/// assert_eq!(clip.model.visual.image_size(), 48);
/// # Ok::<(), clip_model::CheckpointError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Configuration of the model, in place of the one in the files. See
    /// [`architecture`](crate::architecture).
    pub architecture: Option<ClipConfig>,
    /// Activation of both towers. A bare weights file does not state it, unless it is one of
    /// OpenAI's archives.
    pub activation: Option<Activation>,
    /// Image size in pixels, if not the one that the model was trained with. The position
    /// embeddings are interpolated (bicubic, as in open_clip).
    pub image_size: Option<usize>,
    /// A `tokenizer.json`, or OpenAI's merges (`bpe_simple_vocab_16e6.txt.gz`), in place of the
    /// tokenizer beside the weights.
    pub tokenizer: Option<PathBuf>,
}

/// Summary of a checkpoint, from [`Clip::describe`].
#[derive(Debug, Clone)]
pub struct Description {
    /// The weights file, or the index of its shards.
    pub weights: PathBuf,
    /// The files that hold tensors: the weights file, or the shards in the order of their names.
    pub files: Vec<PathBuf>,
    /// File format of the weights.
    pub container: Container,
    /// Naming scheme of the tensors.
    pub layout: KeyLayout,
    /// Size of the weights in bytes.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Configuration of the model.
    pub config: ClipConfig,
    /// The file that states the configuration; `None` if the options do, or if it is inferred from
    /// the tensors.
    pub config_file: Option<PathBuf>,
    /// Image settings; `None` if the layout requires a file of them and it is missing.
    pub preprocess: Option<Preprocess>,
    /// The file that states the image settings; `None` if they are those of the kind of model.
    pub preprocess_file: Option<PathBuf>,
    /// The file of the tokenizer; `None` if there is none.
    pub tokenizer_file: Option<PathBuf>,
}

impl Description {
    /// Returns the SHA-256 of the weights in lower-case hexadecimal: of the file, or of the index
    /// followed by its shards in the order of their names. It takes about a second per gigabyte on
    /// a processor with SHA instructions.
    ///
    /// ```
    /// use clip_model::{Clip, LoadOptions};
    ///
    /// let path = "../mini-world/clip-mini".as_ref();
    /// let description = Clip::describe(path, &LoadOptions::default())?;
    /// assert_eq!(description.sha256()?.len(), 64);
    /// # Ok::<(), clip_model::CheckpointError>(())
    /// ```
    ///
    /// # Errors
    /// [`CheckpointError::Io`] for a file that cannot be read.
    pub fn sha256(&self) -> Result<String, CheckpointError> {
        let index = (self.files != [self.weights.clone()]).then_some(&self.weights);
        let mut hasher = Sha256::new();
        for path in index.into_iter().chain(&self.files) {
            let mut file = File::open(path).map_err(|e| CheckpointError::io(path, e))?;
            io::copy(&mut file, &mut hasher).map_err(|e| CheckpointError::io(path, e))?;
        }
        Ok(format!("{:x}", hasher.finalize()))
    }
}

impl Clip {
    /// Loads a checkpoint: a directory in the layout of Hugging Face or open_clip, or a weights
    /// file (OpenAI's archives, GNSP's and ZSCL's `{"state_dict": …}`, …). The format is detected
    /// from content.
    ///
    /// # Errors
    /// [`CheckpointError`] with the file, and the tensor or key, that caused it.
    pub fn load(path: &Path, device: &Device) -> Result<Self, CheckpointError> {
        Self::load_with(path, &LoadOptions::default(), device)
    }

    /// Like [`load`](Self::load), with overrides.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn load_with(
        path: &Path,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let opened = OpenCheckpoint::new(path, options)?;
        let config = opened.config_for(options)?;
        tracing::info!(
            weights = %opened.weights.path().display(),
            container = ?opened.weights.container(),
            layout = ?opened.layout,
            bytes = opened.weights.len_bytes(),
            "loading a checkpoint"
        );
        let (preprocess, _) = opened.preprocess()?;
        let preprocess = match options.image_size {
            Some(size) => preprocess.with_image_size(size as u32),
            None => preprocess,
        };
        let tokenizer = match opened.tokenizer(options) {
            Some(file) => Tokenizer::from_file(file, config.text.kind)?,
            None => Tokenizer::default_for(&config.text, path)?,
        };
        let processor = Processor {
            tokenizer,
            preprocess,
        };
        processor.check(path, &config)?;
        let model = opened.read(&config, device)?;
        Ok(Self {
            model,
            config,
            tokenizer: processor.tokenizer,
            preprocess: processor.preprocess,
        })
    }

    /// Like [`load`](Self::load), from the contents of the four files of a Hugging Face directory;
    /// errors show `name` in place of the directory.
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
        let processor = Processor {
            tokenizer: Tokenizer::from_bytes(files.tokenizer, name, config.text.kind)?,
            preprocess: Preprocess::from_json(
                &utf8(files.preprocess),
                &dir.join("preprocessor_config.json"),
            )?,
        };
        processor.check(dir, &config)?;
        let weights = WeightFile::from_bytes(files.weights, &dir.join("model.safetensors"))?;
        let weights = weights.without_wrappers();
        let layout = read::layout_of(&weights)?;
        Ok(Self {
            model: read::read(&weights, layout, &config, &config, device)?,
            config,
            tokenizer: processor.tokenizer,
            preprocess: processor.preprocess,
        })
    }

    /// Returns a summary of the checkpoint at `path`, without loading the weights.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn describe(path: &Path, options: &LoadOptions) -> Result<Description, CheckpointError> {
        let opened = OpenCheckpoint::new(path, options)?;
        let (preprocess, preprocess_file) = match opened.preprocess() {
            Ok((preprocess, file)) => (Some(preprocess), file),
            Err(CheckpointError::Preprocess(PreprocessError::NotFound { .. })) => (None, None),
            Err(e) => return Err(e),
        };
        Ok(Description {
            weights: opened.weights.path().to_owned(),
            container: opened.weights.container(),
            layout: opened.layout,
            files: opened.weights.paths().map(Path::to_owned).collect(),
            bytes: opened.weights.len_bytes(),
            tensors: opened.weights.names().count(),
            preprocess,
            preprocess_file,
            tokenizer_file: opened.tokenizer(options).map(Path::to_owned),
            config: opened.config,
            config_file: opened.config_file,
        })
    }
}

impl ClipModel {
    /// Loads the model of a checkpoint and its configuration, without tokenizer and image settings.
    ///
    /// # Errors
    /// See [`Clip::load`].
    pub fn load(
        path: &Path,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<(Self, ClipConfig), CheckpointError> {
        let opened = OpenCheckpoint::new(path, options)?;
        let config = opened.config_for(options)?;
        Ok((opened.read(&config, device)?, config))
    }
}

/// An open checkpoint whose weights have not been read yet.
struct OpenCheckpoint {
    files: Files,
    weights: WeightFile<'static>,
    layout: KeyLayout,
    config: ClipConfig,
    config_file: Option<PathBuf>,
    /// Those of `open_clip_config.json`.
    image_settings: Option<ImageSettings>,
}

impl OpenCheckpoint {
    fn new(path: &Path, options: &LoadOptions) -> Result<Self, CheckpointError> {
        let files = Files::find(path)?;
        let weights = files
            .weights
            .as_ref()
            .ok_or_else(|| CheckpointError::NoWeights {
                path: path.to_owned(),
            })?;
        let weights = WeightFile::open(weights)?.without_wrappers();
        let layout = read::layout_of(&weights)?;
        let ReadConfig {
            config,
            path: config_file,
            image_settings,
        } = files.config(&weights, layout, options)?;
        Ok(Self {
            files,
            weights,
            layout,
            config,
            config_file,
            image_settings,
        })
    }

    /// Returns the image settings, and the file that states them. Those in a file of their own take
    /// precedence over those of `open_clip_config.json`.
    fn preprocess(&self) -> Result<(Preprocess, Option<PathBuf>), CheckpointError> {
        let settings = self.files.image_settings()?;
        Ok(match settings.or_else(|| self.image_settings.clone()) {
            Some((preprocess, path)) => (preprocess, Some(path)),
            None => (self.config.default_preprocess(), None),
        })
    }

    /// Returns the file of the tokenizer.
    fn tokenizer<'a>(&'a self, options: &'a LoadOptions) -> Option<&'a Path> {
        let requested = options.tokenizer.as_deref();
        requested.or(self.files.tokenizer.as_deref())
    }

    /// Returns the configuration of the model to build: that of the file, with the requested image
    /// size.
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

/// Tokenizer and preprocessing of a checkpoint.
struct Processor {
    tokenizer: Tokenizer,
    preprocess: Preprocess,
}

impl Processor {
    /// Checks that vocabulary and image size fit the model.
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

/// Contents of the files of a Hugging Face directory, for [`Clip::from_bytes`].
///
/// ```
/// use burn::tensor::Device;
/// use clip_model::{CheckpointBytes, Clip};
///
/// let read = |name| std::fs::read(format!("../mini-world/clip-mini/{name}"));
/// let files = CheckpointBytes {
///     config: &read("config.json")?,
///     weights: &read("model.safetensors")?,
///     tokenizer: &read("tokenizer.json")?,
///     preprocess: &read("preprocessor_config.json")?,
/// };
/// let clip = Clip::from_bytes(&files, "clip-mini", &Device::default())?;
/// assert_eq!(clip.preprocess.image_size(), 32);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The digest of the checkpoint in `folder`, and that of these files one after the other.
    fn digests(folder: &str, files: &[&str]) -> (String, String) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/data")
            .join(folder);
        let description = Clip::describe(&folder, &LoadOptions::default()).unwrap();
        let files = files
            .iter()
            .map(|name| fs::read(folder.join(name)).unwrap());
        let bytes: Vec<u8> = files.flatten().collect();
        let expected = format!("{:x}", Sha256::digest(bytes));
        (description.sha256().unwrap(), expected)
    }

    #[test]
    fn sha256_of_a_single_file_is_that_of_its_bytes() {
        let (found, expected) = digests("clip/tiny", &["model.safetensors"]);
        assert_eq!(found, expected);
    }

    #[test]
    fn sha256_of_a_sharded_set_is_that_of_the_index_and_the_shards() {
        let files = [
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        let (found, expected) = digests("zoo/siglip_hf_sharded", &files);
        assert_eq!(found, expected);
    }

    fn data(folder: &str) -> PathBuf {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
        data.join(folder)
    }

    /// Copies the files of a folder in `tests/data` to a temporary one.
    fn copied(folder: &str) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(data(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            if name != "expected.safetensors" {
                fs::copy(&path, copy.path().join(name)).unwrap();
            }
        }
        copy
    }

    fn text_features(clip: &Clip) -> Vec<f32> {
        let features = clip.encode_text(&["a red circle", "a dog"]).unwrap();
        features.into_data().iter::<f32>().collect()
    }

    #[test]
    fn copies_and_unrelated_files_change_neither_the_model_nor_its_description() {
        let device = Device::default();
        let expected = Clip::load(&data("clip/tiny"), &device).unwrap();
        let folder = copied("clip/tiny");
        let path = |name: &str| folder.path().join(name);
        let other = data("clip/gelu/config.json");
        fs::copy(&other, path("config.json~")).unwrap();
        fs::copy(&other, path("config.json.bak")).unwrap();
        let images = fs::read_to_string(path("preprocessor_config.json")).unwrap();
        fs::write(
            path("preprocessor_config.json~"),
            images.replace("32", "48"),
        )
        .unwrap();
        fs::write(path("results.jsonl"), "{\"a\": 1}\n{\"a\": 2}\n").unwrap();
        fs::write(path("chat_template.jinja"), "{% set a = 1 %}").unwrap();
        let clip = Clip::load(folder.path(), &device).unwrap();
        assert_eq!(clip.config, expected.config);
        assert_eq!(clip.preprocess, expected.preprocess);
        assert_eq!(text_features(&clip), text_features(&expected));

        let description = Clip::describe(folder.path(), &LoadOptions::default()).unwrap();
        assert_eq!(description.config, clip.config);
        assert_eq!(description.preprocess.as_ref(), Some(&clip.preprocess));
        for (file, name) in [
            (&description.config_file, "config.json"),
            (&description.preprocess_file, "preprocessor_config.json"),
            (&description.tokenizer_file, "tokenizer.json"),
        ] {
            assert_eq!(file.as_ref(), Some(&path(name)));
        }

        // Without the known name, the description has the file that is loaded.
        fs::rename(
            path("preprocessor_config.json"),
            path("preprocessor_config.json~"),
        )
        .unwrap();
        fs::remove_file(path("processor_config.json")).unwrap();
        let description = Clip::describe(folder.path(), &LoadOptions::default()).unwrap();
        let copy = path("preprocessor_config.json~");
        assert_eq!(description.preprocess_file, Some(copy.clone()));
        fs::remove_file(copy).unwrap();
        let description = Clip::describe(folder.path(), &LoadOptions::default()).unwrap();
        assert_eq!(description.preprocess, None);
        assert!(Clip::load(folder.path(), &device).is_err());
    }

    /// Adds `prefix` to the names of the tensors in a safetensors file.
    fn add_prefix(path: &Path, prefix: &str) {
        let bytes = fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter();
        let tensors = tensors.map(|(name, view)| (format!("{prefix}{name}"), view));
        let renamed = safetensors::serialize(tensors, None).unwrap();
        fs::write(path, renamed).unwrap();
    }

    #[test]
    fn prefixes_of_wrappers_are_recognised_in_safetensors() {
        let device = Device::default();
        let expected = text_features(&Clip::load(&data("clip/tiny"), &device).unwrap());
        for prefix in ["module.", "_orig_mod.", "model.", "module._orig_mod."] {
            let folder = copied("clip/tiny");
            let weights = folder.path().join("model.safetensors");
            add_prefix(&weights, prefix);
            let clip = Clip::load(folder.path(), &device).unwrap();
            assert_eq!(text_features(&clip), expected, "{prefix}");
            let config = clip.config;
            load_weights(&config, &weights, &device).unwrap();
        }
        let folder = copied("clip/tiny");
        add_prefix(&folder.path().join("model.safetensors"), "network.");
        let error = Clip::load(folder.path(), &device).unwrap_err();
        assert!(matches!(error, CheckpointError::NotClip { .. }), "{error}");
    }

    #[test]
    fn prefixes_of_wrappers_are_recognised_in_shards() {
        let folder = copied("zoo/siglip_hf_sharded");
        let path = |name: &str| folder.path().join(name);
        for shard in ["1", "2"] {
            add_prefix(
                &path(&format!("model-0000{shard}-of-00002.safetensors")),
                "_orig_mod.",
            );
        }
        let index = path("model.safetensors.index.json");
        let text = fs::read_to_string(&index).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let map = json["weight_map"].as_object().unwrap().clone().into_iter();
        let map: serde_json::Map<_, _> = map
            .map(|(name, shard)| (format!("_orig_mod.{name}"), shard))
            .collect();
        json["weight_map"] = map.into();
        fs::write(&index, json.to_string()).unwrap();
        let options = LoadOptions::default();
        ClipModel::load(folder.path(), &options, &Device::default()).unwrap();
        let description = Clip::describe(folder.path(), &options).unwrap();
        assert_eq!(description.layout, KeyLayout::HuggingFace);
    }
}

//! Detection of a checkpoint's files, layout and configuration.
//!
//! Weights, configuration, tokenizer and image settings are recognised by the content of the files.
//! Only a file of unknown content counts as weights because of its extension, so that opening it
//! gives the error. Without a configuration file, the configuration is inferred from the shapes of
//! the tensors.

use std::{
    collections::HashMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::de::IgnoredAny;

use super::{LoadOptions, names::KeyLayout};
use crate::{
    config::{
        Activation, ClipConfig, OpenClipConfig, TextConfig, TextKind, VisionConfig, VisionKind,
        architectures,
    },
    error::CheckpointError,
    preprocess::{Preprocess, PreprocessError},
    weights::{Container, WeightFile},
};

/// Larger JSON files are ignored. Tokenizers are the largest ones (Gemma's has 34 MB).
const MAX_JSON_BYTES: u64 = 128 << 20;

/// The files of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub weights: Option<PathBuf>,
    hugging_face: Option<PathBuf>,
    open_clip: Option<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    image_processor: Option<PathBuf>,
    processor: Option<PathBuf>,
}

/// Role of a JSON file in a checkpoint.
enum JsonRole {
    HuggingFace,
    OpenClip,
    Index,
    Tokenizer,
    ImageProcessor,
    Processor,
}

impl Files {
    /// Finds the files of a directory, or a weights file and the files beside it.
    pub(crate) fn find(path: &Path) -> Result<Self, CheckpointError> {
        if path.is_dir() {
            return Self::in_directory(path, None);
        }
        if !path.is_file() {
            return Err(CheckpointError::NotFound {
                path: path.to_owned(),
            });
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        Self::in_directory(folder.unwrap_or(Path::new(".")), Some(path))
    }

    /// Searches a directory. Weights are searched for only if `weights` is `None`.
    fn in_directory(dir: &Path, weights: Option<&Path>) -> Result<Self, CheckpointError> {
        let mut found = Self {
            weights: weights.map(Path::to_owned),
            ..Self::default()
        };
        let (mut indices, mut safetensors, mut pickles) = (Vec::new(), Vec::new(), Vec::new());
        let mut unknown = Vec::new();
        let mut entries = fs::read_dir(dir)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .map_err(|e| CheckpointError::io(dir, e))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if !path.is_file() {
                continue;
            }
            let (head, size) = read_head(&path).map_err(|e| CheckpointError::io(&path, e))?;
            match head.iter().find(|b| !b.is_ascii_whitespace()) {
                _ if head.starts_with(b"PK\x03\x04") || is_pickle(&head) => pickles.push(path),
                _ if is_safetensors(&head) => safetensors.push(path),
                Some(b'{') if size <= MAX_JSON_BYTES => match json_kind(&path) {
                    // Beside an explicitly named weights file, invalid JSON is not an error.
                    Err(reason) if weights.is_none() => {
                        return Err(CheckpointError::config(&path, "", reason));
                    }
                    Err(_) | Ok(None) => {}
                    Ok(Some(JsonRole::HuggingFace)) => found.hugging_face = Some(path),
                    Ok(Some(JsonRole::OpenClip)) => found.open_clip = Some(path),
                    Ok(Some(JsonRole::Tokenizer)) => found.tokenizer = Some(path),
                    Ok(Some(JsonRole::ImageProcessor)) => found.image_processor = Some(path),
                    Ok(Some(JsonRole::Processor)) => found.processor = Some(path),
                    Ok(Some(JsonRole::Index)) => indices.push(path),
                },
                _ if has_weights_extension(&path) => unknown.push(path),
                _ => {}
            }
        }
        if found.weights.is_none() {
            // An index comes first: its shards are safetensors files or pickles themselves.
            let candidates = [indices, safetensors, pickles, unknown]
                .into_iter()
                .find(|c| !c.is_empty())
                .ok_or_else(|| CheckpointError::NoWeights {
                    path: dir.to_owned(),
                })?;
            found.weights = Some(choose_weights(dir, candidates)?);
        }
        Ok(found)
    }

    /// Returns the configuration of the model, and the image settings of `open_clip_config.json`.
    pub(crate) fn config(
        &self,
        weights: &WeightFile<'_>,
        layout: KeyLayout,
        options: &LoadOptions,
    ) -> Result<(ClipConfig, Option<Preprocess>), CheckpointError> {
        // OpenAI's archives describe themselves; a configuration beside one belongs to another
        // model.
        let hugging_face = || {
            self.hugging_face
                .as_ref()
                .filter(|_| !is_torch_script(weights))
        };
        let open_clip = || {
            self.open_clip
                .as_ref()
                .filter(|_| !is_torch_script(weights))
        };
        let requested = &options.architecture;
        // If both configuration files are present, the tensor names decide.
        let (mut config, preprocess) = match (requested, layout, hugging_face(), open_clip()) {
            (Some(config), ..) => (config.clone(), None),
            (_, KeyLayout::HuggingFace, Some(path), _) | (_, _, Some(path), None) => {
                (ClipConfig::load(path)?, None)
            }
            (_, _, _, Some(path)) => {
                let text = fs::read_to_string(path).map_err(|e| CheckpointError::io(path, e))?;
                let read = OpenClipConfig::from_json(&text, path)?;
                (read.model, read.preprocess)
            }
            (_, _, None, None) => (infer(weights, layout, options)?, None),
        };
        if let Some(activation) = options.activation {
            config.vision.hidden_act = activation;
            config.text.hidden_act = activation;
        }
        Ok((config, preprocess))
    }

    /// Returns the image settings of `preprocessor_config.json` or `processor_config.json`, or
    /// `None` if the layout has no such file.
    pub(crate) fn preprocess(&self) -> Result<Option<Preprocess>, CheckpointError> {
        if let Some(path) = &self.image_processor {
            let text = fs::read_to_string(path).map_err(|e| CheckpointError::io(path, e))?;
            return Ok(Some(Preprocess::from_json(&text, path)?));
        }
        if let Some(path) = &self.processor {
            let text = fs::read_to_string(path).map_err(|e| CheckpointError::io(path, e))?;
            if let Some(settings) = Preprocess::from_processor(&text, path)? {
                return Ok(Some(settings));
            }
        }
        match &self.hugging_face {
            // In Hugging Face's layout the file is required.
            Some(config) => Err(PreprocessError::NotFound {
                dir: config.parent().unwrap_or(Path::new(".")).to_owned(),
            }
            .into()),
            None => Ok(None),
        }
    }
}

/// Chooses one of several weights files: the only CLIP, or the only one with Hugging Face's names.
/// Repositories often hold a model both with Hugging Face's names and with open_clip's.
fn choose_weights(dir: &Path, mut files: Vec<PathBuf>) -> Result<PathBuf, CheckpointError> {
    if files.len() > 1 {
        let layout = |file: &PathBuf| {
            let opened = WeightFile::open(file).ok()?;
            KeyLayout::detect(opened.names())
        };
        let clips: Vec<_> = files
            .iter()
            .filter_map(|file| Some((file, layout(file)?)))
            .collect();
        let is_hugging_face =
            |(_, layout): &&(&PathBuf, KeyLayout)| *layout == KeyLayout::HuggingFace;
        let chosen = match (
            clips.as_slice(),
            clips.iter().filter(is_hugging_face).count(),
        ) {
            ([one], _) => Some(one.0.clone()),
            (_, 1) => clips
                .iter()
                .find(is_hugging_face)
                .map(|(file, _)| (*file).clone()),
            _ => None,
        };
        files = match chosen {
            Some(file) => vec![file],
            None => files,
        };
    }
    match <[PathBuf; 1]>::try_from(files) {
        Ok([one]) => Ok(one),
        Err(files) => Err(CheckpointError::SeveralWeights {
            path: dir.to_owned(),
            files,
        }),
    }
}

/// Reads the first bytes of a file, and its size.
fn read_head(path: &Path) -> std::io::Result<(Vec<u8>, u64)> {
    let file = fs::File::open(path)?;
    let size = file.metadata()?.len();
    let mut head = Vec::new();
    file.take(64).read_to_end(&mut head)?;
    Ok((head, size))
}

/// Returns whether a file is a pickle of protocol 2 or later, which begins with the opcode PROTO.
/// Older ones are recognised by their extension only.
fn is_pickle(head: &[u8]) -> bool {
    matches!(head, [0x80, 2..=5, ..])
}

/// Returns whether a file begins like safetensors: the length of a header, then the header. The
/// reader validates the rest.
fn is_safetensors(head: &[u8]) -> bool {
    head.get(8) == Some(&b'{') && head[4..8] == [0; 4]
}

/// Returns whether the name of a file of unknown content claims that it holds weights. Opening it
/// then gives an error with the reason.
fn has_weights_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    matches!(extension, Some("safetensors" | "bin" | "pt" | "pth"))
}

/// Returns the role of a JSON file, or `None` if it has none. An error is the reason why the file
/// is not JSON.
fn json_kind(path: &Path) -> Result<Option<JsonRole>, String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    // Only the top-level keys are needed.
    let keys: HashMap<String, IgnoredAny> = serde_json::from_slice(&bytes)
        .map_err(|e| format!("it is not JSON ({e}); the file may be damaged or truncated"))?;
    let has = |key: &str| keys.contains_key(key);
    Ok(Some(match () {
        () if has("weight_map") => JsonRole::Index,
        () if has("model_cfg") || has("embed_dim") && has("vision_cfg") => JsonRole::OpenClip,
        () if has("vision_config") && has("text_config") => JsonRole::HuggingFace,
        () if has("added_tokens") && has("model") => JsonRole::Tokenizer,
        () if has("image_processor") => JsonRole::Processor,
        () if has("image_mean") || has("image_processor_type") || has("feature_extractor_type") => {
            JsonRole::ImageProcessor
        }
        () => return Ok(None),
    }))
}

/// Returns whether the weights are one of OpenAI's archives.
fn is_torch_script(weights: &WeightFile<'_>) -> bool {
    weights.container() == Container::TorchScript
}

/// Infers the configuration of a model from the shapes of its tensors, like OpenAI's loader
/// (`clip/model.py`, `build_model`).
///
/// The shapes determine neither the number of attention heads nor the activation. The heads are
/// those of the published architecture with the same sizes, or one per 64 channels.
fn infer(
    weights: &WeightFile<'_>,
    layout: KeyLayout,
    options: &LoadOptions,
) -> Result<ClipConfig, CheckpointError> {
    let path = weights.path();
    let shapes = Shapes {
        weights,
        names: TensorNames::of(layout),
    };
    let needs_config = || CheckpointError::NeedsConfig {
        path: path.to_owned(),
    };
    // SigLIP's shapes do not determine its configuration.
    let siglip = [shapes.names.siglip, "visual.trunk.pos_embed"];
    if siglip.iter().any(|name| weights.info(name).is_some()) {
        return Err(needs_config());
    }
    let (vision, projection_dim) = if weights.info("visual.layer1.0.conv1.weight").is_some() {
        shapes.resnet()?
    } else {
        shapes.transformer()?
    };
    let mut config = ClipConfig {
        vision,
        text: shapes.text()?,
        projection_dim,
        logit_scale_init: 2.6592,
        logit_bias_init: weights.info("logit_bias").map(|_| -10.0),
    };
    let published = matching_architecture(&config);
    // One head per 64 channels is OpenAI's rule. Unpublished models with Hugging Face's names often
    // do not follow it.
    if published.is_none() && layout == KeyLayout::HuggingFace {
        return Err(needs_config());
    }
    let heads = published.map_or(
        [config.vision.hidden_size / 64, config.text.hidden_size / 64],
        |c| [c.vision.num_attention_heads, c.text.num_attention_heads],
    );
    [
        config.vision.num_attention_heads,
        config.text.num_attention_heads,
    ] = heads;
    let activation = match options.activation {
        Some(activation) => activation,
        // Such archives are OpenAI's; open_clip does not save any.
        None if is_torch_script(weights) => Activation::QuickGelu,
        None => {
            return Err(CheckpointError::ActivationUnknown {
                path: path.to_owned(),
            });
        }
    };
    config.vision.hidden_act = activation;
    config.text.hidden_act = activation;
    config.check().map_err(|(key, reason)| {
        let reason =
            format!("inferred from the shapes of the tensors: {reason}; specify the architecture");
        CheckpointError::config(path, key, reason)
    })?;
    Ok(config)
}

/// Returns the published architecture with the same width and depth of the image tower and the same
/// width of the text tower.
fn matching_architecture(config: &ClipConfig) -> Option<ClipConfig> {
    let size = |c: &ClipConfig| {
        (
            c.vision.hidden_size,
            c.vision.num_hidden_layers,
            c.text.hidden_size,
        )
    };
    let mut all = architectures().map(|(_, c)| c);
    all.find(|c| size(c) == size(config) && c.vision.kind == config.vision.kind)
}

/// Tensor shapes of a file.
struct Shapes<'a> {
    weights: &'a WeightFile<'a>,
    names: TensorNames,
}

impl Shapes<'_> {
    fn shape(&self, name: &str) -> Result<&[usize], CheckpointError> {
        self.weights
            .info(name)
            .map(|info| info.shape.as_slice())
            .ok_or_else(|| CheckpointError::Missing {
                path: self.weights.path().to_owned(),
                name: name.to_owned(),
                near: None,
            })
    }

    fn matrix_shape(&self, name: &str) -> Result<[usize; 2], CheckpointError> {
        let shape = self.shape(name)?;
        shape.try_into().map_err(|_| CheckpointError::Shape {
            path: self.weights.path().to_owned(),
            name: name.to_owned(),
            found: shape.to_vec(),
            expected: vec![0, 0],
        })
    }

    /// Counts the blocks `{prefix}0.`, `{prefix}1.`, ….
    fn count_blocks(&self, prefix: &str) -> usize {
        let missing = (0..).find(|i| {
            let block = format!("{prefix}{i}.");
            !self.weights.names().any(|name| name.starts_with(&block))
        });
        missing.unwrap_or(0)
    }

    /// Returns the hidden width of the MLP of the first of `blocks`.
    fn mlp_width(&self, blocks: &str) -> Result<usize, CheckpointError> {
        let weight = format!("{blocks}0.{}.weight", self.names.fc);
        Ok(self.shape(&weight)?.first().copied().unwrap_or(0))
    }

    /// Infers a ResNet image tower and the width of the joint embedding space.
    fn resnet(&self) -> Result<(VisionConfig, usize), CheckpointError> {
        let [tokens, d] = self.matrix_shape("visual.attnpool.positional_embedding")?;
        let stages = [1, 2, 3, 4].map(|stage| self.count_blocks(&format!("visual.layer{stage}.")));
        let vision = VisionConfig {
            hidden_size: d,
            intermediate_size: 4 * d,
            num_hidden_layers: stages.iter().sum(),
            patch_size: 32,
            image_size: 32 * grid_side(tokens),
            kind: VisionKind::ResNet { stages },
            ..VisionConfig::default()
        };
        Ok((
            vision,
            self.matrix_shape("visual.attnpool.c_proj.weight")?[0],
        ))
    }

    /// Infers a ViT image tower and the width of the joint embedding space.
    fn transformer(&self) -> Result<(VisionConfig, usize), CheckpointError> {
        let names = &self.names;
        let [tokens, d] = self.matrix_shape(names.positions)?;
        let patch = self.shape(names.patches)?.get(3).copied().unwrap_or(0);
        let vision = VisionConfig {
            hidden_size: d,
            intermediate_size: self.mlp_width(names.blocks)?,
            num_hidden_layers: self.count_blocks(names.blocks),
            patch_size: patch,
            image_size: patch * grid_side(tokens),
            ..VisionConfig::default()
        };
        let [a, b] = self.matrix_shape(names.projection)?;
        let projection_dim = if names.projection_is_transposed { a } else { b };
        Ok((vision, projection_dim))
    }

    fn text(&self) -> Result<TextConfig, CheckpointError> {
        let names = &self.names;
        let [vocabulary, width] = self.matrix_shape(names.tokens)?;
        let [context, _] = self.matrix_shape(names.text_positions)?;
        Ok(TextConfig {
            vocab_size: vocabulary,
            hidden_size: width,
            intermediate_size: self.mlp_width(names.text_blocks)?,
            num_hidden_layers: self.count_blocks(names.text_blocks),
            max_position_embeddings: context,
            // These vocabularies have the end token as their largest id, which 2 stands for: see
            // `TextConfig::eos_token_id`.
            eos_token_id: 2,
            bos_token_id: u32::try_from(vocabulary.saturating_sub(2)).unwrap_or(0),
            pad_token_id: 0,
            kind: TextKind::Clip,
            ..TextConfig::default()
        })
    }
}

/// Returns the number of patches along a side, given the number of tokens with the class token.
fn grid_side(tokens: usize) -> usize {
    (tokens.saturating_sub(1) as f64).sqrt().round() as usize
}

/// Names of the tensors whose shapes determine the configuration.
struct TensorNames {
    patches: &'static str,
    positions: &'static str,
    projection: &'static str,
    projection_is_transposed: bool,
    blocks: &'static str,
    fc: &'static str,
    tokens: &'static str,
    text_positions: &'static str,
    text_blocks: &'static str,
    siglip: &'static str,
}

impl TensorNames {
    fn of(layout: KeyLayout) -> Self {
        match layout {
            KeyLayout::HuggingFace => Self {
                patches: "vision_model.embeddings.patch_embedding.weight",
                positions: "vision_model.embeddings.position_embedding.weight",
                projection: "visual_projection.weight",
                projection_is_transposed: true,
                blocks: "vision_model.encoder.layers.",
                fc: "mlp.fc1",
                tokens: "text_model.embeddings.token_embedding.weight",
                text_positions: "text_model.embeddings.position_embedding.weight",
                text_blocks: "text_model.encoder.layers.",
                siglip: "vision_model.head.probe",
            },
            KeyLayout::OpenAi => Self {
                patches: "visual.conv1.weight",
                positions: "visual.positional_embedding",
                projection: "visual.proj",
                projection_is_transposed: false,
                blocks: "visual.transformer.resblocks.",
                fc: "mlp.c_fc",
                tokens: "token_embedding.weight",
                text_positions: "positional_embedding",
                text_blocks: "transformer.resblocks.",
                siglip: "visual.trunk.attn_pool.latent",
            },
            KeyLayout::OpenClipCustomText => Self {
                tokens: "text.token_embedding.weight",
                text_positions: "text.positional_embedding",
                text_blocks: "text.transformer.resblocks.",
                ..Self::of(KeyLayout::OpenAi)
            },
        }
    }
}

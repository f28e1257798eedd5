//! Detection of a checkpoint's files, layout and configuration.
//!
//! Weights, configuration, tokenizer and image settings are recognised by the content of the files.
//! Of several files with the same role, the one with the name that `transformers` or open_clip look
//! for is taken: editors and people leave copies beside it. Other files are passed over, whatever
//! they hold. Only a file of unknown content counts as weights because of its extension, so that
//! opening it gives the error. Without a configuration file, the configuration is inferred from the
//! shapes of the tensors.

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

/// Larger JSON files are not read, except a `tokenizer.json`.
const MAX_JSON_BYTES: u64 = 128 << 20;

/// A larger `tokenizer.json` is not read. Gemma's has 34 MB.
const MAX_TOKENIZER_BYTES: u64 = 1 << 30;

/// Names under which `transformers` and open_clip save weights.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
];

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

/// Image settings, and the file that states them.
pub(crate) type ImageSettings = (Preprocess, PathBuf);

/// Role of a JSON file in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JsonRole {
    HuggingFace,
    OpenClip,
    Index,
    Tokenizer,
    ImageProcessor,
    Processor,
}

/// The JSON files of a directory, in the order of their names.
#[derive(Default)]
struct JsonFiles(Vec<(JsonRole, PathBuf)>);

impl JsonRole {
    /// Returns the role that a file has by its name.
    fn of_name(path: &Path) -> Option<Self> {
        Some(match path.file_name()?.to_str()? {
            "config.json" => Self::HuggingFace,
            "open_clip_config.json" => Self::OpenClip,
            "tokenizer.json" => Self::Tokenizer,
            "preprocessor_config.json" => Self::ImageProcessor,
            "processor_config.json" => Self::Processor,
            name => {
                let indexed = name.strip_suffix(".index.json")?;
                return WEIGHTS.contains(&indexed).then_some(Self::Index);
            }
        })
    }
}

impl JsonFiles {
    /// Returns the file with a role: the one with the name for it, or the last one with the
    /// extension `.json`, or the last one.
    fn get(&self, role: JsonRole) -> Option<PathBuf> {
        let rank = |path: &Path| match JsonRole::of_name(path) {
            Some(named) if named == role => 0,
            _ if path.extension().is_some_and(|e| e == "json") => 1,
            _ => 2,
        };
        let files = self.0.iter().filter(|(found, _)| *found == role);
        let best = files.rev().min_by_key(|(_, path)| rank(path));
        best.map(|(_, path)| path.clone())
    }
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
        let mut json = JsonFiles::default();
        let mut candidates = Candidates::default();
        let mut entries = fs::read_dir(dir)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .map_err(|e| CheckpointError::io(dir, e))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if !path.is_file() {
                continue;
            }
            let (head, size) = match read_head(&path) {
                Ok(head) => head,
                Err(e) if has_known_name(&path) => return Err(CheckpointError::io(&path, e)),
                // An empty head is of unknown content.
                Err(_) => (Vec::new(), 0),
            };
            match head.iter().find(|b| !b.is_ascii_whitespace()) {
                _ if head.starts_with(b"PK\x03\x04") || is_pickle(&head) => {
                    candidates.pickles.push(path)
                }
                _ if is_safetensors(&head) => candidates.safetensors.push(path),
                Some(b'{') => match json_role(&path, size) {
                    // Beside an explicitly named weights file, invalid JSON is not an error.
                    Err(reason) if weights.is_none() => {
                        return Err(CheckpointError::config(&path, "", reason));
                    }
                    Ok(Some(role)) => json.0.push((role, path)),
                    _ if has_weights_extension(&path) => candidates.unknown.push(path),
                    _ => {}
                },
                _ if has_weights_extension(&path) => candidates.unknown.push(path),
                _ => {}
            }
        }
        let indices = json.0.iter().filter(|(role, _)| *role == JsonRole::Index);
        candidates.indices = indices.map(|(_, path)| path.clone()).collect();
        let weights = match weights {
            Some(path) => path.to_owned(),
            None => candidates.choose(dir)?,
        };
        let processor = json.get(JsonRole::Processor);
        let named = |path: &PathBuf| has_known_name(path);
        let image_processor = json.get(JsonRole::ImageProcessor);
        Ok(Self {
            weights: Some(weights),
            hugging_face: json.get(JsonRole::HuggingFace),
            open_clip: json.get(JsonRole::OpenClip),
            tokenizer: json.get(JsonRole::Tokenizer),
            // Both state the image settings.
            image_processor: image_processor
                .filter(|path| named(path) || !processor.as_ref().is_some_and(named)),
            processor,
        })
    }

    /// Returns the configuration of the model, the file that states it, and the image settings of
    /// `open_clip_config.json`.
    pub(crate) fn config(
        &self,
        weights: &WeightFile<'_>,
        layout: KeyLayout,
        options: &LoadOptions,
    ) -> Result<ReadConfig, CheckpointError> {
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
        let mut read = match (requested, layout, hugging_face(), open_clip()) {
            (Some(config), ..) => ReadConfig::without_file(config.clone()),
            (_, KeyLayout::HuggingFace, Some(path), _) | (_, _, Some(path), None) => ReadConfig {
                path: Some(path.clone()),
                ..ReadConfig::without_file(ClipConfig::load(path)?)
            },
            (_, _, _, Some(path)) => {
                let text = fs::read_to_string(path).map_err(|e| CheckpointError::io(path, e))?;
                let read = OpenClipConfig::from_json(&text, path)?;
                ReadConfig {
                    config: read.model,
                    path: Some(path.clone()),
                    image_settings: read.preprocess.map(|settings| (settings, path.clone())),
                }
            }
            (_, _, None, None) => ReadConfig::without_file(infer(weights, layout, options)?),
        };
        if let Some(activation) = options.activation {
            read.config.vision.hidden_act = activation;
            read.config.text.hidden_act = activation;
        }
        Ok(read)
    }

    /// Returns the image settings of `preprocessor_config.json` or `processor_config.json`, or
    /// `None` if the layout has no such file.
    pub(crate) fn image_settings(&self) -> Result<Option<ImageSettings>, CheckpointError> {
        if let Some(path) = &self.image_processor {
            let text = fs::read_to_string(path).map_err(|e| CheckpointError::io(path, e))?;
            return Ok(Some((Preprocess::from_json(&text, path)?, path.clone())));
        }
        if let Some(path) = &self.processor {
            let text = fs::read_to_string(path).map_err(|e| CheckpointError::io(path, e))?;
            if let Some(settings) = Preprocess::from_processor(&text, path)? {
                return Ok(Some((settings, path.clone())));
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

/// Configuration of a checkpoint, and the file that states it.
pub(crate) struct ReadConfig {
    pub config: ClipConfig,
    /// `None` for a requested configuration, and for one inferred from the tensors.
    pub path: Option<PathBuf>,
    /// Those of `open_clip_config.json`.
    pub image_settings: Option<ImageSettings>,
}

impl ReadConfig {
    fn without_file(config: ClipConfig) -> Self {
        Self {
            config,
            path: None,
            image_settings: None,
        }
    }
}

/// Files of a directory that may be its weights, by their container.
#[derive(Default, Clone)]
struct Candidates {
    indices: Vec<PathBuf>,
    safetensors: Vec<PathBuf>,
    pickles: Vec<PathBuf>,
    /// Files of unknown content with an extension of weights.
    unknown: Vec<PathBuf>,
}

impl Candidates {
    /// Chooses the weights of `dir`. Copies under other names, such as `model.safetensors.bak`, are
    /// considered only if no file with a usual name is a CLIP.
    fn choose(self, dir: &Path) -> Result<PathBuf, CheckpointError> {
        let mut named = self.clone();
        let files = [
            &mut named.indices,
            &mut named.safetensors,
            &mut named.pickles,
            &mut named.unknown,
        ];
        for files in files {
            files.retain(|path| has_usual_name(path));
        }
        match named.only_clip(dir) {
            // A damaged file with a known name is an error, whatever is beside it.
            Ok(file) if has_known_name(&file) || layout(&file).is_some() => Ok(file),
            _ => self.only_clip(dir),
        }
    }

    /// Returns the only CLIP of the first container in the directory, or its only file.
    fn only_clip(self, dir: &Path) -> Result<PathBuf, CheckpointError> {
        // An index comes first: its shards are safetensors files or pickles themselves.
        let containers = [self.indices, self.safetensors, self.pickles, self.unknown];
        let files = containers.into_iter().find(|files| !files.is_empty());
        let files = files.ok_or_else(|| CheckpointError::NoWeights {
            path: dir.to_owned(),
        })?;
        choose_weights(dir, files)
    }
}

/// Returns the layout of a weights file, or `None` if it cannot be read or is not a CLIP.
fn layout(file: &Path) -> Option<KeyLayout> {
    let opened = WeightFile::open(file).ok()?.without_wrappers();
    KeyLayout::detect(opened.names())
}

/// Chooses one of several weights files: the only CLIP, or the only one with Hugging Face's names,
/// or the only one with a known name. Repositories often hold a model both with Hugging Face's
/// names and with open_clip's.
fn choose_weights(dir: &Path, mut files: Vec<PathBuf>) -> Result<PathBuf, CheckpointError> {
    if files.len() > 1 {
        let clips: Vec<_> = files
            .iter()
            .filter_map(|file| Some((file, layout(file)?)))
            .collect();
        let only = |is_wanted: &dyn Fn(&Path, KeyLayout) -> bool| {
            let mut wanted = clips
                .iter()
                .filter(|(file, layout)| is_wanted(file, *layout));
            let (file, _) = wanted.next()?;
            wanted.next().is_none().then(|| (*file).clone())
        };
        let chosen = only(&|_, _| true)
            .or_else(|| only(&|_, layout| layout == KeyLayout::HuggingFace))
            .or_else(|| only(&|file, _| has_known_name(file)));
        if let Some(file) = chosen {
            files = vec![file];
        }
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

/// Returns whether a file has the name of an index or of whole weights, and not that of a copy,
/// such as `model.safetensors~`, or of a shard.
fn has_usual_name(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let is_index = path.extension().is_some_and(|e| e == "json");
    is_index || has_weights_extension(path) && !stem.contains("-of-")
}

/// Returns whether `transformers` or open_clip look for a file of this name.
fn has_known_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    JsonRole::of_name(path).is_some() || name.is_some_and(|name| WEIGHTS.contains(&name))
}

/// Returns the role of a JSON file of `size` bytes, or `None` if it has none. A file with another
/// name than those of a checkpoint has none if it is not JSON, or too large. Otherwise an error is
/// the reason why the file cannot be used.
fn json_role(path: &Path, size: u64) -> Result<Option<JsonRole>, String> {
    let named = JsonRole::of_name(path);
    let limit = match named {
        Some(JsonRole::Tokenizer) => MAX_TOKENIZER_BYTES,
        _ => MAX_JSON_BYTES,
    };
    if size > limit {
        return match named {
            Some(_) => Err(format!("it has {size} bytes, at most {limit} are read")),
            None => Ok(None),
        };
    }
    match role_by_keys(path) {
        Err(_) if !has_known_name(path) => Ok(None),
        role => role,
    }
}

/// Returns the role of a JSON file by its keys, or `None` if it has none. An error is the reason
/// why the file is not JSON.
fn role_by_keys(path: &Path) -> Result<Option<JsonRole>, String> {
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
            intermediate_size: d.saturating_mul(4),
            num_hidden_layers: stages.iter().sum(),
            patch_size: 32,
            image_size: grid_side(tokens).saturating_mul(32),
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
            image_size: patch.saturating_mul(grid_side(tokens)),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with files of these names and contents.
    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    const HUGGING_FACE: &str = r#"{"vision_config": {}, "text_config": {}}"#;
    const OPEN_CLIP: &str = r#"{"model_cfg": {}}"#;
    const INDEX: &str = r#"{"weight_map": {}}"#;
    const IMAGES: &str = r#"{"image_processor_type": "CLIPImageProcessor"}"#;
    const PROCESSOR: &str = r#"{"image_processor": {}}"#;
    const TOKENIZER: &str = r#"{"added_tokens": [], "model": {}}"#;

    fn found(files: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
        let folder = directory(files);
        let found = Files::in_directory(folder.path(), Some(Path::new("w.pt"))).unwrap();
        (folder, found)
    }

    fn name(path: &Option<PathBuf>) -> &str {
        path.as_ref()
            .map_or("", |path| path.file_name().unwrap().to_str().unwrap())
    }

    #[test]
    fn known_names_come_before_other_names() {
        let (_folder, files) = found(&[
            ("config.json", HUGGING_FACE),
            ("config.json.bak", HUGGING_FACE),
            ("config.json~", HUGGING_FACE),
            ("open_clip_config.json", OPEN_CLIP),
            ("open_clip_config.json~", OPEN_CLIP),
            ("z.json", HUGGING_FACE),
            ("z_open_clip.json", OPEN_CLIP),
            ("preprocessor_config.json", IMAGES),
            ("preprocessor_config.json~", IMAGES),
            ("processor_config.json", PROCESSOR),
            ("processor_config.json~", PROCESSOR),
            ("tokenizer.json", TOKENIZER),
            ("tokenizer.json.orig", TOKENIZER),
        ]);
        assert_eq!(name(&files.hugging_face), "config.json");
        assert_eq!(name(&files.open_clip), "open_clip_config.json");
        assert_eq!(name(&files.image_processor), "preprocessor_config.json");
        assert_eq!(name(&files.processor), "processor_config.json");
        assert_eq!(name(&files.tokenizer), "tokenizer.json");
        for known in [
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
        ] {
            let copies = [".bak", "~"].map(|suffix| format!("{known}{suffix}"));
            let names = [known, &copies[0], &copies[1], "a.json~"];
            let folder = directory(&names.map(|name| (name, INDEX)));
            let files = Files::in_directory(folder.path(), None).unwrap();
            assert_eq!(name(&files.weights), known);
        }
    }

    #[test]
    fn other_names_are_used_where_the_known_ones_are_absent() {
        let (_folder, files) = found(&[
            ("a.json", HUGGING_FACE),
            ("a.json~", HUGGING_FACE),
            ("b.dat", TOKENIZER),
            ("c.dat", TOKENIZER),
            ("images.json", IMAGES),
        ]);
        assert_eq!(name(&files.hugging_face), "a.json");
        assert_eq!(name(&files.tokenizer), "c.dat");
        assert_eq!(name(&files.image_processor), "images.json");
        // The image settings are in a file with a known name.
        let (_folder, files) = found(&[
            ("preprocessor_config.json~", IMAGES),
            ("processor_config.json", PROCESSOR),
        ]);
        assert_eq!(name(&files.image_processor), "");
        assert_eq!(name(&files.processor), "processor_config.json");
    }

    #[test]
    fn only_a_file_with_a_known_name_must_be_json() {
        let others = [
            ("results.jsonl", "{\"a\": 1}\n{\"a\": 2}\n"),
            ("chat_template.jinja", "{% for message in messages %}"),
            ("config.json~", "{\"vision_config\": "),
        ];
        let weights = ("model.safetensors", "not opened here");
        let folder = directory(&[&others[..], &[weights]].concat());
        let files = Files::in_directory(folder.path(), None).unwrap();
        assert_eq!(name(&files.weights), "model.safetensors");
        assert_eq!(name(&files.hugging_face), "");
        for known in ["config.json", "tokenizer.json", "model.safetensors"] {
            fs::write(folder.path().join(known), "{\"vision_config\": ").unwrap();
            let error = Files::in_directory(folder.path(), None).unwrap_err();
            let message = error.to_string();
            assert!(
                message.contains(&format!("{known}: it is not JSON")),
                "{message}"
            );
            fs::remove_file(folder.path().join(known)).unwrap();
        }
    }

    #[test]
    fn a_large_file_is_refused_under_a_known_name_and_passed_over_under_another() {
        let folder = directory(&[
            ("tokenizer.json", TOKENIZER),
            ("config.json", HUGGING_FACE),
            ("other.json", HUGGING_FACE),
        ]);
        let role = |name: &str, size| json_role(&folder.path().join(name), size);
        let refused = |limit| {
            Err(format!(
                "it has {} bytes, at most {limit} are read",
                limit + 1
            ))
        };
        let (limit, of_tokenizer) = (MAX_JSON_BYTES, MAX_TOKENIZER_BYTES);
        assert_eq!(role("config.json", limit), Ok(Some(JsonRole::HuggingFace)));
        assert_eq!(role("config.json", limit + 1), refused(limit));
        assert_eq!(role("other.json", limit), Ok(Some(JsonRole::HuggingFace)));
        assert_eq!(role("other.json", limit + 1), Ok(None));
        let tokenizer = Ok(Some(JsonRole::Tokenizer));
        assert_eq!(role("tokenizer.json", of_tokenizer), tokenizer);
        assert_eq!(
            role("tokenizer.json", of_tokenizer + 1),
            refused(of_tokenizer)
        );
    }

    #[test]
    fn weights_with_a_usual_name_come_before_their_copies() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
        let clip = data.join("clip/tiny/model.safetensors");
        let pickle = data.join("zoo/hf_clip/pytorch_model.bin");
        let readme = data.join("zoo/manifest.json");
        let chosen = |files: &[(&str, &Path)]| {
            let folder = tempfile::tempdir().unwrap();
            for (name, from) in files {
                fs::copy(from, folder.path().join(name)).unwrap();
            }
            Files::in_directory(folder.path(), None).map(|files| name(&files.weights).to_owned())
        };
        let copies = [
            ("model.safetensors", &*clip),
            ("model.safetensors.bak", &*clip),
            ("model.safetensors~", &*clip),
            ("model (copy).safetensors", &*clip),
        ];
        assert_eq!(chosen(&copies).unwrap(), "model.safetensors");
        let of_a_copy = [
            ("pytorch_model.bin", &*pickle),
            ("model.safetensors~", &*clip),
        ];
        assert_eq!(chosen(&of_a_copy).unwrap(), "pytorch_model.bin");
        let other_names = [("notes.bin", &*readme), ("a.dat", &*clip)];
        assert_eq!(chosen(&other_names).unwrap(), "a.dat");
        let error = chosen(&[("a.safetensors", &*clip), ("b.safetensors", &*clip)]).unwrap_err();
        assert!(
            matches!(error, CheckpointError::SeveralWeights { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_file_with_a_known_name_is_not_replaced_by_its_copy() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
        let clip = data.join("clip/tiny/model.safetensors");
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("model.safetensors.bak");
        fs::copy(&clip, copy).unwrap();
        let damaged = &fs::read(&clip).unwrap()[..1000];
        fs::write(folder.path().join("model.safetensors"), damaged).unwrap();
        let files = Files::in_directory(folder.path(), None).unwrap();
        assert_eq!(name(&files.weights), "model.safetensors");
    }

    #[test]
    fn sizes_of_tensors_without_values_do_not_overflow() {
        // A tensor with a dimension of zero may have any others.
        let shapes = [
            ("visual.layer1.0.conv1.weight", vec![0]),
            ("visual.attnpool.positional_embedding", vec![0, 1 << 62]),
            ("visual.attnpool.c_proj.weight", vec![0, 1]),
            ("token_embedding.weight", vec![0, 64]),
            ("positional_embedding", vec![0, 64]),
            ("transformer.resblocks.0.mlp.c_fc.weight", vec![0, 64]),
        ];
        let tensors: Vec<String> = shapes
            .iter()
            .map(|(name, shape): &(_, Vec<u64>)| {
                format!(
                    r#""{name}": {{"dtype": "F32", "shape": {shape:?}, "data_offsets": [0, 0]}}"#
                )
            })
            .collect();
        let header = format!("{{{}}}", tensors.join(", "));
        let length = (header.len() as u64).to_le_bytes();
        let file = [&length, header.as_bytes()].concat();
        let weights = WeightFile::from_bytes(file, Path::new("w.safetensors")).unwrap();
        let options = LoadOptions {
            activation: Some(Activation::QuickGelu),
            ..LoadOptions::default()
        };
        let error = infer(&weights, KeyLayout::OpenAi, &options).unwrap_err();
        assert!(error.to_string().contains("is out of range"), "{error}");
    }
}

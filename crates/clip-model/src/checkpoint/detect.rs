//! What a path holds: which of its files are weights, configuration, tokenizer and image settings,
//! whose names the weights use, and, where no file says so, what shape the model has. Told from the
//! content of the files, never from their names.

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

/// JSON files larger than this are not looked into, except tokenizers (Gemma's has 34 MB).
const LARGEST_JSON: u64 = 128 << 20;

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

/// What a JSON file is for.
enum Json {
    HuggingFace,
    OpenClip,
    Index,
    Tokenizer,
    ImageProcessor,
    Processor,
}

impl Files {
    /// The files of a directory, or a weights file and what lies beside it.
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

    /// With `weights` given the weights in the directory are not looked for.
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
            let (head, size) = start_of(&path).map_err(|e| CheckpointError::io(&path, e))?;
            match head.iter().find(|b| !b.is_ascii_whitespace()) {
                _ if head.starts_with(b"PK\x03\x04") || is_pickle(&head) => pickles.push(path),
                _ if is_safetensors(&head) => safetensors.push(path),
                Some(b'{') if size <= LARGEST_JSON => match json_kind(&path) {
                    // Of what merely lies beside a named file, nothing is asked.
                    Err(reason) if weights.is_none() => {
                        return Err(CheckpointError::config(&path, "", reason));
                    }
                    Err(_) | Ok(None) => {}
                    Ok(Some(Json::HuggingFace)) => found.hugging_face = Some(path),
                    Ok(Some(Json::OpenClip)) => found.open_clip = Some(path),
                    Ok(Some(Json::Tokenizer)) => found.tokenizer = Some(path),
                    Ok(Some(Json::ImageProcessor)) => found.image_processor = Some(path),
                    Ok(Some(Json::Processor)) => found.processor = Some(path),
                    Ok(Some(Json::Index)) => indices.push(path),
                },
                _ if named_as_weights(&path) => unknown.push(path),
                _ => {}
            }
        }
        if found.weights.is_none() {
            // Shards are safetensors or pickles themselves; their index speaks for them.
            let candidates = [indices, safetensors, pickles, unknown]
                .into_iter()
                .find(|c| !c.is_empty())
                .ok_or_else(|| CheckpointError::NoWeights {
                    path: dir.to_owned(),
                })?;
            found.weights = Some(the_one(dir, candidates)?);
        }
        Ok(found)
    }

    /// The shape of the model and the image settings that come with it, for weights of this layout.
    pub(crate) fn config(
        &self,
        weights: &WeightFile<'_>,
        layout: KeyLayout,
        options: &LoadOptions,
    ) -> Result<(ClipConfig, Option<Preprocess>), CheckpointError> {
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
        let named = &options.architecture;
        let (mut config, preprocess) = match (named, layout, hugging_face(), open_clip()) {
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

    /// The image settings of `preprocessor_config.json` or `processor_config.json`; none where the
    /// layout has no such file.
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
            // Hugging Face's layout has a place for them, so they are asked for.
            Some(config) => Err(PreprocessError::NotFound {
                dir: config.parent().unwrap_or(Path::new(".")).to_owned(),
            }
            .into()),
            None => Ok(None),
        }
    }
}

/// Which of several weights files is meant. Repositories often hold a model both under Hugging
/// Face's names and under open_clip's: it is the former then.
fn the_one(dir: &Path, mut files: Vec<PathBuf>) -> Result<PathBuf, CheckpointError> {
    if files.len() > 1 {
        let layout = |file: &PathBuf| {
            let opened = WeightFile::open(file).ok()?;
            KeyLayout::of(opened.names())
        };
        let clips: Vec<_> = files
            .iter()
            .filter_map(|file| Some((file, layout(file)?)))
            .collect();
        let native = |(_, layout): &&(&PathBuf, KeyLayout)| *layout == KeyLayout::HuggingFace;
        let chosen = match (clips.as_slice(), clips.iter().filter(native).count()) {
            ([one], _) => Some(one.0.clone()),
            (_, 1) => clips.iter().find(native).map(|(file, _)| (*file).clone()),
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

/// The first bytes of a file and its size.
fn start_of(path: &Path) -> std::io::Result<(Vec<u8>, u64)> {
    let file = fs::File::open(path)?;
    let size = file.metadata()?.len();
    let mut head = Vec::new();
    file.take(64).read_to_end(&mut head)?;
    Ok((head, size))
}

/// Protocol 2 and later begin with the opcode PROTO; older ones are only looked at when they are
/// named.
fn is_pickle(head: &[u8]) -> bool {
    matches!(head, [0x80, 2..=5, ..])
}

/// The length of a header, then the header. Whether the rest is there is for the reader to say.
fn is_safetensors(head: &[u8]) -> bool {
    head.get(8) == Some(&b'{') && head[4..8] == [0; 4]
}

/// Whether a file that is nothing known says it is weights: opening it then gives the reason why it
/// is none.
fn named_as_weights(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    matches!(extension, Some("safetensors" | "bin" | "pt" | "pth"))
}

/// What a JSON file is for, if it is for us, or why it is no JSON.
fn json_kind(path: &Path) -> Result<Option<Json>, String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    // Only the names of the entries at the top.
    let keys: HashMap<String, IgnoredAny> = serde_json::from_slice(&bytes)
        .map_err(|e| format!("it is not JSON ({e}): it is damaged or cut short, copy it again"))?;
    let has = |key: &str| keys.contains_key(key);
    Ok(Some(match () {
        () if has("weight_map") => Json::Index,
        () if has("model_cfg") || has("embed_dim") && has("vision_cfg") => Json::OpenClip,
        () if has("vision_config") && has("text_config") => Json::HuggingFace,
        () if has("added_tokens") && has("model") => Json::Tokenizer,
        () if has("image_processor") => Json::Processor,
        () if has("image_mean") || has("image_processor_type") || has("feature_extractor_type") => {
            Json::ImageProcessor
        }
        () => return Ok(None),
    }))
}

/// OpenAI's archives describe themselves; a `config.json` beside one belongs to something else.
fn is_torch_script(weights: &WeightFile<'_>) -> bool {
    weights.container() == Container::TorchScript
}

/// The shape of a model from the shapes of its tensors, as OpenAI's loader does it
/// (`clip/model.py`, `build_model`). Two things are not in the tensors: the number of attention
/// heads, which is that of the published architecture of the same sizes, or a 64th of the width;
/// and the activation.
fn infer(
    weights: &WeightFile<'_>,
    layout: KeyLayout,
    options: &LoadOptions,
) -> Result<ClipConfig, CheckpointError> {
    let path = weights.path();
    let shapes = Shapes {
        weights,
        names: Names::of(layout),
    };
    let needs_config = || CheckpointError::NeedsConfig {
        path: path.to_owned(),
    };
    let unclear = [shapes.names.siglip, "visual.trunk.pos_embed"];
    if unclear.iter().any(|name| weights.info(name).is_some()) {
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
    let published = published_like(&config);
    // The rule is OpenAI's; who writes Hugging Face's names has another number of heads more often
    // than not.
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
        // open_clip saves none of these.
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
        let reason = format!("derived from the tensors' shapes: {reason}; name the architecture");
        CheckpointError::config(path, key, reason)
    })?;
    Ok(config)
}

/// The published architecture whose towers are as wide and as deep.
fn published_like(config: &ClipConfig) -> Option<ClipConfig> {
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

/// The shapes of a file's tensors.
struct Shapes<'a> {
    weights: &'a WeightFile<'a>,
    names: Names,
}

impl Shapes<'_> {
    fn of(&self, name: &str) -> Result<&[usize], CheckpointError> {
        self.weights
            .info(name)
            .map(|info| info.shape.as_slice())
            .ok_or_else(|| CheckpointError::Missing {
                path: self.weights.path().to_owned(),
                name: name.to_owned(),
                near: None,
            })
    }

    fn two(&self, name: &str) -> Result<[usize; 2], CheckpointError> {
        let shape = self.of(name)?;
        shape.try_into().map_err(|_| CheckpointError::Shape {
            path: self.weights.path().to_owned(),
            name: name.to_owned(),
            found: shape.to_vec(),
            expected: vec![0, 0],
        })
    }

    /// Blocks whose names begin with `prefix` and their number.
    fn count(&self, prefix: &str) -> usize {
        let missing = (0..).find(|i| {
            let block = format!("{prefix}{i}.");
            !self.weights.names().any(|name| name.starts_with(&block))
        });
        missing.unwrap_or(0)
    }

    /// The hidden width of the MLP of the first of `blocks`.
    fn hidden(&self, blocks: &str) -> Result<usize, CheckpointError> {
        let weight = format!("{blocks}0.{}.weight", self.names.fc);
        Ok(self.of(&weight)?.first().copied().unwrap_or(0))
    }

    /// Image tower and width of the common space.
    fn resnet(&self) -> Result<(VisionConfig, usize), CheckpointError> {
        let [tokens, d] = self.two("visual.attnpool.positional_embedding")?;
        let stages = [1, 2, 3, 4].map(|stage| self.count(&format!("visual.layer{stage}.")));
        let vision = VisionConfig {
            hidden_size: d,
            intermediate_size: 4 * d,
            num_hidden_layers: stages.iter().sum(),
            patch_size: 32,
            image_size: 32 * side(tokens),
            kind: VisionKind::ResNet { stages },
            ..VisionConfig::default()
        };
        Ok((vision, self.two("visual.attnpool.c_proj.weight")?[0]))
    }

    /// Image tower and width of the common space.
    fn transformer(&self) -> Result<(VisionConfig, usize), CheckpointError> {
        let names = &self.names;
        let [tokens, d] = self.two(names.positions)?;
        let patch = self.of(names.patches)?.get(3).copied().unwrap_or(0);
        let vision = VisionConfig {
            hidden_size: d,
            intermediate_size: self.hidden(names.blocks)?,
            num_hidden_layers: self.count(names.blocks),
            patch_size: patch,
            image_size: patch * side(tokens),
            ..VisionConfig::default()
        };
        let [a, b] = self.two(names.projection)?;
        let projection_dim = if names.projection_is_transposed { a } else { b };
        Ok((vision, projection_dim))
    }

    fn text(&self) -> Result<TextConfig, CheckpointError> {
        let names = &self.names;
        let [vocabulary, width] = self.two(names.tokens)?;
        let [context, _] = self.two(names.text_positions)?;
        Ok(TextConfig {
            vocab_size: vocabulary,
            hidden_size: width,
            intermediate_size: self.hidden(names.text_blocks)?,
            num_hidden_layers: self.count(names.text_blocks),
            max_position_embeddings: context,
            // The end token is the largest id of these vocabularies.
            eos_token_id: 2,
            bos_token_id: u32::try_from(vocabulary.saturating_sub(2)).unwrap_or(0),
            pad_token_id: 0,
            kind: TextKind::Clip,
            ..TextConfig::default()
        })
    }
}

/// Patches along a side of the image, for so many tokens with the class token.
fn side(tokens: usize) -> usize {
    (tokens.saturating_sub(1) as f64).sqrt().round() as usize
}

/// The names that shapes are read from.
struct Names {
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

impl Names {
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

//! open_clip's model configurations.
//!
//! They are `open_clip/model_configs/*.json`, and the `open_clip_config.json` of its checkpoints,
//! which holds one of them as `model_cfg` and a `preprocess_cfg`.
//!
//! Field names and defaults are those of `open_clip/model.py`, classes `CLIPVisionCfg` and
//! `CLIPTextCfg`. open_clip gives a SigLIP image tower only as the name of a `timm` model. This
//! module writes its sizes as well, and reads both.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Activation, ClipConfig, TextConfig, TextKind, VisionConfig, VisionKind};
use crate::{error::CheckpointError, preprocess::Preprocess};

/// Keys that affect neither the tensors nor the computation in evaluation.
const IGNORED_KEYS: [&str; 12] = [
    "patch_dropout",
    "output_tokens",
    "hf_tokenizer_name",
    "tokenizer_mode",
    "tokenizer_kwargs",
    "timm_model_pretrained",
    "timm_drop",
    "timm_drop_path",
    "timm_proj_bias",
    "timm_pool",
    "timm_proj",
    "eos_id",
];

#[derive(Debug, Deserialize)]
struct ModelCfg {
    embed_dim: usize,
    #[serde(default)]
    quick_gelu: bool,
    #[serde(default)]
    custom_text: bool,
    init_logit_scale: Option<f64>,
    init_logit_bias: Option<f64>,
    vision_cfg: VisionCfg,
    text_cfg: TextCfg,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct VisionCfg {
    #[serde(default)]
    layers: Layers,
    width: Option<usize>,
    head_width: Option<usize>,
    mlp_ratio: Option<f64>,
    /// Not open_clip's; for sizes that the ratio cannot express.
    mlp_width: Option<usize>,
    patch_size: Option<usize>,
    #[serde(default = "default_image_size")]
    image_size: ImageSize,
    timm_model_name: Option<String>,
    #[serde(default)]
    pool_type: Option<String>,
    norm_kwargs: Option<NormKwargs>,
    act_kwargs: Option<ActKwargs>,
    /// Not open_clip's: activation and layer norm epsilon of a SigLIP tower.
    act: Option<Activation>,
    norm_eps: Option<f64>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct TextCfg {
    #[serde(default = "default_context")]
    context_length: usize,
    #[serde(default = "default_vocabulary")]
    vocab_size: usize,
    #[serde(default = "default_text_width")]
    width: usize,
    #[serde(default = "default_text_heads")]
    heads: usize,
    #[serde(default = "default_text_layers")]
    layers: usize,
    mlp_ratio: Option<f64>,
    mlp_width: Option<usize>,
    #[serde(default)]
    proj_bias: bool,
    #[serde(default)]
    no_causal_mask: bool,
    pool_type: Option<String>,
    pad_id: Option<u32>,
    norm_kwargs: Option<NormKwargs>,
    act_kwargs: Option<ActKwargs>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Layers {
    Blocks(usize),
    Stages([usize; 4]),
    #[default]
    Unspecified,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum ImageSize {
    Square(usize),
    HeightWidth([usize; 2]),
}

#[derive(Debug, Deserialize)]
struct NormKwargs {
    eps: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct ActKwargs {
    approximate: Option<String>,
}

fn default_image_size() -> ImageSize {
    ImageSize::Square(224)
}
fn default_context() -> usize {
    77
}
fn default_vocabulary() -> usize {
    49408
}
fn default_text_width() -> usize {
    512
}
fn default_text_heads() -> usize {
    8
}
fn default_text_layers() -> usize {
    12
}

/// Image settings (`open_clip/transform.py`, class `PreprocessCfg`).
#[derive(Debug, Serialize, Deserialize)]
struct PreprocessCfg {
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<Value>,
    mean: Option<[f64; 3]>,
    std: Option<[f64; 3]>,
    interpolation: Option<String>,
    resize_mode: Option<String>,
}

/// Contents of an `open_clip_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OpenClipConfig {
    pub model: ClipConfig,
    /// True if the tensors of the text tower have the prefix `text.` (class `CustomTextCLIP`).
    pub custom_text: bool,
    /// True if the model uses the tokenizer of its folder instead of OpenAI's.
    pub own_tokenizer: bool,
    pub preprocess: Option<Preprocess>,
}

impl ClipConfig {
    /// Parses an `open_clip_config.json`, or a bare model configuration of open_clip; `path`
    /// appears in errors only.
    ///
    /// # Errors
    /// [`CheckpointError`] with the file and the key that is missing, invalid or not supported.
    pub fn from_open_clip_json(text: &str, path: &Path) -> Result<Self, CheckpointError> {
        Ok(OpenClipConfig::from_json(text, path)?.model)
    }
}

impl OpenClipConfig {
    /// Parses an `open_clip_config.json` or a bare model configuration; `path` appears in errors
    /// only.
    pub(crate) fn from_json(text: &str, path: &Path) -> Result<Self, CheckpointError> {
        let file = File { path };
        let root: Map<String, Value> = serde_json::from_str(text)
            .map_err(|e| file.bad("", format!("it is not a JSON object: {e}")))?;
        let (model, preprocess) = match root.get("model_cfg") {
            Some(model) => (model.clone(), root.get("preprocess_cfg").cloned()),
            None => (Value::Object(root), None),
        };
        let cfg: ModelCfg =
            serde_json::from_value(model).map_err(|e| file.bad("model_cfg", e.to_string()))?;
        let custom_text = cfg.custom_text;
        let own_tokenizer = cfg.text_cfg.other.contains_key("hf_tokenizer_name");
        let model = file.model(cfg)?;
        model
            .check()
            .map_err(|(key, reason)| file.bad(key, reason))?;
        let preprocess = match preprocess {
            None => None,
            Some(value) => {
                let cfg: PreprocessCfg = serde_json::from_value(value)
                    .map_err(|e| file.bad("preprocess_cfg", e.to_string()))?;
                Some(file.preprocess(&cfg, &model)?)
            }
        };
        Ok(Self {
            model,
            custom_text,
            own_tokenizer,
            preprocess,
        })
    }

    /// Returns the text of an `open_clip_config.json`.
    pub(crate) fn to_json(&self) -> String {
        let (v, t) = (&self.model.vision, &self.model.text);
        let ratio = |hidden: usize, width: usize| hidden as f64 / width as f64;
        let mut vision = Map::new();
        let mut set = |key: &str, value: Value| {
            vision.insert(key.to_owned(), value);
        };
        set("image_size", json!(v.image_size));
        match v.kind {
            VisionKind::ResNet { stages } => {
                set("layers", json!(stages));
                set("width", json!(v.hidden_size / 32));
                set("patch_size", Value::Null);
            }
            VisionKind::Clip | VisionKind::Siglip => {
                set("layers", json!(v.num_hidden_layers));
                set("width", json!(v.hidden_size));
                set("head_width", json!(v.hidden_size / v.num_attention_heads));
                set(
                    "mlp_ratio",
                    json!(ratio(v.intermediate_size, v.hidden_size)),
                );
                set("patch_size", json!(v.patch_size));
            }
        }
        // open_clip builds SigLIP's image tower from the name alone; the sizes are for this crate.
        if v.kind == VisionKind::Siglip {
            set("mlp_width", json!(v.intermediate_size));
            set("timm_model_name", json!(timm_name(v)));
            set("timm_model_pretrained", json!(false));
            set("timm_pool", json!("map"));
            set("timm_proj", json!("none"));
        }
        if v.kind == VisionKind::Siglip {
            set("act", json!(v.hidden_act));
            set("norm_eps", json!(v.layer_norm_eps));
        } else if v.hidden_act == Activation::GeluTanh {
            set("act_kwargs", json!({"approximate": "tanh"}));
        }
        if v.kind == VisionKind::Clip && v.layer_norm_eps != 1e-5 {
            set("norm_kwargs", json!({"eps": v.layer_norm_eps}));
        }

        let mut text = json!({
            "context_length": t.max_position_embeddings,
            "vocab_size": t.vocab_size,
            "width": t.hidden_size,
            "heads": t.num_attention_heads,
            "layers": t.num_hidden_layers,
            "mlp_ratio": ratio(t.intermediate_size, t.hidden_size),
        });
        if self.own_tokenizer {
            // With a local folder, open_clip loads the tokenizer from it and ignores the name.
            text["hf_tokenizer_name"] = json!("local-dir");
        }
        if t.kind == TextKind::Siglip {
            text["tokenizer_kwargs"] = json!({"clean": "canonicalize"});
            text["no_causal_mask"] = json!(true);
            text["proj_bias"] = json!(true);
            text["pool_type"] = json!("last");
            text["pad_id"] = json!(t.pad_token_id);
        }
        if t.layer_norm_eps != 1e-5 {
            text["norm_kwargs"] = json!({"eps": t.layer_norm_eps});
        }
        if t.hidden_act == Activation::GeluTanh {
            text["act_kwargs"] = json!({"approximate": "tanh"});
        }

        let mut model = json!({"embed_dim": self.model.projection_dim});
        if t.hidden_act == Activation::QuickGelu {
            model["quick_gelu"] = json!(true);
        }
        if self.custom_text {
            model["custom_text"] = json!(true);
        }
        if let Some(bias) = self.model.logit_bias_init {
            model["init_logit_bias"] = json!(bias);
        }
        model["vision_cfg"] = Value::Object(vision);
        model["text_cfg"] = text;
        let mut root = json!({"model_cfg": model});
        if let Some(p) = &self.preprocess {
            root["preprocess_cfg"] = json!({
                "size": [v.image_size, v.image_size],
                "mode": "RGB",
                "mean": p.mean,
                "std": p.std,
                "interpolation": "bicubic",
                "resize_mode": if p.crop.is_some() { "shortest" } else { "squash" },
            });
        }
        format!("{root:#}\n")
    }
}

/// Parser of a configuration that puts its path into errors.
struct File<'a> {
    path: &'a Path,
}

impl File<'_> {
    fn bad(&self, key: &str, reason: String) -> CheckpointError {
        CheckpointError::config(self.path, key, reason)
    }

    /// Refuses keys that request something this crate does not implement.
    fn check_unknown_keys(
        &self,
        part: &str,
        other: &Map<String, Value>,
    ) -> Result<(), CheckpointError> {
        for (key, value) in other {
            let off = matches!(value, Value::Null | Value::Bool(false));
            let learnable = key == "pos_embed_type" && value == "learnable";
            let linear = key == "proj_type" && value == "linear";
            if !off && !learnable && !linear && !IGNORED_KEYS.contains(&key.as_str()) {
                let key = format!("{part}{key}");
                return Err(self.bad(&key, format!("{value} is not supported")));
            }
        }
        Ok(())
    }

    fn model(&self, cfg: ModelCfg) -> Result<ClipConfig, CheckpointError> {
        self.check_unknown_keys("", &cfg.other)?;
        let default_activation = if cfg.quick_gelu {
            Activation::QuickGelu
        } else {
            Activation::Gelu
        };
        let vision = self.vision(cfg.vision_cfg, default_activation)?;
        let text = self.text(cfg.text_cfg, default_activation)?;
        let scale = if cfg.init_logit_bias.is_some() {
            10.0_f64.ln()
        } else {
            2.6592
        };
        Ok(ClipConfig {
            vision,
            text,
            projection_dim: cfg.embed_dim,
            logit_scale_init: cfg.init_logit_scale.unwrap_or(scale),
            logit_bias_init: cfg.init_logit_bias,
        })
    }

    fn vision(
        &self,
        cfg: VisionCfg,
        default_activation: Activation,
    ) -> Result<VisionConfig, CheckpointError> {
        self.check_unknown_keys("vision_cfg.", &cfg.other)?;
        let image_size = match cfg.image_size {
            ImageSize::Square(side) => side,
            ImageSize::HeightWidth([h, w]) if h == w => h,
            ImageSize::HeightWidth(sides) => {
                return Err(self.bad(
                    "vision_cfg.image_size",
                    format!("{sides:?} is not a square"),
                ));
            }
        };
        if cfg.pool_type.as_deref().is_some_and(|p| p != "tok") {
            return Err(self.bad(
                "vision_cfg.pool_type",
                format!("{:?} is not supported", cfg.pool_type),
            ));
        }
        let activation = activation(cfg.act_kwargs.as_ref(), default_activation);
        let epsilon = cfg
            .norm_eps
            .or(cfg.norm_kwargs.as_ref().and_then(|n| n.eps));
        if let Layers::Stages(stages) = cfg.layers {
            let width = cfg.width.unwrap_or(64);
            // The attention pooling has heads of width 64 (open_clip `model.py`,
            // `_build_vision_tower`: `width * 32 // head_width`).
            let d = width.saturating_mul(32);
            return Ok(VisionConfig {
                hidden_size: d,
                intermediate_size: 4 * d,
                num_hidden_layers: stages.iter().copied().fold(0, usize::saturating_add),
                num_attention_heads: d / cfg.head_width.unwrap_or(64).max(1),
                image_size,
                patch_size: 32,
                hidden_act: default_activation,
                layer_norm_eps: 1e-5,
                kind: VisionKind::ResNet { stages },
            });
        }
        // Defaults of the family, which explicit fields override below.
        let (mut sizes, kind, activation, epsilon) = match &cfg.timm_model_name {
            None => {
                let sizes = Sizes {
                    width: 768,
                    layers: 12,
                    heads: 12,
                    hidden: 3072,
                    patch: 16,
                };
                (sizes, VisionKind::Clip, activation, epsilon.unwrap_or(1e-5))
            }
            Some(name) => {
                let (sizes, tanh) = self.timm(name, &cfg)?;
                let timm_activation = if tanh {
                    Activation::GeluTanh
                } else {
                    activation
                };
                let activation = cfg.act.unwrap_or(timm_activation);
                let epsilon = epsilon.unwrap_or(1e-6);
                (sizes, VisionKind::Siglip, activation, epsilon)
            }
        };
        let head = cfg.head_width.unwrap_or(if kind == VisionKind::Clip {
            64
        } else {
            sizes.width / sizes.heads
        });
        if let Some(width) = cfg.width {
            sizes.width = width;
        }
        if let Layers::Blocks(layers) = cfg.layers {
            sizes.layers = layers;
        }
        if let Some(patch) = cfg.patch_size {
            sizes.patch = patch;
        }
        let hidden = match (cfg.mlp_width, cfg.mlp_ratio) {
            (Some(hidden), _) => hidden,
            (None, Some(ratio)) => hidden_width(sizes.width, ratio),
            (None, None) if cfg.width.is_some() => 4 * sizes.width,
            (None, None) => sizes.hidden,
        };
        Ok(VisionConfig {
            hidden_size: sizes.width,
            intermediate_size: hidden,
            num_hidden_layers: sizes.layers,
            num_attention_heads: sizes.width / head.max(1),
            image_size,
            patch_size: sizes.patch,
            hidden_act: activation,
            layer_norm_eps: epsilon,
            kind,
        })
    }

    /// Returns the sizes of a timm tower, and whether it uses the tanh approximation of GELU.
    fn timm(&self, name: &str, cfg: &VisionCfg) -> Result<(Sizes, bool), CheckpointError> {
        // A tower with explicit sizes need not be one that timm has.
        let explicit = name.contains("_siglip_")
            && cfg.width.is_some()
            && cfg.head_width.is_some()
            && cfg.patch_size.is_some();
        timm_sizes(name)
            .or_else(|| explicit.then(|| timm_sizes("vit_base_patch16_siglip_224"))?)
            .ok_or_else(|| {
                self.bad(
                    "vision_cfg.timm_model_name",
                    format!("`{name}` is not supported, only SigLIP towers are"),
                )
            })
    }

    fn text(
        &self,
        cfg: TextCfg,
        default_activation: Activation,
    ) -> Result<TextConfig, CheckpointError> {
        self.check_unknown_keys("text_cfg.", &cfg.other)?;
        let pool = cfg.pool_type.as_deref().unwrap_or("argmax");
        let kind = match (pool, cfg.no_causal_mask, cfg.proj_bias) {
            ("argmax", false, false) => TextKind::Clip,
            ("last", true, true) => TextKind::Siglip,
            other => {
                return Err(self.bad(
                    "text_cfg.pool_type",
                    format!(
                        "a tower with (pool_type, no_causal_mask, proj_bias) = {other:?} is not \
                         supported, only those of CLIP and SigLIP are"
                    ),
                ));
            }
        };
        let largest = u32::try_from(cfg.vocab_size.saturating_sub(1)).unwrap_or(u32::MAX);
        Ok(TextConfig {
            vocab_size: cfg.vocab_size,
            hidden_size: cfg.width,
            intermediate_size: cfg
                .mlp_width
                .unwrap_or_else(|| hidden_width(cfg.width, cfg.mlp_ratio.unwrap_or(4.0))),
            num_hidden_layers: cfg.layers,
            num_attention_heads: cfg.heads,
            max_position_embeddings: cfg.context_length,
            hidden_act: activation(cfg.act_kwargs.as_ref(), default_activation),
            layer_norm_eps: cfg.norm_kwargs.and_then(|n| n.eps).unwrap_or(1e-5),
            bos_token_id: largest.saturating_sub(1),
            // `argmax` pools at the largest id, which is that of the end token.
            eos_token_id: match kind {
                TextKind::Clip => 2,
                TextKind::Siglip => 1,
            },
            pad_token_id: cfg.pad_id.unwrap_or(match kind {
                TextKind::Clip => 0,
                // SigLIP 1 pads with `</s>`, SigLIP 2 (Gemma's vocabulary) with `<pad>`.
                TextKind::Siglip if cfg.vocab_size == 256_000 => 0,
                TextKind::Siglip => 1,
            }),
            kind,
        })
    }

    fn preprocess(
        &self,
        cfg: &PreprocessCfg,
        model: &ClipConfig,
    ) -> Result<Preprocess, CheckpointError> {
        if let Some(other) = cfg.interpolation.as_deref().filter(|i| *i != "bicubic") {
            return Err(self.bad(
                "preprocess_cfg.interpolation",
                format!("`{other}` is not supported, only `bicubic`"),
            ));
        }
        let size = model.vision.image_size as u32;
        let mut preprocess = match cfg.resize_mode.as_deref() {
            None | Some("shortest") => Preprocess::clip(size),
            Some("squash") => Preprocess::siglip(size),
            Some(other) => {
                return Err(self.bad(
                    "preprocess_cfg.resize_mode",
                    format!("`{other}` is not supported, only `shortest` and `squash`"),
                ));
            }
        };
        let clip = Preprocess::clip(size);
        preprocess.mean = cfg.mean.unwrap_or(clip.mean);
        preprocess.std = cfg.std.unwrap_or(clip.std);
        let positive = |x: &f64| x.is_finite() && *x > 0.0;
        if !preprocess.std.iter().all(positive) || !preprocess.mean.iter().all(|x| x.is_finite()) {
            return Err(self.bad(
                "preprocess_cfg.std",
                "mean and std must be finite, and std must be positive".to_owned(),
            ));
        }
        Ok(preprocess)
    }
}

/// Returns the activation that `act_kwargs` requests, or the default one.
fn activation(kwargs: Option<&ActKwargs>, default_activation: Activation) -> Activation {
    match kwargs.and_then(|k| k.approximate.as_deref()) {
        Some("tanh") => Activation::GeluTanh,
        _ => default_activation,
    }
}

/// `int(width * ratio)`, as in Python.
fn hidden_width(width: usize, ratio: f64) -> usize {
    (width as f64 * ratio) as usize
}

struct Sizes {
    width: usize,
    layers: usize,
    heads: usize,
    hidden: usize,
    patch: usize,
}

/// `(size in the name, width, layers, heads, hidden)` of timm's SigLIP towers
/// (`timm/models/vision_transformer.py`).
const TIMM: [(&str, usize, usize, usize, usize); 4] = [
    ("base", 768, 12, 12, 3072),
    ("large", 1024, 24, 16, 4096),
    ("so400m", 1152, 27, 16, 4304),
    ("giantopt", 1536, 40, 16, 6144),
];

/// Returns the sizes of a timm SigLIP tower (`vit_base_patch16_siglip_224`, …), and whether it uses
/// the tanh approximation of GELU. The towers added for SigLIP 2 do
/// (`timm/models/vision_transformer.py`, `act_layer='gelu_tanh'`).
fn timm_sizes(name: &str) -> Option<(Sizes, bool)> {
    let rest = name.strip_prefix("vit_")?;
    let (size, rest) = rest.split_once("_patch")?;
    let (patch, image) = rest.split_once("_siglip_")?;
    let (patch, image): (usize, usize) = (patch.parse().ok()?, image.parse().ok()?);
    let (_, width, layers, heads, hidden) = TIMM.into_iter().find(|t| t.0 == size)?;
    let tanh = matches!(
        (size, patch, image),
        ("base", 32, _) | ("large", _, 512) | ("so400m", 16, _) | ("giantopt", _, _)
    );
    Some((
        Sizes {
            width,
            layers,
            heads,
            hidden,
            patch,
        },
        tanh,
    ))
}

/// Returns timm's name of a SigLIP tower. A tower of other sizes gets the name of a `base` one.
fn timm_name(v: &VisionConfig) -> String {
    let size = TIMM
        .into_iter()
        .find(|t| (t.1, t.2) == (v.hidden_size, v.num_hidden_layers))
        .map_or("base", |t| t.0);
    format!("vit_{size}_patch{}_siglip_{}", v.patch_size, v.image_size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{architecture, architectures};

    fn parse(text: &str) -> Result<OpenClipConfig, CheckpointError> {
        OpenClipConfig::from_json(text, Path::new("open_clip_config.json"))
    }

    #[test]
    fn every_architecture_round_trips() {
        for (name, config) in architectures() {
            let custom_text = config.text.kind == TextKind::Siglip;
            let written = OpenClipConfig {
                preprocess: Some(config.default_preprocess()),
                model: config,
                custom_text,
                own_tokenizer: custom_text,
            };
            assert_eq!(parse(&written.to_json()).unwrap(), written, "{name}");
        }
    }

    #[test]
    fn known_sizes() {
        let g = architecture("ViT-g-14").unwrap();
        assert_eq!(
            (g.vision.num_attention_heads, g.vision.intermediate_size),
            (16, 6144)
        );
        assert_eq!(g.vision.hidden_act, Activation::Gelu);
        let quick = architecture("ViT-B-16-quickgelu").unwrap();
        assert_eq!(quick.text.hidden_act, Activation::QuickGelu);
        let so = architecture("ViT-SO400M-14-SigLIP-384").unwrap();
        assert_eq!((so.vision.grid(), so.text.intermediate_size), (27, 4304));
    }

    #[test]
    fn unsupported_keys_are_refused_by_name() {
        let with = |vision: &str, text: &str| {
            format!(r#"{{"embed_dim": 512, "vision_cfg": {{{vision}}}, "text_cfg": {{{text}}}}}"#)
        };
        for (text, key) in [
            (with(r#""no_ln_pre": true"#, ""), "vision_cfg.no_ln_pre"),
            (with(r#""pool_type": "avg""#, ""), "vision_cfg.pool_type"),
            (with(r#""attentional_pool": true"#, ""), "attentional_pool"),
            (
                with(r#""timm_model_name": "eva02_base_patch16""#, ""),
                "timm_model_name",
            ),
            (with(r#""image_size": [224, 256]"#, ""), "image_size"),
            (
                with("", r#""hf_model_name": "roberta-base""#),
                "hf_model_name",
            ),
            (with("", r#""pool_type": "eos""#), "text_cfg.pool_type"),
            ("[1, 2]".to_owned(), "not a JSON object"),
            ("{}".to_owned(), "embed_dim"),
            (with(r#""width": -3"#, ""), "model_cfg"),
            (with(r#""width": 701"#, ""), "num_attention_heads"),
        ] {
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.contains(key), "{message} should name {key}");
        }
        let bad = r#"{"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}},
            "preprocess_cfg": {"interpolation": "nearest"}}"#;
        assert!(
            parse(bad)
                .unwrap_err()
                .to_string()
                .contains("interpolation")
        );
    }
}

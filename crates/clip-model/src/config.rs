//! The shape of a CLIP model, read from and written as Hugging Face's `config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::CheckpointError;

/// The pointwise non-linearity of the MLPs.
///
/// The activation is not visible in the weights: OpenAI's checkpoints use [`QuickGelu`](Self::QuickGelu),
/// most of open_clip's use [`Gelu`](Self::Gelu).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x · σ(1.702 x)` (OpenAI CLIP `clip/model.py`, class `QuickGELU`).
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// The exact, erf-based GELU.
    #[serde(rename = "gelu")]
    Gelu,
}

/// The image tower. The defaults are those of `transformers`' `CLIPVisionConfig` (ViT-B/32), which
/// matter because `transformers` may omit values that equal them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Hidden width of each MLP.
    pub intermediate_size: usize,
    /// Number of residual blocks.
    pub num_hidden_layers: usize,
    /// Number of attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Side of the square input image in pixels.
    pub image_size: usize,
    /// Side of a square patch in pixels; divides `image_size`.
    pub patch_size: usize,
    /// Non-linearity of the MLPs.
    pub hidden_act: Activation,
    /// Added to the variance in every layer norm.
    pub layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl VisionConfig {
    /// Number of tokens: the class token and one a patch.
    pub fn tokens(&self) -> usize {
        let grid = self.image_size / self.patch_size;
        grid * grid + 1
    }
}

/// The text tower. The defaults are those of `transformers`' `CLIPTextConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Number of rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Hidden width of each MLP.
    pub intermediate_size: usize,
    /// Number of residual blocks.
    pub num_hidden_layers: usize,
    /// Number of attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Longest text in tokens, specials included.
    pub max_position_embeddings: usize,
    /// Non-linearity of the MLPs.
    pub hidden_act: Activation,
    /// Added to the variance in every layer norm.
    pub layer_norm_eps: f64,
    /// Id of the start token.
    pub bos_token_id: u32,
    /// Id of the end token. The value 2 is a historical mistake of the original conversions and means
    /// "pool at the largest id" (`transformers` `modeling_clip.py`, `CLIPTextTransformer.forward`).
    pub eos_token_id: u32,
    /// Id of the padding token; written for other programs, not used here.
    pub pad_token_id: u32,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            bos_token_id: 49406,
            eos_token_id: 49407,
            pad_token_id: 1,
        }
    }
}

/// The shape of a CLIP model: what `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// The image tower.
    pub vision: VisionConfig,
    /// The text tower.
    pub text: TextConfig,
    /// Width of the joint space.
    pub projection_dim: usize,
    /// Initial value of the logarithm of the logit scale.
    pub logit_scale_init: f64,
}

impl ClipConfig {
    /// OpenAI's ViT-B/32: 151,277,313 parameters.
    pub fn vit_b_32() -> Self {
        Self {
            vision: VisionConfig::default(),
            text: TextConfig::default(),
            projection_dim: 512,
            logit_scale_init: 2.6592,
        }
    }

    /// OpenAI's ViT-B/16: 149,620,737 parameters.
    pub fn vit_b_16() -> Self {
        let mut config = Self::vit_b_32();
        config.vision.patch_size = 16;
        config
    }

    /// OpenAI's ViT-L/14: 427,616,513 parameters.
    pub fn vit_l_14() -> Self {
        Self {
            vision: VisionConfig {
                hidden_size: 1024,
                intermediate_size: 4096,
                num_hidden_layers: 24,
                num_attention_heads: 16,
                patch_size: 14,
                ..VisionConfig::default()
            },
            text: TextConfig {
                hidden_size: 768,
                intermediate_size: 3072,
                num_attention_heads: 12,
                ..TextConfig::default()
            },
            projection_dim: 768,
            logit_scale_init: 2.6592,
        }
    }

    /// Number of parameters of a model of this shape.
    pub fn parameters(&self) -> usize {
        let block = |d: usize, f: usize| 4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d;
        let (v, t, e) = (&self.vision, &self.text, self.projection_dim);
        let d = v.hidden_size;
        let vision = 3 * v.patch_size * v.patch_size * d
            + d
            + v.tokens() * d
            + 4 * d
            + v.num_hidden_layers * block(d, v.intermediate_size)
            + d * e;
        let w = t.hidden_size;
        let text = t.vocab_size * w
            + t.max_position_embeddings * w
            + t.num_hidden_layers * block(w, t.intermediate_size)
            + 2 * w
            + w * e;
        vision + text + 1
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file and the key that is missing or does not fit.
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let text = std::fs::read_to_string(path).map_err(|e| CheckpointError::io(path, e))?;
        Self::from_json(&text, path)
    }

    /// Parses the text of a `config.json`; `path` is only named in errors.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn from_json(text: &str, path: &Path) -> Result<Self, CheckpointError> {
        let bad = |key: &str, reason: String| CheckpointError::Config {
            path: path.to_owned(),
            key: key.to_owned(),
            reason,
        };
        let root: Map<String, Value> = serde_json::from_str(text)
            .map_err(|e| bad("", format!("it is not a JSON object: {e}")))?;
        if let Some(kind) = root.get("model_type").and_then(Value::as_str)
            && kind != "clip"
        {
            return Err(bad(
                "model_type",
                format!("`{kind}` is not supported, only `clip`"),
            ));
        }
        let part = |key: &str| -> Result<Value, CheckpointError> {
            root.get(key)
                .filter(|v| v.is_object())
                .cloned()
                .ok_or_else(|| bad(key, "this object is required".to_owned()))
        };
        let vision: VisionConfig = serde_json::from_value(part("vision_config")?)
            .map_err(|e| bad("vision_config", e.to_string()))?;
        let text: TextConfig = serde_json::from_value(part("text_config")?)
            .map_err(|e| bad("text_config", e.to_string()))?;
        let projection_dim = root
            .get("projection_dim")
            .ok_or_else(|| bad("projection_dim", "this number is required".to_owned()))?
            .as_u64()
            .ok_or_else(|| bad("projection_dim", "it is not a whole number".to_owned()))?
            as usize;
        let logit_scale_init = match root.get("logit_scale_init_value") {
            None => 2.6592,
            Some(value) => value
                .as_f64()
                .ok_or_else(|| bad("logit_scale_init_value", "it is not a number".to_owned()))?,
        };
        let config = Self {
            vision,
            text,
            projection_dim,
            logit_scale_init,
        };
        config.check().map_err(|(key, reason)| bad(key, reason))?;
        Ok(config)
    }

    /// The values a tower cannot be built from, with the key at fault.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let (v, t) = (&self.vision, &self.text);
        for (key, value) in [
            ("vision_config.hidden_size", v.hidden_size),
            ("vision_config.intermediate_size", v.intermediate_size),
            ("vision_config.num_hidden_layers", v.num_hidden_layers),
            ("vision_config.num_attention_heads", v.num_attention_heads),
            ("vision_config.image_size", v.image_size),
            ("vision_config.patch_size", v.patch_size),
            ("text_config.vocab_size", t.vocab_size),
            ("text_config.hidden_size", t.hidden_size),
            ("text_config.intermediate_size", t.intermediate_size),
            ("text_config.num_hidden_layers", t.num_hidden_layers),
            ("text_config.num_attention_heads", t.num_attention_heads),
            (
                "text_config.max_position_embeddings",
                t.max_position_embeddings,
            ),
            ("projection_dim", self.projection_dim),
        ] {
            // The upper bound keeps products of sizes far from overflow.
            if value == 0 || value > 1 << 24 {
                return Err((key, format!("{value} is out of range")));
            }
        }
        for (key, width, heads) in [
            (
                "vision_config.num_attention_heads",
                v.hidden_size,
                v.num_attention_heads,
            ),
            (
                "text_config.num_attention_heads",
                t.hidden_size,
                t.num_attention_heads,
            ),
        ] {
            if width % heads != 0 {
                return Err((
                    key,
                    format!("{heads} heads do not divide a width of {width}"),
                ));
            }
        }
        if v.image_size % v.patch_size != 0 {
            return Err((
                "vision_config.patch_size",
                format!(
                    "{} does not divide an image of {}",
                    v.patch_size, v.image_size
                ),
            ));
        }
        Ok(())
    }

    /// The text of a `config.json` that `transformers`' `CLIPModel` loads.
    pub fn to_json(&self) -> String {
        let with_type = |value: Value, kind: &str| {
            let mut object = match value {
                Value::Object(object) => object,
                _ => Map::new(),
            };
            object.insert("model_type".to_owned(), json!(kind));
            object.insert("projection_dim".to_owned(), json!(self.projection_dim));
            Value::Object(object)
        };
        let value = json!({
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "logit_scale_init_value": self.logit_scale_init,
            "vision_config": with_type(json!(self.vision), "clip_vision_model"),
            "text_config": with_type(json!(self.text), "clip_text_model"),
        });
        format!("{value:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ClipConfig, CheckpointError> {
        ClipConfig::from_json(text, Path::new("config.json"))
    }

    #[test]
    fn published_sizes_have_the_published_parameter_counts() {
        assert_eq!(ClipConfig::vit_b_32().parameters(), 151_277_313);
        assert_eq!(ClipConfig::vit_b_16().parameters(), 149_620_737);
        assert_eq!(ClipConfig::vit_l_14().parameters(), 427_616_513);
        let mut large = ClipConfig::vit_l_14();
        large.vision.image_size = 336;
        assert_eq!(large.parameters(), 427_944_193);
    }

    #[test]
    fn json_round_trips() {
        let mut config = ClipConfig::vit_l_14();
        config.vision.hidden_act = Activation::Gelu;
        config.text.layer_norm_eps = 1e-3;
        assert_eq!(parse(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn values_that_equal_the_defaults_may_be_omitted() {
        let text =
            r#"{"projection_dim": 512, "text_config": {}, "vision_config": {"patch_size": 16}}"#;
        assert_eq!(parse(text).unwrap().vision, ClipConfig::vit_b_16().vision);
    }

    #[test]
    fn errors_name_the_key() {
        for (text, key) in [
            ("[]", "not a JSON object"),
            (
                r#"{"projection_dim": 512, "vision_config": {}}"#,
                "text_config",
            ),
            (
                r#"{"projection_dim": 512, "text_config": {}}"#,
                "vision_config",
            ),
            (
                r#"{"vision_config": {}, "text_config": {}}"#,
                "projection_dim",
            ),
            (
                r#"{"projection_dim": 8, "text_config": {}, "vision_config": {"hidden_act": "relu"}}"#,
                "vision_config",
            ),
            (
                r#"{"projection_dim": 8, "text_config": {}, "vision_config": {"num_attention_heads": 7}}"#,
                "num_attention_heads",
            ),
            (r#"{"model_type": "siglip", "projection_dim": 8}"#, "siglip"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(key), "{message} should name {key}");
            assert!(message.contains("config.json"), "{message}");
        }
    }
}

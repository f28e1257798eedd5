//! Hugging Face's `config.json` of `transformers`' `CLIPModel` and `SiglipModel`.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{Activation, ClipConfig, TextConfig, TextKind, VisionConfig, VisionKind};
use crate::error::CheckpointError;

/// Initial values of SigLIP's log logit scale and logit bias (`open_clip` `SigLIP` configurations:
/// `init_logit_bias`; Zhai et al. 2023, section 3.2). `transformers`' `config.json` has neither.
const SIGLIP_LOGITS: (f64, f64) = (std::f64::consts::LN_10, -10.0);

impl ClipConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`CheckpointError`] with the file and the key that is missing or invalid.
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let text = std::fs::read_to_string(path).map_err(|e| CheckpointError::io(path, e))?;
        Self::from_json(&text, path)
    }

    /// Parses the text of a `config.json`; `path` appears in errors only.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn from_json(text: &str, path: &Path) -> Result<Self, CheckpointError> {
        let file = ConfigFile { path };
        let root: Map<String, Value> = serde_json::from_str(text)
            .map_err(|e| file.bad("", format!("it is not a JSON object: {e}")))?;
        let siglip = match root.get("model_type").map(Value::as_str) {
            None | Some(Some("clip")) => false,
            Some(Some("siglip")) => true,
            Some(other) => {
                let kind = other.unwrap_or("not a string");
                return Err(file.bad(
                    "model_type",
                    format!("`{kind}` is not supported, only `clip` and `siglip`"),
                ));
            }
        };
        let config = if siglip {
            file.siglip(&root)?
        } else {
            file.clip(&root)?
        };
        config
            .check()
            .map_err(|(key, reason)| file.bad(key, reason))?;
        Ok(config)
    }

    /// Returns the text of a `config.json` that `transformers`' `CLIPModel` or `SiglipModel` loads.
    ///
    /// # Errors
    /// [`CheckpointError::NoSuchFormat`] for ResNets and for mixed towers, for which `transformers`
    /// has no model class.
    pub fn to_json(&self) -> Result<String, CheckpointError> {
        let value = match (self.vision.kind, self.text.kind) {
            (VisionKind::Clip, TextKind::Clip) => json!({
                "architectures": ["CLIPModel"],
                "model_type": "clip",
                "projection_dim": self.projection_dim,
                "logit_scale_init_value": self.logit_scale_init,
                "vision_config": with(json!(self.vision), &[
                    ("model_type", json!("clip_vision_model")),
                    ("projection_dim", json!(self.projection_dim)),
                ]),
                "text_config": with(json!(self.text), &[
                    ("model_type", json!("clip_text_model")),
                    ("projection_dim", json!(self.projection_dim)),
                ]),
            }),
            (VisionKind::Siglip, TextKind::Siglip) => json!({
                "architectures": ["SiglipModel"],
                "model_type": "siglip",
                "vision_config": with(json!(self.vision), &[
                    ("model_type", json!("siglip_vision_model")),
                    ("vision_use_head", json!(true)),
                ]),
                "text_config": with(json!(self.text), &[
                    ("model_type", json!("siglip_text_model")),
                    ("projection_size", json!(self.projection_dim)),
                ]),
            }),
            _ => {
                return Err(CheckpointError::NoSuchFormat {
                    what: "a ResNet or mixed CLIP".to_owned(),
                    format: "Hugging Face directory",
                    instead: "the open_clip layout",
                });
            }
        };
        Ok(format!("{value:#}\n"))
    }
}

/// Returns the object `value` with the entries `more` added or replaced.
fn with(value: Value, more: &[(&str, Value)]) -> Value {
    let mut object = match value {
        Value::Object(object) => object,
        _ => Map::new(),
    };
    for (key, value) in more {
        object.insert((*key).to_owned(), value.clone());
    }
    Value::Object(object)
}

/// Parser of a `config.json` that puts its path into errors.
struct ConfigFile<'a> {
    path: &'a Path,
}

impl ConfigFile<'_> {
    fn bad(&self, key: &str, reason: String) -> CheckpointError {
        CheckpointError::config(self.path, key, reason)
    }

    /// Deserializes the object under `key`, with missing and `null` entries taken from `defaults`.
    fn part<T: DeserializeOwned>(
        &self,
        root: &Map<String, Value>,
        key: &str,
        defaults: Value,
    ) -> Result<T, CheckpointError> {
        let given = root
            .get(key)
            .and_then(Value::as_object)
            .ok_or_else(|| self.bad(key, "the object is missing".to_owned()))?;
        let given: Vec<_> = given
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.as_str(), value.clone()))
            .collect();
        serde_json::from_value(with(defaults, &given)).map_err(|e| self.bad(key, e.to_string()))
    }

    fn clip(&self, root: &Map<String, Value>) -> Result<ClipConfig, CheckpointError> {
        let projection_dim = root
            .get("projection_dim")
            .ok_or_else(|| self.bad("projection_dim", "the number is missing".to_owned()))?
            .as_u64()
            .ok_or_else(|| self.bad("projection_dim", "it is not an integer".to_owned()))?
            as usize;
        let logit_scale_init = match root.get("logit_scale_init_value") {
            None => 2.6592,
            Some(value) => value.as_f64().ok_or_else(|| {
                self.bad("logit_scale_init_value", "it is not a number".to_owned())
            })?,
        };
        Ok(ClipConfig {
            vision: self.part(root, "vision_config", json!({}))?,
            text: self.part(root, "text_config", json!({}))?,
            projection_dim,
            logit_scale_init,
            logit_bias_init: None,
        })
    }

    /// The defaults are those of `transformers`' `SiglipVisionConfig` and `SiglipTextConfig`.
    fn siglip(&self, root: &Map<String, Value>) -> Result<ClipConfig, CheckpointError> {
        let common = |more: &[(&str, Value)]| {
            with(
                json!({"hidden_act": Activation::GeluTanh, "layer_norm_eps": 1e-6}),
                more,
            )
        };
        let mut vision: VisionConfig =
            self.part(root, "vision_config", common(&[("patch_size", json!(16))]))?;
        vision.kind = VisionKind::Siglip;
        let mut text: TextConfig = self.part(
            root,
            "text_config",
            common(&[
                ("vocab_size", json!(32000)),
                ("hidden_size", json!(768)),
                ("intermediate_size", json!(3072)),
                ("num_attention_heads", json!(12)),
                ("max_position_embeddings", json!(64)),
            ]),
        )?;
        text.kind = TextKind::Siglip;
        // SigLIP 2 pads with Gemma's `<pad>`. Its configurations omit the id, which only the
        // tokenizer states.
        let has_pad_id = root
            .get("text_config")
            .is_some_and(|t| t.get("pad_token_id").is_some());
        if !has_pad_id && text.vocab_size == 256_000 {
            text.pad_token_id = 0;
        }
        if let Some(Value::Bool(false)) = root
            .get("vision_config")
            .and_then(|v| v.get("vision_use_head"))
        {
            return Err(self.bad(
                "vision_config.vision_use_head",
                "without its pooling head SigLIP has no image features".to_owned(),
            ));
        }
        let projection_dim = match root
            .get("text_config")
            .and_then(|t| t.get("projection_size"))
        {
            None | Some(Value::Null) => text.hidden_size,
            Some(value) => value.as_u64().ok_or_else(|| {
                self.bad(
                    "text_config.projection_size",
                    "it is not an integer".to_owned(),
                )
            })? as usize,
        };
        let (scale, bias) = SIGLIP_LOGITS;
        Ok(ClipConfig {
            vision,
            text,
            projection_dim,
            logit_scale_init: scale,
            logit_bias_init: Some(bias),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ClipConfig, CheckpointError> {
        ClipConfig::from_json(text, Path::new("config.json"))
    }

    #[test]
    fn json_round_trips() {
        let mut config = ClipConfig::vit_l_14();
        config.vision.hidden_act = Activation::Gelu;
        config.text.layer_norm_eps = 1e-3;
        assert_eq!(parse(&config.to_json().unwrap()).unwrap(), config);

        let siglip = super::super::architecture("ViT-B-16-SigLIP2-256").unwrap();
        assert_eq!(parse(&siglip.to_json().unwrap()).unwrap(), siglip);
    }

    #[test]
    fn values_that_equal_the_defaults_may_be_omitted() {
        let text =
            r#"{"projection_dim": 512, "text_config": {}, "vision_config": {"patch_size": 16}}"#;
        assert_eq!(parse(text).unwrap().vision, ClipConfig::vit_b_16().vision);

        let siglip =
            parse(r#"{"model_type": "siglip", "text_config": {}, "vision_config": {}}"#).unwrap();
        let mut named = super::super::architecture("ViT-B-16-SigLIP").unwrap();
        // `transformers` runs SigLIP with the tanh approximation, open_clip version 1 without it.
        named.vision.hidden_act = Activation::GeluTanh;
        named.text.hidden_act = Activation::GeluTanh;
        assert_eq!(siglip.parameters(), named.parameters());
        assert_eq!(siglip.vision, named.vision);
    }

    #[test]
    fn a_resnet_has_no_hugging_face_format() {
        let error = super::super::architecture("RN50")
            .unwrap()
            .to_json()
            .unwrap_err()
            .to_string();
        assert!(error.contains("open_clip"), "{error}");
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
                r#"{"projection_dim": 8, "text_config": {},
                    "vision_config": {"hidden_act": "relu"}}"#,
                "vision_config",
            ),
            (
                r#"{"projection_dim": 8, "text_config": {},
                    "vision_config": {"num_attention_heads": 7}}"#,
                "num_attention_heads",
            ),
            (
                r#"{"model_type": "blip", "projection_dim": 8}"#,
                "model_type",
            ),
            (
                r#"{"model_type": "siglip", "text_config": {},
                    "vision_config": {"vision_use_head": false}}"#,
                "vision_use_head",
            ),
            (
                r#"{"model_type": "siglip", "text_config": {"projection_size": 64},
                    "vision_config": {}}"#,
                "hidden_size",
            ),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(key), "{message} should name {key}");
            assert!(message.contains("config.json"), "{message}");
        }
    }
}

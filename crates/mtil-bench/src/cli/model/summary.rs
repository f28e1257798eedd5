//! Description of a checkpoint as text and as JSON.

use std::path::{Path, PathBuf};

use clip_model::{
    Activation, ClipConfig, Description, KeyLayout, Preprocess, TextKind, Tokenizer, VisionKind,
    preprocess::{Interpolation, Resize},
};
use eyre::{Result, bail};
use indicatif::DecimalBytes;
use serde_json::{Value, json};

/// Properties of a checkpoint that are known without reading its weights.
pub struct CheckpointSummary {
    /// Container and architecture of the weights.
    pub description: Description,
    /// Image preprocessing.
    pub images: ImageSummary,
    /// Tokenizer.
    pub tokenizer: TokenizerSource,
}

/// Image preprocessing, and the file that defines it.
pub struct ImageSummary {
    /// `None` if the layout requires a file and there is none.
    from: Option<String>,
    text: String,
    settings: Value,
    /// Size of the preprocessed images in pixels, if known.
    pub size: Option<usize>,
}

/// Source of the tokenizer, and the size of its vocabulary.
pub enum TokenizerSource {
    /// A file.
    File(PathBuf, usize),
    /// Part of the embedded model.
    Own(usize),
    /// OpenAI's tokenizer, because there is no file and it fits the model.
    BuiltIn(usize),
    /// No tokenizer fits.
    Absent,
}

impl CheckpointSummary {
    /// Reads the tokenizer: `tokenizer`, or the one of the description.
    ///
    /// # Errors
    /// If its file is unusable.
    pub fn of(description: Description, tokenizer: Option<&Path>) -> Result<Self> {
        let images = ImageSummary::of(&description);
        let tokenizer = TokenizerSource::of(&description, tokenizer)?;
        Ok(Self {
            description,
            images,
            tokenizer,
        })
    }

    /// Returns the summary of a model in memory.
    pub fn in_memory(
        description: Description,
        preprocess: &Preprocess,
        tokenizer: &Tokenizer,
    ) -> Self {
        Self {
            description,
            images: ImageSummary::from_settings("the program", preprocess),
            tokenizer: TokenizerSource::Own(tokenizer.vocab_size()),
        }
    }

    /// Checks that preprocessing and tokenizer fit the model.
    ///
    /// # Errors
    /// Names the file that does not fit.
    pub fn check(&self) -> Result<()> {
        let config = &self.description.config;
        let (size, wanted) = (self.images.size, config.vision.image_size);
        if let Some(size) = size
            && size != wanted
        {
            bail!(
                "{}: images are preprocessed to {size} pixels, the model expects {wanted}",
                self.images.from.as_deref().unwrap_or_default()
            );
        }
        if let TokenizerSource::File(path, tokens) = &self.tokenizer
            && *tokens > config.text.vocab_size
        {
            bail!(
                "{}: {tokens} tokens, the vocabulary of the model has {}",
                path.display(),
                config.text.vocab_size
            );
        }
        Ok(())
    }

    /// Returns the summary as text: a name and a value per line.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let d = &self.description;
        let (v, t) = (&d.config.vision, &d.config.text);
        let blocks = format!(
            "width {}, blocks {}, heads {}, hidden units {}",
            v.hidden_size, v.num_hidden_layers, v.num_attention_heads, v.intermediate_size
        );
        let image = match v.kind {
            VisionKind::ResNet { stages } => format!(
                "ResNet, blocks {stages:?}, width {}, heads of the pooling {}",
                v.hidden_size / 32,
                v.num_attention_heads
            ),
            VisionKind::Clip => {
                format!("vision transformer, patches of {}, {blocks}", v.patch_size)
            }
            VisionKind::Siglip => format!(
                "vision transformer with attention pooling, patches of {}, {blocks}",
                v.patch_size
            ),
        };
        let text = format!(
            "{}, context {}, vocabulary {}, width {}, blocks {}, heads {}, hidden units {}",
            match t.kind {
                TextKind::Clip => "causal transformer",
                TextKind::Siglip => "bidirectional transformer",
            },
            t.max_position_embeddings,
            grouped(t.vocab_size),
            t.hidden_size,
            t.num_hidden_layers,
            t.num_attention_heads,
            t.intermediate_size
        );
        let bias = match d.config.logit_bias_init {
            Some(_) => ", with a bias on the logits",
            None => "",
        };
        vec![
            (
                "weights",
                format!("{}, {}", d.weights.display(), DecimalBytes(d.bytes)),
            ),
            (
                "container",
                format!("{}, {} tensors", d.container, d.tensors),
            ),
            ("names", d.layout.describe().to_owned()),
            (
                "parameters",
                format!(
                    "{} ({} image, {} text)",
                    grouped(d.config.parameters()),
                    grouped(d.config.image_parameters()),
                    grouped(d.config.text_parameters())
                ),
            ),
            ("image size", format!("{} pixels", v.image_size)),
            ("image tower", image),
            ("text tower", text),
            (
                "joint space",
                format!("width {}{bias}", d.config.projection_dim),
            ),
            ("activation", activation(&d.config)),
            ("images", self.images.line()),
            ("tokenizer", self.tokenizer.text()),
        ]
    }

    /// Returns the summary as JSON.
    pub fn json(&self) -> Value {
        let d = &self.description;
        let (v, t) = (&d.config.vision, &d.config.text);
        let tokenizer = match &self.tokenizer {
            TokenizerSource::File(path, tokens) => {
                json!({"from": path.display().to_string(), "tokens": tokens})
            }
            TokenizerSource::Own(tokens) => json!({"from": "the program", "tokens": tokens}),
            TokenizerSource::BuiltIn(tokens) => json!({"from": "OpenAI", "tokens": tokens}),
            TokenizerSource::Absent => Value::Null,
        };
        let vision_kind = match v.kind {
            VisionKind::Clip => "clip",
            VisionKind::Siglip => "siglip",
            VisionKind::ResNet { .. } => "resnet",
        };
        let mut vision = json!({
            "kind": vision_kind,
            "parameters": d.config.image_parameters(),
            "image_size": v.image_size,
            "patch_size": v.patch_size,
            "width": v.hidden_size,
            "blocks": v.num_hidden_layers,
            "heads": v.num_attention_heads,
            "hidden": v.intermediate_size,
            "activation": v.hidden_act,
            "layer_norm_eps": v.layer_norm_eps,
        });
        if let VisionKind::ResNet { stages } = v.kind {
            vision["stages"] = json!(stages);
        }
        json!({
            "weights": d.weights.display().to_string(),
            "bytes": d.bytes,
            "container": d.container.to_string(),
            "names": layout_name(d.layout),
            "tensors": d.tensors,
            "parameters": d.config.parameters(),
            "image": vision,
            "text": {
                "kind": match t.kind { TextKind::Clip => "clip", TextKind::Siglip => "siglip" },
                "parameters": d.config.text_parameters(),
                "vocabulary": t.vocab_size,
                "context": t.max_position_embeddings,
                "width": t.hidden_size,
                "blocks": t.num_hidden_layers,
                "heads": t.num_attention_heads,
                "hidden": t.intermediate_size,
                "activation": t.hidden_act,
                "layer_norm_eps": t.layer_norm_eps,
            },
            "projection": d.config.projection_dim,
            "logit_bias": d.config.logit_bias_init.is_some(),
            "preprocess": {"from": self.images.from, "settings": self.images.settings},
            "tokenizer": tokenizer,
        })
    }
}

impl ImageSummary {
    fn of(description: &Description) -> Self {
        let Some(preprocess) = &description.preprocess else {
            return Self {
                from: None,
                text: "none: put the model's preprocessor_config.json next to the weights"
                    .to_owned(),
                settings: Value::Null,
                size: None,
            };
        };
        let file = description.preprocess_file.as_ref();
        let name = file.and_then(|file| file.file_name());
        match name {
            Some(name) => Self::from_settings(&name.to_string_lossy(), preprocess),
            None => Self::from_settings("the kind of the model, no file defines it", preprocess),
        }
    }

    fn line(&self) -> String {
        match &self.from {
            Some(from) => format!("{} (from {from})", self.text),
            None => self.text.clone(),
        }
    }

    fn from_settings(from: &str, p: &Preprocess) -> Self {
        let resize = match p.resize {
            Some(Resize::ShortestEdge(side)) => format!("shorter side to {side}"),
            Some(Resize::Exact { height, width }) => format!("both sides to {width} x {height}"),
            None => "not resized".to_owned(),
        };
        let kernel = match p.interpolation {
            Interpolation::Bicubic => "bicubic",
            Interpolation::Bilinear => "bilinear",
        };
        let crop = p
            .crop
            .map_or(String::new(), |(h, w)| format!(", center crop {w} x {h}"));
        Self {
            from: Some(from.to_owned()),
            text: format!(
                "{resize} ({kernel}){crop}, mean {:?}, std {:?}",
                p.mean, p.std
            ),
            settings: serde_json::from_str(&p.to_json()).unwrap_or_default(),
            size: Some(p.image_size()),
        }
    }
}

impl TokenizerSource {
    fn of(description: &Description, file: Option<&Path>) -> Result<Self> {
        let text = &description.config.text;
        if let Some(file) = file.or(description.tokenizer_file.as_deref()) {
            let tokens = Tokenizer::from_file(file, text.kind)?.vocab_size();
            return Ok(Self::File(file.to_owned(), tokens));
        }
        Ok(match Tokenizer::default_for(text, &description.weights) {
            Ok(tokenizer) => Self::BuiltIn(tokenizer.vocab_size()),
            Err(_) => Self::Absent,
        })
    }

    fn text(&self) -> String {
        match self {
            Self::File(path, tokens) => format!("{}, {} tokens", path.display(), grouped(*tokens)),
            Self::Own(tokens) => format!("{} tokens (from the program)", grouped(*tokens)),
            Self::BuiltIn(tokens) => {
                format!("OpenAI's, {} tokens; there is no file", grouped(*tokens))
            }
            Self::Absent => {
                "none: put the model's tokenizer.json next to the weights to embed texts".to_owned()
            }
        }
    }
}

fn layout_name(layout: KeyLayout) -> &'static str {
    match layout {
        KeyLayout::HuggingFace => "hugging-face",
        KeyLayout::OpenAi => "openai",
        KeyLayout::OpenClipCustomText => "open-clip-custom-text",
    }
}

/// Returns the activations of both towers as text.
pub fn activation(config: &ClipConfig) -> String {
    let name = |activation| match activation {
        Activation::QuickGelu => "quick_gelu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    let (image, text) = (config.vision.hidden_act, config.text.hidden_act);
    match config.vision.kind {
        VisionKind::ResNet { .. } => format!("relu (images), {} (texts)", name(text)),
        _ if image == text => name(image).to_owned(),
        _ => format!("{} (images), {} (texts)", name(image), name(text)),
    }
}

/// Formats a number with thousands separators: `149,620,737`.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (149_620_737, "149,620,737"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}

//! Model configurations of CLIP and SigLIP.
//!
//! | file | contents |
//! |---|---|
//! | `hugging_face` | `config.json` of `transformers`' `CLIPModel` and `SiglipModel` |
//! | `open_clip` | `open_clip_config.json` and open_clip's model configurations |
//! | `architectures` | published architectures by name |

mod architectures;
mod hugging_face;
mod open_clip;

use serde::{Deserialize, Serialize};

use crate::preprocess::Preprocess;

pub use architectures::{architecture, architectures};
pub(crate) use open_clip::OpenClipConfig;

/// Activation function of the MLPs.
///
/// The weights do not determine it: OpenAI's checkpoints use [`QuickGelu`](Self::QuickGelu), most
/// of open_clip's use [`Gelu`](Self::Gelu).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x · σ(1.702 x)` (OpenAI CLIP `clip/model.py`, class `QuickGELU`).
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// Exact GELU, by the error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// Tanh approximation of GELU, `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`; used by SigLIP.
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_tanh")]
    GeluTanh,
}

/// Architecture family of an image tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VisionKind {
    /// CLIP's vision transformer: a class token, a layer norm before the blocks, and a projection
    /// of the class token.
    #[default]
    Clip,
    /// SigLIP's vision transformer: a patch embedding with a bias, no class token, no layer norm
    /// before the blocks. One learned query attends to all tokens ("multihead attention pooling"),
    /// and there is no projection.
    Siglip,
    /// OpenAI's modified ResNet: a stem of three convolutions, average pooling in place of strides,
    /// and attention pooling. [`VisionConfig::hidden_size`] is the width of its last stage, 32
    /// times the width of the stem. [`VisionConfig::patch_size`] is the total stride, 32.
    /// [`VisionConfig::num_hidden_layers`] and [`VisionConfig::intermediate_size`] are unused.
    ResNet {
        /// Number of bottleneck blocks in each stage.
        stages: [usize; 4],
    },
}

/// Architecture family of a text tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextKind {
    /// CLIP: causal attention, pooling at the end token, projection without a bias.
    #[default]
    Clip,
    /// SigLIP: bidirectional attention, also to padding; pooling at the last position; projection
    /// with a bias.
    Siglip,
}

/// Configuration of the image tower.
///
/// The defaults are those of `transformers`' `CLIPVisionConfig` (ViT-B/32): `transformers` may omit
/// values that equal them.
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
    /// Side of a square patch in pixels. It divides `image_size`, except in SigLIP, whose
    /// convolution ignores the remainder at the right and the bottom.
    pub patch_size: usize,
    /// Activation function of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// Architecture family.
    #[serde(skip)]
    pub kind: VisionKind,
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
            kind: VisionKind::Clip,
        }
    }
}

impl VisionConfig {
    /// Returns the number of patches along a side; in a ResNet, the side of the last feature map.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Returns the number of tokens: one per patch, plus the class token (in a ResNet, the mean)
    /// unless this is SigLIP.
    pub fn tokens(&self) -> usize {
        let grid = self.grid();
        grid * grid + usize::from(self.kind != VisionKind::Siglip)
    }
}

/// Configuration of the text tower. The defaults are those of `transformers`' `CLIPTextConfig`.
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
    /// Context length: the maximum number of tokens of a text, special tokens included.
    pub max_position_embeddings: usize,
    /// Activation function of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// Id of the start token.
    pub bos_token_id: u32,
    /// Id of the end token. The value 2 is a historical mistake of the original conversions and
    /// means "pool at the largest id" (`transformers` `modeling_clip.py`,
    /// `CLIPTextTransformer.forward`).
    pub eos_token_id: u32,
    /// Id of the padding token. SigLIP attends to padding; CLIP does not.
    pub pad_token_id: u32,
    /// Architecture family.
    #[serde(skip)]
    pub kind: TextKind,
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
            kind: TextKind::Clip,
        }
    }
}

/// Configuration of a CLIP model.
///
/// ```
/// use burn::tensor::Device;
/// use clip_model::ClipConfig;
///
/// let mut config = ClipConfig::vit_b_32();
/// assert_eq!(config.parameters(), 151_277_313);
///
/// config.vision.num_hidden_layers = 1;
/// config.text.num_hidden_layers = 1;
/// let model = config.init_zeros(&Device::default());
/// assert_eq!(model.num_parameters(), config.parameters());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// The image tower.
    pub vision: VisionConfig,
    /// The text tower.
    pub text: TextConfig,
    /// Width of the joint embedding space.
    pub projection_dim: usize,
    /// Initial value of the logarithm of the logit scale.
    pub logit_scale_init: f64,
    /// Initial value of the logit bias. Only models trained with the sigmoid loss have one.
    pub logit_bias_init: Option<f64>,
}

impl ClipConfig {
    /// Returns the configuration of OpenAI's ViT-B/32: 151,277,313 parameters.
    pub fn vit_b_32() -> Self {
        Self {
            vision: VisionConfig::default(),
            text: TextConfig::default(),
            projection_dim: 512,
            logit_scale_init: 2.6592,
            logit_bias_init: None,
        }
    }

    /// Returns the configuration of OpenAI's ViT-B/16: 149,620,737 parameters.
    pub fn vit_b_16() -> Self {
        let mut config = Self::vit_b_32();
        config.vision.patch_size = 16;
        config
    }

    /// Returns the configuration of OpenAI's ViT-L/14: 427,616,513 parameters.
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
            logit_bias_init: None,
        }
    }

    /// Returns the number of parameters of the model, without running statistics of batch norms.
    pub fn parameters(&self) -> usize {
        let bias = usize::from(self.logit_bias_init.is_some());
        self.image_parameters() + self.text_parameters() + 1 + bias
    }

    /// Returns the number of parameters of the image tower.
    pub fn image_parameters(&self) -> usize {
        let (v, e) = (&self.vision, self.projection_dim);
        let d = v.hidden_size;
        let patches = 3 * v.patch_size * v.patch_size * d;
        let blocks = v.num_hidden_layers * block_parameters(d, v.intermediate_size);
        match v.kind {
            VisionKind::Clip => patches + d + v.tokens() * d + 4 * d + blocks + d * e,
            VisionKind::Siglip => {
                // The pooling head: a block with one layer norm instead of two, and the query.
                let pool = block_parameters(d, v.intermediate_size) - 2 * d + d;
                patches + d + v.tokens() * d + 2 * d + blocks + pool
            }
            VisionKind::ResNet { stages } => {
                // Convolutions without biases, and two parameters per channel of a batch norm.
                let w = d / 32;
                let half = w / 2;
                let stem = 27 * half + 9 * half * half + 9 * half * w + 4 * half + 2 * w;
                let mut total = stem;
                let mut input = w;
                for (stage, blocks) in stages.into_iter().enumerate() {
                    let p = w << stage;
                    for block in 0..blocks {
                        total += input * p + 9 * p * p + 4 * p * p + 12 * p;
                        // The shortcut of the first block of a stage.
                        if block == 0 {
                            total += input * 4 * p + 8 * p;
                        }
                        input = 4 * p;
                    }
                }
                total + v.tokens() * d + 3 * (d * d + d) + d * e + e
            }
        }
    }

    /// Returns the number of parameters of the text tower.
    pub fn text_parameters(&self) -> usize {
        let (t, e) = (&self.text, self.projection_dim);
        let w = t.hidden_size;
        let bias = match t.kind {
            TextKind::Clip => 0,
            TextKind::Siglip => e,
        };
        (t.vocab_size + t.max_position_embeddings) * w
            + t.num_hidden_layers * block_parameters(w, t.intermediate_size)
            + 2 * w
            + w * e
            + bias
    }

    /// Returns the preprocessing that models of this family were trained with, for checkpoints
    /// without image settings.
    pub fn default_preprocess(&self) -> Preprocess {
        let size = self.vision.image_size as u32;
        match self.vision.kind {
            VisionKind::Siglip => Preprocess::siglip(size),
            VisionKind::Clip | VisionKind::ResNet { .. } => Preprocess::clip(size),
        }
    }

    /// Validates the values. An error holds the offending key and the reason.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
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
            // The upper bound prevents overflow in products of sizes.
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
                    format!("{heads} heads do not divide the width {width}"),
                ));
            }
        }
        let fits = match v.kind {
            VisionKind::Siglip => v.patch_size <= v.image_size,
            VisionKind::Clip | VisionKind::ResNet { .. } => v.image_size % v.patch_size == 0,
        };
        if !fits {
            return Err((
                "vision_config.patch_size",
                format!(
                    "{} does not divide the image size {}",
                    v.patch_size, v.image_size
                ),
            ));
        }
        if v.kind == VisionKind::Siglip && self.projection_dim != v.hidden_size {
            return Err((
                "vision_config.hidden_size",
                format!(
                    "SigLIP does not project images: {} must equal the projection width {}",
                    v.hidden_size, self.projection_dim
                ),
            ));
        }
        if let VisionKind::ResNet { stages } = v.kind
            && (stages.iter().any(|n| !(1..=1000).contains(n))
                || v.hidden_size % 64 != 0
                || v.patch_size != 32)
        {
            return Err((
                "vision_cfg.layers",
                format!(
                    "{stages:?} blocks of width {} are not a valid ResNet",
                    v.hidden_size / 32
                ),
            ));
        }
        Ok(())
    }
}

/// Returns the number of parameters of a residual block of width `d` and hidden width `f`.
fn block_parameters(d: usize, f: usize) -> usize {
    4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d
}

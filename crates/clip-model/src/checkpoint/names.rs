//! Mapping of parameter paths to the tensor names and shapes of checkpoint files.
//!
//! | parameter path | Hugging Face | OpenAI, open_clip | shape in the file |
//! |---|---|---|---|
//! | `visual.conv1.weight` `[3pp, d]` | `vision_model.embeddings.patch_embedding.weight` | `visual.conv1.weight` | `[d, 3, p, p]` |
//! | `visual.blocks.i.attn.in_proj` `[d, 3d]` | `vision_model.encoder.layers.i.self_attn.{q,k,v}_proj` | `visual.transformer.resblocks.i.attn.in_proj_weight`, `…_bias` | `[d, d]` each; `[3d, d]` |
//! | other linear weights `[in, out]` | `….weight` | `….weight` | `[out, in]` |
//! | `visual.proj` `[d, e]` | `visual_projection.weight` | `visual.proj` | `[e, d]`; `[d, e]` |
//! | `text.…` | `text_model.…` | the bare name; under `text.` in `CustomTextCLIP` | |
//! | SigLIP's `visual.…` | `vision_model.…`, `vision_model.head` | `visual.trunk.…`, `visual.trunk.attn_pool` | |
//! | `logit_scale` `[1]` | `logit_scale` | `logit_scale` | `[]` or `[1]` |

use std::ops::Range;

use crate::config::{ClipConfig, TextKind, VisionKind};

/// Naming scheme of the tensors in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyLayout {
    /// `transformers`' `CLIPModel` and `SiglipModel`.
    HuggingFace,
    /// OpenAI's CLIP and open_clip's class `CLIP`; also used by GNSP and ZSCL.
    OpenAi,
    /// open_clip's class `CustomTextCLIP`: like OpenAI's, with the prefix `text.` for the text
    /// tower.
    OpenClipCustomText,
}

impl KeyLayout {
    /// Detects the layout by a name that occurs in no other layout. Returns `None` if the names are
    /// not those of a CLIP.
    pub(crate) fn detect<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<Self> {
        names.find_map(|name| match name {
            "vision_model.embeddings.patch_embedding.weight" => Some(Self::HuggingFace),
            "text.token_embedding.weight" => Some(Self::OpenClipCustomText),
            "token_embedding.weight" => Some(Self::OpenAi),
            _ => None,
        })
    }

    /// Returns a human-readable name of the layout.
    pub fn describe(self) -> &'static str {
        match self {
            Self::HuggingFace => "Hugging Face",
            Self::OpenAi => "OpenAI / open_clip CLIP",
            Self::OpenClipCustomText => "open_clip CustomTextCLIP",
        }
    }

    /// Returns the prefix of the names of the text tower.
    fn text_prefix(self) -> &'static str {
        match self {
            Self::OpenClipCustomText => "text.",
            _ => "",
        }
    }

    /// Returns the tensors that store the parameter at `path`, in the order of its columns.
    pub(crate) fn stored_tensors(
        self,
        path: &str,
        shape: &[usize],
        config: &ClipConfig,
    ) -> Vec<StoredTensor> {
        match self {
            Self::HuggingFace => hugging_face(path, shape, config),
            Self::OpenAi | Self::OpenClipCustomText => {
                open_clip(path, shape, config, self.text_prefix())
            }
        }
    }
}

/// A tensor in a file that stores a parameter, or some columns of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    pub name: String,
    pub shape: Vec<usize>,
    /// True if the stored matrix is the transpose of the parameter.
    transposed: bool,
    /// Columns of the parameter (entries, for a vector) that this tensor holds; `None` for all.
    columns: Option<Range<usize>>,
}

impl StoredTensor {
    fn plain(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            transposed: false,
            columns: None,
        }
    }

    fn transposed(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.iter().rev().copied().collect(),
            transposed: true,
            columns: None,
        }
    }

    /// Changes the shape in the file, with the same number of elements.
    fn reshaped(mut self, shape: Vec<usize>) -> Self {
        debug_assert_eq!(
            self.shape.iter().product::<usize>(),
            shape.iter().product::<usize>()
        );
        self.shape = shape;
        self
    }

    /// The outputs `columns` of a linear layer with `rows` inputs, or of its bias (`None`).
    fn columns(name: String, rows: Option<usize>, columns: Range<usize>) -> Self {
        Self {
            name,
            shape: match rows {
                Some(rows) => vec![columns.len(), rows],
                None => vec![columns.len()],
            },
            transposed: rows.is_some(),
            columns: Some(columns),
        }
    }

    /// Returns whether the stored values equal those of the parameter, in the same order.
    pub(crate) fn is_verbatim(&self) -> bool {
        !self.transposed && self.columns.is_none()
    }

    /// Converts the values of the parameter to those in the file.
    pub(crate) fn to_stored(&self, values: &[f32], shape: &[usize]) -> Vec<f32> {
        if self.is_verbatim() {
            return values.to_vec();
        }
        let (rows, width) = as_matrix(shape);
        let columns = self.columns.clone().unwrap_or(0..width);
        let mut stored = vec![0.0; rows * columns.len()];
        for_each_entry(rows, columns.len(), self.transposed, |r, c, at| {
            stored[at] = values[r * width + columns.start + c];
        });
        stored
    }

    /// Copies the values of the file into those of the parameter.
    pub(crate) fn copy_into(&self, stored: &[f32], values: &mut [f32], shape: &[usize]) {
        let (rows, width) = as_matrix(shape);
        let columns = self.columns.clone().unwrap_or(0..width);
        for_each_entry(rows, columns.len(), self.transposed, |r, c, at| {
            values[r * width + columns.start + c] = stored[at];
        });
    }
}

/// Calls `f(row, column, index in the stored tensor)` for every entry of a `[rows, columns]`
/// matrix, tile by tile, so that a transposition is cache-friendly.
fn for_each_entry(
    rows: usize,
    columns: usize,
    transposed: bool,
    mut f: impl FnMut(usize, usize, usize),
) {
    const TILE: usize = 32;
    for r0 in (0..rows).step_by(TILE) {
        let r1 = (r0 + TILE).min(rows);
        for c0 in (0..columns).step_by(TILE) {
            for r in r0..r1 {
                for c in c0..(c0 + TILE).min(columns) {
                    f(
                        r,
                        c,
                        if transposed {
                            c * rows + r
                        } else {
                            r * columns + c
                        },
                    );
                }
            }
        }
    }
}

/// Returns rows and columns; a vector counts as one row.
fn as_matrix(shape: &[usize]) -> (usize, usize) {
    match shape {
        [rows, width] => (*rows, *width),
        other => (1, other.iter().product()),
    }
}

/// Converts Burn's names of layer norm parameters (`gamma`, `beta`) to PyTorch's.
fn field_name(field: &str) -> &str {
    match field {
        "gamma" => "weight",
        "beta" => "bias",
        other => other,
    }
}

/// Returns the tensor of a parameter whose Hugging Face name follows no rule.
fn hugging_face_irregular(
    path: &str,
    shape: &[usize],
    config: &ClipConfig,
) -> Option<StoredTensor> {
    let siglip = config.vision.kind == VisionKind::Siglip;
    let plain = |name: &str| StoredTensor::plain(name, shape);
    Some(match path {
        // Scalars, except in SigLIP, where they are vectors with one element.
        "logit_scale" | "logit_bias" => {
            let shape = if siglip { vec![1] } else { Vec::new() };
            StoredTensor::plain(path, &[1]).reshaped(shape)
        }
        "visual.proj" => StoredTensor::transposed("visual_projection.weight", shape),
        "text.proj" => {
            let name = match config.text.kind {
                TextKind::Clip => "text_projection.weight",
                TextKind::Siglip => "text_model.head.weight",
            };
            StoredTensor::transposed(name, shape)
        }
        "text.proj_bias" => plain("text_model.head.bias"),
        "visual.class_embedding" => plain("vision_model.embeddings.class_embedding"),
        "visual.positional_embedding" => plain("vision_model.embeddings.position_embedding.weight"),
        "visual.conv1.weight" => patch_embedding(
            "vision_model.embeddings.patch_embedding.weight",
            shape,
            config,
        ),
        "visual.conv1.bias" => plain("vision_model.embeddings.patch_embedding.bias"),
        "text.token_embedding.weight" => plain("text_model.embeddings.token_embedding.weight"),
        "text.positional_embedding" => plain("text_model.embeddings.position_embedding.weight"),
        "visual.head.probe" => plain("vision_model.head.probe").reshaped(vec![1, 1, shape[0]]),
        // PyTorch's `nn.MultiheadAttention`: one fused tensor, with an underscore in its name.
        "visual.head.attn.in_proj.weight" => {
            StoredTensor::transposed("vision_model.head.attention.in_proj_weight", shape)
        }
        "visual.head.attn.in_proj.bias" => plain("vision_model.head.attention.in_proj_bias"),
        _ => return None,
    })
}

fn hugging_face(path: &str, shape: &[usize], config: &ClipConfig) -> Vec<StoredTensor> {
    if let Some(stored) = hugging_face_irregular(path, shape, config) {
        return vec![stored];
    }
    let (tower, rest) = match path.split_once('.') {
        Some(("visual", rest)) => ("vision_model", rest),
        Some((_, rest)) => ("text_model", rest),
        None => ("", path),
    };
    let (module, field) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let field = field_name(field);
    let module = match module {
        // The misspelling is Hugging Face's.
        "ln_pre" => "pre_layrnorm".to_owned(),
        "ln_post" => "post_layernorm".to_owned(),
        "ln_final" => "final_layer_norm".to_owned(),
        head if head.starts_with("head.") => head
            .replace("attn.", "attention.")
            .replace(".ln", ".layernorm")
            .replace("mlp.c_fc", "mlp.fc1")
            .replace("mlp.c_proj", "mlp.fc2"),
        block => block
            .replacen("blocks.", "encoder.layers.", 1)
            .replace("ln_1", "layer_norm1")
            .replace("ln_2", "layer_norm2")
            .replace("attn.", "self_attn.")
            .replace("mlp.c_fc", "mlp.fc1")
            .replace("mlp.c_proj", "mlp.fc2"),
    };
    let rows = (shape.len() == 2).then(|| shape[0]);
    if let Some(attention) = module.strip_suffix("in_proj") {
        let d = shape[shape.len() - 1] / 3;
        return ["q", "k", "v"]
            .iter()
            .enumerate()
            .map(|(i, part)| {
                let name = format!("{tower}.{attention}{part}_proj.{field}");
                StoredTensor::columns(name, rows, i * d..(i + 1) * d)
            })
            .collect();
    }
    vec![linear(format!("{tower}.{module}.{field}"), shape)]
}

fn open_clip(path: &str, shape: &[usize], config: &ClipConfig, text: &str) -> Vec<StoredTensor> {
    let one = |stored| vec![stored];
    if let Some(rest) = path.strip_prefix("text.") {
        let name = match rest {
            "proj" => {
                return one(match config.text.kind {
                    TextKind::Clip => StoredTensor::plain(format!("{text}text_projection"), shape),
                    TextKind::Siglip => {
                        StoredTensor::transposed(format!("{text}text_projection.weight"), shape)
                    }
                });
            }
            "proj_bias" => format!("{text}text_projection.bias"),
            "token_embedding.weight" => {
                return one(StoredTensor::plain(format!("{text}{rest}"), shape));
            }
            "positional_embedding" => {
                return one(StoredTensor::plain(format!("{text}{rest}"), shape));
            }
            _ => format!("{text}{}", resblocks(rest)),
        };
        return one(linear(name, shape));
    }
    let Some(rest) = path.strip_prefix("visual.") else {
        // `logit_scale` and `logit_bias`.
        return one(StoredTensor::plain(path, &[1]).reshaped(Vec::new()));
    };
    match config.vision.kind {
        VisionKind::Siglip => timm(rest, shape, config),
        VisionKind::ResNet { .. } => {
            let name = rest
                .replace("downsample.conv", "downsample.0")
                .replace("downsample.bn", "downsample.1");
            if rest == "attnpool.positional_embedding" {
                return one(StoredTensor::plain(path, shape));
            }
            one(linear(format!("visual.{name}"), shape))
        }
        VisionKind::Clip => match rest {
            "conv1.weight" => one(patch_embedding(path, shape, config)),
            "proj" | "class_embedding" | "positional_embedding" => {
                one(StoredTensor::plain(path, shape))
            }
            _ => one(linear(format!("visual.{}", resblocks(rest)), shape)),
        },
    }
}

/// Converts `blocks.3.attn.in_proj.weight` to `transformer.resblocks.3.attn.in_proj_weight`.
fn resblocks(rest: &str) -> String {
    let (module, field) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let field = field_name(field);
    let module = module.replacen("blocks.", "transformer.resblocks.", 1);
    // PyTorch's `nn.MultiheadAttention` holds the fused projection as parameters of its own.
    let separator = if module.ends_with("in_proj") {
        '_'
    } else {
        '.'
    };
    format!("{module}{separator}{field}")
}

/// Names of the `timm` package, which open_clip uses for SigLIP's image tower.
fn timm(rest: &str, shape: &[usize], config: &ClipConfig) -> Vec<StoredTensor> {
    let trunk = |name: &str| format!("visual.trunk.{name}");
    let rows = (shape.len() == 2).then(|| shape[0]);
    let d = config.vision.hidden_size;
    match rest {
        "conv1.weight" => {
            return vec![patch_embedding(
                trunk("patch_embed.proj.weight"),
                shape,
                config,
            )];
        }
        "conv1.bias" => return vec![StoredTensor::plain(trunk("patch_embed.proj.bias"), shape)],
        "positional_embedding" => {
            let stored = StoredTensor::plain(trunk("pos_embed"), shape);
            return vec![stored.reshaped(vec![1, shape[0], shape[1]])];
        }
        "head.probe" => {
            let stored = StoredTensor::plain(trunk("attn_pool.latent"), shape);
            return vec![stored.reshaped(vec![1, 1, d])];
        }
        _ => {}
    }
    let (module, field) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let field = field_name(field);
    if module == "head.attn.in_proj" {
        return vec![
            StoredTensor::columns(trunk(&format!("attn_pool.q.{field}")), rows, 0..d),
            StoredTensor::columns(trunk(&format!("attn_pool.kv.{field}")), rows, d..3 * d),
        ];
    }
    let module = match module {
        "ln_post" => "norm".to_owned(),
        head if head.starts_with("head.") => head
            .replacen("head.", "attn_pool.", 1)
            .replace("attn.out_proj", "proj")
            .replace(".ln", ".norm")
            .replace("mlp.c_fc", "mlp.fc1")
            .replace("mlp.c_proj", "mlp.fc2"),
        block => block
            .replace("ln_", "norm")
            .replace("attn.in_proj", "attn.qkv")
            .replace("attn.out_proj", "attn.proj")
            .replace("mlp.c_fc", "mlp.fc1")
            .replace("mlp.c_proj", "mlp.fc2"),
    };
    vec![linear(trunk(&format!("{module}.{field}")), shape)]
}

/// Returns the tensor of a linear layer: a weight (matrix) is transposed, a bias is not.
fn linear(name: String, shape: &[usize]) -> StoredTensor {
    if shape.len() == 2 {
        StoredTensor::transposed(name, shape)
    } else {
        StoredTensor::plain(name, shape)
    }
}

/// Returns the tensor of the patch embedding, which is a convolution in the file.
fn patch_embedding(name: impl Into<String>, shape: &[usize], config: &ClipConfig) -> StoredTensor {
    let p = config.vision.patch_size;
    StoredTensor::transposed(name, shape).reshaped(vec![shape[1], 3, p, p])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::architecture;

    fn names(layout: KeyLayout, path: &str, shape: &[usize], architecture_name: &str) -> String {
        let config = architecture(architecture_name).unwrap();
        let stored = layout.stored_tensors(path, shape, &config);
        let parts: Vec<_> = stored
            .iter()
            .map(|s| format!("{} {:?}", s.name, s.shape))
            .collect();
        parts.join(" ")
    }

    #[test]
    fn names_and_shapes() {
        let (hf, oc, ct) = (
            KeyLayout::HuggingFace,
            KeyLayout::OpenAi,
            KeyLayout::OpenClipCustomText,
        );
        let b16 = "ViT-B-16";
        let sig = "ViT-B-16-SigLIP";
        for (layout, path, shape, architecture, want) in [
            (
                hf,
                "visual.blocks.3.attn.in_proj.bias",
                &[2304][..],
                b16,
                "vision_model.encoder.layers.3.self_attn.q_proj.bias [768] \
                 vision_model.encoder.layers.3.self_attn.k_proj.bias [768] \
                 vision_model.encoder.layers.3.self_attn.v_proj.bias [768]",
            ),
            (
                oc,
                "visual.blocks.3.attn.in_proj.weight",
                &[768, 2304],
                b16,
                "visual.transformer.resblocks.3.attn.in_proj_weight [2304, 768]",
            ),
            (
                ct,
                "text.blocks.0.ln_1.gamma",
                &[512],
                b16,
                "text.transformer.resblocks.0.ln_1.weight [512]",
            ),
            (
                oc,
                "text.proj",
                &[512, 512],
                b16,
                "text_projection [512, 512]",
            ),
            (
                ct,
                "text.proj",
                &[768, 768],
                sig,
                "text.text_projection.weight [768, 768]",
            ),
            (
                ct,
                "visual.head.attn.in_proj.weight",
                &[768, 2304],
                sig,
                "visual.trunk.attn_pool.q.weight [768, 768] \
                 visual.trunk.attn_pool.kv.weight [1536, 768]",
            ),
            (
                ct,
                "visual.blocks.11.ln_2.beta",
                &[768],
                sig,
                "visual.trunk.blocks.11.norm2.bias [768]",
            ),
            (
                hf,
                "visual.head.ln.gamma",
                &[768],
                sig,
                "vision_model.head.layernorm.weight [768]",
            ),
            (
                oc,
                "visual.layer2.0.downsample.bn.running_mean",
                &[512],
                "RN50",
                "visual.layer2.0.downsample.1.running_mean [512]",
            ),
            (
                oc,
                "visual.attnpool.c_proj.weight",
                &[2048, 1024],
                "RN50",
                "visual.attnpool.c_proj.weight [1024, 2048]",
            ),
            (oc, "logit_scale", &[1], b16, "logit_scale []"),
            (hf, "logit_bias", &[1], sig, "logit_bias [1]"),
        ] {
            assert_eq!(names(layout, path, shape, architecture), want);
        }
    }

    #[test]
    fn values_round_trip() {
        let shape = [37, 45];
        let values: Vec<f32> = (0..37 * 45).map(|i| i as f32).collect();
        let transposed = StoredTensor::transposed("w", &shape);
        let stored = transposed.to_stored(&values, &shape);
        // Row 3, column 5 of the parameter is row 5, column 3 in the file.
        assert_eq!(stored[5 * 37 + 3], values[3 * 45 + 5]);
        let parts = [
            StoredTensor::columns("a".into(), Some(37), 0..15),
            StoredTensor::columns("b".into(), Some(37), 15..45),
        ];
        let mut again = vec![0.0; values.len()];
        for part in &parts {
            let stored = part.to_stored(&values, &shape);
            part.copy_into(&stored, &mut again, &shape);
        }
        assert_eq!(again, values);
    }
}

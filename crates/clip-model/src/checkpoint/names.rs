//! What the parameters are called in files, and how they lie there.
//!
//! | ours | Hugging Face | OpenAI, open_clip | stored as |
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

/// Whose names a file uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyLayout {
    /// `transformers`' `CLIPModel` and `SiglipModel`.
    HuggingFace,
    /// OpenAI's, and open_clip's class `CLIP`; GNSP and ZSCL write these too.
    OpenAi,
    /// open_clip's class `CustomTextCLIP`: as OpenAI's, with the text tower under `text.`.
    OpenClipCustomText,
}

impl KeyLayout {
    /// Whose names these are, if they are a CLIP's at all. Some name of each layout occurs in no
    /// other.
    pub(crate) fn of<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<Self> {
        names.find_map(|name| match name {
            "vision_model.embeddings.patch_embedding.weight" => Some(Self::HuggingFace),
            "text.token_embedding.weight" => Some(Self::OpenClipCustomText),
            "token_embedding.weight" => Some(Self::OpenAi),
            _ => None,
        })
    }

    /// What the names mean, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::HuggingFace => "Hugging Face",
            Self::OpenAi => "OpenAI / open_clip CLIP",
            Self::OpenClipCustomText => "open_clip CustomTextCLIP",
        }
    }

    /// What stands before the names of the text tower.
    fn text_prefix(self) -> &'static str {
        match self {
            Self::OpenClipCustomText => "text.",
            _ => "",
        }
    }

    /// The stored tensors that our parameter at `path` corresponds to, in the order of its columns.
    pub(crate) fn stored(self, path: &str, shape: &[usize], config: &ClipConfig) -> Vec<Stored> {
        match self {
            Self::HuggingFace => hugging_face(path, shape, config),
            Self::OpenAi | Self::OpenClipCustomText => {
                open_clip(path, shape, config, self.text_prefix())
            }
        }
    }
}

/// One stored tensor that (a part of) one of our parameters corresponds to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub name: String,
    pub shape: Vec<usize>,
    /// Whether the stored matrix is the transpose of ours.
    transposed: bool,
    /// Columns of our parameter (entries, for a vector) this tensor holds; `None`: all.
    columns: Option<Range<usize>>,
}

impl Stored {
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

    /// As it is stored except that the shape has another form.
    fn reshaped(mut self, shape: Vec<usize>) -> Self {
        debug_assert_eq!(
            self.shape.iter().product::<usize>(),
            shape.iter().product::<usize>()
        );
        self.shape = shape;
        self
    }

    /// The part of a linear map (or its bias) that gives the outputs `columns`.
    fn part(name: String, rows: Option<usize>, columns: Range<usize>) -> Self {
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

    /// Whether the stored values are ours as they are.
    pub(crate) fn is_verbatim(&self) -> bool {
        !self.transposed && self.columns.is_none()
    }

    /// Our values to stored values.
    pub(crate) fn to_stored(&self, values: &[f32], shape: &[usize]) -> Vec<f32> {
        if self.is_verbatim() {
            return values.to_vec();
        }
        let (rows, width) = as_matrix(shape);
        let columns = self.columns.clone().unwrap_or(0..width);
        let mut stored = vec![0.0; rows * columns.len()];
        for_each_pair(rows, columns.len(), self.transposed, |r, c, at| {
            stored[at] = values[r * width + columns.start + c];
        });
        stored
    }

    /// Stored values into ours.
    pub(crate) fn write_ours(&self, stored: &[f32], values: &mut [f32], shape: &[usize]) {
        let (rows, width) = as_matrix(shape);
        let columns = self.columns.clone().unwrap_or(0..width);
        for_each_pair(rows, columns.len(), self.transposed, |r, c, at| {
            values[r * width + columns.start + c] = stored[at];
        });
    }
}

/// Calls `f(row, column, place in the stored tensor)` for every entry of a `[rows, columns]`
/// matrix, tile by tile, so that a transposition stays in the cache.
fn for_each_pair(
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

/// A vector counts as one row.
fn as_matrix(shape: &[usize]) -> (usize, usize) {
    match shape {
        [rows, width] => (*rows, *width),
        other => (1, other.iter().product()),
    }
}

/// Layer norms are `gamma` and `beta` here, `weight` and `bias` there.
fn field_name(field: &str) -> &str {
    match field {
        "gamma" => "weight",
        "beta" => "bias",
        other => other,
    }
}

/// A tensor whose name follows no rule.
fn hugging_face_alone(path: &str, shape: &[usize], config: &ClipConfig) -> Option<Stored> {
    let siglip = config.vision.kind == VisionKind::Siglip;
    let plain = |name: &str| Stored::plain(name, shape);
    Some(match path {
        // A scalar, except that SigLIP's are vectors of one.
        "logit_scale" | "logit_bias" => {
            let shape = if siglip { vec![1] } else { Vec::new() };
            Stored::plain(path, &[1]).reshaped(shape)
        }
        "visual.proj" => Stored::transposed("visual_projection.weight", shape),
        "text.proj" => {
            let name = match config.text.kind {
                TextKind::Clip => "text_projection.weight",
                TextKind::Siglip => "text_model.head.weight",
            };
            Stored::transposed(name, shape)
        }
        "text.proj_bias" => plain("text_model.head.bias"),
        "visual.class_embedding" => plain("vision_model.embeddings.class_embedding"),
        "visual.positional_embedding" => plain("vision_model.embeddings.position_embedding.weight"),
        "visual.conv1.weight" => patches(
            "vision_model.embeddings.patch_embedding.weight",
            shape,
            config,
        ),
        "visual.conv1.bias" => plain("vision_model.embeddings.patch_embedding.bias"),
        "text.token_embedding.weight" => plain("text_model.embeddings.token_embedding.weight"),
        "text.positional_embedding" => plain("text_model.embeddings.position_embedding.weight"),
        "visual.head.probe" => plain("vision_model.head.probe").reshaped(vec![1, 1, shape[0]]),
        // PyTorch's own attention: one fused tensor with an underscore in its name.
        "visual.head.attn.in_proj.weight" => {
            Stored::transposed("vision_model.head.attention.in_proj_weight", shape)
        }
        "visual.head.attn.in_proj.bias" => plain("vision_model.head.attention.in_proj_bias"),
        _ => return None,
    })
}

fn hugging_face(path: &str, shape: &[usize], config: &ClipConfig) -> Vec<Stored> {
    if let Some(stored) = hugging_face_alone(path, shape, config) {
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
        // The spelling is Hugging Face's.
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
                Stored::part(name, rows, i * d..(i + 1) * d)
            })
            .collect();
    }
    vec![linear(format!("{tower}.{module}.{field}"), shape)]
}

fn open_clip(path: &str, shape: &[usize], config: &ClipConfig, text: &str) -> Vec<Stored> {
    let one = |stored| vec![stored];
    if let Some(rest) = path.strip_prefix("text.") {
        let name = match rest {
            "proj" => {
                return one(match config.text.kind {
                    TextKind::Clip => Stored::plain(format!("{text}text_projection"), shape),
                    TextKind::Siglip => {
                        Stored::transposed(format!("{text}text_projection.weight"), shape)
                    }
                });
            }
            "proj_bias" => format!("{text}text_projection.bias"),
            "token_embedding.weight" => {
                return one(Stored::plain(format!("{text}{rest}"), shape));
            }
            "positional_embedding" => {
                return one(Stored::plain(format!("{text}{rest}"), shape));
            }
            _ => format!("{text}{}", resblocks(rest)),
        };
        return one(linear(name, shape));
    }
    let Some(rest) = path.strip_prefix("visual.") else {
        // The two scalars.
        return one(Stored::plain(path, &[1]).reshaped(Vec::new()));
    };
    match config.vision.kind {
        VisionKind::Siglip => timm(rest, shape, config),
        VisionKind::ResNet { .. } => {
            let name = rest
                .replace("downsample.conv", "downsample.0")
                .replace("downsample.bn", "downsample.1");
            if rest == "attnpool.positional_embedding" {
                return one(Stored::plain(path, shape));
            }
            one(linear(format!("visual.{name}"), shape))
        }
        VisionKind::Clip => match rest {
            "conv1.weight" => one(patches(path, shape, config)),
            "proj" | "class_embedding" | "positional_embedding" => one(Stored::plain(path, shape)),
            _ => one(linear(format!("visual.{}", resblocks(rest)), shape)),
        },
    }
}

/// `blocks.3.attn.in_proj.weight` to `transformer.resblocks.3.attn.in_proj_weight`.
fn resblocks(rest: &str) -> String {
    let (module, field) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let field = field_name(field);
    let module = module.replacen("blocks.", "transformer.resblocks.", 1);
    // PyTorch's `nn.MultiheadAttention` holds the fused projection itself.
    let separator = if module.ends_with("in_proj") {
        '_'
    } else {
        '.'
    };
    format!("{module}{separator}{field}")
}

/// The SigLIP tower of the `timm` package inside open_clip.
fn timm(rest: &str, shape: &[usize], config: &ClipConfig) -> Vec<Stored> {
    let trunk = |name: &str| format!("visual.trunk.{name}");
    let rows = (shape.len() == 2).then(|| shape[0]);
    let d = config.vision.hidden_size;
    match rest {
        "conv1.weight" => return vec![patches(trunk("patch_embed.proj.weight"), shape, config)],
        "conv1.bias" => return vec![Stored::plain(trunk("patch_embed.proj.bias"), shape)],
        "positional_embedding" => {
            let stored = Stored::plain(trunk("pos_embed"), shape);
            return vec![stored.reshaped(vec![1, shape[0], shape[1]])];
        }
        "head.probe" => {
            let stored = Stored::plain(trunk("attn_pool.latent"), shape);
            return vec![stored.reshaped(vec![1, 1, d])];
        }
        _ => {}
    }
    let (module, field) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let field = field_name(field);
    if module == "head.attn.in_proj" {
        return vec![
            Stored::part(trunk(&format!("attn_pool.q.{field}")), rows, 0..d),
            Stored::part(trunk(&format!("attn_pool.kv.{field}")), rows, d..3 * d),
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

/// A linear weight is a matrix and lies transposed; everything else lies as it is.
fn linear(name: String, shape: &[usize]) -> Stored {
    if shape.len() == 2 {
        Stored::transposed(name, shape)
    } else {
        Stored::plain(name, shape)
    }
}

/// The patch embedding, a convolution there.
fn patches(name: impl Into<String>, shape: &[usize], config: &ClipConfig) -> Stored {
    let p = config.vision.patch_size;
    Stored::transposed(name, shape).reshaped(vec![shape[1], 3, p, p])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::architecture;

    fn names(layout: KeyLayout, path: &str, shape: &[usize], architecture_name: &str) -> String {
        let config = architecture(architecture_name).unwrap();
        let stored = layout.stored(path, shape, &config);
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
                "visual.trunk.attn_pool.q.weight [768, 768] visual.trunk.attn_pool.kv.weight [1536, 768]",
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
    fn values_go_there_and_back() {
        let shape = [37, 45];
        let values: Vec<f32> = (0..37 * 45).map(|i| i as f32).collect();
        let transposed = Stored::transposed("w", &shape);
        let stored = transposed.to_stored(&values, &shape);
        // Row 3, column 5 of ours is row 5, column 3 there.
        assert_eq!(stored[5 * 37 + 3], values[3 * 45 + 5]);
        let parts = [
            Stored::part("a".into(), Some(37), 0..15),
            Stored::part("b".into(), Some(37), 15..45),
        ];
        let mut again = vec![0.0; values.len()];
        for part in &parts {
            let stored = part.to_stored(&values, &shape);
            part.write_ours(&stored, &mut again, &shape);
        }
        assert_eq!(again, values);
    }
}

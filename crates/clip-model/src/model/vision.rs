//! Vision transformer image tower of CLIP and SigLIP.

use burn::{
    module::{Module, Param},
    nn::LayerNorm,
    tensor::{Tensor, assert_shape},
};

use clip_kernels::Queries;

use super::{
    Observer,
    block::{Attention, BlockShape, Mlp, ResidualBlock},
    params::Builder,
};
use crate::{
    config::{ClipConfig, VisionConfig, VisionKind},
    error::CheckpointError,
};

/// Patch embedding: maps each square patch of an image to a token. It is a convolution whose stride
/// equals its kernel size, computed as a matrix product.
#[derive(Module, Debug)]
pub struct PatchEmbedding {
    /// `[3 · patch · patch, d]`, rows in (channel, y, x) order.
    pub weight: Param<Tensor<2>>,
    /// `[d]`; SigLIP only.
    pub bias: Option<Param<Tensor<1>>>,
    patch: usize,
}

impl PatchEmbedding {
    /// `[batch, 3, side, side]` to `[batch, ⌊side / patch⌋², d]`, patches row by row.
    fn forward(&self, pixels: Tensor<4>) -> Tensor<3> {
        let [batch, channels, side, _] = pixels.dims();
        let (p, grid) = (self.patch, side / self.patch);
        // SigLIP's convolution ignores the remainder at the right and the bottom.
        let pixels = if grid * p < side {
            pixels.slice([0..batch, 0..channels, 0..grid * p, 0..grid * p])
        } else {
            pixels
        };
        let patches: Tensor<3> = pixels
            .reshape([batch, channels, grid, p, grid, p])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, grid * grid, channels * p * p]);
        let bias = self.bias.as_ref().map(Param::val);
        burn::tensor::module::linear(patches, self.weight.val(), bias)
    }
}

/// SigLIP's attention pooling: one learned query attends to all tokens, then an MLP (`transformers`
/// `modeling_siglip.py`, class `SiglipMultiheadAttentionPoolingHead`).
#[derive(Module, Debug)]
pub struct PoolingHead {
    /// The learned query, `[d]`.
    pub probe: Param<Tensor<1>>,
    /// The attention.
    pub attn: Attention,
    /// Before the MLP.
    pub ln: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
}

impl PoolingHead {
    fn build(builder: &mut Builder<'_>, shape: &BlockShape) -> Result<Self, CheckpointError> {
        let path = "visual.head";
        Ok(Self {
            probe: builder.param(&format!("{path}.probe"), [shape.width])?,
            attn: Attention::build(builder, &format!("{path}.attn"), shape)?,
            ln: builder.layer_norm(&format!("{path}.ln"), shape.width, shape.epsilon)?,
            mlp: Mlp::build(builder, &format!("{path}.mlp"), shape)?,
        })
    }

    /// `[batch, n, d]` to `[batch, 1, d]`.
    fn forward<O: Observer>(&self, x: Tensor<3>, observer: &mut O) -> Tensor<3> {
        let [batch, _, d] = x.dims();
        let probe = self.probe.val().reshape([1, 1, d]).expand([batch, 1, d]);
        let x = self.attn.pool(probe, x);
        let path = || "visual.head".to_owned();
        let y = self
            .mlp
            .forward(self.ln.forward(x.clone()), &path, observer);
        x + y
    }
}

/// A vision transformer (OpenAI CLIP `clip/model.py`, class `VisionTransformer`; `transformers`
/// `modeling_siglip.py`, class `SiglipVisionTransformer`). Modules that only one of the two has are
/// an [`Option`].
#[derive(Module, Debug)]
pub struct VisionTower {
    /// Patch embedding.
    pub conv1: PatchEmbedding,
    /// Class token, `[d]`, at position 0; CLIP only.
    pub class_embedding: Option<Param<Tensor<1>>>,
    /// `[tokens, d]`; row 0 belongs to the class token, if there is one.
    pub positional_embedding: Param<Tensor<2>>,
    /// Before the blocks; CLIP only.
    pub ln_pre: Option<LayerNorm>,
    /// The residual blocks.
    pub blocks: Vec<ResidualBlock>,
    /// After the blocks, on the class token (CLIP) or on every token (SigLIP).
    pub ln_post: LayerNorm,
    /// Attention pooling; SigLIP only.
    pub head: Option<PoolingHead>,
    /// Projection to the joint embedding space, `[d, e]`, as `x · proj`; CLIP only.
    pub proj: Option<Param<Tensor<2>>>,
    image_size: usize,
}

impl VisionTower {
    pub(super) fn build(
        builder: &mut Builder<'_>,
        config: &ClipConfig,
    ) -> Result<Self, CheckpointError> {
        let v = &config.vision;
        let d = v.hidden_size;
        let shape = block_shape(v);
        let clip = v.kind == VisionKind::Clip;
        let patches = 3 * v.patch_size * v.patch_size;
        Ok(Self {
            conv1: PatchEmbedding {
                weight: builder.param("visual.conv1.weight", [patches, d])?,
                bias: (!clip)
                    .then(|| builder.param("visual.conv1.bias", [d]))
                    .transpose()?,
                patch: v.patch_size,
            },
            class_embedding: clip
                .then(|| builder.param("visual.class_embedding", [d]))
                .transpose()?,
            positional_embedding: builder.param("visual.positional_embedding", [v.tokens(), d])?,
            ln_pre: clip
                .then(|| builder.layer_norm("visual.ln_pre", d, v.layer_norm_eps))
                .transpose()?,
            blocks: (0..v.num_hidden_layers)
                .map(|i| ResidualBlock::build(builder, &format!("visual.blocks.{i}"), &shape))
                .collect::<Result<_, _>>()?,
            ln_post: builder.layer_norm("visual.ln_post", d, v.layer_norm_eps)?,
            head: (!clip)
                .then(|| PoolingHead::build(builder, &shape))
                .transpose()?,
            proj: clip
                .then(|| builder.param("visual.proj", [d, config.projection_dim]))
                .transpose()?,
            image_size: v.image_size,
        })
    }

    /// Returns the side of the square input images, in pixels.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// Normalised pixels `[batch, 3, side, side]` to unnormalised features `[batch, e]`.
    ///
    /// # Panics
    /// If `pixels` has another shape.
    pub(super) fn forward<O: Observer>(&self, pixels: Tensor<4>, observer: &mut O) -> Tensor<2> {
        assert_shape!(pixels, [_, 3, self.image_size, self.image_size]);
        let mut x = self.embed(pixels);
        let [batch, _, d] = x.dims();
        // Only the class token of the last block reaches the output, unless a pooling head attends
        // to all tokens.
        let last = self.blocks.len() - 1;
        for (i, block) in self.blocks.iter().enumerate() {
            let path = || format!("visual.blocks.{i}");
            let read = if i == last && self.head.is_none() {
                Queries::At(vec![0; batch])
            } else {
                Queries::All
            };
            x = block.forward(x, &read, &path, observer);
        }
        let x = match &self.head {
            Some(head) => head.forward(self.ln_post.forward(x), observer),
            None => self.ln_post.forward(x),
        };
        let x = x.reshape([batch, d]);
        let Some(proj) = &self.proj else {
            return x;
        };
        if O::ACTIVE {
            observer.linear_input("visual.proj", x.clone());
        }
        x.matmul(proj.val())
    }

    /// Pixels `[batch, 3, side, side]` to the tokens `[batch, n, d]` that enter the first block.
    fn embed(&self, pixels: Tensor<4>) -> Tensor<3> {
        let mut x = self.conv1.forward(pixels);
        let [batch, _, d] = x.dims();
        if let Some(class) = &self.class_embedding {
            let class = class.val().reshape([1, 1, d]).expand([batch, 1, d]);
            x = Tensor::cat(vec![class, x], 1);
        }
        x = x + self.positional_embedding.val().unsqueeze();
        match &self.ln_pre {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }
}

fn block_shape(v: &VisionConfig) -> BlockShape {
    BlockShape {
        width: v.hidden_size,
        hidden: v.intermediate_size,
        heads: v.num_attention_heads,
        activation: v.hidden_act,
        epsilon: v.layer_norm_eps,
        causal: false,
    }
}

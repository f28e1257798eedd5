//! The image tower: a vision transformer.

use burn::{
    module::{Module, Param},
    nn::LayerNorm,
    tensor::{Tensor, assert_shape},
};

use super::{
    Observer,
    block::{BlockShape, ResidualBlock},
    params::Builder,
};
use crate::{config::ClipConfig, error::CheckpointError};

/// Cuts an image into square patches and maps each to a token, without a bias. A convolution whose
/// stride is its kernel, written as the matrix product it is.
#[derive(Module, Debug)]
pub struct PatchEmbedding {
    /// `[3 · patch · patch, d]`, rows in (channel, y, x) order.
    pub weight: Param<Tensor<2>>,
    patch: usize,
}

impl PatchEmbedding {
    /// `[batch, 3, side, side]` to `[batch, (side / patch)², d]`, patches row by row.
    fn forward(&self, pixels: Tensor<4>) -> Tensor<3> {
        let [batch, channels, side, _] = pixels.dims();
        let (p, grid) = (self.patch, side / self.patch);
        let patches: Tensor<3> = pixels
            .reshape([batch, channels, grid, p, grid, p])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, grid * grid, channels * p * p]);
        burn::tensor::module::linear(patches, self.weight.val(), None)
    }
}

/// The image tower (OpenAI CLIP `clip/model.py`, class `VisionTransformer`).
#[derive(Module, Debug)]
pub struct VisionTower {
    /// Patches to tokens.
    pub conv1: PatchEmbedding,
    /// `[d]`, token 0 of every image.
    pub class_embedding: Param<Tensor<1>>,
    /// `[tokens, d]`, row 0 belongs to the class token.
    pub positional_embedding: Param<Tensor<2>>,
    /// Before the blocks.
    pub ln_pre: LayerNorm,
    /// The residual blocks.
    pub blocks: Vec<ResidualBlock>,
    /// On the class token after the blocks.
    pub ln_post: LayerNorm,
    /// `[d, e]`, applied on the right: `x · proj`.
    pub proj: Param<Tensor<2>>,
    image_size: usize,
}

impl VisionTower {
    pub(super) fn build(
        builder: &mut Builder<'_>,
        config: &ClipConfig,
    ) -> Result<Self, CheckpointError> {
        let v = &config.vision;
        let d = v.hidden_size;
        let shape = BlockShape {
            width: d,
            hidden: v.intermediate_size,
            heads: v.num_attention_heads,
            activation: v.hidden_act,
            epsilon: v.layer_norm_eps,
            causal: false,
        };
        Ok(Self {
            conv1: PatchEmbedding {
                weight: builder
                    .param("visual.conv1.weight", [3 * v.patch_size * v.patch_size, d])?,
                patch: v.patch_size,
            },
            class_embedding: builder.param("visual.class_embedding", [d])?,
            positional_embedding: builder.param("visual.positional_embedding", [v.tokens(), d])?,
            ln_pre: builder.layer_norm("visual.ln_pre", d, v.layer_norm_eps)?,
            blocks: (0..v.num_hidden_layers)
                .map(|i| ResidualBlock::build(builder, &format!("visual.blocks.{i}"), &shape))
                .collect::<Result<_, _>>()?,
            ln_post: builder.layer_norm("visual.ln_post", d, v.layer_norm_eps)?,
            proj: builder.param("visual.proj", [d, config.projection_dim])?,
            image_size: v.image_size,
        })
    }

    /// Side of the square images the tower takes, in pixels.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// Normalised pixels `[batch, 3, side, side]` to unnormalised features `[batch, e]`.
    ///
    /// # Panics
    /// If the pixels have another shape.
    pub(super) fn forward<O: Observer>(&self, pixels: Tensor<4>, observer: &mut O) -> Tensor<2> {
        assert_shape!(pixels, [_, 3, self.image_size, self.image_size]);
        let x = self.conv1.forward(pixels);
        let [batch, _, d] = x.dims();
        let class = self
            .class_embedding
            .val()
            .reshape([1, 1, d])
            .expand([batch, 1, d]);
        let x = Tensor::cat(vec![class, x], 1) + self.positional_embedding.val().unsqueeze();
        let mut x = self.ln_pre.forward(x);
        let pick = |x: Tensor<3>| {
            let [batch, _, d] = x.dims();
            x.slice([0..batch, 0..1, 0..d])
        };
        let last = self.blocks.len() - 1;
        for (i, block) in self.blocks.iter().enumerate() {
            let path = || format!("visual.blocks.{i}");
            x = if i == last && !observer.wants_all_tokens() {
                block.forward_one(x, &pick, None, &path, observer)
            } else {
                block.forward(x, &path, observer)
            };
        }
        let x = self.ln_post.forward(pick(x)).reshape([batch, d]);
        if O::ACTIVE {
            observer.linear_input("visual.proj", x.clone());
        }
        x.matmul(self.proj.val())
    }
}

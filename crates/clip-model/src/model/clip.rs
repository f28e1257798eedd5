//! The model: two towers and a temperature.

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};

use super::{
    Observer, TextTower, VisionTower,
    init::SeededInit,
    params::{Builder, ParamSource},
};
use crate::{config::ClipConfig, error::CheckpointError, tokenizer::TokenBatch};

/// A CLIP model.
#[derive(Module, Debug)]
pub struct Clip {
    /// The image tower.
    pub visual: VisionTower,
    /// The text tower.
    pub text: TextTower,
    /// `[1]`, the logarithm of the factor on the cosine similarities.
    pub logit_scale: Param<Tensor<1>>,
}

impl ClipConfig {
    /// A randomly initialised model on `device`, the same for the same `seed`.
    pub fn init(&self, seed: u64, device: &Device) -> Clip {
        Clip::build(self, &mut SeededInit::new(self, seed), device)
            .expect("the generator has a value for every parameter")
    }
}

impl Clip {
    pub(crate) fn build(
        config: &ClipConfig,
        source: &mut dyn ParamSource,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let mut builder = Builder { source, device };
        Ok(Self {
            visual: VisionTower::build(&mut builder, config)?,
            text: TextTower::build(&mut builder, config)?,
            logit_scale: builder.param("logit_scale", [1])?,
        })
    }

    /// Image features, not normalised.
    ///
    /// # Shapes
    /// - `pixels`: `[batch, 3, side, side]`, as [`Preprocess::to_tensor`](crate::Preprocess::to_tensor) makes them
    /// - output: `[batch, e]`
    ///
    /// # Panics
    /// If the pixels have another shape.
    pub fn encode_image(&self, pixels: Tensor<4>) -> Tensor<2> {
        self.visual.forward(pixels, &mut ())
    }

    /// Like [`encode_image`](Self::encode_image); `observer` sees the input of each linear map of the
    /// MLPs and of the projection on the way.
    ///
    /// # Panics
    /// If the pixels have another shape.
    pub fn encode_image_observed<O: Observer>(
        &self,
        pixels: Tensor<4>,
        observer: &mut O,
    ) -> Tensor<2> {
        self.visual.forward(pixels, observer)
    }

    /// Text features `[rows, e]`, not normalised.
    ///
    /// # Panics
    /// If a row is longer than the context or holds an id outside the vocabulary, or there is no row.
    pub fn encode_text(&self, tokens: &TokenBatch) -> Tensor<2> {
        self.text.forward(tokens)
    }

    /// The factor on cosine similarities, `exp(logit_scale)`, shape `[1]`.
    pub fn scale(&self) -> Tensor<1> {
        self.logit_scale.val().exp()
    }

    /// The device the parameters are on.
    pub fn device(&self) -> Device {
        self.logit_scale.val().device()
    }
}

/// Divides each row of `x [rows, e]` by its L2 norm, without an epsilon, as the reference does.
pub fn normalize(x: Tensor<2>) -> Tensor<2> {
    let norm = x.clone().square().sum_dim(1).sqrt();
    x / norm
}

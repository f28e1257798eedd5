//! The model: two towers and a temperature.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, FloatDType, Tensor},
};

use super::{
    ImageTower, Observer, TextTower,
    host::{encode_parts, is_host, parts},
    init::SeededInit,
    params::{Builder, ParamSource, visit_shapes},
    text_batch,
};
use crate::{Kernels, config::ClipConfig, error::CheckpointError, tokenizer::TokenBatch};

/// A CLIP model: two towers and a temperature.
///
/// To train a model that was loaded on a plain device, put it on the tape with
/// [`train`](Module::train); `fork` to an autodiff device leaves its parameters untrained. Frozen
/// parameters (`freeze_group`) and whatever only they reach are off the tape.
#[derive(Module, Debug)]
pub struct ClipModel {
    /// The image tower.
    pub visual: ImageTower,
    /// The text tower.
    pub text: TextTower,
    /// `[1]`, the logarithm of the factor on the cosine similarities.
    pub logit_scale: Param<Tensor<1>>,
    /// `[1]`, added to the logits; only models trained with the sigmoid loss have it.
    pub logit_bias: Option<Param<Tensor<1>>>,
}

impl ClipConfig {
    /// A randomly initialised model on `device`, the same for the same `seed`.
    pub fn init(&self, seed: u64, device: &Device) -> ClipModel {
        ClipModel::build(self, Some(&mut SeededInit::new(self, seed)), device)
            .expect("the generator has a value for every parameter")
    }

    /// A model on `device` whose parameters are zero, to be filled or to read shapes from. Each
    /// parameter is a view of a single zero, so that the model takes no memory until it is written
    /// to.
    pub fn init_zeros(&self, device: &Device) -> ClipModel {
        ClipModel::build(self, None, device).expect("zeros need no source")
    }
}

impl ClipModel {
    /// The same model with its residual blocks computed by these kernels: those of the host, as by
    /// default, or Burn's operations, for comparisons. Burn's record of a model does not have them.
    pub fn with_kernels(mut self, kernels: Kernels) -> Self {
        let visual = match &mut self.visual {
            ImageTower::Vit(tower) => tower.blocks.as_mut_slice(),
            ImageTower::ResNet(_) => &mut [],
        };
        for block in visual.iter_mut().chain(&mut self.text.blocks) {
            block.kernels = kernels;
        }
        self
    }

    pub(crate) fn build<'a>(
        config: &ClipConfig,
        source: Option<&'a mut (dyn ParamSource + 'a)>,
        device: &'a Device,
    ) -> Result<Self, CheckpointError> {
        let mut builder = Builder { source, device };
        Ok(Self {
            visual: ImageTower::build(&mut builder, config)?,
            text: TextTower::build(&mut builder, config)?,
            logit_scale: builder.param("logit_scale", [1])?,
            logit_bias: config
                .logit_bias_init
                .map(|_| builder.param("logit_bias", [1]))
                .transpose()?,
        })
    }

    /// Image features, not normalised.
    ///
    /// # Shapes
    /// - `pixels`: `[batch, 3, side, side]`, as
    ///   [`Preprocess::to_tensor`](crate::Preprocess::to_tensor) makes them
    /// - output: `[batch, e]`
    ///
    /// # Panics
    /// If the pixels have another shape.
    pub fn encode_image(&self, pixels: Tensor<4>) -> Tensor<2> {
        let batch = pixels.dims()[0];
        if batch < 2 || !is_host(&pixels.device()) || !is_host(&self.device()) {
            return self.encode_image_observed(pixels, &mut ());
        }
        encode_parts(parts(batch), |part| {
            let pixels = pixels.clone().narrow(0, part.start, part.len());
            self.encode_image_observed(pixels, &mut ())
        })
    }

    /// Like [`encode_image`](Self::encode_image); `observer` sees the input of each linear map of
    /// the MLPs and of the projection on the way, and may add to the blocks.
    ///
    /// # Panics
    /// If the pixels have another shape.
    pub fn encode_image_observed<O: Observer>(
        &self,
        pixels: Tensor<4>,
        observer: &mut O,
    ) -> Tensor<2> {
        let dtype = self.logit_scale.val().dtype();
        let pixels = if pixels.dtype() == dtype {
            pixels
        } else {
            pixels.cast(dtype)
        };
        self.visual.forward(pixels, observer)
    }

    /// Text features `[rows, e]`, not normalised.
    ///
    /// What rows have in common at their beginning is computed once where the tower is causal and
    /// that is worth it; otherwise rows of about the same length are computed together, so that
    /// none pays for the longest one. Both give the same features up to rounding, which depends on
    /// the rows that are encoded together and, on the host, on the number of threads.
    ///
    /// # Panics
    /// If a row is longer than the context or holds an id outside the vocabulary, or there is no
    /// row.
    pub fn encode_text(&self, tokens: &TokenBatch) -> Tensor<2> {
        text_batch::encode(&self.text, tokens)
    }

    /// Like [`encode_text`](Self::encode_text), but every row by itself, whatever it has in common
    /// with others: for comparing the two ways.
    ///
    /// # Panics
    /// As [`encode_text`](Self::encode_text).
    pub fn encode_text_apart(&self, tokens: &TokenBatch) -> Tensor<2> {
        text_batch::encode_apart(&self.text, tokens)
    }

    /// Like [`encode_text`](Self::encode_text), all rows together; `observer` sees the input of
    /// each linear map of the MLPs on the way, and may add to the blocks.
    ///
    /// # Panics
    /// As [`encode_text`](Self::encode_text).
    pub fn encode_text_observed<O: Observer>(
        &self,
        tokens: &TokenBatch,
        observer: &mut O,
    ) -> Tensor<2> {
        let rows: Vec<&[u32]> = tokens.ids.iter().map(Vec::as_slice).collect();
        self.text.forward(&rows, observer)
    }

    /// The factor on cosine similarities, `exp(logit_scale)`, shape `[1]`.
    pub fn scale(&self) -> Tensor<1> {
        self.logit_scale.val().exp()
    }

    /// The same model with its parameters, and so its activations and its features, in another
    /// number format. For inference: optimizers want 32 bits. Layer norms still sum in 32 bits.
    pub fn to_dtype(self, dtype: FloatDType) -> Self {
        self.map(&mut Cast(dtype))
    }

    /// Number of parameters; the running statistics of batch norms are none.
    pub fn num_parameters(&self) -> usize {
        let mut count = 0;
        visit_shapes(self, &mut |path, shape| {
            if !path.ends_with("running_mean") && !path.ends_with("running_var") {
                count += shape.iter().product::<usize>();
            }
        });
        count
    }

    /// The device the parameters are on.
    pub fn device(&self) -> Device {
        self.logit_scale.val().device()
    }
}

/// Changes the number format of every parameter.
struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.cast(self.0))
    }
}

/// Divides each row of `x [rows, e]` by its L2 norm, without an epsilon, as the reference does.
pub fn normalize(x: Tensor<2>) -> Tensor<2> {
    let norm = x.clone().square().sum_dim(1).sqrt();
    x / norm
}

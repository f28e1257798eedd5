//! The CLIP module: image tower, text tower and logit scale.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, FloatDType, Tensor},
};

use super::{
    ImageTower, Observer, TextTower,
    host::{chunk_ranges, encode_parallel, is_host},
    init::SeededInit,
    params::{Builder, ParamSource, visit_shapes},
    text_batch::{self, TextBatching},
};
use crate::{Kernels, config::ClipConfig, error::CheckpointError, tokenizer::TokenBatch};

/// A CLIP model: image tower, text tower and logit scale.
///
/// To train a model that was loaded on a device without autodiff, call [`train`](Module::train).
/// `fork` to an autodiff device leaves its parameters without gradients. Frozen parameters
/// (`freeze_group`), and operations that depend on nothing else, are not part of the autodiff
/// graph.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use clip_model::Clip;
///
/// let device = Device::default();
/// let model = Clip::load("../mini-world/clip-mini".as_ref(), &device)?.model;
/// let pixels = Tensor::zeros([2, 3, 32, 32], &device);
/// assert_eq!(model.encode_image(pixels).dims(), [2, 128]);
/// # Ok::<(), clip_model::CheckpointError>(())
/// ```
#[derive(Module, Debug)]
pub struct ClipModel {
    /// The image tower.
    pub visual: ImageTower,
    /// The text tower.
    pub text: TextTower,
    /// Logarithm of the logit scale (inverse temperature), `[1]`.
    pub logit_scale: Param<Tensor<1>>,
    /// Bias of the logits, `[1]`. Only models trained with the sigmoid loss have one.
    pub logit_bias: Option<Param<Tensor<1>>>,
}

impl ClipConfig {
    /// Returns a randomly initialised model on `device`. The values depend on `seed` only.
    pub fn init(&self, seed: u64, device: &Device) -> ClipModel {
        ClipModel::build(self, Some(&mut SeededInit::new(self, seed)), device)
            .expect("the generator has a value for every parameter")
    }

    /// Returns a model on `device` whose parameters are zero, to fill or to read shapes from. Each
    /// parameter is a view of a single zero, so the model takes no memory until it is written to.
    pub fn init_zeros(&self, device: &Device) -> ClipModel {
        ClipModel::build(self, None, device).expect("zeros need no source")
    }
}

impl ClipModel {
    /// Selects the implementation of the residual blocks: the fused CPU kernels (default), or
    /// Burn's operations, for comparisons. Burn's record of a model does not store this choice.
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

    /// Selects the way texts are encoded. Burn's record of a model does not store this choice.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use clip_model::{Clip, TextBatching, normalize};
    ///
    /// let clip = Clip::load("../mini-world/clip-mini".as_ref(), &Device::default())?;
    /// let tokens = clip.tokenizer.encode(&["a red circle", "a red square"], 16)?;
    /// let padded = clip.model.clone().with_text_batching(TextBatching::Padded);
    /// let [a, b] = [&clip.model, &padded].map(|model| normalize(model.encode_text(&tokens)));
    /// assert!((a - b).abs().max().into_scalar::<f32>() < 1e-5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_text_batching(mut self, batching: TextBatching) -> Self {
        self.text.batching = batching;
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

    /// Returns image features, not normalised.
    ///
    /// # Shapes
    /// - `pixels`: `[batch, 3, side, side]`, from
    ///   [`Preprocess::to_tensor`](crate::Preprocess::to_tensor)
    /// - output: `[batch, e]`
    ///
    /// # Panics
    /// If `pixels` has another shape.
    pub fn encode_image(&self, pixels: Tensor<4>) -> Tensor<2> {
        let batch = pixels.dims()[0];
        // On the CPU, chunks of the batch run in parallel.
        if batch < 2 || !is_host(&pixels.device()) || !is_host(&self.device()) {
            return self.encode_image_observed(pixels, &mut ());
        }
        encode_parallel(chunk_ranges(batch), |chunk| {
            let pixels = pixels.clone().narrow(0, chunk.start, chunk.len());
            self.encode_image_observed(pixels, &mut ())
        })
    }

    /// Like [`encode_image`](Self::encode_image), and calls `observer` with the inputs of the
    /// linear layers of the MLPs and of the final projection, and those of the attention if it
    /// wants them. The observer may add a branch to each block.
    ///
    /// # Shapes
    /// - `pixels`: `[batch, 3, side, side]`
    /// - output: `[batch, e]`
    ///
    /// # Panics
    /// If `pixels` has another shape.
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

    /// Returns text features, not normalised.
    ///
    /// If the tower is causal and the rows share enough, each shared prefix is computed once.
    /// Otherwise rows of similar length are padded and computed together. Both ways give the same
    /// features up to rounding, which depends on the rows that are encoded together.
    ///
    /// # Shapes
    /// - output: `[rows, e]`
    ///
    /// # Panics
    /// If there are no rows, if a row is longer than the context, or if it holds an id outside the
    /// vocabulary.
    pub fn encode_text(&self, tokens: &TokenBatch) -> Tensor<2> {
        text_batch::encode(&self.text, tokens)
    }

    /// Like [`encode_text`](Self::encode_text), with all rows in one padded batch, and calls
    /// `observer` with the inputs of the linear layers of the MLPs, and those of the attention if
    /// it wants them. The observer may add a branch to each block.
    ///
    /// # Shapes
    /// - output: `[rows, e]`
    ///
    /// # Panics
    /// See [`encode_text`](Self::encode_text).
    pub fn encode_text_observed<O: Observer>(
        &self,
        tokens: &TokenBatch,
        observer: &mut O,
    ) -> Tensor<2> {
        let rows: Vec<&[u32]> = tokens.ids.iter().map(Vec::as_slice).collect();
        self.text.forward(&rows, observer)
    }

    /// Returns the logit scale, the factor on cosine similarities: `exp(logit_scale)`.
    ///
    /// # Shapes
    /// - output: `[1]`
    pub fn scale(&self) -> Tensor<1> {
        self.logit_scale.val().exp()
    }

    /// Casts the parameters, and with them activations and features, to another dtype. For
    /// inference: optimizers need 32 bits. Layer norms still accumulate in 32 bits.
    pub fn to_dtype(self, dtype: FloatDType) -> Self {
        self.map(&mut Cast(dtype))
    }

    /// Returns the number of parameters, without the running statistics of batch norms.
    pub fn num_parameters(&self) -> usize {
        let mut count = 0;
        visit_shapes(self, &mut |path, shape| {
            if !path.ends_with("running_mean") && !path.ends_with("running_var") {
                count += shape.iter().product::<usize>();
            }
        });
        count
    }

    /// Returns the device of the parameters.
    pub fn device(&self) -> Device {
        self.logit_scale.val().device()
    }
}

/// Casts every parameter.
struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.cast(self.0))
    }
}

/// Divides each row of `x` by its L2 norm, without an epsilon, as the reference implementation
/// does.
///
/// # Shapes
/// - `x` and output: `[rows, e]`
pub fn normalize(x: Tensor<2>) -> Tensor<2> {
    let norm = x.clone().square().sum_dim(1).sqrt();
    x / norm
}

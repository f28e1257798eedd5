//! ResNet image tower: OpenAI's modified ResNet.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{
        Tensor, activation, assert_shape,
        module::{attention, avg_pool2d, conv2d, linear},
        ops::{AttentionModuleOptions, AvgPoolOptions, ConvOptions},
    },
};

use super::{Observer, params::Builder};
use crate::{config::ClipConfig, error::CheckpointError};

/// PyTorch's default, which OpenAI's code does not change.
const BATCH_NORM_EPS: f64 = 1e-5;

/// A 2D convolution without a bias, padded to keep the size before the stride.
#[derive(Module, Debug)]
pub struct Conv {
    /// `[out, in, k, k]`.
    pub weight: Param<Tensor<4>>,
    stride: usize,
}

impl Conv {
    fn build(
        builder: &mut Builder<'_>,
        path: &str,
        [input, output, kernel, stride]: [usize; 4],
    ) -> Result<Self, CheckpointError> {
        Ok(Self {
            weight: builder.param(&format!("{path}.weight"), [output, input, kernel, kernel])?,
            stride,
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let pad = weight.dims()[2] / 2;
        let options = ConvOptions::new([self.stride; 2], [pad; 2], [1, 1], 1);
        conv2d(x, weight, None, options)
    }
}

/// Batch normalisation with frozen statistics.
///
/// It always normalises by the running statistics, also in training, where PyTorch would use the
/// statistics of each batch and update the running ones. The statistics are buffers, not trained.
#[derive(Module, Debug)]
pub struct BatchNorm {
    /// `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    /// `[channels]`, not trained.
    pub running_mean: Param<Tensor<1>>,
    /// `[channels]`, not trained.
    pub running_var: Param<Tensor<1>>,
}

impl BatchNorm {
    fn build(
        builder: &mut Builder<'_>,
        path: &str,
        channels: usize,
    ) -> Result<Self, CheckpointError> {
        Ok(Self {
            weight: builder.param(&format!("{path}.weight"), [channels])?,
            bias: builder.param(&format!("{path}.bias"), [channels])?,
            running_mean: builder.buffer(&format!("{path}.running_mean"), [channels])?,
            running_var: builder.buffer(&format!("{path}.running_var"), [channels])?,
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        // Detached, so that the statistics stay fixed even if every parameter of the model is made
        // trainable.
        let (mean, variance) = (self.running_mean.val(), self.running_var.val());
        let deviation = variance.detach().add_scalar(BATCH_NORM_EPS).sqrt();
        let scale = self.weight.val() / deviation;
        let shift = self.bias.val() - mean.detach() * scale.clone();
        let channels = scale.dims()[0];
        let shape = [1, channels, 1, 1];
        x * scale.reshape(shape) + shift.reshape(shape)
    }
}

/// Halves height and width by 2 × 2 average pooling, as an anti-aliased stride.
fn halve(x: Tensor<4>) -> Tensor<4> {
    avg_pool2d(x, AvgPoolOptions::new([2, 2]))
}

/// The shortcut around a bottleneck that changes the shape.
#[derive(Module, Debug)]
pub struct Downsample {
    /// 1 × 1.
    pub conv: Conv,
    /// After `conv`.
    pub bn: BatchNorm,
}

/// A bottleneck block. Average pooling before the last convolution takes the place of a stride
/// (OpenAI CLIP `clip/model.py`, class `Bottleneck`).
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// 1 × 1.
    pub conv1: Conv,
    /// After `conv1`.
    pub bn1: BatchNorm,
    /// 3 × 3.
    pub conv2: Conv,
    /// After `conv2`.
    pub bn2: BatchNorm,
    /// 1 × 1, to four times the width.
    pub conv3: Conv,
    /// After `conv3`.
    pub bn3: BatchNorm,
    /// The shortcut, in the first block of a stage.
    pub downsample: Option<Downsample>,
    halves: bool,
}

impl Bottleneck {
    fn build(
        builder: &mut Builder<'_>,
        path: &str,
        input: usize,
        planes: usize,
        first: bool,
        halves: bool,
    ) -> Result<Self, CheckpointError> {
        let out = 4 * planes;
        let name = |part: &str| format!("{path}.{part}");
        Ok(Self {
            conv1: Conv::build(builder, &name("conv1"), [input, planes, 1, 1])?,
            bn1: BatchNorm::build(builder, &name("bn1"), planes)?,
            conv2: Conv::build(builder, &name("conv2"), [planes, planes, 3, 1])?,
            bn2: BatchNorm::build(builder, &name("bn2"), planes)?,
            conv3: Conv::build(builder, &name("conv3"), [planes, out, 1, 1])?,
            bn3: BatchNorm::build(builder, &name("bn3"), out)?,
            downsample: first
                .then(|| {
                    Ok::<_, CheckpointError>(Downsample {
                        conv: Conv::build(builder, &name("downsample.conv"), [input, out, 1, 1])?,
                        bn: BatchNorm::build(builder, &name("downsample.bn"), out)?,
                    })
                })
                .transpose()?,
            halves,
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let pool = |x: Tensor<4>| if self.halves { halve(x) } else { x };
        let y = activation::relu(self.bn1.forward(self.conv1.forward(x.clone())));
        let y = activation::relu(self.bn2.forward(self.conv2.forward(y)));
        let y = self.bn3.forward(self.conv3.forward(pool(y)));
        let x = match &self.downsample {
            Some(down) => down.bn.forward(down.conv.forward(pool(x))),
            None => x,
        };
        activation::relu(x + y)
    }
}

/// Attention pooling: the query is the mean over positions, keys and values are the mean and all
/// positions (OpenAI CLIP `clip/model.py`, class `AttentionPool2d`).
#[derive(Module, Debug)]
pub struct AttentionPool {
    /// `[1 + h · w, d]`.
    pub positional_embedding: Param<Tensor<2>>,
    /// `[d, d]`.
    pub q_proj: Linear,
    /// `[d, d]`.
    pub k_proj: Linear,
    /// `[d, d]`.
    pub v_proj: Linear,
    /// `[d, e]`.
    pub c_proj: Linear,
    heads: usize,
}

impl AttentionPool {
    fn build(builder: &mut Builder<'_>, config: &ClipConfig) -> Result<Self, CheckpointError> {
        let v = &config.vision;
        let d = v.hidden_size;
        let path = "visual.attnpool";
        Ok(Self {
            positional_embedding: builder
                .param(&format!("{path}.positional_embedding"), [v.tokens(), d])?,
            q_proj: builder.linear(&format!("{path}.q_proj"), d, d)?,
            k_proj: builder.linear(&format!("{path}.k_proj"), d, d)?,
            v_proj: builder.linear(&format!("{path}.v_proj"), d, d)?,
            c_proj: builder.linear(&format!("{path}.c_proj"), d, config.projection_dim)?,
            heads: v.num_attention_heads,
        })
    }

    /// `[batch, d, h, w]` to `[batch, e]`.
    fn forward<O: Observer>(&self, x: Tensor<4>, observer: &mut O) -> Tensor<2> {
        let [batch, d, h, w] = x.dims();
        let tokens = x.reshape([batch, d, h * w]).swap_dims(1, 2);
        let mean = tokens.clone().mean_dim(1);
        let x = Tensor::cat(vec![mean, tokens], 1) + self.positional_embedding.val().unsqueeze();
        let n = h * w + 1;
        let split_heads = |x: Tensor<3>| {
            let n = x.dims()[1];
            x.reshape([batch, n, self.heads, d / self.heads])
                .swap_dims(1, 2)
        };
        let project = |x: Tensor<3>, layer: &Linear| {
            let bias = layer.bias.as_ref().map(Param::val);
            split_heads(linear(x, layer.weight.val(), bias))
        };
        let query = x.clone().slice([0..batch, 0..1, 0..d]);
        let q = project(query, &self.q_proj);
        let k = project(x.clone(), &self.k_proj);
        let v = project(x, &self.v_proj);
        debug_assert_eq!(k.dims()[2], n);
        let x = attention(q, k, v, None, None, AttentionModuleOptions::default())
            .swap_dims(1, 2)
            .reshape([batch, d]);
        if O::ACTIVE {
            observer.linear_input("visual.attnpool.c_proj.weight", x.clone());
        }
        self.c_proj.forward(x)
    }
}

/// OpenAI's modified ResNet (`clip/model.py`, class `ModifiedResNet`): a stem of three
/// convolutions, average pooling in place of strides, attention pooling.
#[derive(Module, Debug)]
pub struct ResNet {
    /// 3 × 3, stride 2.
    pub conv1: Conv,
    /// After `conv1`.
    pub bn1: BatchNorm,
    /// 3 × 3.
    pub conv2: Conv,
    /// After `conv2`.
    pub bn2: BatchNorm,
    /// 3 × 3.
    pub conv3: Conv,
    /// After `conv3`.
    pub bn3: BatchNorm,
    /// The first stage.
    pub layer1: Vec<Bottleneck>,
    /// The second stage.
    pub layer2: Vec<Bottleneck>,
    /// The third stage.
    pub layer3: Vec<Bottleneck>,
    /// The fourth stage.
    pub layer4: Vec<Bottleneck>,
    /// Pools the feature map to a feature vector.
    pub attnpool: AttentionPool,
    image_size: usize,
}

impl ResNet {
    pub(super) fn build(
        builder: &mut Builder<'_>,
        config: &ClipConfig,
        stages: [usize; 4],
    ) -> Result<Self, CheckpointError> {
        let w = config.vision.hidden_size / 32;
        let half = w / 2;
        let mut input = w;
        // `input` carries the width from block to block and from stage to stage.
        let mut stage = |builder: &mut Builder<'_>, index: usize| {
            let planes = w << index;
            (0..stages[index])
                .map(|i| {
                    let path = format!("visual.layer{}.{i}", index + 1);
                    let halves = index > 0 && i == 0;
                    let block = Bottleneck::build(builder, &path, input, planes, i == 0, halves);
                    input = 4 * planes;
                    block
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            conv1: Conv::build(builder, "visual.conv1", [3, half, 3, 2])?,
            bn1: BatchNorm::build(builder, "visual.bn1", half)?,
            conv2: Conv::build(builder, "visual.conv2", [half, half, 3, 1])?,
            bn2: BatchNorm::build(builder, "visual.bn2", half)?,
            conv3: Conv::build(builder, "visual.conv3", [half, w, 3, 1])?,
            bn3: BatchNorm::build(builder, "visual.bn3", w)?,
            layer1: stage(builder, 0)?,
            layer2: stage(builder, 1)?,
            layer3: stage(builder, 2)?,
            layer4: stage(builder, 3)?,
            attnpool: AttentionPool::build(builder, config)?,
            image_size: config.vision.image_size,
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
        let mut x = pixels;
        for (conv, bn) in [
            (&self.conv1, &self.bn1),
            (&self.conv2, &self.bn2),
            (&self.conv3, &self.bn3),
        ] {
            x = activation::relu(bn.forward(conv.forward(x)));
        }
        x = halve(x);
        for stage in [&self.layer1, &self.layer2, &self.layer3, &self.layer4] {
            for block in stage {
                x = block.forward(x);
            }
        }
        self.attnpool.forward(x, observer)
    }
}

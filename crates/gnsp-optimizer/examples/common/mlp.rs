//! Multilayer perceptron.

use burn::module::{Initializer, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use gnsp_optimizer::{GnspError, Recorded, Recorder};
use rand_chacha::ChaCha8Rng;

use super::Classifier;
use super::digits::{CLASSES, PIXELS};

/// Linear layers with a ReLU between them.
#[derive(Module, Debug)]
pub struct Mlp {
    layers: Vec<Recorded<Linear>>,
}

impl Mlp {
    /// Creates an MLP with two hidden layers of 128 units.
    pub fn new(device: &Device, rng: &mut ChaCha8Rng) -> Self {
        let widths = [PIXELS, 128, 128, CLASSES];
        let layers = widths.windows(2).map(|width| {
            LinearConfig::new(width[0], width[1])
                .with_initializer(Initializer::Zeros)
                .init(device)
                .into()
        });
        let mlp = Self {
            layers: layers.collect(),
        };
        super::initialize(mlp, rng)
    }
}

impl Classifier for Mlp {
    fn forward(&self, images: Tensor<2>) -> Tensor<2> {
        let layers = self.layers.iter().enumerate();
        layers.fold(images, |x, (i, layer)| {
            layer.forward(if i == 0 { x } else { relu(x) })
        })
    }

    fn record(&self, images: Tensor<2>, recorder: &mut Recorder) -> Result<(), GnspError> {
        let rows = images.dims()[0];
        recorder.record(|| self.forward(images))?;
        // `Recorded` layers record their weights only. Recorded biases are frozen from the second
        // task on.
        (0..self.layers.len()).try_for_each(|i| recorder.bias(&format!("layers.{i}.bias"), rows))
    }
}

//! A multilayer perceptron.

use burn::module::{Initializer, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use gnsp_optimizer::{RecordError, Recorder};
use rand_chacha::ChaCha8Rng;

use super::Classifier;
use super::digits::{CLASSES, PIXELS};

/// Linear layers with a ReLU between them.
#[derive(Module, Debug)]
pub struct Mlp {
    layers: Vec<Linear>,
}

impl Mlp {
    /// Two hidden layers of 128 units.
    pub fn new(device: &Device, rng: &mut ChaCha8Rng) -> Self {
        let widths = [PIXELS, 128, 128, CLASSES];
        let layers = widths.windows(2).map(|width| {
            LinearConfig::new(width[0], width[1])
                .with_initializer(Initializer::Zeros)
                .init(device)
        });
        let mlp = Self {
            layers: layers.collect(),
        };
        super::initialize(mlp, rng)
    }

    fn forward_with<E>(
        &self,
        pictures: Tensor<2>,
        mut look: impl FnMut(usize, &Tensor<2>) -> Result<(), E>,
    ) -> Result<Tensor<2>, E> {
        let mut x = pictures;
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                x = relu(x);
            }
            look(i, &x)?;
            x = layer.forward(x);
        }
        Ok(x)
    }
}

impl Classifier for Mlp {
    fn forward(&self, pictures: Tensor<2>) -> Tensor<2> {
        let Ok(logits) = self.forward_with::<std::convert::Infallible>(pictures, |_, _| Ok(()));
        logits
    }

    fn record(&self, pictures: Tensor<2>, seen: &mut Recorder) -> Result<(), RecordError> {
        let rows = pictures.dims()[0];
        self.forward_with(pictures, |i, x| {
            seen.linear(&format!("layers.{i}.weight"), x.clone())?;
            seen.bias(&format!("layers.{i}.bias"), rows) // Frozen from the second task on.
        })?;
        Ok(())
    }
}

//! Shared parts of the examples: synthetic digits, models, training on task sequences, tables.
#![allow(dead_code)] // Each example is a separate crate and uses only a part.

pub mod digits;
pub mod mlp;
#[cfg(feature = "train")]
pub mod quiet;
pub mod report;
pub mod sequence;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use gnsp_optimizer::{GnspError, Recorder};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Image classifier whose layer inputs can be recorded.
pub trait Classifier: Module {
    /// Computes logits `[N, classes]` of images `[N, pixels]`.
    fn forward(&self, images: Tensor<2>) -> Tensor<2>;

    /// Runs the forward pass and records the inputs of every layer.
    fn record(&self, images: Tensor<2>, recorder: &mut Recorder) -> Result<(), GnspError>;
}

/// Creates an independent random generator for each purpose.
pub fn generator(seed: u64, purpose: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(purpose);
    rng
}

/// Initializes the weights of a module uniformly within `1/√fan_in`, and the biases with zeros.
///
/// Burn's random generator is global to a device, so its numbers depend on all earlier draws.
pub fn initialize<M: Module>(module: M, rng: &mut ChaCha8Rng) -> M {
    module.map(&mut Initialize { rng })
}

struct Initialize<'a> {
    rng: &'a mut ChaCha8Rng,
}

impl ModuleMapper for Initialize<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| {
            let shape = tensor.dims();
            let bound = match D {
                1 => 0.0,
                2 => 1.0 / (shape[0] as f32).sqrt(), // [in, out]
                _ => 1.0 / (shape[1..].iter().product::<usize>() as f32).sqrt(), // [out, in, …]
            };
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count)
                .map(|_| bound * self.rng.random_range(-1.0..=1.0))
                .collect();
            Tensor::from_data(TensorData::new(values, shape), &tensor.device()).require_grad()
        })
    }
}

/// Returns the bits of all parameters.
pub fn bits<M: Module>(module: &M) -> Vec<u32> {
    let mut bits = Bits(Vec::new());
    module.visit(&mut bits);
    bits.0
}

struct Bits(Vec<u32>);

impl ModuleVisitor for Bits {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let data = param.val().into_data();
        self.0.extend(data.iter::<f32>().map(f32::to_bits));
    }
}

//! What the examples share: drawn digits, models, training on a sequence of tasks, tables.
#![allow(dead_code)] // Every example is a crate of its own and uses a part of this.

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

/// A classifier of pictures whose layers can be recorded.
pub trait Classifier: Module {
    /// Logits of pictures: `[N, pixels]` to `[N, classes]`.
    fn forward(&self, pictures: Tensor<2>) -> Tensor<2>;

    /// The same pass, which gives the inputs of every layer to a recorder.
    fn record(&self, pictures: Tensor<2>, recorder: &mut Recorder) -> Result<(), GnspError>;
}

/// A generator of its own for each purpose, so that no draw shifts those of another.
pub fn generator(seed: u64, purpose: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(purpose);
    rng
}

/// Draws the weights of a module from our own generator: uniform within `1/√fan_in`, biases zero.
///
/// The generator of a device is global, so what it gives depends on everything else that draws.
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

/// The bits of all parameters, one after the other.
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

//! Low-rank adapters with seeded initial values.

use burn::{
    module::{LoraAdapter, Module, Param, ParamGroup, Reparameterizer},
    tensor::{Tensor, TensorData},
};
use clip_model::{ClipModel, parameter_id};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::module_file::{Named, values};
use crate::method::Lora;
use mtil_data::seeds;

/// Below the path of a weight, where its adapter lies.
const ADAPTER: &str = ".lora.";

/// Puts adapters on the weights that a method names, and freezes everything else. Burn's own draws
/// their values and their ids anew in every process; here both follow from the path and the seed,
/// so that a run can go on in another.
struct Seeded<'a> {
    groups: &'a [ParamGroup],
    rank: usize,
    scale: f64,
    seed: u64,
    /// Values of an earlier process.
    stored: Option<&'a Named>,
}

impl Reparameterizer for Seeded<'_> {
    type Reparam = LoraAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Self::Reparam>) {
        let id = param.id;
        let chosen = D == 2 && self.groups.iter().any(|g| g.matches(&id, Some(path)));
        let base = param.base();
        let frozen = param.set_require_grad(false);
        if !chosen {
            return (frozen, None);
        }
        let (dims, device) = (base.dims(), base.device());
        let factor = |name: &str, shape: [usize; 2], deviation: f64| {
            let path = format!("{path}{ADAPTER}{name}");
            let stored = self.stored.and_then(|s| s.get(&path));
            let values = match stored {
                Some((_, values)) => values.clone(),
                None => normal(
                    seeds::derive(self.seed, &[seeds::of(&path)]),
                    shape[0] * shape[1],
                    deviation,
                ),
            };
            let value = Tensor::<2>::from_data(TensorData::new(values, shape), &device);
            Param::initialized(parameter_id(&path), value).set_require_grad(true)
        };
        // A from a normal distribution, B zero: the model starts as it is (Hu et al. 2021).
        let adapter = LoraAdapter {
            a: factor("a", [dims[0], self.rank], 1.0 / self.rank as f64),
            b: factor("b", [self.rank, dims[1]], 0.0),
            scale: self.scale,
        };
        (frozen, Some(adapter))
    }
}

/// `count` normal values of mean 0.
pub(super) fn normal(seed: u64, count: usize, deviation: f64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || {
        // Box and Muller; 1 - u is above 0.
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    };
    (0..count)
        .map(|_| {
            if deviation == 0.0 {
                0.0
            } else {
                (draw() * deviation) as f32
            }
        })
        .collect()
}

/// `model` with adapters, of the values in `stored` if there are some.
pub(super) fn apply(
    model: ClipModel,
    lora: &Lora,
    groups: &[ParamGroup],
    seed: u64,
    stored: Option<&Named>,
) -> ClipModel {
    model.apply_reparameterization(Seeded {
        groups,
        rank: lora.rank,
        scale: lora.alpha / lora.rank as f64,
        seed,
        stored,
    })
}

/// The values of the adapters of `model`.
pub(super) fn adapters(model: &ClipModel) -> Named {
    values(model, &|path| path.contains(ADAPTER))
}

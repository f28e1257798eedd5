//! Low-rank adapters (LoRA) with seeded initial values: both factors random and trained.

use burn::{
    module::{LoraAdapter, Module, Param, ParamGroup, Reparameterizer},
    tensor::{Tensor, TensorData},
};
use clip_model::{ClipModel, parameter_id};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{parts::ADAPTER, settings::Lora};
use crate::mechanism::module_file::NamedTensors;
use mtil_data::seeds;

/// Reparameterizer that adds adapters to the selected weights and freezes all parameters. Burn's
/// own draws new values and ids in every process. Here both are functions of the path and the seed,
/// so that another process can resume a run.
struct SeededLora<'a> {
    groups: &'a [ParamGroup],
    rank: usize,
    scale: f64,
    seed: u64,
    /// Stored values to resume from.
    stored: Option<&'a NamedTensors>,
}

impl Reparameterizer for SeededLora<'_> {
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
                None => normal_values(
                    seeds::derive(self.seed, &[seeds::hash_text(&path)]),
                    shape[0] * shape[1],
                    deviation,
                ),
            };
            let value = Tensor::<2>::from_data(TensorData::new(values, shape), &device);
            Param::initialized(parameter_id(&path), value).set_require_grad(true)
        };
        // A is normal and B zero, so the adapted model initially equals the original (Hu et al.
        // 2021).
        let adapter = LoraAdapter {
            a: factor("a", [dims[0], self.rank], 1.0 / self.rank as f64),
            b: factor("b", [self.rank, dims[1]], 0.0),
            scale: self.scale,
        };
        (frozen, Some(adapter))
    }
}

/// Draws `count` normal values of mean 0.
pub(crate) fn normal_values(seed: u64, count: usize, deviation: f64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || {
        // Box-Muller transform; 1 - u is above 0.
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

/// Adds adapters to the weights `groups` of `model`, with the values in `stored` if given.
pub(super) fn attach(
    model: ClipModel,
    lora: &Lora,
    groups: &[ParamGroup],
    seed: u64,
    stored: Option<&NamedTensors>,
) -> ClipModel {
    model.apply_reparameterization(SeededLora {
        groups,
        rank: lora.rank,
        scale: lora.scale(),
        seed,
        stored,
    })
}

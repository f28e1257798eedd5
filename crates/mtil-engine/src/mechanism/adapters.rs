//! Low-rank adapters with seeded initial values.

use std::path::Path;

use burn::{
    module::{LoraAdapter, Module, Param, ParamGroup, Reparameterizer},
    tensor::{Tensor, TensorData},
};
use clip_model::{Clip, ClipModel, parameter_id};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    hooks::Mechanism,
    module_file::{self, Named, values},
    setting::{Outline, Setting, some, within},
    state::{Carried, State},
};
use crate::error::RunError;
use mtil_data::seeds;

/// Low-rank adapters `W + (alpha/rank)·A·B` on two-dimensional weights (Hu et al. 2021). The
/// weights themselves, and all others, are frozen; after a task the product is added to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Columns of A.
    pub rank: usize,
    /// The product counts `alpha / rank` times.
    pub alpha: f64,
    /// Regular expressions of the weights.
    pub weights: Vec<String>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 16.0,
            weights: vec![
                r"^(visual|text)\.blocks\.\d+\.(attn\.(in_proj|out_proj)|mlp\.(c_fc|c_proj))\.weight$".to_owned(),
            ],
        }
    }
}

/// The adapters of the task in work.
pub(crate) struct Adapters(pub Named);

const FILE: &str = "adapters.safetensors";

impl Carried for Adapters {
    /// Another way of training begins with adapters of its own.
    fn copy(&self) -> Option<Box<dyn Carried>> {
        None
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        module_file::save(&self.0, &folder.join(FILE))
    }

    /// They are added to the weights at the end of a task.
    fn bytes(&self, _: &Clip) -> u64 {
        0
    }
}

impl Mechanism for Lora {
    fn key(&self) -> &'static str {
        "lora"
    }

    fn check(&self, method: &Outline) -> Result<(), String> {
        some("lora.rank", self.rank)?;
        within("lora.alpha", self.alpha, 0.0, f64::MAX)?;
        if self.weights.is_empty() {
            return Err("`lora.weights` names no weight".to_owned());
        }
        method.alone("lora", &["distill", "merge", "rehearsal"])
    }

    fn trains_adapters(&self) -> bool {
        true
    }

    fn load(&self, folder: &Path, _: &Setting<'_>) -> Result<Option<Box<dyn Carried>>, RunError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(Box::new(Adapters(module_file::load(&path)?))))
    }

    fn begin(&self, state: &mut State) {
        state.take::<Adapters>();
    }

    fn end(&self, state: &mut State) {
        state.take::<Adapters>();
    }
}

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
pub(crate) fn normal(seed: u64, count: usize, deviation: f64) -> Vec<f32> {
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
pub(crate) fn apply(
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
pub(crate) fn adapters(model: &ClipModel) -> Named {
    values(model, &|path| path.contains(ADAPTER))
}

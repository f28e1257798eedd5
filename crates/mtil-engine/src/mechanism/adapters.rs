//! Low-rank adapters (LoRA) with seeded initial values.

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
    context::{MethodOutline, RunContext, at_least_one, in_range},
    hooks::Mechanism,
    module_file::{self, NamedTensors, named_values},
    state::{MechanismState, RunState},
};
use crate::{error::RunError, metrics::Kept};
use mtil_data::seeds;

/// Low-rank adapters `W + (alpha/rank)·A·B` on two-dimensional weights (Hu et al. 2021). All
/// weights of the model are frozen. After a task the product is merged into `W`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank: the columns of A.
    pub rank: usize,
    /// Scale of the product, as `alpha / rank`.
    pub alpha: f64,
    /// Regular expressions of the adapted weights.
    pub weights: Vec<String>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 16.0,
            weights: vec![
                concat!(
                    r"^(visual|text)\.blocks\.\d+\.",
                    r"(attn\.(in_proj|out_proj)|mlp\.(c_fc|c_proj))\.weight$"
                )
                .to_owned(),
            ],
        }
    }
}

/// Adapter values of the current task.
pub(crate) struct LoraState(pub NamedTensors);

const FILE: &str = "adapters.safetensors";

impl MechanismState for LoraState {
    /// A training with other hyper-parameters initialises its own adapters.
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        None
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        module_file::save(&self.0, &folder.join(FILE))
    }

    /// 0, since adapters are merged into the weights at the end of a task.
    fn bytes(&self, _: &Clip) -> u64 {
        0
    }

    fn kept(&self) -> Kept {
        Kept::Weights
    }
}

impl Mechanism for Lora {
    fn key(&self) -> &'static str {
        "lora"
    }

    fn check(&self, method: &MethodOutline) -> Result<(), String> {
        at_least_one("lora.rank", self.rank)?;
        in_range("lora.alpha", self.alpha, 0.0, f64::MAX)?;
        if self.weights.is_empty() {
            return Err("`lora.weights` names no weight".to_owned());
        }
        method.exclusive("lora", &["distill", "merge", "rehearsal"])
    }

    fn trains_adapters(&self) -> bool {
        true
    }

    fn load(
        &self,
        folder: &Path,
        _: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(Box::new(LoraState(module_file::load(&path)?))))
    }

    fn begin_task(&self, state: &mut RunState) {
        state.take::<LoraState>();
    }

    fn end_task(&self, state: &mut RunState) {
        state.take::<LoraState>();
    }
}

/// Separates the path of a weight from the name of its adapter's factor.
const ADAPTER: &str = ".lora.";

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
pub(crate) fn attach(
    model: ClipModel,
    lora: &Lora,
    groups: &[ParamGroup],
    seed: u64,
    stored: Option<&NamedTensors>,
) -> ClipModel {
    model.apply_reparameterization(SeededLora {
        groups,
        rank: lora.rank,
        scale: lora.alpha / lora.rank as f64,
        seed,
        stored,
    })
}

/// Returns the values of the adapters of `model`.
pub(crate) fn adapter_values(model: &ClipModel) -> NamedTensors {
    named_values(model, &|path| path.contains(ADAPTER))
}

//! Settings of low-rank adapters, and their checks.

use gnsp_optimizer::Site;
use serde::{Deserialize, Serialize};

use crate::mechanism::context::{MethodOutline, at_least_one, in_range};

/// The key of the protected directions in a method file, a mechanism of their own.
pub(super) const PROTECT_KEY: &str = "lora.protect";

/// Low-rank adapters `W + (alpha/rank)·A·B` on two-dimensional weights (Hu et al. 2021), with a
/// chosen basis. All weights of the model are frozen. After a task the product is merged into `W`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank: the columns of A. With `basis = "weight-tail"` the largest rank: a weight with fewer
    /// free dimensions gets an adapter of as many.
    pub rank: usize,
    /// Scale of the product, as `alpha / rank`.
    pub alpha: f64,
    /// Regular expressions of the adapted weights.
    pub weights: Vec<String>,
    /// Parts of the attention's fused input projection that are adapted, each as a weight of its
    /// own. When absent, the fused weight is adapted as one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<Vec<AttentionPart>>,
    /// The space that A and B are taken from.
    #[serde(skip_serializing_if = "is_default")]
    pub basis: AdapterBasis,
    /// The trained factors.
    #[serde(skip_serializing_if = "is_default")]
    pub train: AdapterTrain,
    /// Initial values of factors that the basis does not determine.
    #[serde(skip_serializing_if = "is_default")]
    pub start: AdapterStart,
    /// Images per batch of the passes over a task's images, which find gradients and inputs.
    #[serde(skip_serializing_if = "is_pass_batch")]
    pub pass_batch: usize,
    /// Batches of these passes; as many whole ones as the training set has when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass_batches: Option<usize>,
    /// Directions that the adapters may not use.
    #[serde(skip_serializing_if = "is_default")]
    pub protect: Protect,
    /// A trained weight for each rank, with thresholding to zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// A part of the attention's fused input projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionPart {
    /// The queries, the first third of the columns.
    Query,
    /// The keys, the second third.
    Key,
    /// The values, the last third.
    Value,
}

/// The space that the factors of an adapter are taken from at the start of a task. With the
/// protected directions `M` of the weight's inputs:
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterBasis {
    /// `"free"`: random values.
    #[default]
    Free,
    /// `"residual-gradient"`: A has the leading left singular vectors of `(I − MMᵀ)·G`, where `G`
    /// is the mean gradient of the task's loss (KeepLoRA, arXiv 2601.19659).
    ResidualGradient,
    /// `"residual-input"`: A has the leading left singular vectors of `(I − MMᵀ)·R`, where `R`
    /// is the statistic of the task's inputs in `protect.inputs` (InfLoRA, CVPR 2024).
    ResidualInput,
    /// `"weight-tail"`: A and B have the singular vectors of `W` outside its protected leading
    /// ones, the smallest singular values first (NuSA-CL, arXiv 2510.21175; OSF).
    WeightTail,
}

/// The trained factors of an adapter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterTrain {
    /// `"both"`: A and B. With `basis = "weight-tail"` also the singular values between them, and
    /// the adapter starts as the tail of `W` itself.
    #[default]
    Both,
    /// `"out"`: B.
    Out,
    /// `"core"`: a matrix between A and B, which starts as zero.
    Core,
}

/// Initial values of factors that the basis does not determine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterStart {
    /// `"normal"`: A is normal with the deviation `1/rank`, B zero.
    #[default]
    Normal,
    /// `"uniform"`: A is uniform within `±1/√inputs` (PyTorch's `kaiming_uniform_` with `a = √5`,
    /// as in CoDyRA), B zero.
    Uniform,
    /// `"both"`: A and B are normal with the deviation 0.01, so that the first step sees changed
    /// weights (ConDU).
    Both,
    /// `"gradient"`: B is `S·Vᵀ` of the decomposed gradient, and `(alpha/rank)·A·B` is subtracted
    /// from `W`, which the first step therefore sees unchanged.
    Gradient,
}

/// Directions that adapters may not use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Protect {
    /// Leading singular vectors of the weights: of the pretrained ones for a residual basis, which
    /// keeps them; of the current ones for `basis = "weight-tail"`, which keeps nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<ProtectWeights>,
    /// Leading directions of the inputs of earlier tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<ProtectInputs>,
}

/// Protection of the leading singular vectors of a weight. Either `energy` or `share` is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProtectWeights {
    /// Share of the squared singular values. A residual basis protects the vectors whose cumulative
    /// share is below it, and at least one (as KeepLoRA); a tail begins once the share is reached
    /// (as NuSA-CL).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy: Option<f64>,
    /// The same for weights of the text tower; `energy` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_energy: Option<f64>,
    /// Share of the number of singular vectors, rounded down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// The side of the weight whose vectors a residual basis protects.
    #[serde(skip_serializing_if = "is_default")]
    pub side: Side,
    /// Site of the projection of a tail whose vectors train: the gradient (as PEFT's OSF) or the
    /// optimizer's update.
    #[serde(skip_serializing_if = "is_default")]
    pub site: Site,
}

/// A side of a weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// `"input"`: directions of the weight's inputs.
    #[default]
    Input,
    /// `"output"`: directions of its outputs, used as if they were directions of its inputs. The
    /// published code of KeepLoRA does this. The weight must be square.
    Output,
}

/// Protection of the inputs of earlier tasks: the basis grows after each task until it explains the
/// share `energy` of the statistic (GPM).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectInputs {
    /// Share of the energy of the statistic.
    pub energy: f64,
    /// Increment of the share with each task. The share is at most 0.999.
    #[serde(default)]
    pub step: f64,
    /// The statistic of the inputs.
    pub statistic: InputStatistic,
}

/// A statistic of the inputs `X` of a weight over a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputStatistic {
    /// `"batch-mean"`: the mean of `Xᵀ` over the batches, position by position. Its rank is far
    /// lower than that of the inputs (KeepLoRA).
    BatchMean,
    /// `"second-moment"`: `XᵀX` (InfLoRA). The energy is that of this matrix, so it counts the
    /// squares of its eigenvalues.
    SecondMoment,
}

/// A trained weight for each rank. From a share of the training steps on, a proximal step after
/// each update shrinks the weights by a growing threshold (CoDyRA, arXiv 2412.01004).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// Share of the training steps without thresholding.
    pub start: f64,
    /// The last threshold.
    pub max: f64,
    /// Number of thresholds, evenly from 0 to `max`.
    pub steps: usize,
    /// Weights below this multiple of the threshold become 0. 1 is soft thresholding, the formula
    /// of the paper. The published code has 2: its three assignments run one after the other, so
    /// a weight just shrunk below the threshold is zeroed as well.
    pub zero_below: f64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            start: 0.5,
            max: 0.005,
            steps: 50,
            zero_below: 2.0,
        }
    }
}

const PASS_BATCH: usize = 64;

fn is_pass_batch(value: &usize) -> bool {
    *value == PASS_BATCH
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
            attention: None,
            basis: AdapterBasis::Free,
            train: AdapterTrain::Both,
            start: AdapterStart::Normal,
            protect: Protect::default(),
            gate: None,
            pass_batch: PASS_BATCH,
            pass_batches: None,
        }
    }
}

impl ProtectWeights {
    /// Returns the energy for the weight at `path`.
    pub(super) fn energy_of(&self, path: &str) -> Option<f64> {
        match (path.starts_with("text."), self.text_energy) {
            (true, Some(energy)) => Some(energy),
            _ => self.energy,
        }
    }

    fn check(&self) -> Result<(), String> {
        let key = |name: &str| format!("lora.protect.weights.{name}");
        match (self.energy, self.share) {
            (Some(energy), None) => between(&key("energy"), energy)?,
            (None, Some(share)) => between(&key("share"), share)?,
            _ => {
                return Err(
                    "`lora.protect.weights` needs either `energy` or `share`, one of the two"
                        .to_owned(),
                );
            }
        }
        match (self.text_energy, self.energy) {
            (Some(energy), Some(_)) => between(&key("text_energy"), energy),
            (Some(_), None) => Err("`lora.protect.weights.text_energy` needs `energy`".to_owned()),
            (None, _) => Ok(()),
        }
    }
}

impl ProtectInputs {
    /// Returns the share of the energy after task `task`, from 0.
    pub(super) fn energy_at(&self, task: usize) -> f64 {
        match self.step {
            0.0 => self.energy,
            step => (self.energy + step * task as f64).min(0.999),
        }
    }
}

impl Lora {
    /// Returns whether these are the adapters of Hu et al.: random factors, both trained.
    pub(super) fn is_plain(&self) -> bool {
        self.basis == AdapterBasis::Free
            && self.train == AdapterTrain::Both
            && self.start == AdapterStart::Normal
            && self.attention.is_none()
            && self.gate.is_none()
    }

    /// Returns whether the basis is a residual, which the protected directions are taken off.
    pub fn is_residual(&self) -> bool {
        matches!(
            self.basis,
            AdapterBasis::ResidualGradient | AdapterBasis::ResidualInput
        )
    }

    pub(super) fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    pub(super) fn check(&self, method: &MethodOutline) -> Result<(), String> {
        at_least_one("lora.rank", self.rank)?;
        in_range("lora.alpha", self.alpha, 0.0, f64::MAX)?;
        at_least_one("lora.pass_batch", self.pass_batch)?;
        at_least_one("lora.pass_batches", self.pass_batches.unwrap_or(1))?;
        if self.weights.is_empty() {
            return Err("`lora.weights` names no weight".to_owned());
        }
        if self.attention.as_ref().is_some_and(Vec::is_empty) {
            return Err("`lora.attention` names no part".to_owned());
        }
        self.check_factors()?;
        self.check_protection(method)?;
        if let Some(gate) = &self.gate {
            gate.check()?;
        }
        if self.is_residual() && method.joint {
            return Err(
                "`joint` trains all tasks at once: `lora.basis` is that of one task".to_owned(),
            );
        }
        method.exclusive(
            "lora",
            &[PROTECT_KEY, "distill", "merge", "rehearsal", "unify"],
        )
    }

    /// Checks that basis, trained factors and initial values fit each other.
    fn check_factors(&self) -> Result<(), String> {
        let (basis, train) = (self.basis, self.train);
        let protects = self.protect != Protect::default();
        match (basis, train) {
            (AdapterBasis::WeightTail, AdapterTrain::Out) => {
                return Err("`lora.basis = \"weight-tail\"` trains `core` or `both`".to_owned());
            }
            (AdapterBasis::WeightTail, _) | (_, AdapterTrain::Out) => {}
            (_, AdapterTrain::Core) => {
                return Err(
                    "`lora.train = \"core\"` trains a matrix between two given factors: it needs \
                     `lora.basis = \"weight-tail\"`"
                        .to_owned(),
                );
            }
            (AdapterBasis::Free, AdapterTrain::Both) => {}
            (_, AdapterTrain::Both) if protects => {
                return Err(
                    "`lora.train = \"both\"` would move A into the directions of `lora.protect`: \
                     use `out`"
                        .to_owned(),
                );
            }
            (_, AdapterTrain::Both) => {}
        }
        if self.start == AdapterStart::Gradient && basis != AdapterBasis::ResidualGradient {
            return Err(
                "`lora.start = \"gradient\"` needs `lora.basis = \"residual-gradient\"`".to_owned(),
            );
        }
        let random = match self.start {
            AdapterStart::Uniform => Some("uniform"),
            AdapterStart::Both => Some("both"),
            AdapterStart::Normal | AdapterStart::Gradient => None,
        };
        if let Some(start) = random.filter(|_| basis != AdapterBasis::Free) {
            return Err(format!(
                "`lora.start = \"{start}\"` needs `lora.basis = \"free\"`"
            ));
        }
        if self.gate.is_some() && basis != AdapterBasis::Free {
            return Err("`lora.gate` needs `lora.basis = \"free\"`".to_owned());
        }
        Ok(())
    }

    fn check_protection(&self, method: &MethodOutline) -> Result<(), String> {
        let Protect { weights, inputs } = &self.protect;
        if let Some(weights) = weights {
            weights.check()?;
        }
        if let Some(inputs) = inputs {
            between("lora.protect.inputs.energy", inputs.energy)?;
            in_range("lora.protect.inputs.step", inputs.step, 0.0, 1.0)?;
        }
        match self.basis {
            AdapterBasis::Free if weights.is_some() || inputs.is_some() => {
                return Err(
                    "`lora.protect` needs another `lora.basis` than `free`, whose adapters can \
                     take any direction"
                        .to_owned(),
                );
            }
            AdapterBasis::ResidualInput if inputs.is_none() => {
                return Err(
                    "`lora.basis = \"residual-input\"` needs `lora.protect.inputs`".to_owned(),
                );
            }
            AdapterBasis::WeightTail if weights.is_none() => {
                return Err(
                    "`lora.basis = \"weight-tail\"` needs `lora.protect.weights`".to_owned(),
                );
            }
            AdapterBasis::WeightTail if inputs.is_some() => {
                return Err(
                    "`lora.basis = \"weight-tail\"` has no `lora.protect.inputs`: it protects the \
                     weights alone"
                        .to_owned(),
                );
            }
            _ => {}
        }
        if inputs.is_some() && method.per_task {
            return Err(
                "`lora.protect.inputs` protects earlier tasks, and with `per_task` none depends \
                 on the next"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl Gate {
    fn check(&self) -> Result<(), String> {
        in_range("lora.gate.start", self.start, 0.0, 1.0)?;
        in_range("lora.gate.max", self.max, 0.0, f64::MAX)?;
        in_range("lora.gate.zero_below", self.zero_below, 1.0, f64::MAX)?;
        at_least_one("lora.gate.steps", self.steps)
    }
}

/// Returns an error unless `value` is above 0 and below 1.
fn between(key: &str, value: f64) -> Result<(), String> {
    if value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(format!(
        "`{key}` must be above 0 and below 1, it is {value}"
    ))
}

#[cfg(test)]
mod tests {
    use crate::method::Method;

    #[test]
    fn settings_that_do_not_fit_are_refused_with_the_key() {
        for (method, set, words) in [
            ("lora", "lora.train=core", "`lora.basis = \"weight-tail\"`"),
            (
                "lora",
                "lora.protect.weights.energy=0.5",
                "`lora.protect` needs",
            ),
            ("lora", "lora.start=gradient", "residual-gradient"),
            (
                "lora",
                "lora.attention=[]",
                "`lora.attention` names no part",
            ),
            ("keeplora", "lora.rank=0", "`lora.rank`"),
            (
                "keeplora",
                "lora.protect.weights.energy=1.0",
                "above 0 and below 1, it is 1",
            ),
            (
                "keeplora",
                "lora.protect.weights.text_energy=0",
                "text_energy",
            ),
            (
                "keeplora",
                "lora.protect.inputs.energy=1.5",
                "protect.inputs.energy",
            ),
            (
                "keeplora",
                "lora.protect.inputs.step=-0.1",
                "protect.inputs.step",
            ),
            (
                "keeplora",
                "lora.protect.weights.share=0.5",
                "one of the two",
            ),
            ("keeplora", "lora.train=both", "use `out`"),
            ("keeplora", "lora.train=core", "weight-tail"),
            ("keeplora", "lora.gate.max=0.1", "`lora.gate` needs"),
            ("keeplora", "lora.pass_batch=0", "`lora.pass_batch`"),
            ("keeplora", "joint=true", "`joint`"),
            ("nusa-cl", "lora.train=out", "`core` or `both`"),
            (
                "nusa-cl",
                "lora.protect.weights.energy=0",
                "above 0 and below 1, it is 0",
            ),
            (
                "nusa-cl",
                "lora.protect.inputs={energy=0.9,statistic=\"batch-mean\"}",
                "weights alone",
            ),
            (
                "osf",
                "lora.protect.weights.share=1.0",
                "protect.weights.share",
            ),
            (
                "codyra",
                "lora.gate.zero_below=0.5",
                "`lora.gate.zero_below`",
            ),
            ("codyra", "lora.gate.steps=0", "`lora.gate.steps`"),
            ("codyra", "lora.gate.start=1.5", "`lora.gate.start`"),
            ("codyra", "lora.attention=[\"output\"]", "output"),
        ] {
            let found = Method::load(method, "a suite", &[set.to_owned()]);
            let message = found.expect_err(set).to_string();
            assert!(message.contains(words), "{set}: {message}");
        }
        let both = ["start=pretrained".to_owned(), "per_task=true".to_owned()];
        let message = Method::load("inflora", "", &both).unwrap_err().to_string();
        assert!(message.contains("`per_task`"), "{message}");
    }

    #[test]
    fn the_settings_of_plain_adapters_are_stored_as_before() {
        let method = Method::load("lora", "a suite", &[]).unwrap();
        let lora = toml::to_string(method.lora.as_ref().unwrap()).unwrap();
        let keys: Vec<&str> = lora.lines().filter_map(|l| l.split(" =").next()).collect();
        assert_eq!(keys, ["rank", "alpha", "weights"], "{lora}");
        let method = Method::load("keeplora", "a suite", &[]).unwrap();
        let text = toml::to_string(&method).unwrap();
        assert_eq!(toml::from_str::<Method>(&text).unwrap().lora, method.lora);
    }
}

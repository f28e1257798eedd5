//! Mixture-of-experts adapters in parallel to the MLP of every block (MoE-Adapters, CVPR 2024;
//! JiazuoYu/MoE-Adapters4CL `mtil/clip/model.py`, `adapter.py`, `mtil/src/models/finetune.py`).
//!
//! Let `x` be the input of a block's MLP branch, after the attention. The block's output is
//! `x + mlp(ln_2(x)) + Σ_e g_e · A_e(x)` with `A_e(x) = scale · (ReLU(x·D_e + c_e)·U_e + b_e)`. The
//! gates depend on the first token of the image or text: they are the softmax over the `top`
//! largest values of `x₀·R_t`, where `R_t` is the router of the task. In training, noise with
//! standard deviation `softplus(x₀·N) + 0.01` is added to the router's output. After a task, the
//! `top` experts that were chosen most often are frozen.

use std::{collections::BTreeMap, path::Path};

use burn::{
    module::{Module, Param},
    tensor::{
        Device, IndexingUpdateOp, Int, Tensor, TensorData,
        activation::{relu, softmax, softplus},
    },
};
use clip_model::{Clip, ClipConfig, ClipModel, Observer, TokenBatch, normalize, parameter_id};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    adapters::normal_values,
    context::{
        EvaluatedModels, MethodOutline, PhaseProgress, RunContext, TaskContext, at_least_one,
        in_range,
    },
    hooks::Mechanism,
    json_file::{read_json, write_json},
    module_file::{self, named_values, restore},
    state::{MechanismState, RunState},
    task_inference::{Autoencoder, Autoencoders, CHOICE_BATCH, ExpertTask, KEY},
};
use crate::error::RunError;
use mtil_data::seeds;
use mtil_eval::{
    eval::{Encoder, Ensemble, IMAGE_BATCH, encode_chosen},
    metrics::Kept,
};

/// Mixture-of-experts adapters in parallel to the MLP of every block of both towers (MoE-Adapters,
/// CVPR 2024, arXiv 2403.11549; JiazuoYu/MoE-Adapters4CL `mtil/clip/{model,adapter}.py`). The CLIP
/// is frozen. For tasks that are not trained yet, the CLIP alone is used. The reference
/// implementation infers the task with autoencoders on AlexNet features; here it is given, or
/// inferred with autoencoders on features of the frozen image tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experts {
    /// Experts per block, shared by all tasks.
    pub experts: usize,
    /// Experts active per image or text.
    pub top: usize,
    /// Bottleneck width of an expert.
    pub bottleneck: usize,
    /// Scale of an expert's output.
    pub scale: f64,
    /// Dropout probability of an expert's hidden values in training.
    pub dropout: f64,
    /// Adds noise to the gating in training.
    pub noise: bool,
    /// Source of the task of an image.
    #[serde(skip_serializing_if = "is_given")]
    pub task: ExpertTask,
    /// Autoencoders that tell the task, unless it is given.
    #[serde(skip_serializing_if = "is_default")]
    pub autoencoder: Autoencoder,
}

fn is_given(task: &ExpertTask) -> bool {
    *task == ExpertTask::Given
}

fn is_default(autoencoder: &Autoencoder) -> bool {
    *autoencoder == Autoencoder::default()
}

impl Default for Experts {
    fn default() -> Self {
        Self {
            experts: 22,
            top: 2,
            bottleneck: 64,
            scale: 0.1,
            dropout: 0.1,
            noise: true,
            task: ExpertTask::Given,
            autoencoder: Autoencoder::default(),
        }
    }
}

/// The mixtures of a run, and the usage of their experts.
#[derive(Clone)]
pub struct MixtureState {
    /// On the autodiff device.
    pub mixtures: Mixtures,
    /// Use of the adapters by the learned tasks.
    pub usage: Usage,
}

const VALUES: &str = "experts.safetensors";
const USAGE: &str = "experts.json";

impl MechanismState for MixtureState {
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        None
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        let mut values = named_values(&self.mixtures, &|_| true);
        // Routers of tasks that were not trained are zero, and the state does not depend on them.
        let is_zero = |(_, values): &(_, Vec<f32>)| values.iter().all(|v| *v == 0.0);
        values.retain(|name, value| !is_of_a_task(name) || !is_zero(value));
        module_file::save(&values, &folder.join(VALUES))?;
        write_json(&self.usage, &folder.join(USAGE))
    }

    fn bytes(&self, _: &Clip) -> u64 {
        4 * self.mixtures.num_params() as u64
    }

    fn kept(&self) -> Kept {
        Kept::Weights
    }
}

/// Returns whether a parameter belongs to one task: its router or its noise weights.
fn is_of_a_task(path: &str) -> bool {
    path.contains(".routers.") || path.contains(".noise.")
}

impl Experts {
    fn mixtures(&self, run: &RunContext<'_>) -> Mixtures {
        let (config, tasks) = (&run.checkpoint.config, run.suite.tasks.len());
        let seed = seeds::derive(run.seed, &[seeds::ADAPTERS]);
        Mixtures::new(self, config, tasks, seed, run.device)
    }
}

impl Mechanism for Experts {
    fn key(&self) -> &'static str {
        "experts"
    }

    fn check(&self, method: &MethodOutline) -> Result<(), String> {
        at_least_one("experts.experts", self.experts)?;
        at_least_one("experts.bottleneck", self.bottleneck)?;
        in_range("experts.top", self.top as f64, 1.0, self.experts as f64)?;
        in_range("experts.scale", self.scale, 0.0, f64::MAX)?;
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(format!(
                "`experts.dropout` must be at least 0 and below 1, it is {}",
                self.dropout
            ));
        }
        if method.per_task {
            return Err(
                "`experts` have a router for each task already; leave out `per_task`".to_owned(),
            );
        }
        self.autoencoder.check()?;
        method.exclusive("experts", &[KEY])
    }

    fn trains_adapters(&self) -> bool {
        true
    }

    fn supports_peers(&self) -> bool {
        false
    }

    fn needs_task(&self) -> bool {
        is_given(&self.task)
    }

    /// With an inferred task an image passes through the pretrained tower and the chosen one.
    fn evaluated_models(&self, learned: usize, _: bool) -> EvaluatedModels {
        match is_given(&self.task) || learned == 0 {
            true => EvaluatedModels::default(),
            false => EvaluatedModels {
                images: 2.0,
                prompts: (1 + learned) as f64,
            },
        }
    }

    fn initial_state(
        &self,
        run: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        Ok(Some(Box::new(MixtureState {
            mixtures: self.mixtures(run),
            usage: Usage::default(),
        })))
    }

    fn load(
        &self,
        folder: &Path,
        run: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        let path = folder.join(VALUES);
        if !path.exists() {
            return Ok(None);
        }
        let mut stored = module_file::load(&path)?;
        let mixtures = self.mixtures(run);
        // The state may be of a suite with fewer tasks: the others get their initial routers. Or it
        // may be of one with tasks that were taken back.
        let initial = named_values(&mixtures, &is_of_a_task);
        stored.retain(|name, _| !is_of_a_task(name) || initial.contains_key(name));
        for (name, values) in initial {
            stored.entry(name).or_insert(values);
        }
        Ok(Some(Box::new(MixtureState {
            mixtures: restore(mixtures, stored, &path)?,
            usage: read_json(&folder.join(USAGE))?,
        })))
    }

    fn finish_task(
        &self,
        _: &ClipModel,
        _: &TaskContext<'_>,
        state: &mut RunState,
        _: &mut PhaseProgress<'_>,
    ) -> Result<(), RunError> {
        if let Some(mixed) = state.get_mut::<MixtureState>() {
            mixed.usage.freeze(self.top);
        }
        Ok(())
    }

    fn encoder<'a>(
        &'a self,
        clip: &'a ClipModel,
        state: &'a RunState,
        learned: usize,
    ) -> Option<Box<dyn Encoder + 'a>> {
        let mixed = state.get::<MixtureState>()?;
        Some(Box::new(RoutedEncoder {
            clip,
            mixtures: mixed.mixtures.valid(),
            settings: self,
            learned,
            inference: state
                .get::<Autoencoders>()
                .filter(|_| !is_given(&self.task)),
        }))
    }

    fn save_checkpoint(&self, folder: &Path, state: &RunState) -> Result<(), RunError> {
        let Some(mixed) = state.get::<MixtureState>() else {
            return Ok(());
        };
        module_file::save(
            &named_values(&mixed.mixtures, &|_| true),
            &folder.join(VALUES),
        )
    }

    fn notes(&self) -> Vec<String> {
        let inferred = match self.task {
            ExpertTask::Given => None,
            ExpertTask::Batch => Some(
                "the task of an image is inferred, once for each batch of 128 test images of one \
                 task (batch-level task inference)",
            ),
            ExpertTask::Image => Some("the task of an image is inferred from the image"),
        };
        let notes = ["gap and retrieval are the pretrained model's"].into_iter();
        notes.chain(inferred).map(str::to_owned).collect()
    }
}

/// One expert: a bottleneck adapter.
#[derive(Module, Debug)]
pub(crate) struct Adapter {
    /// `[d, bottleneck]`.
    down: Param<Tensor<2>>,
    /// `[bottleneck]`.
    down_bias: Param<Tensor<1>>,
    /// `[bottleneck, d]`.
    up: Param<Tensor<2>>,
    /// `[d]`.
    up_bias: Param<Tensor<1>>,
}

/// The experts and routers of one block.
#[derive(Module, Debug)]
pub(crate) struct Mixture {
    experts: Vec<Adapter>,
    /// One `[d, experts]` per task.
    routers: Vec<Param<Tensor<2>>>,
    /// Weights of the gating noise, one `[d, experts]` per task (MoE-Adapters4CL
    /// `mtil/clip/model.py:333-338,476-480`).
    noise: Vec<Param<Tensor<2>>>,
}

/// The mixtures of both towers.
#[derive(Module, Debug)]
pub struct Mixtures {
    visual: Vec<Mixture>,
    text: Vec<Mixture>,
}

/// Usage counts and frozen experts of the mixtures.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Number of times that each expert of a block was chosen in the current task.
    pub chosen: BTreeMap<String, Vec<u64>>,
    /// The frozen experts of a block.
    pub frozen: BTreeMap<String, Vec<usize>>,
}

impl Usage {
    /// Freezes the `top` experts of each block that were chosen most often, and resets the counts.
    pub fn freeze(&mut self, top: usize) {
        for (block, counts) in std::mem::take(&mut self.chosen) {
            let frozen = self.frozen.entry(block).or_default();
            for expert in top_k(&counts, top) {
                if !frozen.contains(&expert) {
                    frozen.push(expert);
                }
            }
        }
    }
}

/// Returns the indices of the `k` largest values; of equal values, the first.
fn top_k<T: PartialOrd + Copy>(values: &[T], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| {
        values[*b]
            .partial_cmp(&values[*a])
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    order.truncate(k);
    order
}

impl Mixtures {
    /// Creates mixtures for `tasks` tasks. The experts' outputs and the routers are initially zero.
    pub fn new(
        settings: &Experts,
        config: &ClipConfig,
        tasks: usize,
        seed: u64,
        device: &Device,
    ) -> Self {
        let tower = |name: &str, layers: usize, width: usize| -> Vec<Mixture> {
            (0..layers)
                .map(|i| Mixture::new(&block_path(name, i), settings, width, tasks, seed, device))
                .collect()
        };
        let (v, t) = (&config.vision, &config.text);
        Self {
            visual: tower("visual", v.num_hidden_layers, v.hidden_size),
            text: tower("text", t.num_hidden_layers, t.hidden_size),
        }
    }

    /// Makes exactly the parameters of task `task` trainable: its router, its noise weights, and
    /// the experts that are not frozen.
    pub fn trainable(mut self, task: usize, usage: &Usage) -> Self {
        for (name, tower) in [("visual", &mut self.visual), ("text", &mut self.text)] {
            for (i, mixture) in tower.iter_mut().enumerate() {
                let frozen = usage.frozen.get(&block_path(name, i));
                let frozen = |expert| frozen.is_some_and(|f| f.contains(&expert));
                mixture.set_trainable(task, &frozen);
            }
        }
        self
    }

    fn block(&self, path: &str) -> Option<&Mixture> {
        let (tower, index) = path.split_once(".blocks.")?;
        let tower = if tower == "visual" {
            &self.visual
        } else {
            &self.text
        };
        tower.get(index.parse::<usize>().ok()?)
    }
}

fn block_path(tower: &str, index: usize) -> String {
    format!("{tower}.blocks.{index}")
}

impl Mixture {
    fn new(
        block: &str,
        settings: &Experts,
        d: usize,
        tasks: usize,
        seed: u64,
        device: &Device,
    ) -> Self {
        let (e, b) = (settings.experts, settings.bottleneck);
        let matrix = |name: &str, shape: [usize; 2], values: Vec<f32>| {
            let value = Tensor::<2>::from_data(TensorData::new(values, shape), device);
            Param::initialized(parameter_id(&format!("{block}.{name}")), value)
        };
        let vector = |name: &str, n: usize| {
            let value = Tensor::<1>::zeros([n], device);
            Param::initialized(parameter_id(&format!("{block}.{name}")), value)
        };
        let experts = (0..e)
            .map(|i| {
                let name = |part: &str| format!("experts.{i}.{part}");
                // Kaiming's uniform initialisation with a = √5 is uniform in ±1/√d.
                let bound = 1.0 / (d as f64).sqrt();
                let path = format!("{block}.{}", name("down"));
                let mut rng =
                    ChaCha8Rng::seed_from_u64(seeds::derive(seed, &[seeds::hash_text(&path)]));
                let down = (0..d * b)
                    .map(|_| rng.random_range(-bound..bound) as f32)
                    .collect();
                Adapter {
                    down: matrix(&name("down"), [d, b], down),
                    down_bias: vector(&name("down_bias"), b),
                    up: matrix(&name("up"), [b, d], vec![0.0; b * d]),
                    up_bias: vector(&name("up_bias"), d),
                }
            })
            .collect();
        Self {
            experts,
            routers: (0..tasks)
                .map(|t| matrix(&format!("routers.{t}"), [d, e], vec![0.0; d * e]))
                .collect(),
            noise: (0..tasks)
                .map(|t| matrix(&format!("noise.{t}"), [d, e], vec![0.0; d * e]))
                .collect(),
        }
    }

    fn set_trainable(&mut self, task: usize, frozen: &dyn Fn(usize) -> bool) {
        fn set<const D: usize>(param: &mut Param<Tensor<D>>, trains: bool) {
            *param = param.clone().set_require_grad(trains);
        }
        for (i, expert) in self.experts.iter_mut().enumerate() {
            let trains = !frozen(i);
            set(&mut expert.down, trains);
            set(&mut expert.down_bias, trains);
            set(&mut expert.up, trains);
            set(&mut expert.up_bias, trains);
        }
        let gates = self.routers.iter_mut().zip(&mut self.noise);
        for (i, (router, noise)) in gates.enumerate() {
            set(router, i == task);
            set(noise, i == task);
        }
    }
}

/// Seed of the gating noise and the dropout of one training step.
#[derive(Debug, Clone, Copy)]
pub struct NoiseSeed {
    /// Seed of the run and the task.
    pub seed: u64,
    /// Training step, from 0.
    pub step: u64,
}

/// Observer that adds the mixtures' outputs to the blocks of one forward pass.
struct MixtureObserver<'a> {
    mixtures: &'a Mixtures,
    settings: &'a Experts,
    task: usize,
    /// Absent in evaluation.
    noise_seed: Option<NoiseSeed>,
    all_tokens: bool,
    chosen: BTreeMap<String, Vec<u64>>,
}

impl Observer for MixtureObserver<'_> {
    fn wants_all_tokens(&self) -> bool {
        self.all_tokens
    }

    fn branch(&mut self, block: &str, x: &Tensor<3>) -> Option<Tensor<3>> {
        let mixture = self.mixtures.block(block)?;
        let settings = self.settings;
        let [n, tokens, d] = x.dims();
        let first = x.clone().slice([0..n, 0..1, 0..d]).reshape([n, d]);
        let mut scores = first.clone().matmul(mixture.routers[self.task].val());
        let stream = |index: u64| {
            self.noise_seed.map(|noise| {
                let seed = seeds::derive(noise.seed, &[index, seeds::hash_text(block)]);
                seeds::derive(seed, &[noise.step])
            })
        };
        if let (true, Some(seed)) = (settings.noise, stream(0)) {
            let width =
                softplus(first.matmul(mixture.noise[self.task].val()), 1.0).add_scalar(0.01);
            let noise = TensorData::new(
                normal_values(seed, n * settings.experts, 1.0),
                [n, settings.experts],
            );
            scores = scores + width * Tensor::from_data(noise, &x.device());
        }
        // The routing is decided on the host: it determines which rows each expert computes.
        let values = mtil_eval::eval::to_host(scores.clone().inner());
        let picks: Vec<Vec<usize>> = values
            .chunks(settings.experts)
            .map(|row| top_k(row, settings.top))
            .collect();
        let counts = self
            .chosen
            .entry(block.to_owned())
            .or_insert_with(|| vec![0; settings.experts]);
        for expert in picks.iter().flatten() {
            counts[*expert] += 1;
        }
        let device = x.device();
        let int = |values: Vec<i64>| {
            let n = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [n]), &device)
        };
        // The softmax is over the chosen experts only.
        let flat = picks.iter().flatten().map(|e| *e as i64).collect();
        let gates = softmax(scores.gather(1, int(flat).reshape([n, settings.top])), 1).reshape([
            n * settings.top,
            1,
            1,
        ]);
        let mut sum = Tensor::<3>::zeros([n, tokens, d], &device);
        // Each expert computes only the images or texts that chose it.
        for (e, expert) in mixture.experts.iter().enumerate() {
            let places = |f: &dyn Fn(usize, usize) -> i64| -> Vec<i64> {
                let found = picks.iter().enumerate().filter_map(|(row, picks)| {
                    let at = picks.iter().position(|p| *p == e)?;
                    Some(f(row, at))
                });
                found.collect()
            };
            let rows = places(&|row, _| row as i64);
            if rows.is_empty() {
                continue;
            }
            let count = rows.len();
            let gate = gates
                .clone()
                .select(0, int(places(&|row, at| (row * settings.top + at) as i64)));
            let rows = int(rows);
            let input = x
                .clone()
                .select(0, rows.clone())
                .reshape([count * tokens, d]);
            let hidden = input.matmul(expert.down.val()) + expert.down_bias.val().unsqueeze();
            let mut hidden = relu(hidden);
            if let (true, Some(seed)) = (settings.dropout > 0.0, stream(1 + e as u64)) {
                hidden = dropout(hidden, settings.dropout, seed);
            }
            let output = hidden.matmul(expert.up.val()) + expert.up_bias.val().unsqueeze();
            let output = output
                .reshape([count, tokens, d])
                .mul_scalar(settings.scale)
                * gate;
            sum = sum.select_assign(0, rows, output, IndexingUpdateOp::Add);
        }
        Some(sum)
    }
}

/// Inverted dropout with a seeded mask.
fn dropout(x: Tensor<2>, probability: f64, seed: u64) -> Tensor<2> {
    let dims = x.dims();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let keep = 1.0 / (1.0 - probability) as f32;
    let mask = (0..dims[0] * dims[1])
        .map(|_| {
            if rng.random::<f32>() < probability as f32 {
                0.0
            } else {
                keep
            }
        })
        .collect();
    let mask = Tensor::<2>::from_data(TensorData::new::<f32, _>(mask, dims), &x.device());
    x * mask
}

/// A CLIP with mixtures, routed for one task.
pub struct ClipWithExperts<'a> {
    /// The frozen CLIP.
    pub clip: &'a ClipModel,
    /// The mixtures in its blocks.
    pub mixtures: &'a Mixtures,
    /// Settings of the mechanism.
    pub settings: &'a Experts,
    /// Index of the task whose router is used.
    pub task: usize,
    /// Seed of the noise in training; none in evaluation.
    pub noise_seed: Option<NoiseSeed>,
}

impl ClipWithExperts<'_> {
    /// Encodes images; features are not normalised. The chosen experts are counted in `usage`.
    ///
    /// # Shapes
    /// - pixels: `[images, 3, side, side]`
    /// - output: `[images, width]`
    pub fn encode_image(&self, pixels: Tensor<4>, usage: &mut Usage) -> Tensor<2> {
        let mut branches = self.branches(false);
        let features = self.clip.encode_image_observed(pixels, &mut branches);
        add_counts(branches.chosen, usage);
        features
    }

    /// Encodes texts; features are not normalised. The first token selects the experts, so all
    /// tokens of the last block are computed.
    ///
    /// # Shapes
    /// - output: `[texts, width]`
    pub fn encode_text(&self, tokens: &TokenBatch, usage: &mut Usage) -> Tensor<2> {
        let mut branches = self.branches(true);
        let features = self.clip.encode_text_observed(tokens, &mut branches);
        add_counts(branches.chosen, usage);
        features
    }

    fn branches(&self, all_tokens: bool) -> MixtureObserver<'_> {
        MixtureObserver {
            mixtures: self.mixtures,
            settings: self.settings,
            task: self.task,
            noise_seed: self.noise_seed,
            all_tokens,
            chosen: BTreeMap::new(),
        }
    }
}

/// Adds the counts of one forward pass to `usage`.
fn add_counts(chosen: BTreeMap<String, Vec<u64>>, usage: &mut Usage) {
    for (block, counts) in chosen {
        let all = usage
            .chosen
            .entry(block)
            .or_insert_with(|| vec![0; counts.len()]);
        for (all, new) in all.iter_mut().zip(counts) {
            *all += new;
        }
    }
}

/// Encoder of the evaluation: trained tasks use their own router, the others the CLIP alone.
struct RoutedEncoder<'a> {
    clip: &'a ClipModel,
    mixtures: Mixtures,
    settings: &'a Experts,
    /// Number of trained tasks.
    learned: usize,
    /// Autoencoders that tell the task of an image, unless it is given.
    inference: Option<&'a Autoencoders>,
}

impl Ensemble for RoutedEncoder<'_> {
    fn models(&self) -> usize {
        1 + self.learned
    }

    fn batch(&self) -> usize {
        match self.settings.task {
            ExpertTask::Batch => CHOICE_BATCH,
            ExpertTask::Given | ExpertTask::Image => IMAGE_BATCH,
        }
    }

    /// One model answers an image: the others have weight 0.
    fn image(&self, pixels: Tensor<4>) -> Tensor<2> {
        let features = normalize(self.clip.encode_image(pixels.clone()));
        let [images, width] = features.dims();
        let at_once = self.settings.task == ExpertTask::Batch;
        let threshold = self.settings.autoencoder.threshold;
        let tasks = self.inference.map_or_else(
            || vec![None; images],
            |all| all.choose(features.clone(), self.learned, threshold, at_once),
        );
        let chosen = |task: Option<usize>| {
            let images = tasks.iter().enumerate().filter(|(_, of)| **of == task);
            images.map(|(image, _)| image).collect::<Vec<_>>()
        };
        let mut unknown = vec![0.0_f32; images];
        for image in chosen(None) {
            unknown[image] = 1.0;
        }
        let unknown = TensorData::new(unknown, [images, 1]);
        let mut all = vec![features * Tensor::from_data(unknown, &pixels.device())];
        for task in 0..self.learned {
            let encode = |pixels| self.with(task).encode_image(pixels, &mut Usage::default());
            all.push(encode_chosen(&pixels, chosen(Some(task)), width, encode));
        }
        Tensor::cat(all, 1)
    }

    fn text(&self, tokens: &TokenBatch) -> Tensor<2> {
        let models = std::iter::once(None).chain((0..self.learned).map(Some));
        let of_model = |task| normalize(Encoder::text(self, task, tokens));
        Tensor::cat(models.map(of_model).collect(), 1)
    }
}

impl RoutedEncoder<'_> {
    fn with(&self, task: usize) -> ClipWithExperts<'_> {
        ClipWithExperts {
            clip: self.clip,
            mixtures: &self.mixtures,
            settings: self.settings,
            task,
            noise_seed: None,
        }
    }
}

/// Texts encoded per batch: larger batches are not faster and take more memory.
const TEXT_BATCH: usize = 128;

impl Encoder for RoutedEncoder<'_> {
    fn image(&self, column: Option<usize>, pixels: Tensor<4>) -> Tensor<2> {
        match column.filter(|c| *c < self.learned) {
            Some(task) => self.with(task).encode_image(pixels, &mut Usage::default()),
            None => self.clip.encode_image(pixels),
        }
    }

    fn text(&self, column: Option<usize>, tokens: &TokenBatch) -> Tensor<2> {
        match column.filter(|c| *c < self.learned) {
            Some(task) => {
                let with = self.with(task);
                let encode = |ids: &[Vec<u32>]| {
                    let tokens = TokenBatch { ids: ids.to_vec() };
                    with.encode_text(&tokens, &mut Usage::default())
                };
                Tensor::cat(tokens.ids.chunks(TEXT_BATCH).map(encode).collect(), 0)
            }
            None => self.clip.encode_text(tokens),
        }
    }

    fn device(&self) -> Device {
        self.clip.device()
    }

    fn is_task_agnostic(&self) -> bool {
        false
    }

    fn ensemble(&self, _: Option<usize>) -> Option<&dyn Ensemble> {
        match self.inference.is_some() && self.learned > 0 {
            true => Some(self),
            false => None,
        }
    }
}

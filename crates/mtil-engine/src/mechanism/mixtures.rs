//! Mixtures of adapters beside the MLP of every block (MoE-Adapters, CVPR 2024;
//! JiazuoYu/MoE-Adapters4CL `mtil/clip/model.py`, `adapter.py`, `mtil/src/models/finetune.py`).
//!
//! In a block with the state `x` after the attention the output is `x + mlp(ln_2(x)) + Σ_e g_e ·
//! A_e(x)` with `A_e(x) = scale · (ReLU(x·D_e + c_e)·U_e + b_e)`. The gates come from the first
//! token of the image or text: the `top` largest of `x₀·R_t`, where `R_t` is the router of the
//! task, through a softmax among themselves. In training noise of the width `softplus(x₀·N) + 0.01`
//! is added to the router's answer. After a task, the `top` experts that were chosen most often are
//! frozen.

use std::{collections::BTreeMap, path::Path};

use burn::{
    module::{Module, Param},
    tensor::{
        Device, IndexingUpdateOp, Int, Tensor, TensorData,
        activation::{relu, softmax, softplus},
    },
};
use clip_model::{Clip, ClipConfig, ClipModel, Observer, TokenBatch, parameter_id};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    adapters::normal,
    hooks::Mechanism,
    module_file::{self, restore, values},
    setting::{Outline, Setting, TaskSetting, Watch, some, within},
    state::{Carried, State, read_json, write_json},
};
use crate::{error::RunError, eval::Encoder};
use mtil_data::seeds;

/// A mixture of adapters beside the MLP of every block of both towers (MoE-Adapters, CVPR 2024,
/// arXiv 2403.11549; JiazuoYu/MoE-Adapters4CL `mtil/clip/{model,adapter}.py`). The CLIP is frozen.
/// For a task that was not learned the model answers without them; the published code finds the
/// task by autoencoders on AlexNet features, here it is given, as in the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experts {
    /// Adapters a block, shared by all tasks.
    pub experts: usize,
    /// How many of them see an image or a text.
    pub top: usize,
    /// Width of an adapter.
    pub bottleneck: usize,
    /// Factor on an adapter's output.
    pub scale: f64,
    /// Share of an adapter's hidden values that is dropped in training.
    pub dropout: f64,
    /// Whether the choice of adapters is noisy in training.
    pub noise: bool,
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
        }
    }
}

/// The mixtures between updates.
#[derive(Clone)]
pub(crate) struct Mixed {
    /// On the autodiff device.
    pub mixtures: Mixtures,
    pub usage: Usage,
}

const VALUES: &str = "experts.safetensors";
const USAGE: &str = "experts.json";

impl Carried for Mixed {
    fn copy(&self) -> Option<Box<dyn Carried>> {
        None
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        module_file::save(&values(&self.mixtures, &|_| true), &folder.join(VALUES))?;
        write_json(&self.usage, &folder.join(USAGE))
    }

    fn bytes(&self, _: &Clip) -> u64 {
        4 * self.mixtures.num_params() as u64
    }
}

impl Experts {
    fn mixtures(&self, run: &Setting<'_>) -> Mixtures {
        let (config, tasks) = (&run.checkpoint.config, run.suite.tasks.len());
        let seed = seeds::derive(run.seed, &[seeds::ADAPTERS]);
        Mixtures::new(self, config, tasks, seed, run.device)
    }
}

impl Mechanism for Experts {
    fn key(&self) -> &'static str {
        "experts"
    }

    fn check(&self, method: &Outline) -> Result<(), String> {
        some("experts.experts", self.experts)?;
        some("experts.bottleneck", self.bottleneck)?;
        within("experts.top", self.top as f64, 1.0, self.experts as f64)?;
        within("experts.scale", self.scale, 0.0, f64::MAX)?;
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
        method.alone("experts", &[])
    }

    fn trains_adapters(&self) -> bool {
        true
    }

    fn needs_task(&self) -> bool {
        true
    }

    fn fresh(&self, run: &Setting<'_>) -> Result<Option<Box<dyn Carried>>, RunError> {
        Ok(Some(Box::new(Mixed {
            mixtures: self.mixtures(run),
            usage: Usage::default(),
        })))
    }

    fn load(&self, folder: &Path, run: &Setting<'_>) -> Result<Option<Box<dyn Carried>>, RunError> {
        let path = folder.join(VALUES);
        if !path.exists() {
            return Ok(None);
        }
        let stored = module_file::load(&path)?;
        Ok(Some(Box::new(Mixed {
            mixtures: restore(self.mixtures(run), stored, &path)?,
            usage: read_json(&folder.join(USAGE))?,
        })))
    }

    fn keep(
        &self,
        _: &ClipModel,
        _: &TaskSetting<'_>,
        state: &mut State,
        _: &mut Watch<'_>,
    ) -> Result<bool, RunError> {
        if let Some(mixed) = state.get_mut::<Mixed>() {
            mixed.usage.freeze(self.top);
        }
        Ok(true)
    }

    fn encoder<'a>(
        &'a self,
        clip: &'a ClipModel,
        state: &'a State,
        learned: usize,
    ) -> Option<Box<dyn Encoder + 'a>> {
        let mixed = state.get::<Mixed>()?;
        Some(Box::new(Routed {
            clip,
            mixtures: mixed.mixtures.valid(),
            settings: self,
            learned,
        }))
    }

    fn save_checkpoint(&self, folder: &Path, state: &State) -> Result<(), RunError> {
        let Some(mixed) = state.get::<Mixed>() else {
            return Ok(());
        };
        module_file::save(&values(&mixed.mixtures, &|_| true), &folder.join(VALUES))
    }

    fn notes(&self) -> Vec<String> {
        vec!["gap and retrieval are the pretrained model's".to_owned()]
    }
}

/// One adapter.
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

/// The adapters of one block and what chooses among them.
#[derive(Module, Debug)]
pub(crate) struct Mixture {
    experts: Vec<Adapter>,
    /// One `[d, experts]` a task.
    routers: Vec<Param<Tensor<2>>>,
    /// The widths of the noise of the gates, one `[d, experts]` a task (MoE-Adapters4CL
    /// `mtil/clip/model.py:333-338,476-480`).
    noise: Vec<Param<Tensor<2>>>,
}

/// The mixtures of both towers.
#[derive(Module, Debug)]
pub(crate) struct Mixtures {
    visual: Vec<Mixture>,
    text: Vec<Mixture>,
}

/// What is kept about the mixtures besides their values.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// How often each expert of a block was chosen in the current task.
    pub chosen: BTreeMap<String, Vec<u64>>,
    /// The frozen experts of a block.
    pub frozen: BTreeMap<String, Vec<usize>>,
}

impl Usage {
    /// Freezes the `top` experts of each block that were chosen most often, and starts counting
    /// anew.
    pub fn freeze(&mut self, top: usize) {
        for (block, counts) in std::mem::take(&mut self.chosen) {
            let frozen = self.frozen.entry(block).or_default();
            for expert in largest(&counts, top) {
                if !frozen.contains(&expert) {
                    frozen.push(expert);
                }
            }
        }
    }
}

/// Indices of the `k` largest values, the first ones of equals.
fn largest<T: PartialOrd + Copy>(values: &[T], k: usize) -> Vec<usize> {
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
    /// Fresh mixtures for `tasks` tasks: they answer zero, and no router prefers an expert.
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

    /// With exactly the parameters trainable that train on task `task`: its router and noise, and
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
                // Kaiming's uniform distribution with a = √5 is that of ±1/√d.
                let bound = 1.0 / (d as f64).sqrt();
                let path = format!("{block}.{}", name("down"));
                let mut rng = ChaCha8Rng::seed_from_u64(seeds::derive(seed, &[seeds::of(&path)]));
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

/// How the noise and the dropout of one update are drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draw {
    pub seed: u64,
    pub step: u64,
}

/// The mixtures at work in one pass.
struct Branches<'a> {
    mixtures: &'a Mixtures,
    settings: &'a Experts,
    task: usize,
    /// In training.
    draw: Option<Draw>,
    all_tokens: bool,
    chosen: BTreeMap<String, Vec<u64>>,
}

impl Observer for Branches<'_> {
    fn wants_all_tokens(&self) -> bool {
        self.all_tokens
    }

    fn branch(&mut self, block: &str, x: &Tensor<3>) -> Option<Tensor<3>> {
        let mixture = self.mixtures.block(block)?;
        let settings = self.settings;
        let [n, tokens, d] = x.dims();
        let first = x.clone().slice([0..n, 0..1, 0..d]).reshape([n, d]);
        let mut scores = first.clone().matmul(mixture.routers[self.task].val());
        let stream = |what: u64| {
            self.draw.map(|draw| {
                let seed = seeds::derive(draw.seed, &[what, seeds::of(block)]);
                seeds::derive(seed, &[draw.step])
            })
        };
        if let (true, Some(seed)) = (settings.noise, stream(0)) {
            let width =
                softplus(first.matmul(mixture.noise[self.task].val()), 1.0).add_scalar(0.01);
            let noise = TensorData::new(
                normal(seed, n * settings.experts, 1.0),
                [n, settings.experts],
            );
            scores = scores + width * Tensor::from_data(noise, &x.device());
        }
        let values = crate::eval::to_host(scores.clone().inner());
        let picks: Vec<Vec<usize>> = values
            .chunks(settings.experts)
            .map(|row| largest(row, settings.top))
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
        let flat = picks.iter().flatten().map(|e| *e as i64).collect();
        let gates = softmax(scores.gather(1, int(flat).reshape([n, settings.top])), 1).reshape([
            n * settings.top,
            1,
            1,
        ]);
        let mut sum = Tensor::<3>::zeros([n, tokens, d], &device);
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

fn dropout(x: Tensor<2>, share: f64, seed: u64) -> Tensor<2> {
    let dims = x.dims();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let keep = 1.0 / (1.0 - share) as f32;
    let mask = (0..dims[0] * dims[1])
        .map(|_| {
            if rng.random::<f32>() < share as f32 {
                0.0
            } else {
                keep
            }
        })
        .collect();
    let mask = Tensor::<2>::from_data(TensorData::new::<f32, _>(mask, dims), &x.device());
    x * mask
}

/// A CLIP with mixtures, answering for a task.
pub(crate) struct WithExperts<'a> {
    pub clip: &'a ClipModel,
    pub mixtures: &'a Mixtures,
    pub settings: &'a Experts,
    pub task: usize,
    pub draw: Option<Draw>,
}

impl WithExperts<'_> {
    /// Image features, not normalised; the choices of the experts are counted in `usage`.
    pub fn encode_image(&self, pixels: Tensor<4>, usage: &mut Usage) -> Tensor<2> {
        let mut branches = self.branches(false);
        let features = self.clip.encode_image_observed(pixels, &mut branches);
        count(branches.chosen, usage);
        features
    }

    /// Text features, not normalised. The first token decides, so all tokens of the last block are
    /// computed.
    pub fn encode_text(&self, tokens: &TokenBatch, usage: &mut Usage) -> Tensor<2> {
        let mut branches = self.branches(true);
        let features = self.clip.encode_text_observed(tokens, &mut branches);
        count(branches.chosen, usage);
        features
    }

    fn branches(&self, all_tokens: bool) -> Branches<'_> {
        Branches {
            mixtures: self.mixtures,
            settings: self.settings,
            task: self.task,
            draw: self.draw,
            all_tokens,
            chosen: BTreeMap::new(),
        }
    }
}

fn count(chosen: BTreeMap<String, Vec<u64>>, usage: &mut Usage) {
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

/// A CLIP with mixtures as evaluation sees it: tasks that were learned get their own router, the
/// others the CLIP alone.
struct Routed<'a> {
    clip: &'a ClipModel,
    mixtures: Mixtures,
    settings: &'a Experts,
    /// Tasks learned so far.
    learned: usize,
}

impl Routed<'_> {
    fn with(&self, task: usize) -> WithExperts<'_> {
        WithExperts {
            clip: self.clip,
            mixtures: &self.mixtures,
            settings: self.settings,
            task,
            draw: None,
        }
    }
}

/// Texts that go through the tower with experts together: more at once bring no speed and take
/// memory.
const TEXTS_AT_ONCE: usize = 128;

impl Encoder for Routed<'_> {
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
                Tensor::cat(tokens.ids.chunks(TEXTS_AT_ONCE).map(encode).collect(), 0)
            }
            None => self.clip.encode_text(tokens),
        }
    }

    fn device(&self) -> Device {
        self.clip.device()
    }

    fn one_for_all_tasks(&self) -> bool {
        false
    }
}

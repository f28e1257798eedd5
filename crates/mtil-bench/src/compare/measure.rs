//! Doing the work of one size on one device, and timing it.
//!
//! Runs in a process of its own (see `gather`), so that peak memory is that of this device and
//! size, and a driver that crashes or a kernel that the operating system stops takes nothing else
//! with it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};

use burn::{
    module::{Module, ParamGroup},
    optim::{AdamWConfig, GradientsParams, ModuleOptimizer, SgdConfig},
    tensor::{Device, Tensor, TensorData},
};
use clip_model::{ClipConfig, ClipModel, ClipTokenizer, TokenBatch, normalize};
use gnsp_optimizer::{History, Memory, Policy, Protection, Recorder, Solver};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::record::{Batches, Figures, Missing, Outcome, Size, Work};
use crate::{
    device::{is_accelerator, out_of_memory},
    failure::quietly,
};
use mtil_data::{
    datasets::Spec,
    files::write_atomically,
    machine::{peak_bytes, reset_peak},
    seeds,
};
use mtil_engine::{
    eval::{prompt, to_host},
    recording::InputRecorder,
    run::{Step, StepInputs, StepOptions},
};

/// What one process is asked to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// What is written after `--device`.
    pub device: String,
    /// The model.
    pub size: Size,
    /// In their order; peak memory is that of the process so far, so those that need more come
    /// later.
    pub works: Vec<Work>,
    /// How much work a call is.
    pub batches: Batches,
    /// Timed calls of each work, after the first.
    pub repetitions: usize,
    /// No repetition is begun after this many seconds of a work, its first call not counted.
    pub limit_seconds: Option<f64>,
    /// Of weights, images and prompts.
    pub seed: u64,
    /// Losses of so many updates are reported; none where 0.
    pub replay: usize,
    /// Where results are put, for comparing them: `<size>-<work>-<device>.json`.
    pub results: PathBuf,
}

/// What a measuring process says, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// The device's hardware.
    Device {
        /// Its name.
        name: String,
    },
    /// A work begins.
    Begun(Work),
    /// A work is done.
    Done(Work, Outcome),
    /// The losses of a training run, nothing for one that is not finite; or why there are none.
    Losses(Result<Vec<Option<f32>>, Missing>),
}

/// What a work computed, in parts that each have a scale of their own.
pub type Results = Vec<Vec<f32>>;

/// Where the results of a work are put.
pub fn result_file(folder: &Path, size: Size, work: Work, device: &str) -> PathBuf {
    let device = device.replace(':', "-");
    folder.join(format!("{}-{}-{device}.json", size.word(), work.word()))
}

/// The architecture of a size.
pub fn config(size: Size) -> ClipConfig {
    match size {
        Size::VitB32 => ClipConfig::vit_b_32(),
        Size::VitB16 => ClipConfig::vit_b_16(),
        Size::VitL14 => ClipConfig::vit_l_14(),
        Size::Tiny => {
            let mut config = ClipConfig::vit_b_16();
            let v = &mut config.vision;
            (v.hidden_size, v.intermediate_size, v.num_hidden_layers) = (128, 512, 2);
            (v.num_attention_heads, v.image_size, v.patch_size) = (2, 32, 8);
            let t = &mut config.text;
            (t.hidden_size, t.intermediate_size, t.num_hidden_layers) = (64, 256, 2);
            t.num_attention_heads = 1;
            config.projection_dim = 64;
            config
        }
    }
}

/// About how much memory a work takes in `f32`, in bytes: weights, gradients, moments, Gram
/// matrices, and what a backward pass keeps.
pub fn needed_bytes(size: Size, work: Work, batches: &Batches) -> u64 {
    let config = config(size);
    let (v, t) = (&config.vision, &config.text);
    let block = |d: usize, m: usize| (4 * d * d + 2 * d * m) as u64;
    let image = v.num_hidden_layers as u64 * block(v.hidden_size, v.intermediate_size);
    let text = t.num_hidden_layers as u64 * block(t.hidden_size, t.intermediate_size)
        + (t.vocab_size * t.hidden_size) as u64;
    let trained = (2 * v.num_hidden_layers * v.hidden_size * v.intermediate_size) as u64;
    let squares = v.hidden_size.pow(2) + v.intermediate_size.pow(2);
    let grams = (v.num_hidden_layers * squares) as u64;
    let tokens = v.tokens() as u64;
    // Of a block: its input twice, queries, keys, values, and the MLP before the activation.
    let kept = tokens * (5 * v.hidden_size + v.intermediate_size) as u64;
    let kept = kept * v.num_hidden_layers as u64;
    let passing = tokens * (4 * v.hidden_size + 2 * v.intermediate_size) as u64;
    let images = batches.images as u64;
    let numbers = image
        + text
        + match work {
            Work::ImageEncoding | Work::TextEncoding | Work::Evaluation => images * passing,
            Work::GramAccumulation | Work::ProjectorBuild => grams + images * passing,
            Work::ProjectedStep => grams + 4 * trained,
            Work::TrainingStep => {
                grams + 4 * trained + image + (images + batches.reference_images as u64) * kept
            }
        };
    4 * numbers
}

/// What repeated work took and gave.
struct Timed {
    items: usize,
    /// Seconds of the first call, and of the others.
    first: f64,
    seconds: Vec<f64>,
    results: Results,
    /// What the results are.
    what: &'static str,
}

/// Measures, and calls `say` with every line as soon as it is true.
///
/// A panic of the backend ends the measuring: what it leaves behind cannot be trusted. It is
/// reported as the outcome of its work.
pub fn measure(order: &Order, device: &Device, say: &mut dyn FnMut(&Line)) {
    let name = crate::device::hardware_name(device);
    say(&Line::Device { name });
    let mut bench = match quietly(|| Bench::new(order, device)) {
        Ok(bench) => bench,
        Err(reason) => {
            for work in &order.works {
                say(&Line::Begun(*work));
                let missing = explained(&reason, order, *work);
                say(&Line::Done(*work, Outcome::Missing(missing)));
            }
            return;
        }
    };
    for work in &order.works {
        say(&Line::Begun(*work));
        match quietly(|| bench.time(*work)) {
            Ok(outcome) => say(&Line::Done(*work, outcome)),
            Err(reason) => {
                let missing = explained(&reason, order, *work);
                say(&Line::Done(*work, Outcome::Missing(missing)));
                return;
            }
        }
    }
    if order.replay > 0 {
        let losses = quietly(|| bench.losses(order.replay));
        let losses = losses.map(|all| {
            let finite = all.into_iter().map(|x| Some(x).filter(|x| x.is_finite()));
            finite.collect()
        });
        let losses = losses.map_err(|reason| explained(&reason, order, Work::TrainingStep));
        say(&Line::Losses(losses));
    }
}

/// What a backend's last words mean.
fn explained(reason: &str, order: &Order, work: Work) -> Missing {
    if out_of_memory(reason) {
        return Missing::OutOfMemory {
            needed_bytes: Some(needed_bytes(order.size, work, &order.batches)),
            available_bytes: None,
            lowered_by: lowered_by(work, &order.batches),
        };
    }
    Missing::Failed {
        reason: reason.to_owned(),
    }
}

/// The option that lowers the need for memory.
pub fn lowered_by(work: Work, batches: &Batches) -> Option<String> {
    // Texts have no option, and what steps and projectors keep does not depend on the batch.
    let of_images = !matches!(work, Work::TextEncoding | Work::ProjectedStep);
    (of_images && batches.images > 1).then(|| format!("--batch {}", batches.images / 2))
}

/// A model and its inputs, on the device.
struct Bench<'a> {
    order: &'a Order,
    device: &'a Device,
    model: ClipModel,
    pixels: Tensor<4>,
    reference: Tensor<4>,
    prompts: TokenBatch,
    memory: Option<Memory>,
    protection: Option<Protection>,
}

impl<'a> Bench<'a> {
    fn new(order: &'a Order, device: &'a Device) -> Self {
        let config = config(order.size);
        let side = config.vision.image_size;
        let batches = &order.batches;
        Self {
            order,
            device,
            model: config.init(order.seed, device),
            pixels: pixels(batches.images, side, order.seed, 1, device),
            reference: pixels(batches.reference_images, side, order.seed, 2, device),
            prompts: prompts(batches.prompts),
            memory: None,
            protection: None,
        }
    }

    fn time(&mut self, work: Work) -> Outcome {
        reset_peak();
        let Timed {
            items,
            first,
            seconds,
            results,
            what,
        } = self.work(work);
        if results.iter().flatten().any(|x| !x.is_finite()) {
            return Outcome::Missing(Missing::NotFinite { what: what.into() });
        }
        let bytes = serde_json::to_vec(&results).unwrap_or_default();
        let path = result_file(
            &self.order.results,
            self.order.size,
            work,
            &self.order.device,
        );
        if let Err(error) = write_atomically(&path, &bytes) {
            let reason = format!("{}: {error}", path.display());
            return Outcome::Missing(Missing::Failed { reason });
        }
        Outcome::Measured(Figures {
            items: items as u64,
            seconds,
            first_seconds: Some(first),
            host_bytes: peak_bytes(),
            device_bytes: self
                .device
                .memory_pool_usage()
                .map(|usage| usage.bytes_reserved),
            difference: None,
        })
    }

    /// Does the work again and again.
    fn work(&mut self, work: Work) -> Timed {
        let (items, (first, seconds), results, what) = match work {
            Work::ImageEncoding => {
                let (times, out) = self.timed(|| vec![self.images(&self.pixels)]);
                (
                    self.order.batches.images,
                    times,
                    vec![out],
                    "image features",
                )
            }
            Work::TextEncoding => {
                let (times, out) = self.timed(|| {
                    // What prompts have in common is another matter, and depends on the prompts.
                    let features = normalize(self.model.encode_text_apart(&self.prompts));
                    vec![features.reshape([-1])]
                });
                (self.prompts.ids.len(), times, vec![out], "text features")
            }
            Work::TrainingStep => {
                self.protect();
                let mut step = self.step();
                let (_, gradients) = step.gradients();
                let out = gradients.map(gradient_of_projection).unwrap_or_default();
                let mut losses = Vec::new();
                let times = repeat(self.order, || {
                    losses.push(step.run());
                    self.wait();
                });
                // Devices may have made different numbers of updates; that all have a loss is asked
                // of each.
                let finite = losses.iter().all(|loss| loss.is_finite());
                let loss = if finite { losses[0] } else { f32::NAN };
                (1, times, vec![out, vec![loss]], "losses or gradients")
            }
            Work::GramAccumulation => {
                let mut recorder = None;
                let times = repeat(self.order, || {
                    recorder = Some(self.record());
                    self.wait();
                });
                let mut memory = Memory::new();
                if let Some(recorder) = recorder {
                    memory.absorb(recorder).unwrap_or_else(|e| panic!("{e}"));
                }
                let grams = memory.paths().filter_map(|path| memory.gram(path));
                let traces = grams.map(|gram| gram.trace(0) as f32).collect();
                let of_projection = memory.gram(PROJECTION).map(|gram| gram.packed().to_vec());
                let results = vec![traces, of_projection.unwrap_or_default()];
                self.memory = Some(memory);
                (self.order.batches.images, times, results, "Gram matrices")
            }
            Work::ProjectorBuild => {
                self.remember();
                let times = repeat(self.order, || self.protection = Some(self.built()));
                let dense = self.protection.iter().flat_map(|p| p.iter());
                let ranks = dense.map(|(_, p)| p.null_space.rank() as f32).collect();
                let projected = projection_of(&self.model).zip(self.protection.as_ref());
                let projected = projected.and_then(|(weight, protection)| {
                    let space = &protection.get(PROJECTION)?.null_space;
                    Some(to_host(space.project(weight)))
                });
                let results = vec![ranks, projected.unwrap_or_default()];
                (1, times, results, "projectors")
            }
            Work::ProjectedStep => {
                self.protect();
                let (times, out) = self.projected_step();
                (1, times, vec![out], "updates of weights")
            }
            Work::Evaluation => {
                let (times, out) = self.timed(|| self.evaluate());
                (self.order.batches.test_images, times, vec![out], "logits")
            }
        };
        Timed {
            items,
            first,
            seconds,
            results,
            what,
        }
    }

    /// Times `f`, whose results are read back within the time.
    fn timed(&self, f: impl Fn() -> Vec<Tensor<1>>) -> ((f64, Vec<f64>), Vec<f32>) {
        let mut results = Vec::new();
        let times = repeat(self.order, || {
            results = f().into_iter().flat_map(to_host).collect();
        });
        (times, results)
    }

    fn images(&self, pixels: &Tensor<4>) -> Tensor<1> {
        normalize(self.model.encode_image(pixels.clone())).reshape([-1])
    }

    fn wait(&self) {
        self.device.sync().unwrap_or_else(|error| panic!("{error}"));
    }

    fn record(&self) -> Recorder {
        let recorder = Recorder::new(&Policy::gnsp());
        let recorder = recorder.with_history(PROJECTION, History::Renormalize);
        let mut inputs = InputRecorder::new(recorder);
        self.model
            .encode_image_observed(self.pixels.clone(), &mut inputs);
        inputs.finish().unwrap_or_else(|error| panic!("{error}"))
    }

    /// What a first task leaves: needed by what comes after it, measured or not.
    fn remember(&mut self) {
        if self.memory.is_none() {
            let mut memory = Memory::new();
            memory
                .absorb(self.record())
                .unwrap_or_else(|error| panic!("{error}"));
            self.memory = Some(memory);
        }
    }

    fn built(&self) -> Protection {
        let memory = self.memory.as_ref().expect("remembered before");
        let policy = Policy {
            solver: if is_accelerator(&self.order.device) {
                Solver::Device
            } else {
                Solver::Auto
            },
            ..Policy::gnsp()
        };
        memory
            .protection(&self.model, &policy)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn protect(&mut self) {
        self.remember();
        if self.protection.is_none() {
            self.protection = Some(self.built());
        }
    }

    fn step(&self) -> Step {
        let batches = &self.order.batches;
        let classes = self.prompts.ids.len();
        let pairs = batches.reference_images;
        let text = |i: usize| self.prompts.ids[i * 3 % self.prompts.ids.len()].clone();
        let inputs = StepInputs {
            pixels: self.pixels.clone(),
            labels: (0..batches.images).map(|i| i * 7 % classes).collect(),
            class_tokens: self.prompts.clone(),
            reference_pixels: self.reference.clone(),
            reference_tokens: TokenBatch {
                ids: (0..pairs).map(text).collect(),
            },
            reference_labels: (0..pairs).collect(),
        };
        let protection = self.protection.as_ref().expect("protected before");
        Step::with_protection(&self.model, protection, inputs, StepOptions::default())
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn projected_step(&self) -> ((f64, Vec<f64>), Vec<f32>) {
        let protection = self.protection.as_ref().expect("protected before");
        let adamw = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0);
        let plain = ModuleOptimizer::from(adamw.build());
        let mut optimizer = protection.wrap(plain, adamw.build());
        let paths = protection.iter().map(|(path, _)| path).collect();
        let frozen = ParamGroup::all().exclude(ParamGroup::from_paths(paths));
        let device = self.device.clone().autodiff();
        let mut model = self.model.clone().fork(&device).train();
        model = model.freeze_group(frozen);
        // Gradients of the size of the weights: the time does not depend on their values.
        let loss = |model: &ClipModel| {
            let mut visitor = SquaredWeights(None);
            model.visit(&mut visitor);
            visitor.0.expect("something trains")
        };
        let gradients =
            |model: &ClipModel| GradientsParams::from_grads(loss(model).backward(), model);
        // What is compared is a step of plain descent, whose size is the gradient's: a sign is a
        // step of AdamW, and rounding decides small ones.
        let descent = SgdConfig::new();
        let mut plain = protection.wrap(descent.init(), descent.build());
        let before = projection_of(&model);
        let stepped = plain.step(1.0, model.clone(), gradients(&model));
        let change = before.zip(projection_of(&stepped));
        let change = change.map(|(before, after)| to_host(before - after));
        drop(stepped);
        let mut stepped = Some(model);
        let times = repeat_timed(self.order, || {
            let model = stepped.take().expect("put back below");
            let gradients = gradients(&model);
            self.wait();
            let begun = Instant::now();
            stepped = Some(optimizer.step(1e-5, model, gradients));
            self.wait();
            begun.elapsed().as_secs_f64()
        });
        (times, change.unwrap_or_default())
    }

    /// A test set: the classifier from its prompts, the images in batches, the logits.
    fn evaluate(&self) -> Vec<Tensor<1>> {
        let classes = normalize(self.model.encode_text(&self.prompts)).transpose();
        let batch = self.order.batches.images;
        let mut left = self.order.batches.test_images;
        let mut logits = Vec::new();
        while left > 0 {
            let count = left.min(batch);
            let pixels = self.pixels.clone().narrow(0, 0, count);
            let features = normalize(self.model.encode_image(pixels));
            logits.push(features.matmul(classes.clone()).reshape([-1]));
            left -= count;
        }
        logits
    }

    fn losses(&mut self, updates: usize) -> Vec<f32> {
        self.protect();
        let mut step = self.step();
        (0..updates).map(|_| step.run()).collect()
    }
}

/// The sum of the squares of what trains.
struct SquaredWeights(Option<Tensor<1>>);

impl burn::module::ModuleVisitor for SquaredWeights {
    fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
        let value = param.val();
        if !value.is_require_grad() {
            return;
        }
        let sum = value.square().sum();
        self.0 = Some(match self.0.take() {
            Some(all) => all + sum,
            None => sum,
        });
    }
}

/// The path of the weight that stands for all where weights are compared.
const PROJECTION: &str = "visual.proj";

fn gradient_of_projection(gradients: GradientsParams) -> Vec<f32> {
    let id = clip_model::parameter_id(PROJECTION);
    gradients.get::<2>(id).map(to_host).unwrap_or_default()
}

fn projection_of(model: &ClipModel) -> Option<Tensor<2>> {
    match &model.visual {
        clip_model::ImageTower::Vit(tower) => tower.proj.as_ref().map(|p| p.val().inner()),
        clip_model::ImageTower::ResNet(_) => None,
    }
}

/// The duration of the first call, which compiles and tunes, and of those after it: at least one.
fn repeat(order: &Order, mut f: impl FnMut()) -> (f64, Vec<f64>) {
    repeat_timed(order, || {
        let begun = Instant::now();
        f();
        begun.elapsed().as_secs_f64()
    })
}

/// [`repeat`] of what says itself how long its timed part took.
fn repeat_timed(order: &Order, mut f: impl FnMut() -> f64) -> (f64, Vec<f64>) {
    let first = f();
    let start = Instant::now();
    let mut times = Vec::new();
    let limit = order.limit_seconds.unwrap_or(f64::INFINITY);
    while times.is_empty()
        || times.len() < order.repetitions && start.elapsed().as_secs_f64() < limit
    {
        times.push(f());
    }
    (first, times)
}

/// Pictures of smooth noise, as CLIP gets them: `[count, 3, side, side]`.
fn pixels(count: usize, side: usize, seed: u64, part: u64, device: &Device) -> Tensor<4> {
    let mut rng = ChaCha8Rng::seed_from_u64(seeds::derive(seed, &[seeds::COMPARISON, part]));
    let mut values = Vec::with_capacity(count * 3 * side * side);
    for _ in 0..count * 3 {
        // Each channel of each image is a wave of its own, with noise.
        let (fx, fy): (f32, f32) = (rng.random_range(0.01..0.3), rng.random_range(0.01..0.3));
        let phase: f32 = rng.random_range(0.0..6.0);
        for y in 0..side {
            for x in 0..side {
                let wave = (x as f32 * fx + y as f32 * fy + phase).sin();
                values.push(wave + rng.random_range(-0.5..0.5));
            }
        }
    }
    Tensor::from_data(TensorData::new(values, [count, 3, side, side]), device)
}

/// Prompts of the classes of MTIL.
fn prompts(count: usize) -> TokenBatch {
    let tasks = Spec::all().iter().filter(|spec| spec.is_task());
    let all = tasks.flat_map(|spec| {
        let template = spec.templates.first().map_or("{}", String::as_str);
        spec.classes
            .iter()
            .map(move |class| prompt(template, class))
    });
    let unique: BTreeSet<String> = all.collect();
    let texts: Vec<&String> = unique
        .iter()
        .cycle()
        .step_by(7)
        .take(count.max(1))
        .collect();
    ClipTokenizer::openai()
        .encode(&texts, 77)
        .unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(results: &Path, works: &[Work]) -> Order {
        Order {
            device: "flex".into(),
            size: Size::Tiny,
            works: works.to_vec(),
            batches: Batches {
                size: Size::Tiny,
                images: 4,
                reference_images: 2,
                prompts: 6,
                test_images: 7,
            },
            repetitions: 2,
            limit_seconds: None,
            seed: 1,
            replay: 2,
            results: results.to_owned(),
        }
    }

    #[test]
    fn every_work_of_the_smallest_size_has_figures() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = Vec::new();
        let device = Device::default();
        measure(&order(folder.path(), &Work::ALL), &device, &mut |line| {
            lines.push(line.clone());
        });
        for work in Work::ALL {
            assert!(lines.contains(&Line::Begun(work)), "{work}");
            let figures = lines.iter().find_map(|line| match line {
                Line::Done(done, Outcome::Measured(figures)) if *done == work => Some(figures),
                _ => None,
            });
            let figures = figures.unwrap_or_else(|| panic!("{work}: {lines:?}"));
            assert_eq!(figures.seconds.len(), 2, "{work}");
            let file = result_file(folder.path(), Size::Tiny, work, "flex");
            assert!(file.exists(), "{work}");
        }
        let losses = lines.iter().find_map(|line| match line {
            Line::Losses(losses) => Some(losses),
            _ => None,
        });
        assert_eq!(losses.unwrap().as_ref().unwrap().len(), 2);
        // What is compared is not nothing.
        let read = |work| -> Results {
            let path = result_file(folder.path(), Size::Tiny, work, "flex");
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        for work in Work::ALL {
            for part in read(work) {
                assert!(part.iter().any(|x| *x != 0.0), "{work}: {}", part.len());
            }
        }
        // The projected update has no share in what the projector takes out: it is shorter than the
        // gradient, twice the weight.
        let weight = config(Size::Tiny).init(1, &device);
        let weight = to_host(projection_of(&weight).unwrap());
        let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
        let step = norm(&read(Work::ProjectedStep)[0]);
        assert!(step < 1.999 * norm(&weight) && step > 0.0, "{step}");
    }

    #[test]
    fn the_last_words_of_a_backend_are_explained() {
        let order = order(Path::new("."), &[]);
        let missing = explained(
            "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
            &order,
            Work::TrainingStep,
        );
        let Missing::OutOfMemory {
            needed_bytes,
            lowered_by,
            ..
        } = missing
        else {
            panic!("{missing:?}");
        };
        assert!(needed_bytes.unwrap() > 1_000_000);
        assert_eq!(lowered_by.as_deref(), Some("--batch 2"));
        assert!(matches!(
            explained("device lost", &order, Work::Evaluation),
            Missing::Failed { .. }
        ));
    }

    #[test]
    fn larger_models_need_more() {
        let batches = order(Path::new("."), &[]).batches;
        for work in Work::ALL {
            let needs: Vec<u64> = Size::ALL
                .iter()
                .map(|size| needed_bytes(*size, work, &batches))
                .collect();
            assert!(needs.is_sorted(), "{work}: {needs:?}");
        }
    }
}

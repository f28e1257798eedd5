//! Timing of the workloads of one model size on one device.
//!
//! This code runs in a worker process (see `gather`). Peak memory is therefore that of this device
//! and size, and a driver crash or an out-of-memory kill affects nothing else.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};

use burn::{
    module::{Module, ParamGroup},
    optim::{AdamWConfig, GradientsParams, SgdConfig},
    tensor::{Device, Tensor, TensorData},
};
use clip_model::{ClipConfig, ClipModel, ClipTokenizer, TextBatching, TokenBatch, normalize};
use gnsp_optimizer::{History, Memory, Policy, Protection, Recorder, Solver};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::record::{Batches, Figures, Missing, Outcome, Size, Workload};
use crate::{
    device::{is_accelerator, is_out_of_memory},
    failure::catch_panic,
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
    run::{GnspStep, StepInputs, StepOptions},
};

/// Request to a worker process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerRequest {
    /// The value of `--device`.
    pub device: String,
    /// Model size.
    pub size: Size,
    /// Workloads in the order of execution. Peak memory is that of the process so far, so
    /// workloads that need more memory come later.
    pub works: Vec<Workload>,
    /// Batch sizes.
    pub batches: Batches,
    /// Timed calls of each workload, after the first call.
    pub repetitions: usize,
    /// Time limit of the timed calls of a workload in seconds: no repetition starts after it.
    pub limit_seconds: Option<f64>,
    /// Seed of weights, images and prompts.
    pub seed: u64,
    /// Training steps whose losses are reported; 0 for none.
    pub replay: usize,
    /// Folder for the results to compare: `<size>-<work>-<device>.json`.
    pub results: PathBuf,
}

/// A message of a worker process, one JSON object per line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerMessage {
    /// The hardware of the device.
    Device {
        /// Its name.
        name: String,
    },
    /// A workload starts.
    Begun(Workload),
    /// A workload has finished.
    Done(Workload, Outcome),
    /// The losses of a training run, `None` for one that is not finite; or the reason why there are
    /// none.
    Losses(Result<Vec<Option<f32>>, Missing>),
}

/// Numerical results of a workload, in parts that each have their own scale.
pub type Results = Vec<Vec<f32>>;

/// Returns the file for the results of a workload.
pub fn result_file(folder: &Path, size: Size, work: Workload, device: &str) -> PathBuf {
    let device = device.replace(':', "-");
    folder.join(format!("{}-{}-{device}.json", size.word(), work.word()))
}

/// Returns the architecture of a model size.
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

/// Estimates the memory of a workload in `f32`, in bytes: weights, gradients, moments, Gram
/// matrices and the activations kept for the backward pass.
pub fn needed_bytes(size: Size, work: Workload, batches: &Batches) -> u64 {
    let config = config(size);
    let (v, t) = (&config.vision, &config.text);
    let block = |d: usize, m: usize| (4 * d * d + 2 * d * m) as u64;
    let image = v.num_hidden_layers as u64 * block(v.hidden_size, v.intermediate_size);
    let text = t.num_hidden_layers as u64 * block(t.hidden_size, t.intermediate_size)
        + (t.vocab_size * t.hidden_size) as u64;
    let trained = (2 * v.num_hidden_layers * v.hidden_size * v.intermediate_size) as u64;
    let gram_of_block = v.hidden_size.pow(2) + v.intermediate_size.pow(2);
    let grams = (v.num_hidden_layers * gram_of_block) as u64;
    let tokens = v.tokens() as u64;
    // Kept of each block for the backward pass: its input twice, queries, keys, values, and the
    // hidden layer of the MLP before its activation.
    let kept = tokens * (5 * v.hidden_size + v.intermediate_size) as u64;
    let kept = kept * v.num_hidden_layers as u64;
    let transient = tokens * (4 * v.hidden_size + 2 * v.intermediate_size) as u64;
    let images = batches.images as u64;
    let numbers = image
        + text
        + match work {
            Workload::ImageEncoding | Workload::TextEncoding | Workload::Evaluation => {
                images * transient
            }
            Workload::GramAccumulation | Workload::ProjectorBuild => grams + images * transient,
            Workload::ProjectedStep => grams + 4 * trained,
            Workload::TrainingStep => {
                grams + 4 * trained + image + (images + batches.reference_images as u64) * kept
            }
        };
    4 * numbers
}

/// Durations and results of a workload.
struct Timing {
    items: usize,
    /// Seconds of the first call.
    first: f64,
    /// Seconds of the other calls.
    seconds: Vec<f64>,
    results: Results,
    /// Description of the results.
    what: &'static str,
}

/// Runs the workloads, and calls `send` with every message immediately.
///
/// A panic of the backend is reported as the outcome of its workload and ends the process, because
/// the state of the backend is undefined afterwards.
pub fn measure(request: &WorkerRequest, device: &Device, send: &mut dyn FnMut(&WorkerMessage)) {
    let name = crate::device::hardware_name(device);
    send(&WorkerMessage::Device { name });
    let mut bench = match catch_panic(|| Bench::new(request, device)) {
        Ok(bench) => bench,
        Err(reason) => {
            for work in &request.works {
                send(&WorkerMessage::Begun(*work));
                let missing = classify_failure(&reason, request, *work);
                send(&WorkerMessage::Done(*work, Outcome::Missing(missing)));
            }
            return;
        }
    };
    for work in &request.works {
        send(&WorkerMessage::Begun(*work));
        match catch_panic(|| bench.time(*work)) {
            Ok(outcome) => send(&WorkerMessage::Done(*work, outcome)),
            Err(reason) => {
                let missing = classify_failure(&reason, request, *work);
                send(&WorkerMessage::Done(*work, Outcome::Missing(missing)));
                return;
            }
        }
    }
    if request.replay > 0 {
        let losses = catch_panic(|| bench.losses(request.replay));
        let losses = losses.map(|all| {
            let finite = all.into_iter().map(|x| Some(x).filter(|x| x.is_finite()));
            finite.collect()
        });
        let losses =
            losses.map_err(|reason| classify_failure(&reason, request, Workload::TrainingStep));
        send(&WorkerMessage::Losses(losses));
    }
}

/// Classifies the panic message of a backend.
fn classify_failure(reason: &str, request: &WorkerRequest, work: Workload) -> Missing {
    if is_out_of_memory(reason) {
        return Missing::OutOfMemory {
            needed_bytes: Some(needed_bytes(request.size, work, &request.batches)),
            available_bytes: None,
            lowered_by: lowered_by(work, &request.batches),
        };
    }
    Missing::Failed {
        reason: reason.to_owned(),
    }
}

/// Returns the option that reduces the memory of a workload, if there is one.
pub fn lowered_by(work: Workload, batches: &Batches) -> Option<String> {
    // There is no option for texts, and the memory of a projected step is independent of the batch.
    let uses_images = !matches!(work, Workload::TextEncoding | Workload::ProjectedStep);
    (uses_images && batches.images > 1).then(|| format!("--batch {}", batches.images / 2))
}

/// A model and its inputs on the device.
struct Bench<'a> {
    request: &'a WorkerRequest,
    device: &'a Device,
    model: ClipModel,
    pixels: Tensor<4>,
    reference: Tensor<4>,
    prompts: TokenBatch,
    memory: Option<Memory>,
    protection: Option<Protection>,
}

impl<'a> Bench<'a> {
    fn new(request: &'a WorkerRequest, device: &'a Device) -> Self {
        let config = config(request.size);
        let side = config.vision.image_size;
        let batches = &request.batches;
        Self {
            request,
            device,
            model: config.init(request.seed, device),
            pixels: pixels(batches.images, side, request.seed, 1, device),
            reference: pixels(batches.reference_images, side, request.seed, 2, device),
            prompts: prompts(batches.prompts),
            memory: None,
            protection: None,
        }
    }

    fn time(&mut self, work: Workload) -> Outcome {
        reset_peak();
        let Timing {
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
            &self.request.results,
            self.request.size,
            work,
            &self.request.device,
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

    /// Repeats a workload.
    fn work(&mut self, work: Workload) -> Timing {
        let (items, (first, seconds), results, what) = match work {
            Workload::ImageEncoding => {
                let (times, out) = self.timed(|| vec![self.images(&self.pixels)]);
                (
                    self.request.batches.images,
                    times,
                    vec![out],
                    "image features",
                )
            }
            Workload::TextEncoding => {
                // Without shared prefixes, whose gain depends on the prompts.
                let padded = self.model.clone();
                let padded = padded.with_text_batching(TextBatching::Padded);
                let (times, out) = self.timed(|| {
                    let features = normalize(padded.encode_text(&self.prompts));
                    vec![features.reshape([-1])]
                });
                (self.prompts.ids.len(), times, vec![out], "text features")
            }
            Workload::TrainingStep => {
                self.ensure_protection();
                let mut step = self.step();
                let (_, gradients) = step.gradients();
                let out = gradients.map(gradient_of_projection).unwrap_or_default();
                let mut losses = Vec::new();
                let times = repeat(self.request, || {
                    losses.push(step.run());
                    self.wait();
                });
                // The number of steps depends on the device, so compare the first loss only, but
                // require that all are finite.
                let finite = losses.iter().all(|loss| loss.is_finite());
                let loss = if finite { losses[0] } else { f32::NAN };
                (1, times, vec![out, vec![loss]], "losses or gradients")
            }
            Workload::GramAccumulation => {
                let mut recorder = None;
                let times = repeat(self.request, || {
                    recorder = Some(self.record_inputs());
                    self.wait();
                });
                let mut memory = self.new_memory();
                if let Some(recorder) = recorder {
                    memory.absorb(recorder).unwrap_or_else(|e| panic!("{e}"));
                }
                let grams = memory.paths().filter_map(|path| memory.gram(path));
                let traces = grams.map(|gram| gram.trace(0) as f32).collect();
                let of_projection = memory.gram(PROJECTION).map(|gram| gram.packed().to_vec());
                let results = vec![traces, of_projection.unwrap_or_default()];
                self.memory = Some(memory);
                (self.request.batches.images, times, results, "Gram matrices")
            }
            Workload::ProjectorBuild => {
                self.ensure_memory();
                let times = repeat(self.request, || {
                    self.protection = Some(self.build_protection())
                });
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
            Workload::ProjectedStep => {
                self.ensure_protection();
                let (times, out) = self.projected_step();
                (1, times, vec![out], "updates of weights")
            }
            Workload::Evaluation => {
                let (times, out) = self.timed(|| self.evaluate());
                (self.request.batches.test_images, times, vec![out], "logits")
            }
        };
        Timing {
            items,
            first,
            seconds,
            results,
            what,
        }
    }

    /// Times `f`, including the transfer of its results to the host.
    fn timed(&self, f: impl Fn() -> Vec<Tensor<1>>) -> ((f64, Vec<f64>), Vec<f32>) {
        let mut results = Vec::new();
        let times = repeat(self.request, || {
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

    fn record_inputs(&self) -> Recorder {
        let recorder = self.new_memory().recorder(&self.model);
        let recorder = recorder.with_history(PROJECTION, History::Renormalize);
        let mut inputs = InputRecorder::new(recorder);
        self.model
            .encode_image_observed(self.pixels.clone(), &mut inputs);
        inputs.finish().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Accumulates the Gram matrices of a first task, unless a workload has done so.
    fn ensure_memory(&mut self) {
        if self.memory.is_none() {
            let mut memory = self.new_memory();
            memory
                .absorb(self.record_inputs())
                .unwrap_or_else(|error| panic!("{error}"));
            self.memory = Some(memory);
        }
    }

    fn new_memory(&self) -> Memory {
        Memory::new(
            Policy::gnsp().with_solver(if is_accelerator(&self.request.device) {
                Solver::Device
            } else {
                Solver::Auto
            }),
        )
    }

    fn build_protection(&self) -> Protection {
        let memory = self.memory.as_ref().expect("Gram matrices exist");
        memory
            .protection(&self.model)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn ensure_protection(&mut self) {
        self.ensure_memory();
        if self.protection.is_none() {
            self.protection = Some(self.build_protection());
        }
    }

    fn step(&self) -> GnspStep {
        let batches = &self.request.batches;
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
        let protection = self.protection.as_ref().expect("projectors exist");
        GnspStep::with_protection(&self.model, protection, inputs, StepOptions::default())
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn projected_step(&self) -> ((f64, Vec<f64>), Vec<f32>) {
        let protection = self.protection.as_ref().expect("projectors exist");
        let adamw = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0);
        let mut optimizer = protection.wrap(&adamw);
        let paths = protection.iter().map(|(path, _)| path).collect();
        let frozen = ParamGroup::all().exclude(ParamGroup::from_paths(paths));
        let device = self.device.clone().autodiff();
        let mut model = self.model.clone().fork(&device).train();
        model = model.freeze_group(frozen);
        // The gradients of the squared weights: the time does not depend on their values.
        let loss = |model: &ClipModel| {
            let mut visitor = SquaredWeights(None);
            model.visit(&mut visitor);
            visitor.0.expect("something trains")
        };
        let gradients =
            |model: &ClipModel| GradientsParams::from_grads(loss(model).backward(), model);
        // Compare a step of SGD, which is proportional to the gradient. The first step of AdamW is
        // close to its sign, which rounding decides where a gradient is small.
        let descent = SgdConfig::new();
        let mut plain = protection.wrap(&descent);
        let before = projection_of(&model);
        let stepped = plain.step(1.0, model.clone(), gradients(&model));
        let change = before.zip(projection_of(&stepped));
        let change = change.map(|(before, after)| to_host(before - after));
        drop(stepped);
        let mut stepped = Some(model);
        let times = repeat_timed(self.request, || {
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

    /// Evaluates a test set: classifier from prompts, image features in batches, logits.
    fn evaluate(&self) -> Vec<Tensor<1>> {
        let classes = normalize(self.model.encode_text(&self.prompts)).transpose();
        let batch = self.request.batches.images;
        let mut left = self.request.batches.test_images;
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
        self.ensure_protection();
        let mut step = self.step();
        (0..updates).map(|_| step.run()).collect()
    }
}

/// Sum of squares of the trainable parameters.
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

/// Path of the weight that represents all weights in comparisons.
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

/// Times the first call, which compiles and tunes kernels, and at least one call after it.
fn repeat(request: &WorkerRequest, mut f: impl FnMut()) -> (f64, Vec<f64>) {
    repeat_timed(request, || {
        let begun = Instant::now();
        f();
        begun.elapsed().as_secs_f64()
    })
}

/// Like [`repeat`], for a function that returns the duration of its timed part.
fn repeat_timed(request: &WorkerRequest, mut f: impl FnMut() -> f64) -> (f64, Vec<f64>) {
    let first = f();
    let start = Instant::now();
    let mut times = Vec::new();
    let limit = request.limit_seconds.unwrap_or(f64::INFINITY);
    while times.is_empty()
        || times.len() < request.repetitions && start.elapsed().as_secs_f64() < limit
    {
        times.push(f());
    }
    (first, times)
}

/// Generates images of waves and noise.
///
/// # Shapes
/// - output: `[count, 3, side, side]`
fn pixels(count: usize, side: usize, seed: u64, part: u64, device: &Device) -> Tensor<4> {
    let mut rng = ChaCha8Rng::seed_from_u64(seeds::derive(seed, &[seeds::COMPARISON, part]));
    let mut values = Vec::with_capacity(count * 3 * side * side);
    for _ in 0..count * 3 {
        // Each channel of each image is another wave with noise.
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

/// Tokenizes prompts of the classes of MTIL.
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

    fn request(results: &Path, works: &[Workload]) -> WorkerRequest {
        WorkerRequest {
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
    fn every_workload_of_the_smallest_size_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = Vec::new();
        let device = Device::default();
        measure(
            &request(folder.path(), &Workload::ALL),
            &device,
            &mut |line| {
                lines.push(line.clone());
            },
        );
        for work in Workload::ALL {
            assert!(lines.contains(&WorkerMessage::Begun(work)), "{work}");
            let figures = lines.iter().find_map(|line| match line {
                WorkerMessage::Done(done, Outcome::Measured(figures)) if *done == work => {
                    Some(figures)
                }
                _ => None,
            });
            let figures = figures.unwrap_or_else(|| panic!("{work}: {lines:?}"));
            assert_eq!(figures.seconds.len(), 2, "{work}");
            let file = result_file(folder.path(), Size::Tiny, work, "flex");
            assert!(file.exists(), "{work}");
        }
        let losses = lines.iter().find_map(|line| match line {
            WorkerMessage::Losses(losses) => Some(losses),
            _ => None,
        });
        assert_eq!(losses.unwrap().as_ref().unwrap().len(), 2);
        // The results to compare are not all zero.
        let read = |work| -> Results {
            let path = result_file(folder.path(), Size::Tiny, work, "flex");
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        for work in Workload::ALL {
            for part in read(work) {
                assert!(part.iter().any(|x| *x != 0.0), "{work}: {}", part.len());
            }
        }
        // The projector removes a part of the gradient, which is twice the weight: the update is
        // shorter.
        let weight = config(Size::Tiny).init(1, &device);
        let weight = to_host(projection_of(&weight).unwrap());
        let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
        let step = norm(&read(Workload::ProjectedStep)[0]);
        assert!(step < 1.999 * norm(&weight) && step > 0.0, "{step}");
    }

    #[test]
    fn backend_failures_are_classified() {
        let request = request(Path::new("."), &[]);
        let missing = classify_failure(
            "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
            &request,
            Workload::TrainingStep,
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
            classify_failure("device lost", &request, Workload::Evaluation),
            Missing::Failed { .. }
        ));
    }

    #[test]
    fn larger_models_need_more_memory() {
        let batches = request(Path::new("."), &[]).batches;
        for work in Workload::ALL {
            let needs: Vec<u64> = Size::ALL
                .iter()
                .map(|size| needed_bytes(*size, work, &batches))
                .collect();
            assert!(needs.is_sorted(), "{work}: {needs:?}");
        }
    }
}

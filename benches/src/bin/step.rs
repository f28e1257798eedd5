//! Training step, Gram accumulation and prompt encoding of GNSP at the size of ViT-B/16, the
//! counterpart of `benches/pytorch` (`benches/compare.py` runs both).
//!
//! ```text
//! cargo build --release --workspace --bins
//! step make DIR [--size tiny|vit-b-16]     # a random CLIP, images, texts, projectors, prompts
//! step train DIR [--steps N] [--off NAME,…] [--checkpointing] [--bf16] [--half-reference]
//!                [--device NAME] [--batch B] [--reference-batch R]
//! step gram DIR [--repeat N] [--off symmetric,fused]
//! step prompts DIR [--repeat N] [--off shared-prefixes]
//! ```
//!
//! Each measurement is one process that ends with one JSON line. `--off` disables optimizations.

use std::{collections::BTreeMap, error::Error, fs, path::Path, time::Instant};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use clap::{Args, Parser, Subcommand};
use clip_model::{
    Clip, ClipModel, ClipTokenizer, Dtype, Kernels, LoadOptions, Preprocess, TextBatching,
    TokenBatch,
};
use gnsp_benches::dead_leaves;
use gnsp_optimizer::{History, Memory, Policy, Site};
use mini_world as mini;
use mini_world::MiniSizes;
use mtil_bench::{compare::measure, process};
use mtil_data::{datasets::Spec, suite::Classification};
use mtil_engine::{
    eval::{HeadCache, prompt, to_host},
    recording::InputRecorder,
    run::{GnspStep, Optimizations, StepInputs, StepOptions},
};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::json;

/// The allocator of `mtil-bench`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Task images and reference pairs of a training step.
const BATCH: usize = 8;
const CLASSES: usize = 100;
/// Batch size of Gram accumulation (GNSP `src/models/get_data_matrix.py`).
const GRAM_BATCH: usize = 16;
/// Number of MTIL's tasks, the first datasets of the specification.
const MTIL: usize = 11;
const CONTEXT: usize = 77;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Write the inputs of the other subcommands.
    Make {
        folder: std::path::PathBuf,
        /// tiny or vit-b-16.
        #[arg(long, default_value = "vit-b-16")]
        size: String,
    },
    /// Time training steps.
    Train(Train),
    /// Time Gram accumulation.
    Gram {
        folder: std::path::PathBuf,
        #[arg(long, default_value_t = 2)]
        repeat: usize,
        /// fused, symmetric
        #[arg(long, value_delimiter = ',')]
        off: Vec<String>,
    },
    /// Time zero-shot classifiers from prompts.
    Prompts {
        folder: std::path::PathBuf,
        #[arg(long, default_value_t = 2)]
        repeat: usize,
        /// shared-prefixes
        #[arg(long, value_delimiter = ',')]
        off: Vec<String>,
    },
}

#[derive(Args)]
struct Train {
    folder: std::path::PathBuf,
    /// Timed steps, after a first step.
    #[arg(long, default_value_t = 2)]
    steps: usize,
    /// Optimizations to disable.
    #[arg(long, value_delimiter = ',')]
    off: Vec<String>,
    /// Gradient checkpointing: recompute activations in the backward pass.
    #[arg(long)]
    checkpointing: bool,
    /// Towers in bf16, weights and moments in f32.
    #[arg(long)]
    bf16: bool,
    /// Use half of the reference pairs.
    #[arg(long)]
    half_reference: bool,
    #[arg(long, default_value = "flex")]
    device: String,
    /// Number of task images. Additional images repeat those of the folder with noise.
    #[arg(long, default_value_t = BATCH)]
    batch: usize,
    /// Number of reference pairs.
    #[arg(long, default_value_t = BATCH)]
    reference_batch: usize,
    /// Project the update instead of the gradient.
    #[arg(long)]
    update_site: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    // As in `mtil-bench`.
    process::restart_with_env(&[process::KEEP_PAGES]);
    process::join_pool();
    match Cli::parse().verb {
        Verb::Make { folder, size } => make(&folder, &size),
        Verb::Train(train) => run_training(&train),
        Verb::Gram {
            folder,
            repeat,
            off,
        } => gram(&folder, repeat, &off),
        Verb::Prompts {
            folder,
            repeat,
            off,
        } => prompts(&folder, repeat, &off),
    }
}

/// Returns images `[count, 3, side, side]`, normalized as for CLIP.
fn pictures(count: usize, side: usize, seed: u64) -> Vec<f32> {
    (0..count as u64)
        .flat_map(|i| dead_leaves::picture(side, seed * 10_000 + i))
        .map(|x| (x - 0.45) / 0.27)
        .collect()
}

/// Returns dataset, class and prompts of every class of MTIL.
fn all_prompts() -> Vec<(String, String, Vec<String>)> {
    let tasks = Spec::all()[..MTIL].iter();
    let classes = tasks.flat_map(|spec| spec.classes.iter().map(move |class| (spec, class)));
    classes
        .map(|(spec, class)| {
            let prompts = spec.templates.iter().map(|t| prompt(t, class)).collect();
            (spec.key.clone(), class.clone(), prompts)
        })
        .collect()
}

fn make(folder: &Path, size: &str) -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    let config = measure::config(size.parse()?);
    let side = config.vision.image_size;
    let clip = Clip {
        model: config.init(1, &device),
        tokenizer: ClipTokenizer::openai().into(),
        preprocess: Preprocess::clip(side as u32),
        config,
    };
    clip.save(&folder.join("hugging-face"), Dtype::F32)?;

    let groups = all_prompts();
    fs::write(folder.join("prompts.json"), json!(groups).to_string())?;
    // Evenly spaced classes, so that all datasets are represented.
    let some: Vec<_> = groups.iter().step_by(groups.len() / CLASSES).collect();
    let classes: Vec<String> = some[..CLASSES]
        .iter()
        .map(|class| class.2[0].clone())
        .collect();
    let references: Vec<String> = (0..BATCH)
        .map(|i| format!("a photo of a {}", some[i * 7 + 3].1))
        .collect();

    let mut memory = Memory::new(Policy::gnsp());
    let recorder = memory.recorder(&clip.model);
    let recorder = recorder.with_history("visual.proj", History::Renormalize);
    let mut inputs = InputRecorder::new(recorder);
    for batch in 0..2 {
        let pixels = pictures(GRAM_BATCH, side, 10 + batch);
        let pixels = Tensor::from_data(
            TensorData::new(pixels, [GRAM_BATCH, 3, side, side]),
            &device,
        );
        clip.model.encode_image_observed(pixels, &mut inputs);
    }
    memory.absorb(inputs.finish()?)?;
    memory.save(folder.join("grams.safetensors"))?;

    let mut file = TensorFile::default();
    file.floats("pixels", &[BATCH, 3, side, side], &pictures(BATCH, side, 1));
    file.integers(
        "labels",
        &[BATCH],
        (0..BATCH as i64).map(|i| i * 11 % CLASSES as i64),
    );
    file.tokens("class_tokens", &classes)?;
    file.floats(
        "reference_pixels",
        &[BATCH, 3, side, side],
        &pictures(BATCH, side, 2),
    );
    file.tokens("reference_tokens", &references)?;
    file.integers("reference_labels", &[BATCH], 0..BATCH as i64);
    file.floats(
        "gram_pixels",
        &[GRAM_BATCH, 3, side, side],
        &pictures(GRAM_BATCH, side, 3),
    );
    for (path, protected) in memory.protection(&clip.model)?.iter() {
        let space = &protected.null_space;
        let (n, k) = (space.features(), space.rank());
        // An orthonormal basis of the range of `I − P = U·Uᵀ`, from as many random combinations of
        // its columns as it has dimensions.
        let dense = space.dense();
        let complement: Vec<f32> = (0..n * n)
            .map(|i| f32::from(i / n == i % n) - dense[i])
            .collect();
        let complement = Tensor::<2>::from_data(TensorData::new(complement, [n, n]), &device);
        let random = TensorData::new(dead_leaves::noise(n * k, 5), [n, k]);
        let range: Vec<f32> = complement
            .matmul(Tensor::from_data(random, &device))
            .into_data()
            .try_into_vec()?;
        file.floats(
            &format!("basis.{path}"),
            &[n, k],
            &orthonormal(n, k, &range),
        );
        eprintln!("{path}: {k} of {n} directions are protected");
    }
    file.write(&folder.join("step.safetensors"))
}

/// Returns the factor Q of the QR decomposition of `k` independent columns.
fn orthonormal(n: usize, k: usize, columns: &[f32]) -> Vec<f32> {
    let matrix = faer::Mat::from_fn(n, k, |i, j| f64::from(columns[i * k + j]));
    let q = matrix.qr().compute_thin_Q();
    (0..n * k).map(|i| q[(i / k, i % k)] as f32).collect()
}

/// Tensors to be written to a safetensors file.
#[derive(Default)]
struct TensorFile(BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>);

impl TensorFile {
    fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let entry = (safetensors::Dtype::F32, shape.to_vec(), bytes);
        self.0.insert(name.to_owned(), entry);
    }

    fn integers(&mut self, name: &str, shape: &[usize], values: impl Iterator<Item = i64>) {
        let bytes = values.flat_map(i64::to_le_bytes).collect();
        let entry = (safetensors::Dtype::I64, shape.to_vec(), bytes);
        self.0.insert(name.to_owned(), entry);
    }

    /// Adds token rows of 77, padded with zeros as in OpenAI's `clip/clip.py`.
    fn tokens(&mut self, name: &str, texts: &[String]) -> Result<(), Box<dyn Error>> {
        let tokens = ClipTokenizer::openai().encode(texts, CONTEXT)?;
        let rows = tokens.ids.iter().flat_map(|row| {
            let id = |i| row.get(i).map_or(0, |id| i64::from(*id));
            (0..CONTEXT).map(id)
        });
        self.integers(name, &[texts.len(), CONTEXT], rows);
        Ok(())
    }

    fn write(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let views = self
            .0
            .iter()
            .map(|(name, (dtype, shape, bytes))| {
                Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        Ok(safetensors::serialize_to_file(views, None, path)?)
    }
}

/// Tensors written by `make`.
struct Inputs<'a>(SafeTensors<'a>);

impl Inputs<'_> {
    fn floats(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>), Box<dyn Error>> {
        let view = self.0.tensor(name)?;
        let values = view.data().as_chunks::<4>().0.iter();
        Ok((
            values.map(|b| f32::from_le_bytes(*b)).collect(),
            view.shape().to_vec(),
        ))
    }

    fn integers(&self, name: &str) -> Result<Vec<i64>, Box<dyn Error>> {
        let view = self.0.tensor(name)?;
        let values = view.data().as_chunks::<8>().0.iter();
        Ok(values.map(|b| i64::from_le_bytes(*b)).collect())
    }

    /// Returns `count` images: the stored ones, then the same with noise.
    fn pixels(
        &self,
        name: &str,
        count: usize,
        device: &Device,
    ) -> Result<Tensor<4>, Box<dyn Error>> {
        let (stored, shape) = self.floats(name)?;
        let [_, channels, side, _] = shape[..] else {
            return Err(format!("{name} has {} axes", shape.len()).into());
        };
        let one = channels * side * side;
        let values: Vec<f32> = (0..count)
            .flat_map(|i| {
                let at = i % shape[0] * one;
                let size = if i < shape[0] { 0.0 } else { 0.1 };
                let noise = dead_leaves::noise(one, i as u64);
                let image = stored[at..at + one].iter().zip(noise);
                image.map(move |(x, e)| x + size * e).collect::<Vec<_>>()
            })
            .collect();
        let data = TensorData::new(values, [count, channels, side, side]);
        Ok(Tensor::from_data(data, device))
    }

    fn tokens(&self, name: &str, count: usize) -> Result<TokenBatch, Box<dyn Error>> {
        let ids = self.integers(name)?;
        let rows: Vec<&[i64]> = ids.chunks(CONTEXT).collect();
        let ids = (0..count)
            .map(|i| rows[i % rows.len()].iter().map(|id| *id as u32).collect())
            .collect();
        Ok(TokenBatch { ids })
    }
}

fn model(folder: &Path, device: &Device) -> Result<ClipModel, Box<dyn Error>> {
    let path = folder.join("hugging-face");
    Ok(ClipModel::load(&path, &LoadOptions::default(), device)?.0)
}

fn run_training(train: &Train) -> Result<(), Box<dyn Error>> {
    let mut optimizations = Optimizations::default();
    for name in &train.off {
        let known = Optimizations::NAMES.join(", ");
        *optimizations
            .get_mut(name)
            .ok_or(format!("--off {name}: known are {known}"))? = false;
    }
    let device = mtil_bench::device::parse(&train.device)?;
    if train.bf16 && !device.supports_dtype(FloatDType::BF16) {
        return Err(format!("--bf16: device `{}` does not compute in it", train.device).into());
    }
    let model = model(&train.folder, &device)?;
    let bytes = fs::read(train.folder.join("step.safetensors"))?;
    let stored = Inputs(SafeTensors::deserialize(&bytes)?);
    let pairs = train.reference_batch / if train.half_reference { 2 } else { 1 };
    let labels = stored.integers("labels")?;
    let inputs = StepInputs {
        pixels: stored.pixels("pixels", train.batch, &device)?,
        labels: (0..train.batch)
            .map(|i| labels[i % labels.len()] as usize)
            .collect(),
        class_tokens: stored.tokens("class_tokens", CLASSES)?,
        reference_pixels: stored.pixels("reference_pixels", pairs, &device)?,
        reference_tokens: stored.tokens("reference_tokens", pairs)?,
        reference_labels: (0..pairs).map(|i| i % BATCH).collect(),
    };
    drop(bytes);
    let memory = Memory::load(train.folder.join("grams.safetensors"))?;
    let options = StepOptions {
        optimizations,
        site: if train.update_site {
            Site::Update
        } else {
            Site::Gradient
        },
        checkpointing: train.checkpointing,
        bf16: train.bf16,
    };
    let mut step = GnspStep::new(&model, &memory, inputs, options)?;
    drop((model, memory));
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..=train.steps {
        let start = Instant::now();
        losses.push(step.run());
        device.sync()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    report(json!({"losses": losses}), seconds);
    Ok(())
}

fn gram(folder: &Path, repeat: usize, off: &[String]) -> Result<(), Box<dyn Error>> {
    let (mut kernels, mut whole) = (Kernels::Fused, false);
    for name in off {
        match name.as_str() {
            "fused" => kernels = Kernels::Plain,
            "symmetric" => whole = true,
            other => return Err(format!("--off {other}: known are fused, symmetric").into()),
        }
    }
    let device = Device::flex();
    let model = model(folder, &device)?.with_kernels(kernels);
    let mut memory = Memory::new(Policy::gnsp());
    let mut recorder = memory.recorder(&model);
    if whole {
        recorder = recorder.with_whole_matrices();
    }
    let bytes = fs::read(folder.join("step.safetensors"))?;
    let pixels =
        Inputs(SafeTensors::deserialize(&bytes)?).pixels("gram_pixels", GRAM_BATCH, &device)?;
    // All tokens of the last block too, as published.
    let mut inputs = InputRecorder::new(recorder).with_all_tokens(true);
    let mut seconds = Vec::new();
    for _ in 0..=repeat {
        let start = Instant::now();
        model.encode_image_observed(pixels.clone(), &mut inputs);
        seconds.push(start.elapsed().as_secs_f64());
    }
    memory.absorb(inputs.finish()?)?;
    let traces: BTreeMap<&str, f64> = memory
        .paths()
        .filter_map(|path| Some((path, memory.gram(path)?.trace(0))))
        .collect();
    let rate = GRAM_BATCH as f64 / median(&seconds[1..]);
    report(json!({"per_second": rate, "traces": traces}), seconds);
    Ok(())
}

/// Times the classifiers of an evaluation with new texts, and those of a second evaluation with an
/// unchanged text tower.
fn prompts(folder: &Path, repeat: usize, off: &[String]) -> Result<(), Box<dyn Error>> {
    if let Some(other) = off.iter().find(|name| *name != "shared-prefixes") {
        return Err(format!("--off {other}: known is shared-prefixes").into());
    }
    let device = Device::flex();
    let clip = Clip::load(&folder.join("hugging-face"), &device)?;
    let groups: Vec<(String, String, Vec<String>)> =
        serde_json::from_slice(&fs::read(folder.join("prompts.json"))?)?;
    let tasks = tasks(&groups);
    let model = clip.model.clone().with_text_batching(match off {
        [] => TextBatching::SharedPrefixes,
        _ => TextBatching::Padded,
    });
    let (mut seconds, mut later) = (Vec::new(), Vec::new());
    let mut checks = Vec::new();
    for _ in 0..=repeat {
        let mut heads = HeadCache::default();
        for times in [&mut seconds, &mut later] {
            let start = Instant::now();
            checks.clear();
            for (column, task) in tasks.iter().enumerate() {
                let templates = task.templates.len();
                let head = heads.head(&clip, &model, column, task, templates)?;
                let width = head.dims()[1];
                checks.extend(to_host(head).chunks(width).map(|row| row[0]));
            }
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let prompts: usize = groups.iter().map(|(_, _, prompts)| prompts.len()).sum();
    let rate = prompts as f64 / median(&seconds[1..]);
    report(
        json!({
            "per_second": rate,
            "prompts": prompts,
            "check": checks,
            "later_seconds": later[1..],
        }),
        seconds,
    );
    Ok(())
}

/// Returns the classes as tasks with placeholder images, which a classifier does not use.
fn tasks(groups: &[(String, String, Vec<String>)]) -> Vec<Classification> {
    let sizes = MiniSizes {
        train_per_task: 10,
        test_per_task: 10,
        reference: 10,
        held_out: 10,
    };
    let unused = mini::suite(1, sizes).tasks.swap_remove(0);
    let unused = &unused.classification().expect("classes").test;
    let sets = groups.chunk_by(|a, b| a.0 == b.0);
    sets.map(|set| {
        let spec = Spec::all().iter().find(|spec| spec.key == set[0].0);
        Classification {
            class_names: set.iter().map(|(_, class, _)| class.clone()).collect(),
            templates: spec.expect("a known dataset").templates.clone(),
            train: unused.clone(),
            test: unused.clone(),
        }
    })
    .collect()
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints one JSON line with the times, the first one separately, and the peak memory of the
/// process in MB of 10^6 bytes.
fn report(mut line: serde_json::Value, seconds: Vec<f64>) {
    line["first_seconds"] = json!(seconds[0]);
    line["seconds"] = json!(seconds[1..]);
    line["peak_mb"] = json!(mtil_data::machine::peak_bytes().map(|bytes| bytes as f64 / 1e6));
    println!("{line}");
}

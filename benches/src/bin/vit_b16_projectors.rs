//! Projectors of GNSP at the size of ViT-B/16, the counterpart of
//! `benches/pytorch/projectors.py`.
//!
//! ```text
//! cargo build --release -p gnsp-benches
//! vit_b16_projectors grams DIR   # Gram matrices of a random ViT-B/16 on dead leaves images,
//!                                # DIR/grams.safetensors
//! vit_b16_projectors build DIR   # time, memory and ranks of the 25 projectors, and the
//!                                # projectors as DIR/projectors.safetensors
//! vit_b16_projectors time DIR    # the time only, as one JSON line
//! vit_b16_projectors step DIR    # cost of the projection relative to a training step
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use burn::module::{Module, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};
use clip_losses::{contrastive_distillation, modality_alignment, smoothed_cross_entropy};
use clip_model::{ClipConfig, ClipModel, normalize};
use gnsp_benches::dead_leaves;
use gnsp_optimizer::{GnspError, History, Memory, Policy, Protection, Site, Solver};
use mtil_engine::recording::InputRecorder;
use safetensors::tensor::{Dtype, TensorView};

/// Batch size of Gram accumulation (GNSP `src/models/get_data_matrix.py`), and number of batches.
const GRAM_BATCH: usize = 16;
const GRAM_BATCHES: usize = 6;
/// Task and reference images of a training step.
const STEP_BATCH: usize = 8;
const CLASSES: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [verb, folder] = arguments.as_slice() else {
        return Err("usage: vit_b16_projectors grams|build|time|step DIR".into());
    };
    let folder = Path::new(folder);
    match verb.as_str() {
        "grams" => grams(folder),
        "build" => build(folder),
        "time" => time(folder),
        "step" => step(folder),
        other => Err(format!("there is no `{other}`: grams, build, time or step").into()),
    }
}

/// Returns the device of Gram accumulation and of the training step.
fn device() -> Device {
    Device::flex()
}

fn model(device: &Device) -> ClipModel {
    ClipConfig::vit_b_16().init(1, device)
}

/// Returns images `[count, 3, 224, 224]`, normalized as for CLIP.
fn pictures(count: usize, seed: u64, device: &Device) -> Tensor<4> {
    let numbers: Vec<f32> = (0..count as u64)
        .flat_map(|i| dead_leaves::picture(224, seed * 10_000 + i))
        .collect();
    let data = TensorData::new(numbers, [count, 3, 224, 224]);
    (Tensor::<4>::from_data(data, device) - 0.45) / 0.27
}

fn grams(folder: &Path) -> Result<(), Box<dyn Error>> {
    let device = device();
    let model = model(&device);
    let mut memory = Memory::new(Policy::gnsp());
    let recorder = memory.recorder(&model);
    let recorder = recorder.with_history("visual.proj", History::Renormalize);
    let mut inputs = InputRecorder::new(recorder);
    for batch in 0..GRAM_BATCHES {
        model.encode_image_observed(pictures(GRAM_BATCH, batch as u64, &device), &mut inputs);
        eprintln!("batch {} of {GRAM_BATCHES}", batch + 1);
    }
    memory.absorb(inputs.finish()?)?;
    memory.save(folder.join("grams.safetensors"))?;
    Ok(())
}

fn load(folder: &Path) -> Result<Memory, Box<dyn Error>> {
    Ok(Memory::load(folder.join("grams.safetensors"))?)
}

fn solver() -> Result<Solver, Box<dyn Error>> {
    Ok(match std::env::var("SOLVER").as_deref() {
        Err(_) | Ok("auto") => Solver::Auto,
        Ok("full") => Solver::Full,
        Ok("device") => Solver::Device,
        Ok(other) => return Err(format!("SOLVER is auto, full or device, not {other}").into()),
    })
}

/// Builds the projectors. Returns them, the seconds, and the increase of peak memory in MB.
fn timed(folder: &Path) -> Result<(Protection, f64, f64), Box<dyn Error>> {
    let mut memory = load(folder)?;
    let model = model(&device());
    memory.set_policy(Policy::gnsp().with_solver(solver()?))?;
    reset_peak();
    let (before, started) = (resident("VmRSS:"), Instant::now());
    let protection = memory.protection(&model)?;
    let seconds = started.elapsed().as_secs_f64();
    let peak = resident("VmHWM:") - before;
    Ok((protection, seconds, peak))
}

fn build(folder: &Path) -> Result<(), Box<dyn Error>> {
    let (protection, seconds, peak) = timed(folder)?;
    println!("{protection}");
    println!("built in {seconds:.2} s, peak memory {peak:.0} MB more than before");
    let mut bytes: BTreeMap<String, (usize, Vec<u8>)> = BTreeMap::new();
    for (path, protected) in protection.iter() {
        let n = protected.null_space.features();
        let dense: Vec<f32> = protected
            .null_space
            .project(Tensor::eye(n, &device()))
            .into_data()
            .try_into_vec()?;
        let dense = dense.iter().flat_map(|x| x.to_le_bytes()).collect();
        bytes.insert(path.to_string(), (n, dense));
    }
    let tensors = bytes
        .iter()
        .map(|(path, (n, bytes))| Ok((path, TensorView::new(Dtype::F32, vec![*n, *n], bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    safetensors::serialize_to_file(tensors, None, &folder.join("projectors.safetensors"))?;
    Ok(())
}

fn time(folder: &Path) -> Result<(), Box<dyn Error>> {
    let (protection, seconds, peak) = timed(folder)?;
    let ranks: BTreeMap<&str, usize> = protection
        .iter()
        .map(|(path, protected)| (path, protected.null_space.rank()))
        .collect();
    println!(
        "{}",
        serde_json::json!({"seconds": seconds, "peak_mb": peak, "ranks": ranks})
    );
    Ok(())
}

/// Times a training step after the first task: forward and backward pass of task and reference
/// images, and the optimizer step.
fn step(folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut memory = load(folder)?;
    let plain = device();
    let training = plain.clone().autodiff();
    let model = model(&training)
        .freeze_group(ParamGroup::all().exclude(ParamGroup::from_paths(memory.paths().collect())));
    let adamw = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0);
    let mut projected = |site| -> Result<ModuleOptimizer, GnspError> {
        memory.set_policy(Policy::gnsp().with_site(site))?;
        Ok(memory.protection(&model)?.wrap(&adamw))
    };
    let mut optimizers = [
        ("plain AdamW", adamw.init()),
        ("gradient site", projected(Site::Gradient)?),
        ("update site", projected(Site::Update)?),
    ];
    let random = |rows, seed| {
        let numbers = dead_leaves::noise(rows * 512, seed);
        let data = TensorData::new(numbers, [rows, 512]);
        normalize(Tensor::<2>::from_data(data, &plain))
    };
    let (classes, texts) = (random(CLASSES, 1), random(STEP_BATCH, 2));
    let teacher = random(STEP_BATCH, 3).matmul(texts.clone().transpose()) * 100.0;
    let alignment = Tensor::<2>::eye(STEP_BATCH, &plain);
    let task = pictures(STEP_BATCH, 77, &training);
    let reference = pictures(STEP_BATCH, 78, &training);
    let labels: Vec<i64> = (0..STEP_BATCH as i64).collect();
    let labels = Tensor::from_data(TensorData::new(labels, [STEP_BATCH]), &training);
    let gradients = |model: &ClipModel| {
        let features = normalize(model.encode_image(task.clone()));
        let logits = features.matmul(classes.clone().transpose()) * 100.0;
        let loss = smoothed_cross_entropy(logits, labels.clone(), 0.2);
        let features = normalize(model.encode_image(reference.clone()));
        let student = features.matmul(texts.clone().transpose()) * 100.0;
        let loss = loss
            + contrastive_distillation(teacher.clone(), student.clone(), 2.0)
            + modality_alignment(student, alignment.clone(), 0.2) * 0.75;
        GradientsParams::from_grads(loss.backward(), model)
    };
    let mut passes = Vec::new();
    let mut steps = vec![Vec::new(); optimizers.len()];
    for round in 0..6 {
        for ((_, optimizer), times) in optimizers.iter_mut().zip(&mut steps) {
            let started = Instant::now();
            let gradients = gradients(&model);
            let pass = started.elapsed().as_secs_f64();
            let started = Instant::now();
            let trained = optimizer.step(1e-5, model.clone(), gradients);
            plain.sync()?;
            let seconds = started.elapsed().as_secs_f64();
            drop(trained);
            // The first round creates the optimizer states and copies the bases to the device.
            if round > 0 {
                passes.push(pass);
                times.push(seconds);
            }
        }
    }
    let pass = median(&mut passes);
    println!("forward and backward of {STEP_BATCH} + {STEP_BATCH} images: {pass:.2} s (median)");
    let mut base = 0.0;
    for ((name, _), times) in optimizers.iter().zip(&mut steps) {
        let seconds = median(times);
        if *name == "plain AdamW" {
            base = seconds;
        }
        let extra = seconds - base;
        println!(
            "{name}: optimizer step {:.0} ms; projecting {:.0} ms, {:.2} % of the training step",
            1e3 * seconds,
            1e3 * extra,
            100.0 * extra / (pass + base)
        );
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns a memory figure of this process in MB, NaN if there is none (not Linux).
fn resident(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| {
        line.trim()
            .trim_end_matches(" kB")
            .trim()
            .parse::<f64>()
            .ok()
    })
    .map_or(f64::NAN, |kb| kb / 1024.0)
}

/// Resets the peak to the currently resident memory. Where this fails (not Linux), the peak is that
/// of the whole process.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

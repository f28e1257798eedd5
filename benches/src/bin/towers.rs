//! Speed and memory of the towers and of loading ViT-B/16, the counterpart of
//! `benches/pytorch/towers.py`.
//!
//! ```text
//! cargo build --release --workspace --bins
//! towers make DIR         # a random ViT-B/16 as DIR/hugging-face and DIR/open-clip, and 256
//!                         # prompts of class names as DIR/prompts.json
//! towers image DIR        # images per second, in batches of 8 images of 224 x 224
//! towers image-bf16 DIR   # the same in bf16
//! towers text DIR         # texts per second, on the prompts
//! towers load DIR         # seconds and memory for loading the weights
//! towers train DIR        # images per second of a forward and backward pass
//! ```
//!
//! Each measurement prints one JSON line, which includes the peak memory.

use std::{error::Error, fs, path::Path, time::Instant};

use burn::{
    optim::GradientsParams,
    tensor::{Device, FloatDType, Tensor, TensorData},
};
use clip_losses::clip_contrastive;
use clip_model::{
    Clip, ClipConfig, ClipModel, ClipTokenizer, Dtype, LoadOptions, Preprocess, TextBatching,
    normalize,
};
use serde_json::json;

/// The allocator of `mtil-bench`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Images per batch.
const BATCH: usize = 8;
/// Number of prompts, the same as for PyTorch.
const PROMPTS: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    // As in `mtil-bench`.
    mtil_bench::process::join_pool();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [verb, folder] = arguments.as_slice() else {
        return Err("usage: towers make|image|image-bf16|text|load|train DIR".into());
    };
    let folder = Path::new(folder);
    match verb.as_str() {
        "make" => make(folder),
        "image" => image(folder, FloatDType::F32),
        "image-bf16" => image(folder, FloatDType::BF16),
        "text" => text(folder),
        "load" => load(folder),
        "train" => train(folder),
        other => Err(format!("there is no `{other}`: make, image, text, load, train").into()),
    }
}

fn make(folder: &Path) -> Result<(), Box<dyn Error>> {
    let config = ClipConfig::vit_b_16();
    let clip = Clip {
        model: config.init(1, &Device::flex()),
        tokenizer: ClipTokenizer::openai().into(),
        preprocess: Preprocess::clip(224),
        config,
    };
    clip.save(&folder.join("hugging-face"), Dtype::F32)?;
    clip.save_open_clip(&folder.join("open-clip"), Dtype::F32)?;
    let prompts: Vec<String> = (0..PROMPTS).map(prompt).collect();
    fs::write(folder.join("prompts.json"), json!(prompts).to_string())?;
    Ok(())
}

/// Returns the `i`-th prompt, of a class name with one to three words as in real datasets.
fn prompt(i: usize) -> String {
    const WORDS: [&str; 16] = [
        "red", "great", "white", "mountain", "river", "golden", "spotted", "sea", "garden",
        "house", "wild", "common", "field", "black", "forest", "desert",
    ];
    const NAMES: [&str; 16] = [
        "shark", "fox", "finch", "terrier", "lizard", "beetle", "aircraft", "lamp", "orchid",
        "soup", "truck", "bridge", "owl", "snail", "guitar", "castle",
    ];
    let name = NAMES[i % 16];
    match i / 16 % 4 {
        0 => format!("a photo of a {name}."),
        1 => format!("a photo of a {} {name}.", WORDS[i / 64 % 16]),
        2 => format!(
            "a photo of a {} {} {name}.",
            WORDS[i / 64 % 16],
            WORDS[i / 4 % 16]
        ),
        _ => format!(
            "a photo of a {}-{} {name}.",
            WORDS[i / 4 % 16],
            WORDS[(i / 64 + 5) % 16]
        ),
    }
}

fn model(folder: &Path, device: &Device) -> Result<ClipModel, Box<dyn Error>> {
    let path = folder.join("hugging-face");
    Ok(ClipModel::load(&path, &LoadOptions::default(), device)?.0)
}

/// Returns a batch of arbitrary pixels: the time does not depend on them.
fn pixels(device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..BATCH * 3 * 224 * 224)
        .map(|i| (i as f32 * 0.618).sin())
        .collect();
    Tensor::from_data(TensorData::new(values, [BATCH, 3, 224, 224]), device)
}

/// Times `f` for at least five seconds and two calls, after a warm-up call.
///
/// Returns the seconds per call and the CPU seconds per call; other processes disturb the latter
/// less.
fn seconds(mut f: impl FnMut()) -> (f64, f64) {
    f();
    let (start, processors) = (Instant::now(), processor_seconds());
    let mut calls = 0;
    while calls < 2 || start.elapsed().as_secs_f64() < 5.0 {
        f();
        calls += 1;
    }
    let calls = f64::from(calls);
    (
        start.elapsed().as_secs_f64() / calls,
        (processor_seconds() - processors) / calls,
    )
}

/// Returns the CPU time of this process in seconds, which the kernel counts in hundredths.
fn processor_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // User and system time are the 12th and 13th field after the name in parentheses, which may
    // contain spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn image(folder: &Path, dtype: FloatDType) -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    let mut model = model(folder, &device)?;
    if dtype != FloatDType::F32 {
        model = model.to_dtype(dtype);
    }
    let pixels = pixels(&device);
    let (time, cpu) = seconds(|| {
        normalize(model.encode_image(pixels.clone())).into_data();
    });
    report(json!({"per_second": BATCH as f64 / time, "cpu_seconds": cpu}));
    Ok(())
}

fn text(folder: &Path) -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    let model = model(folder, &device)?.with_text_batching(TextBatching::Padded);
    let prompts: Vec<String> = serde_json::from_slice(&fs::read(folder.join("prompts.json"))?)?;
    let tokens = ClipTokenizer::openai().encode(&prompts, 77)?;
    let positions = tokens.ids.iter().map(Vec::len).sum::<usize>() as f64 / prompts.len() as f64;
    let (time, cpu) = seconds(|| {
        normalize(model.encode_text(&tokens)).into_data();
    });
    report(json!({
        "per_second": prompts.len() as f64 / time,
        "positions": positions,
        "cpu_seconds": cpu,
    }));
    Ok(())
}

fn load(folder: &Path) -> Result<(), Box<dyn Error>> {
    let path = folder.join("hugging-face");
    let bytes = fs::metadata(path.join("model.safetensors"))?.len();
    let before = peak_mb();
    let start = Instant::now();
    let (model, _) = ClipModel::load(&path, &LoadOptions::default(), &Device::flex())?;
    let time = start.elapsed().as_secs_f64();
    let grown = peak_mb() - before;
    report(json!({
        "seconds": time,
        "times_the_file": grown * 1e6 / bytes as f64,
        "parameters": model.num_parameters(),
    }));
    Ok(())
}

fn train(folder: &Path) -> Result<(), Box<dyn Error>> {
    let device = Device::flex().autodiff();
    let model = model(folder, &device)?;
    let pixels = pixels(&device);
    let prompts: Vec<String> = serde_json::from_slice(&fs::read(folder.join("prompts.json"))?)?;
    let tokens = ClipTokenizer::openai().encode(&prompts[..BATCH], 77)?;
    let (time, cpu) = seconds(|| {
        let images = normalize(model.encode_image(pixels.clone()));
        let texts = normalize(model.encode_text(&tokens));
        let logits = images.matmul(texts.transpose()) * model.scale().unsqueeze();
        let gradients = clip_contrastive(logits).backward();
        drop(GradientsParams::from_grads(gradients, &model));
    });
    report(json!({"per_second": BATCH as f64 / time, "cpu_seconds": cpu}));
    Ok(())
}

/// Prints one JSON line with the peak memory of the process in MB of 10^6 bytes.
fn report(mut line: serde_json::Value) {
    line["peak_mb"] = json!(peak_mb());
    println!("{line}");
}

fn peak_mb() -> f64 {
    mtil_data::machine::peak_bytes().map_or(f64::NAN, |bytes| bytes as f64 / 1e6)
}

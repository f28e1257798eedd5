//! The towers and the loading of ViT-B/16, for `benches/pytorch/towers.py` to stand beside.
//!
//! ```text
//! cargo build --release --workspace --bins
//! towers make DIR      # a random ViT-B/16 as DIR/hugging-face and DIR/open-clip, and 256 class-name prompts, DIR/prompts.json
//! towers image DIR     # images of 224 x 224, 8 at once: one JSON line with images a second and the peak memory
//! towers text DIR      # the prompts: texts a second
//! towers load DIR      # loading the weights: seconds and peak memory
//! towers image-bf16 DIR, towers train DIR
//! ```

use std::{error::Error, fs, path::Path, time::Instant};

use burn::{
    optim::GradientsParams,
    tensor::{Device, FloatDType, Tensor, TensorData},
};
use clip_losses::clip_contrastive;
use clip_model::{
    Clip, ClipConfig, ClipModel, ClipTokenizer, Dtype, LoadOptions, Preprocess, normalize,
};
use serde_json::json;

/// As the binary of the benchmark has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Images at once.
const BATCH: usize = 8;
/// Prompts, as many as PyTorch gets.
const PROMPTS: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    // As the program does.
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

/// Class names as data sets have them: one to four words.
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

/// Any pixels: the time does not depend on them.
fn pixels(device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..BATCH * 3 * 224 * 224)
        .map(|i| (i as f32 * 0.618).sin())
        .collect();
    Tensor::from_data(TensorData::new(values, [BATCH, 3, 224, 224]), device)
}

/// Runs `f` until five seconds have passed and at least twice, after once for warming up; gives the
/// seconds of one call, and those of all processors together, which other work on the machine
/// disturbs less.
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

/// Processor time of this process, in the kernel's hundredths of a second.
fn processor_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name in brackets, which may hold spaces: user and system time are the 12th and
    // 13th.
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
    let model = model(folder, &device)?;
    let prompts: Vec<String> = serde_json::from_slice(&fs::read(folder.join("prompts.json"))?)?;
    let tokens = ClipTokenizer::openai().encode(&prompts, 77)?;
    let positions = tokens.ids.iter().map(Vec::len).sum::<usize>() as f64 / prompts.len() as f64;
    let (time, cpu) = seconds(|| {
        normalize(model.encode_text_apart(&tokens)).into_data();
    });
    report(
        json!({"per_second": prompts.len() as f64 / time, "positions": positions, "cpu_seconds": cpu}),
    );
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

/// One JSON line, with the most memory the process has held, in MB of 10^6 bytes.
fn report(mut line: serde_json::Value) {
    line["peak_mb"] = json!(peak_mb());
    println!("{line}");
}

fn peak_mb() -> f64 {
    mtil_data::machine::peak_bytes().map_or(f64::NAN, |bytes| bytes as f64 / 1e6)
}

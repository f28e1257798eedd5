//! LoRA fine-tuning of the image tower on a folder of labelled images.
//!
//! It trains Burn's adapters, a few thousand parameters instead of all, and saves an ordinary
//! checkpoint.
//!
//! ```text
//! # Synthetic images, the small CLIP of the repository.
//! cargo run --release -p clip-model --example lora
//!
//! cargo run --release -p clip-model --example lora -- \
//!     FOLDER --model openai/ViT-B-16 --out runs/lora
//! ```
//!
//! `FOLDER` holds `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, or only `CLASS/*.jpg`, of which every
//! fifth image is held out. The names of the folders are the labels. The loss is the cross-entropy
//! of the zero-shot logits. The text tower is frozen, so the model still classifies other labels.

use std::{
    collections::BTreeSet,
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use burn::{
    module::{Lora, Module, ModuleVisitor, Param, ParamGroup},
    nn::loss::CrossEntropyLossConfig,
    optim::{AdamWConfig, GradientsParams},
    tensor::{Device, Int, Tensor, TensorData},
};
use clap::Parser;
use clip_model::{Clip, Dtype, ZeroShotClassifier, normalize, preprocess::decode_file};
use image::{DynamicImage, RgbImage};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

#[path = "common/drawn.rs"]
mod drawn;
#[path = "common/files.rs"]
mod files;

/// Every fifth image of a class is held out if the folder has no `train` and `test`.
const HELD_OUT: usize = 5;

/// The small CLIP of the repository.
const MINI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mini-world/clip-mini");

#[derive(Parser)]
struct Args {
    /// Folder of labelled images; by default, synthetic images of shapes
    folder: Option<PathBuf>,
    /// Checkpoint (a folder or a file), or a name in the zoo
    #[arg(long, default_value = MINI)]
    model: String,
    /// Prompt template, with {} for the label; may be repeated
    #[arg(long = "template", default_value = "a photo of a {}.")]
    templates: Vec<String>,
    /// Regular expression for the weights with adapters. Attention: ^visual\.blocks\.\d+\.attn\.
    #[arg(
        long,
        default_value = r"^visual\.blocks\.\d+\.mlp\.(c_fc|c_proj)\.weight$"
    )]
    weights: String,
    /// Rank of the adapters
    #[arg(long, default_value_t = 4)]
    rank: usize,
    /// LoRA alpha: the adapters are scaled by alpha / rank
    #[arg(long, default_value_t = 8.0)]
    alpha: f64,
    /// Number of passes over the training images
    #[arg(long, default_value_t = 10)]
    epochs: usize,
    /// Batch size
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Learning rate of AdamW
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Seed of the synthetic images, the adapters and the order of the images
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder to save the trained model to
    #[arg(long, default_value = "runs/lora")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let drawn;
    let folder = match &args.folder {
        Some(folder) => folder.as_path(),
        None => {
            drawn = draw_dataset(args.seed)?;
            drawn.path()
        }
    };
    let data = Data::read(folder)?;
    println!(
        "{}: {} classes, {} images to train on, {} held out",
        args.folder
            .as_deref()
            .map_or("drawn".into(), Path::to_string_lossy),
        data.labels.len(),
        data.train.images.len(),
        data.test.images.len()
    );

    // `train` moves a model to the autodiff variant of its device, `valid` moves it back.
    let device = Device::default();
    let autodiff = device.clone().autodiff();
    let clip = Clip::from_pretrained(&args.model, &device)?;
    let before = accuracy(&clip, &data, &args.templates)?;

    device.seed(args.seed); // The device generates the initial values of the adapters.
    let group = ParamGroup::from_regex(&args.weights).map_err(|e| format!("--weights: {e:?}"))?;
    let lora = Lora::new(args.rank, args.alpha).set_param_group(group);
    let mut model = clip.model.clone().train().apply_lora(lora);
    let (trainable, all) = (trainable(&model), clip.model.num_parameters());
    if trainable == 0 {
        return Err(format!("no weight matches {}", args.weights).into());
    }
    println!(
        "{trainable} trainable parameters, {:.2} % of the {all} of the model",
        100.0 * trainable as f64 / all as f64
    );

    // The text tower is frozen, so the class features are computed once.
    let classifier = ZeroShotClassifier::new(&clip, &data.labels, &args.templates)?;
    let (classes, scale) = (classifier.class_features().transpose(), clip.model.scale());
    let cross_entropy = CrossEntropyLossConfig::new().init(&autodiff);
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    let crops: Vec<RgbImage> = (data.train.images.iter())
        .map(|image| clip.preprocess.eval_u8(image))
        .collect();
    let mut order: Vec<usize> = (0..crops.len()).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let start = Instant::now();
    for epoch in 1..=args.epochs {
        order.shuffle(&mut rng);
        let (mut sum, mut steps) = (0.0, 0);
        for batch in order.chunks(args.batch.max(1)) {
            let images: Vec<RgbImage> = batch.iter().map(|i| crops[*i].clone()).collect();
            let labels: Vec<i32> = batch.iter().map(|i| data.train.labels[*i] as i32).collect();
            let labels = TensorData::new(labels, [batch.len()]);
            let labels = Tensor::<1, Int>::from_data(labels, &autodiff);
            let pixels = clip.preprocess.to_tensor(&images, &autodiff)?;

            let features = normalize(model.encode_image(pixels));
            let logits = features.matmul(classes.clone()) * scale.clone().unsqueeze();
            let loss = cross_entropy.forward(logits, labels);
            sum += loss.clone().into_scalar::<f32>();
            steps += 1;
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(args.learning_rate, model, gradients);
        }
        println!("epoch {epoch}: loss {:.3}", sum / steps as f32);
    }
    println!("trained for {:.1} s", start.elapsed().as_secs_f64());

    // Drop autodiff and merge the adapters into the weights, which gives an ordinary model.
    let model = model.valid().materialize();
    let tuned = Clip { model, ..clip };
    let after = accuracy(&tuned, &data, &args.templates)?;
    tuned.save(&args.out, Dtype::F32)?;
    let loaded = accuracy(&Clip::load(&args.out, &device)?, &data, &args.templates)?;

    println!("accuracy on held-out images: {before:.1} % before, {after:.1} % after");
    println!(
        "{}: {loaded:.1} % after saving and loading",
        args.out.display()
    );
    if loaded != after {
        return Err("the saved model differs from the trained one".into());
    }
    Ok(())
}

/// Returns the zero-shot accuracy on the held-out images, in percent.
fn accuracy(clip: &Clip, data: &Data, templates: &[String]) -> Result<f64, Box<dyn Error>> {
    let classifier = ZeroShotClassifier::new(clip, &data.labels, templates)?;
    let predictions = classifier.classify(&data.test.images, 1)?;
    let correct = (predictions.iter().zip(&data.test.labels))
        .filter(|(prediction, label)| prediction[0].class == **label)
        .count();
    Ok(100.0 * correct as f64 / predictions.len() as f64)
}

/// Returns the number of trainable parameters.
fn trainable(model: &impl Module) -> usize {
    struct Count(usize);
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0 += param.base().shape().num_elements();
            }
        }
    }
    let mut count = Count(0);
    model.visit(&mut count);
    count.0
}

/// Images and their label indices.
#[derive(Default)]
struct Split {
    images: Vec<DynamicImage>,
    labels: Vec<usize>,
}

struct Data {
    labels: Vec<String>,
    train: Split,
    test: Split,
}

impl Data {
    fn read(folder: &Path) -> Result<Self, Box<dyn Error>> {
        let split = ["train", "test"].map(|name| folder.join(name));
        let is_split = split.iter().all(|folder| folder.is_dir());
        let classes = subfolders(if is_split { &split[0] } else { folder })?;
        let mut data = Self {
            labels: (classes.iter())
                .map(|class| class.replace('_', " "))
                .collect(),
            train: Split::default(),
            test: Split::default(),
        };
        for (label, class) in classes.iter().enumerate() {
            if is_split {
                data.train
                    .add(files::image_files(&split[0].join(class))?, label)?;
                data.test
                    .add(files::image_files(&split[1].join(class))?, label)?;
                continue;
            }
            let all = files::image_files(&folder.join(class))?;
            let held_out = |number: usize| number % HELD_OUT == HELD_OUT - 1;
            let (test, train): (Vec<_>, Vec<_>) =
                (all.into_iter().enumerate()).partition(|(number, _)| held_out(*number));
            data.train
                .add(train.into_iter().map(|(_, file)| file), label)?;
            data.test
                .add(test.into_iter().map(|(_, file)| file), label)?;
        }
        if data.labels.len() < 2 || data.train.images.is_empty() || data.test.images.is_empty() {
            let reason = "expected at least two folders, named after classes, with images";
            return Err(format!("{}: {reason}", folder.display()).into());
        }
        Ok(data)
    }
}

impl Split {
    fn add(
        &mut self,
        files: impl IntoIterator<Item = PathBuf>,
        label: usize,
    ) -> Result<(), Box<dyn Error>> {
        for file in files {
            self.images.push(decode_file(&file)?);
            self.labels.push(label);
        }
        Ok(())
    }
}

/// Returns the names of the subfolders.
fn subfolders(folder: &Path) -> Result<BTreeSet<String>, Box<dyn Error>> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry?;
        if entry.path().is_dir() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Draws a dataset to a temporary folder.
fn draw_dataset(seed: u64) -> Result<tempfile::TempDir, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for (split, count) in [("train", 40), ("test", 50)] {
        for (class, name) in drawn::CLASSES.iter().enumerate() {
            let folder = folder.path().join(split).join(name);
            std::fs::create_dir_all(&folder)?;
            for number in 0..count {
                let image = drawn::draw(class, &mut rng);
                image.save(folder.join(format!("{number:03}.png")))?;
            }
        }
    }
    Ok(folder)
}

//! Export of a checkpoint for `transformers` and open_clip.
//!
//! ```text
//! cargo run --release -p clip-model --example export -- MODEL OUT [--to open-clip] [--dtype f16]
//! ```
//!
//! `MODEL` is any checkpoint that the library loads (OpenAI's archives, folders of open_clip and
//! Hugging Face, `.pth` files of GNSP and ZSCL), or a name in the zoo. The example writes
//! `OUT/hugging_face` for `transformers` and `OUT/open_clip` for open_clip, and prints the Python
//! code that loads them. It loads each folder again and compares the features with the model's.
//! `--features FILE` writes a fixed input and its features, to compare in Python
//! (`tests/reference/clip_export_check.py` of the repository does).
//!
//! For a model without a tokenizer or image settings, it writes only the weights, and for
//! `transformers` the configuration.

use std::{
    collections::HashMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use burn::tensor::{Device, Tensor, TensorData};
use clap::{Parser, ValueEnum};
use clip_model::{
    Activation, CheckpointError, Clip, ClipConfig, ClipModel, Dtype, KeyLayout, LoadOptions,
    TextConfig, TextKind, TokenBatch, VisionKind, architecture, preprocess::PreprocessError,
    save_weights, tokenizer::TokenizerError, write_weights,
};
use safetensors::tensor::TensorView;

#[derive(Parser)]
struct Args {
    /// Checkpoint (a folder or a file), or a name in the zoo
    model: String,
    /// Output folder
    out: PathBuf,
    /// Layouts to write
    #[arg(long, value_enum, default_values_t = [Format::HuggingFace, Format::OpenClip])]
    to: Vec<Format>,
    /// Data type of the weights
    #[arg(long, value_enum, default_value = "f32")]
    dtype: DtypeArg,
    /// Architecture, in open_clip's spelling, for weights without a configuration
    #[arg(long)]
    architecture: Option<String>,
    /// Activation, for weights without a configuration
    #[arg(long, value_enum)]
    activation: Option<ActivationArg>,
    /// A tokenizer.json, or OpenAI's merges, in place of the model's tokenizer
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// File to write a fixed input and its features to
    #[arg(long)]
    features: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    HuggingFace,
    OpenClip,
}

#[derive(Clone, Copy, ValueEnum)]
enum DtypeArg {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum ActivationArg {
    Gelu,
    QuickGelu,
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
    let device = Device::default();
    let unknown = |name: &String| format!("there is no architecture {name}");
    let options = LoadOptions {
        architecture: (args.architecture.as_ref())
            .map(|name| architecture(name).ok_or_else(|| unknown(name)))
            .transpose()?,
        activation: args.activation.map(|activation| match activation {
            ActivationArg::Gelu => Activation::Gelu,
            ActivationArg::QuickGelu => Activation::QuickGelu,
        }),
        tokenizer: args.tokenizer.clone(),
        ..LoadOptions::default()
    };
    let dtype = match args.dtype {
        DtypeArg::F32 => Dtype::F32,
        DtypeArg::F16 => Dtype::F16,
        DtypeArg::Bf16 => Dtype::BF16,
    };

    let source = Source::load(&args.model, &options, &device)?;
    let (model, config) = source.model();
    let input = Input::new(config, &device);
    let features = input.features(model);
    if let Some(path) = &args.features {
        input.save(path, &features)?;
    }
    for format in args.to {
        let resnet = matches!(config.vision.kind, VisionKind::ResNet { .. });
        if format == Format::HuggingFace && resnet {
            println!("transformers has no ResNet CLIP: writing only the open_clip folder\n");
            continue;
        }
        let dir = args.out.join(match format {
            Format::HuggingFace => "hugging_face",
            Format::OpenClip => "open_clip",
        });
        source.write(format, &dir, dtype)?;

        // The architecture is given, because a bare weights file does not determine it.
        let options = LoadOptions {
            architecture: Some(config.clone()),
            ..LoadOptions::default()
        };
        let (reloaded, _) = ClipModel::load(&dir, &options, &device)?;
        let difference = max_difference(&features, &input.features(&reloaded));
        println!(
            "{} (features differ by at most {difference:.1e})",
            dir.display()
        );
        println!("{}\n", source.python(format, &dir));
    }
    Ok(())
}

/// The checkpoint to export.
enum Source {
    /// A complete checkpoint.
    Clip(Box<Clip>),
    /// A model without a tokenizer or image settings.
    Model(Box<(ClipModel, ClipConfig)>),
}

impl Source {
    fn load(name: &str, options: &LoadOptions, device: &Device) -> Result<Self, CheckpointError> {
        match Clip::from_pretrained_with(name, options, device) {
            Ok(clip) => Ok(Self::Clip(Box::new(clip))),
            Err(
                CheckpointError::Tokenizer(TokenizerError::NoDefault { .. })
                | CheckpointError::Preprocess(PreprocessError::NotFound { .. }),
            ) => {
                println!("{name}: no tokenizer or image settings, writing only the weights\n");
                let loaded = ClipModel::load(Path::new(name), options, device)?;
                Ok(Self::Model(Box::new(loaded)))
            }
            Err(error) => Err(error),
        }
    }

    fn model(&self) -> (&ClipModel, &ClipConfig) {
        match self {
            Self::Clip(clip) => (&clip.model, &clip.config),
            Self::Model(loaded) => (&loaded.0, &loaded.1),
        }
    }

    fn write(&self, format: Format, dir: &Path, dtype: Dtype) -> Result<(), Box<dyn Error>> {
        match (self, format) {
            (Self::Clip(clip), Format::HuggingFace) => clip.save(dir, dtype)?,
            (Self::Clip(clip), Format::OpenClip) => clip.save_open_clip(dir, dtype)?,
            (Self::Model(loaded), Format::HuggingFace) => {
                let (model, config) = &**loaded;
                fs::create_dir_all(dir)?;
                fs::write(dir.join("config.json"), config.to_json()?)?;
                save_weights(model, config, &dir.join("model.safetensors"), dtype)?;
            }
            (Self::Model(loaded), Format::OpenClip) => {
                let (model, config) = &**loaded;
                let layout = match config.text.kind {
                    TextKind::Clip => KeyLayout::OpenAi,
                    TextKind::Siglip => KeyLayout::OpenClipCustomText,
                };
                fs::create_dir_all(dir)?;
                let weights = dir.join("open_clip_model.safetensors");
                write_weights(model, config, layout, &weights, dtype)?;
            }
        }
        Ok(())
    }

    /// Returns the Python code that loads the written folder.
    fn python(&self, format: Format, dir: &Path) -> String {
        let dir = dir.display();
        let family = match self.model().1.vision.kind {
            VisionKind::Siglip => "Siglip",
            _ => "CLIP",
        };
        match (self, format) {
            (Self::Clip(_), Format::HuggingFace) => format!(
                "    from transformers import AutoProcessor, {family}Model\n    \
                 model = {family}Model.from_pretrained(\"{dir}\")\n    \
                 processor = AutoProcessor.from_pretrained(\"{dir}\")"
            ),
            (Self::Clip(clip), Format::OpenClip) => {
                let model = format!(
                    "    import open_clip\n    \
                     model, preprocess = \
                     open_clip.create_model_from_pretrained(\"local-dir:{dir}\")"
                );
                // open_clip's default tokenizer supports only OpenAI's vocabulary.
                let vocabulary = clip.config.text.vocab_size;
                if vocabulary == TextConfig::default().vocab_size && family == "CLIP" {
                    format!("{model}\n    tokenizer = open_clip.get_tokenizer(\"local-dir:{dir}\")")
                } else {
                    let file = format!("{dir}/tokenizer.json");
                    format!("{model}\n    tokenizer = tokenizers.Tokenizer.from_file(\"{file}\")")
                }
            }
            (Self::Model(_), Format::HuggingFace) => format!(
                "    from transformers import {family}Model\n    \
                 model = {family}Model.from_pretrained(\"{dir}\")"
            ),
            (Self::Model(_), Format::OpenClip) => format!(
                "    import open_clip\n    \
                 model = open_clip.create_model(ARCHITECTURE)\n    \
                 open_clip.load_checkpoint(model, \"{dir}/open_clip_model.safetensors\")"
            ),
        }
    }
}

/// A fixed input: two images and three texts.
struct Input {
    /// `[2, 3, side, side]`.
    pixels: TensorData,
    /// Token ids, each row as long as the context.
    rows: Vec<Vec<u32>>,
    device: Device,
}

impl Input {
    fn new(config: &ClipConfig, device: &Device) -> Self {
        let side = config.vision.image_size;
        let pixels = (0..2 * 3 * side * side)
            .map(|i| ((i * 7919) % 1009) as f32 / 256.0 - 2.0)
            .collect::<Vec<_>>();
        let text = &config.text;
        let context = text.max_position_embeddings;
        // CLIP pools at its first end token, which has the largest id; SigLIP pools at the last
        // position.
        let end = (text.vocab_size - 1) as u32;
        let row = |number: usize| -> Vec<u32> {
            let words = (number + 1) * (context - 2) / 3;
            let word = |i: usize| (5 + (number * 31 + i * 17) % (text.vocab_size - 8)) as u32;
            (0..context)
                .map(|i| if i <= words { word(i) } else { end })
                .collect()
        };
        Self {
            pixels: TensorData::new(pixels, [2, 3, side, side]),
            rows: (0..3).map(row).collect(),
            device: device.clone(),
        }
    }

    /// Returns the features of the images and of the texts, not normalised.
    fn features(&self, model: &ClipModel) -> [TensorData; 2] {
        let pixels = Tensor::<4>::from_data(self.pixels.clone(), &self.device);
        let texts = TokenBatch {
            ids: self.rows.clone(),
        };
        [model.encode_image(pixels), model.encode_text(&texts)].map(Tensor::into_data)
    }

    fn save(&self, path: &Path, features: &[TensorData; 2]) -> Result<(), Box<dyn Error>> {
        let ids: Vec<u8> = (self.rows.iter().flatten())
            .flat_map(|id| i64::from(*id).to_le_bytes())
            .collect();
        let shape = vec![self.rows.len(), self.rows[0].len()];
        let floats = |data: &TensorData| -> (Vec<usize>, Vec<u8>) {
            let bytes = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
            (data.shape().to_vec(), bytes)
        };
        let named = [
            ("pixels", floats(&self.pixels)),
            ("image_features", floats(&features[0])),
            ("text_features", floats(&features[1])),
        ];
        let mut tensors = HashMap::new();
        for (name, (shape, bytes)) in &named {
            let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes)?;
            tensors.insert(*name, view);
        }
        tensors.insert(
            "ids",
            TensorView::new(safetensors::Dtype::I64, shape, &ids)?,
        );
        fs::write(path, safetensors::serialize(tensors, None)?)?;
        Ok(())
    }
}

fn max_difference(a: &[TensorData; 2], b: &[TensorData; 2]) -> f32 {
    let values = |data: &[TensorData; 2]| -> Vec<f32> {
        data.iter()
            .flat_map(|d| d.iter::<f32>().collect::<Vec<_>>())
            .collect()
    };
    (values(a).iter().zip(values(b)))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

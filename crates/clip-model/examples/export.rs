//! Any checkpoint as a directory that Python loads.
//!
//! ```text
//! cargo run --release -p clip-model --example export -- MODEL OUT [--to open-clip] [--dtype f16]
//! ```
//!
//! `MODEL` is what the library loads: OpenAI's archives, open_clip's and Hugging Face's folders,
//! GNSP's and ZSCL's `.pth`, or a name of the zoo. `OUT/hugging_face` is then a folder for
//! `transformers` and `OUT/open_clip` one for open_clip; the lines of Python that load them are
//! printed. Each folder is loaded again and compared with the model. `--features FILE` writes a
//! fixed input and what the model makes of it, to compare in Python
//! (`tests/reference/clip_export_check.py` of the repository does).
//!
//! For a model without a tokenizer or image settings only the weights are written, and for
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
    /// A checkpoint (a folder or a file), or a name of the zoo
    model: String,
    /// The folder to write to
    out: PathBuf,
    /// Whose layout to write
    #[arg(long, value_enum, default_values_t = [Format::HuggingFace, Format::OpenClip])]
    to: Vec<Format>,
    /// Number format of the weights
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Number,
    /// The architecture, in open_clip's spelling, for weights that come without a configuration
    #[arg(long)]
    architecture: Option<String>,
    /// The activation, for weights that come without a configuration
    #[arg(long, value_enum)]
    activation: Option<Gelu>,
    /// A tokenizer.json, or OpenAI's merges, instead of the model's own
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Where to write a fixed input and its features
    #[arg(long)]
    features: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    HuggingFace,
    OpenClip,
}

#[derive(Clone, Copy, ValueEnum)]
enum Number {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum Gelu {
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
            Gelu::Gelu => Activation::Gelu,
            Gelu::QuickGelu => Activation::QuickGelu,
        }),
        tokenizer: args.tokenizer.clone(),
        ..LoadOptions::default()
    };
    let dtype = match args.dtype {
        Number::F32 => Dtype::F32,
        Number::F16 => Dtype::F16,
        Number::Bf16 => Dtype::BF16,
    };

    let source = Source::load(&args.model, &options, &device)?;
    let (model, config) = source.parts();
    let input = Input::of(config, &device);
    let features = input.features(model);
    if let Some(path) = &args.features {
        input.save(path, &features)?;
    }
    for format in args.to {
        let resnet = matches!(config.vision.kind, VisionKind::ResNet { .. });
        if format == Format::HuggingFace && resnet {
            println!("transformers has no ResNet CLIP: only open_clip's folder is written\n");
            continue;
        }
        let dir = args.out.join(match format {
            Format::HuggingFace => "hugging_face",
            Format::OpenClip => "open_clip",
        });
        source.write(format, &dir, dtype)?;

        let options = LoadOptions {
            architecture: Some(config.clone()),
            ..LoadOptions::default()
        };
        let (again, _) = ClipModel::load(&dir, &options, &device)?;
        let difference = largest_difference(&features, &input.features(&again));
        println!(
            "{} (features differ by at most {difference:.1e})",
            dir.display()
        );
        println!("{}\n", source.python(format, &dir));
    }
    Ok(())
}

/// What is exported.
enum Source {
    Whole(Box<Clip>),
    /// It came without a tokenizer or image settings.
    Model(Box<(ClipModel, ClipConfig)>),
}

impl Source {
    fn load(name: &str, options: &LoadOptions, device: &Device) -> Result<Self, CheckpointError> {
        match Clip::from_pretrained_with(name, options, device) {
            Ok(clip) => Ok(Self::Whole(Box::new(clip))),
            Err(
                CheckpointError::Tokenizer(TokenizerError::NoDefault { .. })
                | CheckpointError::Preprocess(PreprocessError::NotFound { .. }),
            ) => {
                println!(
                    "{name} has no tokenizer or no image settings: only its weights are written\n"
                );
                let loaded = ClipModel::load(Path::new(name), options, device)?;
                Ok(Self::Model(Box::new(loaded)))
            }
            Err(error) => Err(error),
        }
    }

    fn parts(&self) -> (&ClipModel, &ClipConfig) {
        match self {
            Self::Whole(clip) => (&clip.model, &clip.config),
            Self::Model(loaded) => (&loaded.0, &loaded.1),
        }
    }

    fn write(&self, format: Format, dir: &Path, dtype: Dtype) -> Result<(), Box<dyn Error>> {
        match (self, format) {
            (Self::Whole(clip), Format::HuggingFace) => clip.save(dir, dtype)?,
            (Self::Whole(clip), Format::OpenClip) => clip.save_open_clip(dir, dtype)?,
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

    /// How Python loads what was written.
    fn python(&self, format: Format, dir: &Path) -> String {
        let dir = dir.display();
        let family = match self.parts().1.vision.kind {
            VisionKind::Siglip => "Siglip",
            _ => "CLIP",
        };
        match (self, format) {
            (Self::Whole(_), Format::HuggingFace) => format!(
                "    from transformers import AutoProcessor, {family}Model\n    \
                 model = {family}Model.from_pretrained(\"{dir}\")\n    \
                 processor = AutoProcessor.from_pretrained(\"{dir}\")"
            ),
            (Self::Whole(clip), Format::OpenClip) => {
                let model = format!(
                    "    import open_clip\n    \
                     model, preprocess = open_clip.create_model_from_pretrained(\"local-dir:{dir}\")"
                );
                // open_clip's own tokenizer has OpenAI's vocabulary and no other.
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

/// Two images and three texts that every model of a shape takes.
struct Input {
    /// `[2, 3, side, side]`.
    pixels: TensorData,
    /// Of the length of the context each.
    rows: Vec<Vec<u32>>,
    device: Device,
}

impl Input {
    fn of(config: &ClipConfig, device: &Device) -> Self {
        let side = config.vision.image_size;
        let pixels = (0..2 * 3 * side * side)
            .map(|i| ((i * 7919) % 1009) as f32 / 256.0 - 2.0)
            .collect::<Vec<_>>();
        let text = &config.text;
        let context = text.max_position_embeddings;
        // CLIP reads the first of its end tokens, which has the largest id; SigLIP reads the last
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

    /// Features of the images and of the texts, not normalised.
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

fn largest_difference(a: &[TensorData; 2], b: &[TensorData; 2]) -> f32 {
    let values = |data: &[TensorData; 2]| -> Vec<f32> {
        data.iter()
            .flat_map(|d| d.iter::<f32>().collect::<Vec<_>>())
            .collect()
    };
    (values(a).iter().zip(values(b)))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

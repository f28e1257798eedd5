//! `model convert`.

use std::{collections::BTreeMap, fs, path::Path};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Tensor, bf16, f16},
};
use clip_model::{Clip, ClipModel, Dtype, LoadOptions};
use eyre::{Result, WrapErr, bail};
use image::{DynamicImage, Rgb, RgbImage};
use indicatif::DecimalBytes;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::facts::grouped;
use crate::{
    cli::{
        args::{ConvertArgs, DtypeName, Format},
        checkpoint::load_with,
    },
    device,
};
use mtil_engine::eval::to_host;

/// How far features may turn, as one minus the cosine: what rounding of the last bits adds up to,
/// and what 16 bits do.
const TURN_F32: f32 = 1e-5;
const TURN_HALF: f32 = 1e-2;

/// `model convert`.
pub fn convert(args: &ConvertArgs) -> Result<()> {
    check_out(&args.out, args.force)?;
    let options = LoadOptions {
        image_size: args.image_size.map(|size| size as usize),
        tokenizer: args.tokenizer.clone(),
        ..args.hints.options()?
    };
    let device = device::parse(device::compiled_in()[0])?;
    let source = load_with(&args.source, &args.hints, &options, &device)?.clip;
    let dtype = match args.dtype {
        DtypeName::F32 => Dtype::F32,
        DtypeName::F16 => Dtype::F16,
        DtypeName::Bf16 => Dtype::BF16,
    };
    let file = match args.to {
        Format::HuggingFace => {
            source.save(&args.out, dtype)?;
            "model.safetensors"
        }
        Format::OpenClip => {
            source.save_open_clip(&args.out, dtype)?;
            "open_clip_model.safetensors"
        }
    };
    let weights = args.out.join(file);
    let description = Clip::describe(&args.out, &LoadOptions::default())
        .wrap_err("the result cannot be read back")?;
    if description.weights != weights {
        bail!(
            "{} holds {} too, which is loaded instead of {file}; remove it, or choose another folder",
            args.out.display(),
            description.weights.display()
        );
    }
    // One model at a time: of the source only what it is compared by stays.
    let wanted = Likeness::of(&source, dtype)?;
    drop(source);
    let again = Clip::load(&args.out, &device).wrap_err("the result cannot be read back")?;
    let found = Likeness::of(&again, dtype)?;
    let compared = wanted.compare(&found, dtype);
    let turns = match compared {
        Ok(turns) => turns,
        Err(e) => {
            fs::remove_file(&weights)
                .wrap_err_with(|| format!("cannot remove {}", weights.display()))?;
            let hint = match args.to {
                Format::OpenClip => {
                    "; open_clip's layout holds neither the ids of special tokens nor every epsilon, hugging-face does"
                }
                Format::HuggingFace => "",
            };
            bail!("{e}{hint}. {} was removed again", weights.display());
        }
    };
    let format = match args.to {
        Format::HuggingFace => "hugging-face",
        Format::OpenClip => "open-clip",
    };
    let dtype_name = match args.dtype {
        DtypeName::F32 => "f32",
        DtypeName::F16 => "f16",
        DtypeName::Bf16 => "bf16",
    };
    eprintln!(
        "{}: {} parameters as {dtype_name} in {format} layout, {}",
        args.out.display(),
        grouped(description.config.parameters()),
        DecimalBytes(description.bytes)
    );
    eprintln!(
        "read back: {} parameter tensors are the source's{}; features of an image and a text have cosine {:.6} and {:.6}",
        wanted.digests.len(),
        if dtype == Dtype::F32 { "" } else { ", rounded" },
        1.0 - turns[0],
        1.0 - turns[1]
    );
    if args.json {
        let value = json!({
            "out": args.out,
            "weights": weights,
            "format": format,
            "dtype": dtype_name,
            "bytes": description.bytes,
            "tensors": description.tensors,
            "parameters": description.config.parameters(),
            "image_cosine": 1.0 - turns[0],
            "text_cosine": 1.0 - turns[1],
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
    }
    Ok(())
}

/// A folder that is not there or empty, unless forced.
fn check_out(out: &Path, force: bool) -> Result<()> {
    if !out.exists() {
        return Ok(());
    }
    let mut entries =
        fs::read_dir(out).wrap_err_with(|| format!("cannot write to {}", out.display()))?;
    if entries.next().is_some() && !force {
        bail!(
            "{} is not empty; choose another folder, or --force to replace files of the same names",
            out.display()
        );
    }
    Ok(())
}

/// What a model is compared by: a digest of each parameter, rounded, and the features of an image
/// and a text.
struct Likeness {
    digests: BTreeMap<String, [u8; 32]>,
    features: [Vec<f32>; 2],
}

impl Likeness {
    fn of(clip: &Clip, dtype: Dtype) -> Result<Self> {
        // Colours that go on in both directions: no symmetry hides a wrong order of pixels.
        let picture = RgbImage::from_fn(96, 64, |x, y| {
            Rgb([(x * 2) as u8, (y * 3) as u8, (x + y) as u8])
        });
        let image = clip.encode_image(&[DynamicImage::from(picture)])?;
        let text = clip.encode_text(&["a photo of a cat."])?;
        Ok(Self {
            digests: digests(&clip.model, dtype),
            features: [to_host(image), to_host(text)],
        })
    }

    /// One minus the cosine of the image's and the text's features.
    fn compare(&self, other: &Self, dtype: Dtype) -> Result<[f32; 2]> {
        for (name, digest) in &self.digests {
            if other.digests.get(name) != Some(digest) {
                bail!("parameter {name} came back with other values");
            }
        }
        if self.digests.len() != other.digests.len() {
            bail!("the result has more parameters than the source");
        }
        let allowed = match dtype {
            Dtype::F32 => TURN_F32,
            Dtype::F16 | Dtype::BF16 => TURN_HALF,
        };
        let mut turns = [0.0; 2];
        for (i, what) in ["image", "text"].into_iter().enumerate() {
            let pairs = self.features[i].iter().zip(&other.features[i]);
            turns[i] = 1.0 - pairs.map(|(a, b)| a * b).sum::<f32>();
            if turns[i].is_nan() || turns[i] > allowed {
                bail!(
                    "the result gives an {what} other features than the source (cosine {:.6})",
                    1.0 - turns[i]
                );
            }
        }
        Ok(turns)
    }
}

fn digests(model: &ClipModel, dtype: Dtype) -> BTreeMap<String, [u8; 32]> {
    struct Visitor {
        path: Vec<String>,
        dtype: Dtype,
        digests: BTreeMap<String, [u8; 32]>,
    }
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let mut hasher = Sha256::new();
            for x in param.val().into_data().iter::<f32>() {
                let rounded = match self.dtype {
                    Dtype::F32 => x,
                    Dtype::F16 => f16::from_f32(x).to_f32(),
                    Dtype::BF16 => bf16::from_f32(x).to_f32(),
                };
                hasher.update(rounded.to_le_bytes());
            }
            self.digests
                .insert(self.path.join("."), hasher.finalize().into());
        }
    }
    let mut visitor = Visitor {
        path: Vec::new(),
        dtype,
        digests: BTreeMap::new(),
    };
    model.visit(&mut visitor);
    visitor.digests
}

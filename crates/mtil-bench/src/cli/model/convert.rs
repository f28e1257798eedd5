//! `model convert`: conversion between layouts and number formats, with verification.

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

use super::summary::grouped;
use crate::{
    cli::{
        args::{ConvertArgs, DtypeName, Format},
        checkpoint::load_with,
    },
    device,
};
use mtil_engine::eval::to_host;

/// Largest cosine distance between the features of source and result in f32: accumulated rounding.
const MAX_COSINE_ERROR_F32: f32 = 1e-5;
/// The same for 16-bit weights.
const MAX_COSINE_ERROR_HALF: f32 = 1e-2;

/// Runs `model convert`.
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
            "{} also holds {}, which is loaded instead of {file}; remove it, or choose another \
             folder",
            args.out.display(),
            description.weights.display()
        );
    }
    // Keep only the fingerprint of the source, so that one model is in memory at a time.
    let wanted = Fingerprint::of(&source, dtype)?;
    drop(source);
    let again = Clip::load(&args.out, &device).wrap_err("the result cannot be read back")?;
    let found = Fingerprint::of(&again, dtype)?;
    let compared = wanted.compare(&found, dtype);
    let errors = match compared {
        Ok(errors) => errors,
        Err(e) => {
            fs::remove_file(&weights)
                .wrap_err_with(|| format!("cannot remove {}", weights.display()))?;
            let hint = match args.to {
                Format::OpenClip => {
                    "; open_clip's layout stores neither the ids of special tokens nor every \
                     epsilon, hugging-face does"
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
        "verified: {} parameter tensors equal the source's{}; the features of an image and a text \
         have cosine similarity {:.6} and {:.6}",
        wanted.digests.len(),
        if dtype == Dtype::F32 { "" } else { ", rounded" },
        1.0 - errors[0],
        1.0 - errors[1]
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
            "image_cosine": 1.0 - errors[0],
            "text_cosine": 1.0 - errors[1],
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
    }
    Ok(())
}

/// Checks that the output folder does not exist or is empty, unless forced.
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

/// Fingerprint of a model: a digest of each rounded parameter, and the features of an image and a
/// text.
struct Fingerprint {
    digests: BTreeMap<String, [u8; 32]>,
    features: [Vec<f32>; 2],
}

impl Fingerprint {
    fn of(clip: &Clip, dtype: Dtype) -> Result<Self> {
        // A colour gradient in both directions: no symmetry can hide a wrong order of pixels.
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

    /// Returns the cosine distances of the image features and of the text features.
    ///
    /// # Errors
    /// If a parameter differs, or a distance is larger than rounding explains.
    fn compare(&self, other: &Self, dtype: Dtype) -> Result<[f32; 2]> {
        for (name, digest) in &self.digests {
            if other.digests.get(name) != Some(digest) {
                bail!("parameter {name} has other values in the result");
            }
        }
        if self.digests.len() != other.digests.len() {
            bail!("the result has more parameters than the source");
        }
        let allowed = match dtype {
            Dtype::F32 => MAX_COSINE_ERROR_F32,
            Dtype::F16 | Dtype::BF16 => MAX_COSINE_ERROR_HALF,
        };
        let mut errors = [0.0; 2];
        for (i, what) in ["image", "text"].into_iter().enumerate() {
            let pairs = self.features[i].iter().zip(&other.features[i]);
            errors[i] = 1.0 - pairs.map(|(a, b)| a * b).sum::<f32>();
            if errors[i].is_nan() || errors[i] > allowed {
                bail!(
                    "the result computes other {what} features than the source (cosine similarity \
                     {:.6})",
                    1.0 - errors[i]
                );
            }
        }
        Ok(errors)
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

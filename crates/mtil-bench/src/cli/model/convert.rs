//! `model convert`: conversion between layouts and number formats, with verification.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Tensor, bf16, f16},
};
use clip_model::{Clip, ClipModel, Dtype, LoadOptions};
use eyre::{Result, WrapErr, bail, eyre};
use image::{DynamicImage, Rgb, RgbImage};
use indicatif::DecimalBytes;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::summary::grouped;
use crate::{
    cli::{
        args::{ConvertArgs, DtypeName, Format},
        checkpoint::load_with,
        interrupt::stop_flag,
    },
    device,
    exit::EarlyEnd,
    print::print_json,
};
use mtil_engine::eval::to_host;

/// Largest cosine distance between the features of source and result in f32: accumulated rounding.
const MAX_COSINE_ERROR_F32: f32 = 1e-5;
/// The same for 16-bit weights.
const MAX_COSINE_ERROR_HALF: f32 = 1e-2;

/// Name of the folder, in the output folder, of a result that is not verified yet.
const UNVERIFIED: &str = ".mtil-convert.tmp";

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
    let existed = args.out.exists();
    let written = write(source, args, &device, &stop_flag());
    if written.is_err() && !existed {
        // An error: it is not empty.
        let _ = fs::remove_dir(&args.out);
    }
    let verified = written?;
    let weights = args.out.join(weights_file(args.to));
    let description = Clip::describe(&args.out, &LoadOptions::default())
        .wrap_err("the result cannot be read back")?;
    if description.weights != weights {
        bail!(
            "{} also holds {}, which is loaded instead of {}; remove it, or choose another folder",
            args.out.display(),
            description.weights.display(),
            weights_file(args.to)
        );
    }
    let format = match args.to {
        Format::OpenClip => "open-clip",
        Format::HuggingFace => "hugging-face",
    };
    let dtype_name = match args.dtype {
        DtypeName::F32 => "f32",
        DtypeName::F16 => "f16",
        DtypeName::Bf16 => "bf16",
    };
    let [image_cosine, text_cosine] = verified.cosines;
    eprintln!(
        "{}: {} parameters as {dtype_name} in {format} layout, {}",
        args.out.display(),
        grouped(description.config.parameters()),
        DecimalBytes(description.bytes)
    );
    eprintln!(
        "verified: {} parameter tensors equal the source's{}; the features of an image and a text \
         have cosine similarity {image_cosine:.6} and {text_cosine:.6}",
        verified.tensors,
        match args.dtype {
            DtypeName::F32 => "",
            DtypeName::F16 | DtypeName::Bf16 => ", rounded",
        },
    );
    if args.json {
        let value = json!({
            "out": args.out.display().to_string(),
            "weights": weights.display().to_string(),
            "format": format,
            "dtype": dtype_name,
            "bytes": description.bytes,
            "tensors": description.tensors,
            "parameters": description.config.parameters(),
            "image_cosine": image_cosine,
            "text_cosine": text_cosine,
        });
        print_json(&value)?;
    }
    Ok(())
}

fn weights_file(format: Format) -> &'static str {
    match format {
        Format::HuggingFace => "model.safetensors",
        Format::OpenClip => "open_clip_model.safetensors",
    }
}

/// Comparison of a result with its source.
pub struct Verified {
    /// Number of parameter tensors.
    pub tensors: usize,
    /// Cosine similarities of the features of an image and of a text.
    cosines: [f32; 2],
}

/// Writes the result to a temporary folder, verifies it, and moves it to the output folder.
fn write(source: Clip, args: &ConvertArgs, device: &Device, stop: &AtomicBool) -> Result<Verified> {
    let out = &args.out;
    let unwritable = || format!("cannot write to {}", out.display());
    // That of a killed process.
    let _ = fs::remove_dir_all(out.join(UNVERIFIED));
    fs::create_dir_all(out).wrap_err_with(unwritable)?;
    let folder = tempfile::Builder::new()
        .prefix(UNVERIFIED)
        .rand_bytes(0)
        .tempdir_in(out)
        .wrap_err_with(unwritable)?;
    let verified = write_verified(source, folder.path(), args.to, args.dtype, device, stop)?;
    // The weights come last: without them, the folder is no model.
    let weights = weights_file(args.to);
    let mut names = fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<Vec<_>>>()?;
    names.sort_by_key(|name| name == weights);
    for name in names {
        fs::rename(folder.path().join(&name), out.join(&name)).wrap_err_with(unwritable)?;
    }
    Ok(verified)
}

/// Writes the result to `folder`, and compares what is read back with the source.
pub fn write_verified(
    source: Clip,
    folder: &Path,
    format: Format,
    dtype: DtypeName,
    device: &Device,
    stop: &AtomicBool,
) -> Result<Verified> {
    let proceed = || match stop.load(Ordering::Relaxed) {
        true => Err(EarlyEnd::Interrupted("nothing was written")),
        false => Ok(()),
    };
    let dtype = match dtype {
        DtypeName::F32 => Dtype::F32,
        DtypeName::F16 => Dtype::F16,
        DtypeName::Bf16 => Dtype::BF16,
    };
    proceed()?;
    match format {
        Format::HuggingFace => source.save(folder, dtype)?,
        Format::OpenClip => source.save_open_clip(folder, dtype)?,
    }
    proceed()?;
    // Keep only the fingerprint of the source, so that one model is in memory at a time.
    let wanted = Fingerprint::of(&source, dtype)?;
    drop(source);
    proceed()?;
    let again = Clip::load(folder, device).wrap_err("the result cannot be read back")?;
    proceed()?;
    let found = Fingerprint::of(&again, dtype)?;
    proceed()?;
    let errors = wanted.compare(&found, dtype).map_err(|e| {
        let hint = match format {
            Format::OpenClip => {
                "; open_clip's layout stores neither the ids of special tokens nor every epsilon, \
                 hugging-face does"
            }
            Format::HuggingFace => "",
        };
        eyre!("{e}{hint}. Nothing was written")
    })?;
    Ok(Verified {
        tensors: wanted.digests.len(),
        cosines: errors.map(|error| 1.0 - error),
    })
}

/// Checks that the output folder does not exist or is empty, unless forced.
fn check_out(out: &Path, force: bool) -> Result<()> {
    if !out.exists() {
        return Ok(());
    }
    let entries =
        fs::read_dir(out).wrap_err_with(|| format!("cannot write to {}", out.display()))?;
    let mut names = entries.flatten().map(|entry| entry.file_name());
    if names.any(|name| name != UNVERIFIED) && !force {
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::cli::args::Hints;

    fn args(out: PathBuf) -> ConvertArgs {
        ConvertArgs {
            source: "embedded".to_owned(),
            out,
            to: Format::HuggingFace,
            dtype: DtypeName::F32,
            hints: Hints::default(),
            image_size: None,
            tokenizer: None,
            force: false,
            json: false,
        }
    }

    fn embedded(device: &Device) -> Clip {
        mini_world::embedded::clip_mini(device).unwrap()
    }

    #[test]
    fn a_conversion_that_is_stopped_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let device = device::parse(device::compiled_in()[0]).unwrap();
        let args = args(folder.path().to_owned());
        let stopped = write(embedded(&device), &args, &device, &AtomicBool::new(true));
        let end = stopped.err().unwrap();
        assert_eq!(end.to_string(), "stopped; nothing was written");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_conversion_of_a_killed_process_is_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(UNVERIFIED);
        fs::create_dir(&left).unwrap();
        fs::write(left.join("config.json"), "{").unwrap();
        let args = args(folder.path().to_owned());
        convert(&args).unwrap();
        assert!(!left.exists());
        assert!(folder.path().join("model.safetensors").exists());
        let refused = convert(&args).unwrap_err().to_string();
        assert!(refused.contains("is not empty"), "{refused}");
    }
}

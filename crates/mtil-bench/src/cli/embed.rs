//! `embed`: embeddings of images and texts.

use std::{
    collections::HashMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use burn::tensor::Tensor;
use clip_model::{normalize, preprocess::decode_file};
use eyre::{Result, WrapErr, bail};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

use super::{args::EmbedArgs, checkpoint::load_model};
use crate::device;
use mtil_engine::eval::{encode_texts, to_host};

const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Collects the images below `path` in the order of their paths, or `path` itself if it is a file.
fn find(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let error = || format!("cannot read {}", path.display());
    if path.is_dir() {
        let mut entries = fs::read_dir(path)
            .wrap_err_with(error)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<_>>>()
            .wrap_err_with(error)?;
        entries.sort();
        for entry in entries {
            let known = entry
                .extension()
                .and_then(|e| e.to_str())
                .is_some_and(|e| EXTENSIONS.contains(&e.to_ascii_lowercase().as_str()));
            if entry.is_dir() || known {
                find(&entry, found)?;
            }
        }
    } else {
        found.push(path.to_owned());
    }
    Ok(())
}

/// Runs `embed`.
pub fn embed(args: &EmbedArgs) -> Result<()> {
    let mut images = Vec::new();
    for path in &args.images {
        find(path, &mut images)?;
    }
    let texts: Vec<String> = match &args.texts {
        None => Vec::new(),
        Some(path) => {
            let mut text = String::new();
            if path.as_os_str() == "-" {
                std::io::stdin()
                    .read_to_string(&mut text)
                    .wrap_err("cannot read texts from standard input")?;
            } else {
                text = fs::read_to_string(path)
                    .wrap_err_with(|| format!("cannot read {}", path.display()))?;
            }
            text.lines().map(str::to_owned).collect()
        }
    };
    if images.is_empty() && texts.is_empty() {
        bail!(
            "nothing to embed: give --images or --texts (a folder without images counts as \
             nothing)"
        );
    }
    let device = device::parse(&args.device)?;
    let checkpoint = load_model(&args.model, &args.hints, &device)?.clip;
    let bar = indicatif::ProgressBar::new(images.len() as u64);
    let mut rows = Vec::new();
    for chunk in images.chunks(64) {
        let prepared = chunk
            .iter()
            .map(|path| Ok(checkpoint.preprocess.eval_u8(&decode_file(path)?)))
            .collect::<Result<Vec<_>>>()?;
        let pixels = checkpoint.preprocess.to_tensor(&prepared, &device)?;
        rows.push(normalize(checkpoint.model.encode_image(pixels)));
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let mut tensors: Vec<(&str, usize, Vec<u8>)> = Vec::new();
    let bytes = |t: Tensor<2>| {
        to_host(t)
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    if !rows.is_empty() {
        tensors.push(("image_embeds", images.len(), bytes(Tensor::cat(rows, 0))));
    }
    if !texts.is_empty() {
        tensors.push((
            "text_embeds",
            texts.len(),
            bytes(encode_texts(&checkpoint, &checkpoint.model, &texts)?),
        ));
    }
    let width = checkpoint.config.projection_dim;
    let views = tensors
        .iter()
        .map(|(name, rows, bytes)| {
            Ok((
                *name,
                TensorView::new(Dtype::F32, vec![*rows, width], bytes)?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata: HashMap<String, String> = [
        ("images".to_owned(), serde_json::to_string(&images)?),
        ("texts".to_owned(), serde_json::to_string(&texts)?),
        ("normalized".to_owned(), "true".to_owned()),
    ]
    .into();
    let file = safetensors::serialize(views, Some(metadata))?;
    mtil_data::files::write_atomically(&args.out, &file)
        .wrap_err_with(|| format!("cannot write {}", args.out.display()))?;
    eprintln!(
        "{}: {} image and {} text embeddings of width {width}",
        args.out.display(),
        images.len(),
        texts.len()
    );
    if args.json {
        println!(
            "{}",
            json!({"out": args.out, "images": images.len(), "texts": texts.len(), "width": width})
        );
    }
    Ok(())
}

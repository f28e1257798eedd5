//! `embed`: embeddings of images and texts.

use std::{collections::HashMap, fs, io::Read, path::Path};

use burn::tensor::Tensor;
use clip_model::{Clip, normalize};
use eyre::{Result, WrapErr, bail};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

use super::{
    args::EmbedArgs,
    checkpoint::load_model,
    interrupt::stop_flag,
    learned,
    output::{WorkProgress, list_skipped},
};
use crate::{device, exit::EarlyEnd};
use mtil_data::data::{ImageFiles, ImageSource as _, find_images};
use mtil_engine::{
    batch::{BatchError, Images},
    eval::{Encoder, TruncatedTexts, encode_texts_while, to_host},
    run::{LearnedError, LearnedModel},
};

/// Number of images that are encoded together.
const BATCH: usize = 64;

/// Runs `embed`.
pub fn embed(args: &EmbedArgs) -> Result<()> {
    write_embeddings(args).map_err(|e| EarlyEnd::of_stopped(e, "nothing was written"))
}

fn write_embeddings(args: &EmbedArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let images = find_images(&args.images)?.with_decode_options(args.decode.options());
    let texts = match &args.texts {
        Some(path) => lines_of(path)?,
        None => Vec::new(),
    };
    if images.is_empty() && texts.is_empty() {
        bail!(
            "nothing to embed: give --images or --texts (a folder without images counts as \
             nothing)"
        );
    }
    let Some(run) = learned::run_at(&args.model)? else {
        if args.task.is_some() {
            bail!("--task is for the model of a run: the features of a CLIP depend on no task");
        }
        let clip = load_model(&args.model, &args.hints, &device)?.clip;
        let towers = Towers {
            encoder: Box::new(clip.model.clone()),
            task: None,
            clip: &clip,
        };
        return encode_and_write(args, &towers, &images, &texts);
    };
    let model = learned::open(&run, args.task.as_deref(), &args.hints, &device)?;
    let towers = learned_towers(&model)?;
    encode_and_write(args, &towers, &images, &texts)
}

/// The towers of a model.
struct Towers<'a> {
    encoder: Box<dyn Encoder + 'a>,
    /// The task that the features are of, if they depend on one.
    task: Option<usize>,
    /// Tokenizer and image settings.
    clip: &'a Clip,
}

/// Returns the towers that a run has learned.
fn learned_towers(model: &LearnedModel) -> Result<Towers<'_>> {
    let method = &model.request().method.name;
    if model.task().is_some() && !model.features_depend_on_task() {
        bail!("the features of method `{method}` depend on no task; leave out --task");
    }
    let towers = Towers {
        encoder: model.encoder()?,
        task: model.task(),
        clip: model.clip(),
    };
    if !model.features_depend_on_task()
        && let Err(LearnedError::NotPlain { mechanism, .. }) = model.plain()
    {
        eprintln!(
            "note: the features are the pretrained model's: the `{mechanism}` of method \
             `{method}` follows them"
        );
    }
    Ok(towers)
}

/// Encodes images and texts, and writes the file.
fn encode_and_write(
    args: &EmbedArgs,
    towers: &Towers<'_>,
    images: &ImageFiles,
    texts: &[String],
) -> Result<()> {
    let checkpoint = towers.clip;
    if let Some(truncated) = TruncatedTexts::count(checkpoint, "texts", texts)? {
        eprintln!("warning: {truncated}");
    }
    let reader = Images::new(checkpoint.preprocess.clone(), 1.0, args.skip_bad_images)
        .with_stop(stop_flag());
    let (names, rows) = encode(towers, images, &reader)?;
    let skipped = reader.skipped();
    list_skipped(&skipped);
    if names.is_empty() && !images.is_empty() {
        return Err(BatchError::NothingReadable(format!("the {} images", images.len())).into());
    }
    let mut tensors: Vec<(&str, usize, Vec<u8>)> = Vec::new();
    let bytes = |t: Tensor<2>| {
        to_host(t)
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    if !rows.is_empty() {
        tensors.push(("image_embeds", names.len(), bytes(Tensor::cat(rows, 0))));
    }
    if !texts.is_empty() {
        let encoded = encode_all_texts(towers, texts, &reader)?;
        tensors.push(("text_embeds", texts.len(), bytes(encoded)));
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
        ("images".to_owned(), serde_json::to_string(&names)?),
        ("texts".to_owned(), serde_json::to_string(texts)?),
        ("normalized".to_owned(), "true".to_owned()),
    ]
    .into();
    let file = safetensors::serialize(views, Some(metadata))?;
    let out = args.out.display().to_string();
    mtil_data::files::write_atomically(&args.out, &file)
        .wrap_err_with(|| format!("cannot write {out}"))?;
    eprintln!(
        "{out}: {} image and {} text embeddings of width {width}",
        names.len(),
        texts.len()
    );
    if args.json {
        println!(
            "{}",
            json!({
                "out": out, "images": names.len(), "texts": texts.len(), "width": width,
                "skipped": skipped,
            })
        );
    }
    Ok(())
}

/// Reads one text per line, from standard input if the path is `-`.
fn lines_of(path: &Path) -> Result<Vec<String>> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin()
            .read_to_string(&mut text)
            .wrap_err("cannot read texts from standard input")?;
    } else {
        text =
            fs::read_to_string(path).wrap_err_with(|| format!("cannot read {}", path.display()))?;
    }
    // Windows' editors write a byte order mark in front of the first text.
    let text = text.trim_start_matches('\u{feff}');
    Ok(text.lines().map(str::to_owned).collect())
}

/// Encodes texts, unless the flag of `reader` stops it between two batches.
fn encode_all_texts(
    towers: &Towers<'_>,
    texts: &[String],
    reader: &Images,
) -> Result<Tensor<2>, BatchError> {
    let proceed = || reader.check_stop();
    encode_texts_while(
        &proceed,
        towers.clip,
        towers.encoder.as_ref(),
        towers.task,
        texts,
    )
}

/// Returns the names of the images that can be read, and the normalized features of each batch.
fn encode(
    towers: &Towers<'_>,
    images: &ImageFiles,
    reader: &Images,
) -> Result<(Vec<String>, Vec<Tensor<2>>)> {
    let device = towers.encoder.device();
    let indices: Vec<usize> = (0..images.len()).collect();
    let progress = WorkProgress::new("encoding", "images");
    let mut done = 0;
    let (mut names, mut rows) = (Vec::new(), Vec::new());
    for chunk in indices.chunks(BATCH) {
        let (read, pixels) = reader.eval(images, chunk, &device)?;
        names.extend(read.into_iter().map(|index| images.name(index)));
        if let Some(pixels) = pixels {
            rows.push(normalize(towers.encoder.image(towers.task, pixels)));
        }
        done += chunk.len();
        progress.set(done, images.len());
    }
    progress.finish();
    Ok((names, rows))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicBool};

    use super::*;

    #[test]
    fn a_stop_ends_the_encoding_of_texts_and_images() {
        let device = device::parse(device::compiled_in()[0]).unwrap();
        let clip = mini_world::embedded::clip_mini(&device).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        image::RgbImage::new(8, 8).save(&path).unwrap();
        let (images, texts) = (find_images(&[path]).unwrap(), vec!["a cat".to_owned()]);
        for stopped in [false, true] {
            let stop = Arc::new(AtomicBool::new(stopped));
            let reader = Images::new(clip.preprocess.clone(), 1.0, false).with_stop(stop);
            let towers = Towers {
                encoder: Box::new(clip.model.clone()),
                task: None,
                clip: &clip,
            };
            let of_texts = encode_all_texts(&towers, &texts, &reader).map(drop);
            let of_images = encode(&towers, &images, &reader).map(drop);
            assert_eq!((of_texts.is_err(), of_images.is_err()), (stopped, stopped));
            if let (Err(texts), Err(images)) = (of_texts, of_images) {
                assert!(matches!(texts, BatchError::Interrupted));
                let end = EarlyEnd::of_stopped(images, "nothing was written");
                assert_eq!(end.to_string(), "stopped; nothing was written");
            }
        }
    }
}

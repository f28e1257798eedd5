//! Readers of the files of models: weights, configurations, tokenizers, and images.

use std::path::Path;

use burn::tensor::Device;
use clip_model::{
    Activation, Clip, ClipConfig, LoadOptions, Preprocess, TextKind, Tokenizer, load_weights,
    preprocess::{DecodeOptions, decode_source_with},
    weights::WeightFile,
};

use super::{Scratch, accept, text};

/// Maximum number of pixels. The default would allow images of 1.4 GB.
const MAX_PIXELS: u64 = 1 << 20;
/// Maximum number of pixels of an image that is also resized.
const MAX_RESIZED: u32 = 1 << 16;

macro_rules! data {
    ($name:literal) => {
        include_bytes!(concat!("../../data/", $name)).as_slice()
    };
}

macro_rules! shard {
    ($name:literal) => {
        include_bytes!(concat!(
            "../../../crates/clip-model/tests/fixtures/weights/",
            $name
        ))
        .as_slice()
    };
}

/// Shards that the indices among the seeds name.
const SHARDS: [(&str, &[u8]); 4] = [
    (
        "model-00001-of-00002.safetensors",
        shard!("model-00001-of-00002.safetensors"),
    ),
    (
        "model-00002-of-00002.safetensors",
        shard!("model-00002-of-00002.safetensors"),
    ),
    (
        "pytorch_model-00001-of-00002.bin",
        shard!("pytorch_model-00001-of-00002.bin"),
    ),
    (
        "pytorch_model-00002-of-00002.bin",
        shard!("pytorch_model-00002-of-00002.bin"),
    ),
];

/// Reads all tensors of a weight file: safetensors, an archive or a state dict of PyTorch, a
/// TorchScript archive, or an index of shards.
pub(super) fn weights(bytes: &[u8], scratch: &Scratch) -> bool {
    let mut accepted = false;
    if let Some(file) = accept(WeightFile::from_bytes(bytes, Path::new("w.pt"))) {
        read_tensors(&file);
        accepted = true;
    }
    if bytes.trim_ascii_start().starts_with(b"{") {
        for (name, shard) in SHARDS {
            scratch.provide(name, shard);
        }
        let path = scratch.write("model.safetensors.index.json", bytes);
        if let Some(file) = accept(WeightFile::open(&path)) {
            read_tensors(&file);
            accepted = true;
        }
    }
    accepted
}

fn read_tensors(file: &WeightFile<'_>) {
    for name in file.names() {
        assert!(file.info(name).is_some(), "{name}");
        let floats = accept(file.read_f32(name));
        let integers = accept(file.read_i64(name));
        assert!(floats.is_none() || integers.is_none(), "{name}");
    }
}

/// Derives the architecture from the weights of a checkpoint, and loads them into that model and
/// into one of a known architecture.
pub(super) fn checkpoint(bytes: &[u8], scratch: &Scratch) -> bool {
    let path = scratch.write("checkpoint.pt", bytes);
    let load = |config: &_| accept(load_weights(config, &path, &Device::default())).is_some();
    let options = LoadOptions {
        activation: Some(Activation::QuickGelu),
        ..LoadOptions::default()
    };
    if let Some(found) = accept(Clip::describe(&path, &options)) {
        accept(found.sha256());
        load(&found.config);
    }
    let known = text(data!("zoo/open_clip_gelu/open_clip_config.json"));
    let known = ClipConfig::from_open_clip_json(&known, Path::new("open_clip_config.json"));
    load(&known.expect("the fixture is valid"))
}

/// Loads two checkpoint folders with one configuration file in place of theirs.
pub(super) fn config(bytes: &[u8], scratch: &Scratch) -> bool {
    let json = text(bytes);
    let path = Path::new("config.json");
    let hugging_face = accept(ClipConfig::from_json(&json, path)).is_some();
    let open_clip = accept(ClipConfig::from_open_clip_json(&json, path)).is_some();
    let preprocess = accept(Preprocess::from_json(&json, path)).is_some();
    let load = |files: [(&str, &[u8]); 4]| {
        for (name, file) in files {
            scratch.write(name, file);
        }
        let folder = Path::new(files[0].0).parent().expect("it is in a folder");
        let clip = accept(Clip::load(
            &scratch.input().join(folder),
            &Device::default(),
        ));
        let image = image::DynamicImage::new_rgb8(9, 5);
        clip.map(|clip| clip.preprocess.eval_u8(&image)).is_some()
    };
    let mut accepted = false;
    let (own_config, own_preprocess) = (
        data!("clip/tiny/config.json"),
        data!("clip/tiny/preprocessor_config.json"),
    );
    let (weights, tokenizer) = (
        data!("clip/tiny/model.safetensors"),
        data!("clip/tiny/tokenizer.json"),
    );
    if hugging_face || preprocess {
        for (config, preprocess) in [(bytes, own_preprocess), (own_config, bytes)] {
            accepted |= load([
                ("hf/config.json", config),
                ("hf/preprocessor_config.json", preprocess),
                ("hf/model.safetensors", weights),
                ("hf/tokenizer.json", tokenizer),
            ]);
        }
    }
    if open_clip {
        accepted |= load([
            ("oc/open_clip_config.json", bytes),
            ("oc/preprocessor_config.json", own_preprocess),
            (
                "oc/open_clip_model.safetensors",
                data!("zoo/open_clip_gelu/open_clip_model_f16.safetensors"),
            ),
            ("oc/tokenizer.json", tokenizer),
        ]);
    }
    accepted
}

/// Reads a `tokenizer.json` or OpenAI's merges, and encodes texts.
pub(super) fn tokenizer(bytes: &[u8], _: &Scratch) -> bool {
    let mut accepted = false;
    for kind in [TextKind::Clip, TextKind::Siglip] {
        let Some(tokenizer) = accept(Tokenizer::from_bytes(bytes, "tokenizer.json", kind)) else {
            continue;
        };
        accept(tokenizer.check_vocabulary(512));
        let texts = [
            "a photo of a cat.",
            "",
            "Crème brûlée 東京 \u{1f408}\u{200d}\u{2b1b}\0",
        ];
        for context_length in [1, 2, 16] {
            let Some(rows) = accept(tokenizer.encode(&texts, context_length)) else {
                continue;
            };
            assert!(rows.ids.iter().all(|row| row.len() <= context_length));
            accepted = true;
        }
    }
    accepted
}

/// Decodes an image of any format and resizes it.
pub(super) fn image(bytes: &[u8], _: &Scratch) -> bool {
    let options = DecodeOptions {
        max_pixels: MAX_PIXELS,
    };
    let Some(image) = accept(decode_source_with(bytes, "image", options)) else {
        return false;
    };
    let (width, height) = (image.pixels().width(), image.pixels().height());
    assert!(u64::from(width) * u64::from(height) <= MAX_PIXELS);
    if width.saturating_mul(height) <= MAX_RESIZED {
        Preprocess::clip(8).eval_source(&image);
    }
    true
}

//! The pretrained small CLIP that comes with the program.

use burn::tensor::Device;
use clip_model::{CheckpointBytes, CheckpointError, Clip};

macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../../datasets/mini/clip-mini/", $name))
    };
}

/// The files of `datasets/mini/clip-mini`, made by `mtil-bench pretrain`.
pub const CLIP_MINI: CheckpointBytes<'static> = CheckpointBytes {
    config: file!("config.json"),
    weights: file!("model.safetensors"),
    tokenizer: file!("tokenizer.json"),
    preprocess: file!("preprocessor_config.json"),
};

/// Loads the embedded model.
///
/// # Errors
/// Only if the files it was built from are broken.
pub fn clip_mini(device: &Device) -> Result<Clip, CheckpointError> {
    Clip::from_bytes(&CLIP_MINI, "embedded clip-mini", device)
}

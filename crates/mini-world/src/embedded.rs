//! Embedded small CLIP, pretrained on the generated images.

use burn::tensor::Device;
use clip_model::{CheckpointBytes, CheckpointError, Clip};

macro_rules! embedded_file {
    ($name:literal) => {
        include_bytes!(concat!("../clip-mini/", $name))
    };
}

/// Files of `clip-mini`, written by `mtil-bench pretrain`.
pub const CLIP_MINI: CheckpointBytes<'static> = CheckpointBytes {
    config: embedded_file!("config.json"),
    weights: embedded_file!("model.safetensors"),
    tokenizer: embedded_file!("tokenizer.json"),
    preprocess: embedded_file!("preprocessor_config.json"),
};

/// Loads the embedded model.
///
/// ```
/// let device = burn::tensor::Device::flex();
/// let clip = mini_world::embedded::clip_mini(&device)?;
/// # drop(clip);
/// # Ok::<(), clip_model::CheckpointError>(())
/// ```
///
/// # Errors
/// [`CheckpointError`] if the embedded files are damaged.
pub fn clip_mini(device: &Device) -> Result<Clip, CheckpointError> {
    Clip::from_bytes(&CLIP_MINI, "embedded clip-mini", device)
}

//! Saving of models in the layouts of `transformers` and open_clip.

use std::{fs, path::Path};

use super::{Clip, names::KeyLayout};
use crate::{
    config::{ClipConfig, OpenClipConfig, TextKind},
    error::CheckpointError,
    files::write_atomically,
    model::{ClipModel, visit_params, visit_shapes},
    tokenizer::ClipTokenizer,
    weights::{ElementType, SafetensorsWriter},
};

/// Data type of saved weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floating point; lossless.
    F32,
    /// 16-bit IEEE floating point.
    F16,
    /// 16-bit brain floating point.
    BF16,
}

impl From<Dtype> for ElementType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
        }
    }
}

impl Clip {
    /// Writes a Hugging Face directory, for [`load`](Self::load) and for `transformers`
    /// (`CLIPModel` or `SiglipModel`, tokenizers, `CLIPImageProcessor`).
    ///
    /// Every file is written atomically, the weights last.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] if a file cannot be written; [`CheckpointError::NoSuchFormat`] for a
    /// ResNet, for which `transformers` has no model class.
    pub fn save(&self, dir: &Path, dtype: Dtype) -> Result<(), CheckpointError> {
        let config = self.config.to_json()?;
        fs::create_dir_all(dir).map_err(|e| CheckpointError::io(dir, e))?;
        write(&dir.join("config.json"), config.as_bytes())?;
        self.save_tokenizer(dir)?;
        self.preprocess.save(dir)?;
        save_weights(
            &self.model,
            &self.config,
            &dir.join("model.safetensors"),
            dtype,
        )
    }

    /// Writes an open_clip directory, for [`load`](Self::load) and for open_clip
    /// (`create_model_from_pretrained("local-dir:…")`): `open_clip_config.json`,
    /// `open_clip_model.safetensors`, `tokenizer.json`, `tokenizer_config.json`. A SigLIP text
    /// tower is stored as in `CustomTextCLIP`.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] if a file cannot be written; [`CheckpointError::NoSuchFormat`] for a
    /// text tower whose end token is not its largest id, because open_clip pools at the largest id.
    pub fn save_open_clip(&self, dir: &Path, dtype: Dtype) -> Result<(), CheckpointError> {
        let text = &self.config.text;
        let custom_text = text.kind == TextKind::Siglip;
        let largest = text.vocab_size as u32 - 1;
        if !custom_text && text.eos_token_id != 2 && text.eos_token_id != largest {
            return Err(CheckpointError::NoSuchFormat {
                what: format!(
                    "a text tower that pools at token {} (open_clip pools at the largest id)",
                    text.eos_token_id
                ),
                format: "open_clip",
                instead: "a Hugging Face directory",
            });
        }
        let config = OpenClipConfig {
            model: self.config.clone(),
            custom_text,
            own_tokenizer: self.tokenizer.to_bytes() != ClipTokenizer::openai().to_bytes(),
            preprocess: Some(self.preprocess.clone()),
        };
        let layout = if custom_text {
            KeyLayout::OpenClipCustomText
        } else {
            KeyLayout::OpenAi
        };
        fs::create_dir_all(dir).map_err(|e| CheckpointError::io(dir, e))?;
        write(
            &dir.join("open_clip_config.json"),
            config.to_json().as_bytes(),
        )?;
        self.save_tokenizer(dir)?;
        write_weights(
            &self.model,
            &self.config,
            layout,
            &dir.join("open_clip_model.safetensors"),
            dtype,
        )
    }

    fn save_tokenizer(&self, dir: &Path) -> Result<(), CheckpointError> {
        self.tokenizer.save(&dir.join("tokenizer.json"))?;
        write(
            &dir.join("tokenizer_config.json"),
            self.tokenizer.config_json(&self.config.text).as_bytes(),
        )
    }
}

/// Writes the weights of `model` as safetensors with Hugging Face's tensor names, atomically.
///
/// # Errors
/// [`CheckpointError::Adapters`] if the model has adapters, [`CheckpointError::Weights`] if the
/// file cannot be written.
pub fn save_weights(
    model: &ClipModel,
    config: &ClipConfig,
    path: &Path,
    dtype: Dtype,
) -> Result<(), CheckpointError> {
    write_weights(model, config, KeyLayout::HuggingFace, path, dtype)
}

/// Writes the weights of `model` as safetensors with the tensor names of `layout`, atomically. One
/// parameter at a time is copied to memory.
///
/// # Errors
/// See [`save_weights`].
pub fn write_weights(
    model: &ClipModel,
    config: &ClipConfig,
    layout: KeyLayout,
    path: &Path,
    dtype: Dtype,
) -> Result<(), CheckpointError> {
    // A safetensors file starts with the shapes of all tensors, so they are collected first.
    let mut declared = Vec::new();
    let mut adapter = None;
    visit_shapes(model, &mut |param, shape| {
        if param.contains(".lora.") || param.contains(".qlora.") {
            adapter = Some(param.to_owned());
            return;
        }
        for part in layout.stored_tensors(param, shape, config) {
            declared.push((part.name, ElementType::from(dtype), part.shape));
        }
    });
    if let Some(parameter) = adapter {
        return Err(CheckpointError::Adapters { parameter });
    }
    let mut writer = SafetensorsWriter::create(
        path,
        declared
            .iter()
            .map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.as_slice())),
    )?;
    let mut result = Ok(());
    visit_params(model, &mut |param, shape, data| {
        if result.is_err() {
            return;
        }
        let values: Vec<f32> = match data.as_slice::<f32>() {
            Ok(values) => values.to_vec(),
            Err(_) => data.iter::<f32>().collect(),
        };
        for part in layout.stored_tensors(param, shape, config) {
            result = writer.push(&part.name, &part.to_stored(&values, shape));
            if result.is_err() {
                return;
            }
        }
    });
    result?;
    Ok(writer.finish()?)
}

/// Writes a file of a checkpoint atomically.
fn write(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    write_atomically(path, bytes).map_err(|e| CheckpointError::io(path, e))
}

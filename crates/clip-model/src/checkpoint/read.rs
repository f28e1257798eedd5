//! Strict loading of weights into a model: a tensor that is missing, unknown or of another shape is
//! an error.

use std::{collections::BTreeSet, path::Path};

use burn::tensor::Device;

use super::{
    interpolate::resize_positions,
    names::{KeyLayout, StoredTensor},
};
use crate::{
    config::ClipConfig,
    error::CheckpointError,
    model::{ClipModel, ParamSource},
    weights::WeightFile,
};

/// Loads a model with configuration `config` from a weights file in any of the formats of
/// [`WeightFile`].
///
/// # Errors
/// [`CheckpointError`] with the tensor that caused it.
pub fn load_weights(
    config: &ClipConfig,
    path: &Path,
    device: &Device,
) -> Result<ClipModel, CheckpointError> {
    let file = WeightFile::open(path)?.without_wrappers();
    let layout = layout_of(&file)?;
    read(&file, layout, config, config, device)
}

/// Detects the naming scheme of the tensors.
pub(crate) fn layout_of(file: &WeightFile<'_>) -> Result<KeyLayout, CheckpointError> {
    KeyLayout::detect(file.names()).ok_or_else(|| CheckpointError::NotClip {
        path: file.path().to_owned(),
        first: file.names().next().unwrap_or_default().to_owned(),
    })
}

/// Reads a model with configuration `config` from a file whose model has the configuration
/// `stored`. The two may differ in the image size; the position embeddings are then interpolated.
pub(crate) fn read(
    file: &WeightFile<'_>,
    layout: KeyLayout,
    stored: &ClipConfig,
    config: &ClipConfig,
    device: &Device,
) -> Result<ClipModel, CheckpointError> {
    let mut source = CheckpointSource {
        unused: file.names().filter(|name| !is_buffer(name)).collect(),
        file,
        layout,
        stored,
        config,
    };
    let model = ClipModel::build(config, Some(&mut source), device)?;
    if !source.unused.is_empty() {
        return Err(CheckpointError::Unused {
            path: file.path().to_owned(),
            names: source.unused.into_iter().map(str::to_owned).collect(),
        });
    }
    Ok(model)
}

/// Returns whether a tensor is a buffer to ignore: position ids (older `transformers`), the sizes
/// in OpenAI's archives, counters of batch norms, an attention mask.
fn is_buffer(name: &str) -> bool {
    matches!(
        name.rsplit('.').next(),
        Some(
            "position_ids"
                | "num_batches_tracked"
                | "input_resolution"
                | "context_length"
                | "vocab_size"
                | "attn_mask"
        )
    )
}

/// Parameter values from a weights file.
struct CheckpointSource<'a> {
    file: &'a WeightFile<'a>,
    layout: KeyLayout,
    /// Configuration of the model in the file.
    stored: &'a ClipConfig,
    /// Configuration of the model to build.
    config: &'a ClipConfig,
    /// Tensors that have not been read yet.
    unused: BTreeSet<&'a str>,
}

impl CheckpointSource<'_> {
    fn read_tensor(&mut self, stored: &StoredTensor) -> Result<Vec<f32>, CheckpointError> {
        let (path, name) = (self.file.path(), stored.name.as_str());
        let info = self
            .file
            .info(name)
            .ok_or_else(|| CheckpointError::Missing {
                path: path.to_owned(),
                name: name.to_owned(),
                near: closest_name(name, self.unused.iter().copied()),
            })?;
        // Some files store a scalar as a vector with one element.
        let scalar = |shape: &[usize]| shape.iter().all(|n| *n == 1);
        if info.shape != stored.shape && !(scalar(&info.shape) && scalar(&stored.shape)) {
            return Err(CheckpointError::Shape {
                path: path.to_owned(),
                name: name.to_owned(),
                found: info.shape.clone(),
                expected: stored.shape.clone(),
            });
        }
        self.unused.remove(name);
        Ok(self.file.read_f32(name)?)
    }

    /// Reads a parameter with the shape that it has in the file.
    fn read_param(&mut self, path: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let parts = self.layout.stored_tensors(path, shape, self.stored);
        // Skip the second copy in the common case.
        if let [part] = parts.as_slice()
            && part.is_verbatim()
        {
            return self.read_tensor(part);
        }
        let mut values = vec![0.0; shape.iter().product()];
        for part in parts {
            let stored = self.read_tensor(&part)?;
            part.copy_into(&stored, &mut values, shape);
        }
        Ok(values)
    }
}

impl ParamSource for CheckpointSource<'_> {
    fn values(&mut self, path: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let (from, to) = (&self.stored.vision, &self.config.vision);
        let positions = path.ends_with("visual.positional_embedding")
            || path.ends_with("attnpool.positional_embedding");
        if positions && from.grid() != to.grid() {
            let d = shape[1];
            let values = self.read_param(path, &[from.tokens(), d])?;
            return Ok(resize_positions(&values, d, from, to));
        }
        self.read_param(path, shape)
    }
}

/// Returns the name with the longest common suffix with `name`, if that is at least half of `name`.
fn closest_name<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let common = |other: &str| {
        name.bytes()
            .rev()
            .zip(other.bytes().rev())
            .take_while(|(a, b)| a == b)
            .count()
    };
    names
        .map(|other| (common(other), other))
        .max_by_key(|(common, _)| *common)
        .filter(|(common, _)| *common * 2 >= name.len())
        .map(|(_, other)| other.to_owned())
}

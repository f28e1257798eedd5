//! Weights of a file into a model, strictly: a tensor that is missing, unknown or of another shape
//! is an error that names it.

use std::{collections::BTreeSet, path::Path};

use burn::tensor::Device;

use super::{
    interpolate::resize_positions,
    names::{KeyLayout, Stored},
};
use crate::{
    config::ClipConfig,
    error::CheckpointError,
    model::{ClipModel, ParamSource},
    weights::WeightFile,
};

/// Loads the weights of a model of shape `config` from a file in any of the formats of
/// [`WeightFile`].
///
/// # Errors
/// [`CheckpointError`] naming the tensor at fault.
pub fn load_weights(
    config: &ClipConfig,
    path: &Path,
    device: &Device,
) -> Result<ClipModel, CheckpointError> {
    let file = WeightFile::open(path)?;
    let layout = layout_of(&file)?;
    read(&file, layout, config, config, device)
}

/// Whose names the file uses.
pub(crate) fn layout_of(file: &WeightFile<'_>) -> Result<KeyLayout, CheckpointError> {
    KeyLayout::of(file.names()).ok_or_else(|| CheckpointError::NotClip {
        path: file.path().to_owned(),
        first: file.names().next().unwrap_or_default().to_owned(),
    })
}

/// Reads a model that has the shape `stored` in the file and shall have the shape `config`: they
/// may differ in the size of the images, whose position embeddings are then resized.
pub(crate) fn read(
    file: &WeightFile<'_>,
    layout: KeyLayout,
    stored: &ClipConfig,
    config: &ClipConfig,
    device: &Device,
) -> Result<ClipModel, CheckpointError> {
    let mut source = StoredWeights {
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

/// What programs store beside the weights: positions 0, 1, 2, … (older `transformers`), the sizes
/// in OpenAI's archives, counters of batch norms, a mask.
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

/// Weights in a file; what has been read leaves `unused`.
struct StoredWeights<'a> {
    file: &'a WeightFile<'a>,
    layout: KeyLayout,
    stored: &'a ClipConfig,
    config: &'a ClipConfig,
    unused: BTreeSet<&'a str>,
}

impl StoredWeights<'_> {
    fn part(&mut self, stored: &Stored) -> Result<Vec<f32>, CheckpointError> {
        let (path, name) = (self.file.path(), stored.name.as_str());
        let info = self
            .file
            .info(name)
            .ok_or_else(|| CheckpointError::Missing {
                path: path.to_owned(),
                name: name.to_owned(),
                near: nearest(name, self.unused.iter().copied()),
            })?;
        // A scalar may lie as a vector of one.
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

    /// The parameter as the file has it.
    fn as_stored(&mut self, path: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let parts = self.layout.stored(path, shape, self.stored);
        // The common case without a second copy.
        if let [part] = parts.as_slice()
            && part.is_verbatim()
        {
            return self.part(part);
        }
        let mut values = vec![0.0; shape.iter().product()];
        for part in parts {
            let stored = self.part(&part)?;
            part.write_ours(&stored, &mut values, shape);
        }
        Ok(values)
    }
}

impl ParamSource for StoredWeights<'_> {
    fn values(&mut self, path: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let (from, to) = (&self.stored.vision, &self.config.vision);
        let positions = path.ends_with("visual.positional_embedding")
            || path.ends_with("attnpool.positional_embedding");
        if positions && from.grid() != to.grid() {
            let d = shape[1];
            let values = self.as_stored(path, &[from.tokens(), d])?;
            return Ok(resize_positions(&values, d, from, to));
        }
        self.as_stored(path, shape)
    }
}

/// The name that shares the longest tail with `name`, if it shares anything of note.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
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

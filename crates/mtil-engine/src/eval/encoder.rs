//! Images and texts to features.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use clip_model::{Clip, ClipModel, TokenBatch, normalize};

use crate::batch::{BatchError, Images, Prepared};
use mtil_data::data::ImageSource;

/// Images encoded at a time.
pub(super) const BATCH: usize = 128;
/// Texts tokenised and encoded at a time: many, because prompts of all classes begin alike. The
/// encoder cuts them up as it likes.
const TEXT_BATCH: usize = 8192;

/// A model as evaluation sees it. It may answer differently for each task (`column`), where the
/// task is given.
pub trait Encoder {
    /// Image features `[batch, e]`, not normalised.
    fn image(&self, column: Option<usize>, pixels: Tensor<4>) -> Tensor<2>;

    /// Text features `[rows, e]`, not normalised.
    fn text(&self, column: Option<usize>, tokens: &TokenBatch) -> Tensor<2>;

    /// Where it computes.
    fn device(&self) -> Device;

    /// Whether the task makes no difference, so that the classes of all tasks can be compared.
    fn one_for_all_tasks(&self) -> bool {
        true
    }
}

impl Encoder for ClipModel {
    fn image(&self, _: Option<usize>, pixels: Tensor<4>) -> Tensor<2> {
        self.encode_image(pixels)
    }

    fn text(&self, _: Option<usize>, tokens: &TokenBatch) -> Tensor<2> {
        self.encode_text(tokens)
    }

    fn device(&self) -> Device {
        ClipModel::device(self)
    }
}

/// Encodes `texts` with the plain model, normalised: `[texts, e]`.
///
/// # Errors
/// When a text cannot be tokenised, or its features are not finite.
pub fn encode_texts(
    checkpoint: &Clip,
    model: &ClipModel,
    texts: &[String],
) -> Result<Tensor<2>, BatchError> {
    encode_texts_as(checkpoint, model, None, texts)
}

/// [`encode_texts`] as the model answers for task `column`.
///
/// # Errors
/// When a text cannot be tokenised, or its features are not finite.
pub fn encode_texts_as(
    checkpoint: &Clip,
    encoder: &dyn Encoder,
    column: Option<usize>,
    texts: &[String],
) -> Result<Tensor<2>, BatchError> {
    let context = checkpoint.config.text.max_position_embeddings;
    let mut features = Vec::new();
    for chunk in texts.chunks(TEXT_BATCH) {
        let tokens = checkpoint.tokenizer.encode(chunk, context)?;
        let rows = normalize(encoder.text(column, &tokens));
        // Texts that begin alike are computed together, so it need not be the one that is named
        // alone.
        let name = |row: usize| format!("the text `{}`", chunk[row]);
        check_finite(&to_host(rows.clone()), rows.dims()[1], name)?;
        features.push(rows);
    }
    Ok(Tensor::cat(features, 0))
}

/// Normalised features on the host.
pub struct Features {
    /// Row-major, one row an image.
    pub rows: Vec<f32>,
    /// Numbers of a feature.
    pub width: usize,
    /// Which image each row is: unreadable ones may have been left out.
    pub indices: Vec<usize>,
}

/// Normalised features of the images `indices` of `source`, prepared as for evaluation.
///
/// # Errors
/// [`BatchError`] naming an image that cannot be read or whose features are not finite, or that
/// none can be read.
pub fn encode_images(
    encoder: &dyn Encoder,
    column: Option<usize>,
    source: &Arc<dyn ImageSource>,
    indices: &[usize],
    images: &Images,
) -> Result<Features, BatchError> {
    let mut all = Features {
        rows: Vec::new(),
        width: 0,
        indices: Vec::new(),
    };
    for batch in images.eval_ahead(source.clone(), indices.to_vec(), BATCH)? {
        let Prepared {
            kept,
            images: squares,
        } = batch?;
        let Some(pixels) = images.tensor(&squares, &encoder.device())? else {
            continue;
        };
        let features = normalize(encoder.image(column, pixels));
        all.width = features.dims()[1];
        let rows = to_host(features);
        let name = |row: usize| format!("image {}", source.name(kept[row]));
        check_finite(&rows, all.width, name)?;
        all.rows.extend(rows);
        all.indices.extend(kept);
    }
    if all.indices.is_empty() {
        let what = indices
            .first()
            .map_or("no image".to_owned(), |i| source.name(*i));
        return Err(BatchError::NothingReadable(format!(
            "the images from {what} on"
        )));
    }
    Ok(all)
}

/// An error that names the first row of features with NaN or an infinity.
fn check_finite(
    features: &[f32],
    width: usize,
    name: impl FnOnce(usize) -> String,
) -> Result<(), BatchError> {
    match features.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(BatchError::NotFinite {
            what: name(at / width),
        }),
        None => Ok(()),
    }
}

/// Values of a float tensor on the host, row-major.
pub fn to_host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Index of the largest value, the first one of several.
pub fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mini_world::embedded;

    #[test]
    fn a_damaged_text_tower_is_named() {
        let mut clip = embedded::clip_mini(&Device::default()).unwrap();
        let texts = ["a photo of a cat".to_owned()];
        assert!(encode_texts(&clip, &clip.model, &texts).is_ok());
        let proj = clip.model.text.proj.clone();
        clip.model.text.proj = proj.map(|proj| proj.mul_scalar(f32::NAN));
        let error = encode_texts(&clip, &clip.model, &texts).unwrap_err();
        assert!(error.to_string().contains("`a photo of a cat`"), "{error}");
    }
}

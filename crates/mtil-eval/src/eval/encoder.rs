//! Image and text features for evaluation.

use std::sync::Arc;

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};
use clip_model::{Clip, ClipModel, TokenBatch, normalize};

use crate::batch::{BatchError, Images, PreprocessedBatch};
use mtil_data::data::ImageSource;

/// Images per batch. A stop waits for one, which takes a ViT-B/16 half a minute on two cores.
pub const IMAGE_BATCH: usize = 64;
/// Texts per call of the text tower. A stop waits for one call.
const TEXT_BATCH: usize = 1024;

/// Image and text towers under evaluation. The features may depend on the task (`task`), where the
/// task is given.
pub trait Encoder {
    /// Encodes images, without normalisation.
    ///
    /// # Shapes
    /// - `pixels`: `[batch, 3, side, side]`
    /// - output: `[batch, embedding]`
    fn image(&self, task: Option<usize>, pixels: Tensor<4>) -> Tensor<2>;

    /// Encodes texts, without normalisation.
    ///
    /// # Shapes
    /// - output: `[texts, embedding]`
    fn text(&self, task: Option<usize>, tokens: &TokenBatch) -> Tensor<2>;

    /// Device of the parameters.
    fn device(&self) -> Device;

    /// Returns whether the features do not depend on the task, so that the classes of all tasks can
    /// be compared.
    fn is_task_agnostic(&self) -> bool {
        true
    }

    /// Returns the models that classify images of a task together, or images whose task is not
    /// given; none if [`image`](Self::image) and [`text`](Self::text) classify them alone.
    fn ensemble(&self, _task: Option<usize>) -> Option<&dyn Ensemble> {
        None
    }
}

/// Models that classify together: the logits are a weighted mean of theirs, with weights that may
/// differ from image to image. The dot product of an image and a text is that mean, because each
/// has its features under all models, one after the other.
pub trait Ensemble {
    /// Number of models.
    fn models(&self) -> usize;

    /// Images per batch of an evaluation. It may change which models answer.
    fn batch(&self) -> usize {
        IMAGE_BATCH
    }

    /// Encodes images: the normalised features under each model times the model's weight for the
    /// image. The weights of an image sum to 1.
    ///
    /// # Shapes
    /// - `pixels`: `[batch, 3, side, side]`
    /// - output: `[batch, models · embedding]`
    fn image(&self, pixels: Tensor<4>) -> Tensor<2>;

    /// Encodes texts: the normalised features under each model.
    ///
    /// # Shapes
    /// - output: `[texts, models · embedding]`
    fn text(&self, tokens: &TokenBatch) -> Tensor<2>;
}

/// Returns the normalised features `[batch, width]` of the images `chosen`, computed by `encode`,
/// and zeros for the other images.
pub fn encode_chosen(
    pixels: &Tensor<4>,
    chosen: Vec<usize>,
    width: usize,
    encode: impl Fn(Tensor<4>) -> Tensor<2>,
) -> Tensor<2> {
    let ([batch, ..], device) = (pixels.dims(), pixels.device());
    let rest = Tensor::<2>::zeros([batch, width], &device);
    if chosen.is_empty() {
        return rest;
    }
    let count = chosen.len();
    let rows: Vec<i64> = chosen.into_iter().map(|row| row as i64).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &device);
    let features = normalize(encode(pixels.clone().select(0, rows.clone())));
    rest.select_assign(0, rows, features, IndexingUpdateOp::Add)
}

/// Returns the features that images of `task` are classified with: normalised, or those of an
/// [`Ensemble`].
///
/// # Shapes
/// - `pixels`: `[batch, 3, side, side]`
/// - output: `[batch, models · embedding]`
pub(super) fn classified_image(
    encoder: &dyn Encoder,
    task: Option<usize>,
    pixels: Tensor<4>,
) -> Tensor<2> {
    match encoder.ensemble(task) {
        Some(ensemble) => ensemble.image(pixels),
        None => normalize(encoder.image(task, pixels)),
    }
}

/// Returns whether images and texts of a task are classified by the same models as those whose task
/// is not given.
pub(super) fn is_same_without_task(encoder: &dyn Encoder, task: usize) -> bool {
    let ensembles = [Some(task), None].map(|task| encoder.ensemble(task));
    encoder.is_task_agnostic()
        || matches!(ensembles, [Some(of), Some(without)] if std::ptr::addr_eq(of, without))
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

/// Encodes texts with a CLIP model and normalises their features.
///
/// # Shapes
/// - output: `[texts, embedding]`
///
/// # Errors
/// [`BatchError`] when a text cannot be tokenised or its features are not finite.
pub fn encode_texts(
    checkpoint: &Clip,
    model: &ClipModel,
    texts: &[String],
) -> Result<Tensor<2>, BatchError> {
    encode_texts_for_task(checkpoint, model, None, texts)
}

/// Like [`encode_texts`], with an encoder whose features may depend on the task.
///
/// # Shapes
/// - output: `[texts, embedding]`
///
/// # Errors
/// As [`encode_texts`].
pub fn encode_texts_for_task(
    checkpoint: &Clip,
    encoder: &dyn Encoder,
    task: Option<usize>,
    texts: &[String],
) -> Result<Tensor<2>, BatchError> {
    encode_texts_while(&|| Ok(()), checkpoint, encoder, task, texts)
}

/// Like [`encode_texts_for_task`]; ends with the error of `proceed`, which is called before each
/// batch of texts.
///
/// # Shapes
/// - output: `[texts, embedding]`
///
/// # Errors
/// As [`encode_texts_for_task`], and the error of `proceed`.
pub fn encode_texts_while(
    proceed: &dyn Fn() -> Result<(), BatchError>,
    checkpoint: &Clip,
    encoder: &dyn Encoder,
    task: Option<usize>,
    texts: &[String],
) -> Result<Tensor<2>, BatchError> {
    let encode = |tokens: &TokenBatch| normalize(encoder.text(task, tokens));
    encode_in_batches(proceed, checkpoint, &encode, texts)
}

/// Encodes texts in batches with `encode`, whose features are normalised.
pub(super) fn encode_in_batches(
    proceed: &dyn Fn() -> Result<(), BatchError>,
    checkpoint: &Clip,
    encode: &dyn Fn(&TokenBatch) -> Tensor<2>,
    texts: &[String],
) -> Result<Tensor<2>, BatchError> {
    let context = checkpoint.config.text.max_position_embeddings;
    let mut order: Vec<usize> = (0..texts.len()).collect();
    let several = texts.len() > TEXT_BATCH;
    if several {
        // A call computes a prefix that texts share, as prompts of one template do, only once.
        order.sort_by_key(|index| &texts[*index]);
    }
    let mut features = Vec::new();
    for chunk in order.chunks(TEXT_BATCH) {
        proceed()?;
        let chunk: Vec<&str> = chunk.iter().map(|index| texts[*index].as_str()).collect();
        let tokens = checkpoint.tokenizer.encode(&chunk, context)?;
        let rows = encode(&tokens);
        // Texts with a shared prefix are computed together, so the named text need not be the only
        // one with features that are not finite.
        let name = |row: usize| format!("the text `{}`", chunk[row]);
        check_finite(&to_host(rows.clone()), rows.dims()[1], name)?;
        features.push(rows);
    }
    let features = Tensor::cat(features, 0);
    if !several {
        return Ok(features);
    }
    let mut rows = vec![0_i64; order.len()];
    for (row, index) in order.into_iter().enumerate() {
        rows[index] = row as i64;
    }
    let rows = Tensor::from_data(rows.as_slice(), &features.device());
    Ok(features.select(0, rows))
}

/// Normalised image features on the host.
pub struct Features {
    /// Features `[images, width]`, row-major.
    pub rows: Vec<f32>,
    /// Width of a feature.
    pub width: usize,
    /// Index of the image of each row. Unreadable images may have been skipped.
    pub indices: Vec<usize>,
}

/// Encodes the images `indices` of `source` with the evaluation transform and normalises their
/// features.
///
/// # Errors
/// [`BatchError`] naming an image that cannot be read or whose features are not finite, or stating
/// that no image can be read.
pub fn encode_images(
    encoder: &dyn Encoder,
    task: Option<usize>,
    source: &Arc<dyn ImageSource>,
    indices: &[usize],
    images: &Images,
) -> Result<Features, BatchError> {
    encode_images_with(&mut || {}, encoder, task, source, indices, images)
}

/// Like [`encode_images`]; `encoded` is called after each batch.
pub fn encode_images_with(
    encoded: &mut dyn FnMut(),
    encoder: &dyn Encoder,
    task: Option<usize>,
    source: &Arc<dyn ImageSource>,
    indices: &[usize],
    images: &Images,
) -> Result<Features, BatchError> {
    let mut all = Features {
        rows: Vec::new(),
        width: 0,
        indices: Vec::new(),
    };
    for batch in images.prefetch_eval(source.clone(), indices.to_vec(), IMAGE_BATCH)? {
        let PreprocessedBatch {
            indices: kept,
            images: crops,
        } = batch?;
        let Some(pixels) = images.tensor(&crops, &encoder.device())? else {
            encoded();
            continue;
        };
        let features = normalize(encoder.image(task, pixels));
        all.width = features.dims()[1];
        let rows = to_host(features);
        let name = |row: usize| format!("image {}", source.name(kept[row]));
        check_finite(&rows, all.width, name)?;
        all.rows.extend(rows);
        all.indices.extend(kept);
        encoded();
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

/// Returns an error naming the first row of features with a NaN or an infinity.
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

/// Copies a float tensor to the host, row-major.
pub fn to_host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Returns the index of the largest value, the first one on a tie.
///
/// # Example
/// ```
/// use mtil_eval::eval::argmax;
///
/// assert_eq!(argmax(&[0.1, 0.7, 0.7]), 1);
/// ```
pub fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mini_world::embedded;

    /// Answers the first task alone and all others by a vote.
    struct Vote(ClipModel);

    impl Encoder for Vote {
        fn image(&self, _: Option<usize>, pixels: Tensor<4>) -> Tensor<2> {
            self.0.encode_image(pixels)
        }

        fn text(&self, _: Option<usize>, tokens: &TokenBatch) -> Tensor<2> {
            self.0.encode_text(tokens)
        }

        fn device(&self) -> Device {
            self.0.device()
        }

        fn is_task_agnostic(&self) -> bool {
            false
        }

        fn ensemble(&self, task: Option<usize>) -> Option<&dyn Ensemble> {
            (task != Some(0)).then_some(self)
        }
    }

    impl Ensemble for Vote {
        fn models(&self) -> usize {
            1
        }

        fn image(&self, pixels: Tensor<4>) -> Tensor<2> {
            normalize(self.0.encode_image(pixels))
        }

        fn text(&self, tokens: &TokenBatch) -> Tensor<2> {
            normalize(self.0.encode_text(tokens))
        }
    }

    #[test]
    fn a_task_that_all_models_vote_on_is_classified_as_if_it_were_not_given() {
        let model = embedded::clip_mini(&Device::default()).unwrap().model;
        let vote = Vote(model.clone());
        let same = [0, 1].map(|task| is_same_without_task(&vote, task));
        assert_eq!(same, [false, true]);
        assert!(is_same_without_task(&model, 0));
    }

    #[test]
    fn texts_of_several_calls_have_their_own_rows() {
        let clip = embedded::clip_mini(&Device::default()).unwrap();
        let text = |i: usize| format!("{} photo of a thing {i}", ["a", "one", "the"][i % 3]);
        let texts: Vec<String> = (0..TEXT_BATCH + 90).map(text).collect();
        let rows = encode_texts(&clip, &clip.model, &texts).unwrap();
        let [_, width] = rows.dims();
        let rows = to_host(rows);
        for index in [0, 1, 500, TEXT_BATCH, TEXT_BATCH + 89] {
            let alone = encode_texts(&clip, &clip.model, &texts[index..=index]).unwrap();
            for (a, b) in to_host(alone).iter().zip(&rows[index * width..]) {
                assert!((a - b).abs() < 1e-5, "text {index}: {a} against {b}");
            }
        }
    }

    #[test]
    fn a_text_with_features_that_are_not_finite_is_named() {
        let mut clip = embedded::clip_mini(&Device::default()).unwrap();
        let texts = ["a photo of a cat".to_owned()];
        assert!(encode_texts(&clip, &clip.model, &texts).is_ok());
        let proj = clip.model.text.proj.clone();
        clip.model.text.proj = proj.map(|proj| proj.mul_scalar(f32::NAN));
        let error = encode_texts(&clip, &clip.model, &texts).unwrap_err();
        assert!(error.to_string().contains("`a photo of a cat`"), "{error}");
    }
}

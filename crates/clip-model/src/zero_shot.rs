//! Image and text features, and zero-shot classification.

use std::collections::HashMap;

use burn::tensor::{FloatDType, Tensor, activation};
use image::DynamicImage;
use rayon::prelude::*;

use crate::{
    checkpoint::Clip,
    model::normalize,
    preprocess::PreprocessError,
    tokenizer::{TokenizerError, distinct_from, nfc},
};

/// Images per batch. Larger batches are no faster and take more memory.
const IMAGE_BATCH: usize = 32;

/// Largest number of tokens of a text beyond its bytes: special tokens, and a space before it.
const EXTRA_TOKENS: usize = 3;

/// Error of encoding images and texts, or of classifying images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClassifyError {
    /// The list of texts, labels or templates is empty.
    #[error("there are no texts to encode; at least one label and one template are required")]
    NoTexts,
    /// A template has no placeholder for the label.
    #[error("the template {template:?} has no {{}} for the name of the class")]
    Template {
        /// The template.
        template: String,
    },
    /// The model cannot distinguish two labels.
    #[error(
        "the labels `{first}` and `{}` are the same to the model: their texts have equal tokens \
         within its context of {context}, or equal characters",
        distinct_from(first, second)
    )]
    EqualLabels {
        /// The first label.
        first: String,
        /// The second label.
        second: String,
        /// Context length of the model.
        context: usize,
    },
    /// The texts cannot be tokenized.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The images cannot be prepared, or there are none.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
}

impl Clip {
    /// Returns normalised image features (of L2 norm 1).
    ///
    /// # Shapes
    /// - output: `[images, e]`
    ///
    /// # Errors
    /// [`ClassifyError::Preprocess`] if there are no images.
    pub fn encode_image(&self, images: &[DynamicImage]) -> Result<Tensor<2>, ClassifyError> {
        if images.is_empty() {
            return Err(PreprocessError::NoImages.into());
        }
        let device = self.model.device();
        let features = images
            .chunks(IMAGE_BATCH)
            .map(|images| {
                let crops: Vec<_> = images
                    .par_iter()
                    .map(|image| self.preprocess.eval_u8(image))
                    .collect();
                let pixels = self.preprocess.to_tensor(&crops, &device)?;
                Ok(normalize(self.model.encode_image(pixels)))
            })
            .collect::<Result<_, ClassifyError>>()?;
        Ok(Tensor::cat(features, 0))
    }

    /// Returns normalised text features (of L2 norm 1). Texts longer than the context are
    /// truncated.
    ///
    /// # Shapes
    /// - output: `[texts, e]`
    ///
    /// # Errors
    /// [`ClassifyError::NoTexts`] if there are no texts, [`ClassifyError::Tokenizer`] if the
    /// tokenizer fails.
    pub fn encode_text(&self, texts: &[impl AsRef<str>]) -> Result<Tensor<2>, ClassifyError> {
        if texts.is_empty() {
            return Err(ClassifyError::NoTexts);
        }
        let context = self.config.text.max_position_embeddings;
        let tokens = self.tokenizer.encode(texts, context)?;
        Ok(normalize(self.model.encode_text(&tokens)))
    }

    /// Returns how many of `texts` are longer than the context and therefore truncated.
    ///
    /// # Errors
    /// [`TokenizerError`] if the tokenizer fails.
    pub fn count_truncated(&self, texts: &[impl AsRef<str>]) -> Result<usize, TokenizerError> {
        let context = self.config.text.max_position_embeddings;
        // Millions of captions are common, most of them short or repeated.
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for text in texts.iter().map(AsRef::as_ref) {
            if !text.is_ascii() || text.len() + EXTRA_TOKENS > context {
                *counts.entry(text).or_default() += 1;
            }
        }
        let tokenizer = &self.tokenizer;
        counts
            .into_par_iter()
            .map(|(text, count)| -> Result<usize, TokenizerError> {
                Ok(count * tokenizer.encode_counted(&[text], context)?.1)
            })
            .sum()
    }

    /// Checks that the model can distinguish labels: their texts have different tokens under at
    /// least one template, and they differ in Unicode's normalization form C.
    ///
    /// Each label replaces `{}` in each template.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use clip_model::Clip;
    ///
    /// let clip = Clip::load("../mini-world/clip-mini".as_ref(), &Device::default())?;
    /// assert!(clip.check_labels(&["circle", "square"], &["a {}."]).is_ok());
    /// assert!(clip.check_labels(&["circle", "square", "Circle"], &["a {}."]).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ClassifyError::EqualLabels`] names the first two labels that are equal;
    /// [`ClassifyError::Tokenizer`] if the tokenizer fails.
    pub fn check_labels(
        &self,
        labels: &[impl AsRef<str>],
        templates: &[impl AsRef<str>],
    ) -> Result<(), ClassifyError> {
        let context = self.config.text.max_position_embeddings;
        let (mut by_name, mut by_tokens) = (HashMap::new(), HashMap::new());
        for label in labels.iter().map(AsRef::as_ref) {
            let texts: Vec<String> = templates.iter().map(|t| fill(t, label)).collect();
            let tokens = self.tokenizer.encode(&texts, context)?.ids;
            let earlier = by_name.insert(nfc(label), label);
            if let Some(first) = earlier.or(by_tokens.insert(tokens, label)) {
                return Err(ClassifyError::EqualLabels {
                    first: first.to_owned(),
                    second: label.to_owned(),
                    context,
                });
            }
        }
        Ok(())
    }
}

/// Replaces `{}` in a template by a label.
fn fill(template: &impl AsRef<str>, label: &str) -> String {
    template.as_ref().replace("{}", label)
}

/// A predicted class with its probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Index of the class.
    pub class: usize,
    /// Label of the class.
    pub label: String,
    /// Probability, from 0 to 1. The probabilities of a CLIP sum to 1 over all classes; those of a
    /// SigLIP are independent of each other.
    pub probability: f32,
}

/// Zero-shot classifier: classifies images by the names of the classes.
///
/// ```
/// use burn::tensor::Device;
/// use clip_model::{Clip, ZeroShotClassifier};
/// use image::DynamicImage;
///
/// let clip = Clip::load("../mini-world/clip-mini".as_ref(), &Device::default())?;
/// let classifier = ZeroShotClassifier::new(&clip, &["circle", "square"], &["a photo of a {}."])?;
/// let predictions = classifier.classify(&[DynamicImage::new_rgb8(48, 32)], 2)?;
/// assert!(predictions[0][0].probability >= predictions[0][1].probability);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ZeroShotClassifier {
    clip: Clip,
    labels: Vec<String>,
    /// Normalised text feature of each class, `[classes, e]`.
    class_features: Tensor<2>,
}

impl ZeroShotClassifier {
    /// Creates a classifier for the classes `labels`.
    ///
    /// Each label replaces `{}` in each template. The feature of a class is the normalised mean of
    /// the normalised features of its texts (OpenAI CLIP
    /// `notebooks/Prompt_Engineering_for_ImageNet.ipynb`).
    ///
    /// # Errors
    /// [`ClassifyError::NoTexts`] without labels or templates, [`ClassifyError::Template`] for
    /// a template without `{}`, [`ClassifyError::EqualLabels`] for labels that the model cannot
    /// distinguish.
    pub fn new(
        clip: &Clip,
        labels: &[impl AsRef<str>],
        templates: &[impl AsRef<str>],
    ) -> Result<Self, ClassifyError> {
        if labels.is_empty() || templates.is_empty() {
            return Err(ClassifyError::NoTexts);
        }
        if let Some(bad) = templates.iter().find(|t| !t.as_ref().contains("{}")) {
            return Err(ClassifyError::Template {
                template: bad.as_ref().to_owned(),
            });
        }
        clip.check_labels(labels, templates)?;
        let texts: Vec<String> = labels
            .iter()
            .flat_map(|label| templates.iter().map(|t| fill(t, label.as_ref())))
            .collect();
        let features = clip.encode_text(&texts)?;
        let [_, e] = features.dims();
        let means = features
            .reshape([labels.len(), templates.len(), e])
            .mean_dim(1)
            .reshape([labels.len(), e]);
        Ok(Self {
            clip: clip.clone(),
            labels: labels.iter().map(|l| l.as_ref().to_owned()).collect(),
            class_features: normalize(means),
        })
    }

    /// Returns the labels of the classes.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Returns the normalised text features of the classes.
    ///
    /// # Shapes
    /// - output: `[classes, e]`
    pub fn class_features(&self) -> Tensor<2> {
        self.class_features.clone()
    }

    /// Returns the class probabilities for normalised image features: the softmax of the logits, or
    /// their sigmoid if the model has a logit bias (SigLIP).
    ///
    /// # Shapes
    /// - `features`: `[images, e]`
    /// - output: `[images, classes]`
    pub fn probabilities(&self, features: Tensor<2>) -> Tensor<2> {
        let model = &self.clip.model;
        let similarities = features.matmul(self.class_features.clone().transpose());
        let logits = similarities * model.scale().unsqueeze();
        match &model.logit_bias {
            None => activation::softmax(logits, 1),
            Some(bias) => activation::sigmoid(logits + bias.val().unsqueeze()),
        }
    }

    /// Returns the `top` most probable classes of each image, most probable first.
    ///
    /// # Errors
    /// See [`Clip::encode_image`].
    pub fn classify(
        &self,
        images: &[DynamicImage],
        top: usize,
    ) -> Result<Vec<Vec<Prediction>>, ClassifyError> {
        let features = self.clip.encode_image(images)?;
        let probabilities = self.probabilities(features).cast(FloatDType::F32);
        let values: Vec<f32> = probabilities.into_data().iter::<f32>().collect();
        Ok(values
            .chunks(self.labels.len())
            .map(|row| {
                let mut order: Vec<usize> = (0..row.len()).collect();
                order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
                order
                    .into_iter()
                    .take(top)
                    .map(|class| Prediction {
                        class,
                        label: self.labels[class].clone(),
                        probability: row[class],
                    })
                    .collect()
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// The embedded model's checkpoint, with a context of 24 tokens.
    fn mini() -> Clip {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../mini-world/clip-mini");
        Clip::load(folder.as_ref(), &Device::default()).unwrap()
    }

    #[test]
    fn texts_longer_than_the_context_are_counted() {
        let clip = mini();
        let context = clip.config.text.max_position_embeddings;
        // A digit is a token of its own.
        let digits = |count: usize| "7 ".repeat(count);
        let fits = digits(context - 2);
        let longer = digits(context - 1);
        let texts = [fits.as_str(), longer.as_str(), longer.as_str(), "a dog", ""];
        assert_eq!(clip.count_truncated(&texts).unwrap(), 2);
        let (_, truncated) = clip.tokenizer.encode_counted(&texts, context).unwrap();
        assert_eq!(truncated, 2);
        assert_eq!(clip.count_truncated(&[] as &[&str]).unwrap(), 0);
    }

    #[test]
    fn labels_that_are_equal_to_the_model_are_refused_by_name() {
        let clip = mini();
        let refused = |labels: &[&str], template: &str| {
            let error = ZeroShotClassifier::new(&clip, labels, &[template]).unwrap_err();
            assert!(
                matches!(error, ClassifyError::EqualLabels { .. }),
                "{error}"
            );
            error.to_string()
        };
        let long = "7 ".repeat(40);
        let (a, b) = (format!("{long}dog"), format!("{long}cat"));
        let message = refused(&["fox", &a, &b], "a {}.");
        assert!(message.contains(&format!("`{a}` and `{b}`")), "{message}");
        assert!(message.contains("context of 24"), "{message}");
        let message = refused(&["caf\u{e9}", "cafe\u{301}"], "a {}.");
        assert!(
            message.contains("`caf\u{e9}` and `cafe\\u{301}`"),
            "{message}"
        );
        refused(&["dog", "cat", "dog"], "a {}.");
        refused(&["dog", "Dog"], "a {}.");
        // The label is beyond the context.
        refused(&["dog", "cat"], &format!("{long}{{}}"));
        // Another template tells them apart.
        let templates = [format!("{long}{{}}"), "a {}.".to_owned()];
        ZeroShotClassifier::new(&clip, &["dog", "cat"], &templates).unwrap();
    }
}

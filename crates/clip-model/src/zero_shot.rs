//! Image and text features, and zero-shot classification.

use burn::tensor::{FloatDType, Tensor, activation};
use image::DynamicImage;
use rayon::prelude::*;

use crate::{
    checkpoint::Clip, model::normalize, preprocess::PreprocessError, tokenizer::TokenizerError,
};

/// Images per batch. Larger batches are no faster and take more memory.
const IMAGE_BATCH: usize = 32;

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
/// let clip = Clip::load("../../datasets/mini/clip-mini".as_ref(), &Device::default())?;
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
    /// a template without `{}`.
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
        let texts: Vec<String> = labels
            .iter()
            .flat_map(|label| {
                let fill = |t: &_| AsRef::<str>::as_ref(t).replace("{}", label.as_ref());
                templates.iter().map(fill)
            })
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

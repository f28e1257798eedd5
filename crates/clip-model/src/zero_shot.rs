//! Images and texts to features, and classes from names: what most people want of a CLIP.

use burn::tensor::{FloatDType, Tensor, activation};
use image::DynamicImage;
use rayon::prelude::*;

use crate::{
    checkpoint::Clip, error::CheckpointError, model::normalize, preprocess::PreprocessError,
};

/// Images that go through the tower together: more at once bring no speed and take memory.
const IMAGES_AT_ONCE: usize = 32;

impl Clip {
    /// Features of images, of length 1.
    ///
    /// # Shapes
    /// - output: `[images, e]`
    ///
    /// # Errors
    /// [`CheckpointError::Preprocess`] when there are no images.
    pub fn encode_image(&self, images: &[DynamicImage]) -> Result<Tensor<2>, CheckpointError> {
        if images.is_empty() {
            return Err(PreprocessError::NoImages.into());
        }
        let device = self.model.device();
        let features = images
            .chunks(IMAGES_AT_ONCE)
            .map(|images| {
                let squares: Vec<_> = images
                    .par_iter()
                    .map(|image| self.preprocess.eval_u8(image))
                    .collect();
                let pixels = self.preprocess.to_tensor(&squares, &device)?;
                Ok(normalize(self.model.encode_image(pixels)))
            })
            .collect::<Result<_, CheckpointError>>()?;
        Ok(Tensor::cat(features, 0))
    }

    /// Features of texts, of length 1. Texts that are longer than the context are cut.
    ///
    /// # Shapes
    /// - output: `[texts, e]`
    ///
    /// # Errors
    /// [`CheckpointError::NoTexts`] when there are none, [`CheckpointError::Tokenizer`] when the
    /// tokenizer fails.
    pub fn encode_text(&self, texts: &[impl AsRef<str>]) -> Result<Tensor<2>, CheckpointError> {
        if texts.is_empty() {
            return Err(CheckpointError::NoTexts);
        }
        let context = self.config.text.max_position_embeddings;
        let tokens = self.tokenizer.encode(texts, context)?;
        Ok(normalize(self.model.encode_text(&tokens)))
    }
}

/// A class and how sure the model is of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Index of the class.
    pub class: usize,
    /// Its name.
    pub label: String,
    /// From 0 to 1. Over all classes the probabilities of a CLIP sum to 1; those of a SigLIP are
    /// independent of each other.
    pub probability: f32,
}

/// Classifies images by the names of classes.
#[derive(Debug, Clone)]
pub struct ZeroShotClassifier {
    clip: Clip,
    labels: Vec<String>,
    /// `[classes, e]`, of length 1.
    classes: Tensor<2>,
}

impl ZeroShotClassifier {
    /// A classifier for the classes `labels`. Each label is put in place of `{}` in each template;
    /// a class is the mean direction of its texts, each of length 1 (OpenAI CLIP
    /// `notebooks/Prompt_Engineering_for_ImageNet.ipynb`).
    ///
    /// # Errors
    /// [`CheckpointError::NoTexts`] without labels or templates, [`CheckpointError::Template`] for
    /// a template without `{}`.
    pub fn new(
        clip: &Clip,
        labels: &[impl AsRef<str>],
        templates: &[impl AsRef<str>],
    ) -> Result<Self, CheckpointError> {
        if labels.is_empty() || templates.is_empty() {
            return Err(CheckpointError::NoTexts);
        }
        if let Some(bad) = templates.iter().find(|t| !t.as_ref().contains("{}")) {
            return Err(CheckpointError::Template {
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
            classes: normalize(means),
        })
    }

    /// The names of the classes.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The class features, of length 1.
    ///
    /// # Shapes
    /// - output: `[classes, e]`
    pub fn classes(&self) -> Tensor<2> {
        self.classes.clone()
    }

    /// Probabilities of the classes for image features of length 1: a softmax over the scaled
    /// similarities, or, in a SigLIP, the sigmoid of each.
    ///
    /// # Shapes
    /// - `features`: `[images, e]`
    /// - output: `[images, classes]`
    pub fn probabilities(&self, features: Tensor<2>) -> Tensor<2> {
        let model = &self.clip.model;
        let logits = features.matmul(self.classes.clone().transpose()) * model.scale().unsqueeze();
        match &model.logit_bias {
            None => activation::softmax(logits, 1),
            Some(bias) => activation::sigmoid(logits + bias.val().unsqueeze()),
        }
    }

    /// The `top` most likely classes of each image, the likeliest first.
    ///
    /// # Errors
    /// As [`Clip::encode_image`].
    pub fn classify(
        &self,
        images: &[DynamicImage],
        top: usize,
    ) -> Result<Vec<Vec<Prediction>>, CheckpointError> {
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

//! Tasks of a suite: classification, or image-caption pairs.

use std::sync::Arc;

use crate::{data::ImageSource, datasets::transform::Subset};

/// A task of a suite.
#[derive(Clone)]
pub struct Task {
    /// Name in tables, unique within the suite.
    pub name: String,
    /// Kind of the task, with its data.
    pub kind: TaskKind,
}

/// Kind of a task, with its data.
#[derive(Clone)]
pub enum TaskKind {
    /// Images with one class each. The task's measure is the accuracy.
    Classification(Classification),
    /// Images with captions, without classes. The task's measure is recall at 1.
    Captions(CaptionPairs),
}

/// A labelled image set: images with a class label each.
#[derive(Clone)]
pub struct LabelledImages {
    /// The images.
    pub images: Arc<dyn ImageSource>,
    /// Class index of each image. Has the length of `images`.
    pub labels: Vec<usize>,
}

/// Classes with a train and a test split.
#[derive(Clone)]
pub struct Classification {
    /// Class names in label order.
    pub class_names: Vec<String>,
    /// Prompt templates with a `{}` for the class name. Training uses the first one.
    pub templates: Vec<String>,
    /// Training images.
    pub train: LabelledImages,
    /// Test images, disjoint from `train`.
    pub test: LabelledImages,
}

/// Image-caption pairs for training, and others for retrieval.
#[derive(Clone)]
pub struct CaptionPairs {
    /// Pairs for training.
    pub train: ImageCaptions,
    /// Pairs held out from training, for the evaluation.
    pub test: ImageCaptions,
}

/// Images with one or more captions each.
///
/// ```
/// use std::sync::Arc;
///
/// use mtil_data::datasets::store::{PixelLayout, RawImages};
/// use mtil_data::suite::ImageCaptions;
///
/// let images = RawImages::new("digits", vec![0_u8; 2 * 8 * 8], 8, 8, PixelLayout::Grey)?;
/// let pairs = ImageCaptions {
///     images: Arc::new(images),
///     captions: vec![vec!["a zero".into(), "an oval".into()], vec!["a one".into()]],
/// };
/// let (texts, image_of) = pairs.texts();
/// assert_eq!(texts, ["a zero", "an oval", "a one"]);
/// assert_eq!(image_of, [0, 0, 1]);
/// # Ok::<(), mtil_data::datasets::DatasetError>(())
/// ```
#[derive(Clone)]
pub struct ImageCaptions {
    /// The images, each once.
    pub images: Arc<dyn ImageSource>,
    /// Captions of each image. Has the length of `images`.
    pub captions: Vec<Vec<String>>,
}

impl Task {
    /// Returns the classes and their images, if the task is a classification.
    pub fn classification(&self) -> Option<&Classification> {
        match &self.kind {
            TaskKind::Classification(classes) => Some(classes),
            TaskKind::Captions(_) => None,
        }
    }

    /// Like [`classification`](Self::classification), for changes.
    pub fn classification_mut(&mut self) -> Option<&mut Classification> {
        match &mut self.kind {
            TaskKind::Classification(classes) => Some(classes),
            TaskKind::Captions(_) => None,
        }
    }

    /// Returns the image-caption pairs, if the task has pairs.
    pub fn captions(&self) -> Option<&CaptionPairs> {
        match &self.kind {
            TaskKind::Classification(_) => None,
            TaskKind::Captions(pairs) => Some(pairs),
        }
    }

    /// Returns the number of classes; 0 for image-caption pairs.
    pub fn class_count(&self) -> usize {
        self.classification().map_or(0, |c| c.class_names.len())
    }

    /// Returns the images of the training split.
    pub fn training_images(&self) -> &Arc<dyn ImageSource> {
        match &self.kind {
            TaskKind::Classification(classes) => &classes.train.images,
            TaskKind::Captions(pairs) => &pairs.train.images,
        }
    }

    /// Returns the images of the test split.
    pub fn test_images(&self) -> &Arc<dyn ImageSource> {
        match &self.kind {
            TaskKind::Classification(classes) => &classes.test.images,
            TaskKind::Captions(pairs) => &pairs.test.images,
        }
    }
}

impl ImageCaptions {
    /// Returns the number of captions.
    pub fn count(&self) -> usize {
        self.captions.iter().map(Vec::len).sum()
    }

    /// Returns all captions, image by image, and the index of the image of each.
    pub fn texts(&self) -> (Vec<&str>, Vec<usize>) {
        let all = self.captions.iter().enumerate();
        all.flat_map(|(image, texts)| texts.iter().map(move |text| (text.as_str(), image)))
            .unzip()
    }

    /// Returns the images `indices` with all their captions.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn subset(&self, indices: Vec<usize>) -> Self {
        Self {
            captions: indices.iter().map(|i| self.captions[*i].clone()).collect(),
            images: Arc::new(Subset::new(self.images.clone(), indices)),
        }
    }
}

//! A suite is an ordered list of tasks plus the reference pairs that stand for what the
//! pretrained model knew.

mod check;
mod config;
mod error;
mod export;

use std::{collections::BTreeMap, sync::Arc};

use crate::data::ImageSource;

pub use error::SuiteError;
pub use export::{ExportSummary, export};

/// Images with a class label each.
#[derive(Clone)]
pub struct LabelledImages {
    /// The images.
    pub images: Arc<dyn ImageSource>,
    /// Class index of each image, same length as `images`.
    pub labels: Vec<usize>,
}

/// One classification task: what a dataset is to the benchmark.
#[derive(Clone)]
pub struct Task {
    /// Name shown in tables, unique within the suite.
    pub name: String,
    /// Class names in label order.
    pub class_names: Vec<String>,
    /// Prompt templates with a `{}` for the class name. Training uses the first one.
    pub templates: Vec<String>,
    /// Images trained on.
    pub train: LabelledImages,
    /// Images evaluated on; shares no image with `train`.
    pub test: LabelledImages,
}

/// Images with a caption each.
#[derive(Clone)]
pub struct CaptionedImages {
    /// The images.
    pub images: Arc<dyn ImageSource>,
    /// Caption of each image, same length as `images`.
    pub captions: Vec<String>,
}

/// Images with several captions each, for measuring retrieval in both directions.
#[derive(Clone)]
pub struct RetrievalSet {
    /// Name shown in tables, with the split.
    pub name: String,
    /// The images.
    pub images: Arc<dyn ImageSource>,
    /// All captions, those of an image next to each other.
    pub captions: Vec<String>,
    /// Index of the image that each caption belongs to, same length as `captions`.
    pub image_of: Vec<usize>,
}

impl RetrievalSet {
    /// Every image with its first caption.
    pub fn first_captions(&self) -> CaptionedImages {
        let mut captions = vec![String::new(); self.images.len()];
        for (caption, &image) in self.captions.iter().zip(&self.image_of).rev() {
            captions[image].clone_from(caption);
        }
        CaptionedImages {
            images: self.images.clone(),
            captions,
        }
    }
}

/// An ordered list of tasks with the reference pairs.
#[derive(Clone)]
pub struct Suite {
    /// Name of the suite.
    pub name: String,
    /// The tasks in training order.
    pub tasks: Vec<Task>,
    /// Reference pairs for distillation and modality alignment.
    pub reference: CaptionedImages,
    /// Reference pairs never trained on: modality gap and retrieval are measured here.
    pub held_out: CaptionedImages,
    /// What only some suites have.
    pub extras: Extras,
}

/// What only some suites have.
#[derive(Clone, Default)]
pub struct Extras {
    /// Texts without images, for distillation; the captions of the reference pairs serve where
    /// there are none.
    pub texts: Vec<String>,
    /// Images with several captions each, for retrieval.
    pub retrieval: Vec<RetrievalSet>,
    /// Whether the reference pairs of a task are drawn as published, by numpy's generator and the
    /// seed that belongs to the task's dataset
    /// ([`reference_seed`](crate::datasets::mtil::reference_seed)), instead of by the run's seed.
    pub published_draws: bool,
    /// Reference pairs of single tasks, by their names, in place of the suite's: GIFT has a
    /// synthetic set for each task.
    pub references: BTreeMap<String, CaptionedImages>,
}

impl Suite {
    /// The reference pairs of task `index`.
    ///
    /// # Panics
    /// When there is no such task.
    pub fn reference_of(&self, index: usize) -> &CaptionedImages {
        let own = self.extras.references.get(&self.tasks[index].name);
        own.unwrap_or(&self.reference)
    }
}

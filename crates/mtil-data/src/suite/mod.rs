//! Suites: an ordered list of tasks, with reference pairs that represent the pretrained model's
//! knowledge.

mod check;
mod config;
mod decode;
mod error;
mod export;
mod gone;
mod record;
mod task;
mod warning;

use std::{collections::BTreeMap, sync::Arc};

use crate::data::ImageSource;

pub use config::{EXAMPLE, LoadOptions};
pub use decode::DecodedSet;
pub use error::SuiteError;
pub use export::{ExportSummary, export};
pub use gone::GoneTask;
pub use record::{ImageSet, ImageSetRecord, SuiteRecord, TaskRecord};
pub use task::{CaptionPairs, Classification, ImageCaptions, LabelledImages, Task, TaskKind};
pub use warning::SuiteWarning;

/// Image-caption pairs.
#[derive(Clone)]
pub struct CaptionedImages {
    /// The images.
    pub images: Arc<dyn ImageSource>,
    /// Caption of each image. Has the length of `images`.
    pub captions: Vec<String>,
}

/// Images with several captions each, for image-to-text and text-to-image retrieval.
#[derive(Clone)]
pub struct RetrievalSet {
    /// Name in tables, including the split.
    pub name: String,
    /// The images.
    pub images: Arc<dyn ImageSource>,
    /// All captions, grouped by image.
    pub captions: Vec<String>,
    /// Image index of each caption. Has the length of `captions`.
    pub image_of: Vec<usize>,
}

impl RetrievalSet {
    /// Returns every image with its first caption.
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
///
/// [`Suite::load`] reads one from a suite file. A suite can also be built from any
/// [`ImageSource`]:
///
/// ```
/// use std::sync::Arc;
///
/// use mtil_data::datasets::store::{PixelLayout, RawImages};
/// use mtil_data::suite::{
///     CaptionedImages, Classification, Extras, LabelledImages, Suite, Task, TaskKind,
/// };
///
/// fn images(name: &str) -> Arc<RawImages> {
///     Arc::new(RawImages::new(name, vec![0_u8; 2 * 8 * 8], 8, 8, PixelLayout::Grey).unwrap())
/// }
/// let labelled = |name| LabelledImages { images: images(name), labels: vec![0, 1] };
/// let pairs = |name| CaptionedImages {
///     images: images(name),
///     captions: vec!["a zero".into(), "a one".into()],
/// };
/// let suite = Suite {
///     name: "digits".into(),
///     tasks: vec![Task {
///         name: "digits".into(),
///         kind: TaskKind::Classification(Classification {
///             class_names: vec!["zero".into(), "one".into()],
///             templates: vec!["the digit {}.".into()],
///             train: labelled("train"),
///             test: labelled("test"),
///         }),
///     }],
///     reference: pairs("reference"),
///     held_out: pairs("held-out"),
///     extras: Extras::default(),
/// };
/// suite.check()?;
/// # Ok::<(), mtil_data::suite::SuiteError>(())
/// ```
#[derive(Clone)]
pub struct Suite {
    /// Name of the suite.
    pub name: String,
    /// The tasks in training order.
    pub tasks: Vec<Task>,
    /// Reference pairs for distillation and modality alignment.
    pub reference: CaptionedImages,
    /// Reference pairs that are never trained on, for modality gap and retrieval.
    pub held_out: CaptionedImages,
    /// Optional data.
    pub extras: Extras,
}

/// Optional data of a suite.
#[derive(Clone, Default)]
pub struct Extras {
    /// Texts without images, for distillation. If empty, the captions of the reference pairs are
    /// used.
    pub texts: Vec<String>,
    /// Retrieval sets.
    pub retrieval: Vec<RetrievalSet>,
    /// Draws the reference pairs of a task as published, by numpy's generator with the seed of the
    /// task's dataset ([`reference_seed`](crate::datasets::mtil::reference_seed)), instead of with
    /// the run's seed.
    pub published_draws: bool,
    /// Reference pairs by task name, which replace the suite's. GIFT has a synthetic set for each
    /// task.
    pub references: BTreeMap<String, CaptionedImages>,
    /// Tasks that were learned from training images that are gone, by name.
    pub gone: BTreeMap<String, GoneTask>,
    /// Warnings of the loader, which [`Suite::warnings`] returns together with its own.
    pub warnings: Vec<SuiteWarning>,
}

impl Suite {
    /// Returns the reference pairs of task `index`.
    ///
    /// # Panics
    /// If `index` is out of range.
    pub fn reference_of(&self, index: usize) -> &CaptionedImages {
        let own = self.extras.references.get(&self.tasks[index].name);
        own.unwrap_or(&self.reference)
    }
}

//! Images of several tasks together: those kept of earlier tasks, and the training sets of all
//! tasks for joint training.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use image::DynamicImage;

use super::RunError;
use crate::{
    batch::{Ahead, Images},
    method::Rehearsal,
};
use mtil_data::{
    data::{BatchOrder, DataError, ImageSource},
    seeds,
    suite::{LabelledImages, Suite},
};

/// Training images by task and index, as one source.
pub(super) struct Joined {
    tasks: Vec<Arc<dyn ImageSource>>,
    items: Vec<(usize, usize)>,
}

impl Joined {
    pub fn new(suite: &Suite, items: Vec<(usize, usize)>) -> Self {
        let tasks = suite.tasks.iter().map(|t| t.train.images.clone()).collect();
        Self { tasks, items }
    }

    fn at(&self, index: usize) -> (&dyn ImageSource, usize) {
        let (task, index) = self.items[index];
        (self.tasks[task].as_ref(), index)
    }
}

impl ImageSource for Joined {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn name(&self, index: usize) -> String {
        let (source, index) = self.at(index);
        source.name(index)
    }

    fn identity(&self, index: usize) -> String {
        let (source, index) = self.at(index);
        source.identity(index)
    }

    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        let (source, index) = self.at(index);
        source.load(index)
    }
}

/// Labelled images of one or several tasks.
pub(super) struct Items {
    source: Arc<dyn ImageSource>,
    /// Task and class of each image.
    labels: Vec<(usize, usize)>,
}

impl Items {
    /// The training set of a task.
    pub fn of_task(suite: &Suite, task: usize) -> Self {
        let train: &LabelledImages = &suite.tasks[task].train;
        Self {
            source: train.images.clone(),
            labels: train.labels.iter().map(|label| (task, *label)).collect(),
        }
    }

    /// The training sets of all tasks.
    pub fn all(suite: &Suite) -> Self {
        let sizes = suite.tasks.iter().map(|t| t.train.labels.len()).enumerate();
        let items = sizes
            .flat_map(|(task, n)| (0..n).map(move |i| (task, i)))
            .collect();
        Self::chosen(suite, items)
    }

    /// Training images by task and index.
    pub fn chosen(suite: &Suite, items: Vec<(usize, usize)>) -> Self {
        let label =
            |(task, index): &(usize, usize)| (*task, suite.tasks[*task].train.labels[*index]);
        Self {
            labels: items.iter().map(label).collect(),
            source: Arc::new(Joined::new(suite, items)),
        }
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn source(&self) -> Arc<dyn ImageSource> {
        self.source.clone()
    }

    /// Task and class of the images `indices`.
    pub fn labels(&self, indices: &[usize]) -> Vec<(usize, usize)> {
        indices.iter().map(|i| self.labels[*i]).collect()
    }

    /// The tasks that have an image here.
    pub fn tasks(&self) -> Vec<usize> {
        let mut tasks: Vec<usize> = self.labels.iter().map(|(task, _)| *task).collect();
        tasks.sort_unstable();
        tasks.dedup();
        tasks
    }
}

/// Kept images that are classified again in every update.
pub(super) struct Kept {
    pub items: Items,
    pub weight: f64,
    /// Until the first update, when it goes to the loader.
    order: Option<BatchOrder>,
    stream: Option<Ahead>,
    seed: u64,
}

/// The kept images of one update.
pub(super) struct Replayed {
    pub pixels: Tensor<4>,
    pub labels: Vec<(usize, usize)>,
}

impl Kept {
    /// Images to classify, prepared as for training.
    pub fn new(
        items: Items,
        settings: &Rehearsal,
        seed: u64,
        index: usize,
    ) -> Result<Self, RunError> {
        let (task, batch, weight) = (index as u64, settings.batch, settings.replay);
        let order_seed = seeds::derive(seed, &[seeds::REPLAY_ORDER, task]);
        Ok(Self {
            order: Some(if settings.shuffle {
                BatchOrder::new(items.len(), batch, order_seed)?
            } else {
                BatchOrder::sequential(items.len(), batch)?
            }),
            stream: None,
            seed: seeds::derive(seed, &[seeds::REPLAY_CROP, task]),
            items,
            weight,
        })
    }

    /// The images of update `step` of `steps`; none when none can be read. Updates are asked for in
    /// their order, from any one on.
    pub fn at(
        &mut self,
        step: usize,
        steps: usize,
        images: &Images,
        device: &Device,
    ) -> Result<Option<Replayed>, RunError> {
        if let Some(order) = self.order.take() {
            let (source, steps) = (self.items.source(), step as u64..steps as u64);
            self.stream = Some(images.train_ahead(source, order, steps, self.seed)?);
        }
        let Some(batch) = self.stream.as_mut().and_then(Iterator::next) else {
            return Ok(None);
        };
        let batch = batch?;
        Ok(images
            .tensor(&batch.images, device)?
            .map(|pixels| Replayed {
                pixels,
                labels: self.items.labels(&batch.kept),
            }))
    }
}

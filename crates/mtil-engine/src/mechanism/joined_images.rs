//! Images of several tasks together: those kept of earlier tasks, and the training sets of all
//! tasks for joint training.

use std::sync::Arc;

use image::DynamicImage;

use mtil_data::{
    data::{DataError, ImageSource},
    suite::{LabelledImages, Suite},
};

/// Training images by task and index, as one source.
pub(crate) struct Joined {
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
pub(crate) struct Items {
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

//! Training images of one or several tasks, for rehearsal and joint training.

use std::sync::Arc;

use image::DynamicImage;

use mtil_data::{
    data::{DataError, ImageSource},
    suite::{LabelledImages, Suite},
};

/// Concatenation of training images of several tasks, given by task and index.
pub(crate) struct ConcatImages {
    tasks: Vec<Arc<dyn ImageSource>>,
    items: Vec<(usize, usize)>,
}

impl ConcatImages {
    pub fn new(suite: &Suite, items: Vec<(usize, usize)>) -> Self {
        let tasks = suite.tasks.iter().map(|t| t.train.images.clone()).collect();
        Self { tasks, items }
    }

    fn at(&self, index: usize) -> (&dyn ImageSource, usize) {
        let (task, index) = self.items[index];
        (self.tasks[task].as_ref(), index)
    }
}

impl ImageSource for ConcatImages {
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

    fn modified(&self, index: usize) -> Option<std::time::SystemTime> {
        let (source, index) = self.at(index);
        source.modified(index)
    }

    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        let (source, index) = self.at(index);
        source.load(index)
    }
}

/// Labelled training images of one or several tasks.
pub(crate) struct TrainingImages {
    source: Arc<dyn ImageSource>,
    /// Task and class of each image.
    labels: Vec<(usize, usize)>,
}

impl TrainingImages {
    /// Returns the training set of a task.
    pub fn of_task(suite: &Suite, task: usize) -> Self {
        let train: &LabelledImages = &suite.tasks[task].train;
        Self {
            source: train.images.clone(),
            labels: train.labels.iter().map(|label| (task, *label)).collect(),
        }
    }

    /// Returns the training sets of all tasks.
    pub fn all(suite: &Suite) -> Self {
        let sizes = suite.tasks.iter().map(|t| t.train.labels.len()).enumerate();
        let items = sizes
            .flat_map(|(task, n)| (0..n).map(move |i| (task, i)))
            .collect();
        Self::subset(suite, items)
    }

    /// Returns the training images `items`, given by task and index.
    pub fn subset(suite: &Suite, items: Vec<(usize, usize)>) -> Self {
        let label =
            |(task, index): &(usize, usize)| (*task, suite.tasks[*task].train.labels[*index]);
        Self {
            labels: items.iter().map(label).collect(),
            source: Arc::new(ConcatImages::new(suite, items)),
        }
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn source(&self) -> Arc<dyn ImageSource> {
        self.source.clone()
    }

    /// Returns task and class of the images `indices`.
    pub fn labels(&self, indices: &[usize]) -> Vec<(usize, usize)> {
        indices.iter().map(|i| self.labels[*i]).collect()
    }

    /// Returns the tasks that have images here, in ascending order.
    pub fn tasks(&self) -> Vec<usize> {
        let mut tasks: Vec<usize> = self.labels.iter().map(|(task, _)| *task).collect();
        tasks.sort_unstable();
        tasks.dedup();
        tasks
    }
}

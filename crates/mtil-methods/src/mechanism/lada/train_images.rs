//! Features of a task's training images, under the frozen image tower.

use burn::tensor::{Device, Int, Tensor, TensorData};
use clip_model::normalize;

use crate::{
    error::RunError,
    mechanism::context::{FitProgress, Phase, RunContext, TaskContext},
};
use mtil_data::{
    data::BatchOrder,
    seeds,
    suite::{Classification, LabelledImages},
};
use mtil_eval::{
    batch::{BatchError, Prefetcher, PreprocessedBatch},
    eval::{IMAGE_BATCH, to_host},
};

/// Features of all training images of a task, preprocessed as for evaluation.
pub(super) struct TaskFeatures {
    /// Features `[images, width]`, not normalised.
    pub rows: Vec<f32>,
    pub width: usize,
    /// Class of each image. Unreadable images may have been skipped.
    pub labels: Vec<usize>,
}

impl TaskFeatures {
    /// Encodes the training images of a task.
    ///
    /// # Errors
    /// [`BatchError`] naming an image that cannot be read or whose features are not finite, or
    /// stating that no image can be read.
    pub fn encode(
        task: &TaskContext<'_>,
        of: &Classification,
        progress: &mut dyn FitProgress,
    ) -> Result<Self, RunError> {
        let RunContext {
            checkpoint,
            suite,
            images,
            ..
        } = task.run;
        let (model, train) = (&checkpoint.model, &of.train);
        let all: Vec<usize> = (0..train.labels.len()).collect();
        let (mut done, batches) = (0, all.len().div_ceil(IMAGE_BATCH));
        progress.phase(Phase::Encoding, done, batches);
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        let width = checkpoint.config.projection_dim;
        for batch in images.prefetch_eval(train.images.clone(), all, IMAGE_BATCH)? {
            let PreprocessedBatch {
                indices,
                images: crops,
            } = batch?;
            if let Some(pixels) = images.tensor(&crops, &model.device())? {
                let features = to_host(model.encode_image(pixels));
                if let Some(at) = features.iter().position(|v| !v.is_finite()) {
                    let what = format!("image {}", train.images.name(indices[at / width]));
                    return Err(BatchError::NotFinite { what }.into());
                }
                rows.extend(features);
                labels.extend(indices.iter().map(|image| train.labels[*image]));
            }
            done += 1;
            progress.phase(Phase::Encoding, done, batches);
        }
        if labels.is_empty() {
            let name = &suite.tasks[task.index].name;
            let what = format!("the training images of task `{name}`");
            return Err(BatchError::NothingReadable(what).into());
        }
        Ok(Self {
            rows,
            width,
            labels,
        })
    }

    /// Returns the normalised features.
    ///
    /// # Shapes
    /// - output: `[images, width]`
    pub fn normalised(&self, run: &RunContext<'_>) -> Tensor<2> {
        let shape = [self.labels.len(), self.width];
        let rows = TensorData::new(self.rows.clone(), shape);
        normalize(Tensor::from_data(rows, &run.checkpoint.model.device()))
    }
}

/// Normalised features of the batches of a task, and their classes.
pub(super) enum TrainingFeatures<'a> {
    /// Encoded once.
    Stored {
        run: RunContext<'a>,
        features: Tensor<2>,
        labels: Vec<usize>,
        order: BatchOrder,
    },
    /// Encoded in each training step, from random crops.
    Augmented {
        run: RunContext<'a>,
        train: &'a LabelledImages,
        stream: Prefetcher,
    },
}

/// Features `[images, width]` and classes `[images, 1]` of a batch, the classes on the autodiff
/// device.
type FeatureBatch = (Tensor<2>, Tensor<2, Int>);

impl<'a> TrainingFeatures<'a> {
    /// Prepares the batches of a task. With `augment` they are of random crops, otherwise of
    /// `features`, those of all images.
    pub fn new(
        task: &TaskContext<'a>,
        of: &'a Classification,
        encoded: &TaskFeatures,
        features: Tensor<2>,
        augment: bool,
        [batch, steps]: [usize; 2],
    ) -> Result<Self, RunError> {
        let (run, index) = (task.run, task.index as u64);
        let seed = |purpose| seeds::derive(run.seed, &[purpose, index]);
        let order = |count| {
            let order = BatchOrder::new(count, batch, seed(seeds::TRAIN_ORDER));
            order.map_err(BatchError::from)
        };
        if !augment {
            return Ok(Self::Stored {
                run,
                order: order(encoded.labels.len())?,
                labels: encoded.labels.clone(),
                features,
            });
        }
        let (source, order) = (of.train.images.clone(), order(of.train.labels.len())?);
        let steps = 0..steps as u64;
        let crops = seed(seeds::TRAIN_CROP);
        Ok(Self::Augmented {
            run,
            train: &of.train,
            stream: run.images.prefetch_train(source, order, steps, crops)?,
        })
    }

    /// Returns the batch of training step `step`. Steps are in order. None if no image of it can be
    /// read.
    pub fn next_batch(&mut self, step: usize) -> Result<Option<FeatureBatch>, RunError> {
        match self {
            Self::Stored {
                run,
                features,
                labels,
                order,
            } => {
                let rows = order.indices(step as u64);
                let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
                let index = Tensor::from_data(index.as_slice(), &features.device());
                let labels = classes(rows.iter().map(|row| labels[*row]), run.device);
                Ok(Some((features.clone().select(0, index), labels)))
            }
            Self::Augmented { run, train, stream } => {
                let Some(batch) = stream.next().transpose()? else {
                    return Ok(None);
                };
                let model = &run.checkpoint.model;
                let Some(pixels) = run.images.tensor(&batch.images, &model.device())? else {
                    return Ok(None);
                };
                let labels = batch.indices.iter().map(|image| train.labels[*image]);
                let labels = classes(labels, run.device);
                Ok(Some((normalize(model.encode_image(pixels)), labels)))
            }
        }
    }
}

/// Returns a column of classes.
fn classes(labels: impl Iterator<Item = usize>, device: &Device) -> Tensor<2, Int> {
    let labels: Vec<i64> = labels.map(|label| label as i64).collect();
    let rows = labels.len();
    Tensor::from_data(TensorData::new(labels, [rows, 1]), device)
}

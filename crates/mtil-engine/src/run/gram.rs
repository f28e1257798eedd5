//! The pass over a task that remembers its activations.

use std::sync::atomic::{AtomicBool, Ordering};

use clip_model::ClipModel;
use gnsp_optimizer::{History, Memory, MemoryError, Recorder};

use super::{Event, Progress, RunError, Work};
use crate::{batch::Images, method::Projection, recording::InputRecorder};
use mtil_data::{data::BatchOrder, seeds, suite::Task};

/// The parameter whose history is renormalised in the reference.
const PROJ: &str = "visual.proj";

/// Adds the activations of `model` (on the plain device) on the training images of a task to
/// `memory` (GNSP `src/models/get_data_matrix.py:86-116`). Returns false when stopped half-way,
/// with the memory as it was.
#[allow(clippy::too_many_arguments)]
pub(super) fn remember(
    memory: &mut Memory,
    model: &ClipModel,
    task: &Task,
    index: usize,
    projection: &Projection,
    trainable_later: &[String],
    seed: u64,
    images: &Images,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<bool, RunError> {
    let device = model.device();
    let mut recorder = Recorder::new(&projection.policy(index));
    if projection.renormalize_proj && projection.history == History::Sum {
        recorder = recorder.with_history(PROJ, History::Renormalize);
    }
    let mut observer = InputRecorder::new(recorder)
        .with_all_tokens(projection.gram_all_tokens)
        .only(trainable_later);
    let unusable = |source: MemoryError| RunError::Gram {
        task: task.name.clone(),
        source,
    };
    let order = BatchOrder::new(
        task.train.labels.len(),
        projection.gram_batch,
        seeds::derive(seed, &[seeds::GRAM_ORDER, index as u64]),
    )?;
    let batches = projection
        .gram_batches
        .unwrap_or(usize::MAX)
        .min(order.steps_per_epoch() as usize);
    let crop_seed = seeds::derive(seed, &[seeds::GRAM_CROP, index as u64]);
    let (source, all) = (task.train.images.clone(), 0..batches as u64);
    let stream = if projection.gram_train_transform {
        images.train_ahead(source, order, all, crop_seed)?
    } else {
        images.eval_steps_ahead(source, order, all)?
    };
    for (batch, prepared) in stream.enumerate() {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        progress.event(&Event::Working {
            on: Work::Gram,
            done: batch,
            of: batches,
        });
        let pixels = images.tensor(&prepared?.images, &device)?;
        if let Some(pixels) = pixels {
            model.encode_image_observed(pixels, &mut observer);
        }
        observer.check().map_err(|error| unusable(error.into()))?;
    }
    progress.event(&Event::Working {
        on: Work::Gram,
        done: batches,
        of: batches,
    });
    let recorder = observer.finish().map_err(|error| unusable(error.into()))?;
    memory.absorb(recorder).map_err(unusable)?;
    Ok(true)
}

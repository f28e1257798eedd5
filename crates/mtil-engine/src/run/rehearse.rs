//! Which images of a trained task are kept.

use clip_model::ClipModel;

use super::{
    Exemplars, Quota, RunError,
    exemplars::{REFERENCE_SCAN, balanced, first, herding, herding_reference, random},
};
use crate::{batch::Images, eval::encode_images, method::ExemplarChoice};
use mtil_data::{seeds, suite::Task};

/// `exemplars` with images of task `index`. Herding takes features of the model that was just
/// trained, of images prepared as for evaluation; of the first task it takes the first images (ZSCL
/// `mtil/src/dynamic_dataset.py`, `mtil/src/models/icarl.py`).
pub(super) fn keep_images(
    mut exemplars: Exemplars,
    choice: ExemplarChoice,
    task: &Task,
    index: usize,
    trained: &ClipModel,
    images: &Images,
    seed: u64,
) -> Result<Exemplars, RunError> {
    let (all, room) = (task.train.labels.len(), exemplars.room());
    let seed = seeds::derive(seed, &[seeds::EXEMPLARS, index as u64]);
    let chosen = match choice {
        ExemplarChoice::First => first(all, room),
        ExemplarChoice::Random => random(all, room, seed),
        ExemplarChoice::Balanced => balanced(&task.train.labels, room, seed),
        ExemplarChoice::Herding if index == 0 => first(all, room),
        ExemplarChoice::Herding => {
            let scanned: Vec<usize> = (0..all.min(REFERENCE_SCAN)).collect();
            let source = &task.train.images;
            let features = encode_images(trained, None, source, &scanned, images)?;
            let (rows, width) = (features.indices.len(), features.width);
            let picks = match exemplars.quota() {
                Quota::Reference => herding_reference(&features.rows, rows, width, room)?,
                Quota::Fixed => herding(&features.rows, rows, width, room)?,
            };
            // Rows are the images that could be read.
            picks.into_iter().map(|row| features.indices[row]).collect()
        }
    };
    exemplars.admit(index, all, chosen)?;
    Ok(exemplars)
}

/// Task and index of every kept image, task by task.
pub(super) fn items(exemplars: &Exemplars) -> Vec<(usize, usize)> {
    let sets = exemplars.sets();
    sets.flat_map(|(task, indices)| indices.iter().map(move |index| (task, *index)))
        .collect()
}

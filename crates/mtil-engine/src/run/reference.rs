//! Reference pairs: what the pretrained model knew, in a few images and captions.

use std::collections::HashMap;

use burn::tensor::{Device, Tensor};
use clip_model::{Clip, ClipModel, TokenBatch, normalize};
use losses::alignment_targets;

use super::RunError;
use crate::{
    batch::{Images, Prepared},
    eval::encode_texts,
};
use mtil_data::{
    data::BatchOrder,
    datasets::{imagenet::numpy_reference_draw, mtil::reference_seed},
    seeds,
    suite::Suite,
};

/// The reference pairs of one task, in batches that repeat in order without shuffling, prepared as for
/// evaluation (GNSP `src/datasets/imagenet1k.py`, `src/models/finetune_gnsp.py:196-198`).
pub(super) struct Reference {
    order: BatchOrder,
    batches: Vec<Pairs>,
}

/// One batch of reference pairs.
pub(super) struct Pairs {
    /// `[pairs, 3, side, side]` on the training device.
    pub pixels: Tensor<4>,
    pub tokens: TokenBatch,
    /// Normalised features of the teacher `[pairs, e]`, on the plain device.
    pub teacher_image: Tensor<2>,
    pub teacher_text: Tensor<2>,
    /// Normalised features of the student, when its text tower is frozen.
    pub student_text: Option<Tensor<2>>,
    /// `[pairs, pairs]`: shares of the pairs with the same caption.
    pub targets: Tensor<2>,
}

impl Reference {
    /// Draws `count` of the pairs for task `task` and encodes them with `teacher`, and their texts with
    /// `student_text` when the student's text tower does not change.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        checkpoint: &Clip,
        suite: &Suite,
        count: usize,
        batch: usize,
        seed: u64,
        task: usize,
        teacher: &ClipModel,
        student_text: Option<&ClipModel>,
        images: &Images,
        device: &Device,
    ) -> Result<Self, RunError> {
        let pairs = &suite.reference;
        let all = pairs.captions.len();
        let published = reference_seed(&suite.tasks[task].name);
        let drawn = match published.filter(|_| suite.extras.published_draws) {
            Some(seed) => numpy_reference_draw(all, count, seed),
            None => seeds::sample(
                all,
                count,
                seeds::derive(seed, &[seeds::REFERENCE, task as u64]),
            ),
        };
        let order = BatchOrder::sequential(drawn.len(), batch)?;
        let plain = teacher.device();
        let mut batches = Vec::new();
        for prepared in images.eval_ahead(pairs.images.clone(), drawn, batch)? {
            let Prepared {
                kept,
                images: squares,
            } = prepared?;
            let Some(pixels) = images.tensor(&squares, &plain)? else {
                continue;
            };
            let captions: Vec<String> = kept.iter().map(|i| pairs.captions[*i].clone()).collect();
            // Pairs with the same caption have the same label (GNSP `src/datasets/imagenet1k.py`).
            let mut labels = HashMap::new();
            let labels: Vec<usize> = captions
                .iter()
                .map(|c| {
                    let next = labels.len();
                    *labels.entry(c.as_str()).or_insert(next)
                })
                .collect();
            let context = checkpoint.config.text.max_position_embeddings;
            batches.push(Pairs {
                teacher_image: normalize(teacher.encode_image(pixels.clone())),
                teacher_text: encode_texts(checkpoint, teacher, &captions)?,
                student_text: match student_text {
                    Some(student) => Some(encode_texts(checkpoint, student, &captions)?),
                    None => None,
                },
                tokens: checkpoint.tokenizer.encode(&captions, context)?,
                targets: alignment_targets(&labels, &plain),
                pixels: Tensor::from_data(pixels.into_data(), device),
            });
        }
        if batches.is_empty() {
            return Err(crate::batch::BatchError::NothingReadable(
                "the reference images".to_owned(),
            )
            .into());
        }
        Ok(Self { order, batches })
    }

    /// The batch of update `step`.
    pub fn at(&self, step: usize) -> &Pairs {
        let index = step as u64 % self.order.steps_per_epoch();
        &self.batches[index as usize % self.batches.len()]
    }
}

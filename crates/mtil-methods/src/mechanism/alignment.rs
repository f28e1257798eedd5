//! Losses on reference pairs of images and captions: contrastive distillation (CD), modality
//! alignment (MAP) and displacement of the means.

use std::{borrow::Cow, collections::HashMap};

use burn::tensor::{Device, Int, Tensor, TensorData};
use clip_losses::{
    alignment_margin, alignment_targets, contrastive_distillation, mean_displacement,
    modality_alignment,
};
use clip_model::{ClipModel, TokenBatch, normalize};

use super::{
    auxiliary_loss::{AuxiliaryLoss, Loss, LossContext},
    context::{ALIGNMENT, MethodOutline, RunContext, TaskContext},
    earlier_weights::{RequiredWeights, Teacher},
    hooks::Mechanism,
    state::RunState,
};
use crate::error::RunError;
use mtil_data::{
    data::BatchOrder,
    datasets::{imagenet::numpy_reference_draw, mtil::reference_seed},
    seeds,
};
use mtil_eval::{
    batch::{Images, PreprocessedBatch},
    eval::{encode_texts, to_host},
};

/// Settings of the losses on reference pairs.
#[derive(Debug, Clone)]
pub struct Alignment {
    /// Weight of contrastive distillation.
    pub cd: f64,
    /// Temperature of the distillation.
    pub temperature: f64,
    /// Weight of modality alignment.
    pub map: f64,
    /// Label smoothing of modality alignment.
    pub map_smoothing: f64,
    /// Weight of the squared displacement of the image and text means.
    pub hold_means: f64,
    /// Teacher of the distillation.
    pub teacher: Teacher,
    /// Pairs per training step.
    pub batch: usize,
    /// Pairs drawn per task.
    pub pairs: usize,
    /// Reshuffles the order in every epoch.
    pub shuffle: bool,
}

impl Alignment {
    /// Returns the losses of a batch of reference pairs, given the student's image features.
    ///
    /// # Shapes
    /// - features: `[pairs, width]`, normalised
    pub fn losses(
        &self,
        pairs: &ReferenceBatch,
        features: Tensor<2>,
        towers: &mut LossContext<'_>,
    ) -> Vec<Loss> {
        let text = match &pairs.student_text {
            Some(text) => text.clone(),
            None => normalize((towers.encode_text)(&pairs.tokens)),
        };
        let scale = &towers.scale;
        let logits = features.clone().matmul(text.clone().transpose()) * scale.clone();
        let mut losses: Vec<Loss> = Vec::new();
        if self.cd > 0.0 {
            let teacher = pairs
                .teacher_image
                .clone()
                .matmul(pairs.teacher_text.clone().transpose())
                * scale.clone().inner();
            let loss = contrastive_distillation(teacher, logits.clone(), self.temperature);
            losses.push(("cd", loss.mul_scalar(self.cd)));
        }
        if self.map > 0.0 {
            let loss = modality_alignment(logits, pairs.targets(), self.map_smoothing);
            losses.push(("map", loss.mul_scalar(self.map)));
        }
        if self.hold_means > 0.0 {
            let loss = mean_displacement(features, pairs.teacher_image.clone())
                + mean_displacement(text, pairs.teacher_text.clone());
            losses.push(("means", loss.mul_scalar(self.hold_means)));
        }
        losses
    }

    fn compares_with_teacher(&self) -> bool {
        self.cd > 0.0 || self.hold_means > 0.0
    }
}

impl Mechanism for Alignment {
    fn key(&self) -> &'static str {
        ALIGNMENT
    }

    fn check(&self, _: &MethodOutline) -> Result<(), String> {
        for (key, value) in [
            ("cd", self.cd),
            ("map", self.map),
            ("hold_means", self.hold_means),
        ] {
            if !(0.0..=f64::MAX).contains(&value) {
                return Err(format!("`{key}` is out of range: {value}"));
            }
        }
        if !(0.0..1.0).contains(&self.map_smoothing) {
            return Err(format!(
                "`map_smoothing` must be at least 0 and below 1, it is {}",
                self.map_smoothing
            ));
        }
        Ok(())
    }

    fn needs(&self) -> RequiredWeights {
        match self.compares_with_teacher() {
            true => self.teacher.needs(),
            false => RequiredWeights::default(),
        }
    }

    fn auxiliary_loss(
        &self,
        task: &TaskContext<'_>,
        state: &RunState,
    ) -> Result<Option<Box<dyn AuxiliaryLoss>>, RunError> {
        let teacher = self.teacher.resolve(task.run.checkpoint, state);
        Ok(Some(Box::new(ReferenceLoss {
            reference: ReferencePairs::new(self, task, teacher)?,
            settings: self.clone(),
            step: 0,
        })))
    }
}

/// Reference pairs of one task, preprocessed as for evaluation. The batches repeat in the same
/// order (GNSP `src/datasets/imagenet1k.py`, `src/models/finetune_gnsp.py:196-198`), or are
/// reshuffled in each epoch.
struct ReferencePairs {
    order: BatchOrder,
    /// The batches of an epoch in order, or one batch of all pairs if shuffled.
    batches: Vec<ReferenceBatch>,
    shuffled: bool,
}

/// One batch of reference pairs.
#[derive(Clone)]
pub struct ReferenceBatch {
    /// `[pairs, 3, side, side]` on the training device.
    pub pixels: Tensor<4>,
    /// Tokens of the captions.
    pub tokens: TokenBatch,
    /// Normalised image features of the teacher `[pairs, width]`, without autodiff.
    pub teacher_image: Tensor<2>,
    /// Normalised text features of the teacher `[pairs, width]`, without autodiff.
    pub teacher_text: Tensor<2>,
    /// Normalised text features of the student `[pairs, width]`, if its text tower is frozen.
    pub student_text: Option<Tensor<2>>,
    /// Labels of the captions; equal captions have equal labels.
    pub labels: Vec<usize>,
}

impl ReferenceBatch {
    /// Returns the targets of modality alignment, without autodiff: each row is uniform over the
    /// pairs with the same caption.
    ///
    /// # Shapes
    /// - output: `[pairs, pairs]`
    pub fn targets(&self) -> Tensor<2> {
        alignment_targets(&self.labels, &self.teacher_image.device())
    }

    /// Returns the pairs `indices`.
    fn select(&self, indices: &[usize]) -> Self {
        let on = |device: &Device| {
            let values: Vec<i64> = indices.iter().map(|i| *i as i64).collect();
            Tensor::<1, Int>::from_data(TensorData::new(values, [indices.len()]), device)
        };
        let rows = |features: &Tensor<2>| features.clone().select(0, on(&features.device()));
        Self {
            pixels: self.pixels.clone().select(0, on(&self.pixels.device())),
            tokens: TokenBatch {
                ids: indices
                    .iter()
                    .map(|i| self.tokens.ids[*i].clone())
                    .collect(),
            },
            teacher_image: rows(&self.teacher_image),
            teacher_text: rows(&self.teacher_text),
            student_text: self.student_text.as_ref().map(rows),
            labels: indices.iter().map(|i| self.labels[*i]).collect(),
        }
    }

    /// Concatenates batches; none if there are no batches.
    fn concat(batches: Vec<Self>) -> Option<Self> {
        let rows =
            |of: &dyn Fn(&Self) -> Tensor<2>| Tensor::cat(batches.iter().map(of).collect(), 0);
        let first = batches.first()?;
        let student = first.student_text.is_some();
        Some(Self {
            pixels: Tensor::cat(batches.iter().map(|b| b.pixels.clone()).collect(), 0),
            tokens: TokenBatch {
                ids: batches.iter().flat_map(|b| b.tokens.ids.clone()).collect(),
            },
            teacher_image: rows(&|b| b.teacher_image.clone()),
            teacher_text: rows(&|b| b.teacher_text.clone()),
            student_text: student.then(|| {
                let texts = batches.iter().filter_map(|b| b.student_text.clone());
                Tensor::cat(texts.collect(), 0)
            }),
            labels: batches.iter().flat_map(|b| b.labels.clone()).collect(),
        })
    }
}

impl ReferencePairs {
    /// Draws pairs for a task and encodes them with `teacher`. If the student's text tower is
    /// frozen, also encodes their texts with the student.
    fn new(
        settings: &Alignment,
        of: &TaskContext<'_>,
        teacher: &ClipModel,
    ) -> Result<Self, RunError> {
        let RunContext {
            checkpoint,
            suite,
            images,
            device,
            seed,
        } = of.run;
        let (count, batch, task) = (settings.pairs, settings.batch, of.index);
        let shuffled = settings.shuffle;
        let pairs = suite.reference_of(task);
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
        let pairs_drawn = drawn.len();
        let plain = teacher.device();
        let mut batches = Vec::new();
        let mut label_ids = HashMap::new();
        for prepared in images.prefetch_eval(pairs.images.clone(), drawn, batch)? {
            let PreprocessedBatch {
                indices: kept,
                images: crops,
            } = prepared?;
            let Some(pixels) = images.tensor(&crops, &plain)? else {
                continue;
            };
            let captions: Vec<String> = kept.iter().map(|i| pairs.captions[*i].clone()).collect();
            // Pairs with the same caption have the same label (GNSP `src/datasets/imagenet1k.py`).
            let mut label_of = |caption: &String| {
                let next = label_ids.len();
                *label_ids.entry(caption.clone()).or_insert(next)
            };
            let labels: Vec<usize> = captions.iter().map(&mut label_of).collect();
            let context = checkpoint.config.text.max_position_embeddings;
            batches.push(ReferenceBatch {
                teacher_image: normalize(teacher.encode_image(pixels.clone())),
                teacher_text: encode_texts(checkpoint, teacher, &captions)?,
                student_text: match of.frozen {
                    Some(student) => Some(encode_texts(checkpoint, student, &captions)?),
                    None => None,
                },
                tokens: checkpoint.tokenizer.encode(&captions, context)?,
                labels,
                pixels: Tensor::from_data(pixels.into_data(), device),
            });
        }
        let nothing =
            || mtil_eval::batch::BatchError::NothingReadable("the reference images".to_owned());
        if !shuffled {
            if batches.is_empty() {
                return Err(nothing().into());
            }
            let order = BatchOrder::sequential(pairs_drawn, batch)?;
            return Ok(Self {
                order,
                batches,
                shuffled,
            });
        }
        // Shuffled batches are selected from one batch of all pairs.
        let all = ReferenceBatch::concat(batches).ok_or_else(nothing)?;
        let seed = seeds::derive(seed, &[seeds::REFERENCE_ORDER, task as u64]);
        Ok(Self {
            order: BatchOrder::new(all.labels.len(), batch, seed)?,
            batches: vec![all],
            shuffled,
        })
    }

    /// Returns the teacher's margin: the mean logit of matching pairs minus that of other pairs,
    /// averaged over the batches of an epoch that have other pairs.
    fn margin(&self, logit_scale: f64) -> Option<f64> {
        let steps = 0..self.order.steps_per_epoch() as usize;
        let margins = steps.map(|step| self.batch(step)).filter_map(|pairs| {
            let texts = pairs.teacher_text.clone().transpose();
            let cosines = to_host(pairs.teacher_image.clone().matmul(texts));
            let targets = to_host(pairs.targets());
            let mean = |matching: bool| {
                let all = cosines.iter().zip(&targets);
                let of = all.filter(|(_, target)| (**target > 0.0) == matching);
                let (sum, count) = of.fold((0.0, 0.0), |(sum, count), (cosine, _)| {
                    (sum + f64::from(*cosine), count + 1.0)
                });
                (count > 0.0).then(|| sum / count)
            };
            Some(logit_scale * (mean(true)? - mean(false)?))
        });
        let margins: Vec<f64> = margins.collect();
        (!margins.is_empty()).then(|| margins.iter().sum::<f64>() / margins.len() as f64)
    }

    /// Returns the batch of training step `step`.
    fn batch(&self, step: usize) -> Cow<'_, ReferenceBatch> {
        if self.shuffled {
            return Cow::Owned(self.batches[0].select(&self.order.indices(step as u64)));
        }
        let index = step as u64 % self.order.steps_per_epoch();
        Cow::Borrowed(&self.batches[index as usize % self.batches.len()])
    }
}

/// Losses on the reference pairs of one task.
struct ReferenceLoss {
    settings: Alignment,
    reference: ReferencePairs,
    /// The current training step.
    step: usize,
}

impl AuxiliaryLoss for ReferenceLoss {
    fn next_batch(
        &mut self,
        step: usize,
        _: usize,
        _: &Images,
        _: &Device,
    ) -> Result<Option<Tensor<4>>, RunError> {
        self.step = step;
        Ok(Some(self.reference.batch(step).pixels.clone()))
    }

    fn losses(&self, features: Tensor<2>, towers: &mut LossContext<'_>) -> Vec<Loss> {
        let pairs = self.reference.batch(self.step);
        self.settings.losses(&pairs, features, towers)
    }

    fn uses_reference_pairs(&self) -> bool {
        true
    }

    /// Warns if the model's margin is more than twice the margin that minimises the smoothed
    /// alignment loss: the loss then pulls matching pairs apart.
    fn warning(&self, logit_scale: f64) -> Option<String> {
        let settings = &self.settings;
        if settings.map <= 0.0 {
            return None;
        }
        let margin = self.reference.margin(logit_scale)?;
        let pairs = settings.batch.min(settings.pairs);
        let target = alignment_margin(pairs, settings.map_smoothing);
        (margin > 2.0 * target).then(|| {
            format!(
                "matching reference pairs are {margin:.1} logits above others, and alignment with \
                 map_smoothing={} pulls them towards {target:.1}, which moves the modality gap; \
                 --set map_smoothing=0 does not",
                settings.map_smoothing
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs whose values are their indices among all pairs, times a factor per field.
    fn pairs(numbers: std::ops::Range<usize>, labels: &[usize]) -> ReferenceBatch {
        let device = Device::flex();
        let rows = |scale: f32| {
            let values: Vec<f32> = numbers.clone().map(|n| n as f32 * scale).collect();
            Tensor::<2>::from_data(TensorData::new(values, [numbers.len(), 1]), &device)
        };
        ReferenceBatch {
            pixels: rows(1.0).unsqueeze_dims(&[2, 3]),
            tokens: TokenBatch {
                ids: numbers.clone().map(|n| vec![n as u32]).collect(),
            },
            teacher_image: rows(10.0),
            teacher_text: rows(100.0),
            student_text: Some(rows(1000.0)),
            labels: labels.to_vec(),
        }
    }

    fn shuffled(seed: u64) -> ReferencePairs {
        let all =
            ReferenceBatch::concat(vec![pairs(0..3, &[0, 1, 0]), pairs(3..5, &[2, 0])]).unwrap();
        ReferencePairs {
            order: BatchOrder::new(5, 2, seed).unwrap(),
            batches: vec![all],
            shuffled: true,
        }
    }

    #[test]
    fn shuffled_epochs_are_permutations_of_whole_pairs() {
        let reference = shuffled(1);
        let mut orders = Vec::new();
        for epoch in 0..4 {
            let mut seen = Vec::new();
            for step in 3 * epoch..3 * epoch + 3 {
                let batch = reference.batch(step).into_owned();
                let numbers: Vec<usize> = batch.tokens.ids.iter().map(|r| r[0] as usize).collect();
                let of = |scale: f32| {
                    numbers
                        .iter()
                        .map(|n| *n as f32 * scale)
                        .collect::<Vec<_>>()
                };
                let labels: Vec<usize> = numbers.iter().map(|n| [0, 1, 0, 2, 0][*n]).collect();
                let targets = alignment_targets(&labels, &Device::flex());
                assert_eq!(to_host(batch.targets()), to_host(targets));
                assert_eq!(to_host(batch.pixels), of(1.0));
                assert_eq!(to_host(batch.teacher_image), of(10.0));
                assert_eq!(to_host(batch.teacher_text), of(100.0));
                assert_eq!(to_host(batch.student_text.unwrap()), of(1000.0));
                seen.extend(numbers);
            }
            orders.push(seen.clone());
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4]);
        }
        orders.dedup();
        assert!(orders.len() > 1);
        // Any single step, as after resuming.
        assert_eq!(
            shuffled(1).batch(7).tokens.ids,
            reference.batch(7).tokens.ids
        );
    }

    #[test]
    fn the_margin_is_that_of_matching_pairs_over_others() {
        let device = Device::flex();
        let unit = |values: [f32; 4]| {
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), [2, 2]), &device)
        };
        let mut batch = pairs(0..2, &[0, 1]);
        // Cosines 1 and 0.6 of matching pairs, 0 and 0.8 of the others.
        batch.teacher_image = unit([1.0, 0.0, 0.8, 0.6]);
        batch.teacher_text = unit([1.0, 0.0, 0.0, 1.0]);
        let reference = |batches| ReferencePairs {
            order: BatchOrder::sequential(2, 2).unwrap(),
            batches,
            shuffled: false,
        };
        let margin = reference(vec![batch.clone()]).margin(10.0).unwrap();
        assert!((margin - 4.0).abs() < 1e-5, "{margin}");
        // No margin where all pairs match.
        batch.labels = vec![7, 7];
        assert_eq!(reference(vec![batch]).margin(10.0), None);
    }
}

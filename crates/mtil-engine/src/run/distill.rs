//! Distillation against fixed texts, as ZSCL and LwF do it.

use std::{collections::BTreeSet, sync::Arc};

use burn::tensor::{Device, Tensor};
use clip_model::{Clip, ClipModel, TokenBatch, normalize};
use losses::distillation;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::RunError;
use crate::{
    batch::{Ahead, Images},
    eval::{encode_texts, prompt},
    method::{Distill, DistillImages, DistillTexts},
};
use mtil_data::{
    data::{BatchOrder, ImageSource},
    seeds,
    suite::{Suite, Task},
};

/// The images, the texts and the teacher of one task's distillation.
pub(super) struct Distillation {
    settings: Distill,
    temperature: f64,
    source: Arc<dyn ImageSource>,
    /// Until the first update, when it goes to the loader.
    order: Option<BatchOrder>,
    stream: Option<Ahead>,
    teacher: ClipModel,
    /// The teacher's normalised features of the texts, `[texts, e]`; they stand on both sides
    /// (ZSCL `mtil/src/models/finetune.py:266-267`).
    texts: Tensor<2>,
}

/// The images of one update.
pub(super) struct Taught {
    /// On the training device.
    pub pixels: Tensor<4>,
    /// The teacher's normalised features of them, on the plain device.
    teacher: Tensor<2>,
}

/// What a distillation is made for.
pub(super) struct Setting<'a> {
    pub checkpoint: &'a Clip,
    pub suite: &'a Suite,
    pub index: usize,
    pub seed: u64,
    pub batch: usize,
    pub temperature: f64,
    pub teacher: &'a ClipModel,
    /// The images kept of earlier tasks.
    pub memory: Option<Arc<dyn ImageSource>>,
}

impl Distillation {
    /// Prepares the distillation of a task; none where its images are those of earlier tasks and
    /// there are none yet.
    pub fn new(settings: &Distill, of: &Setting<'_>) -> Result<Option<Self>, RunError> {
        if of.index == 0 && !settings.first_task {
            return Ok(None);
        }
        let source = match settings.images {
            DistillImages::Reference => of.suite.reference_of(of.index).images.clone(),
            DistillImages::Task => of.suite.tasks[of.index].train.images.clone(),
            DistillImages::Memory => match &of.memory {
                Some(memory) => memory.clone(),
                None => return Ok(None),
            },
        };
        let shuffled = settings.shuffle && settings.images != DistillImages::Memory;
        let order = if shuffled {
            let seed = seeds::derive(of.seed, &[seeds::DISTILL_ORDER, of.index as u64]);
            BatchOrder::new(source.len(), of.batch, seed)?
        } else {
            BatchOrder::sequential(source.len(), of.batch)?
        };
        Ok(Some(Self {
            settings: settings.clone(),
            temperature: of.temperature,
            source,
            order: Some(order),
            stream: None,
            teacher: of.teacher.clone(),
            texts: texts(settings, of)?,
        }))
    }

    /// The images of update `step` of `steps`, and what the teacher sees in them; none when none
    /// can be read. Updates are asked for in their order, from any one on.
    pub fn at(
        &mut self,
        step: usize,
        steps: usize,
        images: &Images,
        device: &Device,
    ) -> Result<Option<Taught>, RunError> {
        if let Some(order) = self.order.take() {
            let (source, steps) = (self.source.clone(), step as u64..steps as u64);
            self.stream = Some(images.eval_steps_ahead(source, order, steps)?);
        }
        let Some(batch) = self.stream.as_mut().and_then(Iterator::next) else {
            return Ok(None);
        };
        let squares = batch?.images;
        let pixels = images.tensor(&squares, &self.teacher.device())?;
        Ok(pixels.map(|pixels| Taught {
            teacher: normalize(self.teacher.encode_image(pixels.clone())),
            pixels: Tensor::from_data(pixels.into_data(), device),
        }))
    }

    /// The loss of the student's normalised features of the images of an update. `scale` is the
    /// student's factor, for both sides (GNSP and ZSCL use it for the teacher too).
    pub fn loss(&self, taught: &Taught, student: Tensor<2>, scale: Tensor<2>) -> Tensor<1> {
        let texts = self.texts.clone().transpose();
        let teacher = taught.teacher.clone().matmul(texts.clone()) * scale.clone().inner();
        let student = student.matmul(texts) * scale;
        let mut sum: Option<Tensor<1>> = None;
        for (weight, teacher, student) in [
            (self.settings.image, teacher.clone(), student.clone()),
            (self.settings.text, teacher.transpose(), student.transpose()),
        ] {
            if weight > 0.0 {
                let part = distillation(teacher, student, self.temperature).mul_scalar(weight);
                sum = Some(match sum {
                    Some(sum) => sum + part,
                    None => part,
                });
            }
        }
        sum.unwrap_or_else(|| Tensor::zeros([1], &self.teacher.device()))
    }
}

/// The teacher's normalised features of the texts.
fn texts(settings: &Distill, of: &Setting<'_>) -> Result<Tensor<2>, RunError> {
    let prompts = |task: &Task| -> Vec<String> {
        let template = &task.templates[0];
        task.class_names
            .iter()
            .map(|c| prompt(template, c))
            .collect()
    };
    let captions = &of.suite.reference_of(of.index).captions;
    let texts: Vec<String> = match settings.texts {
        DistillTexts::Captions if !of.suite.extras.texts.is_empty() => {
            of.suite.extras.texts.clone()
        }
        DistillTexts::Captions | DistillTexts::Reference => {
            let mut seen = BTreeSet::new();
            let different = captions.iter().filter(|c| seen.insert(c.as_str()));
            different.cloned().collect()
        }
        DistillTexts::Prompts => prompts(&of.suite.tasks[of.index]),
        DistillTexts::AllPrompts => {
            let so_far = &of.suite.tasks[..=of.index];
            so_far.iter().flat_map(prompts).collect()
        }
        DistillTexts::Random => {
            let tokens = random_texts(of, settings.random_texts)?;
            return Ok(normalize(of.teacher.encode_text(&tokens)));
        }
    };
    Ok(encode_texts(of.checkpoint, of.teacher, &texts)?)
}

/// Rows of a start token, ten ids of the whole vocabulary, and an end token (ZSCL
/// `mtil/src/models/helpers.py:54-62`).
fn random_texts(of: &Setting<'_>, count: usize) -> Result<TokenBatch, RunError> {
    const IDS: usize = 10;
    let text = &of.checkpoint.config.text;
    let mut tokens = of
        .checkpoint
        .tokenizer
        .encode(&[String::new()], text.max_position_embeddings)?;
    let ends = std::mem::take(&mut tokens.ids).concat();
    let seed = seeds::derive(of.seed, &[seeds::RANDOM_TEXTS, of.index as u64]);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let room = text.max_position_embeddings.saturating_sub(2).min(IDS);
    tokens.ids = (0..count)
        .map(|_| {
            let ids = (0..room).map(|_| rng.random_range(0..text.vocab_size as u32));
            let first = ends.first().copied();
            first
                .into_iter()
                .chain(ids)
                .chain(ends.last().copied())
                .collect()
        })
        .collect();
    Ok(tokens)
}

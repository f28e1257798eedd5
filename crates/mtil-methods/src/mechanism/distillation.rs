//! Distillation of image-text similarities against fixed texts (ZSCL, LwF).

use std::{collections::BTreeSet, sync::Arc};

use burn::tensor::{Device, Tensor};
use clip_losses::distillation;
use clip_model::{Clip, ClipModel, TokenBatch, normalize};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    auxiliary_loss::{AuxiliaryLoss, Loss, LossContext, prompt_texts},
    context::{MethodOutline, TaskContext, at_least_one, in_range},
    earlier_weights::{RequiredWeights, Teacher},
    hooks::{Mechanism, first_pairs},
    rehearsal_images::RehearsalState,
    state::RunState,
    training_images::ConcatImages,
};
use crate::error::RunError;
use mtil_data::{
    data::{BatchOrder, ImageSource},
    seeds,
    suite::{Suite, Task},
};
use mtil_eval::{
    batch::{Images, Prefetcher},
    eval::encode_texts_while,
};

/// Distillation of the similarities of images to fixed texts: `Z = s·F(U)·G(V)ᵀ`, where teacher and
/// student both use the teacher's text features `G`. The loss is
/// `image · KD(Zᵗ, Zˢ) + text · KD(Zᵗᵀ, Zˢᵀ)` (ZSCL `mtil/src/models/finetune.py:248-300`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Distill {
    /// Weight of the distillation over the texts of each image.
    pub image: f64,
    /// Weight of the distillation over the images of each text.
    pub text: f64,
    /// The images U.
    pub images: DistillImages,
    /// The texts V.
    pub texts: DistillTexts,
    /// Reshuffles the images in each epoch (ZSCL); rehearsal images are never shuffled.
    pub shuffle: bool,
    /// Number of random texts per task of [`DistillTexts::Random`].
    pub random_texts: usize,
    /// Distils on the first task too.
    pub first_task: bool,
}

impl Default for Distill {
    fn default() -> Self {
        Self {
            image: 1.0,
            text: 1.0,
            images: DistillImages::Reference,
            texts: DistillTexts::Captions,
            shuffle: true,
            random_texts: 1000,
            first_task: true,
        }
    }
}

/// The images of a distillation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DistillImages {
    /// The reference images.
    Reference,
    /// The task's own training images, preprocessed as for evaluation (LwF).
    Task,
    /// Rehearsal images of earlier tasks (iCaRL); none on the first task.
    Memory,
}

/// The texts of a distillation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DistillTexts {
    /// The suite's texts without images; where there are none, the distinct captions of the
    /// reference images.
    Captions,
    /// The distinct captions of the reference images.
    Reference,
    /// The prompts of the task's classes, with the first template (LwF). A task of image-caption
    /// pairs has none, so a suite with one is refused.
    Prompts,
    /// The prompts of the classes of all tasks so far. The first task must have classes.
    AllPrompts,
    /// Texts of ten random tokens, drawn per task (LwF-VR; ZSCL
    /// `mtil/src/models/helpers.py:54-62`).
    Random,
}

/// The distillation mechanism: its settings, and those shared with other mechanisms.
pub(crate) struct DistillMechanism {
    pub settings: Distill,
    pub temperature: f64,
    pub teacher: Teacher,
    /// Images per training step.
    pub batch: usize,
    /// Images per training step from the rehearsal memory.
    pub rehearsal_batch: Option<usize>,
}

impl Mechanism for DistillMechanism {
    fn key(&self) -> &'static str {
        "distill"
    }

    fn check(&self, method: &MethodOutline) -> Result<(), String> {
        let d = &self.settings;
        in_range("distill.image", d.image, 0.0, f64::MAX)?;
        in_range("distill.text", d.text, 0.0, f64::MAX)?;
        at_least_one("distill.random_texts", d.random_texts)?;
        if d.images == DistillImages::Memory && !method.keys.contains(&"rehearsal") {
            return Err("`distill.images = \"memory\"` needs a `[rehearsal]`".to_owned());
        }
        Ok(())
    }

    fn unlearnable<'a>(&self, suite: &'a Suite) -> Option<(&'a Task, &'static str)> {
        match self.settings.texts {
            DistillTexts::Prompts => first_pairs(suite).map(|task| {
                (
                    task,
                    "`distill.texts = \"prompts\"` distils over the prompts of a task's classes",
                )
            }),
            DistillTexts::AllPrompts => {
                let first = suite.tasks.first().filter(|task| task.captions().is_some());
                let reason = "`distill.texts = \"all-prompts\"` distils over the prompts of the \
                              classes so far";
                first.map(|task| (task, reason))
            }
            DistillTexts::Captions | DistillTexts::Reference | DistillTexts::Random => None,
        }
    }

    fn needs(&self) -> RequiredWeights {
        self.teacher.needs()
    }

    fn auxiliary_loss(
        &self,
        task: &TaskContext<'_>,
        state: &RunState,
    ) -> Result<Option<Box<dyn AuxiliaryLoss>>, RunError> {
        let run = task.run;
        let memory = state.get::<RehearsalState>().map(RehearsalState::memory);
        let memory = memory.filter(|_| task.index > 0);
        let rehearsal_images = memory.map(|memory| -> Arc<dyn ImageSource> {
            Arc::new(ConcatImages::new(run.suite, memory.items()))
        });
        let batch = self.rehearsal_batch.filter(|_| rehearsal_images.is_some());
        let of = DistillationInputs {
            checkpoint: run.checkpoint,
            suite: run.suite,
            images: run.images,
            index: task.index,
            seed: run.seed,
            batch: batch.unwrap_or(self.batch),
            temperature: self.temperature,
            teacher: self.teacher.resolve(run.checkpoint, state),
            rehearsal_images,
        };
        let distillation = DistillationLoss::new(&self.settings, &of)?;
        Ok(distillation.map(|part| Box::new(part) as Box<dyn AuxiliaryLoss>))
    }
}

/// Distillation loss of one task: its images, texts and teacher.
struct DistillationLoss {
    settings: Distill,
    temperature: f64,
    source: Arc<dyn ImageSource>,
    /// Batch order; taken by the prefetcher at the first training step.
    order: Option<BatchOrder>,
    stream: Option<Prefetcher>,
    teacher: ClipModel,
    /// The teacher's normalised text features, `[texts, width]`, used for teacher and student
    /// (ZSCL `mtil/src/models/finetune.py:266-267`).
    texts: Tensor<2>,
    /// The teacher's normalised features of the current images, `[images, width]`, without
    /// autodiff.
    teacher_image: Option<Tensor<2>>,
}

/// Arguments of [`DistillationLoss::new`].
struct DistillationInputs<'a> {
    checkpoint: &'a Clip,
    suite: &'a Suite,
    images: &'a Images,
    index: usize,
    seed: u64,
    batch: usize,
    temperature: f64,
    teacher: &'a ClipModel,
    /// Rehearsal images of earlier tasks.
    rehearsal_images: Option<Arc<dyn ImageSource>>,
}

impl DistillationLoss {
    /// Prepares the distillation of a task. Returns none if the settings exclude the first task, or
    /// if there are no rehearsal images yet.
    fn new(settings: &Distill, of: &DistillationInputs<'_>) -> Result<Option<Self>, RunError> {
        if of.index == 0 && !settings.first_task {
            return Ok(None);
        }
        let source = match settings.images {
            DistillImages::Reference => of.suite.reference_of(of.index).images.clone(),
            DistillImages::Task => of.suite.tasks[of.index].training_images().clone(),
            DistillImages::Memory => match &of.rehearsal_images {
                Some(rehearsal_images) => rehearsal_images.clone(),
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
            teacher_image: None,
        }))
    }
}

impl AuxiliaryLoss for DistillationLoss {
    fn next_batch(
        &mut self,
        step: usize,
        steps: usize,
        images: &Images,
        device: &Device,
    ) -> Result<Option<Tensor<4>>, RunError> {
        if let Some(order) = self.order.take() {
            let (source, steps) = (self.source.clone(), step as u64..steps as u64);
            self.stream = Some(images.prefetch_eval_steps(source, order, steps)?);
        }
        self.teacher_image = None;
        let Some(batch) = self.stream.as_mut().and_then(Iterator::next) else {
            return Ok(None);
        };
        let pixels = images.tensor(&batch?.images, &self.teacher.device())?;
        Ok(pixels.map(|pixels| {
            self.teacher_image = Some(normalize(self.teacher.encode_image(pixels.clone())));
            Tensor::from_data(pixels.into_data(), device)
        }))
    }

    /// Teacher and student use the student's logit scale, as in GNSP and ZSCL.
    fn losses(&self, student: Tensor<2>, towers: &mut LossContext<'_>) -> Vec<Loss> {
        let Some(teacher_image) = &self.teacher_image else {
            return Vec::new();
        };
        let texts = self.texts.clone().transpose();
        let scale = towers.scale.clone();
        let teacher = teacher_image.clone().matmul(texts.clone()) * scale.clone().inner();
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
        let sum = sum.unwrap_or_else(|| Tensor::zeros([1], &self.teacher.device()));
        vec![("distill", sum)]
    }
}

/// Returns the teacher's normalised features of the texts.
fn texts(settings: &Distill, of: &DistillationInputs<'_>) -> Result<Tensor<2>, RunError> {
    let captions = &of.suite.reference_of(of.index).captions;
    let texts: Vec<String> = match settings.texts {
        DistillTexts::Captions if !of.suite.extras.texts.is_empty() => {
            of.suite.extras.texts.clone()
        }
        DistillTexts::Captions | DistillTexts::Reference => {
            let mut seen = BTreeSet::new();
            let distinct = captions.iter().filter(|c| seen.insert(c.as_str()));
            distinct.cloned().collect()
        }
        DistillTexts::Prompts => prompt_texts(of.suite, of.index),
        DistillTexts::AllPrompts => {
            let so_far = 0..=of.index;
            so_far
                .flat_map(|task| prompt_texts(of.suite, task))
                .collect()
        }
        DistillTexts::Random => {
            let tokens = random_texts(of, settings.random_texts)?;
            return Ok(normalize(of.teacher.encode_text(&tokens)));
        }
    };
    let proceed = || of.images.check_stop();
    Ok(encode_texts_while(
        &proceed,
        of.checkpoint,
        of.teacher,
        None,
        &texts,
    )?)
}

/// Draws texts of a start token, ten ids of the whole vocabulary, and an end token (ZSCL
/// `mtil/src/models/helpers.py:54-62`).
fn random_texts(of: &DistillationInputs<'_>, count: usize) -> Result<TokenBatch, RunError> {
    const IDS: usize = 10;
    let text = &of.checkpoint.config.text;
    let mut tokens = of
        .checkpoint
        .tokenizer
        .encode(&[String::new()], text.max_position_embeddings)?;
    // The empty text consists of the start and the end token.
    let ends = std::mem::take(&mut tokens.ids).concat();
    let seed = seeds::derive(of.seed, &[seeds::RANDOM_TEXTS, of.index as u64]);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let ids_per_text = text.max_position_embeddings.saturating_sub(2).min(IDS);
    tokens.ids = (0..count)
        .map(|_| {
            let ids = (0..ids_per_text).map(|_| rng.random_range(0..text.vocab_size as u32));
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

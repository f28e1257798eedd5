//! Distillation against fixed texts, as ZSCL and LwF do it.

use std::{collections::BTreeSet, sync::Arc};

use burn::tensor::{Device, Tensor};
use clip_losses::distillation;
use clip_model::{Clip, ClipModel, TokenBatch, normalize};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    earlier::Teacher,
    exemplars::Exemplars,
    hooks::Mechanism,
    joined_images::Joined,
    setting::{Needs, Outline, TaskSetting, some, within},
    state::State,
    task_part::{Loss, TaskPart, Towers, prompt_texts},
};
use crate::{
    batch::{Ahead, Images},
    error::RunError,
    eval::encode_texts,
};
use mtil_data::{
    data::{BatchOrder, ImageSource},
    seeds,
    suite::Suite,
};

/// Distillation of the similarity of images to fixed texts: with `Z = s·F(U)·G(V)ᵀ`, where the
/// texts' features `G` are the teacher's on both sides, the loss is `image · KD(Zᵗ, Zˢ) + text ·
/// KD(Zᵗᵀ, Zˢᵀ)` (ZSCL `mtil/src/models/finetune.py:248-300`).
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
    /// Whether reference images come in a fresh order each epoch (ZSCL) or always in the same.
    pub shuffle: bool,
    /// How many random texts [`DistillTexts::Random`] draws for a task.
    pub random_texts: usize,
    /// Whether to distil on the first task too.
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
    /// The task's own training images, prepared as for evaluation (LwF).
    Task,
    /// The images kept of earlier tasks (iCaRL); none on the first.
    Memory,
}

/// The texts of a distillation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DistillTexts {
    /// The suite's texts without images; the different captions of the reference images where there
    /// are none.
    Captions,
    /// The different captions of the reference images.
    Reference,
    /// The prompts of the task's classes, first template (LwF).
    Prompts,
    /// The prompts of the classes of all tasks so far.
    AllPrompts,
    /// Rows of ten random tokens, drawn for each task (LwF-VR; ZSCL
    /// `mtil/src/models/helpers.py:54-62`).
    Random,
}

/// The mechanism: settings, and those of the method that it shares.
pub(crate) struct Distilling {
    pub settings: Distill,
    pub temperature: f64,
    pub teacher: Teacher,
    /// Images per update.
    pub batch: usize,
    /// The same where images are kept.
    pub kept_batch: Option<usize>,
}

impl Mechanism for Distilling {
    fn key(&self) -> &'static str {
        "distill"
    }

    fn check(&self, method: &Outline) -> Result<(), String> {
        let d = &self.settings;
        within("distill.image", d.image, 0.0, f64::MAX)?;
        within("distill.text", d.text, 0.0, f64::MAX)?;
        some("distill.random_texts", d.random_texts)?;
        if d.images == DistillImages::Memory && !method.keys.contains(&"rehearsal") {
            return Err("`distill.images = \"memory\"` needs a `[rehearsal]`".to_owned());
        }
        Ok(())
    }

    fn needs(&self) -> Needs {
        self.teacher.needs()
    }

    fn part(
        &self,
        task: &TaskSetting<'_>,
        state: &State,
    ) -> Result<Option<Box<dyn TaskPart>>, RunError> {
        let run = task.run;
        let exemplars = state.get::<Exemplars>().filter(|_| task.index > 0);
        let kept = exemplars
            .map(|kept| -> Arc<dyn ImageSource> { Arc::new(Joined::new(run.suite, kept.items())) });
        let batch = self.kept_batch.filter(|_| kept.is_some());
        let of = Of {
            checkpoint: run.checkpoint,
            suite: run.suite,
            index: task.index,
            seed: run.seed,
            batch: batch.unwrap_or(self.batch),
            temperature: self.temperature,
            teacher: self.teacher.of(run.checkpoint, state),
            kept,
        };
        let distillation = Distillation::new(&self.settings, &of)?;
        Ok(distillation.map(|part| Box::new(part) as Box<dyn TaskPart>))
    }
}

/// The images, the texts and the teacher of one task's distillation.
struct Distillation {
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
    /// The teacher's normalised features of the images drawn last, on the plain device.
    taught: Option<Tensor<2>>,
}

/// What a distillation is made for.
struct Of<'a> {
    checkpoint: &'a Clip,
    suite: &'a Suite,
    index: usize,
    seed: u64,
    batch: usize,
    temperature: f64,
    teacher: &'a ClipModel,
    /// The images kept of earlier tasks.
    kept: Option<Arc<dyn ImageSource>>,
}

impl Distillation {
    /// Prepares the distillation of a task; none where its images are those of earlier tasks and
    /// there are none yet.
    fn new(settings: &Distill, of: &Of<'_>) -> Result<Option<Self>, RunError> {
        if of.index == 0 && !settings.first_task {
            return Ok(None);
        }
        let source = match settings.images {
            DistillImages::Reference => of.suite.reference_of(of.index).images.clone(),
            DistillImages::Task => of.suite.tasks[of.index].train.images.clone(),
            DistillImages::Memory => match &of.kept {
                Some(kept) => kept.clone(),
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
            taught: None,
        }))
    }
}

impl TaskPart for Distillation {
    fn draw(
        &mut self,
        step: usize,
        steps: usize,
        images: &Images,
        device: &Device,
    ) -> Result<Option<Tensor<4>>, RunError> {
        if let Some(order) = self.order.take() {
            let (source, steps) = (self.source.clone(), step as u64..steps as u64);
            self.stream = Some(images.eval_steps_ahead(source, order, steps)?);
        }
        self.taught = None;
        let Some(batch) = self.stream.as_mut().and_then(Iterator::next) else {
            return Ok(None);
        };
        let pixels = images.tensor(&batch?.images, &self.teacher.device())?;
        Ok(pixels.map(|pixels| {
            self.taught = Some(normalize(self.teacher.encode_image(pixels.clone())));
            Tensor::from_data(pixels.into_data(), device)
        }))
    }

    /// The scale is the student's, for both sides (GNSP and ZSCL use it for the teacher too).
    fn losses(&self, student: Tensor<2>, towers: &mut Towers<'_>) -> Vec<Loss> {
        let Some(taught) = &self.taught else {
            return Vec::new();
        };
        let texts = self.texts.clone().transpose();
        let scale = towers.scale.clone();
        let teacher = taught.clone().matmul(texts.clone()) * scale.clone().inner();
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

/// The teacher's normalised features of the texts.
fn texts(settings: &Distill, of: &Of<'_>) -> Result<Tensor<2>, RunError> {
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
    Ok(encode_texts(of.checkpoint, of.teacher, &texts)?)
}

/// Rows of a start token, ten ids of the whole vocabulary, and an end token (ZSCL
/// `mtil/src/models/helpers.py:54-62`).
fn random_texts(of: &Of<'_>, count: usize) -> Result<TokenBatch, RunError> {
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

//! Evaluator of a model after a task, and its results.

use std::{collections::BTreeMap, sync::Arc};

use burn::tensor::Tensor;
use clip_model::Clip;
use serde::{Deserialize, Serialize};

use super::{
    EvalOptions, Features, HeadCache, PromptRule, TaskIdentity,
    encoder::{
        Encoder, IMAGE_BATCH, argmax, classified_image, encode_images_with, encode_texts_while,
        is_same_without_task, to_host,
    },
    prompts::zero_shot_classifier,
};
use crate::{
    batch::{BatchError, Images, PreprocessedBatch},
    measures::{
        Matrix, MeasureError,
        calibration::{BINS, Calibration, calibration},
        confusion::ConfusionMatrix,
        geometry::{Geometry, Normalised},
        retrieval::{RetrievalSummary, retrieval},
    },
    metrics::Retrieval,
};
use mtil_data::{
    data::ImageSource,
    seeds,
    suite::{CaptionPairs, Classification, Suite, Task, TaskKind},
};

/// Factor on cosine similarities at evaluation (GNSP `src/models/evaluation.py:58`). It does not
/// change the predicted class.
pub const LOGIT_SCALE: f64 = 100.0;

/// Result of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Accuracy on each task in %, among its own classes; the mean R@1 in % of both directions on a
    /// task of image-caption pairs; none on a task that the suite did not have yet, or whose test
    /// images are gone.
    pub accuracies: Vec<Option<f64>>,
    /// Accuracy in % on the task just learned under the prompt rule of later stages, if that rule
    /// differs.
    #[serde(default)]
    pub learned: Option<f64>,
    /// Accuracy on each task in % without task identity, if requested; none as above.
    #[serde(default)]
    pub without_identity: Option<Vec<Option<f64>>>,
    /// Norm of the difference of the mean normalised image and text embeddings of the held-out
    /// pairs.
    pub modality_gap: f64,
    /// Retrieval on the held-out pairs.
    pub retrieval: Retrieval,
    /// Gap, alignment, uniformity and mean logits of the held-out pairs.
    #[serde(default)]
    pub geometry: Option<Geometry>,
    /// Mean logit of matching held-out pairs minus that of the other pairs, at the model's own
    /// logit scale.
    #[serde(default)]
    pub margin: Option<f64>,
    /// Retrieval on the suite's caption sets, by name.
    #[serde(default)]
    pub caption_sets: BTreeMap<String, RetrievalSummary>,
    /// Retrieval on the tasks of image-caption pairs, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub caption_tasks: BTreeMap<String, RetrievalSummary>,
    /// Number of test images per task, if a subset was used.
    #[serde(default)]
    pub thinned: Option<TestSubset>,
}

impl Evaluation {
    /// Returns the accuracies under the prompt rule of later stages. `learned` is the index of the
    /// task that was just learned, whose templates may change then.
    pub fn under_later_prompts(&self, learned: Option<usize>) -> Vec<Option<f64>> {
        let mut accuracies = self.accuracies.clone();
        let cell = learned.and_then(|task| accuracies.get_mut(task));
        if let (Some(cell), Some(later)) = (cell, self.learned) {
            *cell = Some(later);
        }
        accuracies
    }
}

/// Measure of a model on one task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TaskMeasure {
    /// Accuracy in %, or the mean R@1 of both directions: the cell of the accuracy matrix.
    pub cell: f64,
    /// Retrieval, on image-caption pairs.
    pub retrieval: Option<RetrievalSummary>,
}

impl TaskMeasure {
    fn of_pairs(retrieval: RetrievalSummary) -> Self {
        Self {
            cell: retrieval.recall.mean_r1(),
            retrieval: Some(retrieval),
        }
    }
}

/// Number of test images per task in an evaluation on a subset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestSubset(pub usize);

/// Detailed results on one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskDetails {
    /// Name of the task.
    pub task: String,
    /// Accuracy of each class in %, by name; `None` for a class without a test image. Empty for
    /// image-caption pairs.
    pub classes: Vec<(String, Option<f64>)>,
    /// Mean of the class accuracies in %.
    pub mean_per_class: Option<f64>,
    /// Calibration of the predictions; `None` if a method scores classes with anything but logits.
    pub calibration: Option<Calibration>,
    /// Retrieval, on image-caption pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<RetrievalSummary>,
    /// Confusion matrix as CSV: rows are true classes, columns predictions. Empty for image-caption
    /// pairs.
    #[serde(skip)]
    pub confusion_csv: String,
}

/// Set of classes that the columns of the logits stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelSpace {
    /// Classes of one task.
    Task(usize),
    /// Classes of all tasks of the suite, in task order.
    All,
}

/// Scorer of a method that does not classify by zero-shot logits alone.
pub trait Scorer {
    /// Computes class scores from normalised image features and zero-shot logits over the classes
    /// of `space`. All are row-major.
    ///
    /// # Shapes
    /// - `features`: `[n, embedding]`
    /// - `logits`: `[n, classes]`
    /// - output: `[n, classes]`
    ///
    /// # Errors
    /// A message when the scores cannot be computed.
    fn scores(
        &self,
        features: &[f32],
        logits: Vec<f32>,
        space: LabelSpace,
    ) -> Result<Vec<f32>, String>;
}

/// Returns the class scores of normalised image features under the classifier `head`: the zero-shot
/// logits, or what a scorer makes of them and of the features on the host. They are row-major.
///
/// # Shapes
/// - `features`: `[n, embedding]`
/// - `head`: `[classes, embedding]`
/// - output: `[n, classes]`
///
/// # Errors
/// [`BatchError::Answer`] if the scorer fails.
pub(super) fn class_scores(
    features: &Tensor<2>,
    head: &Tensor<2>,
    scorer: Option<(&dyn Scorer, &[f32])>,
    space: LabelSpace,
) -> Result<Vec<f32>, BatchError> {
    let logits = features.clone().matmul(head.clone().transpose());
    let logits = to_host(logits.mul_scalar(LOGIT_SCALE));
    match scorer {
        Some((scorer, features)) => scorer
            .scores(features, logits, space)
            .map_err(BatchError::Answer),
        None => Ok(logits),
    }
}

/// Evaluator of a model on a suite. Holds what does not change from stage to stage.
pub struct Evaluator<'a> {
    /// The pretrained model, for its tokenizer and image settings.
    pub checkpoint: &'a Clip,
    /// The tasks and the held-out pairs.
    pub suite: &'a Suite,
    /// Evaluation protocol.
    pub options: &'a EvalOptions,
    /// Loader of the images.
    pub images: &'a Images,
    /// Seed of the choice of a subset of the test images.
    pub seed: u64,
}

impl Evaluator<'_> {
    /// Evaluates `encoder` after training task `stage` (`None`: the pretrained model) on every
    /// task, on the held-out pairs and on the caption sets.
    ///
    /// The scores of `scorer`, if there is one, replace the zero-shot logits. The features of a
    /// test set are computed once for all measures. The details are one entry per task with test
    /// images, in order, or empty unless [`EvalOptions::details`] is set. `progress` receives the
    /// numbers of encoded and of all image batches, first when the classifiers are built.
    ///
    /// # Errors
    /// [`BatchError`] naming an image that cannot be read, or the task without a readable test
    /// image; [`BatchError::Interrupted`].
    pub fn evaluate(
        &self,
        encoder: &dyn Encoder,
        scorer: Option<&dyn Scorer>,
        stage: Option<usize>,
        heads: &mut HeadCache,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Evaluation, Vec<TaskDetails>), BatchError> {
        let tasks = &self.suite.tasks;
        let task_heads = self.heads(encoder, stage, heads)?;
        let can_answer = encoder.is_task_agnostic() || encoder.ensemble(None).is_some();
        let is_agnostic = self.options.identity != TaskIdentity::Given && can_answer;
        let union_head = match is_agnostic {
            true => self.union_head(encoder, stage, &task_heads)?,
            false => None,
        };
        let subset = self.options.images_at(stage, tasks.len());
        let mut progress = BatchProgress::new(self.batches(subset), progress);
        let (mut accuracies, mut agnostic, mut details) = (Vec::new(), Vec::new(), Vec::new());
        let (mut learned, mut caption_tasks) = (None, BTreeMap::new());
        for (task_index, task) in tasks.iter().enumerate() {
            if task.test_images().is_empty() {
                // Its images are gone.
                accuracies.push(None);
                agnostic.push(None);
                continue;
            }
            // The reference rule uses one template for a learned task from the next stage on. Its
            // accuracy under that rule now is what backward transfer compares later stages with.
            let changes =
                stage == Some(task_index) && self.options.prompts == PromptRule::Reference;
            let classes = match &task.kind {
                TaskKind::Classification(classes) => classes,
                TaskKind::Captions(pairs) => {
                    let found = self.pair_retrieval(encoder, task_index, pairs, &mut progress)?;
                    let recall = found.recall.mean_r1();
                    learned = learned.or(changes.then_some(recall));
                    // There are no classes, so the identity of the task plays no part.
                    accuracies.push(Some(recall));
                    agnostic.push(Some(recall));
                    caption_tasks.insert(task.name.clone(), found);
                    if self.options.details {
                        details.push(TaskDetails::of_pairs(task, found));
                    }
                    continue;
                }
            };
            let head = task_heads[task_index].as_ref();
            let later_head = match stage.filter(|_| changes) {
                Some(stage) => {
                    Some(self.head(encoder, Some(stage + 1), task_index, classes, heads)?)
                }
                None => None,
            };
            let result = self.evaluate_task(
                encoder,
                scorer,
                stage,
                task_index,
                classes,
                head.expect("classes have a classifier"),
                later_head.as_ref(),
                union_head.as_ref(),
                subset,
                &mut progress,
            )?;
            learned = learned.or(later_head.map(|_| result.later_accuracy()));
            accuracies.push(Some(result.accuracy()));
            agnostic.push(Some(result.agnostic_accuracy()));
            if self.options.details {
                details.push(result.details(&task.name, classes, scorer.is_none())?);
            }
        }
        let (geometry, recall) = self.held_out_pairs(encoder, &mut progress)?;
        let caption_sets = self.caption_sets(encoder, &mut progress)?;
        let evaluation = Evaluation {
            accuracies,
            learned,
            without_identity: is_agnostic.then_some(agnostic),
            modality_gap: geometry.gap,
            retrieval: recall,
            geometry: Some(geometry),
            margin: geometry.logits.margin().map(|margin| {
                // To cosine similarity, then to the model's own logit scale.
                margin / LOGIT_SCALE * f64::from(to_host(self.checkpoint.model.scale())[0])
            }),
            caption_sets,
            caption_tasks,
            thinned: subset.map(TestSubset),
        };
        Ok((evaluation, details))
    }

    /// Returns the number of image batches of an evaluation on `subset` test images per task.
    fn batches(&self, subset: Option<usize>) -> usize {
        let suite = self.suite;
        let tests = suite.tasks.iter().map(|task| test_count(task, subset));
        let sets = suite.extras.retrieval.iter().map(|set| set.images.len());
        let sets = sets.chain([suite.held_out.captions.len()]);
        tests.chain(sets).map(|n| n.div_ceil(IMAGE_BATCH)).sum()
    }

    /// Returns the retrieval of each caption set.
    fn caption_sets(
        &self,
        encoder: &dyn Encoder,
        progress: &mut BatchProgress<'_>,
    ) -> Result<BTreeMap<String, RetrievalSummary>, BatchError> {
        let mut found = BTreeMap::new();
        for set in &self.suite.extras.retrieval {
            let texts: Vec<&str> = set.captions.iter().map(String::as_str).collect();
            let captions = (&texts[..], &set.image_of[..]);
            let name = || format!("the images of caption set `{}`", set.name);
            let of = self.retrieve(encoder, None, &set.images, captions, false, name, progress)?;
            found.insert(set.name.clone(), of);
        }
        Ok(found)
    }

    /// Returns geometry and retrieval of the held-out pairs.
    fn held_out_pairs(
        &self,
        encoder: &dyn Encoder,
        progress: &mut BatchProgress<'_>,
    ) -> Result<(Geometry, Retrieval), BatchError> {
        // Unreadable images are skipped, and their captions with them.
        let pairs = &self.suite.held_out;
        let all: Vec<usize> = (0..pairs.captions.len()).collect();
        let encoded = &mut || progress.advance();
        let images = encode_images_with(encoded, encoder, None, &pairs.images, &all, self.images)
            .map_err(|e| e.of_set(|| "the held-out images".to_owned()))?;
        let captions: Vec<String> = images
            .indices
            .iter()
            .map(|i| pairs.captions[*i].clone())
            .collect();
        let texts = self.encode_captions(encoder, None, &captions)?;
        let image_of: Vec<usize> = (0..captions.len()).collect();
        let (images, texts) = (normalised_images(&images)?, normalised_texts(texts)?);
        let geometry = Geometry::new(&images, &texts, &image_of, LOGIT_SCALE)?;
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        // Pairs with equal captions count as one answer, because they cannot be told apart.
        let recall = retrieval(&images, &texts, &image_of, Some(&captions))?.recall;
        Ok((geometry, recall))
    }

    /// Encodes captions, for a task if it is given.
    fn encode_captions(
        &self,
        encoder: &dyn Encoder,
        task: Option<usize>,
        captions: &[String],
    ) -> Result<Tensor<2>, BatchError> {
        let proceed = || self.images.check_stop();
        encode_texts_while(&proceed, self.checkpoint, encoder, task, captions)
    }

    /// Returns the classifier of each task at a stage; none of image-caption pairs.
    fn heads(
        &self,
        encoder: &dyn Encoder,
        stage: Option<usize>,
        heads: &mut HeadCache,
    ) -> Result<Vec<Option<Tensor<2>>>, BatchError> {
        let tasks = self.suite.tasks.iter().enumerate();
        tasks
            .map(|(task_index, task)| {
                let classes = task.classification();
                let head = classes.map(|c| self.head(encoder, stage, task_index, c, heads));
                head.transpose()
            })
            .collect()
    }

    /// Returns the classifier among the classes of all tasks, for images whose task is not given;
    /// none without classes. `heads` are those for a given task.
    fn union_head(
        &self,
        encoder: &dyn Encoder,
        stage: Option<usize>,
        heads: &[Option<Tensor<2>>],
    ) -> Result<Option<Tensor<2>>, BatchError> {
        let mut all: Vec<Tensor<2>> = Vec::new();
        for (index, task) in self.suite.tasks.iter().enumerate() {
            let Some(of) = task.classification() else {
                continue;
            };
            if let (Some(head), true) = (&heads[index], is_same_without_task(encoder, index)) {
                all.push(head.clone());
                continue;
            }
            let rule = self.options.prompts;
            let count = rule.template_count(stage, index, of.templates.len());
            all.push(zero_shot_classifier(
                &|| self.images.check_stop(),
                self.checkpoint,
                encoder,
                None,
                &of.class_names,
                &of.templates[..count],
            )?);
        }
        Ok((!all.is_empty()).then(|| Tensor::cat(all, 0)))
    }

    /// Returns the classifier of a task at a stage.
    fn head(
        &self,
        encoder: &dyn Encoder,
        stage: Option<usize>,
        task_index: usize,
        task: &Classification,
        heads: &mut HeadCache,
    ) -> Result<Tensor<2>, BatchError> {
        let rule = self.options.prompts;
        let templates = rule.template_count(stage, task_index, task.templates.len());
        let proceed = || self.images.check_stop();
        heads.head_while(
            &proceed,
            self.checkpoint,
            encoder,
            task_index,
            task,
            templates,
        )
    }

    /// Returns the accuracy of `encoder` on one task in %, or its retrieval. `scorer` and `progress`
    /// are those of [`evaluate`](Self::evaluate).
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub fn measure(
        &self,
        encoder: &dyn Encoder,
        scorer: Option<&dyn Scorer>,
        stage: Option<usize>,
        task_index: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<TaskMeasure, BatchError> {
        let task = &self.suite.tasks[task_index];
        let subset = self.options.images_at(stage, self.suite.tasks.len());
        let batches = test_count(task, subset).div_ceil(IMAGE_BATCH);
        let classes = match &task.kind {
            TaskKind::Classification(classes) => classes,
            TaskKind::Captions(pairs) => {
                let mut progress = BatchProgress::new(batches, progress);
                let found = self.pair_retrieval(encoder, task_index, pairs, &mut progress)?;
                return Ok(TaskMeasure::of_pairs(found));
            }
        };
        let mut heads = HeadCache::default();
        let head = self.head(encoder, stage, task_index, classes, &mut heads)?;
        let mut progress = BatchProgress::new(batches, progress);
        let result = self.evaluate_task(
            encoder,
            scorer,
            stage,
            task_index,
            classes,
            &head,
            None,
            None,
            subset,
            &mut progress,
        )?;
        Ok(TaskMeasure {
            cell: result.accuracy(),
            retrieval: None,
        })
    }

    /// Returns the indices of the test images of a classification to evaluate, sorted.
    fn test_indices(&self, all: usize, task_index: usize, subset: Option<usize>) -> Vec<usize> {
        let Some(count) = subset else {
            return (0..all).collect();
        };
        let seed = seeds::derive(self.seed, &[seeds::EVALUATION, task_index as u64]);
        let mut indices = seeds::sample(all, count, seed);
        indices.sort_unstable();
        indices
    }

    /// Classifies the test images of a task with up to three classifiers: `head` of the current
    /// stage, `later_head` of later stages, and `union_head` over the classes of all tasks.
    #[allow(clippy::too_many_arguments)]
    fn evaluate_task(
        &self,
        encoder: &dyn Encoder,
        scorer: Option<&dyn Scorer>,
        stage: Option<usize>,
        task_index: usize,
        task: &Classification,
        head: &Tensor<2>,
        later_head: Option<&Tensor<2>>,
        union_head: Option<&Tensor<2>>,
        subset: Option<usize>,
        progress: &mut BatchProgress<'_>,
    ) -> Result<TaskResult, BatchError> {
        let device = encoder.device();
        let mut result = TaskResult {
            classes: task.class_names.len(),
            ..TaskResult::default()
        };
        let candidates = self.candidate_classes(stage, task_index);
        // Position of the task's first class among the classes of all tasks.
        let offset: usize = self.suite.tasks[..task_index]
            .iter()
            .map(Task::class_count)
            .sum();
        let indices = self.test_indices(task.test.labels.len(), task_index, subset);
        let ensemble = encoder.ensemble(Some(task_index));
        let batch_size = ensemble.map_or(IMAGE_BATCH, |of| of.batch());
        let mut left = indices.len();
        for batch in self
            .images
            .prefetch_eval(task.test.images.clone(), indices, batch_size)?
        {
            let parts = batch_size.min(left).div_ceil(IMAGE_BATCH);
            left = left.saturating_sub(batch_size);
            let PreprocessedBatch {
                indices: kept,
                images,
            } = batch?;
            let Some(pixels) = self.images.tensor(&images, &device)? else {
                progress.advance_by(parts);
                continue;
            };
            let without_task = union_head.filter(|_| !is_same_without_task(encoder, task_index));
            let without_task =
                without_task.map(|_| classified_image(encoder, None, pixels.clone()));
            let features = classified_image(encoder, Some(task_index), pixels);
            // Copied to the host once, and only if a scorer needs them.
            let host_features = scorer.map(|_| to_host(features.clone()));
            let scorer = scorer.zip(host_features.as_deref());
            let scores = |head: &Tensor<2>, space| class_scores(&features, head, scorer, space);
            let own = scores(head, LabelSpace::Task(task_index))?;
            let later = match later_head {
                Some(head) => Some(scores(head, LabelSpace::Task(task_index))?),
                None => None,
            };
            let union = match (union_head, &without_task) {
                (Some(head), Some(features)) => {
                    Some(class_scores(features, head, None, LabelSpace::All)?)
                }
                (Some(head), None) => Some(scores(head, LabelSpace::All)?),
                (None, _) => None,
            };
            let union_classes = union.as_ref().map_or(0, |s| s.len() / kept.len());
            for (row, index) in kept.into_iter().enumerate() {
                let label = task.test.labels[index];
                let logits = &own[row * result.classes..(row + 1) * result.classes];
                result.correct += usize::from(argmax(logits) == label);
                if let Some(later) = &later {
                    let logits = &later[row * result.classes..(row + 1) * result.classes];
                    result.later_correct += usize::from(argmax(logits) == label);
                }
                result.images += 1;
                if let Some(union) = &union {
                    let logits = &union[row * union_classes..(row + 1) * union_classes];
                    let predicted = masked_argmax(logits, &candidates);
                    result.agnostic_correct += usize::from(predicted == Some(offset + label));
                }
                if self.options.details {
                    result.labels.push(label);
                    result.logits.extend(logits);
                }
            }
            progress.advance_by(parts);
        }
        if result.images == 0 {
            let what = format!(
                "the test images of task `{}`",
                self.suite.tasks[task_index].name
            );
            return Err(BatchError::NothingReadable(what));
        }
        Ok(result)
    }

    /// Returns a mask over the classes of all tasks in order: the candidates for an image of task
    /// `task_index` without task identity.
    fn candidate_classes(&self, stage: Option<usize>, task_index: usize) -> Vec<bool> {
        let learned = stage.map_or(0, |s| s + 1);
        let tasks = self.suite.tasks.iter().enumerate();
        tasks
            .flat_map(|(i, task)| {
                let all = self.options.identity == TaskIdentity::All;
                let is_candidate = all || i < learned || i == task_index;
                std::iter::repeat_n(is_candidate, task.class_count())
            })
            .collect()
    }

    /// Computes retrieval on the test pairs of a task. Equal captions count as one answer, because
    /// they cannot be told apart.
    fn pair_retrieval(
        &self,
        encoder: &dyn Encoder,
        task_index: usize,
        pairs: &CaptionPairs,
        progress: &mut BatchProgress<'_>,
    ) -> Result<RetrievalSummary, BatchError> {
        let (texts, image_of) = pairs.test.texts();
        let name = || {
            format!(
                "the test images of task `{}`",
                self.suite.tasks[task_index].name
            )
        };
        let (task, images) = (Some(task_index), &pairs.test.images);
        let captions = (&texts[..], &image_of[..]);
        self.retrieve(encoder, task, images, captions, true, name, progress)
    }

    /// Computes retrieval among images and their captions, which are texts with the index of the
    /// image of each. With `grouped`, equal captions count as one answer.
    #[allow(clippy::too_many_arguments)]
    fn retrieve(
        &self,
        encoder: &dyn Encoder,
        task: Option<usize>,
        images: &Arc<dyn ImageSource>,
        (texts, image_of): (&[&str], &[usize]),
        grouped: bool,
        name: impl FnOnce() -> String,
        progress: &mut BatchProgress<'_>,
    ) -> Result<RetrievalSummary, BatchError> {
        let all: Vec<usize> = (0..images.len()).collect();
        let encoded = &mut || progress.advance();
        let images = encode_images_with(encoded, encoder, task, images, &all, self.images)
            .map_err(|e| e.of_set(name))?;
        // The captions of unreadable images are dropped, and the other images renumbered.
        let mut row_of = vec![None; all.len()];
        for (row, index) in images.indices.iter().enumerate() {
            row_of[*index] = Some(row);
        }
        let pairs = texts.iter().zip(image_of);
        let (captions, image_of): (Vec<String>, Vec<usize>) = pairs
            .filter_map(|(caption, image)| Some(((*caption).to_owned(), row_of[*image]?)))
            .unzip();
        let texts = self.encode_captions(encoder, task, &captions)?;
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        Ok(retrieval(
            &normalised_images(&images)?,
            &normalised_texts(texts)?,
            &image_of,
            grouped.then_some(&captions[..]),
        )?)
    }
}

/// Returns the number of test images of a task in an evaluation on `subset` images. Recall depends
/// on the number of candidates, so image-caption pairs are never thinned.
fn test_count(task: &Task, subset: Option<usize>) -> usize {
    let all = task.test_images().len();
    match (&task.kind, subset) {
        (TaskKind::Classification(_), Some(subset)) => subset.min(all),
        (TaskKind::Classification(_), None) | (TaskKind::Captions(_), _) => all,
    }
}

/// Progress of an evaluation in batches of images.
struct BatchProgress<'a> {
    done: usize,
    of: usize,
    report: &'a mut dyn FnMut(usize, usize),
}

impl<'a> BatchProgress<'a> {
    fn new(of: usize, report: &'a mut dyn FnMut(usize, usize)) -> Self {
        report(0, of);
        Self {
            done: 0,
            of,
            report,
        }
    }

    fn advance(&mut self) {
        self.advance_by(1);
    }

    fn advance_by(&mut self, parts: usize) {
        self.done += parts;
        (self.report)(self.done, self.of);
    }
}

fn normalised_images(features: &Features) -> Result<Normalised, MeasureError> {
    let rows = features.indices.len();
    Normalised::new(Matrix::new(
        "image embeddings",
        &features.rows,
        rows,
        features.width,
    )?)
}

fn normalised_texts(features: Tensor<2>) -> Result<Normalised, MeasureError> {
    let [rows, width] = features.dims();
    let values = to_host(features);
    Normalised::new(Matrix::new("text embeddings", &values, rows, width)?)
}

/// Returns the index of the largest value under the mask, the first one on a tie.
fn masked_argmax(row: &[f32], mask: &[bool]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (i, (value, is_candidate)) in row.iter().zip(mask).enumerate() {
        if *is_candidate && best.is_none_or(|(_, b)| *value > b) {
            best = Some((i, *value));
        }
    }
    best.map(|(i, _)| i)
}

/// Counts of correct predictions on one task, of at least one image.
#[derive(Default)]
struct TaskResult {
    classes: usize,
    images: usize,
    correct: usize,
    /// Correct predictions without task identity.
    agnostic_correct: usize,
    /// Correct predictions under the prompt rule of later stages.
    later_correct: usize,
    labels: Vec<usize>,
    logits: Vec<f32>,
}

impl TaskResult {
    fn accuracy(&self) -> f64 {
        100.0 * self.correct as f64 / self.images as f64
    }

    fn later_accuracy(&self) -> f64 {
        100.0 * self.later_correct as f64 / self.images as f64
    }

    fn agnostic_accuracy(&self) -> f64 {
        100.0 * self.agnostic_correct as f64 / self.images as f64
    }

    /// Returns the detailed results, with calibration if the scores are logits.
    fn details(
        &self,
        name: &str,
        task: &Classification,
        is_logits: bool,
    ) -> Result<TaskDetails, MeasureError> {
        let logits = Matrix::new("logits", &self.logits, self.labels.len(), self.classes)?;
        let confusion = ConfusionMatrix::from_logits(logits, &self.labels)?;
        let names = task.class_names.iter().cloned();
        Ok(TaskDetails {
            task: name.to_owned(),
            classes: names.zip(confusion.per_class()).collect(),
            mean_per_class: confusion.mean_per_class(),
            calibration: match is_logits {
                true => Some(calibration(logits, &self.labels, 1.0, BINS)?),
                false => None,
            },
            retrieval: None,
            confusion_csv: confusion.to_csv(&task.class_names)?,
        })
    }
}

impl TaskDetails {
    fn of_pairs(task: &Task, retrieval: RetrievalSummary) -> Self {
        Self {
            task: task.name.clone(),
            classes: Vec::new(),
            mean_per_class: None,
            calibration: None,
            retrieval: Some(retrieval),
            confusion_csv: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_classes_are_never_predicted() {
        assert_eq!(
            masked_argmax(&[1.0, 5.0, 3.0, 3.0], &[true, false, true, true]),
            Some(2)
        );
        assert_eq!(masked_argmax(&[1.0], &[false]), None);
    }
}

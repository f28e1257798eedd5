//! The evaluation after a task.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use clip_model::{Clip, normalize};
use serde::{Deserialize, Serialize};

use super::{
    EvalOptions, Features, HeadCache, PromptRule, TaskIdentity,
    encoder::{BATCH, Encoder, argmax, encode_images, encode_texts_as, to_host},
};
use crate::{
    batch::{BatchError, Images, Prepared},
    measures::{
        Matrix, MeasureError,
        calibration::{BINS, Calibration, calibration},
        confusion::Confusion,
        geometry::{Geometry, Normalised},
        retrieval::{RetrievalSummary, retrieval},
    },
    metrics::Retrieval,
};
use mtil_data::{
    seeds,
    suite::{RetrievalSet, Suite, Task},
};

/// The factor on cosine similarities at evaluation (GNSP `src/models/evaluation.py:58`). It does
/// not change which class wins.
const LOGIT_SCALE: f64 = 100.0;

/// Result of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Accuracy on each task in %, among its own classes.
    pub accuracies: Vec<f64>,
    /// Accuracy in % on the task just learned, under the prompt rule that it has in later stages,
    /// where that is another.
    #[serde(default)]
    pub learned: Option<f64>,
    /// Accuracy on each task in % where the task is not given, if that was asked for.
    #[serde(default)]
    pub without_identity: Option<Vec<f64>>,
    /// Norm of the difference of the mean normalised image and text embeddings of the held-out
    /// pairs.
    pub modality_gap: f64,
    /// Retrieval on the held-out pairs.
    pub retrieval: Retrieval,
    /// Gap, alignment, uniformity and mean logits of the held-out pairs.
    #[serde(default)]
    pub geometry: Option<Geometry>,
    /// By how many of the model's own logits matching pairs among the held-out ones are above
    /// others, in the mean.
    #[serde(default)]
    pub margin: Option<f64>,
    /// Retrieval on the suite's caption sets, by their names.
    #[serde(default)]
    pub caption_sets: BTreeMap<String, RetrievalSummary>,
    /// How many test images of each task were used, where not all were.
    #[serde(default)]
    pub thinned: Option<ThinnedBy>,
}

/// Test images of each task that a thinned evaluation used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThinnedBy(pub usize);

/// What is known about the answers on one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColumnDetails {
    /// The task.
    pub task: String,
    /// Accuracy of each class in %, by its name; none for a class without a test image.
    pub classes: Vec<(String, Option<f64>)>,
    /// Mean of the accuracies of the classes in %.
    pub mean_per_class: Option<f64>,
    /// How sure the answers are, and how rightly; none where a method answers with other scores
    /// than logits.
    pub calibration: Option<Calibration>,
    /// The confusion matrix as CSV: rows are classes, columns answers.
    #[serde(skip)]
    pub confusion_csv: String,
}

/// The classes that an image is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelSpace {
    /// Those of one task.
    Task(usize),
    /// Those of all tasks of the suite, in the order of the tasks.
    All,
}

/// What makes scores of a classifier's logits, where a method has more to say than the model.
pub trait Answer {
    /// Scores `[n, classes]` of images, from their normalised features `[n, e]` and the zero-shot
    /// logits `[n, classes]` over the classes of `space`; all row-major.
    ///
    /// # Errors
    /// In words, when it cannot.
    fn scores(
        &self,
        features: &[f32],
        logits: Vec<f32>,
        space: LabelSpace,
    ) -> Result<Vec<f32>, String>;
}

/// Everything an evaluation needs that does not change from stage to stage.
pub struct Evaluator<'a> {
    /// The pretrained model: tokenizer, image settings.
    pub checkpoint: &'a Clip,
    /// The tasks and the held-out pairs.
    pub suite: &'a Suite,
    /// What is measured.
    pub options: &'a EvalOptions,
    /// Reads images.
    pub images: &'a Images,
    /// Seed of the choice of images of a thinned evaluation.
    pub seed: u64,
}

impl Evaluator<'_> {
    /// Evaluates `encoder` after training task `stage` (`None`: the pretrained model) on every
    /// task, on the held-out pairs and on the caption sets. `answer` stands between logits and
    /// decisions. Features of a test set are computed once and serve all figures. Details are of
    /// the tasks, in order, if the options ask for them.
    ///
    /// # Errors
    /// [`BatchError`] naming an image that cannot be read.
    pub fn evaluate(
        &self,
        encoder: &dyn Encoder,
        answer: Option<&dyn Answer>,
        stage: Option<usize>,
        heads: &mut HeadCache,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Evaluation, Vec<ColumnDetails>), BatchError> {
        let tasks = &self.suite.tasks;
        let weights = (0..tasks.len())
            .map(|column| self.head(encoder, stage, column, heads))
            .collect::<Result<Vec<_>, _>>()?;
        let compare = self.options.identity != TaskIdentity::Given && encoder.one_for_all_tasks();
        let union = compare.then(|| Tensor::cat(weights.clone(), 0));
        let thinned = self.options.images_at(stage, tasks.len());
        let (mut accuracies, mut without, mut details) = (Vec::new(), Vec::new(), Vec::new());
        let mut learned = None;
        for (column, task) in tasks.iter().enumerate() {
            progress(column, tasks.len());
            let later = match stage {
                Some(stage) if stage == column && self.options.prompts == PromptRule::Reference => {
                    Some(self.head(encoder, Some(stage + 1), column, heads)?)
                }
                _ => None,
            };
            let counted = self.column(
                encoder,
                answer,
                stage,
                column,
                &weights[column],
                later.as_ref(),
                union.as_ref(),
                thinned,
            )?;
            learned = learned.or(later.map(|_| counted.accuracy_later()));
            accuracies.push(counted.accuracy());
            without.push(counted.accuracy_without_identity());
            if self.options.details {
                details.push(counted.details(task, answer.is_none())?);
            }
        }
        progress(tasks.len(), tasks.len());
        let pairs = &self.suite.held_out;
        let all: Vec<usize> = (0..pairs.captions.len()).collect();
        let images = encode_images(encoder, None, &pairs.images, &all, self.images)?;
        let captions: Vec<String> = images
            .indices
            .iter()
            .map(|i| pairs.captions[*i].clone())
            .collect();
        let texts = encode_texts_as(self.checkpoint, encoder, None, &captions)?;
        let image_of: Vec<usize> = (0..captions.len()).collect();
        let (images, texts) = (unit(&images)?, unit_texts(texts)?);
        let geometry = Geometry::new(&images, &texts, &image_of, LOGIT_SCALE)?;
        let says: Vec<&str> = captions.iter().map(String::as_str).collect();
        // Pairs with the same caption count as the same answer, since nothing tells them apart.
        let recall = retrieval(&images, &texts, &image_of, Some(&says))?.recall;
        let mut caption_sets = BTreeMap::new();
        for set in &self.suite.extras.retrieval {
            caption_sets.insert(set.name.clone(), self.captioned(encoder, set)?);
        }
        let evaluation = Evaluation {
            accuracies,
            learned,
            without_identity: compare.then_some(without),
            modality_gap: geometry.gap,
            retrieval: recall,
            geometry: Some(geometry),
            margin: geometry.logits.margin().map(|margin| {
                // Cosines, and then logits of the model.
                margin / LOGIT_SCALE * f64::from(to_host(self.checkpoint.model.scale())[0])
            }),
            caption_sets,
            thinned: thinned.map(ThinnedBy),
        };
        Ok((evaluation, details))
    }

    /// The classifier of a task at a stage.
    fn head(
        &self,
        encoder: &dyn Encoder,
        stage: Option<usize>,
        column: usize,
        heads: &mut HeadCache,
    ) -> Result<Tensor<2>, BatchError> {
        let task = &self.suite.tasks[column];
        let rule = self.options.prompts;
        let templates = rule.templates(stage, column, task.templates.len());
        heads.head(self.checkpoint, encoder, column, task, templates)
    }

    /// Accuracy of `encoder` on one task only, in %.
    ///
    /// # Errors
    /// [`BatchError`] naming an image that cannot be read.
    pub fn accuracy(
        &self,
        encoder: &dyn Encoder,
        stage: Option<usize>,
        column: usize,
    ) -> Result<f64, BatchError> {
        let head = self.head(encoder, stage, column, &mut HeadCache::default())?;
        let thinned = self.options.images_at(stage, self.suite.tasks.len());
        let counted = self.column(encoder, None, stage, column, &head, None, None, thinned)?;
        Ok(counted.accuracy())
    }

    /// The test images of a task that are used.
    fn chosen(&self, task: &Task, column: usize, thinned: Option<usize>) -> Vec<usize> {
        let all = task.test.labels.len();
        let Some(count) = thinned else {
            return (0..all).collect();
        };
        let seed = seeds::derive(self.seed, &[seeds::EVALUATION, column as u64]);
        let mut chosen = seeds::sample(all, count, seed);
        chosen.sort_unstable();
        chosen
    }

    #[allow(clippy::too_many_arguments)]
    fn column(
        &self,
        encoder: &dyn Encoder,
        answer: Option<&dyn Answer>,
        stage: Option<usize>,
        column: usize,
        head: &Tensor<2>,
        later: Option<&Tensor<2>>,
        union: Option<&Tensor<2>>,
        thinned: Option<usize>,
    ) -> Result<Counted, BatchError> {
        let task = &self.suite.tasks[column];
        let device = encoder.device();
        let mut counted = Counted {
            classes: task.class_names.len(),
            ..Counted::default()
        };
        let allowed = self.allowed(stage, column);
        let offset: usize = self.suite.tasks[..column]
            .iter()
            .map(|t| t.class_names.len())
            .sum();
        let chosen = self.chosen(task, column, thinned);
        for batch in self
            .images
            .eval_ahead(task.test.images.clone(), chosen, BATCH)?
        {
            let Prepared { kept, images } = batch?;
            let Some(pixels) = self.images.tensor(&images, &device)? else {
                continue;
            };
            let features = normalize(encoder.image(Some(column), pixels));
            let host = answer.map(|_| to_host(features.clone()));
            let scores = |head: &Tensor<2>, space: LabelSpace| -> Result<Vec<f32>, BatchError> {
                let logits = features.clone().matmul(head.clone().transpose());
                let logits = to_host(logits.mul_scalar(LOGIT_SCALE));
                match (answer, &host) {
                    (Some(answer), Some(features)) => answer
                        .scores(features, logits, space)
                        .map_err(BatchError::Answer),
                    _ => Ok(logits),
                }
            };
            let own = scores(head, LabelSpace::Task(column))?;
            let later = match later {
                Some(later) => Some(scores(later, LabelSpace::Task(column))?),
                None => None,
            };
            let everywhere = match union {
                Some(union) => Some(scores(union, LabelSpace::All)?),
                None => None,
            };
            let width = everywhere.as_ref().map_or(0, |s| s.len() / kept.len());
            for (row, index) in kept.into_iter().enumerate() {
                let label = task.test.labels[index];
                let answers = &own[row * counted.classes..(row + 1) * counted.classes];
                counted.right += usize::from(argmax(answers) == label);
                if let Some(later) = &later {
                    let answers = &later[row * counted.classes..(row + 1) * counted.classes];
                    counted.right_later += usize::from(argmax(answers) == label);
                }
                counted.images += 1;
                if let Some(everywhere) = &everywhere {
                    let row = &everywhere[row * width..(row + 1) * width];
                    let best = best_of(row, &allowed);
                    counted.right_without += usize::from(best == Some(offset + label));
                }
                if self.options.details {
                    counted.labels.push(label);
                    counted.logits.extend(answers);
                }
            }
        }
        Ok(counted)
    }

    /// The classes, of all tasks in order, that an image of task `column` is compared with where
    /// the task is not given.
    fn allowed(&self, stage: Option<usize>, column: usize) -> Vec<bool> {
        let learned = stage.map_or(0, |s| s + 1);
        let tasks = self.suite.tasks.iter().enumerate();
        tasks
            .flat_map(|(i, task)| {
                let all = self.options.identity == TaskIdentity::All;
                std::iter::repeat_n(all || i < learned || i == column, task.class_names.len())
            })
            .collect()
    }

    fn captioned(
        &self,
        encoder: &dyn Encoder,
        set: &RetrievalSet,
    ) -> Result<RetrievalSummary, BatchError> {
        let all: Vec<usize> = (0..set.images.len()).collect();
        let images = encode_images(encoder, None, &set.images, &all, self.images)?;
        // Images that cannot be read take their captions with them.
        let mut place = vec![None; all.len()];
        for (row, index) in images.indices.iter().enumerate() {
            place[*index] = Some(row);
        }
        let kept = set.captions.iter().zip(&set.image_of);
        let (captions, image_of): (Vec<String>, Vec<usize>) = kept
            .filter_map(|(caption, image)| Some((caption.clone(), place[*image]?)))
            .unzip();
        let texts = encode_texts_as(self.checkpoint, encoder, None, &captions)?;
        Ok(retrieval(
            &unit(&images)?,
            &unit_texts(texts)?,
            &image_of,
            None,
        )?)
    }
}

fn unit(features: &Features) -> Result<Normalised, MeasureError> {
    let rows = features.indices.len();
    Normalised::new(Matrix::new(
        "image embeddings",
        &features.rows,
        rows,
        features.width,
    )?)
}

fn unit_texts(features: Tensor<2>) -> Result<Normalised, MeasureError> {
    let [rows, width] = features.dims();
    let values = to_host(features);
    Normalised::new(Matrix::new("text embeddings", &values, rows, width)?)
}

/// Index of the largest allowed value, the first one of several.
fn best_of(row: &[f32], allowed: &[bool]) -> Option<usize> {
    let candidates = row.iter().zip(allowed).enumerate();
    let mut best: Option<(usize, f32)> = None;
    for (i, (value, allowed)) in candidates {
        if *allowed && best.is_none_or(|(_, b)| *value > b) {
            best = Some((i, *value));
        }
    }
    best.map(|(i, _)| i)
}

/// Answers on one task.
#[derive(Default)]
struct Counted {
    classes: usize,
    images: usize,
    right: usize,
    right_without: usize,
    /// Under the prompt rule of later stages.
    right_later: usize,
    labels: Vec<usize>,
    logits: Vec<f32>,
}

impl Counted {
    fn accuracy(&self) -> f64 {
        100.0 * self.right as f64 / self.images.max(1) as f64
    }

    fn accuracy_later(&self) -> f64 {
        100.0 * self.right_later as f64 / self.images.max(1) as f64
    }

    fn accuracy_without_identity(&self) -> f64 {
        100.0 * self.right_without as f64 / self.images.max(1) as f64
    }

    fn details(&self, task: &Task, logits_answer: bool) -> Result<ColumnDetails, MeasureError> {
        let logits = Matrix::new("logits", &self.logits, self.labels.len(), self.classes)?;
        let confusion = Confusion::from_logits(logits, &self.labels)?;
        let names = task.class_names.iter().cloned();
        Ok(ColumnDetails {
            task: task.name.clone(),
            classes: names.zip(confusion.per_class()).collect(),
            mean_per_class: confusion.mean_per_class(),
            calibration: match logits_answer {
                true => Some(calibration(logits, &self.labels, 1.0, BINS)?),
                false => None,
            },
            confusion_csv: confusion.to_csv(&task.class_names)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_classes_win() {
        assert_eq!(
            best_of(&[1.0, 5.0, 3.0, 3.0], &[true, false, true, true]),
            Some(2)
        );
        assert_eq!(best_of(&[1.0], &[false]), None);
    }
}

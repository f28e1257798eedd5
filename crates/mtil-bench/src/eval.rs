//! Evaluation: zero-shot accuracy, modality gap, image-text retrieval.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use clip_model::{Clip, ClipModel, normalize};
use serde::{Deserialize, Serialize};

use crate::{
    batch::{BatchError, Images},
    metrics::{Recall, Retrieval},
    suite::{CaptionedImages, Task},
};

/// Images encoded at a time.
const BATCH: usize = 128;
/// Texts encoded at a time.
const TEXT_BATCH: usize = 256;
/// The factor on cosine similarities at evaluation (GNSP `src/models/evaluation.py:58`). It does not
/// change which class wins.
const LOGIT_SCALE: f64 = 100.0;

/// Which prompt templates stand for a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PromptRule {
    /// All templates for tasks not yet learned before this stage, the first one only for those
    /// learned in an earlier stage, as GNSP's own evaluation does
    /// (`src/models/evaluation.py:28-32, 99-108` with `run_mtil.py:49-52`).
    Reference,
    /// All templates, always, as ZSCL evaluates.
    Ensemble,
}

impl PromptRule {
    /// How many of `templates` templates count for task `column` after training task `stage`;
    /// `None` is the pretrained model.
    fn templates(self, stage: Option<usize>, column: usize, templates: usize) -> usize {
        match (self, stage) {
            (Self::Reference, Some(stage)) if column < stage => 1,
            _ => templates,
        }
    }
}

/// Encodes `texts` with the plain model, normalised: `[texts, e]`.
///
/// # Errors
/// When a text cannot be tokenised.
pub fn encode_texts(
    checkpoint: &Clip,
    model: &ClipModel,
    texts: &[String],
) -> Result<Tensor<2>, BatchError> {
    let context = checkpoint.config.text.max_position_embeddings;
    let mut features = Vec::new();
    for chunk in texts.chunks(TEXT_BATCH) {
        let tokens = checkpoint.tokenizer.encode(chunk, context)?;
        features.push(normalize(model.encode_text(&tokens)));
    }
    Ok(Tensor::cat(features, 0))
}

/// The prompt of `class` under `template`.
pub fn prompt(template: &str, class: &str) -> String {
    template.replace("{}", class)
}

/// Classifier weights `[classes, e]`: for each class the normalised mean of the normalised features
/// of its prompts under the first `templates` templates (GNSP `src/models/evaluation.py:28-44`).
///
/// # Errors
/// When a prompt cannot be tokenised.
pub fn zero_shot_head(
    checkpoint: &Clip,
    model: &ClipModel,
    task: &Task,
    templates: usize,
) -> Result<Tensor<2>, BatchError> {
    let prompts: Vec<String> = task
        .class_names
        .iter()
        .flat_map(|class| {
            task.templates[..templates]
                .iter()
                .map(move |t| prompt(t, class))
        })
        .collect();
    let features = encode_texts(checkpoint, model, &prompts)?;
    let [_, e] = features.dims();
    let mean = features
        .reshape([task.class_names.len(), templates, e])
        .mean_dim(1);
    Ok(normalize(mean.reshape([task.class_names.len(), e])))
}

/// Classifier weights of earlier calls, valid while the text tower does not change.
#[derive(Default)]
pub struct HeadCache(BTreeMap<(usize, usize), Tensor<2>>);

impl HeadCache {
    /// Forgets everything: the text tower has changed.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Result of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Accuracy on each task in %.
    pub accuracies: Vec<f64>,
    /// Norm of the difference of the mean normalised image and text embeddings of the held-out pairs.
    pub modality_gap: f64,
    /// Retrieval on the held-out pairs.
    pub retrieval: Retrieval,
}

/// Evaluates `model` (on the plain device) on every task of `tasks` and on the held-out pairs.
///
/// # Errors
/// [`BatchError`] naming an image that cannot be read.
#[allow(clippy::too_many_arguments)]
pub fn evaluate(
    checkpoint: &Clip,
    model: &ClipModel,
    tasks: &[Task],
    held_out: &CaptionedImages,
    rule: PromptRule,
    stage: Option<usize>,
    heads: &mut HeadCache,
    images: &Images,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation, BatchError> {
    let device = model.device();
    let mut accuracies = Vec::with_capacity(tasks.len());
    for (column, task) in tasks.iter().enumerate() {
        progress(column, tasks.len());
        let templates = rule.templates(stage, column, task.templates.len());
        let head = match heads.0.get(&(column, templates)) {
            Some(head) => head.clone(),
            None => {
                let head = zero_shot_head(checkpoint, model, task, templates)?;
                heads.0.insert((column, templates), head.clone());
                head
            }
        };
        let (mut correct, mut total) = (0_usize, 0_usize);
        let all: Vec<usize> = (0..task.test.labels.len()).collect();
        for indices in all.chunks(BATCH) {
            let (kept, pixels) = images.eval(task.test.images.as_ref(), indices, &device)?;
            let Some(pixels) = pixels else { continue };
            let logits = normalize(model.encode_image(pixels))
                .matmul(head.clone().transpose())
                .mul_scalar(LOGIT_SCALE);
            let classes = task.class_names.len();
            let values = to_host(logits);
            for (row, index) in values.chunks(classes).zip(kept) {
                correct += usize::from(argmax(row) == task.test.labels[index]);
                total += 1;
            }
        }
        accuracies.push(100.0 * correct as f64 / total.max(1) as f64);
    }
    progress(tasks.len(), tasks.len());
    let (image, text) = encode_pairs(checkpoint, model, held_out, images, &device)?;
    let captions: Vec<&str> = image
        .1
        .iter()
        .map(|i| held_out.captions[*i].as_str())
        .collect();
    Ok(Evaluation {
        accuracies,
        modality_gap: modality_gap(image.0.clone(), text.clone()),
        retrieval: retrieval(image.0, text, &captions),
    })
}

type Features = (Tensor<2>, Vec<usize>);

/// Normalised image features (with the indices that could be read) and text features of pairs.
fn encode_pairs(
    checkpoint: &Clip,
    model: &ClipModel,
    pairs: &CaptionedImages,
    images: &Images,
    device: &Device,
) -> Result<(Features, Tensor<2>), BatchError> {
    let all: Vec<usize> = (0..pairs.captions.len()).collect();
    let (mut features, mut indices) = (Vec::new(), Vec::new());
    for chunk in all.chunks(BATCH) {
        let (kept, pixels) = images.eval(pairs.images.as_ref(), chunk, device)?;
        if let Some(pixels) = pixels {
            features.push(normalize(model.encode_image(pixels)));
            indices.extend(kept);
        }
    }
    if features.is_empty() {
        return Err(BatchError::NothingReadable(
            "the held-out reference images".to_owned(),
        ));
    }
    let captions: Vec<String> = indices.iter().map(|i| pairs.captions[*i].clone()).collect();
    let text = encode_texts(checkpoint, model, &captions)?;
    Ok(((Tensor::cat(features, 0), indices), text))
}

/// `‖mean(image) − mean(text)‖₂` of normalised features `[pairs, e]` (Liang et al., "Mind the Gap",
/// NeurIPS 2022).
pub fn modality_gap(image: Tensor<2>, text: Tensor<2>) -> f64 {
    let difference = to_host(image.mean_dim(0) - text.mean_dim(0));
    difference
        .iter()
        .map(|x| f64::from(*x).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Recall at 1, 5 and 10 in both directions, in %. A query is a hit when one of the first K answers
/// belongs to it; answers with the same caption count as the same answer, since nothing tells them
/// apart (LAION-AI/CLIP_benchmark `zeroshot_retrieval.py` for the rest of the convention).
pub fn retrieval(image: Tensor<2>, text: Tensor<2>, captions: &[&str]) -> Retrieval {
    let n = captions.len();
    let similarity = to_host(image.matmul(text.transpose()));
    let recall = |score: &dyn Fn(usize, usize) -> f32| {
        let mut hits = [0_usize; 3];
        for query in 0..n {
            // Rank of the best right answer: the wrong answers that score higher.
            let best = (0..n)
                .filter(|a| captions[*a] == captions[query])
                .map(|a| score(query, a))
                .fold(f32::NEG_INFINITY, f32::max);
            let rank = (0..n)
                .filter(|a| captions[*a] != captions[query] && score(query, *a) > best)
                .count();
            for (hit, k) in hits.iter_mut().zip([1, 5, 10]) {
                *hit += usize::from(rank < k);
            }
        }
        let percent = |hits: usize| 100.0 * hits as f64 / n.max(1) as f64;
        Recall {
            r1: percent(hits[0]),
            r5: percent(hits[1]),
            r10: percent(hits[2]),
        }
    };
    Retrieval {
        image_to_text: recall(&|q, a| similarity[q * n + a]),
        text_to_image: recall(&|q, a| similarity[a * n + q]),
    }
}

/// Values of a float tensor on the host, row-major.
pub fn to_host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Index of the largest value, the first one of several.
pub fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    fn tensor(rows: usize, values: &[f32]) -> Tensor<2> {
        let width = values.len() / rows;
        Tensor::from_data(
            TensorData::new(values.to_vec(), [rows, width]),
            &Device::flex(),
        )
    }

    #[test]
    fn the_reference_rule_uses_one_template_for_tasks_of_earlier_stages() {
        let rule = PromptRule::Reference;
        assert_eq!(rule.templates(None, 0, 5), 5);
        assert_eq!(rule.templates(Some(0), 0, 5), 5);
        assert_eq!(rule.templates(Some(2), 1, 5), 1);
        assert_eq!(rule.templates(Some(2), 2, 5), 5);
        assert_eq!(PromptRule::Ensemble.templates(Some(2), 0, 5), 5);
    }

    #[test]
    fn the_gap_is_the_distance_of_the_means() {
        let image = tensor(2, &[1.0, 0.0, 0.0, 1.0]);
        let text = tensor(2, &[-1.0, 0.0, 0.0, 1.0]);
        assert!((modality_gap(image, text) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn recall_counts_equal_captions_as_one_answer() {
        // Image 0 prefers text 1; texts 0 and 1 have the same caption, so that is no mistake.
        let image = tensor(3, &[0.6, 0.8, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        let text = tensor(3, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let all = retrieval(image.clone(), text.clone(), &["a", "a", "b"]);
        assert_eq!(all.image_to_text.r1, 100.0);
        let strict = retrieval(image, text, &["a", "c", "b"]);
        assert!((strict.image_to_text.r1 - 100.0 / 3.0).abs() < 1e-9);
        assert_eq!(strict.image_to_text.r5, 100.0);
    }
}

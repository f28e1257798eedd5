//! One delta for the models of all tasks, and semantic voting of these models (ConDU, ICLR 2026,
//! arXiv 2503.10705; zhangzicong518/ConDU 7fd32cf).
//!
//! Each task is trained from the pretrained weights. After a task its delta and those of the
//! earlier tasks, reconstructed from the unified delta so far, are unified anew. What is kept is
//! one delta in `f32`, and of each task a bit per parameter, a scale and the prototypes of its
//! classes: the normalised mean of the mean image feature and the mean text feature under the
//! pretrained model.
//!
//! | file | contents |
//! |---|---|
//! | `delta` | the unified delta: signs, masks, scales, and the reconstruction of a task |
//! | `vote` | the towers of an evaluation |
//! | `file` | the file in `state/` |

mod delta;
mod file;
mod vote;

use std::path::Path;

use clip_model::{Clip, ClipModel};
use mtil_data::suite::{Classification, Suite, Task};
use serde::{Deserialize, Serialize};

use super::{
    context::{
        EvaluatedModels, MethodOutline, Phase, PhaseProgress, RunContext, TaskContext, at_least_one,
    },
    earlier_weights::Start,
    hooks::{Mechanism, first_pairs},
    state::{MechanismState, RunState},
};
use crate::error::RunError;
use delta::{Unified, difference};
use mtil_eval::{
    eval::{Encoder, IMAGE_BATCH, encode_images_with, encode_texts_while, prompts, to_host},
    metrics::Kept,
};
use vote::VotingEncoder;

/// Unified delta of the models of all tasks. A learned task is answered by its own model,
/// reconstructed from the delta. Images of a task that is not learned, or not given, are
/// classified by the mean of the logits of the pretrained model and of the models of the most
/// similar tasks (ConDU, arXiv 2503.10705).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Unify {
    /// Largest number of tasks that vote on an image, beside the pretrained model.
    pub vote: usize,
    /// Use of the task of an image, where it is learned and given.
    #[serde(skip_serializing_if = "is_given")]
    pub task: UnifyTask,
}

/// Use of the task of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnifyTask {
    /// `"given"`: the model of a learned task answers alone.
    #[default]
    Given,
    /// `"image"`: models are chosen for each image, also of learned tasks. The classes are those of
    /// its task unless the evaluation is without task identity (task-agnostic setting of the
    /// published code).
    Image,
}

fn is_given(task: &UnifyTask) -> bool {
    *task == UnifyTask::Given
}

impl Default for Unify {
    fn default() -> Self {
        Self {
            vote: 4,
            task: UnifyTask::Given,
        }
    }
}

const FILE: &str = "unify.safetensors";

/// Why image-caption pairs cannot be learned.
const NEEDS_CLASSES: &str = "`unify` votes by the prototypes of a task's classes";

/// The unified delta and the prototypes of the tasks so far.
#[derive(Debug, Default)]
pub(crate) struct UnifyState {
    /// Absent before the first task.
    unified: Option<Unified>,
    /// Of each task.
    prototypes: Vec<Prototypes>,
}

/// Normalised prototypes of a task's classes `[classes, width]`.
#[derive(Debug, PartialEq)]
struct Prototypes {
    rows: Vec<f32>,
    width: usize,
}

impl MechanismState for UnifyState {
    /// A training with other hyper-parameters does not need it.
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        None
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        match &self.unified {
            Some(unified) => file::save(self, unified, &folder.join(FILE)),
            None => Ok(()),
        }
    }

    fn bytes(&self, checkpoint: &Clip) -> u64 {
        let kept = self.kept_bytes(checkpoint).into_iter();
        kept.map(|(_, bytes)| bytes).sum()
    }

    fn kept(&self) -> Kept {
        Kept::Weights
    }

    fn kept_bytes(&self, _: &Clip) -> Vec<(Kept, u64)> {
        let prototypes: usize = self.prototypes.iter().map(|of| of.rows.len()).sum();
        let weights = self.unified.as_ref().map_or(0, Unified::bytes);
        vec![
            (Kept::Weights, weights),
            (Kept::Statistics, 4 * prototypes as u64),
        ]
    }
}

impl Mechanism for Unify {
    fn key(&self) -> &'static str {
        "unify"
    }

    fn check(&self, method: &MethodOutline) -> Result<(), String> {
        at_least_one("unify.vote", self.vote)?;
        if method.joint {
            return Err(
                "`joint` trains all tasks at once: `unify` has nothing to unify".to_owned(),
            );
        }
        if method.per_task {
            return Err(
                "`unify` keeps one delta for the models of all tasks; leave out `per_task`"
                    .to_owned(),
            );
        }
        if method.start != Start::Pretrained {
            return Err(
                "`unify` needs `start = \"pretrained\"`: the deltas of all tasks are differences \
                 from the pretrained weights"
                    .to_owned(),
            );
        }
        method.exclusive("unify", &["lora", "average", "merge"])
    }

    fn unlearnable<'a>(&self, suite: &'a Suite) -> Option<(&'a Task, &'static str)> {
        first_pairs(suite).map(|task| (task, NEEDS_CLASSES))
    }

    fn evaluated_models(&self, learned: usize, is_known: bool) -> EvaluatedModels {
        match is_known && is_given(&self.task) {
            true => EvaluatedModels::default(),
            false => EvaluatedModels {
                images: (1 + self.vote.min(learned)) as f64,
                prompts: (1 + learned) as f64,
            },
        }
    }

    fn load(
        &self,
        folder: &Path,
        run: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let state = file::load(&path, &run.checkpoint.model)?;
        Ok(Some(Box::new(state)))
    }

    fn take_weights(
        &self,
        trained: ClipModel,
        task: &TaskContext<'_>,
        state: &mut RunState,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<ClipModel, RunError> {
        let pretrained = &task.run.checkpoint.model;
        let mut own = state.take::<UnifyState>().unwrap_or_default();
        let new = difference(&trained, pretrained);
        own.unified = Some(Unified::with_task(own.unified.take(), new));
        own.prototypes.push(prototypes(task, progress)?);
        state.set(own);
        Ok(pretrained.clone())
    }

    fn encoder<'a>(
        &'a self,
        clip: &'a ClipModel,
        state: &'a RunState,
        learned: usize,
    ) -> Option<Box<dyn Encoder + 'a>> {
        let own = state.get::<UnifyState>()?;
        Some(Box::new(VotingEncoder::new(clip, own, self, learned)))
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = vec!["gap and retrieval are the pretrained model's".to_owned()];
        if self.task == UnifyTask::Image {
            notes.push(
                "the models that answer an image are chosen by the image, not by its task"
                    .to_owned(),
            );
        }
        notes
    }
}

/// Returns the prototypes of a task's classes, from its training images, preprocessed as for
/// evaluation. A class without images has that of its texts.
fn prototypes(
    task: &TaskContext<'_>,
    progress: &mut PhaseProgress<'_>,
) -> Result<Prototypes, RunError> {
    let RunContext {
        checkpoint,
        suite,
        images,
        ..
    } = task.run;
    let name = &suite.tasks[task.index].name;
    let Some(of) = suite.tasks[task.index].classification() else {
        return Err(RunError::Unlearnable {
            method: FILE.to_owned(),
            task: name.clone(),
            reason: NEEDS_CLASSES,
        });
    };
    let Classification {
        class_names,
        templates,
        train,
        ..
    } = of;
    let all: Vec<usize> = (0..train.labels.len()).collect();
    let (mut done, batches) = (0, all.len().div_ceil(IMAGE_BATCH));
    progress(Phase::Encoding, done, batches);
    let encoded = &mut || {
        done += 1;
        progress(Phase::Encoding, done, batches);
    };
    let model = &checkpoint.model;
    let features = encode_images_with(encoded, model, None, &train.images, &all, images)
        .map_err(|e| e.of_set(|| format!("the training images of task `{name}`")))?;
    let width = features.width;
    let mut sums = vec![0.0_f64; class_names.len() * width];
    let mut counts = vec![0_usize; class_names.len()];
    for (row, image) in features.rows.chunks(width).zip(&features.indices) {
        let class = train.labels[*image];
        counts[class] += 1;
        add(&mut sums[class * width..][..width], row, 1.0);
    }
    let proceed = || images.check_stop();
    let texts = prompts(class_names, templates);
    let texts = encode_texts_while(&proceed, checkpoint, model, None, &texts)?;
    let texts = to_host(texts);
    let mut rows = Vec::with_capacity(sums.len());
    for (class, texts) in texts.chunks(templates.len() * width).enumerate() {
        let mut prototype = vec![0.0; width];
        for text in texts.chunks(width) {
            add(&mut prototype, text, 1.0 / templates.len() as f64);
        }
        // The norm makes the halving of the sum superfluous.
        if counts[class] > 0 {
            let mean = sums[class * width..][..width].iter();
            let mean = mean.map(|sum| sum / counts[class] as f64);
            prototype.iter_mut().zip(mean).for_each(|(p, m)| *p += m);
        }
        let norm = prototype.iter().map(|v| v * v).sum::<f64>().sqrt();
        rows.extend(prototype.iter().map(|v| (v / norm.max(1e-12)) as f32));
    }
    Ok(Prototypes { rows, width })
}

/// Adds `factor · row` to `sum`.
fn add(sum: &mut [f64], row: &[f32], factor: f64) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += factor * f64::from(*value);
    }
}

#[cfg(test)]
mod tests {
    use crate::method::Method;

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        let with = |name: &str, set: &[&str]| {
            let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
            Method::load(name, "mini", &set)
        };
        for (name, set, words) in [
            (
                "condu",
                &["start=previous"][..],
                "`unify` needs `start = \"pretrained\"`",
            ),
            (
                "condu",
                &["unify.vote=0"],
                "`unify.vote` must be at least 1",
            ),
            ("condu", &["per_task=true"], "leave out `per_task`"),
            ("condu", &["joint=true"], "`joint` trains all tasks at once"),
            ("condu", &["unify.votes=2"], "votes"),
            (
                "gnsp",
                &["start=pretrained", "unify.vote=4"],
                "do not go together",
            ),
            ("finetune", &["unify.vote=4"], "`unify` needs `start"),
            (
                "nusa-cl",
                &["lora.start=both"],
                "needs `lora.basis = \"free\"`",
            ),
        ] {
            let error = with(name, set).unwrap_err().to_string();
            assert!(error.contains(words), "{name} {set:?}: {error}");
        }
        with("condu", &["unify.task=image", "unify.vote=1"]).unwrap();
    }
}

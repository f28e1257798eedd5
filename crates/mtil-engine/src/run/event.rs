//! Events of a run, recorded in `events.jsonl` (one JSON object per line) and reported as progress.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{CandidateScore, Comparison};
use mtil_data::suite::{ImageSet, TaskRecord};
use mtil_eval::{
    eval::{Evaluation, PromptRule},
    guard::Breach,
    measures::{geometry::Geometry, retrieval::RetrievalSummary},
    metrics::mean,
};
use mtil_methods::mechanism::{auxiliary_loss::LossParts, context::Phase};

/// An event of a run.
///
/// ```
/// use mtil_engine::run::Event;
/// let line = r#"{"event":"task_start","task":0,"name":"shapes"}"#;
/// let event: Event = serde_json::from_str(line)?;
/// assert_eq!(event, Event::TaskStart { task: 0, name: "shapes".to_owned(), data: None });
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// Fields that earlier versions did not write are empty when their events are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A run starts.
    Start {
        /// Name of the method.
        #[serde(default)]
        method: String,
        /// Stages of training: the tasks, or one for all of them.
        #[serde(default)]
        stages: usize,
    },
    /// A run resumes.
    Resume {
        /// Name of the method.
        #[serde(default)]
        method: String,
        /// As in [`Start`](Self::Start).
        #[serde(default)]
        stages: usize,
        /// Index of the task in training.
        task: usize,
        /// Finished training steps of the task.
        step: usize,
    },
    /// Tasks were added to those that the run had before.
    TasksAdded {
        /// Names of the new tasks.
        names: Vec<String>,
    },
    /// The last task was taken back: what was recorded of it and of later tasks is void.
    Undone {
        /// Index of the task.
        task: usize,
        /// Its name.
        name: String,
        /// The broken rule of the drift guard, if one asked for it.
        #[serde(default)]
        reason: Option<String>,
        /// Seconds since 1970.
        #[serde(default)]
        at: Option<u64>,
    },
    /// Training of a task starts.
    TaskStart {
        /// Index of the task.
        task: usize,
        /// Its name.
        #[serde(default)]
        name: String,
        /// Its data.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<TaskData>,
    },
    /// A task is trained, evaluated and saved.
    TaskEnd {
        /// Index of the task.
        task: usize,
        /// Seconds since it started or resumed.
        #[serde(default)]
        seconds: f64,
        /// Seconds since 1970.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<u64>,
    },
    /// A trained task is compared with the model before it.
    Compared(Box<Comparison>),
    /// A training step is finished. Not every step is recorded.
    Step(StepRecord),
    /// The loss of a training step became NaN or infinite.
    Diverged {
        /// Index of the task.
        task: usize,
        /// The training step, from 1.
        step: usize,
    },
    /// The null-space projectors of a task's optimizer are built.
    Gram {
        /// Index of the task.
        task: usize,
        /// Number of protected and of all input directions, by parameter.
        ranks: BTreeMap<String, [usize; 2]>,
    },
    /// A hyper-parameter was selected for a task.
    Select {
        /// Index of the task.
        task: usize,
        /// Name of the hyper-parameter.
        key: String,
        /// The selected value.
        chosen: String,
        /// The scores of all candidates.
        candidates: Vec<CandidateScore>,
    },
    /// The model was evaluated. A resumed run may evaluate a stage again.
    Evaluation(Box<EvaluationRecord>),
    /// A rule of the drift guard was broken.
    Guard {
        /// 0 for the pretrained model, `t + 1` after task `t`.
        stage: usize,
        /// The rule and the value that broke it.
        #[serde(flatten)]
        breach: Breach,
    },
    /// A note that does not affect results.
    Note {
        /// The text of the note.
        text: String,
    },
    /// Unreadable images were left out.
    SkippedImages {
        /// Number of images.
        count: usize,
        /// Their names.
        #[serde(default)]
        names: Vec<String>,
    },
    /// The attempt ended with an error.
    Failed {
        /// The error in one line.
        message: String,
        /// Its causes, outermost first.
        #[serde(default)]
        causes: Vec<String>,
    },
    /// Progress of a phase besides training steps. Not recorded.
    Working {
        /// The phase.
        on: Phase,
        /// Finished parts.
        done: usize,
        /// All parts.
        of: usize,
    },
    /// The run is complete. Not recorded.
    Done,
}

/// Size and digest of a task's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskData {
    /// Number of classes; 0 for image-caption pairs.
    pub classes: usize,
    /// Number of training images.
    pub training_images: usize,
    /// Number of test images.
    pub test_images: usize,
    /// Number of captions of the training images, of image-caption pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<usize>,
    /// SHA-256 of the task's names, classes, templates, labels or captions, and names of images.
    pub sha256: String,
}

impl TaskData {
    pub(super) fn new(task: &TaskRecord, sha256: String) -> Self {
        let count = |set| task.images.get(&set).map_or(0, |images| images.count);
        Self {
            classes: task.classes.len(),
            training_images: count(ImageSet::Training),
            test_images: count(ImageSet::Test),
            captions: task
                .images
                .get(&ImageSet::Training)
                .and_then(|i| i.captions),
            sha256,
        }
    }
}

/// Returns the current time in seconds since 1970, if the clock is later.
pub(super) fn now() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.ok().map(|time| time.as_secs())
}

/// Record of one training step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Index of the task.
    pub task: usize,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Finished training steps of the task.
    pub step: usize,
    /// All training steps of the task.
    pub steps: usize,
    /// Learning rate.
    #[serde(default)]
    pub lr: f64,
    /// Total loss.
    pub loss: f32,
    /// Weighted parts of the loss.
    #[serde(default)]
    pub parts: LossParts,
    /// Training images per second, over the task so far.
    #[serde(default)]
    pub images_per_s: f64,
}

/// Record of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Index of the last trained task; none for the pretrained model.
    pub stage: Option<usize>,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Accuracy on each task in %, or the mean R@1 of both directions on image-caption pairs; none
    /// where it was not measured.
    #[serde(default)]
    pub accuracies: Vec<Option<f64>>,
    /// Accuracy on each task in %, where the task of an image is not given.
    #[serde(default)]
    pub without_identity: Option<Vec<Option<f64>>>,
    /// Rule for the prompt templates of a class.
    #[serde(default)]
    pub prompt_rule: Option<PromptRule>,
    /// Modality gap of the held-out pairs.
    #[serde(default)]
    pub modality_gap: f64,
    /// Geometry of the held-out pairs; cosines are times 100.
    #[serde(default)]
    pub geometry: Option<Geometry>,
    /// Mean logit of matching held-out pairs minus that of other pairs.
    #[serde(default)]
    pub margin: Option<f64>,
    /// Retrieval on the suite's caption sets, by name.
    #[serde(default)]
    pub caption_sets: BTreeMap<String, RetrievalSummary>,
    /// Retrieval on the tasks of image-caption pairs, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub caption_tasks: BTreeMap<String, RetrievalSummary>,
    /// Number of test images per task, where not all were used.
    #[serde(default)]
    pub thinned: Option<usize>,
}

impl Event {
    /// Returns whether the event is written to `events.jsonl`.
    pub fn is_recorded(&self) -> bool {
        !matches!(self, Self::Working { .. } | Self::Done)
    }

    /// Creates an event from an error and its causes.
    pub fn failed(error: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        Self::Failed {
            message: error.to_string(),
            causes: causes.map(ToString::to_string).collect(),
        }
    }
}

impl EvaluationRecord {
    pub(super) fn new(
        evaluation: &Evaluation,
        stage: Option<usize>,
        name: Option<&str>,
        rule: PromptRule,
    ) -> Self {
        Self {
            stage,
            name: name.map(str::to_owned),
            accuracies: evaluation.accuracies.clone(),
            without_identity: evaluation.without_identity.clone(),
            prompt_rule: Some(rule),
            modality_gap: evaluation.modality_gap,
            geometry: evaluation.geometry,
            margin: evaluation.margin,
            caption_sets: evaluation.caption_sets.clone(),
            caption_tasks: evaluation.caption_tasks.clone(),
            thinned: evaluation.thinned.map(|thinned| thinned.0),
        }
    }

    /// Returns the mean accuracy over the tasks in %; none without a measured one.
    pub fn mean_accuracy(&self) -> Option<f64> {
        mean(self.accuracies.iter().copied())
    }
}

/// Receiver of the events of a run. `()` ignores them.
pub trait Progress {
    /// Called for each event, in order.
    fn event(&mut self, event: &Event);
}

impl Progress for () {
    fn event(&mut self, _: &Event) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines written by versions before this enum.
    #[test]
    fn events_of_earlier_versions_are_read() {
        let read = |line: &str| serde_json::from_str::<Event>(line).unwrap();
        assert_eq!(
            read(r#"{"event":"start","step":null,"task":null}"#),
            Event::Start {
                method: String::new(),
                stages: 0
            }
        );
        assert!(matches!(
            read(r#"{"event":"resume","step":20,"task":1}"#),
            Event::Resume {
                task: 1,
                step: 20,
                ..
            }
        ));
        let line = r#"{"event":"step","task":0,"step":10,"steps":24,"lr":1e-4,"loss":1.5,
            "parts":{"task":1.0,"cd":0.25,"map":0.25},"images_per_s":210.0}"#;
        let Event::Step(update) = read(line) else {
            panic!("a step");
        };
        assert_eq!(update.parts.get("cd"), 0.25);
        let line = r#"{"event":"evaluation","stage":null,"accuracies":[50.0],"modality_gap":0.8}"#;
        assert!(matches!(read(line), Event::Evaluation(e) if e.stage.is_none()));
        let line = r#"{"event":"guard","stage":1,"rule":"gap-drift>0.1","value":0.3,"limit":0.1,
            "action":"stop","message":"far"}"#;
        assert!(matches!(read(line), Event::Guard { stage: 1, breach } if breach.limit == 0.1));
        assert!(matches!(
            read(r#"{"event":"failed","message":"disk full"}"#),
            Event::Failed { causes, .. } if causes.is_empty()
        ));
    }

    #[test]
    fn events_survive_a_round_trip() {
        let events = [
            Event::Step(StepRecord {
                task: 1,
                name: "digits".to_owned(),
                step: 2,
                steps: 3,
                lr: 1e-5,
                loss: 0.5,
                parts: {
                    let mut parts = LossParts::default();
                    parts.add("task", 0.5);
                    parts
                },
                images_per_s: 9.0,
            }),
            Event::failed(&std::io::Error::other("no space")),
            Event::SkippedImages {
                count: 1,
                names: vec!["a.jpg".to_owned()],
            },
        ];
        for event in events {
            let line = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        }
    }
}

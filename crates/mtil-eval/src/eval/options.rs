//! Evaluation protocol: prompts, task identity, number of test images.

use serde::{Deserialize, Serialize};

use super::PromptRule;
use mtil_data::datasets::mtil::SuiteProtocol;

/// Candidate classes of a test image, by whether its task is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TaskIdentity {
    /// The task is given: an image is classified among the classes of its own task, as in the
    /// tables of MTIL (task-incremental).
    #[default]
    Given,
    /// The task is not given: the candidates are the classes of all tasks learned so far and of the
    /// image's own task. Recall on image-caption pairs has no classes, and does not change.
    Seen,
    /// The task is not given: the candidates are the classes of all tasks of the suite, learned or
    /// not (X-TAIL, RAIL's protocol, arXiv 2406.18868). Classes of the same name in two tasks are
    /// two classes.
    All,
}

impl TaskIdentity {
    /// Returns the default of a suite: the task is given, except in the protocol of X-TAIL.
    pub fn default_for_suite(name: &str) -> Self {
        match SuiteProtocol::find(name) {
            Some(protocol) if !protocol.task_given => Self::All,
            _ => Self::Given,
        }
    }
}

/// Settings of an evaluation. All of them are part of a run's request.
///
/// # Example
/// ```
/// use mtil_eval::eval::EvalOptions;
///
/// let options = EvalOptions { subset: Some(500), full_every: Some(2), ..Default::default() };
/// // Five tasks: 500 test images after the first one, all of them after the second.
/// assert_eq!(options.images_at(Some(0), 5), Some(500));
/// assert_eq!(options.images_at(Some(1), 5), None);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalOptions {
    /// Prompt templates of a class.
    pub prompts: PromptRule,
    /// Candidate classes of an image.
    pub identity: TaskIdentity,
    /// Number of test images per task, a fixed random subset; all when absent. Image-caption pairs
    /// are always all used, because recall depends on their number.
    pub subset: Option<usize>,
    /// With `subset`: interval in tasks at which all test images are used. The pretrained model and
    /// the model after the last task are then evaluated on all of them too.
    pub full_every: Option<usize>,
    /// Adds per-class accuracies, confusion matrices and calibration.
    pub details: bool,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            prompts: PromptRule::Reference,
            identity: TaskIdentity::Given,
            subset: None,
            full_every: None,
            details: false,
        }
    }
}

impl EvalOptions {
    /// Returns the number of test images per task after `stage` of `stages` (`None`: the pretrained
    /// model), or `None` for all of them.
    pub fn images_at(&self, stage: Option<usize>, stages: usize) -> Option<usize> {
        let subset = self.subset?;
        let full = self.full_every.is_some_and(|every| match stage {
            Some(stage) => (stage + 1).is_multiple_of(every) || stage + 1 == stages,
            None => true,
        });
        (!full).then_some(subset)
    }

    /// Returns the departures from the usual protocol as sentences; empty if there are none.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(subset) = self.subset {
            notes.push(match self.full_every {
                Some(every) => format!(
                    "evaluated on {subset} test images of each task, on all of them after every \
                     {every} tasks, before the first and after the last"
                ),
                None => format!("evaluated on {subset} test images of each task"),
            });
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_is_given_except_on_x_tail() {
        for (suite, identity) in [
            ("xtail-order-1", TaskIdentity::All),
            ("xtail-order-2", TaskIdentity::All),
            ("mtil-order-1", TaskIdentity::Given),
            ("mini", TaskIdentity::Given),
        ] {
            assert_eq!(TaskIdentity::default_for_suite(suite), identity, "{suite}");
        }
    }

    #[test]
    fn a_subset_evaluation_is_full_at_the_interval_and_at_both_ends() {
        let mut options = EvalOptions::default();
        assert_eq!(options.images_at(Some(0), 4), None);
        options.subset = Some(50);
        assert_eq!(options.images_at(None, 5), Some(50));
        options.full_every = Some(2);
        let at: Vec<_> = (0..5).map(|s| options.images_at(Some(s), 5)).collect();
        assert_eq!(at, [Some(50), None, Some(50), None, None]);
        assert_eq!(options.images_at(None, 5), None);
        assert!(options.notes()[0].contains("50 test images"));
    }
}

//! What is evaluated.

use serde::{Deserialize, Serialize};

use super::PromptRule;

/// Whether the task of a test image is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TaskIdentity {
    /// It is: an image is classified among the classes of its own task, as the tables of MTIL do.
    #[default]
    Given,
    /// It is not: among the classes of all tasks learned so far, and of its own.
    Seen,
    /// It is not: among the classes of all tasks of the suite, learned or not (X-TAIL, as RAIL
    /// evaluates, arXiv 2406.18868). Classes of the same name in two tasks are two classes.
    All,
}

/// What an evaluation measures, and on how much. All of it is part of a run's request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalOptions {
    /// Which templates stand for a class.
    pub prompts: PromptRule,
    /// Which classes an image is compared with, besides those of its own task.
    pub identity: TaskIdentity,
    /// Test images of a task that are used, a fixed choice; all when absent.
    pub subset: Option<usize>,
    /// With `subset`: every so many stages, and after the last, all test images are used.
    pub full_every: Option<usize>,
    /// Also accuracies of classes, confusions and calibration.
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
    /// How many images of each test set count after `stage` of `stages` (`None`: the pretrained
    /// model); all when absent.
    pub fn images_at(&self, stage: Option<usize>, stages: usize) -> Option<usize> {
        let subset = self.subset?;
        let full = self.full_every.is_some_and(|every| match stage {
            Some(stage) => (stage + 1).is_multiple_of(every) || stage + 1 == stages,
            None => true,
        });
        (!full).then_some(subset)
    }

    /// What a reader of the results must know, in words; empty for the usual protocol.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(subset) = self.subset {
            notes.push(match self.full_every {
                Some(every) => format!(
                    "evaluated on {subset} test images of each task, on all of them after every {every} tasks, before the first and after the last"
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
    fn a_thinned_evaluation_is_full_now_and_then_and_at_both_ends() {
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

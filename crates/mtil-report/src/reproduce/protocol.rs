//! Protocols of published figures: the conditions under which two figures are comparable.

use serde::{Deserialize, Serialize};

/// Training and test splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Splits {
    /// torchvision's, and 80/20 with seed 42 where it has none.
    Zscl,
    /// The files `split_zhou_*.json`.
    Coop,
    /// Not recorded.
    Unknown,
}

/// Prompt templates of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prompts {
    /// All templates of a dataset, always.
    Ensemble,
    /// The first template of a dataset, always.
    First,
    /// All templates until a task is learned, the first one in later stages.
    Reference,
    /// One template for all datasets.
    Generic,
    /// Not recorded.
    Unknown,
}

/// Knowledge of the task of a test image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKnowledge {
    /// It is given: its classes are the candidates.
    Given,
    /// It is given, and parts of the model are chosen for a batch of images.
    GivenByBatch,
    /// It is inferred for a batch of images of one dataset.
    ByBatch,
    /// It is inferred for each image.
    ByImage,
    /// It is not given: the classes of all tasks are the candidates.
    NotGiven,
    /// Not recorded.
    Unknown,
}

/// Conditions that figures must share to be comparable. The number of classes follows from the
/// suite and the splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conditions {
    /// Training and test splits.
    pub splits: Splits,
    /// Prompt templates of the evaluation.
    pub prompts: Prompts,
    /// Knowledge of the task of a test image.
    pub task: TaskKnowledge,
    /// Training images per class; all when absent.
    pub shots: Option<usize>,
}

/// Evaluation protocol of published figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Description in a few words.
    pub title: String,
    /// Training and test splits.
    pub splits: Splits,
    /// Prompt templates of the evaluation.
    pub prompts: Prompts,
    /// Knowledge of the task of a test image.
    pub task: TaskKnowledge,
    /// Training images per class; all when absent.
    #[serde(default)]
    pub shots: Option<usize>,
    /// Classes of all tasks, if known.
    #[serde(default)]
    pub classes: Option<usize>,
    /// Source of the protocol.
    #[serde(default)]
    pub source: Option<String>,
    /// Peculiarity.
    #[serde(default)]
    pub note: Option<String>,
}

impl Splits {
    /// Returns a description.
    pub fn description(self) -> &'static str {
        match self {
            Self::Zscl => {
                "torchvision's; 80/20 with seed 42 for Caltech101, EuroSAT and SUN397 (ZSCL)"
            }
            Self::Coop => "split_zhou_*.json (CoOp)",
            Self::Unknown => "not recorded",
        }
    }
}

impl Prompts {
    /// Returns a description.
    pub fn description(self) -> &'static str {
        match self {
            Self::Ensemble => "all templates of a dataset, always",
            Self::First => "the first template of a dataset, always",
            Self::Reference => {
                "all templates for tasks not learned in an earlier stage, the first one for the \
                 others"
            }
            Self::Generic => "one template for all datasets",
            Self::Unknown => "not recorded",
        }
    }
}

impl TaskKnowledge {
    /// Returns a description.
    pub fn description(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::GivenByBatch => "given, and parts of the model are chosen by the test batch",
            Self::ByBatch => "inferred, once for a batch of test images",
            Self::ByImage => "inferred, for each test image",
            Self::NotGiven => "not given: the classes of all tasks at once",
            Self::Unknown => "not recorded",
        }
    }
}

impl Protocol {
    /// Returns the conditions, if all of them are known.
    pub fn conditions(&self) -> Option<Conditions> {
        let known = self.splits != Splits::Unknown
            && self.prompts != Prompts::Unknown
            && self.task != TaskKnowledge::Unknown;
        known.then_some(Conditions {
            splits: self.splits,
            prompts: self.prompts,
            task: self.task,
            shots: self.shots,
        })
    }

    /// Returns whether the protocol is known to have these conditions.
    pub fn has(&self, conditions: Conditions) -> bool {
        self.conditions() == Some(conditions)
    }

    /// Returns the properties as names with descriptions.
    pub fn description(&self) -> Vec<(&'static str, String)> {
        let number = |n: Option<usize>, none: &str, unit: &str| match n {
            Some(n) => format!("{n}{unit}"),
            None => none.to_owned(),
        };
        let mut all = vec![
            ("splits", self.splits.description().to_owned()),
            ("prompts", self.prompts.description().to_owned()),
            ("task", self.task.description().to_owned()),
            (
                "shots",
                number(self.shots, "all training images", " per class"),
            ),
            ("classes", number(self.classes, "not recorded", "")),
        ];
        all.extend(self.source.iter().map(|text| ("read in", text.clone())));
        all.extend(self.note.iter().map(|text| ("note", text.clone())));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_conditions_are_those_of_no_run() {
        let text =
            "title = 'T'\nsplits = 'coop'\nprompts = 'first'\ntask = 'not-given'\nshots = 16";
        let protocol: Protocol = toml::from_str(text).unwrap();
        let conditions = protocol.conditions().unwrap();
        assert!(protocol.has(conditions));
        let other = Conditions {
            shots: None,
            ..conditions
        };
        assert!(!protocol.has(other));
        let unknown: Protocol = toml::from_str(&text.replace("coop", "unknown")).unwrap();
        assert_eq!(unknown.conditions(), None);
        assert!(!unknown.has(conditions));
        let description = protocol.description();
        assert!(description.contains(&("shots", "16 per class".to_owned())));
        assert!(description.contains(&("classes", "not recorded".to_owned())));
    }
}

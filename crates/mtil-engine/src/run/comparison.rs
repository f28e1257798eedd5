//! Comparison of the model before and after a task.

use serde::{Deserialize, Serialize};

use mtil_eval::{eval::Evaluation, metrics::mean};

/// Measures before and after a task.
///
/// ```
/// use mtil_engine::run::Change;
///
/// let gap = Change { before: Some(0.8), after: Some(0.75) };
/// assert!((gap.difference().unwrap() + 0.05).abs() < 1e-9);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Comparison {
    /// Index of the task.
    pub task: usize,
    /// Its name.
    pub name: String,
    /// Accuracy on the task in %.
    pub own: Change,
    /// Accuracy on each earlier task in %, in order.
    pub earlier: Vec<TaskChange>,
    /// Share of the pretrained model's accuracy on the tasks that are not learned yet: the mean of
    /// the tasks' shares; 1 if nothing is lost. Before the task, it is one of them.
    pub zero_shot: Change,
    /// Modality gap of the held-out pairs.
    pub modality_gap: Change,
    /// Margin of the held-out pairs.
    pub margin: Change,
    /// R@1 on the held-out pairs in %, the mean of both directions.
    pub recall: Change,
}

/// A measure before and after a task; none where it was not measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Before the task.
    pub before: Option<f64>,
    /// After it.
    pub after: Option<f64>,
}

/// The accuracy on a task before and after a later one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskChange {
    /// Name of the task.
    pub name: String,
    /// Its accuracy in %.
    #[serde(flatten)]
    pub accuracy: Change,
}

impl Change {
    /// Returns the value after the task minus that before it.
    pub fn difference(self) -> Option<f64> {
        Some(self.after? - self.before?)
    }
}

impl Comparison {
    /// Compares the evaluations before and after task `task` of `tasks`, the names of all tasks.
    /// `first` is the evaluation of the pretrained model.
    pub(super) fn new(
        tasks: &[String],
        task: usize,
        [first, before, after]: [&Evaluation; 3],
    ) -> Self {
        let cell =
            |accuracies: &[Option<f64>], task: usize| accuracies.get(task).copied().flatten();
        let change = |of: &dyn Fn(&Evaluation) -> Option<f64>| Change {
            before: of(before),
            after: of(after),
        };
        let later = before.under_later_prompts(task.checked_sub(1));
        let accuracy = |task: usize| Change {
            before: cell(&later, task),
            after: cell(&after.accuracies, task),
        };
        let share = |e: &Evaluation, unlearned: usize| {
            mean((unlearned..tasks.len()).map(|task| {
                let first = cell(&first.accuracies, task).filter(|first| *first > 0.0)?;
                Some(cell(&e.accuracies, task)? / first)
            }))
        };
        let earlier = tasks[..task].iter().enumerate();
        Self {
            task,
            name: tasks[task].clone(),
            own: accuracy(task),
            earlier: earlier
                .map(|(task, name)| TaskChange {
                    name: name.clone(),
                    accuracy: accuracy(task),
                })
                .collect(),
            zero_shot: Change {
                before: share(before, task),
                after: share(after, task + 1),
            },
            modality_gap: change(&|e| Some(e.modality_gap)),
            margin: change(&|e| e.margin),
            recall: change(&|e| Some(e.retrieval.mean_r1())),
        }
    }

    /// Returns the earlier task that lost most, and its change in percentage points; none if no
    /// earlier task was measured both times.
    pub fn worst(&self) -> Option<(&str, f64)> {
        let changes = self.earlier.iter();
        let changes = changes.filter_map(|e| Some((e.name.as_str(), e.accuracy.difference()?)));
        changes.min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// One sentence for each measure that is known.
impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let from_to = |change: Change, unit: &str, digits: usize, factor: f64| {
            let before = change.before? * factor;
            Some(match change.after {
                Some(after) => format!("{before:.digits$} → {:.digits$}{unit}", after * factor),
                None => format!("{before:.digits$}{unit} before it"),
            })
        };
        let named = |name: &str, text: Option<String>| text.map(|text| format!("{name} {text}"));
        let parts = [
            named("on it", from_to(self.own, " %", 1, 1.0)),
            self.worst()
                .map(|(name, points)| format!("earlier tasks {points:+.1} at worst ({name})")),
            named("zero-shot kept", from_to(self.zero_shot, " %", 1, 100.0)),
            named("gap", from_to(self.modality_gap, "", 3, 1.0)),
            named("margin", from_to(self.margin, "", 2, 1.0)),
            named("R@1", from_to(self.recall, " %", 1, 1.0)),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(accuracies: [Option<f64>; 3], gap: f64) -> Evaluation {
        let recall = serde_json::json!({ "r1": 50.0, "r5": 50.0, "r10": 50.0 });
        let json = serde_json::json!({
            "accuracies": accuracies,
            "modality_gap": gap,
            "retrieval": { "image_to_text": recall, "text_to_image": recall },
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_task_is_compared_with_the_stage_before() {
        let tasks = ["shoes", "hats", "bags"].map(str::to_owned);
        let first = evaluation([Some(40.0), Some(50.0), Some(60.0)], 0.8);
        let before = evaluation([Some(90.0), Some(45.0), Some(54.0)], 0.75);
        let after = evaluation([Some(86.0), Some(80.0), Some(48.0)], 0.5);
        let compared = Comparison::new(&tasks, 1, [&first, &before, &after]);
        assert_eq!(compared.own.difference(), Some(35.0));
        assert_eq!(compared.worst(), Some(("shoes", -4.0)));
        let shares = (compared.zero_shot.before, compared.zero_shot.after);
        assert_eq!(shares, (Some(0.9), Some(0.8)));
        // Prompts of a learned task may change after the stage that learns it.
        let mut other_prompts = before.clone();
        other_prompts.learned = Some(87.0);
        let compared_again = Comparison::new(&tasks, 1, [&first, &other_prompts, &after]);
        assert_eq!(compared_again.worst(), Some(("shoes", -1.0)));
        let text = compared.to_string();
        assert!(
            text.starts_with(
                "on it 45.0 → 80.0 %; earlier tasks -4.0 at worst (shoes); \
                 zero-shot kept 90.0 → 80.0 %; gap 0.750 → 0.500; R@1"
            ),
            "{text}"
        );
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let tasks = ["shoes", "hats"].map(str::to_owned);
        let first = evaluation([Some(40.0), None, None], 0.8);
        let after = evaluation([None, Some(80.0), None], 0.5);
        let compared = Comparison::new(&tasks, 1, [&first, &first, &after]);
        assert_eq!((compared.own.difference(), compared.worst()), (None, None));
        assert_eq!(compared.zero_shot, Change::default());
        assert!(compared.to_string().starts_with("gap "), "{compared}");
        // The last task: no other is left to measure zero-shot accuracy on.
        let first = evaluation([Some(40.0), Some(50.0), None], 0.8);
        let before = evaluation([Some(80.0), Some(45.0), None], 0.7);
        let compared = Comparison::new(&tasks, 1, [&first, &before, &before]);
        let text = compared.to_string();
        assert!(text.contains("zero-shot kept 90.0 % before it"), "{text}");
    }
}

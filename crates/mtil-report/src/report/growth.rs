//! What happened last to a run whose tasks arrive one at a time.

use std::collections::BTreeMap;

use crate::format::{decimal, plural};
use mtil_engine::run::{Comparison, Event};

/// The last change of a run to which tasks were added, or from which one was taken back.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Growth {
    pub last: LastChange,
    /// Number of tasks that are learned.
    pub learned: usize,
    /// Measures before and after the task of the last change.
    pub compared: Option<Comparison>,
    /// Share of zero-shot accuracy that is kept, by the number of learned tasks.
    pub zero_shot: BTreeMap<usize, f64>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum LastChange {
    Learned {
        task: String,
        /// Numbers of classes and of training images, if they are recorded.
        data: Option<(usize, usize)>,
    },
    TookBack {
        task: String,
        reason: Option<String>,
    },
}

impl Growth {
    /// Returns the last change in `events`; none if no task was added or taken back, or none is
    /// learned since.
    pub fn of(events: &[Event]) -> Option<Self> {
        let (mut grown, mut learned) = (false, 0);
        let mut started = None;
        let mut last = None;
        let mut compared: Option<Comparison> = None;
        let mut zero_shot = BTreeMap::new();
        for event in events {
            match event {
                Event::TasksAdded { .. } => grown = true,
                Event::TaskStart { data, .. } => {
                    let sizes = data.as_ref().map(|d| (d.classes, d.training_images));
                    started = sizes;
                }
                Event::Compared(found) => {
                    let shares = [found.zero_shot.before, found.zero_shot.after].into_iter();
                    let shares = (found.task..).zip(shares);
                    zero_shot.extend(shares.filter_map(|(tasks, share)| Some((tasks, share?))));
                    compared = Some((**found).clone());
                }
                Event::TaskEnd { task, .. } => {
                    learned = task + 1;
                    let name = compared.as_ref().map(|c| c.name.clone());
                    last = Some(LastChange::Learned {
                        task: name.unwrap_or_else(|| format!("task {}", task + 1)),
                        data: started,
                    });
                }
                Event::Undone {
                    task, name, reason, ..
                } => {
                    grown = true;
                    learned = *task;
                    zero_shot.retain(|tasks, _| tasks <= task);
                    last = Some(LastChange::TookBack {
                        task: name.clone(),
                        reason: reason.clone(),
                    });
                }
                _ => {}
            }
        }
        Some(Self {
            last: last.filter(|_| grown)?,
            learned,
            compared,
            zero_shot,
        })
    }

    /// Returns the change in a sentence.
    pub fn sentence(&self) -> String {
        match &self.last {
            LastChange::TookBack { task, reason } => match reason {
                Some(reason) => format!("{task} was taken back, because {reason}"),
                None => format!("{task} was taken back"),
            },
            LastChange::Learned { task, data } => {
                let data = data.map_or(String::new(), |(classes, images)| {
                    format!(" ({classes} classes, {})", plural(images, "training image"))
                });
                let cost = self.compared.as_ref().and_then(Comparison::worst);
                let cost = match cost {
                    Some((name, points)) if points < 0.0 => format!(
                        "; the earlier tasks lost {} points at most ({name})",
                        decimal(-points, 1, false)
                    ),
                    Some(_) => "; no earlier task lost accuracy".to_owned(),
                    None => String::new(),
                };
                format!("{task}{data} was added as task {}{cost}", self.learned)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(lines: &[&str]) -> Vec<Event> {
        let event = |line: &&str| serde_json::from_str(line).unwrap();
        lines.iter().map(event).collect()
    }

    const TWO_TASKS: [&str; 7] = [
        r#"{"event":"task_start","task":0,"name":"shoes"}"#,
        r#"{"event":"compared","task":0,"name":"shoes","zero_shot":{"after":0.9}}"#,
        r#"{"event":"task_end","task":0}"#,
        r#"{"event":"tasks_added","names":["hats"]}"#,
        r#"{"event":"task_start","task":1,"name":"hats","data":{"classes":3,
            "training_images":30,"test_images":6,"sha256":"ab"}}"#,
        r#"{"event":"compared","task":1,"name":"hats","earlier":[
            {"name":"shoes","before":90.0,"after":88.5}],"zero_shot":{"before":0.95,"after":0.8}}"#,
        r#"{"event":"task_end","task":1}"#,
    ];

    #[test]
    fn an_added_task_and_its_cost_are_named() {
        let growth = Growth::of(&events(&TWO_TASKS)).unwrap();
        assert_eq!(
            growth.sentence(),
            "hats (3 classes, 30 training images) was added as task 2; the earlier tasks lost 1.5 \
             points at most (shoes)"
        );
        assert_eq!(growth.zero_shot, BTreeMap::from([(1, 0.95), (2, 0.8)]));
        // A benchmark does not grow.
        assert_eq!(Growth::of(&events(&TWO_TASKS[..3])), None);
    }

    #[test]
    fn a_task_that_was_taken_back_has_its_reason() {
        let undone = r#"{"event":"undone","task":1,"name":"hats","reason":"too much was lost"}"#;
        let growth = Growth::of(&events(&[&TWO_TASKS[..], &[undone]].concat())).unwrap();
        assert_eq!(
            growth.sentence(),
            "hats was taken back, because too much was lost"
        );
        assert_eq!((growth.learned, growth.zero_shot.len()), (1, 1));
        assert_eq!(growth.compared.unwrap().name, "hats");
    }
}

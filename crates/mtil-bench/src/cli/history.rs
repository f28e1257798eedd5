//! `history`: what a run has learned and taken back, and when.

use std::collections::BTreeMap;

use eyre::{Result, bail};
use mtil_engine::run::{EvaluationRecord, Event, Request, RunFiles, TaskData};
use serde::Serialize;
use time::{OffsetDateTime, macros::format_description};

use super::args::HistoryArgs;

/// Runs `history`.
pub fn history(args: &HistoryArgs) -> Result<()> {
    let files = RunFiles::new(&args.run);
    let Some(request) = files.request()? else {
        bail!("{} holds no run", args.run.display());
    };
    let entries = entries(&files.events()?.events);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&entries)?);
    } else {
        print!("{}", text(&request, &entries));
    }
    Ok(())
}

/// Something that has happened to a run.
#[derive(Debug, PartialEq, Serialize)]
struct Entry {
    /// Seconds since 1970; none in runs of earlier versions.
    at: Option<u64>,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "did", rename_all = "kebab-case")]
enum What {
    Learned(Box<Learned>),
    TookBack {
        task: String,
        reason: Option<String>,
    },
}

/// A learned task, with accuracies in % before and after it.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Learned {
    task: String,
    /// What it was learned from.
    data: Option<TaskData>,
    /// Number of training steps, and the largest recorded learning rate.
    steps: usize,
    lr: f64,
    /// Seconds of the last process that trained it.
    seconds: f64,
    /// Accuracy on the task itself.
    own: Change,
    /// The earlier tasks.
    earlier: BTreeMap<String, Change>,
    modality_gap: Change,
    margin: Change,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Change {
    before: Option<f64>,
    after: Option<f64>,
}

impl Change {
    fn difference(self) -> Option<f64> {
        Some(self.after? - self.before?)
    }
}

/// Returns what has happened, in order of time.
fn entries(events: &[Event]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut names: BTreeMap<usize, (String, Option<TaskData>)> = BTreeMap::new();
    // By stage: 0 is the pretrained model.
    let mut evaluated: BTreeMap<usize, &EvaluationRecord> = BTreeMap::new();
    let mut training = Learned::default();
    for event in events {
        match event {
            Event::TaskStart { task, name, data } => {
                names.insert(*task, (name.clone(), data.clone()));
                training = Learned::default();
            }
            Event::Step(step) => {
                training.steps = step.step;
                training.lr = training.lr.max(step.lr);
            }
            Event::Evaluation(record) => {
                let stage = record.stage.map_or(0, |stage| stage + 1);
                evaluated.insert(stage, record);
            }
            Event::TaskEnd { task, seconds, at } => {
                let before = evaluated.get(task);
                let after = evaluated.get(&(task + 1));
                let change = |of: &dyn Fn(&EvaluationRecord) -> Option<f64>| Change {
                    before: before.and_then(|record| of(record)),
                    after: after.and_then(|record| of(record)),
                };
                let accuracy =
                    |task: usize| change(&|record| record.accuracies.get(task).copied().flatten());
                let earlier = names.range(..task);
                let (name, data) = names.get(task).cloned().unwrap_or_default();
                let learned = Learned {
                    task: name,
                    data,
                    seconds: *seconds,
                    own: accuracy(*task),
                    earlier: earlier
                        .map(|(task, (name, _))| (name.clone(), accuracy(*task)))
                        .collect(),
                    modality_gap: change(&|record| Some(record.modality_gap)),
                    margin: change(&|record| record.margin),
                    ..std::mem::take(&mut training)
                };
                entries.push(Entry {
                    at: *at,
                    what: What::Learned(Box::new(learned)),
                });
            }
            Event::Undone {
                task,
                name,
                reason,
                at,
            } => {
                evaluated.retain(|stage, _| stage <= task);
                entries.push(Entry {
                    at: *at,
                    what: What::TookBack {
                        task: name.clone(),
                        reason: reason.clone(),
                    },
                });
            }
            _ => {}
        }
    }
    entries
}

fn text(request: &Request, entries: &[Entry]) -> String {
    let mut text = format!(
        "{} on {}, seed {}, from {}\n",
        request.method.name, request.suite, request.seed, request.model
    );
    for entry in entries {
        text += &format!("\n{}  ", date(entry.at));
        match &entry.what {
            What::Learned(learned) => text += &learned.to_string(),
            What::TookBack { task, reason } => {
                text += &format!("took back {task}");
                if let Some(reason) = reason {
                    text += &format!(": {reason}");
                }
                text.push('\n');
            }
        }
    }
    if entries.is_empty() {
        text += "\nno task is learned yet\n";
    }
    text
}

impl std::fmt::Display for Learned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "learned {}", self.task)?;
        if let Some(data) = &self.data {
            write!(
                f,
                " ({} classes, {} training and {} test images)",
                data.classes, data.training_images, data.test_images
            )?;
        }
        writeln!(f, ", {} steps, lr {:.1e}", self.steps, self.lr)?;
        let percent = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1} %"));
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.3}"));
        writeln!(
            f,
            "    on it: {} before, {} after",
            percent(self.own.before),
            percent(self.own.after)
        )?;
        let losses = self.earlier.iter();
        let losses = losses.filter_map(|(name, change)| Some((name, change.difference()?)));
        if let Some((name, worst)) = losses.min_by(|a, b| a.1.total_cmp(&b.1)) {
            writeln!(f, "    earlier tasks: {worst:+.1} points at worst ({name})")?;
        }
        writeln!(
            f,
            "    modality gap: {} before, {} after; margin: {} before, {} after",
            number(self.modality_gap.before),
            number(self.modality_gap.after),
            number(self.margin.before),
            number(self.margin.after)
        )
    }
}

/// Returns a time as text, in UTC.
fn date(at: Option<u64>) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    let time = at.and_then(|at| i64::try_from(at).ok());
    let time = time.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    let text = time.and_then(|time| time.format(&format).ok());
    text.unwrap_or_else(|| "at an unknown time".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_has_what_was_learned_and_taken_back() {
        let events = [
            r#"{"event":"evaluation","stage":null,"accuracies":[40.0,50.0],"modality_gap":0.8}"#,
            r#"{"event":"task_start","task":0,"name":"shoes","data":{"classes":3,
                "training_images":30,"test_images":6,"sha256":"ab"}}"#,
            r#"{"event":"step","task":0,"step":5,"steps":5,"lr":1e-4,"loss":1.5}"#,
            r#"{"event":"evaluation","stage":0,"accuracies":[90.0,45.0],"modality_gap":0.75}"#,
            r#"{"event":"task_end","task":0,"seconds":2.0,"at":86400}"#,
            r#"{"event":"task_start","task":1,"name":"hats"}"#,
            r#"{"event":"evaluation","stage":1,"accuracies":[86.0,80.0],"modality_gap":0.5}"#,
            r#"{"event":"task_end","task":1,"seconds":3.0}"#,
            r#"{"event":"undone","task":1,"name":"hats","reason":"too much","at":172800}"#,
        ];
        let events = events.map(|line| serde_json::from_str(line).unwrap());
        let entries = entries(&events);
        assert_eq!(entries.len(), 3);
        let What::Learned(hats) = &entries[1].what else {
            panic!("{entries:?}");
        };
        assert_eq!(hats.own.difference(), Some(35.0));
        assert_eq!(hats.earlier["shoes"].difference(), Some(-4.0));
        let What::Learned(shoes) = &entries[0].what else {
            panic!("{entries:?}");
        };
        let text = shoes.to_string();
        for part in [
            "learned shoes (3 classes, 30 training and 6 test images), 5 steps, lr 1.0e-4",
            "on it: 40.0 % before, 90.0 % after",
            "modality gap: 0.800 before, 0.750 after",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(date(entries[0].at), "1970-01-02 00:00 UTC");
        assert_eq!(date(entries[1].at), "at an unknown time");
        let json = serde_json::to_value(&entries[2]).unwrap();
        assert_eq!(json["did"], "took-back");
        assert_eq!(json["task"], "hats");
    }
}

//! `history`: what a run has learned and taken back, and when.

use std::collections::BTreeMap;

use eyre::{Result, bail};
use mtil_engine::{
    metrics::Kept,
    run::{Comparison, Event, Request, RunFiles, TaskData},
};
use mtil_report::format::bytes;
use serde::Serialize;
use time::{OffsetDateTime, macros::format_description};

use super::args::HistoryArgs;
use crate::print::print_json;

/// Runs `history`.
pub fn history(args: &HistoryArgs) -> Result<()> {
    let files = RunFiles::new(&args.run);
    let Some(request) = files.request()? else {
        bail!("{} holds no run", args.run.display());
    };
    let entries = entries(&files.events()?.events);
    if args.json {
        print_json(&entries)?;
        return Ok(());
    }
    // Earlier versions, and runs without a learned task, have no figure.
    let metrics = files.metrics()?.filter(|m| m.bytes_kept.is_some());
    let kept = metrics.map(|metrics| metrics.kept);
    print!("{}", text(&request, &entries, kept.as_ref()));
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

/// A learned task.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Learned {
    task: String,
    /// Its training and test data.
    data: Option<TaskData>,
    /// Number of training steps, and the largest recorded learning rate.
    steps: usize,
    lr: f64,
    /// Seconds of the last process that trained it.
    seconds: f64,
    /// Comparison with the model before it; none where all tasks are learned at once.
    compared: Option<Box<Comparison>>,
}

/// Returns what has happened, in order of time.
fn entries(events: &[Event]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut training = Learned::default();
    for event in events {
        match event {
            Event::TaskStart { name, data, .. } => {
                training = Learned {
                    task: name.clone(),
                    data: data.clone(),
                    ..Learned::default()
                };
            }
            Event::Step(step) => {
                training.steps = step.step;
                training.lr = training.lr.max(step.lr);
            }
            Event::Compared(compared) => training.compared = Some(compared.clone()),
            Event::TaskEnd { seconds, at, .. } => {
                let learned = Learned {
                    seconds: *seconds,
                    ..std::mem::take(&mut training)
                };
                entries.push(Entry {
                    at: *at,
                    what: What::Learned(Box::new(learned)),
                });
            }
            Event::Undone {
                name, reason, at, ..
            } => entries.push(Entry {
                at: *at,
                what: What::TookBack {
                    task: name.clone(),
                    reason: reason.clone(),
                },
            }),
            _ => {}
        }
    }
    entries
}

fn text(request: &Request, entries: &[Entry], kept: Option<&BTreeMap<Kept, u64>>) -> String {
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
    text += "\nkept of the tasks besides the model: ";
    let parts = kept.into_iter().flatten();
    let parts: Vec<String> = parts
        .map(|(what, size)| format!("{} of {what}", bytes(*size)))
        .collect();
    text += &match (kept, parts.is_empty()) {
        (None, _) => "not recorded".to_owned(),
        (_, true) => "nothing".to_owned(),
        (_, false) => parts.join(", "),
    };
    text + "\n"
}

impl std::fmt::Display for Learned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "learned {}", self.task)?;
        if let Some(data) = &self.data {
            match data.captions {
                Some(captions) => write!(f, " ({captions} captions of ")?,
                None => write!(f, " ({} classes, ", data.classes)?,
            }
            write!(
                f,
                "{} training and {} test images)",
                data.training_images, data.test_images
            )?;
        }
        writeln!(f, ", {} steps, lr {:.1e}", self.steps, self.lr)?;
        let measures = self.compared.iter().map(ToString::to_string);
        for measure in
            measures.flat_map(|text| text.split("; ").map(str::to_owned).collect::<Vec<_>>())
        {
            writeln!(f, "    {measure}")?;
        }
        Ok(())
    }
}

/// Returns a time as text, in UTC.
pub fn date(at: Option<u64>) -> String {
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
            r#"{"event":"task_start","task":0,"name":"shoes","data":{"classes":3,
                "training_images":30,"test_images":6,"sha256":"ab"}}"#,
            r#"{"event":"step","task":0,"step":5,"steps":5,"lr":1e-4,"loss":1.5}"#,
            r#"{"event":"compared","task":0,"name":"shoes","own":{"before":40.0,"after":90.0},
                "modality_gap":{"before":0.8,"after":0.75}}"#,
            r#"{"event":"task_end","task":0,"seconds":2.0,"at":86400}"#,
            r#"{"event":"task_start","task":1,"name":"hats"}"#,
            r#"{"event":"task_end","task":1,"seconds":3.0}"#,
            r#"{"event":"undone","task":1,"name":"hats","reason":"too much","at":172800}"#,
        ];
        let events = events.map(|line| serde_json::from_str(line).unwrap());
        let entries = entries(&events);
        assert_eq!(entries.len(), 3);
        let What::Learned(shoes) = &entries[0].what else {
            panic!("{entries:?}");
        };
        assert_eq!(
            shoes.to_string(),
            "learned shoes (3 classes, 30 training and 6 test images), 5 steps, lr 1.0e-4\n    \
             on it 40.0 → 90.0 %\n    gap 0.800 → 0.750\n"
        );
        assert_eq!(date(entries[0].at), "1970-01-02 00:00 UTC");
        assert_eq!(date(entries[1].at), "at an unknown time");
        let json = serde_json::to_value(&entries[2]).unwrap();
        assert_eq!(json["did"], "took-back");
        assert_eq!(json["task"], "hats");
    }
}

//! Progress on a terminal: a bar for people, plain lines for files.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use mtil_engine::{
    guard::Action,
    run::{Event, Progress, Work},
};
use serde::{Deserialize, Serialize};

/// What a run's event is in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// A line that stays.
    Line(String),
    /// How far the work is.
    At {
        /// What is done.
        message: String,
        /// How much of it.
        done: usize,
        /// Of all.
        of: usize,
        /// What is counted; nothing for updates.
        unit: String,
    },
    /// The run is complete.
    Done,
}

/// Puts the events of runs into words.
#[derive(Default)]
pub struct Words {
    method: String,
    tasks: usize,
}

impl Words {
    /// What is said of an event.
    pub fn of(&mut self, event: &Event) -> Vec<Said> {
        if let Event::Start { method, stages } | Event::Resume { method, stages, .. } = event {
            self.method.clone_from(method);
            self.tasks = *stages;
        }
        let (method, tasks) = (&self.method, self.tasks);
        let line = |text: String| vec![Said::Line(text)];
        let at = |message: String, done: usize, of: usize, unit: &str| {
            let unit = unit.to_owned();
            vec![Said::At {
                message,
                done,
                of,
                unit,
            }]
        };
        match event {
            Event::Start { .. } => line(format!("{method}: {tasks} tasks")),
            Event::Resume { task, .. } if *task == tasks => line(format!("{method}: complete")),
            Event::Resume { task, step, .. } => line(format!(
                "{method}: goes on at task {}, update {step}",
                task + 1
            )),
            Event::Step(update) => {
                let message = format!(
                    "{method} task {}/{tasks} {}  loss {:.3} ({})  lr {:.1e}  {:.0} img/s",
                    update.task + 1,
                    update.name,
                    update.loss,
                    update.parts,
                    update.lr,
                    update.images_per_s,
                );
                at(message, update.step, update.steps, "")
            }
            Event::Working { on, done, of } => {
                let (doing, unit) = match on {
                    Work::Evaluation => ("evaluating", "tasks"),
                    Work::Gram => ("remembering activations", "batches"),
                    Work::Encoding => ("encoding training images", "batches"),
                };
                at(format!("{method} {doing}"), *done, *of, unit)
            }
            Event::Guard { breach, .. } => {
                let what = match breach.action {
                    Action::Stop => "stopped",
                    Action::Warn => "warning",
                };
                line(format!("{method} drift guard, {what}: {}", breach.message))
            }
            Event::Evaluation(evaluated) => {
                let stage = evaluated.name.as_ref();
                let stage = stage.map_or("pretrained".to_owned(), |name| format!("after {name}"));
                let (mean, gap) = (evaluated.mean_accuracy(), evaluated.modality_gap);
                line(format!(
                    "{method} {stage}: mean accuracy {mean:.1} %, modality gap {gap:.3}"
                ))
            }
            Event::Note { text } => line(format!("note: {text}")),
            Event::SkippedImages { count, names } => {
                let first = format!("{method}: left out {count} unreadable image(s):");
                let names = names.iter().take(20).map(|name| format!("  {name}"));
                std::iter::once(first)
                    .chain(names)
                    .map(Said::Line)
                    .collect()
            }
            Event::Select {
                task, key, chosen, ..
            } => line(format!(
                "{method} task {}: {key}={chosen} is chosen",
                task + 1
            )),
            Event::Done => vec![Said::Done],
            // Said by what follows them.
            _ => Vec::new(),
        }
    }
}

/// Shows a run's events on standard error.
pub struct Terminal {
    bar: Option<ProgressBar>,
    words: Words,
    interactive: bool,
}

impl Terminal {
    /// A bar when standard error is a terminal, plain lines otherwise.
    pub fn new() -> Self {
        Self {
            bar: None,
            words: Words::default(),
            interactive: std::io::stderr().is_terminal(),
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn bar(&mut self, length: usize, template: &str) -> &ProgressBar {
        let bar = self
            .bar
            .get_or_insert_with(|| ProgressBar::new(length as u64));
        if bar.length() != Some(length as u64) {
            bar.reset();
            bar.set_length(length as u64);
        }
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar
    }

    fn show(&mut self, said: Said) {
        match said {
            Said::Line(text) => self.line(&text),
            Said::At {
                message,
                done,
                of,
                unit,
            } => {
                // A file gets a line a quarter of the updates, and none of what is short.
                let every = (of / 4).max(1);
                if self.interactive {
                    let template = match unit.as_str() {
                        "" => "{msg} {bar:20} {pos}/{len} {eta} left".to_owned(),
                        unit => format!("{{msg}} {{bar:20}} {{pos}}/{{len}} {unit}"),
                    };
                    let bar = self.bar(of, &template);
                    bar.set_position(done as u64);
                    bar.set_message(message);
                } else if unit.is_empty() && (done == 1 || done % every == 0 || done == of) {
                    self.line(&format!("{message}  {done}/{of}"));
                }
            }
            Said::Done => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

impl Progress for Terminal {
    fn event(&mut self, event: &Event) {
        for said in self.words.of(event) {
            self.show(said);
        }
    }
}

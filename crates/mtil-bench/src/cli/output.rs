//! Progress of a run on standard error: a bar on a terminal, plain lines otherwise.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use mtil_engine::{
    guard::Action,
    run::{Event, Phase, Progress},
};
use serde::{Deserialize, Serialize};

/// A progress message of a run, formatted from an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProgressMessage {
    /// A permanent line.
    Line(String),
    /// The position of the progress bar.
    Position {
        /// Description of the current work.
        message: String,
        /// Completed units.
        done: usize,
        /// Total units.
        of: usize,
        /// Name of the unit, empty for training steps.
        unit: String,
    },
    /// The run is complete.
    Done,
}

/// Formats the events of runs.
#[derive(Default)]
pub struct EventFormatter {
    method: String,
    tasks: usize,
}

impl EventFormatter {
    /// Returns the messages of an event.
    pub fn format(&mut self, event: &Event) -> Vec<ProgressMessage> {
        if let Event::Start { method, stages } | Event::Resume { method, stages, .. } = event {
            self.method.clone_from(method);
            self.tasks = *stages;
        }
        let (method, tasks) = (&self.method, self.tasks);
        let line = |text: String| vec![ProgressMessage::Line(text)];
        let at = |message: String, done: usize, of: usize, unit: &str| {
            let unit = unit.to_owned();
            vec![ProgressMessage::Position {
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
                "{method}: resuming at task {}, step {step}",
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
                    Phase::Evaluation => ("evaluating", "tasks"),
                    Phase::Gram => ("accumulating Gram matrices", "batches"),
                    Phase::Encoding => ("encoding training images", "batches"),
                };
                at(format!("{method} {doing}"), *done, *of, unit)
            }
            Event::Guard { breach, .. } => {
                let action = match breach.action {
                    Action::Stop => "stopped",
                    Action::Warn => "warning",
                };
                line(format!(
                    "{method} drift guard, {action}: {}",
                    breach.message
                ))
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
                let first = format!("{method}: skipped {count} unreadable image(s):");
                let names = names.iter().take(20).map(|name| format!("  {name}"));
                std::iter::once(first)
                    .chain(names)
                    .map(ProgressMessage::Line)
                    .collect()
            }
            Event::Select {
                task, key, chosen, ..
            } => line(format!(
                "{method} task {}: {key}={chosen} is chosen",
                task + 1
            )),
            Event::Done => vec![ProgressMessage::Done],
            // The events that follow these are shown instead.
            _ => Vec::new(),
        }
    }
}

/// Shows the events of a run on standard error.
pub struct Terminal {
    bar: Option<ProgressBar>,
    formatter: EventFormatter,
    interactive: bool,
}

impl Terminal {
    /// Creates a display with a bar if standard error is a terminal, and with plain lines
    /// otherwise.
    pub fn new() -> Self {
        Self {
            bar: None,
            formatter: EventFormatter::default(),
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

    fn show(&mut self, message: ProgressMessage) {
        match message {
            ProgressMessage::Line(text) => self.line(&text),
            ProgressMessage::Position {
                message,
                done,
                of,
                unit,
            } => {
                // Without a terminal: four lines for the training steps, none for shorter work.
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
            ProgressMessage::Done => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

impl Progress for Terminal {
    fn event(&mut self, event: &Event) {
        for message in self.formatter.format(event) {
            self.show(message);
        }
    }
}

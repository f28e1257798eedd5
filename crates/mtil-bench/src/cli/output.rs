//! Progress on a terminal: a bar for people, plain lines for files.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use mtil_engine::run::{Event, Progress};
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
    pub fn of(&mut self, event: &Event<'_>) -> Vec<Said> {
        let method = match event {
            Event::Start { method, tasks, .. } => {
                self.method = (*method).to_owned();
                self.tasks = *tasks;
                *method
            }
            _ => self.method.as_str(),
        };
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
            Event::Start { tasks, resumed, .. } => line(match resumed {
                Some((task, _)) if task == tasks => format!("{method}: complete"),
                Some((task, step)) => {
                    format!("{method}: goes on at task {}, update {step}", task + 1)
                }
                None => format!("{method}: {tasks} tasks"),
            }),
            Event::Step {
                task,
                name,
                step,
                steps,
                loss,
                parts,
                lr,
                images_per_second,
            } => {
                let message = format!(
                    "{method} task {}/{} {name}  loss {loss:.3} ({parts})  lr {lr:.1e}  {images_per_second:.0} img/s",
                    task + 1,
                    self.tasks,
                );
                at(message, *step, *steps, "")
            }
            Event::Evaluating { done, of } => {
                at(format!("{method} evaluating"), *done, *of, "tasks")
            }
            Event::Gram { done, of } => at(
                format!("{method} remembering activations"),
                *done,
                *of,
                "batches",
            ),
            Event::Encoding { done, of } => at(
                format!("{method} encoding training images"),
                *done,
                *of,
                "batches",
            ),
            Event::Guard { message, stops } => {
                let what = if *stops { "stopped" } else { "warning" };
                line(format!("{method} drift guard, {what}: {message}"))
            }
            Event::Evaluated { stage, mean, gap } => {
                let stage = stage.map_or("pretrained".to_owned(), |name| format!("after {name}"));
                line(format!(
                    "{method} {stage}: mean accuracy {mean:.1} %, modality gap {gap:.3}"
                ))
            }
            Event::Note { text } => line(format!("note: {text}")),
            Event::Skipped { names } => {
                let first = format!("{method}: left out {} unreadable image(s):", names.len());
                let names = names.iter().take(20).map(|name| format!("  {name}"));
                std::iter::once(first)
                    .chain(names)
                    .map(Said::Line)
                    .collect()
            }
            Event::Done => vec![Said::Done],
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
    fn event(&mut self, event: &Event<'_>) {
        for said in self.words.of(event) {
            self.show(said);
        }
    }
}

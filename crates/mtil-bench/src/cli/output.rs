//! Progress on standard error: a bar on a terminal, plain lines otherwise.

use std::{
    io::IsTerminal,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use mtil_engine::{
    guard::Action,
    run::{Event, Phase, Progress},
};
use mtil_report::format::plural;
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
            Event::Start { .. } => line(format!("{method}: {}", plural(tasks, "task"))),
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
                    Phase::Evaluation => ("evaluating", "batches"),
                    Phase::Gram => ("accumulating Gram matrices", "batches"),
                    Phase::Encoding => ("encoding training images", "batches"),
                    Phase::Fisher => ("computing Fisher information", "images"),
                    Phase::Rehearsal => ("selecting rehearsal images", "batches"),
                };
                at(format!("{method} {doing}"), *done, *of, unit)
            }
            Event::Guard { breach, .. } => {
                let action = match breach.action {
                    Action::Stop => "stopped",
                    Action::Undo => "taken back",
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
                let mean = evaluated.mean_accuracy();
                let pairs = !evaluated.caption_tasks.is_empty();
                let figures = if pairs {
                    "accuracy and R@1"
                } else {
                    "accuracy"
                };
                let mean = mean.map_or(String::new(), |m| format!("mean {figures} {m:.1} %, "));
                let gap = evaluated.modality_gap;
                line(format!("{method} {stage}: {mean}modality gap {gap:.3}"))
            }
            Event::Compared(compared) => line(format!("  {compared}")),
            Event::TasksAdded { names } => line(format!("{method}: added {}", names.join(", "))),
            Event::Undone { name, .. } => line(format!("{method}: took back task {name}")),
            Event::Note { text } => line(format!("note: {text}")),
            Event::SkippedImages { count, names } => {
                let images = plural(*count, "unreadable image");
                let first = format!("{method}: skipped {images}:");
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

/// Longest silence about work in progress where there is no terminal.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// Selection of the positions that are printed as lines where there is no terminal.
#[derive(Debug, Default)]
pub struct LineFilter {
    last: Option<Instant>,
}

impl LineFilter {
    /// Returns whether the silence has lasted too long at `now`. It begins with the first call.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let last = *self.last.get_or_insert(now);
        let due = now.saturating_duration_since(last) >= LONGEST_SILENCE;
        if due {
            self.last = Some(now);
        }
        due
    }

    /// As [`is_due`](Self::is_due), and at the first training step of a task and each quarter of
    /// its steps.
    fn is_step_due(&mut self, now: Instant, done: usize, of: usize) -> bool {
        let quarter = (of / 4).max(1);
        if done == 1 || done.is_multiple_of(quarter) || done == of {
            self.last = Some(now);
            return true;
        }
        self.is_due(now)
    }
}

/// Progress of a subcommand that is not a run.
pub struct WorkProgress {
    bar: ProgressBar,
    lines: Mutex<LineFilter>,
    work: &'static str,
    unit: &'static str,
}

impl WorkProgress {
    /// Creates a display for `work`, such as `encoding`, counted in `unit`, such as `images`.
    pub fn new(work: &'static str, unit: &'static str) -> Self {
        let bar = ProgressBar::new(0);
        let template = format!("{work} {{bar:20}} {{pos}}/{{len}} {unit} {{eta}} left");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        Self {
            bar,
            lines: Mutex::default(),
            work,
            unit,
        }
    }

    /// Shows the position, which may be set from several threads.
    pub fn set(&self, done: usize, of: usize) {
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
        if self.bar.is_hidden()
            && let Some(line) = self.line(Instant::now(), done, of)
        {
            eprintln!("{line}");
        }
    }

    /// Returns the line for the position, if one is due at `now`.
    fn line(&self, now: Instant, done: usize, of: usize) -> Option<String> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let due = lines.is_due(now);
        due.then(|| format!("{}  {done}/{of} {}", self.work, self.unit))
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Lists images that were left out on standard error.
pub fn list_skipped(names: &[String]) {
    for name in names {
        eprintln!("skipped: {name}");
    }
}

/// Shows the events of a run on standard error.
pub struct Terminal {
    bar: Option<ProgressBar>,
    formatter: EventFormatter,
    interactive: bool,
    lines: LineFilter,
}

impl Terminal {
    /// Creates a display with a bar if standard error is a terminal, and with plain lines
    /// otherwise.
    pub fn new() -> Self {
        Self {
            bar: None,
            formatter: EventFormatter::default(),
            interactive: std::io::stderr().is_terminal(),
            lines: LineFilter::default(),
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
                if self.interactive {
                    let template = match unit.as_str() {
                        "" => "{msg} {bar:20} {pos}/{len} {eta} left".to_owned(),
                        unit => format!("{{msg}} {{bar:20}} {{pos}}/{{len}} {unit}"),
                    };
                    let bar = self.bar(of, &template);
                    bar.set_position(done as u64);
                    bar.set_message(message);
                    return;
                }
                let now = Instant::now();
                if unit.is_empty() {
                    if self.lines.is_step_due(now, done, of) {
                        self.line(&format!("{message}  {done}/{of}"));
                    }
                } else if self.lines.is_due(now) {
                    self.line(&format!("{message}  {done}/{of} {unit}"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_without_a_terminal_is_never_silent_for_long() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut lines = LineFilter::default();
        // An evaluation of 100 batches, one each second.
        let shown: Vec<u64> = (0..100).filter(|s| lines.is_due(at(*s))).collect();
        assert_eq!(shown, [30, 60, 90]);
        // Eight fast training steps: the first and each quarter.
        let mut lines = LineFilter::default();
        let shown: Vec<usize> = (1..=8)
            .filter(|n| lines.is_step_due(start, *n, 8))
            .collect();
        assert_eq!(shown, [1, 2, 4, 6, 8]);
        // Slow ones: every third besides.
        let mut lines = LineFilter::default();
        let slow = (1..=20).filter(|n| lines.is_step_due(at(10 * *n as u64), *n, 20));
        assert_eq!(
            slow.collect::<Vec<usize>>(),
            [1, 4, 5, 8, 10, 13, 15, 18, 20]
        );
    }

    #[test]
    fn other_work_without_a_terminal_has_a_line_now_and_then() {
        let start = Instant::now();
        let progress = WorkProgress::new("encoding", "images");
        let lines = (0..70).filter_map(|done| {
            let now = start + Duration::from_secs(done as u64);
            progress.line(now, done, 70)
        });
        assert_eq!(
            lines.collect::<Vec<_>>(),
            ["encoding  30/70 images", "encoding  60/70 images"]
        );
    }

    #[test]
    fn an_evaluation_has_a_position_in_batches() {
        let mut formatter = EventFormatter::default();
        formatter.format(&Event::Start {
            method: "gnsp".to_owned(),
            stages: 8,
        });
        let messages = formatter.format(&Event::Working {
            on: Phase::Evaluation,
            done: 3,
            of: 12,
        });
        let position = ProgressMessage::Position {
            message: "gnsp evaluating".to_owned(),
            done: 3,
            of: 12,
            unit: "batches".to_owned(),
        };
        assert_eq!(messages, [position]);
    }
}

//! Progress on a terminal: a bar for people, plain lines for files.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use mtil_engine::run::{Event, Progress};

/// Shows a run's events on standard error.
pub struct Terminal {
    bar: Option<ProgressBar>,
    method: String,
    tasks: usize,
    interactive: bool,
}

impl Terminal {
    /// A bar when standard error is a terminal, plain lines otherwise.
    pub fn new() -> Self {
        Self {
            bar: None,
            method: String::new(),
            tasks: 0,
            interactive: std::io::stderr().is_terminal(),
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn bar(&mut self, length: usize, template: &str) -> Option<&ProgressBar> {
        if !self.interactive {
            return None;
        }
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
        Some(bar)
    }
}

impl Progress for Terminal {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Start {
                method,
                tasks,
                resumed,
            } => {
                self.method = (*method).to_owned();
                self.tasks = *tasks;
                match resumed {
                    Some((task, _)) if task == tasks => self.line(&format!("{method}: complete")),
                    Some((task, step)) => {
                        self.line(&format!(
                            "{method}: goes on at task {}, update {step}",
                            task + 1
                        ));
                    }
                    None => self.line(&format!("{method}: {tasks} tasks")),
                }
            }
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
                    "{} task {}/{} {name}  loss {loss:.3} ({parts})  lr {lr:.1e}  {images_per_second:.0} img/s",
                    self.method,
                    task + 1,
                    self.tasks,
                );
                let every = (steps / 4).max(1);
                let plain = *step == 1 || step % every == 0 || step == steps;
                if let Some(bar) = self.bar(*steps, "{msg} {bar:20} {pos}/{len} {eta} left") {
                    bar.set_position(*step as u64);
                    bar.set_message(message);
                } else if plain {
                    self.line(&format!("{message}  {step}/{steps}"));
                }
            }
            Event::Evaluating { done, of } => {
                let message = format!("{} evaluating", self.method);
                if let Some(bar) = self.bar(*of, "{msg} {bar:20} {pos}/{len} tasks") {
                    bar.set_position(*done as u64);
                    bar.set_message(message);
                }
            }
            Event::Gram { done, of } => {
                let message = format!("{} remembering activations", self.method);
                if let Some(bar) = self.bar(*of, "{msg} {bar:20} {pos}/{len} batches") {
                    bar.set_position(*done as u64);
                    bar.set_message(message);
                }
            }
            Event::Encoding { done, of } => {
                let message = format!("{} encoding training images", self.method);
                if let Some(bar) = self.bar(*of, "{msg} {bar:20} {pos}/{len} batches") {
                    bar.set_position(*done as u64);
                    bar.set_message(message);
                }
            }
            Event::Guard { message, stops } => {
                let what = if *stops { "stopped" } else { "warning" };
                self.line(&format!("{} drift guard, {what}: {message}", self.method));
            }
            Event::Evaluated { stage, mean, gap } => {
                let stage = stage.map_or("pretrained".to_owned(), |name| format!("after {name}"));
                self.line(&format!(
                    "{} {stage}: mean accuracy {mean:.1} %, modality gap {gap:.3}",
                    self.method
                ));
            }
            Event::Note { text } => self.line(&format!("note: {text}")),
            Event::Skipped { names } => {
                self.line(&format!(
                    "{}: left out {} unreadable image(s):",
                    self.method,
                    names.len()
                ));
                for name in names.iter().take(20) {
                    self.line(&format!("  {name}"));
                }
            }
            Event::Done => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

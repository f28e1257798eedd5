//! What a run tells while it works.

use super::LossParts;

/// Something that happened in a run.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// A run starts or goes on.
    Start {
        /// The method.
        method: &'a str,
        /// Tasks of the suite.
        tasks: usize,
        /// Task and update it goes on from, if it does.
        resumed: Option<(usize, usize)>,
    },
    /// An update was made.
    Step {
        /// Index of the task.
        task: usize,
        /// Name of the task.
        name: &'a str,
        /// Updates made.
        step: usize,
        /// Updates of the task.
        steps: usize,
        /// The total loss.
        loss: f32,
        /// The parts of the loss, weighted.
        parts: LossParts,
        /// Learning rate.
        lr: f64,
        /// Training images a second, over the task so far.
        images_per_second: f64,
    },
    /// An evaluation goes on: tasks done of all.
    Evaluating {
        /// Tasks evaluated.
        done: usize,
        /// Tasks to evaluate.
        of: usize,
    },
    /// An evaluation is done.
    Evaluated {
        /// The stage: `None` before the first task.
        stage: Option<&'a str>,
        /// Mean accuracy in %.
        mean: f64,
        /// The modality gap.
        gap: f64,
    },
    /// A task's activations are remembered: batches done of all.
    Gram {
        /// Batches done.
        done: usize,
        /// All batches.
        of: usize,
    },
    /// The training images of a task are encoded once: batches done of all.
    Encoding {
        /// Batches done.
        done: usize,
        /// All batches.
        of: usize,
    },
    /// A threshold of the drift guard was crossed.
    Guard {
        /// What, in words.
        message: &'a str,
        /// Whether the run ends.
        stops: bool,
    },
    /// Something to know that changes no result.
    Note {
        /// In words.
        text: &'a str,
    },
    /// Unreadable images were left out.
    Skipped {
        /// Their names.
        names: &'a [String],
    },
    /// The run is complete.
    Done,
}

/// Receives the events of a run.
pub trait Progress {
    /// Called for each event, in order.
    fn event(&mut self, event: &Event<'_>);
}

impl Progress for () {
    fn event(&mut self, _: &Event<'_>) {}
}

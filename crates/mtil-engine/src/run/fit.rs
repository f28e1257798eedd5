//! Learning of a task by a mechanism, in place of the engine's training steps.

use std::time::Instant;

use clip_model::ClipModel;

use super::{Event, Progress, StepRecord, engine::Engine};
use mtil_methods::{
    error::RunError,
    mechanism::{
        context::{FitProgress, FitStep, Phase},
        state::RunState,
    },
};

impl Engine<'_> {
    /// Learns the task by a mechanism, if there is one that does so. The model is then the
    /// pretrained one.
    pub(super) fn fit(
        &self,
        state: &mut RunState,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<Option<ClipModel>, RunError> {
        let task = self.task_context(index, None);
        let mut report = FitReport {
            engine: self,
            progress,
            task: index,
            started: Instant::now(),
            images: 0,
            trainable: None,
        };
        for mechanism in self.mechanisms.iter() {
            if mechanism.fit(&task, state, &mut report)? {
                if let Some(trainable) = report.trainable {
                    state.position.trainable = trainable;
                }
                return Ok(Some(self.checkpoint.model.clone()));
            }
        }
        Ok(None)
    }
}

/// Reports the progress of a mechanism as events of the run.
struct FitReport<'a, 'b> {
    engine: &'a Engine<'b>,
    progress: &'a mut dyn Progress,
    task: usize,
    started: Instant,
    /// Images so far.
    images: usize,
    trainable: Option<u64>,
}

impl FitProgress for FitReport<'_, '_> {
    fn phase(&mut self, on: Phase, done: usize, of: usize) {
        tracing::debug!(?on, done, of, "working");
        self.progress.event(&Event::Working { on, done, of });
    }

    fn trainable(&mut self, values: u64) {
        self.trainable = Some(values);
    }

    fn step(&mut self, step: FitStep) -> Result<(), RunError> {
        let (engine, task) = (self.engine, self.task);
        let name = &engine.suite.tasks[task].name;
        let FitStep {
            done, steps, lr, ..
        } = step;
        let loss = step.parts.total();
        if !loss.is_finite() {
            engine.emit(Event::Diverged { task, step: done }, self.progress)?;
            return Err(RunError::Diverged {
                task: name.clone(),
                step: done,
                steps,
                loss,
                lr,
            });
        }
        self.images += step.images;
        let event = Event::Step(StepRecord {
            task,
            name: name.clone(),
            step: done,
            steps,
            lr,
            loss,
            parts: step.parts,
            images_per_s: self.images as f64 / self.started.elapsed().as_secs_f64().max(1e-9),
        });
        self.progress.event(&event);
        if done.is_multiple_of(engine.options.log_every) || done == steps || done == 1 {
            engine.directory.record(&event)?;
        }
        Ok(())
    }
}

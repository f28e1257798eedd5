//! Tasks that are added to a run: what they need of the evaluations before them.

use burn::module::Module;

use super::{
    Progress, RunFiles,
    engine::{Engine, phase_reporter},
};
use mtil_eval::eval::TaskMeasure;
use mtil_methods::{
    error::{RunError, StateFault},
    mechanism::{
        context::Phase,
        hooks::load_kept_state,
        state::{POSITION, Position, RunState},
    },
};

impl Engine<'_> {
    /// Measures the pretrained model and the current one on tasks that were added after they were
    /// evaluated.
    pub(super) fn measure_added_tasks(
        &mut self,
        state: &mut RunState,
        progress: &mut dyn Progress,
    ) -> Result<(), RunError> {
        let all = self.suite.tasks.len();
        let Some(last) = state.position.evaluations.len().checked_sub(1) else {
            return Ok(());
        };
        let known = state.position.evaluations[last].accuracies.len();
        if known >= all {
            return Ok(());
        }
        let trains = self.request.method.trains;
        if trains && known == state.position.task && state.position.stored < known {
            return Err(RunError::State {
                path: self.directory.files().states()[0].join(POSITION),
                fault: StateFault::LastTaskNotStored { task: known },
            });
        }
        // The weights within a task are those of no evaluation. A model per task is the pretrained
        // one on all other tasks.
        let within = state.position.step > 0;
        let is_measured = |index: &usize| {
            *index == 0 || self.request.method.per_task || *index == last && !within
        };
        for index in (0..=last).filter(is_measured) {
            let known = state.position.evaluations[index].accuracies.len();
            let per_task = self.request.method.per_task && index > 0;
            let name = |task: usize| self.suite.tasks[task].name.clone();
            let cells = (known..all)
                .map(|task| {
                    if per_task {
                        let first = &state.position.evaluations[0];
                        let retrieval = first.caption_tasks.get(&name(task)).copied();
                        return Ok((first.accuracies[task], retrieval.map(|r| (name(task), r))));
                    }
                    let mut working = phase_reporter(progress);
                    let mut report = |done, of| working(Phase::Evaluation, done, of);
                    let found = self.measure(state, index, task, &mut report)?;
                    Ok((Some(found.cell), found.retrieval.map(|r| (name(task), r))))
                })
                .collect::<Result<Vec<_>, RunError>>()?;
            let evaluation = &mut state.position.evaluations[index];
            if let Some(without) = &mut evaluation.without_identity {
                without.resize(all, None);
            }
            for (cell, retrieval) in cells {
                evaluation.accuracies.push(cell);
                evaluation.caption_tasks.extend(retrieval);
            }
            let evaluation = &state.position.evaluations[index];
            self.report(evaluation, index.checked_sub(1), progress)?;
        }
        if within {
            return Ok(());
        }
        self.save(state, None)
    }

    /// Measures the open cells of earlier stages with the models that their checkpoints keep. Returns
    /// whether there were any.
    pub(super) fn backfill(
        &self,
        position: &mut Position,
        progress: &mut dyn Progress,
    ) -> Result<bool, RunError> {
        let (files, ids) = (self.directory.files(), self.state_ids());
        let mut filled = false;
        for index in 1..position.evaluations.len() {
            let accuracies = &mut position.evaluations[index].accuracies;
            accuracies.resize(self.suite.tasks.len(), None);
            let has_images = |task: &usize| !self.suite.tasks[*task].test_images().is_empty();
            let open: Vec<usize> = (0..accuracies.len())
                .filter(|task| accuracies[*task].is_none())
                .filter(has_images)
                .collect();
            let checkpoint = files.checkpoint(index - 1);
            let kept = RunFiles::kept_state(&checkpoint);
            if open.is_empty() || !kept.exists() {
                continue;
            }
            let (mechanisms, context) = (&self.mechanisms, self.context());
            let earlier = load_kept_state(&checkpoint, &kept, &ids, mechanisms, &context)?;
            for task in open {
                let mut working = phase_reporter(progress);
                let mut report = |done, of| working(Phase::Evaluation, done, of);
                let found = self.measure(&earlier, index, task, &mut report)?;
                let evaluation = &mut position.evaluations[index];
                evaluation.accuracies[task] = Some(found.cell);
                let name = self.suite.tasks[task].name.clone();
                let retrieval = found.retrieval.map(|r| (name, r));
                evaluation.caption_tasks.extend(retrieval);
                filled = true;
            }
        }
        Ok(filled)
    }

    /// Returns the measure of the model of evaluation `index` on a task. `state` is that after the
    /// evaluation.
    fn measure(
        &self,
        state: &RunState,
        index: usize,
        task: usize,
        report: &mut dyn FnMut(usize, usize),
    ) -> Result<TaskMeasure, RunError> {
        let evaluator = self.evaluator();
        let pretrained = &self.checkpoint.model;
        if index == 0 {
            return Ok(evaluator.measure(pretrained, None, None, task, report)?);
        }
        let stage = Some(index - 1);
        let mut mechanisms = self.mechanisms.iter();
        let encoder = mechanisms.find_map(|m| m.encoder(pretrained, state, index));
        let scorer = self
            .mechanisms
            .iter()
            .find_map(|m| m.scorer(state, self.suite));
        let model = state.model.valid();
        let encoder = encoder.as_deref().unwrap_or(&model);
        Ok(evaluator.measure(encoder, scorer.as_deref(), stage, task, report)?)
    }

    /// Drops the cells of tasks that were taken back, and in whose places others may be now.
    pub(super) fn drop_other_columns(&self, position: &mut Position) {
        let digests = self.directory.lineage().digests();
        let equal = |(a, b): &(&String, &String)| a == b;
        let columns = position.columns.iter().zip(&digests);
        let kept = match position.columns.is_empty() {
            true => digests.len(),
            false => columns.take_while(equal).count(),
        };
        for evaluation in &mut position.evaluations {
            evaluation.accuracies.truncate(kept);
            let names = self.suite.tasks.iter().take(kept).map(|task| &task.name);
            let names: Vec<&String> = names.collect();
            evaluation
                .caption_tasks
                .retain(|name, _| names.contains(&name));
            if let Some(without) = &mut evaluation.without_identity {
                without.truncate(kept);
            }
        }
    }
}

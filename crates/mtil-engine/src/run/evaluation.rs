//! Evaluation after a task, and the rules of the drift guard on it.

use clip_model::ClipModel;

use super::{
    Comparison, Event, Progress,
    engine::{Engine, phase_reporter},
};
use mtil_eval::{
    eval::{Encoder, Evaluation, Evaluator, Scorer, TestSubset},
    guard::{Action, Observation},
};
use mtil_methods::{
    error::{RunError, StateFault},
    mechanism::{
        context::Phase,
        state::{POSITION, RunState},
    },
};

impl Engine<'_> {
    /// Records the broken rules of the drift guard, which may end the run. Returns one that wants the
    /// task taken back.
    pub(super) fn check_guard(
        &self,
        state: &mut RunState,
        evaluation: &Evaluation,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<Option<String>, RunError> {
        let evaluations = &state.position.evaluations;
        let (Some(first), Some(last)) = (evaluations.first(), evaluations.last()) else {
            return Ok(None);
        };
        let names = || self.suite.tasks.iter().map(|t| t.name.clone());
        let by_name = |accuracies: &[Option<f64>]| {
            let known = names().zip(accuracies);
            known.filter_map(|(name, a)| Some((name, (*a)?))).collect()
        };
        let breaches = self.guard.evaluate(&Observation {
            stage: names().nth(index),
            accuracies: by_name(&evaluation.accuracies),
            zero_shot: by_name(&first.accuracies),
            gap: evaluation.modality_gap,
            first_gap: first.modality_gap,
            before: by_name(&last.under_later_prompts(index.checked_sub(1))),
            recall: evaluation.retrieval.mean_r1(),
            first_recall: first.retrieval.mean_r1(),
            learned: names()
                .take(if self.request.method.joint {
                    self.suite.tasks.len()
                } else {
                    index + 1
                })
                .collect(),
        });
        for breach in breaches {
            let event = Event::Guard {
                stage: index + 1,
                breach: breach.clone(),
            };
            self.emit(event, progress)?;
            state.position.stopped_by_guard |= breach.action == Action::Stop;
            state.position.breaches.push(breach);
        }
        let mut breaches = state.position.breaches.iter();
        let undo = breaches.find(|breach| breach.action == Action::Undo);
        Ok(undo.map(|breach| breach.message.clone()))
    }

    /// Reports what task `index` changed, unless all tasks are learned at once.
    pub(super) fn compare(
        &self,
        state: &RunState,
        evaluation: &Evaluation,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<(), RunError> {
        let evaluations = &state.position.evaluations;
        let (Some(first), Some(before)) = (evaluations.first(), evaluations.last()) else {
            return Ok(());
        };
        if self.request.method.joint {
            return Ok(());
        }
        let names: Vec<String> = self.suite.tasks.iter().map(|t| t.name.clone()).collect();
        let compared = Comparison::new(&names, index, [first, before, evaluation]);
        self.emit(Event::Compared(Box::new(compared)), progress)
    }

    /// Evaluates after task `index`.
    pub(super) fn evaluate_stage(
        &mut self,
        state: &RunState,
        trained: &ClipModel,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<Evaluation, RunError> {
        let method = &self.request.method;
        let stage = Some(if method.joint {
            self.suite.tasks.len() - 1
        } else {
            index
        });
        if method.per_task {
            return self.evaluate_own_task(state, trained, index, progress);
        }
        let (mechanisms, suite) = (self.mechanisms.clone(), self.suite);
        let mut all = mechanisms.iter();
        let encoder = all.find_map(|m| m.encoder(&self.checkpoint.model, state, index + 1));
        let scorer = mechanisms.iter().find_map(|m| m.scorer(state, suite));
        match encoder {
            Some(encoder) => self.evaluate(encoder.as_ref(), scorer.as_deref(), stage, progress),
            None => self.evaluate(trained, scorer.as_deref(), stage, progress),
        }
    }

    /// Evaluates a method with a model per task on task `index` only: the models of the other
    /// tasks, and so their accuracies, are unchanged.
    fn evaluate_own_task(
        &self,
        state: &RunState,
        trained: &ClipModel,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<Evaluation, RunError> {
        let stage = Some(index);
        let Some(last) = state.position.evaluations.last() else {
            let reason = "the evaluations of earlier tasks are missing".to_owned();
            return Err(RunError::State {
                path: self.directory.files().states()[0].join(POSITION),
                fault: StateFault::Unreadable(reason),
            });
        };
        let mut evaluation = last.clone();
        let mut working = phase_reporter(progress);
        let mut report = |done, of| working(Phase::Evaluation, done, of);
        let measured = self
            .evaluator()
            .measure(trained, None, stage, index, &mut report)?;
        drop(working);
        evaluation.accuracies[index] = Some(measured.cell);
        let name = || self.suite.tasks[index].name.clone();
        let retrieval = measured.retrieval.map(|found| (name(), found));
        evaluation.caption_tasks.extend(retrieval);
        evaluation.without_identity = None;
        let all = self.suite.tasks.len();
        evaluation.thinned = self
            .request
            .evaluation
            .images_at(stage, all)
            .map(TestSubset);
        self.report(&evaluation, stage, progress)?;
        Ok(evaluation)
    }

    pub(super) fn evaluator(&self) -> Evaluator<'_> {
        Evaluator {
            checkpoint: self.checkpoint,
            suite: self.suite,
            options: &self.request.evaluation,
            images: &self.images,
            seed: self.request.seed,
        }
    }

    pub(super) fn evaluate(
        &mut self,
        encoder: &dyn Encoder,
        scorer: Option<&dyn Scorer>,
        stage: Option<usize>,
        progress: &mut dyn Progress,
    ) -> Result<Evaluation, RunError> {
        // Classifier weights are cached until the text tower changes.
        if std::mem::take(&mut self.text_changed) {
            self.heads.clear();
        }
        let mut heads = std::mem::take(&mut self.heads);
        let (evaluation, details) = {
            let mut working = phase_reporter(progress);
            let mut report = |done, of| working(Phase::Evaluation, done, of);
            let evaluator = self.evaluator();
            evaluator.evaluate(encoder, scorer, stage, &mut heads, &mut report)?
        };
        self.heads = heads;
        self.write_details(stage, &details)?;
        self.report(&evaluation, stage, progress)?;
        Ok(evaluation)
    }
}

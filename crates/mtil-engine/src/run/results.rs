//! Result files of a run: accuracy matrix, metrics, details of an evaluation.

use std::{collections::BTreeMap, fs};

use super::{
    EvaluationRecord, Event, Progress,
    engine::{Engine, peak_rss_mb},
};
use mtil_data::files::write_atomically;
use mtil_eval::{
    eval::{Evaluation, TaskDetails, TaskIdentity},
    metrics::{Kept, MatrixFile, MetricsFile},
};
use mtil_methods::{
    error::RunError,
    mechanism::{
        json_file::write_json,
        state::{Position, RunState},
    },
};

impl Engine<'_> {
    /// Emits the event of an evaluation.
    pub(super) fn report(
        &self,
        evaluation: &Evaluation,
        stage: Option<usize>,
        progress: &mut dyn Progress,
    ) -> Result<(), RunError> {
        let name = stage.map(|stage| self.suite.tasks[stage].name.as_str());
        let rule = self.request.evaluation.prompts;
        let evaluated = EvaluationRecord::new(evaluation, stage, name, rule);
        self.emit(Event::Evaluation(Box::new(evaluated)), progress)
    }

    /// Writes `details/stage-NN.json` and the confusion matrices beside it.
    pub(super) fn write_details(
        &self,
        stage: Option<usize>,
        details: &[TaskDetails],
    ) -> Result<(), RunError> {
        if details.is_empty() {
            return Ok(());
        }
        let folder = self.directory.files().details();
        fs::create_dir_all(&folder).map_err(|e| RunError::io(&folder, e))?;
        let name = format!("stage-{:02}", stage.map_or(0, |s| s + 1));
        let path = folder.join(format!("{name}.json"));
        write_json(&details, &path)?;
        for details in details.iter().filter(|of| !of.confusion_csv.is_empty()) {
            let mut tasks = self.suite.tasks.iter();
            let column = tasks.position(|task| task.name == details.task);
            let column = column.unwrap_or_default();
            let path = folder.join(format!("{name}-confusion-{column:02}.csv"));
            write_atomically(&path, details.confusion_csv.as_bytes())
                .map_err(|e| RunError::io(&path, e))?;
        }
        Ok(())
    }

    /// Writes the accuracy matrices and `metrics.json`.
    pub(super) fn write_results(&self, state: &RunState) -> Result<MetricsFile, RunError> {
        let position = &state.position;
        let method = &self.request.method;
        let evaluations = &position.evaluations;
        let tasks = self.suite.tasks.len();
        type Cells = Vec<Option<f64>>;
        // Evaluations before a task was added have no cell for it.
        let padded = |mut cells: Cells| {
            cells.resize(tasks, None);
            cells
        };
        let rows = |of: &dyn Fn(&Evaluation) -> Option<Cells>| -> Option<Vec<Cells>> {
            let rows = evaluations.iter().skip(1).map(|e| of(e).map(padded));
            let rows: Option<Vec<_>> = rows.collect();
            // Joint training has one stage, which stands in every row.
            rows.map(|rows| match rows.as_slice() {
                [one] if method.joint => vec![one.clone(); tasks],
                _ => rows,
            })
        };
        let with_pairs = self.suite.tasks.iter().filter(|t| t.captions().is_some());
        let retrieval_tasks: Vec<String> = with_pairs.map(|t| t.name.clone()).collect();
        let file = |zero_shot: Cells, matrix: Vec<Cells>| MatrixFile {
            suite: self.request.suite.clone(),
            method: method.name.clone(),
            seed: self.request.seed,
            prompt_rule: serde_json::to_value(self.request.evaluation.prompts)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default(),
            order: self.suite.tasks.iter().map(|t| t.name.clone()).collect(),
            zero_shot,
            matrix,
            learned: Vec::new(),
            retrieval_tasks: retrieval_tasks.clone(),
        };
        let first = |of: &dyn Fn(&Evaluation) -> Option<Cells>| {
            evaluations.first().and_then(of).map(padded)
        };
        let given = |e: &Evaluation| Some(e.accuracies.clone());
        let mut matrix = file(
            first(&given).unwrap_or_default(),
            rows(&given).unwrap_or_default(),
        );
        // Evaluations of earlier versions lack these accuracies.
        let learned: Option<Vec<f64>> = evaluations.iter().skip(1).map(|e| e.learned).collect();
        matrix.learned = learned.filter(|_| !method.joint).unwrap_or_default();
        let accuracy = matrix.accuracy()?;
        // Without training, all rows of the matrix are those of the pretrained model.
        let constant = if method.trains {
            None
        } else {
            accuracy.as_constant()
        };
        let mut metrics = MetricsFile::from_matrix(constant.as_ref().unwrap_or(&accuracy));
        if method.joint {
            // Undefined for a single stage.
            (metrics.transfer, metrics.bwt, metrics.forgetting) = (None, None, None);
        }
        metrics.modality_gap = evaluations.iter().map(|e| e.modality_gap).collect();
        metrics.retrieval = evaluations.iter().map(|e| e.retrieval).collect();
        metrics.wall_seconds = Some(position.seconds);
        metrics.peak_rss_mb = match (peak_rss_mb(), position.peak_mb) {
            (Some(now), Some(before)) => Some(now.max(before)),
            (now, before) => now.or(before),
        };
        metrics.trainable_parameters = Some(position.trainable);
        metrics.kept = self.kept(state);
        metrics.bytes_kept = Some(metrics.kept.values().sum());
        metrics.notes = self.notes(position);
        if accuracy.open_cells() > 0 {
            metrics.notes.push(format!(
                "open cells of the accuracy matrix: {} of {}, because tasks were added after others \
                 were learned, or test images are gone; the figures are over the other cells",
                accuracy.open_cells(),
                tasks * accuracy.rows().len()
            ));
        }
        let gone: Vec<&str> = self.suite.gone_tasks().collect();
        if !gone.is_empty() {
            metrics.notes.push(format!(
                "tasks whose images are gone, which stay learned: {}",
                gone.join(", ")
            ));
        }
        metrics.complete = !method.trains || evaluations.len() == self.stages() + 1;
        let path = self.directory.path();
        matrix.save(&path.join(MatrixFile::NAME))?;
        let without = |e: &Evaluation| e.without_identity.clone();
        if let (Some(zero_shot), Some(rows)) = (first(&without), rows(&without)) {
            file(zero_shot, rows).save(&path.join(MatrixFile::WITHOUT_IDENTITY))?;
        }
        metrics.save(&path.join(MetricsFile::NAME))?;
        Ok(metrics)
    }

    /// Returns the bytes carried from task to task besides the model, by what they are: the states
    /// of mechanisms, a model per task, and the pretrained weights, where later tasks need them.
    pub(super) fn kept(&self, state: &RunState) -> BTreeMap<Kept, u64> {
        let method = self.method();
        let mut kept = state.kept(self.checkpoint);
        let mut weights = 0;
        if method.per_task {
            weights += 4 * state.position.trainable * state.position.task as u64;
        }
        if method.trains && method.needs().pretrained {
            weights += 4 * self.checkpoint.model.num_parameters() as u64;
        }
        *kept.entry(Kept::Weights).or_default() += weights;
        kept.retain(|_, bytes| *bytes > 0);
        kept
    }

    /// Collects the notes for the reader of the results.
    fn notes(&self, position: &Position) -> Vec<String> {
        let method = &self.request.method;
        let mut notes = self.request.evaluation.notes();
        if method.joint {
            notes.push(
                "trained on all tasks at once: one evaluation stands in every row, \
                 and Transfer, BWT and Forgetting have no meaning"
                    .to_owned(),
            );
        }
        if method.per_task {
            notes.push(
                "a model for each task, chosen by the task; \
                 gap and retrieval are the pretrained model's"
                    .to_owned(),
            );
        }
        if self.request.evaluation.identity != TaskIdentity::Given {
            notes.push(match method.needs_task() {
                true => "the task of an image is needed to choose what answers, \
                     so there are no figures without it"
                    .to_owned(),
                false => format!(
                    "with the task of an image given; {} has the accuracies without it",
                    MatrixFile::WITHOUT_IDENTITY
                ),
            });
        }
        notes.extend(self.mechanisms.iter().flat_map(|m| m.notes()));
        if position.stopped_by_guard {
            notes.push("ended by the drift guard".to_owned());
        }
        notes
    }
}

//! The loop over tasks.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use burn::{module::Module, tensor::Device};
use clip_model::{Clip, ClipModel, Dtype};
use gnsp_optimizer::Memory;
use serde_json::json;

use super::{
    Event, Progress, Request, RunDirectory, RunError,
    gram::remember,
    reference::Reference,
    state::{Position, State},
    train::{TaskTraining, optimizer, set_trainable},
};
use crate::{
    batch::Images,
    eval::{Evaluation, HeadCache, evaluate},
    method::Teacher,
    metrics::{MatrixFile, MetricsFile},
    suite::Suite,
};

/// How a run is done, as opposed to what it computes: none of this changes a result.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Write the resumable state every so many updates, besides the end of each task.
    pub save_every: usize,
    /// Write an event every so many updates.
    pub log_every: usize,
    /// Write the model after each task.
    pub checkpoints: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            save_every: 200,
            log_every: 10,
            checkpoints: true,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All tasks are trained and evaluated.
    Complete(MetricsFile),
    /// Stopped on request; the same call goes on from here.
    Stopped,
}

/// Does, or goes on with, the run of `request` in `folder`. `checkpoint` is the pretrained model on the
/// plain `device`. Setting `stop` ends the run cleanly at the next update.
///
/// # Errors
/// [`RunError`] with what to do. What was saved before is never lost.
#[allow(clippy::too_many_arguments)]
pub fn run(
    request: &Request,
    suite: &Suite,
    checkpoint: &Clip,
    device: &Device,
    folder: &Path,
    options: &RunOptions,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Outcome, RunError> {
    let directory = RunDirectory::open(folder, request)?;
    let method = &request.method;
    let images = Images::new(
        checkpoint.preprocess.clone(),
        method.crop_scale,
        request.skip_bad_images,
    );
    let mut engine = Engine {
        request,
        suite,
        checkpoint,
        device: device.clone().autodiff(),
        options,
        directory,
        images,
        heads: HeadCache::default(),
        started: Instant::now(),
        seconds_before: 0.0,
        text_changed: false,
    };
    engine.go(stop, progress)
}

struct Engine<'a> {
    request: &'a Request,
    suite: &'a Suite,
    checkpoint: &'a Clip,
    /// With autodiff.
    device: Device,
    options: &'a RunOptions,
    directory: RunDirectory,
    images: Images,
    heads: HeadCache,
    started: Instant,
    seconds_before: f64,
    text_changed: bool,
}

impl Engine<'_> {
    fn go(&mut self, stop: &AtomicBool, progress: &mut dyn Progress) -> Result<Outcome, RunError> {
        let method = &self.request.method;
        let tasks = self.suite.tasks.len();
        let state = State::load(self.directory.path(), self.checkpoint, &self.device)?;
        let resumed = state.as_ref().map(|s| (s.position.task, s.position.step));
        progress.event(&Event::Start {
            method: &method.name,
            tasks,
            resumed,
        });
        self.directory.append_event(&json!({
            "event": if resumed.is_some() { "resume" } else { "start" },
            "task": resumed.map(|r| r.0), "step": resumed.map(|r| r.1),
        }))?;
        let mut state = match state {
            Some(state) => state,
            None => State {
                position: Position::default(),
                // The student starts as the pretrained model, on the autodiff device.
                model: self.checkpoint.model.clone().train(),
                optimizer: Vec::new(),
                memory: Memory::new(),
                previous: None,
            },
        };
        self.seconds_before = state.position.seconds;

        if state.position.evaluations.is_empty() {
            let evaluation = self.evaluate(&self.checkpoint.model.clone(), None, progress)?;
            state.position.evaluations.push(evaluation);
            self.save(&mut state, None)?;
        }
        self.write_results(&state.position)?;
        if !method.trains {
            state.position.task = tasks;
        }
        while state.position.task < tasks {
            if !self.task(&mut state, stop, progress)? {
                self.write_results(&state.position)?;
                return Ok(Outcome::Stopped);
            }
        }
        self.save(&mut state, None)?;
        let metrics = self.write_results(&state.position)?;
        let skipped = self.images.skipped();
        if !skipped.is_empty() {
            progress.event(&Event::Skipped { names: &skipped });
            self.directory.append_event(
                &json!({"event": "skipped_images", "count": skipped.len(), "names": skipped}),
            )?;
        }
        progress.event(&Event::Done);
        Ok(Outcome::Complete(metrics))
    }

    /// Trains the task at the position, evaluates, remembers. False when stopped.
    fn task(
        &mut self,
        state: &mut State,
        stop: &AtomicBool,
        progress: &mut dyn Progress,
    ) -> Result<bool, RunError> {
        let method = &self.request.method;
        let index = state.position.task;
        let task = &self.suite.tasks[index];
        let started = Instant::now();
        let needs_previous = method.teacher == Teacher::Previous && method.cd > 0.0;
        if state.position.step == 0 {
            self.directory
                .append_event(&json!({"event": "task_start", "task": index, "name": task.name}))?;
            state.previous = needs_previous.then(|| state.model.clone());
        }
        let (model, text_trains) = set_trainable(state.model.clone(), method, index)?;
        let memory = if index == 0 { &EMPTY } else { &state.memory };
        let (fresh, ranks) = optimizer(method, &model, memory)?;
        if state.position.step == 0 && !ranks.is_empty() {
            self.directory
                .append_event(&json!({"event": "gram", "task": index, "ranks": ranks}))?;
        }
        let mut optimizer = if state.optimizer.is_empty() {
            fresh
        } else {
            let bytes = burn::tensor::Bytes::from_bytes_vec(std::mem::take(&mut state.optimizer));
            fresh.from_bytes(bytes).map_err(|e| RunError::Corrupt {
                path: self.directory.path().join("state/optimizer.bpk"),
                reason: format!("{e:?}"),
            })?
        };
        let student = model.valid();
        let reference = if method.cd > 0.0 || method.map > 0.0 {
            let teacher = match (&state.previous, needs_previous) {
                (Some(previous), true) => previous.valid(),
                _ => self.checkpoint.model.clone(),
            };
            Some(Reference::new(
                self.checkpoint,
                &self.suite.reference,
                method.reference_pairs,
                method.reference_batch,
                self.request.seed,
                index,
                &teacher,
                (!text_trains).then_some(&student),
                &self.images,
                &self.device,
            )?)
        } else {
            None
        };
        let images = self.images.clone();
        let training = TaskTraining::new(
            self.checkpoint,
            method,
            task,
            index,
            self.request.seed,
            &images,
            reference,
            &student,
            text_trains,
        )?;
        let mut model = model;
        let first = state.position.step;
        let mut seen = 0_usize;
        while state.position.step < method.steps {
            if stop.load(Ordering::Relaxed) {
                state.model = model;
                self.save(state, Some(&optimizer))?;
                return Ok(false);
            }
            let step = state.position.step;
            let (next, loss) = training.step(model, &mut optimizer, step, &self.device)?;
            let lr = method.lr_at(index, step);
            if !loss.total.is_finite() {
                self.directory
                    .append_event(&json!({"event": "diverged", "task": index, "step": step + 1}))?;
                return Err(RunError::Diverged {
                    task: task.name.clone(),
                    step: step + 1,
                    steps: method.steps,
                    loss: loss.total,
                    lr,
                });
            }
            model = next;
            state.position.step += 1;
            seen += loss.images;
            let images_per_second = seen as f64 / started.elapsed().as_secs_f64().max(1e-9);
            let done = state.position.step;
            progress.event(&Event::Step {
                task: index,
                name: &task.name,
                step: done,
                steps: method.steps,
                loss: loss.total,
                parts: loss.parts,
                lr,
                images_per_second,
            });
            if done.is_multiple_of(self.options.log_every)
                || done == method.steps
                || done == first + 1
            {
                self.directory.append_event(&json!({
                    "event": "step", "task": index, "step": done, "steps": method.steps, "lr": lr, "loss": loss.total,
                    "parts": {"task": loss.parts[0], "cd": loss.parts[1], "map": loss.parts[2]},
                    "images_per_s": images_per_second,
                }))?;
            }
            if done.is_multiple_of(self.options.save_every) && done < method.steps {
                state.model = model.clone();
                self.save(state, Some(&optimizer))?;
            }
        }
        // Everything below is done again after a stop in it: it is short, and deterministic.
        let trained = model.valid();
        self.text_changed |= text_trains;
        let evaluation = self.evaluate(&trained, Some(index), progress)?;
        let mut memory = state.memory.clone();
        if let Some(projection) = &method.projection
            && index + 1 < self.suite.tasks.len()
            && !remember(
                &mut memory,
                &trained,
                task,
                index,
                projection,
                self.request.seed,
                &self.images,
                stop,
                progress,
            )?
        {
            state.model = model;
            self.save(state, Some(&optimizer))?;
            return Ok(false);
        }
        state.memory = memory;
        state.model = model;
        state.position.evaluations.push(evaluation);
        state.position.task += 1;
        state.position.step = 0;
        state.previous = None;
        if self.options.checkpoints {
            let folder = self
                .directory
                .path()
                .join(format!("checkpoints/task-{:02}", index + 1));
            let saved = Clip {
                model: trained,
                ..self.checkpoint.clone()
            };
            saved.save(&folder, Dtype::F32)?;
        }
        self.directory.append_event(&json!({
            "event": "task_end", "task": index, "seconds": started.elapsed().as_secs_f64(),
        }))?;
        self.save(state, None)?;
        self.write_results(&state.position)?;
        Ok(true)
    }

    fn evaluate(
        &mut self,
        model: &ClipModel,
        stage: Option<usize>,
        progress: &mut dyn Progress,
    ) -> Result<Evaluation, RunError> {
        // Classifier weights outlive a stage only while the text tower does not change.
        if std::mem::take(&mut self.text_changed) {
            self.heads.clear();
        }
        let evaluation = evaluate(
            self.checkpoint,
            model,
            &self.suite.tasks,
            &self.suite.held_out,
            self.request.prompt_rule,
            stage,
            &mut self.heads,
            &self.images,
            &mut |done, of| progress.event(&Event::Evaluating { done, of }),
        )?;
        let mean = evaluation.accuracies.iter().sum::<f64>() / evaluation.accuracies.len() as f64;
        progress.event(&Event::Evaluated {
            stage: stage.map(|s| self.suite.tasks[s].name.as_str()),
            mean,
            gap: evaluation.modality_gap,
        });
        self.directory.append_event(&json!({
            "event": "evaluation", "stage": stage, "accuracies": evaluation.accuracies,
            "prompt_rule": self.request.prompt_rule, "modality_gap": evaluation.modality_gap,
        }))?;
        Ok(evaluation)
    }

    fn save(
        &self,
        state: &mut State,
        optimizer: Option<&burn::optim::ModuleOptimizer>,
    ) -> Result<(), RunError> {
        state.position.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        State::save(
            self.directory.path(),
            self.checkpoint,
            &state.position,
            &state.model,
            optimizer,
            &state.memory,
            state.previous.as_ref(),
        )
    }

    fn write_results(&self, position: &Position) -> Result<MetricsFile, RunError> {
        let evaluations = &position.evaluations;
        let matrix = MatrixFile {
            suite: self.request.suite.clone(),
            method: self.request.method.name.clone(),
            seed: self.request.seed,
            prompt_rule: serde_json::to_value(self.request.prompt_rule)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default(),
            order: self.suite.tasks.iter().map(|t| t.name.clone()).collect(),
            zero_shot: evaluations
                .first()
                .map(|e| e.accuracies.clone())
                .unwrap_or_default(),
            matrix: evaluations
                .iter()
                .skip(1)
                .map(|e| e.accuracies.clone())
                .collect(),
        };
        let accuracy = matrix.accuracy()?;
        // The pretrained model's figures are those of a matrix whose rows are all its own.
        let constant = if self.request.method.trains {
            None
        } else {
            accuracy.as_constant()
        };
        let mut metrics = MetricsFile::of(constant.as_ref().unwrap_or(&accuracy));
        metrics.modality_gap = evaluations.iter().map(|e| e.modality_gap).collect();
        metrics.retrieval = evaluations.iter().map(|e| e.retrieval).collect();
        metrics.wall_seconds = Some(position.seconds);
        metrics.peak_rss_mb = peak_rss_mb();
        metrics.complete =
            !self.request.method.trains || evaluations.len() == self.suite.tasks.len() + 1;
        let path = self.directory.path();
        matrix.save(&path.join(MatrixFile::NAME))?;
        metrics.save(&path.join(MetricsFile::NAME))?;
        Ok(metrics)
    }
}

static EMPTY: std::sync::LazyLock<Memory> = std::sync::LazyLock::new(Memory::new);

/// Peak resident memory of this process in MB, where the operating system tells (Linux).
fn peak_rss_mb() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kb: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kb / 1024.0)
}

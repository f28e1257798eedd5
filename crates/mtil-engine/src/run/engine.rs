//! The loop over tasks.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use burn::{
    module::Module,
    optim::ModuleOptimizer,
    tensor::{Bytes, Device},
};
use clip_model::{Clip, ClipModel, Dtype};

use super::{
    Event, Progress, Request, RunDirectory, Update,
    student::Student,
    train::{TaskTraining, projected, ranks},
};
use crate::{
    batch::Images,
    error::RunError,
    eval::{Answer, Encoder, Evaluation, Evaluator, HeadCache, ThinnedBy, to_host},
    guard::{Action, Guard, Observation},
    mechanism::{
        hooks::{Mechanism, fresh_state, load_state},
        setting::{Setting, TaskSetting, Watch, Work},
        state::{Position, State},
        task_part::TaskPart,
    },
    method::{Method, Start},
    metrics::MetricsFile,
    tape::with_tape,
};
use mtil_data::{machine, suite::Suite};

/// How a run is done, as opposed to what it computes: none of this changes a result by more than
/// rounding.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Write the resumable state every so many updates, besides the end of each task.
    pub save_every: usize,
    /// Write an event every so many updates.
    pub log_every: usize,
    /// Write the model after each task.
    pub checkpoints: bool,
    /// Keep images as they are fed to the model in this folder.
    pub cache: Option<PathBuf>,
    /// Further devices that the images of an update are spread over, those of [`Request::peers`].
    /// Sums are made in another order then, so results equal those of one device up to rounding.
    pub peers: Vec<Device>,
    /// Compute activations again in the backward pass in place of keeping them: less memory, more
    /// time, the same numbers.
    pub checkpointing: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            save_every: 200,
            log_every: 10,
            checkpoints: true,
            cache: None,
            peers: Vec::new(),
            checkpointing: false,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // There is one of them a run.
pub enum Outcome {
    /// All tasks are trained and evaluated.
    Complete(MetricsFile),
    /// Stopped on request; the same call goes on from here.
    Stopped,
    /// Ended by the drift guard; what was reached is kept.
    Guarded(String),
}

/// Does, or goes on with, the run of `request` in `folder`. `checkpoint` is the pretrained model on
/// the plain `device`. Setting `stop` ends the run cleanly at the next update.
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
    // The peak of an earlier run in this process is not this run's.
    machine::reset_peak();
    let method = &request.method;
    let images = Images::new(
        checkpoint.preprocess.clone(),
        method.crop_scale,
        request.skip_bad_images,
    );
    let names: Vec<String> = suite.tasks.iter().map(|t| t.name.clone()).collect();
    let guard = Guard::parse(&request.guard, &names)?;
    let images = match &options.cache {
        Some(folder) => images.with_cache(folder),
        None => images,
    };
    if let Some(select) = &request.select {
        select.candidates(method)?;
    }
    let mechanisms: Mechanisms = method.mechanisms().into();
    let adapters = mechanisms.iter().any(|m| m.trains_adapters());
    if !options.peers.is_empty() && adapters {
        return Err(RunError::Peers {
            method: method.name.clone(),
        });
    }
    if !method.compute.is_full() && adapters {
        return Err(RunError::Compute {
            method: method.name.clone(),
        });
    }
    let mut computing = std::iter::once(device).chain(&options.peers);
    if !computing.all(|device| device.supports_dtype(method.compute.dtype())) {
        return Err(RunError::NoSuchCompute {
            device: request.device.clone(),
        });
    }
    let mut engine = Engine {
        request,
        suite,
        checkpoint,
        mechanisms,
        device: with_tape(device, options.checkpointing),
        options,
        directory,
        images,
        heads: HeadCache::default(),
        guard,
        started: Instant::now(),
        seconds_before: 0.0,
        text_changed: false,
    };
    let outcome = engine.run_tasks(stop, progress);
    if let Err(error) = &outcome {
        // For whoever looks at the folder later; the caller gets the error in any case.
        let _ = engine.directory.record(&Event::failed(error));
    }
    outcome
}

type Mechanisms = Rc<[Box<dyn Mechanism>]>;

pub(super) struct Engine<'a> {
    pub(super) request: &'a Request,
    pub(super) suite: &'a Suite,
    pub(super) checkpoint: &'a Clip,
    pub(super) mechanisms: Mechanisms,
    /// With autodiff.
    pub(super) device: Device,
    options: &'a RunOptions,
    pub(super) directory: RunDirectory,
    pub(super) images: Images,
    heads: HeadCache,
    guard: Guard,
    started: Instant,
    seconds_before: f64,
    text_changed: bool,
}

impl Engine<'_> {
    fn run_tasks(
        &mut self,
        stop: &AtomicBool,
        progress: &mut dyn Progress,
    ) -> Result<Outcome, RunError> {
        let trains = self.request.method.trains;
        let stages = self.stages();
        let mut state = self.open_state(stages, progress)?;
        self.seconds_before = state.position.seconds;
        let done = state.position.task >= stages || state.position.stopped_by_guard;
        if let (true, Ok(Some(metrics))) = (done, self.directory.files().metrics()) {
            self.emit(Event::Done, progress)?;
            return Ok(outcome(&state.position, metrics));
        }
        if state.position.evaluations.is_empty() {
            let pretrained = self.checkpoint.model.clone();
            let evaluation = self.evaluate(&pretrained, None, None, progress)?;
            state.position.evaluations.push(evaluation);
            self.save(&mut state, None)?;
        }
        self.write_results(&state)?;
        if !trains {
            state.position.task = stages;
        }
        while state.position.task < stages && !state.position.stopped_by_guard {
            if stop.load(Ordering::Relaxed) {
                return Ok(Outcome::Stopped);
            }
            if !self.run_task(&mut state, stop, progress)? {
                self.write_results(&state)?;
                return Ok(Outcome::Stopped);
            }
        }
        self.save(&mut state, None)?;
        let metrics = self.write_results(&state)?;
        for text in self.images.cache_report().problems {
            self.emit(Event::Note { text }, progress)?;
        }
        let names = self.images.skipped();
        if !names.is_empty() {
            let count = names.len();
            self.emit(Event::SkippedImages { count, names }, progress)?;
        }
        self.emit(Event::Done, progress)?;
        Ok(outcome(&state.position, metrics))
    }

    /// The state to resume from, or that of a run that has not begun.
    fn open_state(&self, stages: usize, progress: &mut dyn Progress) -> Result<State, RunError> {
        let (mechanisms, setting) = (&self.mechanisms, self.setting());
        let method = self.request.method.name.clone();
        let Some(folder) = self.directory.files().state() else {
            self.emit(Event::Start { method, stages }, progress)?;
            // The student starts as the pretrained model, on the autodiff device.
            let model = self.checkpoint.model.clone().train();
            return fresh_state(model, mechanisms, &setting);
        };
        let state = load_state(&folder, mechanisms, &setting)?;
        let event = Event::Resume {
            method,
            stages,
            task: state.position.task,
            step: state.position.step,
        };
        self.emit(event, progress)?;
        Ok(state)
    }

    /// Shows an event and records it.
    pub(super) fn emit(&self, event: Event, progress: &mut dyn Progress) -> Result<(), RunError> {
        progress.event(&event);
        self.directory.record(&event)
    }

    /// Stages of training: the tasks, or one for all of them.
    pub(super) fn stages(&self) -> usize {
        if self.request.method.joint {
            1
        } else {
            self.suite.tasks.len()
        }
    }

    pub(super) fn setting(&self) -> Setting<'_> {
        Setting {
            checkpoint: self.checkpoint,
            suite: self.suite,
            images: &self.images,
            device: &self.device,
            seed: self.request.seed,
        }
    }

    fn task_setting<'a>(&'a self, index: usize, frozen: Option<&'a ClipModel>) -> TaskSetting<'a> {
        TaskSetting {
            run: self.setting(),
            index,
            last: index + 1 == self.stages(),
            frozen,
        }
    }

    /// Trains the task at the position, evaluates, keeps what later tasks need. False when stopped.
    fn run_task(
        &mut self,
        state: &mut State,
        stop: &AtomicBool,
        progress: &mut dyn Progress,
    ) -> Result<bool, RunError> {
        let index = state.position.task;
        let started = Instant::now();
        if state.position.step == 0 {
            let name = self.suite.tasks[index].name.clone();
            self.emit(Event::TaskStart { task: index, name }, progress)?;
            self.begin(state);
        }
        let trained = match self.learn(state, index, progress)? {
            Some(model) => model,
            None => match self.train_selected(state, stop, progress)? {
                Some(trained) => trained,
                None => return Ok(false),
            },
        };
        // Everything below is done again after a stop in it: it is short, and deterministic.
        let evaluation = self.evaluate_stage(state, &trained, index, progress)?;
        if !self.keep(state, &trained, index, stop, progress)? {
            return Ok(false);
        }
        self.check_guard(state, &evaluation, index, progress)?;
        state.position.evaluations.push(evaluation);
        self.end(state, trained, index)?;
        let event = Event::TaskEnd {
            task: index,
            seconds: started.elapsed().as_secs_f64(),
        };
        self.emit(event, progress)?;
        self.save(state, None)?;
        self.write_results(state)?;
        Ok(true)
    }

    /// Puts a state at the start of its task.
    fn begin(&self, state: &mut State) {
        let method = &self.request.method;
        if method.start == Start::Pretrained {
            state.model = self.checkpoint.model.clone().train();
        }
        state.start = method.needs().start.then(|| state.model.valid());
        for mechanism in self.mechanisms.iter() {
            mechanism.begin(state);
        }
    }

    /// Has a mechanism learn the task that does so without updates; then the model is the
    /// pretrained one.
    fn learn(
        &self,
        state: &mut State,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<Option<ClipModel>, RunError> {
        let task = self.task_setting(index, None);
        let mut working = working(progress);
        for mechanism in self.mechanisms.iter() {
            if mechanism.learn(&task, state, &mut working)? {
                return Ok(Some(self.checkpoint.model.clone()));
            }
        }
        Ok(None)
    }

    /// Keeps of a trained task what later ones need. False when stopped, with the state as it was.
    fn keep(
        &self,
        state: &mut State,
        trained: &ClipModel,
        index: usize,
        stop: &AtomicBool,
        progress: &mut dyn Progress,
    ) -> Result<bool, RunError> {
        let task = self.task_setting(index, None);
        let mut progress = working(progress);
        let mut watch = Watch {
            stop,
            progress: &mut progress,
        };
        for mechanism in self.mechanisms.iter() {
            if !mechanism.keep(trained, &task, state, &mut watch)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts a state behind its task, and writes the checkpoint.
    fn end(&self, state: &mut State, trained: ClipModel, index: usize) -> Result<(), RunError> {
        state.position.task += 1;
        state.position.step = 0;
        state.start = None;
        for mechanism in self.mechanisms.iter() {
            mechanism.end(state);
        }
        state.model = trained.clone().train();
        if !self.options.checkpoints || !self.mechanisms.iter().all(|m| m.trains_weights()) {
            return Ok(());
        }
        let folder = self.directory.files().checkpoint(index);
        let saved = Clip {
            model: trained,
            ..self.checkpoint.clone()
        };
        saved.save(&folder, Dtype::F32)?;
        for mechanism in self.mechanisms.iter() {
            mechanism.save_checkpoint(&folder, state)?;
        }
        Ok(())
    }

    /// Makes the updates of a task, with the value of a setting that is best for it where one is to
    /// be chosen.
    fn train_selected(
        &mut self,
        state: &mut State,
        stop: &AtomicBool,
        progress: &mut dyn Progress,
    ) -> Result<Option<ClipModel>, RunError> {
        let Some(select) = &self.request.select else {
            return self.train(state, stop, progress);
        };
        let Some(method) = self.select(select, state, stop, progress)? else {
            self.save(state, None)?;
            return Ok(None);
        };
        let request = Request {
            method,
            ..self.request.clone()
        };
        let directory = self.directory.share()?;
        let mut engine = self.another(&request, self.suite, directory);
        let trained = engine.train(state, stop, progress)?;
        let text_changed = engine.text_changed;
        self.text_changed |= text_changed;
        Ok(trained)
    }

    /// An engine for training a task of this run by another request, on a suite that may lack some
    /// of its images.
    pub(super) fn another<'b>(
        &'b self,
        request: &'b Request,
        suite: &'b Suite,
        directory: RunDirectory,
    ) -> Engine<'b> {
        Engine {
            request,
            suite,
            checkpoint: self.checkpoint,
            mechanisms: request.method.mechanisms().into(),
            device: self.device.clone(),
            options: self.options,
            directory,
            images: self.images.clone(),
            heads: HeadCache::default(),
            guard: Guard::default(),
            started: self.started,
            seconds_before: self.seconds_before,
            text_changed: false,
        }
    }

    /// Makes the updates of a task. Returns the model they end with, on the plain device; none when
    /// stopped.
    pub(super) fn train(
        &mut self,
        state: &mut State,
        stop: &AtomicBool,
        progress: &mut dyn Progress,
    ) -> Result<Option<ClipModel>, RunError> {
        let (method, index) = (&self.request.method, state.position.task);
        let seed = self.request.seed;
        let (student, text_trains) = Student::prepare(state, method, index, seed, &self.device)?;
        state.position.trainable = student.trainable();
        let optimizer = self.optimizer(state, &student, progress)?;
        let model = student.stored().valid();
        let task = self.task_setting(index, (!text_trains).then_some(&model));
        let parts = self.parts(&task, state, progress)?;
        let mut training = TaskTraining::new(method, &task, self.devices(), parts, &model)?;
        let mut work = InWork {
            student,
            optimizer,
            started: Instant::now(),
            first: state.position.step,
            images: 0,
        };
        let steps = method.steps_of(&self.suite.tasks[index].name);
        while state.position.step < steps {
            if stop.load(Ordering::Relaxed) {
                work.student.put_back(state);
                self.save(state, Some(&work.optimizer))?;
                return Ok(None);
            }
            work = self.update(state, &mut training, work, steps, progress)?;
        }
        let mut trained = work.student.plain();
        let setting = self.setting();
        for mechanism in self.mechanisms.iter() {
            trained = mechanism.finish(trained, &setting, state);
        }
        // A stop between here and the end of the task does the rest again from this point.
        work.student.put_back(state);
        self.save(state, Some(&work.optimizer))?;
        // Whatever mixes weights may change the texts' features, if only by rounding.
        let mixes = self.mechanisms.iter().any(|m| m.mixes_weights());
        let changed = text_trains || mixes || method.start == Start::Pretrained;
        self.text_changed |= changed;
        Ok(Some(trained))
    }

    /// A fresh optimizer, or that of a task in work.
    fn optimizer(
        &self,
        state: &mut State,
        student: &Student,
        progress: &mut dyn Progress,
    ) -> Result<ModuleOptimizer, RunError> {
        let index = state.position.task;
        let mut protection = None;
        for mechanism in self.mechanisms.iter() {
            let found = mechanism.protection(index, &student.clip, state)?;
            protection = protection.or(found);
        }
        if let Some(protection) = &protection
            && state.position.step == 0
        {
            let ranks = ranks(protection);
            self.emit(Event::Gram { task: index, ranks }, progress)?;
        }
        let fresh = projected(&self.request.method, protection.as_ref(), true);
        if state.optimizer.is_empty() {
            return Ok(fresh);
        }
        let bytes = Bytes::from_bytes_vec(std::mem::take(&mut state.optimizer));
        fresh.from_bytes(bytes).map_err(|e| RunError::Corrupt {
            path: self.directory.files().states()[0].join("optimizer.bpk"),
            reason: format!("{e:?}"),
        })
    }

    /// What the mechanisms add to the updates of a task.
    fn parts(
        &self,
        task: &TaskSetting<'_>,
        state: &State,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Box<dyn TaskPart>>, RunError> {
        let mut parts = Vec::new();
        for mechanism in self.mechanisms.iter() {
            parts.extend(mechanism.part(task, state)?);
        }
        if (task.index, state.position.step) == (0, 0) {
            let scale = f64::from(to_host(self.checkpoint.model.scale())[0]);
            for text in parts.iter().filter_map(|part| part.note(scale)) {
                self.emit(Event::Note { text }, progress)?;
            }
        }
        Ok(parts)
    }

    /// Where images are encoded, the model's own device first.
    fn devices(&self) -> Vec<Device> {
        let peers = self.options.peers.iter();
        let peers = peers.map(|peer| with_tape(peer, self.options.checkpointing));
        std::iter::once(self.device.clone()).chain(peers).collect()
    }

    /// One update, its event, and the state where that is due.
    fn update(
        &self,
        state: &mut State,
        training: &mut TaskTraining<'_>,
        work: InWork,
        steps: usize,
        progress: &mut dyn Progress,
    ) -> Result<InWork, RunError> {
        let InWork {
            student,
            mut optimizer,
            started,
            first,
            images,
        } = work;
        let (index, step) = (state.position.task, state.position.step);
        let name = &self.suite.tasks[index].name;
        let (student, loss) = training.step(student, &mut optimizer, step, steps, &self.device)?;
        let lr = self.request.method.lr_at(index, name, step);
        let done = step + 1;
        if !loss.total.is_finite() {
            let event = Event::Diverged {
                task: index,
                step: done,
            };
            self.emit(event, progress)?;
            return Err(RunError::Diverged {
                task: name.clone(),
                step: done,
                steps,
                loss: loss.total,
                lr,
            });
        }
        for mechanism in self.mechanisms.iter() {
            mechanism.after_update(step, &|| student.plain(), state);
        }
        state.position.step = done;
        let images = images + loss.images;
        let event = Event::Step(Update {
            task: index,
            name: name.clone(),
            step: done,
            steps,
            lr,
            loss: loss.total,
            parts: loss.parts,
            images_per_s: images as f64 / started.elapsed().as_secs_f64().max(1e-9),
        });
        progress.event(&event);
        if done.is_multiple_of(self.options.log_every) || done == steps || done == first + 1 {
            self.directory.record(&event)?;
        }
        if done.is_multiple_of(self.options.save_every) && done < steps {
            student.clone().put_back(state);
            self.save(state, Some(&optimizer))?;
            Student::release(state);
        }
        Ok(InWork {
            student,
            optimizer,
            started,
            first,
            images,
        })
    }

    /// Records the rules of the drift guard that are broken, which may end the run.
    fn check_guard(
        &self,
        state: &mut State,
        evaluation: &Evaluation,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<(), RunError> {
        let Some(first) = state.position.evaluations.first() else {
            return Ok(());
        };
        let names = || self.suite.tasks.iter().map(|t| t.name.clone());
        let breaches = self.guard.evaluate(&Observation {
            stage: names().nth(index),
            accuracies: names().zip(evaluation.accuracies.iter().copied()).collect(),
            zero_shot: names().zip(first.accuracies.iter().copied()).collect(),
            gap: evaluation.modality_gap,
            first_gap: first.modality_gap,
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
        Ok(())
    }

    /// The evaluation after task `index`.
    fn evaluate_stage(
        &mut self,
        state: &State,
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
        let answer = mechanisms.iter().find_map(|m| m.answer(state, suite));
        match encoder {
            Some(encoder) => self.evaluate(encoder.as_ref(), answer.as_deref(), stage, progress),
            None => self.evaluate(trained, answer.as_deref(), stage, progress),
        }
    }

    /// The evaluation of a method with a model for each task: the models of other tasks are as they
    /// were, and so are their accuracies.
    fn evaluate_own_task(
        &self,
        state: &State,
        trained: &ClipModel,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<Evaluation, RunError> {
        let stage = Some(index);
        let Some(last) = state.position.evaluations.last() else {
            return Err(RunError::Corrupt {
                path: self.directory.files().states()[0].clone(),
                reason: "the evaluations of earlier tasks are missing; start in a new --out"
                    .to_owned(),
            });
        };
        let mut evaluation = last.clone();
        evaluation.accuracies[index] = self.evaluator().accuracy(trained, stage, index)?;
        evaluation.without_identity = None;
        let all = self.suite.tasks.len();
        evaluation.thinned = self.request.evaluation.images_at(stage, all).map(ThinnedBy);
        self.report(&evaluation, stage, progress)?;
        Ok(evaluation)
    }

    fn evaluator(&self) -> Evaluator<'_> {
        Evaluator {
            checkpoint: self.checkpoint,
            suite: self.suite,
            options: &self.request.evaluation,
            images: &self.images,
            seed: self.request.seed,
        }
    }

    fn evaluate(
        &mut self,
        encoder: &dyn Encoder,
        answer: Option<&dyn Answer>,
        stage: Option<usize>,
        progress: &mut dyn Progress,
    ) -> Result<Evaluation, RunError> {
        // Classifier weights outlive a stage only while the text tower does not change.
        if std::mem::take(&mut self.text_changed) {
            self.heads.clear();
        }
        let mut heads = std::mem::take(&mut self.heads);
        let (evaluation, details) = {
            let mut working = working(progress);
            let mut tell = |done, of| working(Work::Evaluation, done, of);
            let evaluator = self.evaluator();
            evaluator.evaluate(encoder, answer, stage, &mut heads, &mut tell)?
        };
        self.heads = heads;
        self.write_details(stage, &details)?;
        self.report(&evaluation, stage, progress)?;
        Ok(evaluation)
    }

    fn save(&self, state: &mut State, optimizer: Option<&ModuleOptimizer>) -> Result<(), RunError> {
        state.position.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        if let Some(now) = peak_rss_mb() {
            let before = state.position.peak_mb.unwrap_or(0.0);
            state.position.peak_mb = Some(now.max(before));
        }
        let folders = self.directory.files().states();
        state.save(&folders, self.checkpoint, optimizer)
    }

    pub(super) fn method(&self) -> &Method {
        &self.request.method
    }
}

/// A task in training.
struct InWork {
    student: Student,
    optimizer: ModuleOptimizer,
    started: Instant,
    /// The update that this process began with.
    first: usize,
    /// Images trained on since.
    images: usize,
}

/// Shows work between updates.
fn working(progress: &mut dyn Progress) -> impl FnMut(Work, usize, usize) {
    |on, done, of| progress.event(&Event::Working { on, done, of })
}

/// How a run that goes no further ended.
fn outcome(position: &Position, metrics: MetricsFile) -> Outcome {
    let stops = position.breaches.iter().find(|b| b.action == Action::Stop);
    match stops.filter(|_| position.stopped_by_guard) {
        Some(breach) => Outcome::Guarded(breach.message.clone()),
        None => Outcome::Complete(metrics),
    }
}

/// Peak resident memory of this process in MB, where the operating system tells.
pub(super) fn peak_rss_mb() -> Option<f64> {
    machine::peak_bytes().map(|bytes| bytes as f64 / (1024.0 * 1024.0))
}

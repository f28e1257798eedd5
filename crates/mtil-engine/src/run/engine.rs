//! The run loop: training, evaluation and checkpoints, task by task.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use burn::{
    module::Module,
    optim::ModuleOptimizer,
    tensor::{Bytes, Device},
};
use clip_model::{Clip, ClipModel, Dtype};

use super::{
    Event, Progress, Request, RunDirectory, RunFiles, StepRecord, beside,
    event::{TaskData, now},
    rewind::{is_rewound, keep_state, rewind},
    step::{StepImages, StepLoss},
    student::Student,
    train::{TaskTraining, build_optimizer, protected_ranks},
    undo::{keep_previous, take_back},
};
use mtil_data::{machine, suite::Suite};
use mtil_eval::{
    batch::Images,
    eval::{HeadCache, check_classes, to_host},
    guard::{Action, Guard},
    metrics::MetricsFile,
};
use mtil_methods::{
    error::{RunError, StateFault},
    mechanism::{
        auxiliary_loss::AuxiliaryLoss,
        context::{Phase, RunContext, TaskContext},
        hooks::{Mechanism, initial_run_state, load_run_state},
        rehearsal_images::with_kept_images,
        state::{OPTIMIZER, Position, RunState, remove_folder},
    },
    method::{Method, Start},
    tape::autodiff_device,
};

/// Options of a run that do not change results by more than rounding.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Training steps between writes of the resumable state, which is also written after each task.
    pub save_every: usize,
    /// Training steps between recorded events.
    pub log_every: usize,
    /// Writes a checkpoint after each task.
    pub checkpoints: bool,
    /// Folder of the cache of preprocessed images.
    pub cache: Option<PathBuf>,
    /// Further devices that share the images of a training step, those of [`Request::peers`]. They
    /// change the order of sums, so results equal those of one device up to rounding.
    pub peers: Vec<Device>,
    /// Recomputes activations in the backward pass (gradient checkpointing): less memory, more
    /// time, the same results.
    pub checkpointing: bool,
    /// Called when a stop comes within a training step, beside it, once the state before that step
    /// and the results so far are saved. A step of a large model takes minutes on a small
    /// processor; a program ends itself here rather than wait. If this returns, the run ends after
    /// the step.
    pub leave: Option<Leave>,
    /// Keeps the state before the last task, for [`undo`](super::undo()).
    pub undo: bool,
    /// Measures earlier stages on tasks that were added since, where checkpoints keep their models.
    pub backfill: bool,
    /// Index of a task to go back to, from 0: it and the later tasks are trained again, from the
    /// checkpoint of the task before. A method without such checkpoints starts again. Once a run
    /// has gone back, the same option resumes it.
    pub from_task: Option<usize>,
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
            leave: None,
            undo: true,
            backfill: false,
            from_task: None,
        }
    }
}

/// A function that ends the process; see [`RunOptions::leave`].
#[derive(Clone)]
pub struct Leave(Arc<dyn Fn() + Send + Sync>);

impl Leave {
    /// Wraps a function.
    pub fn new(leave: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(leave))
    }
}

impl std::fmt::Debug for Leave {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Leave")
    }
}

/// Outcome of a run.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // There is one per run.
pub enum Outcome {
    /// All tasks are trained and evaluated.
    Complete(MetricsFile),
    /// Stopped on request; the same call resumes the run.
    Stopped,
    /// Ended by the drift guard, with the message of the broken rule; results so far are kept.
    Guarded(String),
}

/// Starts or resumes the run of `request` in `folder`. `checkpoint` is the pretrained model on
/// `device`, without autodiff. Setting `stop` ends the run cleanly within one batch of images, in
/// training, evaluation and whatever else it does.
///
/// ```no_run
/// use std::{path::Path, sync::Arc};
///
/// use burn::tensor::Device;
/// use clip_model::Clip;
/// use mtil_data::suite::Suite;
/// use mtil_engine::run::{Request, RunError, RunOptions, run};
///
/// # fn example(request: Request, suite: Suite, checkpoint: Clip) -> Result<(), RunError> {
/// let (device, stop) = (Device::default(), Arc::default());
/// let folder = Path::new("runs/mini/gnsp");
/// let options = RunOptions::default();
/// let outcome = run(&request, &suite, &checkpoint, &device, folder, &options, &stop, &mut ())?;
/// println!("{outcome:?}");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`RunError`]. A state that was saved before is never lost.
#[allow(clippy::too_many_arguments)]
pub fn run(
    request: &Request,
    suite: &Suite,
    checkpoint: &Clip,
    device: &Device,
    folder: &Path,
    options: &RunOptions,
    stop: &Arc<AtomicBool>,
    progress: &mut dyn Progress,
) -> Result<Outcome, RunError> {
    // A run that has begun continues as it began.
    match RunFiles::new(folder).state() {
        None => check(request, suite, checkpoint)?,
        Some(_) => check_learnable(&request.method, suite)?,
    }
    let directory = RunDirectory::open(folder, request, suite)?;
    let with_kept;
    let suite = match suite.extras.gone.is_empty() {
        true => suite,
        false => {
            let files = directory.files();
            let back_to = options.from_task.and_then(|task| task.checked_sub(1));
            let kept = back_to.map(|last| RunFiles::kept_state(&files.checkpoint(last)));
            with_kept = with_kept_images(suite, kept.or_else(|| files.state()).as_deref())?;
            &with_kept
        }
    };
    // Peak memory is reported per run, and this process may have done another run before.
    machine::reset_peak();
    let method = &request.method;
    let images = Images::new(
        checkpoint.preprocess.clone(),
        method.crop_scale,
        request.skip_bad_images,
    )
    .with_stop(stop.clone());
    let names: Vec<String> = suite.tasks.iter().map(|t| t.name.clone()).collect();
    let guard = Guard::parse(&request.guard, &names)?;
    let images = match &options.cache {
        Some(folder) => images.with_cache(folder),
        None => images,
    };
    if !options.undo
        && let Some(rule) = guard.rules().iter().find(|r| r.action() == Action::Undo)
    {
        return Err(RunError::NoUndo {
            rule: rule.to_string(),
        });
    }
    if let Some(select) = &request.select {
        select.candidates(method)?;
    }
    let mechanisms: Mechanisms = method.mechanisms().into();
    check_devices(request, &mechanisms, device, &options.peers)?;
    let mut engine = Engine {
        request,
        suite,
        checkpoint,
        mechanisms,
        device: autodiff_device(device, options.checkpointing),
        options,
        directory,
        images,
        heads: HeadCache::default(),
        guard,
        started: Instant::now(),
        seconds_before: 0.0,
        text_changed: false,
    };
    let outcome = match engine.run_tasks(progress) {
        Err(error) if error.is_interrupted() => Ok(Outcome::Stopped),
        outcome => outcome,
    };
    let reported = engine.report_skipped(progress);
    if let Err(error) = &outcome {
        // The event is for readers of the directory; the caller gets the error in any case.
        let _ = engine.directory.record(&Event::failed(error));
    }
    // Of several errors the first is the cause.
    let outcome = outcome?;
    reported?;
    if outcome != Outcome::Stopped {
        engine.emit(Event::Done, progress)?;
    }
    Ok(outcome)
}

/// Checks that a method can train on the devices of a run.
///
/// # Errors
/// [`RunError::Peers`], [`RunError::Compute`] and [`RunError::NoSuchCompute`].
fn check_devices(
    request: &Request,
    mechanisms: &Mechanisms,
    device: &Device,
    peers: &[Device],
) -> Result<(), RunError> {
    let method = &request.method;
    if !peers.is_empty() && !mechanisms.iter().all(|m| m.supports_peers()) {
        return Err(RunError::Peers {
            method: method.name.clone(),
        });
    }
    if !method.compute.is_full() && mechanisms.iter().any(|m| m.trains_adapters()) {
        return Err(RunError::Compute {
            method: method.name.clone(),
        });
    }
    let mut computing = std::iter::once(device).chain(peers);
    if !computing.all(|device| device.supports_dtype(method.compute.dtype())) {
        return Err(RunError::NoSuchCompute {
            device: request.device.clone(),
        });
    }
    Ok(())
}

/// Checks a suite as a run does before its first task: the model distinguishes the classes, and the
/// method can learn the tasks.
///
/// # Errors
/// [`RunError::Classes`] and [`RunError::Unlearnable`] name the task.
pub fn check(request: &Request, suite: &Suite, checkpoint: &Clip) -> Result<(), RunError> {
    // Training uses the first template.
    let templates = if request.method.trains { 1 } else { usize::MAX };
    check_classes(checkpoint, suite, templates)?;
    check_learnable(&request.method, suite)
}

/// Checks that a method can learn the tasks of a suite. A run does so before its first task.
///
/// # Errors
/// [`RunError::Unlearnable`] names the first task that it cannot learn, and why.
pub fn check_learnable(method: &Method, suite: &Suite) -> Result<(), RunError> {
    let mechanisms = method.mechanisms();
    let mut found = mechanisms.iter().filter_map(|m| m.unlearnable(suite));
    match found.next() {
        Some((task, reason)) => Err(RunError::Unlearnable {
            method: method.name.clone(),
            task: task.name.clone(),
            reason,
        }),
        None => Ok(()),
    }
}

type Mechanisms = Arc<[Box<dyn Mechanism>]>;

pub(super) struct Engine<'a> {
    pub(super) request: &'a Request,
    pub(super) suite: &'a Suite,
    pub(super) checkpoint: &'a Clip,
    pub(super) mechanisms: Mechanisms,
    /// The autodiff device.
    pub(super) device: Device,
    pub(super) options: &'a RunOptions,
    pub(super) directory: RunDirectory,
    pub(super) images: Images,
    pub(super) heads: HeadCache,
    pub(super) guard: Guard,
    pub(super) started: Instant,
    pub(super) seconds_before: f64,
    pub(super) text_changed: bool,
}

impl Engine<'_> {
    fn run_tasks(&mut self, progress: &mut dyn Progress) -> Result<Outcome, RunError> {
        let trains = self.request.method.trains;
        let stages = self.stages();
        if let Some(metrics) = self.results_without_state()? {
            return Ok(Outcome::Complete(metrics));
        }
        let mut state = self.open_state(stages, progress)?;
        self.check_images(state.position.task)?;
        if !self.directory.added().is_empty() {
            let names = self.directory.added().to_vec();
            self.emit(Event::TasksAdded { names }, progress)?;
        }
        self.seconds_before = state.position.seconds;
        self.measure_added_tasks(&mut state, progress)?;
        let filled = self.options.backfill && self.backfill(&mut state.position, progress)?;
        // A finished run only reports its results again, or writes them again if they are damaged,
        // or older than the state: a process may have been killed between the two.
        let done = state.position.task >= stages || state.position.stopped_by_guard;
        let files = self.directory.files();
        let unchanged = done && !filled;
        if let (true, Ok(Some(metrics)), Ok(Some(_))) = (unchanged, files.metrics(), files.matrix())
            && metrics.modality_gap.len() == state.position.evaluations.len()
        {
            return Ok(outcome(&state.position, metrics));
        }
        // Stage 0: the zero-shot accuracies of the pretrained model.
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
            self.images.check_stop()?;
            if state.position.step == 0 {
                let files = self.directory.files();
                keep_state(files, state.position.task, &self.state_ids())?;
                match self.options.undo {
                    true => keep_previous(files)?,
                    false => remove_folder(&files.undo())?,
                }
            }
            match self.run_task(&mut state, progress) {
                Ok(None) => {}
                Ok(Some(reason)) => return self.take_back(reason, progress),
                Err(error) => {
                    if error.is_interrupted() {
                        self.write_results(&state)?;
                    }
                    return Err(error);
                }
            }
        }
        state.position.rewound_to = None;
        self.save(&mut state, None)?;
        let metrics = self.write_results(&state)?;
        for text in self.images.cache_report().problems {
            self.emit(Event::Note { text }, progress)?;
        }
        Ok(outcome(&state.position, metrics))
    }

    /// Takes the task just learned back, for a reason.
    fn take_back(
        &mut self,
        reason: String,
        progress: &mut dyn Progress,
    ) -> Result<Outcome, RunError> {
        let ids = self.state_ids();
        let undone = take_back(&mut self.directory, &ids, Some(reason.clone()))?;
        let message = format!("task `{}` was taken back: {reason}", undone.task);
        progress.event(&Event::Undone {
            task: undone.learned,
            name: undone.task,
            reason: Some(reason),
            at: None,
        });
        Ok(Outcome::Guarded(message))
    }

    /// Reports the unreadable images that this process left out.
    fn report_skipped(&self, progress: &mut dyn Progress) -> Result<(), RunError> {
        let names = self.images.skipped();
        if names.is_empty() {
            return Ok(());
        }
        let count = names.len();
        self.emit(Event::SkippedImages { count, names }, progress)
    }

    /// Returns the results of a complete run whose state was deleted, as to save space.
    ///
    /// # Errors
    /// [`RunError::State`] if the run is not complete: starting again would replace its results.
    fn results_without_state(&self) -> Result<Option<MetricsFile>, RunError> {
        let files = self.directory.files();
        if self.earliest_task().is_some() || files.state().is_some() {
            return Ok(None);
        }
        match (files.metrics()?, files.matrix()?) {
            (Some(metrics), Some(matrix))
                if metrics.complete && matrix.order.len() == self.suite.tasks.len() =>
            {
                Ok(Some(metrics))
            }
            (None, None) => Ok(None),
            _ => Err(RunError::State {
                path: files.folder().to_owned(),
                fault: StateFault::NoState,
            }),
        }
    }

    /// Loads the state to resume from, or creates that of a new run.
    fn open_state(&self, stages: usize, progress: &mut dyn Progress) -> Result<RunState, RunError> {
        let (mechanisms, context) = (&self.mechanisms, self.context());
        let rewound_to = self.rewind(stages)?;
        let method = self.request.method.name.clone();
        let Some(folder) = self.directory.files().state() else {
            self.emit(Event::Start { method, stages }, progress)?;
            // The student starts as the pretrained model, on the autodiff device.
            let model = self.checkpoint.model.clone().train();
            let mut state = initial_run_state(model, mechanisms, &context)?;
            state.position.rewound_to = rewound_to;
            return Ok(state);
        };
        let mut state = load_run_state(&folder, &self.state_ids(), mechanisms, &context)?;
        state.position.rewound_to = rewound_to;
        self.drop_other_columns(&mut state.position);
        let event = Event::Resume {
            method,
            stages,
            task: state.position.task,
            step: state.position.step,
        };
        self.emit(event, progress)?;
        Ok(state)
    }

    /// Checks that the images of the tasks that are still to be learned are there, and those that
    /// rules of the drift guard need. `learned` is the number of training stages so far.
    fn check_images(&self, learned: usize) -> Result<(), RunError> {
        if learned >= self.stages() {
            return Ok(());
        }
        let (gone, tasks) = (&self.suite.extras.gone, &self.suite.tasks);
        if let Some(task) = tasks[learned..].iter().find(|t| gone.contains_key(&t.name)) {
            let task = task.name.clone();
            return Err(RunError::ImagesGone { task });
        }
        let unmeasured = |task: &str| gone.get(task).is_some_and(|gone| !gone.has_test_images);
        Ok(self.guard.check_measured(&unmeasured)?)
    }

    /// Goes back to the requested task, unless the run has done so and is resumed. Returns the
    /// task.
    fn rewind(&self, stages: usize) -> Result<Option<usize>, RunError> {
        let Some(task) = self.earliest_task() else {
            return Ok(None);
        };
        if task >= stages {
            return Err(RunError::NoSuchTask { task, stages });
        }
        // A method that trains no weights writes no checkpoints.
        let keeps = self.mechanisms.iter().all(|m| m.trains_weights());
        let task = if keeps { task } else { 0 };
        // Before the later states are given up.
        self.check_images(task)?;
        let (files, ids) = (self.directory.files(), self.state_ids());
        if !is_rewound(files, task, &ids) {
            rewind(files, task, &ids, self.checkpoint)?;
        }
        Ok(Some(task))
    }

    /// The task to go back to, if the method learns any.
    fn earliest_task(&self) -> Option<usize> {
        let learns = self.request.method.trains;
        self.options.from_task.filter(|_| learns)
    }

    /// Reports an event to the caller and records it.
    pub(super) fn emit(&self, event: Event, progress: &mut dyn Progress) -> Result<(), RunError> {
        tracing::debug!(?event);
        progress.event(&event);
        self.directory.record(&event)
    }

    /// Number of training stages: one per task, or one for joint training.
    pub(super) fn stages(&self) -> usize {
        if self.request.method.joint {
            1
        } else {
            self.suite.tasks.len()
        }
    }

    pub(super) fn context(&self) -> RunContext<'_> {
        RunContext {
            checkpoint: self.checkpoint,
            suite: self.suite,
            images: &self.images,
            device: &self.device,
            seed: self.request.seed,
        }
    }

    pub(super) fn task_context<'a>(
        &'a self,
        index: usize,
        frozen: Option<&'a ClipModel>,
    ) -> TaskContext<'a> {
        TaskContext {
            run: self.context(),
            index,
            frozen,
            steps: self
                .request
                .method
                .task_steps(index, &self.suite.tasks[index].name),
        }
    }

    /// The identities by which the run recognises its own states.
    pub(super) fn state_ids(&self) -> Vec<String> {
        self.directory.lineage().state_ids(self.request)
    }

    /// Trains and evaluates the current task, and stores what later tasks need. Returns a broken
    /// rule of the drift guard that wants the task taken back; then nothing of it is stored.
    fn run_task(
        &mut self,
        state: &mut RunState,
        progress: &mut dyn Progress,
    ) -> Result<Option<String>, RunError> {
        let index = state.position.task;
        let started = Instant::now();
        if state.position.step == 0 {
            let name = self.suite.tasks[index].name.clone();
            let lineage = self.directory.lineage();
            let data = TaskData::new(&lineage.suite.tasks[index], lineage.digests().remove(index));
            let event = Event::TaskStart {
                task: index,
                name,
                data: Some(data),
            };
            self.emit(event, progress)?;
            self.begin_task(state);
        }
        let trained = match self.fit(state, index, progress)? {
            Some(model) => model,
            None => self.train_selected(state, progress)?,
        };
        // A stop below repeats everything from here on resuming: it is deterministic.
        let trained = self.take_weights(state, trained, index, progress)?;
        let evaluation = self.evaluate_stage(state, &trained, index, progress)?;
        self.compare(state, &evaluation, index, progress)?;
        if let Some(reason) = self.check_guard(state, &evaluation, index, progress)? {
            return Ok(Some(reason));
        }
        self.finish_task(state, &trained, index, progress)?;
        state.position.evaluations.push(evaluation);
        self.end_task(state, trained, index)?;
        let event = Event::TaskEnd {
            task: index,
            seconds: started.elapsed().as_secs_f64(),
            at: now(),
        };
        self.emit(event, progress)?;
        self.save(state, None)?;
        self.write_results(state)?;
        Ok(None)
    }

    /// Initialises the state for the current task.
    fn begin_task(&self, state: &mut RunState) {
        let method = &self.request.method;
        if method.start == Start::Pretrained {
            state.model = self.checkpoint.model.clone().train();
        }
        state.start = method.needs().start.then(|| state.model.valid());
        for mechanism in self.mechanisms.iter() {
            mechanism.begin_task(state);
        }
    }

    /// Takes the final weights of the task into the states of the mechanisms. Returns the weights
    /// that the run goes on with.
    fn take_weights(
        &self,
        state: &mut RunState,
        mut trained: ClipModel,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<ClipModel, RunError> {
        let task = self.task_context(index, None);
        let mut working = phase_reporter(progress);
        for mechanism in self.mechanisms.iter() {
            trained = mechanism.take_weights(trained, &task, state, &mut working)?;
        }
        Ok(trained)
    }

    /// Stores what later tasks need from the trained task, also from the last one: further tasks may
    /// be added when its images are gone.
    fn finish_task(
        &self,
        state: &mut RunState,
        trained: &ClipModel,
        index: usize,
        progress: &mut dyn Progress,
    ) -> Result<(), RunError> {
        if self.request.method.joint {
            return Ok(());
        }
        let task = self.task_context(index, None);
        let mut working = phase_reporter(progress);
        for mechanism in self.mechanisms.iter() {
            mechanism.finish_task(trained, &task, state, &mut working)?;
        }
        state.position.stored = index + 1;
        Ok(())
    }

    /// Advances the state to the next task, and writes the checkpoint.
    fn end_task(
        &self,
        state: &mut RunState,
        trained: ClipModel,
        index: usize,
    ) -> Result<(), RunError> {
        state.position.task += 1;
        state.position.step = 0;
        state.start = None;
        for mechanism in self.mechanisms.iter() {
            mechanism.end_task(state);
        }
        state.position.kept = Some(self.kept(state));
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

    /// Trains the current task. Returns the final model, without autodiff.
    pub(super) fn train(
        &mut self,
        state: &mut RunState,
        progress: &mut dyn Progress,
    ) -> Result<ClipModel, RunError> {
        let (method, index) = (&self.request.method, state.position.task);
        let seed = self.request.seed;
        if state.position.step == 0 {
            let task = self.task_context(index, None);
            let mut working = phase_reporter(progress);
            for mechanism in self.mechanisms.iter() {
                mechanism.prepare_task(&task, state, &mut working)?;
            }
        }
        let (student, text_trains) = Student::prepare(state, method, index, seed, &self.device)?;
        state.position.trainable = student.trainable();
        let optimizer = self.task_optimizer(state, &student, progress)?;
        let model = student.base_weights().valid();
        let task = self.task_context(index, (!text_trains).then_some(&model));
        let auxiliary = self.auxiliary_losses(&task, state, progress)?;
        let mut training = TaskTraining::new(method, &task, self.devices(), auxiliary, &model)?;
        let mut work = TaskInProgress {
            student,
            optimizer,
            started: Instant::now(),
            first: state.position.step,
            images: 0,
            passed_over: 0,
        };
        let steps = method.steps_of(&self.suite.tasks[index].name);
        while state.position.step < steps {
            let images = match training.next_images(state.position.step, steps, &self.device) {
                Err(error) if error.is_interrupted() => {
                    work.student.store_in(state);
                    self.save(state, Some(&work.optimizer))?;
                    return Err(error);
                }
                images => images?,
            };
            work = self.train_step(state, &training, work, images, steps, progress)?;
        }
        if work.passed_over > 0 {
            let (name, passed) = (&self.suite.tasks[index].name, work.passed_over);
            let steps = if passed == 1 { "step" } else { "steps" };
            let text = format!(
                "task `{name}`: passed over {passed} training {steps} without a readable image"
            );
            self.emit(Event::Note { text }, progress)?;
        }
        let mut trained = work.student.plain();
        let context = self.context();
        for mechanism in self.mechanisms.iter() {
            trained = mechanism.final_weights(trained, &context, state);
        }
        // A stop between here and the end of the task resumes from this point.
        work.student.store_in(state);
        self.save(state, Some(&work.optimizer))?;
        // Averaging weights may change text features, if only by rounding.
        let averages = self.mechanisms.iter().any(|m| m.averages_weights());
        let changed = text_trains || averages || method.start == Start::Pretrained;
        self.text_changed |= changed;
        Ok(trained)
    }

    /// Creates the optimizer of a task, or restores it within a task.
    fn task_optimizer(
        &self,
        state: &mut RunState,
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
            let ranks = protected_ranks(protection);
            self.emit(Event::Gram { task: index, ranks }, progress)?;
        }
        let fresh = build_optimizer(&self.request.method, protection.as_ref(), true);
        if state.optimizer.is_empty() {
            return Ok(fresh);
        }
        let bytes = Bytes::from_bytes_vec(std::mem::take(&mut state.optimizer));
        fresh.from_bytes(bytes).map_err(|e| RunError::State {
            path: self.directory.files().states()[0].join(OPTIMIZER),
            fault: StateFault::Unreadable(format!("{e:?}")),
        })
    }

    /// Collects the auxiliary losses of the mechanisms.
    fn auxiliary_losses(
        &self,
        task: &TaskContext<'_>,
        state: &RunState,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Box<dyn AuxiliaryLoss>>, RunError> {
        let mut losses = Vec::new();
        for mechanism in self.mechanisms.iter() {
            losses.extend(mechanism.auxiliary_loss(task, state)?);
        }
        if (task.index, state.position.step) == (0, 0) {
            let scale = f64::from(to_host(self.checkpoint.model.scale())[0]);
            for text in losses.iter().filter_map(|loss| loss.warning(scale)) {
                self.emit(Event::Note { text }, progress)?;
            }
        }
        Ok(losses)
    }

    /// Devices that encode images; the model's own is the first.
    fn devices(&self) -> Vec<Device> {
        let peers = self.options.peers.iter();
        let peers = peers.map(|peer| autodiff_device(peer, self.options.checkpointing));
        std::iter::once(self.device.clone()).chain(peers).collect()
    }

    /// Does one training step, emits its event, and saves the state if due. A step without images
    /// leaves the weights unchanged.
    fn train_step(
        &self,
        state: &mut RunState,
        training: &TaskTraining<'_>,
        mut work: TaskInProgress,
        images: Option<StepImages>,
        steps: usize,
        progress: &mut dyn Progress,
    ) -> Result<TaskInProgress, RunError> {
        let step = state.position.step;
        let loss = match images {
            Some(images) => {
                let (loss, gradients) = self.leaving(state, &mut work, |student| {
                    training.gradients(student, &images, step)
                });
                if let Some(gradients) = gradients {
                    let lr = self.learning_rate(state);
                    work.student = work.student.step(&mut work.optimizer, lr, gradients);
                    for mechanism in self.mechanisms.iter() {
                        let change = |clip| mechanism.after_update(clip, step, steps);
                        work.student = work.student.changed(change);
                    }
                }
                Some(loss)
            }
            None => {
                work.passed_over += 1;
                None
            }
        };
        if let Some(loss) = &loss {
            self.check_loss(loss, state, steps, progress)?;
        }
        let student = &work.student;
        for mechanism in self.mechanisms.iter() {
            mechanism.after_step(step, &|| student.plain(), state);
        }
        let done = step + 1;
        state.position.step = done;
        if let Some(loss) = loss {
            work.images += loss.images;
            self.report_step(loss, &work, state, steps, progress)?;
        }
        if done.is_multiple_of(self.options.save_every) && done < steps {
            work.student.clone().store_in(state);
            self.save(state, Some(&work.optimizer))?;
            Student::release(state);
        }
        Ok(work)
    }

    /// Returns the result of `compute`, which does not change the state and the optimizer. If the
    /// run is to stop meanwhile, saves both beside it, with the student as it was, and leaves.
    fn leaving<T>(
        &self,
        state: &mut RunState,
        work: &mut TaskInProgress,
        compute: impl FnOnce(&mut Student) -> T,
    ) -> T {
        let Some(leave) = &self.options.leave else {
            return compute(&mut work.student);
        };
        let (before, optimizer) = (work.student.clone(), &work.optimizer);
        let save_and_leave = move || {
            before.store_in(state);
            // An error, as of a full disk, comes again after the step, and is returned there.
            let saved = self.save(state, Some(optimizer));
            let saved = saved.and_then(|()| self.write_results(state));
            if saved.is_ok() && self.report_skipped(&mut ()).is_ok() {
                (leave.0)();
            }
            Student::release(state);
        };
        let stop = || self.images.check_stop().is_err();
        beside::if_meanwhile(stop, save_and_leave, || compute(&mut work.student))
    }

    /// Returns the learning rate of the current training step.
    fn learning_rate(&self, state: &RunState) -> f64 {
        let Position { task, step, .. } = state.position;
        let name = &self.suite.tasks[task].name;
        self.request.method.lr_at(task, name, step)
    }

    /// Emits the event of a diverged training step and returns its error.
    fn check_loss(
        &self,
        loss: &StepLoss,
        state: &RunState,
        steps: usize,
        progress: &mut dyn Progress,
    ) -> Result<(), RunError> {
        if loss.total.is_finite() {
            return Ok(());
        }
        let (task, step) = (state.position.task, state.position.step);
        let name = &self.suite.tasks[task].name;
        let done = step + 1;
        self.emit(Event::Diverged { task, step: done }, progress)?;
        Err(RunError::Diverged {
            task: name.clone(),
            step: done,
            steps,
            loss: loss.total,
            lr: self.learning_rate(state),
        })
    }

    /// Reports the training step that was just finished, and records it if due.
    fn report_step(
        &self,
        loss: StepLoss,
        work: &TaskInProgress,
        state: &RunState,
        steps: usize,
        progress: &mut dyn Progress,
    ) -> Result<(), RunError> {
        let (task, done) = (state.position.task, state.position.step);
        let name = &self.suite.tasks[task].name;
        let event = Event::Step(StepRecord {
            task,
            name: name.clone(),
            step: done,
            steps,
            lr: self.request.method.lr_at(task, name, done - 1),
            loss: loss.total,
            parts: loss.parts,
            images_per_s: work.images as f64 / work.started.elapsed().as_secs_f64().max(1e-9),
        });
        progress.event(&event);
        if done.is_multiple_of(self.options.log_every) || done == steps || done == work.first + 1 {
            self.directory.record(&event)?;
        }
        Ok(())
    }

    pub(super) fn save(
        &self,
        state: &mut RunState,
        optimizer: Option<&ModuleOptimizer>,
    ) -> Result<(), RunError> {
        state.position.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        if let Some(now) = peak_rss_mb() {
            let before = state.position.peak_mb.unwrap_or(0.0);
            state.position.peak_mb = Some(now.max(before));
        }
        state.position.columns = self.directory.lineage().digests();
        let folders = self.directory.files().states();
        let begun = state.position.task + usize::from(state.position.step > 0);
        let id = &self.state_ids()[begun];
        state.save(&folders, id, self.checkpoint, optimizer)
    }

    pub(super) fn method(&self) -> &Method {
        &self.request.method
    }
}

/// Training of the current task by this process.
struct TaskInProgress {
    student: Student,
    optimizer: ModuleOptimizer,
    started: Instant,
    /// The first training step of this process.
    first: usize,
    /// Images trained on by this process.
    images: usize,
    /// Training steps of this process without a readable image.
    passed_over: usize,
}

/// Returns a function that reports the progress of a phase.
pub(super) fn phase_reporter(progress: &mut dyn Progress) -> impl FnMut(Phase, usize, usize) {
    |on, done, of| {
        tracing::debug!(?on, done, of, "working");
        progress.event(&Event::Working { on, done, of });
    }
}

/// Returns the outcome of a finished run.
fn outcome(position: &Position, metrics: MetricsFile) -> Outcome {
    let stops = position.breaches.iter().find(|b| b.action == Action::Stop);
    match stops.filter(|_| position.stopped_by_guard) {
        Some(breach) => Outcome::Guarded(breach.message.clone()),
        None => Outcome::Complete(metrics),
    }
}

/// Returns the peak resident memory of this process in MiB, if the operating system provides it.
pub(super) fn peak_rss_mb() -> Option<f64> {
    machine::peak_bytes().map(|bytes| bytes as f64 / (1024.0 * 1024.0))
}

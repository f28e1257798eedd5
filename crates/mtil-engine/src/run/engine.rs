//! The loop over tasks.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use burn::{module::Module, tensor::Device};
use clip_model::{Clip, ClipModel, Dtype};
use gnsp_optimizer::Memory;
use losses::alignment_margin;

use super::{
    Evaluated, Event, Exemplars, Progress, Request, RunDirectory, RunError, Update, Work, analytic,
    directory::write_atomically,
    distill::{Distillation, Setting},
    gram::remember,
    module_file,
    penalty::{self, Penalty},
    reference::Reference,
    rehearse::{items, keep_images},
    replay::{Items, Joined, Kept},
    state::{Part, Position},
    step::Extras,
    student::{Routed, Student},
    train::{TaskTraining, optimizer, prompts},
    weights::{Weights, combine, interpolate},
};
use crate::{
    batch::Images,
    eval::{Answer, ColumnDetails, Encoder, Evaluation, Evaluator, HeadCache, ThinnedBy, to_host},
    guard::{Action, Guard, Observation},
    method::{AnchorKind, Start, Teacher},
    metrics::{MatrixFile, MetricsFile},
    tape::{on_tape, with_tape},
};
use mtil_data::{machine, seeds, suite::Suite};

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
    if !options.peers.is_empty() && (method.lora.is_some() || method.experts.is_some()) {
        return Err(RunError::Peers {
            method: method.name.clone(),
        });
    }
    if !method.compute.is_full() && (method.lora.is_some() || method.experts.is_some()) {
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
    let outcome = engine.go(stop, progress);
    if let Err(error) = &outcome {
        // For whoever looks at the folder later; the caller gets the error in any case.
        let _ = engine.directory.record(&Event::failed(error));
    }
    outcome
}

pub(super) use super::state::State;

pub(super) struct Engine<'a> {
    pub(super) request: &'a Request,
    pub(super) suite: &'a Suite,
    pub(super) checkpoint: &'a Clip,
    /// With autodiff.
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
    fn go(&mut self, stop: &AtomicBool, progress: &mut dyn Progress) -> Result<Outcome, RunError> {
        let method = &self.request.method;
        let stages = self.stages();
        let (seed, device) = (self.request.seed, &self.device);
        let files = self.directory.files();
        let state = State::load(files, method, self.checkpoint, self.suite, seed, device)?;
        let resumed = state.as_ref().map(|s| (s.position.task, s.position.step));
        let method_name = method.name.clone();
        let event = match resumed {
            None => Event::Start {
                method: method_name,
                stages,
            },
            Some((task, step)) => Event::Resume {
                method: method_name,
                stages,
                task,
                step,
            },
        };
        self.emit(event, progress)?;
        let mut state = match state {
            Some(state) => state,
            // The student starts as the pretrained model, on the autodiff device.
            None => {
                let model = self.checkpoint.model.clone().train();
                State::fresh(model, method, self.checkpoint, self.suite, seed, device)?
            }
        };
        self.seconds_before = state.position.seconds;
        let done = state.position.task >= stages || state.position.stopped_by_guard;
        if let (true, Ok(Some(metrics))) = (done, self.directory.files().metrics()) {
            self.emit(Event::Done, progress)?;
            return Ok(ended(&state.position, metrics));
        }

        if state.position.evaluations.is_empty() {
            let pretrained = self.checkpoint.model.clone();
            let evaluation = self.evaluate(&pretrained, None, None, progress)?;
            state.position.evaluations.push(evaluation);
            self.save(&mut state, None)?;
        }
        self.write_results(&state)?;
        if !method.trains {
            state.position.task = stages;
        }
        while state.position.task < stages && !state.position.stopped_by_guard {
            if stop.load(Ordering::Relaxed) {
                return Ok(Outcome::Stopped);
            }
            if !self.task(&mut state, stop, progress)? {
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
        Ok(ended(&state.position, metrics))
    }

    /// Shows an event and records it.
    pub(super) fn emit(&self, event: Event, progress: &mut dyn Progress) -> Result<(), RunError> {
        progress.event(&event);
        self.directory.record(&event)
    }

    /// Stages of training: the tasks, or one for all of them.
    fn stages(&self) -> usize {
        if self.request.method.joint {
            1
        } else {
            self.suite.tasks.len()
        }
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
        let name = self.suite.tasks[index].name.clone();
        let started = Instant::now();
        if state.position.step == 0 {
            let event = Event::TaskStart { task: index, name };
            self.emit(event, progress)?;
            self.begin(state);
        }
        let trained = match &method.analytic {
            Some(settings) => {
                let mut regression = match state.regression.take() {
                    Some(regression) => regression,
                    None => return Err(self.no_regression()),
                };
                let (model, seed) = (&self.checkpoint.model, self.request.seed);
                let images = &self.images;
                regression.learn(self.suite, index, settings, model, images, seed, progress)?;
                state.regression = Some(regression);
                self.checkpoint.model.clone()
            }
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
        self.watch(state, &evaluation, index, progress)?;
        state.position.evaluations.push(evaluation);
        state.position.task += 1;
        state.position.step = 0;
        state.position.snapshots = 0;
        state.adapters = None;
        state.parts.remove(&Part::Start);
        state.parts.remove(&Part::Average);
        state.model = trained.clone().train();
        if self.options.checkpoints && method.analytic.is_none() {
            let folder = self.directory.files().checkpoint(index);
            let saved = Clip {
                model: trained,
                ..self.checkpoint.clone()
            };
            saved.save(&folder, Dtype::F32)?;
            if let Some((mixtures, _)) = &state.mixtures {
                let all = module_file::values(mixtures, &|_| true);
                module_file::save(&all, &folder.join("experts.safetensors"))?;
            }
        }
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
        state.adapters = None;
        state.position.snapshots = 0;
        let start = state.model.valid();
        if method.average.is_some() {
            state.parts.insert(Part::Average, start.clone());
        }
        if method.needs_start() {
            state.parts.insert(Part::Start, start);
        }
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
        let method = &self.request.method;
        let index = state.position.task;
        let name = self.suite.tasks[index].name.clone();
        let mixtures = state.mixtures.take();
        let (mut student, text_trains) = Student::prepare(
            on_tape(state.model.clone(), &self.device),
            mixtures.map(|(mixtures, usage)| (on_tape(mixtures, &self.device), usage)),
            method,
            index,
            self.request.seed,
            state.adapters.as_ref(),
        )?;
        state.position.trainable = student.trainable();
        let memory = if index == 0 { &EMPTY } else { &state.memory };
        let (fresh, ranks) = optimizer(method, index, &student.clip, memory)?;
        if state.position.step == 0 && !ranks.is_empty() {
            self.emit(Event::Gram { task: index, ranks }, progress)?;
        }
        let mut optimizer = if state.optimizer.is_empty() {
            fresh
        } else {
            let bytes = burn::tensor::Bytes::from_bytes_vec(std::mem::take(&mut state.optimizer));
            fresh.from_bytes(bytes).map_err(|e| RunError::Corrupt {
                path: self.directory.files().states()[0].join("optimizer.bpk"),
                reason: format!("{e:?}"),
            })?
        };
        let frozen = student.stored().valid();
        let extras = self.extras(state, &frozen, text_trains)?;
        if (index, state.position.step) == (0, 0)
            && let Some(text) = self.wide_margin(&extras)
        {
            self.emit(Event::Note { text }, progress)?;
        }
        let images = self.images.clone();
        let devices: Vec<Device> = std::iter::once(self.device.clone())
            .chain(
                self.options
                    .peers
                    .iter()
                    .map(|peer| with_tape(peer, self.options.checkpointing)),
            )
            .collect();
        let mut training = TaskTraining::new(
            self.checkpoint,
            method,
            self.suite,
            index,
            self.request.seed,
            &images,
            devices,
            extras,
            &frozen,
            text_trains,
        )?;
        let steps = method.steps_of(&name);
        let first = state.position.step;
        let mut seen = 0_usize;
        let started = Instant::now();
        while state.position.step < steps {
            if stop.load(Ordering::Relaxed) {
                put_back(state, student);
                self.save(state, Some(&optimizer))?;
                return Ok(None);
            }
            let step = state.position.step;
            let (next, loss) = training.step(student, &mut optimizer, step, steps, &self.device)?;
            let lr = method.lr_at(index, &name, step);
            if !loss.total.is_finite() {
                let event = Event::Diverged {
                    task: index,
                    step: step + 1,
                };
                self.emit(event, progress)?;
                return Err(RunError::Diverged {
                    task: name,
                    step: step + 1,
                    steps,
                    loss: loss.total,
                    lr,
                });
            }
            student = next;
            if let Some(average) = &method.average
                && step.is_multiple_of(average.every)
            {
                self.snapshot(state, &student.plain(), average.alpha);
            }
            state.position.step += 1;
            seen += loss.images;
            let images_per_second = seen as f64 / started.elapsed().as_secs_f64().max(1e-9);
            let done = state.position.step;
            let event = Event::Step(Update {
                task: index,
                name: name.clone(),
                step: done,
                steps,
                lr,
                loss: loss.total,
                parts: loss.parts,
                images_per_s: images_per_second,
            });
            progress.event(&event);
            if done.is_multiple_of(self.options.log_every) || done == steps || done == first + 1 {
                self.directory.record(&event)?;
            }
            if done.is_multiple_of(self.options.save_every) && done < steps {
                put_back(state, student.clone());
                self.save(state, Some(&optimizer))?;
                state.mixtures = None;
            }
        }
        // Whatever mixes weights may change the texts' features, if only by rounding.
        self.text_changed |= text_trains
            || method.merge.is_some()
            || method.average.is_some()
            || method.start == Start::Pretrained;
        let mut trained = match state.parts.get(&Part::Average) {
            Some(average) if state.position.snapshots > 0 => average.clone(),
            _ => student.plain(),
        };
        if let Some(merge) = &method.merge {
            let other = match (merge.with, state.parts.get(&Part::Start)) {
                (Start::Previous, Some(start)) => start,
                _ => &self.checkpoint.model,
            };
            trained = interpolate(trained, other, merge.alpha);
        }
        // A stop between here and the end of the task does the rest again from this point.
        put_back(state, student);
        self.save(state, Some(&optimizer))?;
        Ok(Some(trained))
    }

    /// Returns a note where smoothed alignment pulls matching pairs apart: where the margin of the
    /// model is more than twice the margin at which the loss is smallest.
    fn wide_margin(&self, extras: &Extras) -> Option<String> {
        let method = &self.request.method;
        let reference = extras.reference.as_ref().filter(|_| method.map > 0.0)?;
        let scale = f64::from(to_host(self.checkpoint.model.scale())[0]);
        let margin = reference.margin(scale)?;
        let pairs = method.reference_batch.min(method.reference_pairs);
        let target = alignment_margin(pairs, method.map_smoothing);
        (margin > 2.0 * target).then(|| {
            format!(
                "matching reference pairs are {margin:.1} logits above others, and alignment with map_smoothing={} pulls them towards \
                 {target:.1}, which moves the modality gap; --set map_smoothing=0 does not",
                method.map_smoothing
            )
        })
    }

    /// Adds the weights to their average: `W ← α·(n·W + θ)/(n + 1) + (1 − α)·θ⁰`, n counted from 1.
    fn snapshot(&self, state: &mut State, weights: &ClipModel, alpha: f64) {
        let Some(average) = state.parts.remove(&Part::Average) else {
            return;
        };
        state.position.snapshots += 1;
        let n = state.position.snapshots as f64;
        let start = state.parts.get(&Part::Start);
        let next = match start.filter(|_| alpha < 1.0) {
            Some(start) => combine(average, &[weights, start], |w, o| {
                let mean = (w.mul_scalar(n) + o[0].clone()).div_scalar(n + 1.0);
                mean.mul_scalar(alpha) + o[1].clone().mul_scalar(1.0 - alpha)
            }),
            None => combine(average, &[weights], |w, o| {
                (w.mul_scalar(n) + o[0].clone()).div_scalar(n + 1.0)
            }),
        };
        state.parts.insert(Part::Average, next);
    }

    /// What the task is trained with besides its own images. `frozen` is the model at the start of
    /// the task.
    fn extras(
        &self,
        state: &State,
        frozen: &ClipModel,
        text_trains: bool,
    ) -> Result<Extras, RunError> {
        let method = &self.request.method;
        let (index, seed) = (state.position.task, self.request.seed);
        let start = state.parts.get(&Part::Start);
        let teacher = match (method.teacher, start) {
            (Teacher::Previous, Some(start)) => start,
            _ => &self.checkpoint.model,
        };
        let mut extras = Extras::default();
        if method.uses_reference() {
            extras.reference = Some(Reference::new(
                self.checkpoint,
                self.suite,
                method.reference_pairs,
                method.reference_batch,
                method.reference_shuffle,
                seed,
                index,
                teacher,
                (!text_trains).then_some(frozen),
                &self.images,
                &self.device,
            )?);
        }
        let kept = state.exemplars.as_ref().filter(|_| index > 0);
        if let Some(distill) = &method.distill {
            let memory = kept.map(|k| -> std::sync::Arc<dyn mtil_data::data::ImageSource> {
                std::sync::Arc::new(Joined::new(self.suite, items(k)))
            });
            let batch = match &method.rehearsal {
                Some(rehearsal) if memory.is_some() => rehearsal.batch,
                _ => method.reference_batch,
            };
            extras.distillation = Distillation::new(
                distill,
                &Setting {
                    checkpoint: self.checkpoint,
                    suite: self.suite,
                    index,
                    seed,
                    batch,
                    temperature: method.temperature,
                    teacher,
                    memory,
                },
            )?;
        }
        if let (Some(rehearsal), Some(kept)) = (&method.rehearsal, kept)
            && rehearsal.replay > 0.0
        {
            let items = Items::chosen(self.suite, items(kept));
            extras.replay = Some(Kept::new(items, rehearsal, seed, index)?);
        }
        if let Some(anchor) = &method.anchor {
            match anchor.kind {
                AnchorKind::L2 => {
                    extras.penalty = start.map(|s| Penalty::new(s, None, anchor.weight));
                }
                AnchorKind::Fisher => {
                    let importance = state.parts.get(&Part::Importance);
                    let at = state.parts.get(&Part::Anchor);
                    extras.penalty = importance
                        .zip(at)
                        .map(|(f, a)| Penalty::new(a, Some(f), anchor.weight / 2.0));
                }
                AnchorKind::Adaptive => {
                    extras.adaptive = start.map(|s| (Weights::of(s), anchor.weight));
                }
            }
        }
        Ok(extras)
    }

    /// Keeps of a trained task what later ones need: activations, images, importances, experts.
    /// False when stopped, with the state as it was.
    fn keep(
        &mut self,
        state: &mut State,
        trained: &ClipModel,
        index: usize,
        stop: &AtomicBool,
        progress: &mut dyn Progress,
    ) -> Result<bool, RunError> {
        let method = &self.request.method;
        let last = index + 1 == self.stages();
        let task = &self.suite.tasks[index];
        if let Some(projection) = &method.projection
            && !last
        {
            let mut memory = state.memory.clone();
            let (seed, images) = (self.request.seed, &self.images);
            if !remember(
                &mut memory,
                trained,
                task,
                index,
                projection,
                &method.trainable_later,
                seed,
                images,
                stop,
                progress,
            )? {
                return Ok(false);
            }
            state.memory = memory;
        }
        if let Some(rehearsal) = &method.rehearsal
            && !last
        {
            let exemplars = match state.exemplars.clone() {
                Some(exemplars) => exemplars,
                None => Exemplars::new(rehearsal.size, rehearsal.quota)?,
            };
            let (images, seed) = (&self.images, self.request.seed);
            let with = keep_images(
                exemplars,
                rehearsal.choice,
                task,
                index,
                trained,
                images,
                seed,
            )?;
            state.exemplars = Some(with);
        }
        if let Some(anchor) = &method.anchor
            && anchor.kind == AnchorKind::Fisher
            && !last
        {
            let (student, _) = Student::prepare(
                on_tape(trained.clone(), &self.device),
                None,
                method,
                index,
                self.request.seed,
                None,
            )?;
            let tokens = prompts(self.checkpoint, self.suite, index)?;
            let count = anchor.fisher_images;
            let new = penalty::fisher(
                &student.clip,
                task,
                &tokens,
                count,
                seeds::derive(self.request.seed, &[seeds::FISHER, index as u64]),
                &self.images,
                &self.device,
            )?;
            let importance = state.parts.remove(&Part::Importance);
            let old = importance.zip(state.parts.remove(&Part::Anchor));
            let (importance, at) = penalty::join(old, new, trained.clone());
            state.parts.insert(Part::Importance, importance);
            state.parts.insert(Part::Anchor, at);
        }
        if let (Some(experts), Some((_, usage))) = (&method.experts, &mut state.mixtures) {
            usage.freeze(experts.top);
        }
        Ok(true)
    }

    /// Whether a threshold is crossed, which is recorded, and may end the run.
    fn watch(
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
            // The models of other tasks are as they were, and so are their accuracies.
            let mut evaluation = match state.position.evaluations.last() {
                Some(last) => last.clone(),
                None => return Err(self.no_evaluation()),
            };
            let evaluator = self.evaluator();
            evaluation.accuracies[index] = evaluator.accuracy(trained, stage, index)?;
            evaluation.without_identity = None;
            let all = self.suite.tasks.len();
            evaluation.thinned = self.request.evaluation.images_at(stage, all).map(ThinnedBy);
            self.report(&evaluation, stage, progress)?;
            return Ok(evaluation);
        }
        if let (Some(settings), Some((mixtures, _))) = (&method.experts, &state.mixtures) {
            let routed = Routed {
                clip: &self.checkpoint.model.clone(),
                mixtures: &mixtures.valid(),
                settings,
                learned: index + 1,
            };
            return self.evaluate(&routed, None, stage, progress);
        }
        if let (Some(settings), Some(regression)) = (&method.analytic, &state.regression) {
            let joined = analytic::Joined {
                regression,
                suite: self.suite,
                fusion: settings.fusion,
            };
            return self.evaluate(trained, Some(&joined), stage, progress);
        }
        self.evaluate(trained, None, stage, progress)
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
        let on = Work::Evaluation;
        let mut tell = |done, of| progress.event(&Event::Working { on, done, of });
        let (evaluation, details) = self
            .evaluator()
            .evaluate(encoder, answer, stage, &mut heads, &mut tell)?;
        self.heads = heads;
        self.write_details(stage, &details)?;
        self.report(&evaluation, stage, progress)?;
        Ok(evaluation)
    }

    fn report(
        &self,
        evaluation: &Evaluation,
        stage: Option<usize>,
        progress: &mut dyn Progress,
    ) -> Result<(), RunError> {
        let name = stage.map(|stage| self.suite.tasks[stage].name.as_str());
        let rule = self.request.evaluation.prompts;
        let evaluated = Evaluated::new(evaluation, stage, name, rule);
        self.emit(Event::Evaluation(Box::new(evaluated)), progress)
    }

    /// `details/stage-NN.json` and the confusion matrices beside it.
    fn write_details(
        &self,
        stage: Option<usize>,
        details: &[ColumnDetails],
    ) -> Result<(), RunError> {
        if details.is_empty() {
            return Ok(());
        }
        let folder = self.directory.files().details();
        fs::create_dir_all(&folder).map_err(|e| RunError::io(&folder, e))?;
        let name = format!("stage-{:02}", stage.map_or(0, |s| s + 1));
        let path = folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(details).map_err(|e| RunError::Corrupt {
            path: path.clone(),
            reason: e.to_string(),
        })?;
        write_atomically(&path, text.as_bytes())?;
        for (column, details) in details.iter().enumerate() {
            let path = folder.join(format!("{name}-confusion-{column:02}.csv"));
            write_atomically(&path, details.confusion_csv.as_bytes())?;
        }
        Ok(())
    }

    fn save(
        &self,
        state: &mut State,
        optimizer: Option<&burn::optim::ModuleOptimizer>,
    ) -> Result<(), RunError> {
        state.position.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        if let Some(now) = peak_rss_mb() {
            let before = state.position.peak_mb.unwrap_or(0.0);
            state.position.peak_mb = Some(now.max(before));
        }
        state.save(self.directory.files(), self.checkpoint, optimizer)
    }

    fn write_results(&self, state: &State) -> Result<MetricsFile, RunError> {
        let position = &state.position;
        let method = &self.request.method;
        let evaluations = &position.evaluations;
        let tasks = self.suite.tasks.len();
        let rows = |of: &dyn Fn(&Evaluation) -> Option<Vec<f64>>| -> Option<Vec<Vec<f64>>> {
            let rows: Option<Vec<_>> = evaluations.iter().skip(1).map(of).collect();
            // One stage stands for all of them.
            rows.map(|rows| match rows.as_slice() {
                [one] if method.joint => vec![one.clone(); tasks],
                _ => rows,
            })
        };
        let file = |zero_shot: Vec<f64>, matrix: Vec<Vec<f64>>| MatrixFile {
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
        };
        let first = |of: &dyn Fn(&Evaluation) -> Option<Vec<f64>>| evaluations.first().and_then(of);
        let given = |e: &Evaluation| Some(e.accuracies.clone());
        let mut matrix = file(
            first(&given).unwrap_or_default(),
            rows(&given).unwrap_or_default(),
        );
        // In a run that an earlier version began some are missing.
        let learned: Option<Vec<f64>> = evaluations.iter().skip(1).map(|e| e.learned).collect();
        matrix.learned = learned.filter(|_| !method.joint).unwrap_or_default();
        let accuracy = matrix.accuracy()?;
        // The pretrained model's figures are those of a matrix whose rows are all its own.
        let constant = if method.trains {
            None
        } else {
            accuracy.as_constant()
        };
        let mut metrics = MetricsFile::of(constant.as_ref().unwrap_or(&accuracy));
        if method.joint {
            // There is no stage before or after another.
            (metrics.transfer, metrics.bwt, metrics.forgetting) = (None, None, None);
        }
        metrics.modality_gap = evaluations.iter().map(|e| e.modality_gap).collect();
        metrics.retrieval = evaluations.iter().map(|e| e.retrieval).collect();
        metrics.wall_seconds = Some(position.seconds);
        metrics.peak_rss_mb = match (peak_rss_mb(), position.peak_mb) {
            (Some(now), Some(before)) => Some(now.max(before)),
            (now, before) => now.or(before),
        };
        metrics.trainable_parameters = Some(if method.analytic.is_some() {
            0
        } else {
            position.trainable
        });
        metrics.bytes_kept = Some(self.bytes_kept(state));
        metrics.notes = self.notes(position);
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

    /// Bytes that the method carries from task to task besides the model: activations, images as
    /// they are fed to the model, importances, adapters, regressions; and the pretrained weights,
    /// where later tasks need them.
    fn bytes_kept(&self, state: &State) -> u64 {
        let method = &self.request.method;
        let weights = 4 * self.checkpoint.model.num_parameters() as u64;
        let side = self.checkpoint.preprocess.image_size();
        let mut bytes = state.memory.bytes() as u64;
        bytes += state.exemplars.as_ref().map_or(0, |e| e.bytes(side));
        let kept = [Part::Importance, Part::Anchor];
        bytes += weights * kept.iter().filter(|p| state.parts.contains_key(p)).count() as u64;
        if let Some((mixtures, _)) = &state.mixtures {
            bytes += 4 * mixtures.num_params() as u64;
        }
        if let Some(regression) = state
            .regression
            .as_ref()
            .filter(|_| state.position.task > 0)
        {
            bytes += regression.bytes_kept();
        }
        if method.per_task {
            // What each task needs of its own: its adapters, or its weights.
            bytes += 4 * state.position.trainable * state.position.task as u64;
        }
        if method.trains && method.needs_pretrained() {
            bytes += weights;
        }
        bytes
    }

    /// What a reader of the results must know.
    fn notes(&self, position: &Position) -> Vec<String> {
        let method = &self.request.method;
        let mut notes = self.request.evaluation.notes();
        if method.joint {
            notes.push("trained on all tasks at once: one evaluation stands in every row, and Transfer, BWT and Forgetting have no meaning".to_owned());
        }
        if method.per_task {
            notes.push("a model for each task, chosen by the task; gap and retrieval are the pretrained model's".to_owned());
        }
        if method.per_task || method.experts.is_some() {
            use crate::eval::TaskIdentity;
            if self.request.evaluation.identity != TaskIdentity::Given {
                notes.push("the task of an image is needed to choose what answers, so there are no figures without it".to_owned());
            }
        }
        if method.experts.is_some() {
            notes.push("gap and retrieval are the pretrained model's".to_owned());
        }
        if position.stopped_by_guard {
            notes.push("ended by the drift guard".to_owned());
        }
        notes
    }

    fn corrupt(&self, reason: &str) -> RunError {
        RunError::Corrupt {
            path: self.directory.files().states()[0].clone(),
            reason: reason.to_owned(),
        }
    }

    fn no_regression(&self) -> RunError {
        self.corrupt("the regression of earlier tasks is missing; start in a new --out")
    }

    fn no_evaluation(&self) -> RunError {
        self.corrupt("the evaluations of earlier tasks are missing; start in a new --out")
    }
}

/// How a run that goes no further ended.
fn ended(position: &Position, metrics: MetricsFile) -> Outcome {
    let stops = position.breaches.iter().find(|b| b.action == Action::Stop);
    match stops.filter(|_| position.stopped_by_guard) {
        Some(breach) => Outcome::Guarded(breach.message.clone()),
        None => Outcome::Complete(metrics),
    }
}

/// Puts a student back where the state keeps it.
fn put_back(state: &mut State, student: Student) {
    state.model = student.stored().clone();
    state.adapters = student.adapters();
    state.mixtures = student.mixtures;
}

static EMPTY: std::sync::LazyLock<Memory> = std::sync::LazyLock::new(Memory::new);

/// Peak resident memory of this process in MB, where the operating system tells.
fn peak_rss_mb() -> Option<f64> {
    machine::peak_bytes().map(|bytes| bytes as f64 / (1024.0 * 1024.0))
}

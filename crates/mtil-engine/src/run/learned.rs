//! The model that a run has learned, for use without the images of its suite.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use clip_model::{Clip, TokenBatch};

use super::{Request, RunFiles, lineage::Lineage};
use mtil_data::{
    data::{ImageSource, NoImages},
    did_you_mean, nearest,
    suite::{
        CaptionPairs, CaptionedImages, Classification, Extras, ImageCaptions, LabelledImages,
        Suite, Task, TaskKind, TaskRecord,
    },
};
use mtil_eval::{
    batch::{BatchError, Images},
    eval::{Classifier, Encoder, Ensemble, LabelSpace, Scorer, TaskLabels},
};
use mtil_methods::{
    error::{RunError, StateFault},
    mechanism::{
        context::RunContext,
        hooks::{Mechanism, load_kept_state, load_run_state},
        json_file::read_json,
        manifest,
        state::{POSITION, Position, RunState, state_error},
    },
    tape::autodiff_device,
};

/// The model of a run after its last finished task, as the run evaluates it.
///
/// Classes and templates are those of the run's record, so the suite is not needed. The model
/// includes what the method predicts with beside the weights: mixtures of adapters, the
/// regression, or the model of one task where a method keeps one for each.
///
/// ```no_run
/// use std::path::Path;
///
/// use burn::tensor::Device;
/// use clip_model::Clip;
/// use mtil_engine::{batch::Images, run::LearnedModel};
///
/// let base = Clip::load("clip-vit-base-patch16".as_ref(), &Device::default())?;
/// let learned = LearnedModel::open(Path::new("runs/shop/gnsp"), base, None)?;
/// let classifier = learned.classifier(&|| Ok(()))?;
/// for label in classifier.labels() {
///     println!("{} of {}", label.name, learned.tasks()[label.tasks[0]].name);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LearnedModel {
    request: Request,
    tasks: Vec<TaskRecord>,
    labels: Vec<TaskLabels>,
    in_training: Option<String>,
    task: Option<usize>,
    mechanisms: Vec<Box<dyn Mechanism>>,
    state: RunState,
    /// With the weights of the state.
    clip: Clip,
    /// The learned tasks, without images.
    suite: Suite,
}

/// A learned model on the tasks of a suite, some of which it may have learned.
pub struct LearnedOnSuite<'a> {
    /// The towers.
    pub encoder: Box<dyn Encoder + 'a>,
    /// The scorer of the method, if it has one.
    pub scorer: Option<Box<dyn Scorer + 'a>>,
    /// The stage of the run, if the suite begins with the tasks that it has learned: the evaluation
    /// is then the one that the run did after the last of them.
    pub stage: Option<usize>,
}

/// Error of opening or using a [`LearnedModel`].
#[derive(Debug, thiserror::Error)]
pub enum LearnedError {
    /// The run has no finished task.
    #[error("{} has learned no task yet", path.display())]
    NoTask {
        /// The run directory.
        path: PathBuf,
    },
    /// The run is within a task, and no state before it is kept.
    #[error(
        "{} is within task `{task}`, and has not kept its model before that task",
        path.display()
    )]
    WithinTask {
        /// The run directory.
        path: PathBuf,
        /// The task in training.
        task: String,
    },
    /// The run has not learned the task.
    #[error(
        "there is no learned task `{task}`{}; the learned tasks are {}",
        did_you_mean(near.as_deref()),
        learned.join(", ")
    )]
    UnknownTask {
        /// The unknown name.
        task: String,
        /// A similar name.
        near: Option<String>,
        /// Names of the learned tasks.
        learned: Vec<String>,
    },
    /// The task has image-caption pairs, and so have all tasks if none is named.
    #[error("{} image-caption pairs and no classes", match task {
        Some(task) => format!("task `{task}` has"),
        None => "the learned tasks have".to_owned(),
    })]
    NoClasses {
        /// The task; none if it is not given.
        task: Option<String>,
    },
    /// The method predicts only when it is given the task of an image.
    #[error("method `{method}` needs the task of an image")]
    TaskRequired {
        /// Name of the method.
        method: String,
    },
    /// The method keeps a model for each task.
    #[error("method `{method}` has a model for each task, and none for all of them")]
    ModelPerTask {
        /// Name of the method.
        method: String,
    },
    /// The model of one task is not kept.
    #[error("the model of task `{task}` is not kept: {} is missing", path.display())]
    ModelNotKept {
        /// The task.
        task: String,
        /// The missing folder.
        path: PathBuf,
    },
    /// The predictions of the method are not those of its weights alone.
    #[error(
        "method `{method}` predicts with its `{mechanism}` beside the weights, which are no part \
         of a CLIP"
    )]
    NotPlain {
        /// Name of the method.
        method: String,
        /// Key of the mechanism.
        mechanism: &'static str,
    },
    /// The method does not train.
    #[error("method `{method}` does not train: its model is the pretrained one")]
    Untrained {
        /// Name of the method.
        method: String,
    },
    /// A file of the run is missing, damaged, or that of another run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Prompts cannot be encoded.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

impl LearnedModel {
    /// Opens the model of the run in `folder`. The configuration, tokenizer and image settings are
    /// those of `base`, the pretrained model, whose weights are not used; the device is its own.
    /// `task` names the learned task that images are of, for methods that
    /// [need it](Self::needs_task), or to choose among its classes only.
    ///
    /// A run within a task has the model before that task. Nothing in the directory is changed, and
    /// its lock is not taken.
    ///
    /// # Errors
    /// [`LearnedError::NoTask`], [`LearnedError::WithinTask`], [`LearnedError::UnknownTask`],
    /// [`LearnedError::ModelNotKept`]; [`RunError`] as for resuming the run.
    pub fn open(folder: &Path, base: Clip, task: Option<&str>) -> Result<Self, LearnedError> {
        let files = RunFiles::new(folder);
        let request = files.request().map_err(RunError::from)?;
        let request = request.ok_or_else(|| RunError::NoRun {
            path: folder.to_owned(),
        })?;
        let lineage = Lineage::read(&files.tasks_file())?;
        let lineage = lineage.ok_or_else(|| RunError::NoTasks {
            path: files.tasks_file(),
        })?;
        let ids = lineage.state_ids(&request);
        let mut tasks = lineage.suite.tasks;
        let stored = StoredModel::find(&files, &request, &tasks, &ids)?;
        let in_training = stored
            .in_training
            .then(|| tasks[stored.learned].name.clone());
        tasks.truncate(stored.learned);
        let task = task.map(|name| index_of(name, &tasks)).transpose()?;
        let stored = match task.filter(|_| request.method.per_task) {
            Some(index) => stored.of_task(&files, index, &tasks)?,
            None => stored,
        };
        let suite = without_images(&lineage.suite.suite, &tasks);
        let mechanisms = request.method.mechanisms();
        let state = {
            let images = Images::new(base.preprocess.clone(), 1.0, false);
            let device = autodiff_device(&base.model.device(), false);
            let context = RunContext {
                checkpoint: &base,
                suite: &suite,
                images: &images,
                device: &device,
                seed: request.seed,
            };
            match &stored.checkpoint {
                Some(checkpoint) => {
                    load_kept_state(checkpoint, &stored.folder, &ids, &mechanisms, &context)?
                }
                None => load_run_state(&stored.folder, &ids, &mechanisms, &context)?,
            }
        };
        let clip = Clip {
            model: state.model.valid(),
            ..base
        };
        Ok(Self {
            labels: labels(&request, &tasks),
            request,
            tasks,
            in_training,
            task,
            mechanisms,
            state,
            clip,
            suite,
        })
    }

    /// Returns the request of the run.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Returns the learned tasks, in order.
    pub fn tasks(&self) -> &[TaskRecord] {
        &self.tasks
    }

    /// Returns the learned tasks with the templates that the run's last evaluation used.
    pub fn labels(&self) -> &[TaskLabels] {
        &self.labels
    }

    /// Returns the index of the task that the model was opened for.
    pub fn task(&self) -> Option<usize> {
        self.task
    }

    /// Returns the task that the run is within, and that the model has not learned.
    pub fn in_training(&self) -> Option<&str> {
        self.in_training.as_deref()
    }

    /// Returns the model with tokenizer and image settings. Only of a [plain](Self::plain) method
    /// it is all that predicts.
    pub fn clip(&self) -> &Clip {
        &self.clip
    }

    /// Returns whether a prediction needs the task of the image.
    pub fn needs_task(&self) -> bool {
        self.request.method.needs_task()
    }

    /// Returns whether the features of an image or text depend on the task. A method may classify
    /// without the task even so, by several models.
    pub fn features_depend_on_task(&self) -> bool {
        self.request.method.per_task || !self.towers().is_task_agnostic()
    }

    /// Returns the classifier among the classes of all learned tasks, or of the given one. Its
    /// scores are those of the run's evaluation. `proceed` is called before each batch of prompts,
    /// and its error ends the work.
    ///
    /// # Errors
    /// [`LearnedError::TaskRequired`] if the method needs a task, and none is given;
    /// [`LearnedError::NoClasses`]; [`LearnedError::Batch`].
    pub fn classifier(
        &self,
        proceed: &dyn Fn() -> Result<(), BatchError>,
    ) -> Result<Classifier<'_>, LearnedError> {
        self.check_task(self.needs_task())?;
        let encoder = self.towers();
        let scorer = self.scorer(&self.suite);
        let (clip, labels, task) = (&self.clip, &self.labels, self.task);
        let mut candidates = labels.iter().enumerate();
        let candidate = |(index, of): (usize, &TaskLabels)| {
            task.is_none_or(|task| task == index) && !of.classes.is_empty()
        };
        if !candidates.any(candidate) {
            return Err(LearnedError::NoClasses {
                task: task.map(|task| labels[task].name.clone()),
            });
        }
        Ok(Classifier::new(
            proceed, clip, encoder, scorer, labels, task,
        )?)
    }

    /// Returns the towers. They take [`task`](Self::task) as their task.
    ///
    /// # Errors
    /// [`LearnedError::TaskRequired`] if the [features depend](Self::features_depend_on_task) on
    /// the task, and none is given.
    pub fn encoder(&self) -> Result<Box<dyn Encoder + '_>, LearnedError> {
        self.check_task(self.features_depend_on_task())?;
        Ok(self.towers())
    }

    fn check_task(&self, is_needed: bool) -> Result<(), LearnedError> {
        if is_needed && self.task.is_none() {
            let method = self.request.method.name.clone();
            return Err(LearnedError::TaskRequired { method });
        }
        Ok(())
    }

    /// Returns the towers for classes of no learned task, and whether they are the pretrained ones:
    /// a method that predicts with more than its weights leaves these to the pretrained model, as
    /// its evaluation does, unless its models [classify](Encoder::ensemble) them together.
    ///
    /// # Errors
    /// [`LearnedError::ModelPerTask`].
    pub fn zero_shot_encoder(&self) -> Result<(Box<dyn Encoder + '_>, bool), LearnedError> {
        self.check_one_model()?;
        let towers = self.towers();
        let is_pretrained = towers.ensemble(None).is_none()
            && (self.beside_weights().is_some() || !self.request.method.trains);
        Ok((towers, is_pretrained))
    }

    /// Returns what an evaluation on `suite` needs. A task of it is a learned one if it has the
    /// same name and classes.
    ///
    /// # Errors
    /// [`LearnedError::ModelPerTask`].
    pub fn on_suite<'a>(&'a self, suite: &'a Suite) -> Result<LearnedOnSuite<'a>, LearnedError> {
        self.check_one_model()?;
        let is_learned = |task: &Task, r: &TaskRecord| {
            let classes = task.classification().map_or(&[][..], |of| &of.class_names);
            r.name == task.name && r.classes == classes
        };
        let pairs = || suite.tasks.iter().zip(&self.tasks);
        let begins =
            suite.tasks.len() >= self.tasks.len() && pairs().all(|(t, r)| is_learned(t, r));
        if begins {
            return Ok(LearnedOnSuite {
                encoder: self.towers(),
                scorer: self.scorer(suite),
                stage: self.stage(),
            });
        }
        let column = |task: &Task| self.tasks.iter().position(|r| is_learned(task, r));
        let columns: Vec<Option<usize>> = suite.tasks.iter().map(column).collect();
        let scorer = self.scorer(&self.suite).map(|scorer| {
            let columns = columns.clone();
            Box::new(ColumnScorer { scorer, columns }) as Box<dyn Scorer>
        });
        let encoder = self.towers();
        Ok(LearnedOnSuite {
            encoder: Box::new(ColumnEncoder { encoder, columns }),
            scorer,
            stage: None,
        })
    }

    /// Returns the model, if it is all that the method predicts with.
    ///
    /// # Errors
    /// [`LearnedError::ModelPerTask`], [`LearnedError::NotPlain`]; [`LearnedError::Untrained`] for
    /// the pretrained model.
    pub fn plain(&self) -> Result<&Clip, LearnedError> {
        self.check_one_model()?;
        let method = || self.request.method.name.clone();
        if let Some(mechanism) = self.beside_weights() {
            return Err(LearnedError::NotPlain {
                method: method(),
                mechanism,
            });
        }
        if !self.request.method.trains {
            return Err(LearnedError::Untrained { method: method() });
        }
        Ok(&self.clip)
    }

    fn check_one_model(&self) -> Result<(), LearnedError> {
        match self.request.method.per_task {
            true => Err(LearnedError::ModelPerTask {
                method: self.request.method.name.clone(),
            }),
            false => Ok(()),
        }
    }

    fn towers(&self) -> Box<dyn Encoder + '_> {
        let mut all = self.mechanisms.iter();
        let (model, learned) = (&self.clip.model, self.tasks.len());
        all.find_map(|m| m.encoder(model, &self.state, learned))
            .unwrap_or_else(|| Box::new(model.clone()))
    }

    fn scorer<'a>(&'a self, suite: &'a Suite) -> Option<Box<dyn Scorer + 'a>> {
        let mut all = self.mechanisms.iter();
        all.find_map(|m| m.scorer(&self.state, suite))
    }

    /// Returns the key of the mechanism that predicts beside the weights.
    fn beside_weights(&self) -> Option<&'static str> {
        let (model, learned) = (&self.clip.model, self.tasks.len());
        let mut all = self.mechanisms.iter();
        let found = all.find(|m| {
            m.encoder(model, &self.state, learned).is_some()
                || m.scorer(&self.state, &self.suite).is_some()
        });
        found.map(|m| m.key())
    }

    /// Returns the stage of the run's last evaluation.
    fn stage(&self) -> Option<usize> {
        let trains = self.request.method.trains;
        trains.then(|| self.tasks.len() - 1)
    }
}

/// A model in the files of a run.
struct StoredModel {
    /// Number of tasks that it has learned.
    learned: usize,
    /// True if the run is within the task after them.
    in_training: bool,
    /// Folder of the state.
    folder: PathBuf,
    /// The checkpoint that has the weights, unless they are in the folder.
    checkpoint: Option<PathBuf>,
}

impl StoredModel {
    /// Finds the model after the last finished task.
    fn find(
        files: &RunFiles,
        request: &Request,
        tasks: &[TaskRecord],
        ids: &[String],
    ) -> Result<Self, LearnedError> {
        let no_task = || LearnedError::NoTask {
            path: files.folder().to_owned(),
        };
        let Some(state) = files.state() else {
            let path = files.folder().to_owned();
            let fault = StateFault::NoState;
            return Err(match files.matrix().map_err(RunError::from)? {
                Some(_) => RunError::State { path, fault }.into(),
                None => no_task(),
            });
        };
        let Position { task, step, .. } = position(&state, ids)?;
        let learned = match request.method.joint {
            true if task > 0 => tasks.len(),
            _ => task.min(tasks.len()),
        };
        if learned == 0 {
            return Err(no_task());
        }
        let stored = |in_training, folder, checkpoint| {
            Ok(Self {
                learned,
                in_training: in_training && learned < tasks.len(),
                folder,
                checkpoint,
            })
        };
        // Once a task has begun, the state before it is in `undo`, and beside the last checkpoint.
        let before = files.undo();
        let found = read_json::<Position>(&before.join(POSITION)).ok();
        if found.is_some_and(|found| (found.task, found.step) == (task, 0)) {
            return stored(true, before, None);
        }
        // A selection of hyper-parameters saves the state between a task's beginning and its first
        // training step.
        if step == 0 && request.select.is_none() {
            return stored(false, state, None);
        }
        let checkpoint = files.checkpoint(learned - 1);
        let kept = RunFiles::kept_state(&checkpoint);
        if kept.exists() {
            return stored(true, kept, Some(checkpoint));
        }
        if step == 0 {
            return stored(false, state, None);
        }
        Err(LearnedError::WithinTask {
            path: files.folder().to_owned(),
            task: tasks.get(task).map_or_else(String::new, |t| t.name.clone()),
        })
    }

    /// Returns the model of one task, where the method keeps one for each.
    fn of_task(
        self,
        files: &RunFiles,
        index: usize,
        tasks: &[TaskRecord],
    ) -> Result<Self, LearnedError> {
        if index + 1 == self.learned {
            return Ok(self);
        }
        let checkpoint = files.checkpoint(index);
        let folder = RunFiles::kept_state(&checkpoint);
        if !folder.exists() {
            return Err(LearnedError::ModelNotKept {
                task: tasks[index].name.clone(),
                path: folder,
            });
        }
        Ok(Self {
            folder,
            checkpoint: Some(checkpoint),
            ..self
        })
    }
}

/// Reads the position of the state in `folder`. Where it cannot be read, the manifest has the
/// reason.
fn position(folder: &Path, ids: &[String]) -> Result<Position, RunError> {
    read_json(&folder.join(POSITION)).map_err(|error| match manifest::verify(folder, ids) {
        Err(reason) => reason,
        Ok(()) => state_error(error, folder),
    })
}

/// Returns the index of a learned task.
fn index_of(name: &str, tasks: &[TaskRecord]) -> Result<usize, LearnedError> {
    let names = || tasks.iter().map(|task| task.name.as_str());
    let index = names().position(|known| known == name);
    index.ok_or_else(|| LearnedError::UnknownTask {
        task: name.to_owned(),
        near: nearest(name, names()),
        learned: names().map(str::to_owned).collect(),
    })
}

/// Returns the classes of the learned tasks with the templates of the run's last evaluation.
fn labels(request: &Request, tasks: &[TaskRecord]) -> Vec<TaskLabels> {
    let method = &request.method;
    let of_task = |(index, task): (usize, &TaskRecord)| {
        // A model per task was evaluated once, after its own task.
        let stage = match method.per_task {
            true => index,
            false => tasks.len() - 1,
        };
        let rule = request.evaluation.prompts;
        let stage = Some(stage).filter(|_| method.trains);
        let count = rule.template_count(stage, index, task.templates.len());
        TaskLabels {
            name: task.name.clone(),
            classes: task.classes.clone(),
            templates: task.templates[..count.min(task.templates.len())].to_vec(),
        }
    };
    tasks.iter().enumerate().map(of_task).collect()
}

/// Returns the suite of the recorded tasks, without images.
fn without_images(name: &str, tasks: &[TaskRecord]) -> Suite {
    let images: Arc<dyn ImageSource> = Arc::new(NoImages);
    let labelled = || LabelledImages {
        images: images.clone(),
        labels: Vec::new(),
    };
    let captioned = || ImageCaptions {
        images: images.clone(),
        captions: Vec::new(),
    };
    let pairs = || CaptionedImages {
        images: images.clone(),
        captions: Vec::new(),
    };
    let task = |task: &TaskRecord| Task {
        name: task.name.clone(),
        kind: match task.classes.is_empty() {
            true => TaskKind::Captions(CaptionPairs {
                train: captioned(),
                test: captioned(),
            }),
            false => TaskKind::Classification(Classification {
                class_names: task.classes.clone(),
                templates: task.templates.clone(),
                train: labelled(),
                test: labelled(),
            }),
        },
    };
    Suite {
        name: name.to_owned(),
        tasks: tasks.iter().map(task).collect(),
        reference: pairs(),
        held_out: pairs(),
        extras: Extras::default(),
    }
}

/// Towers on a suite whose tasks have other places than those of the run.
struct ColumnEncoder<'a> {
    encoder: Box<dyn Encoder + 'a>,
    /// The learned task at each place of the suite.
    columns: Vec<Option<usize>>,
}

impl ColumnEncoder<'_> {
    fn learned(&self, task: Option<usize>) -> Option<usize> {
        *self.columns.get(task?)?
    }
}

impl Encoder for ColumnEncoder<'_> {
    fn image(&self, task: Option<usize>, pixels: Tensor<4>) -> Tensor<2> {
        self.encoder.image(self.learned(task), pixels)
    }

    fn text(&self, task: Option<usize>, tokens: &TokenBatch) -> Tensor<2> {
        self.encoder.text(self.learned(task), tokens)
    }

    fn device(&self) -> Device {
        self.encoder.device()
    }

    fn is_task_agnostic(&self) -> bool {
        self.encoder.is_task_agnostic()
    }

    fn ensemble(&self, task: Option<usize>) -> Option<&dyn Ensemble> {
        self.encoder.ensemble(self.learned(task))
    }
}

/// Scorer on such a suite.
struct ColumnScorer<'a> {
    scorer: Box<dyn Scorer + 'a>,
    columns: Vec<Option<usize>>,
}

impl Scorer for ColumnScorer<'_> {
    fn scores(
        &self,
        features: &[f32],
        logits: Vec<f32>,
        space: LabelSpace,
    ) -> Result<Vec<f32>, String> {
        let LabelSpace::Task(task) = space else {
            return Err(
                "its scores compare the classes of all tasks only where the suite begins with the \
                 learned ones"
                    .to_owned(),
            );
        };
        match self.columns.get(task).copied().flatten() {
            Some(learned) => self
                .scorer
                .scores(features, logits, LabelSpace::Task(learned)),
            None => Ok(logits),
        }
    }
}

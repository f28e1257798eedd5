//! Hyper-parameter selection per task on held-out training images.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use clip_model::ClipModel;
use mtil_data::{
    datasets::transform::Subset,
    seeds,
    suite::{CaptionPairs, CaptionedImages, Classification, LabelledImages, Suite, Task, TaskKind},
};
use serde::{Deserialize, Serialize};

use super::{Event, Progress, Request, RunDirectory, engine::Engine};
use mtil_eval::{
    eval::{EvalOptions, Evaluator, HeadCache, PromptRule},
    guard::Guard,
};
use mtil_methods::{
    error::RunError,
    mechanism::{hooks::load_run_state, json_file::write_json, state::RunState},
    method::Method,
};

/// A hyper-parameter that is selected for each task from several values.
///
/// ```
/// use mtil_engine::run::Select;
///
/// let select = Select::parse("lr=1e-5,3e-5")?;
/// assert_eq!((select.key.as_str(), select.values.len()), ("lr", 2));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Select {
    /// The hyper-parameter, such as `lr`.
    pub key: String,
    /// The values in the order of the trials; of equal scores the first wins.
    pub values: Vec<String>,
}

/// Share of the training images of each class, or of all pairs, that are held out; at least one image
/// of a class with two.
const HELD_OUT_SHARE: f64 = 0.1;

/// Number of reference pairs that score a candidate.
const VALIDATION_PAIRS: usize = 500;

/// Score of a candidate on a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CandidateScore {
    /// The value of the hyper-parameter.
    pub value: String,
    /// Accuracy in % on the held-out training images, or the mean R@1 of both directions.
    pub accuracy: f64,
    /// R@1 on reference pairs in % of the pretrained model's, at most 100; none if the suite has no
    /// reference pairs.
    pub retained: Option<f64>,
    /// The selection criterion: the mean of both.
    pub score: f64,
}

/// Name of the file with the scores of a task.
pub const SCORES: &str = "scores.json";

impl Select {
    /// Parses text such as `lr=1e-5,3e-5`.
    ///
    /// # Errors
    /// A message for text of another form, and for fewer than two distinct values.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, values) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` is not of the form KEY=VALUE,VALUE"))?;
        let values: Vec<String> = values.split(',').map(|v| v.trim().to_owned()).collect();
        let distinct: BTreeSet<&String> = values.iter().collect();
        if values.iter().any(String::is_empty) || distinct.len() < values.len() {
            return Err(format!(
                "the values of `{text}` must differ, and none be empty"
            ));
        }
        if values.len() < 2 {
            return Err(format!(
                "`{text}` leaves nothing to choose from: give several values with commas between, \
                 or --set {text}"
            ));
        }
        Ok(Self {
            key: key.trim().to_owned(),
            values,
        })
    }

    /// Returns the method with each value.
    ///
    /// # Errors
    /// When the method lacks the hyper-parameter, a value is invalid, or the method does not train
    /// weights task by task.
    pub fn candidates(&self, method: &Method) -> Result<Vec<Method>, RunError> {
        let learns_itself = method.analytic.is_some() || method.lada.is_some();
        if method.joint || method.experts.is_some() || learns_itself || !method.trains {
            return Err(RunError::Select(format!(
                "method `{}` has no tasks whose weights are trained one after the other",
                method.name
            )));
        }
        let with = |value: &String| Ok(method.with(&format!("{}={value}", self.key))?);
        self.values.iter().map(with).collect()
    }

    /// Returns the method with each value for `task`. `lr` and `steps` are set for this task alone,
    /// which overrides `lr_later` and a value that the method has for it.
    fn for_task(&self, method: &Method, task: &str) -> Result<Vec<Method>, RunError> {
        let mut candidates = self.candidates(method)?;
        for changed in &mut candidates {
            let (lr, steps) = (changed.lr, changed.steps);
            match self.key.as_str() {
                "lr" => changed.task.entry(task.to_owned()).or_default().lr = Some(lr),
                "steps" => changed.task.entry(task.to_owned()).or_default().steps = Some(steps),
                _ => {}
            }
        }
        Ok(candidates)
    }
}

/// Splits a task's training images into those to train on and those that score a value. Returns the
/// task with each, as the training split and as the test split.
fn hold_out(task: &Task, seed: u64) -> Result<[TaskKind; 2], RunError> {
    let too_small = |reason: &str| {
        let name = &task.name;
        Err(RunError::Select(format!(
            "task `{name}` is too small: {reason}"
        )))
    };
    match &task.kind {
        TaskKind::Classification(classes) => match hold_out_of_classes(classes, seed) {
            Some([train, held]) => Ok([
                TaskKind::Classification(Classification {
                    train,
                    ..classes.clone()
                }),
                TaskKind::Classification(Classification {
                    test: held,
                    ..classes.clone()
                }),
            ]),
            None => too_small("no class has two training images, one of which could be held out"),
        },
        TaskKind::Captions(pairs) => {
            let all = pairs.train.images.len();
            if all < 3 {
                return too_small("holding an image out leaves no two to train on");
            }
            let count = ((all as f64 * HELD_OUT_SHARE) as usize).max(1);
            let drawn: BTreeSet<usize> = seeds::sample(all, count, seed).into_iter().collect();
            let (held, train) = (0..all).partition(|image| drawn.contains(image));
            Ok([
                TaskKind::Captions(CaptionPairs {
                    train: pairs.train.subset(train),
                    test: pairs.test.clone(),
                }),
                TaskKind::Captions(CaptionPairs {
                    train: pairs.train.clone(),
                    test: pairs.train.subset(held),
                }),
            ])
        }
    }
}

/// Splits labelled training images by class into training and held-out images; none if no class has
/// two.
fn hold_out_of_classes(of: &Classification, seed: u64) -> Option<[LabelledImages; 2]> {
    let (mut train, mut held) = (Vec::new(), Vec::new());
    for class in 0..of.class_names.len() {
        let of_class: Vec<usize> = (0..of.train.labels.len())
            .filter(|i| of.train.labels[*i] == class)
            .collect();
        let count = match of_class.len() {
            0 | 1 => 0,
            n => ((n as f64 * HELD_OUT_SHARE) as usize).max(1),
        };
        let seed = seeds::derive(seed, &[seeds::HELD_OUT, class as u64]);
        let drawn: BTreeSet<usize> = seeds::sample(of_class.len(), count, seed)
            .into_iter()
            .collect();
        for (at, image) in of_class.into_iter().enumerate() {
            match drawn.contains(&at) {
                true => held.push(image),
                false => train.push(image),
            }
        }
    }
    let some = |mut indices: Vec<usize>| {
        indices.sort_unstable();
        LabelledImages {
            labels: indices.iter().map(|i| of.train.labels[*i]).collect(),
            images: Arc::new(Subset::new(of.train.images.clone(), indices)),
        }
    };
    (!held.is_empty()).then(|| [some(train), some(held)])
}

impl Engine<'_> {
    /// Trains the current task, with a hyper-parameter selected for it if requested.
    pub(super) fn train_selected(
        &mut self,
        state: &mut RunState,
        progress: &mut dyn Progress,
    ) -> Result<ClipModel, RunError> {
        let Some(select) = &self.request.select else {
            return self.train(state, progress);
        };
        let method = match self.select(select, state, progress) {
            // The time spent so far is saved.
            Err(error) if error.is_interrupted() && state.position.step == 0 => {
                self.save(state, None)?;
                return Err(error);
            }
            selected => selected?,
        };
        let request = Request {
            method,
            ..self.request.clone()
        };
        let directory = self.directory.share()?;
        let mut engine = self.derived_engine(&request, self.suite, directory);
        let trained = engine.train(state, progress)?;
        let text_changed = engine.text_changed;
        self.text_changed |= text_changed;
        Ok(trained)
    }

    /// Returns an engine that trains a task of this run with another request, on a suite that may
    /// lack some of its images.
    fn derived_engine<'b>(
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

    /// Returns the method with the best value for the current task. Candidates with a stored score
    /// are not trained again, and an unfinished one is resumed.
    pub(super) fn select(
        &self,
        select: &Select,
        state: &RunState,
        progress: &mut dyn Progress,
    ) -> Result<Method, RunError> {
        let index = state.position.task;
        let task = &self.suite.tasks[index];
        let folder = self.directory.files().select(index);
        fs::create_dir_all(&folder).map_err(|e| RunError::io(&folder, e))?;
        let candidates = select.for_task(&self.request.method, &task.name)?;
        let mut scored = read_scores(&folder.join(SCORES))?;
        let seed = seeds::derive(self.request.seed, &[seeds::HELD_OUT, index as u64]);
        let [train, held] = hold_out(task, seed)?;
        let mut suite = self.suite.clone();
        suite.tasks[index].kind = train;
        let validation = self.validation_suite(index, held, seed);
        // R@1 of the pretrained model, the same for all values.
        let mut pretrained_recall = None;
        for (value, method) in select.values.iter().zip(&candidates) {
            if scored.iter().any(|s| s.value == *value) {
                continue;
            }
            let request = Request {
                method: method.clone(),
                select: None,
                guard: Vec::new(),
                ..self.request.clone()
            };
            let path = folder.join(value.replace(['/', '\\'], "_"));
            let directory = RunDirectory::open(&path, &request, &suite)?;
            // Each candidate is a run of its own, so that it can be resumed.
            let mut engine = self.derived_engine(&request, &suite, directory);
            let stored = engine.directory.files().state();
            let mut own = match stored {
                Some(folder) => {
                    let ids = engine.state_ids();
                    load_run_state(&folder, &ids, &engine.mechanisms, &engine.context())?
                }
                None => state.branch(),
            };
            let trained = engine.train(&mut own, progress)?;
            drop(engine);
            let (accuracy, recall) = self.score(&trained, &validation)?;
            let retained = match recall {
                Some(recall) => {
                    if pretrained_recall.is_none() {
                        pretrained_recall = self.score(&self.checkpoint.model, &validation)?.1;
                    }
                    pretrained_recall
                        .map(|pretrained| (100.0 * recall / pretrained.max(1e-9)).min(100.0))
                }
                None => None,
            };
            scored.push(CandidateScore {
                value: value.clone(),
                accuracy,
                retained,
                score: retained.map_or(accuracy, |retained| (accuracy + retained) / 2.0),
            });
            write_json(&scored, &folder.join(SCORES))?;
            // Only the score is kept.
            fs::remove_dir_all(&path).map_err(|e| RunError::io(&path, e))?;
        }
        let mut best = 0;
        for (at, candidate) in scored.iter().enumerate() {
            if candidate.score > scored[best].score {
                best = at;
            }
        }
        let chosen = scored[best].value.clone();
        if state.position.step == 0 {
            let event = Event::Select {
                task: index,
                key: select.key.clone(),
                chosen: chosen.clone(),
                candidates: scored,
            };
            self.emit(event, progress)?;
        }
        let at = select.values.iter().position(|value| *value == chosen);
        let method = at.and_then(|at| candidates.into_iter().nth(at));
        method.ok_or_else(|| RunError::Corrupt {
            path: folder.join(SCORES),
            reason: format!("`{chosen}` is none of the values"),
        })
    }

    /// Returns a suite that scores candidates: the held-out images as test set, and reference pairs
    /// in place of the reported held-out pairs.
    fn validation_suite(&self, index: usize, held: TaskKind, seed: u64) -> Suite {
        let task = Task {
            name: self.suite.tasks[index].name.clone(),
            kind: held,
        };
        let pairs = self.suite.reference_of(index);
        let seed = seeds::derive(seed, &[seeds::REFERENCE]);
        let drawn = seeds::sample(pairs.captions.len(), VALIDATION_PAIRS, seed);
        let mut suite = self.suite.clone();
        suite.extras = Default::default();
        suite.tasks = vec![task];
        suite.held_out = CaptionedImages {
            captions: drawn.iter().map(|i| pairs.captions[*i].clone()).collect(),
            images: Arc::new(Subset::new(pairs.images.clone(), drawn)),
        };
        suite
    }

    /// Returns the accuracy in % on the held-out images, and R@1 on the reference pairs, if any.
    fn score(&self, model: &ClipModel, validation: &Suite) -> Result<(f64, Option<f64>), RunError> {
        let options = EvalOptions {
            prompts: PromptRule::First,
            ..EvalOptions::default()
        };
        let evaluator = Evaluator {
            checkpoint: self.checkpoint,
            suite: validation,
            options: &options,
            images: &self.images,
            seed: self.request.seed,
        };
        let (heads, progress) = (&mut HeadCache::default(), &mut |_, _| {});
        let (found, _) = evaluator.evaluate(model, None, None, heads, progress)?;
        let pairs = !validation.held_out.captions.is_empty();
        Ok((
            found.accuracies[0].unwrap_or_default(),
            pairs.then(|| found.retrieval.mean_r1()),
        ))
    }
}

fn read_scores(path: &Path) -> Result<Vec<CandidateScore>, RunError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| RunError::Corrupt {
            path: path.to_owned(),
            reason: error.to_string(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(RunError::io(path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_several_and_distinct() {
        let select = Select::parse("lr = 1e-5, 3e-5,1e-4").unwrap();
        assert_eq!((select.key.as_str(), select.values.len()), ("lr", 3));
        for (text, word) in [
            ("lr", "KEY=VALUE"),
            ("lr=1e-5", "nothing to choose from"),
            ("lr=1e-5,1e-5", "must differ"),
            ("lr=1e-5,", "none be empty"),
        ] {
            let error = Select::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn only_methods_trained_task_by_task_have_candidates() {
        let select = Select::parse("lr=1e-5,3e-5").unwrap();
        let load = |name| Method::load(name, "", &[]).unwrap();
        let both = select.candidates(&load("gnsp")).unwrap();
        assert_eq!([both[0].lr, both[1].lr], [1e-5, 3e-5]);
        for name in ["joint", "rail-dual", "moe-adapters", "zero-shot"] {
            assert!(select.candidates(&load(name)).is_err(), "{name}");
        }
        let unknown = Select::parse("lrate=1,2").unwrap();
        let error = unknown.candidates(&load("gnsp")).unwrap_err().to_string();
        assert!(error.contains("lrate"), "{error}");
    }
}

//! A little of a run, timed by the events of the engine: the same method on two tasks with a few
//! updates and a few images.
//!
//! Everything that a method does at a task is in it, whatever mechanisms it has; so there is no
//! model of a mechanism here.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use burn::tensor::Device;
use clip_model::Clip;
use mtil_data::{
    datasets::transform::Subset,
    suite::{CaptionedImages, LabelledImages, Suite, Task},
};
use mtil_engine::{
    method::Method,
    run::{Event, Progress, Request, RunError, RunOptions, Work, run},
};

/// Tasks of a trial: the first, and a later one.
const TASKS: usize = 2;
/// Updates on each.
const UPDATES: usize = 5;
/// Least images of a training set, and images of a test set.
const IMAGES: usize = 64;
/// Batches of the Gram pass.
const GRAM_BATCHES: usize = 3;

/// Seconds that the parts of a run took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trial {
    /// The classifiers of an evaluation after a task; and all else of it.
    pub heads: f64,
    /// See [`heads`](Self::heads).
    pub evaluation: f64,
    /// Before the first update of a task: the first, a later one.
    pub setup: [f64; 2],
    /// One update on the first task, and on a later one.
    pub update: [f64; 2],
    /// Learning of a task without updates.
    pub learn: f64,
    /// One batch of the Gram pass.
    pub gram_batch: f64,
    /// What is kept of a task besides.
    pub keep: f64,
    /// Bytes of a checkpoint, and of the state after the first task.
    pub checkpoint: u64,
    /// See [`checkpoint`](Self::checkpoint).
    pub state: u64,
    /// Values that train.
    pub trainable: u64,
    /// What the trial had of what a run has.
    pub had: Amounts,
}

/// How much of everything there is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Amounts {
    /// Training images of a task, in the mean.
    pub train: f64,
    /// Images of an evaluation: test images and held-out pairs.
    pub evaluated: f64,
    /// Prompts of all classes.
    pub prompts: f64,
    /// Reference pairs and texts that a task is prepared with.
    pub reference: f64,
    /// Images of an update.
    pub batch: f64,
}

impl Amounts {
    /// Those of a method on a suite.
    pub fn of(method: &Method, suite: &Suite) -> Self {
        let tasks = &suite.tasks;
        let sum = |of: &dyn Fn(&Task) -> usize| tasks.iter().map(of).sum::<usize>() as f64;
        let pairs = suite.reference.captions.len().min(method.reference_pairs);
        let texts = match method.distill {
            Some(_) => suite.extras.texts.len().max(suite.reference.captions.len()),
            None => 0,
        };
        let sets = suite.extras.retrieval.iter();
        let retrieved: usize = sets.map(|set| set.images.len()).sum();
        let others = suite.held_out.captions.len() + retrieved;
        // A model for each task is evaluated on its own one.
        let evaluated = match method.per_task {
            true => sum(&|t| t.test.labels.len()) / tasks.len() as f64,
            false => sum(&|t| t.test.labels.len()) + others as f64,
        };
        Self {
            train: sum(&|t| t.train.labels.len()) / tasks.len() as f64,
            evaluated,
            prompts: sum(&|t| t.class_names.len() * t.templates.len()),
            reference: (pairs + texts) as f64,
            batch: (method.batch + method.reference_batch) as f64,
        }
    }
}

/// Does a little of a run in `folder`, with `smaller` times smaller batches.
///
/// # Errors
/// As the run.
pub fn trial(
    request: &Request,
    suite: &Suite,
    clip: &Clip,
    device: &Device,
    smaller: usize,
    folder: &Path,
) -> Result<Trial, RunError> {
    let method = reduced(&request.method, smaller);
    let suite = of_few(suite, &method);
    let request = Request {
        method,
        guard: Vec::new(),
        select: None,
        ..request.clone()
    };
    let mut watch = Stopwatch::default();
    let stop = AtomicBool::new(false);
    let options = RunOptions::default();
    run(
        &request, &suite, clip, device, folder, &options, &stop, &mut watch,
    )?;
    let mut trial = watch.trial();
    trial.had = Amounts::of(&request.method, &suite);
    trial.checkpoint = size(&folder.join("checkpoints/task-01"));
    trial.state = size(&folder.join("state"));
    Ok(trial)
}

/// The method with few updates and smaller batches.
fn reduced(method: &Method, smaller: usize) -> Method {
    let mut method = method.clone();
    let less = |batch: usize| batch.div_ceil(smaller);
    method.steps = UPDATES;
    method.schedule_steps = None;
    method.task.clear();
    method.batch = less(method.batch);
    method.reference_batch = less(method.reference_batch);
    method.reference_pairs = method
        .reference_pairs
        .min(IMAGES.max(2 * method.reference_batch));
    if let Some(projection) = &mut method.projection {
        projection.gram_batch = less(projection.gram_batch);
        projection.gram_batches = Some(GRAM_BATCHES);
    }
    if let Some(rehearsal) = &mut method.rehearsal {
        rehearsal.batch = less(rehearsal.batch);
    }
    method
}

/// The first tasks with a few images of each.
fn of_few(suite: &Suite, method: &Method) -> Suite {
    let few = |set: &LabelledImages, count: usize| {
        let chosen = spread(set.labels.len(), count);
        LabelledImages {
            labels: chosen.iter().map(|i| set.labels[*i]).collect(),
            images: Arc::new(Subset::new(set.images.clone(), chosen)),
        }
    };
    let pairs = |set: &CaptionedImages, count: usize| {
        let chosen = spread(set.captions.len(), count);
        CaptionedImages {
            captions: chosen.iter().map(|i| set.captions[*i].clone()).collect(),
            images: Arc::new(Subset::new(set.images.clone(), chosen)),
        }
    };
    let gram = method.projection.as_ref().map_or(0, |p| p.gram_batch);
    let train = IMAGES.max(2 * method.batch).max(GRAM_BATCHES * gram);
    let mut short = suite.clone();
    short.tasks.truncate(TASKS);
    for task in &mut short.tasks {
        task.train = few(&task.train, train);
        task.test = few(&task.test, IMAGES);
    }
    short.reference = pairs(&suite.reference, method.reference_pairs);
    short.held_out = pairs(&suite.held_out, IMAGES);
    short.extras.texts.truncate(IMAGES);
    short.extras.retrieval.clear();
    short.extras.published_draws = false;
    short
}

/// `count` of the indices below `all`, as far apart as they can be.
fn spread(all: usize, count: usize) -> Vec<usize> {
    let count = count.min(all);
    (0..count).map(|i| i * all / count).collect()
}

/// Bytes of the files of a folder; 0 without it.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let files = entries.filter_map(|entry| entry.ok()?.metadata().ok());
    files.filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// When the events of a trial came.
#[derive(Default)]
struct Stopwatch {
    marks: Vec<(Mark, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    TaskStart,
    Step,
    Encoding,
    Evaluating,
    Evaluated,
    Gram,
    TaskEnd,
}

impl Progress for Stopwatch {
    fn event(&mut self, event: &Event) {
        let mark = match event {
            Event::TaskStart { .. } => Mark::TaskStart,
            Event::Step(_) => Mark::Step,
            Event::Working { on, .. } => match on {
                Work::Encoding => Mark::Encoding,
                Work::Evaluation => Mark::Evaluating,
                Work::Gram => Mark::Gram,
            },
            Event::Evaluation(_) => Mark::Evaluated,
            Event::TaskEnd { .. } => Mark::TaskEnd,
            _ => return,
        };
        self.marks.push((mark, Instant::now()));
    }
}

impl Stopwatch {
    fn trial(&self) -> Trial {
        let mut trial = Trial::default();
        let starts = self.marks.iter().enumerate();
        let starts = starts.filter(|(_, (mark, _))| *mark == Mark::TaskStart);
        let starts: Vec<usize> = starts.map(|(at, _)| at).collect();
        for (task, start) in starts.iter().enumerate().take(TASKS) {
            let end = starts.get(task + 1).copied().unwrap_or(self.marks.len());
            let of_task = &self.marks[*start..end];
            let at = |mark: Mark| -> Vec<Instant> {
                let found = of_task.iter().filter(|(m, _)| *m == mark);
                found.map(|(_, when)| *when).collect()
            };
            let seconds = |from: Instant, to: Instant| (to - from).as_secs_f64();
            let (steps, began) = (at(Mark::Step), of_task[0].1);
            let evaluated = at(Mark::Evaluated).last().copied();
            let evaluating = at(Mark::Evaluating).first().copied();
            // The first update of a process compiles kernels and warms caches.
            trial.update[task] = median(steps.windows(2).map(|w| seconds(w[0], w[1])));
            if let Some(first) = steps.first() {
                trial.setup[task] = (seconds(began, *first) - trial.update[task]).max(0.0);
            }
            let learned = steps.last().copied();
            let encoded = at(Mark::Encoding).last().copied();
            let ready = learned.or(encoded).unwrap_or(began);
            trial.learn = match learned {
                Some(_) => 0.0,
                None => seconds(began, ready),
            };
            if let Some(evaluated) = evaluated {
                let from = evaluating.unwrap_or(ready);
                trial.heads = seconds(ready, from);
                trial.evaluation = seconds(from, evaluated);
                if task == 0 {
                    let gram = at(Mark::Gram);
                    trial.gram_batch = median(gram.windows(2).map(|w| seconds(w[0], w[1])));
                    let kept = gram.last().copied().unwrap_or(evaluated);
                    let ended = at(Mark::TaskEnd).last().copied().unwrap_or(kept);
                    trial.keep = seconds(kept, ended);
                }
            }
        }
        trial
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_spread_over_a_set() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(3, 5), [0, 1, 2]);
        assert_eq!(spread(0, 5), Vec::<usize>::new());
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}

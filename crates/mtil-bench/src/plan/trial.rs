//! Trial runs: a method on two tasks with a few steps and images, timed by the engine's events.
//!
//! The trial executes every mechanism of the method, so no mechanism needs a cost model here.

use std::{path::Path, sync::Arc, time::Instant};

use burn::tensor::Device;
use clip_model::Clip;
use mtil_data::{
    datasets::transform::Subset,
    suite::{CaptionedImages, LabelledImages, Suite, Task, TaskKind},
};
use mtil_engine::{
    method::{DistillTexts, EvaluatedModels, Method},
    run::{Event, Phase, Progress, Request, RunError, RunOptions, run},
};

/// Tasks of a trial: the first, and a later one.
pub(super) const TASKS: usize = 2;
/// Training steps per task: the fewest, and the most. Short steps get many: the first ones of a
/// process are slow.
const STEPS: [usize; 2] = [5, 50];
/// Images of a test set, and the minimum of a training set: the fewest, and the most. Models that
/// take long for an image get fewer.
const IMAGES: [usize; 2] = [16, 256];
/// Target of the seconds that the image tower takes for one set of images, and for the steps of a
/// task.
const SET_SECONDS: f64 = 2.0;
/// Target of the seconds of a training step: batches are reduced to meet it.
const STEP_SECONDS: f64 = 2.0;
/// The fewest held-out pairs.
const FEWEST_PAIRS: usize = 8;
/// Batches of Gram accumulation.
const GRAM_BATCHES: usize = 3;
/// Share of the images that estimates the Fisher information of a task, one at a time.
const FISHER_SHARE: usize = 4;

/// Measured seconds and bytes of the parts of a trial run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trial {
    /// Seconds for the zero-shot classifiers: of the pretrained model, of the last evaluation.
    pub classifiers: [f64; 2],
    /// Seconds for the rest of the last evaluation.
    pub evaluation: f64,
    /// Images of that evaluation.
    pub evaluated: f64,
    /// Models that its images and prompts pass through.
    pub models: EvaluatedModels,
    /// Seconds before the first training step of a task: the first task, a later one.
    pub setup: [f64; 2],
    /// Seconds of a training step: on the first task, on a later one.
    pub update: [f64; 2],
    /// Seconds of learning a task without gradient steps.
    pub learn: f64,
    /// Seconds of a batch of Gram accumulation, or of the inputs that adapters keep off later.
    pub gram_batch: f64,
    /// Seconds of a batch of basis selection for adapters, before the first training step.
    pub basis_batch: f64,
    /// Seconds between the last training step of a task and its evaluation: of a pass over its
    /// training images, and of the rest.
    pub taken: [f64; 2],
    /// Seconds of an image that estimates the Fisher information, mean of the tasks.
    pub fisher_image: f64,
    /// Seconds after evaluation and Gram accumulation, until the task ends, without those for the
    /// Fisher information.
    pub finish: f64,
    /// Bytes of a checkpoint.
    pub checkpoint: u64,
    /// Bytes of the state that a checkpoint keeps for the next task.
    pub kept: u64,
    /// Bytes of the state after the first task.
    pub state: u64,
    /// Trainable parameters.
    pub trainable: u64,
    /// Data sizes of the trial.
    pub sizes: DataSizes,
}

/// Data sizes that the time of a run is proportional to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataSizes {
    /// Mean number of training images of a task.
    pub train: f64,
    /// Prompts of all classes, and captions of test images.
    pub prompts: f64,
    /// Reference pairs and texts that are encoded before a task.
    pub reference: f64,
    /// Images of a training step.
    pub batch: f64,
}

impl DataSizes {
    /// Returns the sizes of a method on a suite.
    pub fn of(method: &Method, suite: &Suite) -> Self {
        let tasks = &suite.tasks;
        let sum = |of: &dyn Fn(&Task) -> usize| tasks.iter().map(of).sum::<usize>() as f64;
        let captions = suite.reference.captions.len();
        let pairs = match method.uses_reference() || method.distils_reference_images() {
            true => captions.min(method.reference_pairs),
            false => 0,
        };
        let texts = match method.distill.as_ref().map(|d| d.texts) {
            Some(DistillTexts::Captions) => suite.extras.texts.len().max(captions),
            Some(DistillTexts::Reference) => captions,
            _ => 0,
        };
        Self {
            train: sum(&|t| t.training_images().len()) / tasks.len() as f64,
            prompts: sum(&|t| match &t.kind {
                TaskKind::Classification(of) => of.class_names.len() * of.templates.len(),
                TaskKind::Captions(pairs) => pairs.test.count(),
            }),
            reference: (pairs + texts) as f64,
            batch: (method.batch + method.reference_images()) as f64,
        }
    }
}

/// Returns the number of images of the evaluation after `stage` of `stages`: test images, held-out
/// pairs and caption sets.
pub(super) fn evaluated_images(
    request: &Request,
    suite: &Suite,
    stage: Option<usize>,
    stages: usize,
) -> f64 {
    let tests = test_images(request, suite, stage, stages);
    // A per-task method evaluates each model on its own task only.
    match request.method.per_task {
        true => tests / suite.tasks.len() as f64,
        false => tests + pairs_beside(suite) as f64,
    }
}

fn test_images(request: &Request, suite: &Suite, stage: Option<usize>, stages: usize) -> f64 {
    let limit = request.evaluation.images_at(stage, stages);
    let limit = limit.unwrap_or(usize::MAX);
    let tests = suite.tasks.iter().map(|task| match &task.kind {
        TaskKind::Classification(classes) => classes.test.labels.len().min(limit),
        // Pairs are never thinned.
        TaskKind::Captions(pairs) => pairs.test.images.len(),
    });
    tests.sum::<usize>() as f64
}

/// Returns the number of held-out pairs and of images in caption sets.
fn pairs_beside(suite: &Suite) -> usize {
    let sets = suite.extras.retrieval.iter().map(|set| set.images.len());
    suite.held_out.captions.len() + sets.sum::<usize>()
}

/// How much less a trial does than the run.
#[derive(Debug, Clone, Copy)]
struct Reduction {
    /// Divisor of the batch sizes.
    divisor: usize,
    /// Training steps per task.
    steps: usize,
    /// Images of a test set, and the minimum of a training set.
    images: usize,
}

impl Reduction {
    /// Returns the reduction for a method and a model whose image tower takes `image_seconds` for
    /// an image.
    fn of(method: &Method, image_seconds: f64) -> Self {
        // A forward and a backward pass together take about three times as long as a forward pass.
        let step = 3.0 * image_seconds * (method.batch + method.reference_images()) as f64;
        let within = |[fewest, most]: [usize; 2], count: f64| (count as usize).clamp(fewest, most);
        Self {
            divisor: (step / STEP_SECONDS).ceil().max(1.0) as usize,
            steps: within(STEPS, SET_SECONDS / step),
            images: within(IMAGES, SET_SECONDS / image_seconds),
        }
    }
}

/// Runs a trial of `request` in `folder`. `image_seconds` is the time that the image tower takes
/// for an image; it says how many images the trial can have.
///
/// # Errors
/// [`RunError`] if the run fails.
pub fn trial(
    request: &Request,
    suite: &Suite,
    clip: &Clip,
    device: &Device,
    image_seconds: f64,
    folder: &Path,
) -> Result<Trial, RunError> {
    let reduction = Reduction::of(&request.method, image_seconds);
    let method = reduced_method(&request.method, reduction);
    let mut short = reduced_suite(suite, &method, reduction.images);
    // As many for a test image as in the run: a pair has a text besides its image.
    let last = |suite: &Suite| {
        let stages = suite.tasks.len();
        test_images(request, suite, stages.checked_sub(1), stages)
    };
    let share = last(&short) / last(suite).max(1.0);
    let count = (pairs_beside(suite) as f64 * share).ceil() as usize;
    short.held_out = few_pairs(&suite.held_out, count.max(FEWEST_PAIRS));
    let suite = short;
    let request = Request {
        method,
        guard: Vec::new(),
        select: None,
        ..request.clone()
    };
    let mut stopwatch = Stopwatch::default();
    let options = RunOptions::default();
    run(
        &request,
        &suite,
        clip,
        device,
        folder,
        &options,
        &Arc::default(),
        &mut stopwatch,
    )?;
    let mut trial = stopwatch.trial();
    trial.evaluated = evaluated_images(&request, &suite, Some(TASKS - 1), TASKS);
    let identity = request.evaluation.identity;
    trial.models = request.method.evaluated_models(TASKS, TASKS, identity);
    trial.sizes = DataSizes::of(&request.method, &suite);
    trial.checkpoint = size(&folder.join("checkpoints/task-01"));
    trial.kept = size(&folder.join("checkpoints/task-01/state"));
    trial.state = size(&folder.join("state"));
    Ok(trial)
}

/// Returns the method with few training steps and smaller batches.
fn reduced_method(method: &Method, reduction: Reduction) -> Method {
    let mut method = method.clone();
    let less = |batch: usize| batch.div_ceil(reduction.divisor);
    method.steps = reduction.steps;
    method.schedule_steps = None;
    method.task.clear();
    method.batch = less(method.batch);
    method.reference_batch = less(method.reference_batch);
    method.reference_pairs = method
        .reference_pairs
        .min(reduction.images.max(2 * method.reference_batch));
    if let Some(anchor) = &mut method.anchor {
        anchor.fisher_images = anchor.fisher_images.min(reduction.images / FISHER_SHARE);
    }
    if let Some(projection) = &mut method.projection {
        projection.gram_batch = less(projection.gram_batch);
        projection.gram_batches = Some(GRAM_BATCHES);
    }
    if let Some(lora) = &mut method.lora {
        lora.pass_batch = less(lora.pass_batch);
        lora.pass_batches = Some(GRAM_BATCHES);
    }
    if let Some(rehearsal) = &mut method.rehearsal {
        rehearsal.batch = less(rehearsal.batch);
    }
    method
}

/// Returns the first tasks of a suite with at least `images` images each.
fn reduced_suite(suite: &Suite, method: &Method, images: usize) -> Suite {
    let few = |set: &LabelledImages, count: usize| {
        let chosen = evenly_spaced(set.labels.len(), count);
        LabelledImages {
            labels: chosen.iter().map(|i| set.labels[*i]).collect(),
            images: Arc::new(Subset::new(set.images.clone(), chosen)),
        }
    };
    let gram = method.projection.as_ref().map_or(0, |p| p.gram_batch);
    let adapters = method.lora.as_ref().filter(|lora| lora.is_residual());
    let gram = adapters.map_or(gram, |lora| gram.max(lora.pass_batch));
    let train = images.max(2 * method.batch).max(GRAM_BATCHES * gram);
    let mut short = suite.clone();
    short.tasks.truncate(TASKS);
    for task in &mut short.tasks {
        match &mut task.kind {
            TaskKind::Classification(of) => {
                of.train = few(&of.train, train);
                of.test = few(&of.test, images);
            }
            TaskKind::Captions(of) => {
                for (split, count) in [(&mut of.train, train), (&mut of.test, images)] {
                    *split = split.subset(evenly_spaced(split.images.len(), count));
                }
            }
        }
    }
    short.reference = few_pairs(&suite.reference, method.reference_pairs);
    short.extras.texts.truncate(images);
    short.extras.retrieval.clear();
    short.extras.published_draws = false;
    short
}

fn few_pairs(set: &CaptionedImages, count: usize) -> CaptionedImages {
    let chosen = evenly_spaced(set.captions.len(), count);
    CaptionedImages {
        captions: chosen.iter().map(|i| set.captions[*i].clone()).collect(),
        images: Arc::new(Subset::new(set.images.clone(), chosen)),
    }
}

/// Returns `count` evenly spaced indices below `all`.
fn evenly_spaced(all: usize, count: usize) -> Vec<usize> {
    let count = count.min(all);
    (0..count).map(|i| i * all / count).collect()
}

/// Returns the total size of the files in a folder, 0 if it does not exist.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let files = entries.filter_map(|entry| entry.ok()?.metadata().ok());
    files.filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// Time stamps of the events of a trial.
#[derive(Default)]
struct Stopwatch {
    marks: Vec<(Mark, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Start,
    TaskStart,
    Step,
    Encoding,
    Evaluating,
    Evaluated,
    Gram,
    Fisher,
    TaskEnd,
}

impl Progress for Stopwatch {
    fn event(&mut self, event: &Event) {
        let mark = match event {
            Event::Start { .. } => Mark::Start,
            Event::TaskStart { .. } => Mark::TaskStart,
            Event::Step(_) => Mark::Step,
            Event::Working { on, .. } => match on {
                Phase::Encoding => Mark::Encoding,
                Phase::Evaluation => Mark::Evaluating,
                Phase::Gram => Mark::Gram,
                Phase::Fisher => Mark::Fisher,
                Phase::Rehearsal => return,
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
        let seconds = |from: Instant, to: Instant| (to - from).as_secs_f64();
        // Of the pretrained model; all that a method without training has.
        let first = |mark: Mark| {
            self.marks
                .iter()
                .find(|(m, _)| *m == mark)
                .map(|(_, at)| *at)
        };
        if let (Some(start), Some(evaluating)) = (first(Mark::Start), first(Mark::Evaluating)) {
            trial.classifiers[0] = seconds(start, evaluating);
            trial.evaluation = first(Mark::Evaluated).map_or(0.0, |end| seconds(evaluating, end));
        }
        for (task, start) in starts.iter().enumerate().take(TASKS) {
            let end = starts.get(task + 1).copied().unwrap_or(self.marks.len());
            let of_task = &self.marks[*start..end];
            let at = |mark: Mark| -> Vec<Instant> {
                let found = of_task.iter().filter(|(m, _)| *m == mark);
                found.map(|(_, when)| *when).collect()
            };
            let (steps, began) = (at(Mark::Step), of_task[0].1);
            let evaluated = at(Mark::Evaluated).last().copied();
            let evaluating = at(Mark::Evaluating).first().copied();
            // The first step of a process compiles kernels and warms caches.
            let late = &steps[steps.len() / 3..];
            trial.update[task] = median(late.windows(2).map(|w| seconds(w[0], w[1])));
            if let Some(first) = steps.first() {
                let mut passes = at(Mark::Gram);
                passes.retain(|mark| mark < first);
                let passed = match (passes.first(), passes.last()) {
                    (Some(from), Some(to)) => seconds(*from, *to),
                    _ => 0.0,
                };
                trial.basis_batch = median(passes.windows(2).map(|w| seconds(w[0], w[1])));
                let setup = seconds(began, *first) - trial.update[task] - passed;
                trial.setup[task] = setup.max(0.0);
            }
            // Methods without gradient steps learn a task while they encode its images.
            let last_step = steps.last().copied();
            let encoded = at(Mark::Encoding).last().copied();
            let learned = last_step.max(encoded).unwrap_or(began);
            trial.learn = match last_step {
                Some(_) => 0.0,
                None => seconds(began, learned),
            };
            if let Some(last_step) = last_step.filter(|step| *step < learned) {
                let mut passes = at(Mark::Encoding);
                passes.retain(|mark| *mark > last_step);
                let from = passes.first().copied().unwrap_or(learned);
                trial.taken = [seconds(from, learned), seconds(last_step, from)];
            }
            let fisher = at(Mark::Fisher);
            let fisher_image = median(fisher.windows(2).map(|w| seconds(w[0], w[1])));
            trial.fisher_image += fisher_image / TASKS as f64;
            if let Some(evaluated) = evaluated {
                // The first progress of an evaluation comes after its classifiers are built.
                let from = evaluating.unwrap_or(learned);
                trial.classifiers[1] = seconds(learned, from);
                trial.evaluation = seconds(from, evaluated);
                if task == 0 {
                    let mut gram = at(Mark::Gram);
                    gram.retain(|mark| *mark > learned);
                    trial.gram_batch = median(gram.windows(2).map(|w| seconds(w[0], w[1])));
                    let accumulated = gram.last().copied().unwrap_or(evaluated);
                    let ended = at(Mark::TaskEnd).last().copied().unwrap_or(accumulated);
                    let fisher = at(Mark::Fisher).len() as f64 * fisher_image;
                    trial.finish = (seconds(accumulated, ended) - fisher).max(0.0);
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn indices_are_evenly_spaced() {
        assert_eq!(evenly_spaced(10, 4), [0, 2, 5, 7]);
        assert_eq!(evenly_spaced(3, 5), [0, 1, 2]);
        assert_eq!(evenly_spaced(0, 5), Vec::<usize>::new());
    }

    #[test]
    fn phases_are_timed_from_their_marks() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let pretrained = [
            (Mark::Start, 0),
            (Mark::Evaluating, 1),
            (Mark::Evaluated, 3),
        ];
        let watch = |marks: &[(Mark, u64)]| Stopwatch {
            marks: marks.iter().map(|(mark, s)| (*mark, at(*s))).collect(),
        };
        let trial = watch(&pretrained).trial();
        assert_eq!((trial.classifiers[0], trial.evaluation), (1.0, 2.0));

        let task = [
            (Mark::TaskStart, 3),
            (Mark::Step, 10),
            (Mark::Step, 12),
            (Mark::Step, 13),
            (Mark::Evaluating, 17),
            (Mark::Evaluated, 20),
            (Mark::Fisher, 20),
            (Mark::Fisher, 22),
            (Mark::Fisher, 24),
            (Mark::TaskEnd, 27),
        ];
        let trial = watch(&[&pretrained[..], &task].concat()).trial();
        // The first step is not among those that are timed.
        assert_eq!((trial.setup[0], trial.update[0]), (6.0, 1.0));
        assert_eq!((trial.classifiers, trial.evaluation), ([1.0, 4.0], 3.0));
        // Three images of two seconds, and one second more.
        assert_eq!(
            (trial.fisher_image, trial.finish),
            (2.0 / TASKS as f64, 1.0)
        );
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}

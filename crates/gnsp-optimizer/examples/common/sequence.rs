//! Sequential training on several tasks, with and without null-space projection.

use std::error::Error;

use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use gnsp_optimizer::{Memory, Policy, Protection, Site};
use rand_chacha::ChaCha8Rng;

use super::Classifier;
use super::digits::Digits;

/// Training and test images of a task.
pub struct Task {
    /// Training images.
    pub train: Digits,
    /// Test images.
    pub test: Digits,
}

impl Task {
    /// Creates a task by transforming the images of both splits.
    pub fn new(train: &Digits, test: &Digits, transform: impl Fn(&[f32]) -> Vec<f32>) -> Self {
        Self {
            train: train.map(&transform),
            test: test.map(&transform),
        }
    }
}

/// Training hyper-parameters of a task.
pub struct Schedule {
    pub epochs: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    pub optimizer: AdamWConfig,
}

/// Continual-learning method.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The plain optimizer.
    Plain,
    /// Steps projected onto the null space of each layer's inputs in earlier tasks.
    Projected(Site),
}

impl Method {
    /// Returns the name of the method in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Plain => "plain AdamW",
            Self::Projected(Site::Gradient) => "gradient projected",
            Self::Projected(Site::Update) => "update projected",
        }
    }

    fn optimizer(&self, config: &AdamWConfig, protection: &Protection) -> ModuleOptimizer {
        match self {
            Self::Plain => config.init(),
            Self::Projected(_) => protection.wrap(config),
        }
    }
}

/// Results of a task sequence.
#[derive(Default)]
pub struct Outcome {
    /// Accuracy matrix: row `t` has the accuracies on all tasks after task `t`.
    pub accuracy: Vec<Vec<f64>>,
    /// Mean interference over the parameters, for each task after the first.
    pub interference: Vec<f64>,
    /// Mean leak over the parameters, for each task after the first.
    pub leak: Vec<f64>,
}

/// Trains a model on a sequence of tasks and evaluates it after each.
///
/// Interference and leak of the plain optimizer are measured with the same memory and the same
/// protected directions.
pub fn train_sequence<C: Classifier>(
    mut model: C,
    tasks: &[Task],
    method: Method,
    policy: &Policy,
    schedule: &Schedule,
    rng: &mut ChaCha8Rng,
) -> Result<Outcome, Box<dyn Error>> {
    let site = match method {
        Method::Plain => policy.site,
        Method::Projected(site) => site,
    };
    let mut memory = Memory::new(policy.clone().with_site(site));
    let mut outcome = Outcome::default();
    for task in tasks {
        let before = model.clone();
        let protection = memory.protection(&model)?;
        let mut optimizer = method.optimizer(&schedule.optimizer, &protection);
        model = train(model, &mut optimizer, &task.train, schedule, rng);

        // The first task has no earlier one to interfere with.
        if !memory.is_empty() {
            let interference = memory.interference(&before, &model)?;
            outcome
                .interference
                .push(mean(interference.values().map(|one| one.relative())));
            let leak = protection.leak(&before, &model)?;
            outcome.leak.push(mean(leak.values().copied()));
        }
        outcome
            .accuracy
            .push(tasks.iter().map(|task| accuracy(&model, task)).collect());
        record(&mut memory, &model, task)?;
    }
    Ok(outcome)
}

/// Trains a model on one task.
fn train<C: Classifier>(
    mut model: C,
    optimizer: &mut ModuleOptimizer,
    digits: &Digits,
    schedule: &Schedule,
    rng: &mut ChaCha8Rng,
) -> C {
    let device = model.devices()[0].clone();
    let loss = CrossEntropyLossConfig::new().init(&device);
    for _ in 0..schedule.epochs {
        for (images, labels) in digits.shuffled(schedule.batch_size, &device, rng) {
            let loss = loss.forward(model.forward(images), labels);
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(schedule.learning_rate, model, gradients);
        }
    }
    model
}

/// Accumulates the Gram matrices of a trained model over a task's data.
pub fn record<C: Classifier>(
    memory: &mut Memory,
    model: &C,
    task: &Task,
) -> Result<(), Box<dyn Error>> {
    let model = model.valid(); // Without autodiff: no tape is recorded.
    let (images, _) = task.train.all(&model.devices()[0]);
    let mut recorder = memory.recorder(&model);
    for images in images.split(500, 0) {
        model.record(images, &mut recorder)?;
    }
    memory.absorb(recorder)?;
    Ok(())
}

/// Computes the test accuracy on a task.
pub fn accuracy<C: Classifier>(model: &C, task: &Task) -> f64 {
    let model = model.valid();
    let (images, labels) = task.test.all(&model.devices()[0]);
    let predicted = model.forward(images).argmax(1).flatten::<1>(0, 1);
    f64::from(predicted.equal(labels).float().mean().into_scalar::<f32>())
}

/// Computes the arithmetic mean.
pub fn mean(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

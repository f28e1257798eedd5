//! Training on one task after the other, with and without protection of those before.

use std::error::Error;

use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use gnsp_optimizer::{Memory, Policy, Protection, Site};
use rand_chacha::ChaCha8Rng;

use super::Classifier;
use super::digits::Digits;

/// The pictures of a task.
pub struct Task {
    /// To learn from.
    pub train: Digits,
    /// To measure the accuracy with.
    pub test: Digits,
}

impl Task {
    /// Both splits of the same digits, changed in one way.
    pub fn new(train: &Digits, test: &Digits, change: impl Fn(&[f32]) -> Vec<f32>) -> Self {
        Self {
            train: train.map(&change),
            test: test.map(&change),
        }
    }
}

/// How a task is trained.
pub struct Schedule {
    pub epochs: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    pub optimizer: AdamWConfig,
}

/// What is done against forgetting.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Nothing: the optimizer as it is.
    Plain,
    /// Steps in the null space of what the tasks before have fed to each layer.
    Projected(Site),
}

impl Method {
    /// What tables call it.
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

/// The figures of a sequence of tasks.
#[derive(Default)]
pub struct Outcome {
    /// Accuracy on every task, after every task.
    pub accuracy: Vec<Vec<f64>>,
    /// Per task but the first: relative change of the outputs on recorded inputs, mean over the
    /// parameters.
    pub interference: Vec<f64>,
    /// Per task but the first: share of the change within protected directions, mean over the
    /// parameters.
    pub leak: Vec<f64>,
}

/// Trains the model on all tasks and measures it after each.
///
/// The plain optimizer is measured against the same memory and the same directions; it only does
/// not keep to them.
pub fn learn<C: Classifier>(
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

        if !memory.is_empty() {
            let moved = memory.interference(&before, &model)?;
            outcome
                .interference
                .push(mean(moved.values().map(|moved| moved.relative())));
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

/// Trains on one task.
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
        for (pictures, labels) in digits.shuffled(schedule.batch_size, &device, rng) {
            let loss = loss.forward(model.forward(pictures), labels);
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(schedule.learning_rate, model, gradients);
        }
    }
    model
}

/// Records the inputs of the trained model's layers over a task.
pub fn record<C: Classifier>(
    memory: &mut Memory,
    model: &C,
    task: &Task,
) -> Result<(), Box<dyn Error>> {
    let model = model.valid(); // On the plain device: no tape is recorded.
    let (pictures, _) = task.train.all(&model.devices()[0]);
    let mut recorder = memory.recorder(&model);
    for pictures in pictures.split(500, 0) {
        model.record(pictures, &mut recorder)?;
    }
    memory.absorb(recorder)?;
    Ok(())
}

/// Share of the test pictures that are classified right.
pub fn accuracy<C: Classifier>(model: &C, task: &Task) -> f64 {
    let model = model.valid();
    let (pictures, labels) = task.test.all(&model.devices()[0]);
    let found = model.forward(pictures).argmax(1).flatten::<1>(0, 1);
    f64::from(found.equal(labels).float().mean().into_scalar::<f32>())
}

/// Mean of the numbers.
pub fn mean(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

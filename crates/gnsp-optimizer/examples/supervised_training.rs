//! Projected optimizer in Burn's `SupervisedTraining`: checkpoints, resuming, and two devices.
//!
//! The wrapped optimizer is an ordinary `ModuleOptimizer` with the state of its inner optimizer.
//! The example trains task 2 twice: once without interruption, and once from the checkpoint of a
//! run that ended half-way. The resulting weights are equal bit for bit. A run with plain AdamW
//! shows the change of the outputs on task 1 without projection. The program fails if any of this
//! does not hold.
//!
//! ```text
//! cargo run --release -p gnsp-optimizer --features train --example supervised_training
//! ```

mod common;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::lr_scheduler::constant::ConstantLr;
use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamWConfig, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor};
use burn::train::checkpoint::KeepLastNCheckpoints;
use burn::train::logger::InMemoryMetricLogger;
use burn::train::metric::LossMetric;
use burn::train::{
    ClassificationOutput, ExecutionStrategy, InferenceStep, Learner, MultiDeviceOptim,
    SupervisedTraining, TrainOutput, TrainStep,
};
use gnsp_optimizer::{Memory, Policy, Protection, RankRule};

use common::digits::{Digits, permutation, tensors};
use common::mlp::Mlp;
use common::quiet::Quiet;
use common::sequence::{Task, accuracy, mean, record};
use common::{Classifier, bits, generator};

const SEED: u64 = 0;
const EPOCHS: usize = 4;
const BATCH_SIZE: usize = 50;
const LEARNING_RATE: f64 = 1e-3;
/// Threshold between rounding error in the protected directions and an actual leak.
const LARGEST_LEAK: f64 = 1e-5;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?; // Removed when it goes out of scope.
    let at = |name: &str| directory.path().join(name);
    let device = Device::default().autodiff();
    let one = || ExecutionStrategy::single(device.clone());
    let policy = Policy::default().with_rank(RankRule::TailShare(0.05));
    let [first, second] = tasks();

    let fresh = || Mlp::new(&device, &mut generator(SEED, 0));
    let run = Run::new(at("first"), EPOCHS);
    let before = run.train(&first, fresh(), adamw().init(), one())?;
    let mut memory = Memory::new(policy);
    record(&mut memory, &before, &first)?;
    memory.save(at("memory.safetensors"))?;
    let protection = memory.protection(&before)?;
    println!("After task 1:\n{protection}");

    let start = || before.clone().train();
    let plain = Run::new(at("plain"), EPOCHS).train(&second, start(), adamw().init(), one())?;
    let run = Run::new(at("straight"), EPOCHS);
    let straight = run.train(&second, start(), wrapped(&protection), one())?;

    // The same in two halves. The second one starts from the files of the first one alone.
    let run = Run::new(at("halves"), EPOCHS / 2);
    run.train(&second, start(), wrapped(&protection), one())?;
    let protection = Memory::load(at("memory.safetensors"))?.protection(&fresh())?;
    let run = Run::new(at("halves"), EPOCHS).resume(EPOCHS / 2);
    let resumed = run.train(&second, fresh(), wrapped(&protection), one())?;

    // Two workers share the gradients of every step. Here both run on the same device.
    let devices = vec![device.clone(), device.clone()];
    let two = ExecutionStrategy::multi(devices, MultiDeviceOptim::OptimMainDevice);
    let run = Run::new(at("two"), EPOCHS);
    let shared = run.train(&second, start(), wrapped(&protection), two)?;

    println!("                       task 1  task 2  outputs moved  interference     leak");
    let report = |name: &str, after: &Mlp| -> Result<Row, Box<dyn Error>> {
        let row = Row {
            moved: outputs_moved(&before, after, &first),
            interference: mean(
                (memory.interference(&before, after)?.values()).map(|moved| moved.relative()),
            ),
            leak: mean(protection.leak(&before, after)?.into_values()),
        };
        println!(
            "{name:21}  {:4.1} %  {:4.1} %  {:13.1e}  {:12.1e}  {:7.1e}",
            100.0 * accuracy(after, &first),
            100.0 * accuracy(after, &second),
            row.moved,
            row.interference,
            row.leak
        );
        Ok(row)
    };
    report("before task 2", &before)?;
    let plain = report("plain AdamW", &plain)?;
    let protected = report("protected", &straight)?;
    report("protected, resumed", &resumed)?;
    let shared = report("protected, 2 workers", &shared)?;

    if bits(&straight) != bits(&resumed) {
        return Err("the resumed training has other weights".into());
    }
    println!("\nResumed from the checkpoint, the weights are the same bit for bit.");
    if protected.moved >= plain.moved {
        return Err("the protected training moved the outputs on task 1 further".into());
    }
    println!(
        "The outputs on task 1 moved {:.1} times less than with plain AdamW.",
        plain.moved / protected.moved
    );
    if shared.leak >= LARGEST_LEAK {
        return Err(format!("{:.1e} leaked on two workers", shared.leak).into());
    }
    println!("On two workers the leak stays below {LARGEST_LEAK:.0e}.");
    Ok(())
}

/// Effect of a training on task 1.
struct Row {
    moved: f64,
    interference: f64,
    leak: f64,
}

/// Two tasks of differently permuted digits.
fn tasks() -> [Task; 2] {
    let rng = &mut generator(SEED, 2);
    let (train, test) = (Digits::draw(2000, rng), Digits::draw(1000, rng));
    [(); 2].map(|()| {
        let order = permutation(rng);
        let permuted = |image: &[f32]| order.iter().map(|pixel| image[*pixel]).collect();
        Task::new(&train, &test, permuted)
    })
}

fn adamw() -> AdamWConfig {
    AdamWConfig::new().with_weight_decay(1e-2)
}

fn wrapped(protection: &Protection) -> ModuleOptimizer {
    protection.wrap(&adamw())
}

/// Computes the norm of the change of the logits on a task, relative to the norm of the logits.
fn outputs_moved(before: &Mlp, after: &Mlp, task: &Task) -> f64 {
    let (images, _) = task.train.all(&Device::default());
    let norm = |x: Tensor<2>| f64::from(x.square().sum().sqrt().into_scalar::<f32>());
    let from = before.valid().forward(images.clone());
    let to = after.valid().forward(images);
    norm(to - from.clone()) / norm(from)
}

/// Training run with checkpoints in a directory.
struct Run {
    directory: PathBuf,
    epochs: usize,
    from: Option<usize>,
}

impl Run {
    fn new(directory: PathBuf, epochs: usize) -> Self {
        Self {
            directory,
            epochs,
            from: None,
        }
    }

    /// Resumes from the checkpoint of an epoch.
    fn resume(self, epoch: usize) -> Self {
        Self {
            from: Some(epoch),
            ..self
        }
    }

    fn train(
        self,
        task: &Task,
        model: Mlp,
        optimizer: ModuleOptimizer,
        strategy: ExecutionStrategy,
    ) -> Result<Mlp, Box<dyn Error>> {
        let (train, valid) = (loader(&task.train), loader(&task.test));
        let mut training = SupervisedTraining::new(self.directory, train, valid)
            .num_epochs(self.epochs)
            .with_default_checkpointers()
            .with_checkpointing_strategy(KeepLastNCheckpoints::new(2))
            .with_training_strategy(strategy.into())
            .with_metric_logger(InMemoryMetricLogger::new())
            .metric_valid_numeric(LossMetric::new())
            .with_application_logger(None) // The default replaces the panic hook of the process.
            .renderer(Box::new(Quiet));
        if let Some(epoch) = self.from {
            training = training.checkpoint(epoch);
        }
        let learner = Learner::new(model, optimizer, ConstantLr::new(LEARNING_RATE));
        let result = training.launch(learner);
        match result.error {
            Some(error) => Err(error.to_string().into()),
            None => Ok(result.model),
        }
    }
}

/// Creates a loader that does not shuffle; the digits are in random order already. A shuffling
/// loader restarts its random order when resumed, so a resumed run would see other batches.
fn loader(digits: &Digits) -> Arc<dyn DataLoader<Batch>> {
    let items = digits.iter().map(|(image, label)| Item {
        image: image.to_vec(),
        label,
    });
    DataLoaderBuilder::new(Stack)
        .batch_size(BATCH_SIZE)
        .build(InMemDataset::new(items.collect()))
}

#[derive(Clone, Debug)]
struct Item {
    image: Vec<f32>,
    label: i32,
}

#[derive(Clone, Debug)]
pub struct Batch {
    images: Tensor<2>,
    labels: Tensor<1, Int>,
}

struct Stack;

impl Batcher<Item, Batch> for Stack {
    fn batch(&self, items: Vec<Item>, device: &Device) -> Batch {
        let labels = items.iter().map(|item| item.label).collect();
        let pixels = items.into_iter().flat_map(|item| item.image).collect();
        let (images, labels) = tensors(pixels, labels, device);
        Batch { images, labels }
    }
}

impl TrainStep for Mlp {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> TrainOutput<ClassificationOutput> {
        let output = classify(self, batch);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for Mlp {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> ClassificationOutput {
        classify(self, batch)
    }
}

fn classify(model: &Mlp, batch: Batch) -> ClassificationOutput {
    let logits = model.forward(batch.images);
    let loss = CrossEntropyLossConfig::new()
        .init(&logits.device())
        .forward(logits.clone(), batch.labels.clone());
    ClassificationOutput::new(loss, logits, batch.labels)
}

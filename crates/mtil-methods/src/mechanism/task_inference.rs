//! Inference of an image's task by autoencoders, one for each task (MoE-Adapters4CL
//! `mtil/src/models/{AutoEncoder,evaluation}.py`).
//!
//! Let `x = sigmoid(√d · f)` be an image's features, with its normalised feature `f` of width `d`
//! under the frozen pretrained image tower. After a task an autoencoder
//! `y = sigmoid(ReLU(x·E + e)·D + c)` is trained on the features of its training images, to minimise
//! the mean of `(y − x)²`. An image is of the task with the least loss; of none if that is above a
//! threshold. The published features are those of AlexNet.

use std::path::Path;

use burn::tensor::{
    Device, Tensor, TensorData,
    activation::{relu, sigmoid},
};
use clip_model::{Clip, ClipModel};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    adapters::normal_values,
    context::{
        MethodOutline, Phase, PhaseProgress, RunContext, TaskContext, at_least_one, in_range,
    },
    hooks::Mechanism,
    module_file::{self, NamedTensors},
    state::{MechanismState, RunState},
};
use crate::error::RunError;
use mtil_data::seeds;
use mtil_eval::{
    eval::{Features, IMAGE_BATCH, encode_images_with, to_host},
    metrics::Kept,
};

/// Source of the task of an image, in evaluation and use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExpertTask {
    /// `"given"`: by the protocol. Tasks that are not learned use the pretrained model.
    #[default]
    Given,
    /// `"batch"`: one choice for each batch of 128 images, by the mean loss of the autoencoders, as
    /// published. The choice depends on the neighbours of an image.
    Batch,
    /// `"image"`: a choice for each image.
    Image,
}

/// Autoencoders that tell the task of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Autoencoder {
    /// Width of the code.
    pub code: usize,
    /// Training steps, of 64 images.
    pub steps: usize,
    /// Loss above which an image is of no learned task. The default has the highest Average on
    /// `mini-dev` of 0.002, 0.004, 0.006, 0.008, 0.012, 0.016 (44.5, 56.1, 60.1, 60.0, 59.5, 58.9;
    /// seed 1, `task = "image"`).
    pub threshold: f64,
}

impl Default for Autoencoder {
    fn default() -> Self {
        Self {
            code: 100,
            steps: 1000,
            threshold: 0.006,
        }
    }
}

/// Key of the mechanism.
pub(super) const KEY: &str = "experts.task";

/// Images of a batch whose task is chosen at once (`mtil/src/args.py`: `batch_size_eval`).
pub(super) const CHOICE_BATCH: usize = 128;

/// Images per training step.
const BATCH: usize = 64;

/// Learning rate, divided by 10 after each 10 epochs.
const LR: f64 = 0.01;

/// Weight of the L2 penalty.
const DECAY: f64 = 1e-4;

const FILE: &str = "autoencoders.safetensors";

/// The mechanism that trains the autoencoders.
pub(crate) struct TaskInference {
    pub settings: Autoencoder,
}

/// The autoencoders of the tasks so far.
#[derive(Default)]
pub(crate) struct Autoencoders(Vec<[Matrix; 4]>);

/// Shape and values.
#[derive(Debug, Clone, PartialEq)]
struct Matrix {
    shape: [usize; 2],
    values: Vec<f32>,
}

/// The parameters of an autoencoder, in order: `E`, `e`, `D`, `c`.
const NAMES: [&str; 4] = ["encoder", "encoder_bias", "decoder", "decoder_bias"];

impl Matrix {
    fn of(tensor: Tensor<2>) -> Self {
        Self {
            shape: tensor.dims(),
            values: to_host(tensor),
        }
    }

    fn on(&self, device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.values.clone(), self.shape), device)
    }
}

impl Autoencoder {
    pub(super) fn check(&self) -> Result<(), String> {
        at_least_one("experts.autoencoder.code", self.code)?;
        at_least_one("experts.autoencoder.steps", self.steps)?;
        in_range("experts.autoencoder.threshold", self.threshold, 0.0, 1.0)
    }

    /// Trains an autoencoder on the features `[images, width]`.
    fn train(&self, features: &Tensor<2>, seed: u64) -> [Matrix; 4] {
        let ([images, width], device) = (features.dims(), features.device());
        let initial = |index: u64, inputs: usize, shape: [usize; 2]| {
            // PyTorch's initial values of a linear map have this deviation.
            let deviation = 1.0 / (3.0 * inputs as f64).sqrt();
            let seed = seeds::derive(seed, &[index]);
            let values = normal_values(seed, shape[0] * shape[1], deviation);
            Tensor::<2>::from_data(TensorData::new(values, shape), &device)
        };
        let mut parameters = [
            initial(0, width, [width, self.code]),
            initial(1, width, [1, self.code]),
            initial(2, self.code, [self.code, width]),
            initial(3, self.code, [1, width]),
        ];
        let mut moments = parameters.clone().map(|p| [p.zeros_like(), p.zeros_like()]);
        let mut rng = ChaCha8Rng::seed_from_u64(seeds::derive(seed, &[seeds::TRAIN_ORDER]));
        let epoch = images.div_ceil(BATCH);
        let mut order: Vec<i64> = (0..images as i64).collect();
        for step in 0..self.steps {
            if step % epoch == 0 {
                order.shuffle(&mut rng);
            }
            let from = step % epoch * BATCH;
            let rows = &order[from..images.min(from + BATCH)];
            let x = features.clone().select(0, Tensor::from_data(rows, &device));
            let lr = LR * 0.1_f64.powi((step / epoch / 10) as i32);
            let gradients = gradients(&parameters, x);
            parameters = std::array::from_fn(|i| {
                let (parameter, gradient) = (parameters[i].clone(), gradients[i].clone());
                adam(parameter, gradient, &mut moments[i], step, lr)
            });
        }
        parameters.map(Matrix::of)
    }
}

/// Returns the code and the reconstruction of features.
fn reconstruct(parameters: &[Tensor<2>; 4], x: Tensor<2>) -> [Tensor<2>; 2] {
    let [encoder, encoder_bias, decoder, decoder_bias] = parameters.clone();
    let code = relu(x.matmul(encoder) + encoder_bias);
    let y = sigmoid(code.clone().matmul(decoder) + decoder_bias);
    [code, y]
}

/// Returns the gradients of the mean of `(y − x)²`.
fn gradients(parameters: &[Tensor<2>; 4], x: Tensor<2>) -> [Tensor<2>; 4] {
    let [rows, width] = x.dims();
    let [code, y] = reconstruct(parameters, x.clone());
    let slope = y.clone() * (y.ones_like() - y.clone());
    let of_output = (y - x.clone()).mul_scalar(2.0 / (rows * width) as f64) * slope;
    let active = code.clone().greater_elem(0.0).float();
    let of_code = of_output.clone().matmul(parameters[2].clone().transpose()) * active;
    [
        x.transpose().matmul(of_code.clone()),
        of_code.sum_dim(0),
        code.transpose().matmul(of_output.clone()),
        of_output.sum_dim(0),
    ]
}

/// Returns a parameter after a step of Adam with an L2 penalty (PyTorch's `Adam`).
fn adam(
    parameter: Tensor<2>,
    gradient: Tensor<2>,
    moments: &mut [Tensor<2>; 2],
    step: usize,
    lr: f64,
) -> Tensor<2> {
    let (beta1, beta2, epsilon) = (0.9_f64, 0.999_f64, 1e-8);
    let gradient = gradient + parameter.clone().mul_scalar(DECAY);
    let [first, second] = moments;
    *first = first.clone().mul_scalar(beta1) + gradient.clone().mul_scalar(1.0 - beta1);
    *second =
        second.clone().mul_scalar(beta2) + (gradient.clone() * gradient).mul_scalar(1.0 - beta2);
    let count = step as i32 + 1;
    let mean = first.clone().div_scalar(1.0 - beta1.powi(count));
    let deviation = second.clone().div_scalar(1.0 - beta2.powi(count)).sqrt();
    parameter - mean.mul_scalar(lr) / deviation.add_scalar(epsilon)
}

/// Returns what autoencoders see of normalised features `[images, width]`.
fn seen(features: Tensor<2>) -> Tensor<2> {
    let [_, width] = features.dims();
    sigmoid(features.mul_scalar((width as f64).sqrt()))
}

impl Autoencoders {
    /// Returns the task of each image by its normalised features `[images, width]`, among the
    /// first `learned` tasks; none if no autoencoder's loss is at most the threshold. With
    /// `at_once` all images get one task, by their mean loss.
    pub fn choose(
        &self,
        features: Tensor<2>,
        learned: usize,
        threshold: f64,
        at_once: bool,
    ) -> Vec<Option<usize>> {
        let ([images, _], device) = (features.dims(), features.device());
        let x = seen(features);
        let of_task = |parameters: &[Matrix; 4]| {
            let parameters = parameters.each_ref().map(|p| p.on(&device));
            let [_, y] = reconstruct(&parameters, x.clone());
            let error = y - x.clone();
            let mut losses = to_host((error.clone() * error).mean_dim(1));
            if at_once {
                let mean = losses.iter().map(|l| f64::from(*l)).sum::<f64>() / images as f64;
                losses.fill(mean as f32);
            }
            losses
        };
        let losses: Vec<Vec<f32>> = self.0.iter().take(learned).map(of_task).collect();
        let of_image = |image: usize| {
            let tasks = losses.iter().map(|of| of[image]).enumerate();
            let least = tasks.min_by(|a, b| a.1.total_cmp(&b.1));
            let known = least.filter(|(_, loss)| f64::from(*loss) <= threshold);
            known.map(|(task, _)| task)
        };
        (0..images).map(of_image).collect()
    }
}

impl MechanismState for Autoencoders {
    fn copy(&self) -> Option<Box<dyn MechanismState>> {
        None
    }

    fn save(&self, folder: &Path, _: &Clip) -> Result<(), RunError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut named = NamedTensors::new();
        for (task, parameters) in self.0.iter().enumerate() {
            for (name, Matrix { shape, values }) in NAMES.iter().zip(parameters) {
                named.insert(format!("{task}.{name}"), (shape.to_vec(), values.clone()));
            }
        }
        module_file::save(&named, &folder.join(FILE))
    }

    fn bytes(&self, _: &Clip) -> u64 {
        let values: usize = self.0.iter().flatten().map(|p| p.values.len()).sum();
        4 * values as u64
    }

    fn kept(&self) -> Kept {
        Kept::Weights
    }
}

impl Mechanism for TaskInference {
    fn key(&self) -> &'static str {
        KEY
    }

    fn check(&self, _: &MethodOutline) -> Result<(), String> {
        self.settings.check()
    }

    fn load(
        &self,
        folder: &Path,
        run: &RunContext<'_>,
    ) -> Result<Option<Box<dyn MechanismState>>, RunError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let mut named = module_file::load(&path)?;
        let width = run.checkpoint.config.projection_dim;
        let corrupt = |name: &str| RunError::Corrupt {
            path: path.clone(),
            reason: format!("`{name}` is missing or of another shape"),
        };
        let mut all = Vec::new();
        while !named.is_empty() {
            let task = all.len();
            let mut take = |index: usize| {
                let name = format!("{task}.{}", NAMES[index]);
                let found = named.remove(&name);
                let (shape, values) = found.ok_or_else(|| corrupt(&name))?;
                let code = self.settings.code;
                let expected = [[width, code], [1, code], [code, width], [1, width]][index];
                match shape == expected {
                    true => Ok(Matrix {
                        shape: expected,
                        values,
                    }),
                    false => Err(corrupt(&name)),
                }
            };
            all.push([take(0)?, take(1)?, take(2)?, take(3)?]);
        }
        Ok(Some(Box::new(Autoencoders(all))))
    }

    fn take_weights(
        &self,
        trained: ClipModel,
        task: &TaskContext<'_>,
        state: &mut RunState,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<ClipModel, RunError> {
        let RunContext {
            checkpoint,
            suite,
            images,
            seed,
            ..
        } = task.run;
        let of = &suite.tasks[task.index];
        let source = of.training_images();
        let all: Vec<usize> = (0..source.len()).collect();
        let (mut done, batches) = (0, all.len().div_ceil(IMAGE_BATCH));
        progress(Phase::Encoding, done, batches);
        let encoded = &mut || {
            done += 1;
            progress(Phase::Encoding, done, batches);
        };
        let model = &checkpoint.model;
        let Features { rows, width, .. } =
            encode_images_with(encoded, model, None, source, &all, images)
                .map_err(|e| e.of_set(|| format!("the training images of task `{}`", of.name)))?;
        let count = rows.len() / width;
        let rows = TensorData::new(rows, [count, width]);
        let features = seen(Tensor::from_data(rows, &model.device()));
        let seed = seeds::derive(seed, &[seeds::AUTOENCODERS, task.index as u64]);
        let trained_now = self.settings.train(&features, seed);
        let mut own = state.take::<Autoencoders>().unwrap_or_default();
        own.0.truncate(task.index);
        own.0.push(trained_now);
        state.set(own);
        Ok(trained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Normalised features around a direction.
    fn around(direction: &[f32], seed: u64, count: usize) -> Tensor<2> {
        let noise = normal_values(seed, count * direction.len(), 0.1);
        let values = noise.iter().enumerate();
        let values = values
            .map(|(i, v)| v + direction[i % direction.len()])
            .collect();
        let data = TensorData::new::<f32, _>(values, [count, direction.len()]);
        clip_model::normalize(Tensor::from_data(data, &Device::flex()))
    }

    fn direction(seed: u64) -> Vec<f32> {
        normal_values(seed, 24, 1.0)
    }

    #[test]
    fn gradients_equal_differences() {
        let settings = Autoencoder {
            code: 5,
            steps: 1,
            ..Autoencoder::default()
        };
        let x = seen(around(&direction(1), 2, 7));
        let trained = settings.train(&x, 3);
        let device = Device::flex();
        let parameters = trained.each_ref().map(|p| p.on(&device));
        let loss = |parameters: &[Tensor<2>; 4]| {
            let error = reconstruct(parameters, x.clone())[1].clone() - x.clone();
            let squares = to_host(error.clone() * error);
            squares.iter().map(|v| f64::from(*v)).sum::<f64>() / squares.len() as f64
        };
        let found = gradients(&parameters, x.clone());
        for (index, found) in found.into_iter().enumerate() {
            let found = to_host(found);
            for at in [0, found.len() / 2, found.len() - 1] {
                let moved = |by: f32| {
                    let mut changed = trained.clone();
                    changed[index].values[at] += by;
                    loss(&changed.each_ref().map(|p| p.on(&device)))
                };
                let expected = (moved(1e-3) - moved(-1e-3)) / 2e-3;
                let error = (f64::from(found[at]) - expected).abs();
                assert!(error < 3e-5, "{index} {at}: {} {expected}", found[at]);
            }
        }
    }

    #[test]
    fn images_of_a_task_are_told_from_others_and_from_unknown_ones() {
        let settings = Autoencoder {
            code: 4,
            steps: 300,
            threshold: 0.02,
        };
        let tasks = [1, 2].map(direction);
        let features = [0, 1].map(|task| around(&tasks[task], 10 + task as u64, 96));
        let trained = features.map(|f| settings.train(&seen(f), 7));
        let all = Autoencoders(trained.to_vec());
        let test = |of: &[f32], at_once| {
            let images = around(of, 20, 16);
            all.choose(images, 2, settings.threshold, at_once)
        };
        for at_once in [false, true] {
            assert_eq!(test(&tasks[0], at_once), [Some(0); 16]);
            assert_eq!(test(&tasks[1], at_once), [Some(1); 16]);
            assert_eq!(test(&direction(3), at_once), [None; 16]);
        }
        // Before the second task.
        let images = around(&tasks[1], 20, 4);
        assert_eq!(all.choose(images, 1, settings.threshold, false), [None; 4]);
        // A batch gets the task of most of its images.
        let mixed = Tensor::cat(vec![around(&tasks[0], 30, 1), around(&tasks[1], 31, 9)], 0);
        assert_eq!(all.choose(mixed.clone(), 2, 1.0, true), [Some(1); 10]);
        let single = all.choose(mixed, 2, 1.0, false);
        assert_eq!(single[..2], [Some(0), Some(1)]);
    }

    #[test]
    fn training_is_reproducible() {
        let settings = Autoencoder {
            code: 3,
            steps: 20,
            ..Autoencoder::default()
        };
        let x = seen(around(&direction(4), 5, 70));
        assert!(settings.train(&x, 1) == settings.train(&x, 1));
        assert!(settings.train(&x, 1) != settings.train(&x, 2));
    }
}

//! Projected update against plain AdamW with a small convolutional network, on four digit tasks:
//! original, inverted, rotated by 90 degrees, and on a striped background.
//!
//! The input rows of a convolution are patches. `recorder.conv2d` unfolds them with the stride,
//! padding and groups of the layer. Each group of the second layer has its own input channels and
//! its own protected directions.
//!
//! ```text
//! cargo run --release -p gnsp-optimizer --example small_cnn
//! ```

mod common;

use std::error::Error;

use burn::module::{Initializer, Module};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::optim::AdamWConfig;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use gnsp_optimizer::{GnspError, Policy, RankRule, Recorder, Site};
use rand_chacha::ChaCha8Rng;

use common::digits::{CLASSES, Digits, SIDE};
use common::report::print_table;
use common::sequence::{Method, Schedule, Task, train_sequence};
use common::{Classifier, generator};

const SEED: u64 = 0;
/// Share of the spectrum of each layer's inputs that stays unprotected.
const TAIL: f64 = 0.07;

fn main() -> Result<(), Box<dyn Error>> {
    let policy = Policy::default().with_rank(RankRule::TailShare(TAIL));
    let schedule = Schedule {
        epochs: 8,
        batch_size: 50,
        learning_rate: 2e-3,
        optimizer: AdamWConfig::new().with_weight_decay(1e-2),
    };
    let tasks = tasks();
    let run = |method| {
        // Both methods have the same initial weights and batches.
        let model = Cnn::new(&Device::default().autodiff(), &mut generator(SEED, 0));
        let order = &mut generator(SEED, 1);
        train_sequence(model, &tasks, method, &policy, &schedule, order)
    };
    let plain = [run(Method::Plain)?];
    let update = [run(Method::Projected(Site::Update))?];
    println!("Accuracy after the last task in percent:");
    print_table(&[
        (Method::Plain.name(), &plain),
        (Method::Projected(Site::Update).name(), &update),
    ]);
    let (plain, update) = (plain[0].forgetting(), update[0].forgetting());
    if update >= plain {
        return Err(format!(
            "the projected update forgets {update:.2} points, plain AdamW {plain:.2}: it should \
             forget less"
        )
        .into());
    }
    println!("\nThe projected update forgets less.");
    Ok(())
}

fn tasks() -> Vec<Task> {
    let rng = &mut generator(SEED, 2);
    let (train, test) = (Digits::draw(2000, rng), Digits::draw(1000, rng));
    vec![
        Task::new(&train, &test, <[f32]>::to_vec),
        Task::new(&train, &test, inverted),
        Task::new(&train, &test, rotated),
        Task::new(&train, &test, striped),
    ]
}

/// Inverts the image. The background is 0, so strokes become negative.
fn inverted(image: &[f32]) -> Vec<f32> {
    image.iter().map(|pixel| -pixel).collect()
}

/// Rotates the image by 90 degrees.
fn rotated(image: &[f32]) -> Vec<f32> {
    let pixels = (0..SIDE * SIDE).map(|i| (i / SIDE, i % SIDE));
    pixels
        .map(|(row, column)| image[(SIDE - 1 - column) * SIDE + row])
        .collect()
}

/// Adds horizontal stripes of two rows each.
fn striped(image: &[f32]) -> Vec<f32> {
    let stripe = |i: usize| if i / SIDE % 4 < 2 { 0.5 } else { -0.5 };
    let pixels = image.iter().enumerate();
    pixels.map(|(i, pixel)| pixel + stripe(i)).collect()
}

/// Two convolutions, the second in two groups, and a linear head.
#[derive(Module, Debug)]
struct Cnn {
    first: Conv2d,
    second: Conv2d,
    head: Linear,
}

impl Cnn {
    const CHANNELS: [usize; 2] = [16, 32];
    const GROUPS: usize = 2;

    fn new(device: &Device, rng: &mut ChaCha8Rng) -> Self {
        let [first, second] = Self::CHANNELS;
        let features = second * SIDE.div_ceil(4).pow(2); // Each convolution halves the image.
        let conv = |channels, kernel: usize| {
            let padding = kernel / 2;
            Conv2dConfig::new(channels, [kernel, kernel])
                .with_stride([2, 2])
                .with_padding(PaddingConfig2d::Explicit(
                    padding, padding, padding, padding,
                ))
                .with_initializer(Initializer::Zeros)
        };
        let cnn = Self {
            first: conv([1, first], 5).init(device),
            second: conv([first, second], 3)
                .with_groups(Self::GROUPS)
                .init(device),
            head: LinearConfig::new(features, CLASSES)
                .with_initializer(Initializer::Zeros)
                .init(device),
        };
        common::initialize(cnn, rng)
    }

    fn images(pixels: Tensor<2>) -> Tensor<4> {
        let count = pixels.dims()[0];
        pixels.reshape([count, 1, SIDE, SIDE])
    }
}

impl Classifier for Cnn {
    fn forward(&self, pixels: Tensor<2>) -> Tensor<2> {
        let x = relu(self.first.forward(Self::images(pixels)));
        let x = relu(self.second.forward(x));
        self.head.forward(x.flatten(1, 3))
    }

    fn record(&self, pixels: Tensor<2>, recorder: &mut Recorder) -> Result<(), GnspError> {
        let rows = pixels.dims()[0];
        let x = Self::images(pixels);
        recorder.conv2d("first.weight", &self.first, x.clone())?;
        recorder.bias("first.bias", rows)?; // Freezes the bias after the first task.
        let x = relu(self.first.forward(x));
        recorder.conv2d("second.weight", &self.second, x.clone())?;
        recorder.bias("second.bias", rows)?;
        let x = relu(self.second.forward(x)).flatten::<2>(1, 3);
        recorder.linear("head.weight", x)?;
        recorder.bias("head.bias", rows)
    }
}

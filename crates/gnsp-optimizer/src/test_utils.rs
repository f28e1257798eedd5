//! Helpers shared by the tests.

use burn::tensor::{Device, Tensor, TensorData};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{Gram, GramAccumulator, GramNormalization};

pub fn device() -> Device {
    Device::default()
}

/// Deterministic matrix `grid(rows, cols, a, b)` of `tests/reference/projector.py`.
pub fn grid(rows: usize, cols: usize, a: f64, b: f64) -> Tensor<2> {
    let numbers: Vec<f32> = (1..=rows * cols)
        .map(|i| (a * (b * i as f64).sin()) as f32)
        .collect();
    Tensor::from_data(TensorData::new(numbers, [rows, cols]), &device())
}

/// The Gram matrix whose projectors `tests/reference/projector.py` prints.
pub fn reference_gram() -> Gram {
    let features = grid(9, 6, 1.0, 0.37) + grid(9, 6, 0.5, 1.9) + grid(9, 6, 0.3, 2.6);
    gram_of(features)
}

/// Uniform values in `-scale..scale`, drawn from a seed.
pub fn random(rows: usize, cols: usize, scale: f32, seed: u64) -> Tensor<2> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let numbers: Vec<f32> = (0..rows * cols)
        .map(|_| rng.random_range(-scale..scale))
        .collect();
    Tensor::from_data(TensorData::new(numbers, [rows, cols]), &device())
}

/// The Gram matrix of one batch of rows.
pub fn gram_of(rows: Tensor<2>) -> Gram {
    let mut accumulator = GramAccumulator::new(rows.dims()[1], GramNormalization::PerBatchAndTask);
    accumulator.add(rows).unwrap();
    accumulator.finish().unwrap()
}

/// The Gram matrix of `rows` random rows.
pub fn random_gram(rows: usize, features: usize, seed: u64) -> Gram {
    gram_of(random(rows, features, 1.0, seed))
}

pub fn eye(size: usize) -> Tensor<2> {
    Tensor::eye(size, &device())
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().into_data().try_into_vec().unwrap()
}

pub fn norm<const D: usize>(tensor: &Tensor<D>) -> f32 {
    let squares: f64 = values(tensor.clone())
        .iter()
        .map(|x| f64::from(*x).powi(2))
        .sum();
    squares.sqrt() as f32
}

pub fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_close_named(actual, expected, tolerance, "values");
}

pub fn assert_close_named(actual: &[f32], expected: &[f32], tolerance: f32, name: &str) {
    assert_eq!(actual.len(), expected.len(), "{name}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= tolerance, "{name}: entry {i}: {a} != {e}");
    }
}

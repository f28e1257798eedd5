//! Test helpers: deterministic inputs, and comparison with quoted constants.

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

/// Returns the device of the tests, without autodiff.
pub fn plain() -> Device {
    Device::default()
}

/// Returns the device of the tests, with autodiff.
pub fn autodiff() -> Device {
    plain().autodiff()
}

/// Returns `grid(rows, cols, a, b)` of `tests/reference/losses.py`.
pub fn grid(rows: usize, cols: usize, a: f64, b: f64, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (1..=rows * cols)
        .map(|i| (a * (b * i as f64).sin()) as f32)
        .collect();
    Tensor::from_data(TensorData::new(values, [rows, cols]), device)
}

/// Returns uniform values in `-scale..scale`, a pure function of the seed.
pub fn random(rows: usize, cols: usize, scale: f32, seed: u64, device: &Device) -> Tensor<2> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..rows * cols)
        .map(|_| rng.random_range(-scale..scale))
        .collect();
    Tensor::from_data(TensorData::new(values, [rows, cols]), device)
}

/// Asserts that the values equal the quoted ones.
pub fn assert_close<const D: usize>(actual: Tensor<D>, expected: &[f32]) {
    let shape = actual.dims();
    actual.into_data().assert_approx_eq::<f32>(
        &TensorData::new(expected.to_vec(), shape),
        Tolerance::rel_abs(1e-5, 1e-6),
    );
}

/// Asserts the value of a loss and its gradient with respect to `leaf`.
pub fn assert_loss(loss: Tensor<1>, leaf: &Tensor<2>, value: f32, gradient: &[f32]) {
    assert_close(loss.clone().inner(), &[value]);
    let gradients = loss.backward();
    assert_close(
        leaf.grad(&gradients).expect("the leaf is tracked"),
        gradient,
    );
}

/// Returns the single element of a loss.
pub fn value(loss: Tensor<1>) -> f32 {
    loss.into_scalar()
}

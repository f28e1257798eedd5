//! The parts a run spends its time in, at the size of the embedded model, each beside a matrix product
//! of a size that matters there, so that figures of different machines compare as ratios.
//!
//! `cargo bench -p gnsp-benches`

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use clip_model::normalize;
use divan::Bencher;
use gnsp_optimizer::{BatchNorm, GramAccumulator, NullSpace, RankRule, TaskNorm};

fn main() {
    divan::main();
}

fn values<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
        .collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn null_space() -> Arc<NullSpace> {
    let mut gram = GramAccumulator::new(512, BatchNorm::Frobenius);
    gram.add(values([300, 512])).expect("finite rows");
    let gram = gram.finish(TaskNorm::Frobenius).expect("a batch was added");
    Arc::new(NullSpace::from_gram(&gram, RankRule::FixedRank(64)).expect("a valid rank"))
}

/// The yardstick: one product of the size of an MLP's first layer on 64 images.
#[divan::bench]
fn matmul_1088x128x512(bencher: Bencher<'_, '_>) {
    let (a, b) = (values([1088, 128]), values([128, 512]));
    bencher.bench(|| a.clone().matmul(b.clone()).into_data());
}

#[divan::bench]
fn encode_64_images(bencher: Bencher<'_, '_>) {
    let model = mtil_bench::embedded::clip_mini(&Device::flex())
        .expect("embedded")
        .model;
    let pixels = values([64, 3, 32, 32]);
    bencher.bench(|| normalize(model.encode_image(pixels.clone())).into_data());
}

#[divan::bench]
fn gram_of_one_batch(bencher: Bencher<'_, '_>) {
    let rows = values([32 * 17, 512]);
    bencher.bench(|| {
        let mut gram = GramAccumulator::new(512, BatchNorm::Frobenius);
        gram.add(rows.clone()).expect("finite rows");
    });
}

#[divan::bench]
fn null_space_of_512(bencher: Bencher<'_, '_>) {
    bencher.bench(null_space);
}

#[divan::bench]
fn project_512x128(bencher: Bencher<'_, '_>) {
    let (null_space, gradient) = (null_space(), values([512, 128]));
    bencher.bench(|| null_space.project(gradient.clone()).into_data());
}

#[divan::bench]
fn draw_192_pretraining_pairs() -> usize {
    (0..192)
        .map(|i| mtil_bench::mini::pretraining_pair(1, i).1.len())
        .sum()
}

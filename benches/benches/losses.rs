//! Benchmarks of every loss, forward and backward, on 64 pairs or on 64 images and 100 classes.
//!
//! `cargo bench -p gnsp-benches --bench losses`

use burn::tensor::{Device, Int, Tensor, TensorData, activation::softmax};
use divan::Bencher;
use gnsp_benches::{
    fixtures::values,
    yardstick::{PRODUCTS, Product},
};

/// The allocator of `mtil-bench`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

#[divan::bench(args = PRODUCTS, max_time = 2)]
fn yardstick(bencher: Bencher<'_, '_>, product: Product) {
    product.bench(bencher);
}

/// Passes to compute.
#[derive(Debug, Clone, Copy)]
enum Pass {
    Forward,
    ForwardAndBackward,
}

const PASSES: [Pass; 2] = [Pass::Forward, Pass::ForwardAndBackward];

/// Shape of the logits of image-text pairs.
const PAIRS: [usize; 2] = [64, 64];
/// Shape of the logits of images and classes.
const CLASSES: [usize; 2] = [64, 100];
// The values of the published runs (GNSP `src/args.py`).
const SMOOTHING: f64 = 0.2;
const TEMPERATURE: f64 = 2.0;

/// Benchmarks a loss on logits of this shape.
fn measure(
    bencher: Bencher<'_, '_>,
    pass: Pass,
    shape: [usize; 2],
    loss: impl Fn(Tensor<2>) -> Tensor<1>,
) {
    match pass {
        Pass::Forward => {
            let logits = values(shape, 1, &Device::flex());
            bencher.bench_local(|| loss(logits.clone()));
        }
        Pass::ForwardAndBackward => {
            let logits = values(shape, 1, &Device::flex().autodiff()).require_grad();
            bencher.bench_local(|| loss(logits.clone()).backward());
        }
    }
}

/// Returns the labels of the pairs, four of each label.
fn labels() -> Vec<usize> {
    (0..PAIRS[0]).map(|i| i % 16).collect()
}

#[divan::bench(args = PASSES)]
fn smoothed_cross_entropy(bencher: Bencher<'_, '_>, pass: Pass) {
    let [images, classes] = CLASSES;
    let targets: Vec<i64> = (0..images).map(|i| (i * 7 % classes) as i64).collect();
    let targets = TensorData::new(targets, [images]);
    let targets = Tensor::<1, Int>::from_data(targets, &Device::flex());
    measure(bencher, pass, CLASSES, |logits| {
        clip_losses::smoothed_cross_entropy(logits, targets.clone(), SMOOTHING)
    });
}

#[divan::bench(args = PASSES)]
fn smoothed_soft_cross_entropy(bencher: Bencher<'_, '_>, pass: Pass) {
    let targets = softmax(values(CLASSES, 2, &Device::flex()), 1);
    measure(bencher, pass, CLASSES, |logits| {
        clip_losses::smoothed_soft_cross_entropy(logits, targets.clone(), SMOOTHING)
    });
}

#[divan::bench(args = PASSES)]
fn clip_contrastive(bencher: Bencher<'_, '_>, pass: Pass) {
    measure(bencher, pass, PAIRS, clip_losses::clip_contrastive);
}

#[divan::bench(args = PASSES)]
fn distillation(bencher: Bencher<'_, '_>, pass: Pass) {
    let teacher = values(CLASSES, 2, &Device::flex());
    measure(bencher, pass, CLASSES, |student| {
        clip_losses::distillation(teacher.clone(), student, TEMPERATURE)
    });
}

#[divan::bench(args = PASSES)]
fn contrastive_distillation(bencher: Bencher<'_, '_>, pass: Pass) {
    let teacher = values(PAIRS, 2, &Device::flex());
    measure(bencher, pass, PAIRS, |student| {
        clip_losses::contrastive_distillation(teacher.clone(), student, TEMPERATURE)
    });
}

#[divan::bench(args = PASSES)]
fn modality_alignment(bencher: Bencher<'_, '_>, pass: Pass) {
    let targets = clip_losses::alignment_targets(&labels(), &Device::flex());
    measure(bencher, pass, PAIRS, |student| {
        clip_losses::modality_alignment(student, targets.clone(), SMOOTHING)
    });
}

#[divan::bench]
fn alignment_targets(bencher: Bencher<'_, '_>) {
    let (labels, device) = (labels(), Device::flex());
    bencher.bench_local(|| clip_losses::alignment_targets(&labels, &device));
}

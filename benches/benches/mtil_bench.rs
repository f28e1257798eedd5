//! Benchmarks of the parts of a run: training steps, evaluation, and drawing the mini world.
//!
//! `cargo bench -p gnsp-benches --bench mtil_bench`

use burn::tensor::{Device, Tensor};
use clip_model::{Clip, ClipModel, ClipTokenizer, TokenBatch};
use divan::Bencher;
use gnsp_benches::{
    fixtures::{mtil_prompts, values},
    yardstick::{PRODUCTS, Product},
};
use gnsp_optimizer::{Memory, Policy};
use mini_world as mini;
use mini_world::MiniSizes;
use mtil_bench::compare::{Size, measure::config};
use mtil_data::suite::Suite;
use mtil_engine::{
    batch::Images,
    eval::{EvalOptions, Evaluator, zero_shot_head},
    recording::InputRecorder,
    run::{GnspStep, Optimizations, StepInputs, StepOptions},
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

/// Task images and reference pairs of a training step.
const BATCH: usize = 8;
const CLASSES: usize = 100;

fn tokens(count: usize) -> TokenBatch {
    ClipTokenizer::openai()
        .encode(&mtil_prompts(count), 77)
        .expect("prompts are texts")
}

/// Returns the Gram matrices of a first task.
fn gram_memory(model: &ClipModel, pixels: Tensor<4>) -> Memory {
    let mut memory = Memory::new(Policy::gnsp());
    let mut inputs = InputRecorder::new(memory.recorder(model));
    model.encode_image_observed(pixels, &mut inputs);
    let recorder = inputs.finish().expect("finite rows");
    memory.absorb(recorder).expect("the memory is empty");
    memory
}

fn training_step(bencher: Bencher<'_, '_>, optimizations: Optimizations) {
    let (config, device) = (config(Size::Tiny), Device::flex());
    let side = config.vision.image_size;
    let model = config.init(1, &device);
    let pixels = |seed| values([BATCH, 3, side, side], seed, &device);
    let memory = gram_memory(&model, pixels(1));
    let inputs = StepInputs {
        pixels: pixels(2),
        labels: (0..BATCH).map(|i| i * 7 % CLASSES).collect(),
        class_tokens: tokens(CLASSES),
        reference_pixels: pixels(3),
        reference_tokens: tokens(BATCH),
        reference_labels: (0..BATCH).collect(),
    };
    let options = StepOptions {
        optimizations,
        ..StepOptions::default()
    };
    let mut step = GnspStep::new(&model, &memory, inputs, options).expect("its own memory");
    drop((model, memory));
    bencher.bench_local(|| step.run());
}

/// A training step after the first task, of a CLIP with two layers per tower.
#[divan::bench(max_time = 3)]
fn gnsp_training_step(bencher: Bencher<'_, '_>) {
    training_step(bencher, Optimizations::default());
}

/// The same step in Burn's own operations.
#[divan::bench(max_time = 3)]
fn gnsp_training_step_not_fused(bencher: Bencher<'_, '_>) {
    let optimizations = Optimizations {
        fused: false,
        ..Optimizations::default()
    };
    training_step(bencher, optimizations);
}

#[divan::bench(max_time = 3)]
fn draw_192_pretraining_pairs() -> usize {
    (0..192).map(|i| mini::pretraining_pair(1, i).1.len()).sum()
}

fn embedded() -> Clip {
    mini_world::embedded::clip_mini(&Device::flex()).expect("the embedded model loads")
}

/// Returns the mini suite with 128 test images per task.
fn small_suite() -> Suite {
    let sizes = MiniSizes {
        train_per_task: 1,
        test_per_task: 128,
        reference: 1,
        held_out: 1,
    };
    mini::suite(1, sizes)
}

/// Zero-shot classifier of the first task, from all its prompts.
#[divan::bench(max_time = 3)]
fn make_zero_shot_head(bencher: Bencher<'_, '_>) {
    let (clip, suite) = (embedded(), small_suite());
    let task = suite.tasks[0].classification().expect("classes");
    bencher.bench_local(|| {
        zero_shot_head(&clip, &clip.model, None, task, task.templates.len())
            .expect("prompts are texts")
    });
}

/// Accuracy on the first task, including the classifier, and drawing and preprocessing of the
/// images.
#[divan::bench(max_time = 3)]
fn evaluate_128_images(bencher: Bencher<'_, '_>) {
    let (clip, suite) = (embedded(), small_suite());
    let options = EvalOptions::default();
    let images = Images::new(clip.preprocess.clone(), 0.9, false);
    let evaluator = Evaluator {
        checkpoint: &clip,
        suite: &suite,
        options: &options,
        images: &images,
        seed: 1,
    };
    bencher.bench_local(|| {
        evaluator
            .measure(&clip.model, None, None, 0, &mut |_, _| {})
            .expect("images that can be drawn")
    });
}

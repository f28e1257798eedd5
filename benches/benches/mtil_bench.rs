//! What a run spends its time in: training steps, evaluation, and drawing the mini world.
//!
//! `cargo bench -p gnsp-benches --bench mtil_bench`

use burn::tensor::{Device, Tensor};
use clip_model::{Clip, ClipModel, ClipTokenizer, TokenBatch};
use divan::Bencher;
use gnsp_benches::{
    fixtures::{mtil_prompts, values},
    yardstick::{PRODUCTS, Product},
};
use gnsp_optimizer::{Memory, Policy, Recorder};
use mini_world as mini;
use mini_world::MiniSizes;
use mtil_bench::compare::{Size, measure::config};
use mtil_data::suite::Suite;
use mtil_engine::{
    batch::Images,
    eval::{EvalOptions, Evaluator, zero_shot_head},
    recording::InputRecorder,
    run::{Optimizations, Step, StepInputs, StepOptions},
};

/// As the binary of the benchmark has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

#[divan::bench(args = PRODUCTS, max_time = 2)]
fn yardstick(bencher: Bencher<'_, '_>, product: Product) {
    product.bench(bencher);
}

/// Task images and reference pairs of a step.
const BATCH: usize = 8;
const CLASSES: usize = 100;

fn tokens(count: usize) -> TokenBatch {
    ClipTokenizer::openai()
        .encode(&mtil_prompts(count), 77)
        .expect("prompts are texts")
}

/// What a model remembers of a first task.
fn remembered(model: &ClipModel, pixels: Tensor<4>) -> Memory {
    let mut inputs = InputRecorder::new(Recorder::new(&Policy::gnsp()));
    model.encode_image_observed(pixels, &mut inputs);
    let mut memory = Memory::new();
    let recorder = inputs.finish().expect("finite rows");
    memory.absorb(recorder).expect("the memory is empty");
    memory
}

fn training_step(bencher: Bencher<'_, '_>, optimizations: Optimizations) {
    let (config, device) = (config(Size::Tiny), Device::flex());
    let side = config.vision.image_size;
    let model = config.init(1, &device);
    let pixels = |seed| values([BATCH, 3, side, side], seed, &device);
    let memory = remembered(&model, pixels(1));
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
    let mut step = Step::new(&model, &memory, inputs, options).expect("its own memory");
    drop((model, memory));
    bencher.bench_local(|| step.run());
}

/// On a task after the first, of a CLIP of two layers a tower.
#[divan::bench(max_time = 3)]
fn gnsp_training_step(bencher: Bencher<'_, '_>) {
    training_step(bencher, Optimizations::default());
}

/// The same in Burn's own operations.
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
    mini_world::embedded::clip_mini(&Device::flex()).expect("it is embedded")
}

/// The mini suite with 128 test images a task.
fn small_suite() -> Suite {
    let sizes = MiniSizes {
        train_per_task: 1,
        test_per_task: 128,
        reference: 1,
        held_out: 1,
    };
    mini::suite(1, sizes)
}

/// The classifier of the first task, from all its prompts.
#[divan::bench(max_time = 3)]
fn make_zero_shot_head(bencher: Bencher<'_, '_>) {
    let (clip, suite) = (embedded(), small_suite());
    let task = &suite.tasks[0];
    bencher.bench_local(|| {
        zero_shot_head(&clip, &clip.model, None, task, task.templates.len())
            .expect("prompts are texts")
    });
}

/// Its accuracy, with the head, and with drawing and preparing the images.
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
            .accuracy(&clip.model, None, 0)
            .expect("images that can be drawn")
    });
}

//! Deterministic inputs of the benchmarks.

use burn::tensor::{Device, Tensor, TensorData};
use mini_world as mini;
use mtil_data::datasets::Spec;
use mtil_engine::eval::prompt;

use crate::dead_leaves::noise;

/// Returns a tensor of uniform values in `-1..1`.
pub fn values<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    scaled(shape, 1.0, seed, device)
}

/// Returns a weight `[in, out]`, scaled so that the outputs of a layer are about as large as its
/// inputs.
pub fn weight(shape: [usize; 2], seed: u64, device: &Device) -> Tensor<2> {
    scaled(shape, (shape[0] as f32).powf(-0.5), seed, device)
}

fn scaled<const D: usize>(shape: [usize; D], scale: f32, seed: u64, device: &Device) -> Tensor<D> {
    let values = noise(shape.iter().product(), seed);
    let values: Vec<f32> = values.into_iter().map(|x| x * scale).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Returns prompts of classes of MTIL, from all its datasets.
pub fn mtil_prompts(count: usize) -> Vec<String> {
    let tasks = Spec::all().iter().filter(|spec| spec.is_task());
    let all: Vec<String> = tasks
        .flat_map(|spec| {
            let template = spec.templates.first().map_or("{}", String::as_str);
            spec.classes
                .iter()
                .map(move |class| prompt(template, class))
        })
        .collect();
    (0..count).map(|i| all[i * 7 % all.len()].clone()).collect()
}

/// Returns prompts of classes of the mini world.
pub fn mini_prompts(count: usize) -> Vec<String> {
    let all: Vec<String> = mini::tasks()
        .iter()
        .flat_map(|task| {
            let template = task.templates[0];
            task.class_names
                .iter()
                .map(move |class| prompt(template, class))
        })
        .collect();
    (0..count).map(|i| all[i % all.len()].clone()).collect()
}

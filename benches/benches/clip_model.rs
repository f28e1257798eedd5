//! Benchmarks of the towers, the tokenizer and the preprocessing, with the embedded model and
//! ViT-B/32 with random weights.
//!
//! `cargo bench -p gnsp-benches --bench clip_model`

use std::sync::LazyLock;

use burn::tensor::Device;
use clip_model::{Clip, ClipConfig, ClipModel, ClipTokenizer, Preprocess, normalize};
use divan::Bencher;
use gnsp_benches::{
    dead_leaves,
    fixtures::{mini_prompts, mtil_prompts, values},
    yardstick::{PRODUCTS, Product},
};
use image::{DynamicImage, Rgb, RgbImage};

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

/// Shared, because drawing its weights takes seconds.
static VIT_B_32: LazyLock<ClipModel> =
    LazyLock::new(|| ClipConfig::vit_b_32().init(1, &Device::flex()));

fn embedded() -> Clip {
    mini_world::embedded::clip_mini(&Device::flex()).expect("the embedded model loads")
}

/// Context length of OpenAI's models.
const CONTEXT: usize = 77;

#[divan::bench(max_time = 3)]
fn encode_64_images_embedded(bencher: Bencher<'_, '_>) {
    let model = embedded().model;
    let pixels = values([64, 3, 32, 32], 1, &Device::flex());
    bencher.bench_local(|| normalize(model.encode_image(pixels.clone())));
}

#[divan::bench(max_time = 3)]
fn encode_64_texts_embedded(bencher: Bencher<'_, '_>) {
    let clip = embedded();
    let context = clip.config.text.max_position_embeddings;
    let tokens = clip
        .tokenizer
        .encode(&mini_prompts(64), context)
        .expect("prompts are texts");
    bencher.bench_local(|| normalize(clip.model.encode_text(&tokens)));
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn encode_2_images_vit_b_32(bencher: Bencher<'_, '_>) {
    let model = &*VIT_B_32;
    let pixels = values([2, 3, 224, 224], 1, &Device::flex());
    bencher.bench_local(|| normalize(model.encode_image(pixels.clone())));
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn encode_2_texts_vit_b_32(bencher: Bencher<'_, '_>) {
    let model = &*VIT_B_32;
    let tokens = ClipTokenizer::openai()
        .encode(&mtil_prompts(2), CONTEXT)
        .expect("prompts are texts");
    bencher.bench_local(|| normalize(model.encode_text(&tokens)));
}

#[divan::bench(max_time = 2)]
fn tokenize_100_prompts(bencher: Bencher<'_, '_>) {
    let (tokenizer, prompts) = (ClipTokenizer::openai(), mtil_prompts(100));
    bencher.bench_local(|| {
        tokenizer
            .encode(&prompts, CONTEXT)
            .expect("prompts are texts")
    });
}

/// From a decoded photograph to the input tensor of the image tower.
#[divan::bench(max_time = 2)]
fn preprocess_500x375(bencher: Bencher<'_, '_>) {
    let side = 500;
    let picture = dead_leaves::picture(side, 1);
    let image = RgbImage::from_fn(500, 375, |x, y| {
        let at = y as usize * side + x as usize;
        let channel = |c: usize| (picture[c * side * side + at] * 255.0) as u8;
        Rgb([channel(0), channel(1), channel(2)])
    });
    let image = DynamicImage::ImageRgb8(image);
    let (preprocess, device) = (Preprocess::clip(224), Device::flex());
    bencher.bench_local(|| {
        preprocess
            .to_tensor(&[preprocess.eval_u8(&image)], &device)
            .expect("there is an image")
    });
}

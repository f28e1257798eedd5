//! Synthetic digit images, rendered from a small bitmap font with a seeded generator.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Height and width of an image.
pub const SIDE: usize = 14;
/// Number of pixels of an image.
pub const PIXELS: usize = SIDE * SIDE;
/// Number of classes.
pub const CLASSES: usize = 10;

const FONT_HEIGHT: usize = 7;
const FONT_WIDTH: usize = 5;

/// Rows of five bits. The highest bit is the leftmost pixel.
const FONT: [[u8; FONT_HEIGHT]; CLASSES] = [
    [
        0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110,
    ],
    [
        0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110,
    ],
    [
        0b01110, 0b10001, 0b00001, 0b00010, 0b00100, 0b01000, 0b11111,
    ],
    [
        0b11111, 0b00010, 0b00100, 0b00010, 0b00001, 0b10001, 0b01110,
    ],
    [
        0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010,
    ],
    [
        0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110,
    ],
    [
        0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110,
    ],
    [
        0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000,
    ],
    [
        0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110,
    ],
    [
        0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100,
    ],
];

/// Standard deviation of the pixel noise. Strokes have intensities up to 1.
const NOISE: f32 = 0.08;
/// Largest offset of a digit from the centre, in pixels.
const SHIFT: f32 = 0.9;

/// Labelled images.
#[derive(Clone)]
pub struct Digits {
    pixels: Vec<f32>,
    labels: Vec<i32>,
}

impl Digits {
    /// Renders random digits.
    pub fn draw(count: usize, rng: &mut ChaCha8Rng) -> Self {
        let labels: Vec<i32> = (0..count)
            .map(|_| rng.random_range(0..CLASSES as i32))
            .collect();
        let pixels = labels
            .iter()
            .flat_map(|label| render(*label as usize, rng))
            .collect();
        Self { pixels, labels }
    }

    /// Returns the same digits with transformed images.
    pub fn map(&self, transform: impl Fn(&[f32]) -> Vec<f32>) -> Self {
        Self {
            pixels: self.pixels.chunks(PIXELS).flat_map(transform).collect(),
            labels: self.labels.clone(),
        }
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Iterates over images and labels.
    pub fn iter(&self) -> impl Iterator<Item = (&[f32], i32)> {
        self.pixels.chunks(PIXELS).zip(self.labels.iter().copied())
    }

    /// Returns all images `[N, pixels]` and labels `[N]`.
    pub fn all(&self, device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
        tensors(self.pixels.clone(), self.labels.clone(), device)
    }

    /// Iterates over shuffled batches of images `[N, pixels]` and labels `[N]`.
    pub fn shuffled(
        &self,
        batch_size: usize,
        device: &Device,
        rng: &mut ChaCha8Rng,
    ) -> impl Iterator<Item = (Tensor<2>, Tensor<1, Int>)> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.shuffle(rng);
        let batches = order.len().div_ceil(batch_size);
        (0..batches).map(move |batch| {
            let from = batch * batch_size;
            let indices = &order[from..order.len().min(from + batch_size)];
            let pixels = indices.iter().flat_map(|i| self.image(*i)).copied();
            let labels = indices.iter().map(|i| self.labels[*i]);
            tensors(pixels.collect(), labels.collect(), device)
        })
    }

    fn image(&self, index: usize) -> &[f32] {
        &self.pixels[index * PIXELS..(index + 1) * PIXELS]
    }
}

/// Copies images `[N, pixels]` and labels `[N]` to a device.
pub fn tensors(pixels: Vec<f32>, labels: Vec<i32>, device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
    let count = labels.len();
    (
        Tensor::from_data(TensorData::new(pixels, [count, PIXELS]), device),
        Tensor::from_data(TensorData::new(labels, [count]), device),
    )
}

/// Draws a random permutation of the pixels.
pub fn permutation(rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..PIXELS).collect();
    order.shuffle(rng);
    order
}

/// Renders a digit with random position, size, slant, intensity and noise.
fn render(digit: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let centre = (SIDE as f32 - 1.0) / 2.0;
    let (row, column) = (
        centre + rng.random_range(-SHIFT..=SHIFT),
        centre + rng.random_range(-SHIFT..=SHIFT),
    );
    let scale = rng.random_range(1.3..=1.7);
    let slant = rng.random_range(-0.25..=0.25);
    let intensity = rng.random_range(0.5..=1.0);
    let mut image = Vec::with_capacity(PIXELS);
    for y in 0..SIDE {
        for x in 0..SIDE {
            let down = y as f32 - row;
            let right = x as f32 - column + slant * down;
            image.push(intensity * ink(digit, down / scale, right / scale) + NOISE * normal(rng));
        }
    }
    image
}

/// Samples the font at a position relative to its centre, by bilinear interpolation.
fn ink(digit: usize, down: f32, right: f32) -> f32 {
    let y = down + (FONT_HEIGHT as f32 - 1.0) / 2.0;
    let x = right + (FONT_WIDTH as f32 - 1.0) / 2.0;
    let mut sum = 0.0;
    for (row, bits) in FONT[digit].iter().enumerate() {
        for column in 0..FONT_WIDTH {
            if bits >> (FONT_WIDTH - 1 - column) & 1 == 1 {
                let weight = |distance: f32| (1.0 - distance.abs()).max(0.0);
                sum += weight(y - row as f32) * weight(x - column as f32);
            }
        }
    }
    sum
}

/// Draws a standard normal number (Box and Muller).
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}

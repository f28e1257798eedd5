//! Dead leaves images: synthetic images with the statistics of natural ones, made of overlapping
//! disks of all sizes (Lee, Mumford and Huang 2001, *Occlusion models for natural images*).

use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

/// Range of the radii of the leaves in pixels. The density falls with the cube of the radius, which
/// makes the image scale invariant.
const RADII: (f32, f32) = (3.0, 100.0);
const LEAVES: usize = 3000;

/// Generates an image of values in `0..1`.
///
/// # Shapes
/// - output: `[3, side, side]`, row-major
pub fn picture(side: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let plane = side * side;
    let mut picture = vec![0.5; 3 * plane];
    let (smallest, largest) = RADII;
    for _ in 0..LEAVES {
        let u: f32 = rng.random();
        let low = smallest.powi(-2);
        let radius = (low - u * (low - largest.powi(-2))).powf(-0.5);
        let place = |rng: &mut ChaCha8Rng| rng.random_range(0.0..side as f32);
        let (x, y) = (place(&mut rng), place(&mut rng));
        // A grey value and a little colour, with a gradient over the leaf.
        let grey: f32 = rng.random();
        let tint: [f32; 3] = std::array::from_fn(|_| rng.random_range(-0.15..0.15));
        let (slope_x, slope_y) = (
            rng.random_range(-0.3..0.3f32),
            rng.random_range(-0.3..0.3f32),
        );
        let from = |centre: f32| (centre - radius).max(0.0) as usize;
        let to = |centre: f32| ((centre + radius) as usize + 1).min(side);
        for row in from(y)..to(y) {
            for column in from(x)..to(x) {
                let (dx, dy) = ((column as f32 - x) / radius, (row as f32 - y) / radius);
                if dx * dx + dy * dy > 1.0 {
                    continue;
                }
                let shade = grey + slope_x * dx + slope_y * dy;
                for (channel, tint) in tint.iter().enumerate() {
                    picture[channel * plane + row * side + column] = (shade + tint).clamp(0.0, 1.0);
                }
            }
        }
    }
    for value in &mut picture {
        *value = (*value + rng.random_range(-0.02..0.02)).clamp(0.0, 1.0);
    }
    picture
}

/// Generates uniform numbers in `-1..1`.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

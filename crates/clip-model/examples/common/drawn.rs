//! Synthetic images of shapes, for examples that run without a dataset: drawn in ink on stained
//! paper, at a random position, size and angle.

use image::{Rgb, RgbImage};
use rand::Rng;

/// Names of the classes.
pub const CLASSES: [&str; 8] = [
    "circle", "square", "triangle", "cross", "diamond", "ring", "heart", "moon",
];
const SIDE: u32 = 32;

/// Draws an image of class `class`.
pub fn draw(class: usize, rng: &mut impl Rng) -> RgbImage {
    let (scale, angle) = (rng.random_range(7.0..12.0), rng.random_range(-0.4..0.4_f32));
    let mut centre = || SIDE as f32 / 2.0 + rng.random_range(-4.0..4.0_f32);
    let (x0, y0) = (centre(), centre());
    let paper = [(); 3].map(|()| rng.random_range(150.0..230.0_f32));
    let ink = [(); 3].map(|()| rng.random_range(20.0..110.0_f32));
    let stains = [(); 3].map(|()| {
        let mut at = || rng.random_range(0.0..SIDE as f32);
        (
            at(),
            at(),
            rng.random_range(3.0..7.0_f32),
            rng.random_range(-45.0..45.0_f32),
        )
    });
    let filled = rng.random_bool(0.3);
    RgbImage::from_fn(SIDE, SIDE, |column, row| {
        let (x, y) = (column as f32 + 0.5, row as f32 + 0.5);
        let (dx, dy) = ((x - x0) / scale, (y - y0) / scale);
        let (sin, cos) = angle.sin_cos();
        let distance = distance(class, cos * dx + sin * dy, cos * dy - sin * dx) * scale;
        let edge = if filled {
            distance
        } else {
            distance.abs() - 1.0
        };
        let coverage = (0.5 - edge).clamp(0.0, 1.0);
        let stain: f32 = stains
            .iter()
            .map(|(sx, sy, r, depth)| {
                depth * (-((x - sx).powi(2) + (y - sy).powi(2)) / r / r).exp()
            })
            .sum();
        let grain = rng.random_range(-14.0..14.0_f32);
        Rgb(std::array::from_fn(|c| {
            (paper[c] + (ink[c] - paper[c]) * coverage + stain + grain) as u8
        }))
    })
}

/// Returns the approximate signed distance of a point to the shape (negative inside), in units of
/// its radius. `y` points down.
fn distance(class: usize, x: f32, y: f32) -> f32 {
    let circle = |x: f32, y: f32, r: f32| x.hypot(y) - r;
    match CLASSES[class] {
        "circle" => circle(x, y, 0.9),
        "square" => x.abs().max(y.abs()) - 0.75,
        "triangle" => (0.87 * x.abs() - 0.5 * y - 0.35).max(y - 0.7),
        "cross" => {
            let (long, short) = (x.abs().max(y.abs()), x.abs().min(y.abs()));
            (long - 0.9).max(short - 0.25)
        }
        "diamond" => 0.8 * x.abs() + 0.6 * y.abs() - 0.6,
        "ring" => circle(x, y, 0.7).abs() - 0.22,
        "heart" => {
            let lobes = circle(x.abs() - 0.4, y + 0.3, 0.45);
            let tip = (0.7 * x.abs() + 0.7 * y - 0.6).max(-0.2 - y);
            lobes.min(tip)
        }
        "moon" => circle(x, y, 0.9).max(-circle(x - 0.45, y, 0.75)),
        other => unreachable!("{other}"),
    }
}

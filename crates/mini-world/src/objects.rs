//! Fruit, and random positions of objects that do not touch.

use super::canvas::{Canvas, Rgb, Transform, mix, scaled};
use super::rng::Rng;

/// Draws a shaded fruit with a stem and a leaf.
pub(super) fn draw_fruit(canvas: &mut Canvas, transform: &Transform, colour: Rgb, pear: bool) {
    let body = move |u: f32, v: f32| {
        let ball = (u * u + v * v).sqrt() - 0.82;
        if pear {
            ball.min((u * u + (v + 0.6) * (v + 0.6)).sqrt() - 0.5)
        } else {
            ball
        }
    };
    canvas.disc(
        (
            transform.x + transform.radius * 0.25,
            transform.y + transform.radius * 0.75,
        ),
        transform.radius * 0.6,
        [0.2, 0.18, 0.16],
    );
    canvas.paint(transform, 1.25, body, |u, v| {
        let light = 1.0 - 0.28 * (u + v);
        let shine =
            (1.0 - ((u + 0.35) * (u + 0.35) + (v + 0.35) * (v + 0.35)) * 9.0).clamp(0.0, 1.0);
        mix(scaled(colour, light), [1.0; 3], shine * 0.6)
    });
    let top = if pear { -1.05 } else { -0.82 };
    canvas.paint(
        transform,
        1.6,
        |u, v| (u.abs() - 0.07).max((v - top).abs() - 0.2),
        |_, _| [0.3, 0.2, 0.1],
    );
    let leaf = |u: f32, v: f32| {
        let (du, dv) = (u - 0.3, v - top + 0.05);
        ((du * du + dv * dv * 4.0).sqrt() - 0.27) * 0.7
    };
    canvas.paint(transform, 1.6, leaf, |_, _| [0.2, 0.45, 0.15]);
}

/// Returns `count` (at most 6) random centres about `apart` pixels from each other or more, and at
/// least `margin` from the border.
pub(super) fn scatter(count: usize, apart: f32, margin: f32, rng: &mut Rng) -> [(f32, f32); 6] {
    let mut centres = [(0.0f32, 0.0f32); 6];
    let mut placed = 0;
    let mut min_distance = apart;
    while placed < count.min(6) {
        let at = (
            rng.between(margin, 32.0 - margin),
            rng.between(margin, 32.0 - margin),
        );
        let free = centres[..placed].iter().all(|c| {
            (c.0 - at.0) * (c.0 - at.0) + (c.1 - at.1) * (c.1 - at.1) >= min_distance * min_distance
        });
        if free {
            centres[placed] = at;
            placed += 1;
        } else {
            // Relax the distance after each rejection, so that the loop terminates.
            min_distance *= 0.995;
        }
    }
    centres
}

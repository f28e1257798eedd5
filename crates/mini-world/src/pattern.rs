//! Procedural textures of cloth and shapes.

use super::canvas::{Canvas, scaled};
use super::rng::{Rng, sine};

/// Named pattern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pattern {
    Plain,
    Striped,
    Dotted,
    Checkered,
    Zigzag,
    Plaid,
    Wavy,
    Speckled,
}

/// All patterns with their names, in the order of the cloth task's classes.
pub(super) const PATTERNS: [(Pattern, &str); 8] = [
    (Pattern::Plain, "plain"),
    (Pattern::Striped, "striped"),
    (Pattern::Dotted, "dotted"),
    (Pattern::Checkered, "checkered"),
    (Pattern::Zigzag, "zigzag"),
    (Pattern::Plaid, "plaid"),
    (Pattern::Wavy, "wavy"),
    (Pattern::Speckled, "speckled"),
];

/// Pattern with a period.
#[derive(Clone, Copy)]
pub(super) struct Texture {
    pub(super) pattern: Pattern,
    /// Period of the pattern in pixels.
    pub(super) period: f32,
    /// Seed of the speckles.
    pub(super) seed: u32,
}

/// Returns a triangle wave of period 1 between -1 and 1.
fn triangle_wave(x: f32) -> f32 {
    (x - x.floor() - 0.5).abs() * 4.0 - 1.0
}

/// Returns a hash of a lattice point: 24 bits as 0..1.
fn hash_lattice(x: i32, y: i32, seed: u32) -> f32 {
    let mut h = (x as u32).wrapping_mul(0x9E37_79B1)
        ^ (y as u32).wrapping_mul(0x85EB_CA77)
        ^ seed.wrapping_mul(0xC2B2_AE3D);
    h ^= h >> 15;
    h = h.wrapping_mul(0x2C1B_3C6D);
    h ^= h >> 12;
    h = h.wrapping_mul(0x297A_2D39);
    h ^= h >> 15;
    (h >> 8) as f32 / 16_777_216.0
}

impl Texture {
    /// Returns the weight of the second colour at a point in pixels, antialiased.
    pub(super) fn mask(&self, x: f32, y: f32) -> f32 {
        let (u, v) = (x / self.period, y / self.period);
        // Half a band is a quarter period wide, which converts the wave to pixels.
        let band = |wave: f32| (0.5 + wave * self.period / 4.0).clamp(0.0, 1.0);
        match self.pattern {
            Pattern::Plain => 0.0,
            Pattern::Striped => band(triangle_wave(v)),
            Pattern::Dotted => {
                let (fu, fv) = (u - u.floor() - 0.5, v - v.floor() - 0.5);
                (0.5 + (0.32 - (fu * fu + fv * fv).sqrt()) * self.period).clamp(0.0, 1.0)
            }
            Pattern::Checkered => {
                let (a, b) = (triangle_wave(u * 0.75), triangle_wave(v * 0.75));
                let sign = if (a > 0.0) == (b > 0.0) { 1.0 } else { -1.0 };
                band(sign * a.abs().min(b.abs()) / 0.75)
            }
            Pattern::Zigzag => band(triangle_wave(v + 0.35 * triangle_wave(u * 0.6)) * 0.8),
            Pattern::Plaid => 0.5 * (band(triangle_wave(u) - 0.1) + band(triangle_wave(v) - 0.1)),
            Pattern::Wavy => band(triangle_wave(v + 0.4 * sine(u * 0.3)) * 0.9),
            Pattern::Speckled => {
                let scale = 1.6;
                let (cu, cv) = ((u * scale).floor(), (v * scale).floor());
                let roll = |salt| hash_lattice(cu as i32, cv as i32, self.seed.wrapping_add(salt));
                if roll(0) < 0.45 {
                    return 0.0;
                }
                let (ox, oy) = (0.3 + 0.4 * roll(1), 0.3 + 0.4 * roll(2));
                let (du, dv) = (u * scale - cu - ox, v * scale - cv - oy);
                let radius = 0.16 + 0.2 * roll(3);
                (0.5 + (radius - (du * du + dv * dv).sqrt()) * self.period / scale).clamp(0.0, 1.0)
            }
        }
    }
}

/// Varies the brightness of the image smoothly.
pub(super) fn mottle(canvas: &mut Canvas, strength: f32, rng: &mut Rng) {
    let (a, b) = (rng.between(0.03, 0.08), rng.between(0.03, 0.08));
    let (pa, pb, skew) = (rng.unit(), rng.unit(), rng.around(0.05));
    canvas.map(|x, y, c| {
        let tone = sine(x * a + y * skew + pa) * sine(y * b - x * skew + pb)
            + 0.4 * sine(x * 0.11 + y * 0.05 + pb) * sine(y * 0.13 - x * 0.03 + pa);
        scaled(c, 1.0 + strength * tone)
    });
}

//! Random number generator of one image, and platform-independent trigonometry.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Random number generator of one image.
///
/// The conversions to floats and ranges are implemented here, so that the images do not depend on
/// the sampling of a version of the `rand` crate.
pub(super) struct Rng(ChaCha8Rng);

impl Rng {
    /// Returns the generator of one image. The four numbers fill the 256-bit key, so two different
    /// images never share a stream.
    pub(super) fn new(seed: u64, domain: u64, split: u64, index: u64) -> Self {
        let mut key = [0u8; 32];
        for (chunk, part) in key.chunks_exact_mut(8).zip([seed, domain, split, index]) {
            chunk.copy_from_slice(&part.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Returns 32 random bits.
    pub(super) fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Returns a uniform number in [0, 1).
    pub(super) fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / 16_777_216.0
    }

    /// Returns a uniform number between `low` and `high`.
    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Returns a uniform number in [-size, size).
    pub(super) fn around(&mut self, size: f32) -> f32 {
        self.between(-size, size)
    }

    /// Returns a uniform integer in 0..n. The bias of the multiply-shift is below 1e-7 for the
    /// small n used here.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.bits()) * n as u64) >> 32) as usize
    }

    /// Returns `true` with probability `p`.
    pub(super) fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }

    /// Returns a uniformly chosen item.
    pub(super) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

/// Returns the sine of an angle in turns (1 = full circle), within 0.0011 of the true value.
///
/// It is a polynomial instead of the platform's `sin`, whose last bit differs between systems: the
/// images must be the same on every machine.
pub(super) fn sine(turns: f32) -> f32 {
    let t = turns - (turns + 0.5).floor();
    let y = 8.0 * t - 16.0 * t * t.abs();
    0.225 * (y * y.abs() - y) + y
}

/// Returns the cosine of an angle in turns, see [`sine`].
pub(super) fn cosine(turns: f32) -> f32 {
    sine(turns + 0.25)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sine_approximates_the_true_sine() {
        for step in -200..200 {
            let turns = step as f32 / 73.0;
            let truth = (turns * std::f32::consts::TAU).sin();
            assert!((sine(turns) - truth).abs() < 0.0012, "at {turns}");
        }
    }

    #[test]
    fn streams_differ_in_each_key_part() {
        let first = |s, d, p, i| Rng::new(s, d, p, i).bits();
        let base = first(1, 2, 3, 4);
        assert_eq!(base, first(1, 2, 3, 4));
        for other in [
            first(2, 2, 3, 4),
            first(1, 3, 3, 4),
            first(1, 2, 4, 4),
            first(1, 2, 3, 5),
        ] {
            assert_ne!(base, other);
        }
    }
}

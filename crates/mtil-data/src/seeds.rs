//! Where randomness comes from: pure functions of the run's seed and of what is drawn.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// Tag of the draw of reference pairs.
pub const REFERENCE: u64 = 1;
/// Tag of the order of training images.
pub const TRAIN_ORDER: u64 = 2;
/// Tag of the random crops of training images.
pub const TRAIN_CROP: u64 = 3;
/// Tag of the order of the Gram pass.
pub const GRAM_ORDER: u64 = 4;
/// Tag of the random crops of the Gram pass.
pub const GRAM_CROP: u64 = 5;

/// Tag of the order of the images of a distillation.
pub const DISTILL_ORDER: u64 = 6;
/// Tag of the random texts of a distillation.
pub const RANDOM_TEXTS: u64 = 7;
/// Tag of the order of kept images.
pub const REPLAY_ORDER: u64 = 8;
/// Tag of the random crops of kept images.
pub const REPLAY_CROP: u64 = 9;
/// Tag of the choice of images to keep.
pub const EXEMPLARS: u64 = 10;
/// Tag of the initial values of adapters.
pub const ADAPTERS: u64 = 11;
/// Tag of the noise and the dropout of adapters.
pub const ADAPTER_DRAWS: u64 = 12;
/// Tag of the random hidden layer of a ridge regression.
pub const HIDDEN_LAYER: u64 = 13;
/// Tag of the test images of a thinned evaluation.
pub const EVALUATION: u64 = 14;
/// Tag of the images of a comparison of devices.
pub const COMPARISON: u64 = 15;

/// Tag of the images that a Fisher information is estimated on.
pub const FISHER: u64 = 16;
/// Tag of the order of the reference pairs, where they are shuffled.
pub const REFERENCE_ORDER: u64 = 17;
/// Images held out of a training set.
pub const HELD_OUT: u64 = 18;

/// A number for a text, to derive a seed from.
pub fn of(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

/// A seed for the purpose `parts`, independent of those for other purposes.
pub fn derive(seed: u64, parts: &[u64]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    for part in parts {
        hash.update(part.to_le_bytes());
    }
    let digest = hash.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

/// `count` different numbers below `n` (all of them, in order, when `count` is `n` or more).
pub fn sample(n: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    if count < n {
        all.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        all.truncate(count);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_seeds_differ_by_purpose_and_samples_do_not_repeat() {
        assert_ne!(derive(1, &[REFERENCE, 0]), derive(1, &[REFERENCE, 1]));
        assert_ne!(derive(1, &[REFERENCE, 0]), derive(2, &[REFERENCE, 0]));
        let drawn = sample(100, 30, 7);
        assert_eq!(
            drawn
                .iter()
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
            30
        );
        assert_eq!(drawn, sample(100, 30, 7));
        assert_eq!(sample(3, 5, 7), [0, 1, 2]);
    }
}

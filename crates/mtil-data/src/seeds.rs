//! Seeds and random samples as pure functions of the run's seed and a purpose.
//!
//! No generator keeps a state between calls, so a resumed run has the same draws as an
//! uninterrupted one.
//!
//! ```
//! use mtil_data::seeds;
//!
//! let seed = seeds::derive(1, &[seeds::TRAIN_ORDER, 0]);
//! assert_eq!(seed, seeds::derive(1, &[seeds::TRAIN_ORDER, 0]));
//! assert_ne!(seed, seeds::derive(1, &[seeds::TRAIN_CROP, 0]));
//! assert_eq!(seeds::sample(100, 5, seed).len(), 5);
//! ```

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// Tag of the draw of reference pairs.
pub const REFERENCE: u64 = 1;
/// Tag of the order of training images.
pub const TRAIN_ORDER: u64 = 2;
/// Tag of the random crops of training images.
pub const TRAIN_CROP: u64 = 3;
/// Tag of the order of images in Gram accumulation.
pub const GRAM_ORDER: u64 = 4;
/// Tag of the random crops in Gram accumulation.
pub const GRAM_CROP: u64 = 5;
/// Tag of the order of distillation images.
pub const DISTILL_ORDER: u64 = 6;
/// Tag of the random texts for distillation.
pub const RANDOM_TEXTS: u64 = 7;
/// Tag of the order of rehearsal images.
pub const REHEARSAL_ORDER: u64 = 8;
/// Tag of the random crops of rehearsal images.
pub const REHEARSAL_CROP: u64 = 9;
/// Tag of the selection of images kept for rehearsal.
pub const REHEARSAL_SELECTION: u64 = 10;
/// Tag of the initial values of adapters.
pub const ADAPTERS: u64 = 11;
/// Tag of the noise and the dropout of adapters.
pub const ADAPTER_DRAWS: u64 = 12;
/// Tag of the random hidden layer of a ridge regression.
pub const HIDDEN_LAYER: u64 = 13;
/// Tag of the test images of a subsampled evaluation.
pub const EVALUATION: u64 = 14;
/// Tag of the images of a device comparison.
pub const COMPARISON: u64 = 15;
/// Tag of the images that the Fisher information is estimated on.
pub const FISHER: u64 = 16;
/// Tag of the order of the reference pairs, if they are shuffled.
pub const REFERENCE_ORDER: u64 = 17;
/// Tag of the images held out of a training set.
pub const HELD_OUT: u64 = 18;
/// Tag of the captions of training images.
pub const CAPTIONS: u64 = 19;
/// Tag of the captions of rehearsal images.
pub const REHEARSAL_CAPTIONS: u64 = 20;

/// Tag of the autoencoders that tell the task of an image.
pub const AUTOENCODERS: u64 = 21;
/// Tag of the initial clusters of image features.
pub const CLUSTERS: u64 = 22;
/// Tag of the samples of mixtures of image features.
pub const FEATURE_SAMPLES: u64 = 23;

/// Hashes a text to a number, for use as a purpose in [`derive()`].
pub fn hash_text(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

/// Derives a seed for the purpose `parts`, independent of the seeds for other purposes.
pub fn derive(seed: u64, parts: &[u64]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    for part in parts {
        hash.update(part.to_le_bytes());
    }
    let digest = hash.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

/// Samples `count` numbers below `n` without replacement.
///
/// Returns all of them in ascending order if `count` is at least `n`.
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

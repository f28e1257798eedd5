//! Batch order: the image indices of each step, a pure function of the seed and the step.

use std::sync::{Arc, Mutex};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use super::DataError;

/// A batch sampler that maps a step to image indices.
///
/// Every epoch visits every image once. The last batch of an epoch is smaller if the batch size
/// does not divide the number of images.
///
/// ```
/// use mtil_data::data::BatchOrder;
///
/// let order = BatchOrder::sequential(5, 2)?;
/// assert_eq!(order.steps_per_epoch(), 3);
/// assert_eq!(order.indices(0), [0, 1]);
/// assert_eq!(order.indices(2), [4]);
/// # Ok::<(), mtil_data::data::DataError>(())
/// ```
#[derive(Debug)]
pub struct BatchOrder {
    len: usize,
    batch: usize,
    /// `None` for index order in every epoch.
    seed: Option<u64>,
    /// Epoch and permutation of the last call.
    epoch: Mutex<Option<(u64, Arc<[usize]>)>>,
}

impl BatchOrder {
    /// Creates a shuffled order: batches of `batch` out of `len` images.
    ///
    /// Each epoch has its own permutation. The permutation of epoch e depends on `(seed, e)` only,
    /// so a run can resume at any step.
    ///
    /// # Errors
    /// [`DataError::Setting`] if `len` or `batch` is zero.
    pub fn new(len: usize, batch: usize, seed: u64) -> Result<Self, DataError> {
        Self::build(len, batch, Some(seed))
    }

    /// Creates a sequential order: step k is batch `k mod n` of the n batches in index order.
    ///
    /// It serves evaluation, and the reference pairs of GNSP
    /// (`src/models/finetune_gnsp.py`: no shuffle, repeated cyclically).
    ///
    /// # Errors
    /// [`DataError::Setting`] if `len` or `batch` is zero.
    pub fn sequential(len: usize, batch: usize) -> Result<Self, DataError> {
        Self::build(len, batch, None)
    }

    fn build(len: usize, batch: usize, seed: Option<u64>) -> Result<Self, DataError> {
        for (name, value) in [("number of images", len), ("batch size", batch)] {
            if value == 0 {
                return Err(DataError::Setting {
                    name,
                    value: "0".into(),
                    must: "at least 1",
                });
            }
        }
        Ok(Self {
            len,
            batch,
            seed,
            epoch: Mutex::new(None),
        })
    }

    /// Returns the number of steps in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.len.div_ceil(self.batch) as u64
    }

    /// Returns the number of images.
    pub fn images(&self) -> usize {
        self.len
    }

    /// Returns the image indices of `step`. Steps are numbered from 0 across all epochs.
    pub fn indices(&self, step: u64) -> Vec<usize> {
        let per_epoch = self.steps_per_epoch();
        // The remainder is below `steps_per_epoch`, so it fits into a `usize`.
        let start = (step % per_epoch) as usize * self.batch;
        let end = (start + self.batch).min(self.len);
        match self.seed {
            None => (start..end).collect(),
            Some(seed) => self.permutation(seed, step / per_epoch)[start..end].to_vec(),
        }
    }

    fn permutation(&self, seed: u64, epoch: u64) -> Arc<[usize]> {
        let mut cached = self.epoch.lock().unwrap_or_else(|e| e.into_inner());
        match &*cached {
            Some((e, order)) if *e == epoch => order.clone(),
            _ => {
                let mut rng = rng_for("batch order", seed, &epoch.to_le_bytes());
                let order: Arc<[usize]> = permutation(self.len, &mut rng).into();
                *cached = Some((epoch, order.clone()));
                order
            }
        }
    }
}

/// Returns a generator seeded by a hash of the arguments.
pub(super) fn rng_for(purpose: &str, seed: u64, what: &[u8]) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(purpose.as_bytes());
    hash.update([0]);
    hash.update(seed.to_le_bytes());
    hash.update(what);
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// Returns a random permutation of `0..n` (Fisher-Yates).
///
/// Implemented here so that it does not change with the version of `rand`. The bias of the
/// multiply-shift draw is below `n / 2^64`.
pub(super) fn permutation(n: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let j = ((u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_image_once_and_keeps_the_partial_batch() {
        let order = BatchOrder::new(10, 4, 7).unwrap();
        assert_eq!(order.steps_per_epoch(), 3);
        for epoch in 0..3 {
            let sizes: Vec<_> = (0..3).map(|k| order.indices(epoch * 3 + k).len()).collect();
            assert_eq!(sizes, [4, 4, 2]);
            let mut all: Vec<_> = (0..3).flat_map(|k| order.indices(epoch * 3 + k)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn order_depends_on_seed_and_epoch_only() {
        let a = BatchOrder::new(50, 8, 1).unwrap();
        let b = BatchOrder::new(50, 8, 1).unwrap();
        // `b` starts at a late step, as a resumed run does.
        let late = b.indices(20);
        assert_eq!((0..=20).map(|k| a.indices(k)).last().unwrap(), late);
        assert_eq!(a.indices(0), b.indices(0));
        assert_ne!(a.indices(0), a.indices(7), "epochs differ");
        assert_ne!(a.indices(0), BatchOrder::new(50, 8, 2).unwrap().indices(0));
    }

    #[test]
    fn sequential_order_repeats() {
        let order = BatchOrder::sequential(5, 2).unwrap();
        let steps: Vec<_> = (0..4).map(|k| order.indices(k)).collect();
        assert_eq!(steps, [vec![0, 1], vec![2, 3], vec![4], vec![0, 1]]);
    }

    #[test]
    fn a_batch_larger_than_the_data_is_the_data() {
        let order = BatchOrder::new(3, 100, 0).unwrap();
        assert_eq!(order.steps_per_epoch(), 1);
        assert_eq!(order.indices(5).len(), 3);
    }

    #[test]
    fn zero_is_refused() {
        assert!(BatchOrder::new(0, 4, 0).is_err());
        let error = BatchOrder::sequential(4, 0).unwrap_err().to_string();
        assert!(error.contains("batch size is 0"), "{error}");
    }
}

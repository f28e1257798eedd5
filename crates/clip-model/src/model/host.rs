//! Data-parallel encoding on the CPU.
//!
//! Burn's CPU backend parallelises matrix products, but runs most operations between them on one
//! core. Images and texts are independent of each other, so a batch is split into chunks (texts
//! that share prefixes into trees), and each chunk goes through the whole tower on its own thread.
//! The split does not depend on the number of cores: products of other sizes may round differently,
//! and results must have the same bits everywhere. An accelerator takes the whole batch at once,
//! and an autodiff graph must be built in one place.

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

/// Returns whether tensors on `device` are computed by threads of this process, without autodiff.
pub(super) fn is_host(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    {
        !device.is_autodiff() && *device == Device::flex()
    }
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// Encodes the chunks in parallel and concatenates their features.
pub(super) fn encode_parallel<T: Send>(
    chunks: Vec<T>,
    encode: impl Fn(T) -> Tensor<2> + Send + Sync,
) -> Tensor<2> {
    Tensor::cat(chunks.into_par_iter().map(encode).collect(), 0)
}

/// Approximate number of items in a chunk. Smaller chunks make small matrix products, larger ones
/// leave cores idle.
const CHUNK_SIZE: usize = 8;

/// Splits `count` items into ranges of nearly equal size.
pub(super) fn chunk_ranges(count: usize) -> Vec<std::ops::Range<usize>> {
    let chunks = count.div_ceil(CHUNK_SIZE).max(1);
    (0..chunks)
        .map(|i| i * count / chunks..(i + 1) * count / chunks)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_partition_the_items() {
        for count in [1, 2, 3, 8, 17, 1000] {
            let chunks = chunk_ranges(count);
            assert_eq!(chunks[0].start, 0);
            assert_eq!(chunks[chunks.len() - 1].end, count);
            assert!(chunks.windows(2).all(|p| p[0].end == p[1].start));
            assert!(chunks.iter().all(|p| !p.is_empty()));
        }
    }
}

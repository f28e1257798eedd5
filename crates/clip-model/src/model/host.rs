//! Using all processors of a host.
//!
//! Burn's host backend spreads matrix products over the processors and runs most of what lies
//! between them on one. Images and texts do not know of each other, so a batch is cut into parts
//! (texts that begin alike into trees), and each goes through the whole tower alone. How it is cut
//! does not depend on the number of processors: products of other sizes may round otherwise, and
//! results are to have the same bits everywhere. An accelerator wants all at once, and a tape must
//! be built in one place.

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

/// Whether tensors on `device` are computed by this process's own threads, and without a tape.
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

/// The features of the parts, one below the other.
pub(super) fn encode_parts<T: Send>(
    parts: Vec<T>,
    encode: impl Fn(T) -> Tensor<2> + Send + Sync,
) -> Tensor<2> {
    Tensor::cat(parts.into_par_iter().map(encode).collect(), 0)
}

/// Items of a part, about: fewer make small products, and more leave processors without work.
const ITEMS: usize = 8;

/// Bounds that cut `count` items into parts of nearly the same size.
pub(super) fn parts(count: usize) -> Vec<std::ops::Range<usize>> {
    let parts = count.div_ceil(ITEMS).max(1);
    (0..parts)
        .map(|i| i * count / parts..(i + 1) * count / parts)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        for count in [1, 2, 3, 8, 17, 1000] {
            let parts = parts(count);
            assert_eq!(parts[0].start, 0);
            assert_eq!(parts[parts.len() - 1].end, count);
            assert!(parts.windows(2).all(|p| p[0].end == p[1].start));
            assert!(parts.iter().all(|p| !p.is_empty()));
        }
    }
}

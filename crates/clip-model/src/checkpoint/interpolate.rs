//! Interpolation of position embeddings for another image size.

use crate::{
    config::{VisionConfig, VisionKind},
    preprocess::{Interpolation, Taps, normalized_taps},
};

/// Interpolates position embeddings `[tokens, d]` from the patch grid of `from` to that of `to`.
///
/// The interpolation is bicubic with antialiasing, as in open_clip (`open_clip/model.py`,
/// `resize_pos_embed`). PyTorch's filter for it is Pillow's (`UpSampleKernel.cpp`, `aa_filter` of
/// `HelperInterpCubic`). The row of the class token is unchanged.
pub(super) fn resize_positions(
    values: &[f32],
    d: usize,
    from: &VisionConfig,
    to: &VisionConfig,
) -> Vec<f32> {
    let (old, new) = (from.grid(), to.grid());
    let extra = usize::from(from.kind != VisionKind::Siglip) * d;
    let (class, grid) = values.split_at(extra);
    let weights: Vec<_> =
        normalized_taps(Interpolation::Bicubic, old as u32, new as u32, 0..new).collect();
    // Horizontal pass, then vertical pass.
    let horizontal = resample(grid, old, d, &weights);
    let both = resample(&horizontal, 1, new * d, &weights);
    [class, &both].concat()
}

/// Resamples the middle axis of `[outer, n, inner]` values.
fn resample(values: &[f32], outer: usize, inner: usize, weights: &[Taps<f64>]) -> Vec<f32> {
    let row = values.len() / outer;
    let mut out = Vec::with_capacity(outer * weights.len() * inner);
    let mut sum = vec![0.0_f64; inner];
    for values in values.chunks_exact(row) {
        for taps in weights {
            sum.fill(0.0);
            for (cell, weight) in (taps.first..).zip(&taps.weights) {
                let cell = &values[cell * inner..(cell + 1) * inner];
                for (sum, value) in sum.iter_mut().zip(cell) {
                    *sum += weight * f64::from(*value);
                }
            }
            out.extend(sum.iter().map(|x| *x as f32));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(image: usize, kind: VisionKind) -> VisionConfig {
        VisionConfig {
            image_size: image,
            patch_size: 16,
            kind,
            ..VisionConfig::default()
        }
    }

    #[test]
    fn class_token_and_constant_grids_are_preserved() {
        let (from, to) = (config(64, VisionKind::Clip), config(112, VisionKind::Clip));
        let mut values = vec![9.0, -9.0];
        values.extend([2.5, 1.5].repeat(16));
        let resized = resize_positions(&values, 2, &from, &to);
        assert_eq!(resized.len(), (49 + 1) * 2);
        assert_eq!(resized[..2], [9.0, -9.0]);
        for pair in resized[2..].chunks(2) {
            assert!((pair[0] - 2.5).abs() < 1e-6 && (pair[1] - 1.5).abs() < 1e-6);
        }
    }

    #[test]
    fn same_size_is_the_identity() {
        let size = config(64, VisionKind::Siglip);
        let values: Vec<f32> = (0..16 * 3).map(|i| (i as f32).sin()).collect();
        assert_eq!(resize_positions(&values, 3, &size, &size), values);
    }

    #[test]
    fn rows_and_columns_are_not_mixed_up() {
        // Values that depend only on the row must still do so afterwards.
        let (from, to) = (
            config(64, VisionKind::Siglip),
            config(96, VisionKind::Siglip),
        );
        let values: Vec<f32> = (0..16).map(|i| (i / 4) as f32).collect();
        let resized = resize_positions(&values, 1, &from, &to);
        for row in resized.chunks(6) {
            assert!(row.iter().all(|x| (x - row[0]).abs() < 1e-6), "{row:?}");
        }
        assert!(resized[0] < resized[35]);
    }
}

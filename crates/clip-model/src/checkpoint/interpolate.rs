//! Position embeddings for another image size.

use crate::{
    config::{VisionConfig, VisionKind},
    preprocess::{Interpolation, Taps, shares},
};

/// Resizes the grid of position embeddings `[tokens, d]` from the grid of `from` to that of `to`
/// pixel by pixel, bicubic with anti-aliasing, as open_clip does (`open_clip/model.py`,
/// `resize_pos_embed`): PyTorch's kernel for that is Pillow's (`UpSampleKernel.cpp`, `aa_filter` of
/// `HelperInterpCubic`). The row of the class token stays.
pub(super) fn resize_positions(
    values: &[f32],
    d: usize,
    from: &VisionConfig,
    to: &VisionConfig,
) -> Vec<f32> {
    let (old, new) = (from.grid(), to.grid());
    let extra = usize::from(from.kind != VisionKind::Siglip) * d;
    let (class, grid) = values.split_at(extra);
    let weights: Vec<_> = shares(Interpolation::Bicubic, old as u32, new as u32, 0..new).collect();
    // Along x: rows stay, columns change; then along y.
    let wide = resample(grid, old, d, &weights);
    let tall = resample(&wide, 1, new * d, &weights);
    [class, &tall].concat()
}

/// For each of `outer` rows of `n` cells of `inner` values, the weighted sums of its cells.
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
    fn the_class_token_stays_and_a_constant_stays_constant() {
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
    fn the_same_size_changes_nothing() {
        let size = config(64, VisionKind::Siglip);
        let values: Vec<f32> = (0..16 * 3).map(|i| (i as f32).sin()).collect();
        assert_eq!(resize_positions(&values, 3, &size, &size), values);
    }

    #[test]
    fn rows_and_columns_are_not_mixed_up() {
        // Values that depend on the row only still do afterwards.
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

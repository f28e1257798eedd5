//! Position embeddings for another image size.

use crate::config::{VisionConfig, VisionKind};

/// Coefficient of the cubic kernel where anti-aliasing is on, as in Pillow (PyTorch `UpSampleKernel.cpp`,
/// `aa_filter` of `HelperInterpCubic`).
const A: f64 = -0.5;

/// Resizes the grid of position embeddings `[tokens, d]` from the grid of `from` to that of `to` pixel by pixel, bicubic
/// with anti-aliasing, as open_clip does (`open_clip/model.py`, `resize_pos_embed`). The row of the class token stays.
pub(super) fn resize_positions(
    values: &[f32],
    d: usize,
    from: &VisionConfig,
    to: &VisionConfig,
) -> Vec<f32> {
    let (old, new) = (from.grid(), to.grid());
    let extra = usize::from(from.kind != VisionKind::Siglip) * d;
    let (class, grid) = values.split_at(extra);
    let weights = weights(old, new);
    // Along x: rows stay, columns change; then along y.
    let wide = resample(grid, old, d, &weights);
    let tall = resample(&wide, 1, new * d, &weights);
    [class, &tall].concat()
}

/// For each of `outer` rows of `n` cells of `inner` values, the weighted sums of its cells.
fn resample(values: &[f32], outer: usize, inner: usize, weights: &[Vec<(usize, f64)>]) -> Vec<f32> {
    let row = values.len() / outer;
    let mut out = Vec::with_capacity(outer * weights.len() * inner);
    let mut sum = vec![0.0_f64; inner];
    for values in values.chunks_exact(row) {
        for taps in weights {
            sum.fill(0.0);
            for (cell, weight) in taps {
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

/// For each new cell, the old cells it takes from and how much of each.
fn weights(old: usize, new: usize) -> Vec<Vec<(usize, f64)>> {
    let scale = old as f64 / new as f64;
    // When shrinking the kernel is stretched over all cells it stands for.
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    (0..new)
        .map(|i| {
            let center = scale * (i as f64 + 0.5);
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(old);
            let taps: Vec<_> = (first..last)
                .map(|cell| (cell, cubic((cell as f64 - center + 0.5) / stretch)))
                .collect();
            let total: f64 = taps.iter().map(|(_, w)| w).sum();
            taps.into_iter().map(|(c, w)| (c, w / total)).collect()
        })
        .collect()
}

fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
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

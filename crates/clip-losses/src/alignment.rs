//! Modality alignment of image-text pairs with shared labels.

use burn::tensor::{Device, Tensor, TensorData};

use crate::smoothed_soft_cross_entropy;

/// Returns the target probabilities of image-text pairs, where all pairs of equal label match.
///
/// `Y[i, j] = 1[ℓ_i = ℓ_j] / Σ_k 1[ℓ_i = ℓ_k]`: rows sum to one. The matrix is symmetric, so it
/// serves both directions (GNSP `src/models/finetune_gnsp.py:245-362`). It is the identity if all
/// labels differ.
///
/// # Shapes
///
/// - labels: `[R]`, one per pair; only their equality matters
/// - output: `[R, R]`
pub fn alignment_targets(labels: &[usize], device: &Device) -> Tensor<2> {
    let size = labels.len();
    let mut values = Vec::with_capacity(size * size);
    for own in labels {
        let share = 1.0 / labels.iter().filter(|other| *other == own).count() as f32;
        values.extend(
            labels
                .iter()
                .map(|other| if other == own { share } else { 0.0 }),
        );
    }
    Tensor::from_data(TensorData::new(values, [size, size]), device)
}

/// Cross-entropy of the pair logits against [`alignment_targets`], images to texts plus texts to
/// images, with label smoothing.
///
/// `CE(Z, Y) + CE(Zᵀ, Y)` with the cross-entropy of [`smoothed_soft_cross_entropy`]: the sum of the
/// two directions, not their mean. This is GNSP's modality-alignment loss without its factor λ
/// (GNSP `src/models/finetune_gnsp.py:245-362`).
///
/// # Shapes
///
/// - student: `[R, R]`, images along rows and texts along columns
/// - targets: `[R, R]`, a constant, shared by both directions
/// - output: `[1]`
///
/// # Panics
///
/// If the student is not square, or the shapes differ.
pub fn modality_alignment(student: Tensor<2>, targets: Tensor<2>, smoothing: f64) -> Tensor<1> {
    smoothed_soft_cross_entropy(student.clone(), targets.clone(), smoothing)
        + smoothed_soft_cross_entropy(student.transpose(), targets, smoothing)
}

/// Returns the margin in logits between matching and other pairs that minimises
/// [`modality_alignment`] for pairs of different labels: `ln((1 − ε)·R / ε + 1)`, infinite without
/// smoothing.
///
/// A row of smoothed targets is `1 − ε + ε/R` for its own pair and `ε/R` for the others. The
/// cross-entropy is smallest where the softmax equals these targets. The loss pulls a model with a
/// larger margin towards this one, which moves its modality gap.
///
/// # Example
///
/// ```
/// // 64 pairs and the published smoothing.
/// assert!((clip_losses::alignment_margin(64, 0.2) - 5.55).abs() < 0.01);
/// ```
pub fn alignment_margin(pairs: usize, smoothing: f64) -> f64 {
    ((1.0 - smoothing) * pairs as f64 / smoothing + 1.0).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;

    #[test]
    fn loss_is_smallest_at_the_margin() {
        for (pairs, margin) in [(8, 3.497), (32, 4.860), (128, 6.240)] {
            assert!((alignment_margin(pairs, 0.2) - margin).abs() < 1e-3);
            let margin = alignment_margin(pairs, 0.2) as f32;
            let labels: Vec<usize> = (0..pairs).collect();
            let loss = |margin: f32| {
                let logit = |row: usize, column: usize| if row == column { margin } else { 0.0 };
                let logits = (0..pairs).flat_map(|i| (0..pairs).map(move |j| logit(i, j)));
                let logits: Vec<f32> = logits.collect();
                let x = Tensor::<2>::from_data(TensorData::new(logits, [pairs, pairs]), &plain());
                value(modality_alignment(
                    x,
                    alignment_targets(&labels, &plain()),
                    0.2,
                ))
            };
            assert!(loss(margin) < loss(margin - 0.2) && loss(margin) < loss(margin + 0.2));
        }
        assert_eq!(alignment_margin(32, 0.0), f64::INFINITY);
    }

    #[test]
    fn targets_are_shared_among_equal_labels() {
        let expected = [0.5, 0.0, 0.5, 0.0, 1.0, 0.0, 0.5, 0.0, 0.5];
        assert_close(alignment_targets(&[7, 3, 7], &plain()), &expected);
    }

    #[test]
    fn targets_are_symmetric_and_rows_sum_to_one() {
        let labels = [4, 4, 1, 9, 4, 1, 0];
        let targets = alignment_targets(&labels, &plain());
        assert_close(targets.clone().sum_dim(1), &[1.0; 7]);
        let transposed: Vec<f32> = targets
            .clone()
            .transpose()
            .into_data()
            .try_to_vec()
            .unwrap();
        assert_close(targets, &transposed);
    }

    #[test]
    fn matches_pytorch_in_both_directions() {
        let x = grid(3, 3, 4.0, 0.9, &autodiff()).require_grad();
        assert_loss(
            modality_alignment(x.clone(), alignment_targets(&[7, 3, 7], &plain()), 0.0),
            &x,
            5.90012404,
            &[
                0.0814306508,
                0.435287948,
                -0.275481569,
                0.243103462,
                -0.638250243,
                0.0645325106,
                -0.313736848,
                0.217684843,
                0.185429247,
            ],
        );
    }

    #[test]
    fn matches_pytorch_with_smoothing() {
        let x = grid(3, 3, 4.0, 0.9, &autodiff()).require_grad();
        assert_loss(
            modality_alignment(x.clone(), alignment_targets(&[7, 3, 7], &autodiff()), 0.2),
            &x,
            5.64970884,
            &[
                0.103652873,
                0.390843503,
                -0.253259347,
                0.198659018,
                -0.549361355,
                0.0200880661,
                -0.291514626,
                0.173240398,
                0.207651469,
            ],
        );
    }

    #[test]
    fn loss_is_invariant_to_permutations_of_pairs() {
        for seed in 0..8 {
            let x = random(4, 4, 10.0, seed, &plain());
            let order = [2, 0, 3, 1];
            let labels = [5, 2, 5, 8];
            let moved: Vec<usize> = order.iter().map(|i| labels[*i as usize]).collect();
            let index = || Tensor::from_ints(order, &plain());
            let before = modality_alignment(x.clone(), alignment_targets(&labels, &plain()), 0.2);
            let after = modality_alignment(
                x.select(0, index()).select(1, index()),
                alignment_targets(&moved, &plain()),
                0.2,
            );
            assert_close(after, &[value(before)]);
        }
    }

    #[test]
    #[should_panic]
    fn non_square_student_panics() {
        let x = random(2, 3, 1.0, 0, &plain());
        let _ = modality_alignment(x, alignment_targets(&[0, 1], &plain()), 0.2);
    }
}

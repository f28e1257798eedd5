//! CLIP's symmetric contrastive loss.

use burn::tensor::{Tensor, activation::log_softmax};

/// The symmetric contrastive loss of CLIP: the mean of the cross-entropies over rows (image to
/// text) and over columns (text to image), where row `i` matches column `i`.
///
/// `½ [ mean_i(−log softmax(Z_i)_i) + mean_j(−log softmax(Zᵀ_j)_j) ]`
/// (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
/// arXiv 2103.00020, figure 3).
///
/// # Shapes
///
/// - logits: `[B, B]`, already multiplied by the logit scale
/// - output: `[1]`
///
/// # Panics
///
/// If the logits are not square.
pub fn clip_contrastive(logits: Tensor<2>) -> Tensor<1> {
    let [rows, columns] = logits.dims();
    assert!(
        rows == columns,
        "contrastive logits must be square, got {rows} x {columns}"
    );
    let matched = Tensor::<2>::eye(rows, &logits.device().inner());
    let both = log_softmax(logits.clone(), 1) + log_softmax(logits, 0);
    (both * matched).sum() / (-2.0 * rows as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;

    #[test]
    fn matches_pytorch() {
        let x = grid(3, 3, 4.0, 0.9, &autodiff()).require_grad();
        assert_loss(
            clip_contrastive(x.clone()),
            &x,
            2.07738006,
            &[
                -0.125951341,
                0.217643974,
                0.0289258821,
                0.121551731,
                -0.319125122,
                0.0322662553,
                0.00979824259,
                0.108842421,
                -0.0739520431,
            ],
        );
    }

    #[test]
    fn loss_is_symmetric_in_images_and_texts() {
        for seed in 0..8 {
            let x = random(5, 5, 30.0, seed, &plain());
            let swapped = clip_contrastive(x.clone().transpose());
            assert_close(swapped, &[value(clip_contrastive(x))]);
        }
    }

    #[test]
    fn loss_of_equal_logits_is_the_log_of_the_batch_size() {
        assert_close(
            clip_contrastive(Tensor::zeros([6, 6], &plain())),
            &[6f32.ln()],
        );
    }

    #[test]
    fn large_logits_stay_finite() {
        for scale in [1e3, 1e6, 1e30] {
            let x = random(4, 4, scale, 3, &autodiff()).require_grad();
            let loss = clip_contrastive(x.clone());
            assert!(value(loss.clone().inner()).is_finite());
            let largest: f32 = x.grad(&loss.backward()).unwrap().abs().max().into_scalar();
            assert!(largest <= 1.0);
        }
    }

    #[test]
    #[should_panic(expected = "square")]
    fn non_square_logits_panic() {
        let _ = clip_contrastive(Tensor::zeros([2, 3], &plain()));
    }
}

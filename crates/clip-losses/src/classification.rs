//! Cross-entropy with label smoothing, against class indices or probabilities.

use burn::tensor::{Int, Tensor, activation::log_softmax, assert_shape};

/// Cross-entropy of logits against class indices, with label smoothing, mean over rows.
///
/// `mean_b [ (1−ε)(−log p[b, y_b]) + (ε/C) Σ_c (−log p[b, c]) ]` with `p = softmax(logits)` over
/// rows. The smoothing mass is spread over all `C` classes, the true one included
/// (GNSP `src/models/finetune_gnsp.py:245-362`; the convention of PyTorch's
/// `cross_entropy(label_smoothing = ε)`).
///
/// # Shapes
///
/// - logits: `[B, C]`
/// - targets: `[B]`, class indices in `0..C`, on the plain device or the autodiff one
/// - output: `[1]`
///
/// # Panics
///
/// If the shapes disagree. Indices are not checked, since reading them back would wait for the
/// device: for one outside of `0..C` the behaviour depends on the backend (Flex panics).
pub fn smoothed_cross_entropy(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    smoothing: f64,
) -> Tensor<1> {
    let [batch, _] = logits.dims();
    assert_shape!(targets, [batch]);
    let log_probabilities = log_softmax(logits, 1);
    let chosen = log_probabilities
        .clone()
        .gather(1, targets.unsqueeze_dim(1));
    if smoothing == 0.0 {
        return chosen.mean().neg();
    }
    // The mean over a row is Σ_c / C, so the second term carries ε alone.
    (chosen.mean() * (1.0 - smoothing) + log_probabilities.mean() * smoothing).neg()
}

/// Cross-entropy of logits against rows of probabilities, with label smoothing, mean over rows.
///
/// `mean_i [ −Σ_j ((1−ε) Y[i, j] + ε/C) · log softmax(logits_i)_j ]`
/// (GNSP `src/models/finetune_gnsp.py:245-362`).
///
/// # Shapes
///
/// - logits: `[B, C]`
/// - targets: `[B, C]`, rows that sum to one; a constant, on the plain device or the autodiff one
/// - output: `[1]`
///
/// # Panics
///
/// If the shapes differ.
pub fn smoothed_soft_cross_entropy(
    logits: Tensor<2>,
    targets: Tensor<2>,
    smoothing: f64,
) -> Tensor<1> {
    let [batch, classes] = logits.dims();
    assert_shape!(targets, [batch, classes]);
    let targets = targets.inner() * (1.0 - smoothing) + smoothing / classes as f64;
    soft_cross_entropy(logits, targets)
}

/// Computes `mean_i [ −Σ_j Y[i, j] · log softmax(logits_i)_j ]`. `targets` must be a tensor without
/// autodiff.
pub(crate) fn soft_cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Tensor<1> {
    (log_softmax(logits, 1) * targets).sum_dim(1).mean().neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use burn::tensor::{Device, Tolerance};

    fn logits(device: &Device) -> Tensor<2> {
        grid(3, 4, 5.0, 1.7, device)
    }

    fn labels(device: &Device) -> Tensor<1, Int> {
        Tensor::from_ints([2, 0, 3], device)
    }

    fn probabilities(device: &Device) -> Tensor<2> {
        Tensor::from_floats(
            [
                [0.5, 0.5, 0.0, 0.0],
                [0.0, 0.0, 1.0, 0.0],
                [0.1, 0.2, 0.3, 0.4],
            ],
            device,
        )
    }

    #[test]
    fn hard_targets_match_pytorch() {
        let x = logits(&autodiff()).require_grad();
        assert_loss(
            smoothed_cross_entropy(x.clone(), labels(&autodiff()), 0.0),
            &x,
            3.5256489,
            &[
                0.307185031,
                0.000601349316,
                -0.333312264,
                0.0255258835,
                -0.191839607,
                7.89016122e-05,
                0.000118734456,
                0.19164197,
                0.0155321556,
                1.74611321e-05,
                0.00101431594,
                -0.0165639327,
            ],
        );
    }

    #[test]
    fn smoothed_hard_targets_match_pytorch() {
        let gradient = [
            0.290518365,
            -0.0160653174,
            -0.283312264,
            0.00885921686,
            -0.141839607,
            -0.0165877651,
            -0.0165479322,
            0.174975304,
            -0.00113451104,
            -0.0166492055,
            -0.0156523507,
            0.0334360673,
        ];
        // Class indices may live on either side.
        for targets in [labels(&autodiff()), labels(&plain())] {
            let x = logits(&autodiff()).require_grad();
            assert_loss(
                smoothed_cross_entropy(x.clone(), targets, 0.2),
                &x,
                3.73895431,
                &gradient,
            );
        }
    }

    #[test]
    fn soft_targets_match_pytorch() {
        let x = logits(&autodiff()).require_grad();
        assert_loss(
            smoothed_soft_cross_entropy(x.clone(), probabilities(&plain()), 0.0),
            &x,
            5.0588632,
            &[
                0.140518365,
                -0.166065317,
                2.10691122e-05,
                0.0255258835,
                0.141493727,
                7.89016122e-05,
                -0.333214599,
                0.19164197,
                -0.0178011777,
                -0.0666492055,
                -0.0989856841,
                0.183436067,
            ],
        );
    }

    #[test]
    fn smoothed_soft_targets_match_pytorch() {
        for targets in [probabilities(&plain()), probabilities(&autodiff())] {
            let x = logits(&autodiff()).require_grad();
            assert_loss(
                smoothed_soft_cross_entropy(x.clone(), targets, 0.2),
                &x,
                4.96552575,
                &[
                    0.157185031,
                    -0.149398651,
                    -0.0166455976,
                    0.00885921686,
                    0.12482706,
                    -0.0165877651,
                    -0.283214599,
                    0.174975304,
                    -0.0278011777,
                    -0.0699825389,
                    -0.0956523507,
                    0.193436067,
                ],
            );
        }
    }

    #[test]
    fn loss_of_plain_logits_is_plain() {
        let loss = smoothed_soft_cross_entropy(logits(&plain()), probabilities(&autodiff()), 0.2);
        assert!(!loss.is_autodiff());
    }

    #[test]
    fn large_logits_stay_finite() {
        for scale in [1e-6, 1.0, 1e3, 1e6, 1e30] {
            for seed in 0..8 {
                let x = random(5, 7, scale, seed, &autodiff()).require_grad();
                let targets = Tensor::from_ints([0, 1, 2, 3, 6], &autodiff());
                let loss = smoothed_cross_entropy(x.clone(), targets, 0.2);
                assert!(value(loss.clone().inner()).is_finite(), "scale {scale}");
                let gradient = x.grad(&loss.backward()).unwrap();
                assert!(gradient.abs().max().into_scalar::<f32>() <= 1.0);
            }
        }
    }

    #[test]
    fn loss_is_invariant_to_permutations_of_classes() {
        for seed in 0..8 {
            let x = random(4, 5, 10.0, seed, &plain());
            let order = [3, 0, 4, 1, 2]; // column j of the permuted logits is column order[j]
            let labels = [4, 3, 0, 2];
            let renamed: Vec<i32> = labels
                .iter()
                .map(|label| order.iter().position(|old| old == label).unwrap() as i32)
                .collect();
            let before =
                smoothed_cross_entropy(x.clone(), Tensor::from_ints(labels, &plain()), 0.2);
            let after = smoothed_cross_entropy(
                x.select(1, Tensor::from_ints(order, &plain())),
                Tensor::from_ints(renamed.as_slice(), &plain()),
                0.2,
            );
            before
                .into_data()
                .assert_approx_eq::<f32>(&after.into_data(), Tolerance::rel_abs(1e-5, 1e-5));
        }
    }

    #[test]
    fn hard_targets_are_one_hot_soft_targets() {
        for smoothing in [0.0, 0.1, 0.5, 1.0] {
            let one_hot: Tensor<2, Int> = labels(&plain()).one_hot(4);
            let hard = smoothed_cross_entropy(logits(&plain()), labels(&plain()), smoothing);
            let soft = smoothed_soft_cross_entropy(logits(&plain()), one_hot.float(), smoothing);
            hard.into_data()
                .assert_approx_eq::<f32>(&soft.into_data(), Tolerance::rel_abs(1e-5, 1e-6));
        }
    }

    #[test]
    #[should_panic]
    fn missing_target_panics() {
        let _ = smoothed_cross_entropy(logits(&plain()), Tensor::from_ints([0, 1], &plain()), 0.2);
    }
}

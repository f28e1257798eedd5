//! Knowledge distillation between logit matrices.

use burn::tensor::{
    Tensor,
    activation::{log_softmax, softmax},
    assert_shape,
};

/// Softened cross-entropy of the student's rows against the teacher's, times `T²`, mean over rows.
///
/// `T² · mean_r [ −Σ_c softmax(teacher_r / T)_c · log softmax(student_r / T)_c ]` (GNSP
/// `src/models/finetune_gnsp.py:245-362` and `helpers.py:75-78`). It is a cross-entropy, not a
/// Kullback-Leibler divergence. The two differ by the teacher's entropy, a constant: their
/// gradients are equal, but the minimum of the cross-entropy is `T²` times that entropy, not zero.
///
/// # Shapes
///
/// - teacher, student: `[R, C]`; the teacher is a constant, on the plain device or the autodiff one
/// - output: `[1]`, on the student's device
///
/// # Panics
///
/// If the shapes differ.
pub fn distillation(teacher: Tensor<2>, student: Tensor<2>, temperature: f64) -> Tensor<1> {
    let [rows, columns] = student.dims();
    assert_shape!(teacher, [rows, columns]);
    let soft_targets = softmax(teacher.inner() / temperature, 1);
    let log_probabilities = log_softmax(student / temperature, 1);
    (log_probabilities * soft_targets).sum_dim(1).mean() * (-temperature * temperature)
}

/// [`distillation`] over rows plus [`distillation`] over columns of an image-text logit matrix.
///
/// This is GNSP's contrastive distillation without its factor λ
/// (GNSP `src/models/finetune_gnsp.py:245-362`).
///
/// # Shapes
///
/// - teacher, student: `[images, texts]`; the teacher is a constant
/// - output: `[1]`, on the student's device
///
/// # Panics
///
/// If the shapes differ.
pub fn contrastive_distillation(
    teacher: Tensor<2>,
    student: Tensor<2>,
    temperature: f64,
) -> Tensor<1> {
    distillation(teacher.clone(), student.clone(), temperature)
        + distillation(teacher.transpose(), student.transpose(), temperature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use burn::tensor::{Device, Tolerance};

    fn teacher(device: &Device) -> Tensor<2> {
        grid(3, 3, 6.0, 2.3, device)
    }

    fn student() -> Tensor<2> {
        grid(3, 3, 4.0, 0.9, &autodiff()).require_grad()
    }

    #[test]
    fn one_direction_matches_pytorch() {
        for teacher in [teacher(&plain()), teacher(&autodiff())] {
            let x = student();
            assert_loss(
                distillation(teacher, x.clone(), 2.0),
                &x,
                4.29092976,
                &[
                    -0.188214999,
                    0.328055882,
                    -0.139840883,
                    0.289977526,
                    0.120426198,
                    -0.410403724,
                    0.0420460908,
                    0.243297175,
                    -0.285343266,
                ],
            );
        }
    }

    #[test]
    fn both_directions_match_pytorch() {
        let x = student();
        assert_loss(
            contrastive_distillation(teacher(&plain()), x.clone(), 2.0),
            &x,
            9.8195901,
            &[
                -0.212831311,
                0.63047186,
                -0.0685605942,
                0.222268338,
                0.00604384517,
                -0.67464358,
                0.13437159,
                0.0552635506,
                -0.0923836987,
            ],
        );
    }

    #[test]
    fn no_gradient_reaches_the_teacher() {
        let teacher = teacher(&autodiff()).require_grad();
        let gradients = distillation(teacher.clone(), student(), 2.0).backward();
        assert!(teacher.grad(&gradients).is_none());
    }

    #[test]
    fn loss_of_a_plain_student_is_plain() {
        let loss = distillation(teacher(&autodiff()), teacher(&plain()), 2.0);
        assert!(!loss.is_autodiff());
    }

    #[test]
    fn gradient_is_zero_at_the_teacher() {
        for seed in 0..8 {
            let x = random(4, 6, 20.0, seed, &autodiff()).require_grad();
            let teacher = x.clone().inner();
            let gradients = contrastive_distillation(teacher, x.clone(), 2.0).backward();
            let largest: f32 = x.grad(&gradients).unwrap().abs().max().into_scalar();
            assert!(largest < 1e-6, "{largest}");
        }
    }

    #[test]
    fn loss_is_smallest_at_the_teacher() {
        for seed in 0..8 {
            let teacher = random(4, 6, 5.0, seed, &plain());
            let other = random(4, 6, 5.0, seed + 100, &plain());
            let least = value(distillation(teacher.clone(), teacher.clone(), 2.0));
            assert!(value(distillation(teacher, other, 2.0)) > least);
        }
    }

    #[test]
    fn loss_is_invariant_to_permutations() {
        let order = || Tensor::from_ints([3, 1, 0, 2], &plain());
        for seed in 0..8 {
            let teacher = random(4, 4, 10.0, seed, &plain());
            let student = random(4, 4, 10.0, seed + 50, &plain());
            let before = contrastive_distillation(teacher.clone(), student.clone(), 2.0);
            for dim in 0..2 {
                let after = contrastive_distillation(
                    teacher.clone().select(dim, order()),
                    student.clone().select(dim, order()),
                    2.0,
                );
                before
                    .to_data()
                    .assert_approx_eq::<f32>(&after.into_data(), Tolerance::rel_abs(1e-5, 1e-5));
            }
        }
    }

    #[test]
    fn large_logits_stay_finite() {
        for scale in [1e-6, 1e3, 1e6, 1e30] {
            let teacher = random(5, 5, scale, 1, &plain());
            let x = random(5, 5, scale, 2, &autodiff()).require_grad();
            let loss = contrastive_distillation(teacher, x.clone(), 2.0);
            assert!(value(loss.clone().inner()).is_finite(), "scale {scale}");
            let largest: f32 = x.grad(&loss.backward()).unwrap().abs().max().into_scalar();
            assert!(largest.is_finite(), "scale {scale}");
        }
    }
}

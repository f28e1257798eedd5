//! Displacement of a modality's mean embedding.

use burn::tensor::Tensor;

/// Squared distance between the mean rows of a student and a teacher, `‖μ − μ⁰‖²`.
///
/// Summed over both modalities, it fixes a direction that neither
/// [`contrastive_distillation`](crate::contrastive_distillation) nor
/// [`modality_alignment`](crate::modality_alignment) constrains: a vector added to all images adds
/// a constant to the logits of a text. A softmax over images is invariant to it, but it moves the
/// modality gap `‖μ_I − μ_T‖`. This loss is a proposal of this project.
///
/// # Shapes
///
/// - student: `[rows, features]`, normalized
/// - teacher: `[rows, features]`, normalized, a constant
/// - output: `[1]`
///
/// # Panics
///
/// If the features differ in width.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use clip_losses::mean_displacement;
///
/// let device = Device::default();
/// let teacher = Tensor::<2>::from_floats([[1.0, 0.0], [0.0, 1.0]], &device);
/// let student = Tensor::<2>::from_floats([[1.0, 0.0], [1.0, 0.0]], &device);
/// let displacement: f32 = mean_displacement(student, teacher).into_scalar();
/// assert_eq!(displacement, 0.5);
/// ```
pub fn mean_displacement(student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
    (student.mean_dim(0) - teacher.mean_dim(0)).square().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;

    #[test]
    fn gradient_is_equal_for_all_rows() {
        // d/dx_i ‖μ − μ⁰‖² = 2 (μ − μ⁰) / rows.
        let x = grid(3, 2, 1.0, 0.7, &autodiff()).require_grad();
        let teacher = grid(3, 2, 0.5, 1.3, &plain());
        let mean = |x: Tensor<2>| -> Vec<f32> { x.mean_dim(0).into_data().try_to_vec().unwrap() };
        let (own, theirs) = (mean(x.clone().inner()), mean(teacher.clone()));
        let moved: Vec<f32> = own.iter().zip(&theirs).map(|(a, b)| a - b).collect();
        let gradient: Vec<f32> = (0..3)
            .flat_map(|_| moved.iter().map(|d| 2.0 * d / 3.0))
            .collect();
        let loss = moved.iter().map(|d| d * d).sum();
        assert_loss(mean_displacement(x.clone(), teacher), &x, loss, &gradient);
    }

    #[test]
    fn displacement_of_the_teacher_is_zero() {
        let x = random(4, 3, 1.0, 1, &plain());
        assert_eq!(value(mean_displacement(x.clone(), x)), 0.0);
    }
}

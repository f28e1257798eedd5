//! Null-space projection of an optimizer's gradients or updates.

use std::sync::Arc;

use burn::optim::{LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Layout, NullSpace};

/// Tensor that is projected in an optimizer step: the gradient or the update.
///
/// # Example
///
/// ```
/// use gnsp_optimizer::{Policy, Site};
///
/// assert_eq!(Policy::default().site, Site::Update);
/// let as_published = Policy::default().with_site(Site::Gradient);
/// assert_eq!(as_published, Policy::gnsp());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Site {
    /// `"gradient"`: projects the gradient before the inner optimizer's step, as the published GNSP
    /// code does (GNSP `src/models/finetune_gnsp.py:429-450`).
    ///
    /// The step then stays in the null space only for optimizers that are linear in the gradient.
    /// The element-wise division of Adam and the signs of Lion mix the coordinates, and weight
    /// decay adds a multiple of the weight.
    Gradient,
    /// `"update"`: projects the change of the weight after the inner optimizer's step. The step is
    /// in the null space for every inner optimizer.
    #[default]
    Update,
}

/// Optimizer of one parameter whose steps are projected onto a null space.
///
/// [`Protection::wrap`](crate::Protection::wrap) creates one for each protected parameter of a
/// module. The [`Layout`] of the parameter defines its input features. For inputs `x` recorded in
/// the Gram matrix, a step `Δ = P·Δ` changes the outputs by `x·Δ ≈ 0`.
///
/// The state is that of the inner optimizer, so their checkpoints are interchangeable.
///
/// # Accuracy
///
/// The projected update is in the null space to better than `1e-6` of its norm. Adding it to the
/// weight rounds every entry of the result to `f32`, by at most `6e-8` of that entry. A step much
/// smaller than the weight therefore leaves up to `6e-8·‖w‖` in the protected directions,
/// independent of the projector. The resulting change of the outputs on recorded inputs, relative
/// to the outputs, is about `1e-7` per step and grows with the square root of the number of steps.
///
/// # Panics
///
/// A step panics if the parameter does not have the features of the null space.
/// [`Memory::protection`](crate::Memory::protection) checks this in advance.
///
/// # Example
///
/// ```
/// use std::sync::Arc;
///
/// use burn::optim::{Optimizer, SgdConfig};
/// use burn::tensor::{Device, Tensor};
/// use gnsp_optimizer::{Gram, Layout, NullSpace, Projected, RankRule, Site};
///
/// let gram = Gram::from_matrix(2, vec![1.0, 0.0, 0.0, 0.0])?;
/// let space = Arc::new(NullSpace::from_gram(&gram, RankRule::TailShare(0.1))?);
/// let sgd = SgdConfig::new().build();
/// let optimizer = Projected::new(sgd, Layout::InputsFirst, space, Site::Update);
///
/// let device = Device::default();
/// let (weight, gradient) = (Tensor::<2>::zeros([2, 1], &device), Tensor::ones([2, 1], &device));
/// let (weight, _) = optimizer.step(0.5, weight, gradient, None);
/// // Only the second feature, which had no inputs, is trained.
/// assert_eq!(weight.into_data().try_into_vec::<f32>().unwrap(), [0.0, -0.5]);
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Projected<O> {
    inner: O,
    layout: Layout,
    null_space: Arc<NullSpace>,
    site: Site,
}

impl<O> Projected<O> {
    /// Wraps the optimizer `inner` for a parameter of this layout.
    pub fn new(inner: O, layout: Layout, null_space: Arc<NullSpace>, site: Site) -> Self {
        Self {
            inner,
            layout,
            null_space,
            site,
        }
    }
}

impl<O: Optimizer> Optimizer for Projected<O> {
    type State<const D: usize> = O::State<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        match self.site {
            Site::Gradient => {
                let shape = grad.dims();
                // A single pass, as published: the leak of the inner optimizer is much larger than
                // the rounding error that a second pass removes.
                let grad = self.null_space.project_once(self.layout.split(grad));
                self.inner
                    .step(lr, tensor, self.layout.join(grad, shape), state)
            }
            Site::Update => {
                let shape = tensor.dims();
                let (new, state) = self.inner.step(lr, tensor.clone(), grad, state);
                let change = self.layout.split(new - tensor.clone());
                let change = self.null_space.project_groups(change);
                (tensor + self.layout.join(change, shape), state)
            }
        }
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        O::to_device(state, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use crate::{Gram, RankRule};
    use burn::optim::decay::WeightDecayConfig;
    use burn::optim::momentum::MomentumConfig;
    use burn::optim::{AdamW, AdamWConfig, Lion, LionConfig, Sgd, SgdConfig};

    fn adamw(weight_decay: f32) -> AdamW {
        AdamWConfig::new()
            .with_epsilon(1e-8)
            .with_weight_decay(weight_decay)
            .build()
    }

    fn lion() -> Lion {
        LionConfig::new().with_weight_decay(0.1).build()
    }

    fn sgd() -> Sgd {
        SgdConfig::new()
            .with_momentum(Some(MomentumConfig::new()))
            .with_weight_decay(Some(WeightDecayConfig::new(0.1)))
            .build()
    }

    fn space(gram: &Gram, rule: RankRule) -> Arc<NullSpace> {
        Arc::new(NullSpace::from_gram(gram, rule).unwrap())
    }

    #[test]
    fn projected_gradients_through_adamw_match_pytorch() {
        let optimizer = Projected::new(
            adamw(0.0),
            Layout::InputsFirst,
            space(&reference_gram(), RankRule::TailShare(0.3)),
            Site::Gradient,
        );
        // The reference has PyTorch's layout [out, in].
        let mut weight = grid(2, 6, 0.5, 1.3).transpose();
        let mut state = None;
        for step in 0..3 {
            let grad = grid(2, 6, 1.0, 0.9 + f64::from(step)).transpose();
            (weight, state) = optimizer.step(0.01, weight, grad, state);
        }
        assert_close(
            &values(weight.transpose()),
            &[
                0.480595131,
                0.256206844,
                -0.359628498,
                -0.431898111,
                0.118298503,
                0.493473894,
                0.174282782,
                -0.429406968,
                -0.3924921,
                0.198239304,
                0.493301864,
                0.0802139695,
            ],
            2e-6,
        );
    }

    /// Trains a weight with random gradients of varying scale.
    fn train<O: Optimizer>(optimizer: &O, mut weight: Tensor<2>, steps: u64, lr: f64) -> Tensor<2> {
        let [rows, columns] = weight.dims();
        let mut state = None;
        for step in 0..steps {
            let scale = 10f32.powi((step % 5) as i32 - 2);
            let grad = random(rows, columns, scale, 1000 + step);
            (weight, state) = optimizer.step(lr, weight, grad, state);
        }
        weight
    }

    /// The leak of a training from a zero weight, which excludes the rounding error of the sum.
    fn leak_from_zero<O: Optimizer>(inner: O, space: &Arc<NullSpace>, site: Site) -> f32 {
        let optimizer = Projected::new(inner, Layout::InputsFirst, space.clone(), site);
        let weight = train(
            &optimizer,
            Tensor::zeros([space.features(), 24], &device()),
            20,
            1e-3,
        );
        space.residual_in_protected(weight.clone()) / norm(&weight)
    }

    #[test]
    fn projected_updates_do_not_leak_with_any_optimizer() {
        for (features, k) in [(48, 1), (48, 12), (48, 40), (200, 77)] {
            let space = space(&random_gram(60, features, 3), RankRule::FixedRank(k));
            for (name, leak) in [
                ("sgd", leak_from_zero(sgd(), &space, Site::Update)),
                ("adamw", leak_from_zero(adamw(0.1), &space, Site::Update)),
                ("lion", leak_from_zero(lion(), &space, Site::Update)),
            ] {
                assert!(leak < 1e-6, "{name} {features} {k}: {leak}");
            }
        }
    }

    #[test]
    fn projected_gradients_leak_through_adaptive_optimizers_only() {
        let space = space(&random_gram(60, 48, 3), RankRule::FixedRank(12));
        assert!(leak_from_zero(sgd(), &space, Site::Gradient) < 1e-6);
        assert!(leak_from_zero(adamw(0.0), &space, Site::Gradient) > 1e-2);
        assert!(leak_from_zero(lion(), &space, Site::Gradient) > 1e-2);
    }

    fn output_change<O: Optimizer>(inner: O, lr: f64) -> f32 {
        // Fewer recorded rows than features, all their directions protected.
        let (rows, features) = (20, 64);
        let inputs = random(rows, features, 1.0, 3);
        let space = space(&random_gram(rows, features, 3), RankRule::TailShare(1e-6));
        assert!(space.rank() >= rows && space.rank() < features);
        let weight = random(features, 32, 0.1, 4);
        let optimizer = Projected::new(inner, Layout::InputsFirst, space, Site::Update);
        let trained = train(&optimizer, weight.clone(), 100, lr);
        assert!(norm(&(trained.clone() - weight.clone())) > 1e-3 * norm(&weight));
        let before = inputs.clone().matmul(weight);
        norm(&(inputs.matmul(trained) - before.clone())) / norm(&before)
    }

    #[test]
    fn outputs_on_recorded_inputs_do_not_change() {
        for lr in [1e-2, 1e-3, 1e-4] {
            for (name, change) in [
                // Gradients reach 100 here: at the same rate the weight of SGD would grow a
                // hundredfold, and its rounding with it.
                ("sgd", output_change(sgd(), lr * 1e-2)),
                ("adamw", output_change(adamw(0.1), lr)),
                ("lion", output_change(lion(), lr)),
            ] {
                assert!(change < 1e-5, "{name} at {lr}: {change}");
            }
        }
    }

    #[test]
    fn the_layout_defines_the_input_features() {
        let space = space(&reference_gram(), RankRule::FixedRank(2));
        let sgd = SgdConfig::new().build();
        let step = |layout, zero, grad: Tensor<4>| {
            let optimizer = Projected::new(sgd.clone(), layout, space.clone(), Site::Update);
            optimizer.step(1.0, zero, grad, None).0
        };
        let grad = random(6, 12, 1.0, 8);
        let flat = space.project(grad.clone()).neg();
        let zero = Tensor::<4>::zeros([6, 3, 2, 2], &device());
        let moved = step(
            Layout::InputsFirst,
            zero,
            grad.clone().reshape([6, 3, 2, 2]),
        );
        assert_close(&values(moved), &values(flat.clone()), 1e-6);
        let zero = Tensor::<4>::zeros([12, 3, 2, 1], &device());
        let moved = step(
            Layout::InputsLast { groups: 1 },
            zero,
            grad.transpose().reshape([12, 3, 2, 1]),
        );
        assert_close(&values(moved), &values(flat.transpose()), 1e-6);
    }

    #[test]
    fn an_empty_protection_changes_nothing_and_a_full_one_freezes_the_weight() {
        let weight = random(6, 4, 1.0, 1);
        let nothing = space(&reference_gram(), RankRule::FixedRank(0));
        let all = space(&reference_gram(), RankRule::FixedRank(6));
        let free = train(&adamw(0.1), weight.clone(), 5, 1e-2);
        let gradient = Projected::new(
            adamw(0.1),
            Layout::InputsFirst,
            nothing.clone(),
            Site::Gradient,
        );
        assert_eq!(
            values(train(&gradient, weight.clone(), 5, 1e-2)),
            values(free.clone())
        );
        let update = Projected::new(adamw(0.1), Layout::InputsFirst, nothing, Site::Update);
        let trained = train(&update, weight.clone(), 5, 1e-2);
        assert_close(&values(trained), &values(free), 1e-6);
        let stopped = Projected::new(adamw(0.1), Layout::InputsFirst, all, Site::Update);
        assert_eq!(
            values(train(&stopped, weight.clone(), 5, 1e-2)),
            values(weight)
        );
    }
}

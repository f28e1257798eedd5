//! AdamW in one pass over the values of a parameter, on the host.

use burn::optim::{AdamW, AdamWConfig, AdamWState, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};

/// AdamW, in one pass on all processors where the parameters are `f32` on Burn's host backend.
///
/// Burn's [`AdamW`] makes eleven passes on one processor there. On other backends this optimizer
/// calls it. It has none of Burn's variants of AdamW. The state is Burn's, so that checkpoints of
/// the two are interchangeable.
///
/// The formulas are those of PyTorch (`torch/optim/adamw.py`, `_single_tensor_adamw`).
///
/// # Example
/// ```
/// use burn::optim::Optimizer;
/// use burn::tensor::{Device, Tensor};
/// use clip_kernels::{AdamWSettings, FusedAdamW};
///
/// let optimizer = FusedAdamW::new(AdamWSettings {
///     beta_1: 0.9,
///     beta_2: 0.999,
///     epsilon: 1e-8,
///     weight_decay: 0.01,
/// });
/// let device = Device::default();
/// let weight = Tensor::<1>::from_floats([1.0, -1.0], &device);
/// let gradient = Tensor::<1>::from_floats([0.5, 0.5], &device);
/// let (weight, _state) = optimizer.step(1e-3, weight, gradient, None);
/// assert_eq!(weight.dims(), [2]);
/// ```
#[derive(Clone)]
pub struct FusedAdamW {
    plain: AdamW,
    settings: AdamWSettings,
}

/// Hyper-parameters of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f32,
}

impl FusedAdamW {
    /// Creates the optimizer.
    pub fn new(settings: AdamWSettings) -> Self {
        let plain = AdamWConfig::new()
            .with_beta_1(settings.beta_1)
            .with_beta_2(settings.beta_2)
            .with_epsilon(settings.epsilon)
            .with_weight_decay(settings.weight_decay)
            .build();
        Self { plain, settings }
    }

    #[cfg(feature = "flex")]
    fn on_host<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, AdamWState<D>) {
        use crate::host::adamw::AdamW as Kernel;
        use burn::optim::AdaptiveMomentumState;
        let device = tensor.device();
        let mut state = state.unwrap_or_else(|| {
            let zeros = tensor.zeros_like();
            let momentum = AdaptiveMomentumState::new(0, zeros.clone(), zeros);
            AdamWState { momentum }
        });
        let momentum = &mut state.momentum;
        momentum.time += 1;
        // Owned data is updated in place: a handle left in the state would force a copy.
        let empty = Tensor::zeros([0; D], &device);
        let take = |moment: &mut Tensor<D>| std::mem::replace(moment, empty.clone()).into_data();
        let mut first = take(&mut momentum.moment_1);
        let mut second = take(&mut momentum.moment_2);
        let mut values = tensor.into_data();
        let grad = grad.into_data();
        let kernel = Kernel {
            learning_rate: lr,
            beta1: from_decimal(self.settings.beta_1),
            beta2: from_decimal(self.settings.beta_2),
            epsilon: from_decimal(self.settings.epsilon),
            weight_decay: from_decimal(self.settings.weight_decay),
        };
        let slices = (
            values.as_mut_slice::<f32>(),
            grad.as_slice::<f32>(),
            first.as_mut_slice::<f32>(),
            second.as_mut_slice::<f32>(),
        );
        let (Ok(p), Ok(g), Ok(m), Ok(v)) = slices else {
            unreachable!("only tensors of f32 come here")
        };
        kernel.step(momentum.time as u64, p, g, m, v);
        momentum.moment_1 = Tensor::from_data(first, &device);
        momentum.moment_2 = Tensor::from_data(second, &device);
        (Tensor::from_data(values, &device), state)
    }
}

/// Converts the shortest decimal form of `x`: `0.999_f32` widened is not `0.999_f64`, and one minus
/// it is off by 1e-5.
#[cfg(feature = "flex")]
fn from_decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| x.into())
}

impl Optimizer for FusedAdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        #[cfg(feature = "flex")]
        if crate::branches::on_host(&tensor) && !tensor.device().is_autodiff() {
            let (tensor, state) = self.on_host(lr, tensor, grad, state);
            return (tensor, Some(state));
        }
        self.plain.step(lr, tensor, grad, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        AdamW::to_device(state, device)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    fn values(seed: f32) -> Tensor<2> {
        let values: Vec<f32> = (0..600).map(|i| (i as f32 * seed).sin()).collect();
        Tensor::from_data(TensorData::new(values, [20, 30]), &Device::flex())
    }

    #[test]
    fn steps_match_burn() {
        let settings = AdamWSettings {
            beta_1: 0.9,
            beta_2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.1,
        };
        let fused = FusedAdamW::new(settings);
        let (mut ours, mut theirs) = (values(0.7), values(0.7));
        let (mut our_state, mut their_state) = (None, None);
        for step in 0..5 {
            let grad = values(1.3 + step as f32);
            (ours, our_state) = fused.step(0.01, ours, grad.clone(), our_state);
            (theirs, their_state) = fused.plain.step(0.01, theirs, grad, their_state);
        }
        let distance = |a: Tensor<2>, b: Tensor<2>| -> f32 {
            let values: Vec<f32> = (a - b).abs().max().into_data().try_into_vec().unwrap();
            values[0]
        };
        assert!(distance(ours, theirs) < 1e-6);
        let (ours, theirs) = (our_state.unwrap().momentum, their_state.unwrap().momentum);
        assert_eq!(ours.time, theirs.time);
        assert!(distance(ours.moment_1, theirs.moment_1) < 1e-6);
        assert!(distance(ours.moment_2, theirs.moment_2) < 1e-6);
    }
}

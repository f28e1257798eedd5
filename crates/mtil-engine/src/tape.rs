//! Modules on the tape, which keeps activations for the backward pass or has them computed again.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Tensor},
};

/// The device with its tape; with `checkpointing` activations are computed again in the backward
/// pass.
pub(crate) fn with_tape(device: &Device, checkpointing: bool) -> Device {
    let device = device.clone().autodiff();
    match checkpointing {
        true => device.gradient_checkpointing(),
        false => device,
    }
}

/// `module` for training on the tape of `device`, as a graph of its own. Its parameters take over
/// whether that tape keeps activations, which `Module::train` and `Module::fork` alone do not give
/// them; tensors that differ in it cannot meet in one operation.
pub(crate) fn on_tape<M: Module>(module: M, device: &Device) -> M {
    module.train().fork(device).map(&mut AsOn(device))
}

struct AsOn<'a>(&'a Device);

impl ModuleMapper for AsOn<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.0.gradient_checkpointing_strategy() {
            Some(strategy) => {
                param.map(|value| value.with_gradient_checkpointing_strategy(strategy))
            }
            None => param,
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::{nn::LinearConfig, optim::GradientsParams, tensor::Distribution};

    #[test]
    fn a_module_from_elsewhere_meets_inputs_of_the_tape() {
        let plain = Device::flex();
        let module = LinearConfig::new(3, 2).init(&plain);
        let x = Tensor::<2>::random([4, 3], Distribution::Default, &plain);
        let mut gradients = Vec::new();
        for checkpointing in [false, true] {
            let device = with_tape(&plain, checkpointing);
            let module = on_tape(module.clone(), &device);
            let x = Tensor::<2>::from_data(x.clone().into_data(), &device);
            let loss = module.forward(x).square().sum();
            let found = GradientsParams::from_grads(loss.backward(), &module);
            let weight = found.get::<2>(module.weight.id).unwrap();
            gradients.push(weight.into_data());
        }
        assert_eq!(gradients[0], gradients[1]);
    }
}

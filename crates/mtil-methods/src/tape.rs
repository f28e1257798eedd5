//! Autodiff devices and modules, with or without gradient checkpointing.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Tensor},
};

/// Returns the autodiff device. With `checkpointing`, activations are recomputed in the backward
/// pass.
pub fn autodiff_device(device: &Device, checkpointing: bool) -> Device {
    let device = device.clone().autodiff();
    match checkpointing {
        true => device.gradient_checkpointing(),
        false => device,
    }
}

/// Moves `module` to the autodiff `device` for training, with a graph of its own. Its parameters
/// get the checkpointing strategy of the device, which `Module::train` and `Module::fork` do not
/// set. Tensors of different strategies cannot be operands of one operation.
pub fn on_tape<M: Module>(module: M, device: &Device) -> M {
    module
        .train()
        .fork(device)
        .map(&mut SetCheckpointing(device))
}

struct SetCheckpointing<'a>(&'a Device);

impl ModuleMapper for SetCheckpointing<'_> {
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
    fn a_module_of_another_device_computes_with_and_without_checkpointing() {
        let plain = Device::flex();
        let module = LinearConfig::new(3, 2).init(&plain);
        let x = Tensor::<2>::random([4, 3], Distribution::Default, &plain);
        let mut gradients = Vec::new();
        for checkpointing in [false, true] {
            let device = autodiff_device(&plain, checkpointing);
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

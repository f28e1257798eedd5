//! Element-wise arithmetic on the parameters of whole models.

use std::collections::HashMap;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::Tensor,
};

/// Values of all float parameters of a module, each flattened, without autodiff.
#[derive(Clone)]
pub struct Weights(HashMap<ParamId, Tensor<1>>);

impl Weights {
    /// Collects the values of `module`.
    pub fn of<M: Module>(module: &M) -> Self {
        struct Collect(HashMap<ParamId, Tensor<1>>);
        impl ModuleVisitor for Collect {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.insert(param.id, flatten(param.val().inner()));
            }
        }
        let mut collect = Collect(HashMap::new());
        module.visit(&mut collect);
        Self(collect.0)
    }

    /// Returns the values of one parameter.
    pub fn get(&self, id: ParamId) -> Option<&Tensor<1>> {
        self.0.get(&id)
    }
}

fn flatten<const D: usize>(value: Tensor<D>) -> Tensor<1> {
    let elements = value.shape().num_elements();
    value.reshape([elements])
}

/// Replaces every parameter of `model` by `f` of its values and those of the same parameter in
/// `others`, all flattened and without autodiff.
pub(crate) fn combine<M: Module>(
    model: M,
    others: &[&M],
    f: impl Fn(Tensor<1>, &[Tensor<1>]) -> Tensor<1>,
) -> M {
    struct Combine<F> {
        others: Vec<Weights>,
        f: F,
    }
    impl<F: Fn(Tensor<1>, &[Tensor<1>]) -> Tensor<1>> ModuleMapper for Combine<F> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let others: Option<Vec<_>> = self
                .others
                .iter()
                .map(|o| o.get(param.id).cloned())
                .collect();
            let Some(others) = others else { return param };
            param.map(|value| {
                let shape = value.shape();
                (self.f)(flatten(value), &others).reshape(shape)
            })
        }
    }
    let others = others.iter().map(|o| Weights::of(*o)).collect();
    model.map(&mut Combine { others, f })
}

/// Returns `a · model + (1 − a) · other`.
pub(crate) fn interpolate<M: Module>(model: M, other: &M, a: f64) -> M {
    combine(model, &[other], |x, o| {
        x.mul_scalar(a) + o[0].clone().mul_scalar(1.0 - a)
    })
}

/// Calls `f` with the id, the flattened value and the flattened gradient (if any) of every
/// trainable parameter of `module`, and adds the returned tensor to the gradient.
pub fn add_to_gradients<M: Module>(
    module: &M,
    gradients: &mut GradientsParams,
    f: &mut dyn FnMut(ParamId, Tensor<1>, Option<Tensor<1>>) -> Option<Tensor<1>>,
) {
    struct Visitor<'a> {
        gradients: &'a mut GradientsParams,
        f: &'a mut dyn FnMut(ParamId, Tensor<1>, Option<Tensor<1>>) -> Option<Tensor<1>>,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            let value = param.val().inner();
            let shape = value.shape();
            let gradient = self.gradients.get::<D>(param.id);
            if let Some(added) = (self.f)(param.id, flatten(value), gradient.clone().map(flatten)) {
                let added = added.reshape(shape);
                let sum = match gradient {
                    Some(gradient) => gradient + added,
                    None => added,
                };
                self.gradients.register(param.id, sum);
            }
        }
    }
    module.visit(&mut Visitor { gradients, f });
}

/// Returns the number of trainable values.
pub fn count_trainable<M: Module>(module: &M) -> u64 {
    struct Count(u64);
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0 += param.base().shape().num_elements() as u64;
            }
        }
    }
    let mut count = Count(0);
    module.visit(&mut count);
    count.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{nn::LinearConfig, tensor::Device};

    fn host(module: &burn::nn::Linear) -> Vec<f32> {
        mtil_eval::eval::to_host(module.weight.val())
    }

    #[test]
    fn interpolation_keeps_the_parameter_ids() {
        let device = Device::flex();
        let a = LinearConfig::new(3, 2).init(&device);
        let b = combine(a.clone(), &[], |x, _| x.mul_scalar(3.0));
        assert_eq!(a.weight.id, b.weight.id);
        let half = interpolate(a.clone(), &b, 0.5);
        for (half, a) in host(&half).iter().zip(host(&a)) {
            assert!((half - 2.0 * a).abs() < 1e-6);
        }
    }

    #[test]
    fn gradients_are_added_to_trainable_parameters_only() {
        let device = Device::flex().autodiff();
        let mut module = LinearConfig::new(3, 2).init(&device);
        module.bias = module.bias.map(|b| b.set_require_grad(false));
        let x = Tensor::<2>::ones([1, 3], &device);
        let mut gradients =
            GradientsParams::from_grads(module.forward(x).sum().backward(), &module);
        let mut seen = 0;
        add_to_gradients(&module, &mut gradients, &mut |_, value, gradient| {
            seen += 1;
            assert!(gradient.is_some());
            Some(value.ones_like())
        });
        assert_eq!((seen, count_trainable(&module)), (1, 6));
        let gradient = gradients.get::<2>(module.weight.id).unwrap();
        assert_eq!(mtil_eval::eval::to_host(gradient), [2.0; 6]);
    }
}

//! Arithmetic on whole models: averages, interpolations, importances.

use std::collections::HashMap;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::Tensor,
};

/// The values of all float parameters of a module, each flat, on the plain device.
#[derive(Clone)]
pub(crate) struct Weights(HashMap<ParamId, Tensor<1>>);

impl Weights {
    /// Those of `module`.
    pub fn of<M: Module>(module: &M) -> Self {
        struct Collect(HashMap<ParamId, Tensor<1>>);
        impl ModuleVisitor for Collect {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.insert(param.id, flat(param.val().inner()));
            }
        }
        let mut collect = Collect(HashMap::new());
        module.visit(&mut collect);
        Self(collect.0)
    }

    /// The values of one parameter.
    pub fn get(&self, id: ParamId) -> Option<&Tensor<1>> {
        self.0.get(&id)
    }
}

fn flat<const D: usize>(value: Tensor<D>) -> Tensor<1> {
    let elements = value.shape().num_elements();
    value.reshape([elements])
}

/// `model` (on the plain device) with every parameter replaced by `f` of its values and those of
/// the same parameter in `others`, all flat.
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
                (self.f)(flat(value), &others).reshape(shape)
            })
        }
    }
    let others = others.iter().map(|o| Weights::of(*o)).collect();
    model.map(&mut Combine { others, f })
}

/// `a · model + (1 − a) · other`.
pub(crate) fn interpolate<M: Module>(model: M, other: &M, a: f64) -> M {
    combine(model, &[other], |x, o| {
        x.mul_scalar(a) + o[0].clone().mul_scalar(1.0 - a)
    })
}

/// Calls `f` with the id, the flat value and the flat gradient, if it has one, of every trainable
/// parameter of `module`; a returned value is added to the gradient.
pub(crate) fn add_to_gradients<M: Module>(
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
            if let Some(added) = (self.f)(param.id, flat(value), gradient.clone().map(flat)) {
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

/// Number of values that train.
pub(crate) fn trainable<M: Module>(module: &M) -> u64 {
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
        crate::eval::to_host(module.weight.val())
    }

    #[test]
    fn an_interpolation_lies_between_and_keeps_the_ids() {
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
    fn what_is_added_to_a_gradient_counts_only_where_something_trains() {
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
        assert_eq!((seen, trainable(&module)), (1, 6));
        let gradient = gradients.get::<2>(module.weight.id).unwrap();
        assert_eq!(crate::eval::to_host(gradient), [2.0; 6]);
    }
}

//! Proximal step of gates: shrinkage towards zero by a growing threshold.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::Tensor,
};
use clip_model::ClipModel;

use super::{parts::ADAPTER, settings::Gate};

impl Gate {
    /// Returns the threshold after training step `step`, from 0, of `steps`; none before
    /// thresholding begins (CoDyRA `models/codyra.py`, `train_model`).
    pub(super) fn threshold(&self, step: usize, steps: usize) -> Option<f64> {
        let dense = self.start * steps as f64;
        let every = ((steps as f64 - dense) / self.steps as f64) as usize;
        if step as f64 <= dense {
            return None;
        }
        // The threshold grows at every multiple of `every` from the first one of these steps on.
        let grown = match every {
            0 => 0,
            _ => step / every + 1 - (dense.ceil() as usize).div_ceil(every),
        };
        let last = self.steps - 1;
        Some(match last {
            0 => 0.0,
            _ => self.max * grown.min(last) as f64 / last as f64,
        })
    }

    /// Shrinks the gates of `model` by `threshold`.
    pub(super) fn shrink(&self, model: ClipModel, threshold: f64) -> ClipModel {
        model.map(&mut Shrink {
            threshold,
            zero_below: self.zero_below * threshold,
            stack: Vec::new(),
        })
    }
}

struct Shrink {
    threshold: f64,
    zero_below: f64,
    stack: Vec<String>,
}

impl Shrink {
    fn value<const D: usize>(&self, gate: Tensor<D>) -> Tensor<D> {
        let size = gate.clone().abs();
        let shrunk = gate.sign() * (size.clone() - self.threshold).clamp_min(0.0);
        shrunk.mask_fill(size.lower_elem(self.zero_below), 0.0)
    }
}

impl ModuleMapper for Shrink {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.stack.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.stack.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let is_gate = self.stack.last().is_some_and(|name| name == "gate");
        if !is_gate || !self.stack.join(".").contains(ADAPTER) {
            return param;
        }
        let (id, trains) = (param.id, param.is_require_grad());
        let value = param.base();
        let strategy = value.gradient_checkpointing_strategy();
        let mut shrunk = Tensor::from_inner(self.value(value.inner()));
        if let Some(strategy) = strategy {
            shrunk = shrunk.with_gradient_checkpointing_strategy(strategy);
        }
        Param::initialized(id, shrunk).set_require_grad(trains)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use mtil_eval::eval::to_host;

    #[test]
    fn thresholds_are_those_of_the_published_code() {
        let gate = Gate::default();
        let at = |step| gate.threshold(step, 500);
        assert_eq!((at(0), at(250)), (None, None));
        // `lambdas[1]` from iteration 250 on, the last one from 490 on.
        let unit = 0.005 / 49.0;
        for (step, times) in [
            (251, 1),
            (254, 1),
            (255, 2),
            (489, 48),
            (490, 49),
            (499, 49),
        ] {
            let found = at(step).unwrap();
            assert!(
                (found - unit * f64::from(times)).abs() < 1e-12,
                "{step}: {found}"
            );
        }
        // Fewer steps than thresholds: the threshold stays zero.
        assert_eq!(gate.threshold(59, 60), Some(0.0));
        let few = Gate { steps: 2, ..gate };
        let all: Vec<_> = (0..6).map(|step| few.threshold(step, 6)).collect();
        assert_eq!(all, [None, None, None, None, Some(0.005), Some(0.005)]);
    }

    #[test]
    fn the_published_step_zeroes_below_twice_the_threshold() {
        let gates = [-0.5, -0.15, -0.05, 0.0, 0.09, 0.19, 0.21, 1.0];
        for (multiple, expected) in [
            (2.0, [-0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.11, 0.9]),
            (1.0, [-0.4, -0.05, 0.0, 0.0, 0.0, 0.09, 0.11, 0.9]),
        ] {
            let shrink = Shrink {
                threshold: 0.1,
                zero_below: multiple * 0.1,
                stack: Vec::new(),
            };
            let found = shrink.value(Tensor::<1>::from_data(gates, &Device::flex()));
            for (a, b) in to_host(found).iter().zip(expected) {
                assert!((a - b).abs() < 1e-6, "{multiple}: {a} {b}");
            }
        }
    }
}

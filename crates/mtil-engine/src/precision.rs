//! Back to `f32` from the narrower floats that towers may compute in.

use burn::{
    module::{ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{FloatDType, Tensor},
};

/// Features in `f32`, which losses are computed in.
pub(crate) fn widened(features: Tensor<2>) -> Tensor<2> {
    if features.dtype() == FloatDType::F32.into() {
        features
    } else {
        features.cast(FloatDType::F32)
    }
}

/// Makes gradients `f32`, as the weights are that an optimizer steps. Visit the module with it.
pub(crate) struct Widen<'a>(pub &'a mut GradientsParams);

impl ModuleVisitor for Widen<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.0.remove::<D>(param.id) {
            self.0.register(param.id, gradient.cast(FloatDType::F32));
        }
    }
}

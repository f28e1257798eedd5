//! Conversion of features and gradients to `f32` under mixed precision.

use burn::{
    module::{ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{FloatDType, Tensor},
};

/// Casts features to `f32`, the precision of the losses.
pub(crate) fn to_f32(features: Tensor<2>) -> Tensor<2> {
    if features.dtype() == FloatDType::F32.into() {
        features
    } else {
        features.cast(FloatDType::F32)
    }
}

/// Module visitor that casts gradients to `f32`, the precision of the weights and the optimizer.
pub(crate) struct GradientsToF32<'a>(pub &'a mut GradientsParams);

impl ModuleVisitor for GradientsToF32<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.0.remove::<D>(param.id) {
            self.0.register(param.id, gradient.cast(FloatDType::F32));
        }
    }
}

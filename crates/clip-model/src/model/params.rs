//! Construction of modules from a source of parameter values, and visitors over parameters by path.

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    nn::{LayerNorm, LayerNormConfig, Linear},
    tensor::{Device, Tensor, TensorData},
};

use crate::error::CheckpointError;

/// A source of parameter values: a checkpoint or a seeded generator.
pub(crate) trait ParamSource {
    /// Returns the values of the parameter at `path` in row-major order.
    fn values(&mut self, path: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError>;
}

/// Creates parameters from a [`ParamSource`].
pub(crate) struct Builder<'a> {
    /// `None` makes every parameter a view of a single zero.
    pub(crate) source: Option<&'a mut dyn ParamSource>,
    pub(crate) device: &'a Device,
}

impl Builder<'_> {
    pub(crate) fn param<const D: usize>(
        &mut self,
        path: &str,
        shape: [usize; D],
    ) -> Result<Param<Tensor<D>>, CheckpointError> {
        let tensor = self.tensor(path, shape)?;
        // Parameters are trainable until they are frozen.
        let tensor = if self.device.is_autodiff() {
            tensor.require_grad()
        } else {
            tensor
        };
        Ok(Param::initialized(parameter_id(path), tensor).set_require_grad(true))
    }

    /// Creates a buffer: values that belong to the model and are not trained.
    pub(crate) fn buffer<const D: usize>(
        &mut self,
        path: &str,
        shape: [usize; D],
    ) -> Result<Param<Tensor<D>>, CheckpointError> {
        let tensor = self.tensor(path, shape)?;
        Ok(Param::initialized(parameter_id(path), tensor).set_require_grad(false))
    }

    fn tensor<const D: usize>(
        &mut self,
        path: &str,
        shape: [usize; D],
    ) -> Result<Tensor<D>, CheckpointError> {
        let Some(source) = &mut self.source else {
            return Ok(Tensor::<D>::zeros([1; D], self.device).expand(shape));
        };
        let values = source.values(path, &shape)?;
        Ok(Tensor::from_data(
            TensorData::new(values, shape),
            self.device,
        ))
    }

    pub(crate) fn linear(
        &mut self,
        path: &str,
        input: usize,
        output: usize,
    ) -> Result<Linear, CheckpointError> {
        Ok(Linear {
            weight: self.param(&format!("{path}.weight"), [input, output])?,
            bias: Some(self.param(&format!("{path}.bias"), [output])?),
        })
    }

    pub(crate) fn layer_norm(
        &mut self,
        path: &str,
        width: usize,
        epsilon: f64,
    ) -> Result<LayerNorm, CheckpointError> {
        let mut norm = LayerNormConfig::new(width)
            .with_epsilon(epsilon)
            .init(self.device);
        norm.gamma = self.param(&format!("{path}.gamma"), [width])?;
        norm.beta = Some(self.param(&format!("{path}.beta"), [width])?);
        Ok(norm)
    }
}

/// Returns the id of the parameter at `path`, the same in every process: the 64-bit FNV-1a hash of
/// the path.
///
/// Use it for parameters that you add to a model, so that saved optimizer state fits them in
/// another process.
pub fn parameter_id(path: &str) -> ParamId {
    let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    ParamId::from(hash)
}

/// Calls `f` with the path, shape and values of every float parameter of `module`.
pub(crate) fn visit_params<M: Module>(module: &M, f: &mut dyn FnMut(&str, &[usize], TensorData)) {
    walk(module, &mut |path, shape, value| f(path, shape, value()));
}

/// Calls `f` with the path and shape of every float parameter of `module`, and copies no values.
pub(crate) fn visit_shapes<M: Module>(module: &M, f: &mut dyn FnMut(&str, &[usize])) {
    walk(module, &mut |path, shape, _| f(path, shape));
}

/// Callback with the path, the shape and a function that returns the values of a parameter.
type Visit<'a> = dyn FnMut(&str, &[usize], &dyn Fn() -> TensorData) + 'a;

fn walk<M: Module>(module: &M, f: &mut Visit<'_>) {
    struct Visitor<'a, 'b> {
        path: Vec<String>,
        f: &'a mut Visit<'b>,
    }
    impl ModuleVisitor for Visitor<'_, '_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            let data = || value.clone().into_data();
            (self.f)(&self.path.join("."), &value.dims(), &data);
        }
    }
    module.visit(&mut Visitor {
        path: Vec::new(),
        f,
    });
}

//! Safetensors files of modules other than a whole CLIP, by parameter path.

use std::{collections::BTreeMap, fs, path::Path};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Tensor, TensorData},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::error::RunError;
use mtil_data::files::write_atomically;

/// Shape and `f32` values of tensors by name.
pub(crate) type NamedTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Returns the values of the float parameters of `module` whose path satisfies `keep`.
pub(crate) fn named_values<M: Module>(module: &M, keep: &dyn Fn(&str) -> bool) -> NamedTensors {
    struct Visitor<'a> {
        path: Vec<String>,
        keep: &'a dyn Fn(&str) -> bool,
        found: NamedTensors,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.path.join(".");
            if (self.keep)(&path) {
                let value = param.base();
                let shape = value.dims().to_vec();
                self.found
                    .insert(path, (shape, mtil_eval::eval::to_host(value.inner())));
            }
        }
    }
    let mut visitor = Visitor {
        path: Vec::new(),
        keep,
        found: BTreeMap::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

/// Writes named tensors to a safetensors file.
pub fn save(named: &NamedTensors, path: &Path) -> Result<(), RunError> {
    let corrupt = |e: safetensors::SafeTensorError| RunError::Corrupt {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = named
        .iter()
        .map(|(name, (shape, values))| {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| {
            Ok((*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(corrupt)?;
    let all = safetensors::serialize(views, None).map_err(corrupt)?;
    write_atomically(path, &all).map_err(|e| RunError::io(path, e))
}

/// Reads named tensors from a safetensors file.
///
/// # Errors
/// When the file cannot be read, is damaged, or holds another type than `f32`.
pub fn load(path: &Path) -> Result<NamedTensors, RunError> {
    let bytes = fs::read(path).map_err(|e| RunError::io(path, e))?;
    let corrupt = |reason: String| RunError::Corrupt {
        path: path.to_owned(),
        reason,
    };
    let file = SafeTensors::deserialize(&bytes).map_err(|e| corrupt(e.to_string()))?;
    let mut named = NamedTensors::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(corrupt(format!("`{name}` does not hold 32-bit floats")));
        }
        let (groups, _) = view.data().as_chunks::<4>();
        let values = groups.iter().map(|b| f32::from_le_bytes(*b)).collect();
        named.insert(name, (view.shape().to_vec(), values));
    }
    Ok(named)
}

/// Replaces the float parameters of `module` by `named`.
///
/// # Errors
/// [`RunError::Corrupt`] unless `named` holds exactly these parameters, with their shapes.
pub fn restore<M: Module>(module: M, named: NamedTensors, path: &Path) -> Result<M, RunError> {
    struct Mapper {
        path: Vec<String>,
        named: NamedTensors,
        error: Option<String>,
    }
    impl ModuleMapper for Mapper {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let path = self.path.join(".");
            let dims = param.base().dims();
            match self.named.remove(&path) {
                Some((shape, values)) if shape == dims => {
                    let device = param.base().device();
                    let trains = param.is_require_grad();
                    let value = Tensor::from_data(TensorData::new(values, shape), &device);
                    Param::initialized(param.id, value).set_require_grad(trains)
                }
                other => {
                    let what = if other.is_some() {
                        "of another shape"
                    } else {
                        "missing"
                    };
                    self.error.get_or_insert(format!("`{path}` is {what}"));
                    param
                }
            }
        }
    }
    let mut mapper = Mapper {
        path: Vec::new(),
        named,
        error: None,
    };
    let module = module.map(&mut mapper);
    let left = mapper.named.keys().next();
    let error = mapper
        .error
        .or_else(|| left.map(|name| format!("`{name}` belongs to nothing")));
    match error {
        Some(reason) => Err(RunError::Corrupt {
            path: path.to_owned(),
            reason,
        }),
        None => Ok(module),
    }
}

//! Modules that are not a whole CLIP, to and from safetensors by the paths of their parameters.

use std::{collections::BTreeMap, fs, path::Path};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Tensor, TensorData},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::error::RunError;
use mtil_data::files::write_atomically;

/// Named values, `f32`.
pub(crate) type Named = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The values of the parameters of `module` whose path `keep` wants.
pub(crate) fn values<M: Module>(module: &M, keep: &dyn Fn(&str) -> bool) -> Named {
    struct Visitor<'a> {
        path: Vec<String>,
        keep: &'a dyn Fn(&str) -> bool,
        found: Named,
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
                    .insert(path, (shape, crate::eval::to_host(value.inner())));
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

/// Writes named values.
pub(crate) fn save(named: &Named, path: &Path) -> Result<(), RunError> {
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

/// Reads named values.
pub(crate) fn load(path: &Path) -> Result<Named, RunError> {
    let bytes = fs::read(path).map_err(|e| RunError::io(path, e))?;
    let corrupt = |reason: String| RunError::Corrupt {
        path: path.to_owned(),
        reason,
    };
    let file = SafeTensors::deserialize(&bytes).map_err(|e| corrupt(e.to_string()))?;
    let mut named = Named::new();
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

/// `module` with its parameters replaced by `named`, which must hold exactly them.
pub(crate) fn restore<M: Module>(module: M, named: Named, path: &Path) -> Result<M, RunError> {
    struct Mapper {
        path: Vec<String>,
        named: Named,
        wrong: Option<String>,
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
                    self.wrong.get_or_insert(format!("`{path}` is {what}"));
                    param
                }
            }
        }
    }
    let mut mapper = Mapper {
        path: Vec::new(),
        named,
        wrong: None,
    };
    let module = module.map(&mut mapper);
    let left = mapper.named.keys().next();
    let wrong = mapper
        .wrong
        .or_else(|| left.map(|name| format!("`{name}` belongs to nothing")));
    match wrong {
        Some(reason) => Err(RunError::Corrupt {
            path: path.to_owned(),
            reason,
        }),
        None => Ok(module),
    }
}

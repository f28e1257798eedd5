//! The file of the unified delta and the prototypes.

use std::{collections::BTreeMap, fs, path::Path};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::Tensor,
};
use clip_model::ClipModel;
use mtil_data::files::write_atomically;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{
    Prototypes, UnifyState,
    delta::{Unified, mask_bytes},
};
use crate::{error::RunError, mechanism::module_file::NamedTensors};

const DELTA: &str = "delta.";
const MASKS: &str = "masks";
const SCALES: &str = "scales";
const PROTOTYPES: &str = "prototypes.";

/// Writes a state with at least one task.
///
/// # Errors
/// [`RunError::Io`], [`RunError::Corrupt`].
pub(super) fn save(state: &UnifyState, unified: &Unified, path: &Path) -> Result<(), RunError> {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, (shape, values)) in &unified.delta {
        let name = format!("{DELTA}{name}");
        tensors.push((name, Dtype::F32, shape.clone(), bytes(values)));
    }
    let tasks = unified.scales.len();
    let masks = unified.masks.concat();
    let shape = vec![tasks, masks.len() / tasks.max(1)];
    tensors.push((MASKS.to_owned(), Dtype::U8, shape, masks));
    let scales = bytes(&unified.scales);
    tensors.push((SCALES.to_owned(), Dtype::F32, vec![tasks], scales));
    for (task, Prototypes { rows, width }) in state.prototypes.iter().enumerate() {
        let (name, shape) = (
            format!("{PROTOTYPES}{task}"),
            vec![rows.len() / width, *width],
        );
        tensors.push((name, Dtype::F32, shape, bytes(rows)));
    }
    let corrupt = |e: safetensors::SafeTensorError| RunError::Corrupt {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(corrupt)?;
    let all = safetensors::serialize(views, None).map_err(corrupt)?;
    write_atomically(path, &all).map_err(|e| RunError::io(path, e))
}

/// Reads the file that [`save`] writes. Its deltas must be those of a model like `pretrained`.
///
/// # Errors
/// [`RunError::Io`]; [`RunError::Corrupt`] naming the tensor that is missing or of another shape.
pub(super) fn load(path: &Path, pretrained: &ClipModel) -> Result<UnifyState, RunError> {
    let bytes = fs::read(path).map_err(|e| RunError::io(path, e))?;
    parse(&bytes, pretrained).map_err(|reason| RunError::Corrupt {
        path: path.to_owned(),
        reason,
    })
}

fn parse(bytes: &[u8], pretrained: &ClipModel) -> Result<UnifyState, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let get = |name: &str, dtype: Dtype| {
        let view = file
            .tensor(name)
            .map_err(|_| format!("`{name}` is missing"))?;
        match view.dtype() == dtype {
            true => Ok(view),
            false => Err(format!("`{name}` is not of the type {dtype:?}")),
        }
    };
    let floats = |name: &str| -> Result<(Vec<usize>, Vec<f32>), String> {
        let view = get(name, Dtype::F32)?;
        let (groups, _) = view.data().as_chunks::<4>();
        let values = groups.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok((view.shape().to_vec(), values))
    };
    let (mut delta, mut mask_size) = (NamedTensors::new(), 0);
    for (name, shape) in shapes(pretrained) {
        let found = floats(&format!("{DELTA}{name}"))?;
        if found.0 != shape {
            return Err(format!("`{DELTA}{name}` is of another shape"));
        }
        mask_size += mask_bytes(found.1.len());
        delta.insert(name, found);
    }
    let deltas = file.names().into_iter().filter(|n| n.starts_with(DELTA));
    if deltas.count() != delta.len() {
        return Err("it has deltas of other parameters than the model's".to_owned());
    }
    let (_, scales) = floats(SCALES)?;
    let masks = get(MASKS, Dtype::U8)?;
    if masks.shape() != [scales.len(), mask_size] {
        return Err(format!("`{MASKS}` is of another shape"));
    }
    let masks = masks.data().chunks(mask_size.max(1)).map(<[u8]>::to_vec);
    let prototypes = (0..scales.len()).map(|task| {
        let name = format!("{PROTOTYPES}{task}");
        match floats(&name)? {
            (shape, rows) if shape.len() == 2 && !rows.is_empty() => Ok(Prototypes {
                rows,
                width: shape[1],
            }),
            _ => Err(format!("`{name}` is of another shape")),
        }
    });
    Ok(UnifyState {
        prototypes: prototypes.collect::<Result<_, String>>()?,
        unified: Some(Unified {
            delta,
            masks: masks.collect(),
            scales,
        }),
    })
}

/// Returns the shapes of a model's float parameters by path.
fn shapes(model: &ClipModel) -> BTreeMap<String, Vec<usize>> {
    #[derive(Default)]
    struct Visitor {
        path: Vec<String>,
        shapes: BTreeMap<String, Vec<usize>>,
    }
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.shapes
                .insert(self.path.join("."), param.base().dims().to_vec());
        }
    }
    let mut visitor = Visitor::default();
    model.visit(&mut visitor);
    visitor.shapes
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use mini_world::embedded;

    use super::*;
    use crate::mechanism::unify::delta::difference;

    #[test]
    fn a_state_is_read_as_it_was_written_and_a_damaged_one_is_refused() {
        let clip = embedded::clip_mini(&Device::default()).unwrap();
        let other = crate::mechanism::weights::combine(clip.model.clone(), &[], |x, _| {
            x.clone() + x.cos().mul_scalar(1e-3)
        });
        let unified = Unified::with_task(None, difference(&other, &clip.model));
        let state = UnifyState {
            prototypes: vec![Prototypes {
                rows: vec![0.6, 0.8, 1.0, 0.0],
                width: 2,
            }],
            unified: None,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("unify.safetensors");
        save(&state, &unified, &path).unwrap();
        let found = load(&path, &clip.model).unwrap();
        assert_eq!(found.unified, Some(unified));
        assert_eq!(found.prototypes, state.prototypes);
        let bytes = fs::read(&path).unwrap();
        for (damage, words) in [
            (bytes[..100].to_vec(), "header"),
            (
                replaced(&bytes, b"\"masks\"", b"\"maskz\""),
                "`masks` is missing",
            ),
            (
                replaced(&bytes, b"prototypes.0", b"prototypes.1"),
                "`prototypes.0` is missing",
            ),
        ] {
            fs::write(&path, damage).unwrap();
            let error = load(&path, &clip.model).unwrap_err().to_string();
            assert!(error.to_lowercase().contains(words), "{error}");
        }
    }

    fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        let mut bytes = bytes.to_vec();
        bytes[at..at + from.len()].copy_from_slice(to);
        bytes
    }
}

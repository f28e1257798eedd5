//! Extraction of a state dict from an unpickled object.

use std::{
    collections::{BTreeMap, btree_map},
    ops::Range,
};

use super::{
    TensorInfo, WeightError,
    error::sanitize,
    pickle::{Id, Node, Pickle, Section, Tensor, TorchObject, sizes},
    tensor::{Location, MAX_DIMS, check_view},
};

/// Keys of the state dict in the checkpoints of training scripts.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];
/// Prefix that `DataParallel` adds to every name.
const PARALLEL_PREFIX: &str = "module.";
/// Prefixes that wrappers of a model add to every name: `DataParallel`, `torch.compile`, and
/// Lightning's module with the model as its attribute `model`.
const WRAPPER_PREFIXES: [&str; 3] = [PARALLEL_PREFIX, "_orig_mod.", "model."];
/// Maximum number of tensors and of modules in a file. The largest CLIP models have about 1,000.
const MAX_TENSORS: usize = 1 << 16;
/// Maximum length of a tensor's name in bytes.
const MAX_NAME: usize = 1024;
/// Maximum nesting of TorchScript modules. CLIP has 7 levels.
const MAX_DEPTH: usize = 64;

/// Tensors of a file, and the plain integers beside them.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    pub(super) scalars: BTreeMap<String, i64>,
}

impl Contents {
    /// Removes `prefix` from all names and returns true, if every tensor has it.
    fn strip_prefix(&mut self, prefix: &str) -> bool {
        let has_prefix = |name: &String| name.len() > prefix.len() && name.starts_with(prefix);
        if self.tensors.is_empty() || !self.tensors.keys().all(has_prefix) {
            return false;
        }
        let strip = |name: String| match name.strip_prefix(prefix) {
            Some(rest) => rest.to_owned(),
            None => name,
        };
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.map(|(name, info)| (strip(name), info)).collect();
        let scalars = std::mem::take(&mut self.scalars).into_iter();
        self.scalars = scalars.map(|(name, value)| (strip(name), value)).collect();
        true
    }

    /// Removes the prefixes of wrappers, however many enclose each other, from all names.
    pub(super) fn strip_wrappers(&mut self) {
        while WRAPPER_PREFIXES
            .iter()
            .any(|prefix| self.strip_prefix(prefix))
        {}
    }
}

/// Collects the tensors of an unpickled object: of the root's TorchScript modules, of a mapping, or
/// of a mapping under one of the usual keys. `locate` returns the byte range of the storage of a
/// key.
///
/// # Errors
/// [`WeightError::NoStateDict`] if there is no such mapping; [`WeightError::Layout`] for a tensor
/// that does not fit its storage; [`WeightError::Unsupported`] for an unsupported data type; and
/// the errors of `locate`.
pub(super) fn collect_tensors(
    pickle: &Pickle,
    section: Section<'_>,
    locate: &mut dyn FnMut(&str) -> Result<Range<u64>, WeightError>,
) -> Result<Contents, WeightError> {
    let mut collector = Collector {
        pickle,
        section,
        locate,
        contents: Contents::default(),
    };
    match pickle.get(pickle.root) {
        Node::Known(TorchObject::Record(state)) => collector.collect_modules(*state)?,
        Node::Dict(items) => collector.collect_mapping(items)?,
        _ => return Err(collector.no_state_dict("holds no mapping")),
    }
    let mut contents = collector.contents;
    if contents.tensors.is_empty() {
        return Err(no_state_dict(section, "holds no tensors"));
    }
    contents.strip_prefix(PARALLEL_PREFIX);
    Ok(contents)
}

fn no_state_dict(section: Section<'_>, reason: &str) -> WeightError {
    WeightError::NoStateDict {
        path: section.path.to_owned(),
        section: section.name.to_owned(),
        reason: reason.to_owned(),
    }
}

struct Collector<'p, 'l> {
    pickle: &'p Pickle,
    section: Section<'p>,
    locate: &'l mut dyn FnMut(&str) -> Result<Range<u64>, WeightError>,
    contents: Contents,
}

impl<'p> Collector<'p, '_> {
    fn no_state_dict(&self, reason: &str) -> WeightError {
        no_state_dict(self.section, reason)
    }

    fn holds_tensors(&self, items: &[(Id, Id)]) -> bool {
        items.iter().any(|(_, value)| {
            matches!(self.pickle.get(*value), Node::Known(TorchObject::Tensor(_)))
        })
    }

    fn collect_mapping(&mut self, top: &'p [(Id, Id)]) -> Result<(), WeightError> {
        // If a mapping of tensors is under one of these keys, tensors at the top level are not
        // weights (for example `best_acc1`).
        let wrapped = WRAPPERS.iter().find_map(|wrapper| {
            let (_, value) = top
                .iter()
                .find(|(key, _)| self.pickle.text(*key) == Some(wrapper))?;
            match self.pickle.get(*value) {
                Node::Dict(items) if self.holds_tensors(items) => Some(items),
                _ => None,
            }
        });
        for (key, value) in wrapped.map_or(top, |items| items) {
            let value = self.pickle.get(*value);
            match (self.pickle.text(*key), value) {
                (Some(name), Node::Known(TorchObject::Tensor(_)) | Node::Int(_)) => {
                    self.add("", name, value)?
                }
                (None, Node::Known(TorchObject::Tensor(_))) => {
                    return Err(self.no_state_dict("holds a tensor whose name is not text"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Collects the attributes of TorchScript modules. Uses an explicit stack with limits instead
    /// of recursion, because the modules of a malicious file may form a cycle.
    fn collect_modules(&mut self, state: Option<Id>) -> Result<(), WeightError> {
        let mut pending = vec![(String::new(), state, 0)];
        let mut visited = 0;
        while let Some((prefix, state, depth)) = pending.pop() {
            let Some(Node::Dict(items)) = state.map(|id| self.pickle.get(id)) else {
                continue;
            };
            for (key, value) in items {
                let (Some(name), value) = (self.pickle.text(*key), self.pickle.get(*value)) else {
                    continue;
                };
                if let Node::Known(TorchObject::Record(state)) = value {
                    visited += 1;
                    if visited > MAX_TENSORS || depth == MAX_DEPTH {
                        return Err(self.no_state_dict(&format!(
                            "nests more than {MAX_DEPTH} deep \
                             or has more than {MAX_TENSORS} modules"
                        )));
                    }
                    let mut inner = self.full_name(&prefix, name)?;
                    inner.push('.');
                    pending.push((inner, *state, depth + 1));
                } else {
                    self.add(&prefix, name, value)?;
                }
            }
        }
        Ok(())
    }

    fn full_name(&self, prefix: &str, name: &str) -> Result<String, WeightError> {
        if prefix.len() + name.len() > MAX_NAME {
            let name = sanitize(name);
            return Err(
                self.no_state_dict(&format!("has names beyond {MAX_NAME} bytes (`{name}`)"))
            );
        }
        Ok(format!("{prefix}{name}"))
    }

    /// Inserts a tensor or an integer. Other values are ignored.
    fn add(
        &mut self,
        prefix: &str,
        name: &str,
        value: &Node<TorchObject>,
    ) -> Result<(), WeightError> {
        if self.contents.tensors.len() + self.contents.scalars.len() >= MAX_TENSORS {
            return Err(self.no_state_dict(&format!("holds more than {MAX_TENSORS} tensors")));
        }
        let duplicate = match value {
            Node::Int(value) => {
                let name = self.full_name(prefix, name)?;
                self.contents.scalars.insert(name, *value).is_some()
            }
            Node::Known(TorchObject::Tensor(tensor)) => {
                let name = self.full_name(prefix, name)?;
                let info = self.resolve(&name, tensor)?;
                match self.contents.tensors.entry(name) {
                    btree_map::Entry::Vacant(slot) => {
                        slot.insert(info);
                        false
                    }
                    btree_map::Entry::Occupied(_) => true,
                }
            }
            _ => false,
        };
        if duplicate {
            let name = sanitize(name);
            return Err(self.no_state_dict(&format!("holds `{name}` twice")));
        }
        Ok(())
    }

    /// Returns the location of a tensor, after checking it against its storage, and the storage
    /// against the file.
    fn resolve(&mut self, name: &str, tensor: &Tensor) -> Result<TensorInfo, WeightError> {
        let path = self.section.path;
        let layout_error = |reason: String| WeightError::layout(path, &sanitize(name), reason);
        let Some(dtype) = tensor.dtype else {
            return Err(WeightError::Unsupported {
                path: path.to_owned(),
                name: sanitize(name),
                dtype: "complex, 8-bit float, unsigned or untyped".to_owned(),
            });
        };
        let size = dtype.size() as u64;
        let sizes = |id, what| {
            let listed = sizes(self.pickle, id).filter(|s| s.len() <= MAX_DIMS);
            listed
                .and_then(Iterator::collect::<Option<Vec<u64>>>)
                .ok_or_else(|| layout_error(format!("has an invalid {what}; fetch the file again")))
        };
        let strides = sizes(tensor.strides, "stride")?;
        let shape: Vec<usize> = sizes(tensor.shape, "shape")?
            .into_iter()
            .map(usize::try_from)
            .collect::<Result<_, _>>()
            .map_err(|_| layout_error("is too large for this machine".to_owned()))?;

        let storage = tensor.storage;
        let key = self.pickle.text(storage.key).unwrap_or_default();
        let bytes = (self.locate)(key)?;
        let unit = storage.dtype.map_or(1, |d| d.size() as u64);
        let present = bytes.end - bytes.start;
        let declared = storage
            .skip
            .checked_add(storage.count)
            .and_then(|count| count.checked_mul(unit))
            .filter(|declared| *declared <= present)
            .ok_or_else(|| {
                layout_error(format!(
                    "has a storage of {} elements of {unit} bytes, but `{}` holds {present} \
                     bytes; fetch the file again",
                    storage.count,
                    sanitize(key)
                ))
            })?;
        let skipped = storage.skip * unit;
        let available = (declared - skipped) / size;
        let strides =
            check_view(&shape, &strides, tensor.offset, available).map_err(layout_error)?;
        // The offset of an empty tensor is not checked.
        let start = if shape.contains(&0) {
            bytes.start
        } else {
            bytes.start + skipped + tensor.offset * size
        };
        Ok(TensorInfo {
            dtype,
            shape,
            location: Location {
                shard: 0,
                start,
                strides,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{
        super::{
            WeightFile,
            test_files::{
                assert_rejected, dict_pickle, floats, int, script_file, tensor, text, torch_file,
                valid_pickle,
            },
        },
        *,
    };

    fn weights() -> Vec<u8> {
        tensor("FloatStorage", "0", 6, 0, &[2, 3], &[3, 1])
    }

    fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let pickle = dict_pickle(items);
        pickle[2..pickle.len() - 1].to_vec()
    }

    fn names(bytes: &[u8]) -> Vec<String> {
        let file = WeightFile::from_bytes(bytes, Path::new("w.pt")).unwrap();
        file.names().map(str::to_owned).collect()
    }

    #[test]
    fn state_dict_is_found() {
        let data = floats(6);
        let inner = dict(&[("a", weights())]);
        let found = |items: &[(&str, Vec<u8>)]| names(&torch_file(&dict_pickle(items), &data));
        assert_eq!(found(&[("w", weights())]), ["w"]);
        for wrapper in WRAPPERS {
            assert_eq!(found(&[("epoch", int(3)), (wrapper, inner.clone())]), ["a"]);
        }
        assert_eq!(
            found(&[("best", weights()), ("state_dict", inner.clone())]),
            ["a"]
        );
        assert_eq!(
            found(&[
                ("model", inner.clone()),
                ("state_dict", dict(&[("b", weights())]))
            ]),
            ["b"]
        );
        // A tensor with the name of a wrapper key.
        assert_eq!(found(&[("model", weights())]), ["model"]);
        let prefixed = dict(&[("module.a", weights()), ("module.n", int(3))]);
        let file = torch_file(&dict_pickle(&[("state_dict", prefixed)]), &data);
        let file = WeightFile::from_bytes(file, Path::new("w.pt")).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["a"]);
        assert_eq!(file.scalars()["n"], 3);
        assert_eq!(
            found(&[("module.a", weights()), ("b", weights())]),
            ["b", "module.a"]
        );
        // DeepSpeed's states, of a model in `DataParallel`.
        let inner = dict(&[("module.a", weights())]);
        assert_eq!(
            found(&[("ds_version", text("0")), ("module", inner)]),
            ["a"]
        );
    }

    #[test]
    fn other_objects_are_rejected() {
        let data = floats(6);
        assert_rejected(
            &torch_file(b"\x80\x02N.", &data),
            "`archive/data.pkl` holds no mapping; expected a state_dict",
        );
        assert_rejected(&torch_file(b"\x80\x02}.", &data), "holds no tensors");
        let other = dict_pickle(&[("net", dict(&[("a", weights())]))]);
        assert_rejected(&torch_file(&other, &data), "holds no tensors");
        assert_rejected(
            &torch_file(&dict_pickle(&[("w", weights()), ("w", weights())]), &data),
            "holds `w` twice",
        );
        let unnamed = [b"\x80\x02}".to_vec(), int(7), weights(), b"s.".to_vec()].concat();
        assert_rejected(
            &torch_file(&unnamed, &data),
            "a tensor whose name is not text",
        );
        let long = "x".repeat(MAX_NAME + 1);
        assert_rejected(
            &torch_file(&dict_pickle(&[(&long, weights())]), &data),
            "names beyond 1024 bytes",
        );
    }

    #[test]
    fn tensors_that_do_not_fit_their_storage_are_rejected() {
        let rejected = |tensor: Vec<u8>, part: &str| {
            assert_rejected(
                &torch_file(&dict_pickle(&[("w", tensor)]), &floats(6)),
                part,
            );
        };
        let float = |count, offset, shape: &[i64], strides: &[i64]| {
            tensor("FloatStorage", "0", count, offset, shape, strides)
        };
        rejected(
            float(6, 1, &[2, 3], &[3, 1]),
            "tensor `w` of shape [2, 3] and strides [3, 1] at offset 1 does not fit its storage \
             of 6 elements",
        );
        rejected(float(6, 0, &[7], &[1]), "does not fit");
        rejected(float(6, 0, &[2], &[i64::MAX]), "does not fit");
        rejected(float(6, i64::MAX, &[1], &[1]), "does not fit");
        rejected(
            float(7, 0, &[7], &[1]),
            "has a storage of 7 elements of 4 bytes, but `0` holds 24 bytes",
        );
        rejected(
            float(i64::MAX, 0, &[7], &[1]),
            "has a storage of 9223372036854775807 elements",
        );
        rejected(float(6, 0, &[1 << 40], &[0]), "expanded view");
        rejected(
            float(6, 0, &[i64::MAX, i64::MAX], &[1, 1]),
            "impossible shape",
        );
        rejected(
            float(6, 0, &[i64::MAX, 0, 4], &[1, 1, 1]),
            "impossible shape",
        );
        rejected(float(6, 0, &[-1], &[1]), "has an invalid shape");
        rejected(float(6, 0, &[2], &[-1]), "has an invalid stride");
        rejected(float(6, 0, &[1; 65], &[1; 65]), "has an invalid stride");
        rejected(
            tensor("DoubleStorage", "0", 6, 0, &[6], &[1]),
            "6 elements of 8 bytes",
        );
        rejected(
            tensor("UntypedStorage", "0", 6, 0, &[6], &[1]),
            "tensor `w` has type complex, 8-bit float, unsigned or untyped",
        );
        rejected(
            tensor("FloatStorage", "1", 6, 0, &[6], &[1]),
            "zip entry `archive/data/1` is missing",
        );
        rejected(
            tensor("FloatStorage", "../../etc/passwd", 6, 0, &[6], &[1]),
            "zip entry `archive/data/../../etc/passwd` is missing",
        );
        // An invalid tensor outside the state_dict is ignored.
        let aside = dict(&[("x", float(6, 9, &[9], &[1]))]);
        names(&torch_file(
            &dict_pickle(&[("w", weights()), ("optimizer", aside)]),
            &floats(6),
        ));
    }

    fn module(attributes: &[u8]) -> Vec<u8> {
        [b"c__torch__\nM\n)\x81}(".as_slice(), attributes, b"ub"].concat()
    }

    fn whole(object: &[u8]) -> Vec<u8> {
        [b"\x80\x02", object, b"."].concat()
    }

    #[test]
    fn torchscript_classes_are_known_in_their_archives_only() {
        let inner = module(&[text("w"), weights()].concat());
        let outer = module(&[text("n"), int(5), text("visual"), inner].concat());
        let file = script_file(&whole(&outer), &floats(6));
        let file = WeightFile::from_bytes(file, Path::new("w.pt")).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["visual.w"]);
        assert_eq!(file.scalars()["n"], 5);
        assert_eq!(
            file.read_f32("visual.w").unwrap(),
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        );
        assert_rejected(
            &torch_file(&whole(&outer), &floats(6)),
            "asks for `__torch__.M`",
        );
        let code = whole(b"c__torch__os\nsystem\n)R");
        assert_rejected(
            &script_file(&code, &floats(6)),
            "asks for `__torch__os.system`",
        );
    }

    #[test]
    fn cyclic_and_exponential_modules_are_rejected() {
        let own = [
            b"c__torch__\nM\n)\x81q\0}".to_vec(),
            text("m"),
            b"h\0sb".to_vec(),
        ]
        .concat();
        assert_rejected(
            &script_file(&whole(&own), &floats(6)),
            "nests more than 64 deep",
        );
        // Each module holds the previous one twice.
        let mut doubling = module(&[text("w"), weights()].concat());
        doubling.extend(b"q\0");
        for level in 0..40_u8 {
            doubling.extend(b"c__torch__\nM\n)\x81}(X\x01\0\0\0ah");
            doubling.extend([level]);
            doubling.extend(b"X\x01\0\0\0bh");
            doubling.extend([level]);
            doubling.extend([b'u', b'b', b'q', level + 1]);
        }
        assert_rejected(
            &script_file(&whole(&doubling), &floats(6)),
            "more than 65536 modules",
        );
        // A state that is not a dict, as in quantized modules.
        let odd = module(
            &[
                text("m"),
                b"c__torch__\nN\n)\x81)b".to_vec(),
                text("w"),
                weights(),
            ]
            .concat(),
        );
        assert_eq!(names(&script_file(&whole(&odd), &floats(6))), ["w"]);
    }

    #[test]
    fn valid_pickle_is_valid() {
        assert_eq!(names(&torch_file(&valid_pickle(), &floats(6))), ["w"]);
    }
}

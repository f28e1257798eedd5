//! What the pickles of `torch.save` name: tensors, their storages, plain containers.
//!
//! [`inert_pickle`] reads them and executes nothing; this is its vocabulary, and the errors of
//! weights.

use std::path::Path;

use inert_pickle::{Fault, Limits, Made, Objects, ReadAt, Vocabulary};
pub(super) use inert_pickle::{Id, Node};

use super::{ElementType, WeightError, error::quoted, source::Source};

/// The pickle of a model of 10,000 tensors takes 2 MB.
const LIMITS: Limits = Limits {
    bytes: 64 << 20,
    objects: 2 << 20,
};

/// What a pickle of `torch.save` describes.
pub(super) type Pickle = inert_pickle::Pickle<Torch>;

/// What is neither a number nor a text nor a container.
#[derive(Debug)]
pub(super) enum Torch {
    Global(Global),
    Storage(Storage),
    Tensor(Tensor),
    /// An instance of a TorchScript class and its state.
    Record(Option<Id>),
    Device,
}

/// A storage that lies elsewhere in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage {
    /// Its element type; none for untyped storages, whose elements are bytes.
    pub(super) dtype: Option<ElementType>,
    /// A [`Node::Str`].
    pub(super) key: Id,
    /// Number of elements.
    pub(super) count: u64,
    /// Elements to skip at the beginning, for the views legacy files have.
    pub(super) skip: u64,
}

/// A tensor as `torch._utils._rebuild_tensor_v2` describes it. Shape and strides stay shared until
/// they are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor {
    pub(super) storage: Storage,
    /// In elements.
    pub(super) offset: u64,
    pub(super) shape: Id,
    pub(super) strides: Id,
    /// Element type of a view of an untyped storage.
    pub(super) dtype: Option<ElementType>,
}

/// The classes and functions that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    RebuildTensor,
    RebuildTensorV3,
    RebuildParameter,
    Storage(Option<ElementType>),
    Dict,
    Set,
    Size,
    Device,
    /// A dtype, which may be one that weights do not have.
    Dtype(Option<ElementType>),
    /// A TorchScript helper whose first argument is its result.
    First,
    /// A TorchScript class.
    Record,
}

impl Global {
    fn find(module: &str, name: &str, torch_script: bool) -> Option<Self> {
        Some(match (module, name) {
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch.storage" | "torch", "UntypedStorage" | "_UntypedStorage") => {
                Self::Storage(None)
            }
            ("collections", "OrderedDict" | "defaultdict") => Self::Dict,
            // Protocol 2, which `torch.save` uses, has no opcode for sets.
            ("builtins" | "__builtin__", "set" | "frozenset") => Self::Set,
            ("torch", "Size") => Self::Size,
            ("torch", "device") => Self::Device,
            (
                "torch",
                "float8_e4m3fn" | "float8_e5m2" | "complex64" | "complex128" | "uint16" | "uint32"
                | "uint64",
            ) => Self::Dtype(None),
            ("torch", _) => match ElementType::from_torch_storage(name) {
                Some(dtype) => Self::Storage(Some(dtype)),
                None => Self::Dtype(Some(ElementType::from_torch_dtype(name)?)),
            },
            (
                "torch.jit._pickle",
                "restore_type_tag" | "build_intlist" | "build_doublelist" | "build_boollist"
                | "build_tensorlist",
            ) => Self::First,
            _ if torch_script && (module == "__torch__" || module.starts_with("__torch__.")) => {
                Self::Record
            }
            _ => return None,
        })
    }
}

/// The sizes in the tuple (or list) at `id`.
pub(super) fn sizes(pickle: &Pickle, id: Id) -> Option<impl ExactSizeIterator<Item = Option<u64>>> {
    let items: &[Id] = match pickle.get(id) {
        Node::Tuple(items) => items,
        Node::List(items) => items,
        _ => return None,
    };
    Some(items.iter().map(|item| match pickle.get(*item) {
        Node::Int(size) => u64::try_from(*size).ok(),
        _ => None,
    }))
}

/// Where a pickle lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'a> {
    /// The file, for errors.
    pub(super) path: &'a Path,
    /// The part of the file, for errors.
    pub(super) name: &'a str,
    /// First byte.
    pub(super) start: u64,
    /// Byte after the last one it may occupy.
    pub(super) end: u64,
    /// Whether instances of `__torch__` classes are known.
    pub(super) torch_script: bool,
}

/// Reads the pickle in `section` of `source`.
///
/// # Errors
/// [`WeightError::Refused`] for an unknown class; [`WeightError::Truncated`] and
/// [`WeightError::Pickle`] for damage and for opcodes that neither tensors nor plain containers
/// need.
pub(super) fn read_pickle(
    source: &Source<'_>,
    section: Section<'_>,
) -> Result<Pickle, WeightError> {
    let mut names = Names {
        torch_script: section.torch_script,
    };
    let range = section.start..section.end;
    inert_pickle::read(source, range, LIMITS, &mut names).map_err(|fault| {
        let path = section.path.to_owned();
        let part = section.name.to_owned();
        match fault {
            Fault::Truncated { needed, left } => WeightError::Truncated {
                path,
                part: format!("the pickle `{part}`"),
                needed,
                left,
            },
            Fault::Unknown { global, .. } => WeightError::Refused {
                path,
                section: part,
                global: quoted(&global),
            },
            Fault::Malformed { position, reason } => WeightError::Pickle {
                path,
                section: part,
                position,
                reason,
            },
            Fault::Io(error) => WeightError::io(section.path, error),
            other => WeightError::Pickle {
                path,
                section: part,
                position: 0,
                reason: other.to_string(),
            },
        }
    })
}

impl ReadAt for Source<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        Source::read_exact_at(self, buffer, offset)
    }
}

/// The vocabulary.
struct Names {
    torch_script: bool,
}

impl Vocabulary for Names {
    type Known = Torch;

    const PYTHON_2_TEXT: bool = true;

    fn find(&mut self, module: &str, name: &str) -> Option<Torch> {
        Global::find(module, name, self.torch_script).map(Torch::Global)
    }

    fn call(
        &mut self,
        objects: &Objects<Torch>,
        callable: &Torch,
        arguments: &[Id],
    ) -> Result<Made<Torch>, String> {
        let Torch::Global(global) = *callable else {
            return Err("what is called is not a class or function".into());
        };
        let wrong = || format!("{global:?} has unexpected arguments");
        let known = |torch| Ok(Made::New(Node::Known(torch)));
        match (global, arguments) {
            (
                Global::RebuildTensor | Global::RebuildTensorV3,
                [storage, offset, shape, strides, more @ ..],
            ) if more.len() <= 4 => {
                let (Node::Known(Torch::Storage(storage)), Node::Int(offset)) =
                    (objects.get(*storage), objects.get(*offset))
                else {
                    return Err(wrong());
                };
                let dtype = match (global, more) {
                    (Global::RebuildTensorV3, [_, _, dtype, ..]) => match objects.get(*dtype) {
                        Node::Known(Torch::Global(Global::Dtype(dtype))) => *dtype,
                        _ => return Err(wrong()),
                    },
                    (Global::RebuildTensorV3, _) => return Err(wrong()),
                    _ => storage.dtype,
                };
                known(Torch::Tensor(Tensor {
                    storage: *storage,
                    offset: u64::try_from(*offset).map_err(|_| wrong())?,
                    shape: *shape,
                    strides: *strides,
                    dtype,
                }))
            }
            (Global::RebuildParameter, [tensor, ..]) => match objects.get(*tensor) {
                Node::Known(Torch::Tensor(tensor)) => known(Torch::Tensor(*tensor)),
                _ => Err(wrong()),
            },
            (Global::Dict, []) => Ok(Made::New(Node::Dict(Vec::new()))),
            // A defaultdict without factory.
            (Global::Dict, [factory]) if matches!(objects.get(*factory), Node::None) => {
                Ok(Made::New(Node::Dict(Vec::new())))
            }
            (Global::Size | Global::First, [first, ..]) => Ok(Made::Same(*first)),
            (Global::Set, _) => Ok(Made::New(Node::Opaque)),
            (Global::Device, _) => known(Torch::Device),
            (Global::Record, _) => known(Torch::Record(None)),
            _ => Err(wrong()),
        }
    }

    fn build(
        &mut self,
        objects: &Objects<Torch>,
        target: Id,
        state: Id,
    ) -> Result<Option<Node<Torch>>, String> {
        match objects.get(target) {
            Node::Known(Torch::Record(_)) => Ok(Some(Node::Known(Torch::Record(Some(state))))),
            // Attributes of an OrderedDict: the `_metadata` of a state_dict.
            Node::Dict(_) => Ok(None),
            _ => Err("a plain value is given attributes".into()),
        }
    }

    fn persistent(&mut self, objects: &Objects<Torch>, id: Id) -> Result<Node<Torch>, String> {
        match storage(objects, id) {
            Some(storage) => Ok(Node::Known(Torch::Storage(storage))),
            None => Err("a persistent id does not name a storage".into()),
        }
    }
}

/// What `('storage', class, key, location, count)` names; legacy files add a view or `None`.
fn storage(objects: &Objects<Torch>, id: Id) -> Option<Storage> {
    let tuple = |id| match objects.get(id) {
        Node::Tuple(items) => Some(&**items),
        _ => None,
    };
    let size = |id| match objects.get(id) {
        Node::Int(size) => u64::try_from(*size).ok(),
        _ => None,
    };
    let (parts, view) = match tuple(id)? {
        [parts @ .., view] if parts.len() == 5 => (parts, *view),
        parts => (parts, Id::NONE),
    };
    let &[tag, class, key, _location, count] = parts else {
        return None;
    };
    let Node::Known(Torch::Global(Global::Storage(dtype))) = objects.get(class) else {
        return None;
    };
    if objects.text(tag)? != "storage" || objects.text(key).is_none() {
        return None;
    }
    let whole = size(count)?;
    let (skip, count) = match objects.get(view) {
        Node::None => (0, whole),
        _ => match *tuple(view)? {
            [_, skip, count] => (size(skip)?, size(count)?),
            _ => return None,
        },
    };
    (skip.checked_add(count)? <= whole).then_some(Storage {
        dtype: *dtype,
        key,
        count,
        skip,
    })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[track_caller]
    fn assert_fails(bytes: &[u8], part: &str) {
        let section = Section {
            path: Path::new("w.pt"),
            name: "data.pkl",
            start: 0,
            end: bytes.len() as u64,
            torch_script: false,
        };
        let result = read_pickle(&Source::Bytes(Cow::Borrowed(bytes)), section);
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains(part),
            "{message}\ndoes not contain: {part}"
        );
    }

    #[test]
    fn code_is_refused_by_name() {
        let refused = "the pickle `data.pkl` asks for `posix.system`, which is not a tensor or plain container; nothing was executed; if you trust the file, load it with the tool that wrote it and save only its state_dict, as safetensors";
        assert_fails(b"cposix\nsystem\n(S'id'\ntR.", refused);
        for name in [
            "os\nsystem",
            "builtins\neval",
            "builtins\ngetattr",
            "torch\nload",
            "torch.storage\n_load_from_bytes",
            "torch._utils\n_rebuild_qtensor",
            "numpy.core.multiarray\n_reconstruct",
            "__torch__\nM",
            "torch\n",
            "\n",
            "collections\nCounter",
            "torch\nFloatStorage.__init__",
            "functools\npartial",
            "argparse\nNamespace",
        ] {
            let bytes = format!("c{name}\n.");
            assert_fails(bytes.as_bytes(), &format!("`{}`", name.replace('\n', ".")));
        }
    }

    #[test]
    fn known_classes_take_only_the_arguments_tensors_give_them() {
        for bytes in [
            b"ctorch._utils\n_rebuild_tensor_v2\n)R.".as_slice(),
            b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.",
            b"ctorch._utils\n_rebuild_parameter\n(Nt\x81.",
            b"ccollections\nOrderedDict\n(]tR.",
            b"ccollections\ndefaultdict\n(ctorch\nSize\ntR.",
            b"ctorch\nFloatStorage\n)R.",
            b"ctorch\nfloat16\n)R.",
        ] {
            assert_fails(bytes, "has unexpected arguments");
        }
        assert_fails(b"N)R.", "what is called is not a class or function");
        assert_fails(b"ctorch\nSize\nNR.", "arguments are not a tuple");
        for bytes in [
            b"NQ.".as_slice(),
            b")Q.",
            b"(X\x07\0\0\0storageNNNNtQ.",
            b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000NJ\xff\xff\xff\xfftQ.",
            b"(X\x06\0\0\0modulectorch\nFloatStorage\nX\x01\0\0\x000NK\x01tQ.",
            b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000NK\x01(NK\x01K\x01ttQ.",
        ] {
            assert_fails(bytes, "a persistent id does not name a storage");
        }
    }

    #[test]
    fn damage_is_told_with_the_file_and_the_place() {
        assert_fails(
            b"X\xff\xff\xff\xff",
            "w.pt ends early: the pickle `data.pkl` needs 4294967295 bytes, 0 are left",
        );
        assert_fails(
            b"\x80\x02h\x07.",
            "w.pt: the pickle `data.pkl` is unusable at byte 4: memo key 7 is not set",
        );
    }
}

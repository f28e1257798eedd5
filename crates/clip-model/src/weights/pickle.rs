//! Pickles of `torch.save`: the known classes (tensors, storages, plain containers) and the errors.
//!
//! [`inert_pickle`] interprets a pickle without executing anything. This module supplies its
//! vocabulary.

use std::path::Path;

use inert_pickle::{CallResult, Limits, Objects, PickleError, ReadAt, Vocabulary};
pub(super) use inert_pickle::{Id, Node};

use super::{ElementType, WeightError, error::sanitize, source::Source};

/// Limits of a pickle. That of a model with 10,000 tensors takes 2 MB.
const LIMITS: Limits = Limits {
    bytes: 64 << 20,
    objects: 2 << 20,
};

/// Unpickled object of `torch.save`.
pub(super) type Pickle = inert_pickle::Pickle<TorchObject>;

/// Unpickled value that is not a number, string or container.
#[derive(Debug)]
pub(super) enum TorchObject {
    Global(Global),
    Storage(Storage),
    Tensor(Tensor),
    /// Instance of a TorchScript class, with its state.
    Record(Option<Id>),
    Device,
}

/// Reference to a storage elsewhere in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage {
    /// Element type; `None` for untyped storages, whose elements are bytes.
    pub(super) dtype: Option<ElementType>,
    /// Key of the storage, a [`Node::Str`].
    pub(super) key: Id,
    /// Number of elements.
    pub(super) count: u64,
    /// Number of elements to skip at the start, for storage views in legacy files.
    pub(super) skip: u64,
}

/// Arguments of `torch._utils._rebuild_tensor_v2`. Shape and strides are node ids, resolved by
/// [`sizes`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor {
    pub(super) storage: Storage,
    /// Offset in the storage, in elements.
    pub(super) offset: u64,
    pub(super) shape: Id,
    pub(super) strides: Id,
    /// Element type of a view of an untyped storage.
    pub(super) dtype: Option<ElementType>,
}

/// Known classes and functions.
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
    /// A dtype; `None` for one that is not supported.
    Dtype(Option<ElementType>),
    /// A TorchScript helper that returns its first argument.
    Identity,
    /// A TorchScript class.
    Record,
}

impl Global {
    /// Returns the known class or function of a name.
    fn lookup(module: &str, name: &str, torch_script: bool) -> Option<Self> {
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
            ) => Self::Identity,
            _ if torch_script && (module == "__torch__" || module.starts_with("__torch__.")) => {
                Self::Record
            }
            _ => return None,
        })
    }
}

/// Returns the sizes in the tuple or list at `id`.
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

/// Location of a pickle in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'a> {
    /// The file, for errors.
    pub(super) path: &'a Path,
    /// The part of the file, for errors.
    pub(super) name: &'a str,
    /// Offset of the first byte.
    pub(super) start: u64,
    /// Offset after the last byte that the pickle may occupy.
    pub(super) end: u64,
    /// Accept instances of `__torch__` classes.
    pub(super) torch_script: bool,
}

/// Reads the pickle in `section` of `source`.
///
/// # Errors
/// [`WeightError::Refused`] for an unknown class; [`WeightError::Truncated`] and
/// [`WeightError::Pickle`] for a damaged pickle, and for opcodes that tensors and plain containers
/// do not need.
pub(super) fn read_pickle(
    source: &Source<'_>,
    section: Section<'_>,
) -> Result<Pickle, WeightError> {
    let mut names = TorchVocabulary {
        torch_script: section.torch_script,
    };
    let range = section.start..section.end;
    inert_pickle::read(source, range, LIMITS, &mut names).map_err(|fault| {
        let path = section.path.to_owned();
        let part = section.name.to_owned();
        match fault {
            PickleError::Truncated { needed, left } => WeightError::Truncated {
                path,
                part: format!("the pickle `{part}`"),
                needed,
                left,
            },
            PickleError::Unknown { global, .. } => WeightError::Refused {
                path,
                section: part,
                global: sanitize(&global),
            },
            PickleError::Malformed { position, reason } => WeightError::Pickle {
                path,
                section: part,
                position,
                reason,
            },
            PickleError::Io(error) => WeightError::io(section.path, error),
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

/// Classes and functions that weights need.
struct TorchVocabulary {
    torch_script: bool,
}

impl Vocabulary for TorchVocabulary {
    type Known = TorchObject;

    const PYTHON_2_TEXT: bool = true;

    fn find(&mut self, module: &str, name: &str) -> Option<TorchObject> {
        Global::lookup(module, name, self.torch_script).map(TorchObject::Global)
    }

    fn call(
        &mut self,
        objects: &Objects<TorchObject>,
        callable: &TorchObject,
        arguments: &[Id],
    ) -> Result<CallResult<TorchObject>, String> {
        let TorchObject::Global(global) = *callable else {
            return Err("what is called is not a class or function".into());
        };
        let argument_error = || format!("{global:?} has unexpected arguments");
        let known = |torch| Ok(CallResult::New(Node::Known(torch)));
        match (global, arguments) {
            (
                Global::RebuildTensor | Global::RebuildTensorV3,
                [storage, offset, shape, strides, more @ ..],
            ) if more.len() <= 4 => {
                let (Node::Known(TorchObject::Storage(storage)), Node::Int(offset)) =
                    (objects.get(*storage), objects.get(*offset))
                else {
                    return Err(argument_error());
                };
                let dtype = match (global, more) {
                    (Global::RebuildTensorV3, [_, _, dtype, ..]) => match objects.get(*dtype) {
                        Node::Known(TorchObject::Global(Global::Dtype(dtype))) => *dtype,
                        _ => return Err(argument_error()),
                    },
                    (Global::RebuildTensorV3, _) => return Err(argument_error()),
                    _ => storage.dtype,
                };
                known(TorchObject::Tensor(Tensor {
                    storage: *storage,
                    offset: u64::try_from(*offset).map_err(|_| argument_error())?,
                    shape: *shape,
                    strides: *strides,
                    dtype,
                }))
            }
            (Global::RebuildParameter, [tensor, ..]) => match objects.get(*tensor) {
                Node::Known(TorchObject::Tensor(tensor)) => known(TorchObject::Tensor(*tensor)),
                _ => Err(argument_error()),
            },
            (Global::Dict, []) => Ok(CallResult::New(Node::Dict(Vec::new()))),
            // A defaultdict without a default factory.
            (Global::Dict, [factory]) if matches!(objects.get(*factory), Node::None) => {
                Ok(CallResult::New(Node::Dict(Vec::new())))
            }
            (Global::Size | Global::Identity, [first, ..]) => Ok(CallResult::Existing(*first)),
            (Global::Set, _) => Ok(CallResult::New(Node::Opaque)),
            (Global::Device, _) => known(TorchObject::Device),
            (Global::Record, _) => known(TorchObject::Record(None)),
            _ => Err(argument_error()),
        }
    }

    fn build(
        &mut self,
        objects: &Objects<TorchObject>,
        target: Id,
        state: Id,
    ) -> Result<Option<Node<TorchObject>>, String> {
        match objects.get(target) {
            Node::Known(TorchObject::Record(_)) => {
                Ok(Some(Node::Known(TorchObject::Record(Some(state)))))
            }
            // Attributes of an OrderedDict, such as the `_metadata` of a state_dict, are ignored.
            Node::Dict(_) => Ok(None),
            _ => Err("a plain value is given attributes".into()),
        }
    }

    fn persistent(
        &mut self,
        objects: &Objects<TorchObject>,
        id: Id,
    ) -> Result<Node<TorchObject>, String> {
        match parse_storage(objects, id) {
            Some(storage) => Ok(Node::Known(TorchObject::Storage(storage))),
            None => Err("a persistent id does not name a storage".into()),
        }
    }
}

/// Parses the persistent id `('storage', class, key, location, count)` of a storage. Legacy files
/// append a view or `None`.
fn parse_storage(objects: &Objects<TorchObject>, id: Id) -> Option<Storage> {
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
    let Node::Known(TorchObject::Global(Global::Storage(dtype))) = objects.get(class) else {
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
    fn code_is_rejected_by_name() {
        let rejected = "the pickle `data.pkl` asks for `posix.system`, which is not a tensor or \
                        plain container; nothing was executed; if you trust the file, load it \
                        with the tool that wrote it and save only its state_dict, as safetensors";
        assert_fails(b"cposix\nsystem\n(S'id'\ntR.", rejected);
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
    fn unexpected_arguments_are_rejected() {
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
    fn error_names_file_and_position() {
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

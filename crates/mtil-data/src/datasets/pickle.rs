//! Reader of CIFAR's pickles: numbers, texts, containers and numpy arrays.
//!
//! [`inert_pickle`] reads them without executing anything. This module is its vocabulary: the
//! classes and functions that construct numpy arrays. Any other is rejected by name. Objects that
//! are referenced several times are copied at the end, up to a limit.

use inert_pickle::{Bytes, CallResult, Id, Limits, Node, Objects, PickleError, Vocabulary};

use super::error::DatasetError;

/// Maximum number of objects of a pickle. CIFAR100's `train` has 250,000.
const MAX_OBJECTS: usize = 4 << 20;
/// Maximum nesting depth of containers.
const MAX_DEPTH: usize = 32;

/// A value of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// A `bool`.
    Bool(bool),
    /// An `int` of at most 64 bits.
    Int(i64),
    /// A `float`.
    Float(f64),
    /// A `str`.
    Text(String),
    /// A `bytes`, or a `str` of Python 2.
    Bytes(Vec<u8>),
    /// A `list`.
    List(Vec<Value>),
    /// A `tuple`.
    Tuple(Vec<Value>),
    /// A `dict`, in insertion order.
    Dict(Vec<(Value, Value)>),
    /// A numpy array of numbers or booleans.
    Array {
        /// Element type in numpy's notation without byte order: `u1`, `i8`, `f4`, `b1`.
        dtype: String,
        /// Length of each dimension.
        shape: Vec<usize>,
        /// The elements in little-endian bytes and row-major order.
        data: Vec<u8>,
    },
}

impl Value {
    /// Returns the entry `key` of a dictionary, whose key may be a `str` or a `bytes`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Self::Dict(entries) = self else {
            return None;
        };
        // The last of several equal keys counts.
        entries.iter().rev().find_map(|(k, value)| match k {
            Self::Text(k) if k == key => Some(value),
            Self::Bytes(k) if k == key.as_bytes() => Some(value),
            _ => None,
        })
    }
}

/// Reads a pickle. `name` identifies the file in errors.
///
/// # Errors
/// [`DatasetError::Pickle`] if the pickle is corrupt, exceeds a limit or contains other objects.
///
/// # Examples
/// ```
/// use mtil_data::datasets::pickle::{self, Value};
///
/// // pickle.dumps({"a": 1}, protocol=0)
/// let value = pickle::read(b"(dp0\nVa\np1\nI1\ns.", "example.pkl")?;
/// assert_eq!(value.get("a"), Some(&Value::Int(1)));
/// # Ok::<(), mtil_data::datasets::DatasetError>(())
/// ```
pub fn read(bytes: &[u8], name: &str) -> Result<Value, DatasetError> {
    let mut numpy = NumpyVocabulary {
        source: bytes,
        // Bytes that Python 3 stores as text for Python 2 are up to twice as long.
        copy_budget: bytes.len().saturating_mul(4).saturating_add(1 << 20),
    };
    let length = bytes.len() as u64;
    let limits = Limits {
        bytes: length,
        objects: MAX_OBJECTS,
    };
    inert_pickle::read(bytes, 0..length, limits, &mut numpy)
        .map_err(|fault| match fault {
            PickleError::Truncated { .. } => {
                "it ends early: half downloaded? Download it again".to_owned()
            }
            PickleError::Unknown { global, .. } => format!(
                "pickle with foreign globals: it asks for `{}`, which no dataset needs; \
                 it is not to be trusted",
                global.escape_debug()
            ),
            other => other.to_string(),
        })
        .and_then(|pickle| numpy.value(&pickle, pickle.root, 0))
        .map_err(|reason| DatasetError::Pickle {
            path: name.to_owned(),
            reason,
        })
}

/// An object of the vocabulary.
#[derive(Debug)]
enum Known {
    Global(Global),
    Dtype(Dtype),
    /// `None` until its state is set.
    Array(Option<Array>),
}

/// Classes and functions of the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    /// Constructs an empty array, whose state is set later.
    Reconstruct,
    /// Constructs an array from a buffer (protocol 5).
    FromBuffer,
    /// Constructs a numpy scalar.
    Scalar,
    Ndarray,
    Dtype,
    /// Encodes text to bytes.
    Encode,
    Bytes,
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
                Self::Reconstruct
            }
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::Scalar,
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Self::FromBuffer,
            ("numpy", "ndarray") => Self::Ndarray,
            ("numpy", "dtype") => Self::Dtype,
            ("_codecs", "encode") => Self::Encode,
            ("builtins" | "__builtin__", "bytes") => Self::Bytes,
            _ => return None,
        })
    }
}

/// Element type of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dtype {
    /// `b`, `i`, `u` or `f`.
    kind: char,
    size: usize,
    big_endian: bool,
}

impl Dtype {
    fn parse(text: &str) -> Option<Self> {
        let (order, text) = match text.strip_prefix(['<', '>', '|', '=']) {
            Some(rest) => (text.chars().next(), rest),
            None => (None, text),
        };
        let (kind, size) = match text {
            "b1" => ('b', 1),
            "i1" | "i2" | "i4" | "i8" => ('i', text[1..].parse().ok()?),
            "u1" | "u2" | "u4" | "u8" => ('u', text[1..].parse().ok()?),
            "f4" | "f8" => ('f', text[1..].parse().ok()?),
            _ => return None,
        };
        Some(Self {
            kind,
            size,
            big_endian: order == Some('>'),
        })
    }
}

#[derive(Debug, Clone)]
struct Array {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Column-major order.
    fortran: bool,
    /// A bytes object of the length given by shape and type.
    data: Id,
}

type Outcome<T> = Result<T, String>;

/// The vocabulary of numpy arrays.
struct NumpyVocabulary<'a> {
    source: &'a [u8],
    /// Number of bytes that may still be copied.
    copy_budget: usize,
}

impl Vocabulary for NumpyVocabulary<'_> {
    type Known = Known;

    const PYTHON_2_TEXT: bool = false;

    fn find(&mut self, module: &str, name: &str) -> Option<Known> {
        Global::find(module, name).map(Known::Global)
    }

    fn call(
        &mut self,
        objects: &Objects<Known>,
        callable: &Known,
        arguments: &[Id],
    ) -> Outcome<CallResult<Known>> {
        let Known::Global(function) = callable else {
            return Err("it calls an object that is not a function".into());
        };
        let node = match (function, arguments) {
            (Global::Reconstruct, [class, ..])
                if matches!(
                    objects.get(*class),
                    Node::Known(Known::Global(Global::Ndarray))
                ) =>
            {
                Node::Known(Known::Array(None))
            }
            (Global::FromBuffer, [data, dtype, shape, order]) => {
                let fortran = objects.text(*order) == Some("F");
                let array = checked_array(objects, *shape, *dtype, fortran, *data)?;
                Node::Known(Known::Array(Some(array)))
            }
            (Global::Dtype, [name, ..]) => {
                let name = self
                    .ascii(objects, *name)
                    .ok_or("an element type has no name")?;
                let name = String::from_utf8_lossy(name);
                let dtype = Dtype::parse(&name).ok_or_else(|| {
                    format!(
                        "elements of type `{}` are not supported",
                        name.escape_debug()
                    )
                })?;
                Node::Known(Known::Dtype(dtype))
            }
            (Global::Scalar, [dtype, data]) => match (objects.get(*dtype), objects.get(*data)) {
                (Node::Known(Known::Dtype(dtype)), Node::Bytes(data)) => {
                    scalar(*dtype, data.resolve(self.source))?
                }
                _ => return Err("a number of numpy is malformed".into()),
            },
            (Global::Encode, [text, encoding]) => {
                match (objects.text(*text), objects.text(*encoding)) {
                    (Some(text), Some("latin1")) => {
                        self.charge(text.len())?;
                        let bytes: Result<Box<[u8]>, _> =
                            text.chars().map(|c| u8::try_from(u32::from(c))).collect();
                        Node::Bytes(Bytes::Owned(bytes.map_err(|_| "bytes are malformed")?))
                    }
                    _ => return Err("bytes are malformed".into()),
                }
            }
            (Global::Bytes, []) => Node::Bytes(Bytes::Owned(Box::new([]))),
            _ => return Err(format!("it calls {function:?} in an unknown way")),
        };
        Ok(CallResult::New(node))
    }

    fn build(
        &mut self,
        objects: &Objects<Known>,
        target: Id,
        state: Id,
    ) -> Outcome<Option<Node<Known>>> {
        let Node::Tuple(state) = objects.get(state) else {
            return Err("the state of an object is not a tuple".into());
        };
        let built = match (objects.get(target), &**state) {
            (Node::Known(Known::Array(None)), [_version, shape, dtype, fortran, data]) => {
                let fortran = match objects.get(*fortran) {
                    Node::Bool(fortran) => *fortran,
                    Node::Int(fortran) => *fortran != 0,
                    _ => return Err("an array is malformed".into()),
                };
                let array = checked_array(objects, *shape, *dtype, fortran, *data)?;
                Known::Array(Some(array))
            }
            (Node::Known(Known::Dtype(dtype)), [_version, order, ..]) => {
                let order = self.ascii(objects, *order);
                Known::Dtype(Dtype {
                    big_endian: order.ok_or("an element type is malformed")? == b">",
                    ..*dtype
                })
            }
            _ => return Err("it gives an object a state of an unknown kind".into()),
        };
        Ok(Some(Node::Known(built)))
    }

    fn persistent(&mut self, _: &Objects<Known>, _: Id) -> Outcome<Node<Known>> {
        Err("it refers to an object outside of it".into())
    }
}

impl NumpyVocabulary<'_> {
    /// Returns a text, which Python 2 stored as bytes.
    fn ascii<'o>(&'o self, objects: &'o Objects<Known>, id: Id) -> Option<&'o [u8]> {
        match objects.get(id) {
            Node::Str(text) => Some(text.as_bytes()),
            Node::Bytes(text) => Some(text.resolve(self.source)),
            _ => None,
        }
    }

    fn charge(&mut self, bytes: usize) -> Outcome<()> {
        let rest = self.copy_budget.checked_sub(bytes);
        self.copy_budget = rest.ok_or("it repeats its objects too often")?;
        Ok(())
    }

    fn copy(&mut self, bytes: &Bytes) -> Outcome<Vec<u8>> {
        let bytes = bytes.resolve(self.source);
        self.charge(bytes.len())?;
        Ok(bytes.to_vec())
    }

    /// Returns an object with all objects that it references.
    fn value(&mut self, objects: &Objects<Known>, id: Id, depth: usize) -> Outcome<Value> {
        if depth > MAX_DEPTH {
            return Err(format!(
                "its containers are nested more than {MAX_DEPTH} deep"
            ));
        }
        // Each value counts as one byte, which also bounds the copies of small objects.
        self.charge(1)?;
        Ok(match objects.get(id) {
            Node::None => Value::None,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::Int(*value),
            Node::Float(value) => Value::Float(*value),
            Node::Str(text) => {
                self.charge(text.len())?;
                Value::Text(text.to_string())
            }
            Node::Bytes(bytes) => Value::Bytes(self.copy(bytes)?),
            Node::List(items) => Value::List(self.values(objects, items, depth)?),
            Node::Tuple(items) => Value::Tuple(self.values(objects, items, depth)?),
            Node::Dict(entries) => {
                let entries = entries.iter().map(|(key, value)| {
                    Ok((
                        self.value(objects, *key, depth + 1)?,
                        self.value(objects, *value, depth + 1)?,
                    ))
                });
                Value::Dict(entries.collect::<Outcome<_>>()?)
            }
            Node::Known(Known::Array(Some(array))) => {
                let Node::Bytes(data) = objects.get(array.data) else {
                    return Err("an array is malformed".into());
                };
                let mut data = self.copy(data)?;
                let Dtype {
                    kind,
                    size,
                    big_endian,
                } = array.dtype;
                if big_endian {
                    data.chunks_exact_mut(size).for_each(<[u8]>::reverse);
                }
                if array.fortran {
                    data = to_row_major(&data, size, &array.shape);
                }
                Value::Array {
                    dtype: format!("{kind}{size}"),
                    shape: array.shape.clone(),
                    data,
                }
            }
            Node::Long(_) | Node::Opaque => {
                return Err("it holds a set, or an integer of more than 64 bits".into());
            }
            Node::Known(_) => {
                return Err("it holds a class, or an array without content".into());
            }
        })
    }

    fn values(
        &mut self,
        objects: &Objects<Known>,
        items: &[Id],
        depth: usize,
    ) -> Outcome<Vec<Value>> {
        items
            .iter()
            .map(|item| self.value(objects, *item, depth + 1))
            .collect()
    }
}

/// Returns an array after checking that its data has the size given by shape and type.
fn checked_array(
    objects: &Objects<Known>,
    shape: Id,
    dtype: Id,
    fortran: bool,
    data: Id,
) -> Outcome<Array> {
    let (Node::Tuple(lengths), Node::Known(Known::Dtype(dtype)), Node::Bytes(bytes)) =
        (objects.get(shape), objects.get(dtype), objects.get(data))
    else {
        return Err("an array is malformed".into());
    };
    let shape: Option<Vec<usize>> = lengths
        .iter()
        .map(|length| match objects.get(*length) {
            Node::Int(length) => usize::try_from(*length).ok(),
            _ => None,
        })
        .collect();
    let shape = shape.ok_or("the shape of an array is malformed")?;
    let size = shape
        .iter()
        .try_fold(dtype.size, |size, length| size.checked_mul(*length));
    if size.map(|size| size as u64) != Some(bytes.len()) {
        return Err(format!(
            "an array of shape {shape:?} and {} bytes an element has {} bytes",
            dtype.size,
            bytes.len()
        ));
    }
    Ok(Array {
        dtype: *dtype,
        shape,
        fortran,
        data,
    })
}

fn scalar(dtype: Dtype, data: &[u8]) -> Outcome<Node<Known>> {
    let malformed = || "a number of numpy is malformed".to_owned();
    if data.len() != dtype.size {
        return Err(malformed());
    }
    let mut data = data.to_vec();
    if dtype.big_endian {
        data.reverse();
    }
    let negative = dtype.kind == 'i' && data.last().is_some_and(|b| *b >= 0x80);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..data.len()].copy_from_slice(&data);
    Ok(match (dtype.kind, dtype.size) {
        ('b', _) => Node::Bool(data[0] != 0),
        ('f', 4) => Node::Float(f32::from_le_bytes([data[0], data[1], data[2], data[3]]).into()),
        ('f', _) => Node::Float(f64::from_le_bytes(wide)),
        ('u', _) => Node::Int(i64::try_from(u64::from_le_bytes(wide)).map_err(|_| malformed())?),
        _ => Node::Int(i64::from_le_bytes(wide)),
    })
}

/// Converts elements of `size` bytes from column-major to row-major order.
fn to_row_major(data: &[u8], size: usize, shape: &[usize]) -> Vec<u8> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = size;
    for length in shape {
        strides.push(stride);
        stride *= length;
    }
    let mut ordered = Vec::with_capacity(data.len());
    let mut index = vec![0; shape.len()];
    let mut offset = 0;
    while ordered.len() < data.len() {
        ordered.extend_from_slice(&data[offset..offset + size]);
        for dimension in (0..shape.len()).rev() {
            index[dimension] += 1;
            offset += strides[dimension];
            if index[dimension] < shape[dimension] {
                break;
            }
            offset -= strides[dimension] * shape[dimension];
            index[dimension] = 0;
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(bytes: &[u8]) -> String {
        let error = read(bytes, "cifar/train").unwrap_err().to_string();
        assert!(error.contains("cifar/train"), "{error}");
        error
    }

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    const FIXTURES: [&[u8]; 5] = [
        include_bytes!("testdata/cifar-python2.pkl"),
        include_bytes!("testdata/values-2.pkl"),
        include_bytes!("testdata/values-3.pkl"),
        include_bytes!("testdata/values-4.pkl"),
        include_bytes!("testdata/values-5.pkl"),
    ];

    #[test]
    fn reads_files_of_python_2() {
        let value = read(FIXTURES[0], "").unwrap();
        let pixels = (0..2 * 3072).map(|i| (i * 7 % 251) as u8).collect();
        assert_eq!(
            value.get("data"),
            Some(&Value::Array {
                dtype: "u1".into(),
                shape: vec![2, 3072],
                data: pixels
            })
        );
        let labels = Value::List(vec![Value::Int(0), Value::Int(13)]);
        assert_eq!(value.get("fine_labels"), Some(&labels));
        let Some(Value::List(names)) = value.get("filenames") else {
            panic!("{value:?}");
        };
        assert_eq!(names[1], Value::Bytes(b"image_1.png".to_vec()));
        assert_eq!(value.get("coarse_labels"), None);
    }

    #[test]
    fn reads_what_python_3_writes_with_every_protocol() {
        for fixture in &FIXTURES[1..] {
            let value = read(fixture, "").unwrap();
            let get = |key| {
                value
                    .get(key)
                    .unwrap_or_else(|| panic!("no {key} in {value:?}"))
            };
            assert_eq!(get("none"), &Value::None);
            assert_eq!(get("true"), &Value::Bool(true));
            assert_eq!(get("int"), &Value::Int(-(1 << 40)));
            assert_eq!(get("small"), &Value::Int(7));
            assert_eq!(get("float"), &Value::Float(0.1));
            assert_eq!(get("text"), &text("Grüße"));
            assert_eq!(get("bytes"), &Value::Bytes(vec![0, 255]));
            let inner = Value::List(vec![Value::Int(2), Value::Tuple(vec![Value::Int(3)])]);
            assert_eq!(get("list"), &Value::List(vec![Value::Int(1), inner]));
            assert_eq!(
                get("dict"),
                &Value::Dict(vec![(Value::Int(1), text("one"))])
            );
            let scalars = [
                Value::Int(200),
                Value::Int(-3),
                Value::Float(0.5),
                Value::Bool(true),
            ];
            assert_eq!(get("scalars"), &Value::List(scalars.into()));

            let array = |dtype: &str, shape: &[usize], data: Vec<u8>| Value::Array {
                dtype: dtype.into(),
                shape: shape.into(),
                data,
            };
            assert_eq!(get("array"), &array("u1", &[2, 3], (0..6).collect()));
            let counted = (0..24_i16).flat_map(i16::to_le_bytes).collect();
            assert_eq!(get("fortran"), &array("i2", &[2, 3, 4], counted));
            let counted = (0..4_i32).flat_map(i32::to_le_bytes).collect();
            assert_eq!(get("big"), &array("i4", &[4], counted));
            let floats = [0.5_f32, -1.5]
                .into_iter()
                .flat_map(f32::to_le_bytes)
                .collect();
            assert_eq!(get("floats"), &array("f4", &[2], floats));
            assert_eq!(get("empty"), &array("u1", &[0, 3], Vec::new()));
        }
    }

    #[test]
    fn reads_text_opcodes() {
        let value = read(
            b"(dp0\nS'a\\n\\x41\\''\np1\nI12\nsS'b'\n(lp2\nL5L\naF0.5\naI01\naNas.",
            "",
        );
        let list = [
            Value::Int(5),
            Value::Float(0.5),
            Value::Bool(true),
            Value::None,
        ];
        let expected = [
            (Value::Bytes(b"a\nA'".to_vec()), Value::Int(12)),
            (Value::Bytes(b"b".to_vec()), Value::List(list.into())),
        ];
        assert_eq!(value.unwrap(), Value::Dict(expected.into()));
    }

    #[test]
    fn foreign_globals_are_refused_by_name() {
        for pickle in [
            &b"cos\nsystem\n(S'true'\ntR."[..],
            b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
            b"\x80\x02cnumpy.core.multiarray\nfromfile\n.",
        ] {
            let message = fault(pickle);
            assert!(message.contains("foreign globals"), "{message}");
            assert!(
                message.contains("os.system") || message.contains("fromfile"),
                "{message}"
            );
        }
        // Other ways to make an object.
        for (pickle, reason) in [
            (&b"(S'x'\nios\nsystem\n."[..], "`os.system`"),
            (b"\x80\x02P1\n.", "opcode 0x50"),
            (b"\x80\x02\x82\x01.", "opcode 0x82"),
            (b"N)\x81.", "what is called is not a class"),
            (b"NQ.", "outside of it"),
            (b"cnumpy\ndtype\n)\x81.", "in an unknown way"),
        ] {
            let message = fault(pickle);
            assert!(message.contains(reason), "{message}");
        }
    }

    #[test]
    fn truncated_pickles_are_refused_wherever_they_end() {
        for fixture in FIXTURES {
            for end in (0..fixture.len()).step_by(1 + fixture.len() / 400) {
                fault(&fixture[..end]);
            }
        }
        assert!(fault(&FIXTURES[0][..5000]).contains("half downloaded?"));
    }

    #[test]
    fn damaged_pickles_do_not_panic() {
        for fixture in &FIXTURES[1..] {
            for at in 0..fixture.len() {
                for change in [1, 0x80, 0xff] {
                    let mut damaged = fixture.to_vec();
                    damaged[at] ^= change;
                    let _ = read(&damaged, "");
                }
            }
        }
    }

    #[test]
    fn lying_lengths_are_refused_before_anything_is_allocated() {
        for pickle in [
            &b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff."[..],
            b"\x80\x02B\xff\xff\xff\xffabc.",
            b"\x80\x02\x8b\xff\xff\xff\x7f.",
        ] {
            assert!(fault(pickle).contains("half downloaded?"));
        }
        // An array of shape (2, 3) with five bytes.
        let mut short = FIXTURES[3].to_vec();
        let at = short
            .windows(8)
            .position(|w| w == b"C\x06\0\x01\x02\x03\x04\x05")
            .unwrap();
        short[at + 1] = 5;
        short.remove(at + 2);
        // The length of the frame, after the opcodes PROTO and FRAME, is a byte less as well.
        assert_eq!(short[2], 0x95);
        short[3] -= 1;
        let message = fault(&short);
        assert!(message.contains("shape [2, 3]"), "{message}");
    }

    #[test]
    fn nesting_repetition_and_cycles_are_bounded() {
        let deep = [vec![b']'; 100_000], vec![b'a'; 99_999], vec![b'.']].concat();
        assert!(fault(&deep).contains("nested"));
        let cycle = b"]q\0h\0a.";
        assert!(fault(cycle).contains("nested"));
        // Each list holds the one before it twice.
        let mut doubled = b"]q\0".to_vec();
        for i in 1..30 {
            doubled.extend([b']', b'q', i, b'h', i - 1, b'a', b'h', i - 1, b'a']);
        }
        doubled.push(b'.');
        assert!(fault(&doubled).contains("repeats"));
        let many = [vec![b'('], vec![b'N'; MAX_OBJECTS + 1], b"t.".to_vec()].concat();
        assert!(fault(&many).contains("objects"));
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [
            &b""[..],
            b".",
            b"<html>",
            b"\x80\x09.",
            b"PK\x03\x04",
            b"(",
            b"e.",
            b"\x80\x02K\x01a.",
        ] {
            fault(bytes);
        }
        let objects = b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.";
        assert!(fault(objects).contains("`O8`"));
    }
}

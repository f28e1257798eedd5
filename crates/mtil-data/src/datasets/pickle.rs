//! The pickles of CIFAR, read by a machine that builds values and executes nothing.
//!
//! Knows the opcodes that Python 2 and 3 write for numbers, texts and containers (Python's
//! `pickletools.py` describes them), and of all classes and functions only those that numpy arrays
//! are made with. Others are refused by name.
//!
//! Objects refer to each other by index while the machine runs, so nothing recurses; what is
//! referred to many times is copied at the end, within a limit.

use std::{borrow::Cow, collections::HashMap};

use super::error::DatasetError;

/// Most objects a pickle may make. CIFAR100's `train` makes 250,000.
const MAX_OBJECTS: usize = 4 << 20;
/// Most containers within containers.
const MAX_DEPTH: usize = 32;
/// Longest line of a text opcode.
const MAX_LINE: usize = 1 << 16;

/// What a pickle holds.
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
    /// A numpy array of numbers or truth values.
    Array {
        /// Its element type as numpy writes it, without byte order: `u1`, `i8`, `f4`, `b1`.
        dtype: String,
        /// Length of each dimension.
        shape: Vec<usize>,
        /// The elements in little-endian bytes, last dimension fastest.
        data: Vec<u8>,
    },
}

impl Value {
    /// The entry `key` of a dictionary, whether its key is a `str` or a `bytes`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Self::Dict(entries) = self else {
            return None;
        };
        // Of equal keys the last counts.
        entries.iter().rev().find_map(|(k, value)| match k {
            Self::Text(k) if k == key => Some(value),
            Self::Bytes(k) if k == key.as_bytes() => Some(value),
            _ => None,
        })
    }
}

/// Reads a pickle. `name` is the file's, for errors.
///
/// # Errors
/// [`DatasetError::Pickle`].
pub fn read(bytes: &[u8], name: &str) -> Result<Value, DatasetError> {
    let mut machine = Machine {
        input: bytes,
        position: 0,
        objects: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        // Text that Python 3 wraps for Python 2 is twice as long as its bytes.
        allowance: bytes.len().saturating_mul(4).saturating_add(1 << 20),
    };
    machine
        .run()
        .and_then(|root| machine.value(root, 0))
        .map_err(|reason| DatasetError::Pickle {
            path: name.to_owned(),
            reason,
        })
}

/// Index of an object.
type Id = u32;

#[derive(Debug, Clone)]
enum Object<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Dtype(Dtype),
    Array(Option<Array>),
}

/// The classes and functions that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    /// Makes an empty array, which is filled by the state it is given.
    Reconstruct,
    /// Makes an array of a buffer (protocol 5).
    FromBuffer,
    /// Makes a numpy scalar.
    Scalar,
    Ndarray,
    Dtype,
    /// Makes bytes of text.
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

/// A type of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dtype {
    /// `b`, `i`, `u` or `f`.
    kind: char,
    size: usize,
    big: bool,
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
            big: order == Some('>'),
        })
    }
}

#[derive(Debug, Clone)]
struct Array {
    dtype: Dtype,
    shape: Vec<usize>,
    /// First dimension fastest.
    fortran: bool,
    /// A bytes object of the length that shape and type ask for.
    data: Id,
}

struct Machine<'a> {
    input: &'a [u8],
    position: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Bytes that may yet be copied.
    allowance: usize,
}

type Outcome<T> = Result<T, String>;

impl<'a> Machine<'a> {
    /// Runs to the end and tells the object that is left.
    fn run(&mut self) -> Outcome<Id> {
        loop {
            let at = self.position;
            let op = self.take(1)?[0];
            if op == b'.' {
                return self.pop();
            }
            self.execute(op).map_err(|reason| {
                if self.position >= self.input.len() && reason == ENDS_EARLY {
                    reason
                } else {
                    format!("{reason} (at byte {at})")
                }
            })?;
        }
    }

    fn execute(&mut self, op: u8) -> Outcome<()> {
        match op {
            // PROTO, FRAME
            0x80 => match self.take(1)?[0] {
                0..=5 => {}
                version => return Err(format!("protocol {version} is not known")),
            },
            0x95 => drop(self.take(8)?),
            // MARK, POP, POP_MARK, DUP
            b'(' => self.marks.push(self.stack.len()),
            b'0' => match self.marks.last() {
                Some(mark) if *mark == self.stack.len() => drop(self.marks.pop()),
                _ => drop(self.pop()?),
            },
            b'1' => drop(self.since_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.push(Object::None)?,
            0x88 => self.push(Object::Bool(true))?,
            0x89 => self.push(Object::Bool(false))?,
            // INT, LONG, FLOAT
            b'I' => {
                let object = match self.line()? {
                    b"00" => Object::Bool(false),
                    b"01" => Object::Bool(true),
                    line => Object::Int(parse(line).ok_or("an integer is malformed")?),
                };
                self.push(object)?;
            }
            b'L' => {
                let line = self.line()?;
                let digits = line.strip_suffix(b"L").unwrap_or(line);
                self.push(Object::Int(parse(digits).ok_or("an integer is malformed")?))?;
            }
            b'F' => {
                let value = parse(self.line()?).ok_or("a float is malformed")?;
                self.push(Object::Float(value))?;
            }
            // BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Object::Int(value.into()))?;
            }
            b'K' => {
                let value = self.take(1)?[0];
                self.push(Object::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Object::Int(value.into()))?;
            }
            0x8a | 0x8b => {
                let digits = if op == 0x8a {
                    self.counted::<1>()?
                } else {
                    self.counted::<4>()?
                };
                let value = long(digits).ok_or("an integer has more than 64 bits")?;
                self.push(Object::Int(value))?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Object::Float(value))?;
            }
            // STRING, BINSTRING, SHORT_BINSTRING, BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
            b'S' => {
                let bytes = unquote(self.line()?).ok_or("a string is malformed")?;
                self.push(Object::Bytes(bytes.into()))?;
            }
            b'T' | b'B' => {
                let bytes = self.counted::<4>()?;
                self.push(Object::Bytes(bytes.into()))?;
            }
            b'U' | b'C' => {
                let bytes = self.counted::<1>()?;
                self.push(Object::Bytes(bytes.into()))?;
            }
            0x8e | 0x96 => {
                let bytes = self.counted::<8>()?;
                self.push(Object::Bytes(bytes.into()))?;
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
            b'X' => {
                let bytes = self.counted::<4>()?;
                self.push(Object::Text(utf8(bytes)?.into()))?;
            }
            0x8c => {
                let bytes = self.counted::<1>()?;
                self.push(Object::Text(utf8(bytes)?.into()))?;
            }
            0x8d => {
                let bytes = self.counted::<8>()?;
                self.push(Object::Text(utf8(bytes)?.into()))?;
            }
            // EMPTY_LIST, LIST, APPEND, APPENDS
            b']' => self.push(Object::List(Vec::new()))?,
            b'l' => {
                let items = self.since_mark()?;
                self.push(Object::List(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.top_list()?.push(item);
            }
            b'e' => {
                let items = self.since_mark()?;
                self.top_list()?.extend(items);
            }
            // EMPTY_TUPLE, TUPLE, TUPLE1, TUPLE2, TUPLE3
            b')' => self.push(Object::Tuple(Vec::new()))?,
            b't' => {
                let items = self.since_mark()?;
                self.push(Object::Tuple(items))?;
            }
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0..op - 0x84 {
                    items.insert(0, self.pop()?);
                }
                self.push(Object::Tuple(items))?;
            }
            // EMPTY_DICT, DICT, SETITEM, SETITEMS
            b'}' => self.push(Object::Dict(Vec::new()))?,
            b'd' => {
                let entries = pairs(&self.since_mark()?)?;
                self.push(Object::Dict(entries))?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.top_dict()?.push((key, value));
            }
            b'u' => {
                let entries = pairs(&self.since_mark()?)?;
                self.top_dict()?.extend(entries);
            }
            // PUT, BINPUT, LONG_BINPUT, MEMOIZE, GET, BINGET, LONG_BINGET
            b'p' => {
                let key = parse(self.line()?).ok_or("a memo number is malformed")?;
                self.remember(key)?;
            }
            b'q' => {
                let key = self.take(1)?[0].into();
                self.remember(key)?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'g' => {
                let key = parse(self.line()?).ok_or("a memo number is malformed")?;
                self.recall(key)?;
            }
            b'h' => {
                let key = self.take(1)?[0].into();
                self.recall(key)?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            // GLOBAL, STACK_GLOBAL, REDUCE, BUILD
            b'c' => {
                let (module, name) = (utf8(self.line()?)?, utf8(self.line()?)?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.objects[module as usize], &self.objects[name as usize]) {
                    (Object::Text(module), Object::Text(name)) => {
                        let (module, name) = (module.clone(), name.clone());
                        self.global(&module, &name)?;
                    }
                    _ => return Err("the name of a class is no text".into()),
                }
            }
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            other => {
                return Err(format!(
                    "opcode {other:#04x} is not one of a dataset's: it is damaged or not to be trusted"
                ));
            }
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Outcome<&'a [u8]> {
        let bytes = self
            .position
            .checked_add(count)
            .and_then(|end| self.input.get(self.position..end));
        let Some(bytes) = bytes else {
            self.position = self.input.len();
            return Err(ENDS_EARLY.into());
        };
        self.position += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let bytes = self.take(N)?;
        Ok(*bytes.first_chunk().expect("as many were taken"))
    }

    /// Bytes after their number, which has `N` bytes.
    fn counted<const N: usize>(&mut self) -> Outcome<&'a [u8]> {
        let mut count = [0; 8];
        count[..N].copy_from_slice(&self.array::<N>()?);
        let count = usize::try_from(u64::from_le_bytes(count)).map_err(|_| ENDS_EARLY)?;
        self.take(count)
    }

    fn line(&mut self) -> Outcome<&'a [u8]> {
        let rest = &self.input[self.position..];
        let end = rest.iter().take(MAX_LINE).position(|b| *b == b'\n');
        let line = &rest[..end.ok_or("a line does not end")?];
        self.position += line.len() + 1;
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    fn push(&mut self, object: Object<'a>) -> Outcome<()> {
        if self.objects.len() == MAX_OBJECTS {
            return Err(format!("it makes more than {MAX_OBJECTS} objects"));
        }
        self.stack.push(self.objects.len() as Id);
        self.objects.push(object);
        Ok(())
    }

    /// The top of the stack above the last mark.
    fn top(&self) -> Outcome<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack[floor.min(self.stack.len())..].last() {
            Some(top) => Ok(*top),
            None => Err("its stack is empty".into()),
        }
    }

    fn pop(&mut self) -> Outcome<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn since_mark(&mut self) -> Outcome<Vec<Id>> {
        let mark = self.marks.pop().ok_or("its stack has no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn top_list(&mut self) -> Outcome<&mut Vec<Id>> {
        let top = self.top()?;
        match &mut self.objects[top as usize] {
            Object::List(items) => Ok(items),
            _ => Err("something is added to what is no list".into()),
        }
    }

    fn top_dict(&mut self) -> Outcome<&mut Vec<(Id, Id)>> {
        let top = self.top()?;
        match &mut self.objects[top as usize] {
            Object::Dict(entries) => Ok(entries),
            _ => Err("something is put into what is no dict".into()),
        }
    }

    fn remember(&mut self, key: u32) -> Outcome<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Outcome<()> {
        let id = self
            .memo
            .get(&key)
            .ok_or("what it refers to is not there")?;
        self.stack.push(*id);
        if self.stack.len() > MAX_OBJECTS {
            return Err(format!("its stack is longer than {MAX_OBJECTS}"));
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Outcome<()> {
        let global = Global::find(module, name).ok_or_else(|| {
            format!(
                "pickle with foreign globals: it asks for `{}`, which no dataset needs; it is not to be trusted",
                format!("{module}.{name}").escape_debug()
            )
        })?;
        self.push(Object::Global(global))
    }

    fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id as usize]
    }

    /// Calls a function.
    fn reduce(&mut self) -> Outcome<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Object::Global(function), Object::Tuple(arguments)) =
            (self.get(function).clone(), self.get(arguments).clone())
        else {
            return Err("it calls what is no function".into());
        };
        let object = match (function, arguments.as_slice()) {
            (Global::Reconstruct, [class, ..])
                if matches!(self.get(*class), Object::Global(Global::Ndarray)) =>
            {
                Object::Array(None)
            }
            (Global::FromBuffer, [data, dtype, shape, order]) => {
                let fortran = matches!(self.get(*order), Object::Text(order) if order == "F");
                Object::Array(Some(self.checked_array(*shape, *dtype, fortran, *data)?))
            }
            (Global::Dtype, [name, ..]) => {
                let name = match self.get(*name) {
                    Object::Text(name) => name.as_bytes(),
                    Object::Bytes(name) => name,
                    _ => return Err("an element type has no name".into()),
                };
                let name = String::from_utf8_lossy(name);
                let dtype = Dtype::parse(&name);
                Object::Dtype(dtype.ok_or_else(|| {
                    format!(
                        "elements of type `{}` are not supported",
                        name.escape_debug()
                    )
                })?)
            }
            (Global::Scalar, [dtype, data]) => match (self.get(*dtype), self.get(*data)) {
                (Object::Dtype(dtype), Object::Bytes(data)) => scalar(*dtype, data)?,
                _ => return Err("a number of numpy is malformed".into()),
            },
            (Global::Encode, [text, encoding]) => match (self.get(*text), self.get(*encoding)) {
                (Object::Text(text), Object::Text(encoding)) if encoding == "latin1" => {
                    let length = text.len();
                    let bytes: Result<Vec<u8>, _> =
                        text.chars().map(|c| u8::try_from(u32::from(c))).collect();
                    let bytes = bytes.map_err(|_| "bytes are malformed")?;
                    self.spend(length)?;
                    Object::Bytes(bytes.into())
                }
                _ => return Err("bytes are malformed".into()),
            },
            (Global::Bytes, []) => Object::Bytes(Cow::Borrowed(b"")),
            _ => return Err(format!("it calls {function:?} in an unknown way")),
        };
        self.push(object)
    }

    /// Gives an object its state.
    fn build(&mut self) -> Outcome<()> {
        let (state, target) = (self.pop()?, self.top()?);
        let Object::Tuple(state) = self.get(state).clone() else {
            return Err("the state of an object is no tuple".into());
        };
        let built = match (self.get(target), state.as_slice()) {
            (Object::Array(None), [_version, shape, dtype, fortran, data]) => {
                let fortran = match self.get(*fortran) {
                    Object::Bool(fortran) => *fortran,
                    Object::Int(fortran) => *fortran != 0,
                    _ => return Err("an array is malformed".into()),
                };
                Object::Array(Some(self.checked_array(*shape, *dtype, fortran, *data)?))
            }
            (Object::Dtype(dtype), [_version, order, ..]) => {
                let big = match self.get(*order) {
                    Object::Text(order) => order == ">",
                    Object::Bytes(order) => &**order == b">",
                    _ => return Err("an element type is malformed".into()),
                };
                Object::Dtype(Dtype { big, ..*dtype })
            }
            _ => return Err("it gives an object a state of an unknown kind".into()),
        };
        self.objects[target as usize] = built;
        Ok(())
    }

    fn checked_array(&self, shape: Id, dtype: Id, fortran: bool, data: Id) -> Outcome<Array> {
        let (Object::Tuple(lengths), Object::Dtype(dtype), Object::Bytes(bytes)) =
            (self.get(shape), self.get(dtype), self.get(data))
        else {
            return Err("an array is malformed".into());
        };
        let shape: Option<Vec<usize>> = lengths
            .iter()
            .map(|length| match self.get(*length) {
                Object::Int(length) => usize::try_from(*length).ok(),
                _ => None,
            })
            .collect();
        let shape = shape.ok_or("the shape of an array is malformed")?;
        let size = shape
            .iter()
            .try_fold(dtype.size, |size, length| size.checked_mul(*length));
        if size != Some(bytes.len()) {
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

    fn spend(&mut self, bytes: usize) -> Outcome<()> {
        let rest = self.allowance.checked_sub(bytes);
        self.allowance = rest.ok_or("it repeats its objects too often")?;
        Ok(())
    }

    /// An object with all that it refers to.
    fn value(&mut self, id: Id, depth: usize) -> Outcome<Value> {
        if depth > MAX_DEPTH {
            return Err(format!(
                "its containers are nested more than {MAX_DEPTH} deep"
            ));
        }
        // A value is counted as a byte: every object costs at least one, once.
        self.spend(1)?;
        Ok(match self.get(id) {
            Object::None => Value::None,
            Object::Bool(value) => Value::Bool(*value),
            Object::Int(value) => Value::Int(*value),
            Object::Float(value) => Value::Float(*value),
            Object::Text(text) => {
                let text = text.clone();
                self.spend(text.len())?;
                Value::Text(text.into_owned())
            }
            Object::Bytes(bytes) => {
                let length = bytes.len();
                self.spend(length)?;
                Value::Bytes(self.bytes(id).to_vec())
            }
            Object::List(items) => Value::List(self.values(&items.clone(), depth)?),
            Object::Tuple(items) => Value::Tuple(self.values(&items.clone(), depth)?),
            Object::Dict(entries) => {
                let entries = entries.clone();
                let entries = entries.iter().map(|(key, value)| {
                    Ok((self.value(*key, depth + 1)?, self.value(*value, depth + 1)?))
                });
                Value::Dict(entries.collect::<Outcome<_>>()?)
            }
            Object::Array(Some(array)) => {
                let array = array.clone();
                self.spend(self.bytes(array.data).len())?;
                let mut data = self.bytes(array.data).to_vec();
                let Dtype { kind, size, big } = array.dtype;
                if big {
                    data.chunks_exact_mut(size).for_each(<[u8]>::reverse);
                }
                if array.fortran {
                    data = last_fastest(&data, size, &array.shape);
                }
                Value::Array {
                    dtype: format!("{kind}{size}"),
                    shape: array.shape,
                    data,
                }
            }
            Object::Global(_) | Object::Dtype(_) | Object::Array(None) => {
                return Err("it holds a class, or an array without content".into());
            }
        })
    }

    fn values(&mut self, items: &[Id], depth: usize) -> Outcome<Vec<Value>> {
        items
            .iter()
            .map(|item| self.value(*item, depth + 1))
            .collect()
    }

    fn bytes(&self, id: Id) -> &[u8] {
        match self.get(id) {
            Object::Bytes(bytes) => bytes,
            _ => &[],
        }
    }
}

const ENDS_EARLY: &str = "it ends early: half downloaded? Download it again";

fn utf8(bytes: &[u8]) -> Outcome<&str> {
    std::str::from_utf8(bytes).map_err(|_| "a text is no UTF-8".into())
}

fn parse<T: std::str::FromStr>(line: &[u8]) -> Option<T> {
    std::str::from_utf8(line).ok()?.parse().ok()
}

fn pairs(items: &[Id]) -> Outcome<Vec<(Id, Id)>> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
        _ => Err("a dict has a key without a value".into()),
    }
}

/// A little-endian two's complement number of any length.
fn long(digits: &[u8]) -> Option<i64> {
    let sign = match digits.last() {
        Some(last) if *last >= 0x80 => 0xff,
        _ => 0,
    };
    let mut bytes = [sign; 8];
    let (low, high) = digits.split_at(digits.len().min(8));
    bytes[..low.len()].copy_from_slice(low);
    let value = i64::from_le_bytes(bytes);
    (high.iter().all(|b| *b == sign) && (value < 0) == (sign == 0xff)).then_some(value)
}

/// The content of a Python string literal.
fn unquote(line: &[u8]) -> Option<Vec<u8>> {
    let [quote @ (b'\'' | b'"'), inner @ .., last] = line else {
        return None;
    };
    if quote != last {
        return None;
    }
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let [escape, tail @ ..] = rest else {
            return None;
        };
        rest = tail;
        bytes.push(match escape {
            b'\\' | b'\'' | b'"' => *escape,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let (digits, tail) = rest.split_first_chunk::<2>()?;
                rest = tail;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            _ => return None,
        });
    }
    Some(bytes)
}

fn scalar<'a>(dtype: Dtype, data: &[u8]) -> Outcome<Object<'a>> {
    let malformed = || "a number of numpy is malformed".to_owned();
    if data.len() != dtype.size {
        return Err(malformed());
    }
    let mut data = data.to_vec();
    if dtype.big {
        data.reverse();
    }
    let negative = dtype.kind == 'i' && data.last().is_some_and(|b| *b >= 0x80);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..data.len()].copy_from_slice(&data);
    Ok(match (dtype.kind, dtype.size) {
        ('b', _) => Object::Bool(data[0] != 0),
        ('f', 4) => Object::Float(f32::from_le_bytes([data[0], data[1], data[2], data[3]]).into()),
        ('f', _) => Object::Float(f64::from_le_bytes(wide)),
        ('u', _) => Object::Int(i64::try_from(u64::from_le_bytes(wide)).map_err(|_| malformed())?),
        _ => Object::Int(i64::from_le_bytes(wide)),
    })
}

/// Elements of `size` bytes with the first dimension fastest, brought into the order with the last
/// fastest.
fn last_fastest(data: &[u8], size: usize, shape: &[usize]) -> Vec<u8> {
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
        for pickle in [
            &b"(S'x'\nios\nsystem\n."[..],
            b"\x80\x02P1\n.",
            b"\x80\x02\x82\x01.",
            b"N)\x81.",
        ] {
            assert!(fault(pickle).contains("opcode"), "{pickle:?}");
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

    /// Whatever a byte is changed to, the reader returns.
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
            b"\x80\x02T\xff\xff\xff\xffabc.",
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
        assert!(fault(&short).contains("shape [2, 3]"));
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

    #[test]
    fn long_integers_are_twos_complement() {
        assert_eq!(long(b""), Some(0));
        assert_eq!(long(b"\xff"), Some(-1));
        assert_eq!(long(b"\xff\0"), Some(255));
        assert_eq!(long(&i64::MIN.to_le_bytes()), Some(i64::MIN));
        assert_eq!(long(b"\0\0\0\0\0\0\0\x80\0"), None);
        assert_eq!(long(b"\x01\0\0\0\0\0\0\0\0\0"), Some(1));
    }
}

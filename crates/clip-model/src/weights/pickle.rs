//! A pickle machine that builds tensors' descriptions and plain containers, and executes nothing.
//!
//! Objects live in an arena and refer to each other by index: what is referred to a thousand times
//! exists once, a container that holds itself is no special case, and nothing here recurses. Every
//! object costs at least a byte of input. Classes outside [`Global::find`] are refused by name.

use std::{collections::HashMap, path::Path};

use super::{ElementType, WeightError, error::quoted, source::Source};

/// Longest pickle that is read. The pickle of a model of 10,000 tensors takes 2 MB.
const MAX_BYTES: u64 = 64 << 20;
/// Most objects a pickle may make.
const MAX_OBJECTS: usize = 2 << 20;
/// Longest line of a text opcode.
const MAX_LINE: usize = 1 << 16;
/// Bytes read from the file at a time.
const WINDOW: u64 = 1 << 16;

/// Index of an object in [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id(u32);

/// What a pickle can hold.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// Does not fit 64 bits.
    Long(Box<i128>),
    Str(Box<str>),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    /// In insertion order; a key may occur twice.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(Box<Tensor>),
    /// An instance of a TorchScript class and its state.
    Record(Option<Id>),
    /// A float, bytes, a set, a device: nothing that tensors depend on.
    Other,
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

/// What a pickle describes.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    /// The object that was pickled.
    pub(super) root: Id,
    /// Offset in the file of the byte after the pickle.
    pub(super) end: u64,
}

impl Pickle {
    /// The object at `id`.
    pub(super) fn get(&self, id: Id) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// All objects, in the order they were made.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The text at `id`, if it is text.
    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The sizes in the tuple (or list) at `id`.
    pub(super) fn sizes(&self, id: Id) -> Option<impl ExactSizeIterator<Item = Option<u64>>> {
        let items: &[Id] = match self.get(id) {
            Node::Tuple(items) => items,
            Node::List(items) => items,
            _ => return None,
        };
        Some(items.iter().map(|item| match self.get(*item) {
            Node::Int(size) => u64::try_from(*size).ok(),
            _ => None,
        }))
    }
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
    let mut machine = Machine {
        input: Input {
            source,
            section,
            position: section.start,
            window: Vec::new(),
            window_start: section.start,
        },
        nodes: vec![Node::None, Node::Bool(false), Node::Bool(true), Node::Other],
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    Ok(Pickle {
        nodes: machine.nodes,
        root,
        end: machine.input.position,
    })
}

const NONE: Id = Id(0);
const FALSE: Id = Id(1);
const TRUE: Id = Id(2);
const OTHER: Id = Id(3);

/// The bytes of a section, read a window at a time.
struct Input<'s, 'a> {
    source: &'s Source<'a>,
    section: Section<'s>,
    position: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl Input<'_, '_> {
    fn left(&self) -> u64 {
        self.section.end.saturating_sub(self.position)
    }

    fn require(&self, count: u64) -> Result<(), WeightError> {
        if count <= self.left() {
            return Ok(());
        }
        Err(WeightError::Truncated {
            path: self.section.path.to_owned(),
            part: format!("the pickle `{}`", self.section.name),
            needed: count,
            left: self.left(),
        })
    }

    fn skip(&mut self, count: u64) -> Result<(), WeightError> {
        self.require(count)?;
        self.position += count;
        Ok(())
    }

    /// The next `count` bytes; nothing is allocated unless they are there.
    fn take(&mut self, count: u64) -> Result<&[u8], WeightError> {
        self.require(count)?;
        let at = self.position;
        let loaded_end = self.window_start + self.window.len() as u64;
        if at < self.window_start || at + count > loaded_end {
            let size = count.max(WINDOW.min(self.left())) as usize;
            self.window.resize(size, 0);
            self.window_start = at;
            self.source
                .read_exact_at(&mut self.window, at)
                .map_err(|e| WeightError::io(self.section.path, e))?;
        }
        self.position += count;
        let from = (at - self.window_start) as usize;
        Ok(&self.window[from..from + count as usize])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WeightError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, WeightError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, WeightError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, WeightError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, WeightError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Text up to the next line feed, which is consumed.
    fn line(&mut self) -> Result<String, WeightError> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                byte => line.push(byte),
            }
            if line.len() > MAX_LINE {
                return Err(self.malformed("a line of text is too long"));
            }
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    fn text(&mut self, len: u64) -> Result<Box<str>, WeightError> {
        let text = std::str::from_utf8(self.take(len)?).map(Box::from);
        text.map_err(|_| self.malformed("a text is not UTF-8"))
    }

    fn malformed(&self, reason: impl Into<String>) -> WeightError {
        WeightError::Pickle {
            path: self.section.path.to_owned(),
            section: self.section.name.to_owned(),
            position: self.position - self.section.start,
            reason: reason.into(),
        }
    }
}

struct Machine<'s, 'a> {
    input: Input<'s, 'a>,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack where a mark was set.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_, '_> {
    fn run(&mut self) -> Result<Id, WeightError> {
        loop {
            if self.input.position - self.input.section.start > MAX_BYTES {
                return Err(self.malformed(format!("it is longer than {} MiB", MAX_BYTES >> 20)));
            }
            match self.input.byte()? {
                b'.' => return self.pop(),
                opcode => self.step(opcode)?,
            }
        }
    }

    #[expect(clippy::too_many_lines, reason = "a table of opcodes")]
    fn step(&mut self, opcode: u8) -> Result<(), WeightError> {
        match opcode {
            // Framing.
            0x80 => {
                let protocol = self.input.byte()?;
                if protocol > 5 {
                    return Err(self.malformed(format!("it has the unknown protocol {protocol}")));
                }
            }
            0x95 => {
                let len = self.input.u64()?;
                self.input.require(len)?;
            }
            // Constants.
            b'N' => self.stack.push(NONE),
            0x88 => self.stack.push(TRUE),
            0x89 => self.stack.push(FALSE),
            b'K' => {
                let value = self.input.byte()?;
                self.push(Node::Int(value.into()))?;
            }
            b'M' => {
                let value = self.input.u16()?;
                self.push(Node::Int(value.into()))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.input.array()?);
                self.push(Node::Int(value.into()))?;
            }
            0x8a => {
                let len = self.input.byte()?;
                self.long(len.into())?;
            }
            0x8b => {
                let len = self.length_i32()?;
                self.long(len)?;
            }
            b'I' => {
                let line = self.input.line()?;
                match line.as_str() {
                    "00" => self.stack.push(FALSE),
                    "01" => self.stack.push(TRUE),
                    digits => self.integer(digits)?,
                }
            }
            b'L' => {
                let line = self.input.line()?;
                self.integer(line.strip_suffix('L').unwrap_or(&line))?;
            }
            b'G' => self.skip_plain(8)?,
            b'F' => {
                self.input.line()?;
                self.stack.push(OTHER);
            }
            // Texts.
            b'X' => {
                let len = self.input.u32()?;
                self.text(len.into())?;
            }
            0x8c => {
                let len = self.input.byte()?;
                self.text(len.into())?;
            }
            0x8d => {
                let len = self.input.u64()?;
                self.text(len)?;
            }
            b'V' => {
                let line = self.input.line()?;
                let text = self.unescape(&line)?;
                self.push(Node::Str(text))?;
            }
            // Python 2's texts, as UTF-8.
            b'T' => {
                let len = self.length_i32()?;
                self.text(len)?;
            }
            b'U' => {
                let len = self.input.byte()?;
                self.text(len.into())?;
            }
            b'S' => {
                let line = self.input.line()?;
                let inner = ['\'', '"']
                    .iter()
                    .find_map(|q| line.strip_prefix(*q)?.strip_suffix(*q))
                    .ok_or_else(|| self.malformed("a text has no quotes"))?;
                let text = self.unescape(inner)?;
                self.push(Node::Str(text))?;
            }
            // Bytes, which nothing depends on.
            b'B' => {
                let len = self.input.u32()?;
                self.skip_plain(len.into())?;
            }
            b'C' => {
                let len = self.input.byte()?;
                self.skip_plain(len.into())?;
            }
            0x8e | 0x96 => {
                let len = self.input.u64()?;
                self.skip_plain(len)?;
            }
            // Containers.
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.push(Node::Tuple(Box::new([])))?,
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let from = self.height(count)?;
                let items = self.stack.drain(from..).collect();
                self.push(Node::Tuple(items))?;
            }
            b't' => {
                let items = self.pop_mark()?.into();
                self.push(Node::Tuple(items))?;
            }
            b']' => self.push(Node::List(Vec::new()))?,
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Node::List(items))?;
            }
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Node::Dict(Vec::new()))?;
                self.set_items(&items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let from = self.height(2)?;
                let pair: Vec<Id> = self.stack.drain(from..).collect();
                self.set_items(&pair)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            0x8f => self.stack.push(OTHER),
            0x90 => {
                self.pop_mark()?;
                self.top()?;
            }
            0x91 => {
                self.pop_mark()?;
                self.stack.push(OTHER);
            }
            // Stack and memo.
            b'0' => {
                // Of a mark, when there is nothing above it.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'q' => {
                let key = self.input.byte()?;
                self.memoize(key.into())?;
            }
            b'r' => {
                let key = self.input.u32()?;
                self.memoize(key)?;
            }
            b'p' => {
                let key = self.memo_key()?;
                self.memoize(key)?;
            }
            0x94 => self.memoize(self.memo.len() as u32)?,
            b'h' => {
                let key = self.input.byte()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = self.input.u32()?;
                self.recall(key)?;
            }
            b'g' => {
                let key = self.memo_key()?;
                self.recall(key)?;
            }
            // Classes, functions, instances.
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id| match self.node(id) {
                    Node::Str(text) => Some(text.to_string()),
                    _ => None,
                };
                let (Some(module), Some(name)) = (text(module), text(name)) else {
                    return Err(self.malformed("the name of a class is not text"));
                };
                self.global(&module, &name)?;
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments)?;
            }
            b'i' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                let items = self.pop_mark()?.into();
                self.global(&module, &name)?;
                let callable = self.pop()?;
                let arguments = self.add(Node::Tuple(items))?;
                self.call(callable, arguments)?;
            }
            b'o' => {
                let items = self.pop_mark()?;
                let Some((callable, items)) = items.split_first() else {
                    return Err(self.malformed("an instance has no class"));
                };
                let arguments = self.add(Node::Tuple(items.into()))?;
                self.call(*callable, arguments)?;
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                match &mut self.nodes[target.0 as usize] {
                    Node::Record(slot) => *slot = Some(state),
                    // Attributes of an OrderedDict: the `_metadata` of a state_dict.
                    Node::Dict(_) => {}
                    _ => return Err(self.malformed("a plain value is given attributes")),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Node::Storage(storage))?;
            }
            _ => {
                return Err(self.malformed(format!(
                    "opcode {opcode:#04x} is not one that tensors and plain containers need"
                )));
            }
        }
        Ok(())
    }

    fn malformed(&self, reason: impl Into<String>) -> WeightError {
        self.input.malformed(reason)
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0 as usize]
    }

    fn add(&mut self, node: Node) -> Result<Id, WeightError> {
        if self.nodes.len() >= MAX_OBJECTS {
            return Err(self.malformed(format!("it makes more than {MAX_OBJECTS} objects")));
        }
        self.nodes.push(node);
        Ok(Id(self.nodes.len() as u32 - 1))
    }

    fn push(&mut self, node: Node) -> Result<(), WeightError> {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    /// The height of the stack below its `count` topmost objects, which have to be above the last
    /// mark.
    fn height(&self, count: usize) -> Result<usize, WeightError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .len()
            .checked_sub(count)
            .filter(|height| *height >= floor)
            .ok_or_else(|| self.malformed("the stack is empty"))
    }

    fn top(&self) -> Result<Id, WeightError> {
        Ok(self.stack[self.height(1)?])
    }

    fn pop(&mut self) -> Result<Id, WeightError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, WeightError> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(self.malformed("a mark is missing")),
        }
    }

    fn length_i32(&mut self) -> Result<u64, WeightError> {
        let len = i32::from_le_bytes(self.input.array()?);
        u64::try_from(len).map_err(|_| self.malformed("a length is negative"))
    }

    fn skip_plain(&mut self, len: u64) -> Result<(), WeightError> {
        self.input.skip(len)?;
        self.stack.push(OTHER);
        Ok(())
    }

    fn text(&mut self, len: u64) -> Result<(), WeightError> {
        if len > MAX_BYTES {
            self.input.require(len)?;
            return Err(self.malformed("a text is too long"));
        }
        let text = self.input.text(len)?;
        self.push(Node::Str(text))
    }

    /// A signed little-endian integer of `len` bytes.
    fn long(&mut self, len: u64) -> Result<(), WeightError> {
        if len > 16 {
            return self.skip_plain(len);
        }
        let bytes = self.input.take(len)?;
        let negative = bytes.last().is_some_and(|b| *b >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 16];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push_integer(i128::from_le_bytes(wide))
    }

    fn integer(&mut self, digits: &str) -> Result<(), WeightError> {
        match digits.parse() {
            Ok(value) => self.push_integer(value),
            Err(_) => Err(self.malformed("an integer is not a number of 128 bits")),
        }
    }

    fn push_integer(&mut self, value: i128) -> Result<(), WeightError> {
        self.push(match i64::try_from(value) {
            Ok(value) => Node::Int(value),
            Err(_) => Node::Long(Box::new(value)),
        })
    }

    /// Text of the protocols 0 and 1, whose backslashes name characters.
    fn unescape(&self, text: &str) -> Result<Box<str>, WeightError> {
        let mut result = String::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                result.push(c);
                continue;
            }
            let digits = match chars.next() {
                Some('x') => 2,
                Some('u') => 4,
                Some('U') => 8,
                Some(c @ ('\\' | '\'' | '"')) => {
                    result.push(c);
                    continue;
                }
                Some('n') => {
                    result.push('\n');
                    continue;
                }
                _ => return Err(self.malformed("a text has an unknown escape")),
            };
            let code: String = chars.by_ref().take(digits).collect();
            let c = u32::from_str_radix(&code, 16)
                .ok()
                .filter(|_| code.len() == digits)
                .and_then(char::from_u32)
                .ok_or_else(|| self.malformed("a text has an invalid escape"))?;
            result.push(c);
        }
        Ok(result.into())
    }

    fn memo_key(&mut self) -> Result<u32, WeightError> {
        let line = self.input.line()?;
        line.parse()
            .map_err(|_| self.malformed("a memo key is not a number"))
    }

    fn memoize(&mut self, key: u32) -> Result<(), WeightError> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), WeightError> {
        match self.memo.get(&key) {
            Some(id) => self.stack.push(*id),
            None => return Err(self.malformed(format!("memo key {key} is not set"))),
        }
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), WeightError> {
        let top = self.top()?;
        match &mut self.nodes[top.0 as usize] {
            Node::List(list) => list.extend_from_slice(items),
            Node::Other => {}
            _ => return Err(self.malformed("items are appended to what is not a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), WeightError> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.nodes[top.0 as usize] {
            Node::Dict(dict) if rest.is_empty() => dict.extend(pairs.iter().map(|[k, v]| (*k, *v))),
            _ => return Err(self.malformed("pairs are put into what is not a dict")),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), WeightError> {
        let section = self.input.section;
        match Global::find(module, name, section.torch_script) {
            Some(global) => self.push(Node::Global(global)),
            None => Err(WeightError::Refused {
                path: section.path.to_owned(),
                section: section.name.to_owned(),
                global: quoted(&format!("{module}.{name}")),
            }),
        }
    }

    /// The result of a known class or function. Nothing is copied, so a shared argument stays
    /// shared.
    fn call(&mut self, callable: Id, arguments: Id) -> Result<(), WeightError> {
        let Node::Global(global) = *self.node(callable) else {
            return Err(self.malformed("what is called is not a class or function"));
        };
        let Node::Tuple(arguments) = self.node(arguments) else {
            return Err(self.malformed("arguments are not a tuple"));
        };
        let wrong = || self.malformed(format!("{global:?} has unexpected arguments"));
        let result = match (global, &**arguments) {
            (
                Global::RebuildTensor | Global::RebuildTensorV3,
                [storage, offset, shape, strides, more @ ..],
            ) if more.len() <= 4 => {
                let (Node::Storage(storage), Node::Int(offset)) =
                    (self.node(*storage), self.node(*offset))
                else {
                    return Err(wrong());
                };
                let dtype = match (global, more) {
                    (Global::RebuildTensorV3, [_, _, dtype, ..]) => match self.node(*dtype) {
                        Node::Global(Global::Dtype(dtype)) => *dtype,
                        _ => return Err(wrong()),
                    },
                    (Global::RebuildTensorV3, _) => return Err(wrong()),
                    _ => storage.dtype,
                };
                Node::Tensor(Box::new(Tensor {
                    storage: *storage,
                    offset: u64::try_from(*offset).map_err(|_| wrong())?,
                    shape: *shape,
                    strides: *strides,
                    dtype,
                }))
            }
            (Global::RebuildParameter, [tensor, ..]) => match self.node(*tensor) {
                Node::Tensor(tensor) => Node::Tensor(tensor.clone()),
                _ => return Err(wrong()),
            },
            (Global::Dict, []) => Node::Dict(Vec::new()),
            // A defaultdict without factory.
            (Global::Dict, [factory]) if matches!(self.node(*factory), Node::None) => {
                Node::Dict(Vec::new())
            }
            (Global::Size | Global::First, [first, ..]) => {
                let first = *first;
                self.stack.push(first);
                return Ok(());
            }
            (Global::Set | Global::Device, _) => Node::Other,
            (Global::Record, _) => Node::Record(None),
            _ => return Err(wrong()),
        };
        self.push(result)
    }

    /// What `('storage', class, key, location, count)` names; legacy files add a view or `None`.
    fn storage(&self, id: Id) -> Result<Storage, WeightError> {
        let wrong = || self.malformed("a persistent id does not name a storage");
        let Node::Tuple(parts) = self.node(id) else {
            return Err(wrong());
        };
        let (parts, view) = match &**parts {
            [parts @ .., view] if parts.len() == 5 => (parts, *view),
            parts => (parts, NONE),
        };
        let &[tag, class, key, _location, count] = parts else {
            return Err(wrong());
        };
        let (Node::Str(tag), Node::Global(Global::Storage(dtype)), Node::Str(_), Node::Int(count)) = (
            self.node(tag),
            self.node(class),
            self.node(key),
            self.node(count),
        ) else {
            return Err(wrong());
        };
        let count = u64::try_from(*count).map_err(|_| wrong())?;
        if **tag != *"storage" {
            return Err(wrong());
        }
        let (skip, count) = match self.node(view) {
            Node::None => (0, count),
            Node::Tuple(view) => {
                let &[_, skip, size] = &**view else {
                    return Err(wrong());
                };
                let (Node::Int(skip), Node::Int(size)) = (self.node(skip), self.node(size)) else {
                    return Err(wrong());
                };
                let (skip, size) = (u64::try_from(*skip), u64::try_from(*size));
                let (Ok(skip), Ok(size)) = (skip, size) else {
                    return Err(wrong());
                };
                if skip.checked_add(size).is_none_or(|end| end > count) {
                    return Err(wrong());
                }
                (skip, size)
            }
            _ => return Err(wrong()),
        };
        Ok(Storage {
            dtype: *dtype,
            key,
            count,
            skip,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Pickle, WeightError> {
        let section = Section {
            path: Path::new("w.pt"),
            name: "data.pkl",
            start: 0,
            end: bytes.len() as u64,
            torch_script: false,
        };
        read_pickle(&Source::Bytes(Cow::Borrowed(bytes)), section)
    }

    #[track_caller]
    fn assert_fails(bytes: &[u8], part: &str) {
        let message = read(bytes).unwrap_err().to_string();
        assert!(
            message.contains(part),
            "{message}\ndoes not contain: {part}"
        );
    }

    /// Python's `repr`, for trees.
    fn show(pickle: &Pickle, id: Id) -> String {
        let list = |ids: &[Id]| {
            ids.iter()
                .map(|i| show(pickle, *i))
                .collect::<Vec<_>>()
                .join(", ")
        };
        match pickle.get(id) {
            Node::None => "None".to_owned(),
            Node::Bool(value) => value.to_string(),
            Node::Int(value) => value.to_string(),
            Node::Long(value) => value.to_string(),
            Node::Str(text) => format!("{text:?}"),
            Node::Tuple(items) => format!("({})", list(items)),
            Node::List(items) => format!("[{}]", list(items)),
            Node::Dict(items) => {
                let pair =
                    |(k, v): &(Id, Id)| format!("{}: {}", show(pickle, *k), show(pickle, *v));
                format!(
                    "{{{}}}",
                    items.iter().map(pair).collect::<Vec<_>>().join(", ")
                )
            }
            Node::Other => "…".to_owned(),
            other => format!("{other:?}"),
        }
    }

    /// Written by `make_fixtures.py`, one per protocol.
    const EVERYTHING: [&[u8]; 4] = [
        include_bytes!("../../tests/fixtures/weights/containers.p2.pkl"),
        include_bytes!("../../tests/fixtures/weights/containers.p3.pkl"),
        include_bytes!("../../tests/fixtures/weights/containers.p4.pkl"),
        include_bytes!("../../tests/fixtures/weights/containers.p5.pkl"),
    ];

    #[test]
    fn plain_containers_of_every_protocol_are_read() {
        for bytes in EVERYTHING {
            let pickle = read(bytes).unwrap();
            assert_eq!(
                show(&pickle, pickle.root),
                "[None, true, 1, -2, 300, 70000, 1099511627776, 1180591620717411303424, \"ü\", …, (), (1), (1, 2), \
                 (1, 2, 3), (1, 2, 3, 4), {\"a\": [1], 5: None}, …, …]"
            );
            assert_eq!(pickle.end, bytes.len() as u64);
        }
    }

    #[test]
    fn the_text_opcodes_of_old_protocols_are_read() {
        let pickle =
            read(b"(lp0\nI5\naI01\naL-7L\naF1.5\naVa\\u00e9\np1\naS'it\\'s'\nag1\naNa.").unwrap();
        assert_eq!(
            show(&pickle, pickle.root),
            "[5, true, -7, …, \"aé\", \"it's\", \"aé\", None]"
        );
        let pickle = read(b"(dVk\nI1\ns((I2\nI3\nltp0\n0g0\n.").unwrap();
        assert_eq!(show(&pickle, pickle.root), "([2, 3])");
    }

    #[test]
    fn code_is_refused_by_name_in_every_protocol() {
        let refused = "the pickle `data.pkl` asks for `posix.system`, which is not a tensor or plain container; nothing was executed; if you trust the file, load it with the tool that wrote it and save only its state_dict, as safetensors";
        assert_fails(b"cposix\nsystem\n(S'id'\ntR.", refused);
        assert_fails(b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R.", refused);
        assert_fails(
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
            refused,
        );
        assert_fails(b"(S'id'\niposix\nsystem\n.", refused);
        assert_fails(b"(cposix\nsystem\nS'id'\no.", refused);
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
    fn nesting_and_self_reference_need_no_stack() {
        let deep = [vec![b']'; 1_000_000], vec![b'a'; 999_999], vec![b'.']].concat();
        read(&deep).unwrap();
        let marks = [vec![b'('; 1_000_000], vec![b't'; 1_000_000], vec![b'.']].concat();
        read(&marks).unwrap();
        // A list that holds itself, and a dict under its own key.
        let pickle = read(b"]q\0h\0a.").unwrap();
        assert!(matches!(pickle.get(pickle.root), Node::List(items) if items[0] == pickle.root));
        read(b"}q\0h\0h\0s.").unwrap();
    }

    #[test]
    fn a_memo_bomb_stays_small() {
        // Each list holds the previous one twice: 2^100 leaves by value, 101 objects by reference.
        let mut bytes = b"]q\0".to_vec();
        for level in 0..100_u8 {
            bytes.extend([b']', b'q', level + 1, b'(', b'h', level, b'h', level, b'e']);
        }
        bytes.push(b'.');
        let pickle = read(&bytes).unwrap();
        assert_eq!(pickle.nodes().len(), 4 + 101);
        // A large list behind many sets, sizes and tags is not copied either.
        let mut bytes = b"]q\0(".to_vec();
        bytes.extend([b'N'; 10_000]);
        bytes.extend(b"eq\0\x85q\x01cbuiltins\nset\nq\x02ctorch\nSize\nq\x03");
        for _ in 0..10_000 {
            bytes.extend(b"h\x02h\x01R0h\x03h\x01R0");
        }
        bytes.push(b'.');
        assert!(read(&bytes).unwrap().nodes().len() < 10_020);
    }

    #[test]
    fn there_are_limits_on_objects_and_length() {
        let many = [vec![b']'; MAX_OBJECTS + 1], vec![b'.']].concat();
        assert_fails(&many, "it makes more than 2097152 objects");
        let long = vec![b'N'; MAX_BYTES as usize + 2];
        assert_fails(&long, "it is longer than 64 MiB");
        assert_fails(
            &[vec![b'I'; 1], vec![b'1'; 100_000]].concat(),
            "a line of text is too long",
        );
    }

    #[test]
    fn declared_lengths_are_compared_with_what_is_left() {
        for opcode in [
            b"X\xff\xff\xff\xff".as_slice(),
            b"\x8c\xff",
            b"\x8d\0\0\0\0\0\0\0\x80",
            b"B\xff\xff\xff\xff",
            b"C\xff",
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"\x95\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x8b\xff\xff\xff\x7f",
            b"\x8a\xff",
            b"T\xff\xff\xff\x7f",
        ] {
            assert_fails(opcode, "ends early: the pickle `data.pkl` needs");
        }
        assert_fails(b"\x8b\xff\xff\xff\xff", "a length is negative");
    }

    #[test]
    fn malformed_pickles_are_named() {
        for (bytes, reason) in [
            (b"\x80\x06.".as_slice(), "unknown protocol 6"),
            (b".", "the stack is empty"),
            (b"N(.", "the stack is empty"),
            (b"t.", "a mark is missing"),
            (b"h\x07.", "memo key 7 is not set"),
            (b"NNa.", "appended to what is not a list"),
            (b"NNNs.", "put into what is not a dict"),
            (b"}(Nu.", "put into what is not a dict"),
            (b"NNb.", "a plain value is given attributes"),
            (b"Pid\n.", "opcode 0x50 is not one"),
            (b"\x82\x01.", "opcode 0x82 is not one"),
            (b"\x97.", "opcode 0x97 is not one"),
            (b"X\x01\0\0\0\xff.", "not UTF-8"),
            (b"I1x\n.", "not a number"),
            (b"NN\x93.", "the name of a class is not text"),
            (b"(o.", "an instance has no class"),
            (b"V\\ud800\n.", "an invalid escape"),
            (b"Sabc\n.", "a text has no quotes"),
        ] {
            assert_fails(bytes, reason);
        }
        let error = read(b"\x80\x02h\x07.").unwrap_err().to_string();
        assert!(
            error.starts_with("w.pt: the pickle `data.pkl` is unusable at byte 4: "),
            "{error}"
        );
    }
}

//! Pickle machine: opcodes, stack and memo.

use std::{collections::HashMap, ops::Range};

use super::{
    Bytes, CallResult, Id, Limits, Node, Objects, Pickle, PickleError, ReadAt, Vocabulary,
    input::Input,
    literal::{long, parse, raw_unicode, unquote},
};

/// Reads the pickle that starts at `section.start` of `source` and ends before `section.end`. The
/// [crate documentation](crate) has an example.
///
/// # Errors
/// - [`PickleError::Unknown`] for a class or function that `vocabulary` does not have
/// - [`PickleError::Truncated`] if the section ends within the pickle
/// - [`PickleError::Malformed`] for damage, exceeded limits, and opcodes that neither the
///   vocabulary nor plain containers need
/// - [`PickleError::Io`] if `source` cannot be read
pub fn read<V: Vocabulary, S: ReadAt + ?Sized>(
    source: &S,
    section: Range<u64>,
    limits: Limits,
    vocabulary: &mut V,
) -> Result<Pickle<V::Known>, PickleError> {
    let mut machine = Machine {
        input: Input::new(source, section.clone(), limits),
        vocabulary,
        objects: Objects::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = loop {
        match machine.input.array()? {
            [b'.'] => break machine.pop()?,
            [opcode] => machine.execute(opcode)?,
        }
    };
    Ok(Pickle {
        objects: machine.objects,
        root,
        end: machine.input.position,
    })
}

/// The state of reading a pickle.
struct Machine<'s, S: ?Sized, V: Vocabulary> {
    input: Input<'s, S>,
    vocabulary: &'s mut V,
    objects: Objects<V::Known>,
    stack: Vec<Id>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<S: ReadAt + ?Sized, V: Vocabulary> Machine<'_, S, V> {
    /// Executes an opcode.
    fn execute(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            0x80 | 0x95 => self.header(opcode),
            b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | 0x8a | 0x8b | b'I' | b'L' | b'G' | b'F' => {
                self.number(opcode)
            }
            b'X' | 0x8c | 0x8d | b'V' | b'T' | b'U' | b'S' | b'B' | b'C' | 0x8e | 0x96 => {
                self.text(opcode)
            }
            b')'
            | 0x85..=0x87
            | b't'
            | b']'
            | b'l'
            | b'}'
            | b'd'
            | b'a'
            | b'e'
            | b's'
            | b'u'
            | 0x8f..=0x91 => self.container(opcode),
            b'(' | b'0' | b'1' | b'2' | b'q' | b'r' | b'p' | 0x94 | b'h' | b'j' | b'g' => {
                self.stack_and_memo(opcode)
            }
            b'c' | 0x93 | b'R' | 0x81 | b'i' | b'o' | b'b' | b'Q' => self.instance(opcode),
            _ => Err(self.malformed(format!(
                "opcode {opcode:#04x} is not supported: the pickle is damaged or not to be trusted"
            ))),
        }
    }

    /// Protocol and frame.
    fn header(&mut self, opcode: u8) -> Result<(), PickleError> {
        if opcode == 0x95 {
            let len = self.input.unsigned::<8>()?;
            return self.input.require(len);
        }
        match self.input.array()? {
            [0..=5] => Ok(()),
            [protocol] => Err(self.malformed(format!("it has the unknown protocol {protocol}"))),
        }
    }

    /// `None`, booleans and numbers.
    fn number(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            b'N' => self.push_id(Id::NONE),
            0x88 => self.push_id(Id::TRUE),
            0x89 => self.push_id(Id::FALSE),
            b'K' => {
                let [value] = self.input.array()?;
                self.push(Node::Int(value.into()))
            }
            b'M' => {
                let value = u16::from_le_bytes(self.input.array()?);
                self.push(Node::Int(value.into()))
            }
            b'J' => {
                let value = i32::from_le_bytes(self.input.array()?);
                self.push(Node::Int(value.into()))
            }
            0x8a => {
                let len = self.input.unsigned::<1>()?;
                self.long(len)
            }
            0x8b => {
                let len = self.signed_length()?;
                self.long(len)
            }
            b'I' | b'L' => {
                let line = self.input.line()?;
                match (opcode, &*line) {
                    (b'I', b"00") => return self.push_id(Id::FALSE),
                    (b'I', b"01") => return self.push_id(Id::TRUE),
                    _ => {}
                }
                match parse(line.strip_suffix(b"L").unwrap_or(&line)) {
                    Some(value) => self.integer(value),
                    None => Err(self.malformed("an integer is not a number of 128 bits")),
                }
            }
            b'G' => {
                let value = f64::from_be_bytes(self.input.array()?);
                self.push(Node::Float(value))
            }
            _ => {
                let line = self.input.line()?;
                match parse(&line) {
                    Some(value) => self.push(Node::Float(value)),
                    None => Err(self.malformed("a float is not a number")),
                }
            }
        }
    }

    /// Pushes a signed little-endian integer of `len` bytes.
    fn long(&mut self, len: u64) -> Result<(), PickleError> {
        if len > 16 {
            self.input.skip(len)?;
            return self.push_id(Id::OPAQUE);
        }
        match long(self.input.take(len)?) {
            Some(value) => self.integer(value),
            None => Err(self.malformed("an integer is not a number of 128 bits")),
        }
    }

    fn integer(&mut self, value: i128) -> Result<(), PickleError> {
        self.push(match i64::try_from(value) {
            Ok(value) => Node::Int(value),
            Err(_) => Node::Long(Box::new(value)),
        })
    }

    /// Texts and bytes.
    fn text(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            b'V' => {
                let line = self.input.line()?;
                let text = raw_unicode(&line);
                let text = text.ok_or_else(|| self.malformed("a text has an invalid escape"))?;
                return self.push(Node::Str(text));
            }
            b'S' => {
                let line = self.input.line()?;
                let bytes = unquote(&line).map_err(|reason| self.malformed(reason))?;
                return self.push(if V::PYTHON_2_TEXT {
                    let text = String::from_utf8(bytes);
                    Node::Str(
                        text.map_err(|_| self.malformed("a text is not UTF-8"))?
                            .into(),
                    )
                } else {
                    Node::Bytes(Bytes::Owned(bytes.into()))
                });
            }
            _ => {}
        }
        let len = match opcode {
            0x8c | b'U' | b'C' => self.input.unsigned::<1>()?,
            b'X' | b'B' => self.input.unsigned::<4>()?,
            b'T' => self.signed_length()?,
            _ => self.input.unsigned::<8>()?,
        };
        match opcode {
            b'X' | 0x8c | 0x8d => self.string(len),
            b'T' | b'U' if V::PYTHON_2_TEXT => self.string(len),
            _ => self.bytes(len),
        }
    }

    fn string(&mut self, len: u64) -> Result<(), PickleError> {
        let text = self.input.text(len)?;
        self.push(Node::Str(text))
    }

    fn bytes(&mut self, len: u64) -> Result<(), PickleError> {
        let range = self.input.skip(len)?;
        self.push(Node::Bytes(Bytes::Range(range)))
    }

    fn signed_length(&mut self) -> Result<u64, PickleError> {
        let len = i32::from_le_bytes(self.input.array()?);
        u64::try_from(len).map_err(|_| self.malformed("a length is negative"))
    }

    /// Tuples, lists, dicts and sets.
    fn container(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            b')' => self.push(Node::Tuple(Box::new([]))),
            0x85..=0x87 => {
                let from = self.height_without(usize::from(opcode - 0x84))?;
                let items = self.stack.drain(from..).collect();
                self.push(Node::Tuple(items))
            }
            b't' => {
                let items = self.pop_mark()?.into();
                self.push(Node::Tuple(items))
            }
            b']' => self.push(Node::List(Vec::new())),
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Node::List(items))
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Node::Dict(Vec::new()))?;
                self.set_items(&items)
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(&items)
            }
            b's' => {
                let from = self.height_without(2)?;
                let pair: Vec<Id> = self.stack.drain(from..).collect();
                self.set_items(&pair)
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)
            }
            // An empty set.
            0x8f => self.push_id(Id::OPAQUE),
            // A frozen set.
            _ => {
                self.pop_mark()?;
                self.push_id(Id::OPAQUE)
            }
        }
    }

    fn append(&mut self, items: &[Id]) -> Result<(), PickleError> {
        let top = self.top()?;
        match &mut self.objects.0[top.0 as usize] {
            Node::List(list) => list.extend_from_slice(items),
            Node::Opaque => {}
            _ => return Err(self.malformed("items are appended to what is not a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), PickleError> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.objects.0[top.0 as usize] {
            Node::Dict(dict) if rest.is_empty() => dict.extend(pairs.iter().map(|[k, v]| (*k, *v))),
            _ => return Err(self.malformed("pairs are put into what is not a dict")),
        }
        Ok(())
    }

    /// Marks, duplicates and the memo.
    fn stack_and_memo(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            b'(' => {
                self.marks.push(self.stack.len());
                self.within_limit(self.marks.len())
            }
            b'0' => {
                // Pops a mark if it is on top.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                    return Ok(());
                }
                self.pop().map(drop)
            }
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push_id(top)
            }
            b'q' | b'r' | b'p' | 0x94 => {
                let key = match opcode {
                    0x94 => self.memo.len() as u32,
                    _ => self.memo_key(opcode == b'q', opcode == b'p')?,
                };
                let top = self.top()?;
                self.memo.insert(key, top);
                Ok(())
            }
            _ => {
                let key = self.memo_key(opcode == b'h', opcode == b'g')?;
                match self.memo.get(&key) {
                    Some(id) => self.push_id(*id),
                    None => Err(self.malformed(format!("memo key {key} is not set"))),
                }
            }
        }
    }

    fn memo_key(&mut self, short: bool, line: bool) -> Result<u32, PickleError> {
        if line {
            let line = self.input.line()?;
            return parse(&line).ok_or_else(|| self.malformed("a memo key is not a number"));
        }
        let key = if short {
            self.input.unsigned::<1>()?
        } else {
            self.input.unsigned::<4>()?
        };
        Ok(key as u32)
    }

    /// Classes, functions, calls, states and persistent ids.
    fn instance(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            b'c' => {
                let (module, name) = (self.input.text_line()?, self.input.text_line()?);
                let known = self.find(&module, &name)?;
                self.push(Node::Known(known))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id| self.objects.text(id).map(str::to_owned);
                let (Some(module), Some(name)) = (text(module), text(name)) else {
                    return Err(self.malformed("the name of a class is not text"));
                };
                let known = self.find(&module, &name)?;
                self.push(Node::Known(known))
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments)
            }
            b'i' => {
                let (module, name) = (self.input.text_line()?, self.input.text_line()?);
                let items = self.pop_mark()?.into();
                let known = self.find(&module, &name)?;
                let callable = self.add(Node::Known(known))?;
                let arguments = self.add(Node::Tuple(items))?;
                self.call(callable, arguments)
            }
            b'o' => {
                let items = self.pop_mark()?;
                let Some((callable, items)) = items.split_first() else {
                    return Err(self.malformed("an instance has no class"));
                };
                let arguments = self.add(Node::Tuple(items.into()))?;
                self.call(*callable, arguments)
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                let built = self.vocabulary.build(&self.objects, target, state);
                if let Some(node) = built.map_err(|reason| self.malformed(reason))? {
                    self.objects.0[target.0 as usize] = node;
                }
                Ok(())
            }
            _ => {
                let id = self.pop()?;
                let node = self.vocabulary.persistent(&self.objects, id);
                let node = node.map_err(|reason| self.malformed(reason))?;
                self.push(node)
            }
        }
    }

    fn find(&mut self, module: &str, name: &str) -> Result<V::Known, PickleError> {
        self.vocabulary
            .find(module, name)
            .ok_or_else(|| PickleError::Unknown {
                global: format!("{module}.{name}"),
                position: self.input.offset(),
            })
    }

    /// Pushes the result of a call. Arguments are not copied, so a shared one stays shared.
    fn call(&mut self, callable: Id, arguments: Id) -> Result<(), PickleError> {
        let Node::Known(known) = self.objects.get(callable) else {
            return Err(self.malformed("what is called is not a class or function"));
        };
        let Node::Tuple(arguments) = self.objects.get(arguments) else {
            return Err(self.malformed("arguments are not a tuple"));
        };
        let result = self.vocabulary.call(&self.objects, known, arguments);
        match result.map_err(|reason| self.malformed(reason))? {
            CallResult::New(node) => self.push(node),
            CallResult::Existing(id) => self.push_id(id),
        }
    }

    /// Adds an object to the arena.
    fn add(&mut self, node: Node<V::Known>) -> Result<Id, PickleError> {
        self.objects.0.push(node);
        self.within_limit(self.objects.0.len())?;
        Ok(Id(self.objects.0.len() as u32 - 1))
    }

    /// Adds an object to the arena and pushes it.
    fn push(&mut self, node: Node<V::Known>) -> Result<(), PickleError> {
        let id = self.add(node)?;
        self.push_id(id)
    }

    /// Pushes an existing object.
    fn push_id(&mut self, id: Id) -> Result<(), PickleError> {
        self.stack.push(id);
        self.within_limit(self.stack.len())
    }

    fn within_limit(&self, count: usize) -> Result<(), PickleError> {
        let limit = self.input.limits.objects;
        if count > limit {
            return Err(self.malformed(format!("it makes more than {limit} objects")));
        }
        Ok(())
    }

    /// Returns the height of the stack without its `count` topmost objects. Fails unless these are
    /// above the last mark.
    fn height_without(&self, count: usize) -> Result<usize, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .len()
            .checked_sub(count)
            .filter(|height| *height >= floor)
            .ok_or_else(|| self.malformed("the stack is empty"))
    }

    fn top(&self) -> Result<Id, PickleError> {
        Ok(self.stack[self.height_without(1)?])
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Pops the last mark and returns the objects above it.
    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(self.malformed("a mark is missing")),
        }
    }

    fn malformed(&self, reason: impl Into<String>) -> PickleError {
        self.input.malformed(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Plain;

    /// A list class, a function that returns its argument, and a class with a state.
    struct TestVocabulary;

    #[derive(Debug)]
    enum Known {
        List,
        Same,
        Point,
        Moved(Id),
    }

    impl Vocabulary for TestVocabulary {
        type Known = Known;
        const PYTHON_2_TEXT: bool = false;

        fn find(&mut self, module: &str, name: &str) -> Option<Known> {
            match (module, name) {
                ("m", "list") => Some(Known::List),
                ("m", "same") => Some(Known::Same),
                ("m", "Point") => Some(Known::Point),
                _ => None,
            }
        }

        fn call(
            &mut self,
            _: &Objects<Known>,
            callable: &Known,
            arguments: &[Id],
        ) -> Result<CallResult<Known>, String> {
            match (callable, arguments) {
                (Known::List, items) => Ok(CallResult::New(Node::List(items.to_vec()))),
                (Known::Same, [item]) => Ok(CallResult::Existing(*item)),
                (Known::Point, []) => Ok(CallResult::New(Node::Known(Known::Point))),
                _ => Err(format!("{callable:?} has unexpected arguments")),
            }
        }

        fn build(
            &mut self,
            objects: &Objects<Known>,
            target: Id,
            state: Id,
        ) -> Result<Option<Node<Known>>, String> {
            match objects.get(target) {
                Node::Known(Known::Point) => Ok(Some(Node::Known(Known::Moved(state)))),
                Node::Dict(_) => Ok(None),
                _ => Err("a plain value is given attributes".into()),
            }
        }

        fn persistent(&mut self, objects: &Objects<Known>, id: Id) -> Result<Node<Known>, String> {
            match objects.text(id) {
                Some(text) => Ok(Node::Str(format!("<{text}>").into())),
                None => Err("a persistent id is not text".into()),
            }
        }
    }

    fn run<V: Vocabulary>(
        bytes: &[u8],
        mut vocabulary: V,
    ) -> Result<Pickle<V::Known>, PickleError> {
        let end = bytes.len() as u64;
        read(bytes, 0..end, Limits::default(), &mut vocabulary)
    }

    #[track_caller]
    fn assert_fails(bytes: &[u8], part: &str) {
        let message = run(bytes, TestVocabulary).unwrap_err().to_string();
        assert!(
            message.contains(part),
            "{message}\ndoes not contain: {part}"
        );
    }

    /// Formats an object like Python's `repr`. Shared objects are repeated.
    fn repr<T: std::fmt::Debug>(bytes: &[u8], pickle: &Pickle<T>, id: Id) -> String {
        let list = |ids: &[Id]| {
            let items: Vec<String> = ids.iter().map(|i| repr(bytes, pickle, *i)).collect();
            items.join(", ")
        };
        match pickle.get(id) {
            Node::None => "None".to_owned(),
            Node::Bool(value) => value.to_string(),
            Node::Int(value) => value.to_string(),
            Node::Long(value) => value.to_string(),
            Node::Float(value) => value.to_string(),
            Node::Str(text) => format!("{text:?}"),
            Node::Bytes(text) => format!("b{:?}", text.resolve(bytes)),
            Node::Tuple(items) => format!("({})", list(items)),
            Node::List(items) => format!("[{}]", list(items)),
            Node::Dict(items) => {
                let pairs = items
                    .iter()
                    .map(|(k, v)| list(&[*k, *v]).replacen(", ", ": ", 1));
                format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
            }
            Node::Opaque => "…".to_owned(),
            Node::Known(known) => format!("{known:?}"),
        }
    }

    fn read_repr<V: Vocabulary<Known: std::fmt::Debug>>(bytes: &[u8], vocabulary: V) -> String {
        let pickle = run(bytes, vocabulary).unwrap();
        assert_eq!(pickle.end, bytes.len() as u64);
        repr(bytes, &pickle, pickle.root)
    }

    /// Written by `make_fixtures.py` of `clip-model`'s weights, one per protocol.
    const CONTAINERS: [&[u8]; 4] = [
        include_bytes!("testdata/containers.p2.pkl"),
        include_bytes!("testdata/containers.p3.pkl"),
        include_bytes!("testdata/containers.p4.pkl"),
        include_bytes!("testdata/containers.p5.pkl"),
    ];

    #[test]
    fn the_text_opcodes_of_old_protocols_are_read() {
        let bytes = b"(lp0\nI5\naI01\naL-7L\naF1.5\naVa\\u00e9\np1\naS'it\\'s'\nag1\naNa.";
        let shared = |text| format!("[5, true, -7, 1.5, \"aé\", {text}, \"aé\", None]");
        assert_eq!(read_repr(bytes, Plain), shared("\"it's\""));
        assert_eq!(
            read_repr(bytes, TestVocabulary),
            shared("b[105, 116, 39, 115]")
        );
        assert_eq!(
            read_repr(b"(dVk\nI1\ns((I2\nI3\nltp0\n0g0\n.", Plain),
            "([2, 3])"
        );
    }

    #[test]
    fn plain_containers_of_every_protocol_are_read() {
        struct Sets;
        impl Vocabulary for Sets {
            type Known = ();
            const PYTHON_2_TEXT: bool = true;
            fn find(&mut self, module: &str, name: &str) -> Option<()> {
                let module = matches!(module, "builtins" | "__builtin__" | "_codecs");
                (module && matches!(name, "set" | "frozenset" | "encode" | "bytes")).then_some(())
            }
            fn call(
                &mut self,
                _: &Objects<()>,
                (): &(),
                _: &[Id],
            ) -> Result<CallResult<()>, String> {
                Ok(CallResult::New(Node::Known(())))
            }
            fn build(&mut self, _: &Objects<()>, _: Id, _: Id) -> Result<Option<Node<()>>, String> {
                Ok(None)
            }
            fn persistent(&mut self, _: &Objects<()>, _: Id) -> Result<Node<()>, String> {
                Ok(Node::None)
            }
        }
        for bytes in CONTAINERS {
            let text = read_repr(bytes, Sets);
            let start =
                "[None, true, 1, -2, 300, 70000, 1099511627776, 1180591620717411303424, \"ü\", ";
            assert!(text.starts_with(start), "{text}");
            let middle = "(), (1), (1, 2), (1, 2, 3), (1, 2, 3, 4), {\"a\": [1], 5: None}, ";
            assert!(text.contains(middle), "{text}");
        }
    }

    #[test]
    fn calls_share_arguments_and_states_replace_objects() {
        assert_eq!(
            read_repr(b"cm\nlist\n(I1\nI2\ntR.", TestVocabulary),
            "[1, 2]"
        );
        assert_eq!(read_repr(b"(I1\nim\nlist\n.", TestVocabulary), "[1]");
        assert_eq!(read_repr(b"(cm\nlist\nI1\no.", TestVocabulary), "[1]");
        assert_eq!(
            read_repr(b"\x80\x04\x8c\x01m\x8c\x04list\x93)\x81.", TestVocabulary),
            "[]"
        );
        assert_eq!(read_repr(b"X\x01\0\0\0aQ.", TestVocabulary), "\"<a>\"");
        let pickle = run(b"]q\0cm\nsame\nh\0\x85R\x86.", TestVocabulary).unwrap();
        let Node::Tuple(pair) = pickle.get(pickle.root) else {
            panic!("{pickle:?}")
        };
        assert_eq!(pair[0], pair[1]);
        // The state replaces the object wherever it is referred to.
        let pickle = run(b"cm\nPoint\n)Rq\0I7\nbh\0\x86.", TestVocabulary).unwrap();
        let Node::Tuple(pair) = pickle.get(pickle.root) else {
            panic!("{pickle:?}")
        };
        let Node::Known(Known::Moved(state)) = pickle.get(pair[1]) else {
            panic!("{pickle:?}")
        };
        assert!(matches!(pickle.get(*state), Node::Int(7)));
        assert_eq!(read_repr(b"}Nb.", TestVocabulary), "{}");
        assert_fails(b"cm\nsame\n)R.", "Same has unexpected arguments");
        assert_fails(b"N)R.", "what is called is not a class or function");
        assert_fails(b"cm\nsame\nNR.", "arguments are not a tuple");
        assert_fails(b"NNb.", "a plain value is given attributes");
        assert_fails(b"NQ.", "a persistent id is not text");
    }

    #[test]
    fn unknown_functions_are_refused_by_name() {
        for bytes in [
            &b"cposix\nsystem\n(S'id'\ntR."[..],
            b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
            b"(S'id'\niposix\nsystem\n.",
            b"(cposix\nsystem\nS'id'\no.",
        ] {
            assert_fails(bytes, "it asks for `posix.system` at byte ");
        }
        assert_fails(b"c\x1b[2J\nx\n.", "`\\u{1b}[2J.x`");
    }

    #[test]
    fn deep_nesting_and_self_reference_are_read() {
        let deep = [vec![b']'; 1_000_000], vec![b'a'; 999_999], vec![b'.']].concat();
        run(&deep, Plain).unwrap();
        let marks = [vec![b'('; 1_000_000], vec![b't'; 1_000_000], vec![b'.']].concat();
        run(&marks, Plain).unwrap();
        // A list that holds itself, and a dict under its own key.
        let pickle = run(b"]q\0h\0a.", Plain).unwrap();
        assert!(matches!(pickle.get(pickle.root), Node::List(items) if items[0] == pickle.root));
        run(b"}q\0h\0h\0s.", Plain).unwrap();
    }

    #[test]
    fn shared_objects_are_not_copied() {
        // Each list holds the previous one twice: 2^100 leaves by value, 101 objects by reference.
        let mut bytes = b"]q\0".to_vec();
        for level in 0..100_u8 {
            bytes.extend([b']', b'q', level + 1, b'(', b'h', level, b'h', level, b'e']);
        }
        bytes.push(b'.');
        assert_eq!(run(&bytes, Plain).unwrap().all().len(), 4 + 101);
        // A large list that is passed to calls is not copied either.
        let mut bytes = b"]q\0(".to_vec();
        bytes.extend([b'N'; 10_000]);
        bytes.extend(b"eq\0\x85q\x01cm\nsame\nq\x02");
        for _ in 0..10_000 {
            bytes.extend(b"h\x02h\x01R0");
        }
        bytes.push(b'.');
        assert!(run(&bytes, TestVocabulary).unwrap().all().len() < 10_020);
    }

    #[test]
    fn limits_on_objects_and_length_hold() {
        let objects = Limits::default().objects;
        for many in [
            [vec![b']'; objects + 1], vec![b'.']].concat(),
            [vec![b'N'; objects + 1], vec![b'.']].concat(),
            [vec![b'('; objects + 1], vec![b'.']].concat(),
        ] {
            assert_fails(&many, "it makes more than 2097152 objects");
        }
        let long = b"N0".repeat(Limits::default().bytes as usize / 2 + 1);
        assert_fails(&long, "it is longer than 64 MiB");
        let line = [vec![b'I'; 1], vec![b'1'; 100_000]].concat();
        assert_fails(&line, "a line of text is too long");
    }

    #[test]
    fn declared_lengths_beyond_the_end_are_truncations() {
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
            assert_fails(opcode, "it ends early: ");
        }
        assert_fails(b"\x8b\xff\xff\xff\xff", "a length is negative");
    }

    #[test]
    fn malformed_pickles_are_refused_with_a_reason() {
        for (bytes, reason) in [
            (b"\x80\x06.".as_slice(), "unknown protocol 6"),
            (b".", "the stack is empty"),
            (b"N(.", "the stack is empty"),
            (b"t.", "a mark is missing"),
            (b"h\x07.", "memo key 7 is not set"),
            (b"NNa.", "appended to what is not a list"),
            (b"NNNs.", "put into what is not a dict"),
            (b"}(Nu.", "put into what is not a dict"),
            (b"Pid\n.", "opcode 0x50 is not supported"),
            (b"\x82\x01.", "opcode 0x82 is not supported"),
            (b"\x97.", "opcode 0x97 is not supported"),
            (b"X\x01\0\0\0\xff.", "not UTF-8"),
            (b"I1x\n.", "not a number"),
            (b"F1x\n.", "not a number"),
            (b"NN\x93.", "the name of a class is not text"),
            (b"(o.", "an instance has no class"),
            (b"V\\ud800\n.", "an invalid escape"),
            (b"Sabc\n.", "a text has no quotes"),
        ] {
            assert_fails(bytes, reason);
        }
        assert_fails(b"\x80\x02h\x07.", "(at byte 4)");
    }
}

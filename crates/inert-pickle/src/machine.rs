//! The opcodes, the stack and the memo.

use std::{collections::HashMap, ops::Range};

use super::{
    Bytes, Fault, Id, Limits, Made, Node, Objects, Pickle, ReadAt, Vocabulary,
    input::Input,
    literal::{long, parse, raw_unicode, unquote},
};

/// Reads the pickle that begins at `section.start` of `source` and ends before `section.end`.
///
/// # Errors
/// [`Fault::Unknown`] for a class or function that `vocabulary` does not have;
/// [`Fault::Truncated`] and [`Fault::Malformed`] for damage, and for opcodes that neither the
/// vocabulary nor plain containers need; [`Fault::Io`] from `source`.
pub fn read<V: Vocabulary, S: ReadAt + ?Sized>(
    source: &S,
    section: Range<u64>,
    limits: Limits,
    vocabulary: &mut V,
) -> Result<Pickle<V::Known>, Fault> {
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
            [opcode] => machine.step(opcode)?,
        }
    };
    Ok(Pickle {
        objects: machine.objects,
        root,
        end: machine.input.position,
    })
}

struct Machine<'s, S: ?Sized, V: Vocabulary> {
    input: Input<'s, S>,
    vocabulary: &'s mut V,
    objects: Objects<V::Known>,
    stack: Vec<Id>,
    /// Heights of the stack where a mark was set.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<S: ReadAt + ?Sized, V: Vocabulary> Machine<'_, S, V> {
    /// Runs an opcode, by its kind.
    fn step(&mut self, opcode: u8) -> Result<(), Fault> {
        match opcode {
            0x80 | 0x95 => self.frame(opcode),
            b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | 0x8a | 0x8b | b'I' | b'L' | b'G' | b'F' => {
                self.number(opcode)
            }
            b'X' | 0x8c | 0x8d | b'V' | b'T' | b'U' | b'S' | b'B' | b'C' | 0x8e | 0x96 => {
                self.text(opcode)
            }
            b')' | 0x85..=0x87 | b't' | b']' | b'l' | b'}' | b'd' | b'a' | b'e' | b's' | b'u'
            | 0x8f..=0x91 => self.container(opcode),
            b'(' | b'0' | b'1' | b'2' | b'q' | b'r' | b'p' | 0x94 | b'h' | b'j' | b'g' => {
                self.stack_and_memo(opcode)
            }
            b'c' | 0x93 | b'R' | 0x81 | b'i' | b'o' | b'b' | b'Q' => self.instance(opcode),
            _ => Err(self.malformed(format!(
                "opcode {opcode:#04x} is not one that data needs: it is damaged or not to be trusted"
            ))),
        }
    }

    fn frame(&mut self, opcode: u8) -> Result<(), Fault> {
        if opcode == 0x95 {
            let len = self.input.number::<8>()?;
            return self.input.require(len);
        }
        match self.input.array()? {
            [0..=5] => Ok(()),
            [protocol] => Err(self.malformed(format!("it has the unknown protocol {protocol}"))),
        }
    }

    fn number(&mut self, opcode: u8) -> Result<(), Fault> {
        match opcode {
            b'N' => self.put(Id::NONE),
            0x88 => self.put(Id::TRUE),
            0x89 => self.put(Id::FALSE),
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
                let len = self.input.number::<1>()?;
                self.long(len)
            }
            0x8b => {
                let len = self.signed_length()?;
                self.long(len)
            }
            b'I' | b'L' => {
                let line = self.input.line()?;
                match (opcode, &*line) {
                    (b'I', b"00") => return self.put(Id::FALSE),
                    (b'I', b"01") => return self.put(Id::TRUE),
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

    /// A signed little-endian integer of `len` bytes.
    fn long(&mut self, len: u64) -> Result<(), Fault> {
        if len > 16 {
            self.input.skip(len)?;
            return self.put(Id::OPAQUE);
        }
        match long(self.input.take(len)?) {
            Some(value) => self.integer(value),
            None => Err(self.malformed("an integer is not a number of 128 bits")),
        }
    }

    fn integer(&mut self, value: i128) -> Result<(), Fault> {
        self.push(match i64::try_from(value) {
            Ok(value) => Node::Int(value),
            Err(_) => Node::Long(Box::new(value)),
        })
    }

    fn text(&mut self, opcode: u8) -> Result<(), Fault> {
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
                    Node::Bytes(Bytes::Own(bytes.into()))
                });
            }
            _ => {}
        }
        let len = match opcode {
            0x8c | b'U' | b'C' => self.input.number::<1>()?,
            b'X' | b'B' => self.input.number::<4>()?,
            b'T' => self.signed_length()?,
            _ => self.input.number::<8>()?,
        };
        match opcode {
            b'X' | 0x8c | 0x8d => self.string(len),
            b'T' | b'U' if V::PYTHON_2_TEXT => self.string(len),
            _ => self.bytes(len),
        }
    }

    fn string(&mut self, len: u64) -> Result<(), Fault> {
        let text = self.input.text(len)?;
        self.push(Node::Str(text))
    }

    fn bytes(&mut self, len: u64) -> Result<(), Fault> {
        let place = self.input.skip(len)?;
        self.push(Node::Bytes(Bytes::Place(place)))
    }

    fn signed_length(&mut self) -> Result<u64, Fault> {
        let len = i32::from_le_bytes(self.input.array()?);
        u64::try_from(len).map_err(|_| self.malformed("a length is negative"))
    }

    fn container(&mut self, opcode: u8) -> Result<(), Fault> {
        match opcode {
            b')' => self.push(Node::Tuple(Box::new([]))),
            0x85..=0x87 => {
                let from = self.height(usize::from(opcode - 0x84))?;
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
                let from = self.height(2)?;
                let pair: Vec<Id> = self.stack.drain(from..).collect();
                self.set_items(&pair)
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)
            }
            // An empty set, and a frozen one.
            0x8f => self.put(Id::OPAQUE),
            _ => {
                self.pop_mark()?;
                self.put(Id::OPAQUE)
            }
        }
    }

    fn append(&mut self, items: &[Id]) -> Result<(), Fault> {
        let top = self.top()?;
        match &mut self.objects.0[top.0 as usize] {
            Node::List(list) => list.extend_from_slice(items),
            Node::Opaque => {}
            _ => return Err(self.malformed("items are appended to what is not a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), Fault> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.objects.0[top.0 as usize] {
            Node::Dict(dict) if rest.is_empty() => dict.extend(pairs.iter().map(|[k, v]| (*k, *v))),
            _ => return Err(self.malformed("pairs are put into what is not a dict")),
        }
        Ok(())
    }

    fn stack_and_memo(&mut self, opcode: u8) -> Result<(), Fault> {
        match opcode {
            b'(' => {
                self.marks.push(self.stack.len());
                self.within_limit(self.marks.len())
            }
            b'0' => {
                // Of a mark, when there is nothing above it.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                    return Ok(());
                }
                self.pop().map(drop)
            }
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.put(top)
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
                    Some(id) => self.put(*id),
                    None => Err(self.malformed(format!("memo key {key} is not set"))),
                }
            }
        }
    }

    fn memo_key(&mut self, short: bool, line: bool) -> Result<u32, Fault> {
        if line {
            let line = self.input.line()?;
            return parse(&line).ok_or_else(|| self.malformed("a memo key is not a number"));
        }
        let key = if short {
            self.input.number::<1>()?
        } else {
            self.input.number::<4>()?
        };
        Ok(key as u32)
    }

    /// Classes, functions, what they make, and persistent ids.
    fn instance(&mut self, opcode: u8) -> Result<(), Fault> {
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

    fn find(&mut self, module: &str, name: &str) -> Result<V::Known, Fault> {
        self.vocabulary
            .find(module, name)
            .ok_or_else(|| Fault::Unknown {
                global: format!("{module}.{name}"),
                position: self.input.offset(),
            })
    }

    /// The result of a known class or function. Nothing is copied, so a shared argument stays
    /// shared.
    fn call(&mut self, callable: Id, arguments: Id) -> Result<(), Fault> {
        let Node::Known(known) = self.objects.get(callable) else {
            return Err(self.malformed("what is called is not a class or function"));
        };
        let Node::Tuple(arguments) = self.objects.get(arguments) else {
            return Err(self.malformed("arguments are not a tuple"));
        };
        let made = self.vocabulary.call(&self.objects, known, arguments);
        match made.map_err(|reason| self.malformed(reason))? {
            Made::New(node) => self.push(node),
            Made::Same(id) => self.put(id),
        }
    }

    fn add(&mut self, node: Node<V::Known>) -> Result<Id, Fault> {
        self.objects.0.push(node);
        self.within_limit(self.objects.0.len())?;
        Ok(Id(self.objects.0.len() as u32 - 1))
    }

    fn push(&mut self, node: Node<V::Known>) -> Result<(), Fault> {
        let id = self.add(node)?;
        self.put(id)
    }

    fn put(&mut self, id: Id) -> Result<(), Fault> {
        self.stack.push(id);
        self.within_limit(self.stack.len())
    }

    fn within_limit(&self, count: usize) -> Result<(), Fault> {
        let limit = self.input.limits.objects;
        if count > limit {
            return Err(self.malformed(format!("it makes more than {limit} objects")));
        }
        Ok(())
    }

    /// The height of the stack below its `count` topmost objects, which have to be above the last
    /// mark.
    fn height(&self, count: usize) -> Result<usize, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .len()
            .checked_sub(count)
            .filter(|height| *height >= floor)
            .ok_or_else(|| self.malformed("the stack is empty"))
    }

    fn top(&self) -> Result<Id, Fault> {
        Ok(self.stack[self.height(1)?])
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Fault> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(self.malformed("a mark is missing")),
        }
    }

    fn malformed(&self, reason: impl Into<String>) -> Fault {
        self.input.malformed(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Plain;

    /// A list class, a function that returns its argument, and a class with a state.
    struct Test;

    #[derive(Debug)]
    enum Known {
        List,
        Same,
        Point,
        Moved(Id),
    }

    impl Vocabulary for Test {
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
        ) -> Result<Made<Known>, String> {
            match (callable, arguments) {
                (Known::List, items) => Ok(Made::New(Node::List(items.to_vec()))),
                (Known::Same, [item]) => Ok(Made::Same(*item)),
                (Known::Point, []) => Ok(Made::New(Node::Known(Known::Point))),
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

    fn run<V: Vocabulary>(bytes: &[u8], mut vocabulary: V) -> Result<Pickle<V::Known>, Fault> {
        let end = bytes.len() as u64;
        read(bytes, 0..end, Limits::default(), &mut vocabulary)
    }

    #[track_caller]
    fn assert_fails(bytes: &[u8], part: &str) {
        let message = run(bytes, Test).unwrap_err().to_string();
        assert!(
            message.contains(part),
            "{message}\ndoes not contain: {part}"
        );
    }

    /// Python's `repr`, for trees.
    fn show<T: std::fmt::Debug>(bytes: &[u8], pickle: &Pickle<T>, id: Id) -> String {
        let list = |ids: &[Id]| {
            let items: Vec<String> = ids.iter().map(|i| show(bytes, pickle, *i)).collect();
            items.join(", ")
        };
        match pickle.get(id) {
            Node::None => "None".to_owned(),
            Node::Bool(value) => value.to_string(),
            Node::Int(value) => value.to_string(),
            Node::Long(value) => value.to_string(),
            Node::Float(value) => value.to_string(),
            Node::Str(text) => format!("{text:?}"),
            Node::Bytes(text) => format!("b{:?}", text.within(bytes)),
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

    fn shown<V: Vocabulary<Known: std::fmt::Debug>>(bytes: &[u8], vocabulary: V) -> String {
        let pickle = run(bytes, vocabulary).unwrap();
        assert_eq!(pickle.end, bytes.len() as u64);
        show(bytes, &pickle, pickle.root)
    }

    /// Written by the weights' `make_fixtures.py`, one per protocol.
    const EVERYTHING: [&[u8]; 4] = [
        include_bytes!("testdata/containers.p2.pkl"),
        include_bytes!("testdata/containers.p3.pkl"),
        include_bytes!("testdata/containers.p4.pkl"),
        include_bytes!("testdata/containers.p5.pkl"),
    ];

    #[test]
    fn the_text_opcodes_of_old_protocols_are_read() {
        let bytes = b"(lp0\nI5\naI01\naL-7L\naF1.5\naVa\\u00e9\np1\naS'it\\'s'\nag1\naNa.";
        let shared = |text| format!("[5, true, -7, 1.5, \"aé\", {text}, \"aé\", None]");
        assert_eq!(shown(bytes, Plain), shared("\"it's\""));
        assert_eq!(shown(bytes, Test), shared("b[105, 116, 39, 115]"));
        assert_eq!(
            shown(b"(dVk\nI1\ns((I2\nI3\nltp0\n0g0\n.", Plain),
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
            fn call(&mut self, _: &Objects<()>, (): &(), _: &[Id]) -> Result<Made<()>, String> {
                Ok(Made::New(Node::Known(())))
            }
            fn build(&mut self, _: &Objects<()>, _: Id, _: Id) -> Result<Option<Node<()>>, String> {
                Ok(None)
            }
            fn persistent(&mut self, _: &Objects<()>, _: Id) -> Result<Node<()>, String> {
                Ok(Node::None)
            }
        }
        for bytes in EVERYTHING {
            let text = shown(bytes, Sets);
            let start =
                "[None, true, 1, -2, 300, 70000, 1099511627776, 1180591620717411303424, \"ü\", ";
            assert!(text.starts_with(start), "{text}");
            let middle = "(), (1), (1, 2), (1, 2, 3), (1, 2, 3, 4), {\"a\": [1], 5: None}, ";
            assert!(text.contains(middle), "{text}");
        }
    }

    #[test]
    fn known_classes_make_share_and_are_built() {
        assert_eq!(shown(b"cm\nlist\n(I1\nI2\ntR.", Test), "[1, 2]");
        assert_eq!(shown(b"(I1\nim\nlist\n.", Test), "[1]");
        assert_eq!(shown(b"(cm\nlist\nI1\no.", Test), "[1]");
        assert_eq!(
            shown(b"\x80\x04\x8c\x01m\x8c\x04list\x93)\x81.", Test),
            "[]"
        );
        assert_eq!(shown(b"X\x01\0\0\0aQ.", Test), "\"<a>\"");
        let pickle = run(b"]q\0cm\nsame\nh\0\x85R\x86.", Test).unwrap();
        let Node::Tuple(pair) = pickle.get(pickle.root) else {
            panic!("{pickle:?}")
        };
        assert_eq!(pair[0], pair[1]);
        // The state replaces the object wherever it is referred to.
        let pickle = run(b"cm\nPoint\n)Rq\0I7\nbh\0\x86.", Test).unwrap();
        let Node::Tuple(pair) = pickle.get(pickle.root) else {
            panic!("{pickle:?}")
        };
        let Node::Known(Known::Moved(state)) = pickle.get(pair[1]) else {
            panic!("{pickle:?}")
        };
        assert!(matches!(pickle.get(*state), Node::Int(7)));
        assert_eq!(shown(b"}Nb.", Test), "{}");
        assert_fails(b"cm\nsame\n)R.", "Same has unexpected arguments");
        assert_fails(b"N)R.", "what is called is not a class or function");
        assert_fails(b"cm\nsame\nNR.", "arguments are not a tuple");
        assert_fails(b"NNb.", "a plain value is given attributes");
        assert_fails(b"NQ.", "a persistent id is not text");
    }

    #[test]
    fn code_is_refused_by_name_in_every_protocol() {
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
    fn nesting_and_self_reference_need_no_stack() {
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
    fn a_memo_bomb_stays_small() {
        // Each list holds the previous one twice: 2^100 leaves by value, 101 objects by reference.
        let mut bytes = b"]q\0".to_vec();
        for level in 0..100_u8 {
            bytes.extend([b']', b'q', level + 1, b'(', b'h', level, b'h', level, b'e']);
        }
        bytes.push(b'.');
        assert_eq!(run(&bytes, Plain).unwrap().all().len(), 4 + 101);
        // A large list that is handed around is not copied either.
        let mut bytes = b"]q\0(".to_vec();
        bytes.extend([b'N'; 10_000]);
        bytes.extend(b"eq\0\x85q\x01cm\nsame\nq\x02");
        for _ in 0..10_000 {
            bytes.extend(b"h\x02h\x01R0");
        }
        bytes.push(b'.');
        assert!(run(&bytes, Test).unwrap().all().len() < 10_020);
    }

    #[test]
    fn there_are_limits_on_objects_and_length() {
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
            assert_fails(opcode, "it ends early: ");
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
            (b"Pid\n.", "opcode 0x50 is not one"),
            (b"\x82\x01.", "opcode 0x82 is not one"),
            (b"\x97.", "opcode 0x97 is not one"),
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

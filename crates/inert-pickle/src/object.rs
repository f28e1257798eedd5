//! Objects of a pickle.

use std::ops::{Deref, Range};

/// Index of an object in the arena of a pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id(pub(crate) u32);

impl Id {
    /// `None`, which every pickle has.
    pub const NONE: Self = Self(0);
    pub(crate) const FALSE: Self = Self(1);
    pub(crate) const TRUE: Self = Self(2);
    pub(crate) const OPAQUE: Self = Self(3);
}

/// An object. `T` is the type of the vocabulary's objects.
#[derive(Debug)]
pub enum Node<T> {
    /// `None`.
    None,
    /// A `bool`.
    Bool(bool),
    /// An `int` of at most 64 bits.
    Int(i64),
    /// An `int` of at most 128 bits.
    Long(Box<i128>),
    /// A `float`.
    Float(f64),
    /// A `str`.
    Str(Box<str>),
    /// A `bytes`, a `bytearray`, or a `str` of Python 2 (see
    /// [`Vocabulary::PYTHON_2_TEXT`](crate::Vocabulary::PYTHON_2_TEXT)).
    Bytes(Bytes),
    /// A `tuple`.
    Tuple(Box<[Id]>),
    /// A `list`.
    List(Vec<Id>),
    /// A `dict`, in insertion order; a key may occur twice.
    Dict(Vec<(Id, Id)>),
    /// A `set`, or an `int` of more than 128 bits. Its content is dropped.
    Opaque,
    /// A class or function of the vocabulary, or an object that one of them returned.
    Known(T),
}

/// The content of a `bytes` object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bytes {
    /// A range of the source.
    Range(Range<u64>),
    /// Bytes of an escaped literal, or of the vocabulary.
    Owned(Box<[u8]>),
}

impl Bytes {
    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Range(range) => range.end - range.start,
            Self::Owned(bytes) => bytes.len() as u64,
        }
    }

    /// Returns `true` if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes, for a pickle that was read from the slice `source`.
    pub fn resolve<'a>(&'a self, source: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Range(range) => {
                let (start, end) = (range.start as usize, range.end as usize);
                source.get(start..end).unwrap_or_default()
            }
            Self::Owned(bytes) => bytes,
        }
    }
}

/// The arena of a pickle's objects, in the order of their creation.
#[derive(Debug)]
pub struct Objects<T>(pub(crate) Vec<Node<T>>);

impl<T> Objects<T> {
    pub(crate) fn new() -> Self {
        let shared = [
            Node::None,
            Node::Bool(false),
            Node::Bool(true),
            Node::Opaque,
        ];
        Self(shared.into())
    }

    /// Returns the object `id`.
    ///
    /// # Panics
    /// If `id` belongs to another pickle and is out of range.
    pub fn get(&self, id: Id) -> &Node<T> {
        &self.0[id.0 as usize]
    }

    /// Returns all objects. The first four are those of every pickle: `None`, `False`, `True` and
    /// the shared [`Node::Opaque`].
    pub fn all(&self) -> &[Node<T>] {
        &self.0
    }

    /// Returns the text of object `id`, if it is a `str`.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }
}

/// The objects of a pickle, returned by [`read`](crate::read).
#[derive(Debug)]
pub struct Pickle<T> {
    pub(crate) objects: Objects<T>,
    /// The pickled object.
    pub root: Id,
    /// Offset in the source of the byte after the pickle.
    pub end: u64,
}

impl<T> Deref for Pickle<T> {
    type Target = Objects<T>;

    fn deref(&self) -> &Objects<T> {
        &self.objects
    }
}

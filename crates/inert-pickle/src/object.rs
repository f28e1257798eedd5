//! What a pickle holds.

use std::ops::{Deref, Range};

/// Index of an object among those of a pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id(pub(crate) u32);

impl Id {
    /// `None`, in every pickle.
    pub const NONE: Self = Self(0);
    pub(crate) const FALSE: Self = Self(1);
    pub(crate) const TRUE: Self = Self(2);
    pub(crate) const OPAQUE: Self = Self(3);
}

/// An object. `T` is what the vocabulary makes.
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
    /// A `set`, or an `int` beyond 128 bits. What it holds is not kept.
    Opaque,
    /// A class, a function, or what one of them made.
    Known(T),
}

/// Bytes that a pickle holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bytes {
    /// They lie here in the source.
    Place(Range<u64>),
    /// They are written with escapes, or were made by the vocabulary.
    Own(Box<[u8]>),
}

impl Bytes {
    /// Their number.
    pub fn len(&self) -> u64 {
        match self {
            Self::Place(place) => place.end - place.start,
            Self::Own(bytes) => bytes.len() as u64,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes themselves, of a pickle that was read from the slice `source`.
    pub fn within<'a>(&'a self, source: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Place(place) => {
                let (start, end) = (place.start as usize, place.end as usize);
                source.get(start..end).unwrap_or_default()
            }
            Self::Own(bytes) => bytes,
        }
    }
}

/// The objects that a pickle has made so far, in the order they were made.
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

    /// The object at `id`.
    pub fn get(&self, id: Id) -> &Node<T> {
        &self.0[id.0 as usize]
    }

    /// All objects, behind the four that every pickle shares: `None`, `False`, `True`,
    /// and one for all that is opaque.
    pub fn all(&self) -> &[Node<T>] {
        &self.0
    }

    /// The text at `id`, if it is a `str`.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle<T> {
    pub(crate) objects: Objects<T>,
    /// The object that was pickled.
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

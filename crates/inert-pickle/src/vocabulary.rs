//! Classes and functions that a reader knows.

use super::{Id, Node, Objects};

/// Result of a call.
#[derive(Debug)]
pub enum CallResult<T> {
    /// A new object.
    New(Node<T>),
    /// An existing object: a shared argument stays shared.
    Existing(Id),
}

/// The classes and functions that a pickle may name.
///
/// The text of an error becomes the reason of
/// [`PickleError::Malformed`](crate::PickleError::Malformed).
pub trait Vocabulary {
    /// A class, a function, or an object that one of them returned.
    type Known;

    /// Set to read a `str` of Python 2 as UTF-8 text and not as bytes. Old weights name their
    /// tensors with it; data sets store images in it.
    const PYTHON_2_TEXT: bool;

    /// Returns the class or function `name` of `module`, if it is known.
    fn find(&mut self, module: &str, name: &str) -> Option<Self::Known>;

    /// Calls `callable`.
    ///
    /// # Errors
    /// If `callable` is not a class or function, or does not support the arguments.
    fn call(
        &mut self,
        objects: &Objects<Self::Known>,
        callable: &Self::Known,
        arguments: &[Id],
    ) -> Result<CallResult<Self::Known>, String>;

    /// Sets the state of `target` (Python's `__setstate__`). Returns the object that replaces
    /// `target`, or `None` if it stays unchanged.
    ///
    /// # Errors
    /// If `target` takes no state, or does not support this one.
    fn build(
        &mut self,
        objects: &Objects<Self::Known>,
        target: Id,
        state: Id,
    ) -> Result<Option<Node<Self::Known>>, String>;

    /// Resolves a persistent id.
    ///
    /// # Errors
    /// If the id is unknown.
    fn persistent(
        &mut self,
        objects: &Objects<Self::Known>,
        id: Id,
    ) -> Result<Node<Self::Known>, String>;
}

/// The empty vocabulary: plain containers of numbers and texts, without classes and functions.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl Vocabulary for Plain {
    type Known = std::convert::Infallible;

    const PYTHON_2_TEXT: bool = true;

    fn find(&mut self, _: &str, _: &str) -> Option<Self::Known> {
        None
    }

    fn call(
        &mut self,
        _: &Objects<Self::Known>,
        callable: &Self::Known,
        _: &[Id],
    ) -> Result<CallResult<Self::Known>, String> {
        match *callable {}
    }

    fn build(
        &mut self,
        _: &Objects<Self::Known>,
        _: Id,
        _: Id,
    ) -> Result<Option<Node<Self::Known>>, String> {
        Err("a plain value is given attributes".into())
    }

    fn persistent(&mut self, _: &Objects<Self::Known>, _: Id) -> Result<Node<Self::Known>, String> {
        Err("it refers to an object outside of it".into())
    }
}

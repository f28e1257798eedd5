//! The classes and functions that a reader knows.

use super::{Id, Node, Objects};

/// What a call has for a result.
#[derive(Debug)]
pub enum Made<T> {
    /// A new object.
    New(Node<T>),
    /// One that exists: a shared argument stays shared.
    Same(Id),
}

/// The classes and functions that a pickle may name. An error's text says what is wrong, and
/// becomes the reason of [`Fault::Malformed`](crate::Fault::Malformed).
pub trait Vocabulary {
    /// A class, a function, or what one of them made.
    type Known;

    /// Whether a `str` of Python 2 is text, in UTF-8, or bytes. Weights of that time name their
    /// tensors with it; images are stored in it.
    const PYTHON_2_TEXT: bool;

    /// The class or function `name` of `module`, if it is known.
    fn find(&mut self, module: &str, name: &str) -> Option<Self::Known>;

    /// What `callable`, which [`Self::find`] returned, makes of arguments.
    ///
    /// # Errors
    /// If it is no class or function, or its arguments are of an unknown kind.
    fn call(
        &mut self,
        objects: &Objects<Self::Known>,
        callable: &Self::Known,
        arguments: &[Id],
    ) -> Result<Made<Self::Known>, String>;

    /// What becomes of `target` when it is given `state`; nothing, if it stays as it is.
    ///
    /// # Errors
    /// If it takes no state, or one of another kind.
    fn build(
        &mut self,
        objects: &Objects<Self::Known>,
        target: Id,
        state: Id,
    ) -> Result<Option<Node<Self::Known>>, String>;

    /// What a persistent id stands for.
    ///
    /// # Errors
    /// If it stands for nothing that is known.
    fn persistent(
        &mut self,
        objects: &Objects<Self::Known>,
        id: Id,
    ) -> Result<Node<Self::Known>, String>;
}

/// No classes and no functions: plain containers of numbers and texts.
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
    ) -> Result<Made<Self::Known>, String> {
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

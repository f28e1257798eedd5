//! Reader of Python pickles that executes nothing.
//!
//! A pickle is a program: it may call any function that it can name. This reader runs the opcodes
//! of all protocols, but knows only the classes and functions of a [`Vocabulary`]. It refuses all
//! others with an error that names them.
//!
//! ```
//! use inert_pickle::{Limits, Node, PickleError, Plain, read};
//!
//! # fn main() -> Result<(), PickleError> {
//! // pickle.dumps(["ü", 300], protocol=2)
//! let bytes = b"\x80\x02]q\0(X\x02\0\0\0\xc3\xbcq\x01M,\x01e.";
//! let pickle = read(bytes.as_slice(), 0..bytes.len() as u64, Limits::default(), &mut Plain)?;
//! let Node::List(items) = pickle.get(pickle.root) else { panic!("it is a list") };
//! assert_eq!(pickle.text(items[0]), Some("ü"));
//! assert!(matches!(pickle.get(items[1]), Node::Int(300)));
//!
//! let bytes = b"cposix\nsystem\n(S'id'\ntR.";
//! let refused = read(bytes.as_slice(), 0..bytes.len() as u64, Limits::default(), &mut Plain);
//! let Err(PickleError::Unknown { global, .. }) = refused else { panic!("it is refused") };
//! assert_eq!(global, "posix.system");
//! # Ok(())
//! # }
//! ```
//!
//! Objects are stored in an arena and refer to each other by index. A shared object exists once, a
//! container may hold itself, and the reader needs no recursion. Every object takes at least one
//! byte of input. The content of `bytes` is not loaded: the reader returns its range in the source.
//!
//! | module | contents |
//! |---|---|
//! | `machine` | [`read`]: opcodes, stack and memo |
//! | `vocabulary` | [`Vocabulary`]: known classes and functions |
//! | `object` | [`Pickle`], [`Node`], [`Id`]: the objects of a pickle |
//! | `input` | [`ReadAt`], [`Limits`]: buffered reading of the source |
//! | `literal` | literals of texts and integers |
//! | `error` | [`PickleError`] |
//!
//! The opcodes are those of Python's `pickletools.py`. Alternatives do not suffice: `serde-pickle`
//! 1.2 supports neither persistent ids, which `torch.save` writes, nor classes, which numpy's
//! arrays and TorchScript's modules consist of; `pytorch-reader` 0.22.1 has a reader for tensors
//! alone.

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod error;
mod input;
mod literal;
mod machine;
mod object;
mod vocabulary;

pub use error::PickleError;
pub use input::{Limits, ReadAt};
pub use machine::read;
pub use object::{Bytes, Id, Node, Objects, Pickle};
pub use vocabulary::{CallResult, Plain, Vocabulary};

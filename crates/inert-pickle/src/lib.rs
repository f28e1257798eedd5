//! Reads Python pickles without executing anything.
//!
//! A pickle is a program: it may call any function it can name. This machine runs the opcodes of
//! all protocols, and of classes and functions knows those of a [`Vocabulary`]; others are refused
//! by name.
//!
//! ```
//! use inert_pickle::{Fault, Limits, Node, Plain, read};
//!
//! # fn main() -> Result<(), Fault> {
//! // pickle.dumps(["ü", 300], protocol=2)
//! let bytes = b"\x80\x02]q\0(X\x02\0\0\0\xc3\xbcq\x01M,\x01e.";
//! let pickle = read(bytes.as_slice(), 0..bytes.len() as u64, Limits::default(), &mut Plain)?;
//! let Node::List(items) = pickle.get(pickle.root) else { panic!("it is a list") };
//! assert_eq!(pickle.text(items[0]), Some("ü"));
//! assert!(matches!(pickle.get(items[1]), Node::Int(300)));
//!
//! let bytes = b"cposix\nsystem\n(S'id'\ntR.";
//! let refused = read(bytes.as_slice(), 0..bytes.len() as u64, Limits::default(), &mut Plain);
//! assert!(matches!(refused, Err(Fault::Unknown { global, .. }) if global == "posix.system"));
//! # Ok(())
//! # }
//! ```
//!
//! Objects lie in a list and refer to each other by index: what is referred to a thousand times
//! exists once, a container that holds itself is no special case, and nothing here recurses. Every
//! object costs at least a byte of input. Bytes are not read: their place is told.
//!
//! | file | concept |
//! |---|---|
//! | `machine` | [`read`]: the opcodes, stack and memo |
//! | `vocabulary` | [`Vocabulary`]: the classes and functions that are known |
//! | `object` | [`Pickle`], [`Node`], [`Id`]: what a pickle holds |
//! | `input` | [`ReadAt`], [`Limits`]: the bytes, a window at a time |
//! | `literal` | texts and integers as the opcodes of lines write them |
//! | `fault` | [`Fault`] |
//!
//! Opcodes: Python's `pickletools.py`. Why not `serde-pickle` 1.2: it knows neither persistent ids,
//! which `torch.save` writes, nor classes, which numpy's arrays and TorchScript's modules are made
//! of. `pytorch-reader` 0.22.1 has a machine of its own, for tensors alone.

mod fault;
mod input;
mod literal;
mod machine;
mod object;
mod vocabulary;

pub use fault::Fault;
pub use input::{Limits, ReadAt};
pub use machine::read;
pub use object::{Bytes, Id, Node, Objects, Pickle};
pub use vocabulary::{Made, Plain, Vocabulary};

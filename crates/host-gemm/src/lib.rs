//! Matrix products and Gram matrices in `f32` on the host, by faer or the system's BLAS.
//!
//! | module | contents |
//! |---|---|
//! | `product` | products and Gram matrices |
//! | `choice` | selection of the library, by processor or environment variable |
//! | `blas` | the system's BLAS, with feature `blas` |
#![warn(missing_docs)]

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "blas")]
mod blas;
mod choice;
mod product;

pub use choice::{Choice, ChoiceError, Instructions, Library, SINGLE_THREAD, VARIABLE, choice};
pub use product::{gram_lower, gram_lower_by, product, product_by};

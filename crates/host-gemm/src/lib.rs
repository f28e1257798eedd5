//! Matrix products in `f32` on the host, by one of two libraries.
//!
//! | module | holds |
//! |---|---|
//! | `product` | products and Gram matrices |
//! | `choice` | the library in use: by processor, or forced |
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

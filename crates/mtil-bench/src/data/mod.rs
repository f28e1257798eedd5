//! Where images come from: sources of images by index, and their decoding.

mod source;

pub use source::{DataError, ImageSource};

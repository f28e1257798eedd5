#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
// The constants of the tests are quoted digit for digit from the reference scripts.
#![cfg_attr(test, allow(clippy::excessive_precision))]

mod alignment;
mod classification;
mod contrastive;
mod distillation;
mod means;

pub use alignment::{alignment_margin, alignment_targets, modality_alignment};
pub use classification::{smoothed_cross_entropy, smoothed_soft_cross_entropy};
pub use contrastive::clip_contrastive;
pub use distillation::{contrastive_distillation, distillation};
pub use means::mean_displacement;

#[cfg(test)]
mod test_utils;

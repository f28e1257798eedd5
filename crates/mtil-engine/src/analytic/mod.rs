//! RAIL, regression-based analytic incremental learning: ridge regression on features of a frozen
//! CLIP, updated task by task without the images of earlier tasks, and fused with the zero-shot
//! classifier.
//!
//! Xu et al., "Advancing Cross-domain Discriminability in Continual Learning of Vision-Language
//! Models", NeurIPS 2024 (arXiv 2406.18868); code:
//! github.com/linghan1997/Regression-based-Analytic-Incremental-Learning.
//!
//! | file | what |
//! |---|---|
//! | `primal` | [`PrimalRail`]: a random hidden layer and a recursive ridge regression |
//! | `dual` | [`DualRail`]: kernel ridge regression over all features so far |
//! | `fusion` | [`Fusion`]: which images the regression may decide, and how |
//! | `error` | [`AnalyticError`] |
//! | `matrix` | checked input, triangles |
//! | `file` | the state of a regression as a safetensors file |
//! | `tests` | the reference of `tests/reference/rail.py`, and hostile files |
//!
//! Features are row-major, of `f32` or `f64`, and L2-normalised by the caller: the published code
//! divides CLIP's image features by their length (`utils.py`, `encode_images`). All arithmetic is
//! `f64` on the host. Class numbers count over all tasks in the order in which they are learnt, so
//! the learnt classes are always `0..classes`.

mod dual;
mod error;
mod file;
mod fusion;
mod matrix;
mod primal;
#[cfg(test)]
mod tests;

pub use dual::{DualConfig, DualRail};
pub use error::AnalyticError;
pub use fusion::{Decision, Fusion};
pub use primal::{PrimalConfig, PrimalRail, Recursion};

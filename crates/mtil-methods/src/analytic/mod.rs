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
//! | `fusion` | [`Fusion`]: the combination of regression scores and zero-shot probabilities |
//! | `error` | [`AnalyticError`] |
//! | `matrix` | input validation, packed triangular matrices |
//! | `file` | the state of a regression as a safetensors file |
//! | `tests` | comparison with `tests/reference/rail.py`, rejection of corrupt files |
//!
//! Features are row-major, of `f32` or `f64`, and L2-normalised by the caller: the published code
//! divides CLIP's image features by their length (`utils.py`, `encode_images`). All arithmetic is
//! `f64` on the host. Class indices are global: they count over all tasks in the order in which
//! the tasks are learnt, so the learnt classes are always `0..classes`.

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

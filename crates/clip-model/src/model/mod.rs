//! The two towers and the joint space.
//!
//! Parameter paths are field names joined by dots (`visual.blocks.3.mlp.c_fc.weight`); they follow the
//! names of OpenAI's CLIP (`clip/model.py`) where Burn's modules allow it. Every [`Param`] id is derived
//! from its path, so optimizer state saved by one process fits the model another process loads.
//!
//! [`Param`]: burn::module::Param

mod block;
mod clip;
mod init;
mod observer;
mod params;
mod text;
mod vision;

pub use block::{Attention, Mlp, ResidualBlock};
pub use clip::{Clip, normalize};
pub use observer::Observer;
pub use text::TextTower;
pub use vision::{PatchEmbedding, VisionTower};

pub(crate) use params::{ParamSource, visit_params};

//! CLIP as a Burn module: image tower, text tower and logit scale.
//!
//! Parameter paths are field names joined by dots (`visual.blocks.3.mlp.c_fc.weight`). They follow
//! OpenAI's CLIP (`clip/model.py`) where Burn's modules allow it. Every [`Param`] id is derived
//! from its path, so optimizer state that one process saves fits the model that another loads.
//!
//! [`Param`]: burn::module::Param

mod block;
mod clip;
mod host;
mod image_tower;
mod init;
mod observer;
mod params;
mod prefix_tree;
mod resnet;
mod text;
mod text_batch;
mod vision;

pub use block::{Attention, Mlp, ResidualBlock};
pub use clip::{ClipModel, normalize};
pub use image_tower::ImageTower;
pub use observer::Observer;
pub use resnet::{AttentionPool, BatchNorm, Bottleneck, Conv, Downsample, ResNet};
pub use text::TextTower;
pub use text_batch::TextBatching;
pub use vision::{PatchEmbedding, PoolingHead, VisionTower};

pub use params::parameter_id;
pub(crate) use params::{ParamSource, visit_params, visit_shapes};

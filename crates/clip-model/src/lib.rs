#![doc = include_str!("../README.md")]
//!
//! # Modules
//!
//! | module | what |
//! |---|---|
//! | `config` | the shape of a model; the published architectures |
//! | `model` | the towers as Burn modules; what an [`Observer`] sees of them |
//! | `zero_shot` | features of images and texts, and a classifier |
//! | `checkpoint` | checkpoints of every layout in and out |
//! | [`weights`] | the tensors of safetensors files, PyTorch archives and TorchScript archives |
//! | [`zoo`] | named weights: where they come from, fetching and verifying them |
//! | [`tokenizer`], [`preprocess`] | texts to ids, images to pixels |
#![warn(missing_docs)]

mod checkpoint;
mod config;
mod error;
mod model;
pub mod preprocess;
pub mod tokenizer;
pub mod weights;
mod zero_shot;
pub mod zoo;

pub use checkpoint::{
    CheckpointBytes, Clip, Description, Dtype, KeyLayout, LoadOptions, load_weights, save_weights,
    write_weights,
};
pub use clip_kernels::Kernels;
pub use config::{
    Activation, ClipConfig, TextConfig, TextKind, VisionConfig, VisionKind, architecture,
    architectures,
};
pub use error::CheckpointError;
pub use model::{
    Attention, AttentionPool, BatchNorm, Bottleneck, ClipModel, Conv, Downsample, ImageTower, Mlp,
    Observer, PatchEmbedding, PoolingHead, ResNet, ResidualBlock, TextTower, VisionTower,
    normalize, parameter_id,
};
pub use preprocess::Preprocess;
pub use tokenizer::{ClipTokenizer, SiglipTokenizer, TokenBatch, Tokenizer};
pub use zero_shot::{Prediction, ZeroShotClassifier};

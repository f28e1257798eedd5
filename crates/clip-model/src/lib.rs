#![doc = include_str!("../README.md")]
//!
//! # Modules
//!
//! | module | contents |
//! |---|---|
//! | `config` | model configurations and published architectures |
//! | `model` | the towers as Burn modules, and [`Observer`], their forward hooks |
//! | `zero_shot` | image and text features, zero-shot classification |
//! | `checkpoint` | loading and saving of checkpoints in all layouts |
//! | [`weights`] | tensors of safetensors files, PyTorch archives and TorchScript archives |
//! | [`zoo`] | named pretrained weights: registry, download, verification |
//! | [`tokenizer`] | texts to token ids |
//! | [`preprocess`] | images to pixel tensors |
#![warn(missing_docs)]

mod checkpoint;
mod config;
mod error;
#[doc(hidden)]
pub mod files;
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
    Observer, PatchEmbedding, PoolingHead, ResNet, ResidualBlock, TextBatching, TextTower,
    VisionTower, normalize, parameter_id,
};
pub use preprocess::Preprocess;
pub use tokenizer::{ClipTokenizer, SiglipTokenizer, TokenBatch, Tokenizer};
pub use zero_shot::{ClassifyError, Prediction, ZeroShotClassifier};

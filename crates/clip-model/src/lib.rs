//! CLIP for Burn.
#![warn(missing_docs)]

mod checkpoint;
mod config;
mod error;
mod model;
pub mod preprocess;
pub mod tokenizer;

pub use checkpoint::{Checkpoint, CheckpointBytes, Dtype, load_weights, save_weights};
pub use config::{Activation, ClipConfig, TextConfig, VisionConfig};
pub use error::CheckpointError;
pub use model::{
    Attention, Clip, Mlp, Observer, PatchEmbedding, ResidualBlock, TextTower, VisionTower,
    normalize,
};
pub use preprocess::Preprocess;
pub use tokenizer::{ClipTokenizer, TokenBatch};

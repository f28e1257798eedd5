//! CLIP for [Burn](https://burn.dev): the vision-transformer models of OpenAI's family at any size, loaded from and
//! saved as Hugging Face directories, with the tokenizer and the image preprocessing that belong to them.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use clip_model::{Checkpoint, normalize, preprocess::decode_file};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::flex();
//! let clip = Checkpoint::load("clip-vit-base-patch16".as_ref(), &device)?;
//! let image = clip.preprocess.eval_u8(&decode_file("photo.jpg".as_ref())?);
//! let image = normalize(clip.model.encode_image(clip.preprocess.to_tensor(&[image], &device)?));
//! let texts = clip.tokenizer.encode(&["a photo of a cat.", "a photo of a dog."], 77)?;
//! let texts = normalize(clip.model.encode_text(&texts));
//! let similarities = image.matmul(texts.transpose()); // [1, 2]
//! # Ok(())
//! # }
//! ```
//!
//! | file | what |
//! |---|---|
//! | `config` | the shape of a model: `config.json` |
//! | `model` | the towers as Burn modules; what an [`Observer`] sees of them |
//! | `checkpoint` | directories in Hugging Face layout, strictly |
//! | [`tokenizer`], [`preprocess`] | texts to ids, images to pixels |
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

//! Where images come from: sources of images by index, their decoding, and the loader that
//! brings them to the model in a fixed order.
//!
//! - [`ImageSource`]: the one interface every dataset format offers
//! - [`ImageFolder`]: class folders, split into train and test
//! - [`CaptionFolder`]: images with a caption each, from a table or from a template
//! - [`PixelCache`]: images as they are fed to the model, kept on disk
//! - [`BatchOrder`] and [`Loader`]: which images make up step k, decoded ahead by a few threads

mod cache;
mod captions;
mod decode;
mod folder;
mod loader;
mod order;
mod source;

pub use cache::{CacheError, CacheStats, PixelCache};
pub use captions::{Article, CaptionFolder, with_class_name};
pub use decode::decode;
pub use folder::{FolderOptions, ImageFiles, ImageFolder, Layout};
pub use loader::{BadImagePolicy, BadImages, Batch, Loader, LoaderOptions};
pub use order::BatchOrder;
pub use source::{DataError, ImageSource};

pub(crate) use folder::duplicate_name;

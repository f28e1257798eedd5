//! Image sources, image and caption folders, batch order, data loader and image cache.
//!
//! - [`ImageSource`]: the interface of every dataset format, images by index
//! - [`ImageFolder`]: class folders with a train and a test split
//! - [`CaptionFolder`]: image-caption pairs from a table or a template
//! - [`PixelCache`]: preprocessed images on disk
//! - [`BatchOrder`]: the images of each training step
//! - [`Loader`]: a data loader that prefetches batches on background threads

mod cache;
mod captions;
mod decode;
mod folder;
mod folder_warning;
mod image_files;
mod loader;
mod order;
mod remains;
mod source;
pub(crate) mod table;

pub use cache::{CacheError, CacheStats, PixelCache};
pub use captions::{Article, CaptionFolder, with_class_name};
pub use decode::{decode, decode_with};
pub use folder::{FolderOptions, ImageFolder, Layout};
pub use folder_warning::FolderWarning;
pub use image_files::{ImageFiles, OtherFiles, find_images, is_ignored_name, is_image_name};
pub use loader::{BadImagePolicy, BadImages, Batch, Loader, LoaderOptions};
pub use order::BatchOrder;
pub use source::{DataError, ImageSource, NoImages};

pub(crate) use folder::duplicate_name;
pub(crate) use image_files::is_image_with_suffix;
pub(crate) use remains::{Remains, test_images};
pub(crate) use source::but_others;

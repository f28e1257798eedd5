//! The one interface every dataset format offers: images by index.

use std::path::PathBuf;

/// What can go wrong while reading a dataset.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// An image is corrupt or of an unsupported kind.
    #[error("cannot decode image {name}: {reason}")]
    Image {
        /// The image's name in its source, usually a path.
        name: String,
        /// What the decoder said.
        reason: String,
    },
    /// A dataset does not have the shape it must have.
    #[error("{0}")]
    Layout(String),
}

/// Images by index. Implementations are cheap to share between threads; decoding happens in
/// [`load`](Self::load), so that a pool of workers can decode in parallel.
pub trait ImageSource: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there is no image.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A name for image `index` that a person can find again, usually its path.
    fn name(&self, index: usize) -> String;

    /// Decodes image `index`.
    ///
    /// # Errors
    /// [`DataError`] naming the image when it cannot be read or decoded.
    ///
    /// # Panics
    /// If `index` is out of range.
    fn load(&self, index: usize) -> Result<image::DynamicImage, DataError>;
}

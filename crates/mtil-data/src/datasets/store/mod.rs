//! The files of a dataset, whether they lie in folders or in archives.
//!
//! - [`Store`]: files by path below the data root; [`Archive`]: what may stand in their place
//! - [`StoreImages`], [`RawImages`]: image files of a store, and raw pixels, as image sources
//!
//! An archive is never unpacked, and indexed only when a file is asked for that no folder has: the
//! training archive of ImageNet has 138 GB, that of SUN397 37, and with `tar` and `flate2` alone they
//! would have to lie there twice. Neither crate reads a compressed stream from its middle, which
//! batches drawn at random do.
//!
//! - `folder`: listing folders
//! - `random`: bytes that can be read anywhere, by many threads at once
//! - `inflate`: gzip and deflate streams as such bytes, from snapshots taken in one pass
//! - `tar`, `zip`: the members of archives
//! - `archive`: an archive of any of these kinds, or within another

mod archive;
mod fault;
mod files;
mod folder;
mod images;
mod inflate;
mod random;
mod tar;
mod zip;

pub use files::{Archive, Store};
pub use images::{Pixels, RawImages, StoreImages};

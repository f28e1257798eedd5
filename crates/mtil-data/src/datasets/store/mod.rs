//! Random access to the files of a dataset in folders and archives.
//!
//! - [`Store`]: files by path relative to the data root; [`Archive`]: an archive that replaces them
//! - [`StoreImages`], [`RawImages`]: image sources for image files and for raw pixels
//!
//! An archive is never unpacked. It is indexed on first use: when a folder is listed that may be in
//! it, or when a file is requested that no folder contains. The training archive of ImageNet has
//! 138 GB and that of SUN397 has 37 GB. Shuffled batches need random access to compressed streams,
//! which the crates `tar` and `flate2` do not provide: with them the archives would have to be
//! unpacked, which takes the disk space twice.
//!
//! - `folder`: recursive listing of folders
//! - `read_at`: positional reads from several threads
//! - `inflate`: random access to gzip and deflate streams by decoder snapshots
//! - `tar`, `zip`: members of archives
//! - `archive`: an archive of any format, possibly nested in another

mod archive;
mod error;
mod files;
mod folder;
mod images;
mod inflate;
mod read_at;
mod tar;
mod zip;

pub use files::{Archive, Store};
pub use images::{PixelLayout, RawImages, StoreImages};

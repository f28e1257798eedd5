//! The datasets of MTIL from their original files: folders as torchvision unpacks them, or the
//! archives as they were downloaded.
//!
//! - [`open`]: a dataset as a [`Task`]; [`Spec`]: what is known of it; [`DatasetOptions`]: splits,
//!   orders, sizes
//! - [`mtil`]: the two orders, as suites with their reference and held-out pairs
//! - [`imagenet`], [`captions`]: reference pairs and retrieval sets
//! - [`transform`]: parts and rotations of a suite, few-shot halves
//! - [`check`]: what a data root holds and what is wrong with it
//! - [`mersenne`]: the generators of the published splits and draws
//! - [`store`]: files in folders and archives; [`pickle`], [`idx`], [`matlab`]: their formats
//!
//! The loaders: `lists`, `folders`, `mats`, `raw` (torchvision's splits) and `coop` (CoOp's). Each
//! is checked against what torchvision reads from the same files
//! (`tests/reference/mtil_datasets.py`).

pub mod captions;
pub mod check;
mod coop;
mod error;
mod folders;
pub mod idx;
pub mod imagenet;
mod lists;
pub mod matlab;
mod mats;
pub mod mersenne;
pub mod mtil;
mod options;
pub mod pickle;
mod raw;
mod source;
mod spec;
mod splits;
pub mod store;
pub mod transform;

use std::path::Path;

pub use error::DatasetError;
pub use options::{Counts, DatasetOptions, IndexLists, Protocol, ReferenceSource, Sun397Order};
pub use spec::{CoopSpec, Spec};
pub use splits::Split;

use crate::suite::Task;
use source::Source;

/// Opens the dataset `key` (`Aircraft`, `Caltech101`, …; [`Spec::all`]) below the data root `root`.
/// Lists and names are read and checked here; images are when they are used.
///
/// # Errors
/// [`DatasetError`]: an unknown key, no such dataset below `root`, images missing, or files that
/// are not those of the published release.
pub fn open(key: &str, root: &Path, options: &DatasetOptions) -> Result<Task, DatasetError> {
    let spec = Spec::find(key)?;
    if let (Protocol::CoOp, Some(coop)) = (options.protocol, &spec.coop) {
        return coop::open(spec, coop, root, options);
    }
    let load = match key {
        "Aircraft" => lists::aircraft,
        "Caltech101" => folders::caltech101,
        "CIFAR10" => raw::cifar10,
        "CIFAR100" => raw::cifar100,
        "DTD" => lists::dtd,
        "EuroSAT" => folders::eurosat,
        "Flowers" => mats::flowers,
        "Food" => lists::food,
        "ImageNet" => return imagenet::open(root, options),
        "MNIST" => raw::mnist,
        "OxfordPet" => lists::oxford_pet,
        "StanfordCars" => mats::stanford_cars,
        "SUN397" => folders::sun397,
        _ => {
            return Err(DatasetError::NoTask {
                key: key.to_owned(),
            });
        }
    };
    load(&Source::find(spec, root, options)?)
}

#[cfg(test)]
mod tests;

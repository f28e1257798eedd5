//! The datasets of the MTIL benchmark, read from the folders that torchvision unpacks or from the
//! original archives.
//!
//! - [`open`]: opens a dataset as a [`Classification`]; [`Spec`]: its specification; [`DatasetOptions`]:
//!   splits, orders, sizes
//! - [`mtil`]: the two task orders as suites with reference and held-out pairs
//! - [`imagenet`], [`captions`]: reference pairs and retrieval sets
//! - [`transform`]: task selection, cyclic shifts and few-shot subsets of a suite
//! - [`check`]: a report on the datasets in a data root
//! - [`mersenne`]: the random generators of the published splits and reference draws
//! - [`store`]: files in folders and archives; [`pickle`], [`idx`], [`matlab`]: file formats
//!
//! The loaders are `lists`, `folders`, `mats`, `raw` (torchvision's splits) and `coop` (CoOp's
//! splits). Their samples are compared with those that torchvision reads from the same files
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
pub use options::{DatasetOptions, IndexLists, Protocol, ReferenceSource, SizeCheck, Sun397Order};
pub use spec::{CoopSpec, Spec};
pub use splits::Split;

use crate::suite::Classification;
use source::Source;

/// Opens a classification dataset in the data root `root` by its key, such as `Caltech101` (see [`Spec::all`]).
///
/// Lists and names are read and checked here. Images are decoded when they are used.
///
/// # Errors
/// [`DatasetError`]: an unknown key, a dataset that is not in `root`, missing images, or files that
/// differ from the published release.
///
/// # Examples
/// ```no_run
/// use std::path::Path;
///
/// use mtil_data::datasets::{DatasetOptions, open};
///
/// let task = open("Food", Path::new("data"), &DatasetOptions::default())?;
/// assert_eq!(task.class_names.len(), 101);
/// # Ok::<(), mtil_data::datasets::DatasetError>(())
/// ```
pub fn open(
    key: &str,
    root: &Path,
    options: &DatasetOptions,
) -> Result<Classification, DatasetError> {
    let spec = Spec::find(key)?;
    let task = match (options.protocol, &spec.coop) {
        (Protocol::CoOp, Some(coop)) => coop::open(spec, coop, root, options)?,
        _ if key == "ImageNet" => imagenet::open(root, options)?,
        _ => loader(key)?(&Source::find(spec, root, options)?)?,
    };
    for (split, images) in [("train", &task.train), ("test", &task.test)] {
        if images.images.is_empty() {
            return Err(DatasetError::NoImages {
                dataset: spec.key.clone(),
                place: format!("the {split} split"),
                others: String::new(),
                get: spec.download_location(),
            });
        }
    }
    Ok(task)
}

/// Loader of a dataset that was found in a data root.
type Loader = fn(&Source<'_>) -> Result<Classification, DatasetError>;

/// Returns the loader of torchvision's splits of a dataset.
fn loader(key: &str) -> Result<Loader, DatasetError> {
    Ok(match key {
        "Aircraft" => lists::aircraft,
        "Caltech101" => folders::caltech101,
        "CIFAR10" => raw::cifar10,
        "CIFAR100" => raw::cifar100,
        "DTD" => lists::dtd,
        "EuroSAT" => folders::eurosat,
        "Flowers" => mats::flowers,
        "Food" => lists::food,
        "MNIST" => raw::mnist,
        "OxfordPet" => lists::oxford_pet,
        "StanfordCars" => mats::stanford_cars,
        "SUN397" => folders::sun397,
        _ => {
            return Err(DatasetError::NoTask {
                key: key.to_owned(),
            });
        }
    })
}

#[cfg(test)]
mod layout_tests;
#[cfg(test)]
mod tests;

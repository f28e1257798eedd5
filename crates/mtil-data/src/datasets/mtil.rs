//! The Multi-domain Task Incremental Learning (MTIL) benchmark: eleven datasets in two orders, with
//! reference and held-out pairs (Zheng et al., "Preventing Zero-Shot Transfer Degradation in
//! Continual Learning of Vision-Language Models", ICCV 2023).

use std::{path::Path, sync::Arc};

use rayon::prelude::*;

use super::{
    captions::{self, CaptionSplit},
    error::DatasetError,
    imagenet, open,
    options::{DatasetOptions, ReferenceSource},
    spec::Spec,
    store::{Store, StoreImages},
    transform::Subset,
};
use crate::{
    seeds,
    suite::{CaptionedImages, RetrievalSet, Suite, Task, TaskKind},
};

/// Task order I, alphabetical (GNSP `configs/mtil_order_I.json`).
pub const ORDER_1: [&str; 11] = [
    "Aircraft",
    "Caltech101",
    "CIFAR100",
    "DTD",
    "EuroSAT",
    "Flowers",
    "Food",
    "MNIST",
    "OxfordPet",
    "StanfordCars",
    "SUN397",
];
/// Task order II (GNSP `configs/mtil_order_II.json`).
pub const ORDER_2: [&str; 11] = [
    "StanfordCars",
    "Food",
    "MNIST",
    "OxfordPet",
    "Flowers",
    "SUN397",
    "Aircraft",
    "Caltech101",
    "DTD",
    "EuroSAT",
    "CIFAR100",
];
/// Names of the suites.
pub const SUITES: [&str; 2] = ["mtil-order-1", "mtil-order-2"];

/// Seed of the reference draw of the first task of order I.
const REFERENCE_SEED: u32 = 42;
/// Number of ImageNet images that are held out if there is neither COCO nor Flickr30k.
const HELD_OUT: usize = 1000;

/// An MTIL suite, its retrieval sets and the seeds of its reference draws.
#[derive(Clone)]
pub struct MtilSuite {
    /// Tasks, reference and held-out pairs.
    pub suite: Suite,
    /// COCO and Flickr30k, if the data root contains them.
    pub retrieval: Vec<RetrievalSet>,
    /// Seed of the published reference draw of each task, in task order.
    pub reference_seeds: Vec<u32>,
}

/// Opens the suite `name`, one of [`SUITES`], from the data root `root`.
///
/// The held-out pairs are the first of these that the data root contains:
///
/// 1. the images of COCO, or else of Flickr30k, with their first captions,
/// 2. 1000 validation images of ImageNet,
/// 3. 1000 training images of ImageNet, which are removed from the reference pairs.
///
/// Under [`ReferenceSource::None`] the reference pairs are empty, and the caller provides them.
///
/// # Errors
/// [`DatasetError`] of a dataset that is missing or invalid, [`DatasetError::NoReference`],
/// [`DatasetError::NoHeldOut`], or [`DatasetError::UnknownDataset`] for an unknown `name`.
///
/// # Examples
/// ```no_run
/// use std::path::Path;
///
/// use mtil_data::datasets::{DatasetOptions, mtil};
///
/// let mtil = mtil::suite("mtil-order-1", Path::new("data"), &DatasetOptions::default())?;
/// assert_eq!(mtil.suite.tasks.len(), 11);
/// # Ok::<(), mtil_data::datasets::DatasetError>(())
/// ```
pub fn suite(name: &str, root: &Path, options: &DatasetOptions) -> Result<MtilSuite, DatasetError> {
    let order = match name {
        "mtil-order-1" => ORDER_1,
        "mtil-order-2" => ORDER_2,
        _ => {
            return Err(DatasetError::UnknownDataset {
                key: name.to_owned(),
                near: crate::nearest(name, SUITES),
                known: SUITES.map(str::to_owned).into(),
            });
        }
    };
    let tasks: Vec<Task> = order
        .par_iter()
        .map(|key| {
            Ok(Task {
                name: (*key).to_owned(),
                kind: TaskKind::Classification(open(key, root, options)?),
            })
        })
        .collect::<Result<_, _>>()?;
    let retrieval: Vec<RetrievalSet> = [
        captions::coco(root, CaptionSplit::Auto, options),
        captions::flickr30k(root, CaptionSplit::Auto, options),
    ]
    .into_iter()
    .map(ok_if_found)
    .collect::<Result<Vec<_>, _>>()?
    .into_iter()
    .flatten()
    .collect();
    let mut reference = reference(root, options)?;
    let held_out = held_out(root, options, &retrieval, &mut reference)?;
    Ok(MtilSuite {
        suite: Suite {
            name: name.to_owned(),
            tasks,
            reference: reference.pairs,
            held_out,
            extras: Default::default(),
        },
        retrieval,
        reference_seeds: order.iter().filter_map(|key| reference_seed(key)).collect(),
    })
}

/// Returns the seed of the published reference draw for the dataset `key`.
///
/// It is 42 plus the index of the dataset in order I, whatever the task order
/// (GNSP `helpers.py:131-140`). `None` for datasets outside MTIL.
pub fn reference_seed(key: &str) -> Option<u32> {
    let place = ORDER_1.iter().position(|k| *k == key)?;
    Some(REFERENCE_SEED + place as u32)
}

/// Reference pairs, and whether they are ImageNet's.
struct Reference {
    pairs: CaptionedImages,
    imagenet: bool,
}

fn reference(root: &Path, options: &DatasetOptions) -> Result<Reference, DatasetError> {
    let of_imagenet = || {
        Ok(Reference {
            pairs: imagenet::reference(root, options)?,
            imagenet: true,
        })
    };
    let of_captions = || {
        let table = captions::conceptual_captions(root, options)?;
        Ok::<_, DatasetError>(Reference {
            pairs: table.pairs,
            imagenet: false,
        })
    };
    match options.reference {
        ReferenceSource::ImageNet => of_imagenet(),
        ReferenceSource::ConceptualCaptions => of_captions(),
        ReferenceSource::None => Ok(Reference {
            pairs: CaptionedImages {
                images: Arc::new(StoreImages::new(Store::open(root, &[])?, Vec::new())),
                captions: Vec::new(),
            },
            imagenet: false,
        }),
        ReferenceSource::Auto => {
            if let Some(found) = ok_if_found(of_imagenet())? {
                return Ok(found);
            }
            ok_if_found(of_captions())?.ok_or_else(|| DatasetError::NoReference {
                root: root.to_owned(),
                imagenet: base_folder("ImageNet"),
                captions: base_folder("ConceptualCaptions"),
            })
        }
    }
}

fn base_folder(key: &str) -> String {
    let spec = Spec::find(key).map(|s| s.bases[0].clone());
    spec.map_or_else(|_| key.to_owned(), |base| format!("{base}/"))
}

fn held_out(
    root: &Path,
    options: &DatasetOptions,
    retrieval: &[RetrievalSet],
    reference: &mut Reference,
) -> Result<CaptionedImages, DatasetError> {
    if let Some(set) = retrieval.first() {
        return Ok(set.first_captions());
    }
    let choose = |n| {
        let mut chosen = seeds::sample(n, HELD_OUT, REFERENCE_SEED.into());
        chosen.sort_unstable();
        chosen
    };
    if let Some(val) = ok_if_found(imagenet::validation(root, options))? {
        return Ok(subset(&val, choose(val.images.len())));
    }
    let n = reference.pairs.images.len();
    if !reference.imagenet || n <= HELD_OUT {
        return Err(DatasetError::NoHeldOut {
            root: root.to_owned(),
        });
    }
    let chosen = choose(n);
    let rest = (0..n)
        .filter(|i| chosen.binary_search(i).is_err())
        .collect();
    let held_out = subset(&reference.pairs, chosen);
    reference.pairs = subset(&reference.pairs, rest);
    Ok(held_out)
}

fn subset(pairs: &CaptionedImages, indices: Vec<usize>) -> CaptionedImages {
    CaptionedImages {
        captions: indices.iter().map(|&i| pairs.captions[i].clone()).collect(),
        images: Arc::new(Subset::new(pairs.images.clone(), indices)),
    }
}

/// Converts [`DatasetError::NotFound`] to `None`. Other errors remain.
pub(super) fn ok_if_found<T>(found: Result<T, DatasetError>) -> Result<Option<T>, DatasetError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(DatasetError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_the_published_ones() {
        let second = [9, 6, 7, 8, 5, 10, 0, 1, 3, 4, 2].map(|i: usize| ORDER_1[i]);
        assert_eq!(ORDER_2, second);
        for (spec, key) in Spec::all().iter().zip(ORDER_1) {
            assert_eq!(spec.key, key);
        }
        assert_eq!(reference_seed("SUN397"), Some(52));
        assert_eq!(reference_seed("CIFAR10"), None);
        let golden = super::super::mersenne::tests::golden();
        for (key, draw) in golden["imagenet1k_reference_choice_N1281167"]
            .as_object()
            .unwrap()
        {
            assert_eq!(
                reference_seed(key).map(u64::from),
                draw["seed"].as_u64(),
                "{key}"
            );
        }
    }
}

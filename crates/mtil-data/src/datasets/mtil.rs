//! The Multi-domain Task Incremental Learning benchmark: eleven datasets in two orders, with
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
    suite::{CaptionedImages, RetrievalSet, Suite, Task},
};

/// Order I, alphabetical (GNSP `configs/mtil_order_I.json`).
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
/// Order II (GNSP `configs/mtil_order_II.json`).
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
/// Images of ImageNet that are held out where there is neither COCO nor Flickr30k.
const HELD_OUT: usize = 1000;

/// A suite with what else its data root holds.
#[derive(Clone)]
pub struct MtilSuite {
    /// Tasks, reference and held-out pairs.
    pub suite: Suite,
    /// COCO and Flickr30k, where they are.
    pub retrieval: Vec<RetrievalSet>,
    /// Seed of the published reference draw of each task, in the order of the tasks.
    pub reference_seeds: Vec<u32>,
}

/// Opens a suite from the data root `root`.
///
/// The held-out pairs are, of what is there, the first of: COCO and Flickr30k, each image with its
/// first caption; 1000 validation images of ImageNet; 1000 of its training images, which are taken
/// out of the reference pairs. With [`ReferenceSource::None`] the reference pairs are empty, and
/// the caller gives them.
///
/// # Errors
/// [`DatasetError`] of the first dataset that is not there or not in order;
/// [`DatasetError::NoReference`] and [`DatasetError::NoHeldOut`]; [`DatasetError::UnknownDataset`]
/// for another name than those of [`SUITES`].
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
        .map(|key| open(key, root, options))
        .collect::<Result<_, _>>()?;
    let retrieval: Vec<RetrievalSet> = [
        captions::coco(root, CaptionSplit::Found),
        captions::flickr30k(root, CaptionSplit::Found),
    ]
    .into_iter()
    .map(if_there)
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

/// Seed of the published reference draw for the dataset `key`: 42 and its place in order I, in
/// whatever order it is learned (GNSP `helpers.py:131-140`). `None` for other datasets.
pub fn reference_seed(key: &str) -> Option<u32> {
    let place = ORDER_1.iter().position(|k| *k == key)?;
    Some(REFERENCE_SEED + place as u32)
}

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
        let table = captions::conceptual_captions(root)?;
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
        ReferenceSource::Found => {
            if let Some(found) = if_there(of_imagenet())? {
                return Ok(found);
            }
            if_there(of_captions())?.ok_or_else(|| DatasetError::NoReference {
                root: root.to_owned(),
                imagenet: folder_of("ImageNet"),
                captions: folder_of("ConceptualCaptions"),
            })
        }
    }
}

fn folder_of(key: &str) -> String {
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
    if let Some(val) = if_there(imagenet::validation(root, options))? {
        return Ok(part(&val, choose(val.images.len())));
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
    let held_out = part(&reference.pairs, chosen);
    reference.pairs = part(&reference.pairs, rest);
    Ok(held_out)
}

fn part(pairs: &CaptionedImages, indices: Vec<usize>) -> CaptionedImages {
    CaptionedImages {
        captions: indices.iter().map(|&i| pairs.captions[i].clone()).collect(),
        images: Arc::new(Subset::new(pairs.images.clone(), indices)),
    }
}

/// `None` where a dataset is not there; what is there must be in order.
pub(super) fn if_there<T>(found: Result<T, DatasetError>) -> Result<Option<T>, DatasetError> {
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

//! The benchmarks on MTIL's datasets, with reference and held-out pairs.
//!
//! - Multi-domain Task Incremental Learning (MTIL): eleven datasets in two orders (Zheng et al.,
//!   "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models",
//!   ICCV 2023).
//! - Cross-domain Task-Agnostic Incremental Learning (X-TAIL): ten of them in two orders, without
//!   the task of a test image (Xu et al., arXiv 2406.18868).

use std::{path::Path, sync::Arc};

use rayon::prelude::*;

use super::{
    captions::{self, CaptionSplit},
    error::DatasetError,
    imagenet, open,
    options::{DatasetOptions, Protocol, ReferenceSource},
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
/// Task order I of X-TAIL, alphabetical and without CIFAR100
/// (linghan1997/Regression-based-Analytic-Incremental-Learning eaac644
/// `configs/analytic_clip.yaml`).
pub const XTAIL_1: [&str; 10] = [
    "Aircraft",
    "Caltech101",
    "DTD",
    "EuroSAT",
    "Flowers",
    "Food",
    "MNIST",
    "OxfordPet",
    "StanfordCars",
    "SUN397",
];
/// Task order II of X-TAIL. RAIL's repository has order I only; this is the order of LADA's code
/// (`configs/data/TAIL_order2.yaml`), read in a third party's copy of it (tri2911/LADA 28fd950).
pub const XTAIL_2: [&str; 10] = [
    "StanfordCars",
    "Aircraft",
    "OxfordPet",
    "Food",
    "SUN397",
    "MNIST",
    "Flowers",
    "DTD",
    "Caltech101",
    "EuroSAT",
];
/// Names of the suites.
pub const SUITES: [&str; 4] = [
    "mtil-order-1",
    "mtil-order-2",
    "xtail-order-1",
    "xtail-order-2",
];

/// Prompt templates of the evaluation in a suite's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuiteTemplates {
    /// All templates of a dataset.
    All,
    /// The first template of a dataset.
    First,
}

/// Task order of a suite, and the settings of its protocol.
///
/// # Example
/// ```
/// use mtil_data::datasets::mtil::SuiteProtocol;
///
/// let protocol = SuiteProtocol::find("xtail-order-1").unwrap();
/// assert_eq!((protocol.order.len(), protocol.shots), (10, Some(16)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuiteProtocol {
    /// Name of the suite.
    pub name: &'static str,
    /// Description in one line.
    pub about: &'static str,
    /// Keys of the datasets in the order in which they are learned.
    pub order: &'static [&'static str],
    /// Splits and class names.
    pub splits: Protocol,
    /// Training images per class; all when absent.
    pub shots: Option<usize>,
    /// True if the task of a test image is given; otherwise the classes of all tasks are its
    /// candidates.
    pub task_given: bool,
    /// Prompt templates of the evaluation.
    pub templates: SuiteTemplates,
}

impl SuiteProtocol {
    /// Returns the protocol of the suite `name`; none unless it is one of [`SUITES`].
    pub fn find(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|protocol| protocol.name == name)
    }

    /// Returns the protocols of all suites, in the order of [`SUITES`].
    pub fn all() -> &'static [Self] {
        &ALL
    }

    const fn mtil(name: &'static str, about: &'static str, order: &'static [&'static str]) -> Self {
        Self {
            name,
            about,
            order,
            splits: Protocol::Zscl,
            shots: None,
            task_given: true,
            templates: SuiteTemplates::All,
        }
    }

    /// RAIL's `configs/analytic_clip.yaml` for splits and shots; the first template of each
    /// dataset as in CoDyRA's `main.py`. RAIL's code has one template for all datasets.
    const fn xtail(
        name: &'static str,
        about: &'static str,
        order: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            about,
            order,
            splits: Protocol::CoOp,
            shots: Some(16),
            task_given: false,
            templates: SuiteTemplates::First,
        }
    }
}

static ALL: [SuiteProtocol; 4] = [
    SuiteProtocol::mtil(
        SUITES[0],
        "the eleven datasets of MTIL in alphabetical order",
        &ORDER_1,
    ),
    SuiteProtocol::mtil(
        SUITES[1],
        "the eleven datasets of MTIL in the second published order",
        &ORDER_2,
    ),
    SuiteProtocol::xtail(
        SUITES[2],
        "X-TAIL in alphabetical order: ten datasets of MTIL, 16 shots, all classes at once",
        &XTAIL_1,
    ),
    SuiteProtocol::xtail(SUITES[3], "X-TAIL in the second published order", &XTAIL_2),
];

/// Seed of the reference draw of the first task of order I.
const REFERENCE_SEED: u32 = 42;
/// Number of ImageNet images that are held out if there is neither COCO nor Flickr30k.
const HELD_OUT: usize = 1000;

/// A suite of MTIL's datasets, its retrieval sets and the seeds of its reference draws.
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
/// The splits are those of `options`, and all training images are there; [`SuiteProtocol`] has the
/// settings of the suite's protocol.
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
    let protocol = SuiteProtocol::find(name).ok_or_else(|| DatasetError::UnknownDataset {
        key: name.to_owned(),
        near: crate::nearest(name, SUITES),
        known: SUITES.map(str::to_owned).into(),
    })?;
    let order = protocol.order;
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
    fn protocols_have_the_published_settings() {
        assert!(SuiteProtocol::find("mini").is_none());
        let names: Vec<_> = SuiteProtocol::all().iter().map(|p| p.name).collect();
        assert_eq!(names, SUITES);
        for protocol in SuiteProtocol::all() {
            let xtail = protocol.name.starts_with("xtail");
            let mut sorted = protocol.order.to_vec();
            sorted.sort_unstable_by_key(|key| key.to_lowercase());
            let expected = if xtail { &XTAIL_1[..] } else { &ORDER_1[..] };
            let mut order = expected.to_vec();
            order.sort_unstable_by_key(|key| key.to_lowercase());
            assert_eq!(sorted, order, "{}", protocol.name);
            assert_eq!(protocol.task_given, !xtail);
            assert_eq!(protocol.shots, xtail.then_some(16));
            assert_eq!(protocol.splits == Protocol::CoOp, xtail);
        }
        assert!(!XTAIL_1.contains(&"CIFAR100"));
        // 1,100 classes in CoOp's splits.
        let classes = XTAIL_1.map(|key| {
            let spec = Spec::find(key).unwrap();
            spec.coop.as_ref().map_or(spec.classes.len(), |c| c.classes)
        });
        assert_eq!(classes.iter().sum::<usize>(), 1100);
    }

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

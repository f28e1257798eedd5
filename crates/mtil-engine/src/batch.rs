//! Images to batches of pixels: one batch on all cores at once ([`Images::eval`],
//! [`Images::train`]), or many, decoded ahead of the device ([`Images::eval_ahead`],
//! [`Images::train_ahead`]). Both ways give the same pixels.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use burn::tensor::{Device, Tensor};
use clip_model::{Preprocess, preprocess::TrainCrop};
use image::RgbImage;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use mtil_data::data::{
    BadImagePolicy, BatchOrder, CacheStats, DataError, ImageSource, Loader, LoaderOptions,
    PixelCache,
};

/// Why a batch could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// An image could not be read or prepared.
    #[error(
        "{0}; repair or remove it, or pass --skip-bad-images to count and leave out such images"
    )]
    Image(DataError),
    /// The images cannot be brought into batches.
    #[error(transparent)]
    Data(DataError),
    /// A text could not be tokenised.
    #[error(transparent)]
    Text(#[from] clip_model::tokenizer::TokenizerError),
    /// The prepared images do not fit the model.
    #[error(transparent)]
    Preprocess(#[from] clip_model::preprocess::PreprocessError),
    /// A figure cannot be computed.
    #[error("the evaluation failed: {0}; the weights may have diverged")]
    Measure(#[from] crate::measures::MeasureError),
    /// A method's own answer cannot be computed.
    #[error("the method cannot answer: {0}")]
    Answer(String),
    /// The model gave NaN or an infinity.
    #[error(
        "the features of {what} are not finite: the weights have diverged or are damaged (`mtil-bench model verify`), or the device computes wrongly (`mtil-bench device compare` tells; --device flex is the CPU)"
    )]
    NotFinite {
        /// Of what.
        what: String,
    },
    /// Every image of a set is unreadable.
    #[error("none of {0} can be read")]
    NothingReadable(String),
}

impl From<DataError> for BatchError {
    fn from(error: DataError) -> Self {
        match error {
            DataError::Io { .. } | DataError::Image { .. } => Self::Image(error),
            _ => Self::Data(error),
        }
    }
}

/// Images of a set that is cached at most. A larger one is a pool of reference images, of which a
/// run sees few.
const MOST_CACHED: usize = 200_000;

/// Prepares batches. Shared by training and evaluation.
#[derive(Clone)]
pub struct Images {
    preprocess: Preprocess,
    skip_bad: bool,
    crop_scale: f64,
    bad: Arc<Mutex<BTreeSet<String>>>,
    cache: Option<PathBuf>,
    report: Arc<Mutex<CacheReport>>,
}

/// What became of the cache of prepared images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// Sums over all passes that have ended.
    pub stats: CacheStats,
    /// Why images could not be cached, each reason once. The pixels do not suffer from it.
    pub problems: BTreeSet<String>,
}

/// The squares of one batch, before they go to a device ([`Images::tensor`]).
#[derive(Debug)]
pub struct Prepared {
    /// Which images they are, without those left out.
    pub kept: Vec<usize>,
    /// The squares, in the order of `kept`.
    pub images: Vec<RgbImage>,
}

impl Images {
    /// Prepares images with `preprocess`. With `skip_bad`, unreadable images are left out of their
    /// batch and remembered; otherwise they are errors.
    pub fn new(preprocess: Preprocess, crop_scale: f64, skip_bad: bool) -> Self {
        Self {
            preprocess,
            skip_bad,
            crop_scale,
            bad: Arc::default(),
            cache: None,
            report: Arc::default(),
        }
    }

    /// Keeps what [`eval_ahead`](Self::eval_ahead) prepares in `folder` (see [`PixelCache`]) and
    /// reads it from there the next time.
    pub fn with_cache(self, folder: impl Into<PathBuf>) -> Self {
        Self {
            cache: Some(folder.into()),
            ..self
        }
    }

    /// What became of the cache so far.
    pub fn cache_report(&self) -> CacheReport {
        self.report
            .lock()
            .map_or_else(|_| CacheReport::default(), |report| report.clone())
    }

    /// Names of the images that were left out.
    pub fn skipped(&self) -> Vec<String> {
        self.bad
            .lock()
            .map_or_else(|_| Vec::new(), |bad| bad.iter().cloned().collect())
    }

    /// Pixels of the images `indices` prepared for evaluation, and which of the indices they are;
    /// no pixels when every image was left out.
    ///
    /// # Errors
    /// [`BatchError::Image`] naming the image, unless bad images are skipped.
    pub fn eval(
        &self,
        source: &dyn ImageSource,
        indices: &[usize],
        device: &Device,
    ) -> Result<(Vec<usize>, Option<Tensor<4>>), BatchError> {
        self.collect(source, indices, device, |image, _| {
            self.preprocess.eval_u8(image)
        })
    }

    /// Like [`eval`](Self::eval) with the random crop of training. Position `i` of the batch uses
    /// the generator of (`seed`, `batch`, `i`), so that a batch is the same whenever it is made.
    ///
    /// # Errors
    /// See [`eval`](Self::eval).
    pub fn train(
        &self,
        source: &dyn ImageSource,
        indices: &[usize],
        device: &Device,
        seed: u64,
        batch: u64,
    ) -> Result<(Vec<usize>, Option<Tensor<4>>), BatchError> {
        let crop = self.train_crop();
        self.collect(source, indices, device, |image, position| {
            cropped(&self.preprocess, &crop, image, (seed, batch, position))
        })
    }

    /// The batches of `indices` prepared for evaluation, `batch` at a time, decoded ahead on a few
    /// threads ([`LoaderOptions::default`] says how many, and how far ahead). Dropping the iterator
    /// stops them. With a cache, images are read from it and added to it; where that fails they are
    /// decoded.
    ///
    /// # Errors
    /// [`BatchError::Data`] when `batch` is zero or no thread can be started. The iterator gives
    /// the errors of [`eval`](Self::eval), each at its batch, and ends there. A batch whose images
    /// are all left out is empty.
    pub fn eval_ahead(
        &self,
        source: Arc<dyn ImageSource>,
        indices: Vec<usize>,
        batch: usize,
    ) -> Result<Ahead, BatchError> {
        let order = BatchOrder::sequential(indices.len().max(1), batch)?;
        let steps = 0..indices.len().div_ceil(batch) as u64;
        self.eval_loader(source, order, steps, Some(indices.into()))
    }

    /// The batches of the `steps` of `order`, prepared for evaluation and decoded ahead as in
    /// [`eval_ahead`](Self::eval_ahead).
    ///
    /// # Errors
    /// See [`eval_ahead`](Self::eval_ahead).
    pub fn eval_steps_ahead(
        &self,
        source: Arc<dyn ImageSource>,
        order: BatchOrder,
        steps: Range<u64>,
    ) -> Result<Ahead, BatchError> {
        self.eval_loader(source, order, steps, None)
    }

    fn eval_loader(
        &self,
        source: Arc<dyn ImageSource>,
        order: BatchOrder,
        steps: Range<u64>,
        indices: Option<Arc<[usize]>>,
    ) -> Result<Ahead, BatchError> {
        let cache = self.open_cache(source.as_ref()).map(Arc::new);
        let load = {
            let (source, indices, cache) = (source.clone(), indices.clone(), cache.clone());
            let preprocess = self.preprocess.clone();
            move |at: usize, _, _| {
                let index = indices.as_ref().map_or(at, |indices| indices[at]);
                if let Some(found) = cache.as_ref().and_then(|cache| cache.get(index)) {
                    return Ok(found);
                }
                let image = preprocess.eval_u8(&source.load(index)?);
                if let Some(cache) = &cache {
                    cache.put(index, &image);
                }
                Ok(image)
            }
        };
        Ok(Ahead {
            loader: Loader::new(order, steps, &self.loader_options(), load)?,
            source,
            indices,
            bad: self.bad.clone(),
            _tally: Tally {
                cache,
                report: self.report.clone(),
            },
        })
    }

    /// The batches that [`train`](Self::train) makes of the `steps` of `order`, step k being its
    /// batch k, decoded ahead as in [`eval_ahead`](Self::eval_ahead). Random crops are never
    /// cached.
    ///
    /// # Errors
    /// See [`eval_ahead`](Self::eval_ahead).
    pub fn train_ahead(
        &self,
        source: Arc<dyn ImageSource>,
        order: BatchOrder,
        steps: Range<u64>,
        seed: u64,
    ) -> Result<Ahead, BatchError> {
        let (preprocess, crop) = (self.preprocess.clone(), self.train_crop());
        let images = source.clone();
        let load = move |index, step, position| {
            let image = images.load(index)?;
            Ok(cropped(&preprocess, &crop, &image, (seed, step, position)))
        };
        Ok(Ahead {
            loader: Loader::new(order, steps, &self.loader_options(), load)?,
            source,
            indices: None,
            bad: self.bad.clone(),
            _tally: Tally {
                cache: None,
                report: self.report.clone(),
            },
        })
    }

    /// The squares as a tensor `[images, 3, side, side]` on `device`; nothing for no images.
    ///
    /// # Errors
    /// [`BatchError::Preprocess`] when their sizes differ.
    pub fn tensor(
        &self,
        images: &[RgbImage],
        device: &Device,
    ) -> Result<Option<Tensor<4>>, BatchError> {
        if images.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.preprocess.to_tensor(images, device)?))
    }

    fn train_crop(&self) -> TrainCrop {
        TrainCrop {
            scale: (self.crop_scale, 1.0),
            ..Default::default()
        }
    }

    fn loader_options(&self) -> LoaderOptions {
        LoaderOptions {
            bad_images: if self.skip_bad {
                BadImagePolicy::Skip
            } else {
                BadImagePolicy::Stop
            },
            ..LoaderOptions::default()
        }
    }

    /// The cache for the images of `source`, if there is to be one and the transform fixes a
    /// square.
    fn open_cache(&self, source: &dyn ImageSource) -> Option<PixelCache> {
        let folder = self.cache.as_ref()?;
        if source.len() > MOST_CACHED {
            return None;
        }
        let side = u32::try_from(self.preprocess.image_size())
            .ok()
            .filter(|side| *side > 0)?;
        let p = &self.preprocess;
        // Whatever the 8-bit pixels depend on; the version stands for the decoders and the
        // arithmetic.
        let transform = format!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {:?} version {}",
            p.resize,
            p.interpolation,
            p.crop,
            p.convert_rgb,
            p.crop_offset,
            p.grey16,
            p.pass_order,
            env!("CARGO_PKG_VERSION"),
        );
        match PixelCache::open(folder, source, &transform, side) {
            Ok(cache) => Some(cache),
            Err(error) => {
                if let Ok(mut report) = self.report.lock() {
                    report.problems.insert(error.to_string());
                }
                None
            }
        }
    }

    fn collect(
        &self,
        source: &dyn ImageSource,
        indices: &[usize],
        device: &Device,
        prepare: impl Fn(&image::DynamicImage, usize) -> RgbImage + Sync,
    ) -> Result<(Vec<usize>, Option<Tensor<4>>), BatchError> {
        let images: Vec<Result<RgbImage, DataError>> = indices
            .par_iter()
            .enumerate()
            .map(|(position, index)| source.load(*index).map(|image| prepare(&image, position)))
            .collect();
        let (mut kept, mut ready) = (
            Vec::with_capacity(indices.len()),
            Vec::with_capacity(indices.len()),
        );
        for (index, image) in indices.iter().zip(images) {
            match image {
                Ok(image) => {
                    kept.push(*index);
                    ready.push(image);
                }
                Err(_) if self.skip_bad => {
                    if let Ok(mut bad) = self.bad.lock() {
                        bad.insert(source.name(*index));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((kept, self.tensor(&ready, device)?))
    }
}

/// A training crop, whose generator is told by seed, batch and position in the batch.
fn cropped(
    preprocess: &Preprocess,
    crop: &TrainCrop,
    image: &image::DynamicImage,
    (seed, batch, position): (u64, u64, usize),
) -> RgbImage {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(batch.wrapping_mul(1 << 20).wrapping_add(position as u64));
    preprocess.train_u8(image, &mut rng, crop)
}

/// Batches that are decoded ahead; see [`Images::eval_ahead`].
pub struct Ahead {
    // Before the tally: its threads end first.
    loader: Loader,
    source: Arc<dyn ImageSource>,
    /// What the loader's numbers stand for, where they are not the images' own.
    indices: Option<Arc<[usize]>>,
    bad: Arc<Mutex<BTreeSet<String>>>,
    _tally: Tally,
}

impl Ahead {
    fn index(&self, at: usize) -> usize {
        self.indices.as_ref().map_or(at, |indices| indices[at])
    }
}

impl Iterator for Ahead {
    type Item = Result<Prepared, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let before = self.loader.bad_images().skipped;
        let batch = match self.loader.next()? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error.into())),
        };
        let skipped = self.loader.bad_images();
        if skipped.skipped > before
            && let Ok(mut bad) = self.bad.lock()
        {
            let names = skipped
                .images
                .keys()
                .map(|at| self.source.name(self.index(*at)));
            bad.extend(names);
        }
        let kept = batch.indices.iter().map(|at| self.index(*at)).collect();
        Some(Ok(Prepared {
            kept,
            images: batch.images,
        }))
    }
}

/// Adds to the report what a cache did, when the pass ends.
struct Tally {
    cache: Option<Arc<PixelCache>>,
    report: Arc<Mutex<CacheReport>>,
}

impl Drop for Tally {
    fn drop(&mut self) {
        if let Some(cache) = &self.cache
            && let Ok(mut report) = self.report.lock()
        {
            report.stats.add(&cache.stats());
            report
                .problems
                .extend(cache.take_error().map(|error| error.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use image::DynamicImage;

    use super::*;

    /// Pictures of several shapes, of which one is broken.
    struct Pictures {
        broken: Option<usize>,
        decoded: Mutex<usize>,
    }

    impl Pictures {
        fn new(broken: Option<usize>) -> Arc<Self> {
            Arc::new(Self {
                broken,
                decoded: Mutex::new(0),
            })
        }

        fn decoded(&self) -> usize {
            *self.decoded.lock().unwrap()
        }
    }

    impl ImageSource for Pictures {
        fn len(&self) -> usize {
            23
        }

        fn name(&self, index: usize) -> String {
            format!("picture-{index}")
        }

        fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
            *self.decoded.lock().unwrap() += 1;
            if self.broken == Some(index) {
                return Err(DataError::Image {
                    name: self.name(index),
                    reason: "truncated".into(),
                });
            }
            let (width, height) = (40 + index as u32, 61 - index as u32);
            Ok(DynamicImage::ImageRgb8(RgbImage::from_fn(
                width,
                height,
                |x, y| image::Rgb([(x * 5) as u8, (y * 3) as u8, (x * y + index as u32) as u8]),
            )))
        }
    }

    fn images(skip: bool) -> Images {
        Images::new(Preprocess::clip(16), 0.5, skip)
    }

    type Batch = (Vec<usize>, Option<Vec<f32>>);

    fn values((kept, pixels): (Vec<usize>, Option<Tensor<4>>)) -> Batch {
        (kept, pixels.map(|p| p.into_data().try_to_vec().unwrap()))
    }

    fn all(images: &Images, ahead: Ahead, device: &Device) -> Vec<Batch> {
        ahead
            .map(|batch| {
                let batch = batch.unwrap();
                values((batch.kept, images.tensor(&batch.images, device).unwrap()))
            })
            .collect()
    }

    #[test]
    fn batches_made_ahead_equal_those_made_at_once() {
        let device = Device::default();
        for broken in [None, Some(11)] {
            let source = Pictures::new(broken);
            let images = images(true);
            let order = || BatchOrder::new(23, 5, 9).unwrap();
            let direct: Vec<_> = (3..12)
                .map(|step| {
                    let indices = order().indices(step);
                    values(
                        images
                            .train(source.as_ref(), &indices, &device, 77, step)
                            .unwrap(),
                    )
                })
                .collect();
            let ahead = images
                .train_ahead(source.clone(), order(), 3..12, 77)
                .unwrap();
            assert_eq!(all(&images, ahead, &device), direct);

            let wanted: Vec<usize> = (0..23).rev().step_by(2).collect();
            let direct: Vec<_> = wanted
                .chunks(4)
                .map(|indices| values(images.eval(source.as_ref(), indices, &device).unwrap()))
                .collect();
            let ahead = images.eval_ahead(source.clone(), wanted.clone(), 4);
            assert_eq!(all(&images, ahead.unwrap(), &device), direct);
        }
    }

    #[test]
    fn broken_images_are_errors_at_their_batch_or_left_out_and_named() {
        let source = Pictures::new(Some(11));
        let ahead = |images: &Images, batch| {
            images
                .eval_ahead(source.clone(), (8..14).collect(), batch)
                .unwrap()
        };
        let results: Vec<_> = ahead(&images(false), 2).collect();
        assert_eq!(results.len(), 2);
        let error = results[1].as_ref().unwrap_err();
        assert!(matches!(error, BatchError::Image(_)));
        assert!(error.to_string().contains("picture-11"), "{error}");

        let images = images(true);
        let kept: Vec<_> = ahead(&images, 1).map(|b| b.unwrap().kept).collect();
        assert_eq!(
            kept,
            [vec![8], vec![9], vec![10], vec![], vec![12], vec![13]]
        );
        assert_eq!(images.skipped(), ["picture-11"]);
    }

    #[test]
    fn nothing_is_no_batches() {
        let source = Pictures::new(None);
        assert_eq!(
            images(false)
                .eval_ahead(source.clone(), vec![], 4)
                .unwrap()
                .count(),
            0
        );
        assert!(images(false).eval_ahead(source, vec![1], 0).is_err());
    }

    #[test]
    fn a_cache_gives_the_same_pixels_without_decoding() {
        let dir = tempfile::tempdir().unwrap();
        let device = Device::default();
        let source = Pictures::new(Some(11));
        let images = images(true).with_cache(dir.path());
        let pass = || {
            let ahead = images.eval_ahead(source.clone(), (0..23).collect(), 4);
            all(&images, ahead.unwrap(), &device)
        };
        let first = pass();
        assert_eq!(source.decoded(), 23);
        assert_eq!(pass(), first);
        assert_eq!(source.decoded(), 24, "the broken one is tried again");
        let report = images.cache_report();
        assert!(report.problems.is_empty());
        let expected = CacheStats {
            hits: 22,
            misses: 24,
            damaged: 0,
            stored: 22,
        };
        assert_eq!(report.stats, expected);

        // Another transform has pixels of its own, and a single batch is not cached.
        let other = Images::new(Preprocess::reference(16), 0.5, true).with_cache(dir.path());
        other
            .eval_ahead(source.clone(), vec![0], 1)
            .unwrap()
            .for_each(drop);
        assert_eq!(source.decoded(), 25);
    }

    #[test]
    fn a_cache_that_cannot_be_made_is_reported_and_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        std::fs::write(&taken, b"").unwrap();
        let images = images(false).with_cache(&taken);
        let source = Pictures::new(None);
        for _ in 0..2 {
            let ahead = images.eval_ahead(source.clone(), vec![0, 1, 2], 2).unwrap();
            assert_eq!(ahead.map(|b| b.unwrap().kept.len()).sum::<usize>(), 3);
        }
        let problems = images.cache_report().problems;
        assert_eq!(problems.len(), 1);
        assert!(problems.first().unwrap().contains("taken"), "{problems:?}");
    }
}

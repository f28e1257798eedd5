//! Image preprocessing into batches of pixel tensors.
//!
//! [`Images::eval`] and [`Images::train`] preprocess one batch on all cores.
//! [`Images::prefetch_eval`] and [`Images::prefetch_train`] decode many batches ahead of the
//! device. Both give the same pixels.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
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

/// Errors of preprocessing a batch and of evaluating it.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// An image could not be read or preprocessed.
    #[error(transparent)]
    Image(DataError),
    /// The images cannot be batched.
    #[error(transparent)]
    Data(DataError),
    /// A text could not be tokenised.
    #[error(transparent)]
    Text(#[from] clip_model::tokenizer::TokenizerError),
    /// The preprocessed images do not fit the model.
    #[error(transparent)]
    Preprocess(#[from] clip_model::preprocess::PreprocessError),
    /// A measure cannot be computed.
    #[error("the evaluation failed: {0}; the weights may have diverged")]
    Measure(#[from] crate::measures::MeasureError),
    /// The scores of a method's own classifier cannot be computed.
    #[error("the method cannot answer: {0}")]
    Answer(String),
    /// The features contain NaN or an infinity.
    #[error(
        "the features of {what} are not finite: the weights have diverged or are damaged \
         (`mtil-bench model verify`), or the device computes wrongly \
         (`mtil-bench device compare` tells; --device flex is the CPU)"
    )]
    NotFinite {
        /// The image or text.
        what: String,
    },
    /// No image of a set can be read.
    #[error("none of {0} can be read")]
    NothingReadable(String),
    /// The flag of [`Images::with_stop`] is set.
    #[error("stopped on request")]
    Interrupted,
}

impl BatchError {
    /// Names the set of images in an error that none of them can be read.
    pub fn of_set(self, set: impl FnOnce() -> String) -> Self {
        match self {
            Self::NothingReadable(_) => Self::NothingReadable(set()),
            other => other,
        }
    }
}

impl From<DataError> for BatchError {
    fn from(error: DataError) -> Self {
        if error.is_of_an_image() {
            Self::Image(error)
        } else {
            Self::Data(error)
        }
    }
}

/// Largest number of images of a set that is cached. A larger set is a pool of reference images, of
/// which a run reads only a few.
const MAX_CACHED_IMAGES: usize = 200_000;

/// Preprocessing of images into batches, shared by training and evaluation.
///
/// ```
/// use burn::tensor::Device;
/// use clip_model::Preprocess;
/// use image::RgbImage;
/// use mtil_eval::batch::Images;
///
/// let images = Images::new(Preprocess::clip(32), 0.9, false);
/// let pixels = images.tensor(&[RgbImage::new(32, 32)], &Device::default())?;
/// assert_eq!(pixels.unwrap().dims(), [1, 3, 32, 32]);
/// # Ok::<(), mtil_eval::batch::BatchError>(())
/// ```
#[derive(Clone)]
pub struct Images {
    preprocess: Preprocess,
    skip_bad: bool,
    crop_scale: f64,
    unreadable: Arc<Mutex<BTreeSet<String>>>,
    cache: Option<PathBuf>,
    report: Arc<Mutex<CacheReport>>,
    stop: Arc<AtomicBool>,
}

/// Statistics and problems of the cache of preprocessed images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// Sums over all finished passes.
    pub stats: CacheStats,
    /// Reasons why images could not be cached, each once. They do not affect the pixels.
    pub problems: BTreeSet<String>,
}

/// The preprocessed crops of one batch on the host. [`Images::tensor`] moves them to a device.
#[derive(Debug)]
pub struct PreprocessedBatch {
    /// Indices of the images, without those left out.
    pub indices: Vec<usize>,
    /// Square crops, in the order of `indices`.
    pub images: Vec<RgbImage>,
}

impl Images {
    /// Preprocesses images with `preprocess`. The random crop of training covers at least the share
    /// `crop_scale` of an image. With `skip_bad`, unreadable images are left out of their batch and
    /// listed by [`skipped`](Self::skipped); otherwise they are errors.
    pub fn new(preprocess: Preprocess, crop_scale: f64, skip_bad: bool) -> Self {
        Self {
            preprocess,
            skip_bad,
            crop_scale,
            unreadable: Arc::default(),
            cache: None,
            report: Arc::default(),
            stop: Arc::default(),
        }
    }

    /// Ends all work on images within one batch once `stop` is set: from then on every batch is
    /// [`BatchError::Interrupted`].
    pub fn with_stop(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    /// Checks the flag of [`with_stop`](Self::with_stop), between two parts of longer work.
    ///
    /// # Errors
    /// [`BatchError::Interrupted`] if it is set.
    pub fn check_stop(&self) -> Result<(), BatchError> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(BatchError::Interrupted),
            false => Ok(()),
        }
    }

    /// Caches the crops of [`prefetch_eval`](Self::prefetch_eval) in `folder` (see [`PixelCache`]).
    pub fn with_cache(self, folder: impl Into<PathBuf>) -> Self {
        Self {
            cache: Some(folder.into()),
            ..self
        }
    }

    /// Returns the statistics of the cache so far.
    pub fn cache_report(&self) -> CacheReport {
        self.report
            .lock()
            .map_or_else(|_| CacheReport::default(), |report| report.clone())
    }

    /// Returns the names of the images that were left out.
    pub fn skipped(&self) -> Vec<String> {
        self.unreadable
            .lock()
            .map_or_else(|_| Vec::new(), |names| names.iter().cloned().collect())
    }

    /// Preprocesses the images `indices` for evaluation. Returns the indices without those left
    /// out, and the pixels; no pixels when every image was left out.
    ///
    /// # Shapes
    /// - output: `[images, 3, side, side]`
    ///
    /// # Errors
    /// [`BatchError::Image`] naming the image, unless bad images are skipped;
    /// [`BatchError::Interrupted`].
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

    /// Like [`eval`](Self::eval), with the random crop of training. Position `i` of the batch uses
    /// the generator of (`seed`, `batch`, `i`), so a batch is a function of these numbers.
    ///
    /// # Shapes
    /// - output: `[images, 3, side, side]`
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
            random_crop(&self.preprocess, &crop, image, (seed, batch, position))
        })
    }

    /// Iterates over the images `indices`, preprocessed for evaluation, in batches of `batch`. A
    /// few threads decode ahead; [`LoaderOptions::default`] sets their number and how far ahead.
    /// Dropping the iterator stops them. With a cache, crops are read from it and added to it;
    /// where that fails the images are decoded. A batch whose images are all left out is empty.
    ///
    /// # Errors
    /// [`BatchError::Data`] when `batch` is zero or no thread can be started. The iterator yields
    /// an error of [`eval`](Self::eval) in place of its batch, and ends there.
    pub fn prefetch_eval(
        &self,
        source: Arc<dyn ImageSource>,
        indices: Vec<usize>,
        batch: usize,
    ) -> Result<Prefetcher, BatchError> {
        let order = BatchOrder::sequential(indices.len().max(1), batch)?;
        let steps = 0..indices.len().div_ceil(batch) as u64;
        self.eval_loader(source, order, steps, Some(indices.into()))
    }

    /// Iterates over the batches `steps` of `order`, preprocessed for evaluation and prefetched as
    /// in [`prefetch_eval`](Self::prefetch_eval).
    ///
    /// # Errors
    /// See [`prefetch_eval`](Self::prefetch_eval).
    pub fn prefetch_eval_steps(
        &self,
        source: Arc<dyn ImageSource>,
        order: BatchOrder,
        steps: Range<u64>,
    ) -> Result<Prefetcher, BatchError> {
        self.eval_loader(source, order, steps, None)
    }

    fn eval_loader(
        &self,
        source: Arc<dyn ImageSource>,
        order: BatchOrder,
        steps: Range<u64>,
        indices: Option<Arc<[usize]>>,
    ) -> Result<Prefetcher, BatchError> {
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
        Ok(Prefetcher {
            loader: Loader::new(order, steps, &self.loader_options(), load)?,
            source,
            indices,
            unreadable: self.unreadable.clone(),
            stop: Some(self.stop.clone()),
            _cache_tally: CacheTally {
                cache,
                report: self.report.clone(),
            },
        })
    }

    /// Iterates over the batches `steps` of `order`, preprocessed as by [`train`](Self::train),
    /// where step `k` is batch `k`, and prefetched as in [`prefetch_eval`](Self::prefetch_eval).
    /// Random crops are never cached.
    ///
    /// # Errors
    /// See [`prefetch_eval`](Self::prefetch_eval).
    pub fn prefetch_train(
        &self,
        source: Arc<dyn ImageSource>,
        order: BatchOrder,
        steps: Range<u64>,
        seed: u64,
    ) -> Result<Prefetcher, BatchError> {
        let (preprocess, crop) = (self.preprocess.clone(), self.train_crop());
        let images = source.clone();
        let load = move |index, step, position| {
            let image = images.load(index)?;
            Ok(random_crop(
                &preprocess,
                &crop,
                &image,
                (seed, step, position),
            ))
        };
        Ok(Prefetcher {
            loader: Loader::new(order, steps, &self.loader_options(), load)?,
            source,
            indices: None,
            unreadable: self.unreadable.clone(),
            stop: Some(self.stop.clone()),
            _cache_tally: CacheTally {
                cache: None,
                report: self.report.clone(),
            },
        })
    }

    /// Returns the crops as a tensor on `device`; none for no images.
    ///
    /// # Shapes
    /// - output: `[images, 3, side, side]`
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

    /// Opens the cache for the images of `source`, if caching is on and the transform gives crops
    /// of one size.
    fn open_cache(&self, source: &dyn ImageSource) -> Option<PixelCache> {
        let folder = self.cache.as_ref()?;
        if source.len() > MAX_CACHED_IMAGES {
            return None;
        }
        let side = u32::try_from(self.preprocess.image_size())
            .ok()
            .filter(|side| *side > 0)?;
        let p = &self.preprocess;
        // The key names everything that the 8-bit pixels depend on. The version stands for the
        // decoders and the arithmetic.
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
        self.check_stop()?;
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
                    if let Ok(mut names) = self.unreadable.lock() {
                        names.insert(source.name(*index));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((kept, self.tensor(&ready, device)?))
    }
}

/// Applies the random crop of training, drawn from the seed, the batch and the position in it.
fn random_crop(
    preprocess: &Preprocess,
    crop: &TrainCrop,
    image: &image::DynamicImage,
    (seed, batch, position): (u64, u64, usize),
) -> RgbImage {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(batch.wrapping_mul(1 << 20).wrapping_add(position as u64));
    preprocess.train_u8(image, &mut rng, crop)
}

/// Iterator over prefetched batches; see [`Images::prefetch_eval`].
pub struct Prefetcher {
    // Declared before the tally, so that its threads end first.
    loader: Loader,
    source: Arc<dyn ImageSource>,
    /// Image indices by loader index; absent where both are the same.
    indices: Option<Arc<[usize]>>,
    unreadable: Arc<Mutex<BTreeSet<String>>>,
    /// Absent after an interruption.
    stop: Option<Arc<AtomicBool>>,
    _cache_tally: CacheTally,
}

impl Prefetcher {
    fn index(&self, at: usize) -> usize {
        self.indices.as_ref().map_or(at, |indices| indices[at])
    }
}

impl Iterator for Prefetcher {
    type Item = Result<PreprocessedBatch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.stop.as_ref()?.load(Ordering::Relaxed) {
            self.stop = None;
            return Some(Err(BatchError::Interrupted));
        }
        let before = self.loader.bad_images().skipped;
        let batch = match self.loader.next()? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error.into())),
        };
        let skipped = self.loader.bad_images();
        if skipped.skipped > before
            && let Ok(mut unreadable) = self.unreadable.lock()
        {
            let names = skipped
                .images
                .keys()
                .map(|at| self.source.name(self.index(*at)));
            unreadable.extend(names);
        }
        let indices = batch.indices.iter().map(|at| self.index(*at)).collect();
        Some(Ok(PreprocessedBatch {
            indices,
            images: batch.images,
        }))
    }
}

/// Adds the statistics of a cache to the report when the pass ends.
struct CacheTally {
    cache: Option<Arc<PixelCache>>,
    report: Arc<Mutex<CacheReport>>,
}

impl Drop for CacheTally {
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

    /// Images of several sizes; decoding `broken` fails.
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

    fn all(images: &Images, ahead: Prefetcher, device: &Device) -> Vec<Batch> {
        ahead
            .map(|batch| {
                let batch = batch.unwrap();
                values((batch.indices, images.tensor(&batch.images, device).unwrap()))
            })
            .collect()
    }

    #[test]
    fn prefetched_batches_equal_direct_ones() {
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
                .prefetch_train(source.clone(), order(), 3..12, 77)
                .unwrap();
            assert_eq!(all(&images, ahead, &device), direct);

            let wanted: Vec<usize> = (0..23).rev().step_by(2).collect();
            let direct: Vec<_> = wanted
                .chunks(4)
                .map(|indices| values(images.eval(source.as_ref(), indices, &device).unwrap()))
                .collect();
            let ahead = images.prefetch_eval(source.clone(), wanted.clone(), 4);
            assert_eq!(all(&images, ahead.unwrap(), &device), direct);
        }
    }

    #[test]
    fn unreadable_images_are_errors_at_their_batch_or_skipped() {
        let source = Pictures::new(Some(11));
        let ahead = |images: &Images, batch| {
            images
                .prefetch_eval(source.clone(), (8..14).collect(), batch)
                .unwrap()
        };
        let results: Vec<_> = ahead(&images(false), 2).collect();
        assert_eq!(results.len(), 2);
        let error = results[1].as_ref().unwrap_err();
        assert!(matches!(error, BatchError::Image(_)));
        assert!(error.to_string().contains("picture-11"), "{error}");

        let images = images(true);
        let kept: Vec<_> = ahead(&images, 1).map(|b| b.unwrap().indices).collect();
        assert_eq!(
            kept,
            [vec![8], vec![9], vec![10], vec![], vec![12], vec![13]]
        );
        assert_eq!(images.skipped(), ["picture-11"]);
    }

    #[test]
    fn a_stop_interrupts_every_kind_of_batch() {
        let device = Device::default();
        let source = Pictures::new(None);
        let stop = Arc::new(AtomicBool::new(false));
        let images = images(true).with_stop(stop.clone());
        let order = || BatchOrder::new(23, 5, 9).unwrap();
        let mut streams = [
            images.prefetch_eval(source.clone(), (0..23).collect(), 4),
            images.prefetch_eval_steps(source.clone(), order(), 0..9),
            images.prefetch_train(source.clone(), order(), 0..9, 1),
        ]
        .map(Result::unwrap);
        for stream in &mut streams {
            assert!(stream.next().unwrap().is_ok());
        }
        assert!(images.eval(source.as_ref(), &[0], &device).is_ok());
        stop.store(true, Ordering::Relaxed);
        for stream in &mut streams {
            let interrupted = stream.next().unwrap();
            assert!(matches!(interrupted, Err(BatchError::Interrupted)));
            assert!(stream.next().is_none());
        }
        let now = images.eval(source.as_ref(), &[0], &device);
        assert!(matches!(now, Err(BatchError::Interrupted)));
        let now = images.train(source.as_ref(), &[0], &device, 1, 0);
        assert!(matches!(now, Err(BatchError::Interrupted)));
    }

    #[test]
    fn no_images_give_no_batches() {
        let source = Pictures::new(None);
        assert_eq!(
            images(false)
                .prefetch_eval(source.clone(), vec![], 4)
                .unwrap()
                .count(),
            0
        );
        assert!(images(false).prefetch_eval(source, vec![1], 0).is_err());
    }

    #[test]
    fn cached_pixels_equal_decoded_ones() {
        let dir = tempfile::tempdir().unwrap();
        let device = Device::default();
        let source = Pictures::new(Some(11));
        let images = images(true).with_cache(dir.path());
        let pass = || {
            let ahead = images.prefetch_eval(source.clone(), (0..23).collect(), 4);
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

        // Another transform does not share the cached pixels.
        let other = Images::new(Preprocess::reference(16), 0.5, true).with_cache(dir.path());
        other
            .prefetch_eval(source.clone(), vec![0], 1)
            .unwrap()
            .for_each(drop);
        assert_eq!(source.decoded(), 25);
    }

    #[test]
    fn a_failing_cache_is_reported_and_images_are_decoded() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        std::fs::write(&taken, b"").unwrap();
        let images = images(false).with_cache(&taken);
        let source = Pictures::new(None);
        for _ in 0..2 {
            let ahead = images
                .prefetch_eval(source.clone(), vec![0, 1, 2], 2)
                .unwrap();
            assert_eq!(ahead.map(|b| b.unwrap().indices.len()).sum::<usize>(), 3);
        }
        let problems = images.cache_report().problems;
        assert_eq!(problems.len(), 1);
        assert!(problems.first().unwrap().contains("taken"), "{problems:?}");
    }
}

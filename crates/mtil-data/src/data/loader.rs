//! Data loader that prefetches batches on background threads.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use image::RgbImage;

use super::{BatchOrder, DataError};
use crate::machine::processors;

/// Policy for images that cannot be read or decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BadImagePolicy {
    /// The step yields the error.
    #[default]
    Stop,
    /// The image is left out of its batch and reported in [`BadImages`]. A batch of unreadable
    /// images only is empty.
    Skip,
}

/// Settings of a [`Loader`].
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Number of worker threads, at least 1. Defaults to the number of processors less one, between
    /// 1 and 8, which leaves one processor to the model.
    pub workers: usize,
    /// Number of batches each worker loads in advance, at least 1. Defaults to 2.
    ///
    /// At most `workers * prefetch_factor` batches exist besides those already yielded.
    pub prefetch_factor: usize,
    /// Policy for unreadable images. Defaults to [`BadImagePolicy::Stop`].
    pub bad_images: BadImagePolicy,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            workers: (processors() - 1).clamp(1, 8),
            prefetch_factor: 2,
            bad_images: BadImagePolicy::default(),
        }
    }
}

/// The images of one step.
#[derive(Debug)]
pub struct Batch {
    /// The step.
    pub step: u64,
    /// Dataset index of each image, without skipped images.
    pub indices: Vec<usize>,
    /// The images, in the order of `indices`.
    pub images: Vec<RgbImage>,
}

/// Report of skipped images. Each image is listed once, however often it was skipped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BadImages {
    /// Error message of each image by dataset index. The message contains the image's name.
    pub images: BTreeMap<usize, String>,
    /// Number of times an image was left out of a batch.
    pub skipped: u64,
}

impl BadImages {
    /// Merges another report about the same dataset into this one.
    pub fn merge(&mut self, other: &Self) {
        self.images
            .extend(other.images.iter().map(|(i, e)| (*i, e.clone())));
        self.skipped += other.skipped;
    }
}

/// A loaded batch and the images left out of it, by dataset index and error message.
type LoadResult = Result<(Batch, Vec<(usize, String)>), DataError>;

/// An iterator over the batches of a range of steps, prefetched on background threads.
///
/// Batches come in the order of [`BatchOrder`]. Worker w of n loads the steps `w`, `w + n`, … of
/// the range into a bounded queue of its own, and the iterator reads the queues in turn. The result
/// does not depend on which worker is faster.
///
/// Under [`BadImagePolicy::Stop`] an unreadable image yields an error at its step, and iteration
/// ends. A panic in `load` does the same under either policy; the error names the image. Dropping
/// the loader stops and joins the workers, which finish their current image.
///
/// ```
/// use image::RgbImage;
/// use mtil_data::data::{BatchOrder, Loader, LoaderOptions};
///
/// let order = BatchOrder::new(5, 2, 42)?;
/// let options = LoaderOptions::default();
/// let loader = Loader::new(order, 0..3, &options, |_index, _step, _position| {
///     Ok(RgbImage::new(8, 8))
/// })?;
/// for (step, batch) in loader.enumerate() {
///     let batch = batch?;
///     assert_eq!(batch.step, step as u64);
///     assert_eq!(batch.images.len(), batch.indices.len());
/// }
/// # Ok::<(), mtil_data::data::DataError>(())
/// ```
pub struct Loader {
    queues: Vec<Receiver<LoadResult>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    next: u64,
    steps: Range<u64>,
    bad: BadImages,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("next", &self.next)
            .field("steps", &self.steps)
            .field("bad", &self.bad)
            .finish_non_exhaustive()
    }
}

impl Loader {
    /// Starts loading the batches of `steps`.
    ///
    /// `load(index, step, position)` decodes and preprocesses image `index`. `position` is its
    /// position in `BatchOrder::indices(step)`. For reproducible batches, augmentations must be
    /// functions of these three arguments and a seed.
    ///
    /// # Errors
    /// [`DataError::Io`] if a thread cannot be started.
    pub fn new<F>(
        order: BatchOrder,
        steps: Range<u64>,
        options: &LoaderOptions,
        load: F,
    ) -> Result<Self, DataError>
    where
        F: Fn(usize, u64, usize) -> Result<RgbImage, DataError> + Send + Sync + 'static,
    {
        let workers = options.workers.max(1);
        let policy = options.bad_images;
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new((order, load));
        let mut loader = Self {
            queues: Vec::with_capacity(workers),
            threads: Vec::with_capacity(workers),
            stop: stop.clone(),
            next: steps.start,
            steps: steps.clone(),
            bad: BadImages::default(),
        };
        for worker in 0..workers as u64 {
            // The worker itself holds one finished batch while it waits for room in the queue.
            let (sender, receiver) = sync_channel(options.prefetch_factor.max(1) - 1);
            let (shared, stop, steps) = (shared.clone(), stop.clone(), steps.clone());
            let body = move || {
                for step in (steps.start + worker..steps.end).step_by(workers) {
                    let Some(batch) = load_batch(&shared.0, &shared.1, step, policy, &stop) else {
                        return;
                    };
                    let failed = batch.is_err();
                    if sender.send(batch).is_err() || failed {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("loader-{worker}"))
                .spawn(body)
                .map_err(|source| DataError::Io {
                    path: "a loader thread".into(),
                    source,
                })?;
            loader.threads.push(thread);
            loader.queues.push(receiver);
        }
        Ok(loader)
    }

    /// Returns the images skipped in the batches yielded so far.
    ///
    /// Prefetched batches do not count, so the report does not depend on the workers' progress.
    pub fn bad_images(&self) -> &BadImages {
        &self.bad
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.steps.end {
            return None;
        }
        let queue = (self.next - self.steps.start) as usize % self.queues.len();
        let produced = self.queues[queue].recv().unwrap_or_else(|_| {
            Err(DataError::Layout(format!(
                "the thread that loads step {} panicked",
                self.next
            )))
        });
        match produced {
            Ok((batch, skipped)) => {
                self.next += 1;
                self.bad.skipped += skipped.len() as u64;
                self.bad.images.extend(skipped);
                Some(Ok(batch))
            }
            Err(error) => {
                self.next = self.steps.end;
                self.stop.store(true, Ordering::Relaxed);
                Some(Err(error))
            }
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Closing the queues wakes the workers that wait for room in them.
        self.queues.clear();
        for thread in self.threads.drain(..) {
            // A panic of a worker was already reported at its step.
            let _ = thread.join();
        }
    }
}

/// Loads the batch of `step`. Returns `None` once `stop` is set.
fn load_batch<F>(
    order: &BatchOrder,
    load: &F,
    step: u64,
    policy: BadImagePolicy,
    stop: &AtomicBool,
) -> Option<LoadResult>
where
    F: Fn(usize, u64, usize) -> Result<RgbImage, DataError>,
{
    let wanted = order.indices(step);
    let mut batch = Batch {
        step,
        indices: Vec::with_capacity(wanted.len()),
        images: Vec::with_capacity(wanted.len()),
    };
    let mut skipped = Vec::new();
    for (position, &index) in wanted.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        // A panic ends the loading, so no later call to `load` can observe inconsistent state.
        let loaded = catch_unwind(AssertUnwindSafe(|| load(index, step, position)));
        match loaded.unwrap_or_else(|panic| Err(panic_error(index, step, panic.as_ref()))) {
            Ok(image) => {
                batch.indices.push(index);
                batch.images.push(image);
            }
            Err(error) if error.is_of_an_image() && policy == BadImagePolicy::Skip => {
                skipped.push((index, error.to_string()));
            }
            Err(error) => return Some(Err(error)),
        }
    }
    Some(Ok((batch, skipped)))
}

fn panic_error(index: usize, step: u64, panic: &(dyn Any + Send)) -> DataError {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    DataError::Layout(format!(
        "preparing image {index} for step {step} panicked: {message}"
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    fn pixel(index: usize) -> RgbImage {
        RgbImage::from_pixel(1, 1, image::Rgb([index as u8, 0, 0]))
    }

    fn options(workers: usize, bad_images: BadImagePolicy) -> LoaderOptions {
        LoaderOptions {
            workers,
            prefetch_factor: 2,
            bad_images,
        }
    }

    fn bad(index: usize) -> DataError {
        DataError::Image {
            name: format!("image-{index}"),
            reason: "truncated".into(),
        }
    }

    #[test]
    fn order_is_exact_whichever_thread_is_faster() {
        for workers in [1, 2, 3] {
            let order = BatchOrder::new(23, 4, 3).unwrap();
            let expected: Vec<_> = (5..30).map(|k| order.indices(k)).collect();
            let load = |index: usize, step: u64, _: usize| {
                // Makes later steps finish first.
                std::thread::sleep(Duration::from_micros(if step % 2 == 1 { 400 } else { 0 }));
                Ok(pixel(index))
            };
            let loader = Loader::new(order, 5..30, &options(workers, BadImagePolicy::Stop), load);
            let batches: Vec<_> = loader.unwrap().map(Result::unwrap).collect();
            assert_eq!(
                batches.iter().map(|b| b.step).collect::<Vec<_>>(),
                (5..30).collect::<Vec<_>>()
            );
            let indices: Vec<_> = batches.iter().map(|b| b.indices.clone()).collect();
            assert_eq!(indices, expected);
            for batch in &batches {
                for (i, image) in batch.indices.iter().zip(&batch.images) {
                    assert_eq!(*image, pixel(*i));
                }
            }
        }
    }

    #[test]
    fn prefetching_is_bounded_and_dropping_stops_the_workers() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        let order = BatchOrder::sequential(1_000_000, 1).unwrap();
        let load = move |index, _, _| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(pixel(index))
        };
        let mut loader =
            Loader::new(order, 0..1_000_000, &options(2, BadImagePolicy::Stop), load).unwrap();
        loader.next().unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        // One was yielded; each worker has at most one in its queue and one waiting.
        assert!(made.load(Ordering::SeqCst) <= 1 + 2 * 2, "{made:?}");
        drop(loader);
        let after = made.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(made.load(Ordering::SeqCst), after);
        assert_eq!(Arc::strong_count(&made), 1, "the threads are gone");
    }

    #[test]
    fn at_most_workers_times_prefetch_factor_batches_are_prefetched() {
        for (workers, prefetch_factor) in [(1, 1), (1, 3), (3, 1), (2, 2)] {
            let begun = Arc::new(AtomicUsize::new(0));
            let counter = begun.clone();
            let load = move |index, _, position| {
                if position == 0 {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
                Ok(pixel(index))
            };
            let order = BatchOrder::sequential(120, 2).unwrap();
            let settings = LoaderOptions {
                workers,
                prefetch_factor,
                bad_images: BadImagePolicy::Stop,
            };
            let mut loader = Loader::new(order, 0..60, &settings, load).unwrap();
            for taken in 1..=60 {
                loader.next().unwrap().unwrap();
                if taken % 20 == 0 {
                    // Gives the workers time to fill their queues.
                    std::thread::sleep(Duration::from_millis(20));
                }
                assert!(begun.load(Ordering::SeqCst) <= taken + workers * prefetch_factor);
            }
            assert_eq!(begun.load(Ordering::SeqCst), 60);
        }
    }

    #[test]
    fn an_error_arrives_at_its_step_and_ends_the_loading() {
        let order = BatchOrder::sequential(20, 2).unwrap();
        let load = |index, _, _| {
            if index == 7 {
                Err(bad(index))
            } else {
                Ok(pixel(index))
            }
        };
        let mut loader =
            Loader::new(order, 0..10, &options(2, BadImagePolicy::Stop), load).unwrap();
        for step in 0..3 {
            assert_eq!(loader.next().unwrap().unwrap().step, step);
        }
        let error = loader.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("image-7"), "{error}");
        assert!(loader.next().is_none());
    }

    #[test]
    fn skipped_images_are_left_out_counted_and_named_once() {
        for workers in [1, 2] {
            let order = BatchOrder::sequential(6, 3).unwrap();
            let load = |index, _, _| {
                if index == 4 {
                    Err(bad(index))
                } else {
                    Ok(pixel(index))
                }
            };
            let mut loader =
                Loader::new(order, 0..6, &options(workers, BadImagePolicy::Skip), load).unwrap();
            let indices: Vec<_> = loader.by_ref().map(|b| b.unwrap().indices).collect();
            assert_eq!(indices[0], [0, 1, 2]);
            assert_eq!(indices[1], [3, 5]);
            assert_eq!(indices[5], [3, 5]);
            let report = loader.bad_images();
            assert_eq!(report.skipped, 3);
            assert_eq!(report.images.len(), 1);
            assert!(report.images[&4].contains("image-4"));
        }
    }

    #[test]
    fn skips_count_when_yielded_not_when_prefetched() {
        let order = BatchOrder::sequential(4, 2).unwrap();
        let load = |index, _, _| {
            if index == 3 {
                Err(bad(index))
            } else {
                Ok(pixel(index))
            }
        };
        let mut loader = Loader::new(order, 0..2, &options(1, BadImagePolicy::Skip), load).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        loader.next().unwrap().unwrap();
        assert_eq!(*loader.bad_images(), BadImages::default());
        loader.next().unwrap().unwrap();
        assert_eq!(loader.bad_images().skipped, 1);
    }

    #[test]
    fn a_batch_of_bad_images_only_arrives_empty() {
        let order = BatchOrder::sequential(6, 2).unwrap();
        let load = |index, _, _| {
            if (2..4).contains(&index) {
                Err(bad(index))
            } else {
                Ok(pixel(index))
            }
        };
        let mut loader = Loader::new(order, 0..3, &options(1, BadImagePolicy::Skip), load).unwrap();
        let sizes: Vec<_> = loader.by_ref().map(|b| b.unwrap().images.len()).collect();
        assert_eq!(sizes, [2, 0, 2]);
        assert_eq!(loader.bad_images().skipped, 2);
    }

    #[test]
    fn positions_count_the_skipped_images_too() {
        let order = BatchOrder::new(9, 4, 1).unwrap();
        let expected = order.indices(1);
        let load = move |index, step, position| {
            assert_eq!((step, expected[position]), (1, index));
            if position == 1 {
                Err(bad(index))
            } else {
                Ok(RgbImage::from_pixel(1, 1, image::Rgb([position as u8; 3])))
            }
        };
        let mut loader = Loader::new(order, 1..2, &options(1, BadImagePolicy::Skip), load).unwrap();
        let batch = loader.next().unwrap().unwrap();
        let positions: Vec<_> = batch.images.iter().map(|i| i.as_raw()[0]).collect();
        assert_eq!(positions, [0, 2, 3]);
    }

    #[test]
    fn a_corrupt_file_in_the_middle_of_a_task_is_named_or_skipped() {
        use super::super::{FolderOptions, ImageFolder, ImageSource};
        let dir = tempfile::tempdir().unwrap();
        for (split, n) in [("train", 4), ("test", 1)] {
            for class in ["a", "b"] {
                std::fs::create_dir_all(dir.path().join(split).join(class)).unwrap();
                for i in 0..n {
                    let path = dir.path().join(format!("{split}/{class}/{i}.png"));
                    pixel(i).save(path).unwrap();
                }
            }
        }
        let broken = dir.path().join("train/a/2.png");
        let bytes: Vec<u8> = std::fs::read(&broken).unwrap();
        std::fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
        let folder = ImageFolder::open(dir.path(), &FolderOptions::default()).unwrap();
        let load = |policy| {
            let images = folder.train.clone();
            let order = BatchOrder::new(images.len(), 4, 1).unwrap();
            let read = move |index: usize, _, _| Ok(images.load(index)?.to_rgb8());
            Loader::new(order, 0..4, &options(2, policy), read).unwrap()
        };
        let error = load(BadImagePolicy::Stop).find_map(Result::err).unwrap();
        assert!(error.to_string().contains("2.png"), "{error}");
        let mut skipping = load(BadImagePolicy::Skip);
        let images: usize = skipping.by_ref().map(|b| b.unwrap().images.len()).sum();
        assert_eq!(images, 14, "two epochs of eight, without one");
        assert_eq!(skipping.bad_images().skipped, 2);
        assert!(skipping.bad_images().images[&2].contains("2.png"));
    }

    #[test]
    fn a_panic_while_loading_is_an_error_at_its_step() {
        let order = BatchOrder::sequential(4, 1).unwrap();
        let load = |index, _, _| {
            if index == 2 {
                panic!("a bug")
            } else {
                Ok(pixel(index))
            }
        };
        let loader = Loader::new(order, 0..4, &options(2, BadImagePolicy::Stop), load).unwrap();
        let results: Vec<_> = loader.collect();
        assert_eq!(results.len(), 3);
        let error = results[2].as_ref().unwrap_err().to_string();
        assert!(
            error.contains("image 2 for step 2") && error.contains("a bug"),
            "{error}"
        );
    }

    #[test]
    fn only_unreadable_images_are_skipped() {
        let order = BatchOrder::sequential(4, 2).unwrap();
        let load = |_, _, _| Err(DataError::Layout("wrong".into()));
        let mut loader = Loader::new(order, 0..2, &options(1, BadImagePolicy::Skip), load).unwrap();
        assert!(loader.next().unwrap().is_err());
    }
}

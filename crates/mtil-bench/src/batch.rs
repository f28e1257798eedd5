//! Images to batches of pixels, decoded in parallel.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use burn::tensor::{Device, Tensor};
use clip_model::Preprocess;
use image::RgbImage;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::data::{DataError, ImageSource};

/// Why a batch could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// An image could not be read or prepared.
    #[error(
        "{0}; repair or remove it, or pass --skip-bad-images to count and leave out such images"
    )]
    Image(DataError),
    /// A text could not be tokenised.
    #[error(transparent)]
    Text(#[from] clip_model::tokenizer::TokenizerError),
    /// The prepared images do not fit the model.
    #[error(transparent)]
    Preprocess(#[from] clip_model::preprocess::PreprocessError),
    /// Every image of a set is unreadable.
    #[error("none of {0} can be read")]
    NothingReadable(String),
}

/// Prepares batches. Shared by training and evaluation.
#[derive(Clone)]
pub struct Images {
    preprocess: Preprocess,
    skip_bad: bool,
    crop_scale: f64,
    bad: Arc<Mutex<BTreeSet<String>>>,
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
        }
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

    /// Like [`eval`](Self::eval) with the random crop of training. Position `i` of the batch uses the
    /// generator of (`seed`, `batch`, `i`), so that a batch is the same whenever it is made.
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
        let crop = clip_model::preprocess::TrainCrop {
            scale: (self.crop_scale, 1.0),
            ..Default::default()
        };
        self.collect(source, indices, device, |image, position| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(batch.wrapping_mul(1 << 20).wrapping_add(position as u64));
            self.preprocess.train_u8(image, &mut rng, &crop)
        })
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
                Err(error) => return Err(BatchError::Image(error)),
            }
        }
        let pixels = if ready.is_empty() {
            None
        } else {
            Some(self.preprocess.to_tensor(&ready, device)?)
        };
        Ok((kept, pixels))
    }
}

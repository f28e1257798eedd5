//! Image sources for image files in a store and for raw pixels.

use std::{ops::Range, path::PathBuf, sync::Arc, time::SystemTime};

use image::{DynamicImage, GrayImage, RgbImage};

use super::Store;
use crate::{
    data::{DataError, ImageSource, decode_with},
    datasets::error::DatasetError,
};

/// Image files of a [`Store`] as an image source.
///
/// ```
/// use mtil_data::data::ImageSource as _;
/// use mtil_data::datasets::store::{Store, StoreImages};
///
/// # let root = tempfile::tempdir()?;
/// image::RgbImage::new(8, 8).save(root.path().join("1.png"))?;
/// let store = Store::open(root.path(), &[])?;
/// let images = StoreImages::new(store, vec!["1.png".into()]);
/// assert_eq!(images.load(0)?.width(), 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct StoreImages {
    store: Store,
    paths: Arc<[String]>,
}

impl StoreImages {
    /// Creates a source of the images at `paths`, relative to the data root. Nothing is read yet.
    pub fn new(store: Store, paths: Vec<String>) -> Self {
        Self {
            store,
            paths: paths.into(),
        }
    }

    /// Returns the paths of the images, relative to the data root.
    pub fn paths(&self) -> &[String] {
        &self.paths
    }
}

impl ImageSource for StoreImages {
    fn len(&self) -> usize {
        self.paths.len()
    }

    fn name(&self, index: usize) -> String {
        self.store.describe(&self.paths[index])
    }

    /// Returns the path relative to the data root and the size of the file, which are the same for
    /// a folder and an archive.
    fn identity(&self, index: usize) -> String {
        let path = &self.paths[index];
        format!("{path} {}", self.store.size(path).unwrap_or(0))
    }

    fn modified(&self, index: usize) -> Option<SystemTime> {
        self.store.modified(&self.paths[index])
    }

    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        let path = &self.paths[index];
        let bytes = self.store.read(path).map_err(|error| match error {
            DatasetError::Io { path, source } => DataError::Io { path, source },
            other => DataError::Io {
                path: PathBuf::from(self.store.describe(path)),
                source: std::io::Error::other(other.to_string()),
            },
        })?;
        let name = self.store.describe(path);
        decode_with(&bytes, &name, self.store.decode_options())
    }
}

/// Memory layout of the pixels of a raw image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelLayout {
    /// `[height, width]`: one byte per pixel. Used by MNIST.
    Grey,
    /// `[3, height, width]`: a red, a green and a blue plane. Used by CIFAR.
    PlanarRgb,
}

/// Raw 8-bit images of the same size, stored consecutively in memory.
///
/// ```
/// use mtil_data::data::ImageSource as _;
/// use mtil_data::datasets::store::{PixelLayout, RawImages};
///
/// let images = RawImages::new("digits", vec![0_u8; 2 * 28 * 28], 28, 28, PixelLayout::Grey)?;
/// assert_eq!(images.len(), 2);
/// assert_eq!(images.name(1), "digits #1");
/// # Ok::<(), mtil_data::datasets::DatasetError>(())
/// ```
#[derive(Clone)]
pub struct RawImages {
    name: String,
    data: Arc<[u8]>,
    range: Range<usize>,
    width: u32,
    height: u32,
    pixels: PixelLayout,
}

impl RawImages {
    /// Creates a source of the images in `data`. `name` is the path of their file, relative to the
    /// data root.
    ///
    /// # Errors
    /// [`DatasetError::RawPixels`] if the length of `data` is not a multiple of the image size, or
    /// if that size is zero.
    pub fn new(
        name: impl Into<String>,
        data: impl Into<Arc<[u8]>>,
        width: u32,
        height: u32,
        pixels: PixelLayout,
    ) -> Result<Self, DatasetError> {
        let (name, data) = (name.into(), data.into());
        let image = bytes_of(width, height, pixels);
        if image == 0 || !data.len().is_multiple_of(image) {
            return Err(DatasetError::RawPixels {
                name,
                bytes: data.len(),
                image,
            });
        }
        let range = 0..data.len() / image;
        Ok(Self {
            name,
            data,
            range,
            width,
            height,
            pixels,
        })
    }

    /// Returns a range of the images, which shares their memory. They keep their names.
    ///
    /// # Panics
    /// If `range` is out of range.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.range.len(),
            "images {range:?} of {}",
            self.range.len()
        );
        let start = self.range.start;
        Self {
            range: start + range.start..start + range.end,
            ..self.clone()
        }
    }
}

fn bytes_of(width: u32, height: u32, pixels: PixelLayout) -> usize {
    let planes = match pixels {
        PixelLayout::Grey => 1,
        PixelLayout::PlanarRgb => 3,
    };
    width as usize * height as usize * planes
}

impl ImageSource for RawImages {
    fn len(&self) -> usize {
        self.range.len()
    }

    fn name(&self, index: usize) -> String {
        assert!(
            index < self.range.len(),
            "image {index} of {}",
            self.range.len()
        );
        format!("{} #{}", self.name, self.range.start + index)
    }

    fn load(&self, index: usize) -> Result<DynamicImage, DataError> {
        assert!(
            index < self.range.len(),
            "image {index} of {}",
            self.range.len()
        );
        let image = bytes_of(self.width, self.height, self.pixels);
        let data = &self.data[(self.range.start + index) * image..][..image];
        Ok(match self.pixels {
            PixelLayout::Grey => GrayImage::from_raw(self.width, self.height, data.to_vec())
                .expect("one byte a pixel")
                .into(),
            PixelLayout::PlanarRgb => {
                let (red, rest) = data.split_at(image / 3);
                let (green, blue) = rest.split_at(image / 3);
                let mixed = red
                    .iter()
                    .zip(green)
                    .zip(blue)
                    .flat_map(|((r, g), b)| [*r, *g, *b]);
                RgbImage::from_raw(self.width, self.height, mixed.collect())
                    .expect("three bytes a pixel")
                    .into()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_images_are_named_by_location_and_identified_by_path_and_size() {
        let root = tempfile::tempdir().unwrap();
        RgbImage::from_pixel(2, 1, image::Rgb([9, 8, 7]))
            .save(root.path().join("good.png"))
            .unwrap();
        std::fs::write(root.path().join("bad.png"), b"no image").unwrap();
        let store = Store::open(root.path(), &[]).unwrap();
        let paths = ["good.png", "bad.png", "none.png"].map(str::to_owned);
        let images = StoreImages::new(store, paths.to_vec());
        assert_eq!(images.len(), 3);
        assert_eq!(images.paths(), paths);
        assert_eq!(
            images.load(0).unwrap().to_rgb8().get_pixel(1, 0).0,
            [9, 8, 7]
        );
        assert_eq!(images.identity(1), "bad.png 8");
        assert!(images.modified(1).is_some() && images.modified(2).is_none());
        let place = root.path().join("bad.png").display().to_string();
        assert_eq!(images.name(1), place);
        let error = images.load(1).unwrap_err();
        assert!(
            matches!(&error, DataError::Image { name, .. } if *name == place),
            "{error}"
        );
        let error = images.load(2).unwrap_err();
        assert!(matches!(error, DataError::Io { .. }), "{error}");
        assert!(
            error.to_string().contains("there is no none.png"),
            "{error}"
        );
    }

    #[test]
    fn raw_images_are_read_plane_by_plane_and_shared() {
        let data: Vec<u8> = (0..36).collect();
        let images = RawImages::new("cifar/train", data, 3, 2, PixelLayout::PlanarRgb).unwrap();
        assert_eq!(images.len(), 2);
        let image = images.load(1).unwrap().to_rgb8();
        assert_eq!(image.dimensions(), (3, 2));
        assert_eq!(image.get_pixel(0, 0).0, [18, 24, 30]);
        assert_eq!(image.get_pixel(2, 1).0, [23, 29, 35]);
        let last = images.slice(1..2);
        assert!(Arc::ptr_eq(&images.data, &last.data));
        assert_eq!(last.len(), 1);
        assert_eq!(last.name(0), "cifar/train #1");
        assert_eq!(last.load(0).unwrap(), images.load(1).unwrap());
        assert!(images.slice(1..1).is_empty());

        let grey = RawImages::new(
            "mnist",
            (0..6).collect::<Vec<u8>>(),
            3,
            2,
            PixelLayout::Grey,
        )
        .unwrap();
        assert_eq!(grey.load(0).unwrap().to_luma8().get_pixel(1, 1).0, [4]);
        let error = RawImages::new("mnist", vec![0; 7], 3, 2, PixelLayout::Grey)
            .err()
            .unwrap();
        assert!(error.to_string().contains("7 bytes"), "{error}");
        assert!(RawImages::new("mnist", vec![], 0, 2, PixelLayout::Grey).is_err());
    }
}

//! Image preprocessing: decoding, resizing, cropping and normalisation for CLIP's image tower.
//!
//! [`Preprocess`] holds the settings of a checkpoint's `preprocessor_config.json` and applies them:
//! [`decode`] (bytes to pixels), [`Preprocess::eval_u8`] or [`Preprocess::train_u8`] (pixels to a
//! crop of the model's image size), [`Preprocess::to_tensor`] (crops to a normalised batch).
//!
//! # Compatibility
//! Resizing is bit-identical to Pillow's antialiased bicubic (or bilinear) filter. The pipelines
//! that are in use for CLIP agree on ordinary RGB and grey photos. They differ in corner cases,
//! each of which is a setting of [`Preprocess`]:
//!
//! | | [`Preprocess::clip`] (default) | [`Preprocess::reference`] |
//! |---|---|---|
//! | follows | `transformers`' `CLIPImageProcessor` | torchvision's `Resize`, `CenterCrop`, then `convert("RGB")`: OpenAI `clip/clip.py:79-86`, GNSP `clip/clip.py:60-79` |
//! | conversion to RGB ([`ConvertRgb`]) | before resizing and cropping | after it: alpha is premultiplied, palette and 1-bit images are resized by nearest neighbour |
//! | centre crop of an odd surplus ([`CropOffset`]) | `(h − c) / 2`, rounded down | rounded half to even |
//! | tall images ([`PassOrder`]) | Pillow 13 | Pillow 10, which the published environment pins |
//!
//! `transformers` differs between versions and backends:
//!
//! - From version 5 it composites transparent images over white ([`ConvertRgb::BeforeOnWhite`]).
//!   Earlier versions, OpenAI's code and the loaders of most datasets drop the alpha channel
//!   ([`ConvertRgb::Before`]).
//! - Its default backend resizes tensors with torchvision, whose bicubic filter differs from
//!   Pillow's (in 0.9 % of the bytes of this crate's test images, by up to 11). Its Pillow backend
//!   gives the pixels of this module.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod colour;
mod config;
mod decode;
mod raster;
mod resample;

use std::borrow::Cow;

use burn::tensor::{Device, Tensor, TensorData};
use image::{DynamicImage, RgbImage};
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;

pub use colour::Mode;
pub use config::PreprocessError;
pub use decode::{
    DecodeOptions, ImageError, MAX_PIXELS, SourceImage, decode, decode_file, decode_file_with,
    decode_source, decode_source_with, decode_with,
};

pub(crate) use raster::Taps;
use raster::{Raster, Window};
use resample::Resampling;
pub(crate) use resample::normalized_taps;

/// Target size of the resize step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// Resize the shorter side to this many pixels and the longer one to
    /// `trunc(side · long / short)`.
    ShortestEdge(u32),
    /// Resize to exactly this size; the aspect ratio is not kept.
    Exact {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
    },
}

/// Interpolation filter of the resize step: Pillow's, with antialiasing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interpolation {
    /// Bicubic; used by every CLIP and by SigLIP 1.
    #[default]
    Bicubic,
    /// Bilinear; used by SigLIP 2 in `transformers`.
    Bilinear,
}

/// Point in the pipeline at which images are converted to RGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConvertRgb {
    /// Before resizing; alpha is dropped. This is `transformers` up to version 4, and the loaders
    /// of most datasets.
    #[default]
    Before,
    /// Before resizing; transparent images are composited over white. This is `transformers` from
    /// version 5.
    BeforeOnWhite,
    /// After resizing and cropping; alpha is dropped. This is torchvision's pipeline on the result
    /// of `Image.open`, with two differences. If a crop is larger than the image, palette images
    /// are padded with black, in torchvision with their first colour. CMYK images are converted
    /// when they are decoded: a difference of less than one level on average, and of up to 62
    /// (measured) where black meets colour.
    After,
}

/// Rounding of a centre crop's offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CropOffset {
    /// Round down, as in `transformers`.
    #[default]
    Floor,
    /// Round half to even (0.5 → 0, 1.5 → 2), as Python's `round` and therefore torchvision.
    HalfEven,
}

/// Order of the two resampling passes. The first pass rounds its result, so the order matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PassOrder {
    /// Horizontal first, except where the height loses more than twice as many pixels as the width:
    /// Pillow from version 13 (python-pillow/Pillow#9549). If the aspect ratio is kept, this
    /// affects only images that are more than twice as high as wide.
    #[default]
    Pillow13,
    /// Always horizontal first: Pillow up to version 12.
    HorizontalFirst,
}

/// Conversion of 16-bit grey images (PNG and TIFF) to 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grey16 {
    /// Clip values above 255, as in Pillow. A 16-bit photo becomes almost entirely white.
    #[default]
    Clip,
    /// Keep the high byte, which preserves the picture.
    Scale,
}

/// Random crop for training, with the parameters of torchvision's `RandomResizedCrop`.
///
/// ```
/// use clip_model::preprocess::{Preprocess, TrainCrop};
/// use image::DynamicImage;
/// use rand::SeedableRng;
/// use rand_chacha::ChaCha8Rng;
///
/// let crop = TrainCrop { scale: (0.5, 1.0), ..TrainCrop::default() };
/// let mut rng = ChaCha8Rng::seed_from_u64(0);
/// let image = Preprocess::clip(32).train_u8(&DynamicImage::new_rgb8(64, 48), &mut rng, &crop);
/// assert_eq!(image.dimensions(), (32, 32));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainCrop {
    /// Range of the crop's area as a fraction of the image's. Default: 0.9 to 1.
    pub scale: (f64, f64),
    /// Range of the crop's aspect ratio, width divided by height. Default: ¾ to 4⁄3.
    pub ratio: (f64, f64),
}

impl Default for TrainCrop {
    /// Returns the settings of GNSP's training (`clip/clip.py:60-79`).
    fn default() -> Self {
        Self {
            scale: (0.9, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
        }
    }
}

/// Settings of the image preprocessing.
///
/// ```
/// use burn::tensor::Device;
/// use clip_model::Preprocess;
/// use image::DynamicImage;
///
/// let preprocess = Preprocess::clip(224);
/// let crop = preprocess.eval_u8(&DynamicImage::new_rgb8(640, 480));
/// let pixels = preprocess.to_tensor(&[crop], &Device::default())?;
/// assert_eq!(pixels.dims(), [1, 3, 224, 224]);
/// # Ok::<(), clip_model::preprocess::PreprocessError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// Resize step; `None` to skip it.
    pub resize: Option<Resize>,
    /// Interpolation filter of the resize step.
    pub interpolation: Interpolation,
    /// Height and width of the centre crop; `None` to skip it. Smaller images are padded with
    /// black.
    pub crop: Option<(u32, u32)>,
    /// Factor applied to the 8-bit values, usually 1/255.
    pub rescale: f64,
    /// Mean of each channel, subtracted from the rescaled values.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, the divisor after subtracting the mean.
    pub std: [f64; 3],
    /// Point at which images are converted to RGB.
    pub convert_rgb: ConvertRgb,
    /// Rounding of the centre crop's offset.
    pub crop_offset: CropOffset,
    /// Conversion of 16-bit grey images.
    pub grey16: Grey16,
    /// Order of the resampling passes.
    pub pass_order: PassOrder,
}

impl Default for Preprocess {
    fn default() -> Self {
        Self::clip(224)
    }
}

impl Preprocess {
    /// Returns the settings of `transformers` for a CLIP of this image size.
    pub fn clip(size: u32) -> Self {
        Self {
            resize: Some(Resize::ShortestEdge(size)),
            interpolation: Interpolation::Bicubic,
            crop: Some((size, size)),
            rescale: 1.0 / 255.0,
            mean: [0.48145466, 0.4578275, 0.40821073],
            std: [0.26862954, 0.26130258, 0.27577711],
            convert_rgb: ConvertRgb::Before,
            crop_offset: CropOffset::Floor,
            grey16: Grey16::Clip,
            pass_order: PassOrder::Pillow13,
        }
    }

    /// Returns the settings of OpenAI's code, GNSP and ZSCL for this image size, with Pillow 10.
    pub fn reference(size: u32) -> Self {
        Self {
            convert_rgb: ConvertRgb::After,
            crop_offset: CropOffset::HalfEven,
            pass_order: PassOrder::HorizontalFirst,
            ..Self::clip(size)
        }
    }

    /// Returns the settings of SigLIP for this image size: images are resized to a square, and the
    /// aspect ratio is not kept.
    pub fn siglip(size: u32) -> Self {
        Self {
            resize: Some(Resize::Exact {
                height: size,
                width: size,
            }),
            crop: None,
            mean: [0.5; 3],
            std: [0.5; 3],
            ..Self::clip(size)
        }
    }

    /// Returns the same settings for another (square) image size.
    pub fn with_image_size(self, size: u32) -> Self {
        Self {
            resize: self.resize.map(|resize| match resize {
                Resize::ShortestEdge(_) => Resize::ShortestEdge(size),
                Resize::Exact { .. } => Resize::Exact {
                    height: size,
                    width: size,
                },
            }),
            crop: self.crop.map(|_| (size, size)),
            ..self
        }
    }

    /// Returns height and width of the output, or `None` if they depend on the image.
    pub fn output_size(&self) -> Option<(u32, u32)> {
        match (self.crop, self.resize) {
            (Some(crop), _) => Some(crop),
            (None, Some(Resize::Exact { height, width })) => Some((height, width)),
            _ => None,
        }
    }

    /// Returns the side of the square output, to compare with the model's image size, or 0 if the
    /// output is not always the same square.
    pub fn image_size(&self) -> usize {
        self.output_size()
            .filter(|(h, w)| h == w)
            .map_or(0, |(h, _)| h as usize)
    }

    /// Applies the evaluation pipeline up to 8-bit RGB: resize and centre crop.
    pub fn eval_u8(&self, image: &DynamicImage) -> RgbImage {
        self.eval(image, mode_of(image))
    }

    /// Like [`eval_u8`](Self::eval_u8), for an image with its stored mode. The result differs only
    /// with [`ConvertRgb::After`], for palette images, 1-bit images and PNGs with a transparent
    /// colour.
    pub fn eval_source(&self, image: &SourceImage) -> RgbImage {
        self.eval(image.pixels(), image.mode())
    }

    /// Applies the training pipeline up to 8-bit RGB: a random crop, resized to the output size
    /// without keeping its aspect ratio.
    ///
    /// The crop is drawn like torchvision's `RandomResizedCrop`, from `rng` only. Images with an
    /// aspect ratio above about 1.48 never fit the default [`TrainCrop`] and always get its
    /// fallback: the centre crop of the nearest allowed aspect ratio.
    pub fn train_u8(
        &self,
        image: &DynamicImage,
        rng: &mut ChaCha8Rng,
        crop: &TrainCrop,
    ) -> RgbImage {
        let region = random_region(image.width(), image.height(), rng, crop);
        let (height, width) = match (self.output_size(), self.resize) {
            (Some(size), _) => size,
            (None, Some(Resize::ShortestEdge(side))) => (side, side),
            _ => (region.height, region.width),
        };
        let out = Window::whole(width, height);
        self.resize_and_crop(image, mode_of(image), region, (width, height), out, out)
    }

    /// Returns a thumbnail whose longer side is `side` pixels. Smaller images are not enlarged.
    pub fn thumbnail(&self, image: &DynamicImage, side: u32) -> RgbImage {
        let (w, h) = (image.width().max(1), image.height().max(1));
        let longest = w.max(h);
        let side = side.clamp(1, longest);
        let scaled = |v: u32| ((u64::from(v) * u64::from(side) / u64::from(longest)) as u32).max(1);
        let size = (scaled(w), scaled(h));
        let out = Window::whole(size.0, size.1);
        self.resize_and_crop(
            image,
            mode_of(image),
            Window::whole(image.width(), image.height()),
            size,
            out,
            out,
        )
    }

    /// Returns the normalised batch for the image tower: `(v · rescale − mean) / std`.
    ///
    /// # Shapes
    /// - output: `[images, 3, height, width]`, f32
    ///
    /// # Errors
    /// [`PreprocessError::NoImages`] if there are no images, [`PreprocessError::MixedSizes`] if
    /// their sizes differ.
    pub fn to_tensor(
        &self,
        images: &[RgbImage],
        device: &Device,
    ) -> Result<Tensor<4>, PreprocessError> {
        let first = images
            .first()
            .ok_or(PreprocessError::NoImages)?
            .dimensions();
        let plane = first.0 as usize * first.1 as usize;
        // Lookup table: 256 values for each of the 3 channels.
        let table: [[f32; 256]; 3] = std::array::from_fn(|c| {
            std::array::from_fn(|v| ((v as f64 * self.rescale - self.mean[c]) / self.std[c]) as f32)
        });
        let mut values = Vec::with_capacity(images.len() * plane * 3);
        for (index, image) in images.iter().enumerate() {
            let (width, height) = image.dimensions();
            if (width, height) != first {
                return Err(PreprocessError::MixedSizes {
                    index,
                    width,
                    height,
                    first,
                });
            }
            for (c, table) in table.iter().enumerate() {
                values.extend(
                    image
                        .as_raw()
                        .chunks_exact(3)
                        .map(|p| table[usize::from(p[c])]),
                );
            }
        }
        let shape = [images.len(), 3, first.1 as usize, first.0 as usize];
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }

    fn resampling(&self) -> Resampling {
        Resampling {
            kernel: self.interpolation,
            order: self.pass_order,
        }
    }

    fn eval(&self, image: &DynamicImage, mode: Mode) -> RgbImage {
        let (w, h) = (image.width(), image.height());
        let (width, height) = match self.resize {
            None => (w, h),
            Some(Resize::Exact { height, width }) => (width, height),
            Some(Resize::ShortestEdge(side)) => shortest_edge(w, h, side),
        };
        let (crop_h, crop_w) = self.crop.unwrap_or((height, width));
        let (left, pad_left, kept_w) = self.crop_axis(width, crop_w);
        let (top, pad_top, kept_h) = self.crop_axis(height, crop_h);
        let window = Window {
            left,
            top,
            width: kept_w,
            height: kept_h,
        };
        let canvas = Window {
            left: pad_left,
            top: pad_top,
            width: crop_w,
            height: crop_h,
        };
        self.resize_and_crop(
            image,
            mode,
            Window::whole(w, h),
            (width, height),
            window,
            canvas,
        )
    }

    /// Returns, for an axis of length `size`, the offset of the crop in the image, its offset on
    /// the canvas, and its length.
    fn crop_axis(&self, size: u32, crop: u32) -> (u32, u32, u32) {
        if size <= crop {
            return (0, (crop - size) / 2, size);
        }
        let surplus = size - crop;
        let half = surplus / 2;
        let up = self.crop_offset == CropOffset::HalfEven && surplus % 2 == 1 && half % 2 == 1;
        (half + u32::from(up), 0, crop)
    }

    /// Resizes the `region` of the image to `size` (width, height), takes the `window` of the
    /// result and converts it to RGB. A window smaller than the `canvas` is pasted on a black
    /// canvas at `canvas.{left, top}`.
    fn resize_and_crop(
        &self,
        image: &DynamicImage,
        mode: Mode,
        region: Window,
        size: (u32, u32),
        window: Window,
        canvas: Window,
    ) -> RgbImage {
        if image.width() == 0 || image.height() == 0 || size.0 == 0 || size.1 == 0 {
            return RgbImage::new(canvas.width, canvas.height);
        }
        let rgb = match self.convert_rgb {
            ConvertRgb::Before => resample::resize(
                &colour::to_rgb(self.to_8bit(image)),
                region,
                size,
                window,
                self.resampling(),
            ),
            ConvertRgb::BeforeOnWhite => resample::resize(
                &colour::composite_on_white(self.to_8bit(image)),
                region,
                size,
                window,
                self.resampling(),
            ),
            ConvertRgb::After => self.resize_in_stored_mode(image, mode, region, size, window),
        };
        let rgb = colour::into_image(rgb);
        if rgb.dimensions() == (canvas.width, canvas.height) {
            return rgb;
        }
        let mut out = RgbImage::new(canvas.width, canvas.height);
        image::imageops::replace(
            &mut out,
            &rgb,
            i64::from(canvas.left),
            i64::from(canvas.top),
        );
        out
    }

    /// Resizes and crops in the mode that the image was stored in, then converts to RGB.
    fn resize_in_stored_mode(
        &self,
        image: &DynamicImage,
        mode: Mode,
        region: Window,
        size: (u32, u32),
        window: Window,
    ) -> Raster<'static, u8> {
        // Pillow resizes 16-bit grey at 16 bits and clips afterwards.
        if let (DynamicImage::ImageLuma16(grey), Grey16::Clip) = (image, self.grey16) {
            let (width, height) = grey.dimensions();
            let raster = Raster {
                width,
                height,
                channels: 1,
                data: Cow::Borrowed(grey.as_raw().as_slice()),
            };
            let out = resample::resize(&raster, region, size, window, self.resampling());
            let data = Cow::Owned(colour::clip_to_8bit(&out.data));
            return colour::to_rgb(Raster {
                width: out.width,
                height: out.height,
                channels: 1,
                data,
            });
        }
        let mut stored = colour::drop_transparent_key(self.to_8bit(image), mode);
        match mode {
            Mode::Palette | Mode::Bilevel => {
                colour::to_rgb(resample::nearest(&stored, region, size, window))
            }
            // Pillow returns an image of the requested size unchanged, without the loss of colour
            // that premultiplication means for transparent pixels.
            Mode::Rgba | Mode::GreyAlpha if size != (region.width, region.height) => {
                colour::premultiply(&mut stored);
                let mut out = resample::resize(&stored, region, size, window, self.resampling());
                colour::unpremultiply(&mut out);
                colour::to_rgb(out)
            }
            _ => colour::to_rgb(resample::resize(
                &stored,
                region,
                size,
                window,
                self.resampling(),
            )),
        }
    }

    /// Converts an image to 8-bit samples, with 16-bit grey as the settings say.
    fn to_8bit<'a>(&self, image: &'a DynamicImage) -> Raster<'a, u8> {
        match image {
            DynamicImage::ImageLuma16(grey) if self.grey16 == Grey16::Scale => {
                let (width, height) = grey.dimensions();
                Raster {
                    width,
                    height,
                    channels: 1,
                    data: Cow::Owned(colour::high_byte(grey.as_raw())),
                }
            }
            _ => colour::to_8bit(image),
        }
    }
}

/// Returns Pillow's mode for the pixel type of an image.
fn mode_of(image: &DynamicImage) -> Mode {
    match image {
        DynamicImage::ImageLuma8(_) => Mode::Grey,
        DynamicImage::ImageLuma16(_) => Mode::Grey16,
        DynamicImage::ImageLumaA8(_) => Mode::GreyAlpha,
        DynamicImage::ImageRgba8(_) => Mode::Rgba,
        _ => Mode::Rgb,
    }
}

/// Returns width and height for a shorter side of `side` pixels (torchvision
/// `_compute_resized_output_size`).
fn shortest_edge(width: u32, height: u32, side: u32) -> (u32, u32) {
    let (short, long) = (width.min(height).max(1), width.max(height));
    let longer =
        u32::try_from(u64::from(side) * u64::from(long) / u64::from(short)).unwrap_or(u32::MAX);
    if width <= height {
        (side, longer)
    } else {
        (longer, side)
    }
}

/// Draws a region like `RandomResizedCrop`: ten attempts at an area and an aspect ratio, then the
/// centred region of the nearest allowed aspect ratio.
fn random_region(width: u32, height: u32, rng: &mut ChaCha8Rng, crop: &TrainCrop) -> Window {
    let (w, h) = (f64::from(width), f64::from(height));
    for _ in 0..10 {
        let area = w * h * uniform(rng, crop.scale);
        let aspect = uniform(rng, (crop.ratio.0.ln(), crop.ratio.1.ln())).exp();
        let cw = (area * aspect).sqrt().round_ties_even();
        let ch = (area / aspect).sqrt().round_ties_even();
        if cw >= 1.0 && cw <= w && ch >= 1.0 && ch <= h {
            let (cw, ch) = (cw as u32, ch as u32);
            let top = rng.random_range(0..=height - ch);
            let left = rng.random_range(0..=width - cw);
            return Window {
                left,
                top,
                width: cw,
                height: ch,
            };
        }
    }
    // Fallback: no attempt fitted into the image.
    let ratio = w / h;
    let (cw, ch) = if ratio < crop.ratio.0 {
        (width, (w / crop.ratio.0).round_ties_even() as u32)
    } else if ratio > crop.ratio.1 {
        ((h * crop.ratio.1).round_ties_even() as u32, height)
    } else {
        (width, height)
    };
    // A side of one pixel may round to 0.
    let (cw, ch) = (cw.clamp(1, width.max(1)), ch.clamp(1, height.max(1)));
    Window {
        left: width.saturating_sub(cw) / 2,
        top: height.saturating_sub(ch) / 2,
        width: cw,
        height: ch,
    }
}

/// Draws a uniform value in `[low, high)` from 53 bits, independently of the version of `rand`.
fn uniform(rng: &mut ChaCha8Rng, (low, high): (f64, f64)) -> f64 {
    let unit = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    low + (high - low) * unit
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn gradient_image(width: u32, height: u32) -> DynamicImage {
        DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8])
        }))
    }

    #[test]
    fn longer_sides_are_truncated_to_whole_pixels() {
        for (w, h, expected) in [
            (500, 333, (336, 224)),
            (640, 427, (335, 224)),
            (28, 28, (224, 224)),
            (1, 9, (224, 2016)),
        ] {
            assert_eq!(shortest_edge(w, h, 224), expected);
        }
    }

    #[test]
    fn crop_offsets_round_like_both_libraries() {
        let floor = Preprocess::clip(224);
        let even = Preprocess::reference(224);
        for (size, down, half_even) in [
            (224, 0, 0),
            (225, 0, 0),
            (226, 1, 1),
            (227, 1, 2),
            (229, 2, 2),
            (231, 3, 4),
        ] {
            assert_eq!(floor.crop_axis(size, 224).0, down);
            assert_eq!(even.crop_axis(size, 224).0, half_even);
        }
    }

    #[test]
    fn small_images_are_padded_with_black() {
        let p = Preprocess {
            resize: None,
            crop: Some((9, 9)),
            ..Preprocess::clip(9)
        };
        let white = DynamicImage::ImageRgb8(RgbImage::from_pixel(4, 12, image::Rgb([255; 3])));
        let out = p.eval_u8(&white);
        assert_eq!(out.dimensions(), (9, 9));
        for (x, _, pixel) in out.enumerate_pixels() {
            assert_eq!(pixel.0 == [255; 3], (2..6).contains(&x));
        }
    }

    #[test]
    fn extreme_aspect_ratios_take_no_memory() {
        for (w, h) in [(1, 20_000), (20_000, 1), (1, 1), (2, 1)] {
            for p in [Preprocess::clip(32), Preprocess::reference(32)] {
                assert_eq!(p.eval_u8(&gradient_image(w, h)).dimensions(), (32, 32));
                let mut rng = ChaCha8Rng::seed_from_u64(1);
                assert_eq!(
                    p.train_u8(&gradient_image(w, h), &mut rng, &TrainCrop::default())
                        .dimensions(),
                    (32, 32)
                );
                assert!(p.thumbnail(&gradient_image(w, h), 16).width() <= 16);
            }
        }
    }

    #[test]
    fn an_image_without_pixels_becomes_black() {
        let p = Preprocess::clip(8);
        let empty = DynamicImage::new_rgb8(0, 5);
        assert_eq!(p.eval_u8(&empty), RgbImage::new(8, 8));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(
            p.train_u8(&empty, &mut rng, &TrainCrop::default()),
            RgbImage::new(8, 8)
        );
    }

    #[test]
    fn random_regions_are_within_bounds_and_deterministic() {
        let crop = TrainCrop::default();
        let draw = |seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            (0..500)
                .map(|_| random_region(200, 180, &mut rng, &crop))
                .collect::<Vec<_>>()
        };
        let regions = draw(3);
        assert_eq!(regions, draw(3));
        assert_ne!(regions, draw(4));
        let mut fallbacks = 0;
        for r in &regions {
            assert!(r.left + r.width <= 200 && r.top + r.height <= 180);
            if (r.width, r.height) == (200, 180) {
                fallbacks += 1;
                continue;
            }
            let share = f64::from(r.width * r.height) / (200.0 * 180.0);
            assert!((0.89..=1.01).contains(&share), "{share}");
            let ratio = f64::from(r.width) / f64::from(r.height);
            assert!((0.74..=1.35).contains(&ratio), "{ratio}");
        }
        assert!(fallbacks < 250, "{fallbacks}");
        // Above an aspect ratio of 4/3 / 0.9 no attempt fits.
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for _ in 0..50 {
            let r = random_region(300, 200, &mut rng, &crop);
            assert_eq!(
                r,
                Window {
                    left: 16,
                    top: 0,
                    width: 267,
                    height: 200
                }
            );
            let r = random_region(100, 400, &mut rng, &crop);
            assert_eq!(
                r,
                Window {
                    left: 0,
                    top: 133,
                    width: 100,
                    height: 133
                }
            );
        }
    }

    #[test]
    fn tensors_are_normalised_per_channel() {
        let p = Preprocess::clip(2);
        let mut image = RgbImage::new(2, 2);
        image.put_pixel(1, 0, image::Rgb([255, 128, 3]));
        let device = Device::default();
        let tensor = p.to_tensor(&[RgbImage::new(2, 2), image], &device).unwrap();
        assert_eq!(tensor.dims(), [2, 3, 2, 2]);
        let values = tensor.into_data().try_to_vec::<f32>().unwrap();
        for (c, v) in [255.0, 128.0, 3.0].into_iter().enumerate() {
            let expected = (v / 255.0 - p.mean[c]) / p.std[c];
            assert!((f64::from(values[12 + c * 4 + 1]) - expected).abs() < 1e-6);
            assert!((f64::from(values[c * 4]) + p.mean[c] / p.std[c]).abs() < 1e-6);
        }
        assert!(matches!(
            p.to_tensor(&[], &device),
            Err(PreprocessError::NoImages)
        ));
        let mixed = [RgbImage::new(2, 2), RgbImage::new(2, 3)];
        assert!(matches!(
            p.to_tensor(&mixed, &device),
            Err(PreprocessError::MixedSizes { index: 1, .. })
        ));
    }

    #[test]
    fn sixteen_bit_grey_is_clipped_or_scaled() {
        let grey = image::ImageBuffer::from_raw(2, 1, vec![200u16, 0x8040]).unwrap();
        let image = DynamicImage::ImageLuma16(grey);
        let p = Preprocess {
            resize: None,
            crop: None,
            ..Preprocess::clip(2)
        };
        assert_eq!(p.eval_u8(&image).as_raw(), &[200, 200, 200, 255, 255, 255]);
        let p = Preprocess {
            grey16: Grey16::Scale,
            ..p
        };
        assert_eq!(p.eval_u8(&image).as_raw(), &[0, 0, 0, 0x80, 0x80, 0x80]);
    }
}

//! From image files to the tensor that CLIP's image tower takes.
//!
//! [`Preprocess`] holds the settings of a checkpoint's `preprocessor_config.json` and carries them
//! out: [`decode`] (bytes to pixels), [`Preprocess::eval_u8`] or [`Preprocess::train_u8`] (pixels
//! to a square), [`Preprocess::to_tensor`] (squares to a normalised batch).
//!
//! # Whose pixels
//! Resizing is Pillow's antialiased bicubic (or bilinear), bit for bit. Around it, the pipelines
//! that CLIP is used with agree on ordinary RGB and grey photos and differ in corners, each of
//! which is a setting here:
//!
//! | | [`Preprocess::clip`] (default) | [`Preprocess::reference`] |
//! |---|---|---|
//! | follows | `transformers`' `CLIPImageProcessor` | torchvision's `Resize`, `CenterCrop`, then `convert("RGB")`: OpenAI `clip/clip.py:79-86`, GNSP `clip/clip.py:60-79` |
//! | conversion to RGB ([`ConvertRgb`]) | before the geometry | after it: alpha is premultiplied, palette and 1-bit images are resized by nearest neighbour |
//! | centre crop of an odd surplus ([`CropOffset`]) | `(h − c) / 2`, rounded down | rounded half to even |
//! | tall images ([`PassOrder`]) | Pillow 13 | Pillow 10, which the published environment pins |
//!
//! Two things to know about `transformers`: from version 5 it lays transparent images over white
//! ([`ConvertRgb::BeforeOnWhite`]), where earlier versions, OpenAI's code and most data sets'
//! loaders drop the alpha channel ([`ConvertRgb::Before`]); and its default backend resizes tensors
//! with torchvision, whose bicubic differs from Pillow's (in 0.9 % of the bytes of this crate's
//! test images, by up to 11). Its Pillow backend gives the pixels of this module.

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

pub use config::PreprocessError;
pub use decode::{ImageError, MAX_PIXELS, Mode, SourceImage, decode, decode_file, decode_source};

pub(crate) use raster::Taps;
use raster::{Raster, Window};
use resample::Resampling;
pub(crate) use resample::shares;

/// The size that images are brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side becomes this many pixels, the longer `trunc(side · long / short)`.
    ShortestEdge(u32),
    /// Both sides as given; the aspect ratio is not kept.
    Exact {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
    },
}

/// The kernel that images are resized with, Pillow's, with anti-aliasing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interpolation {
    /// Bicubic: every CLIP, and SigLIP's first version.
    #[default]
    Bicubic,
    /// Bilinear: SigLIP's second version in `transformers`.
    Bilinear,
}

/// When other kinds of images become RGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConvertRgb {
    /// First of all; alpha is dropped. `transformers` up to version 4, and the loaders of most data
    /// sets.
    #[default]
    Before,
    /// First of all; transparent images are laid over white. `transformers` from version 5.
    BeforeOnWhite,
    /// After resizing and cropping; alpha is dropped. torchvision's pipeline on what `Image.open`
    /// gives. Where a crop is larger than the image, palette images are padded with black here,
    /// with their first colour there; CMYK images are converted when they are decoded, not after
    /// the geometry: less than a level on average, up to 62 measured where black meets colour.
    After,
}

/// How a centre crop rounds half a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CropOffset {
    /// Down: `transformers`.
    #[default]
    Floor,
    /// Half to even (0.5 → 0, 1.5 → 2): Python's `round`, so torchvision.
    HalfEven,
}

/// Which axis is resized first. The second pass starts from rounded values, so the order shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PassOrder {
    /// The width, except where the height loses more than twice as many pixels as the width: Pillow
    /// from version 13 (python-pillow/Pillow#9549). Only images more than twice as high as wide are
    /// concerned when the shape is kept.
    #[default]
    Pillow13,
    /// Always the width: Pillow up to version 12.
    HorizontalFirst,
}

/// What becomes of 16-bit grey, which only PNG has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grey16 {
    /// Values above 255 become 255, as in Pillow: a 16-bit photo turns nearly all white, there as
    /// here.
    #[default]
    Clip,
    /// The high byte is kept, so that the picture survives.
    Scale,
}

/// Areas and shapes of the random crops of training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainCrop {
    /// Smallest and largest share of the image's area. Default 0.9 to 1.
    pub scale: (f64, f64),
    /// Smallest and largest width divided by height. Default ¾ to 4⁄3.
    pub ratio: (f64, f64),
}

impl Default for TrainCrop {
    /// As GNSP trains (`clip/clip.py:60-79`).
    fn default() -> Self {
        Self {
            scale: (0.9, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
        }
    }
}

/// Settings of the image pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// First step, or none.
    pub resize: Option<Resize>,
    /// The kernel of the first step.
    pub interpolation: Interpolation,
    /// Height and width of the centre crop, or none. Where the image is smaller it is padded with
    /// black.
    pub crop: Option<(u32, u32)>,
    /// Factor of the 8-bit values; 1/255.
    pub rescale: f64,
    /// Subtracted from the rescaled values, by colour.
    pub mean: [f64; 3],
    /// Divides what is left, by colour.
    pub std: [f64; 3],
    /// When images become RGB.
    pub convert_rgb: ConvertRgb,
    /// How the centre crop rounds.
    pub crop_offset: CropOffset,
    /// What becomes of 16-bit grey.
    pub grey16: Grey16,
    /// Which axis is resized first.
    pub pass_order: PassOrder,
}

impl Default for Preprocess {
    fn default() -> Self {
        Self::clip(224)
    }
}

impl Preprocess {
    /// What `transformers` does for a CLIP of this image size.
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

    /// What OpenAI's code, GNSP and ZSCL do for this image size, with the Pillow 10 of their time.
    pub fn reference(size: u32) -> Self {
        Self {
            convert_rgb: ConvertRgb::After,
            crop_offset: CropOffset::HalfEven,
            pass_order: PassOrder::HorizontalFirst,
            ..Self::clip(size)
        }
    }

    /// What SigLIP does for this image size: both sides are brought to it at once, whatever the
    /// aspect ratio.
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

    /// The same pipeline for square images of another size.
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

    /// Height and width that every image comes out with, if the settings fix them.
    pub fn output_size(&self) -> Option<(u32, u32)> {
        match (self.crop, self.resize) {
            (Some(crop), _) => Some(crop),
            (None, Some(Resize::Exact { height, width })) => Some((height, width)),
            _ => None,
        }
    }

    /// Side of the square that every image comes out as, to compare with the model's; 0 where the
    /// settings fix no square.
    pub fn image_size(&self) -> usize {
        self.output_size()
            .filter(|(h, w)| h == w)
            .map_or(0, |(h, _)| h as usize)
    }

    /// The evaluation pipeline up to 8 bits: resize, centre crop, RGB.
    pub fn eval_u8(&self, image: &DynamicImage) -> RgbImage {
        self.eval(image, mode_of(image))
    }

    /// As [`eval_u8`](Self::eval_u8), for an image that remembers how it was stored. The result is
    /// the same except with [`ConvertRgb::After`] for palette and 1-bit images and PNGs with a
    /// transparent colour.
    pub fn eval_source(&self, image: &SourceImage) -> RgbImage {
        self.eval(image.pixels(), image.mode())
    }

    /// The training pipeline up to 8 bits: a random region, resized to the output size (its aspect
    /// ratio is not kept), RGB.
    ///
    /// The region is drawn as torchvision's `RandomResizedCrop` draws it, from `rng` and nothing
    /// else. Images whose aspect ratio is above about 1.48 never fit the default [`TrainCrop`] and
    /// always take its fallback, the centred region of the nearest allowed shape.
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
        self.geometry(image, mode_of(image), region, (width, height), out, out)
    }

    /// A small copy, its longer side `side` pixels, for people to look at. Smaller images are not
    /// enlarged.
    pub fn thumbnail(&self, image: &DynamicImage, side: u32) -> RgbImage {
        let (w, h) = (image.width().max(1), image.height().max(1));
        let longest = w.max(h);
        let side = side.clamp(1, longest);
        let scaled = |v: u32| ((u64::from(v) * u64::from(side) / u64::from(longest)) as u32).max(1);
        let size = (scaled(w), scaled(h));
        let out = Window::whole(size.0, size.1);
        self.geometry(
            image,
            mode_of(image),
            Window::whole(image.width(), image.height()),
            size,
            out,
            out,
        )
    }

    /// The batch as the image tower takes it: `(v · rescale − mean) / std`.
    ///
    /// # Shapes
    /// - output: `[images, 3, height, width]`, f32
    ///
    /// # Errors
    /// When there are no images, or their sizes differ.
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
        // Every 8-bit value has one result a colour: a table of 3 x 256.
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
        self.geometry(
            image,
            mode,
            Window::whole(w, h),
            (width, height),
            window,
            canvas,
        )
    }

    /// Of an axis of `size`: where the crop begins, where it lands on the canvas, and how long it
    /// is.
    fn crop_axis(&self, size: u32, crop: u32) -> (u32, u32, u32) {
        if size <= crop {
            return (0, (crop - size) / 2, size);
        }
        let surplus = size - crop;
        let half = surplus / 2;
        let up = self.crop_offset == CropOffset::HalfEven && surplus % 2 == 1 && half % 2 == 1;
        (half + u32::from(up), 0, crop)
    }

    /// Resizes the `region` of the image to `size` (width, height), takes the `window` of it and
    /// lays it on a black canvas of `canvas.width` × `canvas.height` at `canvas.{left, top}`
    /// (nothing is laid where they agree).
    fn geometry(
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
                &colour::opaque(self.bytes(image)),
                region,
                size,
                window,
                self.resampling(),
            ),
            ConvertRgb::BeforeOnWhite => resample::resize(
                &colour::on_white(self.bytes(image)),
                region,
                size,
                window,
                self.resampling(),
            ),
            ConvertRgb::After => self.stored_geometry(image, mode, region, size, window),
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

    /// Geometry in the mode that the image was stored in, then RGB.
    fn stored_geometry(
        &self,
        image: &DynamicImage,
        mode: Mode,
        region: Window,
        size: (u32, u32),
        window: Window,
    ) -> Raster<'static, u8> {
        if let (DynamicImage::ImageLuma16(grey), Grey16::Clip) = (image, self.grey16) {
            let (width, height) = grey.dimensions();
            let raster = Raster {
                width,
                height,
                channels: 1,
                data: Cow::Borrowed(grey.as_raw().as_slice()),
            };
            let out = resample::resize(&raster, region, size, window, self.resampling());
            let data = Cow::Owned(colour::clip(&out.data));
            return colour::opaque(Raster {
                width: out.width,
                height: out.height,
                channels: 1,
                data,
            });
        }
        let mut stored = colour::without_key(self.bytes(image), mode);
        match mode {
            Mode::Palette | Mode::Bilevel => {
                colour::opaque(resample::nearest(&stored, region, size, window))
            }
            // Pillow leaves an image alone that has the size already, and so its colours below no
            // alpha.
            Mode::Rgba | Mode::GreyAlpha if size != (region.width, region.height) => {
                colour::premultiply(&mut stored);
                let mut out = resample::resize(&stored, region, size, window, self.resampling());
                colour::unpremultiply(&mut out);
                colour::opaque(out)
            }
            _ => colour::opaque(resample::resize(
                &stored,
                region,
                size,
                window,
                self.resampling(),
            )),
        }
    }

    fn bytes<'a>(&self, image: &'a DynamicImage) -> Raster<'a, u8> {
        match image {
            DynamicImage::ImageLuma16(grey) if self.grey16 == Grey16::Scale => {
                let (width, height) = grey.dimensions();
                Raster {
                    width,
                    height,
                    channels: 1,
                    data: Cow::Owned(colour::high(grey.as_raw())),
                }
            }
            _ => colour::bytes(image),
        }
    }
}

/// The mode that Pillow would give an image of this pixel type.
fn mode_of(image: &DynamicImage) -> Mode {
    match image {
        DynamicImage::ImageLuma8(_) => Mode::Grey,
        DynamicImage::ImageLuma16(_) => Mode::Grey16,
        DynamicImage::ImageLumaA8(_) => Mode::GreyAlpha,
        DynamicImage::ImageRgba8(_) => Mode::Rgba,
        _ => Mode::Rgb,
    }
}

/// Width and height with the shorter side brought to `side` (torchvision
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

/// A region as `RandomResizedCrop` draws it: ten tries at an area and an aspect ratio, then the
/// centred region of the nearest allowed shape.
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
    let ratio = w / h;
    let (cw, ch) = if ratio < crop.ratio.0 {
        (width, (w / crop.ratio.0).round_ties_even() as u32)
    } else if ratio > crop.ratio.1 {
        ((h * crop.ratio.1).round_ties_even() as u32, height)
    } else {
        (width, height)
    };
    // A side of one pixel may round to none.
    let (cw, ch) = (cw.clamp(1, width.max(1)), ch.clamp(1, height.max(1)));
    Window {
        left: width.saturating_sub(cw) / 2,
        top: height.saturating_sub(ch) / 2,
        width: cw,
        height: ch,
    }
}

/// Uniform in `[low, high)`, from 53 bits: does not change with the version of `rand`.
fn uniform(rng: &mut ChaCha8Rng, (low, high): (f64, f64)) -> f64 {
    let unit = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    low + (high - low) * unit
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn picture(width: u32, height: u32) -> DynamicImage {
        DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8])
        }))
    }

    #[test]
    fn longer_sides_are_cut_off_to_whole_pixels() {
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
    fn crops_round_as_the_two_libraries_do() {
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
    fn small_images_are_padded_around() {
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
    fn extreme_shapes_cost_no_memory() {
        for (w, h) in [(1, 20_000), (20_000, 1), (1, 1), (2, 1)] {
            for p in [Preprocess::clip(32), Preprocess::reference(32)] {
                assert_eq!(p.eval_u8(&picture(w, h)).dimensions(), (32, 32));
                let mut rng = ChaCha8Rng::seed_from_u64(1);
                assert_eq!(
                    p.train_u8(&picture(w, h), &mut rng, &TrainCrop::default())
                        .dimensions(),
                    (32, 32)
                );
                assert!(p.thumbnail(&picture(w, h), 16).width() <= 16);
            }
        }
    }

    #[test]
    fn an_image_of_no_pixels_is_black() {
        let p = Preprocess::clip(8);
        let none = DynamicImage::new_rgb8(0, 5);
        assert_eq!(p.eval_u8(&none), RgbImage::new(8, 8));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(
            p.train_u8(&none, &mut rng, &TrainCrop::default()),
            RgbImage::new(8, 8)
        );
    }

    #[test]
    fn random_regions_lie_within_their_bounds_and_repeat() {
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
        // Above 4/3 / 0.9 no draw fits.
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
    fn tensors_are_normalised_by_colour() {
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

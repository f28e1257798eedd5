//! Colour conversion with Pillow's arithmetic (`src/libImaging/{Convert,AlphaComposite}.c`).

use std::borrow::Cow;

use image::{DynamicImage, RgbImage};

use super::raster::Raster;

/// Storage mode of the pixels, as in Pillow. It matters only if resizing comes before the
/// conversion to RGB ([`ConvertRgb::After`](super::ConvertRgb::After)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 8 bits each of red, green, blue (`RGB`).
    Rgb,
    /// `RGB` with alpha (`RGBA`).
    Rgba,
    /// Grey of up to 8 bits (`L`).
    Grey,
    /// Grey with alpha (`LA`).
    GreyAlpha,
    /// Grey of 16 bits (`I;16`).
    Grey16,
    /// Palette (`P`); the pixels are expanded.
    Palette,
    /// One bit (`1`); the pixels are expanded.
    Bilevel,
}

/// Converts an image to 8-bit samples, without a copy if it has them already. 16-bit grey is
/// clipped at 255.
pub(super) fn to_8bit(image: &DynamicImage) -> Raster<'_, u8> {
    let (channels, data) = match image {
        DynamicImage::ImageLuma8(i) => (1, Cow::Borrowed(i.as_raw().as_slice())),
        DynamicImage::ImageLumaA8(i) => (2, Cow::Borrowed(i.as_raw().as_slice())),
        DynamicImage::ImageRgb8(i) => (3, Cow::Borrowed(i.as_raw().as_slice())),
        DynamicImage::ImageRgba8(i) => (4, Cow::Borrowed(i.as_raw().as_slice())),
        DynamicImage::ImageLuma16(i) => (1, Cow::Owned(clip_to_8bit(i.as_raw()))),
        other => (3, Cow::Owned(other.to_rgb8().into_raw())),
    };
    Raster {
        width: image.width(),
        height: image.height(),
        channels,
        data,
    }
}

/// Converts 16-bit grey to 8 bits like Pillow's `convert("RGB")`: values above 255 become 255.
pub(super) fn clip_to_8bit(values: &[u16]) -> Vec<u8> {
    values.iter().map(|&v| v.min(255) as u8).collect()
}

/// Converts 16-bit grey to 8 bits by keeping the high byte.
pub(super) fn high_byte(values: &[u16]) -> Vec<u8> {
    values.iter().map(|&v| (v >> 8) as u8).collect()
}

/// Converts to three channels and drops alpha, like `convert("RGB")`.
pub(super) fn to_rgb(image: Raster<'_, u8>) -> Raster<'_, u8> {
    let data = match image.channels {
        1 => image.data.iter().flat_map(|&v| [v; 3]).collect(),
        2 => image.data.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        4 => image
            .data
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
        _ => return image,
    };
    Raster {
        channels: 3,
        data: Cow::Owned(data),
        ..image
    }
}

/// Converts cyan, magenta, yellow and black to RGB, like `convert("RGB")`.
pub(super) fn cmyk_to_rgb(inks: &[u8]) -> Vec<u8> {
    let (pixels, _) = inks.as_chunks::<4>();
    pixels
        .iter()
        .flat_map(|&[cyan, magenta, yellow, black]| {
            let white = 255 - u32::from(black);
            [cyan, magenta, yellow].map(|ink| {
                let product = u32::from(ink) * white + 128;
                // The rounded share of the ink is at most `white`.
                (white - (((product >> 8) + product) >> 8)) as u8
            })
        })
        .collect()
}

/// Converts to three channels and composites alpha over white, like `alpha_composite` on an opaque
/// white image and `convert("RGB")`.
pub(super) fn composite_on_white(image: Raster<'_, u8>) -> Raster<'_, u8> {
    let data = match image.channels {
        2 => image
            .data
            .chunks_exact(2)
            .flat_map(|p| [blend_over_white(p[0], p[1]); 3])
            .collect(),
        4 => image
            .data
            .chunks_exact(4)
            .flat_map(|p| [0, 1, 2].map(|c| blend_over_white(p[c], p[3])))
            .collect(),
        _ => return to_rgb(image),
    };
    Raster {
        channels: 3,
        data: Cow::Owned(data),
        ..image
    }
}

fn blend_over_white(value: u8, alpha: u8) -> u8 {
    if alpha == 0 {
        return 255;
    }
    // The background is opaque, which makes Pillow's blend coefficient (7 more bits than the
    // values) exact.
    let front = u32::from(alpha) << 7;
    let sum = u32::from(value) * front + 255 * ((255 << 7) - front) + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

/// Multiplies the colours by alpha (`RGBA` to `RGBa`, `LA` to `La`), as Pillow does before
/// resampling.
pub(super) fn premultiply(image: &mut Raster<'_, u8>) {
    for pixel in alpha_pixels(image) {
        let Some((alpha, colours)) = pixel.split_last_mut() else {
            continue;
        };
        for c in colours {
            let product = u32::from(*c) * u32::from(*alpha) + 128;
            *c = (((product >> 8) + product) >> 8) as u8;
        }
    }
}

/// Divides the colours by alpha, the inverse of [`premultiply`], after resampling.
pub(super) fn unpremultiply(image: &mut Raster<'_, u8>) {
    for pixel in alpha_pixels(image) {
        let Some((alpha, colours)) = pixel.split_last_mut() else {
            continue;
        };
        if *alpha != 0 && *alpha != 255 {
            for c in colours {
                *c = (255 * u32::from(*c) / u32::from(*alpha)).min(255) as u8;
            }
        }
    }
}

/// Iterates over the pixels, colours first and alpha last.
fn alpha_pixels<'a>(image: &'a mut Raster<'_, u8>) -> impl Iterator<Item = &'a mut [u8]> {
    let channels = image.channels;
    image.data.to_mut().chunks_exact_mut(channels)
}

/// Drops the alpha channel that a decoder adds for a PNG's transparent colour (`tRNS` chunk), which
/// is not a channel in the stored mode.
pub(super) fn drop_transparent_key(image: Raster<'_, u8>, mode: Mode) -> Raster<'_, u8> {
    match (mode, image.channels) {
        (Mode::Grey | Mode::Grey16 | Mode::Bilevel, 2) => Raster {
            channels: 1,
            data: image.data.chunks_exact(2).map(|p| p[0]).collect(),
            ..image
        },
        (Mode::Rgb, 4) => to_rgb(image),
        _ => image,
    }
}

/// Converts a raster with three channels to an image.
pub(super) fn into_image(image: Raster<'_, u8>) -> RgbImage {
    let (width, height) = (image.width, image.height);
    // The raster holds width * height * 3 values by construction.
    RgbImage::from_raw(width, height, image.data.into_owned())
        .unwrap_or_else(|| RgbImage::new(width, height))
}

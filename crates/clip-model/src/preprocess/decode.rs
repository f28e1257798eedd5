//! Image decoding, compatible with Pillow's `Image.open`.
//!
//! - The format (JPEG, PNG, WebP) is detected from content, not from the file name.
//! - The EXIF orientation is **not** applied, as is Pillow's default: a photo that a camera stored
//!   sideways stays sideways.
//! - Colour profiles and gamma are ignored. Only the first frame of an animation is read.
//! - 16-bit colour keeps its high byte, as in Pillow. 16-bit grey stays 16-bit (see
//!   [`Grey16`](super::Grey16)).
//! - Palettes and grey of less than 8 bits are expanded. CMYK and YCCK JPEGs are converted to RGB
//!   during decoding, as inverted (Adobe) values, which Pillow assumes too.
//! - PNG and WebP give the same bytes as Pillow. JPEG has a different decoder from Pillow's
//!   libjpeg-turbo (inverse transform, chroma upsampling). After resizing and cropping, compared
//!   with Pillow 13, bytes differ by at most 0.45 on average, and by at most 5 on pictures and 9 on
//!   pure noise (`tests/parity/preprocess_parity.rs` bounds it).
//! - A truncated JPEG or WebP is refused, as by Pillow, even if a decoder could fill in grey.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

/// Maximum number of pixels. Larger images are refused before decoding; Pillow warns of a
/// decompression bomb above this number.
pub const MAX_PIXELS: u64 = 89_478_485;

/// Maximum memory that a decoder may allocate, in bytes.
const MAX_ALLOC: u64 = 1 << 30;

/// Error of reading an image. Every variant has the name of the image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be read.
    #[error("cannot read the image {name}: {source}")]
    Io {
        /// The image.
        name: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is empty.
    #[error("the image {name} is empty")]
    Empty {
        /// The image.
        name: String,
    },
    /// The image is not JPEG, PNG or WebP.
    #[error("the image {name} is {found}; supported are JPEG, PNG and WebP, detected from content")]
    UnknownFormat {
        /// The image.
        name: String,
        /// The detected format.
        found: String,
    },
    /// The image has more than [`MAX_PIXELS`] pixels.
    #[error(
        "the image {name} has {width} x {height} pixels, more than the maximum of {MAX_PIXELS}"
    )]
    TooLarge {
        /// The image.
        name: String,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The image is truncated.
    #[error("the image {name} is truncated")]
    CutShort {
        /// The image.
        name: String,
    },
    /// The image is damaged, or the decoder does not support it.
    #[error("the image {name} cannot be decoded as {format}: {reason}")]
    Corrupt {
        /// The image.
        name: String,
        /// The detected format.
        format: &'static str,
        /// The error of the decoder.
        reason: String,
    },
}

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

/// A decoded image with its storage mode.
///
/// ```
/// use clip_model::preprocess::{Mode, SourceImage};
/// use image::DynamicImage;
///
/// let image = SourceImage::from(DynamicImage::new_luma8(4, 4));
/// assert_eq!(image.mode(), Mode::Grey);
/// ```
#[derive(Debug, Clone)]
pub struct SourceImage {
    mode: Mode,
    pixels: DynamicImage,
}

impl SourceImage {
    /// Returns the storage mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the pixels: 8-bit RGB, RGBA, grey or grey with alpha, or 16-bit grey.
    pub fn pixels(&self) -> &DynamicImage {
        &self.pixels
    }

    /// Returns the pixels by value.
    pub fn into_pixels(self) -> DynamicImage {
        self.pixels
    }
}

impl From<DynamicImage> for SourceImage {
    /// Takes the mode from the pixel type. Pixel types that Pillow lacks keep their high byte.
    fn from(image: DynamicImage) -> Self {
        let (mode, pixels) = match image {
            DynamicImage::ImageLuma8(_) => (Mode::Grey, image),
            DynamicImage::ImageLumaA8(_) => (Mode::GreyAlpha, image),
            DynamicImage::ImageRgb8(_) => (Mode::Rgb, image),
            DynamicImage::ImageRgba8(_) => (Mode::Rgba, image),
            DynamicImage::ImageLuma16(_) => (Mode::Grey16, image),
            DynamicImage::ImageLumaA16(i) => (
                Mode::GreyAlpha,
                high_bytes(i.width(), i.height(), i.as_raw(), DynamicImage::new_luma_a8),
            ),
            DynamicImage::ImageRgb16(i) => (
                Mode::Rgb,
                high_bytes(i.width(), i.height(), i.as_raw(), DynamicImage::new_rgb8),
            ),
            DynamicImage::ImageRgba16(i) => (
                Mode::Rgba,
                high_bytes(i.width(), i.height(), i.as_raw(), DynamicImage::new_rgba8),
            ),
            // Floating point, which no supported format has, and future pixel types.
            other => (Mode::Rgb, DynamicImage::ImageRgb8(other.to_rgb8())),
        };
        Self { mode, pixels }
    }
}

/// Returns an image made by `new` with the high bytes of `values`.
fn high_bytes(
    width: u32,
    height: u32,
    values: &[u16],
    new: fn(u32, u32) -> DynamicImage,
) -> DynamicImage {
    let mut image = new(width, height);
    let bytes: &mut [u8] = match &mut image {
        DynamicImage::ImageLumaA8(i) => i,
        DynamicImage::ImageRgb8(i) => i,
        DynamicImage::ImageRgba8(i) => i,
        _ => return image,
    };
    for (to, from) in bytes.iter_mut().zip(values) {
        *to = (from >> 8) as u8;
    }
    image
}

/// Decodes an image; errors show `name`.
///
/// # Errors
/// [`ImageError`] if the bytes are empty, of another format, damaged or truncated, or if the image
/// has too many pixels.
pub fn decode(bytes: &[u8], name: &str) -> Result<DynamicImage, ImageError> {
    Ok(decode_source(bytes, name)?.into_pixels())
}

/// Reads and decodes a file.
///
/// # Errors
/// See [`decode`]; [`ImageError::Io`] if the file cannot be read.
pub fn decode_file(path: &Path) -> Result<DynamicImage, ImageError> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| ImageError::Io {
        name: name.clone(),
        source,
    })?;
    decode(&bytes, &name)
}

/// Like [`decode`], and keeps the storage mode of the pixels.
///
/// # Errors
/// See [`decode`].
pub fn decode_source(bytes: &[u8], name: &str) -> Result<SourceImage, ImageError> {
    let name = || name.to_owned();
    if bytes.is_empty() {
        return Err(ImageError::Empty { name: name() });
    }
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP)) => format,
        Ok(other) => {
            return Err(ImageError::UnknownFormat {
                name: name(),
                found: format!("of the format {other:?}"),
            });
        }
        Err(_) => {
            return Err(ImageError::UnknownFormat {
                name: name(),
                found: "of no known format".to_owned(),
            });
        }
    };
    let label = match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        _ => "WebP",
    };
    let corrupt = |e: image::ImageError| ImageError::Corrupt {
        name: name(),
        format: label,
        reason: e.to_string(),
    };
    // Decoders may accept truncated files and fill the missing part with grey.
    let complete = match format {
        ImageFormat::Jpeg => jpeg_is_complete(bytes),
        ImageFormat::WebP => webp_is_complete(bytes),
        _ => true,
    };
    if !complete {
        return Err(ImageError::CutShort { name: name() });
    }

    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_ALLOC);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(corrupt)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(ImageError::TooLarge {
            name: name(),
            width,
            height,
        });
    }
    if width == 0 || height == 0 {
        let reason = "it has no pixels".to_owned();
        return Err(ImageError::Corrupt {
            name: name(),
            format: label,
            reason,
        });
    }
    let mut source = SourceImage::from(DynamicImage::from_decoder(decoder).map_err(corrupt)?);
    if format == ImageFormat::Png {
        // The decoder expands palettes, bit depths and transparent colours, so the mode comes from
        // the IHDR chunk: bit depth at byte 24, colour type at byte 25.
        source.mode = match (bytes.get(25), bytes.get(24)) {
            (Some(0), Some(1)) => Mode::Bilevel,
            (Some(0), Some(16)) => Mode::Grey16,
            (Some(0), _) => Mode::Grey,
            (Some(2), _) => Mode::Rgb,
            (Some(3), _) => Mode::Palette,
            _ => source.mode,
        };
    }
    Ok(source)
}

/// Returns whether a JPEG has its end-of-image marker. Walks from marker to marker (ITU-T T.81,
/// annex B).
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    while at + 1 < bytes.len() {
        // Between segments, and in the entropy-coded data after a start of scan, everything up to
        // the next marker is skipped: FF 00 is a data byte, FF FF is fill.
        if bytes[at] != 0xff {
            at += 1;
            continue;
        }
        match bytes[at + 1] {
            0xd9 => return true,
            0xff => at += 1,
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            _ => match bytes.get(at + 2..at + 4) {
                Some(length) => at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
        }
    }
    false
}

/// Returns whether a WebP has the length stated in its RIFF header.
fn webp_is_complete(bytes: &[u8]) -> bool {
    bytes
        .get(4..8)
        .and_then(|b| b.try_into().ok())
        .is_some_and(|b| u64::from(u32::from_le_bytes(b)) + 8 <= bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let image = image::RgbImage::from_fn(24, 17, |x, y| {
            image::Rgb([(x * 9) as u8, (y * 13) as u8, (x * y) as u8])
        });
        let mut out = Cursor::new(Vec::new());
        DynamicImage::ImageRgb8(image)
            .write_to(&mut out, format)
            .unwrap();
        out.into_inner()
    }

    #[test]
    fn every_truncation_is_an_error_or_gives_the_whole_image() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
            let bytes = encoded(format);
            let whole = decode(&bytes, "whole").unwrap();
            for length in 0..bytes.len() {
                match decode(&bytes[..length], "cut.jpg") {
                    Err(e) => assert!(e.to_string().contains("cut.jpg"), "{e}"),
                    // Only bytes without pixel data may be missing: a PNG's last checksum and end
                    // chunk.
                    Ok(image) => {
                        assert_eq!(
                            image,
                            whole,
                            "{format:?} cut at {length} of {}",
                            bytes.len()
                        );
                        assert!(
                            format == ImageFormat::Png && length + 20 >= bytes.len(),
                            "{format:?} {length}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn damaged_bytes_never_panic() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
            let bytes = encoded(format);
            for at in 0..bytes.len() {
                for value in [0x00, 0xff, bytes[at] ^ 0x55] {
                    let mut bad = bytes.clone();
                    bad[at] = value;
                    let _ = decode(&bad, "bad");
                }
            }
        }
    }

    #[test]
    fn formats_are_detected_from_content() {
        assert!(matches!(
            decode(b"", "a.png"),
            Err(ImageError::Empty { .. })
        ));
        for (bytes, word) in [
            (&b"GIF89a\x01\x00\x01\x00\x00\x00\x00"[..], "Gif"),
            (b"just text", "no known format"),
        ] {
            let e = decode(bytes, "pet.jpg").unwrap_err();
            assert!(matches!(e, ImageError::UnknownFormat { .. }));
            assert!(
                e.to_string().contains("pet.jpg") && e.to_string().contains(word),
                "{e}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("really-a-webp.jpg");
        std::fs::write(&path, encoded(ImageFormat::WebP)).unwrap();
        assert_eq!(decode_file(&path).unwrap().width(), 24);
        assert!(matches!(
            decode_file(&dir.path().join("none.png")),
            Err(ImageError::Io { .. })
        ));
    }

    #[test]
    fn a_decompression_bomb_is_refused_by_its_header() {
        // Only the size in the header is changed, and the header's checksum with it.
        let mut png = encoded(ImageFormat::Png);
        png[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
        let mut crc = flate2::Crc::new();
        crc.update(&png[12..29]);
        let sum = crc.sum().to_be_bytes();
        png[29..33].copy_from_slice(&sum);
        let e = decode(&png, "bomb.png").unwrap_err();
        assert!(
            matches!(
                e,
                ImageError::TooLarge {
                    width: 60_000,
                    height: 60_000,
                    ..
                }
            ),
            "{e}"
        );

        let mut jpeg = encoded(ImageFormat::Jpeg);
        let sof = jpeg
            .windows(2)
            .position(|w| w[0] == 0xff && (w[1] == 0xc0 || w[1] == 0xc2))
            .unwrap();
        jpeg[sof + 5..sof + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(
            decode(&jpeg, "bomb.jpg"),
            Err(ImageError::TooLarge { .. })
        ));
    }
}

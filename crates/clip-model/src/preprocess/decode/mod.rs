//! Image decoding, compatible with Pillow's `Image.open`.
//!
//! | format | decoder | pixels |
//! |---|---|---|
//! | PNG, WebP | `image` | Pillow's; of lossy WebP close to Pillow's |
//! | BMP of 1 to 32 bits, run lengths | `image` | Pillow's |
//! | GIF, first frame | `gif` | Pillow's |
//! | TIFF of 1 to 16 bits, first picture | `tiff` | Pillow's |
//! | JPEG | `zune-jpeg` | close to Pillow's (below) |
//!
//! - The format is detected from content, not from the file name.
//! - The EXIF orientation is **not** applied, as is Pillow's default: a photo that a camera stored
//!   sideways stays sideways. The orientation of a TIFF is applied, as in Pillow.
//! - Colour profiles and gamma are ignored. Only the first frame of an animation is read.
//! - 16-bit colour keeps its high byte, as in Pillow. 16-bit grey stays 16-bit (see
//!   [`Grey16`](super::Grey16)).
//! - Palettes and grey of less than 8 bits are expanded. CMYK and YCCK are converted to RGB during
//!   decoding, in JPEGs as inverted (Adobe) values, which Pillow assumes too.
//! - A missing end of a PNG and wrong checksums of its pixels are overlooked, as by Pillow.
//! - A truncated file is refused, as by Pillow, even if a decoder could fill in grey.
//!
//! # Differences from Pillow
//! - JPEG has a different decoder from Pillow's libjpeg-turbo (inverse transform, chroma
//!   upsampling). After resizing and cropping, compared with Pillow 13, bytes differ by at most
//!   0.45 on average, and by at most 5 on pictures and 9 on pure noise
//!   (`tests/parity/preprocess_parity.rs` bounds it).
//! - Arithmetic-coded JPEGs are refused, because the decoder does not read them.
//! - A JPEG whose data stop early, in front of an end-of-image marker, is read by both; the missing
//!   part has other pixels.
//! - A JPEG without an end-of-image marker is refused. Pillow refuses it if the file ends with its
//!   data, and reads it if other bytes, such as zeros, follow them.
//! - Not read: BigTIFF; TIFF with YCbCr, L\*a\*b\*, floating-point or signed samples, samples of 12
//!   or 32 bits (Pillow reads those of grey), reversed bits, zstd or WebP; BMP with an embedded
//!   JPEG or PNG; other formats. Pillow refuses BMPs of 2 bits and with unusual masks, which are
//!   read here.
//! - A wrong checksum of a PNG's compressed stream, or of a chunk beside the pixels that may be
//!   ignored, is overlooked here.
//! - Pillow 13 resizes 16-bit grey of a big-endian TIFF with its bytes in the wrong order, where
//!   resizing comes before the conversion to RGB.

mod bmp;
mod gif;
mod jpeg;
mod palette;
mod png;
mod tiff;
mod webp;

use std::io::{Cursor, ErrorKind};
use std::path::Path;

use super::colour::Mode;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

/// Default maximum number of pixels: Pillow's, which is twice the number that it warns of as a
/// decompression bomb.
pub const MAX_PIXELS: u64 = 178_956_970;

/// Memory that a decoder may allocate at least, in bytes.
const MIN_ALLOC: u64 = 1 << 30;

/// Options of image decoding.
///
/// ```
/// use clip_model::preprocess::{DecodeOptions, ImageError, decode_with};
/// use image::{DynamicImage, ImageFormat};
///
/// let mut png = std::io::Cursor::new(Vec::new());
/// DynamicImage::new_rgb8(4, 3).write_to(&mut png, ImageFormat::Png)?;
/// let limited = |max_pixels| decode_with(png.get_ref(), "a.png", DecodeOptions { max_pixels });
/// assert!(limited(12).is_ok());
/// assert!(matches!(limited(11), Err(ImageError::TooLarge { maximum: 11, .. })));
/// # Ok::<(), image::ImageError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Maximum number of pixels, like Pillow's `Image.MAX_IMAGE_PIXELS`. Larger images are refused
    /// before their pixels are decoded. A pixel takes up to 8 bytes while it is decoded. Default:
    /// [`MAX_PIXELS`].
    pub max_pixels: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            max_pixels: MAX_PIXELS,
        }
    }
}

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
    /// The image is of an unsupported format.
    #[error(
        "the image {name} is {found}; supported are JPEG, PNG, WebP, BMP, GIF and TIFF, detected \
         from content"
    )]
    UnknownFormat {
        /// The image.
        name: String,
        /// The detected format.
        found: String,
    },
    /// The image has more pixels than [`DecodeOptions::max_pixels`].
    #[error("the image {name} has {width} x {height} pixels, more than the maximum of {maximum}")]
    TooLarge {
        /// The image.
        name: String,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The maximum number of pixels.
        maximum: u64,
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

/// Decodes an image with the default options; errors show `name`.
///
/// # Errors
/// [`ImageError`] if the bytes are empty, of another format, damaged or truncated, or if the image
/// has too many pixels.
pub fn decode(bytes: &[u8], name: &str) -> Result<DynamicImage, ImageError> {
    decode_with(bytes, name, DecodeOptions::default())
}

/// Decodes an image; errors show `name`.
///
/// # Errors
/// See [`decode`].
pub fn decode_with(
    bytes: &[u8],
    name: &str,
    options: DecodeOptions,
) -> Result<DynamicImage, ImageError> {
    Ok(decode_source_with(bytes, name, options)?.into_pixels())
}

/// Reads and decodes a file with the default options.
///
/// # Errors
/// See [`decode`]; [`ImageError::Io`] if the file cannot be read.
pub fn decode_file(path: &Path) -> Result<DynamicImage, ImageError> {
    decode_file_with(path, DecodeOptions::default())
}

/// Reads and decodes a file.
///
/// # Errors
/// See [`decode_file`].
pub fn decode_file_with(path: &Path, options: DecodeOptions) -> Result<DynamicImage, ImageError> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| ImageError::Io {
        name: name.clone(),
        source,
    })?;
    decode_with(&bytes, &name, options)
}

/// Like [`decode`], and keeps the storage mode of the pixels.
///
/// # Errors
/// See [`decode`].
pub fn decode_source(bytes: &[u8], name: &str) -> Result<SourceImage, ImageError> {
    decode_source_with(bytes, name, DecodeOptions::default())
}

/// Like [`decode_with`], and keeps the storage mode of the pixels.
///
/// # Errors
/// See [`decode`].
pub fn decode_source_with(
    bytes: &[u8],
    name: &str,
    options: DecodeOptions,
) -> Result<SourceImage, ImageError> {
    let maximum = options.max_pixels;
    let name = || name.to_owned();
    if bytes.is_empty() {
        return Err(ImageError::Empty { name: name() });
    }
    let unknown = |found| ImageError::UnknownFormat {
        name: name(),
        found,
    };
    let (format, decoded) = match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => ("JPEG", decode_jpeg(bytes, maximum)),
        Ok(ImageFormat::Png) => ("PNG", decode_png(bytes, maximum)),
        Ok(ImageFormat::WebP) => ("WebP", webp::decode(bytes, maximum)),
        Ok(ImageFormat::Bmp) => ("BMP", bmp::decode(bytes, maximum)),
        Ok(ImageFormat::Gif) => ("GIF", gif::decode(bytes, maximum)),
        Ok(ImageFormat::Tiff) => ("TIFF", tiff::decode(bytes, maximum)),
        Ok(other) => return Err(unknown(format!("of the format {other:?}"))),
        Err(_) => return Err(unknown("of no known format".to_owned())),
    };
    decoded.map_err(|failure| match failure {
        Failure::CutShort => ImageError::CutShort { name: name() },
        Failure::TooLarge { width, height } => ImageError::TooLarge {
            name: name(),
            width,
            height,
            maximum,
        },
        Failure::Corrupt(reason) => ImageError::Corrupt {
            name: name(),
            format,
            reason,
        },
    })
}

/// Failure of a decoder, without the name of the image.
#[derive(Debug)]
enum Failure {
    CutShort,
    TooLarge { width: u32, height: u32 },
    Corrupt(String),
}

impl From<image::ImageError> for Failure {
    fn from(error: image::ImageError) -> Self {
        match error {
            image::ImageError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => Self::CutShort,
            other => Self::Corrupt(other.to_string()),
        }
    }
}

/// Requires a size of one to `maximum` pixels.
fn check_size(width: u32, height: u32, maximum: u64) -> Result<(), Failure> {
    if width == 0 || height == 0 {
        return Err(Failure::Corrupt("it has no pixels".to_owned()));
    }
    if u64::from(width) * u64::from(height) > maximum {
        return Err(Failure::TooLarge { width, height });
    }
    Ok(())
}

/// Decodes a format by the decoder of the crate `image`.
fn decode_by_image(
    bytes: &[u8],
    format: ImageFormat,
    maximum: u64,
) -> Result<SourceImage, Failure> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(maximum.saturating_mul(8).max(MIN_ALLOC));
    reader.limits(limits);
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, maximum)?;
    Ok(SourceImage::from(DynamicImage::from_decoder(decoder)?))
}

fn decode_jpeg(bytes: &[u8], maximum: u64) -> Result<SourceImage, Failure> {
    jpeg::check(bytes)?;
    decode_by_image(bytes, ImageFormat::Jpeg, maximum)
}

fn decode_png(bytes: &[u8], maximum: u64) -> Result<SourceImage, Failure> {
    let read = |bytes: &[u8]| decode_by_image(bytes, ImageFormat::Png, maximum);
    let mut source = match read(bytes) {
        Err(failure @ (Failure::CutShort | Failure::Corrupt(_))) => match png::repaired(bytes) {
            Some(repaired) => read(&repaired).map_err(|_| failure)?,
            None => return Err(failure),
        },
        other => other?,
    };
    // The decoder expands palettes, bit depths and transparent colours, so the mode comes from the
    // IHDR chunk: bit depth at byte 24, colour type at byte 25.
    source.mode = match (bytes.get(25), bytes.get(24)) {
        (Some(0), Some(1)) => Mode::Bilevel,
        (Some(0), Some(16)) => Mode::Grey16,
        (Some(0), _) => Mode::Grey,
        (Some(2), _) => Mode::Rgb,
        (Some(3), _) => Mode::Palette,
        _ => source.mode,
    };
    Ok(source)
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

    /// Formats that the crate `image` can write here.
    const WRITTEN: [ImageFormat; 4] = [
        ImageFormat::Jpeg,
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Bmp,
    ];

    fn fixture(name: &str) -> std::path::PathBuf {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/preprocess/src");
        Path::new(folder).join(name)
    }

    #[test]
    fn every_truncation_is_an_error_or_gives_the_whole_image() {
        for format in WRITTEN {
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
        for format in WRITTEN {
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
            (&b"qoif\x00\x00\x00\x01\x00\x00\x00\x01\x03\x00"[..], "Qoi"),
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

    #[test]
    fn the_limit_on_pixels_holds_for_every_format() {
        for name in [
            "photo_420.jpg",
            "rgb_odd.png",
            "lossy.webp",
            "bmp24.bmp",
            "bmp8_rle.bmp",
            "gif.gif",
            "gif_larger.gif",
            "tif.tif",
            "tif_palette.tif",
        ] {
            let path = fixture(name);
            let limited = |max_pixels| decode_file_with(&path, DecodeOptions { max_pixels });
            let whole = limited(MAX_PIXELS).unwrap();
            let pixels = u64::from(whole.width()) * u64::from(whole.height());
            assert_eq!(limited(pixels).unwrap(), whole, "{name}");
            let e = limited(pixels - 1).unwrap_err();
            let limit = pixels - 1;
            assert!(
                matches!(e, ImageError::TooLarge { maximum, .. } if maximum == limit),
                "{name}: {e}"
            );
            assert!(e.to_string().contains(&limit.to_string()), "{e}");
        }
    }

    #[test]
    fn pictures_of_a_hundred_megapixels_are_read() {
        // One bit of grey: 13 MB of zeros, which compress well.
        let (width, height) = (10_400u32, 10_000u32);
        let mut data = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        let row = vec![0; 1 + width.div_ceil(8) as usize];
        for _ in 0..height {
            std::io::Write::write_all(&mut data, &row).unwrap();
        }
        let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut chunk = |name: &[u8], data: &[u8]| {
            let named = [name, data].concat();
            let mut sum = flate2::Crc::new();
            sum.update(&named);
            png.extend((data.len() as u32).to_be_bytes());
            png.extend(named);
            png.extend(sum.sum().to_be_bytes());
        };
        let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
        chunk(b"IHDR", &[&size[..], &[1, 0, 0, 0, 0]].concat());
        chunk(b"IDAT", &data.finish().unwrap());
        chunk(b"IEND", b"");
        let image = decode_source(&png, "map.png").unwrap();
        assert_eq!(image.mode(), Mode::Bilevel);
        let size = (image.pixels().width(), image.pixels().height());
        assert_eq!(size, (width, height));
    }

    #[test]
    fn arithmetic_coding_is_named() {
        let mut jpeg = encoded(ImageFormat::Jpeg);
        let frame = jpeg
            .windows(2)
            .position(|w| w[0] == 0xff && w[1] == 0xc0)
            .unwrap();
        jpeg[frame + 1] = 0xc9;
        let e = decode(&jpeg, "scan.jpg").unwrap_err().to_string();
        assert!(e.contains("scan.jpg") && e.contains("arithmetic"), "{e}");
    }

    #[test]
    fn a_png_without_its_end_or_with_wrong_checksums_gives_its_pixels() {
        let whole = encoded(ImageFormat::Png);
        let pixels = decode(&whole, "whole").unwrap();
        let name = whole.windows(4).position(|w| w == b"IDAT").unwrap();
        let length = u32::from_be_bytes(whole[name - 4..name].try_into().unwrap()) as usize;
        let sum = name + 4 + length;
        // Without the end, and without the checksum before it.
        for cut in [sum + 4, sum + 2, sum] {
            assert_eq!(decode(&whole[..cut], "cut").unwrap(), pixels, "{cut}");
        }
        let mut wrong = whole.clone();
        wrong[sum] ^= 0xff;
        assert_eq!(decode(&wrong, "wrong").unwrap(), pixels);
        // The header's checksum still counts.
        let mut header = whole.clone();
        header[29] ^= 0xff;
        assert!(decode(&header, "header").is_err());
        assert!(png::repaired(&whole).is_none());
    }
}

//! The first picture of TIFF files by the crate `tiff`, with Pillow's modes and colours.

use std::borrow::Cow;
use std::io::{Cursor, ErrorKind};

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer};
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::palette::{Palette, paint};
use super::{Failure, Mode, SourceImage, check_size};
use crate::preprocess::colour::cmyk_to_rgb;

/// Bytes of the largest pixels that are read: four samples of 16 bits.
const BYTES_PER_PIXEL: u64 = 8;
/// Least limit on a buffer in bytes. Tiles and tables of a small picture are larger than its
/// pixels.
const SMALLEST_LIMIT: u64 = 16 << 20;
/// Value of the tag `PhotometricInterpretation` for indices into a palette.
const PALETTE: u16 = 3;
/// Value of the tag `PhotometricInterpretation` for grey, zero being black.
const GREY: u16 = 1;
/// Version number of BigTIFF.
const BIG_TIFF: u16 = 43;
/// Value of the tag `ExtraSamples` for alpha that the colours are multiplied by.
const PREMULTIPLIED: u16 = 1;

impl From<TiffError> for Failure {
    fn from(error: TiffError) -> Self {
        match error {
            TiffError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => Self::CutShort,
            other => Self::Corrupt(other.to_string()),
        }
    }
}

/// Samples of all pixels, interleaved.
enum Samples {
    Bytes(Vec<u8>),
    Words(Vec<u16>),
}

/// Decodes the first picture of a TIFF of at most `maximum` pixels. As in Pillow its orientation is
/// applied, unlike that of a JPEG.
pub(super) fn decode(bytes: &[u8], maximum: u64) -> Result<SourceImage, Failure> {
    let (bytes, has_palette) = prepared(bytes);
    let mut limits = Limits::default();
    let largest = maximum.saturating_mul(BYTES_PER_PIXEL).max(SMALLEST_LIMIT);
    limits.decoding_buffer_size = usize::try_from(largest).unwrap_or(usize::MAX);
    limits.intermediate_buffer_size = limits.decoding_buffer_size;
    let mut decoder = Decoder::new(Cursor::new(&*bytes))?.with_limits(limits);
    let (width, height) = decoder.dimensions()?;
    check_size(width, height, maximum)?;
    let colour = decoder.colortype()?;
    if decoder
        .find_tag_unsigned::<u16>(Tag::FillOrder)?
        .unwrap_or(1)
        != 1
    {
        return Err(unsupported("bits in reverse order"));
    }
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples)?;
    let extra = extra.and_then(|kinds| kinds.first().copied()).unwrap_or(0);
    let orientation = decoder.find_tag_unsigned::<u8>(Tag::Orientation)?;
    let palette = if has_palette {
        colours(&decoder.get_tag_u16_vec(Tag::ColorMap)?)
    } else {
        Palette::new()
    };

    let mut decoded = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut decoded)?;
    if decoded.as_buffer(0).byte_len() < layout.complete_len {
        return Err(unsupported("planes of this size"));
    }
    let channels = usize::from(colour.num_samples());
    let samples = match decoded {
        DecodingResult::U8(values) => Samples::Bytes(interleaved(values, layout.planes, channels)),
        DecodingResult::U16(values) => Samples::Words(interleaved(values, layout.planes, channels)),
        _ => return Err(unsupported("samples other than 8 and 16 bits without sign")),
    };
    let size = (width, height);
    let mut image = match (colour, samples) {
        (ColorType::Gray(bits @ (1 | 2 | 4 | 8)), Samples::Bytes(values)) => {
            let values = unpacked(values, width, bits);
            if has_palette {
                paint(Mode::Palette, size, &values, &palette, None)?
            } else {
                grey(size, values, bits)?
            }
        }
        (_, samples) => coloured(size, colour, samples, extra)?,
    };
    if let Some(orientation) = orientation.and_then(Orientation::from_exif) {
        image.pixels.apply_orientation(orientation);
    }
    Ok(image)
}

fn unsupported(what: &str) -> Failure {
    Failure::Corrupt(format!("{what} are not supported"))
}

/// Returns the file with what the decoder would misread replaced, and whether it has a palette.
///
/// - The decoder refuses palettes, so their indices are declared as grey values.
/// - The decoder allocates the values of a tag before it reads them, and no limit applies to the
///   first directory. Tags of more values than the file has bytes are declared empty.
fn prepared(bytes: &[u8]) -> (Cow<'_, [u8]>, bool) {
    let mut prepared = Cow::Borrowed(bytes);
    let mut has_palette = false;
    let Some((layout, entries)) = first_directory(bytes) else {
        return (prepared, has_palette);
    };
    for at in entries {
        let (Some(tag), Some(count), Some(value)) = (
            layout.short(bytes, at),
            layout.count(bytes, at + 4),
            layout.short(bytes, at + layout.value()),
        ) else {
            break;
        };
        if tag == Tag::PhotometricInterpretation.to_u16() && value == PALETTE {
            let value = at + layout.value();
            prepared.to_mut()[value..value + 2].copy_from_slice(&layout.bytes(GREY));
            has_palette = true;
        }
        if count > bytes.len() as u64 {
            prepared.to_mut()[at + 4..at + layout.value()].fill(0);
        }
    }
    (prepared, has_palette)
}

/// Byte order and word size of a TIFF.
#[derive(Clone, Copy)]
struct FileLayout {
    little: bool,
    /// BigTIFF, with counts and offsets of 64 bits.
    big: bool,
}

impl FileLayout {
    fn short(self, bytes: &[u8], at: usize) -> Option<u16> {
        let value = *bytes.get(at..)?.first_chunk::<2>()?;
        Some(if self.little {
            u16::from_le_bytes(value)
        } else {
            u16::from_be_bytes(value)
        })
    }

    /// Returns a count or an offset.
    fn count(self, bytes: &[u8], at: usize) -> Option<u64> {
        let bytes = bytes.get(at..)?;
        Some(match (self.big, self.little) {
            (false, true) => u32::from_le_bytes(*bytes.first_chunk()?).into(),
            (false, false) => u32::from_be_bytes(*bytes.first_chunk()?).into(),
            (true, true) => u64::from_le_bytes(*bytes.first_chunk()?),
            (true, false) => u64::from_be_bytes(*bytes.first_chunk()?),
        })
    }

    fn bytes(self, value: u16) -> [u8; 2] {
        if self.little {
            value.to_le_bytes()
        } else {
            value.to_be_bytes()
        }
    }

    /// Returns the position of the value in an entry: it follows the tag, the type and the count.
    fn value(self) -> usize {
        if self.big { 12 } else { 8 }
    }
}

/// Returns the positions of the entries of the first directory.
fn first_directory(bytes: &[u8]) -> Option<(FileLayout, impl Iterator<Item = usize> + use<>)> {
    let mut layout = FileLayout {
        little: bytes.starts_with(b"II"),
        big: false,
    };
    layout.big = layout.short(bytes, 2)? == BIG_TIFF;
    let directory = layout.count(bytes, if layout.big { 8 } else { 4 })?;
    let directory = usize::try_from(directory).ok()?;
    let (entries, count_len, entry_len) = if layout.big {
        (layout.count(bytes, directory)?, 8, 20)
    } else {
        (layout.short(bytes, directory)?.into(), 2, 12)
    };
    let first = directory.checked_add(count_len)?;
    let inside = bytes.len().checked_sub(first)? / entry_len;
    let entries = usize::try_from(entries).unwrap_or(inside).min(inside);
    Some((
        layout,
        (0..entries).map(move |entry| first + entry * entry_len),
    ))
}

/// Returns the colours of a `ColorMap`, which holds all reds, all greens and all blues.
fn colours(map: &[u16]) -> Palette {
    let (reds, rest) = map.split_at(map.len() / 3);
    let (greens, blues) = rest.split_at(rest.len() / 2);
    reds.iter()
        .zip(greens)
        .zip(blues)
        .map(|((red, green), blue)| [red, green, blue].map(|v| (v >> 8) as u8))
        .collect()
}

/// Interleaves the first `channels` of several planes.
fn interleaved<T: Copy>(values: Vec<T>, planes: usize, channels: usize) -> Vec<T> {
    if planes <= 1 {
        return values;
    }
    let length = values.len() / planes;
    let channels = channels.min(planes);
    (0..length)
        .flat_map(|at| (0..channels).map(move |plane| plane * length + at))
        .map(|at| values[at])
        .collect()
}

/// Returns the values of rows of packed bits; a row begins with a byte.
fn unpacked(values: Vec<u8>, width: u32, bits: u8) -> Vec<u8> {
    if bits == 8 {
        return values;
    }
    let row = (width as usize * usize::from(bits)).div_ceil(8);
    let shifts = (0..8 / bits).map(|i| 8 - bits * (i + 1));
    values
        .chunks_exact(row)
        .flat_map(|row| {
            let shifts = shifts.clone();
            row.iter()
                .flat_map(move |byte| shifts.clone().map(move |s| (byte >> s) & ((1 << bits) - 1)))
                .take(width as usize)
        })
        .collect()
}

/// Returns a grey picture of values with `bits` bits.
fn grey(
    (width, height): (u32, u32),
    mut values: Vec<u8>,
    bits: u8,
) -> Result<SourceImage, Failure> {
    if bits < 8 {
        let step = 255 / ((1u8 << bits) - 1);
        values.iter_mut().for_each(|v| *v *= step);
    }
    let pixels = ImageBuffer::from_raw(width, height, values).ok_or(Failure::CutShort)?;
    let mut image = SourceImage::from(DynamicImage::ImageLuma8(pixels));
    if bits == 1 {
        image.mode = Mode::Bilevel;
    }
    Ok(image)
}

/// Returns a picture of whole bytes or words. `extra` is the kind of the first extra sample.
fn coloured(
    (width, height): (u32, u32),
    colour: ColorType,
    samples: Samples,
    extra: u16,
) -> Result<SourceImage, Failure> {
    use DynamicImage::{
        ImageLuma8, ImageLuma16, ImageLumaA8, ImageRgb8, ImageRgb16, ImageRgba8, ImageRgba16,
    };

    /// Wraps the samples in the buffer of a pixel type.
    macro_rules! pixels {
        ($kind:ident, $values:expr) => {
            ImageBuffer::from_raw(width, height, $values).map($kind)
        };
    }
    let pixels = match (colour, samples) {
        (ColorType::Gray(16), Samples::Words(v)) => pixels!(ImageLuma16, v),
        // Pillow drops an extra sample of no stated meaning.
        (
            ColorType::Multiband {
                bit_depth: 8,
                num_samples: 2,
            },
            Samples::Bytes(v),
        ) if extra == 0 => {
            pixels!(ImageLuma8, v.into_iter().step_by(2).collect())
        }
        (
            ColorType::Multiband {
                bit_depth: 8,
                num_samples: 2,
            },
            Samples::Bytes(v),
        ) => {
            pixels!(ImageLumaA8, v)
        }
        (ColorType::RGB(8), Samples::Bytes(v)) => pixels!(ImageRgb8, v),
        (ColorType::RGB(16), Samples::Words(v)) => pixels!(ImageRgb16, v),
        (ColorType::RGBA(8), Samples::Bytes(v)) => pixels!(ImageRgba8, v),
        (ColorType::RGBA(16), Samples::Words(v)) => pixels!(ImageRgba16, v),
        (ColorType::CMYK(8), Samples::Bytes(v)) => pixels!(ImageRgb8, cmyk_to_rgb(&v)),
        (ColorType::CMYK(16), Samples::Words(v)) => {
            let high: Vec<u8> = v.iter().map(|v| (v >> 8) as u8).collect();
            pixels!(ImageRgb8, cmyk_to_rgb(&high))
        }
        (other, _) => return Err(unsupported(&format!("pixels of the kind {other:?}"))),
    };
    let mut image = SourceImage::from(pixels.ok_or(Failure::CutShort)?);
    if extra == PREMULTIPLIED
        && let ImageRgba8(pixels) = &mut image.pixels
    {
        for pixel in pixels.pixels_mut() {
            let [colours @ .., alpha] = &mut pixel.0;
            for value in colours {
                let whole = (u32::from(*value) * 255).checked_div(u32::from(*alpha));
                *value = whole.unwrap_or(0).min(255) as u8;
            }
        }
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREY2: &[u8] = include_bytes!("../../../tests/data/preprocess/src/tif_grey2.tif");

    /// Returns a file with another tag and count in the entry of `tag`.
    fn with_entry(tag: Tag, new_tag: u16, count: u32) -> Vec<u8> {
        let mut bytes = GREY2.to_vec();
        let (layout, mut entries) = first_directory(GREY2).unwrap();
        let at = entries.find(|at| layout.short(GREY2, *at) == Some(tag.to_u16()));
        let at = at.unwrap();
        bytes[at..at + 2].copy_from_slice(&layout.bytes(new_tag));
        bytes[at + 4..at + 8].copy_from_slice(&count.to_le_bytes());
        bytes
    }

    #[test]
    fn more_values_than_the_file_can_hold_are_not_allocated() {
        let bits = with_entry(Tag::BitsPerSample, Tag::BitsPerSample.to_u16(), 7_000_000);
        let empty = with_entry(Tag::BitsPerSample, Tag::BitsPerSample.to_u16(), 0);
        assert_eq!(*prepared(&bits).0, *empty);
        assert!(decode(&bits, 1 << 20).is_err());
        // A tag that does not concern the pixels.
        let unused = with_entry(Tag::PlanarConfiguration, 40_000, u32::MAX);
        let image = decode(&unused, 1 << 20).unwrap();
        let whole = decode(GREY2, 1 << 20).unwrap();
        assert_eq!(image.pixels, whole.pixels);
    }

    #[test]
    fn directories_beyond_the_end_have_no_entries() {
        for header in [
            &b"II\x2a\0\xff\xff\xff\xff"[..],
            b"MM\0\x2b\0\x08\0\0\xff\xff\xff\xff",
        ] {
            assert!(first_directory(header).is_none());
            assert!(decode(header, 1 << 20).is_err());
        }
        let (_, entries) = first_directory(b"II\x2a\0\x08\0\0\0\xff\xff").unwrap();
        assert_eq!(entries.count(), 0);
    }
}

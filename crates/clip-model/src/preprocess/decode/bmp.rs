//! BMP pictures by the decoder of the crate `image`, with Pillow's modes and roundings.

use std::borrow::Cow;
use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::{DynamicImage, ImageDecoder as _};

use super::palette::{Palette, is_grey_ramp};
use super::{Failure, Mode, SourceImage, check_size};

/// Length of the file header, before the bitmap's header.
const FILE_HEADER: usize = 14;
/// Length of the header of OS/2 1.x, which has 16-bit sizes and colours of three bytes.
const CORE_HEADER: usize = 12;
/// Length of the header of Windows 3. The fields of longer headers come after its fields.
const INFO_HEADER: usize = 40;
/// Length of the header of OS/2 2.x, which begins with the fields of [`INFO_HEADER`].
const OS2_HEADER: usize = 64;

/// Decodes a BMP of at most `maximum` pixels.
pub(super) fn decode(bytes: &[u8], maximum: u64) -> Result<SourceImage, Failure> {
    let layout = Layout::read(bytes).ok_or(Failure::CutShort)?;
    if matches!(layout.bits, 1 | 2 | 4 | 8) {
        return indexed(bytes, &layout, maximum);
    }
    let mut bytes = Cow::Borrowed(bytes);
    if layout.header == OS2_HEADER {
        declare_info_header(bytes.to_mut());
    }
    if bytes[10..14] == [0; 4] {
        bytes.to_mut()[10..14].copy_from_slice(&(layout.data as u32).to_le_bytes());
    }
    let mut image = SourceImage::from(read(&bytes, maximum)?);
    if let Some(steps) = layout.steps {
        round_down(&mut image.pixels, steps);
    }
    Ok(image)
}

/// Declares a longer header as one of [`INFO_HEADER`] bytes. The decoder does not know all of them,
/// and finds the pixels by the file's header.
fn declare_info_header(file: &mut [u8]) {
    file[14..18].copy_from_slice(&(INFO_HEADER as u32).to_le_bytes());
}

fn read(bytes: &[u8], maximum: u64) -> Result<DynamicImage, Failure> {
    let decoder = BmpDecoder::new(Cursor::new(bytes))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, maximum)?;
    Ok(DynamicImage::from_decoder(decoder)?)
}

/// The fields of the headers that the decoder does not hand out.
struct Layout {
    /// Length of the bitmap's header.
    header: usize,
    /// Bits of a pixel.
    bits: u16,
    /// Bytes of a colour of the palette.
    entry: usize,
    /// Number of colours in the palette.
    colours: usize,
    /// Start of the pixels.
    data: usize,
    /// Largest values of red, green and blue, for pixels of 16 bits.
    steps: Option<[u16; 3]>,
}

impl Layout {
    fn read(bytes: &[u8]) -> Option<Self> {
        let long = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let short = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let header = long(FILE_HEADER)? as usize;
        let mut data = long(10)? as usize;
        let (bits, entry, stated, compression) = if header == CORE_HEADER {
            (short(24)?, 3, 0, 0)
        } else {
            (short(28)?, 4, long(46)? as usize, long(30)?)
        };
        let mut colours = 0;
        if bits <= 8 {
            let most = 1 << bits;
            colours = if stated == 0 { most } else { stated.min(most) };
            // Some writers leave the palette out of the offset.
            if data == FILE_HEADER + header {
                data += entry * colours;
            }
        }
        // Some writers leave the offset out: the pixels then follow the headers.
        if data == 0 {
            let masks = if header == INFO_HEADER && compression == 3 {
                12
            } else {
                0
            };
            data = FILE_HEADER + header + masks + entry * colours;
        }
        let steps = match (bits, compression) {
            (16, 0) => Some([31, 31, 31]),
            (16, 3) => match [long(54)?, long(58)?, long(62)?] {
                [0xf800, 0x7e0, 0x1f] => Some([31, 63, 31]),
                [0x7c00, 0x3e0, 0x1f] => Some([31, 31, 31]),
                _ => None,
            },
            _ => None,
        };
        Some(Self {
            header,
            bits,
            entry,
            colours,
            data,
            steps,
        })
    }
}

/// Decodes a BMP with a palette.
///
/// The decoder returns colours, and black where run-length encoded pixels are skipped, where Pillow
/// has the first colour. Here it decodes the file with a grey ramp as the palette, so the colours
/// that it returns are the indices.
fn indexed(bytes: &[u8], layout: &Layout, maximum: u64) -> Result<SourceImage, Failure> {
    let start = FILE_HEADER + layout.header;
    let colours = bytes.get(start..).unwrap_or_default();
    let mut palette: Palette = colours
        .chunks_exact(layout.entry)
        .take(layout.colours)
        .map(|c| [c[2], c[1], c[0]])
        .collect();
    let grey = is_grey_ramp(&palette);
    let mode = match palette.as_slice() {
        [[0, 0, 0]] | [[0, 0, 0], [255, 255, 255]] => Mode::Bilevel,
        _ if grey && layout.colours != 2 => Mode::Grey,
        _ => Mode::Palette,
    };
    let shades = read(&with_grey_ramp(bytes, layout)?, maximum)?.into_rgb8();
    let (width, height) = shades.dimensions();
    let indices: Vec<u8> = shades.pixels().map(|p| p[0]).collect();
    if mode == Mode::Bilevel {
        palette.resize(2, [255; 3]);
    }
    super::palette::paint(mode, (width, height), &indices, &palette, None)
}

/// Returns the file with a complete grey ramp as its palette.
fn with_grey_ramp(bytes: &[u8], layout: &Layout) -> Result<Vec<u8>, Failure> {
    let kept = layout.header.min(INFO_HEADER);
    let data = bytes.get(layout.data..).ok_or(Failure::CutShort)?;
    let head = bytes.get(..FILE_HEADER + kept).ok_or(Failure::CutShort)?;
    let colours = 1usize << layout.bits;
    let offset = (head.len() + layout.entry * colours) as u32;
    let mut file = Vec::with_capacity(offset as usize + data.len());
    file.extend_from_slice(head);
    file[10..14].copy_from_slice(&offset.to_le_bytes());
    if matches!(layout.header, 52 | 56 | OS2_HEADER | 108 | 124) {
        declare_info_header(&mut file);
    }
    if kept == INFO_HEADER {
        // No number of colours stands for all of them.
        file[46..50].fill(0);
    }
    for shade in 0..colours {
        file.extend(std::iter::repeat_n(shade as u8, layout.entry));
    }
    file.extend_from_slice(data);
    Ok(file)
}

/// Rounds the values of 16-bit pixels down, as Pillow does; the decoder rounds to nearest.
fn round_down(image: &mut DynamicImage, steps: [u16; 3]) {
    if let DynamicImage::ImageRgb8(image) = image {
        for pixel in image.pixels_mut() {
            for (value, most) in pixel.0.iter_mut().zip(steps) {
                let step = (u16::from(*value) * most + 127) / 255;
                *value = (step * 255 / most) as u8;
            }
        }
    }
}

//! Pictures of indices into a palette.

use image::{DynamicImage, GrayAlphaImage, GrayImage, RgbImage, RgbaImage};

use super::{Failure, Mode, SourceImage};

/// The colours of a palette, in the order of their indices.
pub(super) type Palette = Vec<[u8; 3]>;

/// Returns whether each colour is the grey of its index, which Pillow reads as grey without a
/// palette.
pub(super) fn is_grey_ramp(palette: &[[u8; 3]]) -> bool {
    palette
        .iter()
        .enumerate()
        .all(|(index, colour)| colour.iter().all(|&c| usize::from(c) == index))
}

/// Returns the picture of the indices in a mode with a palette or in a grey one.
///
/// The index `transparent` has an alpha of zero. In the mode [`Mode::Grey`] an index is its own
/// grey, whatever the palette; in the others, indices beyond the palette are black.
pub(super) fn paint(
    mode: Mode,
    (width, height): (u32, u32),
    indices: &[u8],
    palette: &[[u8; 3]],
    transparent: Option<u8>,
) -> Result<SourceImage, Failure> {
    let colour = |index: u8| palette.get(usize::from(index)).copied().unwrap_or_default();
    let shade = |index: u8| match mode {
        Mode::Grey => index,
        _ => colour(index)[0],
    };
    let alpha = |index: u8| if transparent == Some(index) { 0 } else { 255 };
    let pixels = match (mode, transparent) {
        (Mode::Palette, None) => {
            let values = indices.iter().flat_map(|&i| colour(i)).collect();
            RgbImage::from_raw(width, height, values).map(DynamicImage::from)
        }
        (Mode::Palette, Some(_)) => {
            let values = indices.iter().flat_map(|&i| {
                let [red, green, blue] = colour(i);
                [red, green, blue, alpha(i)]
            });
            RgbaImage::from_raw(width, height, values.collect()).map(DynamicImage::from)
        }
        (_, None) => {
            let values = indices.iter().map(|&i| shade(i)).collect();
            GrayImage::from_raw(width, height, values).map(DynamicImage::from)
        }
        (_, Some(_)) => {
            let values = indices.iter().flat_map(|&i| [shade(i), alpha(i)]);
            GrayAlphaImage::from_raw(width, height, values.collect()).map(DynamicImage::from)
        }
    };
    let pixels = pixels.ok_or(Failure::CutShort)?;
    Ok(SourceImage { mode, pixels })
}

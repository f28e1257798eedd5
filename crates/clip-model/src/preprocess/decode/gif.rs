//! The first frame of GIF pictures by the crate `gif`, on Pillow's canvas.

use std::borrow::Cow;

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::palette::{Palette, is_grey_ramp, paint};
use super::{Failure, Mode, SourceImage, check_size};

impl From<DecodingError> for Failure {
    fn from(error: DecodingError) -> Self {
        match error {
            DecodingError::UnexpectedEof => Self::CutShort,
            other => Self::Corrupt(other.to_string()),
        }
    }
}

/// Decodes the first frame of a GIF of at most `maximum` pixels.
///
/// The canvas holds the screen and the frame. Where the frame does not cover it, it has the
/// transparent colour, or the first one.
pub(super) fn decode(bytes: &[u8], maximum: u64) -> Result<SourceImage, Failure> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    // The size is checked below, before the frame is decoded.
    options.set_memory_limit(MemoryLimit::Unlimited);
    let bytes = with_colour_table(bytes);
    let mut decoder = options.read_info(&*bytes)?;
    let screen = (decoder.width(), decoder.height());
    let Some(frame) = decoder.next_frame_info()? else {
        return Err(Failure::Corrupt("it has no frame".to_owned()));
    };
    let transparent = frame.transparent;
    let [left, top, frame_width, frame_height] =
        [frame.left, frame.top, frame.width, frame.height].map(u32::from);
    let width = u32::from(screen.0).max(left + frame_width);
    let height = u32::from(screen.1).max(top + frame_height);
    check_size(width, height, maximum)?;
    check_size(frame_width, frame_height, maximum)?;
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices)?;
    let palette: Palette = decoder.palette()?.as_chunks::<3>().0.to_vec();
    if (frame_width, frame_height) != (width, height) {
        let mut canvas = vec![transparent.unwrap_or(0); width as usize * height as usize];
        let rows = canvas.chunks_exact_mut(width as usize).skip(top as usize);
        for (row, from) in rows.zip(indices.chunks_exact(frame_width as usize)) {
            row[left as usize..][..from.len()].copy_from_slice(from);
        }
        indices = canvas;
    }
    let mode = if is_grey_ramp(&palette) {
        Mode::Grey
    } else {
        Mode::Palette
    };
    paint(mode, (width, height), &indices, &palette, transparent)
}

/// Returns the file with a table of colours, which the decoder needs: a grey ramp if it has none,
/// so that an index is its own grey. A frame with colours of its own does not use it.
fn with_colour_table(file: &[u8]) -> Cow<'_, [u8]> {
    /// Length of the header and the screen descriptor, which the global colour table follows.
    const DESCRIPTOR_END: usize = 13;
    /// Flags of the screen descriptor: a table exists, and its number of colours is 256.
    const FLAGS: (usize, u8) = (10, 0x87);
    match file.split_at_checked(DESCRIPTOR_END) {
        Some((head, rest)) if head[FLAGS.0] & 0x80 == 0 => {
            let ramp = (0..=255).flat_map(|shade| [shade; 3]);
            let mut copy: Vec<u8> = head.iter().copied().chain(ramp).collect();
            copy[FLAGS.0] |= FLAGS.1;
            copy.extend_from_slice(rest);
            Cow::Owned(copy)
        }
        _ => Cow::Borrowed(file),
    }
}

//! WebP: checks that the decoder does not make.
//!
//! A file is a RIFF container of chunks: a name, a length and the content, filled up to an even
//! length. The chunk `VP8X` has the size of the picture, and each frame (`VP8 ` or `VP8L`, in an
//! animation within `ANMF`) has a size of its own, which the decoder allocates.

use image::ImageFormat;

use super::{Failure, SourceImage, check_size, decode_by_image};

/// Length of the RIFF header.
const HEADER: usize = 12;
/// Length of the fields in front of the chunks of an animation's frame.
const FRAME_FIELDS: usize = 16;
/// Bits of a width or a height.
const SIZE_BITS: u32 = 14;

/// Decodes a WebP whose picture and frames have at most `maximum` pixels.
pub(super) fn decode(bytes: &[u8], maximum: u64) -> Result<SourceImage, Failure> {
    // The decoder may fill the missing part of a truncated file with grey.
    if !is_complete(bytes) {
        return Err(Failure::CutShort);
    }
    let chunks = bytes.get(HEADER..).unwrap_or_default();
    check_frames(chunks, maximum, false)?;
    decode_by_image(bytes, ImageFormat::WebP, maximum)
}

/// Returns whether a WebP has the length stated in its RIFF header.
fn is_complete(bytes: &[u8]) -> bool {
    bytes
        .get(4..8)
        .and_then(|b| b.try_into().ok())
        .is_some_and(|b| u64::from(u32::from_le_bytes(b)) + 8 <= bytes.len() as u64)
}

/// Checks the sizes of all frames in `chunks`, which are those of a file or of an animation's frame.
/// Chunks that are cut short are left to the decoder.
fn check_frames(mut chunks: &[u8], maximum: u64, of_a_frame: bool) -> Result<(), Failure> {
    while let Some((head, rest)) = chunks.split_first_chunk::<8>() {
        let [a, b, c, d, length @ ..] = *head;
        let length = u32::from_le_bytes(length) as usize;
        let content = &rest[..length.min(rest.len())];
        let size = match &[a, b, c, d] {
            b"VP8 " => lossy_size(content),
            b"VP8L" => lossless_size(content),
            b"ANMF" if !of_a_frame => {
                let chunks = content.get(FRAME_FIELDS..).unwrap_or_default();
                check_frames(chunks, maximum, true)?;
                None
            }
            _ => None,
        };
        // One without pixels is left to the decoder too.
        if let Some((width, height)) = size
            && width > 0
            && height > 0
        {
            check_size(width, height, maximum)?;
        }
        let end = length.saturating_add(length % 2);
        chunks = rest.get(end..).unwrap_or_default();
    }
    Ok(())
}

/// Returns the size of a lossy frame: it follows a tag of 3 bytes and a start code of 3 bytes (RFC
/// 6386, section 9.1).
fn lossy_size(content: &[u8]) -> Option<(u32, u32)> {
    let [w0, w1, h0, h1] = *content.get(6..)?.first_chunk::<4>()?;
    let size = |low, high| u32::from(u16::from_le_bytes([low, high])) & ((1 << SIZE_BITS) - 1);
    Some((size(w0, w1), size(h0, h1)))
}

/// Returns the size of a lossless frame: it follows a signature byte, each number one too small
/// (RFC 9649, section 3.4).
fn lossless_size(content: &[u8]) -> Option<(u32, u32)> {
    let bits = u32::from_le_bytes(*content.get(1..)?.first_chunk::<4>()?);
    let size = |bits: u32| (bits & ((1 << SIZE_BITS) - 1)) + 1;
    Some((size(bits), size(bits >> SIZE_BITS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let length = (content.len() as u32).to_le_bytes();
        let mut chunk = [&name[..], &length, content].concat();
        chunk.resize(chunk.len() + content.len() % 2, 0);
        chunk
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        let content = [b"WEBP", &chunks.concat()[..]].concat();
        chunk(b"RIFF", &content)
    }

    /// A lossless frame of 64 by 48 pixels.
    fn lossless() -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let image = image::RgbImage::new(64, 48);
        image.write_to(&mut bytes, ImageFormat::WebP).unwrap();
        bytes.into_inner()[HEADER..].to_vec()
    }

    #[test]
    fn the_size_of_each_frame_is_limited() {
        // A picture of 4 by 4 pixels whose frames are larger.
        let canvas = chunk(b"VP8X", &[0, 0, 0, 0, 3, 0, 0, 3, 0, 0]);
        let lossy = chunk(
            b"VP8 ",
            &[0x30, 0, 0, 0x9d, 1, 0x2a, 0xe5, 0x25, 0x0a, 0x25, 0],
        );
        let animated = chunk(b"ANMF", &[&[0; FRAME_FIELDS][..], &lossy].concat());
        for (frame, size) in [
            (lossless(), (64, 48)),
            (lossy, (9701, 9482)),
            (animated, (9701, 9482)),
        ] {
            let bytes = file(&[canvas.clone(), frame]);
            match decode(&bytes, 1000) {
                Err(Failure::TooLarge { width, height }) => assert_eq!((width, height), size),
                other => panic!("{:?}", other.map(|image| image.mode())),
            }
        }
        let whole = file(&[lossless()]);
        assert!(decode(&whole, 64 * 48).is_ok());
        assert!(matches!(
            decode(&whole[..whole.len() - 2], 64 * 48),
            Err(Failure::CutShort)
        ));
    }

    #[test]
    fn chunks_that_are_cut_short_are_left_to_the_decoder() {
        for chunks in [
            &b"VP8 \xff\xff\xff\xff"[..],
            b"VP8L\x02\0\0\0\x2f\xff",
            b"ANMF\x04\0\0\0VP8 ",
            b"VP8",
        ] {
            assert!(check_frames(chunks, 1, false).is_ok());
            assert!(decode(&file(&[chunks.to_vec()]), 1).is_err());
        }
    }
}

//! Checks of JPEG files before they are decoded.

use super::Failure;

/// Requires the end-of-image marker and Huffman coding: the decoder fills the rest of a truncated
/// picture with grey, and has no arithmetic decoding.
///
/// Walks from marker to marker (ITU-T T.81, annex B).
pub(super) fn check(bytes: &[u8]) -> Result<(), Failure> {
    let (mut at, mut in_scan) = (2, false);
    while at + 1 < bytes.len() {
        // Between segments, and in the entropy-coded data after a start of scan, everything up to
        // the next marker is skipped: FF 00 is a data byte, FF FF is fill.
        if bytes[at] != 0xff {
            at += 1;
            continue;
        }
        match bytes[at + 1] {
            0xd9 => return Ok(()),
            0xff => at += 1,
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            0xc9..=0xcb | 0xcd..=0xcf if !in_scan => {
                return Err(Failure::Corrupt(
                    "arithmetic coding is not supported".to_owned(),
                ));
            }
            marker => match bytes.get(at + 2..at + 4) {
                Some(length) => {
                    at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
                    in_scan |= marker == 0xda;
                }
                None => return Err(Failure::CutShort),
            },
        }
    }
    Err(Failure::CutShort)
}

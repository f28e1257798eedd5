//! Damage of PNG files that Pillow overlooks.

/// Bytes before the first chunk.
const SIGNATURE: usize = 8;
/// Length of a chunk without its data: length, type and checksum.
const FRAME: usize = 12;
/// The chunk that ends a file.
const END: [u8; FRAME] = [0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xae, 0x42, 0x60, 0x82];

/// Returns a copy of the file with right checksums of its pixels and with an end, or `None` if
/// nothing of these is wrong. Chunks that are cut, and all checksums of other chunks, stay as they
/// are.
pub(super) fn repaired(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut file = bytes.get(..SIGNATURE)?.to_vec();
    let mut rest = &bytes[SIGNATURE..];
    let (mut changed, mut ended, mut pixels) = (false, false, false);
    while let Some((length, name)) = header(rest).filter(|_| !ended) {
        let Some(chunk) = rest.get(..FRAME - 4 + length) else {
            break;
        };
        let stored = rest.get(chunk.len()..chunk.len() + 4);
        ended = name == b"IEND";
        pixels |= name == b"IDAT";
        file.extend_from_slice(chunk);
        match stored {
            Some(sum) if name != b"IDAT" => file.extend_from_slice(sum),
            _ => {
                let mut right = flate2::Crc::new();
                right.update(&chunk[4..]);
                let right = right.sum().to_be_bytes();
                changed |= stored != Some(right.as_slice());
                file.extend_from_slice(&right);
            }
        }
        rest = rest.get(chunk.len() + 4..).unwrap_or_default();
    }
    if !ended && pixels && header(rest).is_none() {
        file.extend_from_slice(&END);
        return Some(file);
    }
    file.extend_from_slice(rest);
    changed.then_some(file)
}

/// Returns the length of the data of the first chunk, and its type.
fn header(bytes: &[u8]) -> Option<(usize, &[u8; 4])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let name = rest.first_chunk::<4>()?;
    Some((u32::from_be_bytes(*length) as usize, name))
}

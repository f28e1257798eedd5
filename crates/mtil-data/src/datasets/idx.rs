//! Reader of the IDX format of MNIST (<http://yann.lecun.com/exdb/mnist>).
//!
//! A file consists of two zero bytes, the element type, the number of dimensions, each dimension as
//! a big-endian 32-bit number, and the elements.

use std::io::Read as _;

use super::error::DatasetError;

/// Maximum decompressed size of a gzipped file.
const MAX_BYTES: u64 = 1 << 30;

/// An n-dimensional array of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idx {
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub data: Vec<u8>,
}

/// Reads an IDX file of unsigned bytes, plain or gzipped. `name` identifies the file in errors.
///
/// # Errors
/// [`DatasetError::Idx`] if the file is corrupt, or has elements of another type.
///
/// # Examples
/// ```
/// let bytes = b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef";
/// let array = mtil_data::datasets::idx::read(bytes, "train-images")?;
/// assert_eq!(array.shape, [2, 3]);
/// assert_eq!(array.data, b"abcdef");
/// # Ok::<(), mtil_data::datasets::DatasetError>(())
/// ```
pub fn read(bytes: &[u8], name: &str) -> Result<Idx, DatasetError> {
    let fault = |reason: String| DatasetError::Idx {
        path: name.to_owned(),
        reason,
    };
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return parse(bytes).map_err(fault);
    }
    let mut content = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .take(MAX_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(|error| fault(format!("{error}: half downloaded? Download it again")))?;
    if content.len() as u64 > MAX_BYTES {
        return Err(fault(format!(
            "its content is longer than {MAX_BYTES} bytes"
        )));
    }
    parse(&content).map_err(fault)
}

fn parse(bytes: &[u8]) -> Result<Idx, String> {
    let (head, rest) = bytes
        .split_first_chunk::<4>()
        .ok_or("it ends within its header: half downloaded? Download it again")?;
    let [0, 0, kind, dimensions] = *head else {
        return Err(format!(
            "it begins with the bytes {head:02x?}: it is not an IDX file"
        ));
    };
    if kind != 8 {
        return Err(format!(
            "its elements are of type {kind:#04x}: only unsigned bytes (0x08) are read"
        ));
    }
    let lengths = rest
        .get(..usize::from(dimensions) * 4)
        .ok_or("it ends within its header: half downloaded? Download it again")?;
    let data = &rest[lengths.len()..];
    let shape: Vec<usize> = lengths
        .as_chunks::<4>()
        .0
        .iter()
        .map(|length| u32::from_be_bytes(*length) as usize)
        .collect();
    let count = shape
        .iter()
        .try_fold(1_usize, |count, length| count.checked_mul(*length));
    if count != Some(data.len()) {
        return Err(format!(
            "its header declares {shape:?} elements, but {} follow: \
             half downloaded? Download it again",
            data.len()
        ));
    }
    Ok(Idx {
        shape,
        data: data.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[u8] = b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef";

    fn fault(bytes: &[u8]) -> String {
        let error = read(bytes, "train-images").unwrap_err().to_string();
        assert!(error.contains("train-images"), "{error}");
        error
    }

    #[test]
    fn reads_plain_and_gzipped_files() {
        let expected = Idx {
            shape: vec![2, 3],
            data: b"abcdef".to_vec(),
        };
        assert_eq!(read(GOOD, "").unwrap(), expected);
        let packed = include_bytes!("testdata/images-idx2-ubyte.gz");
        assert_eq!(read(packed, "").unwrap(), expected);
    }

    #[test]
    fn truncated_files_are_refused_wherever_they_end() {
        for end in 0..GOOD.len() {
            assert!(fault(&GOOD[..end]).contains("half downloaded?"), "{end}");
        }
        let packed = include_bytes!("testdata/images-idx2-ubyte.gz");
        for end in 2..packed.len() {
            fault(&packed[..end]);
        }
    }

    #[test]
    fn lying_lengths_and_wrong_types_are_refused() {
        let huge = [b"\0\0\x08\x04".as_slice(), &[0xff; 16], b"x"].concat();
        assert!(fault(&huge).contains("1 follow"));
        assert!(fault(&[GOOD, b"g"].concat()).contains("7 follow"));
        assert!(fault(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0").contains("0x0d"));
        assert!(fault(b"\x89PNG\r\n\x1a\n").contains("not an IDX file"));
        assert!(fault(b"<html>").contains("not an IDX file"));
    }
}

//! Image decoding.

use clip_model::preprocess::{DecodeOptions, ImageError};
use image::DynamicImage;

use super::DataError;

/// Decodes an image file in memory with the default options.
///
/// The format is detected from content, never from the name. EXIF orientation is not applied, as
/// in PIL's `Image.open`.
///
/// # Errors
/// [`DataError::Image`] with `name` if the bytes are not an image, or a corrupt one;
/// [`DataError::TooManyPixels`].
pub fn decode(bytes: &[u8], name: &str) -> Result<DynamicImage, DataError> {
    decode_with(bytes, name, DecodeOptions::default())
}

/// Decodes an image file in memory.
///
/// # Errors
/// See [`decode`].
pub fn decode_with(
    bytes: &[u8],
    name: &str,
    options: DecodeOptions,
) -> Result<DynamicImage, DataError> {
    clip_model::preprocess::decode_with(bytes, name, options).map_err(|error| {
        let reason = match error {
            ImageError::TooLarge {
                name,
                width,
                height,
                maximum,
            } => {
                return DataError::TooManyPixels {
                    name,
                    width,
                    height,
                    maximum,
                };
            }
            ImageError::Empty { .. } => "the file is empty".to_owned(),
            ImageError::CutShort { .. } => "the file is truncated".to_owned(),
            ImageError::Corrupt { format, reason, .. } => format!("{format}: {reason}"),
            other => other.to_string(),
        };
        DataError::Image {
            name: name.to_owned(),
            reason,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrupt_bytes_are_an_error_that_names_the_image() {
        for bytes in [&b""[..], b"not an image", b"\x89PNG\r\n\x1a\n\0\0"] {
            let error = decode(bytes, "train/cat/1.png").unwrap_err().to_string();
            assert!(error.contains("train/cat/1.png"), "{error}");
            assert!(error.starts_with("cannot decode image"), "{error}");
        }
    }
}

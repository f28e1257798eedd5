//! Image decoding.

use image::DynamicImage;

use super::DataError;

/// Decodes an image file in memory.
///
/// The format is detected from content, never from the name. EXIF orientation is not applied, as
/// in PIL's `Image.open`.
///
/// # Errors
/// [`DataError::Image`] with `name` if the bytes are not an image, or a corrupt one.
pub fn decode(bytes: &[u8], name: &str) -> Result<DynamicImage, DataError> {
    clip_model::preprocess::decode(bytes, name).map_err(|error| DataError::Image {
        name: name.to_owned(),
        reason: error.to_string(),
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
        }
    }
}

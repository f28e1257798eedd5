//! From the bytes of an image file to its pixels.

use image::DynamicImage;

use super::DataError;

/// Decodes an image file held in memory. The kind of file is told from its content, never from
/// its name. An EXIF orientation is not applied, as in PIL's `Image.open`.
///
/// # Errors
/// [`DataError::Image`] with `name` when the bytes are no image, or a broken one.
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

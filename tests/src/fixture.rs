//! Tensors of the fixtures in `tests/data`, and comparisons with them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use clip_model::TokenBatch;
use image::RgbImage;
use safetensors::{Dtype, SafeTensors};

/// Returns the path of `tests/data`.
pub fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

/// A tensor of a fixture.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Number format in the file.
    pub dtype: Dtype,
    bytes: Vec<u8>,
}

impl StoredTensor {
    /// Returns the bytes of the values.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the values of an `f32` tensor.
    ///
    /// # Panics
    /// If the tensor has another type.
    pub fn f32(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        let values = self.bytes.chunks_exact(4);
        values
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    /// Returns the values of an `i64` tensor as indices.
    ///
    /// # Panics
    /// If the tensor has another type, or a value is negative.
    pub fn indices(&self) -> Vec<usize> {
        assert_eq!(self.dtype, Dtype::I64);
        let values = self.bytes.chunks_exact(8);
        values
            .map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")))
            .map(|i| usize::try_from(i).expect("an index is not negative"))
            .collect()
    }

    /// Returns the values of an `f64` tensor.
    ///
    /// # Panics
    /// If the tensor has another type.
    pub fn f64(&self) -> Vec<f64> {
        assert_eq!(self.dtype, Dtype::F64);
        let (values, _) = self.bytes.as_chunks::<8>();
        values.iter().map(|b| f64::from_le_bytes(*b)).collect()
    }

    /// Returns the images of a `u8` tensor `[n, 3, height, width]`.
    ///
    /// # Panics
    /// If the tensor has another type or shape.
    pub fn images(&self) -> Vec<RgbImage> {
        assert_eq!(self.dtype, Dtype::U8);
        let [_, 3, height, width] = self.shape[..] else {
            panic!("images are [n, 3, height, width], not {:?}", self.shape);
        };
        let plane = height * width;
        let image = |planes: &[u8]| {
            RgbImage::from_fn(width as u32, height as u32, |x, y| {
                let at = y as usize * width + x as usize;
                image::Rgb([planes[at], planes[plane + at], planes[2 * plane + at]])
            })
        };
        self.bytes.chunks_exact(3 * plane).map(image).collect()
    }

    /// Returns some images of a `u8` tensor as pixels `(byte − 127.5) / 64`.
    ///
    /// # Shapes
    /// - stored: `[n, channels, height, width]`
    /// - output: `[images, channels, height, width]`
    ///
    /// # Panics
    /// If the tensor has another type or shape, or an index is too large.
    pub fn pixels(&self, images: &[usize], device: &Device) -> Tensor<4> {
        assert_eq!(self.dtype, Dtype::U8);
        let [_, channels, height, width] = self.shape[..] else {
            panic!("images have four dimensions, not {:?}", self.shape);
        };
        let size = channels * height * width;
        let values: Vec<f32> = images
            .iter()
            .flat_map(|i| &self.bytes[i * size..(i + 1) * size])
            .map(|byte| (f32::from(*byte) - 127.5) / 64.0)
            .collect();
        Tensor::from_data(
            TensorData::new(values, [images.len(), channels, height, width]),
            device,
        )
    }

    /// Returns all images as pixels; see [`pixels`](Self::pixels).
    ///
    /// # Panics
    /// If the tensor has another type or shape.
    pub fn all_pixels(&self, device: &Device) -> Tensor<4> {
        self.pixels(&(0..self.shape[0]).collect::<Vec<_>>(), device)
    }
}

/// The tensors of a safetensors file.
#[derive(Clone, Debug)]
pub struct Fixture {
    path: PathBuf,
    /// The tensors by name.
    pub tensors: BTreeMap<String, StoredTensor>,
    /// The texts in the metadata of the file, if any.
    pub texts: Vec<String>,
}

impl Fixture {
    /// Adds the tensors of another fixture.
    pub fn with(mut self, other: Self) -> Self {
        self.tensors.extend(other.tensors);
        self
    }

    /// Reads a safetensors file.
    ///
    /// # Panics
    /// If the file does not exist or is malformed.
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("the header is valid");
        let texts = metadata.metadata().as_ref().and_then(|m| m.get("texts"));
        let texts = texts.map_or_else(Vec::new, |json| {
            serde_json::from_str(json).expect("texts are a list")
        });
        let file =
            SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tensors = file
            .iter()
            .map(|(name, view)| {
                let stored = StoredTensor {
                    shape: view.shape().to_vec(),
                    dtype: view.dtype(),
                    bytes: view.data().to_vec(),
                };
                (name.to_owned(), stored)
            })
            .collect();
        Self {
            path: path.to_owned(),
            tensors,
            texts,
        }
    }

    /// Returns a tensor by name.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn get(&self, name: &str) -> &StoredTensor {
        let stored = self.tensors.get(name);
        stored.unwrap_or_else(|| panic!("{} has no tensor {name}", self.path.display()))
    }

    /// Returns the token rows `input_ids`, truncated to `lengths`.
    ///
    /// # Panics
    /// If the file has no such tensors.
    pub fn tokens(&self) -> TokenBatch {
        let ids = self.get("input_ids");
        let width = ids.shape[1];
        let ids: Vec<u32> = ids.indices().into_iter().map(|i| i as u32).collect();
        let rows = ids.chunks(width).zip(self.get("lengths").indices());
        TokenBatch {
            ids: rows.map(|(row, length)| row[..length].to_vec()).collect(),
        }
    }
}

/// Returns `‖a − b‖ / ‖b‖` in `f64`, or the norm of `a` if `b` is zero.
///
/// # Panics
/// If the lengths differ.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference = a
        .iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum::<f64>()
        .sqrt();
    let norm = b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>().sqrt();
    if norm == 0.0 {
        difference
    } else {
        difference / norm
    }
}

/// Returns the largest absolute difference, infinity if one is NaN.
///
/// # Panics
/// If the lengths differ.
pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // Not `f32::max` alone, which ignores NaN.
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(
            0.0,
            |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) },
        )
}

/// Returns the values of a tensor in row-major order.
///
/// # Panics
/// If the device cannot be read.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

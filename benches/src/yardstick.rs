//! Baseline matrix products that every benchmark also measures. Figures of two machines compare as
//! ratios to these products, not as times.

use std::fmt;

use burn::tensor::Device;
use divan::Bencher;

use crate::fixtures::values;

/// A product `[rows, inner] · [inner, columns]` in `f32` on Burn's host backend.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Rows of the left matrix.
    pub rows: usize,
    /// Columns of the left matrix and rows of the right one.
    pub inner: usize,
    /// Columns of the right matrix.
    pub columns: usize,
}

/// Products of the first layer of an MLP: of the embedded model on 64 images, of ViT-B/16 on two.
pub const PRODUCTS: [Product; 2] = [
    Product {
        rows: 64 * 17,
        inner: 128,
        columns: 512,
    },
    Product {
        rows: 2 * 197,
        inner: 768,
        columns: 3072,
    },
];

impl Product {
    /// Benchmarks the product.
    pub fn bench(self, bencher: Bencher<'_, '_>) {
        let device = Device::flex();
        let left = values([self.rows, self.inner], 1, &device);
        let right = values([self.inner, self.columns], 2, &device);
        bencher.bench_local(|| left.clone().matmul(right.clone()));
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.rows, self.inner, self.columns)
    }
}

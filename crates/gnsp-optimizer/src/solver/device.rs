//! Krylov vector space on a device, in `f32`.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use faer::{Mat, MatRef};

use super::{host::normal, krylov::VectorSpace};
use crate::{GnspError, Gram};

/// A group as a dense matrix in `f32`, whose vectors are on a device.
pub(super) struct DeviceSpace {
    /// The matrix divided by its largest entry.
    matrix: Tensor<2>,
    largest: f32,
}

impl DeviceSpace {
    pub(super) fn new(gram: &Gram, group: usize, device: &Device) -> Self {
        let n = gram.features();
        // The largest entry of a positive semi-definite matrix is on its diagonal.
        let largest = gram.diagonal_of(group).fold(f32::MIN_POSITIVE, f32::max);
        let mut matrix = vec![0.0; n * n];
        gram.for_upper(group, |row, column, value| {
            matrix[row * n + column] = value / largest;
            matrix[column * n + row] = value / largest;
        });
        Self {
            matrix: upload(matrix, [n, n], &device.clone().inner()),
            largest,
        }
    }

    /// Copies a small matrix to the device.
    fn upload_small(&self, s: MatRef<'_, f64>) -> Tensor<2> {
        let (rows, columns) = (s.nrows(), s.ncols());
        let mut values = Vec::with_capacity(rows * columns);
        for i in 0..rows {
            values.extend((0..columns).map(|j| s[(i, j)] as f32));
        }
        upload(values, [rows, columns], &self.matrix.device())
    }
}

fn upload(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::<2>::from_data(TensorData::new(values, shape), device).cast(FloatDType::F32)
}

fn read(x: Tensor<2>) -> Result<Vec<f32>, GnspError> {
    x.try_into_vec_as()
        .map_err(|error| GnspError::Device(error.to_string()))
}

impl VectorSpace for DeviceSpace {
    type Block = Tensor<2>;

    fn features(&self) -> usize {
        self.matrix.dims()[0]
    }

    fn precision(&self) -> f64 {
        f64::from(f32::EPSILON)
    }

    fn scale(&self) -> f64 {
        f64::from(self.largest)
    }

    fn random(&self, columns: usize, seed: u64) -> Tensor<2> {
        let n = self.features();
        let values = normal(n * columns, seed)
            .iter()
            .map(|x| *x as f32)
            .collect();
        upload(values, [n, columns], &self.matrix.device())
    }

    fn apply(&self, x: &Tensor<2>) -> Tensor<2> {
        self.matrix.clone().matmul(x.clone())
    }

    fn dot(&self, a: &Tensor<2>, b: &Tensor<2>) -> Result<Mat<f64>, GnspError> {
        let product = a.clone().transpose().matmul(b.clone());
        let columns = product.dims()[1];
        let values = read(product)?;
        Ok(Mat::from_fn(
            values.len() / columns.max(1),
            columns,
            |i, j| f64::from(values[i * columns + j]),
        ))
    }

    fn minus(&self, x: &Tensor<2>, a: &Tensor<2>, s: MatRef<'_, f64>) -> Tensor<2> {
        x.clone() - self.times(a, s)
    }

    fn times(&self, a: &Tensor<2>, s: MatRef<'_, f64>) -> Tensor<2> {
        a.clone().matmul(self.upload_small(s))
    }

    fn append(&self, a: Option<Tensor<2>>, b: Tensor<2>) -> Tensor<2> {
        match a {
            Some(a) => Tensor::cat(vec![a, b], 1),
            None => b,
        }
    }

    fn read(&self, x: &Tensor<2>) -> Result<Vec<f32>, GnspError> {
        read(x.clone())
    }
}

//! The second moments of a batch of rows.

use burn::tensor::{FloatDType, Tensor};
use faer::{MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::GnspError;

/// Second moments `XᵀX` of the rows of each group.
#[derive(Clone, Debug)]
// A tensor handle is some hundred bytes; there is one of these for each layer.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Moment {
    /// `[groups, features, features]`, where the rows are.
    Device(Tensor<3>),
    /// Upper triangles, row by row.
    Host(Packed),
}

/// Upper triangles on the host, row by row, one after the other for every group.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    pub groups: usize,
    pub features: usize,
    pub values: Vec<f32>,
}

/// Memory that one product after the other uses: the system need not clear it anew for each.
#[derive(Default)]
pub(crate) struct Scratch {
    square: Vec<f32>,
    spread: Vec<f32>,
}

/// There is nothing in it that a copy needs.
impl Clone for Scratch {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scratch")
    }
}

impl Moment {
    /// Of `rows` `[groups, N, features]`, none of them zero. On the host it is computed as a
    /// symmetric matrix, by half of the products, and kept as a triangle, unless it shall be
    /// `whole`.
    pub fn of(rows: Tensor<3>, whole: bool, scratch: &mut Scratch) -> Self {
        let rows = rows.inner().cast(FloatDType::F32);
        let [groups, count, features] = rows.dims();
        if whole || !is_host(&rows) {
            return Self::Device(match count {
                0 => Tensor::zeros([groups, features, features], &rows.device()),
                _ => rows.clone().swap_dims(1, 2).matmul(rows),
            });
        }
        let data = rows.into_data();
        let mut values = Vec::with_capacity(groups * features * (features + 1) / 2);
        let Scratch { square, spread } = scratch;
        if square.len() < features * features {
            square.resize(features * features, 0.0);
        }
        let square = &mut square[..features * features];
        let numbers = data.as_slice::<f32>().unwrap_or_default();
        for group in 0..groups {
            let rows = &numbers[group * count * features..(group + 1) * count * features];
            let x = spaced(rows, count, features, spread);
            // The lower triangle by columns is the upper one by rows.
            let out = MatMut::from_column_major_slice_mut(square, features, features);
            host_gemm::gram_lower(out, x, Par::rayon(0));
            for (i, row) in square.chunks_exact(features).enumerate() {
                values.extend_from_slice(&row[i..]);
            }
        }
        Self::Host(Packed {
            groups,
            features,
            values,
        })
    }

    pub fn groups(&self) -> usize {
        match self {
            Self::Device(moment) => moment.dims()[0],
            Self::Host(packed) => packed.groups,
        }
    }

    /// Of the same groups, zero.
    pub fn zeros_like(&self) -> Self {
        match self {
            Self::Device(moment) => Self::Device(moment.zeros_like()),
            Self::Host(packed) => Self::Host(Packed {
                values: vec![0.0; packed.values.len()],
                ..*packed
            }),
        }
    }

    /// The largest absolute entry, and the Frobenius norm of the matrices divided by it: squares of
    /// the entries themselves leave the range of `f32` where the entries do not. Waits for the
    /// device.
    pub fn size(&self) -> Result<(f32, f32), GnspError> {
        let packed = match self {
            Self::Host(packed) => packed,
            Self::Device(moment) => {
                let largest = moment.clone().abs().max();
                let scaled =
                    moment.clone() / largest.clone().clamp_min(f32::MIN_POSITIVE).unsqueeze();
                let norm = scaled.square().sum().sqrt();
                let read: Vec<f32> = Tensor::cat(vec![largest, norm], 0)
                    .try_into_vec_as()
                    .map_err(device_error)?;
                let [largest, norm] = read[..] else {
                    let got = read.len();
                    return Err(GnspError::Device(format!("asked for 2 numbers, got {got}")));
                };
                return Ok((largest, norm));
            }
        };
        // Rows are summed apart and then in order, so that the sum is the same however the work was
        // shared out. Squares of `f32` do not leave the range of `f64`, and a sum of them is finite
        // where all numbers are.
        let sizes: Vec<(f32, f64)> = packed
            .rows()
            .into_par_iter()
            .map(|row| {
                let square = |x: f32| f64::from(x) * f64::from(x);
                let mut largest = [0.0f32; LANES];
                let mut squares = [0.0f64; LANES];
                let lanes = row.chunks_exact(LANES);
                let rest = lanes.remainder();
                for some in lanes.chain((!rest.is_empty()).then_some(rest)) {
                    for ((largest, squares), x) in largest.iter_mut().zip(&mut squares).zip(some) {
                        *largest = largest.max(x.abs());
                        *squares += square(*x);
                    }
                }
                let largest = largest.into_iter().fold(0.0, f32::max);
                (largest, 2.0 * squares.iter().sum::<f64>() - square(row[0]))
            })
            .collect();
        let norm = sizes.iter().map(|(_, squares)| squares).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Ok((f32::NAN, f32::NAN));
        }
        let largest = sizes.iter().fold(0.0, |most, (one, _)| one.max(most));
        let divisor = f64::from(largest.max(f32::MIN_POSITIVE));
        Ok((largest, (norm / divisor) as f32))
    }

    /// Adds another, divided by both. On an error it is what it was.
    pub fn add_divided(&mut self, other: Self, largest: f32, norm: f32) -> Result<(), GnspError> {
        let (Self::Host(own), Self::Host(other)) = (&mut *self, &other) else {
            return self.add(other.divided(largest, norm));
        };
        let largest = largest.max(f32::MIN_POSITIVE);
        let pairs = own.values.par_iter_mut().zip(&other.values);
        pairs.for_each(|(own, other)| *own += *other / largest / norm);
        Ok(())
    }

    /// Divided by both.
    pub fn divided(self, largest: f32, norm: f32) -> Self {
        match self {
            Self::Device(moment) => Self::Device(moment / largest.max(f32::MIN_POSITIVE) / norm),
            Self::Host(mut packed) => {
                let largest = largest.max(f32::MIN_POSITIVE);
                let values = packed.values.par_iter_mut();
                values.for_each(|x| *x = *x / largest / norm);
                Self::Host(packed)
            }
        }
    }

    /// Adds another of the same groups and features. On an error it is what it was.
    pub fn add(&mut self, other: Self) -> Result<(), GnspError> {
        match (&mut *self, other) {
            (Self::Device(own), Self::Device(other)) => {
                *own = own.clone() + other.to_device(&own.device());
            }
            (Self::Host(own), other) => own.add(&other.packed()?),
            (Self::Device(own), Self::Host(other)) => {
                let mut sum = Self::Device(own.clone()).packed()?;
                sum.add(&other);
                *self = Self::Host(sum);
            }
        }
        Ok(())
    }

    /// Reads the moments back. Of mirrored entries that differ by rounding the mean is taken.
    fn packed(self) -> Result<Packed, GnspError> {
        match self {
            Self::Host(packed) => Ok(packed),
            Self::Device(moment) => {
                let [groups, features, _] = moment.dims();
                let values = Self::Device(moment).gram()?.packed().to_vec();
                Ok(Packed {
                    groups,
                    features,
                    values,
                })
            }
        }
    }

    /// The Gram matrix they are.
    pub fn gram(self) -> Result<crate::Gram, GnspError> {
        match self {
            Self::Host(packed) => {
                crate::Gram::from_packed(packed.groups, packed.features, packed.values)
            }
            Self::Device(moment) => {
                let [groups, features, _] = moment.dims();
                let matrices: Vec<f32> = moment.try_into_vec_as().map_err(device_error)?;
                crate::Gram::from_groups(groups, features, &matrices)
            }
        }
    }
}

/// Sums of a row that are made side by side.
const LANES: usize = 8;

/// A row that is a multiple of so many numbers long makes the entries of a column share few places
/// of the processor's cache.
const PAGE: usize = 1024;
/// Numbers between such rows: a line of the cache.
const APART: usize = 16;

/// `rows` as a matrix, copied into `spread` where their length would slow the product down: at 3072
/// features and 3,152 rows it takes 473 ms with the copy and 657 ms without (two processors,
/// medians of five).
fn spaced<'a>(
    rows: &'a [f32],
    count: usize,
    features: usize,
    spread: &'a mut Vec<f32>,
) -> MatRef<'a, f32> {
    if features == 0 || !features.is_multiple_of(PAGE) {
        return MatRef::from_row_major_slice(rows, count, features);
    }
    let width = features + APART;
    if spread.len() < count * width {
        spread.resize(count * width, 0.0);
    }
    let spread = &mut spread[..count * width];
    let pairs = rows.par_chunks_exact(features);
    let pairs = pairs.zip(spread.par_chunks_exact_mut(width));
    pairs.for_each(|(from, to)| to[..features].copy_from_slice(from));
    MatRef::from_row_major_slice(spread, count, width).subcols(0, features)
}

impl Packed {
    fn add(&mut self, other: &Self) {
        let pairs = self.values.par_iter_mut().zip(&other.values);
        pairs.for_each(|(own, other)| *own += other);
    }

    /// The rows of all triangles, each from its diagonal entry on.
    fn rows(&self) -> Vec<&[f32]> {
        let mut rest = self.values.as_slice();
        let mut rows = Vec::with_capacity(self.groups * self.features);
        for row in 0..self.groups * self.features {
            let (one, behind) = rest.split_at(self.features - row % self.features);
            rows.push(one);
            rest = behind;
        }
        rows
    }
}

fn is_host(rows: &Tensor<3>) -> bool {
    #[cfg(feature = "flex")]
    {
        rows.device() == burn::tensor::Device::flex()
    }
    #[cfg(not(feature = "flex"))]
    {
        let _ = rows;
        false
    }
}

pub(crate) fn device_error(error: impl std::fmt::Display) -> GnspError {
    GnspError::Device(error.to_string())
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::test_utils::grid;

    fn rows() -> Tensor<3> {
        let rows = Tensor::cat(
            vec![
                grid(40, 9, 1.0, 0.7).unsqueeze::<3>(),
                grid(40, 9, 3.0, 1.3).unsqueeze(),
            ],
            0,
        );
        Tensor::from_data(rows.into_data(), &burn::tensor::Device::flex())
    }

    #[test]
    fn rows_are_the_same_with_room_between_them() {
        let numbers: Vec<f32> = (0..3 * PAGE).map(|i| i as f32).collect();
        let mut spread = Vec::new();
        for (count, features) in [(3, PAGE), (6, PAGE / 2), (0, PAGE), (0, 0)] {
            let x = spaced(&numbers[..count * features], count, features, &mut spread);
            assert_eq!((x.nrows(), x.ncols()), (count, features));
            for i in 0..count {
                for j in 0..features {
                    assert_eq!(x[(i, j)], numbers[i * features + j]);
                }
            }
        }
        // Of the matrix with room and rows; the ones after it needed none.
        assert_eq!(spread.len(), 3 * (PAGE + APART));
    }

    #[test]
    fn triangles_are_those_of_the_product() {
        let product = Moment::Device(rows().swap_dims(1, 2).matmul(rows()));
        let triangles = Moment::of(rows(), false, &mut Scratch::default());
        assert!(matches!(triangles, Moment::Host(_)));
        assert_eq!(triangles.groups(), 2);
        let (largest, norm) = product.size().unwrap();
        let (ours, our_norm) = triangles.size().unwrap();
        assert!((largest - ours).abs() < 1e-5 * largest);
        assert!((norm - our_norm).abs() < 1e-5 * norm);
        let want = product.packed().unwrap().values;
        let got = triangles.packed().unwrap().values;
        assert_eq!(want.len(), got.len());
        for (want, got) in want.iter().zip(&got) {
            assert!((want - got).abs() < 1e-5 * largest, "{got} for {want}");
        }
    }

    #[test]
    fn moments_of_both_kinds_add_up() {
        let mut sum = Moment::Device(rows().swap_dims(1, 2).matmul(rows()));
        sum.add(Moment::of(rows(), false, &mut Scratch::default()))
            .unwrap();
        let sum = sum.packed().unwrap();
        let one = Moment::of(rows(), false, &mut Scratch::default())
            .packed()
            .unwrap();
        for (sum, one) in sum.values.iter().zip(&one.values) {
            assert!((sum - 2.0 * one).abs() <= 1e-4 * one.abs().max(1.0));
        }
    }

    #[test]
    fn what_is_not_finite_has_no_size() {
        let rows = rows() * f32::NAN;
        let (largest, norm) = Moment::of(rows, false, &mut Scratch::default())
            .size()
            .unwrap();
        assert!(largest.is_nan() && norm.is_nan());
    }

    #[test]
    fn entries_whose_squares_vanish_have_a_norm() {
        let moment = Moment::of(rows() * 1e-17, false, &mut Scratch::default());
        let (largest, norm) = moment.size().unwrap();
        let (_, want) = Moment::of(rows(), false, &mut Scratch::default())
            .size()
            .unwrap();
        assert!(largest > 0.0);
        assert!((norm - want).abs() < 1e-4 * want);
    }
}

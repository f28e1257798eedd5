//! Gram matrices: what a layer has seen, as the uncentred second moment of its input rows.

use burn::tensor::{FloatDType, Tensor};
use serde::{Deserialize, Serialize};

/// How much two mirrored entries may differ, relative to the largest entry, before a matrix is
/// rejected as not symmetric. Matrix products in `f32` stay two orders of magnitude below.
const ASYMMETRY: f32 = 1e-3;

/// What is wrong with the rows or the numbers of a Gram matrix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GramError {
    /// The rows have another width than the accumulator.
    #[error("rows have {found} features, the Gram matrix has {expected}")]
    Width {
        /// Features of the accumulator.
        expected: usize,
        /// Features of the rows.
        found: usize,
    },
    /// A NaN or an infinity, in the rows or made by squaring them in `f32`.
    #[error("the Gram matrix is not finite")]
    NotFinite,
    /// A Gram matrix of no features.
    #[error("a Gram matrix needs at least one feature")]
    NoFeatures,
    /// Finished before a batch was added.
    #[error("no batch was added to the Gram matrix")]
    NoBatches,
    /// The matrix does not have `features · features` entries.
    #[error("a Gram matrix of {features} features does not have {entries} entries")]
    Size {
        /// The number of features.
        features: usize,
        /// The entries given.
        entries: usize,
    },
    /// Two mirrored entries differ by more than rounding.
    #[error("entries ({row}, {column}) and ({column}, {row}) of the Gram matrix differ")]
    NotSymmetric {
        /// Row of the first entry.
        row: usize,
        /// Column of the first entry.
        column: usize,
    },
    /// A negative diagonal entry: no sum of squares is negative.
    #[error("diagonal entry {index} of the Gram matrix is negative")]
    NegativeDiagonal {
        /// Index of the entry.
        index: usize,
    },
    /// The device failed to compute or to hand over a value.
    #[error("the device could not be read: {0}")]
    Device(String),
}

/// What is done to the second moment of one batch before it is added to the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchNorm {
    /// `"frobenius"`: divide by its own Frobenius norm, so that every batch has equal weight, a
    /// smaller last one too. The published GNSP code does this
    /// (GNSP `src/models/get_data_matrix.py:86-92`).
    #[default]
    Frobenius,
    /// `"none"`: leave it, so that every row has equal weight.
    None,
}

/// What is done to the sum over the batches of a task when it is finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskNorm {
    /// `"frobenius"`: divide by its own Frobenius norm, so that every task has equal weight. The
    /// published GNSP code does this (GNSP `src/models/get_data_matrix.py:86-116`).
    #[default]
    Frobenius,
    /// `"none"`: leave it.
    None,
}

/// A symmetric matrix of second moments on the host.
///
/// Entries are finite and the diagonal is not negative: [`Gram::from_matrix`] checks it.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    features: usize,
    matrix: Vec<f32>,
}

impl Gram {
    /// Makes a Gram matrix of `features · features` row-major entries.
    ///
    /// Mirrored entries that differ by rounding are replaced by their mean.
    ///
    /// # Errors
    ///
    /// No features, a wrong number of entries, an entry that is not finite, mirrored entries that
    /// differ by more than rounding, or a negative diagonal entry.
    pub fn from_matrix(features: usize, mut matrix: Vec<f32>) -> Result<Self, GramError> {
        if features == 0 {
            return Err(GramError::NoFeatures);
        }
        if features.checked_mul(features) != Some(matrix.len()) {
            return Err(GramError::Size {
                features,
                entries: matrix.len(),
            });
        }
        if !matrix.iter().all(|x| x.is_finite()) {
            return Err(GramError::NotFinite);
        }
        let largest = matrix.iter().fold(0f32, |most, x| most.max(x.abs()));
        for row in 0..features {
            if matrix[row * features + row] < 0.0 {
                return Err(GramError::NegativeDiagonal { index: row });
            }
            for column in row + 1..features {
                let (upper, lower) = (row * features + column, column * features + row);
                let (a, b) = (matrix[upper], matrix[lower]);
                // In f64: the difference and the sum of two finite f32 may overflow.
                if (f64::from(a) - f64::from(b)).abs() > f64::from(ASYMMETRY) * f64::from(largest) {
                    return Err(GramError::NotSymmetric { row, column });
                }
                let mean = ((f64::from(a) + f64::from(b)) / 2.0) as f32;
                matrix[upper] = mean;
                matrix[lower] = mean;
            }
        }
        Ok(Self { features, matrix })
    }

    /// The number of input features `n`.
    pub fn features(&self) -> usize {
        self.features
    }

    /// The `n · n` entries, row-major.
    pub fn matrix(&self) -> &[f32] {
        &self.matrix
    }

    /// The Frobenius norm.
    pub fn norm(&self) -> f64 {
        self.matrix
            .iter()
            .map(|x| f64::from(*x) * f64::from(*x))
            .sum::<f64>()
            .sqrt()
    }

    /// This matrix divided by its Frobenius norm; a zero matrix stays as it is.
    pub fn normalized(mut self) -> Self {
        let norm = self.norm();
        if norm > 0.0 {
            for x in &mut self.matrix {
                *x = (f64::from(*x) / norm) as f32;
            }
        }
        self
    }

    /// The sum of two Gram matrices.
    ///
    /// # Errors
    ///
    /// Different numbers of features, or a sum that overflows `f32`.
    pub fn plus(mut self, other: &Gram) -> Result<Self, GramError> {
        if self.features != other.features {
            return Err(GramError::Width {
                expected: self.features,
                found: other.features,
            });
        }
        for (x, y) in self.matrix.iter_mut().zip(&other.matrix) {
            *x += y;
        }
        if !self.matrix.iter().all(|x| x.is_finite()) {
            return Err(GramError::NotFinite);
        }
        Ok(self)
    }
}

/// Sums the second moments `XᵀX` of batches of rows, on the device of the rows.
///
/// With both norms the result is `A/‖A‖_F` for `A = Σ_b X_bᵀX_b / ‖X_bᵀX_b‖_F`
/// (GNSP `src/models/get_data_matrix.py:86-116`). All arithmetic on the device is in `f32`.
#[derive(Clone, Debug)]
pub struct GramAccumulator {
    features: usize,
    batch_norm: BatchNorm,
    sum: Option<Tensor<2>>,
    batches: usize,
    zero_batches: usize,
}

impl GramAccumulator {
    /// Starts an empty sum for rows of `features` numbers.
    pub fn new(features: usize, batch_norm: BatchNorm) -> Self {
        Self {
            features,
            batch_norm,
            sum: None,
            batches: 0,
            zero_batches: 0,
        }
    }

    /// Adds the second moment of one batch.
    ///
    /// Two numbers are read back from the device to check it, so this waits for the device. A
    /// batch whose second moment is zero (no rows, only zeros, or values so small that their
    /// squares vanish in `f32`) adds nothing; it is counted in
    /// [`zero_batches`](Self::zero_batches). Rows on an autodiff device are taken off it.
    ///
    /// # Shapes
    ///
    /// - rows: `[N, features]`
    ///
    /// # Errors
    ///
    /// Rows of another width, a second moment that is not finite, or a device that cannot be
    /// read. The sum is then what it was before.
    pub fn add(&mut self, rows: Tensor<2>) -> Result<(), GramError> {
        let [count, width] = rows.dims();
        if width != self.features {
            return Err(GramError::Width {
                expected: self.features,
                found: width,
            });
        }
        if width == 0 {
            return Err(GramError::NoFeatures);
        }
        if count == 0 {
            self.batches += 1;
            self.zero_batches += 1;
            return Ok(());
        }
        let rows = rows.inner().cast(FloatDType::F32);
        let moment = rows.clone().transpose().matmul(rows);
        // The norm is taken of the matrix divided by its largest entry: squares of the entries
        // themselves leave the range of f32 where the entries do not.
        let largest = moment.clone().abs().max();
        let scaled = moment.clone() / largest.clone().clamp_min(f32::MIN_POSITIVE).unsqueeze();
        let norm = scaled.clone().square().sum().sqrt();
        let read: Vec<f32> = Tensor::cat(vec![largest, norm], 0)
            .try_into_vec_as()
            .map_err(|error| GramError::Device(error.to_string()))?;
        let [largest, norm] = read[..] else {
            return Err(GramError::Device(format!(
                "asked for 2 numbers, got {}",
                read.len()
            )));
        };
        if !largest.is_finite() || !norm.is_finite() {
            return Err(GramError::NotFinite);
        }
        self.batches += 1;
        // Below one (with room for an inexact division) only when the largest entry was below the smallest normal number.
        if norm < 0.5 {
            self.zero_batches += 1;
            return Ok(());
        }
        let term = match self.batch_norm {
            BatchNorm::Frobenius => scaled / norm,
            BatchNorm::None => moment,
        };
        self.sum = Some(match self.sum.take() {
            Some(sum) => sum + term,
            None => term,
        });
        Ok(())
    }

    /// The number of batches added, the zero ones included.
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// The number of batches that added nothing.
    pub fn zero_batches(&self) -> usize {
        self.zero_batches
    }

    /// Reads the sum back. A sum of only zero batches is a zero matrix.
    ///
    /// # Errors
    ///
    /// No batch was added, the sum overflowed `f32`, or the device cannot be read.
    pub fn finish(self, task_norm: TaskNorm) -> Result<Gram, GramError> {
        if self.batches == 0 {
            return Err(GramError::NoBatches);
        }
        let matrix = match self.sum {
            Some(sum) => sum
                .try_into_vec_as()
                .map_err(|error| GramError::Device(error.to_string()))?,
            None => vec![0.0; self.features * self.features],
        };
        let gram = Gram::from_matrix(self.features, matrix)?;
        Ok(match task_norm {
            TaskNorm::Frobenius => gram.normalized(),
            TaskNorm::None => gram,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;

    /// Batches and constants of `tests/reference/projector.py`.
    fn accumulate(batch_norm: BatchNorm) -> GramAccumulator {
        let mut accumulator = GramAccumulator::new(3, batch_norm);
        accumulator.add(grid(4, 3, 1.0, 0.7)).unwrap();
        accumulator.add(grid(2, 3, 30.0, 1.1)).unwrap();
        accumulator
    }

    #[test]
    fn both_norms_match_numpy() {
        let gram = accumulate(BatchNorm::Frobenius)
            .finish(TaskNorm::Frobenius)
            .unwrap();
        assert_close(
            gram.matrix(),
            &[
                0.521750215,
                0.448865458,
                -0.000689653121,
                0.448865458,
                0.472768882,
                0.137363214,
                -0.000689653121,
                0.137363214,
                0.252126242,
            ],
            1e-6,
        );
    }

    #[test]
    fn without_norms_it_is_the_plain_second_moment() {
        let gram = accumulate(BatchNorm::None).finish(TaskNorm::None).unwrap();
        assert_close(
            gram.matrix(),
            &[
                1531.74144,
                1254.52516,
                -392.53371,
                1254.52516,
                1038.77736,
                -310.617382,
                -392.53371,
                -310.617382,
                111.982949,
            ],
            2e-3,
        );
    }

    #[test]
    fn frobenius_norms_forget_the_scale() {
        for scale in [1e-15, 1e-6, 1.0, 1e6, 1e15] {
            let mut accumulator = GramAccumulator::new(3, BatchNorm::Frobenius);
            accumulator.add(grid(4, 3, scale, 0.7)).unwrap();
            accumulator.add(grid(2, 3, 30.0 * scale, 1.1)).unwrap();
            let gram = accumulator.finish(TaskNorm::Frobenius).unwrap();
            let expected = accumulate(BatchNorm::Frobenius)
                .finish(TaskNorm::Frobenius)
                .unwrap();
            assert_close(gram.matrix(), expected.matrix(), 1e-6);
        }
    }

    #[test]
    fn rejected_rows_leave_the_sum_as_it_was() {
        let mut accumulator = accumulate(BatchNorm::Frobenius);
        let wide = accumulator.add(grid(2, 4, 1.0, 1.0)).unwrap_err();
        assert!(matches!(
            wide,
            GramError::Width {
                expected: 3,
                found: 4
            }
        ));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
            let rows = Tensor::from_floats([[1.0, bad, 0.0], [0.0, 0.0, 2.0]], &device());
            let error = accumulator.add(rows).unwrap_err();
            assert!(matches!(error, GramError::NotFinite), "{bad}: {error}");
        }
        assert_eq!(accumulator.batches(), 2);
        assert_eq!(
            accumulator.finish(TaskNorm::Frobenius).unwrap(),
            accumulate(BatchNorm::Frobenius)
                .finish(TaskNorm::Frobenius)
                .unwrap()
        );
    }

    #[test]
    fn zero_batches_add_nothing_and_are_counted() {
        let mut accumulator = accumulate(BatchNorm::Frobenius);
        accumulator.add(Tensor::zeros([5, 3], &device())).unwrap();
        accumulator.add(Tensor::zeros([0, 3], &device())).unwrap();
        accumulator
            .add(Tensor::full([5, 3], 1e-30, &device()))
            .unwrap();
        assert_eq!((accumulator.batches(), accumulator.zero_batches()), (5, 3));
        assert_eq!(
            accumulator.finish(TaskNorm::Frobenius).unwrap(),
            accumulate(BatchNorm::Frobenius)
                .finish(TaskNorm::Frobenius)
                .unwrap()
        );
    }

    #[test]
    fn only_zero_batches_give_a_zero_gram_and_none_an_error() {
        let mut accumulator = GramAccumulator::new(2, BatchNorm::Frobenius);
        accumulator.add(Tensor::zeros([5, 2], &device())).unwrap();
        let gram = accumulator.finish(TaskNorm::Frobenius).unwrap();
        assert_eq!(gram.matrix(), &[0.0; 4]);
        let empty = GramAccumulator::new(2, BatchNorm::None).finish(TaskNorm::None);
        assert!(matches!(empty, Err(GramError::NoBatches)));
    }

    #[test]
    fn rows_of_the_autodiff_device_are_taken_off_it() {
        let mut accumulator = GramAccumulator::new(3, BatchNorm::Frobenius);
        let rows = grid(4, 3, 1.0, 0.7).autodiff().require_grad();
        accumulator.add(rows).unwrap();
        assert!(!accumulator.sum.unwrap().is_autodiff());
    }

    #[test]
    fn matrices_that_are_no_gram_are_refused() {
        use GramError::*;
        let refuse = |features, matrix: &[f32]| Gram::from_matrix(features, matrix.to_vec());
        assert!(matches!(refuse(0, &[]), Err(NoFeatures)));
        assert!(matches!(refuse(2, &[1.0; 3]), Err(Size { .. })));
        assert!(matches!(refuse(usize::MAX, &[1.0]), Err(Size { .. })));
        assert!(matches!(
            refuse(2, &[1.0, f32::NAN, 0.0, 1.0]),
            Err(NotFinite)
        ));
        assert!(matches!(
            refuse(2, &[1.0, 0.5, 0.0, 1.0]),
            Err(NotSymmetric { row: 0, column: 1 })
        ));
        assert!(matches!(
            refuse(2, &[1.0, 0.0, 0.0, -1.0]),
            Err(NegativeDiagonal { index: 1 })
        ));
        let rounded = refuse(2, &[1.0, 0.5, 0.50001, 1.0]).unwrap();
        assert_eq!(rounded.matrix()[1], rounded.matrix()[2]);
    }
}

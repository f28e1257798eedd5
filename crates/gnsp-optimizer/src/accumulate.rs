//! Gram accumulation over batches, on the device of the inputs.

use burn::tensor::{Int, Tensor};

use crate::moment::{Moment, Scratch, device_error};
use crate::{GnspError, Gram, GramNormalization};

/// Running sum of the second moments `XᵀX` of batches of rows, on the device of the rows.
///
/// With [`GramNormalization::PerBatchAndTask`] the result is `A/‖A‖_F` for
/// `A = Σ_b X_bᵀX_b / ‖X_bᵀX_b‖_F` (GNSP `src/models/get_data_matrix.py:86-116`). The arithmetic on
/// the device is in `f32`. It needs the memory of two matrices, independent of the number of rows.
/// On Burn's host backend only the triangles of the symmetric matrices are computed and stored.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use gnsp_optimizer::{GramAccumulator, GramNormalization};
///
/// let mut accumulator = GramAccumulator::new(2, GramNormalization::None);
/// for batch in [[[1.0, 2.0]], [[3.0, 0.0]]] {
///     accumulator.add(Tensor::from_floats(batch, &Device::default()))?;
/// }
/// assert_eq!(accumulator.finish()?.dense(), [10.0, 2.0, 2.0, 4.0]);
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Debug)]
pub struct GramAccumulator {
    features: usize,
    normalization: GramNormalization,
    sum: Sum,
    full_matrices: bool,
    batches: usize,
    zero_batches: usize,
}

#[derive(Clone, Debug)]
// A tensor handle takes a few hundred bytes, once per layer.
#[allow(clippy::large_enum_variant)]
enum Sum {
    /// `None` before the first batch.
    Dense(Option<Moment>),
    /// The count of each one-hot input.
    Diagonal(Vec<f64>),
}

impl GramAccumulator {
    /// Creates an empty sum for rows of `features` values.
    pub fn new(features: usize, normalization: GramNormalization) -> Self {
        Self::with_sum(features, normalization, Sum::Dense(None))
    }

    /// Creates an empty diagonal sum for the tokens of an embedding, which are one-hot inputs.
    pub fn diagonal(vocabulary: usize, normalization: GramNormalization) -> Self {
        Self::with_sum(
            vocabulary,
            normalization,
            Sum::Diagonal(vec![0.0; vocabulary]),
        )
    }

    fn with_sum(features: usize, normalization: GramNormalization, sum: Sum) -> Self {
        Self {
            features,
            normalization,
            sum,
            full_matrices: false,
            batches: 0,
            zero_batches: 0,
        }
    }

    /// Computes full matrices on Burn's host backend as well, for comparisons.
    ///
    /// The result is the same up to rounding error.
    pub fn with_whole_matrices(mut self) -> Self {
        self.full_matrices = true;
        self
    }

    /// Returns the number of features of a row.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Adds the second moment of a batch.
    ///
    /// This reads two numbers back for validation, so it waits for the device. A batch whose second
    /// moment is zero (no rows, only zeros, or values whose squares underflow `f32`) adds nothing
    /// and is counted in [`zero_batches`](Self::zero_batches). Rows on an autodiff device are
    /// detached from its tape.
    ///
    /// # Shapes
    ///
    /// - rows: `[N, features]`
    ///
    /// # Errors
    ///
    /// Returns an error if the rows have another width, if the second moment is not finite, if the
    /// sum is diagonal, or if the device cannot be read. The sum is then unchanged.
    pub fn add(&mut self, rows: Tensor<2>) -> Result<(), GnspError> {
        self.add_with(rows, &mut Scratch::default())
    }

    /// Like [`add`](Self::add), with reused buffers.
    pub(crate) fn add_with(
        &mut self,
        rows: Tensor<2>,
        scratch: &mut Scratch,
    ) -> Result<(), GnspError> {
        let [count, width] = rows.dims();
        // Not a reshape: Burn interprets a 0 in a new shape as "keep this dimension".
        let rows = match count {
            0 => Tensor::zeros([1, 0, width], &rows.device()),
            _ => rows.unsqueeze(),
        };
        let moment = self.moment(rows, scratch)?;
        self.add_moment(moment)
    }

    /// Adds the second moments of a batch of inputs for every group.
    ///
    /// # Shapes
    ///
    /// - rows: `[groups, N, features]`
    ///
    /// # Errors
    ///
    /// See [`add`](Self::add). It also returns an error if the number of groups differs from that
    /// of earlier batches.
    pub fn add_grouped(&mut self, rows: Tensor<3>) -> Result<(), GnspError> {
        let moment = self.moment(rows, &mut Scratch::default())?;
        self.add_moment(moment)
    }

    /// Adds a batch of tokens to a [`diagonal`](Self::diagonal) sum.
    ///
    /// # Shapes
    ///
    /// - tokens: any shape
    ///
    /// # Errors
    ///
    /// Returns an error if a token is outside the vocabulary, if the sum is not diagonal, or if
    /// the device cannot be read. The sum is then unchanged.
    pub fn add_tokens<const D: usize>(&mut self, tokens: Tensor<D, Int>) -> Result<(), GnspError> {
        let Sum::Diagonal(sum) = &mut self.sum else {
            return Err(GnspError::Kind {
                expected: "dense",
                found: "diagonal",
            });
        };
        let mut counts = vec![0.0; self.features];
        let tokens: Vec<i64> = tokens.try_into_vec_as().map_err(device_error)?;
        for id in tokens {
            let count = usize::try_from(id).ok().and_then(|id| counts.get_mut(id));
            let Some(count) = count else {
                return Err(GnspError::Token {
                    id,
                    vocabulary: self.features,
                });
            };
            *count += 1.0;
        }
        self.batches += 1;
        let squares: f64 = counts.iter().map(|x| x * x).sum();
        if squares == 0.0 {
            self.zero_batches += 1;
            return Ok(());
        }
        let scale = if self.normalization.batches() {
            1.0 / squares.sqrt()
        } else {
            1.0
        };
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum += scale * count;
        }
        Ok(())
    }

    /// Adds a batch of `rows` inputs of the constant 1 to a diagonal sum of one feature.
    pub(crate) fn add_count(&mut self, rows: usize) {
        self.batches += 1;
        self.zero_batches += usize::from(rows == 0);
        if let Sum::Diagonal(sum) = &mut self.sum {
            sum[0] += if self.normalization.batches() {
                f64::from(u8::from(rows > 0))
            } else {
                rows as f64
            };
        }
    }

    /// Computes the second moments of rows without adding them.
    ///
    /// The second moments of a batch are the sum of those of its parts.
    ///
    /// # Shapes
    ///
    /// - rows: `[groups, N, features]`
    pub(crate) fn moment(
        &self,
        rows: Tensor<3>,
        scratch: &mut Scratch,
    ) -> Result<Moment, GnspError> {
        let [groups, _, width] = rows.dims();
        if matches!(self.sum, Sum::Diagonal(_)) {
            return Err(GnspError::Kind {
                expected: "diagonal",
                found: "dense",
            });
        }
        if width != self.features {
            return Err(GnspError::Width {
                expected: self.features,
                found: width,
            });
        }
        if width == 0 || groups == 0 {
            return Err(GnspError::NoFeatures);
        }
        Ok(Moment::from_rows(rows, self.full_matrices, scratch))
    }

    /// Adds the second moments of a batch.
    pub(crate) fn add_moment(&mut self, moment: Moment) -> Result<(), GnspError> {
        if let Sum::Dense(Some(sum)) = &self.sum
            && sum.groups() != moment.groups()
        {
            return Err(GnspError::Groups {
                expected: sum.groups(),
                found: moment.groups(),
            });
        }
        let (largest, norm) = moment.max_and_norm()?;
        if !largest.is_finite() || !norm.is_finite() {
            return Err(GnspError::NotFinite);
        }
        self.batches += 1;
        // The largest entry is divided by itself, so the norm is at least 1 (up to rounding) unless
        // that entry is zero or subnormal.
        if norm < 0.5 {
            self.zero_batches += 1;
            // Stores the number of groups.
            if let Sum::Dense(sum @ None) = &mut self.sum {
                *sum = Some(moment.zeros_like());
            }
            return Ok(());
        }
        if let Sum::Dense(sum) = &mut self.sum {
            match (sum, self.normalization.batches()) {
                (Some(sum), true) => sum.add_divided(moment, largest, norm)?,
                (Some(sum), false) => sum.add(moment)?,
                (none, true) => *none = Some(moment.divided(largest, norm)),
                (none, false) => *none = Some(moment),
            }
        }
        Ok(())
    }

    /// Adds the sum of another accumulator for the same task, from this machine or another.
    ///
    /// # Errors
    ///
    /// Returns an error if the numbers of features or groups differ, or if only one of the sums is
    /// diagonal.
    pub fn merge(&mut self, other: Self) -> Result<(), GnspError> {
        if self.features != other.features {
            return Err(GnspError::Width {
                expected: self.features,
                found: other.features,
            });
        }
        match (&mut self.sum, other.sum) {
            (Sum::Dense(sum), Sum::Dense(Some(others))) => match sum {
                Some(own) if own.groups() != others.groups() => {
                    let [expected, found] = [own.groups(), others.groups()];
                    return Err(GnspError::Groups { expected, found });
                }
                Some(own) => own.add(others)?,
                None => *sum = Some(others),
            },
            (Sum::Dense(_), Sum::Dense(None)) => {}
            (Sum::Diagonal(sum), Sum::Diagonal(others)) => {
                for (sum, other) in sum.iter_mut().zip(others) {
                    *sum += other;
                }
            }
            (Sum::Dense(_), Sum::Diagonal(_)) => {
                return Err(GnspError::Kind {
                    expected: "dense",
                    found: "diagonal",
                });
            }
            (Sum::Diagonal(_), Sum::Dense(_)) => {
                return Err(GnspError::Kind {
                    expected: "diagonal",
                    found: "dense",
                });
            }
        }
        self.batches += other.batches;
        self.zero_batches += other.zero_batches;
        Ok(())
    }

    /// Returns the number of batches added, including zero batches.
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// Returns the number of batches whose second moment was zero.
    pub fn zero_batches(&self) -> usize {
        self.zero_batches
    }

    /// Reads the sum back as a Gram matrix. Zero batches alone give a zero matrix.
    ///
    /// # Errors
    ///
    /// Returns an error if no batch was added, if the sum overflowed `f32`, or if the device cannot
    /// be read.
    pub fn finish(self) -> Result<Gram, GnspError> {
        if self.batches == 0 {
            return Err(GnspError::NoBatches);
        }
        let gram = match self.sum {
            Sum::Dense(Some(sum)) => sum.gram()?,
            Sum::Dense(None) => return Err(GnspError::NoBatches),
            Sum::Diagonal(sum) => Gram::from_diagonal(sum.into_iter().map(|x| x as f32).collect())?,
        };
        Ok(if self.normalization.tasks() {
            gram.normalized()
        } else {
            gram
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;

    /// Batches and constants of `tests/reference/projector.py`.
    fn accumulate(normalization: GramNormalization) -> GramAccumulator {
        let mut accumulator = GramAccumulator::new(3, normalization);
        accumulator.add(grid(4, 3, 1.0, 0.7)).unwrap();
        accumulator.add(grid(2, 3, 30.0, 1.1)).unwrap();
        accumulator
    }

    #[test]
    fn normalization_per_batch_and_task_matches_numpy() {
        let gram = accumulate(GramNormalization::PerBatchAndTask)
            .finish()
            .unwrap();
        assert_close(
            &gram.dense(),
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
    fn without_normalization_it_is_the_second_moment() {
        let gram = accumulate(GramNormalization::None).finish().unwrap();
        assert_close(
            &gram.dense(),
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
    fn normalization_removes_the_scale() {
        for scale in [1e-15, 1e-6, 1.0, 1e6, 1e15] {
            let mut accumulator = GramAccumulator::new(3, GramNormalization::PerBatchAndTask);
            accumulator.add(grid(4, 3, scale, 0.7)).unwrap();
            accumulator.add(grid(2, 3, 30.0 * scale, 1.1)).unwrap();
            let gram = accumulator.finish().unwrap();
            let expected = accumulate(GramNormalization::PerBatchAndTask)
                .finish()
                .unwrap();
            assert_close(&gram.dense(), &expected.dense(), 1e-6);
        }
    }

    #[test]
    fn rejected_rows_leave_the_sum_unchanged() {
        let mut accumulator = accumulate(GramNormalization::PerBatchAndTask);
        let wide = accumulator.add(grid(2, 4, 1.0, 1.0)).unwrap_err();
        assert!(matches!(
            wide,
            GnspError::Width {
                expected: 3,
                found: 4
            }
        ));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
            let rows = Tensor::from_floats([[1.0, bad, 0.0], [0.0, 0.0, 2.0]], &device());
            let error = accumulator.add(rows).unwrap_err();
            assert!(matches!(error, GnspError::NotFinite), "{bad}: {error}");
        }
        assert_eq!(accumulator.batches(), 2);
        assert_eq!(
            accumulator.finish().unwrap(),
            accumulate(GramNormalization::PerBatchAndTask)
                .finish()
                .unwrap()
        );
    }

    #[test]
    fn zero_batches_add_nothing_and_are_counted() {
        let mut accumulator = accumulate(GramNormalization::PerBatchAndTask);
        accumulator.add(Tensor::zeros([5, 3], &device())).unwrap();
        accumulator.add(Tensor::zeros([0, 3], &device())).unwrap();
        accumulator
            .add(Tensor::full([5, 3], 1e-30, &device()))
            .unwrap();
        assert_eq!((accumulator.batches(), accumulator.zero_batches()), (5, 3));
        assert_eq!(
            accumulator.finish().unwrap(),
            accumulate(GramNormalization::PerBatchAndTask)
                .finish()
                .unwrap()
        );
    }

    #[test]
    fn only_zero_batches_give_a_zero_gram_and_none_an_error() {
        let mut accumulator = GramAccumulator::new(2, GramNormalization::PerBatchAndTask);
        accumulator.add(Tensor::zeros([5, 2], &device())).unwrap();
        let gram = accumulator.finish().unwrap();
        assert_eq!(gram.dense(), [0.0; 4]);
        let empty = GramAccumulator::new(2, GramNormalization::None).finish();
        assert!(matches!(empty, Err(GnspError::NoBatches)));
    }

    #[test]
    fn rows_on_an_autodiff_device_are_detached() {
        let mut accumulator = GramAccumulator::new(3, GramNormalization::PerBatchAndTask);
        let rows = grid(4, 3, 1.0, 0.7).autodiff().require_grad();
        accumulator.add(rows).unwrap();
        let Sum::Dense(Some(sum)) = accumulator.sum else {
            panic!("rows make a dense sum");
        };
        match sum {
            Moment::Device(sum) => assert!(!sum.is_autodiff()),
            Moment::Host(sum) => assert_eq!(sum.values.len(), 6),
        }
    }

    #[test]
    fn groups_have_separate_sums_and_a_common_norm() {
        let rows = Tensor::cat(
            vec![
                grid(4, 3, 1.0, 0.7).unsqueeze::<3>(),
                grid(4, 3, 2.0, 1.1).unsqueeze(),
            ],
            0,
        );
        let mut accumulator = GramAccumulator::new(3, GramNormalization::PerBatch);
        accumulator.add_grouped(rows).unwrap();
        let gram = accumulator.clone().finish().unwrap();
        assert_eq!((gram.groups(), gram.features()), (2, 3));
        assert!((gram.norm() - 1.0).abs() < 1e-6);
        let alone = |rows| {
            let mut one = GramAccumulator::new(3, GramNormalization::None);
            one.add(rows).unwrap();
            one.finish().unwrap()
        };
        let first = alone(grid(4, 3, 1.0, 0.7));
        let both = (first.norm().powi(2) + alone(grid(4, 3, 2.0, 1.1)).norm().powi(2)).sqrt();
        assert_close(&gram.dense()[..9], &first.scaled(1.0 / both).dense(), 1e-6);
        let error = accumulator.add(grid(4, 3, 1.0, 0.7)).unwrap_err();
        assert!(matches!(
            error,
            GnspError::Groups {
                expected: 2,
                found: 1
            }
        ));
    }

    #[test]
    fn tokens_are_counted() {
        let ids = |ids: &[i64]| Tensor::<1, Int>::from_ints(ids, &device());
        let mut accumulator = GramAccumulator::diagonal(4, GramNormalization::None);
        accumulator.add_tokens(ids(&[1, 3, 1])).unwrap();
        for bad in [4, -1] {
            let error = accumulator.add_tokens(ids(&[0, bad])).unwrap_err();
            assert!(matches!(error, GnspError::Token { vocabulary: 4, .. }));
        }
        let error = accumulator.add(grid(2, 4, 1.0, 1.0)).unwrap_err();
        assert!(matches!(error, GnspError::Kind { .. }));
        let gram = accumulator.finish().unwrap();
        assert_eq!(gram.packed(), [0.0, 2.0, 0.0, 1.0]);
        let mut normed = GramAccumulator::diagonal(4, GramNormalization::PerBatch);
        normed.add_tokens(ids(&[1, 1, 1, 1, 2, 2, 2])).unwrap();
        let gram = normed.finish().unwrap();
        assert_close(gram.packed(), &[0.0, 0.8, 0.6, 0.0], 1e-7);
    }

    #[test]
    fn merged_parts_equal_the_whole() {
        let mut first = GramAccumulator::new(3, GramNormalization::PerBatch);
        first.add(grid(4, 3, 1.0, 0.7)).unwrap();
        let mut second = GramAccumulator::new(3, GramNormalization::PerBatch);
        second.add(grid(2, 3, 30.0, 1.1)).unwrap();
        first.merge(second).unwrap();
        assert_eq!(first.batches(), 2);
        let whole = accumulate(GramNormalization::PerBatch);
        assert_eq!(first.clone().finish().unwrap(), whole.finish().unwrap());
        assert!(
            first
                .merge(GramAccumulator::new(4, GramNormalization::None))
                .is_err()
        );
        assert!(
            first
                .merge(GramAccumulator::diagonal(3, GramNormalization::None))
                .is_err()
        );
    }
}

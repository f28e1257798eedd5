//! Gram matrices: uncentred second moments of a layer's input rows.

use serde::{Deserialize, Serialize};

use crate::GnspError;

/// Largest difference of two mirrored entries, relative to the largest entry, of a matrix that
/// counts as symmetric. Matrix products in `f32` stay two orders of magnitude below it.
const ASYMMETRY: f32 = 1e-3;

/// Normalization of Gram matrices by their Frobenius norms.
///
/// GNSP normalizes per batch and per task (GNSP `src/models/get_data_matrix.py:86-116`); the other
/// methods do not normalize. In a configuration file it is `"per-batch-and-task"`, `"none"`, …
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use gnsp_optimizer::{GramAccumulator, GramNormalization};
///
/// let mut gram = GramAccumulator::new(1, GramNormalization::PerBatch);
/// for batch in [[[1.0], [1.0]], [[7.0], [9.0]]] {
///     gram.add(Tensor::from_floats(batch, &Device::default()))?;
/// }
/// // Each batch contributes 1, independent of its scale.
/// assert!((gram.finish()?.packed()[0] - 2.0).abs() < 1e-6);
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GramNormalization {
    /// No normalization: every row has equal weight.
    None,
    /// Divides the Gram matrix of each batch by its norm before adding it: every batch has equal
    /// weight, including a smaller last one.
    PerBatch,
    /// Divides the sum over the batches of a task by its norm: every task has equal weight.
    PerTask,
    /// Normalizes per batch and per task.
    #[default]
    PerBatchAndTask,
}

impl GramNormalization {
    /// Returns the variant that normalizes per batch, per task, both or neither.
    pub fn of(batches: bool, tasks: bool) -> Self {
        match (batches, tasks) {
            (false, false) => Self::None,
            (true, false) => Self::PerBatch,
            (false, true) => Self::PerTask,
            (true, true) => Self::PerBatchAndTask,
        }
    }

    /// Returns whether each batch is normalized.
    pub(crate) fn batches(self) -> bool {
        matches!(self, Self::PerBatch | Self::PerBatchAndTask)
    }

    /// Returns whether the sum over a task is normalized.
    pub(crate) fn tasks(self) -> bool {
        matches!(self, Self::PerTask | Self::PerBatchAndTask)
    }
}

/// Gram matrix (uncentred second moment) of a layer's input rows, on the host.
///
/// It has one symmetric matrix for each group of a parameter, or a single diagonal matrix for
/// one-hot inputs. Only upper triangles are stored. All entries are finite, and no diagonal entry
/// is negative.
///
/// # Example
///
/// ```
/// use gnsp_optimizer::Gram;
///
/// let gram = Gram::from_matrix(2, vec![3.0, 1.0, 1.0, 2.0])?;
/// assert_eq!(gram.packed(), [3.0, 1.0, 2.0]);
/// assert_eq!(gram.trace(0), 5.0);
///
/// let sum = gram.clone().plus(&gram)?;
/// assert_eq!(sum.dense(), [6.0, 2.0, 2.0, 4.0]);
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    kind: Kind,
    /// Row-major upper triangles of all groups, or the diagonal.
    values: Vec<f32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Dense { groups: usize, features: usize },
    Diagonal,
}

impl Gram {
    /// Creates a Gram matrix from `features · features` row-major entries.
    ///
    /// Mirrored entries that differ by rounding error are replaced by their mean.
    ///
    /// # Errors
    ///
    /// Returns an error if there are no features, if the number of entries is wrong, if an entry
    /// is not finite, if mirrored entries differ by more than rounding error, or if a diagonal
    /// entry is negative.
    pub fn from_matrix(features: usize, matrix: Vec<f32>) -> Result<Self, GnspError> {
        Self::from_groups(1, features, &matrix)
    }

    /// Creates a Gram matrix from the concatenated matrices of all groups.
    ///
    /// # Errors
    ///
    /// See [`from_matrix`](Self::from_matrix).
    pub fn from_groups(
        groups: usize,
        features: usize,
        matrices: &[f32],
    ) -> Result<Self, GnspError> {
        let entries = features.saturating_mul(features);
        Self::check_size(features, entries.checked_mul(groups), matrices.len())?;
        check_finite(matrices)?;
        let largest = matrices.iter().fold(0f32, |most, x| most.max(x.abs()));
        let mut values = Vec::with_capacity(groups * packed_len(features).unwrap_or(0));
        for matrix in matrices.chunks_exact(entries) {
            for row in 0..features {
                for column in row..features {
                    // In f64: the difference and the sum of two finite f32 may overflow.
                    let a = f64::from(matrix[row * features + column]);
                    let b = f64::from(matrix[column * features + row]);
                    if (a - b).abs() > f64::from(ASYMMETRY) * f64::from(largest) {
                        return Err(GnspError::NotSymmetric { row, column });
                    }
                    values.push(((a + b) / 2.0) as f32);
                }
            }
        }
        Self::from_packed(groups, features, values)
    }

    /// Creates a Gram matrix from the concatenated row-major upper triangles of all groups.
    ///
    /// # Errors
    ///
    /// Returns an error if there are no features, if the number of entries is wrong, if an entry
    /// is not finite, or if a diagonal entry is negative.
    pub fn from_packed(
        groups: usize,
        features: usize,
        values: Vec<f32>,
    ) -> Result<Self, GnspError> {
        let entries = packed_len(features).and_then(|len| len.checked_mul(groups));
        Self::check_size(features, entries, values.len())?;
        check_finite(&values)?;
        let gram = Self {
            kind: Kind::Dense { groups, features },
            values,
        };
        for group in 0..groups {
            if let Some(index) = gram.diagonal_of(group).position(|x| x < 0.0) {
                return Err(GnspError::NegativeDiagonal { index });
            }
        }
        Ok(gram)
    }

    /// Creates a diagonal Gram matrix. For one-hot inputs the diagonal is the count of each.
    ///
    /// # Errors
    ///
    /// Returns an error if there are no features, or if an entry is negative or not finite.
    pub fn from_diagonal(values: Vec<f32>) -> Result<Self, GnspError> {
        Self::check_size(values.len(), Some(values.len()), values.len())?;
        check_finite(&values)?;
        if let Some(index) = values.iter().position(|x| *x < 0.0) {
            return Err(GnspError::NegativeDiagonal { index });
        }
        Ok(Self {
            kind: Kind::Diagonal,
            values,
        })
    }

    fn check_size(
        features: usize,
        expected: Option<usize>,
        entries: usize,
    ) -> Result<(), GnspError> {
        if features == 0 || entries == 0 {
            return Err(GnspError::NoFeatures);
        }
        if expected != Some(entries) {
            return Err(GnspError::Size { features, entries });
        }
        Ok(())
    }

    /// Returns the number `n` of input features per group.
    pub fn features(&self) -> usize {
        match self.kind {
            Kind::Dense { features, .. } => features,
            Kind::Diagonal => self.values.len(),
        }
    }

    /// Returns the number of groups, which is 1 except for grouped convolutions.
    pub fn groups(&self) -> usize {
        match self.kind {
            Kind::Dense { groups, .. } => groups,
            Kind::Diagonal => 1,
        }
    }

    /// Returns whether only the diagonal is stored.
    pub fn is_diagonal(&self) -> bool {
        self.kind == Kind::Diagonal
    }

    /// Returns the stored entries: the row-major upper triangles of all groups, or the diagonal.
    pub fn packed(&self) -> &[f32] {
        &self.values
    }

    /// Returns the concatenated row-major `n · n` matrices of all groups.
    pub fn dense(&self) -> Vec<f32> {
        let n = self.features();
        let mut dense = vec![0.0; self.groups() * n * n];
        for (group, matrix) in dense.chunks_exact_mut(n * n).enumerate() {
            self.for_upper(group, |row, column, value| {
                matrix[row * n + column] = value;
                matrix[column * n + row] = value;
            });
        }
        dense
    }

    /// Calls `f(row, column, value)` for every stored entry of a group.
    pub(crate) fn for_upper(&self, group: usize, mut f: impl FnMut(usize, usize, f32)) {
        let n = self.features();
        if self.is_diagonal() {
            return (0..n).for_each(|i| f(i, i, self.values[i]));
        }
        let mut entries = self.group(group).iter();
        for row in 0..n {
            for (column, value) in (row..n).zip(&mut entries) {
                f(row, column, *value);
            }
        }
    }

    /// Returns the stored entries of a group.
    fn group(&self, group: usize) -> &[f32] {
        let len = self.values.len() / self.groups();
        &self.values[group * len..][..len]
    }

    /// Iterates over the diagonal of a group.
    pub(crate) fn diagonal_of(&self, group: usize) -> impl Iterator<Item = f32> + '_ {
        let n = self.features();
        let values = self.group(group);
        let diagonal = self.is_diagonal();
        // Row i of the triangle has n − i entries, so its diagonal entry follows i·n − i·(i − 1)/2
        // others.
        (0..n).map(move |i| {
            values[if diagonal {
                i
            } else {
                i * n - i * i.saturating_sub(1) / 2
            }]
        })
    }

    /// Returns the trace of a group: the sum of its eigenvalues.
    ///
    /// # Panics
    ///
    /// Panics if there is no such group.
    pub fn trace(&self, group: usize) -> f64 {
        self.diagonal_of(group).map(f64::from).sum()
    }

    /// Returns the squared Frobenius norm of a group.
    pub(crate) fn squares(&self, group: usize) -> f64 {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let stored: f64 = self.group(group).iter().map(|x| square(*x)).sum();
        if self.is_diagonal() {
            return stored;
        }
        2.0 * stored - self.diagonal_of(group).map(square).sum::<f64>()
    }

    /// Returns the Frobenius norm over all groups.
    pub fn norm(&self) -> f64 {
        let squares: f64 = (0..self.groups()).map(|group| self.squares(group)).sum();
        squares.sqrt()
    }

    /// Divides the matrix by its Frobenius norm. A zero matrix is returned unchanged.
    pub fn normalized(self) -> Self {
        let norm = self.norm();
        if norm > 0.0 {
            return self.scaled(1.0 / norm);
        }
        self
    }

    /// Multiplies the matrix by a positive factor that must not overflow `f32`.
    pub(crate) fn scaled(mut self, factor: f64) -> Self {
        for x in &mut self.values {
            *x = (f64::from(*x) * factor) as f32;
        }
        self
    }

    /// Adds two Gram matrices.
    ///
    /// # Errors
    ///
    /// Returns an error if the numbers of features or groups differ, if only one of the matrices is
    /// diagonal, or if the sum overflows `f32`.
    pub fn plus(mut self, other: &Gram) -> Result<Self, GnspError> {
        self.check_fits(other)?;
        for (x, y) in self.values.iter_mut().zip(&other.values) {
            *x += y;
        }
        check_finite(&self.values)?;
        Ok(self)
    }

    /// Checks that two matrices have the same kind and size.
    pub(crate) fn check_fits(&self, other: &Gram) -> Result<(), GnspError> {
        let name = |gram: &Gram| match gram.kind {
            Kind::Dense { .. } => "dense",
            Kind::Diagonal => "diagonal",
        };
        if self.is_diagonal() != other.is_diagonal() {
            return Err(GnspError::Kind {
                expected: name(self),
                found: name(other),
            });
        }
        if self.features() != other.features() {
            return Err(GnspError::Width {
                expected: self.features(),
                found: other.features(),
            });
        }
        if self.groups() != other.groups() {
            return Err(GnspError::Groups {
                expected: self.groups(),
                found: other.groups(),
            });
        }
        Ok(())
    }
}

/// Returns the number of entries of an upper triangle, or `None` on overflow.
pub(crate) fn packed_len(features: usize) -> Option<usize> {
    Some(features.checked_mul(features.checked_add(1)?)? / 2)
}

fn check_finite(values: &[f32]) -> Result<(), GnspError> {
    if values.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    Err(GnspError::NotFinite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_matrices_are_refused() {
        use GnspError::*;
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
        assert_eq!(rounded.dense()[1], rounded.dense()[2]);
        assert!(matches!(Gram::from_diagonal(vec![]), Err(NoFeatures)));
        assert!(matches!(
            Gram::from_diagonal(vec![1.0, -1.0]),
            Err(NegativeDiagonal { index: 1 })
        ));
        assert!(matches!(
            Gram::from_packed(2, 2, vec![0.0; 5]),
            Err(Size { .. })
        ));
    }

    #[test]
    fn packed_and_dense_forms_agree() {
        let matrices: Vec<f32> = vec![1., 2., 3., 2., 4., 5., 3., 5., 6.];
        let both: Vec<f32> = matrices.iter().chain(&matrices).copied().collect();
        let gram = Gram::from_groups(2, 3, &both).unwrap();
        assert_eq!(
            gram.packed(),
            [1., 2., 3., 4., 5., 6., 1., 2., 3., 4., 5., 6.]
        );
        assert_eq!(gram.dense(), both);
        assert_eq!((gram.trace(1), gram.squares(1)), (11.0, 129.0));
        let diagonal = Gram::from_diagonal(vec![3.0, 0.0, 4.0]).unwrap();
        assert_eq!((diagonal.trace(0), diagonal.norm()), (7.0, 5.0));
        assert_eq!(diagonal.dense(), [3., 0., 0., 0., 0., 0., 0., 0., 4.]);
        assert!(diagonal.plus(&gram).is_err());
        assert!(Gram::from_matrix(3, matrices).unwrap().plus(&gram).is_err());
    }
}

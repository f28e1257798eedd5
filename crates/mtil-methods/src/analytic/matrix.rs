//! Input validation and packed storage of triangular matrices.

use faer::{Mat, MatMut, MatRef};

use super::AnalyticError;

/// Converts row-major values to `f64` and refuses NaN and infinities.
pub(super) fn to_finite_f64<T: Copy + Into<f64>>(
    what: &'static str,
    values: &[T],
    columns: usize,
) -> Result<Vec<f64>, AnalyticError> {
    let mut checked = Vec::with_capacity(values.len());
    for (i, value) in values.iter().enumerate() {
        let value: f64 = (*value).into();
        if !value.is_finite() {
            return Err(AnalyticError::NotFinite {
                what,
                row: i / columns.max(1),
                column: i % columns.max(1),
            });
        }
        checked.push(value);
    }
    Ok(checked)
}

/// Validates the features and labels of an update and returns the features in `f64`, row-major.
pub(super) fn check_training_batch<T: Copy + Into<f64>>(
    features: &[T],
    labels: &[usize],
    width: usize,
    classes_so_far: usize,
    classes: usize,
) -> Result<Vec<f64>, AnalyticError> {
    if labels.is_empty() {
        return Err(AnalyticError::Empty);
    }
    if labels.len().checked_mul(width) != Some(features.len()) {
        return Err(AnalyticError::Shape {
            what: "features",
            values: features.len(),
            rows: labels.len(),
            columns: width,
        });
    }
    if classes < classes_so_far {
        return Err(AnalyticError::FewerClasses {
            from: classes_so_far,
            to: classes,
        });
    }
    if let Some(row) = labels.iter().position(|label| *label >= classes) {
        return Err(AnalyticError::Label {
            row,
            label: labels[row],
            classes,
        });
    }
    to_finite_f64("features", features, width)
}

/// Validates features to score and returns them in `f64`, row-major.
pub(super) fn check_queries<T: Copy + Into<f64>>(
    features: &[T],
    width: usize,
) -> Result<Vec<f64>, AnalyticError> {
    if !features.len().is_multiple_of(width) {
        return Err(AnalyticError::Width {
            values: features.len(),
            width,
        });
    }
    to_finite_f64("features", features, width)
}

/// Refuses a setting that is not a finite number above 0.
pub(super) fn check_positive(name: &'static str, value: f64) -> Result<(), AnalyticError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(AnalyticError::Setting {
        name,
        value: value.to_string(),
        must: "a positive number",
    })
}

/// Refuses a setting below 1.
pub(super) fn check_at_least_one(name: &'static str, value: usize) -> Result<(), AnalyticError> {
    if value > 0 {
        return Ok(());
    }
    Err(AnalyticError::Setting {
        name,
        value: value.to_string(),
        must: "at least 1",
    })
}

/// Returns one-hot labels `[labels, classes]`.
pub(super) fn one_hot(labels: &[usize], classes: usize) -> Mat<f64> {
    let mut rows = Mat::zeros(labels.len(), classes);
    for (row, label) in labels.iter().enumerate() {
        rows[(row, *label)] = 1.0;
    }
    rows
}

/// Pads a matrix with columns of zeros up to `columns`.
pub(super) fn pad_columns(matrix: &mut Mat<f64>, columns: usize) {
    let rows = matrix.nrows();
    matrix.resize_with(rows, columns, |_, _| 0.0);
}

/// Copies the lower triangle of a square matrix over the upper one.
pub(super) fn symmetrize(mut matrix: MatMut<'_, f64>) {
    /// Columns read side by side: their cache lines fit into the L1 cache.
    const STRIP: usize = 64;
    let n = matrix.ncols();
    for strip in (0..n).step_by(STRIP) {
        for column in strip + 1..n {
            for row in strip..column.min(strip + STRIP) {
                matrix[(row, column)] = matrix[(column, row)];
            }
        }
    }
}

/// Returns the number of entries of a triangle of `n` rows with its diagonal; `None` on overflow.
pub(super) fn packed_len(n: usize) -> Option<usize> {
    n.checked_mul(n.checked_add(1)?).map(|x| x / 2)
}

/// Returns the lower triangle with its diagonal, row by row (packed storage).
pub(super) fn pack_lower(matrix: MatRef<'_, f64>) -> Vec<f64> {
    let n = matrix.nrows();
    let mut packed = Vec::with_capacity(n * (n + 1) / 2);
    for row in 0..n {
        packed.extend((0..=row).map(|column| matrix[(row, column)]));
    }
    packed
}

/// Inverse of [`pack_lower`]; entries above the diagonal are zero.
pub(super) fn unpack_lower(packed: &[f64], n: usize) -> Mat<f64> {
    let mut matrix = Mat::zeros(n, n);
    let mut values = packed.iter();
    for row in 0..n {
        for (column, value) in (0..=row).zip(&mut values) {
            matrix[(row, column)] = *value;
        }
    }
    matrix
}

/// Returns the entries in row-major order.
pub(super) fn row_major(matrix: MatRef<'_, f64>) -> Vec<f64> {
    let mut values = Vec::with_capacity(matrix.nrows() * matrix.ncols());
    for row in 0..matrix.nrows() {
        values.extend((0..matrix.ncols()).map(|column| matrix[(row, column)]));
    }
    values
}

/// Returns the size of the entries of a matrix in bytes.
pub(super) fn size_in_bytes(matrix: &Mat<f64>) -> u64 {
    (matrix.nrows() as u64) * (matrix.ncols() as u64) * size_of::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_triangle_unpacks_and_symmetrizes_to_the_original_matrix() {
        let n = 131; // More than two strips.
        let whole = Mat::from_fn(n, n, |i, j| (i.min(j) * 1000 + i.max(j)) as f64);
        let packed = pack_lower(whole.as_ref());
        assert_eq!(Some(packed.len()), packed_len(n));
        assert_eq!(packed[..3], [0.0, 1.0, 1001.0]);
        let mut back = unpack_lower(&packed, n);
        assert_eq!(back[(3, 7)], 0.0);
        symmetrize(back.as_mut());
        assert_eq!(back, whole);
    }

    #[test]
    fn packed_len_does_not_overflow() {
        assert_eq!(packed_len(0), Some(0));
        assert_eq!(packed_len(usize::MAX), None);
    }
}

//! Checked input, and triangles of symmetric matrices.

use faer::{Mat, MatMut, MatRef};

use super::AnalyticError;

/// Row-major values in `f64`, each finite.
pub(super) fn finite<T: Copy + Into<f64>>(
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

/// The images of an update, checked: features in `f64`, row-major.
pub(super) fn images<T: Copy + Into<f64>>(
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
    finite("features", features, width)
}

/// Rows to compute scores for, checked: features in `f64`, row-major.
pub(super) fn queries<T: Copy + Into<f64>>(
    features: &[T],
    width: usize,
) -> Result<Vec<f64>, AnalyticError> {
    if !features.len().is_multiple_of(width) {
        return Err(AnalyticError::Width {
            values: features.len(),
            width,
        });
    }
    finite("features", features, width)
}

/// A setting that must be a positive number.
pub(super) fn positive(name: &'static str, value: f64) -> Result<(), AnalyticError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(AnalyticError::Setting {
        name,
        value: value.to_string(),
        must: "a positive number",
    })
}

/// A setting that must be a number of at least 1.
pub(super) fn at_least_one(name: &'static str, value: usize) -> Result<(), AnalyticError> {
    if value > 0 {
        return Ok(());
    }
    Err(AnalyticError::Setting {
        name,
        value: value.to_string(),
        must: "at least 1",
    })
}

/// One-hot rows.
pub(super) fn one_hot(labels: &[usize], classes: usize) -> Mat<f64> {
    let mut rows = Mat::zeros(labels.len(), classes);
    for (row, label) in labels.iter().enumerate() {
        rows[(row, *label)] = 1.0;
    }
    rows
}

/// Adds columns of zeros.
pub(super) fn widen(matrix: &mut Mat<f64>, columns: usize) {
    let rows = matrix.nrows();
    matrix.resize_with(rows, columns, |_, _| 0.0);
}

/// Copies the lower triangle over the upper one.
pub(super) fn mirror(mut matrix: MatMut<'_, f64>) {
    /// Columns that are read side by side: their cache lines fit into the fastest cache.
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

/// The number of entries of a triangle of `n` rows with its diagonal, or nothing where it
/// overflows.
pub(super) fn packed_len(n: usize) -> Option<usize> {
    n.checked_mul(n.checked_add(1)?).map(|x| x / 2)
}

/// The lower triangle with its diagonal, row by row.
pub(super) fn pack(matrix: MatRef<'_, f64>) -> Vec<f64> {
    let n = matrix.nrows();
    let mut packed = Vec::with_capacity(n * (n + 1) / 2);
    for row in 0..n {
        packed.extend((0..=row).map(|column| matrix[(row, column)]));
    }
    packed
}

/// The reverse of [`pack`]; zeros above the diagonal.
pub(super) fn unpack(packed: &[f64], n: usize) -> Mat<f64> {
    let mut matrix = Mat::zeros(n, n);
    let mut values = packed.iter();
    for row in 0..n {
        for (column, value) in (0..=row).zip(&mut values) {
            matrix[(row, column)] = *value;
        }
    }
    matrix
}

/// The entries row by row.
pub(super) fn row_major(matrix: MatRef<'_, f64>) -> Vec<f64> {
    let mut values = Vec::with_capacity(matrix.nrows() * matrix.ncols());
    for row in 0..matrix.nrows() {
        values.extend((0..matrix.ncols()).map(|column| matrix[(row, column)]));
    }
    values
}

/// Bytes of the numbers of a matrix.
pub(super) fn bytes(matrix: &Mat<f64>) -> u64 {
    (matrix.nrows() as u64) * (matrix.ncols() as u64) * size_of::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_triangle_survives_packing_and_mirrors_to_a_symmetric_matrix() {
        let n = 131; // More than two strips.
        let whole = Mat::from_fn(n, n, |i, j| (i.min(j) * 1000 + i.max(j)) as f64);
        let packed = pack(whole.as_ref());
        assert_eq!(Some(packed.len()), packed_len(n));
        assert_eq!(packed[..3], [0.0, 1.0, 1001.0]);
        let mut back = unpack(&packed, n);
        assert_eq!(back[(3, 7)], 0.0);
        mirror(back.as_mut());
        assert_eq!(back, whole);
    }

    #[test]
    fn packed_len_does_not_overflow() {
        assert_eq!(packed_len(0), Some(0));
        assert_eq!(packed_len(usize::MAX), None);
    }
}

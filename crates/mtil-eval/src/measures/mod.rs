//! Measures of one evaluation: pure functions of features, logits and labels on the host.
//!
//! The figures of a whole run, computed from its accuracy matrix, are in
//! [`metrics`](crate::metrics).
//!
//! | module | input | output |
//! |---|---|---|
//! | [`confusion`] | logits or predictions, labels | confusion matrix, accuracy per class |
//! | [`calibration`] | logits, labels | calibration error, negative log-likelihood, Brier score |
//! | [`geometry`] | image and text embeddings | modality gap, alignment, uniformity, pair logits |
//! | [`retrieval`] | image and text embeddings | recall at K and ranks |
//! | [`probe`] | frozen features, labels | linear probe (multinomial logistic regression) |
//!
//! All of them take a [`Matrix`], whose values are checked once to be finite. Results do not depend
//! on the number of threads.

pub mod calibration;
pub mod confusion;
pub mod geometry;
pub mod probe;
pub mod retrieval;

/// Error of computing a measure.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MeasureError {
    /// The number of values is not rows times columns.
    #[error("{what}: {found} values do not make a matrix of {rows} x {columns}")]
    Shape {
        /// Name of the matrix.
        what: String,
        /// Number of values given.
        found: usize,
        /// Rows expected.
        rows: usize,
        /// Columns expected.
        columns: usize,
    },
    /// A matrix without rows or without columns.
    #[error("{what}: a matrix of {rows} x {columns} is empty")]
    Empty {
        /// Name of the matrix.
        what: String,
        /// Its number of rows.
        rows: usize,
        /// Its number of columns.
        columns: usize,
    },
    /// A value is NaN or infinite.
    #[error("{what}: row {row}, column {column} is {value}, which is not finite")]
    NotFinite {
        /// Name of the matrix.
        what: String,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
        /// The value.
        value: f32,
    },
    /// A row of zeros, which cannot be normalised.
    #[error("{what}: row {row} is zero, so it has no direction")]
    ZeroRow {
        /// Name of the matrix.
        what: String,
        /// Row, from 0.
        row: usize,
    },
    /// Two inputs with one entry per item differ in length.
    #[error("{what}: {found} given, {expected} needed, one for each {each}")]
    Length {
        /// Name of the input, in the plural.
        what: &'static str,
        /// Number of entries given.
        found: usize,
        /// Number of entries expected.
        expected: usize,
        /// Item that each entry belongs to.
        each: &'static str,
    },
    /// Two matrices differ in width.
    #[error("{left} have {left_columns} columns, {right} have {right_columns}; they must agree")]
    Width {
        /// Name of the first matrix.
        left: String,
        /// Its number of columns.
        left_columns: usize,
        /// Name of the second matrix.
        right: String,
        /// Its number of columns.
        right_columns: usize,
    },
    /// An index is out of range.
    #[error("{what} {position} is {index}, but there are only {count} (counted from 0)")]
    OutOfRange {
        /// Name of the index.
        what: &'static str,
        /// Position of the index in its list.
        position: usize,
        /// The index.
        index: usize,
        /// Number of items.
        count: usize,
    },
    /// An image without a caption.
    #[error("image {image} has no caption; leave it out or give it one")]
    NoCaption {
        /// The image.
        image: usize,
    },
    /// A class without a training image.
    #[error("class {class} has no training image; leave the class out or add an image")]
    EmptyClass {
        /// The class.
        class: usize,
    },
    /// A setting is out of its range.
    #[error("{name} is {value}; it must be {need}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// The valid range, in words.
        need: &'static str,
    },
}

/// Borrowed row-major matrix with a name for error messages.
///
/// It has at least one row and one column, and all its values are finite.
///
/// # Example
/// ```
/// use mtil_eval::measures::Matrix;
///
/// let logits = Matrix::new("logits", &[1.0, 2.0, 3.0, 4.0], 2, 2)?;
/// assert_eq!(logits.row(1), [3.0, 4.0]);
/// # Ok::<(), mtil_eval::measures::MeasureError>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    what: &'a str,
    data: &'a [f32],
    rows: usize,
    columns: usize,
}

impl<'a> Matrix<'a> {
    /// Wraps `data` as a matrix. `what` is its name in error messages, in the plural ("image
    /// embeddings").
    ///
    /// # Shapes
    /// - `data`: `[rows, columns]`, row-major
    ///
    /// # Errors
    /// [`MeasureError`] for an empty matrix, a wrong number of values, NaN and infinity.
    pub fn new(
        what: &'a str,
        data: &'a [f32],
        rows: usize,
        columns: usize,
    ) -> Result<Self, MeasureError> {
        if rows == 0 || columns == 0 {
            return Err(MeasureError::Empty {
                what: what.to_owned(),
                rows,
                columns,
            });
        }
        if rows.checked_mul(columns) != Some(data.len()) {
            return Err(MeasureError::Shape {
                what: what.to_owned(),
                found: data.len(),
                rows,
                columns,
            });
        }
        if let Some(at) = data.iter().position(|x| !x.is_finite()) {
            return Err(MeasureError::NotFinite {
                what: what.to_owned(),
                row: at / columns,
                column: at % columns,
                value: data[at],
            });
        }
        Ok(Self {
            what,
            data,
            rows,
            columns,
        })
    }

    /// Name of the matrix in error messages.
    pub fn what(&self) -> &'a str {
        self.what
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns row `i`.
    ///
    /// # Panics
    /// When there is no row `i`.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.columns..(i + 1) * self.columns]
    }

    /// Returns an iterator over the rows.
    pub fn iter(&self) -> std::slice::ChunksExact<'a, f32> {
        self.data.chunks_exact(self.columns)
    }
}

/// Checks that there is one label below `classes` for each of `rows` rows.
fn check_labels(labels: &[usize], rows: usize, classes: usize) -> Result<(), MeasureError> {
    check_indices("labels", "label of image", labels, rows, "image", classes)
}

/// Checks that there are `rows` indices, all below `count`.
fn check_indices(
    list: &'static str,
    item: &'static str,
    indices: &[usize],
    rows: usize,
    each: &'static str,
    count: usize,
) -> Result<(), MeasureError> {
    if indices.len() != rows {
        return Err(MeasureError::Length {
            what: list,
            found: indices.len(),
            expected: rows,
            each,
        });
    }
    match indices.iter().position(|i| *i >= count) {
        None => Ok(()),
        Some(position) => Err(MeasureError::OutOfRange {
            what: item,
            position,
            index: indices[position],
            count,
        }),
    }
}

/// Checks that a number is finite and above 0.
fn check_positive(name: &'static str, value: f64) -> Result<(), MeasureError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(MeasureError::Setting {
        name,
        value: value.to_string(),
        need: "a finite number above 0",
    })
}

/// Reference values written by `tests/reference/measures.py`.
#[cfg(test)]
mod fixture {
    use serde::Deserialize;
    use serde_json::Value;

    use super::Matrix;

    /// A matrix of integers divided by 64, which `f32` represents exactly.
    #[derive(Deserialize)]
    pub struct Stored {
        rows: usize,
        columns: usize,
        values: Vec<f32>,
    }

    /// Returns the section `name` of the file.
    pub fn section<T: serde::de::DeserializeOwned>(name: &str) -> T {
        let all: Value = serde_json::from_str(include_str!("testdata/measures.json")).unwrap();
        serde_json::from_value(all[name].clone()).unwrap()
    }

    impl Stored {
        pub fn values(&self) -> Vec<f32> {
            self.values.iter().map(|v| v / 64.0).collect()
        }

        pub fn with<R>(&self, f: impl FnOnce(Matrix<'_>) -> R) -> R {
            let values = self.values();
            f(Matrix::new("stored values", &values, self.rows, self.columns).unwrap())
        }
    }

    pub fn assert_close(what: &str, ours: f64, theirs: f64, tolerance: f64) {
        assert!(
            (ours - theirs).abs() <= tolerance,
            "{what}: {ours} against {theirs}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_matrices_are_refused_with_the_position() {
        let new = |data: &[f32], rows, columns| {
            Matrix::new("image embeddings", data, rows, columns)
                .unwrap_err()
                .to_string()
        };
        assert!(new(&[], 0, 3).contains("empty"));
        assert!(new(&[], 3, 0).contains("empty"));
        assert!(new(&[1.0; 5], 2, 3).contains("5 values do not make a matrix of 2 x 3"));
        assert!(new(&[1.0], usize::MAX, 2).contains("1 values"));
        let e = new(&[0.0, 1.0, 2.0, f32::NAN], 2, 2);
        assert!(
            e.starts_with("image embeddings: row 1, column 1 is NaN"),
            "{e}"
        );
        assert!(new(&[f32::INFINITY, 1.0], 1, 2).contains("row 0, column 0 is inf"));
    }

    #[test]
    fn errors_name_the_invalid_label() {
        let e = check_labels(&[0, 1, 7], 3, 5).unwrap_err().to_string();
        assert_eq!(
            e,
            "label of image 2 is 7, but there are only 5 (counted from 0)"
        );
        let e = check_labels(&[0, 1], 3, 5).unwrap_err().to_string();
        assert_eq!(e, "labels: 2 given, 3 needed, one for each image");
        assert!(check_labels(&[4, 0], 2, 5).is_ok());
    }
}

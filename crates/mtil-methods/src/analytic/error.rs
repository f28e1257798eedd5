//! Errors of the analytic regressions.

use std::path::PathBuf;

/// Error of updating, evaluating, saving or loading a regression.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnalyticError {
    /// An update without images.
    #[error("no features: an update needs at least one row")]
    Empty,
    /// The number of values is not rows times columns.
    #[error("{what}: {values} values are not {rows} rows of {columns}")]
    Shape {
        /// Name of the input.
        what: &'static str,
        /// Values given.
        values: usize,
        /// Rows expected.
        rows: usize,
        /// Columns expected.
        columns: usize,
    },
    /// The number of values does not divide into rows.
    #[error("features: {values} values do not divide into rows of {width}")]
    Width {
        /// Values given.
        values: usize,
        /// Columns expected.
        width: usize,
    },
    /// A value is NaN or infinite.
    #[error("{what}: the value in row {row}, column {column} is not finite")]
    NotFinite {
        /// Name of the input.
        what: &'static str,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
    },
    /// A label names no class.
    #[error("the label of row {row} is {label}: there are {classes} classes, counted from 0")]
    Label {
        /// Row, from 0.
        row: usize,
        /// The label.
        label: usize,
        /// Number of classes.
        classes: usize,
    },
    /// The number of classes decreased.
    #[error("{to} classes after {from}: the number of classes of all tasks so far cannot decrease")]
    FewerClasses {
        /// Classes learnt so far.
        from: usize,
        /// Classes given.
        to: usize,
    },
    /// A setting is out of its range.
    #[error("{name} is {value}: it must be {must}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// The valid range, in words.
        must: &'static str,
    },
    /// The Cholesky factorisation failed: a matrix that is positive definite in exact arithmetic
    /// is not in `f64`.
    #[error(
        "the regression cannot be solved: {matrix} is not positive definite to rounding, with \
         lambda = {lambda:e}"
    )]
    NotPositiveDefinite {
        /// Formula of the matrix.
        matrix: &'static str,
        /// The ridge regularisation.
        lambda: f64,
    },
    /// Scores were requested before the first update.
    #[error("the regression holds no data: call `update` first")]
    NoData,
    /// Scores or weights were requested between an update and `finish`.
    #[error("the weights are older than the data: call `finish` after the last update")]
    Unfinished,
    /// A file could not be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A file is not a complete safetensors file.
    #[error("{}: not a whole safetensors file: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Error of the parser.
        source: safetensors::SafeTensorError,
    },
    /// A safetensors file does not hold a valid regression.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The defect, naming the tensor or the key.
        reason: String,
    },
}

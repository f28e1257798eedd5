//! What can go wrong in a regression.

use std::path::PathBuf;

/// Why a regression could not be updated, used, saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnalyticError {
    /// An update without images.
    #[error("no features: an update needs at least one row")]
    Empty,
    /// The number of values is not rows times columns.
    #[error("{what}: {values} values are not {rows} rows of {columns}")]
    Shape {
        /// What the values are.
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
        /// What the values are.
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
    /// The number of classes may only grow.
    #[error("{to} classes after {from}: give the number of classes of all tasks so far")]
    FewerClasses {
        /// Classes so far.
        from: usize,
        /// Classes asked for.
        to: usize,
    },
    /// A setting out of its range.
    #[error("{name} is {value}: it must be {must}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        must: &'static str,
    },
    /// A matrix that is positive definite in exact arithmetic is not so in `f64`.
    #[error(
        "the regression cannot be solved: {matrix} is not positive definite to rounding; raise lambda (it is {lambda:e}) and start anew"
    )]
    NotPositiveDefinite {
        /// Which matrix.
        matrix: &'static str,
        /// The regularisation.
        lambda: f64,
    },
    /// Scores were asked for before there was anything to compute them from.
    #[error("the regression holds no data: call `update` first")]
    NoData,
    /// Scores were asked for between an update and `finish`.
    #[error("the weights are older than the data: call `finish` after the last update")]
    Unfinished,
    /// A file could not be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not a whole safetensors file.
    #[error("{}: not a whole safetensors file: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: safetensors::SafeTensorError,
    },
    /// A safetensors file that holds something else than it should.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the tensor or the key.
        reason: String,
    },
}

//! The error type of the crate.

use std::path::PathBuf;

use safetensors::SafeTensorError;

use crate::{Layout, RankRule};

/// A fact that keeps a memory, a recorder or a protection from doing what was asked.
///
/// Whatever failed is unchanged: a memory holds what it held before.
///
/// # Example
///
/// ```
/// use gnsp_optimizer::{GnspError, Policy, RankRule};
///
/// let mut policy = Policy::gnsp_update();
/// policy.rank = RankRule::TailShare(1.5);
/// assert!(matches!(policy.check(), Err(GnspError::TailShare(_))));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GnspError {
    // Choices of a policy.
    /// A tail share outside `(0, 1)`.
    #[error("the tail share must be above 0 and below 1, got {0}")]
    TailShare(f64),
    /// An explained energy outside `(0, 1)`.
    #[error("the explained energy must be above 0 and below 1, got {0}")]
    ExplainedEnergy(f64),
    /// A ratio to the smallest eigenvalue below 1, or not finite.
    #[error("the ratio to the smallest value must be a number from 1 up, got {0}")]
    RatioToSmallest(f64),
    /// A fixed rank above the number of directions.
    #[error("cannot protect {rank} of {features} directions")]
    RankTooLarge {
        /// The directions asked for.
        rank: usize,
        /// The directions there are.
        features: usize,
    },
    /// A softness that is negative or not finite.
    #[error("the softness of a scaled projection must be a number from 0 up, got {0}")]
    Softness(f64),
    /// A forgetting factor outside `(0, 1]`.
    #[error("the forgetting factor must be above 0 and at most 1, got {0}")]
    Decay(f64),
    /// A rank rule that a growing basis cannot follow: what the basis has is zero for it.
    #[error("a growing basis needs a share or a fixed rank, not {0:?}")]
    BasisRule(RankRule),
    /// A policy that does not fit what the memory holds already.
    #[error("the memory was recorded with {field} {recorded}, the policy has {asked}")]
    OtherPolicy {
        /// The field of the policy.
        field: &'static str,
        /// Its value when the memory was recorded.
        recorded: String,
        /// Its value in the policy that was given.
        asked: String,
    },

    // A module and its parameters.
    /// An error about one parameter.
    #[error("parameter `{path}`: {source}")]
    Parameter {
        /// Path of the parameter.
        path: String,
        /// The fact.
        source: Box<GnspError>,
    },
    /// The module has no float parameter of this path.
    #[error("the module has no parameter `{path}`{}", did_you_mean(.near))]
    UnknownParameter {
        /// The path.
        path: String,
        /// The most similar paths of the module, the nearest first.
        near: Vec<String>,
    },
    /// A group that matches no float parameter of the module.
    #[error("the parameter group matches no parameter of the module")]
    EmptyGroup,
    /// A parameter whose shape does not have the recorded inputs.
    #[error(
        "parameter `{path}` has shape {shape:?}: as {layout:?} that does not have the {groups} × {features} \
         inputs that were recorded"
    )]
    Shape {
        /// The path.
        path: String,
        /// The shape of the parameter.
        shape: Vec<usize>,
        /// The layout it was recorded in.
        layout: Layout,
        /// The groups recorded.
        groups: usize,
        /// The features recorded, of each group.
        features: usize,
    },
    /// A parameter that was recorded in another layout before.
    #[error("`{path}` was recorded as {kept:?} and is now recorded as {asked:?}")]
    Layout {
        /// Path of the parameter.
        path: String,
        /// The layout of the earlier inputs.
        kept: Layout,
        /// The layout of these.
        asked: Layout,
    },
    /// A parameter whose history is kept in another way.
    #[error("parameter `{path}`: its history is kept as {kept}, not as {asked}")]
    History {
        /// Path of the parameter.
        path: String,
        /// The way of its earlier tasks.
        kept: String,
        /// The way that was asked for.
        asked: String,
    },
    /// A module before or after training that lacks a recorded parameter, or has it in another
    /// shape.
    #[error("the module {module} training has no parameter `{path}` with the recorded inputs")]
    Compared {
        /// The path.
        path: String,
        /// `"before"` or `"after"`.
        module: &'static str,
    },
    /// A gradient that is not finite, or cannot be read.
    #[error("the gradient of `{path}` {reason}")]
    Gradient {
        /// Path of the parameter.
        path: String,
        /// The reason.
        reason: String,
    },

    // Gram matrices.
    /// Rows of another width than the Gram matrix.
    #[error("rows have {found} features, the Gram matrix has {expected}")]
    Width {
        /// Features of the Gram matrix.
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
    /// A Gram matrix that was finished before a batch was added.
    #[error("no batch was added to the Gram matrix")]
    NoBatches,
    /// Two matrices of which only one is diagonal.
    #[error("a {found} Gram matrix does not fit a {expected} one")]
    Kind {
        /// `"dense"` or `"diagonal"`: the kind of the matrix.
        expected: &'static str,
        /// The kind of the other.
        found: &'static str,
    },
    /// Two matrices of different numbers of groups.
    #[error("the Gram matrix has {expected} groups, the other {found}")]
    Groups {
        /// Groups of the matrix.
        expected: usize,
        /// Groups of the other.
        found: usize,
    },
    /// A token beyond the vocabulary.
    #[error("token {id} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The token.
        id: i64,
        /// The number of tokens there are.
        vocabulary: usize,
    },
    /// A matrix without `features · features` entries.
    #[error("a Gram matrix of {features} features does not have {entries} entries")]
    Size {
        /// The number of features.
        features: usize,
        /// The entries given.
        entries: usize,
    },
    /// Two mirrored entries that differ by more than rounding.
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
    /// Eigenvalues that did not converge.
    #[error("the eigenvalues of a Gram matrix of {features} features did not converge")]
    NoConvergence {
        /// Features of the Gram matrix.
        features: usize,
    },
    /// A device that failed to compute, or to hand over a value.
    #[error("the device could not be read: {0}")]
    Device(String),

    // Memory files.
    /// A file that could not be read or written.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file that is not a whole safetensors file, or could not be written as one.
    #[error("{}: not a whole safetensors file: {source}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: SafeTensorError,
    },
    /// A safetensors file that no memory was saved to.
    #[error("{}: no metadata `gnsp_memory`: this is not a saved memory", file.display())]
    MissingMetadata {
        /// The file.
        file: PathBuf,
    },
    /// Metadata that cannot be parsed.
    #[error("{}: metadata `gnsp_memory`: {source}", file.display())]
    Metadata {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A version of the format that this crate does not read.
    #[error("{}: memory format version {found} is none of 2 and 3", file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// The version found.
        found: u32,
    },
    /// A parameter that is in the metadata alone, or in the tensors alone.
    #[error("{}: parameter `{key}` is in the {present} only", file.display())]
    Unmatched {
        /// The file.
        file: PathBuf,
        /// The parameter.
        key: String,
        /// `"metadata"` or `"tensors"`.
        present: &'static str,
    },
    /// A tensor of another type or size than the metadata says.
    #[error("{}: parameter `{key}`: expected {expected}, found {found}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The parameter.
        key: String,
        /// Type and shape that the metadata asks for.
        expected: String,
        /// Type and shape of the tensor.
        found: String,
    },
    /// Numbers of a tensor that are no Gram matrix, or no directions.
    #[error("{}: parameter `{key}`: {source}", file.display())]
    Values {
        /// The file.
        file: PathBuf,
        /// The parameter.
        key: String,
        /// The fact.
        source: Box<GnspError>,
    },
}

impl GnspError {
    /// This error, of the parameter at `path`.
    pub(crate) fn at(self, path: &str) -> Self {
        Self::Parameter {
            path: path.to_owned(),
            source: Box::new(self),
        }
    }
}

/// `; did you mean …?`, or nothing.
fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() {
        return String::new();
    }
    format!("; did you mean `{}`?", near.join("`, `"))
}

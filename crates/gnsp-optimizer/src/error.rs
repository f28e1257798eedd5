//! Error type of the crate.

use std::path::PathBuf;

use safetensors::SafeTensorError;

use crate::{Layout, RankRule};

/// Error of a memory, a recorder, a null space or a policy.
///
/// An operation on a [`Memory`](crate::Memory) that fails leaves it unchanged.
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
    // Settings of a policy.
    /// A tail share outside `(0, 1)`.
    #[error("the tail share must be above 0 and below 1, got {0}")]
    TailShare(f64),
    /// An explained energy outside `(0, 1)`.
    #[error("the explained energy must be above 0 and below 1, got {0}")]
    ExplainedEnergy(f64),
    /// A ratio to the smallest eigenvalue below 1, or not finite.
    #[error("the ratio to the smallest eigenvalue must be finite and at least 1, got {0}")]
    RatioToSmallest(f64),
    /// A fixed rank above the number of directions.
    #[error("cannot protect {rank} of {features} directions")]
    RankTooLarge {
        /// The requested number of protected directions.
        rank: usize,
        /// The total number of directions.
        features: usize,
    },
    /// A scale `α` of a scaled projection that is negative or not finite.
    #[error("the scale of a scaled projection must be finite and at least 0, got {0}")]
    Softness(f64),
    /// A forgetting factor outside `(0, 1]`.
    #[error("the forgetting factor must be above 0 and at most 1, got {0}")]
    Decay(f64),
    /// A rank rule that a growing basis does not support: it needs the full spectrum, and the
    /// eigenvalues of the directions that the basis contains are zero.
    #[error("a growing basis needs a share or a fixed rank, not {0:?}")]
    BasisRule(RankRule),
    /// A policy that is incompatible with the tasks stored in the memory.
    #[error("the memory was recorded with {field} {recorded}, the policy has {asked}")]
    OtherPolicy {
        /// The field of the policy.
        field: &'static str,
        /// Its value when the memory was recorded.
        recorded: String,
        /// Its value in the new policy.
        asked: String,
    },

    // A module and its parameters.
    /// An error about one parameter.
    #[error("parameter `{path}`: {source}")]
    Parameter {
        /// Path of the parameter.
        path: String,
        /// The error.
        source: Box<GnspError>,
    },
    /// A path that no float parameter of the module has.
    #[error("the module has no parameter `{path}`{}", did_you_mean(.near))]
    UnknownParameter {
        /// The path.
        path: String,
        /// The most similar paths of the module, nearest first.
        near: Vec<String>,
    },
    /// A group that matches no float parameter of the module.
    #[error("the parameter group matches no parameter of the module")]
    EmptyGroup,
    /// A parameter whose shape does not match the recorded inputs.
    #[error(
        "parameter `{path}` of shape {shape:?} does not match the recorded inputs: {layout:?} with \
         {groups} × {features} features"
    )]
    Shape {
        /// The path.
        path: String,
        /// The shape of the parameter.
        shape: Vec<usize>,
        /// The layout it was recorded in.
        layout: Layout,
        /// The recorded number of groups.
        groups: usize,
        /// The recorded number of features per group.
        features: usize,
    },
    /// A parameter that was recorded in another layout before.
    #[error("parameter `{path}` was recorded as {kept:?} and is now recorded as {asked:?}")]
    Layout {
        /// Path of the parameter.
        path: String,
        /// The layout of the earlier inputs.
        kept: Layout,
        /// The layout of the new inputs.
        asked: Layout,
    },
    /// A parameter whose stored history has another rule or layout.
    #[error("parameter `{path}`: its history is {kept}, not {asked}")]
    History {
        /// Path of the parameter.
        path: String,
        /// The stored history rule and layout.
        kept: String,
        /// The requested history rule and layout.
        asked: String,
    },
    /// A recorded parameter that is missing or has another shape in a compared module.
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
    /// A NaN or an infinity, in the rows or from an overflow of their squares in `f32`.
    #[error("the Gram matrix is not finite")]
    NotFinite,
    /// A Gram matrix without features.
    #[error("a Gram matrix needs at least one feature")]
    NoFeatures,
    /// A Gram accumulator that was finished without any batch.
    #[error("no batch was added to the Gram matrix")]
    NoBatches,
    /// Two matrices of which only one is diagonal.
    #[error("a {found} Gram matrix does not fit a {expected} one")]
    Kind {
        /// The kind of the stored matrix, `"dense"` or `"diagonal"`.
        expected: &'static str,
        /// The kind of the other matrix.
        found: &'static str,
    },
    /// Two matrices with different numbers of groups.
    #[error("the Gram matrix has {expected} groups, the other {found}")]
    Groups {
        /// Groups of the stored matrix.
        expected: usize,
        /// Groups of the other matrix.
        found: usize,
    },
    /// A token outside the vocabulary.
    #[error("token {id} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The token.
        id: i64,
        /// The size of the vocabulary.
        vocabulary: usize,
    },
    /// A number of entries that does not match the number of features.
    #[error("a Gram matrix of {features} features does not have {entries} entries")]
    Size {
        /// The number of features.
        features: usize,
        /// The number of entries.
        entries: usize,
    },
    /// Two mirrored entries that differ by more than rounding error.
    #[error("entries ({row}, {column}) and ({column}, {row}) of the Gram matrix differ")]
    NotSymmetric {
        /// Row of the first entry.
        row: usize,
        /// Column of the first entry.
        column: usize,
    },
    /// A negative diagonal entry, which no sum of squares has.
    #[error("diagonal entry {index} of the Gram matrix is negative")]
    NegativeDiagonal {
        /// Index of the entry.
        index: usize,
    },
    /// Stored directions that are not orthonormal.
    #[error("directions {first} and {second} of the basis are not orthonormal")]
    NotOrthonormal {
        /// Index of the first direction.
        first: usize,
        /// Index of the second direction; the same if its norm is not 1.
        second: usize,
    },
    /// An eigensolver that did not converge.
    #[error("the eigenvalues of a Gram matrix of {features} features did not converge")]
    NoConvergence {
        /// Features of the Gram matrix.
        features: usize,
    },
    /// A device that failed to compute or to return a value.
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
    /// A file that is not a complete safetensors file, or could not be written as one.
    #[error("{}: not a complete safetensors file: {source}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: SafeTensorError,
    },
    /// A safetensors file that is not a saved memory.
    #[error("{}: not a saved memory: no metadata `gnsp_memory`", file.display())]
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
    /// An unsupported version of the format.
    #[error("{}: memory format version {found}, supported are 2 and 3", file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// The version found.
        found: u32,
    },
    /// A parameter that is only in the metadata or only in the tensors.
    #[error("{}: parameter `{key}` is in the {present} only", file.display())]
    Unmatched {
        /// The file.
        file: PathBuf,
        /// The parameter.
        key: String,
        /// `"metadata"` or `"tensors"`.
        present: &'static str,
    },
    /// A tensor whose type or shape differs from the metadata.
    #[error("{}: parameter `{key}`: expected {expected}, found {found}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The parameter.
        key: String,
        /// Type and shape according to the metadata.
        expected: String,
        /// Type and shape of the tensor.
        found: String,
    },
    /// Values of a tensor that are not a valid Gram matrix or not valid directions.
    #[error("{}: parameter `{key}`: {source}", file.display())]
    Values {
        /// The file.
        file: PathBuf,
        /// The parameter.
        key: String,
        /// The error.
        source: Box<GnspError>,
    },
}

impl GnspError {
    /// Adds the path of the parameter that the error is about.
    pub(crate) fn at(self, path: &str) -> Self {
        Self::Parameter {
            path: path.to_owned(),
            source: Box::new(self),
        }
    }
}

/// Returns `; did you mean …?`, or an empty string without suggestions.
fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() {
        return String::new();
    }
    format!("; did you mean `{}`?", near.join("`, `"))
}

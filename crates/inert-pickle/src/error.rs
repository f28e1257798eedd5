//! Errors of reading a pickle.

/// Error of reading a pickle. Positions are offsets in the pickle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// The pickle ends before a value that it declares.
    #[error("it ends early: {needed} bytes are needed, {left} are left")]
    Truncated {
        /// Number of bytes of the next value.
        needed: u64,
        /// Number of bytes left.
        left: u64,
    },
    /// The pickle names a class or function that the vocabulary does not have.
    #[error("it asks for `{}` at byte {position}", global.escape_debug())]
    Unknown {
        /// The class or function as `module.name`.
        global: String,
        /// Position in the pickle.
        position: u64,
    },
    /// The pickle is damaged, exceeds the limits, or uses an opcode or a class in an unsupported
    /// way.
    #[error("{reason} (at byte {position})")]
    Malformed {
        /// Position in the pickle.
        position: u64,
        /// The reason.
        reason: String,
    },
    /// Reading the source failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

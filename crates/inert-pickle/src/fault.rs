//! What a pickle can be wrong with.

/// Why a pickle was not read. Positions are offsets in the pickle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It ends before what it announces.
    #[error("it ends early: {needed} bytes are needed, {left} are left")]
    Truncated {
        /// Bytes the next value needs.
        needed: u64,
        /// Bytes there are.
        left: u64,
    },
    /// It asks for a class or function that the vocabulary does not have.
    #[error("it asks for `{}` at byte {position}", global.escape_debug())]
    Unknown {
        /// `module.name`, as it stands there.
        global: String,
        /// Where.
        position: u64,
    },
    /// It is damaged, beyond the limits, or uses an opcode or a class in a way that is not known.
    #[error("{reason} (at byte {position})")]
    Malformed {
        /// Where.
        position: u64,
        /// What is wrong.
        reason: String,
    },
    /// The bytes cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

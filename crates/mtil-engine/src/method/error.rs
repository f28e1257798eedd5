//! Why a method could not be read.

/// Why a method could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MethodError {
    /// The name is neither built in nor a file.
    #[error("there is no method `{name}`; built in are {}; or give the path of a TOML file", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The methods that there are.
        known: Vec<&'static str>,
    },
    /// The file cannot be read.
    #[error("cannot read method {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The text is not a method.
    #[error("method {name}: {reason}")]
    Invalid {
        /// The method or file.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

//! Errors of reading a method.

use mtil_data::did_you_mean;

/// Error of reading a method.
#[derive(Debug, thiserror::Error)]
pub enum MethodError {
    /// The name is neither built in nor a file.
    #[error(
        "there is no method `{name}`{}; built in are {}; or give the path of a TOML file",
        did_you_mean(near.as_deref()),
        known.join(", ")
    )]
    Unknown {
        /// Name of the method.
        name: String,
        /// The most similar built-in method.
        near: Option<String>,
        /// Names of the built-in methods.
        known: Vec<&'static str>,
    },
    /// The file cannot be read.
    #[error("cannot read method {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The TOML is not a valid method.
    #[error("method {name}: {reason}")]
    Invalid {
        /// Name of the method, or path of its file.
        name: String,
        /// The defect, naming the key.
        reason: String,
    },
}

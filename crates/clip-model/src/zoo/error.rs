//! Errors of the model zoo.

use std::path::{Path, PathBuf};

/// Error of a lookup, download or verification of named weights.
///
/// No message contains a token, the user part of a URL or its query: signed links of download
/// servers carry their key there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZooError {
    /// The registry is not valid.
    #[error("{}: {reason}", path.display())]
    Registry {
        /// The file.
        path: PathBuf,
        /// The violated rule, with the model and the key.
        reason: String,
    },
    /// No model has this name.
    #[error("no model is called `{name}`{}", did_you_mean(near))]
    Unknown {
        /// The requested name.
        name: String,
        /// The most similar names.
        near: Vec<String>,
    },
    /// The model has no source of the requested layout.
    #[error("`{name}` has no source in layout {layout}")]
    NoLayout {
        /// The model.
        name: String,
        /// The layout.
        layout: &'static str,
    },
    /// Neither the environment nor the operating system says where the cache is.
    #[error("there is no home directory to cache weights in; set HF_HOME to a folder")]
    NoHome,
    /// A file or folder could not be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The files are not cached and the network was disabled.
    #[error(
        "`{name}` is not in the cache ({}); \
         fetch it once with the network on and HF_HUB_OFFLINE unset",
        join_paths(looked)
    )]
    NotCached {
        /// The model.
        name: String,
        /// The folders that were searched.
        looked: Vec<PathBuf>,
    },
    /// A file is not the one the registry or the Hub describes.
    #[error("{}: SHA-256 is {found}, expected {expected}; {outcome}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Expected hash, in hexadecimal.
        expected: String,
        /// Hash of the file.
        found: String,
        /// Action taken on the file, or advice about it.
        outcome: &'static str,
    },
    /// The length of a file differs from the one that the server announced.
    #[error(
        "{file}: got {found} bytes, the server announced {expected}; \
         fetch it again, or from another endpoint (HF_ENDPOINT)"
    )]
    Length {
        /// The file.
        file: String,
        /// Announced length in bytes.
        expected: u64,
        /// Received length, or a second announced one.
        found: u64,
    },
    /// The repository does not hold the file.
    #[error(
        "{host} has no {file} in {repo} at revision {revision}: check the repository and the \
         revision in the registry, or put the file into the cache by hand"
    )]
    NotFound {
        /// The server.
        host: String,
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The file, or the alternative names that were tried.
        file: String,
    },
    /// The server requires authentication.
    #[error(
        "{host} refuses {file} in {repo} (status {status}): accept the licence on the \
         repository's page, then set HF_TOKEN to a token that may read it; a repository that \
         does not exist answers the same"
    )]
    Denied {
        /// The server.
        host: String,
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// The HTTP status, 401 or 403.
        status: u16,
    },
    /// The server limits the request rate, and the retries or the longest wait are exhausted.
    #[error(
        "{host} limits the rate of requests{}; gave up after {attempts} attempt(s). \
         Try again later, or set HF_TOKEN for a higher limit",
        wait_request(*retry_after)
    )]
    RateLimited {
        /// The server.
        host: String,
        /// `Retry-After` in seconds.
        retry_after: Option<u64>,
        /// Number of requests made.
        attempts: u32,
    },
    /// The server answered with an error status.
    #[error("{url} answered with status {status} (attempt {attempts})")]
    Status {
        /// URL of the response.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Number of requests made.
        attempts: u32,
    },
    /// There was no response, or the connection broke off.
    #[error(
        "{url}: {reason}; gave up after {attempts} attempt(s). \
         The partial file is kept, the next call resumes it"
    )]
    Connection {
        /// Requested URL.
        url: String,
        /// Cause of the failure.
        reason: String,
        /// Number of requests made.
        attempts: u32,
    },
    /// The response is not a valid one of a Hub.
    #[error("{url}: {reason}")]
    Answer {
        /// Requested URL.
        url: String,
        /// Defect of the response.
        reason: String,
    },
    /// Each source of the model failed.
    #[error("no source of `{name}` could be fetched: {}", join_errors(failures))]
    Sources {
        /// The model.
        name: String,
        /// The error of each source, in order.
        failures: Vec<ZooError>,
    },
}

impl ZooError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

fn wait_request(seconds: Option<u64>) -> String {
    seconds.map_or(String::new(), |s| format!(" and asks to wait {s} s"))
}

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() {
        return String::new();
    }
    let names: Vec<_> = near.iter().map(|n| format!("`{n}`")).collect();
    format!("; did you mean {}?", names.join(" or "))
}

fn join_paths(looked: &[PathBuf]) -> String {
    let paths: Vec<_> = looked.iter().map(|p| p.display().to_string()).collect();
    paths.join(", ")
}

fn join_errors(failures: &[ZooError]) -> String {
    let texts: Vec<_> = failures.iter().map(ToString::to_string).collect();
    texts.join("; then ")
}

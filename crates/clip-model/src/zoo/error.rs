//! What can go wrong between a model's name and its files.

use std::path::{Path, PathBuf};

/// Why weights could not be named, found, fetched or trusted.
///
/// No message holds a token, the user part of a URL or its query: signed links of download servers
/// carry their key there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZooError {
    /// The registry is not valid.
    #[error("{}: {reason}", path.display())]
    Registry {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the model and the key.
        reason: String,
    },
    /// No model has this name.
    #[error("no model is called `{name}`{}", did_you_mean(near))]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The most similar names.
        near: Vec<String>,
    },
    /// The model has no source of the layout that was asked for.
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
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The files are not on this machine and the network was not to be used.
    #[error(
        "`{name}` is not in the cache ({}); fetch it once with the network on and HF_HUB_OFFLINE unset",
        places(looked)
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
        /// The hash it should have, hexadecimal.
        expected: String,
        /// The hash it has.
        found: String,
        /// What became of the file.
        outcome: &'static str,
    },
    /// A file has another length than the server announced.
    #[error(
        "{file}: got {found} bytes, the server announced {expected}; fetch it again, or from another endpoint (HF_ENDPOINT)"
    )]
    Length {
        /// The file.
        file: String,
        /// Announced length in bytes.
        expected: u64,
        /// Length of what came.
        found: u64,
    },
    /// The repository does not hold the file.
    #[error(
        "{host} has no {file} in {repo} at revision {revision}: check the repository and the revision in the registry, or put the file into the cache by hand"
    )]
    NotFound {
        /// The server.
        host: String,
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The file, or the names that were tried.
        file: String,
    },
    /// The server wants to know who asks.
    #[error(
        "{host} refuses {file} in {repo} (status {status}): accept the licence on the repository's page, then set HF_TOKEN to a token that may read it; a repository that does not exist answers the same"
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
    /// The server asks to slow down, for longer than is waited.
    #[error("{host} limits the rate of requests{}; gave up after {attempts} attempt(s). Try again later, or set HF_TOKEN for a higher limit", retry_after.map_or(String::new(), |s| format!(" and asks to wait {s} s")))]
    RateLimited {
        /// The server.
        host: String,
        /// Seconds it asks to wait.
        retry_after: Option<u64>,
        /// Requests that were made.
        attempts: u32,
    },
    /// The server answered with an error.
    #[error("{url} answered with status {status} (attempt {attempts})")]
    Status {
        /// Where the answer came from.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Requests that were made.
        attempts: u32,
    },
    /// There was no answer, or it broke off.
    #[error(
        "{url}: {reason}; gave up after {attempts} attempt(s). What came is kept, the next call goes on from there"
    )]
    Connection {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
        /// Requests that were made.
        attempts: u32,
    },
    /// The answer is not one that a Hub gives.
    #[error("{url}: {reason}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// Each source of the model failed.
    #[error("no source of `{name}` could be fetched: {}", each(failures))]
    Sources {
        /// The model.
        name: String,
        /// Why, source by source.
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

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() {
        return String::new();
    }
    let names: Vec<_> = near.iter().map(|n| format!("`{n}`")).collect();
    format!("; did you mean {}?", names.join(" or "))
}

fn places(looked: &[PathBuf]) -> String {
    let paths: Vec<_> = looked.iter().map(|p| p.display().to_string()).collect();
    paths.join(", ")
}

fn each(failures: &[ZooError]) -> String {
    let texts: Vec<_> = failures.iter().map(ToString::to_string).collect();
    texts.join("; then ")
}

//! Errors of archives, and the size limit of files.

use std::io;

/// Maximum size of a file in bytes. The largest file of the supported datasets is CIFAR's `train`
/// with 155 MB.
pub(super) const MAX_FILE: u64 = 1 << 30;

/// Defect of an archive or of one of its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArchiveError {
    pub(super) member: Option<String>,
    pub(super) reason: String,
}

impl ArchiveError {
    pub(super) fn of_archive(reason: impl Into<String>) -> Self {
        Self {
            member: None,
            reason: reason.into(),
        }
    }

    pub(super) fn of_member(name: &str, reason: impl Into<String>) -> Self {
        Self {
            member: Some(name.to_owned()),
            reason: reason.into(),
        }
    }
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        Self::of_archive(error.to_string())
    }
}

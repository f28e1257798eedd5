//! What is wrong with an archive, and the longest file that is read of one.

use std::io;

/// Longest file that is read, in bytes. The longest of the supported datasets is CIFAR's `train`
/// with 155 MB.
pub(super) const MAX_FILE: u64 = 1 << 30;

/// What is wrong with an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) member: Option<String>,
    pub(super) reason: String,
}

impl Fault {
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

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::of_archive(error.to_string())
    }
}

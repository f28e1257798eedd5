//! Errors of weight files.

use std::path::{Path, PathBuf};

use super::ElementType;

/// Error of reading or writing a weight file.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// A file could not be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The format of the content is unknown.
    #[error(
        "{} is not a weights file: {hint}; expected safetensors, an index JSON, \
         or a file written by torch.save or torch.jit.save",
        path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Probable kind of the content.
        hint: &'static str,
    },
    /// The file ends before the declared length.
    #[error(
        "{} ends early: {part} needs {needed} bytes, {left} are left; fetch the file again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Part of the file that was read.
        part: String,
        /// Declared length of the part in bytes.
        needed: u64,
        /// Bytes left in the file.
        left: u64,
    },
    /// The header of a safetensors file is invalid.
    #[error(
        "{}: invalid safetensors header: {reason}; fetch or write the file again",
        path.display()
    )]
    Header {
        /// The file.
        path: PathBuf,
        /// Defect, with the name of the tensor.
        reason: String,
    },
    /// The index of a sharded set is invalid.
    #[error("{}: invalid index of weight shards: {reason}", path.display())]
    Index {
        /// The index JSON.
        path: PathBuf,
        /// Defect, and the expected content.
        reason: String,
    },
    /// An entry of a zip archive is damaged, unsafe or not in PyTorch's format.
    #[error("{}: zip entry `{entry}` {reason}", path.display())]
    ArchiveEntry {
        /// The file.
        path: PathBuf,
        /// The entry.
        entry: String,
        /// Defect and remedy.
        reason: String,
    },
    /// The directory of a zip archive is damaged or unsafe.
    #[error("{}: invalid zip archive: {reason}; fetch the file again", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// Defect.
        reason: String,
    },
    /// A pickle is malformed or has opcodes that weights do not need.
    #[error(
        "{}: the pickle `{section}` is unusable at byte {position}: {reason}; fetch the file \
         again or convert it to safetensors with the tool that wrote it",
        path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
        /// The zip entry, or the part of a legacy file.
        section: String,
        /// Offset in the section, in bytes.
        position: u64,
        /// Defect.
        reason: String,
    },
    /// A pickle refers to a class or function outside the list of known ones.
    #[error(
        "{}: the pickle `{section}` asks for `{global}`, which is not a tensor or plain \
         container; nothing was executed; if you trust the file, load it with the tool that \
         wrote it and save only its state_dict, as safetensors",
        path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// The zip entry, or the part of a legacy file.
        section: String,
        /// `module.name`.
        global: String,
    },
    /// The pickled object is not a mapping of tensors.
    #[error(
        "{}: `{section}` {reason}; expected a state_dict: names mapped to tensors, at the top \
         or under `state_dict`, `model_state_dict` or `model`",
        path.display()
    )]
    NoStateDict {
        /// The file.
        path: PathBuf,
        /// The zip entry, or the part of a legacy file.
        section: String,
        /// Actual content.
        reason: String,
    },
    /// The shape, strides and storage of a tensor are inconsistent.
    #[error("{}: tensor `{name}` {reason}", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Defect and remedy.
        reason: String,
    },
    /// The data type of a tensor is not supported.
    #[error(
        "{}: tensor `{name}` has type {dtype}, which is not supported; \
         convert it to F32, F16 or BF16",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Data type of the tensor.
        dtype: String,
    },
    /// The file has no tensor of that name.
    #[error("{}: tensor `{name}` is missing ({count} others are there)", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Number of tensors in the file.
        count: usize,
    },
    /// Floats were requested from an integer tensor, or integers from a float tensor.
    #[error("{}: tensor `{name}` has type {dtype}, expected {expected}", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Data type of the tensor.
        dtype: ElementType,
        /// Requested types.
        expected: &'static str,
    },
    /// A value is NaN or infinite, or too large for the target type.
    #[error(
        "{}: tensor `{name}` holds NaN, infinite values, or values beyond the range of {dtype}",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Target type of the conversion.
        dtype: ElementType,
    },
    /// The written tensors do not match the declared ones.
    #[error("cannot write {}: tensor `{name}` {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Defect.
        reason: String,
    },
}

impl WeightError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn entry(path: &Path, entry: &str, reason: impl Into<String>) -> Self {
        Self::ArchiveEntry {
            path: path.to_owned(),
            entry: entry.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn layout(path: &Path, name: &str, reason: impl Into<String>) -> Self {
        Self::Layout {
            path: path.to_owned(),
            name: name.to_owned(),
            reason: reason.into(),
        }
    }
}

/// Returns text from a file for a message: truncated and without control characters.
pub(super) fn sanitize(text: &str) -> String {
    const MAX_CHARS: usize = 120;
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut short: String = text.chars().take(MAX_CHARS).map(clean).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_truncated_and_control_characters_are_replaced() {
        assert_eq!(sanitize("a\nb\u{1b}[31m"), "a\u{fffd}b\u{fffd}[31m");
        assert_eq!(sanitize(&"x".repeat(1000)).chars().count(), 121);
        assert_eq!(sanitize("encoder.weight"), "encoder.weight");
    }
}

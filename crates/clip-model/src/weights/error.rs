//! What can go wrong with a weights file.

use std::path::{Path, PathBuf};

use super::ElementType;

/// Why weights could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// A file could not be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The content is of no known format.
    #[error("{} is not a weights file: {hint}; expected safetensors, an index JSON, or a file written by torch.save or torch.jit.save", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What it looks like instead.
        hint: &'static str,
    },
    /// The file ends before what it announces.
    #[error("{} ends early: {part} needs {needed} bytes, {left} are left; fetch the file again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was being read.
        part: String,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        left: u64,
    },
    /// The header of a safetensors file is invalid.
    #[error("{}: invalid safetensors header: {reason}; fetch or write the file again", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the tensor's name.
        reason: String,
    },
    /// The index of a sharded set is invalid.
    #[error("{}: invalid index of weight shards: {reason}", path.display())]
    Index {
        /// The index JSON.
        path: PathBuf,
        /// What is wrong, and what is expected.
        reason: String,
    },
    /// A zip archive is damaged, unsafe or not PyTorch's.
    #[error("{}: zip entry `{entry}` {reason}", path.display())]
    ArchiveEntry {
        /// The file.
        path: PathBuf,
        /// The entry.
        entry: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The directory of a zip archive is damaged or unsafe.
    #[error("{}: invalid zip archive: {reason}; fetch the file again", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A pickle is malformed or uses what weights do not need.
    #[error("{}: the pickle `{section}` is unusable at byte {position}: {reason}; fetch the file again or convert it to safetensors with the tool that wrote it", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// The zip entry, or the part of a legacy file.
        section: String,
        /// Offset in the section.
        position: u64,
        /// What is wrong.
        reason: String,
    },
    /// A pickle asks for a class or function outside the list of known ones.
    #[error("{}: the pickle `{section}` asks for `{global}`, which is not a tensor or plain container; nothing was executed; if you trust the file, load it with the tool that wrote it and save only its state_dict, as safetensors", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The zip entry, or the part of a legacy file.
        section: String,
        /// `module.name`.
        global: String,
    },
    /// The pickled object is not a mapping of tensors.
    #[error("{}: `{section}` {reason}; expected a state_dict: names mapped to tensors, at the top or under `state_dict`, `model_state_dict` or `model`", path.display())]
    NoStateDict {
        /// The file.
        path: PathBuf,
        /// The zip entry, or the part of a legacy file.
        section: String,
        /// What it holds instead.
        reason: String,
    },
    /// A tensor's shape, strides or storage do not fit together.
    #[error("{}: tensor `{name}` {reason}", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A tensor of a number format that weights do not have.
    #[error("{}: tensor `{name}` has type {dtype}, which is not supported; convert it to F32, F16 or BF16", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// There is no tensor of that name.
    #[error("{}: tensor `{name}` is missing ({count} others are there)", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// How many tensors the file holds.
        count: usize,
    },
    /// Floats were asked of an integer tensor, or the reverse.
    #[error("{}: tensor `{name}` has type {dtype}, expected {expected}", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: ElementType,
        /// The types asked for.
        expected: &'static str,
    },
    /// A value is NaN or infinite, or too large for the type it is read or written as.
    #[error("{}: tensor `{name}` holds NaN, infinite values, or values beyond the range of {dtype}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The type it is read or written as.
        dtype: ElementType,
    },
    /// The writer was given something else than was declared.
    #[error("cannot write {}: tensor `{name}` {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
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

/// Text from a file, cut to what a message can hold and without control characters.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 120;
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut short: String = text.chars().take(LONGEST).map(clean).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_file_is_cut_and_cleaned() {
        assert_eq!(quoted("a\nb\u{1b}[31m"), "a\u{fffd}b\u{fffd}[31m");
        assert_eq!(quoted(&"x".repeat(1000)).chars().count(), 121);
        assert_eq!(quoted("encoder.weight"), "encoder.weight");
    }
}

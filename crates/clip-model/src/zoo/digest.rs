//! SHA-256 of files.

use std::{fs::File, io::Read, path::Path};

use sha2::{Digest, Sha256};

use super::ZooError;

/// Reading in pieces of this size keeps memory flat for files of gigabytes.
const PIECE: usize = 1 << 20;

/// The hash of a file in lower-case hexadecimal, and its length in bytes.
///
/// # Errors
/// [`ZooError::Io`] when it cannot be read.
pub(super) fn sha256_file(path: &Path) -> Result<(String, u64), ZooError> {
    let error = |e| ZooError::io(path, e);
    let mut file = File::open(path).map_err(error)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE];
    let mut length = 0;
    loop {
        let n = file.read(&mut piece).map_err(error)?;
        if n == 0 {
            break;
        }
        hasher.update(&piece[..n]);
        length += n as u64;
    }
    Ok((format!("{:x}", hasher.finalize()), length))
}

/// Whether `text` is a SHA-256 in lower-case hexadecimal.
pub(super) fn is_sha256(text: &str) -> bool {
    is_lower_hex(text, 64)
}

/// Whether `text` is a full git commit.
pub(super) fn is_commit(text: &str) -> bool {
    is_lower_hex(text, 40)
}

fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_standard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_file(&path).unwrap(), (expected.to_owned(), 3));
        assert!(
            is_sha256(expected) && !is_commit(expected) && !is_sha256(&expected.to_uppercase())
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = sha256_file(Path::new("/nowhere/at-all")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at-all"));
    }
}

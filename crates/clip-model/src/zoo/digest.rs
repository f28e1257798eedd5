//! SHA-256 of files.

use std::{fs::File, io::Read, path::Path};

use sha2::{Digest, Sha256};

use super::ZooError;

/// Read buffer in bytes. A fixed one keeps memory constant for files of gigabytes.
const BUFFER_SIZE: usize = 1 << 20;

/// Returns the SHA-256 of a file in lower-case hexadecimal, and its length in bytes.
///
/// # Errors
/// [`ZooError::Io`] when the file cannot be read.
pub(super) fn sha256_file(path: &Path) -> Result<(String, u64), ZooError> {
    let error = |e| ZooError::io(path, e);
    let mut file = File::open(path).map_err(error)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_SIZE];
    let mut length = 0;
    loop {
        let n = file.read(&mut buffer).map_err(error)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        length += n as u64;
    }
    Ok((format!("{:x}", hasher.finalize()), length))
}

/// Returns `true` if `text` is a SHA-256 in lower-case hexadecimal.
pub(super) fn is_sha256(text: &str) -> bool {
    is_lower_hex(text, 64)
}

/// Returns `true` if `text` is a full git commit hash.
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
    fn sha256_matches_fips_180_2() {
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
    fn error_names_the_missing_file() {
        let error = sha256_file(Path::new("/nowhere/at-all")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at-all"));
    }
}

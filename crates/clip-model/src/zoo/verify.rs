//! Verification of cached files by their SHA-256.

use std::path::PathBuf;

use super::{Cache, Entry, Role, Source, ZooError, cache::expected_hash, digest::sha256_file};

/// Verification result of one file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileReport {
    /// Role of the file.
    pub role: Role,
    /// Path of the file; for a missing file, the folder of its repository.
    pub path: PathBuf,
    /// Comparison of the file with its expected hash.
    pub state: FileState,
}

/// Comparison of a file with its expected hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// The hash is the one that the registry or the Hub states.
    Intact {
        /// Length in bytes.
        bytes: u64,
        /// SHA-256 in lower-case hexadecimal.
        sha256: String,
    },
    /// The file exists, but neither the registry nor the Hub states its SHA-256.
    Unverified {
        /// Length in bytes.
        bytes: u64,
        /// SHA-256 in lower-case hexadecimal.
        sha256: String,
    },
    /// The hash differs from the expected one.
    Corrupt {
        /// Expected hash.
        expected: String,
        /// Hash of the file.
        found: String,
    },
    /// The file does not exist, though other files of its source do.
    Missing,
}

/// Hashes the cached files of `entry`, from every source that is cached completely or in part.
///
/// # Errors
/// [`ZooError::NotCached`] when no file is cached, [`ZooError::Io`] when a file cannot be read. A
/// corrupt or missing file is not an error but part of the report.
pub fn verify(entry: &Entry, cache: &Cache) -> Result<Vec<FileReport>, ZooError> {
    let mut reports = Vec::new();
    for source in &entry.sources {
        match source {
            Source::Hub(hub) => {
                let found: Vec<_> = hub
                    .files
                    .iter()
                    .map(|spec| (spec, cache.find_hub_file(hub, spec)))
                    .collect();
                if found.iter().all(|(_, path)| path.is_none()) {
                    continue;
                }
                for (spec, path) in found {
                    reports.push(match path {
                        Some(path) => {
                            let expected = expected_hash(spec, &path).map(|(hash, _)| hash);
                            report(spec.role, path, expected)?
                        }
                        None => FileReport {
                            role: spec.role,
                            path: cache.repo(hub.origin(spec).0),
                            state: FileState::Missing,
                        },
                    });
                }
            }
            Source::Archive(archive) => {
                for path in cache.archive_paths(archive) {
                    if path.is_file() {
                        reports.push(report(Role::Weights, path, Some(archive.sha256.clone()))?);
                    }
                }
            }
        }
    }
    if reports.is_empty() {
        return Err(cache.not_cached(entry));
    }
    Ok(reports)
}

fn report(role: Role, path: PathBuf, expected: Option<String>) -> Result<FileReport, ZooError> {
    let (sha256, bytes) = sha256_file(&path)?;
    let state = match expected {
        None => FileState::Unverified { bytes, sha256 },
        Some(expected) if expected == sha256 => FileState::Intact { bytes, sha256 },
        Some(expected) => FileState::Corrupt {
            expected,
            found: sha256,
        },
    };
    Ok(FileReport { role, path, state })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{super::Registry, *};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    /// SHA-256 of `abc`, FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn entry() -> Entry {
        let text = format!(
            "[[model]]\nname = 'a/b'\narchitecture = 'ViT-B-16'\n\
             preprocess = {{ size = 224, mean = [0, 0, 0], std = [1, 1, 1], \
             interpolation = 'bicubic', resize_mode = 'squash' }}\n\
             [[model.source]]\nlayout = 'openai-archive'\nurl = 'https://example.org/x.pt'\n\
             sha256 = '{ABC}'\n\
             [[model.source]]\nlayout = 'open-clip'\nrepo = 'o/n'\nrevision = '{COMMIT}'\nfiles = [\
             {{ role = 'weights', names = ['m'], sha256 = '{ABC}' }}, \
             {{ role = 'config', names = ['c'] }}, {{ role = 'tokenizer', names = ['t'] }}]\n"
        );
        let registry = Registry::parse(&text, Path::new("my.toml")).unwrap();
        registry.iter().next().unwrap().clone()
    }

    #[test]
    fn each_file_state_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        assert!(matches!(
            verify(&entry(), &cache),
            Err(ZooError::NotCached { .. })
        ));
        let archive = dir.path().join("clip-model").join(ABC).join("x.pt");
        fs::create_dir_all(archive.parent().unwrap()).unwrap();
        fs::write(&archive, "abc").unwrap();
        let snapshot = cache.snapshot("o/n", COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        fs::write(snapshot.join("m"), "abd").unwrap();
        fs::write(snapshot.join("c"), "abc").unwrap();

        let states: Vec<_> = verify(&entry(), &cache)
            .unwrap()
            .into_iter()
            .map(|r| (r.role, r.state))
            .collect();
        let sha256 = ABC.to_owned();
        let found = "a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9".to_owned();
        assert_eq!(
            states,
            [
                (
                    Role::Weights,
                    FileState::Intact {
                        bytes: 3,
                        sha256: sha256.clone()
                    }
                ),
                (
                    Role::Weights,
                    FileState::Corrupt {
                        expected: sha256.clone(),
                        found
                    }
                ),
                (Role::Config, FileState::Unverified { bytes: 3, sha256 }),
                (Role::Tokenizer, FileState::Missing),
            ]
        );
    }
}

//! Re-hashing what lies in the cache.

use std::path::PathBuf;

use super::{
    Cache, Entry, Role, Source, ZooError, cache::expected_of_hub_file, digest::sha256_file,
};

/// What one file of a model turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileReport {
    /// What it is for.
    pub role: Role,
    /// Where it is, or for a missing one, the folder it should be in.
    pub path: PathBuf,
    /// What is known of it.
    pub state: FileState,
}

/// Whether a file is what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// It has the hash that the registry or the Hub states.
    Intact {
        /// Length in bytes.
        bytes: u64,
        /// SHA-256 in lower-case hexadecimal.
        sha256: String,
    },
    /// It is there, but nothing states its hash.
    Unstated {
        /// Length in bytes.
        bytes: u64,
        /// SHA-256 in lower-case hexadecimal.
        sha256: String,
    },
    /// It has another hash.
    Corrupt {
        /// The hash it should have.
        expected: String,
        /// The hash it has.
        found: String,
    },
    /// It is not there, though other files of its source are.
    Missing,
}

/// Hashes each file of `entry` that is in `cache`, of every source that is there in part or in
/// whole.
///
/// # Errors
/// [`ZooError::NotCached`] when nothing is there, [`ZooError::Io`] when a file cannot be read. A
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
                            let expected = expected_of_hub_file(spec, &path).map(|(hash, _)| hash);
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
        None => FileState::Unstated { bytes, sha256 },
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
             preprocess = {{ size = 224, mean = [0, 0, 0], std = [1, 1, 1], interpolation = 'bicubic', resize_mode = 'squash' }}\n\
             [[model.source]]\nlayout = 'openai-archive'\nurl = 'https://example.org/x.pt'\nsha256 = '{ABC}'\n\
             [[model.source]]\nlayout = 'open-clip'\nrepo = 'o/n'\nrevision = '{COMMIT}'\nfiles = [\
             {{ role = 'weights', names = ['m'], sha256 = '{ABC}' }}, {{ role = 'config', names = ['c'] }}, {{ role = 'tokenizer', names = ['t'] }}]\n"
        );
        let registry = Registry::parse(&text, Path::new("my.toml")).unwrap();
        registry.iter().next().unwrap().clone()
    }

    #[test]
    fn each_file_is_reported_as_what_it_is() {
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
                (Role::Config, FileState::Unstated { bytes: 3, sha256 }),
                (Role::Tokenizer, FileState::Missing),
            ]
        );
    }
}

//! Recursive listing of folders.

use std::path::{Path, PathBuf};

use crate::datasets::error::DatasetError;

/// Lists every regular file below `root/folder` as a `/`-separated path relative to `root`.
///
/// Paths are sorted by their bytes. The list is empty if there is no such folder. Links are
/// followed, except to a parent folder. Names that are not Unicode, which no dataset has, are
/// skipped.
pub(super) fn files(root: &Path, folder: &str) -> Result<Vec<String>, DatasetError> {
    let start = if folder.is_empty() {
        root.to_owned()
    } else {
        root.join(folder)
    };
    let mut found = Vec::new();
    if start.is_dir() {
        let mut above = Vec::new();
        walk(&start, folder, &mut above, &mut found)?;
    }
    found.sort_unstable();
    Ok(found)
}

/// Adds the files below `folder` to `found`. `above` has the canonical paths of its parents.
fn walk(
    folder: &Path,
    name: &str,
    above: &mut Vec<PathBuf>,
    found: &mut Vec<String>,
) -> Result<(), DatasetError> {
    let failed = |source| DatasetError::Io {
        path: folder.to_owned(),
        source,
    };
    let real = std::fs::canonicalize(folder).map_err(failed)?;
    if above.contains(&real) {
        return Ok(());
    }
    above.push(real);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(base) = entry.file_name().into_string() else {
            continue;
        };
        let name = if name.is_empty() {
            base
        } else {
            format!("{name}/{base}")
        };
        // The type of an entry costs no system call, except for a link.
        let kind = entry.file_type().map_err(failed)?;
        let (is_dir, is_file) = if kind.is_symlink() {
            match std::fs::metadata(entry.path()) {
                Ok(target) => (target.is_dir(), target.is_file()),
                // A dangling link.
                Err(_) => continue,
            }
        } else {
            (kind.is_dir(), kind.is_file())
        };
        if is_dir {
            walk(&entry.path(), &name, above, found)?;
        } else if is_file {
            found.push(name);
        }
    }
    above.pop();
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_but_not_round_and_round() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        std::fs::create_dir_all(path.join("a/b")).unwrap();
        for file in ["a/10.jpg", "a/2.jpg", "a/b/1.jpg", "a-c"] {
            std::fs::write(path.join(file), b"").unwrap();
        }
        symlink(path, path.join("a/b/up")).unwrap();
        symlink(path.join("a/b"), path.join("twice")).unwrap();
        symlink("nowhere", path.join("dangling")).unwrap();
        symlink("a/2.jpg", path.join("link.jpg")).unwrap();
        let all = files(path, "").unwrap();
        assert_eq!(
            all,
            [
                "a-c",
                "a/10.jpg",
                "a/2.jpg",
                "a/b/1.jpg",
                "link.jpg",
                "twice/1.jpg"
            ]
        );
        assert_eq!(files(path, "a/b").unwrap()[0], "a/b/1.jpg");
        assert!(files(path, "none").unwrap().is_empty());
        assert!(files(path, "a-c").unwrap().is_empty());
    }
}

//! Atomic file writes, and the temporary files that killed processes leave.

use std::{
    fs::{self, DirEntry},
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use tempfile::NamedTempFile;

/// Start and end of the names of temporary files.
const PREFIX: &str = ".mtil-";
const SUFFIX: &str = ".tmp";

/// Age at which a temporary file is taken for one of a killed process. A write renews the time of
/// change, and takes minutes at most.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

/// Writes a temporary file beside `path`, flushes it to disk and renames it to `path`.
///
/// Readers see either the old file or the complete new one. Temporary files that killed processes
/// left in the folder are removed after an hour.
///
/// # Errors
/// If the temporary file cannot be created, written, flushed or renamed. `path` is unchanged then.
///
/// ```
/// use clip_model::files::write_atomically;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("metrics.json");
/// write_atomically(&path, b"{}")?;
/// assert_eq!(std::fs::read(&path)?, b"{}");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = temporary_file_beside(path)?;
    file.as_file().write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Creates a temporary file in the folder of `path`, which other users may read, and removes those
/// that killed processes left there. Write to its `as_file`, whose errors do not name the temporary
/// file.
///
/// # Errors
/// If the file cannot be created.
pub fn temporary_file_beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = parent_folder(path);
    // Other processes may be writing to the folder: the age tells.
    remove_files(folder, &|name, entry| {
        is_temporary_name(name) && is_abandoned(entry)
    });
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    // Temporary files are private by default; checkpoints and results should be readable by others.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o644));
    }
    builder.tempfile_in(folder).map_err(without_path)
}

/// Returns whether a file of this name is one of [`temporary_file_beside`].
pub fn is_temporary_name(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// Removes the files of a folder that satisfy `chosen`, given their names. Files that cannot be
/// removed stay.
pub fn remove_files(folder: &Path, chosen: &dyn Fn(&str, &DirEntry) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let name = entry.file_name();
        if is_file && name.to_str().is_some_and(|name| chosen(name, &entry)) {
            // An error: another process has removed it, or this one may not.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Returns the folder of a file.
pub(crate) fn parent_folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn is_abandoned(entry: &DirEntry) -> bool {
    let changed = entry.metadata().and_then(|data| data.modified());
    // A time in the future, after a change of the clock, is no age.
    changed.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED))
}

/// Returns the error of the operating system, to which `tempfile` adds the path of its file.
fn without_path(error: io::Error) -> io::Error {
    match error.to_string().split_once(" at path ") {
        Some((reason, _)) => io::Error::new(error.kind(), reason),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::SystemTime};

    use super::*;
    use crate::weights::{ElementType, SafetensorsWriter};

    #[test]
    fn errors_do_not_name_the_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomically(&folder.path().join("none/a.json"), b"{}").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!error.to_string().contains("none"), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        // The rename fails because a folder that is not empty has the name.
        let taken = folder.path().join("taken");
        fs::create_dir(&taken).unwrap();
        fs::write(taken.join("old"), "old").unwrap();
        assert!(write_atomically(&taken, b"new").is_err());
        assert_eq!(fs::read(taken.join("old")).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_write_removes_old_temporary_files_of_this_program_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let file = |name: &str, age: Duration| {
            let file = File::create(path(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        let day = Duration::from_secs(24 * 60 * 60);
        file(".mtil-bbbbbb.tmp", Duration::ZERO);
        file(".tmpcccccc", day);
        let writes: [&dyn Fn(); 2] = [
            &|| write_atomically(&path("a.json"), b"{}").unwrap(),
            &|| {
                let tensors = [("a", ElementType::F32, [1].as_slice())];
                let writer = SafetensorsWriter::create(&path("a.safetensors"), tensors).unwrap();
                let names = fs::read_dir(folder.path()).unwrap();
                let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                assert_eq!(names.filter(|name| is_temporary_name(name)).count(), 2);
                drop(writer);
            },
        ];
        for write in writes {
            file(".mtil-aaaaaa.tmp", day);
            write();
            assert!(!path(".mtil-aaaaaa.tmp").exists());
            assert!(path(".mtil-bbbbbb.tmp").exists() && path(".tmpcccccc").exists());
        }
    }
}

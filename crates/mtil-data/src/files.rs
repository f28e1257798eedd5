//! Atomic file writes, the temporary files that killed processes leave, and names of files.

use std::{fs, path::Path};

#[doc(inline)]
pub use clip_model::files::write_atomically;
use clip_model::files::{is_temporary_name, remove_files};
use sha2::{Digest, Sha256};

/// Start of the default names of the crate `tempfile`, which earlier versions and the crate
/// `safetensors` use, and the number of letters and digits after it.
const DEFAULT_PREFIX: &str = ".tmp";
const DEFAULT_RANDOM: usize = 6;

/// Removes the temporary files in `folder` and its subfolders, of any age.
///
/// Call it only where no other process writes, for example under a lock of the folder. Files that
/// cannot be removed stay.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let left = folder.path().join(".tmpX1y2Z3");
/// std::fs::write(&left, "half a fi")?;
/// mtil_data::files::remove_temporary_files(folder.path());
/// assert!(!left.exists());
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn remove_temporary_files(folder: &Path) {
    remove_files(folder, &|name, _| {
        is_temporary_name(name) || is_default(name)
    });
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // Not through links, which may lead out of the folder.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_temporary_files(&entry.path());
        }
    }
}

fn is_default(name: &str) -> bool {
    name.strip_prefix(DEFAULT_PREFIX).is_some_and(|random| {
        random.len() == DEFAULT_RANDOM && random.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}

/// Largest number of bytes of a file's or folder's name on the file systems in common use.
pub const LONGEST_NAME: usize = 255;

/// Returns `name` if it has at most `limit` bytes, else its start and a digest of the whole name.
///
/// Different names stay different.
///
/// ```
/// use mtil_data::files::shortened_name;
///
/// assert_eq!(shortened_name("red panda", 20), "red panda");
/// assert_eq!(shortened_name("red panda", 11), shortened_name("red panda", 200));
/// let long = "x".repeat(300);
/// assert_eq!(shortened_name(&long, 255).len(), 255);
/// assert_ne!(shortened_name(&long, 255), shortened_name(&format!("{long}y"), 255));
/// ```
pub fn shortened_name(name: &str, limit: usize) -> String {
    if name.len() <= limit {
        return name.to_owned();
    }
    let digest = Sha256::digest(name.as_bytes());
    let digest: String = digest[..4].iter().map(|b| format!("{b:02x}")).collect();
    let end = name.floor_char_boundary(limit.saturating_sub(digest.len() + 1));
    format!("{}~{digest}", &name[..end])
}

/// Returns true if Windows reserves `name` for a device, with any suffix.
///
/// ```
/// use mtil_data::files::is_device_name;
///
/// assert!(is_device_name("con") && is_device_name("Nul.txt") && !is_device_name("cone"));
/// ```
pub fn is_device_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    let stem = stem.to_ascii_lowercase();
    ["con", "prn", "aux", "nul"].contains(&stem.as_str())
        || stem.len() == 4
            && (stem.starts_with("com") || stem.starts_with("lpt"))
            && stem.ends_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shortened_at_a_character_and_stay_different() {
        let name = "日本".repeat(100);
        let short = shortened_name(&name, 248);
        assert!((245..=248).contains(&short.len()), "{}", short.len());
        assert!(name.starts_with(short.rsplit_once('~').unwrap().0));
        assert_ne!(short, shortened_name(&format!("{name}x"), 248));
        assert_eq!(shortened_name(&name, 600), name);
    }

    #[cfg(unix)]
    #[test]
    fn temporary_files_are_removed_below_a_folder_and_not_behind_links() {
        let [folder, elsewhere] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let left = folder.path().join("a/b/.mtil-aaaaaa.tmp");
        let earlier = folder.path().join("a/.tmpaaaaaa");
        let outside = elsewhere.path().join(".tmpaaaaaa");
        let named = [".tmpaaaaaaa", ".tmp-aaaaa", "a.tmp"].map(|name| folder.path().join(name));
        named
            .iter()
            .chain([&left, &earlier, &outside])
            .for_each(|path| std::fs::write(path, "x").unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("link")).unwrap();
        remove_temporary_files(folder.path());
        assert!(!left.exists() && !earlier.exists() && outside.exists());
        assert!(named.iter().all(|path| path.exists()));
    }
}

//! Search for image files in a folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Suffixes of image files.
const SUFFIXES: [&str; 10] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff",
];

/// Returns the image files in `folder` and its subfolders, sorted by path. Hidden entries are
/// passed over, and links to folders are not followed.
pub fn image_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| with_path(&folder, &e))? {
            let entry = entry?;
            let path = entry.path();
            // macOS adds `._*` files to archives and network drives.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if is_image(&path) && path.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_image(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        SUFFIXES
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    })
}

/// Adds the path to an error.
fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

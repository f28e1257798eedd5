//! Loaders of datasets with class folders and a random split: Caltech101, EuroSAT, SUN397.
//!
//! torchvision converts EuroSAT and SUN397 to RGB when it opens an image. Caltech101's grey images
//! stay grey through crop and resize, which gives the same values in each channel.

use std::path::Path;

use super::{
    error::DatasetError,
    options::{SizeCheck, Sun397Order},
    source::{LabelledPaths, Source},
    splits,
};
use crate::{
    data::{OtherFiles, is_image_with_suffix},
    suite::Classification,
};

/// Loads Caltech101: category folders with `image_0001.jpg`, `image_0002.jpg`, …
/// (torchvision `caltech.py`). Samples are sorted by folder name, then by number.
pub(super) fn caltech101(source: &Source<'_>) -> Result<Classification, DatasetError> {
    let labels = source.labels();
    let mut all = empty_samples(source);
    let mut previous = (usize::MAX, 0);
    for path in source.store.files(&source.base)? {
        let name = &path[source.base.len() + 1..];
        let Some((class, file)) = name.split_once('/') else {
            continue;
        };
        if class == "BACKGROUND_Google" || !is_image(file) {
            continue;
        }
        let Some(&label) = labels.get(class) else {
            return Err(source.unknown_class(class, source.describe(class)));
        };
        // torchvision counts the files of a folder and reads the numbers 1 to that count.
        let number = if previous.0 == label {
            previous.1 + 1
        } else {
            1
        };
        if file != format!("image_{number:04}.jpg") {
            let reason = format!(
                "expected image_{number:04}.jpg: the images of a category are numbered without gaps"
            );
            return Err(source.malformed(class, file.to_owned(), reason));
        }
        previous = (label, number);
        all.paths.push(path);
        all.labels.push(label);
    }
    split_samples(source, all)
}

/// Loads EuroSAT: one folder per class, sorted by folder and file name (torchvision `eurosat.py`,
/// an `ImageFolder`).
pub(super) fn eurosat(source: &Source<'_>) -> Result<Classification, DatasetError> {
    let labels = source.labels();
    let mut all = empty_samples(source);
    for path in source.store.files(&source.base)? {
        let name = &path[source.base.len() + 1..];
        let Some((class, file)) = name.split_once('/') else {
            continue;
        };
        if !is_image(file) {
            continue;
        }
        let Some(&label) = labels.get(class) else {
            return Err(source.unknown_class(class, source.describe(class)));
        };
        all.paths.push(path);
        all.labels.push(label);
    }
    split_samples(source, all)
}

/// Loads SUN397: images `sun_*.jpg` in LETTER/CLASS or LETTER/CLASS/PLACE
/// (torchvision `sun397.py`).
pub(super) fn sun397(source: &Source<'_>) -> Result<Classification, DatasetError> {
    let classes = source.lines("ClassName.txt")?;
    // In "/a/abbey", the class follows the letter.
    let class = |(_, row): &(usize, String)| row.get(3..).unwrap_or_default().to_owned();
    let classes: Vec<String> = classes.iter().map(class).collect();
    source.check_classes("ClassName.txt", classes.iter().map(String::as_str))?;
    let labels = source.labels();
    let mut all = empty_samples(source);
    for path in source.store.files(&source.base)? {
        let name = &path[source.base.len() + 1..];
        let Some((folder, file)) = name.rsplit_once('/') else {
            continue;
        };
        if !file.starts_with("sun_") || !file.ends_with(".jpg") {
            continue;
        }
        let class = folder.split_once('/').map_or("", |(_, class)| class);
        let Some(&label) = labels.get(class) else {
            return Err(source.unknown_class(class, source.describe(folder)));
        };
        all.paths.push(path);
        all.labels.push(label);
    }
    if let Sun397Order::IndexList(file) = &source.options.sun397_order {
        let below = source.base.rsplit('/').next().unwrap_or_default();
        let order = splits::read_order(file, &all.paths, below)?;
        all = LabelledPaths {
            list: all.list,
            paths: order.iter().map(|&i| all.paths[i].clone()).collect(),
            labels: order.iter().map(|&i| all.labels[i]).collect(),
        };
    }
    split_samples(source, all)
}

/// Returns the numbers of files by suffix, as in `27000 .tif`.
fn suffixes(files: &[String]) -> String {
    let mut others = OtherFiles::default();
    files.iter().for_each(|file| others.add(Path::new(file)));
    others.to_string()
}

/// Returns an empty list of samples of the dataset's folder.
fn empty_samples(source: &Source<'_>) -> LabelledPaths {
    LabelledPaths {
        list: source.store.describe(&source.base),
        paths: Vec::new(),
        labels: Vec::new(),
    }
}

fn is_image(file: &str) -> bool {
    is_image_with_suffix(file.as_ref(), &["jpg", "jpeg", "png"])
}

/// Checks the samples against the published release and splits them.
fn split_samples(source: &Source<'_>, all: LabelledPaths) -> Result<Classification, DatasetError> {
    if all.paths.is_empty() {
        return Err(DatasetError::NoImages {
            dataset: source.spec.key.clone(),
            place: all.list,
            others: suffixes(&source.store.files(&source.base)?),
            get: source.spec.download_location(),
        });
    }
    source.check_total(&all)?;
    let mut present = vec![false; source.spec.classes.len()];
    all.labels.iter().for_each(|&l| present[l] = true);
    let absent = present.iter().position(|&p| !p);
    if let (SizeCheck::Exact, Some(class)) = (source.options.size_check, absent) {
        return Err(DatasetError::ClassWithoutImages {
            dataset: source.spec.key.clone(),
            class: source.spec.raw_classes()[class].clone(),
            place: all.list,
            get: source.spec.download_location(),
        });
    }
    let (train, test) = source.split(all)?;
    source.task_from_folders(train, test)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use clip_model::Preprocess;

    use super::super::{
        open,
        tests::{any, put, samples, unpack},
    };

    /// Pictures of other formats, and their evaluation crops in Pillow.
    const PICTURES: [(&str, &str); 5] = [
        ("bmp24.bmp", "bmp24_bmp_before_32.png"),
        ("bmp8_rle.bmp", "bmp8_rle_bmp_before_32.png"),
        ("gif.gif", "bmp8_bmp_before_32.png"),
        ("gif_transparent.gif", "bmp8_bmp_before_32.png"),
        ("rgb_odd.png", "rgb_odd_png_before_32.png"),
    ];

    #[test]
    fn sun397_holds_bmp_gif_and_png_files_named_jpg() {
        let pictures =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../clip-model/tests/data/preprocess");
        let root = unpack(|path| path.starts_with("SUN397/"));
        let paths = samples(&open("SUN397", root.path(), &any()).unwrap().train);
        for ((path, _), (source, _)) in paths.iter().zip(PICTURES) {
            assert!(path.ends_with(".jpg"), "{path}");
            let bytes = fs::read(pictures.join("src").join(source)).unwrap();
            put(root.path(), path, &bytes);
        }
        let task = open("SUN397", root.path(), &any()).unwrap();
        assert_eq!(samples(&task.train), paths);
        for (index, (source, expected)) in PICTURES.into_iter().enumerate() {
            let image = task.train.images.load(index).unwrap();
            let crop = Preprocess::clip(32).eval_u8(&image);
            let expected = image::open(pictures.join("expected").join(expected)).unwrap();
            assert_eq!(crop, expected.to_rgb8(), "{source}");
        }
        for split in [&task.train, &task.test] {
            for index in 0..split.labels.len() {
                split.images.load(index).unwrap();
            }
        }
    }
}

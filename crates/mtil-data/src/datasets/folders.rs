//! Datasets whose classes are folders and whose split is drawn: Caltech101, EuroSAT, SUN397.
//!
//! torchvision converts EuroSAT and SUN397 to RGB when it opens an image; Caltech101's grey images
//! stay grey through crop and resize, which gives the same values in each channel.

use super::{
    error::DatasetError,
    options::{Counts, Sun397Order},
    source::{Half, Source},
    splits,
};
use crate::suite::Task;

/// A category folder with `image_0001.jpg`, `image_0002.jpg`, … (torchvision `caltech.py`). The
/// order of the samples is that of the folders' names, then of the numbers.
pub(super) fn caltech101(source: &Source<'_>) -> Result<Task, DatasetError> {
    let labels = source.labels();
    let mut all = found(source);
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
        // Numbered without gaps: torchvision counts the files and takes 1 to that count.
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
    finish(source, all)
}

/// A folder a class, in the order of the names of folders and files (torchvision `eurosat.py`,
/// an `ImageFolder`).
pub(super) fn eurosat(source: &Source<'_>) -> Result<Task, DatasetError> {
    let labels = source.labels();
    let mut all = found(source);
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
    finish(source, all)
}

/// Images `sun_*.jpg` at LETTER/CLASS or LETTER/CLASS/PLACE (torchvision `sun397.py`).
pub(super) fn sun397(source: &Source<'_>) -> Result<Task, DatasetError> {
    let classes = source.lines("ClassName.txt")?;
    // "/a/abbey": the class is what follows the letter.
    let class = |(_, row): &(usize, String)| row.get(3..).unwrap_or_default().to_owned();
    let classes: Vec<String> = classes.iter().map(class).collect();
    source.check_classes("ClassName.txt", classes.iter().map(String::as_str))?;
    let labels = source.labels();
    let mut all = found(source);
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
        let order = splits::order(file, &all.paths, below)?;
        all = Half {
            list: all.list,
            paths: order.iter().map(|&i| all.paths[i].clone()).collect(),
            labels: order.iter().map(|&i| all.labels[i]).collect(),
        };
    }
    finish(source, all)
}

fn found(source: &Source<'_>) -> Half {
    Half {
        list: source.store.describe(&source.base),
        paths: Vec::new(),
        labels: Vec::new(),
    }
}

fn is_image(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    // Files that macOS adds beside those of an archive.
    !file.starts_with("._") && [".jpg", ".jpeg", ".png"].iter().any(|e| lower.ends_with(e))
}

fn finish(source: &Source<'_>, all: Half) -> Result<Task, DatasetError> {
    source.check_whole(&all)?;
    let mut present = vec![false; source.spec.classes.len()];
    all.labels.iter().for_each(|&l| present[l] = true);
    let absent = present.iter().position(|&p| !p);
    if let (Counts::Exact, Some(class)) = (source.options.counts, absent) {
        return Err(DatasetError::ClassWithoutImages {
            dataset: source.spec.key.clone(),
            class: source.spec.raw_classes()[class].clone(),
            place: all.list,
            get: source.spec.where_from(),
        });
    }
    let (train, test) = source.split(all)?;
    source.task_of_found(train, test)
}

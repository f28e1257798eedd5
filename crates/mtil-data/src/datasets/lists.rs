//! Loaders of datasets with text or JSON lists of images: Aircraft, DTD, Food, OxfordPet.
//!
//! torchvision converts all of these to RGB when it opens an image.

use serde_json::Value;

use super::{
    error::DatasetError,
    source::{LabelledPaths, Source},
};
use crate::suite::Classification;

/// Loads Aircraft: lines "ID NAME OF THE VARIANT" (torchvision `fgvc_aircraft.py`).
pub(super) fn aircraft(source: &Source<'_>) -> Result<Classification, DatasetError> {
    let variants = source.lines("variants.txt")?;
    source.check_classes("variants.txt", variants.iter().map(|(_, v)| v.as_str()))?;
    let labels = source.labels();
    let read = |split: &str| {
        let list = format!("images_variant_{split}.txt");
        read_lines(source, &list, |row| {
            let (id, variant) = row
                .split_once(' ')
                .ok_or_else(|| expected("an image and its variant"))?;
            let label = labels.get(variant).copied();
            Ok((
                source.path(&format!("images/{id}.jpg")),
                label.ok_or_else(|| LineError::Class(variant.to_owned()))?,
            ))
        })
    };
    source.task_from_lists(&[source.path("images")], read("train")?, read("test")?)
}

/// Loads DTD: lines "CLASS/FILE" of partition 1 (torchvision `dtd.py`).
pub(super) fn dtd(source: &Source<'_>) -> Result<Classification, DatasetError> {
    let labels = source.labels();
    let read = |split: &str| {
        read_lines(source, &format!("labels/{split}1.txt"), |row| {
            let (class, _) = row.split_once('/').ok_or_else(|| expected("CLASS/FILE"))?;
            let label = labels.get(class).copied();
            Ok((
                source.path(&format!("images/{row}")),
                label.ok_or_else(|| LineError::Class(class.to_owned()))?,
            ))
        })
    };
    source.task_from_lists(&[source.path("images")], read("train")?, read("test")?)
}

/// Loads OxfordPet: lines "IMAGE CLASS SPECIES BREED" with 1-based classes
/// (torchvision `oxford_iiit_pet.py`).
pub(super) fn oxford_pet(source: &Source<'_>) -> Result<Classification, DatasetError> {
    let read = |split: &str| {
        read_lines(source, &format!("annotations/{split}.txt"), |row| {
            let fields: Vec<&str> = row.split_whitespace().collect();
            let (&[image, class, _, _], Some(breed)) = (&fields[..], breed(&fields)) else {
                return Err(expected("IMAGE CLASS SPECIES BREED"));
            };
            let class: i64 = class
                .parse()
                .map_err(|_| expected("a number as its second word"))?;
            let names = &source.spec.classes;
            let label = usize::try_from(class - 1).ok().filter(|&l| l < names.len());
            let label = label.ok_or(LineError::Label(class))?;
            if names[label] != breed {
                return Err(LineError::Name {
                    label,
                    found: breed,
                });
            }
            Ok((source.path(&format!("images/{image}.jpg")), label))
        })
    };
    source.task_from_lists(&[source.path("images")], read("trainval")?, read("test")?)
}

/// Returns the breed in an image's name: `great_pyrenees_12` is a Great Pyrenees.
fn breed(fields: &[&str]) -> Option<String> {
    let (stem, _) = fields.first()?.rsplit_once('_')?;
    let title = |part: &str| {
        let mut letters = part.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        first
            .into_iter()
            .chain(letters.map(|c| c.to_ascii_lowercase()))
            .collect::<String>()
    };
    Some(stem.split('_').map(title).collect::<Vec<_>>().join(" "))
}

/// Loads Food: an object from class to a list of "CLASS/ID", in the order of the file
/// (torchvision `food101.py`).
pub(super) fn food(source: &Source<'_>) -> Result<Classification, DatasetError> {
    let read = |split: &str| {
        let file = format!("meta/{split}.json");
        let malformed = |reason: String| source.malformed(&file, "whole file".into(), reason);
        let text = source.store.text(&source.path(&file))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
        let classes = value
            .as_object()
            .ok_or_else(|| malformed("it is not an object of classes".into()))?;
        let mut sorted: Vec<&str> = classes.keys().map(String::as_str).collect();
        sorted.sort_unstable();
        source.check_classes(&file, sorted)?;
        let labels = source.labels();
        let mut samples = LabelledPaths {
            list: source.describe(&file),
            paths: Vec::new(),
            labels: Vec::new(),
        };
        for (class, images) in classes {
            let images = images.as_array().map(Vec::as_slice).unwrap_or_default();
            for image in images {
                let image = image.as_str().ok_or_else(|| {
                    source.malformed(&file, class.clone(), "an image that is not a string")
                })?;
                samples
                    .paths
                    .push(source.path(&format!("images/{image}.jpg")));
                samples.labels.push(labels[class.as_str()]);
            }
        }
        Ok(samples)
    };
    source.task_from_lists(&[source.path("images")], read("train")?, read("test")?)
}

/// Defect of a line.
enum LineError {
    Reason(String),
    Class(String),
    Label(i64),
    Name { label: usize, found: String },
}

fn expected(expected: &str) -> LineError {
    LineError::Reason(format!("expected {expected}"))
}

/// Reads a list with one image per line. `read` returns the path and label of a line.
fn read_lines(
    source: &Source<'_>,
    list: &str,
    mut read: impl FnMut(&str) -> Result<(String, usize), LineError>,
) -> Result<LabelledPaths, DatasetError> {
    let mut samples = LabelledPaths {
        list: source.describe(list),
        paths: Vec::new(),
        labels: Vec::new(),
    };
    for (line, row) in source.lines(list)? {
        let at = || format!("line {line}");
        let (path, label) = read(&row).map_err(|wrong| match wrong {
            LineError::Reason(reason) => {
                source.malformed(list, at(), format!("{reason}, found `{row}`"))
            }
            LineError::Class(class) => {
                source.unknown_class(&class, format!("{}, {}", source.describe(list), at()))
            }
            LineError::Label(label) => match source.zero_based_label(label, list, at) {
                Err(error) => error,
                Ok(_) => source.malformed(list, at(), format!("label {label}")),
            },
            LineError::Name { label, found } => DatasetError::WrongClass {
                dataset: source.spec.key.clone(),
                file: format!("{}, {}", source.describe(list), at()),
                label,
                expected: source.spec.classes[label].clone(),
                found,
            },
        })?;
        samples.paths.push(path);
        samples.labels.push(label);
    }
    Ok(samples)
}

//! Datasets whose images are named in text or JSON lists: Aircraft, DTD, Food, OxfordPet.
//!
//! torchvision converts all of these to RGB when it opens an image.

use serde_json::Value;

use super::{
    error::DatasetError,
    source::{Half, Source},
};
use crate::suite::Task;

/// Lines "ID NAME OF THE VARIANT" (torchvision `fgvc_aircraft.py`).
pub(super) fn aircraft(source: &Source<'_>) -> Result<Task, DatasetError> {
    let variants = source.lines("variants.txt")?;
    source.check_classes("variants.txt", variants.iter().map(|(_, v)| v.as_str()))?;
    let labels = source.labels();
    let read = |split: &str| {
        let list = format!("images_variant_{split}.txt");
        read_lines(source, &list, |row| {
            let (id, variant) = row
                .split_once(' ')
                .ok_or_else(|| wrong("an image and its variant"))?;
            let label = labels.get(variant).copied();
            Ok((
                source.path(&format!("images/{id}.jpg")),
                label.ok_or_else(|| Wrong::Class(variant.to_owned()))?,
            ))
        })
    };
    source.task_of_listed(&[source.path("images")], read("train")?, read("test")?)
}

/// Lines "CLASS/FILE" of partition 1 (torchvision `dtd.py`).
pub(super) fn dtd(source: &Source<'_>) -> Result<Task, DatasetError> {
    let labels = source.labels();
    let read = |split: &str| {
        read_lines(source, &format!("labels/{split}1.txt"), |row| {
            let (class, _) = row.split_once('/').ok_or_else(|| wrong("CLASS/FILE"))?;
            let label = labels.get(class).copied();
            Ok((
                source.path(&format!("images/{row}")),
                label.ok_or_else(|| Wrong::Class(class.to_owned()))?,
            ))
        })
    };
    source.task_of_listed(&[source.path("images")], read("train")?, read("test")?)
}

/// Lines "IMAGE CLASS SPECIES BREED", classes counted from 1 (torchvision `oxford_iiit_pet.py`).
pub(super) fn oxford_pet(source: &Source<'_>) -> Result<Task, DatasetError> {
    let read = |split: &str| {
        read_lines(source, &format!("annotations/{split}.txt"), |row| {
            let fields: Vec<&str> = row.split_whitespace().collect();
            let (&[image, class, _, _], Some(breed)) = (&fields[..], breed(&fields)) else {
                return Err(wrong("IMAGE CLASS SPECIES BREED"));
            };
            let class: i64 = class
                .parse()
                .map_err(|_| wrong("a number as its second word"))?;
            let names = &source.spec.classes;
            let label = usize::try_from(class - 1).ok().filter(|&l| l < names.len());
            let label = label.ok_or(Wrong::Label(class))?;
            if names[label] != breed {
                return Err(Wrong::Name {
                    label,
                    found: breed,
                });
            }
            Ok((source.path(&format!("images/{image}.jpg")), label))
        })
    };
    source.task_of_listed(&[source.path("images")], read("trainval")?, read("test")?)
}

/// The breed that an image's name begins with: `great_pyrenees_12` is a Great Pyrenees.
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

/// An object of class to list of "CLASS/ID", in the order of the file (torchvision `food101.py`).
pub(super) fn food(source: &Source<'_>) -> Result<Task, DatasetError> {
    let read = |split: &str| {
        let file = format!("meta/{split}.json");
        let malformed = |reason: String| source.malformed(&file, "whole file".into(), reason);
        let text = source.store.text(&source.path(&file))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
        let classes = value
            .as_object()
            .ok_or_else(|| malformed("no object of classes".into()))?;
        let mut sorted: Vec<&str> = classes.keys().map(String::as_str).collect();
        sorted.sort_unstable();
        source.check_classes(&file, sorted)?;
        let labels = source.labels();
        let mut half = Half {
            list: source.describe(&file),
            paths: Vec::new(),
            labels: Vec::new(),
        };
        for (class, images) in classes {
            let images = images.as_array().map(Vec::as_slice).unwrap_or_default();
            for image in images {
                let image = image.as_str().ok_or_else(|| {
                    source.malformed(&file, class.clone(), "an image that is no text")
                })?;
                half.paths.push(source.path(&format!("images/{image}.jpg")));
                half.labels.push(labels[class.as_str()]);
            }
        }
        Ok(half)
    };
    source.task_of_listed(&[source.path("images")], read("train")?, read("test")?)
}

/// What can be wrong with a line.
enum Wrong {
    Reason(String),
    Class(String),
    Label(i64),
    Name { label: usize, found: String },
}

fn wrong(expected: &str) -> Wrong {
    Wrong::Reason(format!("expected {expected}"))
}

/// Reads a list of one image a line.
fn read_lines(
    source: &Source<'_>,
    list: &str,
    mut read: impl FnMut(&str) -> Result<(String, usize), Wrong>,
) -> Result<Half, DatasetError> {
    let mut half = Half {
        list: source.describe(list),
        paths: Vec::new(),
        labels: Vec::new(),
    };
    for (line, row) in source.lines(list)? {
        let at = || format!("line {line}");
        let (path, label) = read(&row).map_err(|wrong| match wrong {
            Wrong::Reason(reason) => {
                source.malformed(list, at(), format!("{reason}, found `{row}`"))
            }
            Wrong::Class(class) => {
                source.unknown_class(&class, format!("{}, {}", source.describe(list), at()))
            }
            Wrong::Label(label) => match source.counted_from_one(label, list, at) {
                Err(error) => error,
                Ok(_) => source.malformed(list, at(), format!("label {label}")),
            },
            Wrong::Name { label, found } => DatasetError::WrongClass {
                dataset: source.spec.key.clone(),
                file: format!("{}, {}", source.describe(list), at()),
                label,
                expected: source.spec.classes[label].clone(),
                found,
            },
        })?;
        half.paths.push(path);
        half.labels.push(label);
    }
    Ok(half)
}

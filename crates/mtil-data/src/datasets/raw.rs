//! Loaders of datasets stored as raw pixel arrays: CIFAR10, CIFAR100, MNIST.
//!
//! MNIST's images are grey and become RGB after crop and resize, which gives the same values in
//! each channel.

use std::sync::Arc;

use super::{
    error::DatasetError,
    idx,
    pickle::{self, Value},
    source::Source,
    spec::join,
    store::{PixelLayout, RawImages},
};
use crate::{data::ImageSource, suite::Classification};

/// A split: path of its file, images and labels.
type RawSplit = (String, Arc<dyn ImageSource>, Vec<usize>);

/// Loads CIFAR100: `train`, `test` and `meta` with fine labels (torchvision `cifar.py`).
pub(super) fn cifar100(source: &Source<'_>) -> Result<Classification, DatasetError> {
    check_cifar_classes(source, "meta", "fine_label_names")?;
    let read = |file: &str| cifar_split(source, &[file], "fine_labels");
    source.task_from_arrays(read("train")?, read("test")?)
}

/// Loads CIFAR10: five training batches and a test batch (torchvision `cifar.py`).
pub(super) fn cifar10(source: &Source<'_>) -> Result<Classification, DatasetError> {
    check_cifar_classes(source, "batches.meta", "label_names")?;
    let names: Vec<String> = (1..=5).map(|i| format!("data_batch_{i}")).collect();
    let train: Vec<&str> = names.iter().map(String::as_str).collect();
    source.task_from_arrays(
        cifar_split(source, &train, "labels")?,
        cifar_split(source, &["test_batch"], "labels")?,
    )
}

fn unpickle(source: &Source<'_>, file: &str) -> Result<Value, DatasetError> {
    let bytes = source.store.read(&source.path(file))?;
    pickle::read(&bytes, &source.describe(file))
}

fn missing(source: &Source<'_>, file: &str, what: &str) -> DatasetError {
    DatasetError::Pickle {
        path: source.describe(file),
        reason: format!("it does not have {what}"),
    }
}

fn check_cifar_classes(source: &Source<'_>, file: &str, key: &str) -> Result<(), DatasetError> {
    let meta = unpickle(source, file)?;
    let names = match meta.get(key) {
        Some(Value::List(names)) => names.iter().map(text).collect::<Option<Vec<_>>>(),
        _ => None,
    };
    let names = names.ok_or_else(|| missing(source, file, &format!("a list of texts `{key}`")))?;
    source.check_classes(file, names)
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        Value::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

fn cifar_split(source: &Source<'_>, files: &[&str], key: &str) -> Result<RawSplit, DatasetError> {
    let mut pixels = Vec::new();
    let mut labels = Vec::new();
    for file in files {
        let mut batch = unpickle(source, file)?;
        let last = source.spec.classes.len() as i64 - 1;
        let of_batch = match batch.get(key) {
            Some(Value::List(labels)) => labels.as_slice(),
            _ => return Err(missing(source, file, &format!("a list `{key}`"))),
        };
        for (i, label) in of_batch.iter().enumerate() {
            match label {
                Value::Int(label) if (0..=last).contains(label) => labels.push(*label as usize),
                Value::Int(label) => {
                    return Err(DatasetError::LabelRange {
                        dataset: source.spec.key.clone(),
                        file: source.describe(file),
                        at: format!("image {i}"),
                        label: *label,
                        first: 0,
                        last,
                    });
                }
                _ => return Err(missing(source, file, &format!("whole numbers in `{key}`"))),
            }
        }
        match take_entry(&mut batch, "data") {
            Some(Value::Array { dtype, shape, data })
                if dtype == "u1" && matches!(shape[..], [_, 3072]) =>
            {
                if pixels.is_empty() {
                    pixels = data;
                } else {
                    pixels.extend_from_slice(&data);
                }
            }
            _ => {
                return Err(missing(
                    source,
                    file,
                    "an array `data` of bytes with 3072 columns",
                ));
            }
        }
    }
    let list = match files {
        [file] => source.path(file),
        _ => source.path(&files.join("+")),
    };
    let images = RawImages::new(&list, pixels, 32, 32, PixelLayout::PlanarRgb)?;
    Ok((list, Arc::new(images), labels))
}

/// Removes an entry from a dictionary, so that large arrays are moved instead of copied.
fn take_entry(dictionary: &mut Value, key: &str) -> Option<Value> {
    let Value::Dict(entries) = dictionary else {
        return None;
    };
    let at = entries.iter().position(|(k, _)| text(k) == Some(key))?;
    Some(entries.swap_remove(at).1)
}

/// Loads MNIST: IDX files, plain or gzipped (torchvision `mnist.py`).
pub(super) fn mnist(source: &Source<'_>) -> Result<Classification, DatasetError> {
    source.task_from_arrays(mnist_split(source, "train")?, mnist_split(source, "t10k")?)
}

fn mnist_split(source: &Source<'_>, split: &str) -> Result<RawSplit, DatasetError> {
    let read = |kind: &str| {
        let published = format!("{split}-{kind}-ubyte");
        // Some copies have a dot in the name, or each file in a folder of its own name.
        let dotted = published.replacen("-idx", ".idx", 1);
        let names = [
            published.clone(),
            format!("{published}.gz"),
            dotted.clone(),
            format!("{dotted}.gz"),
            join(&published, &published),
        ];
        let exists = |name: &String| source.store.exists(&source.path(name));
        let file = names.into_iter().find(exists).unwrap_or(published);
        let path = source.path(&file);
        Ok::<_, DatasetError>((
            idx::read(&source.store.read(&path)?, &source.describe(&file))?,
            path,
        ))
    };
    let ((images, list), (labels, labels_file)) = (read("images-idx3")?, read("labels-idx1")?);
    let &[_, height, width] = &images.shape[..] else {
        return Err(DatasetError::Idx {
            path: list,
            reason: format!(
                "it has {} dimensions where images have 3",
                images.shape.len()
            ),
        });
    };
    let last = source.spec.classes.len() as i64 - 1;
    if let Some(i) = labels.data.iter().position(|&l| i64::from(l) > last) {
        return Err(DatasetError::LabelRange {
            dataset: source.spec.key.clone(),
            file: labels_file,
            at: format!("image {i}"),
            label: i64::from(labels.data[i]),
            first: 0,
            last,
        });
    }
    let side = |n: usize| {
        u32::try_from(n).map_err(|_| DatasetError::Idx {
            path: list.clone(),
            reason: format!("images of {width} by {height} pixels"),
        })
    };
    let images = RawImages::new(
        &list,
        images.data,
        side(width)?,
        side(height)?,
        PixelLayout::Grey,
    )?;
    let labels = labels.data.into_iter().map(usize::from).collect();
    Ok((list, Arc::new(images), labels))
}

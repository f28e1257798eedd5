//! Loaders of datasets with MATLAB files as lists: Flowers, StanfordCars.
//!
//! torchvision converts both to RGB when it opens an image.

use super::{
    error::DatasetError,
    matlab::{self, Value},
    source::{LabelledPaths, Source},
};
use crate::suite::Classification;

/// Loads Flowers: `setid.mat` lists the image numbers of each split, `imagelabels.mat` the label of
/// every image. Both are 1-based (torchvision `flowers102.py`).
pub(super) fn flowers(source: &Source<'_>) -> Result<Classification, DatasetError> {
    let labels = numbers(
        source,
        "imagelabels.mat",
        &Mat::open(source, "imagelabels.mat")?,
        "labels",
    )?;
    let ids = Mat::open(source, "setid.mat")?;
    let read = |split: &str| {
        let mut samples = LabelledPaths {
            list: format!("{} ({split})", source.describe("setid.mat")),
            paths: Vec::new(),
            labels: Vec::new(),
        };
        for id in numbers(source, "setid.mat", &ids, split)? {
            let label = usize::try_from(id - 1).ok().and_then(|i| labels.get(i));
            let label = *label.ok_or_else(|| {
                let reason = format!(
                    "image {id}, but imagelabels.mat has the labels of images 1 to {}",
                    labels.len()
                );
                source.malformed("setid.mat", split.to_owned(), reason)
            })?;
            let label =
                source.zero_based_label(label, "imagelabels.mat", || format!("image {id}"))?;
            samples
                .paths
                .push(source.path(&format!("jpg/image_{id:05}.jpg")));
            samples.labels.push(label);
        }
        Ok(samples)
    };
    source.task_from_lists(&[source.path("jpg")], read("trnid")?, read("tstid")?)
}

/// Loads StanfordCars: struct arrays `annotations` with the fields `fname` and `class` (1-based),
/// and class names in `cars_meta.mat` (torchvision `stanford_cars.py`).
pub(super) fn stanford_cars(source: &Source<'_>) -> Result<Classification, DatasetError> {
    let meta = Mat::open(source, "devkit/cars_meta.mat")?;
    let names = match meta.get("class_names") {
        Some(Value::Cell { items, .. }) => items.iter().map(text).collect::<Option<Vec<_>>>(),
        _ => None,
    };
    let names = names.ok_or_else(|| meta.missing("a cell array of texts `class_names`"))?;
    source.check_classes("devkit/cars_meta.mat", names)?;
    let read = |file: &str, folder: &str| {
        let mat = Mat::open(source, file)?;
        let fields = match mat.get("annotations") {
            Some(Value::Struct { fields, .. }) => fields.as_slice(),
            _ => &[],
        };
        let field = |name: &str| {
            fields
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, values)| values)
        };
        let (Some(files), Some(classes)) = (field("fname"), field("class")) else {
            return Err(mat.missing(
                "a struct array `annotations` with `fname` and `class`, \
                 which cars_test_annos.mat of the devkit does not have",
            ));
        };
        let mut samples = LabelledPaths {
            list: source.describe(file),
            paths: Vec::new(),
            labels: Vec::new(),
        };
        for (i, (name, class)) in files.iter().zip(classes).enumerate() {
            let at = || format!("annotation {}", i + 1);
            let (Some(name), Some(class)) = (text(name), integer(class)) else {
                return Err(source.malformed(
                    file,
                    at(),
                    "expected a file name and a class number",
                ));
            };
            samples.paths.push(source.path(&format!("{folder}/{name}")));
            samples
                .labels
                .push(source.zero_based_label(class, file, at)?);
        }
        Ok(samples)
    };
    // Kaggle's archive has the images in cars_train/cars_train.
    let [train, test] = ["cars_train", "cars_test"].map(|name| source.image_folder(name));
    let (train, test) = (train?, test?);
    source.task_from_lists(
        &[source.path("cars_train"), source.path("cars_test")],
        read("devkit/cars_train_annos.mat", &train)?,
        read("cars_test_annos_withlabels.mat", &test)?,
    )
}

/// The variables of a MATLAB file.
struct Mat {
    file: String,
    variables: Vec<(String, Value)>,
}

impl Mat {
    fn open(source: &Source<'_>, file: &str) -> Result<Self, DatasetError> {
        let bytes = source.store.read(&source.path(file))?;
        let file = source.describe(file);
        let variables = matlab::read(&bytes, &file)?;
        Ok(Self { file, variables })
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.variables
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value)
    }

    fn missing(&self, what: &str) -> DatasetError {
        DatasetError::Matlab {
            path: self.file.clone(),
            reason: format!("it does not have {what}"),
        }
    }
}

/// Returns a variable of integers.
fn numbers(
    source: &Source<'_>,
    file: &str,
    mat: &Mat,
    name: &str,
) -> Result<Vec<i64>, DatasetError> {
    let Some(Value::Numeric { data, .. }) = mat.get(name) else {
        return Err(mat.missing(&format!("the numbers `{name}`")));
    };
    let number = |&x: &f64| {
        as_integer(x).ok_or_else(|| {
            source.malformed(file, name.to_owned(), format!("{x} is not an integer"))
        })
    };
    data.iter().map(number).collect()
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Numeric { data, .. } => match data[..] {
            [x] => as_integer(x),
            _ => None,
        },
        _ => None,
    }
}

fn as_integer(x: f64) -> Option<i64> {
    (x.fract() == 0.0 && x.abs() < 1e15).then_some(x as i64)
}

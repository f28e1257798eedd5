//! Loader of CoOp's splits: `split_zhou_*.json` with the lists `train`, `val` and `test` of
//! `[path, label, class name]` (Zhou et al., IJCV 2022; CoOp `datasets/oxford_pets.py`).

use std::path::Path;

use serde::Deserialize;

use super::{
    error::DatasetError,
    options::{DatasetOptions, SizeCheck},
    source::{
        LabelledPaths, check_count, check_images_exist, check_splits, open_store, store_task,
    },
    spec::{CoopSpec, Spec, join},
};
use crate::suite::Classification;

#[derive(Deserialize)]
struct Lists {
    train: Vec<(String, i64, String)>,
    val: Vec<(String, i64, String)>,
    test: Vec<(String, i64, String)>,
}

/// Opens a dataset with CoOp's split, its labels and its class names.
///
/// # Errors
/// [`DatasetError`], as under [`Protocol::Zscl`](super::Protocol::Zscl).
pub(super) fn open(
    spec: &'static Spec,
    coop: &CoopSpec,
    root: &Path,
    options: &DatasetOptions,
) -> Result<Classification, DatasetError> {
    let store = open_store(spec, root, &spec.archives(), options)?;
    let file =
        coop.files
            .iter()
            .find(|f| store.exists(f))
            .ok_or_else(|| DatasetError::NotFound {
                dataset: format!("CoOp's split of {}", spec.key),
                root: root.to_owned(),
                looked_for: coop.files.clone(),
                get: "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md".into(),
            })?;
    let shown = store.describe(file);
    let lists: Lists = serde_json::from_str(&store.text(file)?)
        .map_err(|error| malformed(&shown, "whole file", error.to_string()))?;

    let names = class_names(spec, coop, &shown, &lists)?;
    if options.size_check == SizeCheck::Exact {
        check_count(spec, &shown, "classes", coop.classes, names.len())?;
        check_count(spec, &shown, "images in `val`", coop.val, lists.val.len())?;
    }

    // The first image decides which candidate folder the paths are relative to.
    let first = lists.train.first().or(lists.test.first());
    let first = first.ok_or_else(|| malformed(&shown, "whole file", "it names no image".into()))?;
    let holds = |folder: &&String| store.exists(&join(folder, &first.0));
    let images = coop.images.iter().find(holds).unwrap_or(&coop.images[0]);
    let labelled_paths = |list: &str, samples: Vec<(String, i64, String)>| LabelledPaths {
        list: format!("{shown} ({list})"),
        labels: samples
            .iter()
            .map(|(_, label, _)| *label as usize)
            .collect(),
        paths: samples
            .into_iter()
            .map(|(path, _, _)| join(images, &path))
            .collect(),
    };
    let (train, test) = (
        labelled_paths("train", lists.train),
        labelled_paths("test", lists.test),
    );
    check_splits(
        spec,
        options,
        &names,
        Some((coop.train, coop.test)),
        &train,
        &test,
    )?;
    check_images_exist(spec, &store, std::slice::from_ref(images), &[&train, &test])?;
    Ok(store_task(spec, names, &store, train, test))
}

/// Returns the class names, which come from the samples: all must agree on the name of each label.
fn class_names(
    spec: &Spec,
    coop: &CoopSpec,
    shown: &str,
    lists: &Lists,
) -> Result<Vec<String>, DatasetError> {
    let mut names: Vec<Option<&str>> = Vec::new();
    for (list, samples) in [
        ("train", &lists.train),
        ("val", &lists.val),
        ("test", &lists.test),
    ] {
        for (path, label, name) in samples {
            let out = || DatasetError::LabelRange {
                dataset: spec.key.clone(),
                file: shown.to_owned(),
                at: format!("{list}, {path}"),
                label: *label,
                first: 0,
                last: coop.classes as i64 - 1,
            };
            let label = usize::try_from(*label)
                .ok()
                .filter(|&l| l < coop.classes)
                .ok_or_else(out)?;
            if names.len() <= label {
                names.resize(label + 1, None);
            }
            let first = *names[label].get_or_insert(name);
            if first != name {
                return Err(malformed(
                    shown,
                    list,
                    format!("label {label} is `{first}` and also `{name}`"),
                ));
            }
        }
    }
    if let Some(label) = names.iter().position(Option::is_none) {
        return Err(malformed(
            shown,
            "whole file",
            format!("no image has the label {label}, so it has no class name"),
        ));
    }
    let names = names.into_iter().flatten();
    Ok(names.map(|name| name.replace('_', " ")).collect())
}

fn malformed(shown: &str, at: &str, reason: String) -> DatasetError {
    DatasetError::Malformed {
        file: shown.to_owned(),
        at: at.to_owned(),
        reason,
    }
}

//! Tests of datasets whose files are not where, or not what, the published archives have.

use std::{fs, path::Path};

use super::tests::{any, contains, packed, put, samples, unpack};
use super::*;

/// Opens a dataset of a miniature below `folder` after `change` modified its files.
fn opened(
    key: &str,
    folder: &str,
    change: impl FnOnce(&Path),
) -> Result<Vec<(String, usize)>, String> {
    let root = unpack(|path| path.starts_with(folder));
    change(root.path());
    let task = open(key, root.path(), &any()).map_err(|error| error.to_string())?;
    Ok([samples(&task.train), samples(&task.test)].concat())
}

#[test]
fn cars_in_a_folder_of_the_same_name() {
    let want = opened("StanfordCars", "stanford_cars", |_| ()).unwrap();
    let nest = |root: &Path| {
        for name in ["cars_train", "cars_test"] {
            let folder = root.join("stanford_cars").join(name);
            let inner = root.join("inner");
            fs::rename(&folder, &inner).unwrap();
            fs::create_dir(&folder).unwrap();
            fs::rename(&inner, folder.join(name)).unwrap();
        }
    };
    let found = opened("StanfordCars", "stanford_cars", nest).unwrap();
    let plain = |path: &String| {
        let path = path.replace("cars_train/cars_train", "cars_train");
        path.replace("cars_test/cars_test", "cars_test")
    };
    assert!(found[0].0.contains("cars_train/cars_train/"));
    let found: Vec<_> = found.iter().map(|(p, label)| (plain(p), *label)).collect();
    assert_eq!(found, want);
    // A second copy inside a complete folder, of which one image was unpacked.
    let copy = |root: &Path| {
        let inner = "stanford_cars/cars_train/cars_train/00001.jpg";
        put(root, inner, b"x");
    };
    assert_eq!(opened("StanfordCars", "stanford_cars", copy).unwrap(), want);
}

#[test]
fn files_of_other_kinds_are_not_part_of_imagenet() {
    let root = unpack(|path| path.starts_with("ImageNet1K/"));
    let split = |root: &Path| {
        let task = open("ImageNet", root, &any()).unwrap();
        [samples(&task.train), samples(&task.test)]
    };
    let want = split(root.path());
    let folder = want[0][0].0.rsplit_once('/').unwrap().0;
    for name in [
        "0.png",
        "montage.png",
        "a.tif",
        "b.gif",
        "c.webp",
        "._n.JPEG",
    ] {
        put(root.path(), &format!("{folder}/{name}"), b"x");
    }
    put(root.path(), "ImageNet1K/ILSVRC2012_img_val/0.png", b"x");
    assert_eq!(split(root.path()), want);
}

#[test]
fn missing_images_that_are_in_another_folder_are_named() {
    let nest = |root: &Path| {
        fs::create_dir(root.join("flowers-102/new")).unwrap();
        fs::rename(
            root.join("flowers-102/jpg"),
            root.join("flowers-102/new/jpg"),
        )
        .unwrap();
        fs::rename(root.join("flowers-102/new"), root.join("flowers-102/jpg")).unwrap();
    };
    let message = opened("Flowers", "flowers-102", nest).unwrap_err();
    contains(
        &message,
        &["there is flowers-102/jpg/jpg/image_", "move its folder"],
    );
    assert!(!message.contains("unpack it again"), "{message}");
}

#[test]
fn a_missing_file_beside_the_images_is_named() {
    let remove = |root: &Path| fs::remove_file(root.join("flowers-102/setid.mat")).unwrap();
    let message = opened("Flowers", "flowers-102", remove).unwrap_err();
    contains(
        &message,
        &[
            "there is flowers-102/",
            "no flowers-102/setid.mat",
            "/setid.mat",
        ],
    );
    // The archive alone.
    let root = tempfile::tempdir().unwrap();
    fs::copy(
        packed().join("flowers-102/102flowers.tgz"),
        root.path().join("102flowers.tgz"),
    )
    .unwrap();
    let message = open("Flowers", root.path(), &any())
        .err()
        .unwrap()
        .to_string();
    contains(
        &message,
        &["there is 102flowers.tgz, but no flowers-102/setid.mat"],
    );
}

#[test]
fn a_dataset_of_other_files_is_not_complete() {
    let root = tempfile::tempdir().unwrap();
    for class in ["AnnualCrop", "Forest"] {
        put(
            root.path(),
            &format!("eurosat/2750/{class}/{class}_1.tif"),
            b"II*\0",
        );
    }
    let message = open("EuroSAT", root.path(), &any())
        .err()
        .unwrap()
        .to_string();
    contains(
        &message,
        &["EuroSAT", "none of its images, but 2 .tif", "get it from"],
    );
    let report = &check::check(root.path(), &["EuroSAT"], false, &any(), &|_| {})[0];
    assert!(!report.is_usable(), "{report:?}");
}

#[test]
fn a_split_without_images_is_an_error() {
    let empty = |root: &Path| fs::write(root.join("dtd/dtd/labels/test1.txt"), "").unwrap();
    let message = opened("DTD", "dtd", empty).unwrap_err();
    contains(&message, &["DTD: the test split has none of its images"]);
}

#[test]
fn mnist_under_other_names() {
    let want = samples(&open("MNIST", &packed(), &any()).unwrap().train);
    let names = [
        "train-images-idx3",
        "train-labels-idx1",
        "t10k-images-idx3",
        "t10k-labels-idx1",
    ];
    type Rename = fn(&str) -> String;
    let renames: [Rename; 2] = [
        |name| format!("mnist/{}-ubyte.gz", name.replace("-idx", ".idx")),
        |name| format!("mnist/{name}-ubyte/{name}-ubyte"),
    ];
    for rename in renames {
        let root = tempfile::tempdir().unwrap();
        for name in names {
            let bytes = fs::read(packed().join(format!("MNIST/raw/{name}-ubyte.gz"))).unwrap();
            put(root.path(), &rename(name), &bytes);
        }
        let task = open("MNIST", root.path(), &any()).unwrap();
        assert_eq!(samples(&task.train), want);
    }
}

#[test]
fn folders_of_systems_are_no_classes() {
    let want = opened("EuroSAT", "eurosat/2750", |_| ()).unwrap();
    let add = |root: &Path| {
        put(root, "eurosat/2750/@eaDir/River_1.jpg", b"x");
        put(root, "eurosat/2750/River/@eaDir/River_1.jpg", b"x");
        put(
            root,
            "eurosat/2750/River/.ipynb_checkpoints/River_1.jpg",
            b"x",
        );
    };
    assert_eq!(opened("EuroSAT", "eurosat/2750", add).unwrap(), want);
}

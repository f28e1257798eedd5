//! Tests of the loaders against torchvision on the same files, from archives and from folders
//! (`tests/reference/mtil_datasets.py`), and on malformed files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{
    captions::{CaptionSplit, coco, flickr30k},
    check::{CheckEvent, DatasetState, check},
    mtil::{ORDER_1, ORDER_2, XTAIL_1, XTAIL_2, suite},
    store::Store,
    *,
};
use crate::suite::{CaptionedImages, LabelledImages, RetrievalSet};

/// The data root with miniature datasets as archives.
pub(super) fn packed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/datasets")
}

/// The data root with miniature datasets as folders.
fn unpacked() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| unpack(|_| true)).path()
}

/// Unpacks the files for which `keep` is true into a new data root.
pub(super) fn unpack(keep: impl Fn(&str) -> bool) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for spec in Spec::all() {
        let mut archives = spec.archives();
        archives.extend(imagenet::archives_of_both_splits(&packed()).unwrap());
        let store = Store::open(&packed(), &archives).unwrap();
        let folder = spec.bases[0].split('/').next().unwrap();
        for path in store.files(folder).unwrap() {
            let packed = [".tar", ".tgz", ".tar.gz", ".zip"]
                .iter()
                .any(|e| path.ends_with(e));
            if !packed && keep(&path) {
                put(dir.path(), &path, &store.read(&path).unwrap());
            }
        }
    }
    dir
}

pub(super) fn put(root: &Path, path: &str, content: &[u8]) {
    let file = root.join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, content).unwrap();
}

pub(super) fn any() -> DatasetOptions {
    DatasetOptions {
        size_check: SizeCheck::Any,
        ..DatasetOptions::default()
    }
}

fn coop() -> DatasetOptions {
    DatasetOptions {
        protocol: Protocol::CoOp,
        ..any()
    }
}

fn expected() -> Value {
    serde_json::from_str(&fs::read_to_string(packed().join("expected.json")).unwrap()).unwrap()
}

/// Returns the label of each image with its path, or with the first bytes of the SHA-256 of its raw
/// pixels.
pub(super) fn samples(split: &LabelledImages) -> Vec<(String, usize)> {
    let name = |i| {
        let identity = split.images.identity(i);
        if identity.contains('#') {
            let digest = Sha256::digest(split.images.load(i).unwrap().as_bytes());
            digest[..8].iter().map(|b| format!("{b:02x}")).collect()
        } else {
            identity.rsplit_once(' ').unwrap().0.to_owned()
        }
    };
    let labels = split.labels.iter().enumerate();
    labels.map(|(i, &label)| (name(i), label)).collect()
}

fn listed(value: &Value) -> Vec<(String, usize)> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn all_samples_are_those_of_torchvision() {
    let expected = expected();
    for key in ORDER_1.into_iter().chain(["CIFAR10"]) {
        for root in [&packed(), unpacked()] {
            let task = open(key, root, &any()).unwrap();
            let spec = Spec::find(key).unwrap();
            assert_eq!(task.class_names, spec.classes);
            assert_eq!(task.templates, spec.templates);
            for (split, name) in [(&task.train, "train"), (&task.test, "test")] {
                let want = listed(&expected[key][name]);
                assert!(!want.is_empty());
                assert_eq!(samples(split), want, "{key} {name} {}", root.display());
                split.images.load(0).unwrap();
            }
        }
    }
}

#[test]
fn mnist_is_read_without_gzip_too() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "train-images-idx3",
        "train-labels-idx1",
        "t10k-images-idx3",
        "t10k-labels-idx1",
    ] {
        let packed = fs::read(packed().join(format!("MNIST/raw/{name}-ubyte.gz"))).unwrap();
        let read = idx::read(&packed, name).unwrap();
        let mut plain = vec![0, 0, 8, read.shape.len() as u8];
        for length in read.shape {
            plain.extend((length as u32).to_be_bytes());
        }
        plain.extend(read.data);
        put(dir.path(), &format!("MNIST/raw/{name}-ubyte"), &plain);
    }
    let task = open("MNIST", dir.path(), &any()).unwrap();
    assert_eq!(samples(&task.train), listed(&expected()["MNIST"]["train"]));
}

#[test]
fn coop_splits() {
    for key in XTAIL_1 {
        let Some(coop_spec) = &Spec::find(key).unwrap().coop else {
            continue;
        };
        let mut files = coop_spec.files.iter();
        let file = files.find(|f| packed().join(f).is_file()).unwrap();
        let lists: Value =
            serde_json::from_str(&fs::read_to_string(packed().join(file)).unwrap()).unwrap();
        let task = open(key, &packed(), &coop()).unwrap();
        for (split, name) in [(&task.train, "train"), (&task.test, "test")] {
            let rows = lists[name].as_array().unwrap();
            let found = samples(split);
            assert_eq!(found.len(), rows.len());
            for ((path, label), row) in found.iter().zip(rows) {
                assert!(
                    path.ends_with(&format!("/{}", row[0].as_str().unwrap())),
                    "{path}"
                );
                assert_eq!(row[1], *label);
                assert_eq!(
                    task.class_names[*label],
                    row[2].as_str().unwrap().replace('_', " ")
                );
            }
            split.images.load(0).unwrap();
        }
    }
    let caltech = open("Caltech101", &packed(), &coop()).unwrap();
    assert_eq!(caltech.class_names.len(), 100);
    // CoOp has no split for these.
    for key in ["Aircraft", "CIFAR100", "MNIST"] {
        let (a, b) = (
            open(key, &packed(), &coop()).unwrap(),
            open(key, &packed(), &any()).unwrap(),
        );
        assert_eq!(samples(&a.train), samples(&b.train));
    }
    let root = unpack(|path| path.starts_with("food-101/") && !path.contains("split_zhou"));
    let error = open("Food", root.path(), &coop())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("split_zhou_Food101.json"), "{error}");
}

#[test]
fn malformed_coop_files() {
    let root = unpack(|path| path.starts_with("eurosat/2750"));
    let open_with = |json: &str| {
        put(
            root.path(),
            "eurosat/split_zhou_EuroSAT.json",
            json.as_bytes(),
        );
        open("EuroSAT", root.path(), &coop())
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    let [a, b] = ["AnnualCrop/AnnualCrop_1.jpg", "Forest/Forest_1.jpg"];
    assert_eq!(
        open_with(&format!(
            r#"{{"train":[["{a}",0,"x"]],"val":[],"test":[["{b}",1,"y_z"]]}}"#
        )),
        ""
    );
    for (json, want) in [
        ("{", "split_zhou_EuroSAT.json"),
        (r#"{"train":[],"val":[],"test":[]}"#, "no image"),
        (
            &format!(r#"{{"train":[["{a}",0,"x"]],"val":[],"test":[["{b}",0,"y"]]}}"#),
            "`x` and also `y`",
        ),
        (
            &format!(r#"{{"train":[["{a}",0,"x"]],"val":[],"test":[["{b}",10,"y"]]}}"#),
            "the label is 10",
        ),
        (
            &format!(r#"{{"train":[["{a}",0,"x"]],"val":[],"test":[["{b}",2,"y"]]}}"#),
            "no image has the label 1",
        ),
        (
            &format!(r#"{{"train":[["{a}",0,"x"]],"val":[],"test":[["{a}",0,"x"]]}}"#),
            "named in",
        ),
        (
            r#"{"train":[["no.jpg",0,"x"]],"val":[],"test":[]}"#,
            "1 of the 1 images",
        ),
    ] {
        let message = open_with(json);
        assert!(message.contains(want), "{json}: {message}");
    }
}

#[test]
fn a_miniature_is_not_the_published_release() {
    for key in ORDER_1.into_iter().chain(["CIFAR10", "ImageNet"]) {
        let spec = Spec::find(key).unwrap();
        let error = open(key, &packed(), &DatasetOptions::default())
            .err()
            .unwrap();
        let DatasetError::WrongCount {
            expected, found, ..
        } = &error
        else {
            panic!("{key}: {error}");
        };
        assert!(
            [spec.train, spec.train + spec.test].contains(expected) && found < expected,
            "{error}"
        );
        assert!(error.to_string().contains(&spec.get[0]), "{error}");
    }
}

/// Returns the error of opening a miniature dataset after `change` modified its files.
fn broken(key: &str, change: impl FnOnce(&Path), options: &DatasetOptions) -> String {
    let spec = Spec::find(key).unwrap();
    let root = unpack(|path| {
        spec.bases
            .iter()
            .any(|base| path.starts_with(base.split('/').next().unwrap()))
    });
    change(root.path());
    open(key, root.path(), options).err().unwrap().to_string()
}

fn edit(root: &Path, path: &str, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(root.join(path)).unwrap();
    fs::write(root.join(path), change(text)).unwrap();
}

#[track_caller]
pub(super) fn contains(message: &str, words: &[&str]) {
    assert!(words.iter().all(|w| message.contains(w)), "{message}");
}

#[test]
fn a_root_without_the_dataset() {
    let dir = tempfile::tempdir().unwrap();
    for root in [dir.path().to_owned(), dir.path().join("no")] {
        for spec in Spec::all().iter().filter(|s| s.is_task()) {
            let error = open(&spec.key, &root, &any()).err().unwrap();
            assert!(matches!(error, DatasetError::NotFound { .. }), "{error}");
            contains(
                &error.to_string(),
                &[&spec.key, &spec.bases[0], &spec.get[0]],
            );
        }
    }
    let error = open("COCO", &packed(), &any()).err().unwrap().to_string();
    contains(&error, &["COCO", "not a task"]);
}

#[test]
fn incompletely_unpacked_archives() {
    let remove = |root: &Path| {
        fs::remove_dir_all(root.join("food-101/images/waffles")).unwrap();
        fs::remove_dir_all(root.join("food-101/images/beignets")).unwrap();
    };
    let message = broken("Food", remove, &any());
    contains(
        &message,
        &[
            "3 of the 127",
            "train.json",
            "food-101/images/",
            "unpack it again",
        ],
    );
    let remove =
        |root: &Path| fs::remove_file(root.join("stanford_cars/cars_test/00003.jpg")).unwrap();
    let message = broken("StanfordCars", remove, &any());
    contains(
        &message,
        &["1 of the 6", "withlabels.mat", "cars_test/00003.jpg"],
    );
}

#[test]
fn labels_and_classes_that_differ_from_the_published_release() {
    let swap = |text: String| text.replacen("707-320\n727-200", "727-200\n707-320", 1);
    let message = broken(
        "Aircraft",
        |r| edit(r, "fgvc-aircraft-2013b/data/variants.txt", swap),
        &any(),
    );
    contains(&message, &["class 0 is `727-200`", "`707-320`"]);
    let message = broken(
        "Aircraft",
        |r| {
            edit(r, "fgvc-aircraft-2013b/data/images_variant_test.txt", |t| {
                t.replace("Yak-42", "Yak-43")
            })
        },
        &any(),
    );
    contains(&message, &["`Yak-43`", "did you mean `Yak-42`?"]);
    let message = broken(
        "OxfordPet",
        |r| {
            edit(r, "oxford-iiit-pet/annotations/test.txt", |t| {
                t.replacen("_9 1 1 1", "_9 38 1 1", 1)
            })
        },
        &any(),
    );
    contains(&message, &["line 1", "label is 38", "1 to 37"]);
    let message = broken(
        "OxfordPet",
        |r| {
            edit(r, "oxford-iiit-pet/annotations/test.txt", |t| {
                t.replacen("_9 1 1 1", "_9 2 1 1", 1)
            })
        },
        &any(),
    );
    contains(&message, &["class 1 is `Abyssinian`", "American Bulldog"]);
    let message = broken(
        "SUN397",
        |r| {
            edit(r, "SUN397/ClassName.txt", |t| {
                t.replacen("/a/abbey\n", "", 1)
            })
        },
        &any(),
    );
    contains(&message, &["class 0", "abbey"]);
    let cut = |text: String| text.trim_end().rsplit_once('\n').unwrap().0.to_owned();
    let message = broken("SUN397", |r| edit(r, "SUN397/ClassName.txt", cut), &any());
    contains(&message, &["396 classes", "has 397"]);
    let message = broken(
        "Food",
        |r| {
            edit(r, "food-101/meta/test.json", |t| {
                t.replacen("\"waffles\":", "\"wafles\":", 1)
            })
        },
        &any(),
    );
    contains(&message, &["test.json", "wafles"]);
    let digit = |root: &Path| {
        let path = "MNIST/raw/t10k-labels-idx1-ubyte";
        fs::remove_file(root.join(format!("{path}.gz"))).unwrap();
        put(root, path, &[0, 0, 8, 1, 0, 0, 0, 6, 1, 2, 3, 10, 5, 6]);
    };
    contains(
        &broken("MNIST", digit, &any()),
        &["image 3", "label is 10", "0 to 9"],
    );
    let short = |root: &Path| {
        let path = "MNIST/raw/t10k-labels-idx1-ubyte";
        fs::remove_file(root.join(format!("{path}.gz"))).unwrap();
        put(root, path, &[0, 0, 8, 1, 0, 0, 0, 2, 1, 2]);
    };
    contains(&broken("MNIST", short, &any()), &["6 images but 2 labels"]);
    let flower = |root: &Path| {
        // The first label, a byte of the matrix, becomes 103.
        let other = root.join("flowers-102/setid.mat");
        fs::copy(root.join("flowers-102/imagelabels.mat"), other).unwrap();
    };
    contains(
        &broken("Flowers", flower, &any()),
        &["setid.mat", "`trnid`"],
    );
}

#[test]
fn malformed_lists() {
    let message = broken(
        "DTD",
        |r| edit(r, "dtd/dtd/labels/train1.txt", |t| t.replacen('/', " ", 1)),
        &any(),
    );
    contains(&message, &["train1.txt, line 1", "CLASS/FILE"]);
    let message = broken(
        "Food",
        |r| edit(r, "food-101/meta/train.json", |t| t[1..].to_owned()),
        &any(),
    );
    contains(&message, &["train.json"]);
    let message = broken(
        "OxfordPet",
        |r| {
            edit(r, "oxford-iiit-pet/annotations/trainval.txt", |t| {
                t.replacen(" 1 1 1", "", 1)
            })
        },
        &any(),
    );
    contains(&message, &["trainval.txt, line 1", "IMAGE CLASS"]);
}

#[test]
fn an_image_in_both_splits() {
    let copy = |root: &Path| {
        let train = fs::read_to_string(root.join("dtd/dtd/labels/train1.txt")).unwrap();
        edit(root, "dtd/dtd/labels/test1.txt", |t| {
            t + train.lines().nth(3).unwrap()
        });
    };
    contains(
        &broken("DTD", copy, &any()),
        &["bubbly", "train1.txt and again in", "test1.txt"],
    );
}

#[test]
fn unexpected_or_missing_folders() {
    let add = |root: &Path| put(root, "eurosat/2750/Forests/Forests_1.jpg", b"x");
    contains(
        &broken("EuroSAT", add, &any()),
        &["`Forests`", "did you mean `Forest`?"],
    );
    let add = |root: &Path| {
        put(
            root,
            "caltech101/101_ObjectCategories/acordion/image_0001.jpg",
            b"x",
        )
    };
    contains(
        &broken("Caltech101", add, &any()),
        &["acordion", "did you mean `accordion`?"],
    );
    let add = |root: &Path| put(root, "SUN397/a/abby/sun_x.jpg", b"x");
    contains(
        &broken("SUN397", add, &any()),
        &["abby", "did you mean `abbey`?"],
    );
    let gap = |root: &Path| {
        fs::remove_file(root.join("caltech101/101_ObjectCategories/ant/image_0001.jpg")).unwrap()
    };
    contains(
        &broken("Caltech101", gap, &any()),
        &["image_0001.jpg", "without gaps"],
    );
    let gone = |root: &Path| fs::remove_dir_all(root.join("eurosat/2750/River")).unwrap();
    // A split given as index lists may have any size.
    let dir = tempfile::tempdir().unwrap();
    let lists = IndexLists {
        train: dir.path().join("train.txt"),
        test: dir.path().join("test.txt"),
    };
    fs::write(&lists.train, "0\n").unwrap();
    fs::write(&lists.test, "1\n").unwrap();
    let options = DatasetOptions {
        index_lists: [("EuroSAT".to_owned(), lists)].into(),
        ..DatasetOptions::default()
    };
    contains(
        &broken("EuroSAT", gone, &options),
        &["`River` has no image"],
    );
    contains(
        &broken("EuroSAT", |_| (), &options),
        &["no image in", "forest"],
    );
    let finder = |root: &Path| put(root, "eurosat/2750/.DS_Store", b"x");
    let root = unpack(|path| path.starts_with("eurosat/2750"));
    finder(root.path());
    assert_eq!(
        samples(&open("EuroSAT", root.path(), &any()).unwrap().train),
        listed(&expected()["EuroSAT"]["train"])
    );
}

#[test]
fn a_broken_archive_is_named() {
    let root = tempfile::tempdir().unwrap();
    let whole = fs::read(packed().join("food-101.tar.gz")).unwrap();
    put(root.path(), "food-101.tar.gz", &whole[..whole.len() / 2]);
    let error = open("Food", root.path(), &any()).err().unwrap();
    assert!(matches!(error, DatasetError::Archive { .. }), "{error}");
    contains(&error.to_string(), &["food-101.tar.gz"]);
}

#[test]
fn orders_and_splits_given_as_lists() {
    let found = open("SUN397", unpacked(), &any()).unwrap();
    let mut paths: Vec<String> = [&found.train, &found.test]
        .iter()
        .flat_map(|h| samples(h))
        .map(|(p, _)| p)
        .collect();
    paths.sort_unstable();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("order.txt");
    let reversed: Vec<&str> = paths.iter().rev().map(String::as_str).collect();
    fs::write(&file, reversed.join("\n")).unwrap();
    let options = DatasetOptions {
        sun397_order: Sun397Order::IndexList(file),
        ..any()
    };
    let task = open("SUN397", unpacked(), &options).unwrap();
    let split = Split::random(paths.len());
    let got: Vec<String> = samples(&task.test).into_iter().map(|(p, _)| p).collect();
    let want: Vec<&str> = split.test.iter().map(|&i| reversed[i]).collect();
    assert_eq!(got, want);

    let lists = IndexLists {
        train: dir.path().join("train.txt"),
        test: dir.path().join("test.txt"),
    };
    fs::write(&lists.train, "4\n0\n").unwrap();
    fs::write(&lists.test, "2\n").unwrap();
    let options = DatasetOptions {
        index_lists: [("SUN397".to_owned(), lists)].into(),
        ..any()
    };
    let task = open("SUN397", unpacked(), &options).unwrap();
    let got = samples(&task.train);
    assert_eq!([&got[0].0, &got[1].0], [&paths[4], &paths[0]]);
    assert_eq!(samples(&task.test)[0].0, paths[2]);
}

fn pairs(pairs: &CaptionedImages) -> Vec<(String, String)> {
    let path = |i| {
        pairs
            .images
            .identity(i)
            .rsplit_once(' ')
            .unwrap()
            .0
            .to_owned()
    };
    pairs
        .captions
        .iter()
        .enumerate()
        .map(|(i, c)| (path(i), c.clone()))
        .collect()
}

#[test]
fn imagenet_from_folders_and_from_a_tar_of_tars() {
    let want: Vec<(String, String)> =
        serde_json::from_value(expected()["ImageNet"]["reference"].clone()).unwrap();
    let classes: Vec<String> =
        serde_json::from_value(expected()["ImageNet"]["classes"].clone()).unwrap();
    assert!(
        want.iter()
            .any(|(_, caption)| caption == "a photo of an African elephant")
    );
    for root in [&packed(), unpacked()] {
        assert_eq!(pairs(&imagenet::reference(root, &any()).unwrap()), want);
        let task = open("ImageNet", root, &any()).unwrap();
        assert_eq!(task.class_names.len(), 1000);
        assert_eq!(task.templates.len(), 80);
        let raw = Spec::find("ImageNet").unwrap().raw_classes();
        for (path, label) in samples(&task.train) {
            assert!(
                path.contains(&format!("/{}/", raw[label])),
                "{path} {label}"
            );
        }
        let found: Vec<&String> = task.test.labels.iter().map(|&l| &raw[l]).collect();
        assert_eq!(found, classes.iter().collect::<Vec<_>>());
        task.test.images.load(0).unwrap();
    }
    // Validation images in folders of synsets, as torchvision arranges them.
    let root = unpack(|path| path.starts_with("ImageNet1K/"));
    let flat = root.path().join("ImageNet1K/ILSVRC2012_img_val");
    let table = fs::read_to_string(root.path().join("ImageNet1K/LOC_val_solution.csv")).unwrap();
    for row in table.lines().skip(1) {
        let (image, rest) = row.split_once(',').unwrap();
        let synset = rest.split(' ').next().unwrap();
        fs::create_dir_all(flat.join(synset)).unwrap();
        fs::rename(
            flat.join(format!("{image}.JPEG")),
            flat.join(synset).join(format!("{image}.JPEG")),
        )
        .unwrap();
    }
    let in_folders = open("ImageNet", root.path(), &any()).unwrap();
    let in_archive = open("ImageNet", &packed(), &any()).unwrap();
    assert_eq!(in_folders.test.labels, in_archive.test.labels);
    assert!(
        samples(&in_folders.test)[0]
            .0
            .starts_with("ImageNet1K/ILSVRC2012_img_val/n01440764/")
    );
    // Without the table, the labels are unknown.
    let root = unpack(|path| path.starts_with("ImageNet1K/") && !path.ends_with(".csv"));
    let error = open("ImageNet", root.path(), &any())
        .err()
        .unwrap()
        .to_string();
    contains(
        &error,
        &["LOC_val_solution.csv for the images in ImageNet1K/ILSVRC2012_img_val"],
    );
    // Without a file of names, the captions use the lemmas, which are the same.
    let root = unpack(|path| path.starts_with("ImageNet1K/ILSVRC2012_img_train"));
    assert_eq!(
        pairs(&imagenet::reference(root.path(), &any()).unwrap()),
        want
    );
    let error = open("ImageNet", root.path(), &any())
        .err()
        .unwrap()
        .to_string();
    contains(&error, &["validation split", "ILSVRC2012_img_val"]);
    // Kaggle's names.
    put(
        root.path(),
        "ImageNet1K/LOC_synset_mapping.txt",
        b"n01440764 tench_fish, Tinca tinca\n",
    );
    let found = pairs(&imagenet::reference(root.path(), &any()).unwrap());
    assert_eq!(found[0].1, "a photo of a tench fish");
    put(
        root.path(),
        "ImageNet1K/ILSVRC2012_img_train/n0/x.JPEG",
        b"x",
    );
    let error = imagenet::reference(root.path(), &any())
        .err()
        .unwrap()
        .to_string();
    contains(&error, &["`n0`"]);
}

#[test]
fn the_train_folder_of_something_else_is_not_imagenet() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "train/cat/1.jpg", b"x");
    let error = imagenet::reference(dir.path(), &any()).err().unwrap();
    assert!(matches!(error, DatasetError::NotFound { .. }), "{error}");
}

fn retrieval(set: &RetrievalSet) -> Vec<(String, Vec<String>)> {
    let path = |i| {
        set.images
            .identity(i)
            .rsplit_once(' ')
            .unwrap()
            .0
            .to_owned()
    };
    let mut all: Vec<(String, Vec<String>)> = (0..set.images.len())
        .map(|i| (path(i), Vec::new()))
        .collect();
    for (caption, &image) in set.captions.iter().zip(&set.image_of) {
        all[image].1.push(caption.clone());
    }
    all
}

#[test]
fn caption_sets_are_those_of_torchvision() {
    let want = |key: &str| -> Vec<(String, Vec<String>)> {
        serde_json::from_value(expected()[key].clone()).unwrap()
    };
    for root in [&packed(), unpacked()] {
        let set = coco(root, CaptionSplit::Official, &any()).unwrap();
        assert_eq!(set.name, "COCO (val2014)");
        assert_eq!(retrieval(&set), want("COCO"));
        assert_eq!(set.image_of[..6], [0, 0, 0, 0, 0, 1]);
        let first = set.first_captions();
        assert_eq!(first.captions[0], want("COCO")[0].1[0]);
        first.images.load(0).unwrap();
        let set = flickr30k(root, CaptionSplit::Official, &any()).unwrap();
        assert_eq!(retrieval(&set), want("Flickr30k"));
    }
}

#[test]
fn karpathys_test_splits() {
    let sets = [
        coco(&packed(), CaptionSplit::Karpathy, &any()).unwrap(),
        flickr30k(&packed(), CaptionSplit::Auto, &any()).unwrap(),
    ];
    for (set, key, names) in [
        (&sets[0], "COCO", ["000000581929.jpg", "000000000073.jpg"]),
        (&sets[1], "Flickr30k", ["1000092795.jpg", "4995.jpg"]),
    ] {
        assert!(set.name.contains("Karpathy"));
        let found = retrieval(set);
        assert_eq!(found.len(), 2);
        let official: Vec<(String, Vec<String>)> =
            serde_json::from_value(expected()[key].clone()).unwrap();
        for ((path, captions), name) in found.iter().zip(names) {
            assert!(path.ends_with(name), "{path}");
            assert_eq!(
                captions,
                &official.iter().find(|(p, _)| p == path).unwrap().1
            );
        }
    }
    // Without its file.
    let root = unpack(|path| path.starts_with("coco/") && !path.contains("dataset_coco"));
    let error = coco(root.path(), CaptionSplit::Karpathy, &any())
        .err()
        .unwrap();
    assert!(matches!(error, DatasetError::NotFound { .. }), "{error}");
    let found = coco(root.path(), CaptionSplit::Auto, &any()).unwrap();
    assert_eq!(found.name, "COCO (val2014)");
}

#[test]
fn kaggles_table_of_flickr30k() {
    let root = unpack(|path| path.starts_with("flickr30k/flickr30k-images"));
    let table = fs::read_to_string(packed().join("karpathy/results.csv")).unwrap();
    // One line of the published table lacks a bar.
    let table = table.replacen("| 4| ", "| 4   ", 1);
    put(root.path(), "flickr30k/results.csv", table.as_bytes());
    let found = retrieval(&flickr30k(root.path(), CaptionSplit::Official, &any()).unwrap());
    let want: Vec<(String, Vec<String>)> =
        serde_json::from_value(expected()["Flickr30k"].clone()).unwrap();
    assert_eq!(found, want);
    put(root.path(), "flickr30k/results.csv", b"header\nno bar\n");
    let error = flickr30k(root.path(), CaptionSplit::Official, &any())
        .err()
        .unwrap()
        .to_string();
    contains(&error, &["results.csv, line 2", "`no bar`"]);
    put(
        root.path(),
        "flickr30k/results.csv",
        b"header\n1.jpg| 0| x\n",
    );
    let error = flickr30k(root.path(), CaptionSplit::Official, &any())
        .err()
        .unwrap()
        .to_string();
    contains(&error, &["1 of the 1 images", "1.jpg"]);
}

fn task_names(suite: &crate::suite::Suite) -> Vec<&str> {
    suite.tasks.iter().map(|task| task.name.as_str()).collect()
}

#[test]
fn suites_have_the_published_orders() {
    for (name, order) in [
        ("mtil-order-1", &ORDER_1[..]),
        ("mtil-order-2", &ORDER_2),
        ("xtail-order-1", &XTAIL_1),
        ("xtail-order-2", &XTAIL_2),
    ] {
        let found = suite(name, &packed(), &any()).unwrap();
        assert_eq!(task_names(&found.suite), order);
        found.suite.check().unwrap();
        assert_eq!(found.retrieval.len(), 2);
        assert_eq!(found.suite.reference.images.len(), 12);
        assert_eq!(
            found.suite.held_out.captions,
            found.retrieval[0].first_captions().captions
        );
        let aircraft = order.iter().position(|k| *k == "Aircraft").unwrap();
        let sun = order.iter().position(|k| *k == "SUN397").unwrap();
        assert_eq!(
            (found.reference_seeds[aircraft], found.reference_seeds[sun]),
            (42, 52)
        );
    }
    let error = suite("mtil-order-3", &packed(), &any())
        .err()
        .unwrap()
        .to_string();
    contains(&error, &["did you mean `mtil-order-"]);
}

#[test]
fn reference_and_held_out_pairs_fall_back_in_order() {
    let root = unpack(|path| !path.starts_with("coco") && !path.starts_with("flickr30k"));
    let found = suite("mtil-order-1", root.path(), &any()).unwrap();
    assert!(found.retrieval.is_empty());
    assert_eq!(found.suite.held_out.images.len(), 4);
    assert!(found.suite.held_out.images.name(0).contains("img_val"));
    // Too few training images to hold some out.
    fs::remove_dir_all(root.path().join("ImageNet1K/ILSVRC2012_img_val")).unwrap();
    let error = suite("mtil-order-1", root.path(), &any()).err().unwrap();
    contains(&error.to_string(), &["MS COCO into coco/"]);
    // Enough of them.
    let jpeg = fs::read(
        root.path()
            .join("ImageNet1K/ILSVRC2012_img_train/n01440764/n01440764_3.JPEG"),
    )
    .unwrap();
    for i in 0..1000 {
        put(
            root.path(),
            &format!("ImageNet1K/ILSVRC2012_img_train/n01440764/n_{i}.JPEG"),
            &jpeg,
        );
    }
    let found = suite("mtil-order-1", root.path(), &any()).unwrap().suite;
    assert_eq!(
        (found.reference.images.len(), found.held_out.images.len()),
        (12, 1000)
    );
    let held: std::collections::HashSet<_> =
        pairs(&found.held_out).into_iter().map(|(p, _)| p).collect();
    assert!(
        pairs(&found.reference)
            .iter()
            .all(|(p, _)| !held.contains(p))
    );
    // No ImageNet: captions.
    fs::remove_dir_all(root.path().join("ImageNet1K")).unwrap();
    let error = suite("mtil-order-1", root.path(), &any()).err().unwrap();
    contains(
        &error.to_string(),
        &["ImageNet1K/ILSVRC2012_img_train", "conceptual_captions/"],
    );
    put(
        root.path(),
        "conceptual_captions/val.tsv",
        b"title\tfilepath\na fish\tx/1.jpg\na bird\tx/2.jpg\n",
    );
    put(root.path(), "conceptual_captions/x/2.jpg", &jpeg);
    let error = suite("mtil-order-1", root.path(), &any()).err().unwrap();
    assert!(matches!(error, DatasetError::NoHeldOut { .. }), "{error}");
    let annotations = concat!(
        r#"{"images":[{"id":1,"file_name":"1.jpg"}],"#,
        r#""annotations":[{"image_id":1,"caption":"x"}]}"#
    );
    put(
        root.path(),
        "coco/annotations/captions_val2017.json",
        annotations.as_bytes(),
    );
    put(root.path(), "coco/val2017/1.jpg", &jpeg);
    let found = suite("mtil-order-1", root.path(), &any()).unwrap().suite;
    assert_eq!(
        pairs(&found.reference),
        [(
            "conceptual_captions/x/2.jpg".to_owned(),
            "a bird".to_owned()
        )]
    );
    assert_eq!(found.held_out.captions, ["x"]);
    let options = DatasetOptions {
        reference: ReferenceSource::None,
        ..any()
    };
    assert!(
        suite("mtil-order-1", root.path(), &options)
            .unwrap()
            .suite
            .reference
            .captions
            .is_empty()
    );
}

#[test]
fn a_check_reports_complete_missing_and_invalid_datasets() {
    let root = unpack(|path| {
        ["eurosat/2750", "dtd", "flickr30k"]
            .iter()
            .any(|p| path.starts_with(p) && !path.contains("dataset_flickr30k"))
    });
    put(root.path(), "eurosat/2750/River/River_1.jpg", b"no picture");
    fs::remove_file(root.path().join("dtd/dtd/images/banded/banded_0001.jpg")).unwrap();
    put(
        root.path(),
        "conceptual_captions/t.tsv",
        b"title\tfilepath\na fish\t1.jpg\n",
    );
    let events = Mutex::new(Vec::new());
    let keys = [
        "EuroSAT",
        "DTD",
        "Food",
        "Flickr30k",
        "ConceptualCaptions",
        "Foo",
    ];
    let look = |deep| {
        check(root.path(), &keys, deep, &any(), &|event| {
            events.lock().unwrap().push(event)
        })
    };
    let reports = look(false);
    assert_eq!(
        reports.iter().map(|r| r.key.as_str()).collect::<Vec<_>>(),
        keys
    );
    let DatasetState::Complete {
        parts,
        bytes,
        unreadable,
    } = &reports[0].state
    else {
        panic!("{:?}", reports[0]);
    };
    assert_eq!((parts[0].images, parts[1].images), (24, 6));
    let [least, most] = parts[1].classes.as_ref().unwrap();
    assert!(least.1 <= most.1);
    let on_disk: u64 = Store::open(root.path(), &[])
        .unwrap()
        .files("eurosat")
        .unwrap()
        .iter()
        .map(|f| fs::metadata(root.path().join(f)).unwrap().len())
        .sum();
    assert_eq!(*bytes, on_disk);
    assert!(unreadable.is_empty() && reports[0].is_usable());
    assert!(
        matches!(&reports[1].state, DatasetState::Wrong(why) if why.contains("banded_0001.jpg"))
    );
    let DatasetState::NotFound {
        looked_for, get, ..
    } = &reports[2].state
    else {
        panic!("{:?}", reports[2]);
    };
    assert!(looked_for.contains(&"food-101.tar.gz".to_owned()) && get[0].contains("food-101"));
    let DatasetState::Complete { parts, .. } = &reports[3].state else {
        panic!("{:?}", reports[3]);
    };
    assert_eq!((parts[0].images, parts[0].captions), (4, Some(20)));
    for (report, reason) in [
        (&reports[4], "none of the 1 images"),
        (&reports[5], "did you mean `Food`?"),
    ] {
        assert!(matches!(&report.state, DatasetState::Wrong(why) if why.contains(reason)));
    }
    assert_eq!(events.lock().unwrap().len(), 2 * keys.len());

    let reports = look(true);
    let DatasetState::Complete { unreadable, .. } = &reports[0].state else {
        panic!("{:?}", reports[0]);
    };
    assert_eq!(unreadable.len(), 1);
    assert!(unreadable[0].0.ends_with("River_1.jpg") && !reports[0].is_usable());
    let decoded = CheckEvent::Decoded {
        key: "EuroSAT".into(),
        done: 30,
        of: 30,
    };
    assert!(events.lock().unwrap().contains(&decoded));
}

#[test]
fn all_miniatures_can_be_decoded() {
    let keys: Vec<&str> = Spec::all()
        .iter()
        .map(|s| s.key.as_str())
        .filter(|k| *k != "ConceptualCaptions")
        .collect();
    for report in check(&packed(), &keys, true, &any(), &|_| {}) {
        assert!(report.is_usable(), "{report:?}");
        let DatasetState::Complete { bytes, parts, .. } = &report.state else {
            unreachable!();
        };
        assert!(
            *bytes > 0 && parts.iter().all(|p| p.images > 0),
            "{report:?}"
        );
    }
}

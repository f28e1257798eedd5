//! Readers of the files of datasets and suites.

use std::fs;
use std::ops::ControlFlow;

use inert_pickle::{Limits, Plain};
use mtil_data::{
    data::CaptionFolder,
    datasets::{
        DatasetOptions, SizeCheck,
        captions::{self, CaptionSplit},
        idx, matlab, pickle,
        store::{Archive, Store},
    },
    suite::{self, Suite},
};

use super::{Scratch, accept};

/// A PNG of one pixel.
const PIXEL: &[u8] =
    include_bytes!("../../../crates/clip-model/tests/data/preprocess/src/rgb_one_pixel.png");

/// Reads an array of MNIST.
pub(super) fn idx(bytes: &[u8], _: &Scratch) -> bool {
    let Some(array) = accept(idx::read(bytes, "images")) else {
        return false;
    };
    assert_eq!(array.shape.iter().product::<usize>(), array.data.len());
    true
}

/// Reads the variables of a MAT-file.
pub(super) fn matlab(bytes: &[u8], _: &Scratch) -> bool {
    accept(matlab::read(bytes, "labels.mat")).is_some()
}

/// Reads a pickle of plain objects, and one with numpy's arrays.
pub(super) fn pickle(bytes: &[u8], _: &Scratch) -> bool {
    let range = 0..bytes.len() as u64;
    let plain = inert_pickle::read(bytes, range, Limits::default(), &mut Plain);
    accept(plain).is_some() | accept(pickle::read(bytes, "batch")).is_some()
}

/// Reads all members of an archive (tar, gzipped tar, zip), and of an archive in it.
pub(super) fn archive(bytes: &[u8], scratch: &Scratch) -> bool {
    const MOUNT: &str = "files";
    scratch.write("archive", bytes);
    let mut archive = Archive {
        file: "archive".to_owned(),
        mount: MOUNT.to_owned(),
        inner: None,
    };
    let open = |archive: &Archive| {
        let store = accept(Store::open(&scratch.input(), std::slice::from_ref(archive)))?;
        let files = accept(store.files(MOUNT))?;
        for file in &files {
            accept(store.read(file));
            store.describe(file);
            store.size(file);
        }
        Some(files)
    };
    let Some(files) = open(&archive) else {
        return false;
    };
    let is_archive = |file: &&String| file.ends_with("gz") || file.ends_with(".tar");
    if let Some(nested) = files.iter().find(is_archive) {
        archive.inner = Some(nested[MOUNT.len() + 1..].to_owned());
        open(&archive);
    }
    true
}

/// Images that the tables among the seeds name.
const IMAGES: [&str; 6] = [
    "1.png",
    "images/2.png",
    "cc/3.png",
    "flickr30k/Images/4.jpg",
    "coco/val2014/5.jpg",
    "coco/val2014/6.jpg",
];

/// Reads a caption table: CSV and TSV of users, and the files of the caption datasets.
pub(super) fn captions(bytes: &[u8], scratch: &Scratch) -> bool {
    for image in IMAGES {
        scratch.provide(image, PIXEL);
    }
    let root = scratch.input();
    let options = DatasetOptions {
        size_check: SizeCheck::Any,
        ..DatasetOptions::default()
    };
    let table = scratch.write("captions.csv", bytes);
    let folder = accept(CaptionFolder::from_table(&root, "captions.csv"));
    let mut accepted = folder.is_some();
    if let Some(folder) = folder {
        accept(folder.split(0.5, 1));
    }
    accept(captions::caption_lines(&table));
    scratch.write("cc/val.tsv", bytes);
    accepted |= accept(captions::conceptual_captions(&root, &options)).is_some();
    for file in ["flickr30k/results_20130124.token", "flickr30k/results.csv"] {
        let path = scratch.write(file, bytes);
        let official = captions::flickr30k(&root, CaptionSplit::Official, &options);
        accepted |= accept(official).is_some();
        fs::remove_file(path).expect("it was written");
    }
    if bytes.trim_ascii_start().starts_with(b"{") {
        scratch.write("coco/annotations/captions_val2014.json", bytes);
        scratch.write("coco/dataset_coco.json", bytes);
        for split in [CaptionSplit::Official, CaptionSplit::Karpathy] {
            accepted |= accept(captions::coco(&root, split, &options)).is_some();
        }
    }
    accepted
}

/// Reads a suite file beside image folders, and exports the suite.
///
/// A suite may name any folder of the machine. Inputs with an absolute path or one that leaves the
/// input folder are skipped, because they would read what happens to be there.
pub(super) fn suite(bytes: &[u8], scratch: &Scratch) -> bool {
    let leaves = |mark: &[u8]| bytes.windows(mark.len()).any(|part| part == mark);
    if leaves(b"..") || leaves(b"\"/") || leaves(b"'/") || leaves(b"\n/") || leaves(b"\\") {
        return false;
    }
    for class in [
        "shoes/flip_flop",
        "shoes/sneaker",
        "birds/train/n01",
        "birds/train/n02",
        "birds/test/n01",
        "birds/test/n02",
    ] {
        for image in 0..3 {
            scratch.provide(&format!("{class}/{image}.png"), PIXEL);
        }
    }
    for image in 0..5 {
        scratch.provide(&format!("reference/images/{image}.png"), PIXEL);
        scratch.provide(&format!("templates/n01/{image}.png"), PIXEL);
        scratch.provide(&format!("more/n01/{image}.png"), PIXEL);
        scratch.provide(&format!("scenes/photos/{image}.png"), PIXEL);
    }
    let rows: String = (0..5)
        .map(|i| format!("images/{i}.png,text {i}\n"))
        .collect();
    let table = format!("file,caption\n{rows}");
    scratch.provide("reference/captions.csv", table.as_bytes());
    let table = table.replace("images/", "photos/");
    for name in ["scenes/pairs.csv", "scenes/test.csv"] {
        scratch.provide(name, table.as_bytes());
    }
    let path = scratch.write("suite.toml", bytes);
    let Some(suite) = accept(Suite::load(&path)) else {
        return false;
    };
    let exported = scratch.output().join("suite");
    if accept(suite::export(&suite, &exported, &mut |_, _| {
        ControlFlow::Continue(())
    }))
    .is_some()
    {
        let again = Suite::load(&exported).expect("an exported suite loads");
        assert_eq!(again.tasks.len(), suite.tasks.len());
    }
    if exported.exists() {
        fs::remove_dir_all(&exported).expect("it can be removed");
    }
    true
}

//! Tests of the book: the commands of the guides run and print what the guides say, and all links
//! of the repository lead somewhere.

mod guide;
mod links;

use std::{
    fs,
    path::{Path, PathBuf},
};

use guide::Guide;

/// Folder of the repository.
fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap()
}

macro_rules! guides {
    ($($test:ident: $name:literal;)*) => {
        $(#[cfg(unix)]
        #[test]
        fn $test() {
            Guide::read(&root().join("docs/guides").join($name)).run();
        })*
        const GUIDES: &[&str] = &[$($name),*];
    };
}

guides! {
    caption_pairs: "caption-pairs.md";
    cluster: "cluster.md";
    devices: "devices.md";
    keep_learning: "keep-learning.md";
    method: "method.md";
    optimizer: "optimizer.md";
    python: "python.md";
    reproduce: "reproduce.md";
    suite: "suite.md";
}

#[test]
fn all_guides_are_run() {
    let entries = fs::read_dir(root().join("docs/guides")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    names.sort();
    assert_eq!(names, GUIDES);
}

#[test]
fn links_lead_somewhere() {
    let broken = links::broken(&root());
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn the_summary_lists_every_page() {
    let docs = root().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed = links::targets(&summary);
    for page in links::markdown_files(&docs) {
        let name = page.strip_prefix(&docs).unwrap().to_string_lossy();
        let known = name == "SUMMARY.md" || listed.iter().any(|link| *link == name);
        assert!(known, "docs/SUMMARY.md does not list {name}");
    }
}

#[test]
fn the_front_page_is_short() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let count = readme.chars().count();
    assert!(count <= 8000, "README.md has {count} characters");
}

//! Tests of the book: the commands of its pages run and print what the pages say, and all links of
//! the repository lead somewhere.

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

macro_rules! pages {
    ($($test:ident: $name:literal;)*) => {
        $(#[cfg(unix)]
        #[test]
        fn $test() {
            Guide::read(&root().join("docs").join($name)).run();
        })*
        const PAGES: &[&str] = &[$($name),*];
    };
}

pages! {
    caption_pairs: "guides/caption-pairs.md";
    cluster: "guides/cluster.md";
    devices: "guides/devices.md";
    keep_learning: "guides/keep-learning.md";
    method: "guides/method.md";
    python: "guides/python.md";
    reproduce: "guides/reproduce.md";
    suite: "guides/suite.md";
    determinism: "understanding/determinism.md";
    miniature: "understanding/miniature.md";
}

#[test]
fn all_pages_with_commands_are_run() {
    let docs = root().join("docs");
    let mut pages: Vec<String> = links::markdown_files(&docs)
        .iter()
        .filter(|page| Guide::read(page).has_commands())
        .map(|page| {
            page.strip_prefix(&docs)
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    pages.sort();
    assert_eq!(pages, PAGES);
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

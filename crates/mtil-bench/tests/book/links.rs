//! Links of the Markdown files of the repository.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Returns all Markdown files below `folder`, without hidden and built ones.
pub fn markdown_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && !["target", "runs"].contains(&name.as_str()) {
            files.extend(markdown_files(&path));
        } else if name.ends_with(".md") {
            files.push(path);
        }
    }
    files
}

/// Returns the targets of the links and pictures of a page, outside code.
pub fn targets(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Every second part is code.
        let text: String = line.split('`').step_by(2).collect();
        let links = text.split("](").skip(1);
        found.extend(links.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())));
    }
    found
}

/// Returns the anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(page: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found: Vec<String> = Vec::new();
    for line in page.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        if !fenced && line.starts_with('#') {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter_map(|c| match c {
                ' ' => Some('-'),
                c => (c.is_alphanumeric() || c == '-' || c == '_').then_some(c),
            });
            found.push(kept.collect());
        }
    }
    found
}

/// Returns a line for each relative link of the repository that leads nowhere, or out of the book.
pub fn broken(root: &Path) -> Vec<String> {
    let mut broken = Vec::new();
    for file in markdown_files(root) {
        let page = fs::read_to_string(&file).unwrap();
        for target in targets(&page) {
            // Other sites, and items of rustdoc.
            if ["://", "mailto:", "crate::"]
                .iter()
                .any(|mark| target.contains(mark))
            {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let to = match path {
                "" => file.clone(),
                path => file.parent().unwrap().join(path),
            };
            // The book that `mdbook build` makes holds only what is below `docs`.
            let docs = root.join("docs").canonicalize().unwrap();
            let leaves = |to: PathBuf| file.starts_with(root.join("docs")) && !to.starts_with(docs);
            let exists = to.canonicalize().is_ok_and(|to| !leaves(to));
            let known = anchor.is_empty()
                || fs::read_to_string(&to)
                    .is_ok_and(|page| anchors(&page).contains(&anchor.to_owned()));
            if !exists || !known {
                let name = file.strip_prefix(root).unwrap().display();
                broken.push(format!("{name}: {target}"));
            }
        }
    }
    broken
}

#[test]
fn links_and_anchors_are_found() {
    let page = "# A `b` c: d\n[x](y.md#z) `[no](code)`\n```\n[no](fence)\n```\n![p](q.png)";
    assert_eq!(targets(page), ["y.md#z", "q.png"]);
    assert_eq!(anchors(page), ["a-b-c-d"]);
}

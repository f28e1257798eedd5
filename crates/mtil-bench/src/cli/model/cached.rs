//! Whether files of the zoo are on this machine: a look at names, where `zoo::Cache` hashes
//! gigabytes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clip_model::zoo::{Archive, Cache, Entry, FileSpec, HubFiles, Layout, Role, Source, ZooError};

/// The files of one source.
pub struct Present {
    /// What they look like inside.
    pub layout: Layout,
    /// Where they are.
    pub files: Vec<(Role, PathBuf)>,
}

impl Present {
    /// The file for `role`.
    pub fn path(&self, role: Role) -> Option<&Path> {
        let file = self.files.iter().find(|(r, _)| *r == role)?;
        Some(&file.1)
    }
}

/// The first source of `entry` whose files all exist.
pub fn present(cache: &Cache, entry: &Entry) -> Option<Present> {
    entry.sources.iter().find_map(|source| {
        let files = match source {
            Source::Hub(hub) => {
                let file = |spec: &FileSpec| Some((spec.role, hub_file(cache, hub, spec)?));
                hub.files.iter().map(file).collect::<Option<Vec<_>>>()?
            }
            Source::Archive(archive) => {
                let mut paths = archive_paths(cache, entry, archive).into_iter();
                vec![(Role::Weights, paths.find(|path| path.is_file())?)]
            }
        };
        Some(Present {
            layout: source.layout(),
            files,
        })
    })
}

/// A file in the layout of the Hugging Face cache: `models--owner--name/snapshots/<commit>/<file>`.
fn hub_file(cache: &Cache, hub: &HubFiles, spec: &FileSpec) -> Option<PathBuf> {
    let (repo, revision) = hub.origin(spec);
    let folder = cache
        .hub()
        .join(format!("models--{}", repo.replace('/', "--")));
    let commit = fs::read_to_string(folder.join("refs").join(revision));
    let commit = commit.map_or_else(|_| revision.to_owned(), |text| text.trim().to_owned());
    let snapshot = folder.join("snapshots").join(commit);
    let mut paths = spec.names.iter().map(|name| snapshot.join(name));
    paths.find(|path| path.is_file())
}

/// Where an archive may be. The folders are the cache's own affair: it says where it looked for one
/// that cannot be there.
fn archive_paths(cache: &Cache, entry: &Entry, archive: &Archive) -> Vec<PathBuf> {
    let mut absent = archive.clone();
    absent.sha256 = "0".repeat(64);
    absent.file = ".absent".to_owned();
    let mut probe = entry.clone();
    probe.sources = vec![Source::Archive(absent.clone())];
    let Err(ZooError::NotCached { looked, .. }) = cache.lookup(&probe, None) else {
        return Vec::new();
    };
    let path = |probe: PathBuf| {
        let folder = probe.parent()?;
        Some(match folder.ends_with(&absent.sha256) {
            true => folder.with_file_name(&archive.sha256).join(&archive.file),
            false => folder.join(&archive.file),
        })
    };
    looked.into_iter().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use clip_model::zoo::Registry;

    use super::*;

    #[test]
    fn an_archive_is_found_where_the_cache_puts_it_and_where_openai_does() {
        let root = tempfile::tempdir().unwrap();
        let openai = root.path().join("openai");
        let cache = Cache::at(root.path()).with_openai(&openai);
        let registry = Registry::embedded().unwrap();
        let entry = registry.get("openai/ViT-B-16").unwrap();
        assert!(present(&cache, entry).is_none());
        let Some(Source::Archive(archive)) = entry.sources.first() else {
            panic!("the first source is no archive");
        };
        let ours = root.path().join("clip-model").join(&archive.sha256);
        for folder in [ours, openai] {
            fs::create_dir_all(&folder).unwrap();
            let path = folder.join("ViT-B-16.pt");
            fs::write(&path, "x").unwrap();
            let found = present(&cache, entry).unwrap();
            assert_eq!(found.path(Role::Weights), Some(&*path));
            // The library agrees on where to look: it finds the file and its hash wrong.
            assert!(matches!(
                cache.lookup(entry, Some(Layout::OpenaiArchive)),
                Err(ZooError::Checksum { path: p, .. }) if p == path
            ));
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn files_of_a_repository_are_found_through_the_reference() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path());
        let registry = Registry::embedded().unwrap();
        let entry = registry.get("openai/ViT-B-16").unwrap();
        let repo = cache.hub().join("models--openai--clip-vit-base-patch16");
        let snapshot = repo.join("snapshots/0123456789abcdef0123456789abcdef01234567");
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        fs::write(
            repo.join("refs/main"),
            "0123456789abcdef0123456789abcdef01234567\n",
        )
        .unwrap();
        for name in ["pytorch_model.bin", "config.json", "tokenizer.json"] {
            fs::write(snapshot.join(name), "x").unwrap();
        }
        assert!(present(&cache, entry).is_none(), "a file is missing");
        fs::write(snapshot.join("preprocessor_config.json"), "x").unwrap();
        let found = present(&cache, entry).unwrap();
        assert_eq!(found.layout, Layout::Transformers);
        assert_eq!(found.files.len(), 4);
        assert!(cache.lookup(entry, None).is_ok());
    }
}

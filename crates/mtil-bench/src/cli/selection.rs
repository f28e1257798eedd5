//! What `--suite`, `--data` and their companions mean.

use std::{collections::BTreeMap, path::Path};

use eyre::{Report, Result, WrapErr, bail, eyre};

use super::args::{Selection, SplitName};
use crate::sweep::named_suites;
use mini_world as mini;
use mini_world::{MiniSizes, conflict_suite, parse_conflict};
use mtil_data::{
    data::CaptionFolder,
    datasets::{
        Counts, DatasetOptions, Protocol, ReferenceSource, Sun397Order,
        captions::{caption_lines, caption_table, conceptual_captions},
        mtil,
        store::Store,
        transform::{few_shot_suite, rotate, select},
    },
    nearest, seeds,
    suite::{CaptionedImages, Suite, SuiteError},
};

/// Sizes of the mini world's suites with `--quick`.
const QUICK: MiniSizes = MiniSizes {
    train_per_task: 160,
    test_per_task: 80,
    reference: 128,
    held_out: 100,
};

/// Training images of ImageNet-1k.
const IMAGENET: usize = 1_281_167;

/// A suite, and under which name methods keep settings for it.
pub struct Selected {
    /// The suite.
    pub suite: Suite,
    /// All its tasks, before some were selected.
    pub all_tasks: Vec<String>,
    /// The name in a method's tables `[on.NAME]`.
    pub settings: String,
    /// What was selected, in words, for the name of the suite.
    pub selection: String,
}

impl SplitName {
    /// As the library has it.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Zscl => Protocol::Zscl,
            Self::Coop => Protocol::CoOp,
        }
    }
}

impl Selection {
    /// A suite by its name, with nothing selected.
    pub fn named(suite: &str) -> Self {
        Self {
            suite: suite.to_owned(),
            ..Self::default()
        }
    }

    /// How the datasets of MTIL are opened.
    pub fn dataset_options(&self) -> DatasetOptions {
        DatasetOptions {
            protocol: self.splits.protocol(),
            counts: if self.any_size {
                Counts::Any
            } else {
                Counts::Exact
            },
            sun397_order: match &self.sun397_order {
                Some(path) => Sun397Order::IndexList(path.clone()),
                None => Sun397Order::Sorted,
            },
            reference: match &self.reference {
                Some(_) => ReferenceSource::None,
                None => ReferenceSource::Found,
            },
            ..DatasetOptions::default()
        }
    }

    /// Opens the suite and selects from it. The pictures of the mini world and the images of few
    /// shots are drawn by `seed`. With `quick` the mini world is small.
    pub fn load(&self, quick: bool, seed: u64) -> Result<Selected> {
        let (mut suite, settings) = self.open(quick, seed)?;
        if let Some(path) = &self.texts {
            suite.extras.texts = caption_lines(path)?;
        }
        let all_tasks = suite.tasks.iter().map(|t| t.name.clone()).collect();
        let mut selection = Vec::new();
        if self.shift > 0 {
            if self.shift >= suite.tasks.len() {
                bail!(
                    "--shift {} passes over all {} tasks of `{}`: give at most {}",
                    self.shift,
                    suite.tasks.len(),
                    suite.name,
                    suite.tasks.len() - 1
                );
            }
            suite = rotate(&suite, self.shift);
            selection.push(format!("from task {}", self.shift + 1));
        }
        if !self.tasks.is_empty() {
            suite = select(&suite, &self.tasks)?;
            selection.push(self.tasks.join("+"));
        }
        if let Some(shots) = self.shots {
            suite = few_shot_suite(&suite, shots, seed)?;
            selection.push(format!("{shots} shots"));
        }
        if self.splits == SplitName::Coop {
            selection.push("CoOp splits".to_owned());
        }
        if let Some(path) = &self.reference {
            if let Some(sets) = references(path, &suite)? {
                suite.reference = sets[&suite.tasks[0].name].clone();
                suite.extras.references = sets;
            } else {
                suite.reference = reference(path)?;
            }
            suite.extras.published_draws = false;
        }
        suite.check()?;
        Ok(Selected {
            suite,
            all_tasks,
            settings,
            selection: selection.join(", "),
        })
    }

    /// Whether seeds have other images.
    pub fn drawn(&self) -> bool {
        let name = self.suite.as_str();
        let of_world =
            [mini::NAME, mini::DEV_NAME].contains(&name) || parse_conflict(name).is_some();
        of_world || self.shots.is_some()
    }

    fn open(&self, quick: bool, seed: u64) -> Result<(Suite, String)> {
        let name = self.suite.as_str();
        let pictures = seeds::derive(mini::SUITE_SEED, &[seed]);
        let sizes = if quick { QUICK } else { MiniSizes::default() };
        if let Some(conflict) = parse_conflict(name) {
            let (kind, dial) = conflict?;
            let suite = conflict_suite(kind, dial, pictures, sizes)?;
            return Ok((suite, mini::NAME.to_owned()));
        }
        if mtil::SUITES.contains(&name) {
            let Some(data) = &self.data else {
                return Err(eyre!(
                    "`{name}` needs --data DIR, the folder that holds its datasets; `mtil-bench suite check --data DIR` says what is there and where to get the rest"
                ));
            };
            let options = self.dataset_options();
            let loaded = mtil::suite(name, data, &options)?;
            let mut suite = loaded.suite;
            suite.extras.retrieval = loaded.retrieval;
            // The published draws are of all training images of ImageNet.
            suite.extras.published_draws = suite.reference.captions.len() == IMAGENET;
            if self.texts.is_none()
                && let Ok(table) = conceptual_captions(data)
            {
                suite.extras.texts = table.pairs.captions;
            }
            return Ok((suite, name.to_owned()));
        }
        // Settings are those of the world: what was chosen on one of its suites serves the others.
        match name {
            mini::NAME => return Ok((mini::suite(pictures, sizes), mini::NAME.to_owned())),
            mini::DEV_NAME => return Ok((mini::dev_suite(pictures, sizes), mini::NAME.to_owned())),
            _ => {}
        }
        let suite = Suite::load(Path::new(name)).map_err(|error| match error {
            SuiteError::Missing { .. } => no_suite(name),
            error => error.into(),
        })?;
        let settings = suite.name.clone();
        Ok((suite, settings))
    }
}

fn no_suite(name: &str) -> Report {
    let known: Vec<_> = named_suites().collect();
    let near = nearest(name, named_suites());
    eyre!(
        "there is no suite `{name}`, nor a file or folder of that name (known suites: {}){}",
        known.join(", "),
        near.map_or_else(String::new, |n| format!("; did you mean `{n}`?"))
    )
}

/// Pairs of a folder with a table of captions, or of such a table.
/// The names of a folder's table of captions.
const TABLES: [&str; 2] = ["captions.csv", "captions.tsv"];

/// The table of captions in a folder.
fn table_in(folder: &Path) -> Option<&'static str> {
    TABLES.into_iter().find(|t| folder.join(t).is_file())
}

/// A reference set for each task, of a folder with a folder for each; none where the folder is a
/// single set.
fn references(path: &Path, suite: &Suite) -> Result<Option<BTreeMap<String, CaptionedImages>>> {
    let folder = |name: &str| path.join(name);
    let names = || suite.tasks.iter().map(|t| t.name.as_str());
    if table_in(path).is_some() || !names().any(|name| folder(name).is_dir()) {
        return Ok(None);
    }
    let without: Vec<&str> = names().filter(|n| table_in(&folder(n)).is_none()).collect();
    if !without.is_empty() {
        bail!(
            "--reference {} has sets of single tasks, but none of {}: each needs a folder of its name with captions.csv or captions.tsv",
            path.display(),
            without.join(", ")
        );
    }
    let sets = names().map(|name| Ok((name.to_owned(), reference(&folder(name))?)));
    sets.collect::<Result<_>>().map(Some)
}

fn reference(path: &Path) -> Result<CaptionedImages> {
    if path.is_dir() {
        let Some(table) = table_in(path) else {
            bail!(
                "{} has no captions.csv or captions.tsv: a table with a column `file` and a column `caption`; nor a folder for each task with one",
                path.display()
            );
        };
        let (images, captions) = CaptionFolder::from_table(path, table)
            .wrap_err("--reference")?
            .into_parts();
        return Ok(CaptionedImages { images, captions });
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let Some(name) = path
        .file_name()
        .and_then(|n| n.to_str())
        .filter(|_| path.is_file())
    else {
        bail!(
            "--reference {}: there is no such folder or file",
            path.display()
        );
    };
    let store = Store::open(folder.unwrap_or(Path::new(".")), &[])?;
    let table = caption_table(&store, name)?;
    if table.missing > 0 {
        eprintln!(
            "note: {} rows of {} are left out because their images are not there",
            table.missing,
            path.display()
        );
    }
    Ok(table.pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with one picture and its caption.
    fn write_set(folder: &Path, caption: &str) {
        std::fs::create_dir_all(folder).unwrap();
        let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([9, 99, 199]));
        picture.save(folder.join("0.png")).unwrap();
        let table = format!("file,caption\n0.png,{caption}\n");
        std::fs::write(folder.join("captions.csv"), table).unwrap();
    }

    fn selected(reference: &Path) -> Result<Selected> {
        let selection = Selection {
            reference: Some(reference.to_owned()),
            tasks: vec!["digits".to_owned(), "shapes".to_owned()],
            ..Selection::named(mini::NAME)
        };
        selection.load(true, 1)
    }

    #[test]
    fn a_reference_folder_is_one_set_or_one_for_each_selected_task() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write_set(&root.join("shapes"), "a shape");
        let message = selected(root).err().unwrap().to_string();
        assert!(message.contains("none of digits"), "{message}");
        write_set(&root.join("digits"), "a digit");
        let both = selected(root).unwrap().suite;
        assert_eq!(both.reference_of(0).captions, ["a digit"]);
        assert_eq!(both.reference_of(1).captions, ["a shape"]);
        // The fingerprint sees what a task has.
        write_set(&root.join("shapes"), "another shape");
        let other = selected(root).unwrap().suite;
        assert_ne!(other.fingerprint(), both.fingerprint());
        // With a table of its own the folder is one set.
        write_set(root, "anything");
        let one = selected(root).unwrap().suite;
        assert_eq!(one.reference_of(0).captions, ["anything"]);
        assert_eq!(one.reference_of(1).captions, ["anything"]);
        let nothing = tempfile::tempdir().unwrap();
        let message = selected(nothing.path()).err().unwrap().to_string();
        assert!(message.contains("nor a folder for each task"), "{message}");
    }
}

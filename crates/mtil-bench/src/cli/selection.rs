//! `--suite`, `--data` and related arguments: loading and selection of tasks.

use std::{collections::BTreeMap, path::Path};

use eyre::{Report, Result, WrapErr, bail, eyre};

use super::args::{Selection, SplitName};
use crate::sweep::named_suites;
use mini_world as mini;
use mini_world::{MiniSizes, conflict_suite, parse_conflict};
use mtil_data::{
    data::CaptionFolder,
    datasets::{
        DatasetOptions, Protocol, ReferenceSource, SizeCheck, Sun397Order,
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

/// Number of training images of ImageNet-1k.
const IMAGENET: usize = 1_281_167;

/// A selected suite.
pub struct Selected {
    /// The suite.
    pub suite: Suite,
    /// All tasks of the suite, before the selection.
    pub all_tasks: Vec<String>,
    /// The name under which methods have settings for the suite, in tables `[on.NAME]`.
    pub settings: String,
    /// Description of the selection, a suffix of the suite's name.
    pub selection: String,
}

impl SplitName {
    /// Returns the protocol of the library.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Zscl => Protocol::Zscl,
            Self::Coop => Protocol::CoOp,
        }
    }
}

impl Selection {
    /// Returns the selection of a whole suite.
    pub fn named(suite: &str) -> Self {
        Self {
            suite: suite.to_owned(),
            ..Self::default()
        }
    }

    /// Returns the options for opening the datasets of MTIL.
    pub fn dataset_options(&self) -> DatasetOptions {
        DatasetOptions {
            protocol: self.splits.protocol(),
            size_check: if self.any_size {
                SizeCheck::Any
            } else {
                SizeCheck::Exact
            },
            sun397_order: match &self.sun397_order {
                Some(path) => Sun397Order::IndexList(path.clone()),
                None => Sun397Order::Sorted,
            },
            reference: match &self.reference {
                Some(_) => ReferenceSource::None,
                None => ReferenceSource::Auto,
            },
            ..DatasetOptions::default()
        }
    }

    /// Loads the suite and applies the selection.
    ///
    /// `seed` draws the images of the mini world and the few-shot subsets. `quick` reduces the mini
    /// world.
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
                    "--shift {} rotates past all {} tasks of `{}`: give at most {}",
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
            if let Some(sets) = load_references_per_task(path, &suite)? {
                suite.reference = sets[&suite.tasks[0].name].clone();
                suite.extras.references = sets;
            } else {
                suite.reference = load_reference(path)?;
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

    /// Returns whether the images depend on the seed.
    pub fn depends_on_seed(&self) -> bool {
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
                    "`{name}` needs --data DIR, the folder of its datasets; `mtil-bench suite \
                     check --data DIR` lists missing datasets and their sources"
                ));
            };
            let options = self.dataset_options();
            let loaded = mtil::suite(name, data, &options)?;
            let mut suite = loaded.suite;
            suite.extras.retrieval = loaded.retrieval;
            // The published random draws assume all training images of ImageNet.
            suite.extras.published_draws = suite.reference.captions.len() == IMAGENET;
            if self.texts.is_none()
                && let Ok(table) = conceptual_captions(data)
            {
                suite.extras.texts = table.pairs.captions;
            }
            return Ok((suite, name.to_owned()));
        }
        // All suites of the mini world share their settings.
        match name {
            mini::NAME => return Ok((mini::suite(pictures, sizes), mini::NAME.to_owned())),
            mini::DEV_NAME => return Ok((mini::dev_suite(pictures, sizes), mini::NAME.to_owned())),
            _ => {}
        }
        let suite = Suite::load(Path::new(name)).map_err(|error| match error {
            SuiteError::Missing { .. } => unknown_suite(name),
            error => error.into(),
        })?;
        let settings = suite.name.clone();
        Ok((suite, settings))
    }
}

fn unknown_suite(name: &str) -> Report {
    let known: Vec<_> = named_suites().collect();
    let near = nearest(name, named_suites());
    eyre!(
        "there is no suite `{name}`, nor a file or folder of that name (known suites: {}){}",
        known.join(", "),
        near.map_or_else(String::new, |n| format!("; did you mean `{n}`?"))
    )
}

/// File names of a caption table in a folder.
const TABLES: [&str; 2] = ["captions.csv", "captions.tsv"];

/// Returns the name of the caption table in a folder.
fn caption_table_name(folder: &Path) -> Option<&'static str> {
    TABLES.into_iter().find(|t| folder.join(t).is_file())
}

/// Loads a reference set for each task from a folder with one subfolder per task. Returns `None` if
/// the folder is a single reference set.
fn load_references_per_task(
    path: &Path,
    suite: &Suite,
) -> Result<Option<BTreeMap<String, CaptionedImages>>> {
    let folder = |name: &str| path.join(name);
    let names = || suite.tasks.iter().map(|t| t.name.as_str());
    if caption_table_name(path).is_some() || !names().any(|name| folder(name).is_dir()) {
        return Ok(None);
    }
    let without: Vec<&str> = names()
        .filter(|n| caption_table_name(&folder(n)).is_none())
        .collect();
    if !without.is_empty() {
        bail!(
            "--reference {} has sets of single tasks, but none of {}: each needs a folder of its \
             name with captions.csv or captions.tsv",
            path.display(),
            without.join(", ")
        );
    }
    let sets = names().map(|name| Ok((name.to_owned(), load_reference(&folder(name))?)));
    sets.collect::<Result<_>>().map(Some)
}

/// Loads reference pairs from a folder with a caption table, or from such a table.
fn load_reference(path: &Path) -> Result<CaptionedImages> {
    if path.is_dir() {
        let Some(table) = caption_table_name(path) else {
            bail!(
                "{} has no captions.csv or captions.tsv: a table with a column `file` and a \
                 column `caption`; nor a folder for each task with one",
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
            "note: {} rows of {} are skipped because their images do not exist",
            table.missing,
            path.display()
        );
    }
    Ok(table.pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a folder with one image and its caption.
    fn write_set(folder: &Path, caption: &str) {
        std::fs::create_dir_all(folder).unwrap();
        let image = image::RgbImage::from_pixel(8, 8, image::Rgb([9, 99, 199]));
        image.save(folder.join("0.png")).unwrap();
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
        // The fingerprint covers the reference set of every task.
        write_set(&root.join("shapes"), "another shape");
        let other = selected(root).unwrap().suite;
        assert_ne!(other.fingerprint(), both.fingerprint());
        // A folder with its own table is a single set.
        write_set(root, "anything");
        let one = selected(root).unwrap().suite;
        assert_eq!(one.reference_of(0).captions, ["anything"]);
        assert_eq!(one.reference_of(1).captions, ["anything"]);
        let nothing = tempfile::tempdir().unwrap();
        let message = selected(nothing.path()).err().unwrap().to_string();
        assert!(message.contains("nor a folder for each task"), "{message}");
    }
}

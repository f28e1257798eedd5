//! `--reference`: the pairs of images and captions that stand for what the pretrained model knows.

use std::{collections::BTreeMap, path::Path};

use clip_model::preprocess::DecodeOptions;
use eyre::{Result, WrapErr, bail};

use super::{args::Reference, notes::print_once};
use mini_world::{MiniSizes, SUITE_SEED};
use mtil_data::{
    data::CaptionFolder,
    datasets::{captions::caption_table, store::Store},
    suite::{CaptionedImages, Suite},
};

/// Note about a suite file without `[reference]`, where no choice is made.
pub const NO_REFERENCE: &str = "the suite has no [reference]: the losses on reference pairs, the \
    modality gap and retrieval use drawn pictures (--reference drawn; see --help for texts and off)";

impl Reference {
    /// Replaces the reference pairs of `suite`.
    pub fn replace_pairs(&self, suite: &mut Suite, decode: DecodeOptions) -> Result<()> {
        match self {
            Self::Off => return Ok(()),
            Self::Path(path) => match load_references_per_task(path, suite, decode)? {
                Some(sets) => {
                    suite.reference = sets[&suite.tasks[0].name].clone();
                    suite.extras.references = sets;
                }
                None => suite.reference = load_reference(path, decode)?,
            },
            Self::Drawn => {
                let [reference, _] = drawn_pairs();
                suite.reference = reference;
                suite.extras.references.clear();
            }
            Self::Texts => suite.extras.references = own_images_with_captions(suite),
        }
        suite.extras.published_draws = false;
        Ok(())
    }

    /// Settings of methods that the choice changes.
    pub fn settings(&self) -> &'static [&'static str] {
        match self {
            Self::Path(_) | Self::Drawn => &[],
            Self::Texts => &["map=0", "hold_means=0"],
            Self::Off => &["cd=0", "map=0", "hold_means=0"],
        }
    }
}

/// Returns reference and held-out pairs of drawn pictures, the same for every seed.
pub fn drawn_pairs() -> [CaptionedImages; 2] {
    let drawn = mini_world::suite(SUITE_SEED, MiniSizes::default());
    [drawn.reference, drawn.held_out]
}

/// Returns the training images of each task with captions of other pictures: the texts of the
/// suite, or the captions of its reference pairs, in turn.
fn own_images_with_captions(suite: &Suite) -> BTreeMap<String, CaptionedImages> {
    let texts = match suite.extras.texts.as_slice() {
        [] => &suite.reference.captions,
        texts => texts,
    };
    let tasks = suite
        .tasks
        .iter()
        .filter(|task| !task.training_images().is_empty());
    let pairs = tasks.map(|task| {
        let count = task.training_images().len();
        let pairs = CaptionedImages {
            images: task.training_images().clone(),
            captions: texts.iter().cycle().take(count).cloned().collect(),
        };
        (task.name.clone(), pairs)
    });
    pairs.collect()
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
    decode: DecodeOptions,
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
    let sets = names().map(|name| Ok((name.to_owned(), load_reference(&folder(name), decode)?)));
    sets.collect::<Result<_>>().map(Some)
}

/// Loads reference pairs from a folder with a caption table, or from such a table.
fn load_reference(path: &Path, decode: DecodeOptions) -> Result<CaptionedImages> {
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
            .with_decode_options(decode)
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
    let store = Store::open(folder.unwrap_or(Path::new(".")), &[])?.with_decode_options(decode);
    let table = caption_table(&store, name)?;
    if table.missing > 0 {
        print_once(&format!(
            "note: {} rows of {} are skipped because their images do not exist",
            table.missing,
            path.display()
        ));
    }
    Ok(table.pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_beside_the_images_of_each_task() {
        let sizes = MiniSizes {
            train_per_task: 20,
            test_per_task: 8,
            reference: 8,
            held_out: 4,
        };
        let mut suite = mini_world::suite(SUITE_SEED, sizes);
        let before = suite.reference.captions.clone();
        let texts = Reference::Texts;
        texts
            .replace_pairs(&mut suite, DecodeOptions::default())
            .unwrap();
        suite.check().unwrap();
        for (index, task) in suite.tasks.iter().enumerate() {
            let pairs = suite.reference_of(index);
            assert_eq!(pairs.images.len(), 20);
            assert_eq!(pairs.images.name(3), task.training_images().name(3));
            assert_eq!(pairs.captions[..8], before);
            assert_eq!(pairs.captions[8..16], before);
        }
    }
}

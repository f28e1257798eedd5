//! `--suite`, `--data` and related arguments: loading and selection of tasks.

use std::path::Path;

use eyre::{Report, Result, bail, eyre};

use super::{
    args::{Reference, Selection, Shots, SplitName},
    lists,
    notes::print_once,
    reference::{NO_REFERENCE, drawn_pairs},
};
use crate::sweep::named_suites;
use mini_world as mini;
use mini_world::{MiniSizes, conflict_suite, parse_conflict};
use mtil_data::{
    datasets::{
        DatasetOptions, Protocol, ReferenceSource, SizeCheck, Sun397Order,
        captions::{caption_lines, conceptual_captions},
        mtil::{self, SuiteProtocol},
        transform::{few_shot_suite, one_template, rotate, select},
    },
    nearest, seeds,
    suite::{LoadOptions, Suite, SuiteError, SuiteRecord, SuiteWarning},
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
    /// The reference pairs, if they are not the suite's.
    pub reference: Option<Reference>,
    /// Description of the selection, a suffix of the suite's name.
    pub selection: String,
    /// Maximum number of pixels of an image.
    pub max_pixels: u64,
    /// Warnings about the suite, which are printed.
    pub warnings: Vec<SuiteWarning>,
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

    /// Returns the protocol of the suite, if it is one of MTIL's datasets.
    fn protocol(&self) -> Option<&'static SuiteProtocol> {
        SuiteProtocol::find(&self.suite)
    }

    /// Returns the splits: those of `--splits`, or else the suite's.
    fn splits(&self) -> Protocol {
        let own = self.protocol().map(|protocol| protocol.splits);
        let given = self.splits.map(SplitName::protocol);
        given.or(own).unwrap_or_default()
    }

    /// Returns the number of training images per class, if it is limited by `--shots` or by the
    /// suite.
    fn shots(&self) -> Option<usize> {
        match self.shots {
            Some(Shots::All) => None,
            Some(Shots::PerClass(shots)) => Some(shots),
            None => self.protocol()?.shots,
        }
    }

    fn size_check(&self) -> SizeCheck {
        match self.any_size {
            true => SizeCheck::Any,
            false => SizeCheck::Exact,
        }
    }

    /// Returns the options for opening the datasets of MTIL.
    pub fn dataset_options(&self) -> DatasetOptions {
        DatasetOptions {
            protocol: self.splits(),
            size_check: self.size_check(),
            sun397_order: match &self.sun397_order {
                Some(path) => Sun397Order::IndexList(path.clone()),
                None => Sun397Order::Sorted,
            },
            reference: match &self.reference {
                Some(Reference::Path(_) | Reference::Drawn) => ReferenceSource::None,
                Some(Reference::Texts | Reference::Off) | None => ReferenceSource::Auto,
            },
            decode: self.decode.options(),
            ..DatasetOptions::default()
        }
    }

    /// Loads the suite and applies the selection.
    ///
    /// `seed` draws the images of the mini world and the few-shot subsets. `quick` reduces the mini
    /// world.
    pub fn load(&self, quick: bool, seed: u64) -> Result<Selected> {
        self.load_learned(quick, seed, &|_| Vec::new())
    }

    /// As [`load`](Self::load), where `learned` returns the records of runs on the suite of a name:
    /// the tasks in them do not need their images.
    pub fn load_learned(
        &self,
        quick: bool,
        seed: u64,
        learned: &dyn Fn(&str) -> Vec<SuiteRecord>,
    ) -> Result<Selected> {
        let (mut suite, settings) = self.open(quick, seed, learned)?;
        if !mtil::SUITES.contains(&self.suite.as_str()) {
            self.note_ignored_options();
        }
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
            let tasks = lists::names(&self.tasks);
            suite = select(&suite, &tasks)?;
            selection.push(tasks.join("+"));
        }
        if let Some(shots) = self.shots() {
            suite = few_shot_suite(&suite, shots, seed, self.size_check())?;
        }
        if let Some(template) = &self.template {
            suite = one_template(&suite, template);
        }
        selection.extend(self.departures());
        if let Some(reference) = &self.reference {
            reference.replace_pairs(&mut suite, self.decode.options())?;
        }
        suite.check()?;
        let warnings = suite.warnings();
        for warning in &warnings {
            print_once(&format!("warning: {warning}"));
        }
        Ok(Selected {
            suite,
            all_tasks,
            settings,
            reference: self.reference.clone(),
            selection: selection.join(", "),
            max_pixels: self.decode.options().max_pixels,
            warnings,
        })
    }

    /// Names the shots, splits and template that are not those of the suite's protocol.
    fn departures(&self) -> Vec<String> {
        let own = self.protocol();
        let mut departures = Vec::new();
        if self.shots() != own.and_then(|protocol| protocol.shots) {
            departures.push(match self.shots() {
                Some(shots) => format!("{shots} shots"),
                None => "all shots".to_owned(),
            });
        }
        let usual = own.map(|protocol| protocol.splits).unwrap_or_default();
        if self.splits() != usual {
            departures.push(match self.splits() {
                Protocol::CoOp => "CoOp splits".to_owned(),
                Protocol::Zscl => "ZSCL splits".to_owned(),
            });
        }
        departures.extend(
            self.template
                .iter()
                .map(|template| format!("\"{template}\"")),
        );
        departures
    }

    /// Returns whether the images depend on the seed.
    pub fn depends_on_seed(&self) -> bool {
        let name = self.suite.as_str();
        let of_world =
            [mini::NAME, mini::DEV_NAME].contains(&name) || parse_conflict(name).is_some();
        of_world || self.shots().is_some()
    }

    /// Names the options that have no effect, because the suite is not one of MTIL's.
    fn note_ignored_options(&self) {
        let options = [
            ("--splits", self.splits == Some(SplitName::Coop)),
            ("--any-size", self.any_size),
            ("--sun397-order", self.sun397_order.is_some()),
        ];
        for (option, _) in options.iter().filter(|(_, given)| *given) {
            print_once(&format!(
                "note: {option} has no effect on `{}`: it is about the datasets of MTIL",
                self.suite
            ));
        }
    }

    fn open(
        &self,
        quick: bool,
        seed: u64,
        learned: &dyn Fn(&str) -> Vec<SuiteRecord>,
    ) -> Result<(Suite, String)> {
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
                && let Ok(table) = conceptual_captions(data, &options)
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
        let options = LoadOptions {
            decode: self.decode.options(),
            learned,
            reference: &|| {
                // `--reference` names pairs, or says that there are none.
                if self.reference.is_none() {
                    print_once(&format!("note: {NO_REFERENCE}"));
                }
                Some(drawn_pairs())
            },
        };
        let suite = Suite::load_from(Path::new(name), &options);
        let suite = suite.map_err(|error| match error {
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

#[cfg(test)]
mod tests {
    use super::super::args::DecodeArgs;
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
            reference: Some(Reference::Path(reference.to_owned())),
            tasks: vec!["digits".to_owned(), "shapes".to_owned()],
            ..Selection::named(mini::NAME)
        };
        selection.load(true, 1)
    }

    #[test]
    fn a_reference_table_is_read_as_its_folder_is() {
        let folder = tempfile::tempdir().unwrap();
        write_set(folder.path(), "a digit");
        let of = |path: &Path| selected(path).unwrap().suite.reference;
        let (table, whole) = (of(&folder.path().join("captions.csv")), of(folder.path()));
        assert_eq!(table.captions, ["a digit"]);
        assert_eq!(table.captions, whole.captions);
        assert_eq!(table.images.load(0).unwrap(), whole.images.load(0).unwrap());
        let tabs = folder.path().join("other.tsv");
        std::fs::write(&tabs, "caption\tfile\n\"a digit\t0.png\na two\t0.png\n").unwrap();
        assert_eq!(of(&tabs).captions, ["\"a digit", "a two"]);
    }

    #[test]
    fn the_limit_on_pixels_holds_for_reference_pairs() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write_set(root, "one");
        for task in ["digits", "shapes"] {
            write_set(&root.join("per-task").join(task), task);
        }
        // The image has 8 x 8 pixels.
        for path in ["", "captions.csv", "per-task"].map(|path| root.join(path)) {
            for (max_pixels, read) in [(63, false), (64, true)] {
                let selection = Selection {
                    reference: Some(Reference::Path(path.clone())),
                    tasks: vec!["digits".to_owned(), "shapes".to_owned()],
                    decode: DecodeArgs {
                        max_pixels: Some(max_pixels),
                    },
                    ..Selection::named(mini::NAME)
                };
                let suite = selection.load(true, 1).unwrap().suite;
                for task in 0..2 {
                    let image = suite.reference_of(task).images.load(0);
                    assert_eq!(image.is_ok(), read, "{} {max_pixels}", path.display());
                }
            }
        }
    }

    #[test]
    fn tasks_are_selected_by_names_between_commas() {
        let of = |tasks: &str| {
            let selection = Selection {
                tasks: vec![tasks.to_owned()],
                ..Selection::named(mini::NAME)
            };
            let names = |suite: Suite| suite.tasks.into_iter().map(|task| task.name).collect();
            let loaded = selection
                .load(true, 1)
                .map(|selected| names(selected.suite));
            loaded.map_err(|error| error.to_string())
        };
        let names: Result<Vec<String>, String> = of("shapes, \"digits\"");
        assert_eq!(names.unwrap(), ["shapes", "digits"]);
        let error = of("shape").unwrap_err();
        assert!(error.contains("did you mean `shapes`?"), "{error}");
    }

    #[test]
    fn a_task_with_a_comma_in_its_name_can_be_selected() {
        let folder = tempfile::tempdir().unwrap();
        let mut suite = mini::suite(1, QUICK);
        suite.tasks.truncate(2);
        suite.tasks[0].name = "round, or not".to_owned();
        let proceed = &mut |_, _| std::ops::ControlFlow::Continue(());
        mtil_data::suite::export(&suite, folder.path(), proceed).unwrap();
        let selection = Selection {
            tasks: vec!["\"round, or not\"".to_owned()],
            ..Selection::named(folder.path().to_str().unwrap())
        };
        let selected = selection.load(false, 0).unwrap();
        assert_eq!(selected.suite.tasks.len(), 1);
        assert_eq!(selected.selection, "round, or not");
    }

    #[test]
    fn suites_have_the_settings_of_their_protocol_unless_options_differ() {
        let of = |suite: &str, shots, splits| Selection {
            shots,
            splits,
            ..Selection::named(suite)
        };
        let five = Some(Shots::PerClass(5));
        for (selection, shots, splits, name) in [
            (
                of("xtail-order-1", None, None),
                Some(16),
                Protocol::CoOp,
                "",
            ),
            (
                of("xtail-order-2", five, None),
                Some(5),
                Protocol::CoOp,
                "5 shots",
            ),
            (
                of("xtail-order-1", Some(Shots::All), Some(SplitName::Zscl)),
                None,
                Protocol::Zscl,
                "all shots, ZSCL splits",
            ),
            (of("mtil-order-1", None, None), None, Protocol::Zscl, ""),
            (
                of("mtil-order-1", five, Some(SplitName::Coop)),
                Some(5),
                Protocol::CoOp,
                "5 shots, CoOp splits",
            ),
            (of("mini", five, None), Some(5), Protocol::Zscl, "5 shots"),
            (
                Selection {
                    template: Some("a {}.".to_owned()),
                    ..of("mini", None, None)
                },
                None,
                Protocol::Zscl,
                "\"a {}.\"",
            ),
        ] {
            assert_eq!(selection.shots(), shots, "{}", selection.suite);
            assert_eq!(selection.splits(), splits, "{}", selection.suite);
            assert_eq!(selection.departures().join(", "), name);
        }
    }

    #[test]
    fn an_unknown_suite_has_a_proposal() {
        for (name, near) in [
            ("mtil-order-3", "`mtil-order-1`"),
            ("MTIL-order-2", "`mtil-order-2`"),
            ("mini-dve", "`mini-dev`"),
        ] {
            let error = Selection::named(name)
                .load(true, 1)
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(&format!("did you mean {near}?")), "{error}");
            assert!(error.contains("known suites: mini, "), "{error}");
        }
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

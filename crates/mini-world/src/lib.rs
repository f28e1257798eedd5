//! The mini world: small pictures drawn by a seeded generator, with captions to pretrain a tiny
//! CLIP on and classification tasks to train it through.
//!
//! Everything is a pure function of a seed and an index: no files, no network, and the same
//! pictures on every machine (the drawing uses no platform mathematics beyond correctly rounded
//! operations). The pretraining pairs show every domain of the world in plain styles; each task
//! shows one domain in a style of its own, so that a pretrained model knows the concepts but not
//! the looks. The classes of one task, `creatures`, have names that no caption contains, and no
//! caption is a task's template filled in.
//!
//! Two suites are drawn: `mini`, which is reported on, and `mini-dev`, whose tasks show other
//! domains in other styles, and on which settings are chosen.
//!
//! | file | what |
//! |---|---|
//! | `dice` | the random stream of one image |
//! | `canvas`, `palette`, `pattern` | how to paint |
//! | `shape`, `font`, `land`, `face`, `creature`, `thing` | what to paint |
//! | `pretraining` | the pairs of pretraining, of reference and of retrieval: mixtures and pictures |
//! | `caption` | what a picture shows, and the ways to say it |
//! | `task`, `dev` | the tasks of `mini` and of `mini-dev`, their styles and difficulties |
//! | `suite` | the tasks as a [`Suite`](mtil_data::suite::Suite) |
//! | `conflict` | suites of tasks that contradict each other |
//! | `tokenizer` | a tokenizer in CLIP's style for the captions |
//! | [`embedded`] | the small CLIP pretrained on the world |

mod canvas;
mod caption;
mod conflict;
mod creature;
mod dev;
mod dice;
pub mod embedded;
mod face;
mod font;
mod land;
mod palette;
mod pattern;
mod pretraining;
mod shape;
mod suite;
mod task;
mod thing;
pub mod tokenizer;

use image::RgbImage;

use dice::Dice;

pub use conflict::{
    Conflict, ConflictError, conflict_suite, disagreement, parse as parse_conflict,
};
pub use suite::{MiniSizes, dev_suite, suite};
pub use task::MiniTask;
pub use tokenizer::{TokenizerBuildError, build_tokenizer};

/// Version of the drawn world. Any change to the drawing, the captions or the difficulties
/// changes the pictures a seed stands for, and raises this number: results of different versions
/// do not compare, and a model pretrained on one version does not belong to another.
pub const WORLD_VERSION: u32 = 2;

/// Name of the embedded suite.
pub const NAME: &str = "mini";

/// Name of the suite that settings are chosen on.
pub const DEV_NAME: &str = "mini-dev";

/// Seed of the embedded suite. A run draws its pictures from it and from its own seed, so that what
/// differs between seeds covers which pictures are seen.
pub const SUITE_SEED: u64 = 2026;

/// Width and height of every picture, in pixels.
pub const IMAGE_SIZE: u32 = canvas::SIDE as u32;

/// Part of a task's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Images to train on.
    Train,
    /// Images to evaluate on.
    Test,
}

/// Part of the reference pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReferenceSplit {
    /// Pairs that methods may train on.
    Train,
    /// Pairs that retrieval and the modality gap are measured on.
    HeldOut,
}

// Domain tags of the random streams. Task `t` has `TASK_DOMAIN + t`.
const PRETRAINING_DOMAIN: u64 = 1;
const REFERENCE_DOMAIN: u64 = 2;
const CONFLICT_DOMAIN: u64 = 3;
const TASK_DOMAIN: u64 = 16;
const DEV_DOMAIN: u64 = 64;

/// Pair `index` of the endless pretraining stream: a picture and its caption (lower-case ASCII, at
/// most 16 words). As on the web, captions come in many forms, some say nothing, and some are those
/// of another picture.
pub fn pretraining_pair(seed: u64, index: u64) -> (RgbImage, String) {
    pretraining::web_pair(&mut Dice::new(seed, PRETRAINING_DOMAIN, 0, index))
}

/// Pair `index` of the reference set or of what is held out. Reference pairs show shapes, letters,
/// cloth and land, each with a noun phrase; held-out pairs show the whole world, each with a
/// sentence, so that no caption of one stands among the others.
pub fn reference_pair(seed: u64, split: ReferenceSplit, index: u64) -> (RgbImage, String) {
    let dice = &mut Dice::new(seed, REFERENCE_DOMAIN, split as u64, index);
    match split {
        ReferenceSplit::Train => pretraining::reference_pair(dice),
        ReferenceSplit::HeldOut => pretraining::retrieval_pair(dice),
    }
}

/// The tasks of `mini` in their usual order.
pub fn tasks() -> &'static [MiniTask] {
    &task::TASKS
}

/// The tasks of `mini-dev` in their usual order.
pub fn dev_tasks() -> &'static [MiniTask] {
    &dev::TASKS
}

/// Image `index` of a task of `mini` and its class, which is `index` modulo the number of classes.
///
/// # Panics
/// If there is no such task.
pub fn task_image(seed: u64, task: usize, split: Split, index: u64) -> (RgbImage, usize) {
    drawn(
        &task::TASKS[task],
        seed,
        TASK_DOMAIN + task as u64,
        split,
        index,
    )
}

/// The same of `mini-dev`.
///
/// # Panics
/// If there is no such task.
pub fn dev_image(seed: u64, task: usize, split: Split, index: u64) -> (RgbImage, usize) {
    drawn(
        &dev::TASKS[task],
        seed,
        DEV_DOMAIN + task as u64,
        split,
        index,
    )
}

fn drawn(task: &MiniTask, seed: u64, domain: u64, split: Split, index: u64) -> (RgbImage, usize) {
    let class = (index % task.class_names.len() as u64) as usize;
    let dice = &mut Dice::new(seed, domain, split as u64, index);
    ((task.draw)(class, dice).finish(), class)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use sha2::{Digest, Sha256};

    use super::*;

    fn hex(hash: Sha256) -> String {
        hash.finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// If this fails after a change to the drawing on purpose: raise [`WORLD_VERSION`], put the
    /// new values here, and pretrain the embedded model again.
    #[test]
    fn pictures_are_those_of_this_world_version() {
        let mut pairs = Sha256::new();
        for index in 0..200 {
            for (image, caption) in [
                pretraining_pair(3, index),
                reference_pair(3, ReferenceSplit::Train, index),
                reference_pair(3, ReferenceSplit::HeldOut, index),
            ] {
                pairs.update(image.as_raw());
                pairs.update(caption);
            }
        }
        let mut images = Sha256::new();
        for task in 0..tasks().len() {
            for index in 0..30 {
                images.update(task_image(3, task, Split::Train, index).0.as_raw());
                images.update(task_image(3, task, Split::Test, index).0.as_raw());
            }
        }
        for task in 0..dev_tasks().len() {
            for index in 0..30 {
                images.update(dev_image(3, task, Split::Train, index).0.as_raw());
            }
        }
        assert_eq!(WORLD_VERSION, 2);
        assert_eq!(
            (hex(pairs).as_str(), hex(images).as_str()),
            ("6d275f7e233b394d", "16bcf39358e3355d")
        );
    }

    #[test]
    fn no_picture_of_a_task_occurs_twice() {
        let sizes = MiniSizes::default();
        for task in 0..tasks().len() {
            let mut seen = HashSet::new();
            for (split, count) in [
                (Split::Train, sizes.train_per_task),
                (Split::Test, sizes.test_per_task),
            ] {
                for index in 0..count as u64 {
                    let image = task_image(1, task, split, index).0;
                    assert!(
                        seen.insert(image.into_raw()),
                        "{} {split:?} {index}",
                        tasks()[task].name
                    );
                }
            }
        }
    }

    #[test]
    fn reference_splits_share_no_picture() {
        let mut seen = HashSet::new();
        for index in 0..500 {
            for split in [ReferenceSplit::Train, ReferenceSplit::HeldOut] {
                assert!(seen.insert(reference_pair(1, split, index).0.into_raw()));
            }
        }
    }

    #[test]
    fn classes_are_balanced() {
        let classes: Vec<usize> = (0..20)
            .map(|index| task_image(1, 0, Split::Test, index).1)
            .collect();
        assert_eq!(classes[..10], (0..10).collect::<Vec<_>>());
        assert_eq!(classes[..10], classes[10..]);
    }

    /// Everything that can be asked of captions: their alphabet and length, which class names they
    /// know, that none is a template.
    #[test]
    fn captions_know_the_tasks_but_not_their_prompts() {
        let suites = [tasks(), dev_tasks()];
        let all = || suites.into_iter().flatten();
        let mut prompts = HashSet::new();
        for task in all() {
            for (template, class) in task
                .templates
                .iter()
                .flat_map(|t| task.class_names.iter().map(move |c| (t, c)))
            {
                let prompt = task::fill(template, class);
                prompts.insert(prompt.trim_end_matches('.').to_owned());
            }
        }
        let mut words = BTreeSet::new();
        let mut check = |caption: String| {
            let plain = caption
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b == b' ' || b == b'.');
            assert!(plain, "not plain: {caption}");
            let count = caption.split(' ').count();
            assert!(
                (1..=caption::LONGEST).contains(&count),
                "{count} words: {caption}"
            );
            assert!(
                !caption.contains("  ") && caption.trim() == caption,
                "spaces: {caption:?}"
            );
            assert!(
                !prompts.contains(caption.trim_end_matches('.')),
                "a prompt: {caption}"
            );
            words.extend(caption.split([' ', '.']).map(str::to_owned));
        };
        for index in 0..50_000 {
            check(pretraining_pair(11, index).1);
        }
        let invented: Vec<&str> = [tasks()[task::CREATURES], dev_tasks()[3]]
            .iter()
            .flat_map(|task| task.class_names.to_vec())
            .collect();
        for name in all().flat_map(|task| task.class_names) {
            // What a class is told by: "one" of "one object", "top left" of "at the top left".
            let known = name
                .split(' ')
                .next()
                .is_some_and(|word| words.contains(word));
            assert_eq!(known, !invented.contains(name), "{name}");
        }
    }

    #[test]
    fn reference_and_retrieval_share_no_caption_and_half_of_the_tasks_is_not_mentioned() {
        let sizes = MiniSizes::default();
        let of = |split, count: usize| -> Vec<String> {
            (0..count as u64)
                .map(|i| reference_pair(SUITE_SEED, split, i).1)
                .collect()
        };
        let reference = of(ReferenceSplit::Train, sizes.reference);
        let held_out = of(ReferenceSplit::HeldOut, sizes.held_out);
        let known: HashSet<&String> = reference.iter().collect();
        assert!(held_out.iter().all(|caption| !known.contains(caption)));
        let words: HashSet<&str> = reference.iter().flat_map(|c| c.split(' ')).collect();
        assert!(2 * task::UNMENTIONED.len() >= tasks().len());
        for task in task::UNMENTIONED.map(|at| &tasks()[at]) {
            for class in task.class_names {
                let word = class.split(' ').next().unwrap_or(class);
                assert!(!words.contains(word), "{}: {word}", task.name);
            }
        }
        let distinct: HashSet<&String> = held_out.iter().collect();
        assert!(
            distinct.len() > 350,
            "only {} different captions",
            distinct.len()
        );
    }
}

//! The mini world: small pictures drawn by a seeded generator, with captions to pretrain a tiny
//! CLIP on and classification tasks to train it through.
//!
//! Everything is a pure function of a seed and an index: no files, no network, and the same
//! pictures on every machine (the drawing uses no platform mathematics beyond correctly rounded
//! operations). The pretraining pairs show every domain of the world in plain styles; each task
//! shows one domain in a style of its own, so that a pretrained model knows the concepts but
//! not the looks. The classes of one task, `creatures`, have names that no caption contains.
//!
//! Two suites are drawn: `mini`, which is reported on, and `mini-dev`, whose tasks show other domains in other styles, and on which settings
//! are chosen.
//!
//! | file | what |
//! |---|---|
//! | `dice` | the random stream of one image |
//! | `canvas`, `palette`, `pattern` | how to paint |
//! | `shape`, `font`, `land`, `face`, `creature`, `thing` | what to paint |
//! | `pretraining` | mixture and captions of the pretraining and reference pairs |
//! | `task`, `dev` | the tasks of `mini` and of `mini-dev`, their styles and difficulties |
//! | `suite` | the tasks as a [`Suite`](mtil_data::suite::Suite) |
//! | `conflict` | suites of tasks that contradict each other |
//! | `tokenizer` | a tokenizer in CLIP's style for the captions |
//! | [`embedded`] | the small CLIP pretrained on the world |

mod canvas;
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
use pretraining::Detail;

pub use conflict::{
    Conflict, ConflictError, conflict_suite, disagreement, parse as parse_conflict,
};
pub use suite::{MiniSizes, dev_suite, suite};
pub use task::MiniTask;
pub use tokenizer::{TokenizerBuildError, build_tokenizer};

/// Version of the drawn world. Any change to the drawing, the captions or the difficulties
/// changes the pictures a seed stands for, and raises this number: results of different versions
/// do not compare, and a model pretrained on one version does not belong to another.
pub const WORLD_VERSION: u32 = 1;

/// Name of the embedded suite.
pub const NAME: &str = "mini";

/// Name of the suite that settings are chosen on.
pub const DEV_NAME: &str = "mini-dev";

/// Seed of the embedded suite. A run draws its pictures from it and from its own seed, so that what differs between seeds covers which pictures
/// are seen.
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

/// Pair `index` of the endless pretraining stream: a picture and its caption (lower-case ASCII,
/// at most 12 words).
pub fn pretraining_pair(seed: u64, index: u64) -> (RgbImage, String) {
    pretraining::draw_pair(
        &mut Dice::new(seed, PRETRAINING_DOMAIN, 0, index),
        Detail::Loose,
    )
}

/// Pair `index` of the reference set: drawn like a pretraining pair, with a caption that says
/// all it can.
pub fn reference_pair(seed: u64, split: ReferenceSplit, index: u64) -> (RgbImage, String) {
    let dice = &mut Dice::new(seed, REFERENCE_DOMAIN, split as u64, index);
    pretraining::draw_pair(dice, Detail::Full)
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
        assert_eq!(WORLD_VERSION, 1);
        assert_eq!(
            (hex(pairs).as_str(), hex(images).as_str()),
            ("16faa341430802a0", "1d8fff68c92603d0")
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

    #[test]
    fn captions_name_every_class_but_the_invented_ones() {
        let mut words = BTreeSet::new();
        let mut check = |caption: String| {
            let plain = caption
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b == b' ' || b == b'.');
            assert!(plain, "not plain: {caption}");
            let count = caption.split(' ').count();
            assert!(
                (1..=pretraining::LONGEST_CAPTION).contains(&count),
                "{count} words: {caption}"
            );
            assert!(
                !caption.contains("  ") && caption.trim() == caption,
                "spaces: {caption:?}"
            );
            words.extend(caption.split([' ', '.']).map(str::to_owned));
        };
        for index in 0..50_000 {
            check(pretraining_pair(11, index).1);
        }
        for index in 0..5_000 {
            check(reference_pair(11, ReferenceSplit::Train, index).1);
        }
        for (index, task) in tasks().iter().enumerate() {
            for word in task.class_names.iter().flat_map(|name| name.split(' ')) {
                assert_eq!(
                    words.contains(word),
                    index != task::CREATURES,
                    "{}: {word}",
                    task.name
                );
            }
        }
    }

    #[test]
    fn reference_captions_are_specific() {
        let captions: HashSet<String> = (0..500)
            .map(|i| reference_pair(1, ReferenceSplit::HeldOut, i).1)
            .collect();
        assert!(
            captions.len() > 380,
            "only {} different captions",
            captions.len()
        );
    }
}

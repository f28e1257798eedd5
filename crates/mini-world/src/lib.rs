//! Synthetic benchmark for continual learning of CLIP: procedurally generated images, captions to
//! pretrain a small CLIP on, and classification tasks to fine-tune it on in sequence.
//!
//! Every image is a pure function of a seed and an index, without files or network. The images are
//! the same on every machine, because drawing uses only correctly rounded operations. The
//! pretraining pairs show every domain in plain styles. Each task shows one domain in a style of
//! its own: a domain shift for a pretrained model, which knows the concepts. The classes of the
//! task `creatures` have names that no caption contains. No caption is a filled template of a task.
//!
//! There are two suites: `mini`, for reported results, and `mini-dev`, for the choice of
//! hyper-parameters, with other domains in other styles.
//!
//! | file | contents |
//! |---|---|
//! | `rng` | the random number generator of one image |
//! | `canvas`, `palette`, `pattern` | painting: strokes, colours, patterns |
//! | `shape`, `font`, `land`, `face`, `creature`, `objects` | the depicted objects |
//! | `pretraining` | the pairs of pretraining, reference and retrieval |
//! | `caption` | captions of images |
//! | `task`, `dev` | the tasks of `mini` and of `mini-dev`, with styles and difficulties |
//! | `suite` | the tasks as a [`Suite`](mtil_data::suite::Suite) |
//! | `conflict` | suites of tasks that contradict each other |
//! | `tokenizer` | a tokenizer like CLIP's, trained on the captions |
//! | [`embedded`] | the small CLIP pretrained on these images |
//!
//! ```
//! use mini_world::{Split, task_image, tasks};
//!
//! let (image, class) = task_image(2026, 0, Split::Train, 3);
//! assert_eq!((image.width(), image.height()), (32, 32));
//! assert_eq!(tasks()[0].class_names[class], "star");
//! ```

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod canvas;
mod caption;
mod conflict;
mod creature;
mod dev;
pub mod embedded;
mod face;
mod font;
mod land;
mod objects;
mod palette;
mod pattern;
mod pretraining;
mod rng;
mod shape;
mod suite;
mod task;
pub mod tokenizer;

use image::RgbImage;

use rng::Rng;

pub use conflict::{
    Conflict, ConflictError, conflict_suite, disagreement, parse as parse_conflict,
};
pub use suite::{MiniSizes, caption_task, dev_suite, suite};
pub use task::MiniTask;
pub use tokenizer::{TokenizerBuildError, build_tokenizer};

/// Version of the generated data. Any change to the drawing, the captions or the difficulties
/// changes the images of a seed and raises this number. Results of different versions are not
/// comparable, and a model pretrained on one version must not be used with another.
pub const WORLD_VERSION: u32 = 2;

/// Name of the suite for reported results.
pub const NAME: &str = "mini";

/// Name of the suite for the choice of hyper-parameters.
pub const DEV_NAME: &str = "mini-dev";

/// Seed of the embedded suite. A run combines it with its own seed, so that the variance between
/// seeds includes that of the images.
pub const SUITE_SEED: u64 = 2026;

/// Width and height of every image in pixels.
pub const IMAGE_SIZE: u32 = canvas::SIDE as u32;

/// Split of a task's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Training images.
    Train,
    /// Test images.
    Test,
}

/// Split of the reference pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReferenceSplit {
    /// Pairs for training, such as distillation.
    Train,
    /// Pairs for the evaluation of retrieval and of the modality gap.
    HeldOut,
}

// Domain tags of the random streams. Task `t` has the tag `TASK_DOMAIN + t`.
const PRETRAINING_DOMAIN: u64 = 1;
const REFERENCE_DOMAIN: u64 = 2;
const CONFLICT_DOMAIN: u64 = 3;
const TASK_DOMAIN: u64 = 16;
const DEV_DOMAIN: u64 = 64;

/// Returns pair `index` of the infinite pretraining stream: an image and its caption (lower-case
/// ASCII, at most 16 words). As in web data, captions have many forms, some are uninformative, and
/// some belong to another image.
pub fn pretraining_pair(seed: u64, index: u64) -> (RgbImage, String) {
    pretraining::web_pair(&mut Rng::new(seed, PRETRAINING_DOMAIN, 0, index))
}

/// Returns pair `index` of the reference set or of the held-out set. Reference pairs show shapes,
/// letters, cloth and land, captioned by noun phrases. Held-out pairs show all domains, captioned
/// by sentences, so that the two sets have no caption in common.
pub fn reference_pair(seed: u64, split: ReferenceSplit, index: u64) -> (RgbImage, String) {
    let rng = &mut Rng::new(seed, REFERENCE_DOMAIN, split as u64, index);
    match split {
        ReferenceSplit::Train => pretraining::reference_pair(rng),
        ReferenceSplit::HeldOut => pretraining::retrieval_pair(rng),
    }
}

/// Returns the tasks of `mini` in their default order.
pub fn tasks() -> &'static [MiniTask] {
    &task::TASKS
}

/// Returns the tasks of `mini-dev` in their default order.
pub fn dev_tasks() -> &'static [MiniTask] {
    &dev::TASKS
}

/// Returns image `index` of a task of `mini` and its class: `index` modulo the number of classes.
///
/// # Panics
/// If `task` is not an index into [`tasks`].
pub fn task_image(seed: u64, task: usize, split: Split, index: u64) -> (RgbImage, usize) {
    draw_image(
        &task::TASKS[task],
        seed,
        TASK_DOMAIN + task as u64,
        split,
        index,
    )
}

/// Like [`task_image`], for a task of `mini-dev`.
///
/// # Panics
/// If `task` is not an index into [`dev_tasks`].
pub fn dev_image(seed: u64, task: usize, split: Split, index: u64) -> (RgbImage, usize) {
    draw_image(
        &dev::TASKS[task],
        seed,
        DEV_DOMAIN + task as u64,
        split,
        index,
    )
}

fn draw_image(
    task: &MiniTask,
    seed: u64,
    domain: u64,
    split: Split,
    index: u64,
) -> (RgbImage, usize) {
    let class = (index % task.class_names.len() as u64) as usize;
    let rng = &mut Rng::new(seed, domain, split as u64, index);
    ((task.draw)(class, rng).into_image(), class)
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

    /// After an intended change to the drawing, raise [`WORLD_VERSION`], update the values here,
    /// and pretrain the embedded model again.
    #[test]
    fn images_match_the_world_version() {
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
    fn images_of_a_task_are_distinct() {
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
    fn reference_splits_have_no_image_in_common() {
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

    /// Checks the alphabet and length of captions, the class names in them, and that none is a
    /// filled template.
    #[test]
    fn captions_contain_class_names_but_no_prompts() {
        let suites = [tasks(), dev_tasks()];
        let all = || suites.into_iter().flatten();
        let mut prompts = HashSet::new();
        for task in all() {
            for (template, class) in task
                .templates
                .iter()
                .flat_map(|t| task.class_names.iter().map(move |c| (t, c)))
            {
                let prompt = task::fill_template(template, class);
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
                (1..=caption::MAX_WORDS).contains(&count),
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
            // The first word identifies a class: "one" in "one shape", "at" in "at the top left".
            let known = name
                .split(' ')
                .next()
                .is_some_and(|word| words.contains(word));
            assert_eq!(known, !invented.contains(name), "{name}");
        }
    }

    #[test]
    fn reference_captions_differ_from_held_out_and_mention_half_of_the_tasks() {
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

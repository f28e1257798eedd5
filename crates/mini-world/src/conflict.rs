//! Suites of tasks with contradicting labels on the same images, to an adjustable degree.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use super::rng::Rng;
use super::task::{FACES, SATELLITE, SHAPES, fill_template};
use super::{CONFLICT_DOMAIN, MiniSizes, tasks};
use mtil_data::suite::{Classification, LabelledImages, Suite, SuiteError, Task, TaskKind};

/// Kind of label conflict between two tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conflict {
    /// The names of a share of the classes are permuted in the later task.
    Permuted,
    /// Classes that are separate in the first task are merged in the later one, in pairs of
    /// dissimilar shapes ("circle or arrow").
    Split,
    /// The reverse of [`Split`](Self::Split): merged first, separate later.
    Merge,
}

impl Conflict {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Permuted, Self::Split, Self::Merge];

    /// Returns a one-line description of the suite.
    pub fn about(self) -> &'static str {
        match self {
            Self::Permuted => {
                "the same images again, with the names of a share DIAL of the classes permuted"
            }
            Self::Split => {
                "the same images again, with a share DIAL of the classes merged in dissimilar pairs"
            }
            Self::Merge => {
                "conflict-split in reverse: merged classes first, separate classes later"
            }
        }
    }

    /// Returns the name of the kind: the part of the suite's name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Permuted => "conflict-permuted",
            Self::Split => "conflict-split",
            Self::Merge => "conflict-merge",
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Conflict {
    type Err = ConflictError;

    fn from_str(word: &str) -> Result<Self, ConflictError> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == word);
        known.ok_or_else(|| ConflictError::Kind { word: word.into() })
    }
}

/// Error of building or parsing a conflict suite.
#[derive(Debug, thiserror::Error)]
pub enum ConflictError {
    /// No kind of that name.
    #[error(
        "there is no conflict suite `{word}`: known are {}",
        Conflict::ALL.map(Conflict::name).join(", ")
    )]
    Kind {
        /// The requested name.
        word: String,
    },
    /// The dial is not a number from 0 to 1.
    #[error(
        "the dial of a conflict suite is a number from 0 (no conflict) to 1, \
         as in `conflict-permuted:0.5`, not `{dial}`"
    )]
    Dial {
        /// The requested value.
        dial: String,
    },
    /// The sizes leave a split of the suite empty.
    #[error(transparent)]
    Suite(#[from] SuiteError),
}

/// Labels of dissimilar pairs of [`SHAPES`].
const DISSIMILAR_PAIRS: [(usize, usize); 5] = [(0, 9), (1, 3), (2, 6), (4, 5), (7, 8)];

/// Parses a suite name such as `conflict-permuted:0.5` into kind and dial. The dial defaults to 1.
/// Returns `None` if the part before the colon is not a kind of conflict.
///
/// ```
/// use mini_world::{Conflict, parse_conflict};
///
/// let (kind, dial) = parse_conflict("conflict-permuted:0.5").unwrap()?;
/// assert_eq!((kind, dial), (Conflict::Permuted, 0.5));
/// assert!(parse_conflict("mini").is_none());
/// # Ok::<(), mini_world::ConflictError>(())
/// ```
///
/// # Errors
/// [`ConflictError::Dial`] if the dial is not a number from 0 to 1.
pub fn parse(word: &str) -> Option<Result<(Conflict, f64), ConflictError>> {
    let (kind, dial) = match word.split_once(':') {
        Some((kind, dial)) => (kind, Some(dial)),
        None => (word, None),
    };
    let kind: Conflict = kind.parse().ok()?;
    let Some(text) = dial else {
        return Some(Ok((kind, 1.0)));
    };
    let invalid = || ConflictError::Dial { dial: text.into() };
    let dial = text.parse().map_err(|_| invalid());
    Some(dial.and_then(|dial| Ok((kind, validate_dial(dial)?))))
}

/// Returns a valid dial. The sign of −0 is removed, because it would be part of the suite's name.
fn validate_dial(dial: f64) -> Result<f64, ConflictError> {
    if (0.0..=1.0).contains(&dial) {
        Ok(dial + 0.0)
    } else {
        Err(ConflictError::Dial {
            dial: dial.to_string(),
        })
    }
}

/// Returns a suite of four tasks, the third of which contradicts the first. The change from row 2
/// to row 3 of the accuracy matrix separates the effects:
///
/// | task | data | effect shown by the change in its column |
/// |---|---|---|
/// | 1 | `shapes` | forgetting of the contradicted task |
/// | 2 | `satellite` | interference with a learned task outside the conflict |
/// | 3 | the images of task 1 with other class names | learning against earlier labels |
/// | 4 | `faces` | loss of zero-shot accuracy on a task outside the conflict |
///
/// ([`Merge`](Conflict::Merge) swaps 1 and 3.) With the dial at 0, task 3 repeats task 1: the
/// baseline for all other values. The classes in conflict at a lower value are also in conflict at
/// a higher one.
///
/// The suite's name consists of kind and dial, as parsed by [`parse_conflict`](parse), so both are
/// part of the fingerprint. Images and reference pairs are those of
/// [`mini_world::suite`](fn@super::suite) with the same seed and sizes.
///
/// ```
/// use mini_world::{Conflict, MiniSizes, conflict_suite, disagreement};
///
/// let sizes = MiniSizes {
///     train_per_task: 20,
///     test_per_task: 20,
///     reference: 2,
///     held_out: 2,
/// };
/// let suite = conflict_suite(Conflict::Permuted, 0.5, 7, sizes)?;
/// assert_eq!(suite.name, "conflict-permuted:0.5");
/// assert_eq!(disagreement(&suite), 0.5);
/// # Ok::<(), mini_world::ConflictError>(())
/// ```
///
/// # Arguments
/// * `dial` - share of the ten shapes in conflict, rounded to whole shapes
///   ([`Permuted`](Conflict::Permuted)) or pairs of shapes. Any value above 0 selects at least two
///   shapes. [`disagreement`] measures the resulting share.
/// * `seed` - seed of the images and of the selection of shapes
///
/// # Errors
/// [`ConflictError`] if the dial is not from 0 to 1 or a size is 0.
pub fn conflict_suite(
    kind: Conflict,
    dial: f64,
    seed: u64,
    sizes: MiniSizes,
) -> Result<Suite, ConflictError> {
    let dial = validate_dial(dial)?;
    let mut suite = super::suite(seed, sizes);
    let shapes = suite.tasks[SHAPES].classification().cloned();
    let shapes = shapes.expect("the tasks of mini are classifications");
    let task = |name: &str, classes| Task {
        name: name.to_owned(),
        kind: TaskKind::Classification(classes),
    };
    let name = tasks()[SHAPES].name;
    let merged = || {
        let classes = merge_classes(&shapes, dial, seed);
        task(&format!("{name}-merged"), classes)
    };
    let (first, later) = match kind {
        Conflict::Permuted => {
            let renamed = Classification {
                class_names: permute_names(&shapes.class_names, dial, seed),
                ..shapes.clone()
            };
            (task(name, shapes), task("shapes-renamed", renamed))
        }
        Conflict::Split => (task(name, shapes.clone()), merged()),
        Conflict::Merge => (merged(), task(name, shapes.clone())),
    };
    let unaffected = [SATELLITE, FACES].map(|index| suite.tasks[index].clone());
    let [learned, unseen] = unaffected;
    suite.name = format!("{kind}:{dial}");
    suite.tasks = vec![first, learned, later, unseen];
    suite.check()?;
    Ok(suite)
}

/// Returns the number of `all` classes or pairs in conflict: the rounded share, and at least
/// `least` unless the dial is 0.
fn conflict_count(dial: f64, all: usize, least: usize) -> usize {
    match (dial * all as f64).round() as usize {
        _ if dial == 0.0 => 0,
        count => count.max(least),
    }
}

/// Returns a random permutation of 0..n: the order in which classes join the conflict as the dial
/// rises.
fn permutation(n: usize, seed: u64, kind: u64) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    let rng = &mut Rng::new(seed, CONFLICT_DOMAIN, kind, 0);
    for last in (1..n).rev() {
        all.swap(last, rng.below(last + 1));
    }
    all
}

/// Permutes the names of the selected classes cyclically, so that none keeps its own name.
fn permute_names(names: &[String], dial: f64, seed: u64) -> Vec<String> {
    let circle = &permutation(names.len(), seed, 0)[..conflict_count(dial, names.len(), 2)];
    let mut renamed = names.to_vec();
    for (place, &class) in circle.iter().enumerate() {
        renamed[class] = names[circle[(place + 1) % circle.len()]].clone();
    }
    renamed
}

/// Merges the selected pairs of dissimilar classes under the name "a or b".
fn merge_classes(task: &Classification, dial: f64, seed: u64) -> Classification {
    let pairs = &permutation(DISSIMILAR_PAIRS.len(), seed, 1)
        [..conflict_count(dial, DISSIMILAR_PAIRS.len(), 1)];
    let partner = |class: usize| {
        let mut of = pairs.iter().map(|&pair| DISSIMILAR_PAIRS[pair]);
        of.find(|&(_, second)| second == class)
    };
    // Both classes of a pair get the label of the first. The other labels close the gaps.
    let mut class_names: Vec<String> = Vec::new();
    let mut new_label = vec![0; task.class_names.len()];
    for (class, name) in task.class_names.iter().enumerate() {
        if partner(class).is_none() {
            new_label[class] = class_names.len();
            class_names.push(name.clone());
        }
    }
    for &pair in pairs {
        let (first, second) = DISSIMILAR_PAIRS[pair];
        new_label[second] = new_label[first];
        class_names[new_label[first]] = format!(
            "{} or {}",
            task.class_names[first], task.class_names[second]
        );
    }
    let half = |half: &LabelledImages| LabelledImages {
        images: half.images.clone(),
        labels: half.labels.iter().map(|&class| new_label[class]).collect(),
    };
    Classification {
        class_names,
        templates: task.templates.clone(),
        train: half(&task.train),
        test: half(&task.test),
    }
}

/// Returns the share of conflicting labels between the tasks of any suite. Of the training images
/// that an earlier task contains too, it is the share with a different text (the class name in the
/// task's first template) there. It is 0 if no task shares an image with an earlier one, and 1 if
/// every shared image has a different text.
///
/// Images are equal if their [identities](mtil_data::data::ImageSource::identity) are.
pub fn disagreement(suite: &Suite) -> f64 {
    let mut known: HashMap<String, String> = HashMap::new();
    let (mut shared, mut differ) = (0usize, 0usize);
    for task in suite.tasks.iter().filter_map(Task::classification) {
        let template = task.templates.first().map_or("{}", String::as_str);
        let texts: Vec<String> = task
            .class_names
            .iter()
            .map(|name| fill_template(template, name))
            .collect();
        let mut own: HashMap<String, String> = HashMap::new();
        for (index, &label) in task.train.labels.iter().enumerate() {
            let Some(text) = texts.get(label) else {
                continue;
            };
            let image = task.train.images.identity(index);
            if let Some(before) = known.get(&image) {
                shared += 1;
                differ += usize::from(before != text);
            }
            own.insert(image, text.clone());
        }
        known.extend(own);
    }
    if shared == 0 {
        0.0
    } else {
        differ as f64 / shared as f64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const SIZES: MiniSizes = MiniSizes {
        train_per_task: 40,
        test_per_task: 20,
        reference: 3,
        held_out: 2,
    };

    fn suite_of(kind: Conflict, dial: f64) -> Suite {
        conflict_suite(kind, dial, 7, SIZES).unwrap()
    }

    fn classes(task: &Task) -> &Classification {
        task.classification().unwrap()
    }

    /// Returns the class name of an image in a task.
    fn class_name(task: &Classification, index: usize) -> &str {
        &task.class_names[task.test.labels[index]]
    }

    #[test]
    fn suite_names_are_parsed() {
        let read = |word| parse(word).unwrap().unwrap();
        assert_eq!(read("conflict-permuted:0.5"), (Conflict::Permuted, 0.5));
        assert_eq!(read("conflict-split"), (Conflict::Split, 1.0));
        assert_eq!(read("conflict-merge:0"), (Conflict::Merge, 0.0));
        for word in [
            "mini",
            "conflict",
            "conflict-permute:1",
            "my/conflict-split",
        ] {
            assert!(parse(word).is_none(), "{word}");
        }
        for word in ["1.5", "-0.1", "nan", "inf", "half", "", "0.5:0.5"] {
            let e = parse(&format!("conflict-split:{word}"))
                .unwrap()
                .unwrap_err();
            assert!(matches!(e, ConflictError::Dial { .. }), "{word}: {e}");
        }
        let e = "conflict-style".parse::<Conflict>().unwrap_err();
        assert!(
            e.to_string().contains("conflict-permuted, conflict-split"),
            "{e}"
        );
    }

    #[test]
    fn suite_names_round_trip_and_fingerprints_differ() {
        let mut seen = HashSet::new();
        for kind in Conflict::ALL {
            for dial in [0.0, 0.3, 0.31, 1.0] {
                let suite = suite_of(kind, dial);
                assert_eq!(parse(&suite.name).unwrap().unwrap(), (kind, dial));
                assert_eq!(suite.fingerprint(), suite_of(kind, dial).fingerprint());
                assert!(seen.insert(suite.fingerprint()), "{}", suite.name);
            }
        }
        let other = conflict_suite(Conflict::Permuted, 1.0, 8, SIZES).unwrap();
        assert!(seen.insert(other.fingerprint()));
        assert_eq!(suite_of(Conflict::Split, -0.0).name, "conflict-split:0");
    }

    #[test]
    fn unaffected_tasks_and_pairs_are_those_of_mini() {
        let mini = super::super::suite(7, SIZES);
        for kind in Conflict::ALL {
            let suite = suite_of(kind, 0.6);
            let [first, learned, later, unseen] = &suite.tasks[..] else {
                panic!("{} tasks", suite.tasks.len());
            };
            for (task, index) in [(learned, SATELLITE), (unseen, FACES)] {
                assert_eq!(task.name, tasks()[index].name);
                assert_eq!(
                    classes(task).train.labels,
                    classes(&mini.tasks[index]).train.labels
                );
            }
            for task in [first, later] {
                for (own, mini) in [
                    (task.training_images(), mini.tasks[SHAPES].training_images()),
                    (task.test_images(), mini.tasks[SHAPES].test_images()),
                ] {
                    assert_eq!(own.len(), mini.len());
                    for index in 0..own.len() {
                        assert_eq!(own.identity(index), mini.identity(index));
                    }
                }
            }
            assert_eq!(suite.reference.captions, mini.reference.captions);
            assert_eq!(suite.held_out.captions, mini.held_out.captions);
        }
    }

    #[test]
    fn dial_of_zero_has_no_conflict() {
        for kind in Conflict::ALL {
            let suite = suite_of(kind, 0.0);
            let (first, later) = (classes(&suite.tasks[0]), classes(&suite.tasks[2]));
            assert_eq!(first.class_names, later.class_names);
            assert_eq!(first.test.labels, later.test.labels);
            assert_eq!(disagreement(&suite), 0.0);
        }
    }

    #[test]
    fn permuted_classes_are_a_growing_derangement() {
        let mut before = HashSet::new();
        for (dial, count) in [(0.01, 2), (0.1, 2), (0.3, 3), (0.5, 5), (1.0, 10)] {
            for seed in 0..20 {
                let suite = conflict_suite(Conflict::Permuted, dial, seed, SIZES).unwrap();
                let [first, later] = [0, 2].map(|task| &classes(&suite.tasks[task]).class_names);
                let (mut a, mut b) = (first.clone(), later.clone());
                a.sort();
                b.sort();
                assert_eq!(a, b);
                let moved = (0..10).filter(|&c| first[c] != later[c]);
                let moved: HashSet<(u64, usize)> = moved.map(|c| (seed, c)).collect();
                assert_eq!(moved.len(), count, "dial {dial}");
                let earlier = before.iter().filter(|(s, _)| *s == seed);
                assert!(earlier.copied().all(|class| moved.contains(&class)));
                assert!((disagreement(&suite) - count as f64 / 10.0).abs() < 1e-12);
                before.extend(moved);
            }
        }
    }

    #[test]
    fn merged_classes_take_two_shapes_each() {
        for (dial, pairs) in [(0.01, 1), (0.2, 1), (0.4, 2), (0.6, 3), (1.0, 5)] {
            let suite = suite_of(Conflict::Split, dial);
            let (fine, coarse) = (classes(&suite.tasks[0]), classes(&suite.tasks[2]));
            assert_eq!(coarse.class_names.len(), 10 - pairs);
            assert!((disagreement(&suite) - pairs as f64 / 5.0).abs() < 1e-12);
            let mut renamed = 0;
            for index in 0..SIZES.test_per_task {
                let (own, joint) = (class_name(fine, index), class_name(coarse, index));
                if own != joint {
                    renamed += 1;
                    let (a, b) = joint.split_once(" or ").unwrap();
                    assert!(own == a || own == b, "{own} is called {joint}");
                }
            }
            assert_eq!(renamed, pairs * 2 * SIZES.test_per_task / 10);
        }
        let all: HashSet<usize> = DISSIMILAR_PAIRS.iter().flat_map(|&(a, b)| [a, b]).collect();
        assert_eq!(all.len(), tasks()[SHAPES].class_names.len());
    }

    #[test]
    fn merge_is_the_reverse_of_split() {
        let (split, merge) = (
            suite_of(Conflict::Split, 0.6),
            suite_of(Conflict::Merge, 0.6),
        );
        for (a, b) in [(0, 2), (2, 0)] {
            let (a, b) = (&split.tasks[a], &merge.tasks[b]);
            assert_eq!(a.name, b.name);
            let (a, b) = (classes(a), classes(b));
            assert_eq!(a.class_names, b.class_names);
            assert_eq!(a.train.labels, b.train.labels);
        }
        assert_eq!(disagreement(&split), disagreement(&merge));
    }

    #[test]
    fn mini_has_no_conflict() {
        assert_eq!(disagreement(&super::super::suite(7, SIZES)), 0.0);
    }

    #[test]
    fn invalid_sizes_and_dials_are_errors() {
        for dial in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let e = conflict_suite(Conflict::Merge, dial, 7, SIZES)
                .err()
                .unwrap();
            assert!(matches!(e, ConflictError::Dial { .. }), "{e}");
        }
        let empty = MiniSizes {
            test_per_task: 0,
            ..SIZES
        };
        let e = conflict_suite(Conflict::Merge, 0.5, 7, empty)
            .err()
            .unwrap();
        assert!(e.to_string().contains("`shapes-merged`"), "{e}");
    }
}

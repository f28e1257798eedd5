//! Suites whose tasks demand opposite things of the same pictures, to a degree that is dialled.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use super::dice::Dice;
use super::task::{FACES, SATELLITE, SHAPES, fill};
use super::{CONFLICT_DOMAIN, MiniSizes, tasks};
use mtil_data::suite::{LabelledImages, Suite, SuiteError, Task};

/// How two tasks contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conflict {
    /// A share of the classes is later called by another one's name.
    Permuted,
    /// Classes told apart first are later taken together in pairs of unlike shapes ("circle or
    /// arrow").
    Split,
    /// The reverse of [`Split`](Self::Split): taken together first, told apart later.
    Merge,
}

impl Conflict {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Permuted, Self::Split, Self::Merge];

    /// What the suite asks, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Self::Permuted => {
                "the same pictures again, a share DIAL of the classes under each other's names"
            }
            Self::Split => {
                "the same pictures again, a share DIAL of the classes merged in pairs that look unlike"
            }
            Self::Merge => {
                "conflict-split the other way round: merged classes first, then told apart"
            }
        }
    }

    /// The word for the kind, which is also the name of its suite up to the colon.
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

/// Why there is no such conflict suite.
#[derive(Debug, thiserror::Error)]
pub enum ConflictError {
    /// No kind of that name.
    #[error("there is no conflict suite `{word}`: known are {}", Conflict::ALL.map(Conflict::name).join(", "))]
    Kind {
        /// What was asked for.
        word: String,
    },
    /// The dial is not a number from 0 to 1.
    #[error(
        "the dial of a conflict suite is a number from 0 (no conflict) to 1, as in `conflict-permuted:0.5`, not `{dial}`"
    )]
    Dial {
        /// What was given.
        dial: String,
    },
    /// The sizes leave a part of the suite empty.
    #[error(transparent)]
    Suite(#[from] SuiteError),
}

/// Pairs of [`SHAPES`] that look unlike each other, by label.
const UNLIKE: [(usize, usize); 5] = [(0, 9), (1, 3), (2, 6), (4, 5), (7, 8)];

/// Reads `conflict-permuted:0.5`: kind and dial. Without a colon the dial is 1. `None` when the
/// word before the colon is not a kind of conflict.
pub fn parse(word: &str) -> Option<Result<(Conflict, f64), ConflictError>> {
    let (kind, dial) = match word.split_once(':') {
        Some((kind, dial)) => (kind, Some(dial)),
        None => (word, None),
    };
    let kind: Conflict = kind.parse().ok()?;
    let Some(text) = dial else {
        return Some(Ok((kind, 1.0)));
    };
    let wrong = || ConflictError::Dial { dial: text.into() };
    let dial = text.parse().map_err(|_| wrong());
    Some(dial.and_then(|dial| Ok((kind, checked(dial)?))))
}

/// A dial from 0 to 1, without the sign of −0, which would make another name of the same suite.
fn checked(dial: f64) -> Result<f64, ConflictError> {
    if (0.0..=1.0).contains(&dial) {
        Ok(dial + 0.0)
    } else {
        Err(ConflictError::Dial {
            dial: dial.to_string(),
        })
    }
}

/// A suite of four tasks, the third of which contradicts the first. The change from row 2 to row 3
/// of the accuracy matrix tells the effects apart:
///
/// | place | task | what the change in its column shows |
/// |---|---|---|
/// | 1 | `shapes` | forgetting of what is contradicted |
/// | 2 | `satellite` | damage to a learned task that has no part in the conflict |
/// | 3 | the pictures of place 1 under other names | learning against what was learned |
/// | 4 | `faces` | damage to the zero-shot ability on a task that has no part in the conflict |
///
/// ([`Merge`](Conflict::Merge) has 1 and 3 the other way round.) With the dial at 0, place 3 trains
/// place 1 again: the reference for all other values. What a lower value contradicts, a higher one
/// contradicts too.
///
/// The name is the kind and the dial, as [`parse_conflict`](parse) reads them, and so both are part
/// of the fingerprint. Pictures and reference pairs are those of [`mini::suite`](fn@super::suite)
/// under the same seed and sizes.
///
/// # Arguments
/// * `dial` - the share of the ten shapes that take part, rounded to whole shapes
///   ([`Permuted`](Conflict::Permuted)) or pairs of shapes; any value above 0 makes two take part
///   at least. [`disagreement`] measures what was reached.
/// * `seed` - also chooses which shapes take part
///
/// # Errors
/// [`ConflictError`] when the dial is not from 0 to 1 or a size is 0.
pub fn conflict_suite(
    kind: Conflict,
    dial: f64,
    seed: u64,
    sizes: MiniSizes,
) -> Result<Suite, ConflictError> {
    let dial = checked(dial)?;
    let mut suite = super::suite(seed, sizes);
    let shapes = suite.tasks[SHAPES].clone();
    let (first, later) = match kind {
        Conflict::Permuted => {
            let names = permuted(&shapes.class_names, dial, seed);
            let renamed = Task {
                name: "shapes-renamed".into(),
                class_names: names,
                ..shapes.clone()
            };
            (shapes, renamed)
        }
        Conflict::Split => {
            let merged = merged(&shapes, dial, seed);
            (shapes, merged)
        }
        Conflict::Merge => (merged(&shapes, dial, seed), shapes),
    };
    let bystanders = [SATELLITE, FACES].map(|index| suite.tasks[index].clone());
    let [learned, unseen] = bystanders;
    suite.name = format!("{kind}:{dial}");
    suite.tasks = vec![first, learned, later, unseen];
    suite.check()?;
    Ok(suite)
}

/// How many of `all` take part: the share rounded, and `least` at least unless the dial is 0.
fn taking_part(dial: f64, all: usize, least: usize) -> usize {
    match (dial * all as f64).round() as usize {
        _ if dial == 0.0 => 0,
        count => count.max(least),
    }
}

/// The numbers below `n` in the order in which they take part as the dial rises.
fn ranking(n: usize, seed: u64, kind: u64) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    let dice = &mut Dice::new(seed, CONFLICT_DOMAIN, kind, 0);
    for last in (1..n).rev() {
        all.swap(last, dice.below(last + 1));
    }
    all
}

/// The names with those of the classes taking part passed round in a circle: none of these keeps
/// its own.
fn permuted(names: &[String], dial: f64, seed: u64) -> Vec<String> {
    let circle = &ranking(names.len(), seed, 0)[..taking_part(dial, names.len(), 2)];
    let mut renamed = names.to_vec();
    for (place, &class) in circle.iter().enumerate() {
        renamed[class] = names[circle[(place + 1) % circle.len()]].clone();
    }
    renamed
}

/// The task with pairs of unlike classes taken together under a name made of both.
fn merged(task: &Task, dial: f64, seed: u64) -> Task {
    let pairs = &ranking(UNLIKE.len(), seed, 1)[..taking_part(dial, UNLIKE.len(), 1)];
    let partner = |class: usize| {
        let mut of = pairs.iter().map(|&pair| UNLIKE[pair]);
        of.find(|&(_, second)| second == class)
    };
    // The second of a pair goes where the first is; the labels of the others move up.
    let mut class_names: Vec<String> = Vec::new();
    let mut place = vec![0; task.class_names.len()];
    for (class, name) in task.class_names.iter().enumerate() {
        if partner(class).is_none() {
            place[class] = class_names.len();
            class_names.push(name.clone());
        }
    }
    for &pair in pairs {
        let (first, second) = UNLIKE[pair];
        place[second] = place[first];
        class_names[place[first]] = format!(
            "{} or {}",
            task.class_names[first], task.class_names[second]
        );
    }
    let half = |half: &LabelledImages| LabelledImages {
        images: half.images.clone(),
        labels: half.labels.iter().map(|&class| place[class]).collect(),
    };
    Task {
        name: format!("{}-merged", tasks()[SHAPES].name),
        class_names,
        templates: task.templates.clone(),
        train: half(&task.train),
        test: half(&task.test),
    }
}

/// How much the tasks of any suite contradict each other, without training: of the training images
/// that an earlier task has too, the share whose text (the class name in the task's first template)
/// is another one there. 0 when no task shares an image with an earlier one, 1 when every shared
/// image is called something else.
///
/// Images are the same when their [identity](mtil_data::data::ImageSource::identity) is.
pub fn disagreement(suite: &Suite) -> f64 {
    let mut known: HashMap<String, String> = HashMap::new();
    let (mut shared, mut differ) = (0usize, 0usize);
    for task in &suite.tasks {
        let template = task.templates.first().map_or("{}", String::as_str);
        let texts: Vec<String> = task
            .class_names
            .iter()
            .map(|name| fill(template, name))
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

    fn made(kind: Conflict, dial: f64) -> Suite {
        conflict_suite(kind, dial, 7, SIZES).unwrap()
    }

    /// The name that a picture has in a task.
    fn called(task: &Task, index: usize) -> &str {
        &task.class_names[task.test.labels[index]]
    }

    #[test]
    fn words_are_read() {
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
    fn suite_names_are_read_back_and_fingerprints_differ() {
        let mut seen = HashSet::new();
        for kind in Conflict::ALL {
            for dial in [0.0, 0.3, 0.31, 1.0] {
                let suite = made(kind, dial);
                assert_eq!(parse(&suite.name).unwrap().unwrap(), (kind, dial));
                assert_eq!(suite.fingerprint(), made(kind, dial).fingerprint());
                assert!(seen.insert(suite.fingerprint()), "{}", suite.name);
            }
        }
        let other = conflict_suite(Conflict::Permuted, 1.0, 8, SIZES).unwrap();
        assert!(seen.insert(other.fingerprint()));
        assert_eq!(made(Conflict::Split, -0.0).name, "conflict-split:0");
    }

    #[test]
    fn bystanders_and_pairs_are_those_of_the_world() {
        let world = super::super::suite(7, SIZES);
        for kind in Conflict::ALL {
            let suite = made(kind, 0.6);
            let [first, learned, later, unseen] = &suite.tasks[..] else {
                panic!("{} tasks", suite.tasks.len());
            };
            for (task, index) in [(learned, SATELLITE), (unseen, FACES)] {
                assert_eq!(task.name, tasks()[index].name);
                assert_eq!(task.train.labels, world.tasks[index].train.labels);
            }
            for task in [first, later] {
                for (own, world) in [
                    (&task.train, &world.tasks[SHAPES].train),
                    (&task.test, &world.tasks[SHAPES].test),
                ] {
                    assert_eq!(own.images.len(), world.images.len());
                    for index in 0..own.images.len() {
                        assert_eq!(own.images.identity(index), world.images.identity(index));
                    }
                }
            }
            assert_eq!(suite.reference.captions, world.reference.captions);
            assert_eq!(suite.held_out.captions, world.held_out.captions);
        }
    }

    #[test]
    fn without_a_dial_the_tasks_agree() {
        for kind in Conflict::ALL {
            let suite = made(kind, 0.0);
            let (first, later) = (&suite.tasks[0], &suite.tasks[2]);
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
                let (first, later) = (&suite.tasks[0].class_names, &suite.tasks[2].class_names);
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
            let suite = made(Conflict::Split, dial);
            let (fine, coarse) = (&suite.tasks[0], &suite.tasks[2]);
            assert_eq!(coarse.class_names.len(), 10 - pairs);
            assert!((disagreement(&suite) - pairs as f64 / 5.0).abs() < 1e-12);
            let mut renamed = 0;
            for index in 0..SIZES.test_per_task {
                let (own, joint) = (called(fine, index), called(coarse, index));
                if own != joint {
                    renamed += 1;
                    let (a, b) = joint.split_once(" or ").unwrap();
                    assert!(own == a || own == b, "{own} is called {joint}");
                }
            }
            assert_eq!(renamed, pairs * 2 * SIZES.test_per_task / 10);
        }
        let all: HashSet<usize> = UNLIKE.iter().flat_map(|&(a, b)| [a, b]).collect();
        assert_eq!(all.len(), tasks()[SHAPES].class_names.len());
    }

    #[test]
    fn merging_is_splitting_backwards() {
        let (split, merge) = (made(Conflict::Split, 0.6), made(Conflict::Merge, 0.6));
        for (a, b) in [(0, 2), (2, 0)] {
            let (a, b) = (&split.tasks[a], &merge.tasks[b]);
            assert_eq!((&a.name, &a.class_names), (&b.name, &b.class_names));
            assert_eq!(a.train.labels, b.train.labels);
        }
        assert_eq!(disagreement(&split), disagreement(&merge));
    }

    #[test]
    fn the_world_itself_has_no_conflict() {
        assert_eq!(disagreement(&super::super::suite(7, SIZES)), 0.0);
    }

    #[test]
    fn bad_sizes_and_dials_are_refused() {
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

//! Rehearsal memory: selection of exemplars of earlier tasks by herding or at random.
//!
//! The functions here work on features and indices only. An image is identified by its task and its
//! index in that task's training set. iCaRL in the MTIL benchmark (ZSCL
//! `mtil/src/dynamic_dataset.py` and `mtil/src/models/icarl.py`) keeps one set per dataset, not per
//! class, and selects by herding (Rebuffi et al., "iCaRL: Incremental Classifier and Representation
//! Learning", CVPR 2017).

use std::cmp::Ordering;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use mtil_data::seeds::derive;

/// Number of images, from the start of a training set, that the reference implementation scans
/// (`dynamic_dataset.py`, `getNewDataset`).
pub const REFERENCE_SCAN: usize = 30_000;

/// Errors of a rehearsal memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RehearsalError {
    /// The number of values is not rows times columns.
    #[error("features: {values} values are not {rows} rows of {columns}")]
    Shape {
        /// Values given.
        values: usize,
        /// Rows expected.
        rows: usize,
        /// Columns expected.
        columns: usize,
    },
    /// A feature is NaN or infinite.
    #[error("features: the value in row {row}, column {column} is not finite")]
    NotFinite {
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
    },
    /// A setting is zero.
    #[error("{name} is 0: it must be at least 1")]
    Zero {
        /// Name of the setting.
        name: &'static str,
    },
    /// The task is already in the memory.
    #[error("task {task} is already in the rehearsal memory")]
    Repeated {
        /// The task.
        task: usize,
    },
    /// An index is out of range of the training set.
    #[error("task {task}: exemplar {index} is out of range: the training set has {images} images")]
    OutOfRange {
        /// The task.
        task: usize,
        /// The index.
        index: usize,
        /// Images of the training set.
        images: usize,
    },
    /// The new set has more images than its quota.
    #[error("task {task}: {given} exemplars are more than the {room} that a new set may have")]
    TooMany {
        /// The task.
        task: usize,
        /// Images given.
        given: usize,
        /// Images allowed.
        room: usize,
    },
}

/// Number of images of a new set, the `t`-th (`t ≥ 2`), in a memory of `K` images. In both cases
/// the older sets are truncated to their first `⌊K/t⌋` images, and the first set of all may have
/// `K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quota {
    /// `K − ⌊K/t⌋`, as in the reference implementation (`dynamic_dataset.py:59-60`). From the third
    /// set on, the memory exceeds `K`.
    #[default]
    Reference,
    /// `⌊K/t⌋`, as in the paper: the memory never exceeds `K`.
    Fixed,
}

impl Quota {
    /// Returns the largest size of set number `sets`, counted from 1.
    pub fn new_set(self, budget: usize, sets: usize) -> usize {
        match (self, sets) {
            (_, 0 | 1) => budget,
            (Self::Reference, t) => budget - budget / t,
            (Self::Fixed, t) => budget / t,
        }
    }
}

/// Images of a task in descending order of preference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    task: usize,
    /// Size of the training set.
    images: usize,
    indices: Vec<usize>,
}

/// Rehearsal memory: indices of images of earlier tasks, within a budget.
///
/// ```
/// use mtil_methods::mechanism::rehearsal_memory::{Quota, RehearsalMemory};
///
/// let mut memory = RehearsalMemory::new(4, Quota::Fixed)?;
/// memory.add_task(0, 9, vec![8, 7, 6, 5])?;
/// memory.add_task(1, 5, vec![0, 1])?;
/// assert_eq!(memory.items(), [(0, 8), (0, 7), (1, 0), (1, 1)]);
/// # Ok::<(), mtil_methods::mechanism::rehearsal_memory::RehearsalError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct RehearsalMemory {
    budget: usize,
    quota: Quota,
    sets: Vec<Set>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    budget: usize,
    quota: Quota,
    sets: Vec<Set>,
}

impl TryFrom<Unchecked> for RehearsalMemory {
    type Error = RehearsalError;

    fn try_from(stored: Unchecked) -> Result<Self, RehearsalError> {
        let mut checked = Self::new(stored.budget, stored.quota)?;
        for set in stored.sets {
            checked.check(set.task, set.images, &set.indices, stored.budget)?;
            checked.sets.push(set);
        }
        Ok(checked)
    }
}

impl RehearsalMemory {
    /// Creates an empty memory for `budget` images.
    ///
    /// # Errors
    /// [`RehearsalError::Zero`] for a budget of 0.
    pub fn new(budget: usize, quota: Quota) -> Result<Self, RehearsalError> {
        if budget == 0 {
            return Err(RehearsalError::Zero {
                name: "rehearsal budget",
            });
        }
        Ok(Self {
            budget,
            quota,
            sets: Vec::new(),
        })
    }

    /// Returns the budget.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Returns the quota of new sets.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.sets.iter().map(|set| set.indices.len()).sum()
    }

    /// Returns whether the memory is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes of the images as `side × side` pixels of three `u8`. The reference
    /// implementation stores normalised `f32`, four times as much.
    pub fn bytes(&self, side: usize) -> u64 {
        let side = side as u64;
        (self.len() as u64).saturating_mul(side.saturating_mul(side).saturating_mul(3))
    }

    /// Returns task and index of every image, task by task.
    pub fn items(&self) -> Vec<(usize, usize)> {
        self.sets()
            .flat_map(|(task, indices)| indices.iter().map(move |index| (task, *index)))
            .collect()
    }

    /// Iterates over tasks and their images, in the order in which they were added.
    pub fn sets(&self) -> impl Iterator<Item = (usize, &[usize])> {
        self.sets.iter().map(|set| (set.task, &set.indices[..]))
    }

    /// Returns the largest size of the next set.
    pub fn capacity(&self) -> usize {
        self.quota.new_set(self.budget, self.sets.len() + 1)
    }

    /// Adds the set of a task, and truncates the older sets to their first `⌊budget/t⌋` images,
    /// where `t` counts the new set.
    ///
    /// `chosen` are at most [`capacity`](Self::capacity) indices into the training set of `images`
    /// images, in descending order of preference: from `first`, `herding`,
    /// `herding_reference`, `random` or `balanced`. Those of `herding_reference` may
    /// repeat.
    ///
    /// # Errors
    /// For a task that is already in the memory, an index out of range, and too many indices; the
    /// memory is then unchanged.
    pub fn add_task(
        &mut self,
        task: usize,
        images: usize,
        chosen: Vec<usize>,
    ) -> Result<(), RehearsalError> {
        self.check(task, images, &chosen, self.capacity())?;
        let share = self.budget / (self.sets.len() + 1);
        for set in &mut self.sets {
            set.indices.truncate(share);
        }
        self.sets.push(Set {
            task,
            images,
            indices: chosen,
        });
        Ok(())
    }

    fn check(
        &self,
        task: usize,
        images: usize,
        chosen: &[usize],
        room: usize,
    ) -> Result<(), RehearsalError> {
        if self.sets.iter().any(|set| set.task == task) {
            return Err(RehearsalError::Repeated { task });
        }
        if let Some(index) = chosen.iter().find(|index| **index >= images) {
            return Err(RehearsalError::OutOfRange {
                task,
                index: *index,
                images,
            });
        }
        if chosen.len() > room {
            return Err(RehearsalError::TooMany {
                task,
                given: chosen.len(),
                room,
            });
        }
        Ok(())
    }
}

/// Selects the first `count` images in dataset order, of at most [`REFERENCE_SCAN`]: the first set
/// of the reference implementation.
pub fn first(images: usize, count: usize) -> Vec<usize> {
    (0..count.min(images).min(REFERENCE_SCAN)).collect()
}

/// Herding of iCaRL: greedily picks the image that brings the mean of the picked features closest
/// to the mean `μ` of all features,
///
/// ```text
/// argmin over the rows x not picked yet of ‖μ − (Σ picked + x)/(k + 1)‖²        k picked so far
/// ```
///
/// The first of equal rows wins. Every prefix of the picks is itself a selection by herding, so a
/// set can simply be truncated.
///
/// Returns `min(count, rows)` rows in the order of the picks. A pick takes `rows · columns`
/// multiplications in `f64`.
///
/// # Shapes
/// - features: `[rows, columns]`, row-major, of unit length in the reference implementation
///
/// # Errors
/// For a number of values that is not `rows · columns`, and for values that are not finite.
pub fn herding(
    features: &[f32],
    rows: usize,
    columns: usize,
    count: usize,
) -> Result<Vec<usize>, RehearsalError> {
    Ok(herding_picks(features, rows, columns, count)?
        .into_iter()
        .map(|pick| pick.row)
        .collect())
}

/// Herding with the defect of the reference implementation (`dynamic_dataset.py:65-80`). It deletes
/// a picked row from the features but not from the images, so each pick takes the image at the
/// row's position among the remaining rows. This is usually not the picked image, and images may
/// repeat.
///
/// The reference implementation uses the features of the first [`REFERENCE_SCAN`] images. Arguments
/// and errors are those of [`herding`].
pub fn herding_reference(
    features: &[f32],
    rows: usize,
    columns: usize,
    count: usize,
) -> Result<Vec<usize>, RehearsalError> {
    Ok(herding_picks(features, rows, columns, count)?
        .into_iter()
        .map(|pick| pick.position)
        .collect())
}

/// One pick of herding.
struct Pick {
    row: usize,
    /// Position of the row among those not picked before.
    position: usize,
}

/// Picks rows greedily by the herding criterion.
fn herding_picks(
    features: &[f32],
    rows: usize,
    columns: usize,
    count: usize,
) -> Result<Vec<Pick>, RehearsalError> {
    if rows.checked_mul(columns) != Some(features.len()) {
        return Err(RehearsalError::Shape {
            values: features.len(),
            rows,
            columns,
        });
    }
    if let Some(i) = features.iter().position(|x| !x.is_finite()) {
        return Err(RehearsalError::NotFinite {
            row: i / columns,
            column: i % columns,
        });
    }
    let row = |i: usize| &features[i * columns..][..columns];
    let mut mean = vec![0.0; columns];
    for i in 0..rows {
        mean.iter_mut()
            .zip(row(i))
            .for_each(|(m, x)| *m += f64::from(*x));
    }
    mean.iter_mut().for_each(|m| *m /= rows.max(1) as f64);
    let squared_norms: Vec<f64> = (0..rows)
        .map(|i| row(i).iter().map(|x| f64::from(*x).powi(2)).sum())
        .collect();

    let mut remaining: Vec<usize> = (0..rows).collect();
    // target = (k + 1)·μ − Σ picked. Up to terms and a factor common to all rows, the squared
    // distance is ‖x‖² − 2·x·target.
    let mut target = mean.clone();
    let mut picks = Vec::with_capacity(count.min(rows));
    while picks.len() < count && !remaining.is_empty() {
        let best = remaining
            .par_iter()
            .with_min_len(256)
            .enumerate()
            .map(|(position, i)| (squared_norms[*i] - 2.0 * dot(row(*i), &target), position))
            .reduce_with(|a, b| match a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)) {
                Ordering::Greater => b,
                _ => a,
            });
        let Some((_, position)) = best else { break };
        let picked = remaining.remove(position);
        for ((w, m), x) in target.iter_mut().zip(&mean).zip(row(picked)) {
            *w += m - f64::from(*x);
        }
        picks.push(Pick {
            row: picked,
            position,
        });
    }
    Ok(picks)
}

/// Dot product in eight partial sums, for SIMD; the order of additions is the same on every
/// machine.
fn dot(x: &[f32], y: &[f64]) -> f64 {
    let (x, x_rest) = x.as_chunks::<8>();
    let (y, y_rest) = y.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (x, y) in x.iter().zip(y) {
        for i in 0..8 {
            sums[i] += f64::from(x[i]) * y[i];
        }
    }
    let rest: f64 = x_rest
        .iter()
        .zip(y_rest)
        .map(|(x, y)| f64::from(*x) * y)
        .sum();
    sums.iter().sum::<f64>() + rest
}

/// Selects `min(count, images)` distinct images in random order, as a function of the seed.
pub fn random(images: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..images).collect();
    order.sort_by_cached_key(|index| (derive(seed, &[*index as u64]), *index));
    order.truncate(count);
    order
}

/// Selects `min(count, labels.len())` distinct images, as a function of the seed: one of each
/// class, then a second of each, and so on, with the images of a class in random order. Every
/// prefix is itself a balanced selection, so a set stays balanced when it is truncated.
pub fn balanced(labels: &[usize], count: usize, seed: u64) -> Vec<usize> {
    let mut taken = std::collections::HashMap::new();
    let mut ranked: Vec<(usize, u64, usize)> = random(labels.len(), labels.len(), seed)
        .into_iter()
        .map(|index| {
            let rank = taken.entry(labels[index]).or_insert(0usize);
            *rank += 1;
            // Within a round, the classes are in a random order that does not depend on their
            // labels.
            (*rank, derive(seed, &[*rank as u64, index as u64]), index)
        })
        .collect();
    ranked.sort_unstable();
    ranked.truncate(count);
    ranked.into_iter().map(|(_, _, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Written by `tests/reference/rail.py`.
    #[derive(Deserialize)]
    struct Reference {
        columns: usize,
        budget: usize,
        tasks: Vec<Task>,
        fixed: Vec<Vec<Vec<usize>>>,
        reference: Vec<Vec<Vec<usize>>>,
    }

    #[derive(Deserialize)]
    struct Task {
        rows: usize,
        features: Vec<f32>,
    }

    #[test]
    fn selections_of_three_tasks_equal_the_python_reference() {
        let reference: Reference =
            serde_json::from_str(include_str!("../testdata/exemplars.json")).unwrap();
        for (quota, stages) in [
            (Quota::Fixed, &reference.fixed),
            (Quota::Reference, &reference.reference),
        ] {
            let mut memory = RehearsalMemory::new(reference.budget, quota).unwrap();
            for (t, (task, expected)) in reference.tasks.iter().zip(stages).enumerate() {
                let room = memory.capacity();
                let select = |f: fn(&[f32], usize, usize, usize) -> _| {
                    f(&task.features, task.rows, reference.columns, room)
                };
                let chosen: Result<Vec<usize>, RehearsalError> = match (quota, t) {
                    (Quota::Reference, 0) => Ok(first(task.rows, room)),
                    (Quota::Reference, _) => select(herding_reference),
                    (Quota::Fixed, _) => select(herding),
                };
                memory.add_task(t, task.rows, chosen.unwrap()).unwrap();
                let found: Vec<(usize, &[usize])> = memory.sets().collect();
                let expected: Vec<_> = expected.iter().map(|set| &set[..]).enumerate().collect();
                assert_eq!(found, expected, "{quota:?}");
            }
            assert_eq!(
                memory.len() > reference.budget,
                quota == Quota::Reference,
                "the published quota exceeds the budget"
            );
        }
    }

    /// Compares the picks with the formula, for enough rows for several threads and for both parts
    /// of `dot`.
    #[test]
    fn herding_follows_the_formula() {
        let (rows, columns, count) = (700, 11, 40);
        let features: Vec<f32> = (0..(rows * columns) as u64)
            .map(|i| (derive(3, &[i]) % 10_000) as f32 / 1e4 - 0.3)
            .collect();
        let row = |i: usize| {
            features[i * columns..][..columns]
                .iter()
                .map(|x| f64::from(*x))
        };
        let mean: Vec<f64> = (0..columns)
            .map(|c| {
                (0..rows)
                    .map(|i| f64::from(features[i * columns + c]))
                    .sum::<f64>()
                    / rows as f64
            })
            .collect();
        let mut picked: Vec<usize> = Vec::new();
        let mut sum = vec![0.0; columns];
        for k in 0..count {
            let distance = |i: usize| -> f64 {
                row(i)
                    .zip(&sum)
                    .zip(&mean)
                    .map(|((x, s), m)| (m - (s + x) / (k + 1) as f64).powi(2))
                    .sum()
            };
            let best = (0..rows)
                .filter(|i| !picked.contains(i))
                .min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
                .unwrap();
            sum.iter_mut().zip(row(best)).for_each(|(s, x)| *s += x);
            picked.push(best);
        }
        assert_eq!(herding(&features, rows, columns, count).unwrap(), picked);
        // Fewer picks are a prefix.
        assert_eq!(herding(&features, rows, columns, 7).unwrap(), picked[..7]);
        // The defect takes positions among the remaining rows.
        let wrong = herding_reference(&features, rows, columns, count).unwrap();
        for (k, position) in wrong.iter().enumerate() {
            let before = picked[..k].iter().filter(|i| **i < picked[k]).count();
            assert_eq!(position + before, picked[k]);
        }
    }

    #[test]
    fn equal_features_are_picked_in_order() {
        assert_eq!(herding(&[1.0; 12], 4, 3, 9).unwrap(), [0, 1, 2, 3]);
        assert_eq!(
            herding_reference(&[1.0; 12], 4, 3, 9).unwrap(),
            [0, 0, 0, 0]
        );
        assert_eq!(herding(&[], 0, 3, 5).unwrap(), [0; 0]);
    }

    #[test]
    fn invalid_features_are_refused() {
        let error = herding(&[0.0; 5], 2, 3, 1).unwrap_err();
        assert_eq!(
            error,
            RehearsalError::Shape {
                values: 5,
                rows: 2,
                columns: 3
            }
        );
        let error = herding(&[0.0, 0.0, 0.0, f32::NAN], 2, 2, 1).unwrap_err();
        assert_eq!(error, RehearsalError::NotFinite { row: 1, column: 1 });
    }

    #[test]
    fn quotas_follow_the_code_and_the_paper() {
        let quotas = |quota: Quota| [1, 2, 3, 11].map(|t| quota.new_set(10_000, t));
        assert_eq!(quotas(Quota::Reference), [10_000, 5_000, 6_667, 9_091]);
        assert_eq!(quotas(Quota::Fixed), [10_000, 5_000, 3_333, 909]);
        assert_eq!(first(50_000, 40_000).len(), REFERENCE_SCAN);
        assert_eq!(first(3, 10), [0, 1, 2]);
    }

    #[test]
    fn invalid_sets_leave_the_memory_unchanged() {
        let mut memory = RehearsalMemory::new(4, Quota::Fixed).unwrap();
        memory.add_task(0, 9, vec![8, 7, 6, 5]).unwrap();
        let before = memory.clone();
        assert_eq!(
            memory.add_task(0, 9, vec![]),
            Err(RehearsalError::Repeated { task: 0 })
        );
        let error = memory.add_task(1, 2, vec![2]).unwrap_err();
        assert_eq!(
            error,
            RehearsalError::OutOfRange {
                task: 1,
                index: 2,
                images: 2
            }
        );
        let error = memory.add_task(1, 5, vec![0, 1, 2]).unwrap_err();
        assert_eq!(
            error,
            RehearsalError::TooMany {
                task: 1,
                given: 3,
                room: 2
            }
        );
        assert_eq!(memory, before);
        assert!(RehearsalMemory::new(0, Quota::Fixed).is_err());
    }

    #[test]
    fn a_deserialised_memory_is_checked() {
        let mut memory = RehearsalMemory::new(4, Quota::Reference).unwrap();
        memory.add_task(2, 9, vec![8, 7]).unwrap();
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(
            serde_json::from_str::<RehearsalMemory>(&text).unwrap(),
            memory
        );
        for (from, to) in [
            ("\"images\":9", "\"images\":8"),
            ("\"budget\":4", "\"budget\":1"),
            ("\"budget\":4", "\"budget\":0"),
            ("\"task\"", "\"tasks\""),
        ] {
            assert!(text.contains(from), "{text}");
            let changed = text.replace(from, to);
            assert!(
                serde_json::from_str::<RehearsalMemory>(&changed).is_err(),
                "{changed}"
            );
        }
    }

    #[test]
    fn random_and_balanced_selections_are_functions_of_the_seed() {
        let drawn = random(100, 30, 1);
        assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), 30);
        assert_eq!(drawn, random(100, 30, 1));
        assert_ne!(drawn, random(100, 30, 2));
        assert_eq!(drawn[..10], random(100, 10, 1));
        assert_ne!(drawn, (0..30).collect::<Vec<_>>());

        // Classes of 50, 30, 15 and 5 images.
        let labels: Vec<usize> = (0..100)
            .map(|i| [50, 80, 95].iter().filter(|x| i >= **x).count())
            .collect();
        let chosen = balanced(&labels, 100, 1);
        assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), 100);
        for (cut, expected) in [(4, [1, 1, 1, 1]), (20, [5, 5, 5, 5]), (35, [10, 10, 10, 5])] {
            let mut counts = [0; 4];
            chosen[..cut].iter().for_each(|i| counts[labels[*i]] += 1);
            assert_eq!(counts, expected);
            assert_eq!(chosen[..cut], balanced(&labels, cut, 1));
        }
        assert_ne!(chosen, balanced(&labels, 100, 2));
    }
}

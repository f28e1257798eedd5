//! Which images of earlier tasks are kept for replay: iCaRL's memory, and the samples of experience
//! replay.
//!
//! Pure logic on features and indices. An image is a task and an index into that task's training
//! set. iCaRL as the MTIL benchmark runs it (ZSCL `mtil/src/dynamic_dataset.py` and
//! `mtil/src/models/icarl.py`) keeps a set for each dataset, not for each class, and selects by
//! herding (Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR
//! 2017).

use std::cmp::Ordering;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use mtil_data::seeds::derive;

/// Images that the published code looks at in a training set, from its start (`dynamic_dataset.py`,
/// `getNewDataset`).
pub const REFERENCE_SCAN: usize = 30_000;

/// Why a memory cannot be made or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExemplarError {
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
    /// A task is in the memory already.
    #[error("task {task} has exemplars already")]
    Repeated {
        /// The task.
        task: usize,
    },
    /// An index that is no image of the training set.
    #[error("task {task}: exemplar {index} is out of range: the training set has {images} images")]
    OutOfRange {
        /// The task.
        task: usize,
        /// The index.
        index: usize,
        /// Images of the training set.
        images: usize,
    },
    /// More exemplars than the new set may have.
    #[error("task {task}: {given} exemplars are more than the {room} that a new set may have")]
    TooMany {
        /// The task.
        task: usize,
        /// Exemplars given.
        given: usize,
        /// Exemplars allowed.
        room: usize,
    },
}

/// How many images a new set may have when there are `t ≥ 2` sets with it, of a budget of `K`
/// images. In both cases the older sets are cut to their first `⌊K/t⌋`, and the first set of all
/// may have `K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quota {
    /// `K − ⌊K/t⌋`, as in the published code (`dynamic_dataset.py:59-60`): from the third set on,
    /// the memory is larger than `K`.
    #[default]
    Reference,
    /// `⌊K/t⌋`, as in the paper: the memory never exceeds `K`.
    Fixed,
}

impl Quota {
    /// Images that set number `sets`, counted from 1, may have.
    pub fn new_set(self, budget: usize, sets: usize) -> usize {
        match (self, sets) {
            (_, 0 | 1) => budget,
            (Self::Reference, t) => budget - budget / t,
            (Self::Fixed, t) => budget / t,
        }
    }
}

/// The kept images of a task, the most wanted first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    task: usize,
    /// Images of the training set.
    images: usize,
    indices: Vec<usize>,
}

/// A memory of images of earlier tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Exemplars {
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

impl TryFrom<Unchecked> for Exemplars {
    type Error = ExemplarError;

    fn try_from(stored: Unchecked) -> Result<Self, ExemplarError> {
        let mut checked = Self::new(stored.budget, stored.quota)?;
        for set in stored.sets {
            checked.check(set.task, set.images, &set.indices, stored.budget)?;
            checked.sets.push(set);
        }
        Ok(checked)
    }
}

impl Exemplars {
    /// An empty memory for `budget` images.
    ///
    /// # Errors
    /// For a budget of 0.
    pub fn new(budget: usize, quota: Quota) -> Result<Self, ExemplarError> {
        if budget == 0 {
            return Err(ExemplarError::Zero {
                name: "exemplar budget",
            });
        }
        Ok(Self {
            budget,
            quota,
            sets: Vec::new(),
        })
    }

    /// The budget.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// How the budget is shared.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Images in the memory.
    pub fn len(&self) -> usize {
        self.sets.iter().map(|set| set.indices.len()).sum()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the images as `side × side` pixels of three `u8`. The published code keeps
    /// normalised `f32`, four times as much.
    pub fn bytes(&self, side: usize) -> u64 {
        let side = side as u64;
        (self.len() as u64).saturating_mul(side.saturating_mul(side).saturating_mul(3))
    }

    /// Task and index of every image, task by task.
    pub fn items(&self) -> Vec<(usize, usize)> {
        self.sets()
            .flat_map(|(task, indices)| indices.iter().map(move |index| (task, *index)))
            .collect()
    }

    /// Each task with its images, in the order of their arrival.
    pub fn sets(&self) -> impl Iterator<Item = (usize, &[usize])> {
        self.sets.iter().map(|set| (set.task, &set.indices[..]))
    }

    /// Images that the next set may have.
    pub fn room(&self) -> usize {
        self.quota.new_set(self.budget, self.sets.len() + 1)
    }

    /// Adds the set of a task and cuts the older ones to their first `⌊budget/t⌋` images, `t` sets
    /// with the new one.
    ///
    /// `chosen` are indices into the training set of `images` images, the most wanted first, at
    /// most [`room`](Self::room): from [`first`], [`herding`], [`herding_reference`], [`random`] or
    /// [`balanced`]. They may repeat, which those of [`herding_reference`] do.
    ///
    /// # Errors
    /// For a task that is there already, an index out of range, and too many indices; the memory is
    /// then unchanged.
    pub fn admit(
        &mut self,
        task: usize,
        images: usize,
        chosen: Vec<usize>,
    ) -> Result<(), ExemplarError> {
        self.check(task, images, &chosen, self.room())?;
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
    ) -> Result<(), ExemplarError> {
        if self.sets.iter().any(|set| set.task == task) {
            return Err(ExemplarError::Repeated { task });
        }
        if let Some(index) = chosen.iter().find(|index| **index >= images) {
            return Err(ExemplarError::OutOfRange {
                task,
                index: *index,
                images,
            });
        }
        if chosen.len() > room {
            return Err(ExemplarError::TooMany {
                task,
                given: chosen.len(),
                room,
            });
        }
        Ok(())
    }
}

/// The images of the first set of the published memory: the first `count` in dataset order, of at
/// most [`REFERENCE_SCAN`].
pub fn first(images: usize, count: usize) -> Vec<usize> {
    (0..count.min(images).min(REFERENCE_SCAN)).collect()
}

/// iCaRL's herding: pick after pick, the image that brings the mean of the picked features nearest
/// to the mean `μ` of all,
///
/// ```text
/// argmin over the rows x not picked yet of ‖μ − (Σ picked + x)/(k + 1)‖²        k picked so far
/// ```
///
/// of equal ones the first. Any number of first picks is thus a selection of its own, which makes
/// cutting a set simple.
///
/// `features` is row-major `[rows, columns]`, of unit length as in the published code. Gives
/// `min(count, rows)` rows in the order of the picks. Takes `rows · columns` multiplications a
/// pick, in `f64`.
///
/// # Errors
/// For a number of values that is not `rows · columns`, and for values that are not finite.
pub fn herding(
    features: &[f32],
    rows: usize,
    columns: usize,
    count: usize,
) -> Result<Vec<usize>, ExemplarError> {
    Ok(picks(features, rows, columns, count)?
        .into_iter()
        .map(|pick| pick.row)
        .collect())
}

/// Herding with the defect of the published code (`dynamic_dataset.py:65-80`): a picked row is
/// deleted from the features but not from the images, so each pick takes the image at the row's
/// position among the rows that are left. The result is mostly not the image that was picked, and
/// may repeat.
///
/// The features there are those of the first [`REFERENCE_SCAN`] images. Arguments and errors as for
/// [`herding`].
pub fn herding_reference(
    features: &[f32],
    rows: usize,
    columns: usize,
    count: usize,
) -> Result<Vec<usize>, ExemplarError> {
    Ok(picks(features, rows, columns, count)?
        .into_iter()
        .map(|pick| pick.position)
        .collect())
}

struct Pick {
    row: usize,
    /// The row's position among those not picked before it.
    position: usize,
}

fn picks(
    features: &[f32],
    rows: usize,
    columns: usize,
    count: usize,
) -> Result<Vec<Pick>, ExemplarError> {
    if rows.checked_mul(columns) != Some(features.len()) {
        return Err(ExemplarError::Shape {
            values: features.len(),
            rows,
            columns,
        });
    }
    if let Some(i) = features.iter().position(|x| !x.is_finite()) {
        return Err(ExemplarError::NotFinite {
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
    let squares: Vec<f64> = (0..rows)
        .map(|i| row(i).iter().map(|x| f64::from(*x).powi(2)).sum())
        .collect();

    let mut left: Vec<usize> = (0..rows).collect();
    // (k + 1)·μ − Σ picked. The squared distance is, but for terms and a factor that all rows
    // share, ‖x‖² − 2·x·wanted.
    let mut wanted = mean.clone();
    let mut picks = Vec::with_capacity(count.min(rows));
    while picks.len() < count && !left.is_empty() {
        let best = left
            .par_iter()
            .with_min_len(256)
            .enumerate()
            .map(|(position, i)| (squares[*i] - 2.0 * dot(row(*i), &wanted), position))
            .reduce_with(|a, b| match a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)) {
                Ordering::Greater => b,
                _ => a,
            });
        let Some((_, position)) = best else { break };
        let picked = left.remove(position);
        for ((w, m), x) in wanted.iter_mut().zip(&mean).zip(row(picked)) {
            *w += m - f64::from(*x);
        }
        picks.push(Pick {
            row: picked,
            position,
        });
    }
    Ok(picks)
}

/// In eight sums, which a processor adds side by side; the order is the same on every machine.
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

/// `min(count, images)` different images in a random order, a function of the seed.
pub fn random(images: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..images).collect();
    order.sort_by_cached_key(|index| (derive(seed, &[*index as u64]), *index));
    order.truncate(count);
    order
}

/// `min(count, labels.len())` different images, a function of the seed: one of each class, then a
/// second of each, and so on, the images of a class in a random order. The first images of a
/// selection are a selection of their own, so a set stays balanced when it is cut.
pub fn balanced(labels: &[usize], count: usize, seed: u64) -> Vec<usize> {
    let mut taken = std::collections::HashMap::new();
    let mut ranked: Vec<(usize, u64, usize)> = random(labels.len(), labels.len(), seed)
        .into_iter()
        .map(|index| {
            let rank = taken.entry(labels[index]).or_insert(0usize);
            *rank += 1;
            // Within a round, classes in a random order that does not depend on their number.
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
    fn three_tasks_keep_the_images_of_the_plain_formulas() {
        let reference: Reference =
            serde_json::from_str(include_str!("../testdata/exemplars.json")).unwrap();
        for (quota, stages) in [
            (Quota::Fixed, &reference.fixed),
            (Quota::Reference, &reference.reference),
        ] {
            let mut memory = Exemplars::new(reference.budget, quota).unwrap();
            for (t, (task, expected)) in reference.tasks.iter().zip(stages).enumerate() {
                let room = memory.room();
                let select = |f: fn(&[f32], usize, usize, usize) -> _| {
                    f(&task.features, task.rows, reference.columns, room)
                };
                let chosen: Result<Vec<usize>, ExemplarError> = match (quota, t) {
                    (Quota::Reference, 0) => Ok(first(task.rows, room)),
                    (Quota::Reference, _) => select(herding_reference),
                    (Quota::Fixed, _) => select(herding),
                };
                memory.admit(t, task.rows, chosen.unwrap()).unwrap();
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

    /// The picks of a memory that is large enough for several threads and for both parts of `dot`,
    /// against the formula as written.
    #[test]
    fn herding_is_the_formula() {
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
        // Fewer picks are the first of more.
        assert_eq!(herding(&features, rows, columns, 7).unwrap(), picked[..7]);
        // Where the defect leads.
        let wrong = herding_reference(&features, rows, columns, count).unwrap();
        for (k, position) in wrong.iter().enumerate() {
            let before = picked[..k].iter().filter(|i| **i < picked[k]).count();
            assert_eq!(position + before, picked[k]);
        }
    }

    #[test]
    fn equal_features_are_picked_in_order_and_all_images_when_asked_for_more() {
        assert_eq!(herding(&[1.0; 12], 4, 3, 9).unwrap(), [0, 1, 2, 3]);
        assert_eq!(
            herding_reference(&[1.0; 12], 4, 3, 9).unwrap(),
            [0, 0, 0, 0]
        );
        assert_eq!(herding(&[], 0, 3, 5).unwrap(), [0; 0]);
    }

    #[test]
    fn unusable_features_are_refused() {
        let error = herding(&[0.0; 5], 2, 3, 1).unwrap_err();
        assert_eq!(
            error,
            ExemplarError::Shape {
                values: 5,
                rows: 2,
                columns: 3
            }
        );
        let error = herding(&[0.0, 0.0, 0.0, f32::NAN], 2, 2, 1).unwrap_err();
        assert_eq!(error, ExemplarError::NotFinite { row: 1, column: 1 });
    }

    #[test]
    fn quotas_are_those_of_the_code_and_of_the_paper() {
        let quotas = |quota: Quota| [1, 2, 3, 11].map(|t| quota.new_set(10_000, t));
        assert_eq!(quotas(Quota::Reference), [10_000, 5_000, 6_667, 9_091]);
        assert_eq!(quotas(Quota::Fixed), [10_000, 5_000, 3_333, 909]);
        assert_eq!(first(50_000, 40_000).len(), REFERENCE_SCAN);
        assert_eq!(first(3, 10), [0, 1, 2]);
    }

    #[test]
    fn wrong_sets_leave_the_memory_as_it_was() {
        let mut memory = Exemplars::new(4, Quota::Fixed).unwrap();
        memory.admit(0, 9, vec![8, 7, 6, 5]).unwrap();
        let before = memory.clone();
        assert_eq!(
            memory.admit(0, 9, vec![]),
            Err(ExemplarError::Repeated { task: 0 })
        );
        let error = memory.admit(1, 2, vec![2]).unwrap_err();
        assert_eq!(
            error,
            ExemplarError::OutOfRange {
                task: 1,
                index: 2,
                images: 2
            }
        );
        let error = memory.admit(1, 5, vec![0, 1, 2]).unwrap_err();
        assert_eq!(
            error,
            ExemplarError::TooMany {
                task: 1,
                given: 3,
                room: 2
            }
        );
        assert_eq!(memory, before);
        assert!(Exemplars::new(0, Quota::Fixed).is_err());
    }

    #[test]
    fn a_stored_memory_is_checked() {
        let mut memory = Exemplars::new(4, Quota::Reference).unwrap();
        memory.admit(2, 9, vec![8, 7]).unwrap();
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Exemplars>(&text).unwrap(), memory);
        for (from, to) in [
            ("\"images\":9", "\"images\":8"),
            ("\"budget\":4", "\"budget\":1"),
            ("\"budget\":4", "\"budget\":0"),
            ("\"task\"", "\"tasks\""),
        ] {
            assert!(text.contains(from), "{text}");
            let changed = text.replace(from, to);
            assert!(
                serde_json::from_str::<Exemplars>(&changed).is_err(),
                "{changed}"
            );
        }
    }

    #[test]
    fn random_selections_follow_the_seed_and_balanced_ones_the_classes() {
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

//! Partition of rows and tasks over the threads of the rayon pool.

use rayon::prelude::*;
use std::ops::Range;

use super::simd::{AddTo, dispatch};

/// Smallest number of rows that is worth a part of its own.
const MIN_ROWS: usize = 16;

/// Rows of a part that reduces over its rows. Reductions are partitioned by constants and not by
/// the number of threads, so that results have the same bits on any number of threads.
const ROWS_PER_PARTIAL_SUM: usize = 256;

/// Largest number of partial sums of a reduction.
const MAX_PARTIAL_SUMS: usize = 8;

/// Returns the number of threads of the current pool.
pub(super) fn threads() -> usize {
    rayon::current_num_threads().max(1)
}

/// Divides `0..count` into `parts` ranges of nearly the same length.
pub(super) fn even_ranges(count: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    (0..parts).map(move |i| i * count / parts..(i + 1) * count / parts)
}

/// A partition of rows into consecutive ranges.
pub(super) struct Parts {
    pub(super) ranges: Vec<Range<usize>>,
    /// Number of threads each part may use.
    pub(super) threads: usize,
}

impl Parts {
    /// Partitions `rows`. Set `reduces` if each part keeps sums over its rows.
    pub(super) fn of_rows(rows: usize, reduces: bool) -> Self {
        let threads = threads();
        let parts = if reduces {
            (rows / ROWS_PER_PARTIAL_SUM).clamp(1, MAX_PARTIAL_SUMS)
        } else {
            (rows / MIN_ROWS).clamp(1, threads)
        };
        Self {
            ranges: even_ranges(rows, parts).collect(),
            threads: threads.div_ceil(parts),
        }
    }

    /// Moves each boundary of the partition back to the last of the sorted `bounds` before it.
    pub(super) fn align_to(mut self, bounds: &[usize]) -> Self {
        let mut start = 0;
        let last = self.ranges.len() - 1;
        for (i, range) in self.ranges.iter_mut().enumerate() {
            range.start = start;
            if i < last {
                range.end = bounds[bounds.partition_point(|b| *b <= range.end) - 1].max(start);
            }
            start = range.end;
        }
        self
    }

    /// Splits `values`, rows of `width`, into the rows of each part.
    pub(super) fn split<'a>(&self, values: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        split(values, self.ranges.iter().map(|range| range.len() * width))
    }
}

/// Splits `values` into consecutive slices of the given lengths.
pub(super) fn split<T>(
    mut values: &mut [T],
    lengths: impl Iterator<Item = usize>,
) -> Vec<&mut [T]> {
    lengths
        .map(|length| values.split_off_mut(..length).unwrap_or_default())
        .collect()
}

/// Runs `f` on every task in parallel, each as a job of its own. The results are in the order of the
/// tasks.
pub(super) fn run<T: Send, R: Send>(tasks: Vec<T>, f: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
    if tasks.len() == 1 {
        return tasks.into_iter().map(f).collect();
    }
    tasks.into_par_iter().with_max_len(1).map(f).collect()
}

/// Sums vectors of equal length, in their order. Returns `None` if there are none.
pub(super) fn sum(parts: Vec<Vec<f32>>) -> Option<Vec<f32>> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next()?;
    let rest: Vec<Vec<f32>> = parts.collect();
    if !rest.is_empty() {
        const CHUNK: usize = 1 << 14;
        sum.par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(i, total)| {
                for part in &rest {
                    let row = &part[i * CHUNK..i * CHUNK + total.len()];
                    dispatch(AddTo { total, row });
                }
            });
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_rows_once() {
        for threads in [1, 2, 3, 7, 12] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                for rows in [0, 1, 2, 17, 33, 64, 1000] {
                    for reduces in [false, true] {
                        let bounds = [0, rows / 3, rows / 2, rows];
                        let evenly = Parts::of_rows(rows, reduces);
                        let aligned = Parts::of_rows(rows, reduces).align_to(&bounds);
                        for range in &aligned.ranges {
                            assert!(bounds.contains(&range.start) && bounds.contains(&range.end));
                        }
                        for parts in [evenly, aligned] {
                            assert_eq!(parts.ranges[0].start, 0);
                            assert_eq!(parts.ranges[parts.ranges.len() - 1].end, rows);
                            assert!(parts.ranges.windows(2).all(|p| p[0].end == p[1].start));
                        }
                    }
                }
            });
        }
    }

    #[test]
    fn partition_of_reductions_is_independent_of_threads() {
        let ranges = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap()
                .install(|| [1, 300, 1000, 10_000].map(|rows| Parts::of_rows(rows, true).ranges))
        };
        assert_eq!(ranges(1)[2].len(), 3);
        for threads in [2, 3, 8, 20] {
            assert_eq!(ranges(1), ranges(threads));
        }
    }

    #[test]
    fn sum_adds_all_vectors() {
        let parts: Vec<Vec<f32>> = (0..3)
            .map(|p| (0..40_000).map(|i| (p * i) as f32).collect())
            .collect();
        let total = sum(parts).unwrap();
        assert!((0..40_000).all(|i| total[i] == (3 * i) as f32));
    }
}

//! How work is cut over the threads.

use rayon::prelude::*;
use std::ops::Range;

use super::simd::{AddTo, dispatch};

/// Fewer rows than these are not worth a part of their own.
const FEWEST_ROWS: usize = 16;

/// What is summed over rows is cut by these numbers and not by the threads, so that results have
/// the same bits on any number of threads: rows of a part, and parts that keep a sum each.
const ROWS_OF_SUM: usize = 256;
const MOST_SUMS: usize = 8;

/// The threads of the current pool.
pub(super) fn threads() -> usize {
    rayon::current_num_threads().max(1)
}

/// `count` things cut into `parts` of nearly the same size.
pub(super) fn even(count: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    (0..parts).map(move |i| i * count / parts..(i + 1) * count / parts)
}

/// Consecutive ranges of rows, one a part.
pub(super) struct Parts {
    pub(super) ranges: Vec<Range<usize>>,
    /// How many threads each part may use.
    pub(super) threads: usize,
}

impl Parts {
    /// Cuts `rows`; with `sums` each part holds sums over its rows.
    pub(super) fn of_rows(rows: usize, sums: bool) -> Self {
        let threads = threads();
        let parts = if sums {
            (rows / ROWS_OF_SUM).clamp(1, MOST_SUMS)
        } else {
            (rows / FEWEST_ROWS).clamp(1, threads)
        };
        Self {
            ranges: even(rows, parts).collect(),
            threads: threads.div_ceil(parts),
        }
    }

    /// Moves each cut back to the last of the sorted `bounds` before it.
    pub(super) fn at_bounds(mut self, bounds: &[usize]) -> Self {
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

    /// The rows of each part, `width` values a row.
    pub(super) fn split<'a>(&self, values: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        split(values, self.ranges.iter().map(|range| range.len() * width))
    }
}

/// Consecutive slices of the given lengths.
pub(super) fn split<T>(
    mut values: &mut [T],
    lengths: impl Iterator<Item = usize>,
) -> Vec<&mut [T]> {
    lengths
        .map(|length| values.split_off_mut(..length).unwrap_or_default())
        .collect()
}

/// Runs `f` on every task, each on a thread of its own while there are any; the results are in the
/// order of the tasks.
pub(super) fn run<T: Send, R: Send>(tasks: Vec<T>, f: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
    if tasks.len() == 1 {
        return tasks.into_iter().map(f).collect();
    }
    tasks.into_par_iter().with_max_len(1).map(f).collect()
}

/// The sum of equally long vectors, in their order.
pub(super) fn total(parts: Vec<Vec<f32>>) -> Option<Vec<f32>> {
    let mut parts = parts.into_iter();
    let mut total = parts.next()?;
    let rest: Vec<Vec<f32>> = parts.collect();
    if !rest.is_empty() {
        const SPAN: usize = 1 << 14;
        total
            .par_chunks_mut(SPAN)
            .enumerate()
            .for_each(|(i, total)| {
                for part in &rest {
                    let row = &part[i * SPAN..i * SPAN + total.len()];
                    dispatch(AddTo { total, row });
                }
            });
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        for threads in [1, 2, 3, 7, 12] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                for rows in [0, 1, 2, 17, 33, 64, 1000] {
                    for sums in [false, true] {
                        let bounds = [0, rows / 3, rows / 2, rows];
                        let even = Parts::of_rows(rows, sums);
                        let moved = Parts::of_rows(rows, sums).at_bounds(&bounds);
                        for range in &moved.ranges {
                            assert!(bounds.contains(&range.start) && bounds.contains(&range.end));
                        }
                        for parts in [even, moved] {
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
    fn sums_are_cut_alike_by_any_number_of_threads() {
        let cuts = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap()
                .install(|| [1, 300, 1000, 10_000].map(|rows| Parts::of_rows(rows, true).ranges))
        };
        assert_eq!(cuts(1)[2].len(), 3);
        for threads in [2, 3, 8, 20] {
            assert_eq!(cuts(1), cuts(threads));
        }
    }

    #[test]
    fn totals_are_sums() {
        let parts: Vec<Vec<f32>> = (0..3)
            .map(|p| (0..40_000).map(|i| (p * i) as f32).collect())
            .collect();
        let total = total(parts).unwrap();
        assert!((0..40_000).all(|i| total[i] == (3 * i) as f32));
    }
}

//! Memory for results and scratch memory.
//!
//! Results are made where the threads are called from, and clearing them there would keep the
//! threads waiting; scratch memory is cleared once and then used again. Where matrices are small
//! both show in a profile (`BENCHMARKS.md`, the embedded suite).

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use faer::{MatMut, MatRef};
use rayon::prelude::*;

use super::{
    parts::threads,
    product::{matrix, matrix_mut},
};

/// Values that are written at once.
const SPAN: usize = 16;

/// From this many values on, the threads share the writing.
const SHARED: usize = 1 << 15;

/// Zeros, for a result.
pub(super) fn zeros(len: usize) -> Vec<f32> {
    if !len.is_multiple_of(SPAN) || !is_shared(len) {
        return vec![0.0; len];
    }
    let spans = rayon::iter::repeat_n([0.0; SPAN], len / SPAN);
    let spans: Vec<[f32; SPAN]> = spans.with_min_len(SHARED / SPAN / 2).collect();
    spans.into_flattened()
}

/// A copy, to become a result.
pub(super) fn copy(values: &[f32]) -> Vec<f32> {
    let (spans, rest) = values.as_chunks::<SPAN>();
    if !rest.is_empty() || !is_shared(values.len()) {
        return values.to_vec();
    }
    let spans = spans.par_iter().with_min_len(SHARED / SPAN / 2).copied();
    spans.collect::<Vec<_>>().into_flattened()
}

fn is_shared(len: usize) -> bool {
    len >= SHARED && threads() > 1
}

/// A thread keeps no more buffers than these.
const MOST_SPARE: usize = 8;

/// Nor larger ones, in values: those of many threads together would be felt.
const LARGEST_SPARE: usize = 1 << 21;

thread_local! {
    /// The scratch memory that this thread does not use at the moment.
    static SPARE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Scratch memory, which holds anything at first.
pub(super) struct Scratch {
    values: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// `len` values: in the smallest spare buffer that is large enough, or in a new one, which
    /// takes the place of the largest.
    pub(super) fn new(len: usize) -> Self {
        if len == 0 {
            let values = Vec::new();
            return Self { values, len };
        }
        let spare = SPARE.with_borrow_mut(|spare| {
            let by_len = |i: &usize| spare[*i].len();
            let enough = (0..spare.len()).filter(|i| spare[*i].len() >= len);
            let at = enough.min_by_key(by_len);
            let at = at.or_else(|| (0..spare.len()).max_by_key(by_len))?;
            Some(spare.swap_remove(at))
        });
        let mut values = spare
            .filter(|values| values.len() >= len)
            .unwrap_or_else(|| vec![0.0; len]);
        if cfg!(test) {
            // Nothing may be read that was not written.
            values.fill(f32::NAN);
        }
        Self { values, len }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        // A thread that is ending keeps none.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if (1..=LARGEST_SPARE).contains(&values.len()) && spare.len() < MOST_SPARE {
                spare.push(values);
            }
        });
    }
}

/// Rows of scratch memory. Their distance avoids multiples of a page, which fall on the same few
/// lines of a cache when a product walks down a column.
pub(super) struct Rows {
    values: Scratch,
    width: usize,
    stride: usize,
}

impl Rows {
    pub(super) fn new(rows: usize, width: usize) -> Self {
        let stride = if width.is_multiple_of(128) {
            width + 16
        } else {
            width
        };
        Self {
            values: Scratch::new(rows * stride),
            width,
            stride,
        }
    }

    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.stride..][..self.width]
    }

    pub(super) fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.values[index * self.stride..][..self.width]
    }

    /// The first `rows` rows.
    pub(super) fn first(&self, rows: usize) -> MatRef<'_, f32> {
        let values = &self.values[..rows * self.stride];
        matrix(values, rows, self.stride).subcols(0, self.width)
    }

    /// The first `rows` rows.
    pub(super) fn first_mut(&mut self, rows: usize) -> MatMut<'_, f32> {
        let values = &mut self.values[..rows * self.stride];
        // Not `from_row_major_slice_with_stride_mut`: faer 0.24.4 swaps the strides there, and
        // writes out of bounds.
        matrix_mut(values, rows, self.stride).subcols_mut(0, self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_what_they_are_made_of_whoever_writes_them() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                for len in [
                    0,
                    5,
                    SPAN,
                    SHARED - SPAN,
                    SHARED,
                    SHARED + 1,
                    9 * SHARED + SPAN,
                ] {
                    assert_eq!(zeros(len), vec![0.0; len]);
                    let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
                    assert_eq!(copy(&values), values);
                }
            });
        }
    }

    #[test]
    fn scratch_memory_is_used_again() {
        // A thread of its own: others' tests leave theirs.
        let thread = std::thread::spawn(|| {
            let place = |rows: &Rows| rows.values.as_ptr();
            let (small, large) = (Rows::new(4, 8), Rows::new(400, 8));
            let (at_small, at_large) = (place(&small), place(&large));
            drop((small, large));
            let (first, second) = (Rows::new(3, 8), Rows::new(4, 8));
            assert_eq!(place(&first), at_small);
            assert_eq!(place(&second), at_large);
            drop((first, second));
            // Larger than both: in place of the largest.
            drop(Rows::new(500, 8));
            let kept = SPARE.with_borrow(|spare| spare.iter().map(Vec::len).collect::<Vec<_>>());
            assert_eq!(kept, [4 * 8, 500 * 8]);
            drop(Rows::new(LARGEST_SPARE / 8 + 1, 8));
            assert_eq!(SPARE.with_borrow(Vec::len), 1);
        });
        thread.join().unwrap();
    }
}

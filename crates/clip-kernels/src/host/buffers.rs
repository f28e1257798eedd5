//! Allocation of results, and pooled scratch memory.
//!
//! The thread that calls a kernel allocates its result, and the others would wait while it clears a
//! large one. Scratch memory is cleared once and then reused. With small matrices both show in a
//! profile (`docs/contributing/performance.md`, the embedded suite).

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

/// Values of a block that a thread writes at once.
const BLOCK: usize = 16;

/// Smallest number of values that several threads initialize.
const MIN_PARALLEL: usize = 1 << 15;

/// Returns `len` zeros.
pub(super) fn zeros(len: usize) -> Vec<f32> {
    if !len.is_multiple_of(BLOCK) || !is_parallel(len) {
        return vec![0.0; len];
    }
    let blocks = rayon::iter::repeat_n([0.0; BLOCK], len / BLOCK);
    let blocks: Vec<[f32; BLOCK]> = blocks.with_min_len(MIN_PARALLEL / BLOCK / 2).collect();
    blocks.into_flattened()
}

/// Returns a copy of `values`.
pub(super) fn copy(values: &[f32]) -> Vec<f32> {
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    if !rest.is_empty() || !is_parallel(values.len()) {
        return values.to_vec();
    }
    let blocks = blocks
        .par_iter()
        .with_min_len(MIN_PARALLEL / BLOCK / 2)
        .copied();
    blocks.collect::<Vec<_>>().into_flattened()
}

fn is_parallel(len: usize) -> bool {
    len >= MIN_PARALLEL && threads() > 1
}

/// Largest number of buffers that a thread keeps.
const MAX_POOLED: usize = 8;

/// Largest buffer, in values, that a thread keeps. Larger ones on many threads would take too much
/// memory.
const MAX_POOLED_LEN: usize = 1 << 21;

thread_local! {
    /// The unused scratch buffers of this thread.
    static POOL: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A scratch buffer from the pool of the thread, with unspecified initial values.
pub(super) struct Scratch {
    values: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// Takes `len` values from the smallest pooled buffer that is large enough. Without one,
    /// allocates a buffer, which replaces the largest of the pool.
    pub(super) fn new(len: usize) -> Self {
        if len == 0 {
            let values = Vec::new();
            return Self { values, len };
        }
        let pooled = POOL.with_borrow_mut(|pool| {
            let by_len = |i: &usize| pool[*i].len();
            let fitting = (0..pool.len()).filter(|i| pool[*i].len() >= len);
            let index = fitting.min_by_key(by_len);
            let index = index.or_else(|| (0..pool.len()).max_by_key(by_len))?;
            Some(pool.swap_remove(index))
        });
        let mut values = pooled
            .filter(|values| values.len() >= len)
            .unwrap_or_else(|| vec![0.0; len]);
        if cfg!(test) {
            // Catches reads of values that were never written.
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
        // The pool is gone while the thread ends.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if (1..=MAX_POOLED_LEN).contains(&values.len()) && pool.len() < MAX_POOLED {
                pool.push(values);
            }
        });
    }
}

/// Stride, in values, that maps the entries of a column to few cache sets when a product walks down
/// it. Rows whose width is a multiple get [`ROW_PADDING`].
const CONFLICT_STRIDE: usize = 128;

/// Padding, in values, behind a row.
const ROW_PADDING: usize = 16;

/// A scratch matrix with padded rows.
pub(super) struct ScratchRows {
    values: Scratch,
    width: usize,
    stride: usize,
}

impl ScratchRows {
    pub(super) fn new(rows: usize, width: usize) -> Self {
        let stride = if width.is_multiple_of(CONFLICT_STRIDE) {
            width + ROW_PADDING
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

    /// Returns the first `rows` rows.
    pub(super) fn first_rows(&self, rows: usize) -> MatRef<'_, f32> {
        let values = &self.values[..rows * self.stride];
        matrix(values, rows, self.stride).subcols(0, self.width)
    }

    /// Returns the first `rows` rows, mutably.
    pub(super) fn first_rows_mut(&mut self, rows: usize) -> MatMut<'_, f32> {
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
    fn zeros_and_copies_are_independent_of_threads() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                for len in [
                    0,
                    5,
                    BLOCK,
                    MIN_PARALLEL - BLOCK,
                    MIN_PARALLEL,
                    MIN_PARALLEL + 1,
                    9 * MIN_PARALLEL + BLOCK,
                ] {
                    assert_eq!(zeros(len), vec![0.0; len]);
                    let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
                    assert_eq!(copy(&values), values);
                }
            });
        }
    }

    #[test]
    fn scratch_buffers_are_reused() {
        // On a thread of its own: other tests leave buffers in the pool of theirs.
        let thread = std::thread::spawn(|| {
            let address = |rows: &ScratchRows| rows.values.as_ptr();
            let (small, large) = (ScratchRows::new(4, 8), ScratchRows::new(400, 8));
            let (at_small, at_large) = (address(&small), address(&large));
            drop((small, large));
            let (first, second) = (ScratchRows::new(3, 8), ScratchRows::new(4, 8));
            assert_eq!(address(&first), at_small);
            assert_eq!(address(&second), at_large);
            drop((first, second));
            // Larger than both: replaces the largest.
            drop(ScratchRows::new(500, 8));
            let kept = POOL.with_borrow(|pool| pool.iter().map(Vec::len).collect::<Vec<_>>());
            assert_eq!(kept, [4 * 8, 500 * 8]);
            drop(ScratchRows::new(MAX_POOLED_LEN / 8 + 1, 8));
            assert_eq!(POOL.with_borrow(Vec::len), 1);
        });
        thread.join().unwrap();
    }
}

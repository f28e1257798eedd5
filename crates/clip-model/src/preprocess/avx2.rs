//! The two passes of resampling for 8-bit samples with AVX2, through `pulp`'s safe wrappers of the
//! instructions.
//!
//! Samples are taken in pairs, 16 bits each, for the instruction that multiplies pairs and adds the
//! products (`vpmaddwd`). Weights have more bits than that, so a weight is `high * 2048 + low` and
//! its two parts have sums of their own; integer sums are exact in any order, so the results are
//! those of the plain loops.
//!
//! Along columns, a pair is of two rows, and neighbouring samples of them are the lanes. Along
//! rows, a pair is of two pixels, and eight rows are the lanes: their bytes are transposed in
//! blocks, and transposed back afterwards.

use std::arch::x86_64::{__m128i, __m256i};
use std::ops::Range;

use pulp::{cast, x86::V3};

use super::raster::{PRECISION_BITS, Raster, Taps};

/// Rows at once.
const LANES: usize = 8;
/// Blocks of 8 x 8 bytes that are transposed together.
const BLOCKS: usize = 4;
/// Bytes of a row that a transposition takes, and columns at once.
const BYTES: usize = LANES * BLOCKS;
/// Bits of the lower part of a weight.
const LOW_BITS: i32 = 11;

/// Byte r of a column of eight rows is that of row r.
type Column = u64;

/// Two neighbouring weights, each as its two parts.
#[derive(Clone, Copy)]
struct Pair {
    low: i32,
    high: i32,
}

impl Pair {
    fn of(weights: &[i32]) -> Self {
        let second = weights.get(1).copied().unwrap_or(0);
        let join = |a: i32, b: i32| (a & 0xffff) | (b << 16);
        let low = |w: i32| w & ((1 << LOW_BITS) - 1);
        Self {
            low: join(low(weights[0]), low(second)),
            high: join(weights[0] >> LOW_BITS, second >> LOW_BITS),
        }
    }
}

fn pairs(taps: &[Taps<i32>]) -> Vec<Pair> {
    let chunks = taps.iter().flat_map(|t| t.weights.chunks(2));
    chunks.map(Pair::of).collect()
}

/// Sums for eight lanes, of the lower and the higher parts of the weights.
#[derive(Clone, Copy)]
struct Sums {
    low: __m256i,
    high: __m256i,
}

impl Sums {
    #[inline(always)]
    fn new(simd: V3) -> Self {
        Self {
            low: simd.avx._mm256_set1_epi32(1 << (PRECISION_BITS - 1)),
            high: simd.avx._mm256_setzero_si256(),
        }
    }

    /// Adds eight pairs of bytes, weighted.
    #[inline(always)]
    fn add(&mut self, simd: V3, bytes: __m128i, low: __m256i, high: __m256i) {
        let values = simd.avx2._mm256_cvtepu8_epi16(bytes);
        let products = simd.avx2._mm256_madd_epi16(values, low);
        self.low = simd.avx2._mm256_add_epi32(self.low, products);
        let products = simd.avx2._mm256_madd_epi16(values, high);
        self.high = simd.avx2._mm256_add_epi32(self.high, products);
    }

    /// The sums as samples, in the order of the lanes.
    #[inline(always)]
    fn round(self, simd: V3) -> u64 {
        let high = simd.avx2._mm256_slli_epi32::<LOW_BITS>(self.high);
        let sum = simd.avx2._mm256_add_epi32(self.low, high);
        let whole = simd
            .avx2
            ._mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(sum);
        let (first, second) = (
            simd.avx._mm256_castsi256_si128(whole),
            simd.avx2._mm256_extracti128_si256::<1>(whole),
        );
        // Both packings saturate, which is the clamp to 0..=255.
        let words = simd.sse2._mm_packs_epi32(first, second);
        let [bytes, _]: [u64; 2] = cast(simd.sse2._mm_packus_epi16(words, words));
        bytes
    }
}

/// The given rows, each resampled to as many pixels as there are taps; pixels of `C` samples.
/// Nothing where the processor has no AVX2.
pub(super) fn along_rows<const C: usize>(
    image: &Raster<'_, u8>,
    rows: Range<usize>,
    taps: &[Taps<i32>],
) -> Option<Vec<u8>> {
    let simd = V3::try_new()?;
    Some(simd.vectorize(
        #[inline(always)]
        || rows_with::<C>(simd, image, rows, taps),
    ))
}

#[inline(always)]
fn rows_with<const C: usize>(
    simd: V3,
    image: &Raster<'_, u8>,
    rows: Range<usize>,
    taps: &[Taps<i32>],
) -> Vec<u8> {
    let width = taps.len() * C;
    let mut data = vec![0; rows.len() * width];
    let first = taps.iter().map(|t| t.first).min().unwrap_or(0) * C;
    let end = taps.iter().map(|t| t.first + t.weights.len()).max();
    let end = end.unwrap_or(0) * C;
    if width == 0 || first >= end {
        return data;
    }
    let pairs = pairs(taps);
    // The last pair may reach a pixel too far, with a weight of 0.
    let mut read = vec![0; (end - first + C).next_multiple_of(BYTES)];
    let mut made = vec![0; width.next_multiple_of(BYTES)];
    for (y, out) in rows.step_by(LANES).zip(data.chunks_mut(LANES * width)) {
        // Behind the last row it is repeated; what comes of that is not stored.
        let last = y + out.len() / width - 1;
        let from: [&[u8]; LANES] =
            std::array::from_fn(|r| &image.row((y + r).min(last))[first..end]);
        gather(from, &mut read);
        let mut rest = pairs.as_slice();
        for (t, made) in taps.iter().zip(made.as_chunks_mut::<C>().0) {
            let (now, later) = rest.split_at(t.weights.len().div_ceil(2));
            rest = later;
            let mut sums = [Sums::new(simd); C];
            let columns = read[t.first * C - first..].as_chunks::<C>().0;
            for (columns, pair) in columns.as_chunks::<2>().0.iter().zip(now) {
                let low = simd.avx._mm256_set1_epi32(pair.low);
                let high = simd.avx._mm256_set1_epi32(pair.high);
                for c in 0..C {
                    let bytes = simd
                        .sse2
                        ._mm_unpacklo_epi8(cast([columns[0][c], 0]), cast([columns[1][c], 0]));
                    sums[c].add(simd, bytes, low, high);
                }
            }
            for c in 0..C {
                made[c] = sums[c].round(simd);
            }
        }
        scatter(&made, out, width);
    }
    data
}

/// The samples `read` of each row, resampled to as many rows as there are taps. Nothing where the
/// processor has no AVX2.
pub(super) fn along_columns(
    image: &Raster<'_, u8>,
    read: Range<usize>,
    taps: &[Taps<i32>],
) -> Option<Vec<u8>> {
    let simd = V3::try_new()?;
    Some(simd.vectorize(
        #[inline(always)]
        || columns_with(simd, image, read, taps),
    ))
}

#[inline(always)]
fn columns_with(
    simd: V3,
    image: &Raster<'_, u8>,
    read: Range<usize>,
    taps: &[Taps<i32>],
) -> Vec<u8> {
    let width = read.len();
    let mut data = vec![0; width * taps.len()];
    if width == 0 {
        return data;
    }
    let pairs = pairs(taps);
    let mut rest = pairs.as_slice();
    let mut weighted = Vec::new();
    for (t, out) in taps.iter().zip(data.chunks_exact_mut(width)) {
        let (now, later) = rest.split_at(t.weights.len().div_ceil(2));
        rest = later;
        let last = (t.first + t.weights.len()).saturating_sub(1);
        weighted.clear();
        weighted.extend((t.first..).step_by(2).zip(now).map(|(y, pair)| {
            // The last pair may lack its second row, which has a weight of 0 then.
            let rows = [y, (y + 1).min(last)].map(|y| &image.row(y)[read.clone()]);
            let parts = [pair.low, pair.high];
            (rows, parts.map(|part| simd.avx._mm256_set1_epi32(part)))
        }));
        for (i, out) in out.chunks_mut(BYTES).enumerate() {
            let mut sums = [Sums::new(simd); BLOCKS];
            for ([upper, lower], [low, high]) in &weighted {
                let upper: [__m128i; 2] = cast(padded(&upper[i * BYTES..]));
                let lower: [__m128i; 2] = cast(padded(&lower[i * BYTES..]));
                for h in 0..2 {
                    let bytes = simd.sse2._mm_unpacklo_epi8(upper[h], lower[h]);
                    sums[2 * h].add(simd, bytes, *low, *high);
                    let bytes = simd.sse2._mm_unpackhi_epi8(upper[h], lower[h]);
                    sums[2 * h + 1].add(simd, bytes, *low, *high);
                }
            }
            let bytes: [u8; BYTES] = cast(sums.map(|s| s.round(simd)));
            match out.first_chunk_mut() {
                Some(whole) => *whole = bytes,
                None => out.copy_from_slice(&bytes[..out.len()]),
            }
        }
    }
    data
}

/// The first 32 bytes, with zeros behind them where there are fewer.
#[inline(always)]
fn padded(bytes: &[u8]) -> [u8; BYTES] {
    match bytes.first_chunk() {
        Some(whole) => *whole,
        None => {
            let mut padded = [0; BYTES];
            padded[..bytes.len()].copy_from_slice(bytes);
            padded
        }
    }
}

/// Byte r of column i becomes byte i of row r.
#[inline(always)]
fn gather(rows: [&[u8]; LANES], columns: &mut [Column]) {
    for (i, columns) in columns.as_chunks_mut::<BYTES>().0.iter_mut().enumerate() {
        let mut block = rows.map(|row| {
            let bytes = padded(&row[(i * BYTES).min(row.len())..]);
            let words = bytes.as_chunks().0;
            std::array::from_fn(|b| u64::from_le_bytes(words[b]))
        });
        transpose(&mut block);
        for (b, columns) in columns.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            *columns = block.map(|words| words[b]);
        }
    }
}

/// The way back: byte i of row r becomes byte r of column i. `out` holds at most eight rows of
/// `width` bytes.
#[inline(always)]
fn scatter(columns: &[Column], out: &mut [u8], width: usize) {
    for (i, columns) in columns.as_chunks::<BYTES>().0.iter().enumerate() {
        let mut block = std::array::from_fn(|r| std::array::from_fn(|b| columns[b * LANES + r]));
        transpose(&mut block);
        for (row, words) in out.chunks_exact_mut(width).zip(&block) {
            let part = &mut row[i * BYTES..];
            match part.first_chunk_mut::<BYTES>() {
                Some(to) => {
                    for (to, word) in to.as_chunks_mut().0.iter_mut().zip(words) {
                        *to = word.to_le_bytes();
                    }
                }
                None => {
                    for (to, from) in part
                        .iter_mut()
                        .zip(words.iter().flat_map(|w| w.to_le_bytes()))
                    {
                        *to = from;
                    }
                }
            }
        }
    }
}

/// Transposes 8 x 8 bytes, word r being row r, in each of the blocks: first quarters of 4 x 4
/// change places, then of 2 x 2, then single bytes (H. S. Warren, Hacker's Delight, 2nd edition,
/// section 7-3, there with bits).
#[inline(always)]
fn transpose(block: &mut [[u64; BLOCKS]; LANES]) {
    for (distance, mask) in [
        (4, 0x0000_0000_ffff_ffff_u64),
        (2, 0x0000_ffff_0000_ffff),
        (1, 0x00ff_00ff_00ff_00ff),
    ] {
        for r in (0..LANES).filter(|r| r & distance == 0) {
            let (upper, lower) = (block[r], block[r + distance]);
            let swapped: [u64; BLOCKS] =
                std::array::from_fn(|b| ((upper[b] >> (8 * distance)) ^ lower[b]) & mask);
            block[r] = std::array::from_fn(|b| upper[b] ^ (swapped[b] << (8 * distance)));
            block[r + distance] = std::array::from_fn(|b| lower[b] ^ swapped[b]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::resample::plain;
    use super::*;

    /// Bytes without a pattern, and taps of changing number at changing places.
    fn noise(width: usize, height: usize, channels: usize) -> Raster<'static, u8> {
        let mut state = 1_u64;
        let data = (0..width * height * channels)
            .map(|_| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        Raster {
            width: width as u32,
            height: height as u32,
            channels,
            data,
        }
    }

    fn taps(input: usize, output: usize) -> Vec<Taps<i32>> {
        (0..output)
            .map(|i| {
                let first = i * 7 % input;
                let weights = (0..(input - first).min(1 + i % 9))
                    .map(|k| (k as i32 - 2) * 700_001 + i as i32 * 1001)
                    .collect();
                Taps { first, weights }
            })
            .collect()
    }

    #[test]
    fn transposing_swaps_bytes_and_twice_is_nothing() {
        let original: [[u64; BLOCKS]; LANES] = std::array::from_fn(|r| {
            std::array::from_fn(|b| {
                u64::from_le_bytes(std::array::from_fn(|i| (r * 64 + b * 8 + i) as u8))
            })
        });
        let mut block = original;
        transpose(&mut block);
        for r in 0..LANES {
            for b in 0..BLOCKS {
                for i in 0..LANES {
                    let byte = |m: &[[u64; BLOCKS]; LANES], r: usize, i| m[r][b].to_le_bytes()[i];
                    assert_eq!(byte(&block, r, i), byte(&original, i, r));
                }
            }
        }
        transpose(&mut block);
        assert_eq!(block, original);
    }

    #[test]
    fn both_passes_equal_the_plain_loops_at_every_width_and_height() {
        fn check<const C: usize>() {
            for (width, height) in [(1, 1), (3, 7), (10, 8), (11, 9), (40, 16), (57, 23)] {
                let image = noise(width, height, C);
                for output in [1, 2, 10, 11, 33, 64] {
                    let across = taps(width, output);
                    for rows in [0..height, height / 2..height, 0..0] {
                        let fast = along_rows::<C>(&image, rows.clone(), &across).unwrap();
                        assert_eq!(fast, plain::along_rows::<u8, C>(&image, rows, &across));
                    }
                    let down = taps(height, output);
                    for columns in [0..width, width / 3..width] {
                        let read = columns.start * C..columns.end * C;
                        let fast = along_columns(&image, read.clone(), &down).unwrap();
                        assert_eq!(fast, plain::along_columns(&image, read, &down));
                    }
                }
            }
        }
        check::<1>();
        check::<2>();
        check::<3>();
        check::<4>();
    }
}

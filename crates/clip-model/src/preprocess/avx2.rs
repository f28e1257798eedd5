//! AVX2 resampling of 8-bit samples, through the safe intrinsics of `pulp`.
//!
//! Samples are processed in pairs of 16 bits, for the instruction that multiplies pairs and adds
//! the products (`vpmaddwd`). Weights have more than 16 bits, so a weight is split into
//! `high * 2048 + low`, and each part has a sum of its own. Integer sums are exact in any order, so
//! the results equal those of the scalar loops.
//!
//! In the vertical pass a pair comes from two rows, and the lanes are neighbouring samples. In the
//! horizontal pass a pair comes from two pixels, and the lanes are eight rows: their bytes are
//! transposed in blocks before, and transposed back afterwards.

use std::arch::x86_64::{__m128i, __m256i};
use std::ops::Range;

use pulp::{cast, x86::V3};

use super::raster::{PRECISION_BITS, Raster, Taps};

/// Rows per step of the horizontal pass: the lanes of a 256-bit vector of `i32`.
const LANES: usize = 8;
/// Blocks of 8 × 8 bytes that are transposed together.
const BLOCKS: usize = 4;
/// Bytes of a row per transposition, and columns per step of the vertical pass.
const BYTES: usize = LANES * BLOCKS;
/// Bits of the low part of a weight.
const LOW_BITS: i32 = 11;

/// One byte of each of eight rows; byte `r` is that of row `r`.
type Column = u64;

/// Two neighbouring weights, each split into a low and a high part.
#[derive(Clone, Copy)]
struct WeightPair {
    low: i32,
    high: i32,
}

impl WeightPair {
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

fn weight_pairs(taps: &[Taps<i32>]) -> Vec<WeightPair> {
    let chunks = taps.iter().flat_map(|t| t.weights.chunks(2));
    chunks.map(WeightPair::of).collect()
}

/// Sums of eight lanes, separately for the low and the high parts of the weights.
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

    /// Adds eight weighted pairs of bytes.
    #[inline(always)]
    fn add(&mut self, simd: V3, bytes: __m128i, low: __m256i, high: __m256i) {
        let values = simd.avx2._mm256_cvtepu8_epi16(bytes);
        let products = simd.avx2._mm256_madd_epi16(values, low);
        self.low = simd.avx2._mm256_add_epi32(self.low, products);
        let products = simd.avx2._mm256_madd_epi16(values, high);
        self.high = simd.avx2._mm256_add_epi32(self.high, products);
    }

    /// Rounds the sums to samples, in the order of the lanes.
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
        // Both pack instructions saturate, which clamps to 0..=255.
        let words = simd.sse2._mm_packs_epi32(first, second);
        let [bytes, _]: [u64; 2] = cast(simd.sse2._mm_packus_epi16(words, words));
        bytes
    }
}

/// Resamples the given rows to one pixel per entry of `taps`; a pixel has `C` samples. Returns
/// `None` if the processor has no AVX2.
pub(super) fn horizontal_pass<const C: usize>(
    image: &Raster<'_, u8>,
    rows: Range<usize>,
    taps: &[Taps<i32>],
) -> Option<Vec<u8>> {
    let simd = V3::try_new()?;
    Some(simd.vectorize(
        #[inline(always)]
        || horizontal_with::<C>(simd, image, rows, taps),
    ))
}

#[inline(always)]
fn horizontal_with<const C: usize>(
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
    let weight_pairs = weight_pairs(taps);
    // The last pair may read one pixel past the end, with weight 0.
    let mut input = vec![0; (end - first + C).next_multiple_of(BYTES)];
    let mut output = vec![0; width.next_multiple_of(BYTES)];
    for (y, out) in rows.step_by(LANES).zip(data.chunks_mut(LANES * width)) {
        // The last row fills unused lanes; their results are not stored.
        let last = y + out.len() / width - 1;
        let from: [&[u8]; LANES] =
            std::array::from_fn(|r| &image.row((y + r).min(last))[first..end]);
        load_transposed(from, &mut input);
        let mut rest = weight_pairs.as_slice();
        for (t, output) in taps.iter().zip(output.as_chunks_mut::<C>().0) {
            let (current, later) = rest.split_at(t.weights.len().div_ceil(2));
            rest = later;
            let mut sums = [Sums::new(simd); C];
            let columns = input[t.first * C - first..].as_chunks::<C>().0;
            for (columns, pair) in columns.as_chunks::<2>().0.iter().zip(current) {
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
                output[c] = sums[c].round(simd);
            }
        }
        store_transposed(&output, out, width);
    }
    data
}

/// Resamples the samples `read` of each row to one row per entry of `taps`. Returns `None` if the
/// processor has no AVX2.
pub(super) fn vertical_pass(
    image: &Raster<'_, u8>,
    read: Range<usize>,
    taps: &[Taps<i32>],
) -> Option<Vec<u8>> {
    let simd = V3::try_new()?;
    Some(simd.vectorize(
        #[inline(always)]
        || vertical_with(simd, image, read, taps),
    ))
}

#[inline(always)]
fn vertical_with(
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
    let weight_pairs = weight_pairs(taps);
    let mut rest = weight_pairs.as_slice();
    let mut weighted = Vec::new();
    for (t, out) in taps.iter().zip(data.chunks_exact_mut(width)) {
        let (current, later) = rest.split_at(t.weights.len().div_ceil(2));
        rest = later;
        let last = (t.first + t.weights.len()).saturating_sub(1);
        weighted.clear();
        weighted.extend((t.first..).step_by(2).zip(current).map(|(y, pair)| {
            // The last pair may lack a second row; its weight is then 0.
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

/// Returns the first 32 bytes, padded with zeros.
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

/// Transposes rows to columns: byte `i` of row `r` becomes byte `r` of column `i`.
#[inline(always)]
fn load_transposed(rows: [&[u8]; LANES], columns: &mut [Column]) {
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

/// Transposes columns to rows: byte `r` of column `i` becomes byte `i` of row `r`. `out` holds at
/// most eight rows of `width` bytes.
#[inline(always)]
fn store_transposed(columns: &[Column], out: &mut [u8], width: usize) {
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

/// Transposes 8 × 8 bytes in each of the blocks; word `r` is row `r`. It swaps off-diagonal blocks
/// of 4 × 4, then of 2 × 2, then single bytes (H. S. Warren, Hacker's Delight, 2nd edition, section
/// 7-3, there with bits).
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
    use super::super::resample::scalar;
    use super::*;

    /// Returns pseudo-random bytes.
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

    /// Returns taps of varying number and position.
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
    fn transposition_is_an_involution() {
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
    fn both_passes_equal_the_scalar_ones_at_every_width_and_height() {
        fn check<const C: usize>() {
            for (width, height) in [(1, 1), (3, 7), (10, 8), (11, 9), (40, 16), (57, 23)] {
                let image = noise(width, height, C);
                for output in [1, 2, 10, 11, 33, 64] {
                    let x_taps = taps(width, output);
                    for rows in [0..height, height / 2..height, 0..0] {
                        let fast = horizontal_pass::<C>(&image, rows.clone(), &x_taps).unwrap();
                        assert_eq!(
                            fast,
                            scalar::horizontal_pass::<u8, C>(&image, rows, &x_taps)
                        );
                    }
                    let y_taps = taps(height, output);
                    for columns in [0..width, width / 3..width] {
                        let read = columns.start * C..columns.end * C;
                        let fast = vertical_pass(&image, read.clone(), &y_taps).unwrap();
                        assert_eq!(fast, scalar::vertical_pass(&image, read, &y_taps));
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

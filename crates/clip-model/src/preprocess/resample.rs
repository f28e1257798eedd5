//! Pillow's resampling, bit for bit.
//!
//! Bicubic with a = −0.5, widened by the reduction factor (antialiased), one pass along the rows
//! and one along the columns, each rounded to 8 bits with 22-bit fixed-point weights; 16-bit grey
//! with `f64` weights (Pillow `src/libImaging/Resample.c`). Nearest as in
//! `src/libImaging/Geometry.c`. Only the asked window of the result is computed: the values are the
//! same, and an image of one pixel by ten thousand costs no gigabytes. 8-bit samples go through
//! `avx2.rs` where the processor allows it, to the same bytes.
//!
//! Why not `fast_image_resize`: its sums are rounded in another way. Of a noisy picture of 500 × 370
//! pixels at 303 × 224 its version 6.1 (`CatmullRom`) gives a quarter of the bytes (24.6 %) other
//! values than Pillow 13.0, by up to 10 of 255; features and published accuracies would move.

use std::{borrow::Cow, ops::Range};

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::{
    Interpolation, PassOrder,
    raster::{PRECISION_BITS, Raster, Taps, Window},
};

/// How an image is resized.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Resampling {
    pub(super) kernel: Interpolation,
    pub(super) order: PassOrder,
}

impl Interpolation {
    /// Reach of the kernel to either side, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Bilinear => 1.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Bicubic => bicubic(x),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
        }
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Weights for the outputs `wanted` of an axis that goes from `input` to `output` positions.
fn taps<T: Sample>(
    kernel: Interpolation,
    input: u32,
    output: u32,
    wanted: Range<usize>,
) -> Vec<Taps<T::Weight>> {
    shares(kernel, input, output, wanted)
        .map(|taps| Taps {
            first: taps.first,
            weights: taps.weights.into_iter().map(T::weight).collect(),
        })
        .collect()
}

/// The weights before they become those of a sample type: for each output position they sum to 1.
pub(crate) fn shares(
    kernel: Interpolation,
    input: u32,
    output: u32,
    wanted: Range<usize>,
) -> impl Iterator<Item = Taps<f64>> {
    let scale = f64::from(input) / f64::from(output);
    let stretch = scale.max(1.0);
    let support = kernel.support() * stretch;
    let inverse = 1.0 / stretch;
    wanted.map(move |out| {
        let center = (out as f64 + 0.5) * scale;
        // `as` truncates towards zero and stops at 0, as the C code does.
        let first = (center - support + 0.5) as u32;
        let last = ((center + support + 0.5) as u32).min(input);
        let weights: Vec<f64> = (first..last)
            .map(|i| kernel.weight((f64::from(i) - center + 0.5) * inverse))
            .collect();
        let total: f64 = weights.iter().sum();
        let share = |w: f64| if total == 0.0 { w } else { w / total };
        Taps {
            first: first as usize,
            weights: weights.into_iter().map(share).collect(),
        }
    })
}

/// The input positions that the taps read.
fn span<W>(taps: &[Taps<W>]) -> Range<usize> {
    let first = taps.iter().map(|t| t.first).min().unwrap_or(0);
    let end = taps
        .iter()
        .map(|t| t.first + t.weights.len())
        .max()
        .unwrap_or(first);
    first..end
}

/// A sample type with Pillow's arithmetic for it.
pub(super) trait Sample: Copy + Default + 'static {
    /// A weight, and a sum of weighted samples.
    type Weight: Copy;
    fn weight(w: f64) -> Self::Weight;
    fn zero() -> Self::Weight;
    fn add(sum: Self::Weight, value: Self, weight: Self::Weight) -> Self::Weight;
    fn round(sum: Self::Weight) -> Self;

    /// The pass along the given rows, pixels of `C` samples.
    fn along_rows<const C: usize>(
        image: &Raster<'_, Self>,
        rows: Range<usize>,
        taps: &[Taps<Self::Weight>],
    ) -> Vec<Self> {
        plain::along_rows::<Self, C>(image, rows, taps)
    }

    /// The pass along the columns of the given samples of each row.
    fn along_columns(
        image: &Raster<'_, Self>,
        read: Range<usize>,
        taps: &[Taps<Self::Weight>],
    ) -> Vec<Self> {
        plain::along_columns(image, read, taps)
    }
}

impl Sample for u8 {
    type Weight = i32;

    fn weight(w: f64) -> i32 {
        let half = if w < 0.0 { -0.5 } else { 0.5 };
        (w * f64::from(1 << PRECISION_BITS) + half) as i32
    }

    fn zero() -> i32 {
        1 << (PRECISION_BITS - 1)
    }

    #[inline(always)]
    fn add(sum: i32, value: u8, weight: i32) -> i32 {
        sum + i32::from(value) * weight
    }

    #[inline(always)]
    fn round(sum: i32) -> u8 {
        (sum >> PRECISION_BITS).clamp(0, 255) as u8
    }

    fn along_rows<const C: usize>(
        image: &Raster<'_, u8>,
        rows: Range<usize>,
        taps: &[Taps<i32>],
    ) -> Vec<u8> {
        #[cfg(target_arch = "x86_64")]
        if let Some(data) = avx2::along_rows::<C>(image, rows.clone(), taps) {
            return data;
        }
        plain::along_rows::<Self, C>(image, rows, taps)
    }

    fn along_columns(image: &Raster<'_, u8>, read: Range<usize>, taps: &[Taps<i32>]) -> Vec<u8> {
        #[cfg(target_arch = "x86_64")]
        if let Some(data) = avx2::along_columns(image, read.clone(), taps) {
            return data;
        }
        plain::along_columns(image, read, taps)
    }
}

impl Sample for u16 {
    type Weight = f64;

    fn weight(w: f64) -> f64 {
        w
    }

    fn zero() -> f64 {
        0.0
    }

    fn add(sum: f64, value: u16, weight: f64) -> f64 {
        sum + f64::from(value) * weight
    }

    fn round(sum: f64) -> u16 {
        // Pillow rounds to an integer, then clips its two bytes separately.
        let rounded = if sum >= 0.0 {
            (sum + 0.5).floor()
        } else {
            -(sum.abs() + 0.5).floor()
        } as i32;
        let low = (rounded % 256).clamp(0, 255) as u16;
        let high = (rounded >> 8).clamp(0, 255) as u16;
        high << 8 | low
    }
}

/// Resizes the region `source` of the image to `size` (width, height) and returns the `window` of
/// that. Samples outside the region take no part, as if the image had been cropped to it before.
pub(super) fn resize<T: Sample>(
    image: &Raster<'_, T>,
    source: Window,
    size: (u32, u32),
    window: Window,
    how: Resampling,
) -> Raster<'static, T> {
    let Resampling { kernel, order } = how;
    let image = image.cut(source);
    let across =
        (size.0 != source.width).then(|| taps::<T>(kernel, source.width, size.0, window.columns()));
    let down =
        (size.1 != source.height).then(|| taps::<T>(kernel, source.height, size.1, window.rows()));
    match (across, down) {
        (None, None) => owned(image.cut(window)),
        (Some(across), None) => along_rows(&image, window.rows(), &across),
        (None, Some(down)) => along_columns(&image, window.columns(), &down),
        (Some(mut across), Some(mut down)) => {
            if order == PassOrder::Pillow13 && vertical_first(source, size) {
                let read = span(&across);
                across.iter_mut().for_each(|t| t.first -= read.start);
                let middle = along_columns(&image, read, &down);
                along_rows(&middle, 0..window.height as usize, &across)
            } else {
                let read = span(&down);
                down.iter_mut().for_each(|t| t.first -= read.start);
                let middle = along_rows(&image, read, &across);
                along_columns(&middle, 0..window.width as usize, &down)
            }
        }
    }
}

/// Whether Pillow 13 resizes the columns first: where the height loses more than twice as many
/// pixels as the width (python-pillow/Pillow#9549).
fn vertical_first(source: Window, (width, height): (u32, u32)) -> bool {
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let down = lost(source.height, height);
    down > 0 && down > 2 * lost(source.width, width)
}

fn owned<T: Copy>(image: Raster<'_, T>) -> Raster<'static, T> {
    Raster {
        width: image.width,
        height: image.height,
        channels: image.channels,
        data: Cow::Owned(image.data.into_owned()),
    }
}

/// The given rows, each resampled to as many pixels as there are taps.
fn along_rows<T: Sample>(
    image: &Raster<'_, T>,
    rows: Range<usize>,
    taps: &[Taps<T::Weight>],
) -> Raster<'static, T> {
    let height = rows.len() as u32;
    let data = match image.channels {
        1 => T::along_rows::<1>(image, rows, taps),
        2 => T::along_rows::<2>(image, rows, taps),
        3 => T::along_rows::<3>(image, rows, taps),
        _ => T::along_rows::<4>(image, rows, taps),
    };
    Raster {
        width: taps.len() as u32,
        height,
        channels: image.channels,
        data: Cow::Owned(data),
    }
}

/// The given columns, each resampled to as many pixels as there are taps.
fn along_columns<T: Sample>(
    image: &Raster<'_, T>,
    columns: Range<usize>,
    taps: &[Taps<T::Weight>],
) -> Raster<'static, T> {
    let channels = image.channels;
    let read = columns.start * channels..columns.end * channels;
    Raster {
        width: columns.len() as u32,
        height: taps.len() as u32,
        channels,
        data: Cow::Owned(T::along_columns(image, read, taps)),
    }
}

/// The two passes as the formula says, for samples without a faster way.
pub(super) mod plain {
    use super::{Range, Raster, Sample, Taps};

    pub(in super::super) fn along_rows<T: Sample, const C: usize>(
        image: &Raster<'_, T>,
        rows: Range<usize>,
        taps: &[Taps<T::Weight>],
    ) -> Vec<T> {
        let mut data = Vec::with_capacity(rows.len() * taps.len() * C);
        for y in rows {
            let row = image.row(y);
            for t in taps {
                let mut sums = [T::zero(); C];
                let read = &row[t.first * C..(t.first + t.weights.len()) * C];
                for (pixel, &weight) in read.chunks_exact(C).zip(&t.weights) {
                    for (sum, &value) in sums.iter_mut().zip(pixel) {
                        *sum = T::add(*sum, value, weight);
                    }
                }
                data.extend(sums.map(T::round));
            }
        }
        data
    }

    pub(in super::super) fn along_columns<T: Sample>(
        image: &Raster<'_, T>,
        read: Range<usize>,
        taps: &[Taps<T::Weight>],
    ) -> Vec<T> {
        let mut data = Vec::with_capacity(read.len() * taps.len());
        let mut sums = vec![T::zero(); read.len()];
        for t in taps {
            sums.fill(T::zero());
            for (y, &weight) in (t.first..).zip(&t.weights) {
                for (sum, &value) in sums.iter_mut().zip(&image.row(y)[read.clone()]) {
                    *sum = T::add(*sum, value, weight);
                }
            }
            data.extend(sums.iter().map(|&sum| T::round(sum)));
        }
        data
    }
}

/// As [`resize`], but each pixel of the result is a copy of one of the image.
pub(super) fn nearest<T: Sample>(
    image: &Raster<'_, T>,
    source: Window,
    size: (u32, u32),
    window: Window,
) -> Raster<'static, T> {
    let columns = nearest_positions(source.width, size.0, window.columns());
    let rows = nearest_positions(source.height, size.1, window.rows());
    let channels = image.channels;
    let mut data = Vec::with_capacity(rows.len() * columns.len() * channels);
    for y in rows {
        let row = image.row(source.top as usize + y);
        for &x in &columns {
            let at = source.left as usize + x;
            data.extend_from_slice(&row[at * channels..(at + 1) * channels]);
        }
    }
    Raster {
        width: window.width,
        height: window.height,
        channels,
        data: Cow::Owned(data),
    }
}

fn nearest_positions(input: u32, output: u32, wanted: Range<usize>) -> Vec<usize> {
    let scale = f64::from(input) / f64::from(output);
    // Pillow adds the step up, and so its rounding errors too.
    let mut at = scale * 0.5;
    let mut positions = Vec::with_capacity(wanted.len());
    for out in 0..wanted.end {
        if out >= wanted.start {
            positions.push((at as u32).min(input - 1) as usize);
        }
        at += scale;
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how(order: PassOrder) -> Resampling {
        Resampling {
            order,
            ..Resampling::default()
        }
    }

    const ORDERS: [PassOrder; 2] = [PassOrder::Pillow13, PassOrder::HorizontalFirst];

    fn grey(width: u32, height: u32) -> Raster<'static, u8> {
        let data = (0..width * height).map(|i| (i * 37 % 251) as u8).collect();
        Raster {
            width,
            height,
            channels: 1,
            data,
        }
    }

    #[test]
    fn a_window_equals_that_part_of_the_whole() {
        let image = grey(31, 47);
        let all = Window::whole(31, 47);
        for size in [(9, 12), (31, 12), (9, 47), (80, 60), (28, 20)] {
            let window = Window {
                left: 3,
                top: 2,
                width: 5,
                height: 7,
            };
            for order in ORDERS {
                let whole = resize(&image, all, size, Window::whole(size.0, size.1), how(order));
                let part = resize(&image, all, size, window, how(order));
                assert_eq!(part.data, whole.cut(window).data, "{size:?} {order:?}");
            }
            let whole = nearest(&image, all, size, Window::whole(size.0, size.1));
            assert_eq!(
                nearest(&image, all, size, window).data,
                whole.cut(window).data
            );
        }
    }

    #[test]
    fn a_region_equals_the_cropped_image() {
        let image = grey(31, 17);
        let region = Window {
            left: 4,
            top: 3,
            width: 20,
            height: 11,
        };
        let cropped = image.cut(region);
        let out = Window::whole(7, 7);
        let a = resize(&image, region, (7, 7), out, how(PassOrder::Pillow13));
        let b = resize(
            &cropped,
            Window::whole(20, 11),
            (7, 7),
            out,
            how(PassOrder::Pillow13),
        );
        assert_eq!(a.data, b.data);
        let a = nearest(&image, region, (7, 7), out);
        let b = nearest(&cropped, Window::whole(20, 11), (7, 7), out);
        assert_eq!(a.data, b.data);
    }

    #[test]
    fn the_order_matters_for_tall_images_alone() {
        let differ = |w, h, size: (u32, u32)| {
            let image = grey(w, h);
            let [a, b] = ORDERS.map(|o| {
                resize(
                    &image,
                    Window::whole(w, h),
                    size,
                    Window::whole(size.0, size.1),
                    how(o),
                )
                .data
            });
            a != b
        };
        assert!(differ(41, 83, (32, 64)));
        assert!(!differ(83, 41, (64, 32)));
        // The height loses 20 pixels, the width 10: not more than twice as many.
        assert!(!differ(42, 84, (32, 64)));
        assert!(!differ(20, 50, (224, 560)));
    }

    #[test]
    fn constant_images_stay_constant() {
        for value in [0u8, 1, 127, 255] {
            let image = Raster {
                width: 13,
                height: 9,
                channels: 3,
                data: Cow::Owned(vec![value; 13 * 9 * 3]),
            };
            let out = resize(
                &image,
                Window::whole(13, 9),
                (40, 5),
                Window::whole(40, 5),
                how(PassOrder::Pillow13),
            );
            assert!(out.data.iter().all(|&v| v == value));
        }
    }
}

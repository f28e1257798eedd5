//! Image resampling, bit-identical to Pillow.
//!
//! The filter is bicubic with a = −0.5, or bilinear, scaled by the reduction factor (antialiasing).
//! There is a horizontal and a vertical pass. Each rounds to 8 bits, with 22-bit fixed-point
//! weights; 16-bit grey has `f64` weights (Pillow `src/libImaging/Resample.c`). Nearest neighbour
//! follows `src/libImaging/Geometry.c`.
//!
//! Only the requested window of the result is computed. The values are the same, and an image of
//! 1 × 10,000 pixels does not take gigabytes. 8-bit samples go through `avx2.rs` if the processor
//! has AVX2, with the same result.
//!
//! `fast_image_resize` is not an alternative, because it rounds its sums differently. On a noisy
//! image of 500 × 370 pixels resized to 303 × 224, its version 6.1 (`CatmullRom`) differs from
//! Pillow 13.0 in 24.6 % of the bytes, by up to 10 of 255. That would change features and published
//! accuracies.

use std::{borrow::Cow, ops::Range};

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::{
    Interpolation, PassOrder,
    raster::{PRECISION_BITS, Raster, Taps, Window},
};

/// Options of [`resize`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Resampling {
    pub(super) kernel: Interpolation,
    pub(super) order: PassOrder,
}

impl Interpolation {
    /// Returns the radius of the filter in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Bilinear => 1.0,
        }
    }

    /// Returns the filter at distance `x`.
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

/// Returns the taps of the output positions `wanted` for an axis resized from `input` to `output`
/// positions.
fn taps<T: Sample>(
    kernel: Interpolation,
    input: u32,
    output: u32,
    wanted: Range<usize>,
) -> Vec<Taps<T::Weight>> {
    normalized_taps(kernel, input, output, wanted)
        .map(|taps| Taps {
            first: taps.first,
            weights: taps.weights.into_iter().map(T::weight).collect(),
        })
        .collect()
}

/// Like [`taps`], with floating-point weights that sum to 1 for each output position.
pub(crate) fn normalized_taps(
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
        // `as` truncates towards zero and saturates at 0, like the C code.
        let first = (center - support + 0.5) as u32;
        let last = ((center + support + 0.5) as u32).min(input);
        let weights: Vec<f64> = (first..last)
            .map(|i| kernel.weight((f64::from(i) - center + 0.5) * inverse))
            .collect();
        let total: f64 = weights.iter().sum();
        let normalize = |w: f64| if total == 0.0 { w } else { w / total };
        Taps {
            first: first as usize,
            weights: weights.into_iter().map(normalize).collect(),
        }
    })
}

/// Returns the input positions that the taps read.
fn input_range<W>(taps: &[Taps<W>]) -> Range<usize> {
    let first = taps.iter().map(|t| t.first).min().unwrap_or(0);
    let end = taps
        .iter()
        .map(|t| t.first + t.weights.len())
        .max()
        .unwrap_or(first);
    first..end
}

/// A sample type with Pillow's arithmetic.
pub(super) trait Sample: Copy + Default + 'static {
    /// Type of a weight and of a weighted sum.
    type Weight: Copy;
    fn weight(w: f64) -> Self::Weight;
    fn zero() -> Self::Weight;
    fn add(sum: Self::Weight, value: Self, weight: Self::Weight) -> Self::Weight;
    fn round(sum: Self::Weight) -> Self;

    /// Resamples the given rows horizontally; a pixel has `C` samples.
    fn horizontal_pass<const C: usize>(
        image: &Raster<'_, Self>,
        rows: Range<usize>,
        taps: &[Taps<Self::Weight>],
    ) -> Vec<Self> {
        scalar::horizontal_pass::<Self, C>(image, rows, taps)
    }

    /// Resamples the given samples of each row vertically.
    fn vertical_pass(
        image: &Raster<'_, Self>,
        read: Range<usize>,
        taps: &[Taps<Self::Weight>],
    ) -> Vec<Self> {
        scalar::vertical_pass(image, read, taps)
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

    fn horizontal_pass<const C: usize>(
        image: &Raster<'_, u8>,
        rows: Range<usize>,
        taps: &[Taps<i32>],
    ) -> Vec<u8> {
        #[cfg(target_arch = "x86_64")]
        if let Some(data) = avx2::horizontal_pass::<C>(image, rows.clone(), taps) {
            return data;
        }
        scalar::horizontal_pass::<Self, C>(image, rows, taps)
    }

    fn vertical_pass(image: &Raster<'_, u8>, read: Range<usize>, taps: &[Taps<i32>]) -> Vec<u8> {
        #[cfg(target_arch = "x86_64")]
        if let Some(data) = avx2::vertical_pass(image, read.clone(), taps) {
            return data;
        }
        scalar::vertical_pass(image, read, taps)
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

/// Resizes the region `source` of the image to `size` (width, height) and returns a `window` of the
/// result. Samples outside the region have no influence, as if the image had been cropped to it.
pub(super) fn resize<T: Sample>(
    image: &Raster<'_, T>,
    source: Window,
    size: (u32, u32),
    window: Window,
    options: Resampling,
) -> Raster<'static, T> {
    let Resampling { kernel, order } = options;
    let image = image.crop(source);
    let x_taps =
        (size.0 != source.width).then(|| taps::<T>(kernel, source.width, size.0, window.columns()));
    let y_taps =
        (size.1 != source.height).then(|| taps::<T>(kernel, source.height, size.1, window.rows()));
    match (x_taps, y_taps) {
        (None, None) => into_owned_raster(image.crop(window)),
        (Some(x_taps), None) => horizontal_pass(&image, window.rows(), &x_taps),
        (None, Some(y_taps)) => vertical_pass(&image, window.columns(), &y_taps),
        // The first pass computes only what the second one reads, so the taps of the second pass
        // shift to the start of the intermediate image.
        (Some(mut x_taps), Some(mut y_taps)) => {
            if order == PassOrder::Pillow13 && vertical_first(source, size) {
                let read = input_range(&x_taps);
                x_taps.iter_mut().for_each(|t| t.first -= read.start);
                let middle = vertical_pass(&image, read, &y_taps);
                horizontal_pass(&middle, 0..window.height as usize, &x_taps)
            } else {
                let read = input_range(&y_taps);
                y_taps.iter_mut().for_each(|t| t.first -= read.start);
                let middle = horizontal_pass(&image, read, &x_taps);
                vertical_pass(&middle, 0..window.width as usize, &y_taps)
            }
        }
    }
}

/// Returns whether Pillow 13 runs the vertical pass first: if the height loses more than twice as
/// many pixels as the width (python-pillow/Pillow#9549).
fn vertical_first(source: Window, (width, height): (u32, u32)) -> bool {
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let height_loss = lost(source.height, height);
    height_loss > 0 && height_loss > 2 * lost(source.width, width)
}

fn into_owned_raster<T: Copy>(image: Raster<'_, T>) -> Raster<'static, T> {
    Raster {
        width: image.width,
        height: image.height,
        channels: image.channels,
        data: Cow::Owned(image.data.into_owned()),
    }
}

/// Resamples the given rows to one pixel per entry of `taps`.
fn horizontal_pass<T: Sample>(
    image: &Raster<'_, T>,
    rows: Range<usize>,
    taps: &[Taps<T::Weight>],
) -> Raster<'static, T> {
    let height = rows.len() as u32;
    let data = match image.channels {
        1 => T::horizontal_pass::<1>(image, rows, taps),
        2 => T::horizontal_pass::<2>(image, rows, taps),
        3 => T::horizontal_pass::<3>(image, rows, taps),
        _ => T::horizontal_pass::<4>(image, rows, taps),
    };
    Raster {
        width: taps.len() as u32,
        height,
        channels: image.channels,
        data: Cow::Owned(data),
    }
}

/// Resamples the given columns to one pixel per entry of `taps`.
fn vertical_pass<T: Sample>(
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
        data: Cow::Owned(T::vertical_pass(image, read, taps)),
    }
}

/// Scalar implementation of both passes.
pub(super) mod scalar {
    use super::{Range, Raster, Sample, Taps};

    pub(in super::super) fn horizontal_pass<T: Sample, const C: usize>(
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

    pub(in super::super) fn vertical_pass<T: Sample>(
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

/// Like [`resize`], by nearest neighbour.
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
    // Pillow accumulates the step, and with it the rounding errors.
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

    fn options(order: PassOrder) -> Resampling {
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
                let whole = resize(
                    &image,
                    all,
                    size,
                    Window::whole(size.0, size.1),
                    options(order),
                );
                let part = resize(&image, all, size, window, options(order));
                assert_eq!(part.data, whole.crop(window).data, "{size:?} {order:?}");
            }
            let whole = nearest(&image, all, size, Window::whole(size.0, size.1));
            assert_eq!(
                nearest(&image, all, size, window).data,
                whole.crop(window).data
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
        let cropped = image.crop(region);
        let out = Window::whole(7, 7);
        let a = resize(&image, region, (7, 7), out, options(PassOrder::Pillow13));
        let b = resize(
            &cropped,
            Window::whole(20, 11),
            (7, 7),
            out,
            options(PassOrder::Pillow13),
        );
        assert_eq!(a.data, b.data);
        let a = nearest(&image, region, (7, 7), out);
        let b = nearest(&cropped, Window::whole(20, 11), (7, 7), out);
        assert_eq!(a.data, b.data);
    }

    #[test]
    fn the_pass_order_matters_for_tall_images_only() {
        let differ = |w, h, size: (u32, u32)| {
            let image = grey(w, h);
            let [a, b] = ORDERS.map(|o| {
                resize(
                    &image,
                    Window::whole(w, h),
                    size,
                    Window::whole(size.0, size.1),
                    options(o),
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
                options(PassOrder::Pillow13),
            );
            assert!(out.data.iter().all(|&v| v == value));
        }
    }
}

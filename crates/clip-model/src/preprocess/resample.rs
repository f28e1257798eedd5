//! Pillow's resampling, bit for bit.
//!
//! Bicubic with a = −0.5, widened by the reduction factor (antialiased), first along the rows and then along the columns,
//! each pass rounded to 8 bits with 22-bit fixed-point weights; 16-bit grey with `f64` weights (Pillow
//! `src/libImaging/Resample.c`). Nearest as in `src/libImaging/Geometry.c`. Only the asked window of the result is
//! computed: the values are the same, and an image of one pixel by ten thousand costs no gigabytes.

use std::borrow::Cow;

/// An image of `channels` interleaved values a pixel.
#[derive(Debug, Clone)]
pub(super) struct Raster<'a, T: Clone> {
    pub width: u32,
    pub height: u32,
    pub channels: usize,
    pub data: Cow<'a, [T]>,
}

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

impl Window {
    pub fn whole(width: u32, height: u32) -> Self {
        Self {
            left: 0,
            top: 0,
            width,
            height,
        }
    }
}

/// The weights of one output position: the first input position and one weight for each from there on.
struct Taps {
    first: usize,
    weights: Vec<f64>,
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

/// Weights for the outputs `from..from + count` of an axis that goes from `input` to `output` positions.
fn taps(input: u32, output: u32, from: u32, count: u32) -> Vec<Taps> {
    let scale = f64::from(input) / f64::from(output);
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let inverse = 1.0 / stretch;
    (from..from + count)
        .map(|out| {
            let center = (f64::from(out) + 0.5) * scale;
            // `as` truncates towards zero and stops at 0, as the C code does.
            let first = (center - support + 0.5) as u32;
            let last = ((center + support + 0.5) as u32).min(input);
            let mut weights: Vec<f64> = (first..last)
                .map(|i| bicubic((f64::from(i) - center + 0.5) * inverse))
                .collect();
            let total: f64 = weights.iter().sum();
            if total != 0.0 {
                weights.iter_mut().for_each(|w| *w /= total);
            }
            Taps {
                first: first as usize,
                weights,
            }
        })
        .collect()
}

/// A sample type with Pillow's arithmetic for it.
pub(super) trait Sample: Copy + Default + 'static {
    type Weight: Copy;
    fn weight(w: f64) -> Self::Weight;
    fn blend(pairs: impl Iterator<Item = (Self, Self::Weight)>) -> Self;
}

const PRECISION_BITS: u32 = 32 - 8 - 2;

impl Sample for u8 {
    type Weight = i32;

    fn weight(w: f64) -> i32 {
        let half = if w < 0.0 { -0.5 } else { 0.5 };
        (w * f64::from(1 << PRECISION_BITS) + half) as i32
    }

    #[inline]
    fn blend(pairs: impl Iterator<Item = (u8, i32)>) -> u8 {
        let sum = pairs.fold(1 << (PRECISION_BITS - 1), |sum, (v, w)| {
            sum + i32::from(v) * w
        });
        (sum >> PRECISION_BITS).clamp(0, 255) as u8
    }
}

impl Sample for u16 {
    type Weight = f64;

    fn weight(w: f64) -> f64 {
        w
    }

    #[inline]
    fn blend(pairs: impl Iterator<Item = (u16, f64)>) -> u16 {
        let sum: f64 = pairs.fold(0.0, |sum, (v, w)| sum + f64::from(v) * w);
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

/// Resizes the region `source` of the image to `width` × `height` and returns the `window` of that. Samples outside the
/// region take no part, as if the image had been cropped to it before.
pub(super) fn resize<T: Sample>(
    image: &Raster<'_, T>,
    source: Window,
    (width, height): (u32, u32),
    window: Window,
) -> Raster<'static, T> {
    match image.channels {
        1 => resize_channels::<T, 1>(image, source, (width, height), window),
        2 => resize_channels::<T, 2>(image, source, (width, height), window),
        3 => resize_channels::<T, 3>(image, source, (width, height), window),
        _ => resize_channels::<T, 4>(image, source, (width, height), window),
    }
}

fn fixed<T: Sample>(taps: &[Taps]) -> Vec<(usize, Vec<T::Weight>)> {
    taps.iter()
        .map(|t| (t.first, t.weights.iter().map(|&w| T::weight(w)).collect()))
        .collect()
}

fn resize_channels<T: Sample, const C: usize>(
    image: &Raster<'_, T>,
    source: Window,
    (width, height): (u32, u32),
    window: Window,
) -> Raster<'static, T> {
    let stride = image.width as usize * C;
    let row = |y: usize| {
        let start = (source.top as usize + y) * stride + source.left as usize * C;
        &image.data[start..start + source.width as usize * C]
    };
    let out_width = window.width as usize * C;

    // The rows that the second pass reads: all it needs and no more.
    let vertical =
        (height != source.height).then(|| taps(source.height, height, window.top, window.height));
    let (first_row, rows) = match &vertical {
        None => (window.top as usize, window.height as usize),
        Some(taps) => {
            let first = taps.iter().map(|t| t.first).min().unwrap_or(0);
            let end = taps
                .iter()
                .map(|t| t.first + t.weights.len())
                .max()
                .unwrap_or(0);
            (first, end.saturating_sub(first))
        }
    };

    let mut middle = vec![T::default(); rows * out_width];
    if width == source.width {
        for (y, out) in middle.chunks_exact_mut(out_width.max(1)).enumerate() {
            let start = window.left as usize * C;
            out.copy_from_slice(&row(first_row + y)[start..start + out_width]);
        }
    } else {
        let weights = fixed::<T>(&taps(source.width, width, window.left, window.width));
        for (y, out) in middle.chunks_exact_mut(out_width.max(1)).enumerate() {
            let line = row(first_row + y);
            for (pixel, (first, weights)) in out.chunks_exact_mut(C).zip(&weights) {
                let span = &line[first * C..(first + weights.len()) * C];
                for (c, value) in pixel.iter_mut().enumerate() {
                    *value = T::blend(
                        span.chunks_exact(C)
                            .map(|p| p[c])
                            .zip(weights.iter().copied()),
                    );
                }
            }
        }
    }

    let data = match vertical {
        None => middle,
        Some(taps) => {
            let mut out = Vec::with_capacity(window.height as usize * out_width);
            for (first, weights) in fixed::<T>(&taps) {
                let top = &middle[(first - first_row) * out_width..];
                for x in 0..out_width {
                    let column = top[x..].iter().step_by(out_width).copied();
                    out.push(T::blend(column.zip(weights.iter().copied())));
                }
            }
            out
        }
    };
    Raster {
        width: window.width,
        height: window.height,
        channels: C,
        data: Cow::Owned(data),
    }
}

/// As [`resize`], but each pixel of the result is a copy of one of the image.
pub(super) fn nearest<T: Sample>(
    image: &Raster<'_, T>,
    source: Window,
    (width, height): (u32, u32),
    window: Window,
) -> Raster<'static, T> {
    let columns = nearest_positions(source.width, width, window.left, window.width);
    let rows = nearest_positions(source.height, height, window.top, window.height);
    let channels = image.channels;
    let mut data = Vec::with_capacity(rows.len() * columns.len() * channels);
    for y in rows {
        for &x in &columns {
            let at = (source.top as usize + y) * image.width as usize + source.left as usize + x;
            data.extend_from_slice(&image.data[at * channels..(at + 1) * channels]);
        }
    }
    Raster {
        width: window.width,
        height: window.height,
        channels,
        data: Cow::Owned(data),
    }
}

fn nearest_positions(input: u32, output: u32, from: u32, count: u32) -> Vec<usize> {
    let scale = f64::from(input) / f64::from(output);
    // Pillow adds the step up, and so its rounding errors too.
    let mut at = scale * 0.5;
    let mut positions = Vec::with_capacity(count as usize);
    for out in 0..from + count {
        if out >= from {
            positions.push((at as u32).min(input - 1) as usize);
        }
        at += scale;
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: u32, height: u32) -> Raster<'static, u8> {
        let data = (0..width * height)
            .map(|i| (i * 37 % 251) as u8)
            .collect::<Vec<_>>();
        Raster {
            width,
            height,
            channels: 1,
            data: Cow::Owned(data),
        }
    }

    #[test]
    fn a_window_equals_that_part_of_the_whole() {
        let image = grey(31, 17);
        let all = Window::whole(31, 17);
        for out in [(9, 12), (31, 12), (9, 17), (80, 50)] {
            let whole = resize(&image, all, out, Window::whole(out.0, out.1));
            let near = nearest(&image, all, out, Window::whole(out.0, out.1));
            let window = Window {
                left: 3,
                top: 2,
                width: 5,
                height: 7,
            };
            let part = resize(&image, all, out, window);
            let near_part = nearest(&image, all, out, window);
            for y in 0..7 {
                for x in 0..5 {
                    let at = ((y + 2) * out.0 + x + 3) as usize;
                    assert_eq!(part.data[(y * 5 + x) as usize], whole.data[at]);
                    assert_eq!(near_part.data[(y * 5 + x) as usize], near.data[at]);
                }
            }
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
        let cropped = resize(&image, region, (20, 11), Window::whole(20, 11));
        let out = (7, 7);
        let a = resize(&image, region, out, Window::whole(7, 7));
        let b = resize(&cropped, Window::whole(20, 11), out, Window::whole(7, 7));
        assert_eq!(a.data, b.data);
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
            let out = resize(&image, Window::whole(13, 9), (40, 5), Window::whole(40, 5));
            assert!(out.data.iter().all(|&v| v == value));
        }
    }
}

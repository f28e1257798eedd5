//! Raster images and the filter taps of a resampling pass.

use std::{borrow::Cow, ops::Range};

/// Fractional bits of the fixed-point weights of 8-bit samples.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// An image with `channels` interleaved values per pixel.
#[derive(Debug, Clone)]
pub(super) struct Raster<'a, T: Clone> {
    pub width: u32,
    pub height: u32,
    pub channels: usize,
    pub data: Cow<'a, [T]>,
}

impl<T: Copy> Raster<'_, T> {
    /// Returns the part of the image in `window`, without a copy if that is all of it.
    pub(super) fn crop(&self, window: Window) -> Raster<'_, T> {
        let (width, height, channels) = (window.width, window.height, self.channels);
        if window == Window::whole(self.width, self.height) {
            return Raster {
                width,
                height,
                channels,
                data: Cow::Borrowed(&self.data),
            };
        }
        let rows = window.rows();
        let columns = window.left as usize * channels..(window.left + width) as usize * channels;
        let data = rows
            .flat_map(|y| &self.row(y)[columns.clone()])
            .copied()
            .collect();
        Raster {
            width,
            height,
            channels,
            data,
        }
    }

    pub(super) fn row(&self, y: usize) -> &[T] {
        let stride = self.width as usize * self.channels;
        &self.data[y * stride..(y + 1) * stride]
    }
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

    pub(super) fn rows(&self) -> Range<usize> {
        self.top as usize..(self.top + self.height) as usize
    }

    pub(super) fn columns(&self) -> Range<usize> {
        self.left as usize..(self.left + self.width) as usize
    }
}

/// Filter taps of one output position: a weight for each input position from `first` on.
pub(crate) struct Taps<W> {
    pub(crate) first: usize,
    pub(crate) weights: Vec<W>,
}

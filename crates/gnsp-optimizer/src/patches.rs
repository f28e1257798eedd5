//! Patch extraction (`im2col`): the receptive fields of a convolution as rows.

use burn::nn::conv::{Conv1d, Conv2d};
use burn::nn::{PaddingConfig1d, PaddingConfig2d};
use burn::tensor::{Tensor, ops::PadMode, s};

/// Geometry of the patches (receptive fields) of a convolution.
///
/// [`Recorder::conv2d`](crate::Recorder::conv2d) and
/// [`Recorder::conv1d`](crate::Recorder::conv1d) take it, or a Burn layer, which converts to it.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use gnsp_optimizer::{Padding, Patches};
///
/// let patches = Patches {
///     kernel: [3, 3],
///     stride: [2, 2],
///     dilation: [1, 1],
///     padding: Padding::Explicit([[1, 1], [1, 1]]),
///     groups: 1,
/// };
/// let x = Tensor::<4>::zeros([2, 4, 8, 8], &Device::default());
/// // 2 images with 4 × 4 positions; 4 channels with 3 × 3 entries.
/// assert_eq!(patches.rows(x).dims(), [1, 32, 36]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patches {
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Vertical and horizontal distance between adjacent patches.
    pub stride: [usize; 2],
    /// Vertical and horizontal distance between adjacent entries of a patch.
    pub dilation: [usize; 2],
    /// Zero padding of the input.
    pub padding: Padding,
    /// Number of channel groups.
    pub groups: usize,
}

/// Zero padding of the input of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Pads such that the output size is the input size divided by the stride, rounded up, like
    /// Burn's `Same`. If the padding is odd, the larger half is at the end.
    Same,
    /// `[[top, bottom], [left, right]]`.
    Explicit([[usize; 2]; 2]),
}

impl From<&Conv2d> for Patches {
    fn from(layer: &Conv2d) -> Self {
        Self {
            kernel: layer.kernel_size,
            stride: layer.stride,
            dilation: layer.dilation,
            padding: match layer.padding {
                PaddingConfig2d::Same => Padding::Same,
                PaddingConfig2d::Valid => Padding::Explicit([[0; 2]; 2]),
                PaddingConfig2d::Explicit(top, left, bottom, right) => {
                    Padding::Explicit([[top, bottom], [left, right]])
                }
            },
            groups: layer.groups,
        }
    }
}

/// Treats the signal as an image of height 1.
impl From<&Conv1d> for Patches {
    fn from(layer: &Conv1d) -> Self {
        Self {
            kernel: [1, layer.kernel_size],
            stride: [1, layer.stride],
            dilation: [1, layer.dilation],
            padding: match layer.padding {
                PaddingConfig1d::Same => Padding::Same,
                PaddingConfig1d::Valid => Padding::Explicit([[0; 2]; 2]),
                PaddingConfig1d::Explicit(left, right) => {
                    Padding::Explicit([[0; 2], [left, right]])
                }
            },
            groups: layer.groups,
        }
    }
}

impl Patches {
    /// Returns the number of features per group for an input with this number of channels.
    pub fn features(&self, channels: usize) -> usize {
        channels / self.groups.max(1) * self.kernel[0] * self.kernel[1]
    }

    /// Extracts one row for each position of the filters.
    ///
    /// The entries of a row have the order of a flattened filter. An input smaller than the kernel
    /// has no rows.
    ///
    /// # Shapes
    ///
    /// - x: `[N, channels, height, width]`
    /// - output: `[groups, N · out_height · out_width, channels / groups · kernel]`
    ///
    /// # Panics
    ///
    /// Panics if the number of channels is not a multiple of the number of groups.
    pub fn rows(&self, x: Tensor<4>) -> Tensor<3> {
        let x = self.pad(x.inner());
        let [count, channels, height, width] = x.dims();
        let [kernel_height, kernel_width] = self.kernel;
        let outputs = |axis: usize, size: usize| {
            let extent = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            (size + 1)
                .saturating_sub(extent)
                .div_ceil(self.stride[axis])
        };
        let (rows, columns) = (outputs(0, height), outputs(1, width));
        let (groups, entries) = (self.groups, self.features(channels));
        if rows * columns * count == 0 {
            return Tensor::zeros([groups, 0, entries], &x.device());
        }
        // One strided slice for each kernel entry: all inputs that this entry is multiplied with.
        let mut shifted = Vec::with_capacity(kernel_height * kernel_width);
        for ky in 0..kernel_height {
            for kx in 0..kernel_width {
                let (top, left) = (ky * self.dilation[0], kx * self.dilation[1]);
                let bottom = top + (rows - 1) * self.stride[0] + 1;
                let right = left + (columns - 1) * self.stride[1] + 1;
                let (down, across) = (self.stride[0] as isize, self.stride[1] as isize);
                let part = x.clone().slice([
                    s![..],
                    s![..],
                    s![top as i64..bottom as i64;down],
                    s![left as i64..right as i64;across],
                ]);
                shifted.push(part.reshape([count, channels, 1, rows * columns]));
            }
        }
        let kernel = shifted.len();
        // [N, channels, kernel, positions] to [groups, N, positions, channels of a group, kernel]
        Tensor::cat(shifted, 2)
            .reshape([count, groups, channels / groups, kernel, rows * columns])
            .permute([1, 0, 4, 2, 3])
            .reshape([groups, count * rows * columns, entries])
    }

    fn pad(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let pairs = match self.padding {
            Padding::Explicit(pairs) => pairs,
            // Like Burn, which ignores the dilation here.
            Padding::Same => [(0, height), (1, width)].map(|(axis, size): (usize, usize)| {
                let last = size.div_ceil(self.stride[axis]).saturating_sub(1);
                let needed = last * self.stride[axis] + self.kernel[axis];
                let total = needed.saturating_sub(size);
                [total / 2, total - total / 2]
            }),
        };
        if pairs == [[0; 2]; 2] {
            return x;
        }
        let [vertical, horizontal] = pairs.map(|[before, after]| (before, after));
        x.pad([vertical, horizontal], PadMode::Constant(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layout;
    use crate::test_utils::*;
    use burn::nn::conv::{Conv1dConfig, Conv2dConfig};

    /// Asserts that the product of rows and filters is the convolution.
    fn assert_convolves(layer: &Conv2d, x: Tensor<4>) {
        let layout = Layout::InputsLast {
            groups: layer.groups,
        };
        let rows = Patches::from(layer).rows(x.clone());
        let products = rows.matmul(layout.split(layer.weight.val()));
        let expected = layer.forward(x);
        let [count, filters, height, width] = expected.dims();
        let groups = layer.groups;
        let products = products
            .reshape([groups, count, height, width, filters / groups])
            .permute([1, 0, 4, 2, 3])
            .reshape([count, filters, height, width]);
        assert_close_named(
            &values(products),
            &values(expected),
            1e-4,
            &format!("{layer:?}"),
        );
    }

    #[test]
    fn the_product_of_patches_and_filters_is_the_convolution() {
        let x = random(2 * 4 * 7, 6, 1.0, 1).reshape([2, 4, 7, 6]);
        let base = Conv2dConfig::new([4, 6], [3, 2]).with_bias(false);
        for config in [
            base.clone(),
            base.clone().with_stride([2, 3]),
            base.clone().with_dilation([2, 2]),
            base.clone().with_groups(2),
            base.clone().with_padding(PaddingConfig2d::Same),
            base.clone()
                .with_padding(PaddingConfig2d::Explicit(1, 2, 0, 1)),
            base.with_groups(2)
                .with_stride([2, 1])
                .with_padding(PaddingConfig2d::Explicit(2, 0, 2, 0)),
        ] {
            assert_convolves(&config.init(&device()), x.clone());
        }
        let deep = Conv2dConfig::new([4, 8], [3, 3])
            .with_groups(4)
            .with_bias(false);
        assert_convolves(&deep.init(&device()), x);
    }

    #[test]
    fn signals_are_images_of_height_one() {
        let layer = Conv1dConfig::new(4, 6, 3)
            .with_stride(2)
            .with_groups(2)
            .with_bias(false)
            .with_padding(PaddingConfig1d::Explicit(2, 1))
            .init(&device());
        let x = random(3 * 4, 9, 1.0, 2).reshape([3, 4, 9]);
        let rows = Patches::from(&layer).rows(x.clone().unsqueeze_dim(2));
        let layout = Layout::InputsLast { groups: 2 };
        let products = rows.matmul(layout.split(layer.weight.val()));
        let expected = layer.forward(x);
        let [count, filters, length] = expected.dims();
        let products = products
            .reshape([2, count, length, filters / 2])
            .permute([1, 0, 3, 2])
            .reshape([count, filters, length]);
        assert_close(&values(products), &values(expected), 1e-4);
    }

    #[test]
    fn an_input_smaller_than_the_kernel_has_no_rows() {
        let layer = Conv2dConfig::new([2, 2], [3, 3]).init(&device());
        let rows = Patches::from(&layer).rows(Tensor::zeros([1, 2, 2, 5], &device()));
        assert_eq!(rows.dims(), [1, 0, 18]);
    }
}

//! Patches: the inputs of a convolution's filters as rows (`im2col`).

use burn::nn::conv::{Conv1d, Conv2d};
use burn::nn::{PaddingConfig1d, PaddingConfig2d};
use burn::tensor::{Tensor, ops::PadMode, s};

/// The geometry of a convolution's patches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patches {
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Step from one patch to the next.
    pub stride: [usize; 2],
    /// Step from one entry of a patch to the next.
    pub dilation: [usize; 2],
    /// Zeros around the input.
    pub padding: Padding,
    /// Groups of channels.
    pub groups: usize,
}

/// Zeros around the input of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// As many as make the output as large as the input divided by the stride, the odd one at the
    /// end; as Burn's `Same`.
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

/// The signal is a picture of height one.
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
    /// The features of a group for an input of this many channels.
    pub fn features(&self, channels: usize) -> usize {
        channels / self.groups.max(1) * self.kernel[0] * self.kernel[1]
    }

    /// Reads an input as rows, one for each position of the filters.
    ///
    /// # Shapes
    ///
    /// - x: `[N, channels, height, width]`
    /// - output: `[groups, N · out_height · out_width, channels / groups · kernel]`, the entries of
    ///   a row in the order of a filter; no rows where the input is smaller than the kernel
    pub fn rows(&self, x: Tensor<4>) -> Tensor<3> {
        let x = self.pad(x.inner());
        let [count, channels, height, width] = x.dims();
        let [kernel_height, kernel_width] = self.kernel;
        let outputs = |axis: usize, size: usize| {
            let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            (size + 1).saturating_sub(reach).div_ceil(self.stride[axis])
        };
        let (rows, columns) = (outputs(0, height), outputs(1, width));
        let (groups, entries) = (self.groups, self.features(channels));
        if rows * columns * count == 0 {
            return Tensor::zeros([groups, 0, entries], &x.device());
        }
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
            // As Burn does it, which leaves dilation out.
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

    /// The rows times the filters are the convolution.
    fn assert_convolves(layer: &Conv2d, x: Tensor<4>) {
        let layout = Layout::InputsLast {
            groups: layer.groups,
        };
        let rows = Patches::from(layer).rows(x.clone());
        let answers = rows.matmul(layout.split(layer.weight.val()));
        let expected = layer.forward(x);
        let [count, filters, height, width] = expected.dims();
        let groups = layer.groups;
        let answers = answers
            .reshape([groups, count, height, width, filters / groups])
            .permute([1, 0, 4, 2, 3])
            .reshape([count, filters, height, width]);
        assert_close_named(
            &values(answers),
            &values(expected),
            1e-4,
            &format!("{layer:?}"),
        );
    }

    #[test]
    fn patches_times_filters_are_the_convolution() {
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
    fn signals_are_pictures_of_height_one() {
        let layer = Conv1dConfig::new(4, 6, 3)
            .with_stride(2)
            .with_groups(2)
            .with_bias(false)
            .with_padding(PaddingConfig1d::Explicit(2, 1))
            .init(&device());
        let x = random(3 * 4, 9, 1.0, 2).reshape([3, 4, 9]);
        let rows = Patches::from(&layer).rows(x.clone().unsqueeze_dim(2));
        let layout = Layout::InputsLast { groups: 2 };
        let answers = rows.matmul(layout.split(layer.weight.val()));
        let expected = layer.forward(x);
        let [count, filters, length] = expected.dims();
        let answers = answers
            .reshape([2, count, length, filters / 2])
            .permute([1, 0, 3, 2])
            .reshape([count, filters, length]);
        assert_close(&values(answers), &values(expected), 1e-4);
    }

    #[test]
    fn an_input_smaller_than_the_kernel_has_no_rows() {
        let layer = Conv2dConfig::new([2, 2], [3, 3]).init(&device());
        let rows = Patches::from(&layer).rows(Tensor::zeros([1, 2, 2, 5], &device()));
        assert_eq!(rows.dims(), [1, 0, 18]);
    }
}

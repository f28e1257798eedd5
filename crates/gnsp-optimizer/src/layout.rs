//! Parameter layouts: a weight as matrices whose rows are input features.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Layout of a parameter as `groups` matrices `[features, columns]`, such that its layer maps an
/// input row `x` to `x · matrix`.
///
/// The projector acts on the features. In a saved memory a layout is `"inputs-first"`,
/// `{ "inputs-last": { "groups": 1 } }`, …
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use gnsp_optimizer::Layout;
///
/// // A grouped convolution: [out, in / groups, height, width].
/// let layout = Layout::InputsLast { groups: 2 };
/// assert_eq!(layout.features(&[8, 3, 5, 5]), Some((2, 75)));
///
/// let weight = Tensor::<4>::zeros([8, 3, 5, 5], &Device::default());
/// let matrices = layout.split(weight);
/// assert_eq!(matrices.dims(), [2, 75, 4]);
/// assert_eq!(layout.join(matrices, [8, 3, 5, 5]).dims(), [8, 3, 5, 5]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// The first dimension is the input: a Burn `Linear` weight `[in, out]` of either
    /// `LinearLayout` (an optimizer sees both in this form), or a raw matrix used as `x · W`.
    InputsFirst,
    /// The first dimension is the output, all others are the input: a convolution
    /// `[out, in / groups, kernel…]`, whose input rows are patches, or a raw matrix `[out, in]`.
    /// Each group of filters has its own input features.
    InputsLast {
        /// The number of groups of the convolution; 1 for a matrix.
        groups: usize,
    },
    /// A table `[vocabulary, width]` whose inputs are one-hot rows. The inputs of different
    /// tokens are orthogonal, so its Gram matrix is diagonal.
    Embedding,
    /// A bias: its one input feature is the constant 1. Protecting it freezes the bias.
    Bias,
    /// The flattened parameter as a single column, with one feature per entry: for directions in
    /// parameter space (OGD).
    Whole,
}

impl Layout {
    /// Returns the number of groups and the features per group of a parameter of this shape, or
    /// `None` if the shape does not fit the layout.
    pub fn features(&self, shape: &[usize]) -> Option<(usize, usize)> {
        let entries = shape.iter().product();
        match *self {
            Self::InputsFirst => (shape.len() >= 2).then(|| (1, shape[0])),
            Self::Embedding => (shape.len() == 2).then(|| (1, shape[0])),
            Self::InputsLast { groups } => {
                let fits = shape.len() >= 2 && groups > 0 && shape[0].is_multiple_of(groups);
                fits.then(|| (groups, shape[1..].iter().product()))
            }
            Self::Bias => (shape.len() == 1).then_some((1, 1)),
            Self::Whole => Some((1, entries)),
        }
    }

    /// Reshapes a parameter or its gradient to one matrix per group.
    ///
    /// # Shapes
    ///
    /// - x: the shape of the parameter
    /// - output: `[groups, features, columns]`
    ///
    /// # Panics
    ///
    /// Panics if the shape does not fit the layout.
    pub fn split<const D: usize>(&self, x: Tensor<D>) -> Tensor<3> {
        let shape = x.dims();
        let Some((groups, features)) = self.features(&shape) else {
            panic!("a parameter of shape {shape:?} has no layout {self:?}");
        };
        let columns = shape.iter().product::<usize>() / (groups * features).max(1);
        match self {
            Self::InputsLast { .. } => x.reshape([groups, columns, features]).swap_dims(1, 2),
            _ => x.reshape([groups, features, columns]),
        }
    }

    /// Reshapes matrices back to a parameter: the inverse of [`split`](Self::split).
    ///
    /// # Shapes
    ///
    /// - x: `[groups, features, columns]`
    /// - output: `shape`, the shape of the parameter
    ///
    /// # Panics
    ///
    /// Panics if `x` and `shape` have different numbers of entries.
    pub fn join<const D: usize>(&self, x: Tensor<3>, shape: [usize; D]) -> Tensor<D> {
        match self {
            Self::InputsLast { .. } => x.swap_dims(1, 2).reshape(shape),
            _ => x.reshape(shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;

    #[test]
    fn join_undoes_split() {
        let x = random(12, 10, 1.0, 1).reshape([4, 3, 5, 2]);
        for layout in [
            Layout::InputsFirst,
            Layout::InputsLast { groups: 1 },
            Layout::InputsLast { groups: 2 },
            Layout::Whole,
        ] {
            let split = layout.split(x.clone());
            let (groups, features) = layout.features(&[4, 3, 5, 2]).unwrap();
            assert_eq!(split.dims(), [groups, features, 120 / groups / features]);
            assert_eq!(values(layout.join(split, x.dims())), values(x.clone()));
        }
        let bias = random(1, 6, 1.0, 2).reshape([6]);
        assert_eq!(Layout::Bias.split(bias).dims(), [1, 1, 6]);
    }

    #[test]
    fn the_filters_of_a_group_are_the_columns_of_its_matrix() {
        // Filter f, input i: 10 f + i.
        let filters: Vec<f32> = (0..4)
            .flat_map(|f| (0..3).map(move |i| (10 * f + i) as f32))
            .collect();
        let weight = Tensor::<1>::from_floats(filters.as_slice(), &device()).reshape([4, 3, 1]);
        let split = values(Layout::InputsLast { groups: 2 }.split(weight));
        assert_eq!(
            split,
            [0., 10., 1., 11., 2., 12., 20., 30., 21., 31., 22., 32.]
        );
    }

    #[test]
    fn layouts_that_do_not_fit() {
        assert_eq!(Layout::InputsFirst.features(&[5]), None);
        assert_eq!(Layout::Bias.features(&[5, 1]), None);
        assert_eq!(Layout::InputsLast { groups: 3 }.features(&[4, 2]), None);
        assert_eq!(Layout::InputsLast { groups: 0 }.features(&[4, 2]), None);
        assert_eq!(Layout::Embedding.features(&[4, 2, 2]), None);
    }

    #[test]
    fn names_in_files() {
        for (layout, text) in [
            (Layout::InputsFirst, r#""inputs-first""#),
            (
                Layout::InputsLast { groups: 2 },
                r#"{"inputs-last":{"groups":2}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&layout).unwrap(), text);
            assert_eq!(serde_json::from_str::<Layout>(text).unwrap(), layout);
        }
    }
}

//! Layouts: parameters as matrices whose rows are input features.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The layout of a parameter as `groups` matrices of shape `[features, columns]`: a layer maps a row
/// of inputs `x` to `x · matrix`.
///
/// A projector acts on the features. In a saved memory a layout is `"inputs-first"`,
/// `{ "inputs-last": { "groups": 1 } }`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// The first dimension counts the inputs: a Burn `Linear` weight `[in, out]` of either
    /// `LinearLayout` (both look like this to an optimizer), or a raw matrix used as `x · W`.
    InputsFirst,
    /// The first dimension counts the outputs and all others the inputs: a convolution
    /// `[out, in / groups, kernel…]`, whose inputs are patches, or a raw matrix `[out, in]`.
    /// Every group of filters has input features of its own.
    InputsLast {
        /// Groups of the convolution; 1 for a matrix.
        groups: usize,
    },
    /// A table `[vocabulary, width]` whose inputs are one-hot rows. The inputs of different
    /// tokens are orthogonal, so its Gram matrix is diagonal.
    Embedding,
    /// A bias: one input feature, the constant 1. Protecting it freezes the bias.
    Bias,
    /// The whole parameter as one column of as many features as it has entries, for directions
    /// stored in the space of the parameter itself (OGD).
    Whole,
}

impl Layout {
    /// The groups and the features of each for a parameter of this shape, or nothing where the
    /// layout does not fit it.
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

    /// Reads a parameter, or a gradient of one, as `[groups, features, columns]`.
    ///
    /// # Panics
    ///
    /// When the layout does not fit the shape.
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

    /// Undoes [`split`](Self::split).
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

//! Texts that begin alike, as a tree of tokens.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Tensor, TensorData};

/// Which position of an item is whose parent. Clones are handles.
#[derive(Debug, Clone)]
pub struct Tree(Arc<TreeParts>);

#[derive(Debug)]
struct TreeParts {
    parents: Vec<usize>,
    /// What Burn's own attention adds to the scores; the same in every block.
    bias: OnceLock<Tensor<4>>,
}

impl Tree {
    /// A tree an item, one after the other: `[batch · n]`, the parent of each position within its
    /// item, which stands before it; a root is its own. They are checked where they are used.
    pub fn new(parents: Vec<usize>) -> Self {
        Self(Arc::new(TreeParts {
            parents,
            bias: OnceLock::new(),
        }))
    }

    /// `[batch · n]`
    pub fn parents(&self) -> &[usize] {
        &self.0.parents
    }

    /// `[batch, 1, n, n]` for `x` `[batch, n, d]`, on its device and in its format.
    pub(crate) fn bias(&self, x: &Tensor<3>) -> Tensor<4> {
        let kept = self.0.bias.get_or_init(|| tree_bias(x, self.parents()));
        let [batch, n, _] = x.dims();
        let (on, of) = (x.device(), kept.device());
        // Devices are equal with a tape and without one.
        let same = on == of
            && on.is_autodiff() == of.is_autodiff()
            && kept.dtype() == x.dtype()
            && kept.dims() == [batch, 1, n, n];
        match same {
            true => kept.clone(),
            false => tree_bias(x, self.parents()),
        }
    }
}

/// A position and its ancestors.
pub(crate) fn ancestors(
    parents: &[usize],
    position: usize,
) -> impl Iterator<Item = usize> + Clone + '_ {
    std::iter::successors(Some(position), |position| {
        let parent = parents[*position];
        (parent != *position).then_some(parent)
    })
}

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        self.parents() == other.parents()
    }
}

impl Eq for Tree {}

/// What is added to the scores so that a position sees itself and its ancestors only, `[batch, 1,
/// n, n]`.
fn tree_bias(x: &Tensor<3>, parents: &[usize]) -> Tensor<4> {
    let [batch, n, _] = x.dims();
    assert_eq!(parents.len(), batch * n, "one parent for each position");
    let mut bias = vec![f32::NEG_INFINITY; batch * n * n];
    for (rows, parents) in bias.chunks_exact_mut(n * n).zip(parents.chunks_exact(n)) {
        for (position, row) in rows.chunks_exact_mut(n).enumerate() {
            assert!(
                parents[position] <= position,
                "a parent stands before its children"
            );
            for at in ancestors(parents, position) {
                row[at] = 0.0;
            }
        }
    }
    let bias = TensorData::new(bias, [batch, 1, n, n]);
    Tensor::<4>::from_data(bias, &x.device()).cast(x.dtype())
}

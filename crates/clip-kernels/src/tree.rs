//! Prefix trees of texts: parents of tokens, ancestors and the attention mask.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Tensor, TensorData};

/// The parent of each token in prefix trees, one tree per item. Clones share the tree.
///
/// # Example
/// ```
/// use clip_kernels::Tree;
///
/// // "a photo of a cat" and "a photo of a dog": `cat` and `dog` share a parent.
/// let tree = Tree::new(vec![0, 0, 1, 2, 3, 3]);
/// assert_eq!(tree.parents(), [0, 0, 1, 2, 3, 3]);
/// ```
#[derive(Debug, Clone)]
pub struct Tree(Arc<TreeParts>);

#[derive(Debug)]
struct TreeParts {
    parents: Vec<usize>,
    /// The mask that Burn's attention adds to the scores. Cached, since all blocks share it.
    mask: OnceLock<Tensor<4>>,
}

impl Tree {
    /// Creates a tree for each item from `parents`, `[batch · tokens]`.
    ///
    /// A parent is a position within its item and stands before its children; a root is its own
    /// parent. [`attention_branch`](crate::attention_branch) checks this.
    pub fn new(parents: Vec<usize>) -> Self {
        Self(Arc::new(TreeParts {
            parents,
            mask: OnceLock::new(),
        }))
    }

    /// Returns the parent of each token, `[batch · tokens]`.
    pub fn parents(&self) -> &[usize] {
        &self.0.parents
    }

    /// Returns the additive mask `[batch, 1, n, n]` for `x` `[batch, n, width]`, on its device and
    /// in its dtype.
    pub(crate) fn attention_mask(&self, x: &Tensor<3>) -> Tensor<4> {
        let cached = (self.0.mask).get_or_init(|| ancestor_mask(x, self.parents()));
        let [batch, n, _] = x.dims();
        let (device, cached_device) = (x.device(), cached.device());
        // Devices compare equal with and without autodiff.
        let is_valid = device == cached_device
            && device.is_autodiff() == cached_device.is_autodiff()
            && cached.dtype() == x.dtype()
            && cached.dims() == [batch, 1, n, n];
        match is_valid {
            true => cached.clone(),
            false => ancestor_mask(x, self.parents()),
        }
    }
}

/// Iterates over a position and its ancestors, from the position to the root.
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

/// Returns the additive attention mask of a tree, `[batch, 1, n, n]`: zero for a position and its
/// ancestors, `-∞` for all others.
fn ancestor_mask(x: &Tensor<3>, parents: &[usize]) -> Tensor<4> {
    let [batch, n, _] = x.dims();
    assert_eq!(parents.len(), batch * n, "one parent for each position");
    let mut mask = vec![f32::NEG_INFINITY; batch * n * n];
    for (rows, parents) in mask.chunks_exact_mut(n * n).zip(parents.chunks_exact(n)) {
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
    let mask = TensorData::new(mask, [batch, 1, n, n]);
    Tensor::<4>::from_data(mask, &x.device()).cast(x.dtype())
}

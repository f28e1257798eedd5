//! Batching of texts: prefix trees where texts share prefixes, padded batches of similar length
//! otherwise.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData};

use super::{
    TextTower,
    host::{chunk_ranges, encode_parallel, is_host},
    prefix_tree::{PrefixTree, build_trees, count_nodes, lexicographic_order},
};
use crate::tokenizer::TokenBatch;

/// The way a batch of texts is encoded. Features are the same up to rounding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TextBatching {
    /// Texts share the computation of their common prefixes, where that saves enough. The fastest.
    #[default]
    SharedPrefixes,
    /// Texts of similar length are padded to the longest of them.
    Padded,
    /// All texts are padded to the context length, as the reference implementations do.
    FullContext,
}

/// Returns features `[rows, e]`, not normalised.
pub(super) fn encode(tower: &TextTower, tokens: &TokenBatch) -> Tensor<2> {
    let batch = Batch::new(tower, tokens);
    match tower.batching {
        TextBatching::SharedPrefixes => batch
            .encode_prefix_trees()
            .unwrap_or_else(|| batch.encode_padded()),
        TextBatching::Padded => batch.encode_padded(),
        TextBatching::FullContext => tower.forward(&batch.rows, &mut ()),
    }
}

struct Batch<'a> {
    tower: &'a TextTower,
    rows: Vec<&'a [u32]>,
    /// Number of leading positions of each row that its feature depends on.
    lengths: Vec<usize>,
}

impl<'a> Batch<'a> {
    fn new(tower: &'a TextTower, tokens: &'a TokenBatch) -> Self {
        let rows: Vec<&[u32]> = tokens.ids.iter().map(Vec::as_slice).collect();
        rows.iter().for_each(|row| tower.check_tokens(row));
        let lengths = rows.iter().map(|row| tower.required_len(row)).collect();
        Self {
            tower,
            rows,
            lengths,
        }
    }

    /// Encodes the batch as prefix trees. Returns `None` if the tower is not causal, or if the rows
    /// share too little.
    fn encode_prefix_trees(&self) -> Option<Tensor<2>> {
        if !self.tower.is_causal() || self.rows.len() < 2 {
            return None;
        }
        // A row shorter than its required length (an empty one) needs padding, which trees lack.
        let lengths = self.rows.iter().zip(&self.lengths);
        let texts: Vec<&[u32]> = lengths
            .map(|(row, length)| row.get(..*length))
            .collect::<Option<_>>()?;
        let order = lexicographic_order(&texts);
        let host = self.on_host();
        let min_trees = if host { HOST_TREES } else { 1 };
        let (nodes, shared) = count_nodes(&texts, &order);
        let trees = build_trees(&texts, &order, max_tree_nodes(nodes, shared, min_trees));
        let groups: Vec<_> = trees
            .chunks(if host { 1 } else { TREES_PER_BATCH })
            .collect();
        // The trees of a group are padded to its largest one, so padding counts as well.
        let positions = groups.iter().map(|trees| {
            let longest = trees.iter().map(PrefixTree::len).max().unwrap_or(0);
            trees.len() * longest
        });
        let max_percent = if host {
            HOST_MAX_PERCENT
        } else {
            DEVICE_MAX_PERCENT
        };
        let unshared: usize = self.lengths.iter().sum();
        if positions.sum::<usize>() * 100 > unshared * max_percent {
            return None;
        }
        let encode = |trees: &[PrefixTree]| self.tower.forward_trees(trees);
        Some(self.encode_groups(groups, &order, encode))
    }

    /// Encodes rows of similar length together, each padded to the longest of its group.
    fn encode_padded(&self) -> Tensor<2> {
        let (order, mut groups) = group_by_length(&self.lengths);
        if self.on_host() {
            groups = groups
                .into_iter()
                .flat_map(|group| {
                    let start = group.start;
                    let shift = move |chunk: Range<usize>| start + chunk.start..start + chunk.end;
                    chunk_ranges(group.len()).into_iter().map(shift)
                })
                .collect();
        }
        if groups.len() <= 1 {
            return self.tower.forward(&self.rows, &mut ());
        }
        let encode = |group: Range<usize>| {
            let rows: Vec<_> = order[group].iter().map(|row| self.rows[*row]).collect();
            self.tower.forward(&rows, &mut ())
        };
        self.encode_groups(groups, &order, encode)
    }

    fn on_host(&self) -> bool {
        is_host(&self.tower.device())
    }

    /// Encodes groups that together hold the rows in `order`, and returns the features in the
    /// original order of the rows.
    fn encode_groups<T: Send>(
        &self,
        groups: Vec<T>,
        order: &[usize],
        encode: impl Fn(T) -> Tensor<2> + Send + Sync,
    ) -> Tensor<2> {
        let features = if self.on_host() {
            encode_parallel(groups, encode)
        } else {
            Tensor::cat(groups.into_iter().map(encode).collect(), 0)
        };
        let mut inverse = vec![0_i64; order.len()];
        for (at, row) in order.iter().enumerate() {
            inverse[*row] = at as i64;
        }
        let inverse = TensorData::new(inverse, [order.len()]);
        let inverse = Tensor::<1, Int>::from_data(inverse, &self.tower.device());
        features.select(0, inverse)
    }
}

/// Sorts the rows by length, longest first, and splits them into groups to encode together. A group
/// has at most [`MAX_GROUP_ROWS`] rows. A new group also starts where rows are at least a fifth
/// shorter than the longest of the group, once the group has [`MIN_GROUP_ROWS`] rows.
fn group_by_length(lengths: &[usize]) -> (Vec<usize>, Vec<Range<usize>>) {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|row| std::cmp::Reverse(lengths[*row]));
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (at, row) in order.iter().enumerate() {
        match groups.last_mut() {
            Some(group) => {
                let longest = lengths[order[group.start]];
                let full = group.len() >= MAX_GROUP_ROWS;
                let shorter = group.len() >= MIN_GROUP_ROWS && lengths[*row] * 5 <= longest * 4;
                if full || shorter {
                    groups.push(at..at + 1);
                } else {
                    group.end = at + 1;
                }
            }
            None => groups.push(at..at + 1),
        }
    }
    (order, groups)
}

/// Larger groups are no faster and take more memory.
const MAX_GROUP_ROWS: usize = 128;

/// Smaller groups leave the device underused.
const MIN_GROUP_ROWS: usize = 8;

/// Use prefix trees on the CPU only if they have at most this percentage of the tokens of the rows.
const HOST_MAX_PERCENT: usize = 80;

/// Like [`HOST_MAX_PERCENT`], on an accelerator or with autodiff. Autodiff keeps the attention
/// scores of all pairs of nodes; an accelerator has no fused attention for this mask, and computes
/// all positions of the last block. Chosen by counting operations, not by timing.
const DEVICE_MAX_PERCENT: usize = 60;

/// Returns the largest size of a tree for which `nodes` nodes make trees of about equal size, at
/// least `min_trees` of them unless they would be smaller than [`MIN_TREE_NODES`]. Two texts share
/// at most `shared` tokens.
fn max_tree_nodes(nodes: usize, shared: usize, min_trees: usize) -> usize {
    let min_trees = min_trees.min(nodes.div_ceil(MIN_TREE_NODES));
    let trees = nodes.div_ceil(MAX_TREE_NODES).max(min_trees).max(1);
    // Where a tree ends, the next one repeats the prefix that the two texts would have shared.
    nodes.div_ceil(trees) + shared
}

/// Larger trees share hardly more, and their attention costs more because it computes the scores of
/// all pairs of nodes.
const MAX_TREE_NODES: usize = 256;

/// Smaller trees share little and make small matrix products.
const MIN_TREE_NODES: usize = 64;

/// Number of trees to split a small batch into on the CPU, so that several cores have work. A
/// constant instead of the number of cores, for the reason given in [`host`](super::host).
const HOST_TREES: usize = 4;

/// Trees per batch on an accelerator or with autodiff.
const TREES_PER_BATCH: usize = 8;

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::config::{ClipConfig, TextKind};

    #[test]
    fn rows_are_grouped_by_length() {
        let lengths = [vec![5; 20], vec![20; 3], vec![18; 9], vec![6; 10]].concat();
        let (order, groups) = group_by_length(&lengths);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..lengths.len()).collect::<Vec<_>>());
        assert_eq!(groups, [0..12, 12..42]);
        assert_eq!(group_by_length(&[7; 300]).1, [0..128, 128..256, 256..300]);
        assert!(group_by_length(&[]).1.is_empty());
    }

    /// Returns a tower of one small block.
    fn tower(kind: TextKind) -> TextTower {
        let mut config = ClipConfig::vit_b_32();
        config.vision.hidden_size = 8;
        config.vision.intermediate_size = 8;
        config.vision.num_hidden_layers = 1;
        config.vision.num_attention_heads = 1;
        config.text.hidden_size = 8;
        config.text.intermediate_size = 8;
        config.text.num_hidden_layers = 1;
        config.text.num_attention_heads = 1;
        config.text.vocab_size = 100;
        config.text.max_position_embeddings = 10;
        config.text.eos_token_id = 99;
        config.text.kind = kind;
        config.projection_dim = 4;
        config.init(1, &Device::default()).text
    }

    fn uses_trees(tower: &TextTower, ids: Vec<Vec<u32>>) -> bool {
        let tokens = TokenBatch { ids };
        Batch::new(tower, &tokens).encode_prefix_trees().is_some()
    }

    #[test]
    fn trees_are_used_where_texts_share_prefixes() {
        let clip = tower(TextKind::Clip);
        let prompts: Vec<_> = (0..20).map(|i| vec![98, 1, 2, 3, 10 + i, 99]).collect();
        assert!(uses_trees(&clip, prompts.clone()));
        // Without a causal mask a position depends on what follows it.
        assert!(!uses_trees(&tower(TextKind::Siglip), prompts.clone()));
        assert!(!uses_trees(&clip, prompts[..1].to_vec()));
        let different: Vec<_> = (0..20).map(|i| vec![98, 10 + i, 2, 3, 1, 99]).collect();
        assert!(!uses_trees(&clip, different));
        // An empty row is one padded position.
        assert!(!uses_trees(&clip, [prompts.clone(), vec![vec![]]].concat()));
        let tokens = TokenBatch {
            ids: [prompts, vec![vec![]]].concat(),
        };
        assert_eq!(encode(&clip, &tokens).dims(), [21, 4]);
    }

    #[test]
    #[should_panic(expected = "a text of 11 tokens exceeds the context of 10")]
    fn a_text_beyond_the_context_is_refused() {
        let end_in_time = [vec![98, 99], vec![1; 9]].concat();
        uses_trees(&tower(TextKind::Clip), vec![vec![98, 99], end_in_time]);
    }

    #[test]
    fn trees_have_about_the_same_size() {
        assert_eq!(max_tree_nodes(270, 9, 1), 135 + 9);
        assert_eq!(max_tree_nodes(40, 9, 2), 40 + 9);
        assert_eq!(max_tree_nodes(100, 0, 2), 50);
        assert_eq!(max_tree_nodes(45_000, 16, 2), 256 + 16);
        assert_eq!(max_tree_nodes(0, 0, 2), 0);
    }
}

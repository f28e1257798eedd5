//! How a batch of texts goes through its tower: as trees where texts begin alike, otherwise as rows
//! of about the same length.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData};

use super::{
    TextTower,
    host::{encode_parts, is_host, parts},
    prefix_tree::{PrefixTree, alphabetical, different_beginnings, plant},
};
use crate::tokenizer::TokenBatch;

/// Features `[rows, e]`, not normalised.
pub(super) fn encode(tower: &TextTower, tokens: &TokenBatch) -> Tensor<2> {
    let batch = Batch::new(tower, tokens);
    batch.in_trees().unwrap_or_else(|| batch.in_rows())
}

/// The same without trees.
pub(super) fn encode_apart(tower: &TextTower, tokens: &TokenBatch) -> Tensor<2> {
    Batch::new(tower, tokens).in_rows()
}

struct Batch<'a> {
    tower: &'a TextTower,
    rows: Vec<&'a [u32]>,
    /// How many positions of each row are needed.
    lengths: Vec<usize>,
}

impl<'a> Batch<'a> {
    fn new(tower: &'a TextTower, tokens: &'a TokenBatch) -> Self {
        let rows: Vec<&[u32]> = tokens.ids.iter().map(Vec::as_slice).collect();
        rows.iter().for_each(|row| tower.check(row));
        let lengths = rows.iter().map(|row| tower.needed(row)).collect();
        Self {
            tower,
            rows,
            lengths,
        }
    }

    /// None where rows share too little of their beginnings, or must not.
    fn in_trees(&self) -> Option<Tensor<2>> {
        if !self.tower.is_causal() || self.rows.len() < 2 {
            return None;
        }
        // An empty row is filled up by the other way.
        let read = self.rows.iter().zip(&self.lengths);
        let texts: Vec<&[u32]> = read
            .map(|(row, length)| row.get(..*length))
            .collect::<Option<_>>()?;
        let order = alphabetical(&texts);
        let host = self.on_host();
        let together = if host { TREES_OF_HOST } else { 1 };
        let (nodes, shared) = different_beginnings(&texts, &order);
        let most = most_nodes(nodes, shared, together);
        let trees = plant(&texts, &order, most);
        let groups: Vec<_> = trees.chunks(if host { 1 } else { TREES_AT_ONCE }).collect();
        let positions = groups.iter().map(|trees| {
            let longest = trees.iter().map(PrefixTree::len).max().unwrap_or(0);
            trees.len() * longest
        });
        let worth = if host { HOST_WORTH } else { ELSEWHERE_WORTH };
        if positions.sum::<usize>() * 100 > self.lengths.iter().sum::<usize>() * worth {
            return None;
        }
        let encode = |trees: &[PrefixTree]| self.tower.forward_trees(trees);
        Some(self.encode(groups, &order, encode))
    }

    fn in_rows(&self) -> Tensor<2> {
        let (order, mut groups) = by_length(&self.lengths);
        if self.on_host() {
            groups = groups
                .into_iter()
                .flat_map(|group| {
                    let start = group.start;
                    let shift = move |part: Range<usize>| start + part.start..start + part.end;
                    parts(group.len()).into_iter().map(shift)
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
        self.encode(groups, &order, encode)
    }

    fn on_host(&self) -> bool {
        is_host(&self.tower.device())
    }

    /// The features of parts that hold the rows in `order`, in the order of the rows.
    fn encode<T: Send>(
        &self,
        parts: Vec<T>,
        order: &[usize],
        encode: impl Fn(T) -> Tensor<2> + Send + Sync,
    ) -> Tensor<2> {
        let features = if self.on_host() {
            encode_parts(parts, encode)
        } else {
            Tensor::cat(parts.into_iter().map(encode).collect(), 0)
        };
        let mut place = vec![0_i64; order.len()];
        for (at, row) in order.iter().enumerate() {
            place[*row] = at as i64;
        }
        let place = TensorData::new(place, [order.len()]);
        let place = Tensor::<1, Int>::from_data(place, &self.tower.device());
        features.select(0, place)
    }
}

/// An order of the rows by length, the longest first, and the stretches of it that are computed
/// together: each is at most [`LARGEST_GROUP`] rows, and a new one begins where the rows have
/// become a fifth shorter and there are enough of them.
fn by_length(lengths: &[usize]) -> (Vec<usize>, Vec<Range<usize>>) {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|row| std::cmp::Reverse(lengths[*row]));
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (at, row) in order.iter().enumerate() {
        match groups.last_mut() {
            Some(group) => {
                let longest = lengths[order[group.start]];
                let full = group.len() >= LARGEST_GROUP;
                let shorter = group.len() >= SMALLEST_GROUP && lengths[*row] * 5 <= longest * 4;
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

/// More rows at once bring no speed and take memory.
const LARGEST_GROUP: usize = 128;

/// Fewer rows at once leave the machine idle.
const SMALLEST_GROUP: usize = 8;

/// Of the positions of the rows by themselves, in percent, trees may have so many to be worth it.
const HOST_WORTH: usize = 80;

/// On a tape the scores of all pairs of nodes are kept; an accelerator has no attention in one
/// kernel under a mask, and computes all positions of the last block. Chosen by counting, not by
/// timing.
const ELSEWHERE_WORTH: usize = 60;

/// How large a tree may be so that `nodes` make trees of about the same size, `together` of them if
/// they are large enough for that. Two texts share at most `shared` tokens.
fn most_nodes(nodes: usize, shared: usize, together: usize) -> usize {
    let together = together.min(nodes.div_ceil(SMALLEST_TREE));
    let trees = nodes.div_ceil(LARGEST_TREE).max(together).max(1);
    // Where a tree ends, the next begins with what they would have shared.
    nodes.div_ceil(trees) + shared
}

/// Larger trees share hardly more, and their attention, which computes the scores of all pairs of
/// nodes, costs more.
const LARGEST_TREE: usize = 256;

/// Smaller ones share little, and make small products.
const SMALLEST_TREE: usize = 64;

/// Trees of few texts on a host, so that several processors have work; a number of its own and not
/// theirs, as in [`host`](super::host).
const TREES_OF_HOST: usize = 4;

/// Trees that go through an accelerator, or onto a tape, together.
const TREES_AT_ONCE: usize = 8;

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::config::{ClipConfig, TextKind};

    #[test]
    fn rows_are_grouped_by_length() {
        let lengths = [vec![5; 20], vec![20; 3], vec![18; 9], vec![6; 10]].concat();
        let (order, groups) = by_length(&lengths);
        let mut seen = order.clone();
        seen.sort_unstable();
        assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        assert_eq!(groups, [0..12, 12..42]);
        assert_eq!(by_length(&[7; 300]).1, [0..128, 128..256, 256..300]);
        assert!(by_length(&[]).1.is_empty());
    }

    /// A tower of one small block.
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

    fn in_trees(tower: &TextTower, ids: Vec<Vec<u32>>) -> bool {
        let tokens = TokenBatch { ids };
        Batch::new(tower, &tokens).in_trees().is_some()
    }

    #[test]
    fn texts_are_trees_where_they_begin_alike() {
        let clip = tower(TextKind::Clip);
        let prompts: Vec<_> = (0..20).map(|i| vec![98, 1, 2, 3, 10 + i, 99]).collect();
        assert!(in_trees(&clip, prompts.clone()));
        // What follows a position changes it.
        assert!(!in_trees(&tower(TextKind::Siglip), prompts.clone()));
        assert!(!in_trees(&clip, prompts[..1].to_vec()));
        let unlike: Vec<_> = (0..20).map(|i| vec![98, 10 + i, 2, 3, 1, 99]).collect();
        assert!(!in_trees(&clip, unlike));
        // An empty row is one position of filling.
        assert!(!in_trees(&clip, [prompts.clone(), vec![vec![]]].concat()));
        let tokens = TokenBatch {
            ids: [prompts, vec![vec![]]].concat(),
        };
        assert_eq!(encode(&clip, &tokens).dims(), [21, 4]);
    }

    #[test]
    #[should_panic(expected = "a text of 11 tokens exceeds the context of 10")]
    fn a_text_beyond_the_context_is_refused() {
        let end_in_time = [vec![98, 99], vec![1; 9]].concat();
        in_trees(&tower(TextKind::Clip), vec![vec![98, 99], end_in_time]);
    }

    #[test]
    fn trees_are_of_about_the_same_size() {
        assert_eq!(most_nodes(270, 9, 1), 135 + 9);
        assert_eq!(most_nodes(40, 9, 2), 40 + 9);
        assert_eq!(most_nodes(100, 0, 2), 50);
        assert_eq!(most_nodes(45_000, 16, 2), 256 + 16);
        assert_eq!(most_nodes(0, 0, 2), 0);
    }
}

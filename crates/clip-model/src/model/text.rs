//! The text tower: a transformer, causal in CLIP.

use burn::{
    module::{Module, Param},
    nn::{Embedding, EmbeddingConfig, LayerNorm},
    tensor::{Device, Int, Tensor, TensorData},
};

use clip_kernels::{Queries, Tree};

use super::{
    Observer,
    block::{BlockShape, ResidualBlock},
    params::Builder,
    prefix_tree::PrefixTree,
};
use crate::{
    config::{ClipConfig, TextKind},
    error::CheckpointError,
};

/// The text tower (OpenAI CLIP `clip/model.py`, `CLIP.encode_text`; `transformers`
/// `modeling_siglip.py`, class `SiglipTextTransformer`).
#[derive(Module, Debug)]
pub struct TextTower {
    /// `[vocabulary, w]`.
    pub token_embedding: Embedding,
    /// `[context, w]`.
    pub positional_embedding: Param<Tensor<2>>,
    /// The residual blocks, causally masked in CLIP.
    pub blocks: Vec<ResidualBlock>,
    /// After the blocks.
    pub ln_final: LayerNorm,
    /// `[w, e]`, applied on the right: `x · proj`.
    pub proj: Param<Tensor<2>>,
    /// `[e]`; SigLIP only.
    pub proj_bias: Option<Param<Tensor<1>>>,
    context: usize,
    vocabulary: usize,
    #[module(skip)]
    pooling: Pooling,
}

/// Which token's output stands for the text.
#[derive(Debug, Clone, Copy)]
enum Pooling {
    /// The first end token of this id. Without one `transformers` takes position 0, and so do we.
    EndToken(u32),
    /// The first of the largest ids.
    LargestId,
    /// The last position of the context; shorter rows are padded with this id.
    Last { pad: u32 },
}

impl TextTower {
    pub(super) fn build(
        builder: &mut Builder<'_>,
        config: &ClipConfig,
    ) -> Result<Self, CheckpointError> {
        let t = &config.text;
        let w = t.hidden_size;
        let shape = BlockShape {
            width: w,
            hidden: t.intermediate_size,
            heads: t.num_attention_heads,
            activation: t.hidden_act,
            epsilon: t.layer_norm_eps,
            causal: t.kind == TextKind::Clip,
        };
        let mut token_embedding = EmbeddingConfig::new(1, 1).init(builder.device);
        token_embedding.weight = builder.param("text.token_embedding.weight", [t.vocab_size, w])?;
        Ok(Self {
            token_embedding,
            positional_embedding: builder
                .param("text.positional_embedding", [t.max_position_embeddings, w])?,
            blocks: (0..t.num_hidden_layers)
                .map(|i| ResidualBlock::build(builder, &format!("text.blocks.{i}"), &shape))
                .collect::<Result<_, _>>()?,
            ln_final: builder.layer_norm("text.ln_final", w, t.layer_norm_eps)?,
            proj: builder.param("text.proj", [w, config.projection_dim])?,
            proj_bias: (t.kind == TextKind::Siglip)
                .then(|| builder.param("text.proj_bias", [config.projection_dim]))
                .transpose()?,
            context: t.max_position_embeddings,
            vocabulary: t.vocab_size,
            pooling: match (t.kind, t.eos_token_id) {
                (TextKind::Siglip, _) => Pooling::Last {
                    pad: t.pad_token_id,
                },
                // See `TextConfig::eos_token_id`.
                (TextKind::Clip, 2) => Pooling::LargestId,
                (TextKind::Clip, end) => Pooling::EndToken(end),
            },
        })
    }

    /// Longest text in tokens, specials included.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Number of positions that must be computed for a row: those up to the one that is read. The
    /// mask of CLIP is causal, so no later position influences it; SigLIP's is not, and it always
    /// takes them all.
    pub(super) fn needed(&self, row: &[u32]) -> usize {
        1 + match self.pooling {
            Pooling::EndToken(end) => row.iter().position(|id| *id == end).unwrap_or(0),
            Pooling::LargestId => {
                let largest = row.iter().max();
                row.iter().position(|id| Some(id) == largest).unwrap_or(0)
            }
            Pooling::Last { .. } => self.context - 1,
        }
    }

    /// Whether texts that begin alike share the activations of their beginning.
    pub(super) fn is_causal(&self) -> bool {
        !matches!(self.pooling, Pooling::Last { .. })
    }

    /// Token rows to unnormalised features `[rows, e]`.
    ///
    /// The rows are cut behind the last position that one of them needs.
    ///
    /// # Panics
    /// If a row is longer than the context, or holds an id outside the vocabulary, or there is no
    /// row.
    pub(super) fn forward<O: Observer>(&self, rows: &[&[u32]], observer: &mut O) -> Tensor<2> {
        assert!(!rows.is_empty(), "there is no text to encode");
        let positions: Vec<usize> = rows.iter().map(|row| self.needed(row) - 1).collect();
        let n = if observer.wants_all_positions() {
            self.context
        } else {
            positions.iter().max().map_or(1, |p| p + 1)
        };
        let fill = match self.pooling {
            Pooling::Last { pad } => i64::from(pad),
            _ => 0,
        };
        let batch = rows.len();
        let mut ids = vec![fill; batch * n];
        for (row, out) in rows.iter().zip(ids.chunks_mut(n)) {
            self.check(row);
            for (id, out) in row.iter().zip(out) {
                *out = i64::from(*id);
            }
        }
        let x = self.token_embedding.forward(self.ints(ids, [batch, n]));
        let [_, _, w] = x.dims();
        let mut x = x + self
            .positional_embedding
            .val()
            .slice([0..n, 0..w])
            .unsqueeze();

        let last = self.blocks.len() - 1;
        for (i, block) in self.blocks.iter().enumerate() {
            let path = || format!("text.blocks.{i}");
            let read = if i < last {
                Queries::All
            } else {
                Queries::At(positions.clone())
            };
            x = block.forward(x, &read, &path, observer);
        }
        self.project(x.reshape([batch, w]))
    }

    /// Texts that share their beginnings to unnormalised features `[texts, e]`, in the order in
    /// which they were added to the trees. Each text ends where it is read, and has been
    /// [checked](Self::check).
    ///
    /// # Panics
    /// If there is no text, or the tower is not causal.
    pub(super) fn forward_trees(&self, trees: &[PrefixTree]) -> Tensor<2> {
        assert!(self.is_causal(), "a beginning depends on what follows it");
        let n = trees.iter().map(PrefixTree::len).max().unwrap_or(0);
        assert!(n > 0, "there is no text to encode");
        let shape = [trees.len(), n];
        let (mut ids, mut positions) = (vec![0; trees.len() * n], vec![0; trees.len() * n]);
        let (mut parents, mut read) = (Vec::with_capacity(trees.len() * n), Vec::new());
        for (item, tree) in trees.iter().enumerate() {
            for (node, (id, position)) in tree.ids.iter().zip(&tree.positions).enumerate() {
                ids[item * n + node] = i64::from(*id);
                positions[item * n + node] = *position as i64;
            }
            // What fills a tree up sees itself alone, and nobody reads it.
            parents.extend(tree.parents.iter().copied().chain(tree.len()..n));
            read.extend(tree.ends.iter().map(|end| (item * n + end) as i64));
        }
        let x = self.token_embedding.forward(self.ints(ids, shape));
        let [_, _, w] = x.dims();
        let positions = self.ints(positions, [shape[0] * n]);
        let places = self.positional_embedding.val().select(0, positions);
        let mut x = x + places.reshape([shape[0], n, w]);

        let trees = Queries::Tree(Tree::new(parents));
        let (last, others) = self.blocks.split_last().expect("a tower has blocks");
        for block in others {
            x = block.forward(x, &trees, &String::new, &mut ());
        }
        let count = read.len();
        let x = last.forward_nodes(x, &trees, self.ints(read, [count]));
        self.project(x.reshape([count, w]))
    }

    /// # Panics
    /// If a row is longer than the context, or holds an id outside the vocabulary.
    pub(super) fn check(&self, row: &[u32]) {
        assert!(
            row.len() <= self.context,
            "a text of {} tokens exceeds the context of {}",
            row.len(),
            self.context
        );
        for id in row {
            assert!(
                (*id as usize) < self.vocabulary,
                "token {id} is outside the vocabulary of {}",
                self.vocabulary
            );
        }
    }

    fn ints<const D: usize>(&self, values: Vec<i64>, shape: [usize; D]) -> Tensor<D, Int> {
        Tensor::from_data(TensorData::new(values, shape), &self.device())
    }

    /// Where it computes.
    pub(super) fn device(&self) -> Device {
        self.positional_embedding.val().device()
    }

    /// Outputs of the last block, `[texts, w]`, to features.
    fn project(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.ln_final.forward(x).matmul(self.proj.val());
        match &self.proj_bias {
            Some(bias) => x + bias.val().unsqueeze(),
            None => x,
        }
    }
}

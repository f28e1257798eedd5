//! Transformer text tower of CLIP (causal) and SigLIP (bidirectional).

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
    text_batch::TextBatching,
};
use crate::{
    config::{ClipConfig, TextKind},
    error::CheckpointError,
};

/// The text tower (OpenAI CLIP `clip/model.py`, `CLIP.encode_text`; `transformers`
/// `modeling_siglip.py`, class `SiglipTextTransformer`).
#[derive(Module, Debug)]
pub struct TextTower {
    /// Token embedding, `[vocabulary, w]`.
    pub token_embedding: Embedding,
    /// Position embedding, `[context, w]`.
    pub positional_embedding: Param<Tensor<2>>,
    /// The residual blocks, causally masked in CLIP.
    pub blocks: Vec<ResidualBlock>,
    /// After the blocks.
    pub ln_final: LayerNorm,
    /// Projection to the joint embedding space, `[w, e]`, as `x · proj`.
    pub proj: Param<Tensor<2>>,
    /// Bias of the projection, `[e]`; SigLIP only.
    pub proj_bias: Option<Param<Tensor<1>>>,
    context: usize,
    vocabulary: usize,
    #[module(skip)]
    pooling: Pooling,
    #[module(skip)]
    pub(super) batching: TextBatching,
}

/// Position whose output becomes the text feature.
#[derive(Debug, Clone, Copy)]
enum Pooling {
    /// First occurrence of this end token. Without one, position 0, as in `transformers`.
    EndToken(u32),
    /// First occurrence of the largest id of the row.
    LargestId,
    /// Last position of the context; shorter rows are padded with `pad`.
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
            batching: TextBatching::default(),
        })
    }

    /// Returns the context length: the maximum number of tokens of a text, special tokens included.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Returns the number of positions to compute for a row: those up to the pooled one. CLIP's
    /// mask is causal, so later positions have no influence. SigLIP has no mask and always needs
    /// the full context.
    pub(super) fn required_len(&self, row: &[u32]) -> usize {
        1 + match self.pooling {
            Pooling::EndToken(end) => row.iter().position(|id| *id == end).unwrap_or(0),
            Pooling::LargestId => {
                let largest = row.iter().max();
                row.iter().position(|id| Some(id) == largest).unwrap_or(0)
            }
            Pooling::Last { .. } => self.context - 1,
        }
    }

    /// Returns whether texts with a common prefix have the same activations there.
    pub(super) fn is_causal(&self) -> bool {
        !matches!(self.pooling, Pooling::Last { .. })
    }

    /// Token rows to unnormalised features `[rows, e]`.
    ///
    /// The batch is as long as the longest required length of its rows.
    ///
    /// # Panics
    /// If there are no rows, if a row is longer than the context, or if it holds an id outside the
    /// vocabulary.
    pub(super) fn forward<O: Observer>(&self, rows: &[&[u32]], observer: &mut O) -> Tensor<2> {
        assert!(!rows.is_empty(), "there is no text to encode");
        let positions: Vec<usize> = rows.iter().map(|row| self.required_len(row) - 1).collect();
        let n = if self.batching == TextBatching::FullContext {
            self.context
        } else {
            positions.iter().max().map_or(1, |p| p + 1)
        };
        // SigLIP attends to padding, so the id matters there. Under CLIP's causal mask it does not.
        let pad = match self.pooling {
            Pooling::Last { pad } => i64::from(pad),
            _ => 0,
        };
        let batch = rows.len();
        let mut ids = vec![pad; batch * n];
        for (row, out) in rows.iter().zip(ids.chunks_mut(n)) {
            self.check_tokens(row);
            for (id, out) in row.iter().zip(out) {
                *out = i64::from(*id);
            }
        }
        let x = self
            .token_embedding
            .forward(self.int_tensor(ids, [batch, n]));
        let [_, _, w] = x.dims();
        let mut x = x + self
            .positional_embedding
            .val()
            .slice([0..n, 0..w])
            .unsqueeze();

        // Only the pooled position of the last block reaches the output.
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

    /// Prefix trees to unnormalised features `[texts, e]`, in the order in which the texts were
    /// added to the trees. Each text ends at its pooled position and has passed
    /// [`check_tokens`](Self::check_tokens).
    ///
    /// # Panics
    /// If there is no text, or if the tower is not causal.
    pub(super) fn forward_trees(&self, trees: &[PrefixTree]) -> Tensor<2> {
        assert!(self.is_causal(), "prefix sharing needs a causal mask");
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
            // Padding nodes are roots: they attend to themselves only, their outputs are unused.
            parents.extend(tree.parents.iter().copied().chain(tree.len()..n));
            read.extend(tree.ends.iter().map(|end| (item * n + end) as i64));
        }
        let x = self.token_embedding.forward(self.int_tensor(ids, shape));
        let [_, _, w] = x.dims();
        let positions = self.int_tensor(positions, [shape[0] * n]);
        let positions = self.positional_embedding.val().select(0, positions);
        let mut x = x + positions.reshape([shape[0], n, w]);

        let trees = Queries::Tree(Tree::new(parents));
        let (last, others) = self.blocks.split_last().expect("a tower has blocks");
        for block in others {
            x = block.forward(x, &trees, &String::new, &mut ());
        }
        let count = read.len();
        let x = last.forward_nodes(x, &trees, self.int_tensor(read, [count]));
        self.project(x.reshape([count, w]))
    }

    /// Checks the length and the ids of a row.
    ///
    /// # Panics
    /// If the row is longer than the context, or if it holds an id outside the vocabulary.
    pub(super) fn check_tokens(&self, row: &[u32]) {
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

    fn int_tensor<const D: usize>(&self, values: Vec<i64>, shape: [usize; D]) -> Tensor<D, Int> {
        Tensor::from_data(TensorData::new(values, shape), &self.device())
    }

    /// Returns the device of the parameters.
    pub(super) fn device(&self) -> Device {
        self.positional_embedding.val().device()
    }

    /// Pooled outputs of the last block `[texts, w]` to features `[texts, e]`.
    fn project(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.ln_final.forward(x).matmul(self.proj.val());
        match &self.proj_bias {
            Some(bias) => x + bias.val().unsqueeze(),
            None => x,
        }
    }
}

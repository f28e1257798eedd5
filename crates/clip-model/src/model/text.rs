//! The text tower: a causal transformer.

use burn::{
    module::{Module, Param},
    nn::{Embedding, EmbeddingConfig, LayerNorm},
    tensor::{Int, Tensor, TensorData},
};

use super::{
    block::{BlockShape, ResidualBlock},
    params::Builder,
};
use crate::{config::ClipConfig, error::CheckpointError, tokenizer::TokenBatch};

/// The text tower (OpenAI CLIP `clip/model.py`, `CLIP.encode_text`).
#[derive(Module, Debug)]
pub struct TextTower {
    /// `[vocabulary, w]`.
    pub token_embedding: Embedding,
    /// `[context, w]`.
    pub positional_embedding: Param<Tensor<2>>,
    /// The residual blocks, causally masked.
    pub blocks: Vec<ResidualBlock>,
    /// After the blocks.
    pub ln_final: LayerNorm,
    /// `[w, e]`, applied on the right: `x · proj`.
    pub proj: Param<Tensor<2>>,
    context: usize,
    vocabulary: usize,
    end_token: u32,
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
            causal: true,
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
            context: t.max_position_embeddings,
            vocabulary: t.vocab_size,
            end_token: t.eos_token_id,
        })
    }

    /// Longest text in tokens, specials included.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Position of the token whose output stands for the text: the first end token, or the first
    /// largest id when the configuration says 2 (see [`TextConfig::eos_token_id`]).
    ///
    /// [`TextConfig::eos_token_id`]: crate::TextConfig::eos_token_id
    fn pooled_position(&self, row: &[u32]) -> usize {
        if self.end_token == 2 {
            let largest = row.iter().max();
            row.iter().position(|id| Some(id) == largest).unwrap_or(0)
        } else {
            // Without an end token `transformers` takes position 0, and so do we.
            row.iter().position(|id| *id == self.end_token).unwrap_or(0)
        }
    }

    /// Token rows to unnormalised features `[rows, e]`.
    ///
    /// The rows are cut behind the last pooled position of the batch. This is exact: the mask is
    /// causal, so no later position influences a pooled one.
    ///
    /// # Panics
    /// If a row is longer than the context, or holds an id outside the vocabulary, or there is no row.
    pub(super) fn forward(&self, tokens: &TokenBatch) -> Tensor<2> {
        let rows = &tokens.ids;
        assert!(!rows.is_empty(), "there is no text to encode");
        let positions: Vec<usize> = rows.iter().map(|row| self.pooled_position(row)).collect();
        let n = positions.iter().max().map_or(1, |p| p + 1);
        assert!(
            n <= self.context,
            "a text of {n} tokens exceeds the context of {}",
            self.context
        );
        let batch = rows.len();
        let mut ids = vec![0_i64; batch * n];
        for (row, out) in rows.iter().zip(ids.chunks_mut(n)) {
            for (id, out) in row.iter().zip(out) {
                assert!(
                    (*id as usize) < self.vocabulary,
                    "token {id} is outside the vocabulary of {}",
                    self.vocabulary
                );
                *out = i64::from(*id);
            }
        }
        let device = self.positional_embedding.val().device();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [batch, n]), &device);
        let x = self.token_embedding.forward(ids);
        let [_, _, w] = x.dims();
        let mut x = x + self
            .positional_embedding
            .val()
            .slice([0..n, 0..w])
            .unsqueeze();

        let flat: Vec<i64> = positions
            .iter()
            .enumerate()
            .map(|(b, p)| (b * n + p) as i64)
            .collect();
        let flat = Tensor::<1, Int>::from_data(TensorData::new(flat, [batch]), &device);
        let pick = |x: Tensor<3>| {
            let [batch, n, w] = x.dims();
            x.reshape([batch * n, w])
                .select(0, flat.clone())
                .reshape([batch, 1, w])
        };
        let hidden: Vec<f32> = positions
            .iter()
            .flat_map(|p| (0..n).map(move |i| if i <= *p { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        let visible = Tensor::<2>::from_data(TensorData::new(hidden, [batch, n]), &device);
        let last = self.blocks.len() - 1;
        let path = String::new;
        for block in &self.blocks[..last] {
            x = block.forward(x, &path, &mut ());
        }
        let x = self.blocks[last].forward_one(x, &pick, Some(visible), &path, &mut ());
        self.ln_final
            .forward(x)
            .reshape([batch, w])
            .matmul(self.proj.val())
    }
}

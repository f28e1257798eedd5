//! What a method that needs to see activations, or to add to them, implements.

use burn::tensor::Tensor;

/// Is handed activations during
/// [`ClipModel::encode_image_observed`](crate::ClipModel::encode_image_observed) and
/// [`ClipModel::encode_text_observed`](crate::ClipModel::encode_text_observed). Burn has no forward
/// hooks, so the model offers this instead; `()` observes nothing and costs nothing.
pub trait Observer {
    /// Whether to call the methods below at all.
    const ACTIVE: bool = true;

    /// Whether the last block is to run on every token although only one of them reaches the
    /// output. The published Gram pass does (GNSP `src/models/get_data_matrix.py:62-92`).
    fn wants_all_tokens(&self) -> bool {
        true
    }

    /// Whether texts are to run up to the end of the context, although a causal mask keeps what
    /// follows the end token from the output. For comparing with code that does.
    fn wants_all_positions(&self) -> bool {
        false
    }

    /// Receives the input `rows` `[tokens, features]` of the linear map whose weight is the
    /// parameter `parameter` (`visual.blocks.3.mlp.c_fc.weight`, `visual.proj`, …).
    fn linear_input(&mut self, parameter: &str, rows: Tensor<2>) {
        let _ = (parameter, rows);
    }

    /// What is added to the output of the residual block `block` (`visual.blocks.3`,
    /// `text.blocks.0`), if anything: a branch beside its MLP. `x` `[batch, n, d]` is the state
    /// after the attention, of which the MLP gets the normalised value.
    fn branch(&mut self, block: &str, x: &Tensor<3>) -> Option<Tensor<3>> {
        let _ = (block, x);
        None
    }
}

impl Observer for () {
    const ACTIVE: bool = false;

    fn wants_all_tokens(&self) -> bool {
        false
    }
}

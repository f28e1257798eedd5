//! What a method that needs to see activations implements.

use burn::tensor::Tensor;

/// Is handed the input of each named linear map of the image tower during
/// [`ClipModel::encode_image_observed`](crate::ClipModel::encode_image_observed). Burn has no forward hooks, so
/// the model offers this instead; `()` observes nothing and costs nothing.
pub trait Observer {
    /// Whether to call [`linear_input`](Self::linear_input) at all.
    const ACTIVE: bool = true;

    /// Whether the last block is to run on every token although only the class token reaches the
    /// output. The published Gram pass does (GNSP `src/models/get_data_matrix.py:62-92`).
    fn wants_all_tokens(&self) -> bool {
        true
    }

    /// Receives the input `rows` `[tokens, features]` of the linear map whose weight is the parameter
    /// `parameter` (`visual.blocks.3.mlp.c_fc.weight`, `visual.proj`, …).
    fn linear_input(&mut self, parameter: &str, rows: Tensor<2>);
}

impl Observer for () {
    const ACTIVE: bool = false;

    fn wants_all_tokens(&self) -> bool {
        false
    }

    fn linear_input(&mut self, _parameter: &str, _rows: Tensor<2>) {}
}

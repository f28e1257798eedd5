//! Forward hooks: access to activations during encoding.

use burn::tensor::Tensor;

/// A forward hook, called by
/// [`ClipModel::encode_image_observed`](crate::ClipModel::encode_image_observed) and
/// [`ClipModel::encode_text_observed`](crate::ClipModel::encode_text_observed).
///
/// Burn has no forward hooks, so the model offers this trait instead. `()` observes nothing and
/// costs nothing.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use clip_model::{Clip, Observer};
///
/// /// Collects the names of the linear layers.
/// struct Layers(Vec<String>);
///
/// impl Observer for Layers {
///     fn linear_input(&mut self, parameter: &str, _rows: Tensor<2>) {
///         self.0.push(parameter.to_owned());
///     }
/// }
///
/// let clip = Clip::load("../mini-world/clip-mini".as_ref(), &Device::default())?;
/// let mut layers = Layers(Vec::new());
/// let pixels = Tensor::zeros([1, 3, 32, 32], &clip.model.device());
/// clip.model.encode_image_observed(pixels, &mut layers);
/// assert_eq!(layers.0[0], "visual.blocks.0.mlp.c_fc.weight");
/// # Ok::<(), clip_model::CheckpointError>(())
/// ```
pub trait Observer {
    /// If false, the model skips the calls to this observer.
    const ACTIVE: bool = true;

    /// Returns whether the last block runs on every token, although only one of them reaches the
    /// output. The reference Gram pass does (GNSP `src/models/get_data_matrix.py:62-92`).
    fn wants_all_tokens(&self) -> bool {
        true
    }

    /// Returns whether the observer also receives the inputs of the attention's projections
    /// (`attn.in_proj`, `attn.out_proj`), which the fused attention does not return.
    fn wants_attention_inputs(&self) -> bool {
        false
    }

    /// Receives the input of the linear layer whose weight is `parameter`
    /// (`visual.blocks.3.mlp.c_fc.weight`, `visual.proj`, …).
    ///
    /// # Shapes
    /// - `rows`: `[tokens, features]`
    fn linear_input(&mut self, parameter: &str, rows: Tensor<2>) {
        let _ = (parameter, rows);
    }

    /// Returns a branch to add to the output of the residual block `block` (`visual.blocks.3`,
    /// `text.blocks.0`), parallel to its MLP. `x` is the residual stream after the attention, whose
    /// layer norm the MLP takes.
    ///
    /// # Shapes
    /// - `x` and output: `[batch, n, d]`
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

//! Ablation of the optimisations of the GNSP training step.

use burn::tensor::Tensor;
use clip_model::{ClipModel, Observer, TextBatching, TokenBatch};

/// Switches of the optimisations that avoid redundant work of GNSP's reference implementation in
/// every training step. A run enables all of them; an ablation disables one to measure its effect.
/// None changes a loss by more than rounding.
///
/// ```
/// use mtil_engine::run::Optimizations;
///
/// let mut optimizations = Optimizations::default();
/// *optimizations.get_mut("short-texts").unwrap() = false;
/// assert!(!optimizations.short_texts && optimizations.one_pass);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Optimizations {
    /// The features of the class prompts are computed once (GNSP
    /// `src/models/finetune_gnsp.py:260`).
    pub class_texts: bool,
    /// The teacher's features and those of the reference texts are computed once
    /// (`finetune_gnsp.py:292-310`).
    pub reference_features: bool,
    /// Texts are truncated after their end token, not at position 77 (`clip/model.py:398-409`).
    pub short_texts: bool,
    /// Shared prefixes of texts are computed once, which the causal mask permits. Needs
    /// `short_texts` and `last_block`.
    pub shared_prefixes: bool,
    /// The last image block computes the class token only (`clip/model.py:283`).
    pub last_block: bool,
    /// No gradients are computed for frozen weights.
    pub tape: bool,
    /// Task and reference images share one pass through the image tower.
    pub one_pass: bool,
    /// Gradients are projected with the factored projector, not with a dense `n × n` matrix
    /// (`finetune_gnsp.py:429-448`).
    pub factored: bool,
    /// Fused kernels on the host in place of Burn's single operations.
    pub fused: bool,
}

impl Default for Optimizations {
    fn default() -> Self {
        Self {
            class_texts: true,
            reference_features: true,
            short_texts: true,
            shared_prefixes: true,
            last_block: true,
            tape: true,
            one_pass: true,
            factored: true,
            fused: true,
        }
    }
}

impl Optimizations {
    /// Names of the switches, in the order of the fields.
    pub const NAMES: [&'static str; 9] = [
        "class-texts",
        "reference-features",
        "short-texts",
        "shared-prefixes",
        "last-block",
        "tape",
        "one-pass",
        "factored",
        "fused",
    ];

    /// Returns the switch `name`.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "class-texts" => &mut self.class_texts,
            "reference-features" => &mut self.reference_features,
            "short-texts" => &mut self.short_texts,
            "shared-prefixes" => &mut self.shared_prefixes,
            "last-block" => &mut self.last_block,
            "tape" => &mut self.tape,
            "one-pass" => &mut self.one_pass,
            "factored" => &mut self.factored,
            "fused" => &mut self.fused,
            _ => return None,
        })
    }

    /// Encodes images; features `[images, width]` are not normalised.
    pub(super) fn encode_image(&self, model: &ClipModel, pixels: Tensor<4>) -> Tensor<2> {
        if self.last_block {
            return model.encode_image(pixels);
        }
        model.encode_image_observed(pixels, &mut AllTokens)
    }

    /// Encodes texts; features `[texts, width]` are not normalised.
    pub(super) fn encode_text(&self, model: &ClipModel, tokens: &TokenBatch) -> Tensor<2> {
        let batching = match (self.short_texts, self.shared_prefixes) {
            (false, _) => TextBatching::FullContext,
            (true, false) => TextBatching::Padded,
            (true, true) => TextBatching::SharedPrefixes,
        };
        let model = model.clone().with_text_batching(batching);
        if self.last_block {
            model.encode_text(tokens)
        } else {
            model.encode_text_observed(tokens, &mut AllTokens)
        }
    }
}

/// Observer that records nothing, and makes the last block compute all tokens.
struct AllTokens;

impl Observer for AllTokens {
    const ACTIVE: bool = false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_own_switch() {
        for (at, name) in Optimizations::NAMES.iter().enumerate() {
            let mut one = Optimizations::default();
            *one.get_mut(name).unwrap() = false;
            assert_ne!(one, Optimizations::default(), "{name}");
            for other in &Optimizations::NAMES[at + 1..] {
                assert!(*one.get_mut(other).unwrap(), "{name} and {other}");
            }
        }
        assert_eq!(Optimizations::default().get_mut("speed"), None);
    }
}

//! What makes a training step cheap without changing it, each with its switch.

use burn::tensor::Tensor;
use clip_model::{ClipModel, Observer, TokenBatch};

/// What GNSP's published code computes in every step although it need not, or computes in full
/// although a part would do. A run has all of them on; an ablation switches one off to see what it
/// is worth. None changes a loss by more than rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Optimizations {
    /// The features of the class prompts are computed once (GNSP
    /// `src/models/finetune_gnsp.py:260`).
    pub class_texts: bool,
    /// The teacher's features and those of the reference texts are computed once
    /// (`finetune_gnsp.py:292-310`).
    pub reference_features: bool,
    /// Texts end where their end token stands, not at position 77 (`clip/model.py:398-409`).
    pub short_texts: bool,
    /// What texts have in common at their beginning is computed once; it depends on nothing behind
    /// it. Without `short_texts` and `last_block` it never is.
    pub shared_beginnings: bool,
    /// The last image block computes its class token only (`clip/model.py:283`).
    pub last_block: bool,
    /// Frozen weights, and what only they reach, have no gradient.
    pub tape: bool,
    /// Task and reference images go through the image tower together.
    pub one_pass: bool,
    /// Gradients are projected by the protected directions, not by a matrix of `n · n`
    /// (`finetune_gnsp.py:429-448`).
    pub factored: bool,
    /// The host's fused branches in place of Burn's single operations.
    pub fused: bool,
}

impl Default for Optimizations {
    fn default() -> Self {
        Self {
            class_texts: true,
            reference_features: true,
            short_texts: true,
            shared_beginnings: true,
            last_block: true,
            tape: true,
            one_pass: true,
            factored: true,
            fused: true,
        }
    }
}

impl Optimizations {
    /// Their names, in the order of the fields.
    pub const NAMES: [&'static str; 9] = [
        "class-texts",
        "reference-features",
        "short-texts",
        "shared-beginnings",
        "last-block",
        "tape",
        "one-pass",
        "factored",
        "fused",
    ];

    /// The switch called `name`.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "class-texts" => &mut self.class_texts,
            "reference-features" => &mut self.reference_features,
            "short-texts" => &mut self.short_texts,
            "shared-beginnings" => &mut self.shared_beginnings,
            "last-block" => &mut self.last_block,
            "tape" => &mut self.tape,
            "one-pass" => &mut self.one_pass,
            "factored" => &mut self.factored,
            "fused" => &mut self.fused,
            _ => return None,
        })
    }

    /// Image features, not normalised.
    pub(super) fn encode_image(&self, model: &ClipModel, pixels: Tensor<4>) -> Tensor<2> {
        if self.last_block {
            return model.encode_image(pixels);
        }
        model.encode_image_observed(pixels, &mut self.observer())
    }

    /// Text features, not normalised.
    pub(super) fn encode_text(&self, model: &ClipModel, tokens: &TokenBatch) -> Tensor<2> {
        match (self.short_texts && self.last_block, self.shared_beginnings) {
            (true, true) => model.encode_text(tokens),
            (true, false) => model.encode_text_apart(tokens),
            (false, _) => model.encode_text_observed(tokens, &mut self.observer()),
        }
    }

    fn observer(&self) -> Whole {
        Whole {
            tokens: !self.last_block,
            positions: !self.short_texts,
        }
    }
}

/// Sees nothing, and has the towers compute what nobody reads.
struct Whole {
    tokens: bool,
    positions: bool,
}

impl Observer for Whole {
    const ACTIVE: bool = false;

    fn wants_all_tokens(&self) -> bool {
        self.tokens
    }

    fn wants_all_positions(&self) -> bool {
        self.positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_switch_of_its_own() {
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

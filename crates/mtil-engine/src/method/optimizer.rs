//! What makes the updates: the optimizer, and the number format of the towers.

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

/// Settings of AdamW (Loshchilov and Hutter 2019).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

impl AdamW {
    pub(super) fn check(&self) -> Result<(), String> {
        for (key, beta) in [("beta_1", self.beta_1), ("beta_2", self.beta_2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(format!(
                    "`adamw.{key}` must be at least 0 and below 1, it is {beta}"
                ));
            }
        }
        Ok(())
    }
}

/// Which optimizer makes the updates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// AdamW, with the settings of `[adamw]`.
    #[serde(rename = "adamw")]
    AdamW,
    /// Plain gradient descent.
    Sgd,
}

/// In what the towers compute while training. Weights, moments and losses are in `f32` in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    /// `"f32"`, as published.
    #[default]
    F32,
    /// `"bf16"`: half the memory of activations, and faster on devices that have it.
    Bf16,
}

impl Compute {
    /// Whether this is what is published.
    pub fn is_full(&self) -> bool {
        *self == Self::F32
    }

    /// Burn's name.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

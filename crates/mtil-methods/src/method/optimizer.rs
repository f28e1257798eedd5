//! Optimizer settings and the floating-point format of training.

use burn::tensor::FloatDType;
use clip_kernels::AdamWSettings;
use serde::{Deserialize, Serialize};

/// Hyper-parameters of AdamW (Loshchilov and Hutter 2019).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay rate of the first moment.
    pub beta_1: f32,
    /// Decay rate of the second moment.
    pub beta_2: f32,
    /// Constant added to the square root of the second moment.
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
    /// Returns the settings of the fused optimizer.
    pub fn fused(&self) -> AdamWSettings {
        AdamWSettings {
            beta_1: self.beta_1,
            beta_2: self.beta_2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
        }
    }

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

/// Optimizer of the training steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// AdamW, with the hyper-parameters of `[adamw]`.
    #[serde(rename = "adamw")]
    AdamW,
    /// Stochastic gradient descent without momentum.
    Sgd,
}

/// Floating-point format of the towers in training. Weights, moments and losses are always `f32`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    /// `"f32"`, as in the published methods.
    #[default]
    F32,
    /// `"bf16"`: halves the memory of activations and is faster on devices that support it.
    Bf16,
}

impl Compute {
    /// Returns whether this is full precision, the format of the published methods.
    pub fn is_full(&self) -> bool {
        *self == Self::F32
    }

    /// Returns Burn's data type.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

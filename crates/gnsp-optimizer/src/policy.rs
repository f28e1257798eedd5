//! Policies: the settings of a null-space projection method.

use serde::{Deserialize, Serialize};

use crate::{GnspError, GramNormalization, History, RankRule, Site, Solver, Strength};

/// Settings of a null-space projection method, with the published methods as presets.
///
/// # Example
///
/// ```
/// use gnsp_optimizer::{Policy, RankRule};
///
/// let policy = Policy::gnsp_update().with_rank(RankRule::TailShare(0.05));
/// policy.check()?;
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
///
/// | preset | site | rank rule | history | Gram normalization |
/// |---|---|---|---|---|
/// | [`gnsp`](Self::gnsp) | gradient | tail share 0.15 | sum | per batch and task |
/// | [`gnsp_update`](Self::gnsp_update) (default) | update | tail share 0.15 | sum | per batch and task |
/// | [`gpm`](Self::gpm) | gradient | explained energy 0.97 | growing basis | none |
/// | [`adam_nscl`](Self::adam_nscl) | update | all above 10 × the smallest | sum | none |
/// | [`ogd`](Self::ogd) | gradient | all stored gradients | (gradients) | – |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Policy {
    /// The tensor that is projected: the gradient or the update.
    pub site: Site,
    /// The rule for the number of protected directions.
    pub rank: RankRule,
    /// The strength of their protection.
    pub strength: Strength,
    /// The rule that combines the Gram matrices of successive tasks.
    pub history: History,
    /// Normalization of Gram matrices by their Frobenius norms.
    pub normalization: GramNormalization,
    /// Divides the projector by its Frobenius norm, the square root of the number of free
    /// directions. The published code of Adam-NSCL does this (`optim/adam_svd.py`,
    /// `get_transforms`); its paper does not.
    pub normalize: bool,
    /// The eigenvalue solver.
    pub solver: Solver,
}

impl Policy {
    /// Sets the tensor that is projected.
    pub fn with_site(mut self, site: Site) -> Self {
        self.site = site;
        self
    }

    /// Sets the rule for the number of protected directions.
    pub fn with_rank(mut self, rank: RankRule) -> Self {
        self.rank = rank;
        self
    }

    /// Sets the strength of the protection.
    pub fn with_strength(mut self, strength: Strength) -> Self {
        self.strength = strength;
        self
    }

    /// Sets the rule that combines the Gram matrices of successive tasks.
    pub fn with_history(mut self, history: History) -> Self {
        self.history = history;
        self
    }

    /// Sets the normalization of Gram matrices.
    pub fn with_normalization(mut self, normalization: GramNormalization) -> Self {
        self.normalization = normalization;
        self
    }

    /// Sets whether the projector is divided by its Frobenius norm.
    pub fn with_normalize(mut self, normalize: bool) -> Self {
        self.normalize = normalize;
        self
    }

    /// Sets the eigenvalue solver.
    pub fn with_solver(mut self, solver: Solver) -> Self {
        self.solver = solver;
        self
    }

    /// Validates the settings that do not depend on a model.
    ///
    /// Call it before training, because the first projection is computed only after a task.
    ///
    /// # Errors
    ///
    /// Returns the first setting that is out of range, and
    /// [`BasisRule`](GnspError::BasisRule) for [`History::Basis`] with
    /// [`RankRule::RatioToSmallest`].
    pub fn check(&self) -> Result<(), GnspError> {
        self.rank.check(usize::MAX)?;
        self.strength.check()?;
        match self.history {
            History::Decay(factor) if !(factor > 0.0 && factor <= 1.0) => {
                Err(GnspError::Decay(factor))
            }
            History::Basis if matches!(self.rank, RankRule::RatioToSmallest(_)) => {
                Err(GnspError::BasisRule(self.rank))
            }
            _ => Ok(()),
        }
    }

    /// GNSP as published: projects the gradient before the optimizer's step (arXiv 2507.19839;
    /// GNSP `configs/mtil_order_I.json`, `src/models/finetune_gnsp.py:108-170`).
    pub fn gnsp() -> Self {
        Self {
            site: Site::Gradient,
            rank: RankRule::TailShare(0.15),
            strength: Strength::Hard,
            history: History::Sum,
            normalization: GramNormalization::PerBatchAndTask,
            normalize: false,
            solver: Solver::Auto,
        }
    }

    /// GNSP with the update projected, which keeps the step in the null space for every optimizer.
    pub fn gnsp_update() -> Self {
        Self {
            site: Site::Update,
            ..Self::gnsp()
        }
    }

    /// Gradient Projection Memory: a growing basis of protected directions (Saha, Garg and Roy
    /// 2021, arXiv 2103.09762).
    ///
    /// Each task adds directions until the basis explains the share `rank` of the task's inputs.
    /// The paper trains with SGD, starting from a share of 0.97 on CIFAR-100 and 0.95 to 0.99,
    /// depending on the layer, on permuted MNIST.
    pub fn gpm() -> Self {
        Self {
            site: Site::Gradient,
            rank: RankRule::ExplainedEnergy(0.97),
            history: History::Basis,
            normalization: GramNormalization::None,
            ..Self::gnsp()
        }
    }

    /// Adam-NSCL: projects the update of Adam onto the directions whose eigenvalue is at most 10
    /// times the smallest (Wang et al. 2021, CVPR; code ShipengWang/Adam-NSCL, `svd_thres` 10
    /// for ten tasks of CIFAR-100 and 30 for twenty).
    ///
    /// Here every row is counted; that code first averages the inputs of a batch.
    pub fn adam_nscl() -> Self {
        Self {
            site: Site::Update,
            rank: RankRule::RatioToSmallest(10.0),
            normalization: GramNormalization::None,
            normalize: true,
            ..Self::gnsp()
        }
    }

    /// Orthogonal Gradient Descent: keeps steps orthogonal to stored gradients of the model's
    /// outputs (Farajtabar et al. 2020, arXiv 1910.07104).
    ///
    /// Store them with [`Memory::absorb_gradients`](crate::Memory::absorb_gradients). Each
    /// parameter is orthogonal to its own gradients, which is stricter than orthogonality of all
    /// parameters together.
    pub fn ogd() -> Self {
        Self {
            site: Site::Gradient,
            ..Self::gnsp()
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::gnsp_update()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_without_a_model() {
        for preset in [
            Policy::gnsp(),
            Policy::gnsp_update(),
            Policy::gpm(),
            Policy::adam_nscl(),
            Policy::ogd(),
        ] {
            preset.check().unwrap();
        }
        let refused = |change: fn(&mut Policy)| {
            let mut policy = Policy::default();
            change(&mut policy);
            policy.check().unwrap_err()
        };
        let error = refused(|p| p.rank = RankRule::TailShare(1.5));
        assert!(matches!(error, GnspError::TailShare(_)));
        let error = refused(|p| p.strength = Strength::Scaled(-1.0));
        assert!(matches!(error, GnspError::Softness(_)));
        let error = refused(|p| p.history = History::Decay(0.0));
        assert!(matches!(error, GnspError::Decay(0.0)));
        let error = refused(|p| {
            p.history = History::Basis;
            p.rank = RankRule::RatioToSmallest(2.0);
        });
        assert!(matches!(error, GnspError::BasisRule(_)));
    }

    #[test]
    fn a_configuration_file_overrides_the_defaults() {
        let text = r#"{"site":"gradient","rank":{"explained-energy":0.99},"history":"basis"}"#;
        let policy: Policy = serde_json::from_str(text).unwrap();
        let expected = Policy {
            site: Site::Gradient,
            rank: RankRule::ExplainedEnergy(0.99),
            history: History::Basis,
            ..Policy::default()
        };
        assert_eq!(policy, expected);
        let whole = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&whole).unwrap(), policy);
        assert!(serde_json::from_str::<Policy>(r#"{"ranks":1}"#).is_err());
    }
}

//! Configurations of optimizers, as [`Protection::wrap`](crate::Protection::wrap) takes them.

use burn::optim::{ModuleOptimizer, Optimizer};

/// A configuration that makes one optimizer for a whole module, and others for single parameters.
///
/// All of Burn's have it, but for L-BFGS, which steps a whole module at once. Implement it for a
/// configuration of your own; its gradient clipping goes into the first one.
///
/// # Example
///
/// ```
/// use burn::optim::{ModuleOptimizer, Sgd, SgdConfig};
/// use gnsp_optimizer::OptimizerConfig;
///
/// struct Plain;
///
/// impl OptimizerConfig for Plain {
///     type Optimizer = Sgd;
///
///     fn optimizer(&self) -> Sgd {
///         SgdConfig::new().build()
///     }
///
///     fn module_optimizer(&self) -> ModuleOptimizer {
///         SgdConfig::new().init()
///     }
/// }
/// ```
pub trait OptimizerConfig {
    /// The optimizer of one parameter.
    type Optimizer: Optimizer;

    /// The optimizer that projected parameters are stepped by, without gradient clipping.
    fn optimizer(&self) -> Self::Optimizer;

    /// The optimizer of all other parameters, with gradient clipping.
    fn module_optimizer(&self) -> ModuleOptimizer;
}

macro_rules! configurations {
    ($($config:ident => $optimizer:ident),* $(,)?) => {
        $(impl OptimizerConfig for burn::optim::$config {
            type Optimizer = burn::optim::$optimizer;

            fn optimizer(&self) -> Self::Optimizer {
                self.build()
            }

            fn module_optimizer(&self) -> ModuleOptimizer {
                self.init()
            }
        })*
    };
}

configurations! {
    AdaGradConfig => AdaGrad,
    AdafactorConfig => Adafactor,
    AdamConfig => Adam,
    AdamWConfig => AdamW,
    AdanConfig => Adan,
    LambConfig => Lamb,
    LionConfig => Lion,
    MuonConfig => Muon,
    RmsPropConfig => RmsProp,
    SgdConfig => Sgd,
}

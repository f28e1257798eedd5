//! Optimizer configurations accepted by [`Protection::wrap`](crate::Protection::wrap).

use burn::optim::{ModuleOptimizer, Optimizer};

/// Configuration that builds an optimizer for a single parameter and one for a whole module.
///
/// All of Burn's configurations implement it except L-BFGS, which steps a whole module at once.
/// A custom implementation applies its gradient clipping in
/// [`module_optimizer`](Self::module_optimizer).
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
    /// Optimizer of a single parameter.
    type Optimizer: Optimizer;

    /// Builds the optimizer of each projected parameter, without gradient clipping.
    fn optimizer(&self) -> Self::Optimizer;

    /// Builds the optimizer of all other parameters, with gradient clipping.
    fn module_optimizer(&self) -> ModuleOptimizer;
}

macro_rules! impl_optimizer_config {
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

impl_optimizer_config! {
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

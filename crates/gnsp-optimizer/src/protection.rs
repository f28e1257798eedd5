//! Protection of a module for the next task: null spaces by parameter, and the wrapped optimizer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use burn::module::{Module, ParamGroup};
use burn::optim::{ModuleOptimizer, Optimizer};
use burn::tensor::Device;
use rayon::prelude::*;

use crate::memory::{Content, Entry, matches_path};
use crate::paths::ModulePaths;
use crate::{
    Basis, GnspError, Layout, Memory, NullSpace, OptimizerConfig, Policy, Projected, RankRule, Site,
};

/// Smallest number of features of a large parameter. Large parameters are decomposed a few at a
/// time, because the `f64` copies of all of them need too much memory.
const LARGE_FEATURES: usize = 1024;

/// Number of large parameters decomposed concurrently. Products use all cores, eigensolvers one each.
const CONCURRENT_LARGE: usize = 4;

/// Share of free directions below which a parameter is reported as nearly full.
const NEARLY_FULL: f64 = 0.02;

/// Protection of one parameter.
#[derive(Clone, Debug)]
pub struct Protected {
    /// The layout of the parameter.
    pub layout: Layout,
    /// The null space of its recorded inputs.
    pub null_space: Arc<NullSpace>,
}

/// Null spaces of all protected parameters of a module, by path, for the training of the next task.
///
/// [`Memory::protection`] creates it. Its `Display` is a table of the protected and free directions
/// of each parameter.
///
/// # Example
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::optim::{AdamWConfig, GradientsParams};
/// use burn::tensor::{Device, Distribution, Tensor};
/// use gnsp_optimizer::{Memory, Policy};
///
/// let device = Device::default().autodiff();
/// let model = LinearConfig::new(8, 4).init(&device);
/// let inputs = Tensor::<2>::random([3, 8], Distribution::Default, &device);
/// let mut memory = Memory::new(Policy::gnsp_update());
/// let mut recorder = memory.recorder(&model);
/// recorder.linear("weight", inputs.clone())?;
/// memory.absorb(recorder)?;
///
/// let protection = memory.protection(&model)?;
/// println!("{protection}");
/// let mut optimizer = protection.wrap(&AdamWConfig::new());
/// let gradients = model.forward(inputs).square().sum().backward();
/// let gradients = GradientsParams::from_grads(gradients, &model);
/// let trained = optimizer.step(1e-2, model.clone(), gradients);
/// assert!(protection.leak(&model, &trained)?["weight"] < 1e-4);
/// # Ok::<(), gnsp_optimizer::GnspError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Protection {
    site: Site,
    parameters: BTreeMap<String, Protected>,
}

impl Memory {
    /// Computes the null space of every recorded parameter. Updates within it do not change the
    /// outputs on recorded inputs.
    ///
    /// This is the expensive part of the method: an eigendecomposition for each parameter, once per
    /// task (`docs/contributing/performance.md` of the repository has its cost).
    ///
    /// # Errors
    ///
    /// Returns an error if the module lacks a recorded parameter or has it in another shape, which
    /// happens with a memory of another model. Also if a setting of the policy is out of range, or
    /// if an eigensolver did not converge.
    pub fn protection<M: Module>(&self, module: &M) -> Result<Protection, GnspError> {
        let paths = ModulePaths::of(module);
        for (path, entry) in &self.entries {
            paths.check(path, entry.layout, entry.inputs())?;
        }
        let policy = self.policy();
        policy.check()?;
        let device = module.devices().first().cloned().unwrap_or_default();
        let protect = |(path, entry): (&String, &Entry)| match entry.null_space(policy, &device) {
            Ok(null_space) => {
                let layout = entry.layout;
                let null_space = Arc::new(null_space);
                Ok((path.clone(), Protected { layout, null_space }))
            }
            Err(error) => Err(error.at(path)),
        };
        // Small parameters are decomposed in parallel, large ones a few at a time.
        let is_large = |(_, entry): &(&String, &Entry)| entry.features() >= LARGE_FEATURES;
        let (large, small): (Vec<_>, Vec<_>) = self.entries.iter().partition(is_large);
        let mut parameters: BTreeMap<_, _> = small
            .into_par_iter()
            .map(protect)
            .collect::<Result<_, _>>()?;
        for chunk in large.chunks(CONCURRENT_LARGE) {
            let protected = chunk.par_iter().copied().map(protect);
            parameters.extend(protected.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(Protection {
            site: policy.site,
            parameters,
        })
    }
}

impl Entry {
    /// Returns the number of features of the eigenproblem.
    fn features(&self) -> usize {
        match &self.content {
            Content::Gram(gram) if gram.is_diagonal() => 1,
            Content::Gram(gram) => gram.features(),
            Content::Directions(_) => 1, // Already orthonormal.
        }
    }

    fn null_space(&self, policy: &Policy, device: &Device) -> Result<NullSpace, GnspError> {
        match &self.content {
            Content::Directions(directions) => Ok(NullSpace::from_directions(
                directions.features,
                &directions.groups,
            )),
            // A bias has one direction, the constant 1. The rows of a growing basis were selected
            // when the task was absorbed. Both are protected in full, without the rank rule.
            Content::Gram(gram) if self.layout == Layout::Bias || self.is_row_mask() => {
                let protected = gram.packed().iter().filter(|x| **x > 0.0).count();
                let all = Policy {
                    rank: RankRule::FixedRank(protected),
                    normalize: false,
                    ..policy.clone()
                };
                NullSpace::from_policy(gram, &all, device)
            }
            Content::Gram(gram) => NullSpace::from_policy(gram, policy, device),
        }
    }

    /// Returns whether a diagonal matrix is a mask of protected rows instead of their counts.
    fn is_row_mask(&self) -> bool {
        self.history == crate::History::Basis
    }
}

impl Protection {
    /// Creates the protection of given bases: the path and layout of each parameter, and the
    /// directions that its steps may not change.
    ///
    /// # Errors
    ///
    /// Returns an error if the module lacks a parameter or has it in another shape.
    pub fn of_bases<M: Module>(
        module: &M,
        site: Site,
        bases: impl IntoIterator<Item = (String, Layout, Basis)>,
    ) -> Result<Self, GnspError> {
        let paths = ModulePaths::of(module);
        let mut parameters = BTreeMap::new();
        for (path, layout, basis) in bases {
            paths.check(&path, layout, (1, basis.features()))?;
            let null_space = Arc::new(basis.null_space());
            parameters.insert(path, Protected { layout, null_space });
        }
        Ok(Self { site, parameters })
    }

    /// Builds the optimizer of a configuration, with projected steps for protected parameters.
    ///
    /// All other parameters use the plain optimizer. The gradient clipping of the configuration
    /// applies to all parameters, before the projection.
    ///
    /// Build it at the start of each task. To resume, load the saved optimizer state into it.
    pub fn wrap<C: OptimizerConfig>(&self, config: &C) -> ModuleOptimizer {
        self.wrap_with(config.module_optimizer(), config.optimizer())
    }

    /// Like [`wrap`](Self::wrap), for an `optimizer` that already has parameter groups.
    ///
    /// `inner` becomes the optimizer of all protected parameters, regardless of their group, with
    /// the gradient clipping of the first group. Existing states of these parameters are dropped,
    /// as always when a group is added in Burn.
    pub fn wrap_with<O: Optimizer>(
        &self,
        mut optimizer: ModuleOptimizer,
        inner: O,
    ) -> ModuleOptimizer {
        let clipping = optimizer.grad_clipping().cloned();
        for (path, protected) in &self.parameters {
            let Protected { layout, null_space } = protected.clone();
            optimizer = optimizer.with_group(
                ParamGroup::from_path(path),
                Projected::new(inner.clone(), layout, null_space, self.site),
                clipping.clone(),
            );
        }
        optimizer
    }

    /// Removes the protection of all parameters outside `group`, which is matched by path.
    pub fn keep(&mut self, group: &ParamGroup) {
        self.parameters.retain(|path, _| matches_path(group, path));
    }

    /// Returns the protection of the parameter at `path`.
    pub fn get(&self, path: &str) -> Option<&Protected> {
        self.parameters.get(path)
    }

    /// Iterates over the protected parameters, in alphabetical order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Protected)> {
        self.parameters.iter().map(|(path, p)| (path.as_str(), p))
    }

    /// Iterates over the parameters with less than 2 % free directions, which can hardly learn
    /// anything new.
    ///
    /// Applications should warn about them. Protected biases are always full and are left out.
    pub fn nearly_full(&self) -> impl Iterator<Item = (&str, &Protected)> {
        self.iter().filter(|(_, protected)| {
            let space = &protected.null_space;
            protected.layout != Layout::Bias
                && (space.free() as f64) < NEARLY_FULL * space.dimensions() as f64
        })
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = self.parameters.keys().map(String::len).max().unwrap_or(0);
        let width = longest.max("parameter".len());
        writeln!(
            f,
            "{:width$}  directions  protected   free  share of the spectrum",
            "parameter"
        )?;
        let full: Vec<&str> = self.nearly_full().map(|(path, _)| path).collect();
        for (path, protected) in &self.parameters {
            let space = &protected.null_space;
            write!(
                f,
                "{path:width$}  {:10}  {:9}  {:5}  ",
                space.dimensions(),
                space.rank(),
                space.free()
            )?;
            match space.protected_share() {
                Some(share) => write!(f, "{:.1} %", 100.0 * share)?,
                None => write!(f, "–")?,
            }
            if full.contains(&path.as_str()) {
                write!(f, "  nearly full: can hardly learn")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use crate::{History, TaskGram};
    use burn::grad_clipping::GradientClippingConfig;
    use burn::lr_scheduler::DynLrScheduler;
    use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
    use burn::module::Initializer;
    use burn::nn::{Linear, LinearConfig};
    use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams, LionConfig, SgdConfig};
    use burn::tensor::Tensor;

    #[derive(Module, Debug)]
    struct Mlp {
        layers: Vec<Linear>,
    }

    impl Mlp {
        fn new() -> Self {
            let device = Device::default().autodiff();
            let layer = |inputs, outputs, seed| {
                let mut layer = LinearConfig::new(inputs, outputs)
                    .with_initializer(Initializer::Zeros)
                    .init(&device);
                let weight = random(inputs, outputs, 0.5, seed);
                layer.weight = layer.weight.map(|_| weight.autodiff().require_grad());
                layer
            };
            Self {
                layers: vec![layer(6, 8, 11), layer(8, 4, 12)],
            }
        }

        fn forward(&self, x: Tensor<2>) -> Tensor<2> {
            let hidden = self.layers[0].forward(x).tanh();
            self.layers[1].forward(hidden)
        }

        fn gradients(&self, seed: u64) -> GradientsParams {
            let x = random(5, 6, 1.0, seed).autodiff();
            GradientsParams::from_grads(self.forward(x).square().sum().backward(), self)
        }

        fn parameters(&self) -> Vec<Vec<f32>> {
            let weights = self.layers.iter().map(|layer| values(layer.weight.val()));
            let biases = self
                .layers
                .iter()
                .map(|layer| values(layer.bias.as_ref().unwrap().val()));
            weights.chain(biases).collect()
        }
    }

    fn memory_of(path: &str, site: Site) -> Memory {
        let policy = Policy::default().with_site(site);
        let mut memory = Memory::new(policy.with_rank(RankRule::FixedRank(2)));
        let recorded = TaskGram {
            layout: Layout::InputsFirst,
            gram: reference_gram(),
            history: History::Sum,
        };
        memory.absorb_gram(path, recorded).unwrap();
        memory
    }

    fn protection(site: Site) -> Protection {
        let memory = memory_of("layers.0.weight", site);
        memory.protection(&Mlp::new()).unwrap()
    }

    fn train(optimizer: &mut ModuleOptimizer, mut model: Mlp, steps: std::ops::Range<u64>) -> Mlp {
        for step in steps {
            let gradients = model.gradients(step);
            model = optimizer.step(1e-2, model, gradients);
        }
        model
    }

    /// The share of a change of the first weight inside the protected directions.
    fn leak(to: &Mlp) -> f32 {
        let protection = protection(Site::Update);
        let change = to.layers[0].weight.val() - Mlp::new().layers[0].weight.val();
        let space = &protection.get("layers.0.weight").unwrap().null_space;
        space.residual_in_protected(change.clone()) / norm(&change)
    }

    #[test]
    fn only_the_named_parameters_are_projected() {
        let config = AdamWConfig::new().with_weight_decay(0.1);
        let start = Mlp::new();
        let mut plain = config.init();
        let mut projected = protection(Site::Update).wrap(&config);
        let free = plain.step(1e-2, start.clone(), start.gradients(0));
        let kept = projected.step(1e-2, start.clone(), start.gradients(0));
        // Both first steps have the same gradients, so all other parameters are equal.
        assert_eq!(free.parameters()[1..], kept.parameters()[1..]);
        assert_ne!(free.parameters()[0], kept.parameters()[0]);
        assert!(leak(&free) > 0.1, "{}", leak(&free));
        assert!(leak(&kept) < 1e-5, "{}", leak(&kept));
    }

    /// Asserts that saving and resuming gives the same bits as uninterrupted training.
    fn assert_resumes(create: impl Fn() -> ModuleOptimizer) {
        let mut original = create();
        let model = train(&mut original, Mlp::new(), 0..3);
        let bytes = original.into_bytes().unwrap();
        let mut restored = create().from_bytes(bytes).unwrap();
        let continued = train(&mut original, model.clone(), 3..6);
        let resumed = train(&mut restored, model, 3..6);
        assert_eq!(continued.parameters(), resumed.parameters());
    }

    #[test]
    fn a_restored_optimizer_continues_bit_equal() {
        for site in [Site::Gradient, Site::Update] {
            let protection = protection(site);
            assert_resumes(|| {
                let config = AdamWConfig::new().with_weight_decay(0.1);
                protection.wrap(&config)
            });
            assert_resumes(|| {
                let config = LionConfig::new();
                protection.wrap(&config)
            });
        }
    }

    #[test]
    fn the_state_is_the_inner_optimizers_own() {
        let config = AdamWConfig::new();
        let mut projected = protection(Site::Gradient).wrap(&config);
        let model = train(&mut projected, Mlp::new(), 0..2);
        let mut plain = config
            .init()
            .from_bytes(projected.into_bytes().unwrap())
            .unwrap();
        let _ = train(&mut plain, model, 2..3);
        assert_eq!(
            plain.to_record().len(),
            projected.to_record().len(),
            "every state was taken over"
        );
    }

    #[test]
    fn frozen_parameters_stay_untouched() {
        let model = Mlp::new().freeze_group(ParamGroup::from_path("layers.1.weight"));
        let before = model.parameters();
        let config = AdamWConfig::new().with_weight_decay(0.1);
        let mut optimizer = protection(Site::Update).wrap(&config);
        let after = train(&mut optimizer, model, 0..3).parameters();
        assert_ne!(before[0], after[0]);
        assert_eq!(before[1], after[1]);
    }

    #[test]
    fn gradient_clipping_applies_to_projected_parameters() {
        let config =
            SgdConfig::new().with_gradient_clipping(Some(GradientClippingConfig::Norm(1e-3)));
        let mut optimizer = protection(Site::Update).wrap(&config);
        let start = Mlp::new();
        let after = optimizer.step(1.0, start.clone(), start.gradients(0));
        for layer in 0..2 {
            let change = after.layers[layer].weight.val() - start.layers[layer].weight.val();
            assert!(norm(&change) <= 1.001e-3, "{layer}: {}", norm(&change));
        }
        assert!(
            leak(&after) < 1e-4,
            "rounding of a small step: {}",
            leak(&after)
        );
    }

    #[test]
    fn learning_rate_groups_apply_to_projected_parameters() {
        let config = SgdConfig::new();
        let start = Mlp::new();
        let mut optimizer = protection(Site::Update).wrap(&config);
        // A number is a constant schedule.
        let mut rates = ModuleLrScheduler::new(1e-2).with_group(
            ParamGroup::from_path("layers.0.weight"),
            DynLrScheduler::from(0.0),
        );
        let after = optimizer.step(rates.step(), start.clone(), start.gradients(0));
        assert_eq!(after.parameters()[0], start.parameters()[0]);
        assert_ne!(after.parameters()[1], start.parameters()[1]);
    }

    #[test]
    fn accumulated_gradients_are_projected_as_one() {
        let config = AdamWConfig::new().with_weight_decay(0.1);
        let start = Mlp::new();
        let mut optimizer = protection(Site::Update).wrap(&config);
        let mut accumulator = GradientsAccumulator::new();
        for seed in 0..3 {
            accumulator.accumulate(&start, start.gradients(seed));
        }
        let after = optimizer.step(1e-2, start, accumulator.grads());
        assert!(leak(&after) < 1e-5, "{}", leak(&after));
    }

    #[test]
    fn a_memory_of_another_model_is_refused() {
        let model = Mlp::new();
        let refused = |path| {
            memory_of(path, Site::Update)
                .protection(&model)
                .unwrap_err()
        };
        assert_eq!(
            refused("layer.0.weights").to_string(),
            "the module has no parameter `layer.0.weights`; did you mean `layers.0.weight`, \
             `layers.1.weight`, `layers.0.bias`?"
        );
        for path in ["layers.1.weight", "layers.0.bias"] {
            let error = refused(path);
            assert!(
                matches!(&error, GnspError::Shape { path: p, features: 6, .. } if p == path),
                "{error}"
            );
        }
        let mut memory = memory_of("layers.0.weight", Site::Update);
        let wrong = Policy::default().with_rank(RankRule::TailShare(1.0));
        memory.set_policy(wrong).unwrap();
        let error = memory.protection(&model);
        assert!(matches!(error, Err(GnspError::TailShare(_))));
    }

    #[test]
    fn the_table_warns_of_full_layers() {
        let model = Mlp::new();
        let mut memory = memory_of("layers.0.weight", Site::Update);
        let mut recorder = memory.recorder(&model);
        recorder.bias("layers.0.bias", 3).unwrap();
        memory.absorb(recorder).unwrap();
        let full = Policy::default().with_rank(RankRule::FixedRank(6));
        memory.set_policy(full).unwrap();
        let mut protection = memory.protection(&model).unwrap();
        let names: Vec<&str> = protection.nearly_full().map(|(path, _)| path).collect();
        assert_eq!(names, ["layers.0.weight"]);
        let table = protection.to_string();
        assert!(
            table.contains("layers.0.weight           6          6      0  100.0 %  nearly full"),
            "{table}"
        );
        protection.keep(&ParamGroup::from_path("layers.0.bias"));
        assert_eq!(protection.iter().count(), 1);
    }
}

//! Projected optimizers for the parameters of a whole module.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::{ModuleOptimizer, Optimizer};
use burn::tensor::Tensor;

use crate::{NullSpace, Projected, Site};

/// How many parameters an error suggests.
const SUGGESTIONS: usize = 3;

/// Why null spaces do not fit a module.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// The module has no float parameter of this path.
    #[error("the module has no parameter `{path}`{}", did_you_mean(.near))]
    Unknown {
        /// The path.
        path: String,
        /// The paths of the module most like it, the nearest first.
        near: Vec<String>,
    },
    /// The first dimension of the parameter is not the number of features.
    #[error(
        "parameter `{path}` has shape {shape:?}, its null space has {features} features: \
             the first dimension must be the input features"
    )]
    Shape {
        /// The path.
        path: String,
        /// The shape of the parameter.
        shape: Vec<usize>,
        /// The features of the null space.
        features: usize,
    },
}

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() {
        return String::new();
    }
    format!("; did you mean `{}`?", near.join("`, `"))
}

/// Gives every parameter named in `null_spaces` its own projected `inner` optimizer.
///
/// All other parameters keep what `optimizer` does with them. The gradient clipping of `optimizer`
/// (of its first group) also holds for the projected parameters. Optimizer states that a projected
/// parameter already had are dropped, as Burn does when a group is added: do this at the start of
/// a task, and before a saved optimizer state is loaded.
///
/// A path that the module does not have is silently never used; call [`check_paths`] first.
pub fn project_parameters<O: Optimizer>(
    mut optimizer: ModuleOptimizer,
    inner: O,
    null_spaces: &BTreeMap<String, Arc<NullSpace>>,
    site: Site,
) -> ModuleOptimizer {
    let clipping = optimizer.grad_clipping().cloned();
    for (path, null_space) in null_spaces {
        optimizer = optimizer.with_group(
            ParamGroup::from_path(path),
            Projected::new(inner.clone(), null_space.clone(), site),
            clipping.clone(),
        );
    }
    optimizer
}

/// Checks that every null space belongs to a parameter of the module and fits its shape.
///
/// # Errors
///
/// The first path, in alphabetical order, that the module does not have (with the most similar
/// ones it has), or whose parameter has another first dimension.
pub fn check_paths<M: Module>(
    module: &M,
    null_spaces: &BTreeMap<String, Arc<NullSpace>>,
) -> Result<(), PathError> {
    let mut shapes = Shapes::default();
    module.visit(&mut shapes);
    for (path, null_space) in null_spaces {
        let Some(shape) = shapes.found.get(path) else {
            return Err(PathError::Unknown {
                path: path.clone(),
                near: nearest(path, shapes.found.keys()),
            });
        };
        if shape.first() != Some(&null_space.features()) {
            return Err(PathError::Shape {
                path: path.clone(),
                shape: shape.clone(),
                features: null_space.features(),
            });
        }
    }
    Ok(())
}

/// Collects the shapes of the float parameters by path.
#[derive(Default)]
struct Shapes {
    stack: Vec<String>,
    found: BTreeMap<String, Vec<usize>>,
}

impl ModuleVisitor for Shapes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found
            .insert(self.stack.join("."), param.val().dims().to_vec());
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.stack.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.stack.pop();
    }
}

/// The paths with the smallest edit distance to `path`.
fn nearest<'a>(path: &str, known: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut ranked: Vec<(usize, &String)> = known
        .map(|other| (edit_distance(path, other), other))
        .collect();
    ranked.sort();
    ranked
        .into_iter()
        .take(SUGGESTIONS)
        .map(|(_, other)| other.clone())
        .collect()
}

/// The Levenshtein distance of two strings.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::*;
    use crate::{Memory, RankRule};
    use burn::module::Initializer;
    use burn::nn::{Linear, LinearConfig};
    use burn::optim::{AdamWConfig, GradientsParams, LionConfig, SgdConfig};
    use burn::tensor::Device;

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

    fn null_spaces() -> BTreeMap<String, Arc<NullSpace>> {
        let mut memory = Memory::new();
        memory
            .absorb("layers.0.weight", reference_gram(), crate::History::Sum)
            .unwrap();
        memory.null_spaces(RankRule::FixedRank(2)).unwrap()
    }

    fn train(optimizer: &mut ModuleOptimizer, mut model: Mlp, steps: std::ops::Range<u64>) -> Mlp {
        for step in steps {
            let gradients = model.gradients(step);
            model = optimizer.step(1e-2, model, gradients);
        }
        model
    }

    #[test]
    fn only_the_named_parameters_are_projected() {
        let config = AdamWConfig::new().with_weight_decay(0.1);
        let spaces = null_spaces();
        let space = &spaces["layers.0.weight"];
        let start = Mlp::new();
        let mut plain = config.init();
        let mut projected =
            project_parameters(config.init(), config.build(), &spaces, Site::Update);
        check_paths(&start, &spaces).unwrap();
        let gradients = start.gradients(0);
        let free = plain.step(1e-2, start.clone(), gradients);
        let gradients = start.gradients(0);
        let kept = projected.step(1e-2, start.clone(), gradients);
        // The first step starts from the same gradients: all but the named weight are equal.
        let (free, kept, start) = (free.parameters(), kept.parameters(), start.parameters());
        assert_eq!(free[1..], kept[1..]);
        assert_ne!(free[0], kept[0]);
        let change = |to: &[f32]| {
            let difference: Vec<f32> = to.iter().zip(&start[0]).map(|(a, b)| a - b).collect();
            let data = burn::tensor::TensorData::new(difference, [6, 8]);
            let change = Tensor::<2>::from_data(data, &device());
            space.residual_in_protected(change.clone()) / norm(&change)
        };
        assert!(change(&free[0]) > 0.1, "{}", change(&free[0]));
        assert!(change(&kept[0]) < 1e-5, "{}", change(&kept[0]));
    }

    /// Training, saving and resuming gives the same bits as training on.
    fn assert_resumes(create: impl Fn() -> ModuleOptimizer) {
        let mut original = create();
        let model = train(&mut original, Mlp::new(), 0..3);
        let bytes = original.into_bytes().unwrap();
        let mut restored = create().from_bytes(bytes).unwrap();
        let on = train(&mut original, model.clone(), 3..6);
        let again = train(&mut restored, model, 3..6);
        assert_eq!(on.parameters(), again.parameters());
    }

    #[test]
    fn a_restored_optimizer_continues_bit_equal() {
        for site in [Site::Gradient, Site::Update] {
            let spaces = null_spaces();
            assert_resumes(|| {
                let config = AdamWConfig::new().with_weight_decay(0.1);
                project_parameters(config.init(), config.build(), &spaces, site)
            });
            assert_resumes(|| {
                let config = LionConfig::new();
                project_parameters(config.init(), config.build(), &spaces, site)
            });
        }
    }

    #[test]
    fn the_state_is_the_inner_optimizers_own() {
        let config = AdamWConfig::new();
        let spaces = null_spaces();
        let mut projected =
            project_parameters(config.init(), config.build(), &spaces, Site::Gradient);
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
        let mut optimizer =
            project_parameters(config.init(), config.build(), &null_spaces(), Site::Update);
        let after = train(&mut optimizer, model, 0..3).parameters();
        assert_ne!(before[0], after[0]);
        assert_eq!(before[1], after[1]);
    }

    #[test]
    fn paths_and_shapes_are_checked() {
        let model = Mlp::new();
        let space = null_spaces()["layers.0.weight"].clone();
        let wrong = BTreeMap::from([("layer.0.weights".to_string(), space.clone())]);
        let error = check_paths(&model, &wrong).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the module has no parameter `layer.0.weights`; did you mean `layers.0.weight`, \
             `layers.1.weight`, `layers.0.bias`?"
        );
        let wrong = BTreeMap::from([("layers.1.weight".to_string(), space)]);
        let error = check_paths(&model, &wrong).unwrap_err();
        assert_eq!(
            error,
            PathError::Shape {
                path: "layers.1.weight".into(),
                shape: vec![8, 4],
                features: 6
            }
        );
        let sgd = SgdConfig::new();
        let untouched = project_parameters(sgd.init(), sgd.build(), &BTreeMap::new(), Site::Update);
        assert!(!untouched.has_gradient_clipping());
    }

    #[test]
    fn edit_distances() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
    }
}

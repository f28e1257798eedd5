//! Behaviour tests over all policies, sites, optimizers and kinds of parameters.

mod properties;

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::nn::conv::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, LinearLayout};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::*;
use burn::tensor::{Device, Int, Tensor, TensorData};
use gnsp_optimizer::*;
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

const CHANNELS: usize = 4;
const INPUTS: usize = 12;
const VOCABULARY: usize = 11;

/// Module with one parameter of every kind, and two layers that are not protected.
#[derive(Module, Debug)]
struct Net {
    linear: Linear,
    column: Linear,
    matrix: Param<Tensor<2>>,
    transposed: Param<Tensor<2>>,
    conv1d: Conv1d,
    conv2d: Conv2d,
    depthwise: Conv2d,
    embedding: Embedding,
    free: Linear,
    frozen: Linear,
}

fn numbers(count: usize, scale: f32, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| rng.random_range(-scale..scale))
        .collect()
}

fn tensor<const D: usize>(shape: [usize; D], scale: f32, seed: u64) -> Tensor<D> {
    let data = TensorData::new(numbers(shape.iter().product(), scale, seed), shape);
    Tensor::from_data(data, &Device::default())
}

impl Net {
    /// Small weights keep the rounding error of a step small relative to the step.
    fn new() -> Self {
        let device = Device::default().autodiff();
        let linear = LinearConfig::new(INPUTS, 10);
        let matrix = |shape| Param::from_tensor(Tensor::zeros(shape, &device));
        let conv = Conv2dConfig::new([CHANNELS, 8], [3, 2]);
        let net = Self {
            linear: linear.init(&device),
            column: linear.clone().with_layout(LinearLayout::Col).init(&device),
            matrix: matrix([INPUTS, 10]),
            transposed: matrix([10, INPUTS]),
            conv1d: Conv1dConfig::new(CHANNELS, 6, 3)
                .with_groups(2)
                .init(&device),
            conv2d: conv.init(&device),
            depthwise: conv.with_groups(CHANNELS).init(&device),
            embedding: EmbeddingConfig::new(VOCABULARY, 5).init(&device),
            free: linear.init(&device),
            frozen: linear.init(&device),
        };
        struct Small(u64);
        impl burn::module::ModuleMapper for Small {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                self.0 += 1;
                let seed = self.0;
                param.map(|old| tensor(old.dims(), 0.01, seed).autodiff().require_grad())
            }
        }
        net.map(&mut Small(0))
    }

    /// Records random inputs of a task.
    fn record(&self, recorder: &mut Recorder, seed: u64) -> Result<(), GnspError> {
        for batch in 0..2 {
            let seed = 100 * seed + batch;
            let rows = tensor([3, INPUTS], 1.0, seed);
            recorder.linear("linear.weight", rows.clone())?;
            recorder.bias("linear.bias", 3)?;
            recorder.linear("column.weight", rows.clone())?;
            recorder.linear("matrix", rows.clone())?;
            recorder.linear_transposed("transposed", rows)?;
            // As many patches as rows above, fewer than they have features.
            let signal = tensor([1, CHANNELS, 4], 1.0, seed);
            recorder.conv1d("conv1d.weight", &self.conv1d, signal)?;
            let image = tensor([1, CHANNELS, 4, 2], 1.0, seed);
            recorder.conv2d("conv2d.weight", &self.conv2d, image.clone())?;
            recorder.conv2d("depthwise.weight", &self.depthwise, image)?;
            let tokens = [(seed % 7) as i64, 3, 3, 5];
            let tokens = Tensor::<1, Int>::from_ints(tokens, &Device::default());
            recorder.embedding("embedding.weight", VOCABULARY, tokens)?;
        }
        Ok(())
    }

    /// Paths of the protected parameters.
    const PROTECTED: [&str; 9] = [
        "linear.weight",
        "linear.bias",
        "column.weight",
        "matrix",
        "transposed",
        "conv1d.weight",
        "conv2d.weight",
        "depthwise.weight",
        "embedding.weight",
    ];

    fn protected() -> ParamGroup {
        ParamGroup::from_paths(Self::PROTECTED.to_vec())
    }

    fn values(&self) -> BTreeMap<String, Vec<f32>> {
        let mut values = ReadValues::default();
        self.visit(&mut values);
        values.found
    }

    /// Gradients of very different scales for all parameters that are not frozen.
    fn gradients(&self, seed: u64) -> GradientsParams {
        let mut visitor = RandomGradients {
            gradients: GradientsParams::new(),
            frozen: [self.frozen.weight.id, self.frozen.bias.as_ref().unwrap().id],
            seed: 1000 * seed,
        };
        self.visit(&mut visitor);
        visitor.gradients
    }
}

#[derive(Default)]
struct ReadValues {
    stack: Vec<String>,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for ReadValues {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let values = param.val().inner().into_data().try_into_vec().unwrap();
        self.found.insert(self.stack.join("."), values);
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.stack.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.stack.pop();
    }
}

struct RandomGradients {
    gradients: GradientsParams,
    frozen: [burn::module::ParamId; 2],
    seed: u64,
}

impl ModuleVisitor for RandomGradients {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.frozen.contains(&param.id) {
            return;
        }
        self.seed += 1;
        let scale = 10f32.powi((self.seed / 1000 % 3) as i32 - 1);
        let gradient = tensor(param.val().dims(), scale, self.seed);
        self.gradients.register(param.id, gradient);
    }
}

/// Names and policies under test.
fn policies() -> Vec<(&'static str, Policy)> {
    let with = |rank| Policy::gnsp().with_rank(rank);
    vec![
        ("gnsp", with(RankRule::TailShare(0.15))),
        ("energy", with(RankRule::ExplainedEnergy(0.8))),
        ("gpm", Policy::gpm()),
        ("adam-nscl", Policy::adam_nscl()),
        ("fixed rank", with(RankRule::FixedRank(2))),
        (
            "soft",
            with(RankRule::FixedRank(4)).with_strength(Strength::Scaled(5.0)),
        ),
        (
            "forgetting",
            Policy::gnsp().with_history(History::Decay(0.5)),
        ),
        ("ogd", Policy::ogd()),
    ]
}

fn memory(net: &Net, name: &str, policy: &Policy) -> Memory {
    let mut memory = Memory::new(policy.clone());
    for task in 0..2 {
        if name == "ogd" {
            let gradients = net.gradients(50 + task);
            let added = memory
                .absorb_gradients(net, &Net::protected(), &gradients)
                .unwrap();
            assert_eq!(added, Net::PROTECTED.len());
        } else {
            let mut recorder = memory.recorder(net);
            net.record(&mut recorder, task).unwrap();
            memory.absorb(recorder).unwrap();
        }
    }
    assert_eq!(memory.paths().count(), Net::PROTECTED.len());
    memory
}

fn matrix(dense: &[f32], n: usize) -> faer::Mat<f64> {
    faer::Mat::from_fn(n, n, |i, j| f64::from(dense[i * n + j]))
}

fn largest(matrix: &faer::Mat<f64>) -> f64 {
    matrix.norm_max()
}

#[test]
fn projectors_are_projectors() {
    let net = Net::new();
    for (name, policy) in policies() {
        let memory = memory(&net, name, &policy);
        let protection = memory.protection(&net).unwrap();
        for (path, protected) in protection.iter() {
            let space = &protected.null_space;
            let name = format!(
                "{name}, {path}, {:?} of {}",
                space.ranks(),
                space.features()
            );
            assert!(space.rank() > 0, "{name}: nothing is protected");
            let n = space.features();
            // A normalised projector is a scaled one.
            let normalised = policy.normalize && protected.layout != Layout::Bias;
            let scale = if normalised {
                (space.free() as f64).sqrt()
            } else {
                1.0
            };
            for (group, dense) in space.dense().chunks_exact(n * n).enumerate() {
                let p = faer::Scale(scale) * matrix(dense, n);
                assert!(
                    largest(&(&p - p.transpose())) < 1e-6,
                    "{name}: not symmetric"
                );
                if let Strength::Scaled(_) = policy.strength {
                    let values = p.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
                    let within = |x: &f64| (-1e-6..=1.0 + 1e-6).contains(x);
                    assert!(values.iter().all(within), "{name}: {values:?}");
                    continue;
                }
                assert!(largest(&(&p * &p - &p)) < 1e-6, "{name}: not idempotent");
                let Some(gram) = memory.gram(path) else {
                    continue;
                };
                // P annihilates the protected part of the Gram matrix, (I − P)·G·(I − P).
                let one = gram.dense()[group * n * n..][..n * n].to_vec();
                let g = matrix(&one, n);
                let taken = faer::Mat::<f64>::identity(n, n) - &p;
                let kept = &taken * &g * &taken;
                let passed = largest(&(&p * kept));
                assert!(passed <= 1e-6 * g.norm_l2(), "{name}: {passed:e}");
            }
        }
    }
}

/// Creates an optimizer without and with projection.
type Create = Box<dyn Fn(&Protection) -> [ModuleOptimizer; 2]>;

/// All optimizers of Burn that step one parameter at a time, with a learning rate. L-BFGS steps a
/// whole module.
fn optimizers() -> Vec<(&'static str, f64, Create)> {
    fn entry<O: Optimizer>(
        name: &'static str,
        lr: f64,
        optimizer: O,
    ) -> (&'static str, f64, Create) {
        let both = move |protection: &Protection| {
            let plain = || ModuleOptimizer::from(optimizer.clone());
            [plain(), protection.wrap_with(plain(), optimizer.clone())]
        };
        (name, lr, Box::new(both))
    }
    let decay = || Some(WeightDecayConfig::new(0.1));
    let momentum = || Some(MomentumConfig::new());
    let sgd = SgdConfig::new()
        .with_momentum(momentum())
        .with_weight_decay(decay());
    let muon = |protection: &Protection| {
        // Muon supports matrices only; AdamW steps the rest, as its authors recommend.
        let rest = || AdamWConfig::new().init();
        let group = |optimizer: ModuleOptimizer| {
            let matrices = ["linear.weight", "column.weight", "matrix", "transposed"];
            let paths = matrices.iter().chain(&["free.weight", "embedding.weight"]);
            let paths = paths.map(|path| path.to_string()).collect();
            optimizer.with_group(
                ParamGroup::from_paths(paths),
                MuonConfig::new().build(),
                None,
            )
        };
        let mut matrices = protection.clone();
        let two = ["linear.weight", "column.weight", "matrix", "transposed"];
        let two = two.into_iter().chain(["embedding.weight"]);
        matrices.keep(&ParamGroup::from_paths(two.collect()));
        let adamw = AdamWConfig::new().build();
        let wrapped = protection.wrap_with(group(rest()), adamw);
        [
            group(rest()),
            matrices.wrap_with(wrapped, MuonConfig::new().build()),
        ]
    };
    vec![
        entry("sgd", 0.05, sgd.build()),
        entry(
            "adam",
            0.1,
            AdamConfig::new().with_weight_decay(decay()).build(),
        ),
        entry(
            "adamw",
            0.1,
            AdamWConfig::new().with_weight_decay(0.1).build(),
        ),
        entry(
            "adagrad",
            0.1,
            AdaGradConfig::new().with_weight_decay(decay()).build(),
        ),
        entry(
            "adafactor",
            0.5,
            AdafactorConfig::new().with_weight_decay(0.1).build(),
        ),
        entry(
            "adan",
            0.1,
            AdanConfig::new().with_weight_decay(0.1).build(),
        ),
        entry(
            "lamb",
            0.5,
            LambConfig::new().with_weight_decay(0.1).build(),
        ),
        entry(
            "lion",
            0.1,
            LionConfig::new().with_weight_decay(0.1).build(),
        ),
        entry(
            "rmsprop",
            0.1,
            RmsPropConfig::new().with_weight_decay(decay()).build(),
        ),
        ("muon", 0.1, Box::new(muon)),
    ]
}

/// Selects all items on the host and `on_a_device` elsewhere.
///
/// Without a GPU, device tests run on a software driver, on which a step is slow.
fn select<T>(all: Vec<T>, name: fn(&T) -> &str, on_a_device: &[&str]) -> Vec<T> {
    let device = std::env::var("BURN_DEVICE").is_ok_and(|device| device != "flex");
    let all = all.into_iter();
    all.filter(|one| !device || on_a_device.contains(&name(one)))
        .collect()
}

fn train(optimizer: &mut ModuleOptimizer, net: Net, lr: f64, steps: std::ops::Range<u64>) -> Net {
    steps.fold(net, |net, step| {
        let gradients = net.gradients(step);
        optimizer.step(lr, net, gradients)
    })
}

#[test]
fn projected_steps_stay_in_the_null_space() {
    let start = Net::new();
    let mut combinations = 0;
    let mut worst: (f64, String) = (0.0, String::new());
    let policies = select(policies(), |p| p.0, &["gnsp"]);
    let optimizers = select(optimizers(), |o| o.0, &["sgd", "adamw"]);
    for (policy_name, policy) in &policies {
        for site in [Site::Update, Site::Gradient] {
            let policy = policy.clone().with_site(site);
            let memory = memory(&start, policy_name, &policy);
            let protection = memory.protection(&start).unwrap();
            for (optimizer_name, lr, create) in &optimizers {
                let name = format!("{policy_name}, {site:?}, {optimizer_name}");
                // Four steps without projection, and four with it, saved after two.
                let [mut plain, mut wrapped] = create(&protection);
                let free = train(&mut plain, start.clone(), *lr, 0..4);
                let half = train(&mut wrapped, start.clone(), *lr, 0..2);
                let saved = wrapped.into_bytes().unwrap();
                let after = train(&mut wrapped, half.clone(), *lr, 2..4);

                // Saving and resuming gives the same bits.
                let [_, fresh] = create(&protection);
                let mut resumed = fresh.from_bytes(saved).unwrap();
                let again = train(&mut resumed, half, *lr, 2..4);
                let [before, free, after, again] =
                    [&start, &free, &after, &again].map(|net| net.values());
                assert_eq!(after, again, "{name}: resumed");

                let leaks = {
                    let net = |values: &BTreeMap<String, Vec<f32>>| with_values(&start, values);
                    protection.leak(&net(&before), &net(&after)).unwrap()
                };
                for (path, values) in &after {
                    combinations += 1;
                    let name = format!("{name}, {path}");
                    assert!(values.iter().all(|x| x.is_finite()), "{name}");
                    match (path.as_str(), protection.get(path)) {
                        ("frozen.weight" | "frozen.bias", _) => {
                            assert_eq!(*values, before[path], "{name}: untouched");
                        }
                        (_, None) => assert_eq!(*values, free[path], "{name}: not protected"),
                        (_, Some(protected)) => {
                            let full = protected.null_space.free() == 0;
                            let changed = *values != before[path];
                            let soft = matches!(policy.strength, Strength::Scaled(_));
                            let exact = site == Site::Update && !soft;
                            if exact {
                                assert_eq!(changed, !full, "{name}: learns where it may");
                                let leak = leaks[path];
                                assert!(leak < 1e-6, "{name}: leak {leak:e}");
                                if leak > worst.0 {
                                    worst = (leak, name);
                                }
                            } else {
                                assert_ne!(*values, free[path], "{name}: protected");
                            }
                        }
                    }
                }
            }
        }
    }
    println!(
        "{combinations} combinations; the worst leak is {:.1e}: {}",
        worst.0, worst.1
    );
    let each = policies.len() * 2 * optimizers.len();
    assert_eq!(combinations, each * start.values().len());
}

/// Returns the module with these values.
fn with_values(net: &Net, values: &BTreeMap<String, Vec<f32>>) -> Net {
    struct WriteValues<'a> {
        stack: Vec<String>,
        values: &'a BTreeMap<String, Vec<f32>>,
    }
    impl burn::module::ModuleMapper for WriteValues<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let values = self.values[&self.stack.join(".")].clone();
            param.map(|old| {
                let data = TensorData::new(values, old.dims());
                Tensor::from_data(data, &Device::default())
                    .autodiff()
                    .require_grad()
            })
        }

        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.stack.push(name.to_string());
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.stack.pop();
        }
    }
    net.clone().map(&mut WriteValues {
        stack: Vec::new(),
        values,
    })
}

#[test]
fn a_scaled_projection_projects_the_update() {
    let start = Net::new();
    let policy = Policy::default()
        .with_site(Site::Update)
        .with_rank(RankRule::FixedRank(4))
        .with_strength(Strength::Scaled(5.0));
    let protection = memory(&start, "soft", &policy).protection(&start).unwrap();
    let config = AdamWConfig::new().with_weight_decay(0.1);
    let change = |optimizer: &mut ModuleOptimizer| {
        let after = train(optimizer, start.clone(), 0.1, 0..1);
        after.matrix.val().inner() - start.matrix.val().inner()
    };
    let free = change(&mut config.init());
    let kept = change(&mut protection.wrap(&config));
    let expected = protection.get("matrix").unwrap().null_space.project(free);
    let error = (kept - expected.clone()).abs().max().into_scalar::<f32>();
    assert!(error < 1e-6, "{error}");
    assert!(expected.abs().max().into_scalar::<f32>() > 1e-3);
}

#[test]
fn projected_gradients_of_sgd_stay_in_the_null_space() {
    // Both sites agree only for SGD without momentum or decay.
    let start = Net::new();
    let policy = Policy::gnsp().with_site(Site::Gradient);
    let memory = memory(&start, "gnsp", &policy);
    let protection = memory.protection(&start).unwrap();
    let leak = |mut optimizer: ModuleOptimizer| {
        let after = train(&mut optimizer, start.clone(), 0.1, 0..4);
        protection.leak(&start, &after).unwrap()
    };
    let sgd = SgdConfig::new();
    for (path, leak) in leak(protection.wrap(&sgd)) {
        assert!(leak < 1e-6, "sgd, {path}: {leak:e}");
    }
    let adamw = AdamWConfig::new();
    let leaks = leak(protection.wrap(&adamw));
    assert!(leaks["linear.weight"] > 1e-2, "{leaks:?}");
}

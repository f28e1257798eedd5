//! Parity of the fused kernels with Burn's own operations, values and gradients.
#![cfg(feature = "flex")]

use burn::tensor::{Device, Tensor, TensorData};
use clip_kernels::{
    ActivationFunction, AttentionBranch, Kernels, LayerNormParams, LinearParams, MlpBranch,
    Queries, Tree, attention_branch, mlp_branch, mlp_branch_with_inputs,
};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

const BATCH: usize = 3;
const TOKENS: usize = 7;
const WIDTH: usize = 12;
const HIDDEN: usize = 20;

struct RandomLeaves<'a> {
    rng: ChaCha8Rng,
    device: &'a Device,
    leaves: Vec<Tensor<1>>,
}

impl<'a> RandomLeaves<'a> {
    fn new(device: &'a Device) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(7),
            device,
            leaves: Vec::new(),
        }
    }

    /// Returns a random leaf of the autodiff graph, or a plain tensor if the device has no
    /// autodiff.
    fn leaf<const D: usize>(&mut self, shape: [usize; D], around: f32) -> Tensor<D> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| around + self.rng.random_range(-0.5..0.5))
            .collect();
        let leaf = Tensor::<1>::from_data(TensorData::new(values, [count]), self.device);
        let leaf = match self.device.is_autodiff() {
            true => leaf.require_grad(),
            false => leaf,
        };
        self.leaves.push(leaf.clone());
        leaf.reshape(shape)
    }

    fn norm(&mut self) -> LayerNormParams {
        LayerNormParams {
            gamma: self.leaf([WIDTH], 1.0),
            beta: self.leaf([WIDTH], 0.0),
            epsilon: 1e-5,
        }
    }

    fn linear(&mut self, from: usize, to: usize) -> LinearParams {
        LinearParams {
            weight: self.leaf([from, to], 0.0),
            bias: self.leaf([to], 0.0),
        }
    }
}

/// Returns the output, and the gradients of a weighted sum of it with respect to all leaves.
fn values_and_gradients(
    device: &Device,
    kernels: Kernels,
    compute: &dyn Fn(&mut RandomLeaves<'_>, Kernels) -> Tensor<3>,
) -> Vec<Vec<f32>> {
    let mut random = RandomLeaves::new(device);
    let y = compute(&mut random, kernels);
    let count = y.shape().num_elements();
    let weights: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
    let weights = Tensor::<1>::from_data(TensorData::new(weights, [count]), device);
    let gradients = (y.clone().reshape([count]) * weights).sum().backward();
    let of_leaves = random.leaves.iter().map(|leaf| {
        let gradient = leaf.grad(&gradients).expect("every leaf has a gradient");
        gradient.into_data().try_into_vec().unwrap()
    });
    let y = y.inner().into_data().try_into_vec().unwrap();
    std::iter::once(y).chain(of_leaves).collect()
}

fn compare(what: &str, compute: &dyn Fn(&mut RandomLeaves<'_>, Kernels) -> Tensor<3>) {
    let device = Device::flex().autodiff();
    let fused = values_and_gradients(&device, Kernels::Fused, compute);
    let plain = values_and_gradients(&device, Kernels::Plain, compute);
    assert_eq!(fused.len(), plain.len());
    for (i, (fused, plain)) in fused.iter().zip(&plain).enumerate() {
        let largest = plain
            .iter()
            .fold(1e-3f32, |largest, x| largest.max(x.abs()));
        for (fused, plain) in fused.iter().zip(plain) {
            assert!(
                (fused - plain).abs() < 1e-5 * largest,
                "{what}, tensor {i}: {fused} for {plain}"
            );
        }
    }
    let device = device.gradient_checkpointing();
    let recomputed = values_and_gradients(&device, Kernels::Fused, compute);
    assert!(
        recomputed == fused,
        "{what}: recomputed activations changed bits"
    );
}

#[test]
fn attention_matches_burn() {
    for causal in [false, true] {
        let trees = (0..BATCH * TOKENS).map(|i| (i * 5 + 2) % (i % TOKENS + 1));
        for queries in [
            Queries::All,
            Queries::At(vec![0, 6, 3]),
            Queries::Tree(Tree::new(trees.collect())),
        ] {
            let what = format!("causal {causal}, {queries:?}");
            compare(&what, &|random, kernels| {
                let x = random.leaf([BATCH, TOKENS, WIDTH], 0.0);
                let branch = AttentionBranch {
                    norm: random.norm(),
                    in_proj: random.linear(WIDTH, 3 * WIDTH),
                    out_proj: random.linear(WIDTH, WIDTH),
                    heads: 3,
                    causal,
                    kernels,
                };
                attention_branch(x, branch, &queries)
            });
        }
    }
}

#[test]
fn mlp_matches_burn() {
    for activation in [
        ActivationFunction::QuickGelu,
        ActivationFunction::Gelu,
        ActivationFunction::GeluTanh,
    ] {
        compare(&format!("{activation:?}"), &|random, kernels| {
            let x = random.leaf([BATCH, TOKENS, WIDTH], 0.0);
            let branch = MlpBranch {
                norm: random.norm(),
                c_fc: random.linear(WIDTH, HIDDEN),
                activation,
                c_proj: random.linear(HIDDEN, WIDTH),
                kernels,
            };
            mlp_branch(x, branch)
        });
    }
}

/// Returns the output and the inputs of both linear layers. Asserts that the output is that of
/// `mlp_branch`.
fn with_inputs(device: &Device, kernels: Kernels, queries: &Queries) -> [Tensor<3>; 3] {
    let mut random = RandomLeaves::new(device);
    let x = random.leaf([BATCH, TOKENS, WIDTH], 0.0);
    let branch = MlpBranch {
        norm: random.norm(),
        c_fc: random.linear(WIDTH, HIDDEN),
        activation: ActivationFunction::QuickGelu,
        c_proj: random.linear(HIDDEN, WIDTH),
        kernels,
    };
    let outputs = mlp_branch_with_inputs(x.clone(), branch.clone(), queries);
    let want = queries.select(mlp_branch(x, branch)).inner();
    let output = outputs.output.inner();
    assert_close(output.clone(), want, "the output of `mlp_branch`");
    [
        output,
        outputs.c_fc_input.inner(),
        outputs.c_proj_input.inner(),
    ]
}

fn assert_close(got: Tensor<3>, want: Tensor<3>, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let [got, want]: [Vec<f32>; 2] = [got, want].map(|x| x.into_data().try_into_vec().unwrap());
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() < 1e-5, "{what}: {got} for {want}");
    }
}

#[test]
fn mlp_with_inputs_matches_burn() {
    let device = Device::flex();
    for queries in [Queries::All, Queries::At(vec![0, 6, 3])] {
        let plain = with_inputs(&device, Kernels::Plain, &queries);
        let output_tokens = if queries == Queries::All { TOKENS } else { 1 };
        let shapes = [
            [BATCH, output_tokens, WIDTH],
            [BATCH, TOKENS, WIDTH],
            [BATCH, TOKENS, HIDDEN],
        ];
        assert_eq!(plain.each_ref().map(|t| t.dims()), shapes);
        // With autodiff both are the plain implementation.
        for device in [device.clone(), device.clone().autodiff()] {
            let got = with_inputs(&device, Kernels::Fused, &queries);
            for (got, want) in got.into_iter().zip(plain.clone()) {
                assert_close(got, want, &format!("{queries:?} on {device:?}"));
            }
        }
    }
}

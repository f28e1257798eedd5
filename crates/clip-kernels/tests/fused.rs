//! The host's kernels give what Burn's own operations give, values and gradients.
#![cfg(feature = "flex")]

use std::sync::Mutex;

use burn::tensor::{Device, Tensor, TensorData};
use clip_kernels::{
    Activation, AttentionBranch, Kernels, LayerNorm, Linear, MlpBranch, Queries, Tree,
    attention_branch, mlp_branch, observed_mlp_branch,
};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

/// The switch is the process's.
static SWITCH: Mutex<()> = Mutex::new(());

const BATCH: usize = 3;
const TOKENS: usize = 7;
const WIDTH: usize = 12;
const HIDDEN: usize = 20;

struct Numbers<'a> {
    rng: ChaCha8Rng,
    device: &'a Device,
    leaves: Vec<Tensor<1>>,
}

impl<'a> Numbers<'a> {
    fn new(device: &'a Device) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(7),
            device,
            leaves: Vec::new(),
        }
    }

    /// A leaf of the tape, where the device has one, in the shape asked for.
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

    fn norm(&mut self) -> LayerNorm {
        LayerNorm {
            gamma: self.leaf([WIDTH], 1.0),
            beta: self.leaf([WIDTH], 0.0),
            epsilon: 1e-5,
        }
    }

    fn linear(&mut self, from: usize, to: usize) -> Linear {
        Linear {
            weight: self.leaf([from, to], 0.0),
            bias: self.leaf([to], 0.0),
        }
    }
}

/// Output and the gradients of all leaves of a weighted sum of it.
fn values_and_gradients(
    device: &Device,
    kernels: Kernels,
    compute: &dyn Fn(&mut Numbers<'_>, Kernels) -> Tensor<3>,
) -> Vec<Vec<f32>> {
    let mut numbers = Numbers::new(device);
    let y = compute(&mut numbers, kernels);
    let count = y.shape().num_elements();
    let weights: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
    let weights = Tensor::<1>::from_data(TensorData::new(weights, [count]), device);
    let gradients = (y.clone().reshape([count]) * weights).sum().backward();
    let of_leaves = numbers.leaves.iter().map(|leaf| {
        let gradient = leaf.grad(&gradients).expect("every leaf has a gradient");
        gradient.into_data().try_into_vec().unwrap()
    });
    let y = y.inner().into_data().try_into_vec().unwrap();
    std::iter::once(y).chain(of_leaves).collect()
}

fn compare(what: &str, compute: &dyn Fn(&mut Numbers<'_>, Kernels) -> Tensor<3>) {
    let _guard = SWITCH.lock().unwrap_or_else(|e| e.into_inner());
    let device = Device::flex().autodiff();
    let fused = values_and_gradients(&device, Kernels::Fused, compute);
    let plain = values_and_gradients(&device, Kernels::Plain, compute);
    assert_eq!(fused.len(), plain.len());
    for (i, (fused, plain)) in fused.iter().zip(&plain).enumerate() {
        let most = plain.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
        for (fused, plain) in fused.iter().zip(plain) {
            assert!(
                (fused - plain).abs() < 1e-5 * most,
                "{what}, tensor {i}: {fused} for {plain}"
            );
        }
    }
    let device = device.gradient_checkpointing();
    let again = values_and_gradients(&device, Kernels::Fused, compute);
    assert!(
        again == fused,
        "{what}: recomputed activations changed bits"
    );
}

#[test]
fn attention_is_that_of_burn() {
    for causal in [false, true] {
        let trees = (0..BATCH * TOKENS).map(|i| (i * 5 + 2) % (i % TOKENS + 1));
        for queries in [
            Queries::All,
            Queries::At(vec![0, 6, 3]),
            Queries::Tree(Tree::new(trees.collect())),
        ] {
            let what = format!("causal {causal}, {queries:?}");
            compare(&what, &|numbers, kernels| {
                let x = numbers.leaf([BATCH, TOKENS, WIDTH], 0.0);
                let branch = AttentionBranch {
                    norm: numbers.norm(),
                    in_proj: numbers.linear(WIDTH, 3 * WIDTH),
                    out_proj: numbers.linear(WIDTH, WIDTH),
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
fn the_mlp_is_that_of_burn() {
    for activation in [
        Activation::QuickGelu,
        Activation::Gelu,
        Activation::GeluTanh,
    ] {
        compare(&format!("{activation:?}"), &|numbers, kernels| {
            let x = numbers.leaf([BATCH, TOKENS, WIDTH], 0.0);
            let branch = MlpBranch {
                norm: numbers.norm(),
                c_fc: numbers.linear(WIDTH, HIDDEN),
                activation,
                c_proj: numbers.linear(HIDDEN, WIDTH),
                kernels,
            };
            mlp_branch(x, branch)
        });
    }
}

/// Output, and what the two maps see.
fn observed(device: &Device, kernels: Kernels, read: &Queries) -> [Tensor<3>; 3] {
    let mut numbers = Numbers::new(device);
    let x = numbers.leaf([BATCH, TOKENS, WIDTH], 0.0);
    let branch = MlpBranch {
        norm: numbers.norm(),
        c_fc: numbers.linear(WIDTH, HIDDEN),
        activation: Activation::QuickGelu,
        c_proj: numbers.linear(HIDDEN, WIDTH),
        kernels,
    };
    let seen = observed_mlp_branch(x.clone(), branch.clone(), read);
    let output = read.pick(mlp_branch(x, branch));
    let (output, want) = (seen.output.inner(), output.inner());
    assert_close(output.clone(), want, "the branch that nobody observes");
    [output, seen.normed.inner(), seen.inner.inner()]
}

fn assert_close(got: Tensor<3>, want: Tensor<3>, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let [got, want]: [Vec<f32>; 2] = [got, want].map(|x| x.into_data().try_into_vec().unwrap());
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() < 1e-5, "{what}: {got} for {want}");
    }
}

#[test]
fn an_observed_mlp_is_that_of_burn_and_shows_every_position() {
    let _guard = SWITCH.lock().unwrap_or_else(|e| e.into_inner());
    let device = Device::flex();
    for read in [Queries::All, Queries::At(vec![0, 6, 3])] {
        let plain = observed(&device, Kernels::Plain, &read);
        let outputs = if read == Queries::All { TOKENS } else { 1 };
        let shapes = [
            [BATCH, outputs, WIDTH],
            [BATCH, TOKENS, WIDTH],
            [BATCH, TOKENS, HIDDEN],
        ];
        assert_eq!(plain.each_ref().map(|t| t.dims()), shapes);
        // On a tape it is the plain way.
        for device in [device.clone(), device.clone().autodiff()] {
            let got = observed(&device, Kernels::Fused, &read);
            for (got, want) in got.into_iter().zip(plain.clone()) {
                assert_close(got, want, &format!("{read:?} on {device:?}"));
            }
        }
    }
}

//! Benchmarks of the branches of a transformer block, fused and in Burn's own operations.
//!
//! The backward passes compute what GNSP needs: the gradients of the MLP's weights and of the
//! input.
//!
//! `cargo bench -p gnsp-benches --bench clip_kernels`

use std::fmt;

use burn::{
    optim::{AdamWConfig, Optimizer},
    tensor::{Device, Tensor},
};
use clip_kernels::{
    ActivationFunction, AdamWSettings, AttentionBranch, FusedAdamW, Kernels, LayerNormParams,
    LinearParams, MlpBranch, Queries,
};
use divan::Bencher;
use gnsp_benches::{
    fixtures::{values, weight},
    yardstick::{PRODUCTS, Product},
};

/// The allocator of `mtil-bench`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

#[divan::bench(args = PRODUCTS, max_time = 2)]
fn yardstick(bencher: Bencher<'_, '_>, product: Product) {
    product.bench(bencher);
}

/// Shape of the input, and the kernels.
#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    tokens: usize,
    width: usize,
    fused: bool,
}

/// Batches of images of the embedded model and of ViT-B/16.
const CASES: [Case; 4] = [
    Case::new(64, 17, 128, true),
    Case::new(64, 17, 128, false),
    Case::new(2, 197, 768, true),
    Case::new(2, 197, 768, false),
];

impl Case {
    const fn new(batch: usize, tokens: usize, width: usize, fused: bool) -> Self {
        Self {
            batch,
            tokens,
            width,
            fused,
        }
    }

    /// Returns the width of the hidden layer of the MLP.
    fn hidden(self) -> usize {
        4 * self.width
    }

    fn input(self, device: &Device) -> Tensor<3> {
        values([self.batch, self.tokens, self.width], 1, device)
    }

    fn norm(self, device: &Device) -> LayerNormParams {
        LayerNormParams {
            gamma: values([self.width], 2, device),
            beta: values([self.width], 3, device),
            epsilon: 1e-5,
        }
    }

    fn kernels(self) -> Kernels {
        match self.fused {
            true => Kernels::Fused,
            false => Kernels::Plain,
        }
    }

    fn attention(self, device: &Device) -> AttentionBranch {
        AttentionBranch {
            norm: self.norm(device),
            in_proj: linear([self.width, 3 * self.width], 4, device),
            out_proj: linear([self.width, self.width], 5, device),
            heads: self.width / 64,
            causal: false,
            kernels: self.kernels(),
        }
    }

    fn mlp(self, device: &Device) -> MlpBranch {
        MlpBranch {
            norm: self.norm(device),
            c_fc: linear([self.width, self.hidden()], 6, device),
            activation: ActivationFunction::QuickGelu,
            c_proj: linear([self.hidden(), self.width], 7, device),
            kernels: self.kernels(),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernels = if self.fused { "fused" } else { "plain" };
        let Self {
            batch,
            tokens,
            width,
            ..
        } = self;
        write!(f, "{batch}x{tokens}x{width} {kernels}")
    }
}

fn linear(shape: [usize; 2], seed: u64, device: &Device) -> LinearParams {
    LinearParams {
        weight: weight(shape, seed, device),
        bias: values([shape[1]], seed, device),
    }
}

#[divan::bench(args = CASES, max_time = 3)]
fn attention_forward(bencher: Bencher<'_, '_>, case: Case) {
    let device = Device::flex();
    let (x, branch) = (case.input(&device), case.attention(&device));
    bencher
        .bench_local(|| clip_kernels::attention_branch(x.clone(), branch.clone(), &Queries::All));
}

#[divan::bench(args = CASES, max_time = 3)]
fn attention_forward_and_backward(bencher: Bencher<'_, '_>, case: Case) {
    let device = Device::flex().autodiff();
    let (x, branch) = (case.input(&device).require_grad(), case.attention(&device));
    bencher.bench_local(|| {
        let y = clip_kernels::attention_branch(x.clone(), branch.clone(), &Queries::All);
        y.sum().backward()
    });
}

#[divan::bench(args = CASES, max_time = 3)]
fn mlp_forward(bencher: Bencher<'_, '_>, case: Case) {
    let device = Device::flex();
    let (x, branch) = (case.input(&device), case.mlp(&device));
    bencher.bench_local(|| clip_kernels::mlp_branch(x.clone(), branch.clone()));
}

#[divan::bench(args = CASES, max_time = 3)]
fn mlp_forward_and_backward(bencher: Bencher<'_, '_>, case: Case) {
    let device = Device::flex().autodiff();
    let (x, mut branch) = (case.input(&device).require_grad(), case.mlp(&device));
    branch.c_fc.weight = branch.c_fc.weight.require_grad();
    branch.c_proj.weight = branch.c_proj.weight.require_grad();
    bencher.bench_local(|| {
        let y = clip_kernels::mlp_branch(x.clone(), branch.clone());
        y.sum().backward()
    });
}

#[divan::bench(args = CASES, max_time = 2)]
fn layer_norm(bencher: Bencher<'_, '_>, case: Case) {
    let device = Device::flex();
    let (x, norm) = (case.input(&device), case.norm(&device));
    bencher.bench_local(|| clip_kernels::layer_norm(x.clone(), norm.clone(), case.kernels()));
}

/// Benchmarks the activation of the hidden layer of an MLP.
fn activate(bencher: Bencher<'_, '_>, case: Case, activation: ActivationFunction) {
    let shape = [case.batch, case.tokens, case.hidden()];
    let x = values(shape, 1, &Device::flex());
    bencher.bench_local(|| clip_kernels::activate(x.clone(), activation, case.kernels()));
}

#[divan::bench(args = CASES, max_time = 2)]
fn quick_gelu(bencher: Bencher<'_, '_>, case: Case) {
    activate(bencher, case, ActivationFunction::QuickGelu);
}

#[divan::bench(args = CASES, max_time = 2)]
fn gelu(bencher: Bencher<'_, '_>, case: Case) {
    activate(bencher, case, ActivationFunction::Gelu);
}

#[divan::bench(max_time = 2)]
fn adamw_of_1m_fused(bencher: Bencher<'_, '_>) {
    let optimizer = FusedAdamW::new(AdamWSettings {
        beta_1: 0.9,
        beta_2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
    });
    update_1m(bencher, optimizer);
}

#[divan::bench(max_time = 2)]
fn adamw_of_1m_burn(bencher: Bencher<'_, '_>) {
    let config = AdamWConfig::new()
        .with_beta_1(0.9)
        .with_beta_2(0.999)
        .with_epsilon(1e-8)
        .with_weight_decay(0.1);
    update_1m(bencher, config.build());
}

/// Benchmarks the step of a uniquely owned parameter, which allows updates in place as in training.
fn update_1m<O: Optimizer>(bencher: Bencher<'_, '_>, optimizer: O) {
    let device = Device::flex();
    let mut held = Some((values([1000, 1000], 1, &device), None));
    let gradient = values::<2>([1000, 1000], 2, &device).into_data();
    bencher
        .with_inputs(|| Tensor::<2>::from_data(gradient.clone(), &device))
        .bench_local_values(|gradient| {
            let (parameter, state) = held.take().expect("stored by the previous step");
            held = Some(optimizer.step(1e-5, parameter, gradient, state));
        });
}

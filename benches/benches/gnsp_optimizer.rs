//! Benchmarks of what GNSP adds to training: Gram matrices, null spaces, projections, and saving of
//! the memory.
//!
//! `cargo bench -p gnsp-benches --bench gnsp_optimizer`

use burn::tensor::{Device, Tensor};
use divan::Bencher;
use gnsp_benches::{
    fixtures::{values, weight},
    yardstick::{PRODUCTS, Product},
};
use gnsp_optimizer::{
    Gram, GramAccumulator, GramNormalization, History, Layout, Memory, NullSpace, Policy, RankRule,
    Solver, TaskGram,
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

/// Number of protected directions.
const RANK: usize = 64;

/// Storage of a Gram matrix during accumulation.
#[derive(Debug, Clone, Copy)]
enum Update {
    /// One triangle.
    Symmetric,
    /// The whole matrix.
    Dense,
}

const UPDATES: [Update; 2] = [Update::Symmetric, Update::Dense];

/// Benchmarks adding a batch to a sum that is not empty.
fn add_batch(bencher: Bencher<'_, '_>, update: Update, shape: [usize; 2]) {
    let rows = values(shape, 1, &Device::flex());
    let mut gram = GramAccumulator::new(shape[1], GramNormalization::PerBatchAndTask);
    if matches!(update, Update::Dense) {
        gram = gram.with_whole_matrices();
    }
    gram.add(rows.clone()).expect("finite rows");
    bencher.bench_local(|| gram.add(rows.clone()).expect("finite rows"));
}

/// Inputs of the second layer of an MLP of the embedded model, on 32 images.
#[divan::bench(args = UPDATES, max_time = 2)]
fn gram_of_one_batch_512(bencher: Bencher<'_, '_>, update: Update) {
    add_batch(bencher, update, [32 * 17, 512]);
}

/// Inputs of the second layer of an MLP of ViT-B/16, on two images.
#[divan::bench(args = UPDATES, sample_count = 5, sample_size = 1)]
fn gram_of_one_batch_3072(bencher: Bencher<'_, '_>, update: Update) {
    add_batch(bencher, update, [2 * 197, 3072]);
}

fn gram(rows: Tensor<2>) -> Gram {
    let mut gram = GramAccumulator::new(rows.dims()[1], GramNormalization::PerBatchAndTask);
    gram.add(rows).expect("finite rows");
    gram.finish().expect("a batch was added")
}

#[divan::bench(args = [Solver::Partial, Solver::Full], max_time = 3)]
fn null_space_of_512(bencher: Bencher<'_, '_>, solver: Solver) {
    let device = Device::flex();
    // A decaying spectrum, like that of the inputs of trained layers.
    let deviations: Vec<f32> = (1..=512).map(|j| 1.0 / j as f32).collect();
    let deviations = Tensor::<1>::from_floats(deviations.as_slice(), &device);
    let rows = values::<2>([1024, 512], 1, &device) * deviations.unsqueeze();
    let gram = gram(rows.matmul(weight([512, 512], 2, &device)));
    let policy = Policy::gnsp()
        .with_rank(RankRule::FixedRank(RANK))
        .with_solver(solver);
    bencher.bench_local(|| NullSpace::from_policy(&gram, &policy, &device).expect("a valid rank"));
}

/// Shapes of the second layer of an MLP, of the embedded model and of ViT-B/16.
const WEIGHTS: [[usize; 2]; 2] = [[512, 128], [3072, 768]];

/// Projection of a gradient.
#[divan::bench(args = WEIGHTS, max_time = 2)]
fn project(bencher: Bencher<'_, '_>, shape: [usize; 2]) {
    let device = Device::flex();
    // With as many rows as protected directions, the null space is cheap to compute.
    let gram = gram(values([RANK, shape[0]], 1, &device));
    let null_space = NullSpace::from_gram(&gram, RankRule::FixedRank(RANK)).expect("a valid rank");
    let gradient = values(shape, 2, &device);
    bencher.bench_local(|| null_space.project(gradient.clone()));
}

/// Returns the Gram matrices of the MLPs of four blocks with the widths of the embedded model.
fn memory() -> Memory {
    let device = Device::flex();
    let mut memory = Memory::new(Policy::gnsp());
    for block in 0..4 {
        for (layer, features) in [("c_fc", 128), ("c_proj", 512)] {
            let path = format!("visual.blocks.{block}.mlp.{layer}.weight");
            let rows: Tensor<2> = values([32 * 17, features], block, &device);
            let recorded = TaskGram {
                layout: Layout::InputsFirst,
                gram: gram(rows),
                history: History::Sum,
            };
            memory.absorb_gram(path, recorded).expect("it is the first");
        }
    }
    memory
}

#[divan::bench(max_time = 2)]
fn save_memory(bencher: Bencher<'_, '_>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (memory, file) = (memory(), folder.path().join("memory.safetensors"));
    bencher.bench_local(|| memory.save(&file).expect("a writable folder"));
}

#[divan::bench(max_time = 2)]
fn load_memory(bencher: Bencher<'_, '_>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("memory.safetensors");
    memory().save(&file).expect("a writable folder");
    bencher.bench_local(|| Memory::load(&file).expect("a readable file"));
}

//! Five tasks of permuted digits with one ten-way head: how much of the earlier ones is forgotten
//! by plain AdamW, with the gradient projected, and with the update projected.
//!
//! Every task shuffles the pixels of the same drawn digits in its own way, so that nothing about
//! the pictures helps from one task to the next and all of them compete for the same weights.
//! The two projections protect the same directions; only where the projector acts differs. The
//! program fails if the projected update does not forget least.
//!
//! ```text
//! cargo run --release -p gnsp-optimizer --example permuted_digits -- --seeds 5
//! ```

mod common;

use std::error::Error;

use burn::optim::AdamWConfig;
use burn::tensor::Device;
use gnsp_optimizer::{Policy, RankRule, Site};

use common::digits::{Digits, permutation};
use common::generator;
use common::mlp::Mlp;
use common::report::print_table;
use common::sequence::{Method, Outcome, Schedule, Task, learn, mean};

const TASKS: usize = 5;
/// Share of the spectrum of every layer's inputs that is left free: less keeps more of the earlier
/// tasks and leaves less for the later ones.
const TAIL: f64 = 0.07;
const METHODS: [Method; 3] = [
    Method::Plain,
    Method::Projected(Site::Gradient),
    Method::Projected(Site::Update),
];

fn main() -> Result<(), Box<dyn Error>> {
    let seeds = seeds()?;
    let mut outcomes: [Vec<Outcome>; 3] = Default::default();
    for seed in 0..seeds {
        println!("seed {seed}");
        for (method, outcomes) in METHODS.iter().zip(&mut outcomes) {
            let outcome = run(*method, seed)?;
            println!(
                "  {:18}  mean accuracy {:.1} %, forgetting {:.1} points",
                method.name(),
                mean(outcome.last()),
                outcome.forgetting()
            );
            outcomes.push(outcome);
        }
    }
    println!("\nAccuracy after the last task in percent, {seeds} seeds:");
    let names = METHODS.iter().map(Method::name);
    let rows: Vec<(&str, &[Outcome])> = names.zip(outcomes.iter().map(Vec::as_slice)).collect();
    print_table(&rows);
    check(&outcomes)
}

/// The number after `--seeds`.
fn seeds() -> Result<u64, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seeds = match arguments.as_slice() {
        [] => 5,
        [flag, number] if flag == "--seeds" => number
            .parse()
            .map_err(|error| format!("--seeds {number}: {error}"))?,
        _ => return Err("usage: permuted_digits [--seeds N]".into()),
    };
    if seeds == 0 {
        return Err("--seeds must be at least 1".into());
    }
    Ok(seeds)
}

/// One method on the tasks of one seed. All methods start from the same weights and see the same
/// batches.
fn run(method: Method, seed: u64) -> Result<Outcome, Box<dyn Error>> {
    let policy = Policy::default().with_rank(RankRule::TailShare(TAIL));
    let schedule = Schedule {
        epochs: 10,
        batch_size: 50,
        learning_rate: 1e-3,
        optimizer: AdamWConfig::new().with_weight_decay(1e-2),
    };
    let model = Mlp::new(&Device::default().autodiff(), &mut generator(seed, 0));
    let order = &mut generator(seed, 1);
    learn(model, &tasks(seed), method, &policy, &schedule, order)
}

fn tasks(seed: u64) -> Vec<Task> {
    let rng = &mut generator(seed, 2);
    let (train, test) = (Digits::draw(2000, rng), Digits::draw(1000, rng));
    let mut tasks = Vec::with_capacity(TASKS);
    for _ in 0..TASKS {
        let order = permutation(rng);
        let permuted = |picture: &[f32]| order.iter().map(|pixel| picture[*pixel]).collect();
        tasks.push(Task::new(&train, &test, permuted));
    }
    tasks
}

/// The projected update must forget least, on average over the seeds.
fn check(outcomes: &[Vec<Outcome>; 3]) -> Result<(), Box<dyn Error>> {
    let [plain, gradient, update] = outcomes
        .each_ref()
        .map(|of| mean(of.iter().map(Outcome::forgetting)));
    if update < plain && update < gradient {
        println!("\nThe projected update forgets least.");
        return Ok(());
    }
    Err(format!(
        "the projected update forgets {update:.2} points, the projected gradient {gradient:.2}, \
         plain AdamW {plain:.2}: it should forget least"
    )
    .into())
}

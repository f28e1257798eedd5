//! Forgetting on five permuted-digits tasks with one ten-way head: plain AdamW, projected gradient
//! and projected update.
//!
//! Each task applies its own pixel permutation to the same synthetic digits. Nothing about the
//! images transfers between tasks, so all tasks compete for the same weights. Both projections
//! protect the same directions and differ only in the projected tensor. The program fails if the
//! projected update does not forget least.
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
use common::sequence::{Method, Outcome, Schedule, Task, mean, train_sequence};

const TASKS: usize = 5;
/// Share of the spectrum of each layer's inputs that stays unprotected. A smaller share preserves
/// more of earlier tasks and leaves less capacity for later ones.
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

/// Parses the number of seeds from the command line.
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

/// Trains one method on the tasks of one seed.
///
/// All methods have the same initial weights and batches.
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
    train_sequence(model, &tasks(seed), method, &policy, &schedule, order)
}

fn tasks(seed: u64) -> Vec<Task> {
    let rng = &mut generator(seed, 2);
    let (train, test) = (Digits::draw(2000, rng), Digits::draw(1000, rng));
    let mut tasks = Vec::with_capacity(TASKS);
    for _ in 0..TASKS {
        let order = permutation(rng);
        let permuted = |image: &[f32]| order.iter().map(|pixel| image[*pixel]).collect();
        tasks.push(Task::new(&train, &test, permuted));
    }
    tasks
}

/// Checks that the projected update forgets least, on average over the seeds.
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

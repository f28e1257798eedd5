//! Cost per task as the number of tasks grows: `gnsp` on twenty tasks of the mini world, all of one
//! domain with different images.
//!
//! ```text
//! cargo build --release --workspace --bins
//! growth [TASKS]
//! ```
//!
//! It prints a line per task with the seconds without evaluation, the resident memory and the state
//! kept of earlier tasks in MB, and a line of JSON.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use burn::tensor::Device;
use mini_world as mini;
use mini_world::MiniSizes;
use mini_world::embedded;
use mtil_bench::process;
use mtil_data::suite::Suite;
use mtil_engine::{
    eval::EvalOptions,
    method::Method,
    run::{Event, Phase, Progress, Request, RunOptions, run},
};

/// The allocator of `mtil-bench`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Index of the domain: digits.
const DOMAIN: usize = 1;
const STEPS: usize = 60;

fn suite(tasks: usize) -> Suite {
    let sizes = MiniSizes {
        train_per_task: 320,
        test_per_task: 40,
        reference: 192,
        held_out: 20,
    };
    let mut suite = mini::suite(1, sizes);
    suite.tasks = (0..tasks)
        .map(|i| {
            let mut task = mini::suite(100 + i as u64, sizes).tasks.swap_remove(DOMAIN);
            task.name = format!("{}-{}", task.name, i + 1);
            task
        })
        .collect();
    suite
}

/// Times each task from the end of one evaluation to the end of its Gram accumulation.
struct CostRecorder {
    begun: Instant,
    ended: Instant,
    state: PathBuf,
    tasks: Vec<Cost>,
}

/// Cost of a task.
struct Cost {
    seconds: f64,
    /// Resident memory of the process.
    resident_mb: f64,
    /// State of earlier tasks on disk. That of the task itself is written after its evaluation.
    kept_mb: f64,
}

impl Progress for CostRecorder {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Step(update) if update.step == update.steps => self.ended = Instant::now(),
            Event::Working {
                on: Phase::Gram,
                done,
                of,
            } if done == of => self.ended = Instant::now(),
            Event::Evaluation(evaluated) => {
                if evaluated.stage.is_some() {
                    let seconds = (self.ended - self.begun).as_secs_f64();
                    self.tasks.push(Cost {
                        seconds,
                        resident_mb: resident_mb(),
                        kept_mb: kept_mb(&self.state),
                    });
                }
                self.begun = Instant::now();
            }
            _ => {}
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // As in `mtil-bench`.
    process::join_pool();
    let tasks: usize = std::env::args().nth(1).map_or(Ok(20), |n| n.parse())?;
    let suite = suite(tasks);
    let folder = tempfile::tempdir()?;
    let overrides = [
        format!("steps={STEPS}"),
        "warmup=10".into(),
        "batch=32".into(),
        "reference_batch=32".into(),
        "reference_pairs=192".into(),
    ];
    let request = Request {
        suite: "growth".into(),
        suite_fingerprint: suite.fingerprint(),
        model: "embedded".into(),
        model_sha256: String::new(),
        seed: 42,
        device: "flex".into(),
        peers: Vec::new(),
        products: "faer".to_owned(),
        evaluation: EvalOptions::default(),
        guard: Vec::new(),
        skip_bad_images: false,
        max_pixels: None,
        select: None,
        version: String::new(),
        method: Method::load("gnsp", "mini", &overrides)?,
    };
    let mut recorder = CostRecorder {
        begun: Instant::now(),
        ended: Instant::now(),
        state: folder.path().join("state"),
        tasks: Vec::new(),
    };
    let device = Device::flex();
    let options = RunOptions {
        checkpoints: false,
        ..RunOptions::default()
    };
    run(
        &request,
        &suite,
        &embedded::clip_mini(&device)?,
        &device,
        folder.path(),
        &options,
        &Arc::default(),
        &mut recorder,
    )?;
    let kept = kept_mb(&recorder.state);
    for (i, cost) in recorder.tasks.iter().enumerate() {
        let Cost {
            seconds,
            resident_mb,
            kept_mb,
        } = cost;
        println!(
            "task {:2}: {seconds:.2} s, {resident_mb:.0} MB resident, {kept_mb:.2} MB of earlier \
             tasks",
            i + 1
        );
    }
    println!("{kept:.2} MB kept at the end");
    // The first task trains everything; the second is the first that is projected.
    let later: Vec<f64> = recorder
        .tasks
        .iter()
        .skip(1)
        .map(|cost| cost.seconds)
        .collect();
    let half = later.len() / 2;
    let (early, late) = (median(&later[..half]), median(&later[half..]));
    println!(
        "{}",
        serde_json::json!({
            "tasks": tasks,
            "seconds_early": early,
            "seconds_late": late,
            "late_over_early": late / early,
            "resident_second_mb": recorder.tasks.get(1).map(|cost| cost.resident_mb),
            "resident_last_mb": recorder.tasks.last().map(|cost| cost.resident_mb),
            "kept_after_second_mb": recorder.tasks.get(2).map(|cost| cost.kept_mb),
            "kept_mb": kept,
        })
    );
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn kept_mb(folder: &Path) -> f64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes: u64 = files.filter_map(|f| Some(f.metadata().ok()?.len())).sum();
    bytes as f64 / 1e6
}

fn resident_mb() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
        .map_or(f64::NAN, |kb| kb / 1e3)
}

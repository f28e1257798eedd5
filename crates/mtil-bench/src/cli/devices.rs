//! `device`: the list of devices, and the comparison of their speed, memory and results.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use clap::{Args, Subcommand};
use eyre::{Context, Result, eyre};
use indicatif::{ProgressBar, ProgressStyle};

use super::{interrupt::stop_flag, lists::trimmed};
use crate::{
    compare::{
        Comparison, Outcome, Size, Workload,
        gather::{Event, GatherError, Request, gather},
        measure::{WorkerMessage, WorkerRequest, measure},
    },
    device,
    exit::EarlyEnd,
};

/// Arguments of `device`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
        mtil-bench device\n  \
        mtil-bench device compare --sizes vit-b-16 --works training-step --batch 64")]
pub struct DeviceArgs {
    /// The subcommand; lists the devices if absent.
    #[command(subcommand)]
    pub command: Option<DeviceCommand>,
}

/// The subcommands of `device`.
#[derive(Debug, Clone, Subcommand)]
pub enum DeviceCommand {
    /// List the devices of this build, and whether they work on this machine
    List,
    /// Compare devices by speed, memory and numerical results
    ///
    /// The workloads are encoding, a GNSP training step, Gram accumulation, projectors and
    /// evaluation, on random models of the usual sizes. Prints a table, and writes compare.html,
    /// compare.csv and compare.json. Each device and size is measured in its own process.
    ///
    ///   mtil-bench device compare                    every usable device, tiny and ViT-B/32
    ///   mtil-bench device compare --sizes all --devices flex,cuda:0
    ///   mtil-bench device compare --sizes vit-b-16 --works training-step --batch 64
    #[command(verbatim_doc_comment)]
    Compare(CompareArgs),
    /// Worker of `compare`: reads a request from standard input
    #[command(hide = true)]
    Measure,
}

/// Arguments of `device compare`.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// Comma-separated devices [default: all that work]
    #[arg(long, value_delimiter = ',', value_parser = trimmed)]
    pub devices: Vec<String>,
    /// Comma-separated model sizes: tiny, vit-b-32, vit-b-16, vit-l-14, or all
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = trimmed,
        default_value = "tiny,vit-b-32"
    )]
    pub sizes: Vec<String>,
    /// Comma-separated workloads: image-encoding, text-encoding, gram-accumulation,
    /// projector-build, projected-step, training-step, evaluation, or all
    #[arg(long, value_delimiter = ',', value_parser = trimmed, default_value = "all")]
    pub works: Vec<String>,
    /// Batch size; a training step uses as many reference images [default: 32 for tiny, else 8]
    #[arg(long)]
    pub batch: Option<usize>,
    /// Timed calls of each workload, after a first call that compiles and tunes kernels
    #[arg(long, default_value_t = 5)]
    pub repetitions: usize,
    /// Time limit of the timed calls of a workload in seconds; its process is killed after four
    /// times as long. 0: no limit
    #[arg(long, default_value_t = 120.0)]
    pub limit: f64,
    /// Random seed of weights, images and prompts
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Training steps of a run on `flex` that is replayed on every other device
    #[arg(long, default_value_t = 10)]
    pub replay: usize,
    /// Largest relative difference of results that count as equal
    #[arg(long, default_value_t = 1e-2)]
    pub tolerance: f64,
    /// Largest relative difference of the losses of a replay that count as equal
    #[arg(long, default_value_t = 1e-3)]
    pub replay_tolerance: f64,
    /// Output folder of the page and the tables
    #[arg(long, default_value = "runs/devices")]
    pub out: PathBuf,
    /// Print everything as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// Runs `device`.
pub fn devices(args: &DeviceArgs) -> Result<()> {
    match &args.command {
        None | Some(DeviceCommand::List) => {
            list();
            Ok(())
        }
        Some(DeviceCommand::Compare(args)) => compare(args),
        Some(DeviceCommand::Measure) => run_worker(),
    }
}

fn list() {
    for listed in device::available() {
        let state = match listed.usable {
            Ok(()) => "works".to_owned(),
            Err(error) => error.to_string(),
        };
        println!("{:10} {}: {state}", listed.word, listed.description);
    }
    println!("\nMatrix products on the CPU: {}.", host_gemm::choice());
}

fn compare(args: &CompareArgs) -> Result<()> {
    let request = request(args)?;
    // Create the folder first, to fail before hours of measuring.
    let out = &args.out;
    std::fs::create_dir_all(out)
        .wrap_err_with(|| format!("cannot create {}; choose another --out", out.display()))?;
    let program = std::env::current_exe().wrap_err("finding this program's own file")?;
    let worker_command = || {
        let mut command = Command::new(&program);
        command.args(["device", "measure"]);
        command
    };
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let gathered = gather(
        &request,
        &worker_command,
        &stop_flag(),
        &mut |event| match event {
            Event::Begun { device, size, work } => {
                bar.reset_elapsed();
                bar.set_message(format!("{device}: {work}, {size}"));
            }
            Event::Done(done) => {
                let result = match &done.outcome {
                    Outcome::Measured(_) => "measured",
                    Outcome::Missing(_) => "no figures",
                };
                let (device, work, size) = (&done.device, done.work, done.size);
                bar.suspend(|| eprintln!("{device}: {work}, {size}: {result}"));
            }
            // Save intermediate results. The last write reports an error.
            Event::Gathered(so_far) => drop(write(so_far, &args.out)),
        },
    );
    bar.finish_and_clear();
    let comparison = gathered.map_err(|error| match error {
        GatherError::Interrupted => {
            EarlyEnd::Interrupted("each device and size that was completed is in the --out folder")
                .into()
        }
        error => eyre::Report::from(error),
    })?;
    let page = write(&comparison, &args.out)?;
    if args.json {
        print!("{}", comparison.to_json()?);
    } else {
        print!("{}", comparison.to_text());
    }
    eprintln!("page: {}", page.display());
    Ok(())
}

/// Writes the files of a comparison and returns the path of the page.
fn write(comparison: &Comparison, out: &Path) -> Result<PathBuf> {
    comparison.save(&out.join("compare.json"))?;
    let csv = out.join("compare.csv");
    mtil_data::files::write_atomically(&csv, comparison.to_csv()?.as_bytes())
        .wrap_err_with(|| csv.display().to_string())?;
    let page = out.join("compare.html");
    comparison.write_page(&page)?;
    Ok(page)
}

fn request(args: &CompareArgs) -> Result<Request> {
    let all = |words: &[String]| words.iter().any(|word| word == "all");
    let sizes = if all(&args.sizes) {
        Size::ALL.to_vec()
    } else {
        let sizes = args.sizes.iter().map(|word| Ok(word.parse()?));
        sizes.collect::<Result<Vec<Size>>>()?
    };
    let works = if all(&args.works) {
        ORDER.to_vec()
    } else {
        let find = |word: &String| {
            let found = ORDER.into_iter().find(|work| work.word() == word);
            let known = ORDER.map(Workload::word).join(", ");
            found.ok_or_else(|| eyre!("--works {word}: known are {known}, or all"))
        };
        args.works
            .iter()
            .map(find)
            .collect::<Result<Vec<Workload>>>()?
    };
    if args.batch == Some(0) || args.repetitions == 0 {
        return Err(eyre!("--batch and --repetitions must be at least 1"));
    }
    for (name, value) in [
        ("--tolerance", args.tolerance),
        ("--replay-tolerance", args.replay_tolerance),
        ("--limit", args.limit),
    ] {
        if !value.is_finite() || value < 0.0 {
            return Err(eyre!("{name} {value}: must be a number of at least 0"));
        }
    }
    let mut request = Request {
        devices: args.devices.clone(),
        sizes,
        works,
        batch: args.batch,
        repetitions: args.repetitions,
        limit_seconds: (args.limit > 0.0).then_some(args.limit),
        seed: args.seed,
        replay: args.replay,
        tolerance: args.tolerance,
        replay_tolerance: args.replay_tolerance,
    };
    request.sizes.sort_unstable();
    request.sizes.dedup();
    request
        .works
        .sort_by_key(|work| ORDER.iter().position(|other| other == work));
    request.works.dedup();
    Ok(request)
}

/// Workloads in the order of execution. Each builds on the ones before it (Gram matrices,
/// projectors, steps), and needs at least as much memory.
const ORDER: [Workload; 7] = [
    Workload::ImageEncoding,
    Workload::TextEncoding,
    Workload::Evaluation,
    Workload::GramAccumulation,
    Workload::ProjectorBuild,
    Workload::ProjectedStep,
    Workload::TrainingStep,
];

/// Serves as a worker of `device compare`.
fn run_worker() -> Result<()> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .wrap_err("reading a request from standard input")?;
    let request: WorkerRequest = serde_json::from_str(&text)
        .wrap_err("`device measure` is only for use by `device compare`")?;
    let device = device::parse(&request.device)?;
    let mut failed = None;
    measure(&request, &device, &mut |message: &WorkerMessage| {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        let written = serde_json::to_writer(&mut out, message)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out))
            .and_then(|()| out.flush());
        if let Err(error) = written {
            failed.get_or_insert(error);
        }
    });
    match failed {
        Some(error) => Err(error).wrap_err("writing the measurements"),
        None => Ok(()),
    }
}

//! `device`: which devices there are, and what the work costs on each.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use clap::{Args, Subcommand};
use eyre::{Context, Result, eyre};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    compare::{
        Comparison, Outcome, Size, Work,
        gather::{Event, Request, gather},
        measure::{Line, Order, measure},
    },
    device,
};

/// Arguments of `device`.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// What to do; without a word the devices are listed.
    #[command(subcommand)]
    pub command: Option<DeviceCommand>,
}

/// What `device` does.
#[derive(Debug, Clone, Subcommand)]
pub enum DeviceCommand {
    /// List the devices of this build and whether they work here
    List,
    /// Do the same work on every device, and say what it costs on each
    ///
    /// Encoding, a GNSP training step, Gram matrices, projectors, evaluation, on random models of
    /// the usual sizes. Prints a table, and writes compare.html, compare.csv and compare.json. Each
    /// device and size is measured in a process of its own.
    ///
    ///   mtil-bench device compare                         every device that works, tiny and
    ///   ViT-B/32 mtil-bench device compare --sizes all --devices flex,cuda:0 mtil-bench device
    ///   compare --sizes vit-b-16 --works training-step --batch 64
    #[command(verbatim_doc_comment)]
    Compare(CompareArgs),
    /// What `compare` starts: reads an order from standard input
    #[command(hide = true)]
    Measure,
}

/// Arguments of `device compare`.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// Devices, with commas between [default: all that work]
    #[arg(long, value_delimiter = ',')]
    pub devices: Vec<String>,
    /// Models: tiny, vit-b-32, vit-b-16, vit-l-14, or all
    #[arg(long, value_delimiter = ',', default_value = "tiny,vit-b-32")]
    pub sizes: Vec<String>,
    /// What to time: image-encoding, text-encoding, gram-accumulation, projector-build,
    /// projected-step, training-step, evaluation, or all
    #[arg(long, value_delimiter = ',', default_value = "all")]
    pub works: Vec<String>,
    /// Images encoded at once; a training step takes as many reference images too [default: 32 for
    /// tiny, else 8]
    #[arg(long)]
    pub batch: Option<usize>,
    /// Timed calls of each work, after a first one that compiles and tunes
    #[arg(long, default_value_t = 5)]
    pub repetitions: usize,
    /// Seconds for the timed calls of one work; four times as long until its process is stopped. 0:
    /// no limit
    #[arg(long, default_value_t = 120.0)]
    pub limit: f64,
    /// Seed of weights, images and prompts
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Updates of a training run that is done on `flex` and again on every other device
    #[arg(long, default_value_t = 10)]
    pub replay: usize,
    /// Largest relative difference of results that counts as the same
    #[arg(long, default_value_t = 1e-2)]
    pub tolerance: f64,
    /// Largest relative difference of the losses of a replay
    #[arg(long, default_value_t = 1e-3)]
    pub replay_tolerance: f64,
    /// Where the page and the tables go
    #[arg(long, default_value = "runs/devices")]
    pub out: PathBuf,
    /// Print everything as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

pub fn devices(args: &DeviceArgs) -> Result<()> {
    match &args.command {
        None | Some(DeviceCommand::List) => {
            list();
            Ok(())
        }
        Some(DeviceCommand::Compare(args)) => compare(args),
        Some(DeviceCommand::Measure) => measure_ordered(),
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
    // Before hours of measuring.
    let out = &args.out;
    std::fs::create_dir_all(out)
        .wrap_err_with(|| format!("cannot create {}; choose another --out", out.display()))?;
    let program = std::env::current_exe().wrap_err("finding this program's own file")?;
    let measurer = || {
        let mut command = Command::new(&program);
        command.args(["device", "measure"]);
        command
    };
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let comparison = gather(&request, &measurer, &mut |event| match event {
        Event::Begun { device, size, work } => {
            bar.reset_elapsed();
            bar.set_message(format!("{device}: {work}, {size}"));
        }
        Event::Done(done) => {
            let said = match &done.outcome {
                Outcome::Measured(_) => "measured",
                Outcome::Missing(_) => "no figures",
            };
            let (device, work, size) = (&done.device, done.work, done.size);
            bar.suspend(|| eprintln!("{device}: {work}, {size}: {said}"));
        }
        // Kept if it goes no further. That it cannot be written is said at the end.
        Event::Gathered(so_far) => drop(write(so_far, &args.out)),
    })?;
    bar.finish_and_clear();
    let page = write(&comparison, &args.out)?;
    if args.json {
        print!("{}", comparison.to_json()?);
    } else {
        print!("{}", comparison.to_text());
    }
    eprintln!("page: {}", page.display());
    Ok(())
}

/// The files of a comparison; the path of the page.
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
            let known = ORDER.map(Work::word).join(", ");
            found.ok_or_else(|| eyre!("--works {word}: known are {known}, or all"))
        };
        args.works.iter().map(find).collect::<Result<Vec<Work>>>()?
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

/// In the order in which one leads to the next (Gram matrices, projectors, steps), which is also
/// that of the memory they need.
const ORDER: [Work; 7] = [
    Work::ImageEncoding,
    Work::TextEncoding,
    Work::Evaluation,
    Work::GramAccumulation,
    Work::ProjectorBuild,
    Work::ProjectedStep,
    Work::TrainingStep,
];

fn measure_ordered() -> Result<()> {
    let mut order = String::new();
    std::io::stdin()
        .read_to_string(&mut order)
        .wrap_err("reading an order from standard input")?;
    let order: Order = serde_json::from_str(&order)
        .wrap_err("`device measure` is what `device compare` starts")?;
    let device = device::parse(&order.device)?;
    let mut failed = None;
    measure(&order, &device, &mut |line: &Line| {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        let written = serde_json::to_writer(&mut out, line)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out))
            .and_then(|()| out.flush());
        if let Err(error) = written {
            failed.get_or_insert(error);
        }
    });
    match failed {
        Some(error) => Err(error).wrap_err("writing what was measured"),
        None => Ok(()),
    }
}

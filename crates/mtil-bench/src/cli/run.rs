//! `run`: methods on a suite.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use burn::tensor::Device;
use eyre::{Result, WrapErr, bail, eyre};

use super::{
    args::RunArgs,
    checkpoint::{EMBEDDED, Loaded, load_model},
    failed_on,
    job::{Common, Fingerprinted, Job},
    jobs::{self, End, Role},
    output::Terminal,
    planning::{memory_need, memory_warning, plan},
    selection::Selected,
};
use crate::device;
use mtil_data::{nearest, suite::Suite};
use mtil_engine::{
    guard::Guard,
    method::{Method, Tuned},
    metrics::{MatrixFile, MetricsFile},
    run::{Outcome, Progress, RunOptions, Select, run as run_method},
};
use mtil_report::{report, reproduce::expand};

/// Settings of `--quick`.
pub const QUICK: [&str; 5] = [
    "steps=8",
    "warmup=2",
    "batch=16",
    "reference_batch=16",
    "reference_pairs=64",
];

/// A flag that Ctrl-C sets; a second Ctrl-C ends the process at once.
pub fn stop_on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, std::sync::atomic::Ordering::Relaxed) {
            std::process::exit(130);
        }
        if jobs::is_worker() {
            return;
        }
        eprintln!("\nstopping after this update (Ctrl-C again: at once)");
    })?;
    Ok(stop)
}

/// A text as the name of a file or folder.
pub fn safe(text: &str) -> String {
    text.replace(|c: char| !c.is_alphanumeric() && !" -=,.+".contains(c), "_")
}

/// Writes up to eight sample images of each task for the report.
fn write_samples(suite: &Suite, out: &Path) -> Result<()> {
    for (index, task) in suite.tasks.iter().enumerate() {
        let folder = out
            .join("samples")
            .join(format!("{index:02}-{}", safe(&task.name)));
        if folder.exists() {
            continue;
        }
        let scratch = out.join("samples").join(format!(".{index:02}"));
        fs::create_dir_all(&scratch)?;
        let mut written = 0;
        for (class, name) in task.class_names.iter().enumerate() {
            let Some(image) = task.test.labels.iter().position(|l| *l == class) else {
                continue;
            };
            // A sample that cannot be read is simply not shown; the run itself names it.
            let Ok(image) = task.test.images.load(image) else {
                continue;
            };
            let image = if image.width().max(image.height()) > 128 {
                image.thumbnail(128, 128)
            } else {
                image
            };
            image
                .to_rgb8()
                .save(scratch.join(format!("{written:02}-{}.png", safe(name))))?;
            written += 1;
            if written == 8 {
                break;
            }
        }
        fs::rename(&scratch, &folder)?;
    }
    Ok(())
}

/// Reads a method with its settings for what was selected, and checks the tasks that it names.
pub fn load_method(name: &str, selected: &Selected, overrides: &[String]) -> Result<Method> {
    load_tuned_method(name, selected, Tuned::of(&selected.settings), overrides)
}

/// The same with these choices in place of the program's.
pub fn load_tuned_method(
    name: &str,
    selected: &Selected,
    tuned: Option<&Tuned>,
    overrides: &[String],
) -> Result<Method> {
    let mut method = Method::load_tuned(name, &selected.settings, tuned, overrides)?;
    let known = || selected.all_tasks.iter().map(String::as_str);
    if let Some(task) = method.task.keys().find(|t| known().all(|k| k != *t)) {
        let near = nearest(task, known());
        bail!(
            "method `{}` has settings for the task `{task}`, which is not in the suite{}",
            method.name,
            near.map_or(String::new(), |n| format!("; did you mean `{n}`?"))
        );
    }
    let suite = &selected.suite;
    method
        .task
        .retain(|name, _| suite.tasks.iter().any(|t| t.name == *name));
    Ok(method)
}

/// What became of several runs.
pub struct Executed {
    /// The results by folder name.
    pub results: serde_json::Map<String, serde_json::Value>,
    /// What went wrong with others.
    pub failures: Vec<eyre::Report>,
    /// Whether they were stopped before all were done.
    pub stopped: bool,
}

impl Executed {
    fn complete(&mut self, job: &Job, metrics: MetricsFile) -> Result<()> {
        let name = job.folder.file_name().unwrap_or_default();
        let metrics = serde_json::to_value::<MetricsFile>(metrics)?;
        self.results
            .insert(name.to_string_lossy().into_owned(), metrics);
        Ok(())
    }

    /// An error if not all runs are done.
    pub fn finish(mut self) -> Result<serde_json::Map<String, serde_json::Value>> {
        if self.stopped {
            return Err(eyre!("stopped; the same command goes on from here"));
        }
        match self.failures.len() {
            0 => Ok(self.results),
            1 => Err(self.failures.remove(0)),
            n => {
                for failure in &self.failures {
                    eprintln!("error: {failure:#}");
                }
                Err(eyre!("{n} runs failed; the others are in the report"))
            }
        }
    }
}

/// How much memory a run takes, in words.
fn by_plan(need: Option<(u64, &str)>) -> String {
    need.map_or_else(String::new, |(bytes, _)| {
        let bytes = mtil_report::words::bytes(bytes);
        format!("In f32 and without --checkpointing it takes about {bytes}. ")
    })
}

/// Does the runs, `parallel` at once, each of several in a process of its own. One that fails does
/// not keep the others from being done.
///
/// A worker of another process of this program never comes back from here.
pub fn execute(
    jobs: &[Job],
    parallel: usize,
    model: &Loaded,
    device: &Device,
    options: &RunOptions,
    stop: &Arc<AtomicBool>,
) -> Result<Executed> {
    let one = |job: &Job, progress: &mut dyn Progress| {
        one_run(job, model, device, options, stop, progress)
    };
    let role = jobs::role();
    if let Role::Worker = role {
        jobs::serve(jobs, stop, |job, progress| match one(job, progress) {
            Ok(Outcome::Complete(_)) => End::Complete,
            Ok(Outcome::Stopped) => End::Stopped,
            Ok(Outcome::Guarded(message)) => End::Guarded(message),
            Err(failure) => End::Failed(format!("{failure:#}")),
        });
        std::process::exit(0);
    }
    let mut executed = Executed {
        results: serde_json::Map::new(),
        failures: Vec::new(),
        stopped: false,
    };
    if let Role::Reader = role {
        for job in jobs {
            let metrics = MetricsFile::load(&job.folder.join(MetricsFile::NAME));
            if let Ok(metrics) = metrics {
                executed.complete(job, metrics)?;
            }
        }
        return Ok(executed);
    }
    if parallel > jobs.len() {
        let runs = jobs.len();
        eprintln!("note: --jobs {parallel} is more than there are runs; {runs} at once");
    }
    if let (Role::Conductor(call), true) = (role, parallel > 1 && jobs.len() > 1) {
        let ends = jobs::conduct(call, jobs, parallel, stop);
        for (job, end) in jobs.iter().zip(ends) {
            match end {
                Some(End::Complete) => {
                    executed
                        .complete(job, MetricsFile::load(&job.folder.join(MetricsFile::NAME))?)?;
                }
                // The display has said it.
                Some(End::Guarded(_)) => {}
                Some(End::Failed(reason)) => executed.failures.push(jobs::failure(job, &reason)),
                Some(End::Stopped) | None => executed.stopped = true,
            }
        }
        return Ok(executed);
    }
    for job in jobs {
        let outcome = one(job, &mut Terminal::new());
        match outcome.wrap_err_with(|| format!("{}", job.folder.display())) {
            Ok(Outcome::Complete(metrics)) => executed.complete(job, metrics)?,
            Ok(Outcome::Guarded(message)) => eprintln!(
                "{}: ended by the drift guard: {message}",
                job.folder.display()
            ),
            Ok(Outcome::Stopped) => {
                executed.stopped = true;
                break;
            }
            Err(failure) => {
                if jobs.len() > 1 {
                    eprintln!("failed: {failure:#}");
                }
                executed.failures.push(failure);
            }
        }
    }
    Ok(executed)
}

/// Does one run in this process.
fn one_run(
    job: &Job,
    model: &Loaded,
    device: &Device,
    options: &RunOptions,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
    let mut run = || {
        run_method(
            &job.request,
            &job.suite,
            &model.clip,
            device,
            &job.folder,
            options,
            stop,
            progress,
        )
    };
    let word = &job.request.device;
    if !device::is_accelerator(word) {
        return run().map_err(Into::into);
    }
    let outcome = crate::failure::quietly(&mut run).map_err(|reason| {
        let need = memory_need(std::slice::from_ref(job), &model.clip);
        failed_on(word, &reason, &by_plan(need))
    });
    outcome.and_then(|outcome| outcome.map_err(Into::into))
}

/// The methods of `args` with each of their settings, by the names of their folders.
fn methods(args: &RunArgs, selected: &Selected) -> Result<Vec<(String, Method)>> {
    let mut overrides = Vec::new();
    if args.quick {
        overrides.extend(QUICK.map(str::to_owned));
    }
    overrides.extend(args.set.iter().cloned());
    let variants = expand(&overrides)?;
    let mut methods: Vec<(String, Method)> = Vec::new();
    for word in &args.methods {
        for variant in &variants {
            let method = load_method(word, selected, &variant.overrides)?;
            let suffix = variant.suffix.as_ref().map(|s| format!(" {s}"));
            let name = format!("{}{}", method.name, suffix.unwrap_or_default());
            if methods.iter().any(|(other, _)| *other == name) {
                bail!("method `{name}` is given twice");
            }
            methods.push((name, method));
        }
    }
    Ok(methods)
}

/// The runs of every seed; `selected` is the suite of the first one.
fn jobs(
    args: &RunArgs,
    common: &Common<'_>,
    selected: &Selected,
    methods: &[(String, Method)],
    out: &Path,
) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for (at, seed) in args.seed.iter().enumerate() {
        let own = if at == 0 || !args.selection.drawn() {
            None
        } else {
            Some(args.selection.load(args.quick, *seed)?)
        };
        let selected = own.as_ref().unwrap_or(selected);
        let suite = Fingerprinted::new(&selected.suite);
        for (name, method) in methods {
            let folder = match args.seed.len() {
                1 => safe(name),
                _ => safe(&format!("{name}-seed-{seed}")),
            };
            jobs.push(common.job(out, &folder, *seed, selected, &suite, method.clone()));
        }
    }
    Ok(jobs)
}

/// Trains and evaluates every method of `args`, then writes the report.
pub fn run(args: RunArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let peers = args.peers.iter().map(|word| device::parse(word));
    let peers = peers.collect::<Result<Vec<_>, _>>()?;
    let first = args.seed.first().copied().unwrap_or(42);
    let selected = args.selection.load(args.quick, first)?;
    let name = selected.suite.name.clone();
    if args.model == EMBEDDED && selected.settings != "mini" {
        eprintln!(
            "note: the embedded model only knows the mini world; give --model for other suites (`mtil-bench model list` shows names)"
        );
    }
    let methods = methods(&args, &selected)?;
    Guard::parse(&args.guard, &selected.all_tasks)?;
    let select = args.select.as_deref().map(Select::parse).transpose();
    let select = select.map_err(|reason| eyre!("--select: {reason}"))?;
    if let Some(select) = &select {
        for (_, method) in methods.iter().filter(|(_, method)| method.trains) {
            select.candidates(method)?;
        }
    }
    let model = load_model(&args.model, &args.hints, &device)?;
    let out = args.out.clone().unwrap_or_else(|| {
        let name = name.replace(|c: char| !c.is_alphanumeric() && c != '-', "-");
        PathBuf::from("runs").join(if args.quick {
            format!("{name}-quick")
        } else {
            name
        })
    });
    let common = Common {
        model: &model,
        device: &args.device,
        peers: &args.peers,
        evaluation: args.evaluation.options(&selected.settings),
        guard: args.guard.clone(),
        skip_bad_images: args.skip_bad_images,
        select,
    };
    let jobs = jobs(&args, &common, &selected, &methods, &out)?;
    if args.plan {
        return plan(&jobs, &model.clip, &device, !args.no_checkpoints, args.json);
    }
    if !device::is_accelerator(&args.device)
        && let Some(available) = mtil_data::machine::available_bytes()
        && let Some(warning) = memory_warning(&jobs, &model.clip, available)
    {
        eprintln!("{warning}");
    }
    fs::create_dir_all(&out)
        .wrap_err_with(|| format!("cannot create {}; choose another --out", out.display()))?;
    write_samples(&selected.suite, &out)
        .wrap_err_with(|| format!("cannot write samples below {}", out.display()))?;
    let stop = stop_on_interrupt()?;
    let options = RunOptions {
        save_every: args.save_every as usize,
        checkpoints: !args.no_checkpoints,
        cache: args.cache.clone(),
        peers,
        checkpointing: args.checkpointing,
        ..RunOptions::default()
    };
    let executed = execute(&jobs, args.jobs as usize, &model, &device, &options, &stop)?;
    let folders: Vec<PathBuf> = jobs
        .into_iter()
        .map(|job| job.folder)
        .filter(|folder| folder.join(MatrixFile::NAME).exists())
        .collect();
    if !folders.is_empty() {
        let path = out.join("report.html");
        report::write_report(&folders, &path)?;
        if !executed.stopped {
            eprintln!("\n{}", report::summary_table(&folders)?);
        }
        eprintln!("report: {}", path.display());
    }
    let results = executed.finish()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    }
    Ok(())
}

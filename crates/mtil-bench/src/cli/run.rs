//! `run`: training and evaluation of methods on a suite.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use burn::tensor::Device;
use eyre::{Result, WrapErr, bail, eyre};

use super::{
    args::RunArgs,
    checkpoint::{EMBEDDED, LoadedModel, load_model},
    device_failure,
    job::{FingerprintedSuite, Job, SharedSettings},
    output::Terminal,
    planning::{memory_need, memory_warning, plan},
    selection::Selected,
    workers::{self, Role, RunEnd},
};
use crate::{
    device,
    failure::{catch_panic, describe},
};
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

/// Returns a flag that Ctrl-C sets. A second Ctrl-C ends the process at once.
pub fn stop_on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, std::sync::atomic::Ordering::Relaxed) {
            std::process::exit(130);
        }
        if workers::is_worker() {
            return;
        }
        eprintln!("\nstopping after this training step (Ctrl-C again: at once)");
    })?;
    Ok(stop)
}

/// Replaces the characters of a text that are unsafe in a file name.
pub fn file_name_safe(text: &str) -> String {
    text.replace(|c: char| !c.is_alphanumeric() && !" -=,.+".contains(c), "_")
}

/// Writes up to eight sample images of each task for the report.
fn write_samples(suite: &Suite, out: &Path) -> Result<()> {
    for (index, task) in suite.tasks.iter().enumerate() {
        let folder = out
            .join("samples")
            .join(format!("{index:02}-{}", file_name_safe(&task.name)));
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
            // Skip an unreadable sample silently: the run reports it.
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
                .save(scratch.join(format!("{written:02}-{}.png", file_name_safe(name))))?;
            written += 1;
            if written == 8 {
                break;
            }
        }
        fs::rename(&scratch, &folder)?;
    }
    Ok(())
}

/// Loads a method with its settings for a suite, and checks the tasks that the settings name.
pub fn load_method(name: &str, selected: &Selected, overrides: &[String]) -> Result<Method> {
    load_tuned_method(name, selected, Tuned::of(&selected.settings), overrides)
}

/// Like [`load_method`], with `tuned` instead of the built-in tuned settings.
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

/// Outcome of several runs.
pub struct RunResults {
    /// Metrics of complete runs by folder name.
    pub results: serde_json::Map<String, serde_json::Value>,
    /// Errors of failed runs.
    pub failures: Vec<eyre::Report>,
    /// True if the runs were stopped before all were done.
    pub stopped: bool,
}

impl RunResults {
    fn complete(&mut self, job: &Job, metrics: MetricsFile) -> Result<()> {
        let name = job.folder.file_name().unwrap_or_default();
        let metrics = serde_json::to_value::<MetricsFile>(metrics)?;
        self.results
            .insert(name.to_string_lossy().into_owned(), metrics);
        Ok(())
    }

    /// Returns the metrics, or an error if not all runs are complete.
    pub fn finish(mut self) -> Result<serde_json::Map<String, serde_json::Value>> {
        if self.stopped {
            return Err(eyre!("stopped; the same command resumes the runs"));
        }
        match self.failures.len() {
            0 => Ok(self.results),
            1 => Err(self.failures.remove(0)),
            n => {
                for failure in &self.failures {
                    eprintln!("error: {}", describe(failure));
                }
                Err(eyre!("{n} runs failed; the others are in the report"))
            }
        }
    }
}

/// Returns a sentence on the memory need of a run, empty if it is unknown.
fn memory_hint(need: Option<(u64, &str)>) -> String {
    need.map_or_else(String::new, |(bytes, _)| {
        let bytes = mtil_report::format::bytes(bytes);
        format!("In f32 and without --checkpointing it needs about {bytes}. ")
    })
}

/// Executes runs, `parallel` at once in worker processes. A failed run does not stop the others.
///
/// In a worker process this function serves the coordinator and never returns.
pub fn execute(
    jobs: &[Job],
    parallel: usize,
    model: &LoadedModel,
    device: &Device,
    options: &RunOptions,
    stop: &Arc<AtomicBool>,
) -> Result<RunResults> {
    let execute_job = |job: &Job, progress: &mut dyn Progress| {
        execute_one(job, model, device, options, stop, progress)
    };
    let role = workers::role();
    if let Role::Worker = role {
        workers::serve_worker(jobs, stop, |job, progress| {
            match execute_job(job, progress) {
                Ok(Outcome::Complete(_)) => RunEnd::Complete,
                Ok(Outcome::Stopped) => RunEnd::Stopped,
                Ok(Outcome::Guarded(message)) => RunEnd::Guarded(message),
                Err(failure) => RunEnd::Failed(describe(&failure)),
            }
        });
        std::process::exit(0);
    }
    let mut executed = RunResults {
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
    // A single run, or one at a time, needs no worker processes.
    if let (Role::Coordinator(call), true) = (role, parallel > 1 && jobs.len() > 1) {
        let ends = workers::run_jobs(call, jobs, parallel, stop);
        for (job, end) in jobs.iter().zip(ends) {
            match end {
                Some(RunEnd::Complete) => {
                    executed
                        .complete(job, MetricsFile::load(&job.folder.join(MetricsFile::NAME))?)?;
                }
                // The progress display has reported it.
                Some(RunEnd::Guarded(_)) => {}
                Some(RunEnd::Failed(reason)) => {
                    executed.failures.push(workers::failure(job, &reason))
                }
                Some(RunEnd::Stopped) | None => executed.stopped = true,
            }
        }
        return Ok(executed);
    }
    for job in jobs {
        let outcome = execute_job(job, &mut Terminal::new());
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
                    eprintln!("failed: {}", describe(&failure));
                }
                executed.failures.push(failure);
            }
        }
    }
    Ok(executed)
}

/// Executes one run in this process.
fn execute_one(
    job: &Job,
    model: &LoadedModel,
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
    let outcome = catch_panic(&mut run).map_err(|reason| {
        let need = memory_need(std::slice::from_ref(job), &model.clip);
        device_failure(word, &reason, &memory_hint(need))
    });
    outcome.and_then(|outcome| outcome.map_err(Into::into))
}

/// Returns every method of `args` with each combination of its settings, and its folder name.
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

/// Returns the runs of every seed. `selected` is the suite of the first seed.
fn jobs(
    args: &RunArgs,
    common: &SharedSettings<'_>,
    selected: &Selected,
    methods: &[(String, Method)],
    out: &Path,
) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for (at, seed) in args.seed.iter().enumerate() {
        let own = if at == 0 || !args.selection.depends_on_seed() {
            None
        } else {
            Some(args.selection.load(args.quick, *seed)?)
        };
        let selected = own.as_ref().unwrap_or(selected);
        let suite = FingerprintedSuite::new(&selected.suite);
        for (name, method) in methods {
            let folder = match args.seed.len() {
                1 => file_name_safe(name),
                _ => file_name_safe(&format!("{name}-seed-{seed}")),
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
            "note: the embedded model only knows the mini world; give --model for other suites \
             (`mtil-bench model list` shows names)"
        );
    }
    // Check all arguments before loading the model, which takes longer.
    let methods = methods(&args, &selected)?;
    Guard::parse(&args.guard, &selected.all_tasks)?;
    let select = args.select.as_deref().map(Select::parse).transpose();
    let select = select.map_err(|reason| eyre!("--select: {reason}"))?;
    if let Some(select) = &select {
        if !methods.iter().any(|(_, method)| method.trains) {
            bail!("--select: none of these methods trains, so there is nothing to select");
        }
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
    let common = SharedSettings {
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
        // Stopped and failed runs are reported too, if anything has been evaluated.
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

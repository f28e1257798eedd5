//! `run`: training and evaluation of methods on a suite.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use burn::tensor::Device;
use clip_model::Clip;
use eyre::{Result, WrapErr, bail, eyre};
use serde_json::{Value, json};

use super::{
    RESUMABLE,
    args::{Reference, RunArgs},
    checkpoint::{EMBEDDED, LoadedModel, load_model},
    device_failure,
    hints::{self, Finished},
    interrupt::stop_flag,
    job::{FingerprintedSuite, Job, SharedSettings},
    output::Terminal,
    planning::{memory_need, memory_warning, plan},
    selection::Selected,
    stall::{self, Watched},
    workers::{self, Role, RunEnd},
};
use crate::{
    device,
    exit::{self, EarlyEnd},
    failure::{self, catch_panic, describe},
    print::print_json,
};
use mtil_data::{
    datasets::mtil::SuiteProtocol,
    files::{LONGEST_NAME, is_device_name, shortened_name},
    nearest,
    suite::{Suite, SuiteRecord, Task, TaskKind},
};
use mtil_engine::{
    eval::{TaskIdentity, TruncatedTexts},
    guard::Guard,
    method::{Method, Tuned},
    metrics::{MatrixFile, MetricsFile},
    run::{
        Leave, Outcome, Progress, RunFiles, RunOptions, Select, check_learnable, run as run_method,
    },
};
use mtil_report::{
    format::plural,
    report::{self, SampleNames},
    reproduce::expand,
};

/// Settings of `--quick`.
pub const QUICK: [&str; 5] = [
    "steps=8",
    "warmup=2",
    "batch=16",
    "reference_batch=16",
    "reference_pairs=64",
];

/// Names in the output folder that no run may have, and folders that are no subfolders.
const RESERVED: [&str; 5] = ["samples", "report.html", "", ".", ".."];

/// Returns the folder name of a run: `text` without the characters that are unsafe in a file name,
/// shortened if it is too long.
pub fn file_name_safe(text: &str) -> String {
    let name = shortened_name(&safe_characters(text), LONGEST_NAME);
    let is_device = cfg!(windows) && is_device_name(&name);
    if is_device || RESERVED.contains(&name.as_str()) {
        return format!("_{name}");
    }
    name
}

fn safe_characters(text: &str) -> String {
    text.replace(|c: char| !c.is_alphanumeric() && !" -=,.+".contains(c), "_")
}

/// Returns the name of a sample's file or folder, with room for its number and a suffix.
fn sample_name(number: usize, name: &str) -> String {
    let name = shortened_name(&safe_characters(name), LONGEST_NAME - "00-.png".len());
    shortened_name(&format!("{number:02}-{name}"), LONGEST_NAME - ".png".len())
}

/// Returns test images of a task with their names: one of each class, or each with its first
/// caption.
fn samples(task: &Task) -> Vec<(usize, &str)> {
    match &task.kind {
        TaskKind::Classification(classes) => {
            let names = classes.class_names.iter().enumerate();
            let first = names.filter_map(|(class, name)| {
                let image = classes.test.labels.iter().position(|l| *l == class)?;
                Some((image, name.as_str()))
            });
            first.collect()
        }
        TaskKind::Captions(pairs) => {
            let captions = pairs.test.captions.iter().enumerate();
            let first = captions.filter_map(|(image, all)| Some((image, all.first()?.as_str())));
            first.collect()
        }
    }
}

/// Writes up to eight sample images of each task for the report.
fn write_samples(suite: &Suite, out: &Path) -> Result<()> {
    let all = out.join("samples");
    fs::create_dir_all(&all)?;
    // Processes that begin in one folder at the same time write one after the other, where the file
    // system has locks. The lock ends with the process.
    let _lock = File::open(&all).and_then(|file| file.lock().map(|()| file));
    for (index, task) in suite.tasks.iter().enumerate() {
        let folder = all.join(sample_name(index, &task.name));
        if folder.exists() {
            continue;
        }
        let scratch = all.join(format!(".{index:02}"));
        // A killed process may have left it, with a half-written file.
        if scratch.exists() {
            fs::remove_dir_all(&scratch)?;
        }
        fs::create_dir_all(&scratch)?;
        let mut names = SampleNames {
            task: task.name.clone(),
            classes: Vec::new(),
        };
        for (image, name) in samples(task) {
            // Skip an unreadable sample silently: the run reports it.
            let Ok(image) = task.test_images().load(image) else {
                continue;
            };
            let image = if image.width().max(image.height()) > 128 {
                image.thumbnail(128, 128)
            } else {
                image
            };
            let file = format!("{}.png", sample_name(names.classes.len(), name));
            image.to_rgb8().save(scratch.join(file))?;
            names.classes.push(name.to_owned());
            if names.classes.len() == 8 {
                break;
            }
        }
        names.write(&scratch)?;
        fs::rename(&scratch, &folder)?;
    }
    Ok(())
}

/// Loads a method with its settings for a suite, and checks the tasks that the settings name, and
/// that the method can learn all tasks.
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
    let chosen = selected.reference.as_ref();
    let of_reference = chosen.map_or(&[][..], Reference::settings).iter();
    let overrides: Vec<String> = of_reference
        .map(|setting| (*setting).to_owned())
        .chain(overrides.iter().cloned())
        .collect();
    let mut method = Method::load_tuned(name, &selected.settings, tuned, &overrides)?;
    if chosen == Some(&Reference::Off) && method.distils_reference_images() {
        bail!(
            "--reference off: method `{}` distils on reference images; choose `drawn` or `texts`, or \
             leave `--reference` out",
            method.name
        );
    }
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
    check_learnable(&method, suite)?;
    Ok(method)
}

/// Refuses a method that needs the task of an image, if the protocol of the suite does not give it.
/// `settings` is the suite's name.
pub fn check_task_given(method: &Method, settings: &str, identity: TaskIdentity) -> Result<()> {
    if withholds_task(settings, identity) && method.needs_task() {
        bail!(
            "method `{}` needs the task of a test image, which `{settings}` does not give: leave \
             out the method, or give the task (--identity given), which is another protocol",
            method.name
        );
    }
    Ok(())
}

/// Returns whether the protocol of the suite of a name does not give the task of a test image.
fn withholds_task(settings: &str, identity: TaskIdentity) -> bool {
    let protocol = SuiteProtocol::find(settings);
    identity != TaskIdentity::Given && protocol.is_some_and(|protocol| !protocol.task_given)
}

/// Outcome of several runs.
#[derive(Default)]
pub struct RunResults {
    /// The ended runs by folder name: the metrics of a complete one, the `guard` that ended it, or
    /// the `error` of a failed one.
    pub results: serde_json::Map<String, Value>,
    /// Errors of failed runs.
    pub failures: Vec<eyre::Report>,
    /// Number of runs that the drift guard ended.
    pub guarded: usize,
    /// True if the runs were stopped before all were done.
    pub stopped: bool,
}

impl RunResults {
    fn insert(&mut self, job: &Job, result: Value) {
        let name = job.folder.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        self.results.insert(name, result);
    }

    fn complete(&mut self, job: &Job, metrics: MetricsFile) -> Result<()> {
        self.insert(job, serde_json::to_value::<MetricsFile>(metrics)?);
        Ok(())
    }

    /// Adds a run that a process completed, whose metrics are in its directory.
    fn completed_elsewhere(&mut self, job: &Job) -> Result<()> {
        match MetricsFile::load(&job.folder.join(MetricsFile::NAME)) {
            Ok(metrics) => self.complete(job, metrics),
            Err(error) => {
                self.fail(job, error.into());
                Ok(())
            }
        }
    }

    fn guard(&mut self, job: &Job, message: &str) {
        self.insert(job, json!({"guard": message}));
        self.guarded += 1;
    }

    fn fail(&mut self, job: &Job, error: eyre::Report) {
        self.insert(job, json!({"error": describe(&error)}));
        self.failures.push(error);
    }

    /// Returns whether all runs have ended well.
    fn is_complete(&self) -> bool {
        !self.stopped && self.failures.is_empty() && self.guarded == 0
    }

    /// Returns the error of the runs, or else that of `reported`, what was written about them.
    pub fn finish_with(self, reported: Result<()>) -> Result<()> {
        let finished = self.finish();
        // What ends a run, such as a full disk, may also prevent its report. The first error is
        // the cause.
        if let (Err(_), Err(second)) = (&finished, &reported) {
            eprintln!(
                "the report could not be written either: {}",
                describe(second)
            );
        }
        finished.and(reported)
    }

    /// Returns an error if not all runs have ended well.
    pub fn finish(mut self) -> Result<()> {
        if self.stopped {
            return Err(EarlyEnd::Interrupted(EarlyEnd::RESUMES).into());
        }
        match self.failures.len() {
            0 if self.guarded > 0 => Err(EarlyEnd::Guarded(self.guarded).into()),
            0 => Ok(()),
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

/// Returns a warning for each method whose learning rate never reaches its peak.
fn warmup_warnings(jobs: &[Job]) -> BTreeSet<String> {
    let warning = |job: &Job| {
        let method = &job.request.method;
        let stages = if method.joint { 1 } else { usize::MAX };
        let names = job.suite.tasks.iter().take(stages).map(|t| &t.name);
        let short = names.filter_map(|name| Some((name, method.steps_within_warmup(name)?)));
        let short: Vec<(&String, usize)> = short.collect();
        let (name, steps) = short.first()?;
        let others = match short.len() - 1 {
            0 => String::new(),
            n => format!(" and of {}", plural(n, "other task")),
        };
        Some(format!(
            "method `{}`: the {} of task `{name}`{others} end within the warm-up of {}, so the \
             learning rate never reaches its peak; lower --set warmup=… or raise --set steps=…",
            method.name,
            plural(*steps, "training step"),
            plural(method.warmup, "step"),
        ))
    };
    jobs.iter().filter_map(warning).collect()
}

/// Returns a warning for each set of texts of which the model reads some in part only.
fn text_warnings(jobs: &[Job], clip: &Clip) -> Result<BTreeSet<String>> {
    let mut warnings = BTreeSet::new();
    for (at, job) in jobs.iter().enumerate() {
        let earlier = &mut jobs[..at].iter();
        if !earlier.any(|other| Arc::ptr_eq(&other.suite, &job.suite)) {
            let sets = TruncatedTexts::of_suite(clip, &job.suite)?;
            warnings.extend(sets.iter().map(ToString::to_string));
        }
    }
    Ok(warnings)
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
    let role = workers::role();
    let options = &RunOptions {
        leave: match role {
            _ if jobs
                .iter()
                .any(|job| device::is_accelerator(&job.request.device)) =>
            {
                None
            }
            Role::Worker => Some(Leave::new(workers::leave)),
            _ => options.leave.clone().or_else(|| Some(leave(|| Ok(())))),
        },
        ..options.clone()
    };
    let execute_job = |job: &Job, progress: &mut dyn Progress| {
        execute_one(job, model, device, options, stop, progress)
    };
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
    let mut executed = RunResults::default();
    if let Role::Reader = role {
        for job in jobs {
            let metrics = MetricsFile::load(&job.folder.join(MetricsFile::NAME));
            if let Ok(metrics) = metrics {
                executed.complete(job, metrics)?;
            }
        }
        return Ok(executed);
    }
    for warning in warmup_warnings(jobs) {
        eprintln!("warning: {warning}");
    }
    for warning in text_warnings(jobs, &model.clip)? {
        eprintln!("warning: {warning}");
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
                Some(RunEnd::Complete) => executed.completed_elsewhere(job)?,
                // The progress display has reported it.
                Some(RunEnd::Guarded(message)) => executed.guard(job, &message),
                Some(RunEnd::Failed(reason)) => {
                    executed.fail(job, workers::failure(job, &reason));
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
            Ok(Outcome::Guarded(message)) => {
                let folder = job.folder.display();
                eprintln!("{folder}: ended by the drift guard: {message}");
                executed.guard(job, &message);
            }
            Ok(Outcome::Stopped) => {
                executed.stopped = true;
                break;
            }
            Err(failure) => {
                if jobs.len() > 1 {
                    eprintln!("failed: {}", describe(&failure));
                }
                executed.fail(job, failure);
            }
        }
    }
    Ok(executed)
}

/// Returns how the program ends within a training step, after the run's state is saved: as it does
/// after any other stop. `report` writes what this command writes then.
fn leave(report: impl Fn() -> Result<()> + Send + Sync + 'static) -> Leave {
    Leave::new(move || {
        let stopped = RunResults {
            stopped: true,
            ..RunResults::default()
        };
        let code = match stopped.finish_with(report()) {
            Err(end) => {
                failure::report(&end, false);
                exit::code(&end)
            }
            Ok(()) => 0,
        };
        std::process::exit(code.into());
    })
}

/// Executes one run in this process.
fn execute_one(
    job: &Job,
    model: &LoadedModel,
    device: &Device,
    options: &RunOptions,
    stop: &Arc<AtomicBool>,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
    let word = &job.request.device;
    let watch = device::is_accelerator(word).then(|| {
        let (word, folder) = (word.clone(), job.folder.display().to_string());
        move || {
            eprintln!(
                "warning: {folder}: device `{word}` has not answered for {} s. Ctrl-C twice ends \
                 the program. {RESUMABLE}",
                stall::TIMEOUT.as_secs()
            );
        }
    });
    let mut watched;
    let progress = match watch {
        Some(report) => {
            watched = Watched::new(progress, stall::TIMEOUT, report);
            &mut watched
        }
        None => progress,
    };
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

/// Returns whether runs of two methods would share a folder.
fn is_clash(a: &Job, b: &Job) -> bool {
    a.folder == b.folder && a.request.method != b.request.method
}

/// Returns the runs of every seed. `selected` is the suite of the first seed.
fn jobs(
    args: &RunArgs,
    common: &SharedSettings<'_>,
    selected: &Selected,
    methods: &[(String, Method)],
    out: &Path,
) -> Result<Vec<Job>> {
    let mut jobs: Vec<Job> = Vec::new();
    for (at, seed) in args.seed.iter().enumerate() {
        let own = if at == 0 || !args.selection.depends_on_seed() {
            None
        } else {
            let learned = |_: &str| learned_tasks(out);
            Some(args.selection.load_learned(args.quick, *seed, &learned)?)
        };
        let selected = own.as_ref().unwrap_or(selected);
        let suite = FingerprintedSuite::new(&selected.suite);
        for (name, method) in methods {
            let folder = match args.seed.len() {
                1 => file_name_safe(name),
                _ => file_name_safe(&format!("{name}-seed-{seed}")),
            };
            let job = common.job(out, &folder, *seed, selected, &suite, method.clone());
            if let Some(other) = jobs.iter().find(|other| is_clash(other, &job)) {
                bail!(
                    "the runs of `{}` and `{name}` would share the folder {}: give one of the \
                     methods another `name`",
                    other.request.method.name,
                    job.folder.display()
                );
            }
            jobs.push(job);
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
    let learned = |suite: &str| learned_tasks(&out_folder(&args, suite));
    let selected = args.selection.load_learned(args.quick, first, &learned)?;
    let name = selected.suite.name.clone();
    if args.model == EMBEDDED && selected.settings != "mini" {
        eprintln!(
            "note: the embedded model only knows the mini world; give --model for other suites \
             (`mtil-bench model list` shows names)"
        );
    }
    // Check all arguments before loading the model, which takes longer.
    let methods = methods(&args, &selected)?;
    let evaluation = args.evaluation.options(&selected.settings);
    for (_, method) in &methods {
        check_task_given(method, &selected.settings, evaluation.identity)?;
    }
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
    let out = out_folder(&args, &name);
    let common = SharedSettings {
        model: &model,
        device: &args.device,
        peers: &args.peers,
        evaluation,
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
    let stop = stop_flag();
    let cache = args.cache.as_deref();
    let options = RunOptions {
        save_every: args.save_every as usize,
        checkpoints: !args.no_checkpoints,
        cache: cache.map(|folder| args.selection.decode.cache_folder(folder)),
        peers,
        checkpointing: args.checkpointing,
        from_task: args.from_task.map(|number| number.get() - 1),
        backfill: args.backfill,
        undo: !args.no_undo,
        leave: Some({
            let (jobs, out) = (jobs.clone(), out.clone());
            leave(move || write_report(&jobs, &out, false))
        }),
        ..RunOptions::default()
    };
    let executed = execute(
        &jobs,
        args.parallel.jobs.into(),
        &model,
        &device,
        &options,
        &stop,
    )?;
    let reported = write_report(&jobs, &out, !executed.stopped);
    if args.json {
        print_json(&executed.results)?;
    } else if executed.is_complete() && reported.is_ok() {
        let trained = jobs.iter().rfind(|job| job.request.method.trains);
        hints::print_next(&Finished {
            embedded: selected.settings == "mini",
            seeds: args.seed.len(),
            trained: trained.map(|job| job.folder.as_path()),
        });
    }
    executed.finish_with(reported)
}

/// Returns the output folder of runs on the suite of a name.
fn out_folder(args: &RunArgs, suite: &str) -> PathBuf {
    args.out.clone().unwrap_or_else(|| {
        let name = suite.replace(|c: char| !c.is_alphanumeric() && c != '-', "-");
        let quick = if args.quick { "-quick" } else { "" };
        let folder = shortened_name(&format!("{name}{quick}"), LONGEST_NAME);
        PathBuf::from("runs").join(folder)
    })
}

/// Returns the records of the runs in `out`. One that cannot be read is an error of its run.
fn learned_tasks(out: &Path) -> Vec<SuiteRecord> {
    let folders = fs::read_dir(out).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.path()).collect();
    folders.sort();
    let records = folders.into_iter().map(|f| RunFiles::new(f).suite_record());
    records.filter_map(|record| record.ok().flatten()).collect()
}

/// Returns the folders of the runs in which anything has been evaluated.
pub fn evaluated_folders(jobs: &[Job]) -> Vec<PathBuf> {
    let folders = jobs.iter().map(|job| job.folder.clone());
    let evaluated = folders.filter(|folder| folder.join(MatrixFile::NAME).exists());
    evaluated.collect()
}

/// Writes the report of the runs that have results, and prints the table of them if `table`.
/// Stopped and failed runs are reported too, if anything has been evaluated.
pub fn write_report(jobs: &[Job], out: &Path, table: bool) -> Result<()> {
    let folders = evaluated_folders(jobs);
    if folders.is_empty() {
        return Ok(());
    }
    let path = out.join("report.html");
    report::write_report(&folders, &path)?;
    if table {
        eprintln!("\n{}", report::summary_table(&folders)?);
    }
    eprintln!("report: {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_names_of_runs_are_safe_and_not_too_long() {
        assert_eq!(file_name_safe("gnsp lr=1e-4"), "gnsp lr=1e-4");
        assert_eq!(file_name_safe("a/b:c"), "a_b_c");
        for (name, safe) in [("..", "_.."), ("", "_"), ("samples", "_samples")] {
            assert_eq!(file_name_safe(name), safe);
        }
        // A name that every file system takes keeps its folder.
        let longest = "x".repeat(LONGEST_NAME);
        assert_eq!(file_name_safe(&longest), longest);
        let long = ["y", "z"].map(|end| file_name_safe(&format!("{longest}{end}")));
        assert!(long.iter().all(|name| name.len() == LONGEST_NAME));
        assert_ne!(long[0], long[1]);
    }

    #[test]
    fn processes_that_begin_in_one_folder_share_its_samples() {
        let sizes = mini_world::MiniSizes {
            train_per_task: 8,
            test_per_task: 16,
            reference: 4,
            held_out: 4,
        };
        let suite = mini_world::suite(1, sizes);
        let out = tempfile::tempdir().unwrap();
        std::thread::scope(|threads| {
            let write = || write_samples(&suite, out.path()).unwrap();
            (0..4).map(|_| threads.spawn(write)).for_each(drop);
        });
        let folders = fs::read_dir(out.path().join("samples")).unwrap();
        assert_eq!(folders.count(), suite.tasks.len());
    }

    #[test]
    fn samples_of_tasks_and_classes_with_long_names_are_written() {
        let long = "ß".repeat(200);
        let mut suite = mini_world::suite(
            1,
            mini_world::MiniSizes {
                train_per_task: 8,
                test_per_task: 16,
                reference: 4,
                held_out: 4,
            },
        );
        suite.tasks.truncate(1);
        suite.tasks[0].name = format!("{long}/task");
        let classes = suite.tasks[0].classification_mut().unwrap();
        for (i, class) in classes.class_names.iter_mut().enumerate() {
            *class = format!("{long}:{i}");
        }
        let out = tempfile::tempdir().unwrap();
        // A process that was killed while it wrote them leaves these.
        let left = out.path().join("samples/.00/.mtil-abcdef.tmp");
        fs::create_dir_all(left.parent().unwrap()).unwrap();
        fs::write(&left, "half").unwrap();
        write_samples(&suite, out.path()).unwrap();
        let entries = |folder: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
            entries.collect()
        };
        let folders = entries(&out.path().join("samples"));
        assert_eq!(folders.len(), 1);
        let classes = suite.tasks[0].class_count().min(8);
        let images = entries(&folders[0]);
        let pngs = images
            .iter()
            .filter(|p| p.extension().is_some_and(|e| e == "png"));
        assert_eq!(pngs.count(), classes);
        // And the names of the classes.
        assert_eq!(images.len(), classes + 1);
        let names = fs::read_to_string(folders[0].join(".names.json")).unwrap();
        assert!(names.contains(&format!("{long}/task")) && names.contains(&format!("{long}:0")));
    }
}

//! `reproduce`: the runs of a published table, compared with the published numbers.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use burn::tensor::Device;
use eyre::{Result, WrapErr, bail, eyre};

use super::{
    args::{ReproduceArgs, Selection, Shots, TuneArgs},
    checkpoint::{EMBEDDED, load_model},
    interrupt::stop_flag,
    job::{FingerprintedSuite, Job, SharedSettings},
    planning::plan,
    run::{QUICK, evaluated_folders, execute, load_tuned_method},
    selection::Selected,
    tune,
};
use crate::device;
use mtil_data::{
    datasets::{Protocol, mtil::SuiteProtocol},
    files::write_atomically,
    nearest,
};
use mtil_engine::{
    eval::{EvalOptions, PromptRule, TaskIdentity},
    method::{ExpertTask, Method, Tuned, UnifyTask},
    metrics::MatrixFile,
    run::{Request, RunOptions},
};
use mtil_report::{
    report,
    reproduce::{
        Comparison, Conditions, Orders, OurProtocol, OurRun, Ours, Prompts, Published, Splits,
        TableSpec, TaskKnowledge, compare, spec, tables,
    },
};

/// Runs `reproduce`.
pub fn reproduce(args: &ReproduceArgs) -> Result<()> {
    let Some(name) = &args.table else {
        for table in tables() {
            let (name, about, methods) = (table.name, table.about, table.methods().len());
            println!("{name:14} {about} ({methods} methods)");
        }
        return Ok(());
    };
    let table = find_table(name)?;
    if let Some(mark) = &args.explain {
        print!("{}", published(table)?.explain(mark)?);
        return Ok(());
    }
    if args.published {
        return print_published(args, table);
    }
    let device = device::parse(&args.device)?;
    let of_mtil = SuiteProtocol::find(table.suite).is_some();
    let model = match (&args.model, of_mtil) {
        (Some(model), _) => model.as_str(),
        (None, false) => EMBEDDED,
        (None, true) => {
            bail!("{name} needs --model: the published runs start from openai/ViT-B-16")
        }
    };
    let methods = selected_methods(table, &args.methods)?;
    let model = load_model(model, &args.hints, &device)?;
    let out = args.out.clone().unwrap_or_else(|| {
        PathBuf::from("runs").join(match args.quick {
            true => format!("{name}-quick"),
            false => name.clone(),
        })
    });
    let seeds = match args.seeds.as_slice() {
        [] => table.seeds.to_vec(),
        seeds => seeds.to_vec(),
    };
    if args.tuned && of_mtil {
        bail!("--tuned is for the embedded suite only: the tables of MTIL use published settings");
    }
    let runs = |tuned: Option<&Tuned>| jobs(args, table, &methods, &seeds, &model, &out, tuned);
    if args.plan {
        // The settings that this run would choose are unknown, so plan with the built-in ones.
        let (jobs, _) = runs(builtin_tuned(table))?;
        if table.published_settings && !args.tuned {
            eprintln!(
                "This excludes the runs that choose the settings: `mtil-bench tune --plan` plans \
                 them, and --tuned skips them."
            );
        }
        return plan(&jobs, &model.clip, &device, false, false);
    }
    fs::create_dir_all(&out)
        .wrap_err_with(|| format!("cannot create {}; choose another --out", out.display()))?;
    let stop = stop_flag();
    let tuned = match table.published_settings && !args.tuned {
        true => tune_first(args, &methods, &out, &device, &stop)?,
        false => None,
    };
    let (jobs, tasks) = runs(tuned.as_ref().or(builtin_tuned(table)))?;
    let cache = args.cache.as_deref();
    let options = RunOptions {
        checkpoints: false,
        cache: cache.map(|folder| args.decode.cache_folder(folder)),
        ..RunOptions::default()
    };
    let done = execute(
        &jobs,
        args.parallel.jobs.into(),
        &model,
        &device,
        &options,
        &stop,
    )?;
    if done.stopped {
        return done.finish();
    }
    // The table marks what failed runs lack.
    let protocol = protocol(args, table, &jobs, &model.name, &seeds);
    let written = write_table(args, table, &jobs, tasks, protocol, &out);
    done.finish_with(written)
}

/// Prints the table of the runs, and writes it to `out`.
fn write_table(
    args: &ReproduceArgs,
    table: &TableSpec,
    jobs: &[Job],
    tasks: Vec<String>,
    protocol: OurProtocol,
    out: &Path,
) -> Result<()> {
    let runs = our_runs(jobs)?;
    if runs.is_empty() {
        return Ok(());
    }
    let ours = Ours {
        tasks,
        protocol,
        runs,
    };
    let comparison = compare(table, &ours)?;
    write(out, table, jobs, &comparison)?;
    print_table(args, table, &comparison);
    if args.quick {
        eprintln!("note: --quick makes few steps on few images; these numbers mean nothing");
    }
    eprintln!("table: {}", out.join("table.md").display());
    Ok(())
}

/// Returns the published figures of a table.
fn published(table: &TableSpec) -> Result<&'static Published> {
    let with = || tables().iter().filter(|t| t.published().is_some());
    table.published().ok_or_else(|| {
        let names: Vec<_> = with().map(|t| t.name).collect();
        eyre!(
            "the table `{}` has no published figures; those with some are {}",
            table.name,
            names.join(", ")
        )
    })
}

/// Prints the published figures of a table.
fn print_published(args: &ReproduceArgs, table: &TableSpec) -> Result<()> {
    let ours = Ours {
        tasks: published(table)?.tasks.clone(),
        protocol: OurProtocol::default(),
        runs: Vec::new(),
    };
    print_table(args, table, &compare(table, &ours)?);
    Ok(())
}

/// Prints a table on standard output.
fn print_table(args: &ReproduceArgs, table: &TableSpec, comparison: &Comparison) {
    if args.markdown {
        println!("{}", comparison.to_markdown());
    } else {
        println!("{}", comparison.to_text());
    }
    if comparison.has_published {
        eprintln!(
            "`mtil-bench reproduce {} --explain MARK` explains a mark",
            table.name
        );
    }
}

/// Finds a table by name.
fn find_table(name: &str) -> Result<&'static TableSpec> {
    if name == mini_world::DEV_NAME {
        bail!(
            "`{name}` is the suite that settings are chosen on: nothing is reported on it. The \
             table of the embedded suite is `{}`",
            mini_world::NAME
        );
    }
    spec(name).ok_or_else(|| {
        let near = nearest(name, tables().iter().map(|t| t.name));
        let names: Vec<_> = tables().iter().map(|t| t.name).collect();
        eyre!(
            "there is no table `{name}`{}; there are {}",
            near.map_or(String::new(), |n| format!("; did you mean `{n}`?")),
            names.join(", ")
        )
    })
}

/// Tunes the settings of those of `methods` that train, in runs below `out`.
fn tune_first(
    args: &ReproduceArgs,
    methods: &[&str],
    out: &Path,
    device: &Device,
    stop: &Arc<AtomicBool>,
) -> Result<Option<Tuned>> {
    let trains = |name: &&&str| **name != "zero-shot";
    let methods: Vec<String> = methods
        .iter()
        .filter(trains)
        .map(|m| (*m).to_owned())
        .collect();
    if methods.is_empty() {
        return Ok(None);
    }
    let tuning = TuneArgs {
        methods,
        out: out.join("tune"),
        seed: 1,
        parallel: args.parallel,
        plan: false,
        quick: args.quick,
        device: args.device.clone(),
    };
    tune::choose(&tuning, device, stop).map(Some)
}

/// Writes the table, and for a single task order also the report and all metrics.
fn write(out: &Path, table: &TableSpec, jobs: &[Job], comparison: &Comparison) -> Result<()> {
    let mut files = vec![
        ("table.txt", comparison.to_text()),
        ("table.md", comparison.to_markdown()),
        ("table.csv", comparison.to_csv()),
    ];
    if table.orders != Orders::CyclicShifts {
        let folders = evaluated_folders(jobs);
        let page = out.join("report.html");
        report::write_report(&folders, &page)?;
        eprintln!("report: {}", page.display());
        files.push(("figures.md", report::figures_table(&folders)?));
        files.push(("runs.csv", report::runs_csv(&folders)?));
    }
    for (file, text) in files {
        let path = out.join(file);
        write_atomically(&path, text.as_bytes())
            .wrap_err_with(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Returns the methods of a table, or those of them that were requested.
fn selected_methods(table: &TableSpec, wanted: &[String]) -> Result<Vec<&'static str>> {
    let methods = table.methods();
    if wanted.is_empty() {
        return Ok(methods);
    }
    wanted
        .iter()
        .map(|name| {
            let found = methods.iter().copied().find(|m| m == name);
            found.ok_or_else(|| {
                if !table.can_run(name) {
                    return eyre!(
                        "method `{name}` needs the task of a test image, which `{}` does not give",
                        table.suite
                    );
                }
                let near = nearest(name, methods.iter().copied());
                eyre!(
                    "method `{name}` is not in {}{}; its methods are {}",
                    table.name,
                    near.map_or(String::new(), |n| format!("; did you mean `{n}`?")),
                    methods.join(", ")
                )
            })
        })
        .collect()
}

/// Returns the tuned settings that the program contains for the suite of a table.
fn builtin_tuned(table: &TableSpec) -> Option<&'static Tuned> {
    match SuiteProtocol::find(table.suite).is_some() {
        true => None,
        // All suites of the mini world share their settings.
        false => Tuned::of(mini_world::NAME),
    }
}

/// Returns the runs of a table, and the tasks in the suite's own order.
fn jobs(
    args: &ReproduceArgs,
    table: &TableSpec,
    methods: &[&str],
    seeds: &[u64],
    model: &super::checkpoint::LoadedModel,
    out: &Path,
    tuned: Option<&Tuned>,
) -> Result<(Vec<Job>, Vec<String>)> {
    let common = SharedSettings {
        model,
        device: &args.device,
        peers: &[],
        evaluation: EvalOptions {
            identity: TaskIdentity::default_for_suite(table.suite),
            ..EvalOptions::default()
        },
        guard: Vec::new(),
        skip_bad_images: args.skip_bad_images,
        select: None,
    };
    let selection = |order: &[String]| Selection {
        data: args.data.clone(),
        sun397_order: args.sun397_order.clone(),
        any_size: args.any_size,
        shots: table.shots.map(Shots::PerClass),
        template: table.template.map(str::to_owned),
        reference: args.reference.clone(),
        texts: args.texts.clone(),
        decode: args.decode,
        tasks: order.to_vec(),
        ..Selection::named(table.suite)
    };
    let mut overrides: Vec<String> = table.settings.iter().map(|s| (*s).to_owned()).collect();
    if args.quick {
        overrides.extend(QUICK.map(str::to_owned));
    }
    overrides.extend(args.set.iter().cloned());
    let first = selection(&[]).load(args.quick, 42)?;
    let tasks: Vec<String> = first.suite.tasks.iter().map(|t| t.name.clone()).collect();
    let mut rows: Vec<String> = methods.iter().map(|name| (*name).to_owned()).collect();
    // A tuned method has a second row with its published settings.
    if table.published_settings {
        let known = |name: &&&str| tuned.is_some_and(|t| t.methods.contains_key(**name));
        let published = methods.iter().filter(known);
        rows.extend(published.map(|name| format!("{name}{}", Method::PUBLISHED)));
    }
    let mut jobs = Vec::new();
    for (number, order) in table.orders.permutations(tasks.len()).iter().enumerate() {
        let names: Vec<String> = match table.orders {
            Orders::AsGiven => Vec::new(),
            _ => order.iter().map(|task| tasks[*task].clone()).collect(),
        };
        let selection = selection(&names);
        let mut opened: Option<(Selected, FingerprintedSuite)> = None;
        for seed in seeds {
            // Reload the suite only if its images depend on the seed.
            if opened.is_none() || selection.depends_on_seed() {
                let selected = selection.load(args.quick, *seed)?;
                let suite = FingerprintedSuite::new(&selected.suite);
                opened = Some((selected, suite));
            }
            let Some((selected, suite)) = &opened else {
                continue;
            };
            for name in &rows {
                let method = load_tuned_method(name, selected, tuned, &overrides)?;
                let folder = match table.orders {
                    Orders::CyclicShifts => format!("{name}-seed-{seed}-shift-{number}"),
                    _ => format!("{name}-seed-{seed}"),
                };
                let prompts = args.prompts.unwrap_or_else(|| prompt_rule(table, &method));
                let mut job = common.job(out, &folder, *seed, selected, suite, method);
                job.request.evaluation.prompts = prompts;
                jobs.push(job);
            }
        }
    }
    Ok((jobs, tasks))
}

/// Returns the prompt rule of a method's paper on MTIL, and the rule of the suite elsewhere.
fn prompt_rule(table: &TableSpec, method: &Method) -> PromptRule {
    match PromptRule::default_for_suite(table.suite) {
        PromptRule::Ensemble => method.published_prompts,
        rule => rule,
    }
}

/// Returns the conditions of a run on one of MTIL's suites.
fn conditions(table: &TableSpec, suite: &SuiteProtocol, job: &Request) -> Conditions {
    Conditions {
        splits: match suite.splits {
            Protocol::Zscl => Splits::Zscl,
            Protocol::CoOp => Splits::Coop,
        },
        prompts: match (table.template, job.evaluation.prompts) {
            (Some(_), _) => Prompts::Generic,
            (None, PromptRule::Reference) => Prompts::Reference,
            (None, PromptRule::Ensemble) => Prompts::Ensemble,
            (None, PromptRule::First) => Prompts::First,
        },
        task: match job.evaluation.identity {
            TaskIdentity::Given => inferred_task(&job.method),
            TaskIdentity::Seen | TaskIdentity::All => TaskKnowledge::NotGiven,
        },
        shots: table.shots.or(suite.shots),
    }
}

/// Returns how a method finds the task of a test image, where the protocol would give it.
fn inferred_task(method: &Method) -> TaskKnowledge {
    match (&method.unify, &method.experts) {
        (Some(unify), _) if unify.task == UnifyTask::Image => TaskKnowledge::ByImage,
        (_, Some(experts)) => match experts.task {
            ExpertTask::Given => TaskKnowledge::Given,
            ExpertTask::Batch => TaskKnowledge::ByBatch,
            ExpertTask::Image => TaskKnowledge::ByImage,
        },
        _ => TaskKnowledge::Given,
    }
}

/// Reads the accuracy matrices of the runs that have one: those without the task of a test image,
/// where the protocol does not give it.
fn our_runs(jobs: &[Job]) -> Result<Vec<OurRun>> {
    let matrix = |job: &Job| {
        job.folder.join(match job.request.evaluation.identity {
            TaskIdentity::Given => MatrixFile::NAME,
            TaskIdentity::Seen | TaskIdentity::All => MatrixFile::WITHOUT_IDENTITY,
        })
    };
    jobs.iter()
        .filter(|job| matrix(job).exists())
        .map(|job| {
            let path = matrix(job);
            let matrix = MatrixFile::load(&path)?;
            let accuracy = matrix.accuracy()?;
            Ok(OurRun {
                method: job.request.method.name.clone(),
                seed: job.request.seed,
                trains: job.request.method.trains,
                matrix: accuracy,
            })
        })
        .collect()
}

/// Describes the protocol of our runs for the header of the table.
fn protocol(
    args: &ReproduceArgs,
    table: &TableSpec,
    jobs: &[Job],
    model: &str,
    seeds: &[u64],
) -> OurProtocol {
    let methods = jobs.iter().map(|job| &job.request.method);
    let trained = methods.filter(|method| method.trains);
    let steps: std::collections::BTreeSet<usize> = trained.map(|method| method.steps).collect();
    let join = |set: Vec<String>| set.join(", ");
    let suite = SuiteProtocol::find(table.suite);
    let mark = |job: &Job| {
        let conditions = conditions(table, suite?, &job.request);
        let mark = table.published()?.mark(conditions)?;
        Some((job.request.method.name.clone(), mark.to_owned()))
    };
    let of_world = || "of the embedded suite".to_owned();
    OurProtocol {
        families: jobs.iter().filter_map(mark).collect(),
        splits: suite.map_or_else(of_world, |suite| splits(args, suite)),
        shots: match table.shots.or(suite.and_then(|suite| suite.shots)) {
            Some(shots) => format!("{shots} per class"),
            None => "all training images".to_owned(),
        },
        prompts: match (args.prompts, suite) {
            _ if table.template.is_some() => Prompts::Generic.description(),
            (None, Some(suite)) if suite.task_given => "those of each method's paper",
            (None, Some(_)) => Prompts::First.description(),
            (Some(PromptRule::Reference), _) | (None, None) => Prompts::Reference.description(),
            (Some(PromptRule::Ensemble), _) => Prompts::Ensemble.description(),
            (Some(PromptRule::First), _) => Prompts::First.description(),
        }
        .to_owned(),
        task: match suite.is_none_or(|suite| suite.task_given) {
            true => TaskKnowledge::Given,
            false => TaskKnowledge::NotGiven,
        }
        .description()
        .to_owned(),
        model: model.to_owned(),
        reference: match suite {
            Some(_) => "ImageNet, or Conceptual Captions where there is none".to_owned(),
            None => of_world(),
        },
        steps: join(steps.iter().map(ToString::to_string).collect()),
        seeds: join(seeds.iter().map(ToString::to_string).collect()),
        commit: format!("version {}", env!("CARGO_PKG_VERSION")),
    }
}

/// Describes the splits of a suite of MTIL's datasets.
fn splits(args: &ReproduceArgs, suite: &SuiteProtocol) -> String {
    if suite.splits == Protocol::CoOp {
        return Splits::Coop.description().to_owned();
    }
    let sun = match &args.sun397_order {
        Some(path) => format!("SUN397 in the order of {}", path.display()),
        None => "SUN397 sorted by path".to_owned(),
    };
    format!("torchvision, 80/20 with seed 42 where it has none; {sun}")
}

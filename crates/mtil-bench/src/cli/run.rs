//! `run`: methods on a suite.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use color_eyre::eyre::{Result, WrapErr, bail, eyre};

use super::{
    args::RunArgs,
    checkpoint::{EMBEDDED, load_model},
    output::Terminal,
};
use crate::{
    device,
    method::Method,
    metrics::MetricsFile,
    mini::{self, MiniSizes},
    report,
    run::{Outcome, Request, RunOptions, run as run_method},
    suite::Suite,
};

/// Reads a suite by name or file; with `quick`, the embedded one is small.
pub fn load_suite(name: &str, quick: bool) -> Result<Suite> {
    let suite = if name == "mini" && quick {
        mini::suite(
            mini::SUITE_SEED,
            MiniSizes {
                train_per_task: 160,
                test_per_task: 80,
                reference: 128,
                held_out: 100,
            },
        )
    } else {
        Suite::load(name)?
    };
    suite.check()?;
    Ok(suite)
}

/// A flag that Ctrl-C sets; a second Ctrl-C ends the process at once.
pub fn stop_on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, std::sync::atomic::Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this update (Ctrl-C again: at once)");
    })?;
    Ok(stop)
}

/// Writes up to eight sample images of each task for the report.
fn write_samples(suite: &Suite, out: &Path) -> Result<()> {
    for (index, task) in suite.tasks.iter().enumerate() {
        let safe =
            |text: &str| text.replace(|c: char| !c.is_alphanumeric() && c != ' ' && c != '-', "_");
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

/// Trains and evaluates every method of `args`, then writes the report.
pub fn run(args: RunArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let suite = load_suite(&args.suite, args.quick)?;
    if args.model == EMBEDDED && suite.name != "mini" {
        eprintln!(
            "note: the embedded model only knows the mini world; give --model for other suites (`mtil-bench model list` shows names)"
        );
    }
    let model = load_model(&args.model, &args.hints, &device)?;
    let mut overrides = Vec::new();
    if args.quick {
        overrides.extend(
            [
                "steps=8",
                "warmup=2",
                "batch=16",
                "reference_batch=16",
                "reference_pairs=64",
            ]
            .map(str::to_owned),
        );
    }
    overrides.extend(args.set.iter().cloned());
    let methods = args
        .methods
        .iter()
        .map(|name| Method::load(name, &suite.name, &overrides))
        .collect::<Result<Vec<_>, _>>()?;
    for (i, method) in methods.iter().enumerate() {
        if methods[..i].iter().any(|m| m.name == method.name) {
            bail!("method `{}` is given twice", method.name);
        }
    }
    let out = args.out.clone().unwrap_or_else(|| {
        let name = suite
            .name
            .replace(|c: char| !c.is_alphanumeric() && c != '-', "-");
        PathBuf::from("runs").join(if args.quick {
            format!("{name}-quick")
        } else {
            name
        })
    });
    fs::create_dir_all(&out)
        .wrap_err_with(|| format!("cannot create {}; choose another --out", out.display()))?;
    write_samples(&suite, &out)
        .wrap_err_with(|| format!("cannot write samples below {}", out.display()))?;
    let stop = stop_on_interrupt()?;
    let options = RunOptions {
        save_every: args.save_every as usize,
        checkpoints: !args.no_checkpoints,
        ..RunOptions::default()
    };
    let fingerprint = suite.fingerprint();
    let mut folders = Vec::new();
    let mut results = serde_json::Map::new();
    for method in methods {
        let folder = out.join(&method.name);
        let request = Request {
            suite: suite.name.clone(),
            suite_fingerprint: fingerprint.clone(),
            model: model.name.clone(),
            model_sha256: model.sha256.clone(),
            seed: args.seed,
            device: args.device.clone(),
            prompt_rule: args.prompts,
            skip_bad_images: args.skip_bad_images,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            method,
        };
        let mut progress = Terminal::new();
        let outcome = run_method(
            &request,
            &suite,
            &model.clip,
            &device,
            &folder,
            &options,
            &stop,
            &mut progress,
        )?;
        folders.push(folder);
        match outcome {
            Outcome::Complete(metrics) => {
                results.insert(
                    request.method.name.clone(),
                    serde_json::to_value::<MetricsFile>(metrics)?,
                );
            }
            Outcome::Stopped => {
                report::write_report(&folders, &out.join("report.html"))?;
                return Err(eyre!("stopped; the same command goes on from here"));
            }
        }
    }
    let path = out.join("report.html");
    report::write_report(&folders, &path)?;
    eprintln!("\n{}", report::summary_table(&folders)?);
    eprintln!("report: {}", path.display());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    }
    Ok(())
}

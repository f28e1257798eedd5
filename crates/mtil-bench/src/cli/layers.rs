//! `layers`: cost and accuracy of protecting only some layers.
//!
//! As in GNSP, only protected layers train after the first task. Fewer layers need less memory and
//! cheaper training steps, and can learn less.

use std::{fs, path::Path};

use eyre::{Result, WrapErr, bail};

use super::{
    args::LayersArgs,
    checkpoint::load_model,
    interrupt::stop_flag,
    job::{FingerprintedSuite, Job, SharedSettings},
    run::{QUICK, execute, load_method, write_report},
};
use crate::device;
use mtil_data::files::write_atomically;
use mtil_engine::{eval::EvalOptions, metrics::MetricsFile, run::RunOptions};

/// A set of protected layers.
struct Choice {
    name: &'static str,
    about: String,
    /// Regular expressions of parameter paths.
    patterns: Vec<String>,
}

/// Returns the choices for an image tower of `blocks` blocks.
fn choices(blocks: usize) -> Vec<Choice> {
    let mlp = |from: usize, parts: &str| {
        let numbers: Vec<String> = (from..blocks).map(|b| b.to_string()).collect();
        format!(
            r"^visual\.blocks\.({})\.mlp\.({parts})\.weight$",
            numbers.join("|")
        )
    };
    let proj = r"^visual\.proj$".to_owned();
    let both = "c_fc|c_proj";
    let choice = |name, about: &str, patterns| Choice {
        name,
        about: about.to_owned(),
        patterns,
    };
    let mut choices = vec![choice(
        "all",
        "both layers of every MLP, and the projection (published)",
        vec![mlp(0, both), proj.clone()],
    )];
    let mut from = blocks / 2;
    for (name, part) in [("last-half", "half"), ("last-quarter", "quarter")] {
        if from > 0 && from < blocks {
            let about = format!("of the last {part} of the blocks, and the projection");
            choices.push(choice(name, &about, vec![mlp(from, both), proj.clone()]));
        }
        from += (blocks - from) / 2;
    }
    choices.extend([
        choice(
            "first-maps",
            "only the first layer of every MLP",
            vec![mlp(0, "c_fc")],
        ),
        choice(
            "second-maps",
            "only the second layer of every MLP",
            vec![mlp(0, "c_proj")],
        ),
        choice(
            "projection",
            "only the projection to the joint space",
            vec![proj],
        ),
    ]);
    choices
}

/// Runs `layers`.
pub fn layers(args: &LayersArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let selected = args.selection.load(args.quick, args.seed)?;
    let model = load_model(&args.model, &args.hints, &device)?;
    let common = SharedSettings {
        model: &model,
        device: &args.device,
        peers: &[],
        evaluation: EvalOptions::default(),
        guard: Vec::new(),
        skip_bad_images: false,
        select: None,
    };
    let mut overrides = Vec::new();
    if args.quick {
        overrides.extend(QUICK.map(str::to_owned));
    }
    overrides.extend(args.set.iter().cloned());
    let suite = FingerprintedSuite::new(&selected.suite);
    let choices = choices(model.clip.config.vision.num_hidden_layers);
    let mut jobs = Vec::new();
    for choice in &choices {
        let mut method = load_method(&args.method, &selected, &overrides)?;
        if method.projection.is_none() {
            bail!(
                "method `{}` protects no layer; choose one with a [projection], such as gnsp",
                method.name
            );
        }
        method.trainable_later.clone_from(&choice.patterns);
        method.name = format!("{} {}", method.name, choice.name);
        jobs.push(common.job(&args.out, choice.name, args.seed, &selected, &suite, method));
    }
    fs::create_dir_all(&args.out)
        .wrap_err_with(|| format!("cannot create {}; choose another --out", args.out.display()))?;
    let stop = stop_flag();
    let options = RunOptions {
        checkpoints: false,
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
    let mut reported = write_report(&jobs, &args.out, false);
    if !done.stopped {
        reported = reported.and(write_table(&choices, &jobs, &args.out));
    }
    done.finish_with(reported)
}

/// Prints the table of the runs, and writes it to `out`.
fn write_table(choices: &[Choice], jobs: &[Job], out: &Path) -> Result<()> {
    let table = table(choices, jobs);
    println!("{table}");
    let path = out.join("layers.md");
    write_atomically(&path, table.as_bytes())
        .wrap_err_with(|| format!("cannot write {}", path.display()))?;
    eprintln!("table: {}", path.display());
    Ok(())
}

/// Formats the results as a Markdown table, in which those of a failed run are missing.
fn table(choices: &[Choice], jobs: &[Job]) -> String {
    let mut text = "| layers | description | Transfer | Average | Last | forgetting \
                    | trainable parameters | kept between tasks | seconds |\n\
                    |---|---|---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for (choice, job) in choices.iter().zip(jobs) {
        let metrics = MetricsFile::load(&job.folder.join(MetricsFile::NAME));
        let metrics = metrics.unwrap_or_default();
        let show = |value: Option<f64>| value.map_or("—".to_owned(), |v| format!("{v:.1}"));
        let count = |value: Option<u64>| value.map_or("—".to_owned(), |v| v.to_string());
        let bytes = metrics
            .bytes_kept
            .map_or("—".to_owned(), |b| format!("{:.2} MB", b as f64 / 1e6));
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            choice.name,
            choice.about,
            show(metrics.transfer),
            show(metrics.average),
            show(metrics.last),
            show(metrics.forgetting),
            count(metrics.trainable_parameters),
            bytes,
            show(metrics.wall_seconds),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_select_the_named_part_of_the_blocks() {
        let twelve = choices(12);
        let names: Vec<_> = twelve.iter().map(|c| c.name).collect();
        assert_eq!(
            names,
            [
                "all",
                "last-half",
                "last-quarter",
                "first-maps",
                "second-maps",
                "projection"
            ]
        );
        let half = &twelve[1].patterns[0];
        assert!(
            half.contains("(6|7|8|9|10|11)") && !half.contains("|5|"),
            "{half}"
        );
        assert!(twelve[2].patterns[0].contains("(9|10|11)"));
        // A tower of one block has no half.
        assert_eq!(choices(1).len(), 4);
    }
}

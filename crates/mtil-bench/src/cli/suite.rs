//! `suite`: the list of suites, checks of suites and datasets, and export to image folders.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::Path,
    sync::{Mutex, atomic::Ordering},
    time::Instant,
};

use eyre::{Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

use super::{
    args::{CheckArgs, Selection, SuiteArgs, SuiteVerb},
    interrupt::stop_flag,
    output::{LineFilter, WorkProgress},
    selection::Selected,
};
use crate::{exit::EarlyEnd, print::print_json};
use mini_world::{Conflict, disagreement, parse_conflict};
use mtil_data::{
    datasets::{
        Spec,
        check::{CheckEvent, DatasetReport, DatasetState, check},
        mtil,
    },
    suite::{DecodedSet, Suite, SuiteError, SuiteWarning, TaskKind, export},
};
use mtil_report::format::plural;

/// Runs `suite`.
pub fn suite(args: &SuiteArgs) -> Result<()> {
    match &args.verb {
        SuiteVerb::List => {
            list();
            Ok(())
        }
        SuiteVerb::Example => {
            print!("{}", mtil_data::suite::EXAMPLE);
            Ok(())
        }
        SuiteVerb::Check(args) => match &args.suite {
            Some(name) => describe(name, args),
            None => check_datasets(args),
        },
        SuiteVerb::Export { suite, dir, decode } => {
            let selection = Selection {
                decode: *decode,
                ..Selection::named(suite)
            };
            write_suite(&selection.load(false, 0)?.suite, dir)
        }
    }
}

/// Exports a suite to a folder, which stays empty if a signal stops it.
fn write_suite(suite: &Suite, dir: &Path) -> Result<()> {
    let stop = stop_flag();
    let progress = WorkProgress::new("exporting", "images");
    let exported = export(suite, dir, &mut |done, of| {
        progress.set(done, of);
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    progress.finish();
    let summary = exported.map_err(|error| match error {
        SuiteError::Interrupted => EarlyEnd::Interrupted("what was exported is removed").into(),
        error => eyre::Report::from(error),
    })?;
    eprintln!(
        "{} of {}; the suite is {}",
        plural(summary.images, "image"),
        plural(summary.tasks, "task"),
        summary.suite_file.display()
    );
    Ok(())
}

fn list() {
    println!(
        "{:20} drawn by the program, with the embedded model",
        mini_world::NAME
    );
    println!(
        "{:20} other tasks of the same world, for choosing settings",
        mini_world::DEV_NAME
    );
    for suite in mtil::SuiteProtocol::all() {
        println!("{:20} {}; needs --data DIR", suite.name, suite.about);
    }
    for kind in Conflict::ALL {
        println!("{:20} {}", format!("{kind}:DIAL"), kind.about());
    }
    println!(
        "FILE.toml            your own image folders or image-caption pairs; \
         `mtil-bench suite example` explains every key"
    );
}

/// Describes a suite. Returns an error if an image cannot be decoded.
fn describe(name: &str, args: &CheckArgs) -> Result<()> {
    if !args.datasets.is_empty() {
        bail!(
            "--datasets selects datasets of --data, not tasks of a suite: leave out `{name}` or \
             --datasets"
        );
    }
    let selection = Selection {
        data: args.data.clone(),
        splits: args.splits,
        any_size: args.any_size,
        decode: args.decode,
        ..Selection::named(name)
    };
    let Selected {
        suite, warnings, ..
    } = selection.load(false, 0)?;
    let decoded = args.deep.then(|| {
        let progress = WorkProgress::new("decoding", "images");
        let decoded = suite.decode_all(&|done, of| progress.set(done, of));
        progress.finish();
        decoded
    });
    let disagreement = parse_conflict(name).map(|_| disagreement(&suite));
    if args.json {
        let all = suite_as_json(&suite, &warnings, disagreement, decoded.as_deref());
        print_json(&all)?;
    } else {
        print_suite(&suite, disagreement);
        decoded.iter().flatten().for_each(print_decoded);
    }
    match decoded
        .iter()
        .flatten()
        .map(|set| set.unreadable.len())
        .sum::<usize>()
    {
        0 => Ok(()),
        unreadable => bail!("images that cannot be decoded: {unreadable}"),
    }
}

fn print_suite(suite: &Suite, disagreement: Option<f64>) {
    println!("{}: {}", suite.name, plural(suite.tasks.len(), "task"));
    for task in &suite.tasks {
        match &task.kind {
            TaskKind::Classification(of) => println!(
                "  {:16} {:4} classes, {:6} training and {:6} test images, {}, first: {}",
                task.name,
                of.class_names.len(),
                of.train.labels.len(),
                of.test.labels.len(),
                plural(of.templates.len(), "template"),
                of.templates[0],
            ),
            TaskKind::Captions(of) => println!(
                "  {:16} image-caption pairs: {:6} training images with {} captions, {:6} test \
                 images with {}",
                task.name,
                of.train.images.len(),
                of.train.count(),
                of.test.images.len(),
                of.test.count(),
            ),
        }
    }
    println!(
        "  reference: {} pairs, {} held out",
        suite.reference.captions.len(),
        suite.held_out.captions.len()
    );
    for set in &suite.extras.retrieval {
        println!(
            "  retrieval: {}, {} images, {} captions",
            set.name,
            set.images.len(),
            set.captions.len()
        );
    }
    if let Some(disagreement) = disagreement {
        println!(
            "  disagreement: {:.0} % of the later images have another name than before",
            100.0 * disagreement
        );
    }
}

/// Number of images that a report of a suite or a dataset names.
const SHOWN: usize = 10;

fn print_decoded(set: &DecodedSet) {
    let decoded = set.images - set.unreadable.len();
    println!("  {}: {decoded} of {} images decoded", set.name, set.images);
    print_list("  ", &set.unreadable, |(name, reason)| {
        format!("{name}: {reason}")
    });
    print_list("  ", &set.shared, |(test, train)| {
        format!("warning: test image {test} has the pixels of the training image {train}")
    });
}

/// Prints the first of some entries, and the number of the others.
fn print_list<T>(indent: &str, entries: &[T], text: impl Fn(&T) -> String) {
    for entry in entries.iter().take(SHOWN) {
        println!("{indent}  {}", text(entry));
    }
    if entries.len() > SHOWN {
        println!("{indent}  and {} more", entries.len() - SHOWN);
    }
}

fn suite_as_json(
    suite: &Suite,
    warnings: &[SuiteWarning],
    disagreement: Option<f64>,
    decoded: Option<&[DecodedSet]>,
) -> serde_json::Value {
    let tasks = suite.tasks.iter().map(|task| match &task.kind {
        TaskKind::Classification(of) => json!({
            "task": task.name, "classes": of.class_names, "templates": of.templates,
            "train": of.train.labels.len(), "test": of.test.labels.len(),
        }),
        TaskKind::Captions(of) => json!({
            "task": task.name, "train": of.train.images.len(), "test": of.test.images.len(),
            "captions": {"train": of.train.count(), "test": of.test.count()},
        }),
    });
    let retrieval = suite.extras.retrieval.iter().map(
        |set| json!({"name": set.name, "images": set.images.len(), "captions": set.captions.len()}),
    );
    let decoded = decoded.map(|sets| {
        let set = |set: &DecodedSet| {
            json!({
                "set": set.name, "images": set.images, "unreadable": set.unreadable,
                "shared": set.shared,
            })
        };
        sets.iter().map(set).collect::<Vec<_>>()
    });
    json!({
        "suite": suite.name,
        "tasks": tasks.collect::<Vec<_>>(),
        "reference": suite.reference.captions.len(),
        "held_out": suite.held_out.captions.len(),
        "retrieval": retrieval.collect::<Vec<_>>(),
        "disagreement": disagreement,
        "warnings": warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "decoded": decoded,
    })
}

/// Reports the state of every dataset. Returns an error if a required one is not usable.
fn check_datasets(args: &CheckArgs) -> Result<()> {
    let Some(data) = &args.data else {
        bail!(
            "give a suite (`mtil-bench suite check mini`), or --data DIR to check the datasets of \
             MTIL in it"
        );
    };
    if !data.is_dir() {
        bail!("--data {}: there is no such folder", data.display());
    }
    let keys: Vec<&str> = if args.datasets.is_empty() {
        Spec::all().iter().map(|s| s.key.as_str()).collect()
    } else {
        let find = |key: &String| Ok(Spec::find(key)?.key.as_str());
        args.datasets.iter().map(find).collect::<Result<_>>()?
    };
    let selection = Selection {
        splits: args.splits,
        any_size: args.any_size,
        decode: args.decode,
        ..Selection::default()
    };
    let bars = ProgressBars::new(keys.len());
    let reports = check(data, &keys, args.deep, &selection.dataset_options(), &|e| {
        bars.event(e)
    });
    bars.finish();
    if args.json {
        print_json(&as_json(&reports))?;
    } else {
        for report in &reports {
            print(report, data);
        }
    }
    let usable = reports.iter().filter(|r| r.is_usable()).count();
    eprintln!("{usable} of {} datasets can be used", reports.len());
    // Optional datasets may be missing, but not damaged.
    let needed = |key: &str| !args.datasets.is_empty() || mtil::ORDER_1.contains(&key);
    let lacking = reports.iter().filter(|r| match r.state {
        DatasetState::NotFound { .. } => needed(&r.key),
        _ => !r.is_usable(),
    });
    let lacking: Vec<&str> = lacking.map(|r| r.key.as_str()).collect();
    if !lacking.is_empty() {
        bail!("not usable: {}", lacking.join(", "));
    }
    Ok(())
}

/// A bar for the datasets, and one for each dataset that is being decoded.
struct ProgressBars {
    all: MultiProgress,
    datasets: ProgressBar,
    decoded: Mutex<BTreeMap<String, ProgressBar>>,
    lines: Mutex<LineFilter>,
}

impl ProgressBars {
    fn new(datasets: usize) -> Self {
        let all = MultiProgress::new();
        let bar = all.add(ProgressBar::new(datasets as u64));
        set_style(&bar, "{pos}/{len} datasets {bar:20}");
        Self {
            all,
            datasets: bar,
            decoded: Mutex::default(),
            lines: Mutex::default(),
        }
    }

    fn event(&self, event: CheckEvent) {
        let Ok(mut decoded) = self.decoded.lock() else {
            return;
        };
        match event {
            CheckEvent::Started { .. } => {}
            CheckEvent::Decoded { key, done, of } if self.datasets.is_hidden() => {
                // Without a terminal, a line now and then.
                let lines = self.lines.lock();
                if lines.is_ok_and(|mut lines| lines.is_due(Instant::now())) {
                    eprintln!("{key}: decoding  {done}/{of} images");
                }
            }
            CheckEvent::Decoded { key, done, of } => {
                let bar = decoded.entry(key.clone()).or_insert_with(|| {
                    let bar = self.all.add(ProgressBar::new(of as u64));
                    set_style(&bar, "{msg:14} {bar:20} {pos}/{len} images {eta} left");
                    bar.set_message(key);
                    bar
                });
                bar.set_position(done as u64);
            }
            CheckEvent::Finished { key } => {
                self.datasets.inc(1);
                if let Some(bar) = decoded.remove(&key) {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn finish(&self) {
        self.datasets.finish_and_clear();
    }
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

fn print(report: &DatasetReport, data: &Path) {
    match &report.state {
        DatasetState::Complete {
            parts,
            bytes,
            unreadable,
        } => {
            let parts: Vec<String> = parts
                .iter()
                .map(|part| {
                    let mut text = format!("{} {}", part.images, part.name);
                    if let Some(captions) = part.captions {
                        text += &format!(" ({captions} captions)");
                    }
                    if let Some([(_, fewest), (_, most)]) = &part.classes {
                        text += &format!(" ({fewest} to {most} per class)");
                    }
                    if part.left_out > 0 {
                        text += &format!(" ({} skipped)", part.left_out);
                    }
                    text
                })
                .collect();
            let size = match bytes {
                0 => String::new(),
                bytes => format!(", {:.1} MB", *bytes as f64 / 1e6),
            };
            let state = if unreadable.is_empty() {
                "complete"
            } else {
                "damaged"
            };
            println!("{:18} {state}: {}{size}", report.key, parts.join(", "));
            let indent = format!("{:18} ", "");
            print_list(&indent, unreadable, |(name, reason)| {
                format!("{name}: {reason}")
            });
        }
        DatasetState::NotFound {
            looked_for,
            layout,
            get,
            terms,
        } => {
            println!("{:18} not found: {}", report.key, report.title);
            println!(
                "{:18}   one of these below {}: {}",
                "",
                data.display(),
                looked_for.join(", ")
            );
            println!("{:18}   {layout}", "");
            println!("{:18}   from {}", "", get.join(", "));
            println!("{:18}   terms: {terms}", "");
        }
        DatasetState::Wrong(reason) => println!("{:18} wrong: {reason}", report.key),
    }
}

fn as_json(reports: &[DatasetReport]) -> Vec<serde_json::Value> {
    let one = |report: &DatasetReport| {
        let state = match &report.state {
            DatasetState::Complete {
                parts,
                bytes,
                unreadable,
            } => json!({
                "state": if unreadable.is_empty() { "complete" } else { "damaged" },
                "bytes": bytes,
                "parts": parts.iter().map(|p| json!({
                    "name": p.name, "images": p.images, "captions": p.captions,
                    "left_out": p.left_out,
                    "fewest": p.classes.as_ref().map(|[few, _]| few),
                    "most": p.classes.as_ref().map(|[_, most]| most),
                })).collect::<Vec<_>>(),
                "unreadable": unreadable,
            }),
            DatasetState::NotFound {
                looked_for,
                layout,
                get,
                terms,
            } => json!({
                "state": "not found", "looked_for": looked_for, "layout": layout, "get": get,
                "terms": terms,
            }),
            DatasetState::Wrong(reason) => json!({"state": "wrong", "reason": reason}),
        };
        json!({"dataset": report.key, "title": report.title, "result": state})
    };
    reports.iter().map(one).collect()
}

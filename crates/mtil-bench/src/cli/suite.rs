//! `suite`: the list of suites, checks of suites and datasets, and export to image folders.

use std::{path::Path, sync::Mutex};

use eyre::{Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

use super::{
    args::{CheckArgs, Selection, SuiteArgs, SuiteVerb},
    selection::Selected,
};
use mini_world::{Conflict, disagreement, parse_conflict};
use mtil_data::{
    datasets::{
        Spec,
        check::{CheckEvent, DatasetReport, DatasetState, check},
        mtil,
    },
    suite::export,
};

/// Runs `suite`.
pub fn suite(args: &SuiteArgs) -> Result<()> {
    match &args.verb {
        SuiteVerb::List => {
            list();
            Ok(())
        }
        SuiteVerb::Check(args) => match &args.suite {
            Some(name) => describe(name, args),
            None => check_datasets(args),
        },
        SuiteVerb::Export { suite, dir } => {
            let selected = Selection::named(suite).load(false, 0)?;
            let bar = ProgressBar::new(0);
            let summary = export(&selected.suite, dir, &mut |done, of| {
                bar.set_length(of as u64);
                bar.set_position(done as u64);
            })?;
            bar.finish_and_clear();
            eprintln!(
                "{} images of {} tasks; the suite is {}",
                summary.images,
                summary.tasks,
                summary.suite_file.display()
            );
            Ok(())
        }
    }
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
    for (name, order) in [
        (mtil::SUITES[0], "alphabetical order"),
        (mtil::SUITES[1], "the second published order"),
    ] {
        println!("{name:20} the eleven datasets of MTIL in {order}; needs --data DIR");
    }
    for kind in Conflict::ALL {
        println!("{:20} {}", format!("{kind}:DIAL"), kind.about());
    }
    println!(
        "FILE.toml            your own image folders; datasets/example-suite.toml explains every \
         key"
    );
}

fn describe(name: &str, args: &CheckArgs) -> Result<()> {
    let selection = Selection {
        data: args.data.clone(),
        splits: args.splits,
        any_size: args.any_size,
        ..Selection::named(name)
    };
    let Selected { suite, .. } = selection.load(false, 0)?;
    println!("{}: {} tasks", suite.name, suite.tasks.len());
    for task in &suite.tasks {
        println!(
            "  {:16} {:4} classes, {:6} training and {:6} test images, {} template(s), first: {}",
            task.name,
            task.class_names.len(),
            task.train.labels.len(),
            task.test.labels.len(),
            task.templates.len(),
            task.templates[0],
        );
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
    if parse_conflict(name).is_some() {
        println!(
            "  disagreement: {:.0} % of the later images have another name than before",
            100.0 * disagreement(&suite)
        );
    }
    Ok(())
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
        ..Selection::default()
    };
    let bars = ProgressBars::new(keys.len());
    let reports = check(data, &keys, args.deep, &selection.dataset_options(), &|e| {
        bars.event(e)
    });
    bars.finish();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&reports))?);
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
    decoded: Mutex<std::collections::BTreeMap<String, ProgressBar>>,
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
        }
    }

    fn event(&self, event: CheckEvent) {
        let Ok(mut decoded) = self.decoded.lock() else {
            return;
        };
        match event {
            CheckEvent::Started { .. } => {}
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
            for (name, reason) in unreadable.iter().take(10) {
                println!("{:18}   {name}: {reason}", "");
            }
            if unreadable.len() > 10 {
                println!("{:18}   and {} more", "", unreadable.len() - 10);
            }
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

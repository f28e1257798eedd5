//! The measured tables of `docs/reference/results.md`, made from the runs in the files beside it.
//!
//! `docs/reference/results/<table>.csv` has the lines of `runs.csv` of `mtil-bench reproduce
//! <table>`, and this test makes the tables of the page from them. With `UPDATE_DOCS=1` it writes
//! the page.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use mtil_engine::method::Tuned;

use super::{figures::cell, group::Spread, paired::Difference};

/// The methods of this project whose differences from [`OTHERS`] are printed.
const OURS: [&str; 3] = ["gnsp", "gnsp-anchored", "gnsp-update"];
const OTHERS: [&str; 5] = ["finetune", "wise-ft", "er", "zscl", "lora"];

/// The figures of a run, by column of `runs.csv`.
struct Run {
    method: String,
    seed: u64,
    figures: BTreeMap<String, f64>,
}

fn reference() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference")
}

fn read(table: &str) -> Vec<Run> {
    let path = reference().join(format!("results/{table}.csv"));
    let mut reader = csv::Reader::from_path(&path).unwrap();
    let head = reader.headers().unwrap().clone();
    let run = |record: csv::StringRecord| {
        let fields: BTreeMap<&str, &str> = head.iter().zip(record.iter()).collect();
        let numbers = fields
            .iter()
            .filter(|(key, value)| **key != "method" && !value.is_empty());
        Run {
            method: fields["method"].to_owned(),
            seed: fields["seed"].parse().unwrap(),
            figures: numbers
                .map(|(key, v)| ((*key).to_owned(), v.parse().unwrap()))
                .collect(),
        }
    };
    reader
        .records()
        .map(|record| run(record.unwrap()))
        .collect()
}

/// Runs by method, with `@published` as part of its name.
fn by_method(runs: &[Run]) -> BTreeMap<&str, Vec<&Run>> {
    let mut methods: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        let of_method = methods.entry(run.method.as_str()).or_default();
        let twice = of_method.iter().any(|other| other.seed == run.seed);
        assert!(
            !twice,
            "{} with seed {} is there twice",
            run.method, run.seed
        );
        of_method.push(run);
    }
    methods
}

fn spread(runs: &[&Run], column: &str) -> Option<Spread> {
    let values: Option<Vec<f64>> = runs
        .iter()
        .map(|r| r.figures.get(column).copied())
        .collect();
    Spread::from_values(&values?)
}

fn average(runs: &[&Run]) -> f64 {
    spread(runs, "Average").map_or(0.0, |s| s.mean)
}

/// The figures of all methods: tuned rows by Average, then those of published settings.
fn figures(runs: &[Run]) -> String {
    let columns = [
        ("Transfer", 1),
        ("Average", 1),
        ("Last", 1),
        ("diagonal", 1),
        ("BWT", 1),
        ("gap", 3),
        ("margin", 1),
        ("R@1", 1),
        ("seconds", 0),
    ];
    let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    let published = |name: &str| name.ends_with("@published");
    let methods = by_method(runs);
    let mut rows: Vec<(&str, Vec<&Run>)> = methods.into_iter().collect();
    rows.sort_by(|(a, of_a), (b, of_b)| {
        (published(a), *a != "zero-shot")
            .cmp(&(published(b), *b != "zero-shot"))
            .then(average(of_b).total_cmp(&average(of_a)))
    });
    let tuned = &Tuned::of("mini").unwrap().methods;
    let mut text = format!(
        "| method | settings | seeds | {} | MB kept |\n|{}\n",
        titles.join(" | "),
        "---|".repeat(columns.len() + 4)
    );
    for (name, runs) in rows {
        let settings = match (name, published(name)) {
            ("zero-shot", _) => "–",
            (_, true) => "published",
            (name, _) if tuned.contains_key(name) => "tuned",
            _ => "not tuned",
        };
        let mut cells: Vec<String> = columns
            .iter()
            .map(|(column, d)| cell(spread(&runs, column), *d))
            .collect();
        let kept = spread(&runs, "bytes_kept").map(|kept| Spread {
            mean: kept.mean / 1e6,
            sd: None,
        });
        cells.push(cell(kept, 2));
        let method = name.trim_end_matches("@published");
        text += &format!(
            "| `{method}` | {settings} | {} | {} |\n",
            runs.len(),
            cells.join(" | ")
        );
    }
    text
}

/// A few figures of the methods that the first page compares, by Average.
fn summary(runs: &[Run]) -> String {
    let columns = [
        ("Transfer", 1),
        ("Average", 1),
        ("Last", 1),
        ("gap", 3),
        ("R@1", 1),
    ];
    let methods = by_method(runs);
    let mut rows: Vec<(&str, &Vec<&Run>)> = OURS
        .iter()
        .chain(&OTHERS)
        .chain(&["zero-shot"])
        .filter_map(|name| Some((*name, methods.get(name)?)))
        .collect();
    rows.sort_by(|(a, of_a), (b, of_b)| {
        (*a != "zero-shot")
            .cmp(&(*b != "zero-shot"))
            .then(average(of_b).total_cmp(&average(of_a)))
    });
    let mut text =
        "| method | Transfer | Average | Last | modality gap | R@1 |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for (name, runs) in rows {
        let name = match name {
            "zero-shot" => "no training".to_owned(),
            name => format!("`{name}`"),
        };
        let cells = columns.map(|(column, decimals)| cell(spread(runs, column), decimals));
        text += &format!("| {name} | {} |\n", cells.join(" | "));
    }
    text
}

/// Differences of a figure between methods, paired over seeds, with 95 % intervals.
fn differences(runs: &[Run], figure: &str) -> String {
    let methods = by_method(runs);
    let mut text = format!(
        "| {figure}: row minus column | `{}` |\n|{}\n",
        OTHERS.join("` | `"),
        "---|".repeat(OTHERS.len() + 1)
    );
    for row in OURS {
        let cells = OTHERS.map(|column| {
            let pairs = methods.get(row).into_iter().flatten().filter_map(|a| {
                let b = methods.get(column)?.iter().find(|b| b.seed == a.seed)?;
                Some(a.figures.get(figure)? - b.figures.get(figure)?)
            });
            difference(Difference::from_values(&pairs.collect::<Vec<_>>()))
        });
        text += &format!("| `{row}` | {} |\n", cells.join(" | "));
    }
    text
}

fn difference(difference: Option<Difference>) -> String {
    let Some(found) = difference else {
        return "–".to_owned();
    };
    let mean = format!("{:+.1}", found.mean);
    match (found.interval, found.separated()) {
        (Some((low, high)), Some(true)) => format!("**{mean}** ({low:+.1}, {high:+.1})"),
        (Some((low, high)), _) => format!("{mean} ({low:+.1}, {high:+.1})"),
        (None, _) => format!("{mean} (one seed)"),
    }
}

/// Replaces the text between the marks `<!-- name -->` and `<!-- end of name -->`.
fn replace(page: &str, name: &str, text: &str) -> String {
    let (start, end) = (
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let (before, rest) = page
        .split_once(&start)
        .unwrap_or_else(|| panic!("no mark {start}"));
    let (_, after) = rest
        .split_once(&end)
        .unwrap_or_else(|| panic!("no mark {end}"));
    format!("{before}{start}\n{text}\n{end}{after}")
}

/// Checks that a page is as made, or writes it.
fn check(path: &Path, page: &str, made: &str) {
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, made).unwrap();
    } else {
        assert!(
            made == page,
            "{} differs from the runs in docs/reference/results: set UPDATE_DOCS=1 and repeat",
            path.display()
        );
    }
}

#[test]
fn tables_of_the_pages_are_those_of_the_measured_runs() {
    let results = reference().join("results.md");
    let Ok(page) = fs::read_to_string(&results) else {
        eprintln!("skipped: {} is not part of the package", results.display());
        return;
    };
    let mut made = page.clone();
    for table in ["mini", "mini-reversed", "mini-mixed", "mini-conflict"] {
        if !made.contains(&format!("<!-- figures of {table} -->")) {
            continue;
        }
        let runs = read(table);
        made = replace(&made, &format!("figures of {table}"), &figures(&runs));
        for figure in ["Transfer", "Average", "Last"] {
            let name = format!("differences of {figure} in {table}");
            if made.contains(&format!("<!-- {name} -->")) {
                made = replace(&made, &name, &differences(&runs, figure));
            }
        }
    }
    check(&results, &page, &made);
    let readme = reference().join("../../README.md");
    let page = fs::read_to_string(&readme).unwrap();
    let made = replace(&page, "results of mini", &summary(&read("mini")));
    check(&readme, &page, &made);
}

//! All figures of the methods with their standard deviation over the seeds, as rows of text.

use super::group::{Figures, Group, Spread};
use super::load::{RunData, Status};

const HEAD: [&str; 12] = [
    "method", "seeds", "Transfer", "Average", "Last", "diagonal", "BWT", "gap", "margin", "R@1",
    "seconds", "MB kept",
];

/// Returns the head and one row per method: accuracies in %, other figures after the last task.
pub(super) fn rows(groups: &[Group<'_>]) -> Vec<Vec<String>> {
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    for group in groups {
        let runs = Group::counted(&group.runs);
        let unfinished = match group.status() {
            Status::Partial => " (unfinished)",
            _ => "",
        };
        let mut row = vec![
            format!("{}{unfinished}", group.name),
            runs.len().to_string(),
        ];
        row.extend(cells(&group.figures));
        rows.push(row);
    }
    rows
}

/// Returns [`rows`] as a Markdown table.
pub(super) fn markdown(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        match (at, row.split_first()) {
            (1.., Some((name, cells))) => {
                text += &format!("| `{name}` | {} |\n", cells.join(" | "));
            }
            _ => text += &format!("| {} |\n|{}\n", row.join(" | "), "---|".repeat(row.len())),
        }
    }
    text
}

/// Returns rows of equal length as CSV.
pub(super) fn csv(rows: &[Vec<String>]) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer
            .write_record(row)
            .expect("rows of equal length in memory");
    }
    let bytes = writer.into_inner().expect("a vector in memory");
    String::from_utf8(bytes).expect("made of strings")
}

const RUN_HEAD: [&str; 13] = [
    "method",
    "seed",
    "Transfer",
    "Average",
    "Last",
    "diagonal",
    "BWT",
    "gap_start",
    "gap",
    "margin",
    "R@1",
    "seconds",
    "bytes_kept",
];

/// Returns the head and one row per finished run: accuracies in %, `gap_start` before the first
/// task, other figures after the last one. A figure that a run lacks is empty.
pub(super) fn run_rows(groups: &[Group<'_>]) -> Vec<Vec<String>> {
    let mut rows = vec![RUN_HEAD.map(str::to_owned).to_vec()];
    for group in groups
        .iter()
        .filter(|group| group.status() != Status::Partial)
    {
        let runs = Group::counted(&group.runs).into_iter();
        rows.extend(runs.map(|run| run_row(&group.name, run)));
    }
    rows
}

fn run_row(name: &str, run: &RunData) -> Vec<String> {
    let figures = Figures::from_runs(&[run]);
    let field = |spread: Option<Spread>, decimals: usize| {
        spread.map_or(String::new(), |s| format!("{:.decimals$}", s.mean))
    };
    vec![
        name.to_owned(),
        run.file.seed.to_string(),
        field(figures.transfer, 4),
        field(figures.average, 4),
        field(figures.last, 4),
        field(figures.diagonal, 4),
        field(figures.bwt, 4),
        field(figures.gap.map(|(first, _)| first), 5),
        field(figures.gap.map(|(_, last)| last), 5),
        field(figures.margin, 4),
        field(figures.recall.map(|(_, last)| last), 4),
        field(figures.seconds, 1),
        field(figures.kept, 0),
    ]
}

/// Returns a figure with its standard deviation, if there is one.
pub(super) fn cell(spread: Option<Spread>, decimals: usize) -> String {
    match spread {
        None => "–".to_owned(),
        Some(Spread { mean, sd: None }) => format!("{mean:.decimals$}"),
        Some(Spread { mean, sd: Some(sd) }) => format!("{mean:.decimals$} ± {sd:.decimals$}"),
    }
}

fn cells(figures: &Figures) -> [String; 10] {
    let end = |ends: Option<(Spread, Spread)>| ends.map(|(_, last)| last);
    // The state kept depends on the method only, so its standard deviation would be noise.
    let kept = figures.kept.map(|kept| Spread {
        mean: kept.mean / 1e6,
        sd: None,
    });
    [
        cell(figures.transfer, 1),
        cell(figures.average, 1),
        cell(figures.last, 1),
        cell(figures.diagonal, 1),
        cell(figures.bwt, 1),
        cell(end(figures.gap), 3),
        cell(figures.margin, 1),
        cell(end(figures.recall), 1),
        cell(figures.seconds, 0),
        cell(kept, 2),
    ]
}

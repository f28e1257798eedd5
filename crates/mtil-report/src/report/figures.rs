//! All figures of the methods with their standard deviation over the seeds, as rows of text.

use super::group::{Figures, Group, Spread};
use super::load::Status;

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

fn cells(figures: &Figures) -> [String; 10] {
    let cell = |spread: Option<Spread>, decimals: usize| match spread {
        None => "–".to_owned(),
        Some(Spread { mean, sd: None }) => format!("{mean:.decimals$}"),
        Some(Spread { mean, sd: Some(sd) }) => format!("{mean:.decimals$} ± {sd:.decimals$}"),
    };
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

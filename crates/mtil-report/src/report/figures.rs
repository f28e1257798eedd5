//! Markdown table of all figures, with their standard deviation over the seeds.

use super::group::{Figures, Group, Spread};
use super::load::{Loaded, Status};

const HEAD: &str = "| method | seeds | Transfer | Average | Last | diagonal | BWT | gap | margin \
    | R@1 | seconds | MB kept |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n";

/// Returns the table with one line per method: accuracies in %, other figures after the last task.
pub(super) fn markdown(loaded: &Loaded, groups: &[Group<'_>]) -> String {
    let mut text = HEAD.to_owned();
    for group in groups {
        let runs = Group::counted(&group.runs);
        let unfinished = if group.status() == Status::Partial {
            " (unfinished)"
        } else {
            ""
        };
        let cells = cells(&group.figures).join(" | ");
        text += &format!(
            "| `{}`{unfinished} | {} | {cells} |\n",
            group.name,
            runs.len()
        );
    }
    for note in &loaded.notes {
        text += &format!("\n{note}\n");
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

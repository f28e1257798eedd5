//! Section with the training losses.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::charts::range;
use crate::format::plural;
use crate::report::group::Group;
use crate::report::load::{RunData, Step};
use crate::svg::{Line, LineChart, colour_class};

/// Maximum number of points of a loss curve, about one per pixel.
const CURVE_POINTS: usize = 240;

/// Number of charts that are not folded.
const SHOWN: usize = 8;

/// First palette index of the loss terms, whose colours methods rarely have.
const PARTS_FROM: usize = 5;

/// Averages a curve over equal intervals of the run, which bounds the size of the page.
fn downsample(
    steps: &[Step],
    tasks: usize,
    value: impl Fn(&Step) -> Option<f64>,
) -> Vec<(f64, f64)> {
    let mut buckets: BTreeMap<usize, (f64, f64, f64)> = BTreeMap::new();
    let per_task = (CURVE_POINTS / tasks.max(1)).max(2) as f64;
    for s in steps {
        let Some(v) = value(s).filter(|v| v.is_finite()) else {
            continue;
        };
        // A task's last step is at its end, the upper edge of the task's last bucket.
        let bucket = ((s.at * per_task).ceil() as usize).saturating_sub(1);
        let b = buckets.entry(bucket).or_default();
        *b = (b.0 + s.at, b.1 + v, b.2 + 1.0);
    }
    buckets.values().map(|(x, y, n)| (x / n, y / n)).collect()
}

pub(super) fn losses(groups: &[Group<'_>], order: &[String]) -> Markup {
    let runs: Vec<(&Group<'_>, &RunData)> = groups
        .iter()
        .filter_map(|g| {
            let counted = Group::counted(&g.runs);
            Some((g, *counted.iter().find(|r| !r.steps.is_empty())?))
        })
        .collect();
    if runs.is_empty() {
        return html! {};
    }
    let tasks = order.len();
    let mut names: Vec<&String> = Vec::new();
    for (_, r) in &runs {
        for s in &r.steps {
            for name in s.parts.keys() {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    // A single term equals the total.
    let parts_of = |r: &RunData| -> Vec<&String> {
        let used: Vec<&String> = names
            .iter()
            .copied()
            .filter(|n| r.steps.iter().any(|s| s.parts.contains_key(*n)))
            .collect();
        if used.len() > 1 { used } else { Vec::new() }
    };
    let grid = |runs: &[(&Group<'_>, &RunData)]| {
        html! {
            div class={ "grid-charts" @if matches!(runs.len(), 3 | 5 | 6 | 9) { " thirds" } } {
                @for (g, r) in runs { (chart(g, r, &parts_of(r), &names, tasks)) }
            }
        }
    };
    let shown = runs.len().min(SHOWN);
    html! {
        section {
            h2 { "Training loss" }
            p {
                "From the first step of the first task to the last of the last; a thin vertical "
                "line separates tasks. Each method has its own scale, because the losses have "
                "different terms."
            }
            ul.legend aria-label="Legend" {
                li { (swatch_line(None)) " total" }
                @for (i, n) in names.iter().enumerate() {
                    @if runs.iter().any(|(_, r)| parts_of(r).contains(n)) {
                        li { (swatch_line(Some(i + PARTS_FROM))) " " (n) }
                    }
                }
            }
            (grid(&runs[..shown]))
            @if shown < runs.len() {
                details {
                    summary { "Losses of " (plural(runs.len() - shown, "more method")) }
                    (grid(&runs[shown..]))
                }
            }
        }
    }
}

/// Returns the chart of a run: its terms, each with the colour of its place in `names`, and the
/// total.
fn chart(g: &Group<'_>, r: &RunData, parts: &[&String], names: &[&String], tasks: usize) -> Markup {
    let line = |label: &str, colour, strong, points| Line {
        label: label.to_owned(),
        colour,
        points,
        strong,
        faint: false,
        markers: false,
    };
    let mut lines: Vec<Line> = parts
        .iter()
        .map(|name| {
            let colour = names.iter().position(|n| n == name).map(|i| i + PARTS_FROM);
            let points = downsample(&r.steps, tasks, |s| s.parts.get(*name).copied());
            line(name, colour, false, points)
        })
        .collect();
    let total = downsample(&r.steps, tasks, |s| Some(s.loss));
    lines.push(line("total", None, true, total));
    html! {
        figure {
            figcaption {
                b { (g.name) }
                @if g.runs.len() > 1 { small { " seed " (r.file.seed) } }
            }
            ({
                LineChart {
                    title: format!("Training loss of {}", g.name),
                    x: (0.0, tasks as f64),
                    y: range(lines.iter(), &[0.0]),
                    x_ticks: (0..tasks).map(|t| (t as f64 + 0.5, (t + 1).to_string())).collect(),
                    borders: (1..tasks).map(|t| t as f64).collect(),
                    lines,
                    decimals: 0,
                    ..LineChart::default()
                }.render()
            })
        }
    }
}

fn swatch_line(colour: Option<usize>) -> Markup {
    html! {
        svg class={ "swatch " (colour_class(colour)) } viewBox="0 0 26 12" width="26" height="12"
            aria-hidden="true" {
            path class="ln" d="M1 6H25" {}
        }
    }
}

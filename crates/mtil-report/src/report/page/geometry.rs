//! Section with the modality gap and retrieval.

use maud::{Markup, html};

use super::charts::{legend, line, range, stage_ticks};
use crate::format::decimal;
use crate::report::group::Group;
use crate::report::load::Status;
use crate::svg::{Line, LineChart};
use mtil_engine::{metrics::Recall, run::EvaluationRecord};

/// Accessor of recall at a K.
type RecallAt = fn(&Recall) -> f64;
/// Accessor of a measure of the held-out pairs.
type FigureAt = fn(&EvaluationRecord) -> Option<f64>;

/// Measures that explain the modality gap: name, accessor, decimals.
const FIGURES: [(&str, FigureAt, usize); 5] = [
    ("Margin of matching pairs, logits", |e| e.margin, 1),
    // Logits are 100 times the cosines.
    (
        "Cosine of matching pairs",
        |e| Some(e.geometry?.logits.positive / 100.0),
        3,
    ),
    (
        "Cosine of other pairs",
        |e| Some(e.geometry?.logits.negative? / 100.0),
        3,
    ),
    ("Norm of the mean image", |e| e.geometry?.image_mean, 3),
    ("Norm of the mean text", |e| e.geometry?.text_mean, 3),
];

pub(super) fn geometry(groups: &[Group<'_>], tasks: usize) -> Markup {
    let with = |f: &dyn Fn(&Group<'_>, usize) -> Option<f64>| -> Vec<Line> {
        groups
            .iter()
            .filter(|g| g.status() != Status::ZeroShot)
            .map(|g| {
                let at = |s: usize| Some((s as f64, f(g, s)?));
                line(g, (0..=tasks).filter_map(at).collect())
            })
            .filter(|l| !l.points.is_empty())
            .collect()
    };
    let gap = with(&|g, s| g.gap(s));
    let kinds: [(&str, RecallAt); 3] = [("R@1", |r| r.r1), ("R@5", |r| r.r5), ("R@10", |r| r.r10)];
    let mut recalls: Vec<(String, Vec<Line>)> = Vec::new();
    for (direction, texts) in [("caption → image", false), ("image → caption", true)] {
        for (name, k) in kinds {
            let lines = with(&|g, s| g.recall(s, k, texts));
            if !lines.is_empty() {
                recalls.push((format!("{name}, {direction}"), lines));
            }
        }
    }
    let figures: Vec<(&str, Vec<Line>, usize)> = FIGURES
        .into_iter()
        .map(|(name, f, decimals)| (name, with(&|g, s| g.pair_measure(s, f)), decimals))
        .filter(|(_, lines, _)| !lines.is_empty())
        .collect();
    if gap.is_empty() && recalls.is_empty() {
        return html! {};
    }
    let shown: Vec<&Group<'_>> = groups
        .iter()
        .filter(|g| {
            g.status() != Status::ZeroShot && g.gap(0).or(g.recall(0, |r| r.r1, true)).is_some()
        })
        .collect();
    let (lo, hi) = range(recalls.iter().flat_map(|(_, l)| l), &[]);
    html! {
        section {
            h2 { "Modality gap and retrieval" }
            p {
                "Measured on held-out image–caption pairs, after 0, 1, 2, … tasks. R@k: % of "
                "queries whose match is among the first k found. The dashed line is the pretrained "
                "model."
            }
            (legend(&shown))
            div.grid-charts {
                @if !gap.is_empty() {
                    @let level = pretrained_level(&gap);
                    figure class=[(!recalls.is_empty()).then_some("tall")] {
                        figcaption { b { "Modality gap" } " — closer to the dashed line is better" }
                        ({
                            LineChart {
                                title: "Modality gap after each task".into(),
                                height: if recalls.is_empty() { 170.0 } else { 372.0 },
                                x: (0.0, tasks as f64),
                                y: range(gap.iter(), &[]),
                                x_ticks: stage_ticks(tasks),
                                level,
                                lines: gap,
                                decimals: 2,
                                ..LineChart::default()
                            }.render()
                        })
                    }
                }
                @for (name, lines) in &recalls {
                    @let level = pretrained_level(lines);
                    figure {
                        figcaption { b { (name) } }
                        ({
                            LineChart {
                                title: format!("Retrieval {name}, after each task"),
                                x: (0.0, tasks as f64),
                                y: (lo.max(0.0), hi.min(100.0)),
                                x_ticks: stage_ticks(tasks),
                                level,
                                lines: lines.clone(),
                                decimals: 0,
                                unit: " %",
                                ..LineChart::default()
                            }.render()
                        })
                    }
                }
            }
            (decomposition(&figures, tasks))
            (values_table(&shown, tasks))
        }
    }
}

/// Returns the reference line of the pretrained model, the first point of any line.
fn pretrained_level(lines: &[Line]) -> Option<(f64, String)> {
    let first = lines[0].points.first()?;
    Some((first.1, "pretrained".to_owned()))
}

/// Charts of the measures that explain the modality gap.
fn decomposition(figures: &[(&str, Vec<Line>, usize)], tasks: usize) -> Markup {
    if figures.is_empty() {
        return html! {};
    }
    html! {
        details {
            summary { "Decomposition of the modality gap" }
            p {
                "The gap is the distance between the mean image and the mean text embedding. It "
                "does not change while neither mean moves and neither cone widens."
            }
            div.grid-charts {
                @for (name, lines, decimals) in figures {
                    @let level = pretrained_level(lines);
                    figure {
                        figcaption { b { (name) } }
                        ({
                            LineChart {
                                title: format!("{name}, after each task"),
                                x: (0.0, tasks as f64),
                                y: range(lines.iter(), &[]),
                                x_ticks: stage_ticks(tasks),
                                level,
                                lines: lines.clone(),
                                decimals: *decimals,
                                ..LineChart::default()
                            }.render()
                        })
                    }
                }
            }
        }
    }
}

fn decimal_or_dash(value: Option<f64>, decimals: usize) -> String {
    value.map_or("–".into(), |v| decimal(v, decimals, false))
}

/// Formats the recall at 1 of both directions, caption → image first.
fn recall_at_1(g: &Group<'_>, s: usize) -> String {
    let recall = |image_to_text| g.recall(s, |r| r.r1, image_to_text);
    match (recall(false), recall(true)) {
        (Some(a), Some(b)) => format!("{} / {}", decimal(a, 1, false), decimal(b, 1, false)),
        _ => "–".into(),
    }
}

/// Table of the values in the charts.
fn values_table(groups: &[&Group<'_>], tasks: usize) -> Markup {
    html! {
        details {
            summary { "Table of the values" }
            div.scroll tabindex="0" role="region" aria-label="Modality gap and retrieval by stage" {
                table.plain {
                    caption {
                        "Modality gap and recall at 1 (caption → image / image → caption, %) "
                        "after each number of trained tasks"
                    }
                    thead { tr {
                        th scope="col" { "Method" }
                        th scope="col" { "" }
                        @for s in 0..=tasks { th scope="col" { (s) } }
                    } }
                    tbody {
                        @for g in groups {
                            @let has = |f: FigureAt| g.pair_measure(0, f).is_some();
                            @let rows = FIGURES.iter().filter(|(_, f, _)| has(*f));
                            tr {
                                th scope="row" rowspan=(2 + rows.clone().count()) { (g.name) }
                                td { "gap" }
                                @for s in 0..=tasks { td { (decimal_or_dash(g.gap(s), 3)) } }
                            }
                            tr {
                                td { "R@1" }
                                @for s in 0..=tasks {
                                    td { (recall_at_1(g, s)) }
                                }
                            }
                            @for (name, f, decimals) in rows {
                                tr {
                                    td { (name) }
                                    @for s in 0..=tasks {
                                        td { (decimal_or_dash(g.pair_measure(s, *f), *decimals)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

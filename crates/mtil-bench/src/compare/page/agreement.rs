//! Charts of the differences between results, and the replays of training runs.

use maud::{Markup, html};

use super::{Series, has_points, legend, rows};
use crate::compare::record::{Comparison, REFERENCE, ReplayOutcome, Size};
use crate::compare::words::{self, NONE, sentence_start};
use mtil_report::svg::{Axis, DotPlot, Group, Mark};

pub(super) fn agreement(c: &Comparison, series: &[Series<'_>]) -> Markup {
    let others: Vec<Series<'_>> = series
        .iter()
        .filter(|s| s.device.word != REFERENCE)
        .map(|s| Series {
            device: s.device,
            colour: s.colour,
        })
        .collect();
    let tolerance = c.facts.tolerance;
    let chart = |size: Size| {
        let groups: Vec<Group> = c
            .works(Some(size))
            .into_iter()
            .map(|work| Group {
                name: sentence_start(&work.to_string()),
                rows: rows(c, &others, size, work, |m, f| {
                    let v = f.difference?;
                    let bad = c.agrees(m) == Some(false);
                    let mark = Mark {
                        at: v,
                        open: false,
                        tip: format!("{size}, {work} on {}: {}", m.device, words::difference(v)),
                    };
                    Some((vec![mark], None, words::difference(v), bad))
                }),
            })
            .filter(|g| has_points(std::slice::from_ref(g)))
            .collect();
        let level = (tolerance > 0.0).then(|| {
            (
                tolerance,
                format!("tolerance {}", words::difference(tolerance)),
            )
        });
        has_points(&groups).then(|| {
            DotPlot {
                title: format!(
                    "Relative difference from {REFERENCE} of {size} by workload and device"
                ),
                axis: Axis::Log,
                axis_name: format!("relative difference from {REFERENCE}, logarithmic"),
                tick: tick_power,
                groups,
                level,
            }
            .render()
        })
    };
    let charts: Vec<(Size, Markup)> = c
        .sizes()
        .into_iter()
        .filter_map(|s| Some((s, chart(s)?)))
        .collect();
    html! {
        @if !charts.is_empty() || !c.replays.is_empty() {
            section {
                h2 { "Do the results agree?" }
                @if !charts.is_empty() {
                    p {
                        "The largest difference of a result from that of " (REFERENCE)
                        " in f32, divided by the largest result. Sums in another order differ by "
                        "rounding, about 1e-7 for each operation; the dashed line is the "
                        "tolerance, " (words::difference(tolerance)) "."
                    }
                    (legend(&others))
                    div.pair.charts {
                        @for (size, chart) in &charts {
                            figure {
                                figcaption { b { (size) } " — further left is better" }
                                (chart)
                            }
                        }
                    }
                }
                @if !c.replays.is_empty() { (replays(c)) }
            }
        }
    }
}

fn replays(c: &Comparison) -> Markup {
    html! {
        h3.apart { "The same training run on two devices" }
        p {
            "The losses of the first training steps. Rounding errors grow with every step, so any "
            "two devices diverge eventually."
        }
        div.scroll tabindex="0" role="region" aria-label="Replayed training runs" {
            table.plain.said {
                thead { tr {
                    th scope="col" { "Size" }
                    th scope="col" { "Recorded on" }
                    th scope="col" { "Replayed on" }
                    th scope="col" { "Steps" }
                    th scope="col" { "Compared" }
                    th scope="col" { "Largest relative difference" }
                    th scope="col" { "Tolerance" }
                    th scope="col" { "Result" }
                } }
                tbody {
                    @for r in &c.replays {
                        tr {
                            th scope="row" { (r.size) }
                            td.name { (r.recorded_on) } td.name { (r.replayed_on) }
                            td { (r.updates) } td { "first " (r.compared) }
                            @match &r.outcome {
                                ReplayOutcome::Compared { difference, tolerance } => {
                                    td { (words::difference(*difference)) }
                                    td { (words::difference(*tolerance)) }
                                    td {
                                        @if r.agreed() == Some(true) { "agreed" }
                                        @else { b.bad { "not agreed" } }
                                    }
                                },
                                ReplayOutcome::Missing(missing) => {
                                    td { (NONE) } td { (NONE) } td { (words::reason(missing)) }
                                },
                            }
                        }
                    }
                }
            }
        }
    }
}

fn tick_power(v: f64) -> String {
    format!("{v:.0e}")
}

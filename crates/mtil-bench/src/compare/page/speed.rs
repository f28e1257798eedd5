//! Charts of speeds, and of the durations of the first call.

use maud::{Markup, html};

use super::{Series, has_points, legend, rows};
use crate::compare::record::{Comparison, REFERENCE, Size, Unit, Workload};
use crate::compare::words::{self, sentence_start};
use mtil_report::svg::{Axis, DotPlot, Group, Mark};

pub(super) fn speeds(c: &Comparison, series: &[Series<'_>]) -> Markup {
    let chart = |work: Workload| {
        let unit = work.unit();
        let groups: Vec<Group> = c
            .sizes()
            .into_iter()
            .map(|size| Group {
                name: size.to_string(),
                rows: rows(c, series, size, work, |m, _| {
                    let r = m.speed()?;
                    let mut tip = format!(
                        "{size}, {work} on {}: {} (range {})",
                        m.device,
                        words::speed(r.median, unit),
                        words::range(r)
                    );
                    let times = c.times_reference(m).filter(|_| m.device != REFERENCE);
                    if let Some(times) = times {
                        tip += &format!(", {} times {REFERENCE}", words::number(times));
                    }
                    let mark = Mark {
                        at: r.median,
                        open: false,
                        tip,
                    };
                    let value = match unit {
                        Unit::Seconds => words::duration(r.median),
                        _ => words::number(r.median),
                    };
                    let bad = c.agrees(m) == Some(false);
                    let value = if bad { value + " (differs)" } else { value };
                    Some((vec![mark], Some((r.low, r.high)), value, bad))
                }),
            })
            .filter(|g| !g.rows.is_empty())
            .collect();
        has_points(&groups).then(|| {
            DotPlot {
                title: format!("Speed of {work} by size and device, {unit}"),
                axis: Axis::Log,
                axis_name: format!("{unit}, logarithmic"),
                tick: match unit {
                    Unit::Seconds => words::round_duration,
                    _ => words::round_number,
                },
                groups,
                level: None,
            }
            .render()
        })
    };
    html! {
        section {
            h2 { "Speed" }
            p {
                "The axes are logarithmic: equal distances are equal ratios. Points are medians, "
                "thin lines go from the slowest to the fastest repetition."
            }
            (legend(series))
            div.pair.charts {
                @for work in c.works(None) {
                    @if let Some(chart) = chart(work) {
                        figure {
                            figcaption {
                                b { (sentence_start(&work.to_string())) } ", " (work.unit()) " — "
                                @if work.unit().more_is_better() { "further right is better" }
                                @else { "further left is better" }
                                ". " (work.about())
                            }
                            (chart)
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn first_calls(c: &Comparison, series: &[Series<'_>]) -> Markup {
    let chart = |size: Size| {
        let groups: Vec<Group> = c
            .works(Some(size))
            .into_iter()
            .map(|work| Group {
                name: sentence_start(&work.to_string()),
                rows: rows(c, series, size, work, |m, f| {
                    let (steady, first) = (f.duration()?.median, f.first_seconds?);
                    let mark = |at: f64, open: bool, what: &str| Mark {
                        at,
                        open,
                        tip: format!(
                            "{size}, {work} on {}, {what}: {}",
                            m.device,
                            words::duration(at)
                        ),
                    };
                    let marks = vec![
                        mark(first, true, "first call"),
                        mark(steady, false, "later"),
                    ];
                    let value = format!("{} → {}", words::duration(first), words::duration(steady));
                    Some((
                        marks,
                        Some((steady.min(first), steady.max(first))),
                        value,
                        false,
                    ))
                }),
            })
            .filter(|g| has_points(std::slice::from_ref(g)))
            .collect();
        has_points(&groups).then(|| {
            DotPlot {
                title: format!(
                    "First call and later calls of {size} by workload and device, in seconds"
                ),
                axis: Axis::Log,
                axis_name: "duration of a call, logarithmic".into(),
                tick: words::round_duration,
                groups,
                level: None,
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
        @if !charts.is_empty() {
            section {
                h2 { "The first call" }
                p {
                    "Hollow: the first call of a process, which compiles and tunes kernels. Solid: "
                    "the median of the later calls. The values are first → later. Tuning results "
                    "may be cached on disk, so that a later process starts faster."
                }
                (legend(series))
                div.pair.charts {
                    @for (size, chart) in &charts {
                        figure {
                            figcaption { b { (size) } " — further left is better" }
                            (chart)
                        }
                    }
                }
            }
        }
    }
}

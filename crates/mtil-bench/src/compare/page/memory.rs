//! Charts of peak memory.

use maud::{Markup, html};

use super::{Series, has_points, legend};
use crate::compare::record::{Comparison, Figures, Size, Workload};
use crate::compare::words;
use mtil_report::svg::{Axis, DotPlot, Group, Mark, Row};

pub(super) fn memory(c: &Comparison, series: &[Series<'_>]) -> Markup {
    /// Returns the memory of the process or of the device.
    type Bytes = fn(&Figures) -> Option<u64>;
    let chart = |title: &str, get: Bytes| {
        let peak = |word: &str, size: Size| {
            let of = |work: Workload| Some((get(c.get(word, size, work)?.figures()?)?, work));
            Workload::ALL
                .into_iter()
                .filter_map(of)
                .max_by_key(|(b, _)| *b)
        };
        let groups: Vec<Group> = c
            .sizes()
            .into_iter()
            .map(|size| Group {
                name: size.to_string(),
                rows: series
                    .iter()
                    .filter_map(|s| {
                        let (bytes, work) = peak(&s.device.word, size)?;
                        let mark = Mark {
                            at: bytes as f64,
                            open: false,
                            tip: format!(
                                "{size} on {}: {}, {work}",
                                s.device.word,
                                words::bytes(bytes)
                            ),
                        };
                        Some(Row {
                            label: s.device.word.clone(),
                            colour: s.colour,
                            marks: vec![mark],
                            span: None,
                            value: words::bytes(bytes),
                            bad: false,
                        })
                    })
                    .collect(),
            })
            .filter(|g| !g.rows.is_empty())
            .collect();
        has_points(&groups).then(|| {
            DotPlot {
                title: format!("{title} by size and device"),
                axis: Axis::FromZero,
                axis_name: "peak memory".into(),
                tick: words::round_bytes,
                groups,
                level: None,
            }
            .render()
        })
    };
    let kinds: [(&str, Bytes); 2] = [
        ("Memory of the process", |f| f.host_bytes),
        ("Memory on the device", |f| f.device_bytes),
    ];
    let charts: Vec<(&str, Markup)> = kinds
        .into_iter()
        .filter_map(|(title, get)| Some((title, chart(title, get)?)))
        .collect();
    html! {
        @if !charts.is_empty() {
            section {
                h2 { "Memory" }
                p {
                    "The maximum over the measured workloads; hover a bar to see which one it was. "
                    "A device without its own memory uses that of the process."
                }
                (legend(series))
                div.pair.charts {
                    @for (title, chart) in &charts {
                        figure {
                            figcaption { b { (title) } " — shorter is better" }
                            (chart)
                        }
                    }
                }
            }
        }
    }
}

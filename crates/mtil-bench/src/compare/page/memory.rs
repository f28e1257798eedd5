//! Peak memory.

use maud::{Markup, html};

use super::{Shown, has_points, legend};
use crate::compare::record::{Comparison, Figures, Size, Work};
use crate::compare::words;
use mtil_report::svg::{Axis, Group, Mark, Row, Rows};

pub(super) fn memory(c: &Comparison, shown: &[Shown<'_>]) -> Markup {
    /// Picks one of the memories.
    type Bytes = fn(&Figures) -> Option<u64>;
    let chart = |title: &str, get: Bytes| {
        let peak = |word: &str, size: Size| {
            let of = |work: Work| Some((get(c.get(word, size, work)?.figures()?)?, work));
            Work::ALL.into_iter().filter_map(of).max_by_key(|(b, _)| *b)
        };
        let groups: Vec<Group> = c
            .sizes()
            .into_iter()
            .map(|size| Group {
                name: size.to_string(),
                rows: shown
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
            Rows {
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
                p { "The highest of all works that were measured; which one it was is shown when a bar is pointed at. A device without its own memory uses that of the process." }
                (legend(shown))
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

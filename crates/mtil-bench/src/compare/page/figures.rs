//! Tables of all figures, and of the reasons for missing ones.

use maud::{Markup, html};

use super::{Series, sentence};
use crate::compare::record::{Comparison, Measurement, REFERENCE};
use crate::compare::words::{self, NONE};
use mtil_report::svg::swatch;

pub(super) fn missing(c: &Comparison, series: &[Series<'_>]) -> Markup {
    let colour = |word: &str| series.iter().find(|s| s.device.word == word)?.colour;
    let all: Vec<_> = c
        .measurements
        .iter()
        .filter_map(|m| Some((m, m.missing()?)))
        .collect();
    html! {
        @if !all.is_empty() {
            section {
                h2 { "Missing measurements" }
                div.scroll tabindex="0" role="region"
                    aria-label="Missing measurements and their reasons" {
                    table.plain.said {
                        thead { tr {
                            th scope="col" { "Device" }
                            th scope="col" { "Size" }
                            th scope="col" { "Workload" }
                            th scope="col" { "Reason" }
                        } }
                        tbody {
                            @for (m, missing) in all {
                                tr {
                                    th scope="row" { (swatch(colour(&m.device))) " " (m.device) }
                                    td.name { (m.size) } td.name { (m.work) }
                                    td { (sentence(&words::reason(missing))) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn figures(c: &Comparison, series: &[Series<'_>]) -> Markup {
    html! {
        section {
            h2 { "All figures" }
            p {
                "× " (REFERENCE) ": speed relative to " (REFERENCE)
                " at the same workload and size. A difference above the tolerance is "
                b.bad { "marked" } "."
            }
            @for size in c.sizes() {
                details open[c.sizes().len() == 1] {
                    summary { (size) }
                    div.scroll tabindex="0" role="region"
                        aria-label={ "All figures of " (size) } {
                        table.plain.figures {
                            thead { tr {
                                th scope="col" { "Workload" }
                                th scope="col" { "Device" }
                                th scope="col" { "Median" }
                                th scope="col" { "Range" }
                                th scope="col" { "Repetitions" }
                                th scope="col" { "× " (REFERENCE) }
                                th scope="col" { "Call" }
                                th scope="col" { "First call" }
                                th scope="col" { "Process memory" }
                                th scope="col" { "Device memory" }
                                th scope="col" { "Difference" }
                            } }
                            tbody {
                                @for work in c.works(Some(size)) {
                                    @let of_work: Vec<_> = series
                                        .iter()
                                        .filter_map(|s| {
                                            Some((s, c.get(&s.device.word, size, work)?))
                                        })
                                        .collect();
                                    @for (i, (s, m)) in of_work.iter().enumerate() {
                                        tr {
                                            @if i == 0 {
                                                th scope="rowgroup" rowspan=(of_work.len()) {
                                                    (work) br; small { (work.unit()) }
                                                }
                                            }
                                            td.name { (swatch(s.colour)) " " (m.device) }
                                            (figure_cells(c, m))
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
}

fn figure_cells(c: &Comparison, m: &Measurement) -> Markup {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.into());
    html! {
        @match (m.figures(), m.missing()) {
            (Some(f), _) => {
                td { (or_none(m.speed().map(|r| words::number(r.median)))) }
                td { (or_none(m.speed().map(words::range))) }
                td { (f.seconds.len()) }
                td { (or_none(c.times_reference(m).map(words::number))) }
                td { (or_none(f.duration().map(|r| words::duration(r.median)))) }
                td { (or_none(f.first_seconds.map(words::duration))) }
                td { (or_none(f.host_bytes.map(words::bytes))) }
                td { (or_none(f.device_bytes.map(words::bytes))) }
                td {
                    @let text = or_none(f.difference.map(words::difference));
                    @if c.agrees(m) == Some(false) { b.bad { (text) } } @else { (text) }
                }
            },
            (None, missing) => td.why colspan="9" {
                (missing.map(words::reason).unwrap_or_default())
            },
        }
    }
}

//! Table of the devices, and the commands that add backends to the build.

use maud::{Markup, html};

use super::{Series, sentence};
use crate::compare::record::{Comparison, DeviceState};
use crate::compare::words::{self, NONE};
use mtil_report::svg::swatch;

pub(super) fn devices(c: &Comparison, series: &[Series<'_>]) -> Markup {
    let colour = |word: &str| series.iter().find(|s| s.device.word == word);
    html! {
        section {
            h2 { "The devices" }
            p { (add_devices(c)) }
            div.scroll tabindex="0" role="region" aria-label="Devices" {
                table.plain.said {
                    thead { tr {
                        th scope="col" { "Device" }
                        th scope="col" { "Hardware" }
                        th scope="col" { "Precision" }
                        th scope="col" { "Memory" }
                        th scope="col" { "State" }
                    } }
                    tbody {
                        @for d in &c.devices {
                            @let usable = d.state == DeviceState::Usable;
                            tr {
                                th scope="row" {
                                    @if let Some(s) = colour(&d.word) { (swatch(s.colour)) " " }
                                    (d.word)
                                }
                                td { @if d.name.is_empty() { (NONE) } @else { (d.name) } }
                                td.name { @if usable { (d.precision) } @else { (NONE) } }
                                td.name {
                                    (d.memory_bytes.map_or_else(|| NONE.into(), words::bytes))
                                }
                                td {
                                    @match &d.state {
                                        DeviceState::NotCompiledIn { feature } => {
                                            "Not in this build: "
                                            code.command { (words::build_command(feature)) }
                                        },
                                        state => (sentence(&words::state(state))),
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

/// Returns the commands that add other backends to the build.
pub(super) fn add_devices(c: &Comparison) -> Markup {
    let features: Vec<&str> = c
        .devices
        .iter()
        .filter_map(|d| match &d.state {
            DeviceState::NotCompiledIn { feature } => Some(feature.as_str()),
            _ => None,
        })
        .collect();
    html! {
        "Each backend is a cargo feature. "
        @if features.is_empty() {
            "All of them are in this build."
        } @else {
            "To add one, or several with comma-separated features: "
            @for (i, feature) in features.iter().enumerate() {
                @if i > 0 { ", " }
                code.command { (words::build_command(feature)) }
            }
            "."
        }
    }
}

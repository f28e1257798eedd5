//! Section with the versions and settings of the runs.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::report::load::Loaded;

pub(super) fn settings(loaded: &Loaded) -> Markup {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (k, v) in loaded.runs.iter().flat_map(|r| &r.versions) {
        let all = versions.entry(k).or_default();
        if !all.contains(&v.as_str()) {
            all.push(v);
        }
    }
    html! {
        section {
            h2 { "Settings" }
            @if !versions.is_empty() {
                p {
                    "Versions: "
                    @for (i, (k, v)) in versions.iter().enumerate() {
                        @if i > 0 { ", " } (k) " " (v.join(" / "))
                    }
                    "."
                }
            }
            @for r in &loaded.runs {
                details {
                    summary { (r.label()) }
                    @match &r.config {
                        Some(text) => pre { code { (text) } },
                        None => p { "This run has no config.toml." },
                    }
                    @if !r.has_metrics {
                        p {
                            "This run has no metrics.json: gap, retrieval, time and memory are "
                            "unknown."
                        }
                    }
                }
            }
            footer { p {
                "Written by mtil-bench " (env!("CARGO_PKG_VERSION"))
                " from the files of the run directories alone. Hover or tap points and cells for "
                "exact values."
            } }
        }
    }
}

//! Section with the violations of the drift guard.

use maud::{Markup, html};

use crate::report::group::Group;
use mtil_engine::guard::{Action, Breach};

use crate::format::decimal;
use crate::report::load::{RunData, StageBreach};
use crate::svg::swatch;

pub(super) fn breaches(groups: &[Group<'_>], order: &[String]) -> Markup {
    let all: Vec<(&Group<'_>, &RunData, &StageBreach)> = groups
        .iter()
        .flat_map(|g| g.runs.iter().map(move |r| (g, *r)))
        .flat_map(|(g, r)| r.breaches.iter().map(move |b| (g, r, b)))
        .collect();
    if all.is_empty() {
        return html! {};
    }
    html! {
        section {
            h2 { "Crossed limits" }
            p {
                "Limits of the drift guard, checked after each task. A run that is not listed "
                "stayed within its limits or had none."
            }
            div.scroll tabindex="0" role="region" aria-label="Limits crossed" {
                table.plain.words {
                    thead { tr {
                        th scope="col" { "Run" }
                        th scope="col" { "When" }
                        th scope="col" { "Limit" }
                        th scope="col" { "Measured" }
                        th scope="col" { "Consequence" }
                    } }
                    tbody {
                        @for (g, r, b) in all {
                            tr {
                                th scope="row" {
                                    (swatch(g.colour)) " " (g.name)
                                    @if g.runs.len() > 1 { small { " seed " (r.file.seed) } }
                                }
                                td { (stage_name(b.stage, order)) }
                                td {
                                    code { (b.breach.rule) }
                                    @if !b.breach.message.is_empty() {
                                        br; small { (b.breach.message) }
                                    }
                                }
                                td { (measured(&b.breach)) }
                                td { @match b.breach.action {
                                    Action::Stop => strong { "run stopped" },
                                    Action::Undo => strong { "task taken back" },
                                    Action::Warn => "warning only",
                                } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn stage_name(stage: usize, order: &[String]) -> String {
    match stage.checked_sub(1) {
        None => "before training".into(),
        Some(task) => order.get(task).map_or_else(
            || format!("after task {stage}"),
            |name| format!("after {name}"),
        ),
    }
}

/// Formats the measured value with enough decimals to distinguish it from the limit.
fn measured(b: &Breach) -> String {
    let Some(value) = b.value else {
        return "–".into();
    };
    let differs = |d: &usize| decimal(value, *d, false) != decimal(b.limit, *d, false);
    let decimals = (1..6).find(differs).unwrap_or(6);
    decimal(value, decimals, false)
}

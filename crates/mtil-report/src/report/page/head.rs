//! Head of the page: outcome, description of the benchmark, notes.

use maud::{Markup, html};

use super::outcome::Outcome;
use crate::format::plural;
use crate::report::group::Group;
use crate::report::load::{Loaded, RunData, Status};

/// Title, outcome and notes.
pub(super) fn head(loaded: &Loaded, groups: &[Group<'_>], outcome: &Outcome) -> Markup {
    let first = &loaded.runs[0];
    let order = first.accuracy.order();
    html! {
        header {
            p.kicker {
                "Continual learning of a CLIP model · " (first.file.suite) " · "
                (plural(order.len(), "task"))
            }
            // A number stays beside its unit.
            h1 { (outcome.sentence.replace(" %", "\u{a0}%")) }
            p.lede {
                @if !outcome.detail.is_empty() { b { (outcome.detail) } " " }
                "One model is trained on one task after another: "
                @for (i, task) in order.iter().enumerate() {
                    @if i > 0 { " → " }
                    span.task { (task) }
                }
                ". After each, it is tested on all of them, including those it has not been "
                "trained on yet. "
                (seeds_sentence(groups)) " Prompt rule: " (prompt_rule(first)) "."
            }
            @for note in &loaded.notes { p.note { strong { "Note. " } (note) } }
            (unfinished(groups))
        }
    }
}

fn prompt_rule(run: &RunData) -> &str {
    match run.file.prompt_rule.as_str() {
        "" => "not recorded",
        rule => rule,
    }
}

fn seeds_sentence(groups: &[Group<'_>]) -> String {
    let done: Vec<_> = groups.iter().filter(|g| g.is_complete()).collect();
    let counts: Vec<usize> = done.iter().map(|g| Group::counted(&g.runs).len()).collect();
    match (counts.iter().min(), counts.iter().max()) {
        (Some(1), Some(1)) => "One seed per method: small differences may be chance.".into(),
        (Some(a), Some(b)) if a == b => {
            format!("Figures are means over {a} seeds ± sample standard deviation.")
        }
        (Some(a), Some(b)) => {
            format!("{a} to {b} seeds per method; with several, mean ± sample standard deviation.")
        }
        _ => String::new(),
    }
}

fn unfinished(groups: &[Group<'_>]) -> Markup {
    html! {
        @for g in groups {
            @for r in &g.runs {
                @if r.status == Status::Partial {
                    p.note {
                        strong { "Unfinished. " } (r.label())
                        @match r.stopped_by() {
                            Some(breach) => {
                                " was stopped because it crossed the limit "
                                code { (breach.breach.rule) }
                            },
                            None => " is still running or was interrupted",
                        }
                        ": evaluated after "
                        (r.accuracy.rows().len()) " of " (plural(r.accuracy.tasks(), "task")) "."
                    }
                }
            }
        }
    }
}

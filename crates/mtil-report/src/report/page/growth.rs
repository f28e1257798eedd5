//! Section for the one who decides about the last task of a growing run: what was added, what it
//! cost the rest, whether zero-shot ability is left, and how to take it back.

use maud::{Markup, html};

use super::charts::{range, stage_ticks};
use crate::format::{NONE, decimal, plural};
use crate::report::group::Group;
use crate::report::growth::{Growth, LastChange};
use crate::report::load::RunData;
use crate::svg::{Line, LineChart, swatch};
use mtil_engine::{
    metrics::mean,
    run::{Change, Comparison},
};

pub(super) fn growth(groups: &[Group<'_>]) -> Markup {
    let grown: Vec<(&Group<'_>, &RunData, &Growth)> = groups
        .iter()
        .flat_map(|g| g.runs.iter().map(move |r| (g, *r)))
        .filter_map(|(g, r)| Some((g, r, r.growth.as_ref()?)))
        .collect();
    // The title of the page is the sentence of a single run.
    let alone = grown.len() == 1;
    html! {
        @for (group, run, growth) in grown {
            section {
                h2 { (swatch(group.colour)) " " (heading(group, growth, alone)) }
                @if let Some(compared) = &growth.compared { (table(compared)) }
                (decision(run, growth))
                (trend(group, run, growth))
            }
        }
    }
}

fn heading(group: &Group<'_>, growth: &Growth, alone: bool) -> String {
    match &growth.compared {
        Some(compared) if alone => format!("What {} changed", compared.name),
        _ => format!("{}: {}", group.name, growth.sentence()),
    }
}

/// The measures before and after the last task.
fn table(compared: &Comparison) -> Markup {
    let row = |name: &str, change: Change, unit: &str, decimals: usize, factor: f64| {
        let text = |value: Option<f64>, signed: bool| {
            let unit = if signed && unit == " %" {
                " points"
            } else {
                unit
            };
            value.map_or(NONE.into(), |v| {
                format!("{}{unit}", decimal(v * factor, decimals, signed))
            })
        };
        html! {
            tr {
                th scope="row" { (name) }
                td { (text(change.before, false)) }
                td { (text(change.after, false)) }
                td { (text(change.difference(), true)) }
            }
        }
    };
    let earlier = |of: fn(&Change) -> Option<f64>| {
        let both = compared.earlier.iter().map(|e| e.accuracy);
        mean(both.filter(|c| c.difference().is_some()).map(|c| of(&c)))
    };
    let all = Change {
        before: earlier(|c| c.before),
        after: earlier(|c| c.after),
    };
    let worst = compared.worst().and_then(|(name, _)| {
        let worst = compared.earlier.iter().find(|e| e.name == name)?;
        Some((name, worst.accuracy))
    });
    html! {
        div.scroll tabindex="0" role="region" aria-label="Before and after the last task" {
            table.plain {
                thead { tr {
                    th scope="col" { "" }
                    th scope="col" { "Before" }
                    th scope="col" { "After" }
                    th scope="col" { "Change" }
                } }
                tbody {
                    (row(&format!("Accuracy on {}", compared.name), compared.own, " %", 1, 1.0))
                    @if !compared.earlier.is_empty() {
                        (row("Earlier tasks, mean", all, " %", 1, 1.0))
                    }
                    @if let Some((name, change)) = worst {
                        (row(&format!("Most changed earlier task, {name}"), change, " %", 1, 1.0))
                    }
                    @if compared.zero_shot.before.is_some() {
                        (row("Zero-shot accuracy kept", compared.zero_shot, " %", 1, 100.0))
                    }
                    (row("Modality gap", compared.modality_gap, "", 3, 1.0))
                    (row("Margin", compared.margin, "", 2, 1.0))
                    (row("Retrieval R@1", compared.recall, " %", 1, 1.0))
                }
            }
        }
    }
}

fn decision(run: &RunData, growth: &Growth) -> Markup {
    let folder = run.dir.display();
    let broken = run.breaches.iter().any(|b| b.stage == growth.learned);
    html! {
        p {
            @match &growth.last {
                LastChange::TookBack { .. } => {
                    "The run is as it was before this task: "
                    (plural(growth.learned, "learned task")) "."
                },
                LastChange::Learned { .. } => {
                    @if broken { b { "A limit of the drift guard is crossed." } " " }
                    "The task is kept. To take it back, until the next one is learned: "
                    code { "mtil-bench undo '" (folder) "'" } ". What was learned when: "
                    code { "mtil-bench history '" (folder) "'" } "."
                },
            }
        }
    }
}

/// Accuracy on the learned tasks, and the share of zero-shot accuracy that is kept, over all stages.
fn trend(group: &Group<'_>, run: &RunData, growth: &Growth) -> Markup {
    let stages = growth.learned;
    let learned: Vec<(f64, f64)> = (1..=stages)
        .filter_map(|s| {
            let cells = (0..s).map(|c| run.accuracy_at(s, c));
            Some((s as f64, mean(cells)?))
        })
        .collect();
    let zero_shot: Vec<(f64, f64)> = growth
        .zero_shot
        .iter()
        .map(|(tasks, share)| (*tasks as f64, 100.0 * share))
        .collect();
    if stages < 2 {
        return html! {};
    }
    let chart = |title: &str, points: Vec<(f64, f64)>| {
        let lines = vec![Line {
            label: group.name.clone(),
            colour: group.colour,
            markers: true,
            strong: true,
            faint: false,
            points,
        }];
        let (low, high) = range(lines.iter(), &[]);
        LineChart {
            title: title.into(),
            width: 440.0,
            height: 200.0,
            x: (0.0, stages as f64),
            y: (low.max(0.0), high),
            x_ticks: stage_ticks(stages),
            x_name: "tasks learned so far".into(),
            lines,
            decimals: 0,
            unit: " %",
            ..LineChart::default()
        }
        .render()
    };
    html! {
        div.pair.trend {
            figure {
                figcaption { b { "Learned tasks" } " — mean accuracy in %." }
                (chart("Mean accuracy on the learned tasks after each task", learned))
            }
            @if zero_shot.len() > 1 {
                figure {
                    figcaption {
                        b { "Zero-shot" } " — accuracy on tasks that are not learned yet, in % of the "
                        "pretrained model’s."
                    }
                    (chart("Share of zero-shot accuracy kept after each task", zero_shot))
                }
            }
        }
    }
}
